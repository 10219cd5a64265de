//! Random numbers.
//!
//! FreeBSD: sys/dev/random/ivy.c, sys/dev/random/fortuna.c
//! Differs from FreeBSD: no Fortuna. The hardware's generator is mixed with the TSC at every call into a
//! SipHash-keyed counter, so that without that generator (QEMU's default CPU has none) what is left is the
//! jitter of boot and of the calls.

use super::cpufunc::{cpuid, rdtsc};
use core::arch::asm;
use core::hash::Hasher;
use core::sync::atomic::{AtomicU64, Ordering};
use siphasher::sip::SipHasher24;

static KEY: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
static COUNT: AtomicU64 = AtomicU64::new(0);
const CPUID_RDRAND: u32 = 1 << 30;

fn rdrand() -> Option<u64> {
    for _ in 0..10 {
        let (value, good): (u64, u8);
        // SAFETY: called only where CPUID shows the instruction.
        unsafe {
            asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) good, options(nomem, nostack))
        };
        if good != 0 {
            return Some(value);
        }
    }
    None
}

/// Stirs `value` into the key.
pub fn random_harvest(value: u64) {
    for (i, word) in KEY.iter().enumerate() {
        let mut hasher = SipHasher24::new_with_keys(word.load(Ordering::Relaxed), value);
        hasher.write_u64(rdtsc());
        hasher.write_u64(i as u64);
        word.store(hasher.finish(), Ordering::Relaxed);
    }
}

/// Makes the first key: from the hardware's generator if there is one, the battery clock and the TSC.
pub fn random_init() {
    let hardware = cpuid(1, 0).ecx & CPUID_RDRAND != 0;
    for _ in 0..8 {
        random_harvest(if hardware { rdrand().unwrap_or(0) } else { 0 });
    }
    random_harvest(super::clock::rtc_seconds());
}

/// A number nobody can guess.
pub fn random_u64() -> u64 {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let keys = [&KEY[0], &KEY[1]].map(|word| word.load(Ordering::Relaxed));
    let mut hasher = SipHasher24::new_with_keys(keys[0], keys[1]);
    hasher.write_u64(count);
    hasher.write_u64(rdtsc());
    hasher.finish()
}
