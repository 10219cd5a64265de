//! Time: the TSC as clock, calibrated against what the machine has.
//!
//! FreeBSD: sys/x86/x86/tsc.c, sys/amd64/amd64/amd64_clock.c
//! Differs from FreeBSD: there is one timecounter. Under QEMU's TCG the TSC is the host's, the same on every CPU.

use super::cpufunc::{inb, inl, outb, rdtsc};
use crate::time::Sbintime;
use core::sync::atomic::{AtomicU64, Ordering};

/// A clock of known rate, to measure others with.
#[derive(Clone, Copy, Debug)]
pub enum Reference {
    /// The HPET's main counter: its register (mapped) and its period in femtoseconds.
    Hpet {
        /// Address of the low half of the counter.
        counter: usize,
        /// Femtoseconds per count.
        period_fs: u32,
    },
    /// The ACPI power management timer: its I/O port.
    AcpiPm {
        /// The I/O port of the counter.
        port: u16,
    },
    /// Channel 2 of the interval timer, which every PC has.
    Pit,
}

const ACPI_PM_HZ: u64 = 3_579_545;
/// The timer of older chip sets counts 24 bits.
const ACPI_PM_MASK: u32 = 0x00ff_ffff;
const PIT_HZ: u64 = 1_193_182;
const PIT_COUNTER2: u16 = 0x42;
const PIT_MODE: u16 = 0x43;
/// Gate and output of the interval timer's channel 2.
const PORT_B: u16 = 0x61;

/// TSC at the start of time.
static TSC_BOOT: AtomicU64 = AtomicU64::new(0);
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// 2^64 / frequency: counts to units of 2^-32 s, times 2^32.
static TSC_SCALE: AtomicU64 = AtomicU64::new(0);

impl Reference {
    /// FreeBSD's name of the clock.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hpet { .. } => "HPET",
            Self::AcpiPm { .. } => "ACPI-fast",
            Self::Pit => "i8254",
        }
    }

    fn count(&self) -> u32 {
        match *self {
            // SAFETY: whoever made the value mapped the register.
            Self::Hpet { counter, .. } => unsafe { (counter as *const u32).read_volatile() },
            // SAFETY: the port is the timer's, reading it changes nothing.
            Self::AcpiPm { port } => unsafe { inl(port) & ACPI_PM_MASK },
            // SAFETY: latches and reads channel 2, which nobody else uses.
            Self::Pit => unsafe {
                outb(PIT_MODE, 0x80);
                let low = inb(PIT_COUNTER2);
                u32::from_le_bytes([low, inb(PIT_COUNTER2), 0, 0])
            },
        }
    }

    /// Counts from `from` to `to`.
    fn elapsed(&self, from: u32, to: u32) -> u64 {
        u64::from(match self {
            Self::Hpet { .. } => to.wrapping_sub(from),
            Self::AcpiPm { .. } => to.wrapping_sub(from) & ACPI_PM_MASK,
            Self::Pit => from.wrapping_sub(to) & 0xffff,
        })
    }

    fn to_ns(self, counts: u64) -> u64 {
        match self {
            Self::Hpet { period_fs, .. } => {
                (u128::from(counts) * u128::from(period_fs) / 1_000_000) as u64
            }
            Self::AcpiPm { .. } => counts * 1_000_000_000 / ACPI_PM_HZ,
            Self::Pit => counts * 1_000_000_000 / PIT_HZ,
        }
    }

    fn start(&self) {
        if matches!(self, Self::Pit) {
            // SAFETY: opens the gate of channel 2 with the speaker off; mode 2, 65536 counts round and round.
            unsafe {
                outb(PORT_B, inb(PORT_B) & !2 | 1);
                outb(PIT_MODE, 0xb4);
                outb(PIT_COUNTER2, 0);
                outb(PIT_COUNTER2, 0);
            }
        }
    }

    /// Waits for `ns` nanoseconds (up to 50 ms) and measures the TSC, and the counter down that `other` reads, in Hz.
    fn measure(&self, ns: u64, other: impl Fn() -> u32) -> (u64, u64) {
        self.start();
        let from = with_tsc(|| self.count());
        let other_from = with_tsc(&other);
        loop {
            let to = with_tsc(|| self.count());
            let passed = self.to_ns(self.elapsed(from.0, to.0));
            if passed >= ns {
                let rate = |counts: u64, per: u64, of: u64| {
                    (u128::from(counts) * u128::from(of) / u128::from(per)) as u64
                };
                let tsc_hz = rate(to.1 - from.1, passed, 1_000_000_000);
                let other_to = with_tsc(&other);
                let counted = u64::from(other_from.0.wrapping_sub(other_to.0));
                return (tsc_hz, rate(counted, other_to.1 - other_from.1, tsc_hz));
            }
        }
    }
}

/// Reads a counter and the TSC as nearly at once as a few tries allow.
fn with_tsc(read: impl Fn() -> u32) -> (u32, u64) {
    let mut best = (0, 0);
    let mut least = u64::MAX;
    for _ in 0..5 {
        let before = rdtsc();
        let count = read();
        let after = rdtsc();
        if after - before < least {
            least = after - before;
            best = (count, before + least / 2);
        }
    }
    best
}

/// Starts time; until `calibrate` a TSC count is taken for a nanosecond.
pub fn clock_early() {
    TSC_BOOT.store(rdtsc(), Ordering::Relaxed);
    set_hz(1_000_000_000);
}

/// Measures the TSC and the counter down that `other` reads; gives the frequency of the latter.
pub fn calibrate(reference: &Reference, other: impl Fn() -> u32) -> u64 {
    let (tsc_hz, other_hz) = reference.measure(10_000_000, other);
    set_hz(tsc_hz);
    other_hz
}

fn set_hz(hz: u64) {
    TSC_HZ.store(hz, Ordering::Relaxed);
    TSC_SCALE.store(((1u128 << 64) / u128::from(hz)) as u64, Ordering::Relaxed);
}

/// The TSC's frequency.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// Time since boot.
#[inline]
pub fn sbinuptime() -> Sbintime {
    // Another CPU's TSC may be a few counts behind the one that set TSC_BOOT.
    let counts = rdtsc().saturating_sub(TSC_BOOT.load(Ordering::Relaxed));
    let scale = TSC_SCALE.load(Ordering::Relaxed);
    Sbintime(((u128::from(counts) * u128::from(scale)) >> 32) as i64)
}

/// The TSC's value at the time `sbt`.
pub(super) fn tsc_at(sbt: Sbintime) -> u64 {
    let counts = (u128::from(sbt.0.max(0) as u64) * u128::from(tsc_hz())) >> 32;
    TSC_BOOT
        .load(Ordering::Relaxed)
        .saturating_add(counts as u64)
}

/// Waits by looking at the clock.
pub fn delay_us(us: u64) {
    let end = rdtsc() + tsc_hz() / 1_000_000 * us;
    while rdtsc() < end {
        core::hint::spin_loop();
    }
}

/// Seconds since 1970 by the battery clock, read without regard for its update in progress beyond a retry.
pub fn rtc_seconds() -> u64 {
    loop {
        let first = rtc_read();
        if first == rtc_read() {
            return first.seconds();
        }
    }
}

#[derive(PartialEq, Eq, Clone, Copy)]
struct Rtc([u8; 6]);

fn rtc_read() -> Rtc {
    let cmos = |reg: u8| {
        // SAFETY: selects and reads a CMOS register; only this function uses these ports.
        unsafe {
            outb(0x70, reg);
            inb(0x71)
        }
    };
    // Bit 7 of register A: an update is in progress.
    let mut patience = 10_000;
    while cmos(0x0a) & 0x80 != 0 && patience > 0 {
        patience -= 1;
    }
    let binary = cmos(0x0b) & 0x04 != 0;
    Rtc([9, 8, 7, 4, 2, 0].map(|reg| {
        let value = cmos(reg);
        if binary {
            value
        } else {
            (value >> 4) * 10 + (value & 15)
        }
    }))
}

impl Rtc {
    /// Days are counted from 1 March of year 0, so that the leap day is the last of a year.
    fn seconds(self) -> u64 {
        let [year, month, day, hour, minute, second] = self.0.map(u64::from);
        let (year, month) = if month > 2 {
            (2000 + year, month - 3)
        } else {
            (1999 + year, month + 9)
        };
        let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
        const DAYS_TO_1970: u64 = 719_469;
        (days.saturating_sub(DAYS_TO_1970) * 24 + hour) * 3600 + minute * 60 + second
    }
}
