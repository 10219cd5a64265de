//! The local APIC: interrupts between CPUs, end of interrupt, and the one-shot timer.
//!
//! FreeBSD: sys/x86/x86/local_apic.c
//! Differs from FreeBSD: no `x2apic` crate underneath: the end of interrupt and the timer are on the hottest
//! path, and each is one store here.

use super::clock::{self, Reference};
use super::cpufunc::{cpuid, rdmsr, wrmsr};
use super::pcpu_machdep::{apic_id_of, curcpu};
use super::pmap::pmap_mapdev;
use crate::machine::MAXCPU;
use crate::time::Sbintime;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

const MSR_APICBASE: u32 = 0x1b;
const APICBASE_X2APIC: u64 = 1 << 10;
const APICBASE_ENABLED: u64 = 1 << 11;
const APICBASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC: u32 = 0x800;
/// In x2APIC mode one register holds both halves of the command.
const MSR_X2APIC_ICR: u32 = 0x830;

// Registers by number; times 16 it is the offset (SDM vol. 3, table 10-1).
const LAPIC_ID: u32 = 0x02;
const LAPIC_TPR: u32 = 0x08;
const LAPIC_EOI: u32 = 0x0b;
const LAPIC_SVR: u32 = 0x0f;
const LAPIC_ESR: u32 = 0x28;
const LAPIC_ICR_LO: u32 = 0x30;
const LAPIC_ICR_HI: u32 = 0x31;
const LAPIC_LVT_TIMER: u32 = 0x32;
const LAPIC_LVT_LINT0: u32 = 0x35;
const LAPIC_LVT_LINT1: u32 = 0x36;
const LAPIC_LVT_ERROR: u32 = 0x37;
const LAPIC_TIMER_INITIAL: u32 = 0x38;
const LAPIC_TIMER_CURRENT: u32 = 0x39;
const LAPIC_TIMER_DIVIDE: u32 = 0x3e;

const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const DIVIDE_BY_1: u32 = 0x0b;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_INIT: u32 = 5 << 8;
const DELIVER_STARTUP: u32 = 6 << 8;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;

/// The vector of the timer; above the devices', below those of the interrupts between CPUs.
pub const TIMER_VECTOR: u8 = 0xef;
/// The vector of interrupts that were none.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Mapped registers; 0 in x2APIC mode.
static REGISTERS: AtomicUsize = AtomicUsize::new(0);
static X2APIC: AtomicBool = AtomicBool::new(false);
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Counts per second of the timer.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

#[repr(align(64))]
struct Armed(AtomicI64);
/// For what time each CPU's timer is set; `i64::MAX`: not at all.
static ARMED: [Armed; MAXCPU] = [const { Armed(AtomicI64::new(i64::MAX)) }; MAXCPU];

#[inline]
fn read(reg: u32) -> u32 {
    let base = REGISTERS.load(Ordering::Relaxed);
    if base == 0 {
        // SAFETY: in x2APIC mode the registers are MSRs.
        unsafe { rdmsr(MSR_X2APIC + reg) as u32 }
    } else {
        // SAFETY: `lapic_init` mapped the register page.
        unsafe { ((base + reg as usize * 16) as *const u32).read_volatile() }
    }
}

#[inline]
fn write(reg: u32, value: u32) {
    let base = REGISTERS.load(Ordering::Relaxed);
    if base == 0 {
        // SAFETY: in x2APIC mode the registers are MSRs.
        unsafe { wrmsr(MSR_X2APIC + reg, u64::from(value)) };
    } else {
        // SAFETY: `lapic_init` mapped the register page.
        unsafe { ((base + reg as usize * 16) as *mut u32).write_volatile(value) };
    }
}

/// Turns the first CPU's local APIC on, as x2APIC if there is that.
pub fn lapic_init() {
    let x2apic = cpuid(1, 0).ecx & 1 << 21 != 0;
    TSC_DEADLINE.store(cpuid(1, 0).ecx & 1 << 24 != 0, Ordering::Relaxed);
    X2APIC.store(x2apic, Ordering::Relaxed);
    if !x2apic {
        // SAFETY: every CPU in long mode has the register.
        let base = unsafe { rdmsr(MSR_APICBASE) } & APICBASE_ADDRESS;
        REGISTERS.store(pmap_mapdev(base, 4096).as_ptr() as usize, Ordering::Relaxed);
    }
    lapic_init_cpu();
}

/// Turns this CPU's local APIC on, all its own sources off.
pub fn lapic_init_cpu() {
    let mode = if X2APIC.load(Ordering::Relaxed) {
        APICBASE_X2APIC
    } else {
        0
    };
    // SAFETY: enabling (and changing to x2APIC mode, which the CPU has) is always allowed.
    unsafe { wrmsr(MSR_APICBASE, rdmsr(MSR_APICBASE) | APICBASE_ENABLED | mode) };
    write(LAPIC_TPR, 0);
    write(LAPIC_LVT_TIMER, LVT_MASKED);
    write(LAPIC_LVT_LINT0, LVT_MASKED);
    write(LAPIC_LVT_LINT1, LVT_NMI);
    write(LAPIC_LVT_ERROR, LVT_MASKED);
    write(LAPIC_ESR, 0);
    write(LAPIC_SVR, SVR_ENABLE | u32::from(SPURIOUS_VECTOR));
    write(LAPIC_EOI, 0);
}

/// Whether the local APICs are in x2APIC mode.
pub fn is_x2apic() -> bool {
    X2APIC.load(Ordering::Relaxed)
}

/// Whether the timer is set by TSC value.
pub fn uses_tsc_deadline() -> bool {
    TSC_DEADLINE.load(Ordering::Relaxed)
}

/// This CPU's local APIC number.
pub fn lapic_id() -> u32 {
    let id = read(LAPIC_ID);
    if is_x2apic() { id } else { id >> 24 }
}

/// Ends the interrupt in service.
#[inline]
pub fn lapic_eoi() {
    write(LAPIC_EOI, 0);
}

fn command(apic_id: u32, command: u32) {
    if is_x2apic() {
        // Intel SDM 3A §12.12.3: this write, unlike one to memory, may pass the stores before it.
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: the command goes to a CPU we know.
        unsafe {
            wrmsr(
                MSR_X2APIC_ICR,
                u64::from(apic_id) << 32 | u64::from(command),
            )
        };
        return;
    }
    let state = super::pcpu_machdep::intr_disable();
    write(LAPIC_ICR_HI, apic_id << 24);
    write(LAPIC_ICR_LO, command);
    while read(LAPIC_ICR_LO) & ICR_PENDING != 0 {
        core::hint::spin_loop();
    }
    super::pcpu_machdep::intr_restore(state);
}

/// Sends interrupt `vector` to `cpu`.
pub fn ipi_cpu(cpu: usize, vector: u8) {
    command(apic_id_of(cpu), ICR_ASSERT | u32::from(vector));
}

/// Sends a non-maskable interrupt to `cpu`.
pub fn ipi_nmi(cpu: usize) {
    command(apic_id_of(cpu), ICR_ASSERT | DELIVER_NMI);
}

/// Sends INIT to the CPU with this local APIC.
pub fn ipi_init(apic_id: u32) {
    command(apic_id, ICR_ASSERT | DELIVER_INIT);
}

/// Sends STARTUP to the CPU with this local APIC, to begin at `page * 4096`.
pub fn ipi_startup(apic_id: u32, page: u8) {
    command(apic_id, ICR_ASSERT | DELIVER_STARTUP | u32::from(page));
}

/// Measures the TSC and this timer against `reference`.
pub fn lapic_calibrate_timer(reference: &Reference) {
    write(LAPIC_TIMER_DIVIDE, DIVIDE_BY_1);
    write(LAPIC_LVT_TIMER, LVT_MASKED);
    write(LAPIC_TIMER_INITIAL, u32::MAX);
    let hz = clock::calibrate(reference, || read(LAPIC_TIMER_CURRENT));
    write(LAPIC_TIMER_INITIAL, 0);
    TIMER_HZ.store(hz, Ordering::Relaxed);
}

/// Counts per second of the timer.
pub fn lapic_timer_hz() -> u64 {
    TIMER_HZ.load(Ordering::Relaxed)
}

/// Lets this CPU's timer interrupt from now on.
pub fn lapic_timer_start() {
    write(LAPIC_TIMER_DIVIDE, DIVIDE_BY_1);
    let mode = if uses_tsc_deadline() {
        LVT_TSC_DEADLINE
    } else {
        0
    };
    write(LAPIC_LVT_TIMER, mode | u32::from(TIMER_VECTOR));
}

/// Sets this CPU's timer to `deadline`, unless it fires earlier anyway. Interrupts are off.
///
/// A timer set too early fires for nothing, and is set again then; that costs less than setting it each time a
/// nearer event is taken back.
pub fn set_event_timer(deadline: Sbintime) {
    let armed = &ARMED[curcpu()].0;
    if armed.load(Ordering::Relaxed) <= deadline.0 {
        return;
    }
    armed.store(deadline.0, Ordering::Relaxed);
    if uses_tsc_deadline() {
        // SAFETY: the CPU has the register. A value in the past fires at once; 0 would disarm.
        unsafe { wrmsr(MSR_TSC_DEADLINE, clock::tsc_at(deadline).max(1)) };
        return;
    }
    let away = (deadline.0.saturating_sub(clock::sbinuptime().0)).max(0) as u64;
    let counts = ((u128::from(away) * u128::from(lapic_timer_hz())) >> 32) + 1;
    // Rounded up: too early is for nothing, and 0 would disarm. If it is too far, it fires early and is set again.
    write(LAPIC_TIMER_INITIAL, counts.min(u128::from(u32::MAX)) as u32);
}

/// Notes that this CPU's timer has fired.
pub fn event_timer_fired() {
    ARMED[curcpu()].0.store(i64::MAX, Ordering::Relaxed);
}
