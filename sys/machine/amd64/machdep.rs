//! Idling, and the memory that boot leaves for the page allocator.
//!
//! FreeBSD: sys/amd64/amd64/machdep.c, sys/x86/x86/cpu_machdep.c

use super::cpufunc::{cpuid, sti_hlt};
use crate::machine::PhysRange;
use core::sync::atomic::{AtomicBool, Ordering, compiler_fence};
use spin::Once;

/// Most ranges of memory.
pub const PHYS_AVAIL_ENTRIES: usize = 32;

struct PhysAvail {
    ranges: [PhysRange; PHYS_AVAIL_ENTRIES],
    count: usize,
}

static PHYS_AVAIL: Once<PhysAvail> = Once::new();

/// Records what memory the page allocator may have; ranges beyond the table are left unused.
pub fn set_phys_avail(ranges: impl Iterator<Item = PhysRange>) {
    PHYS_AVAIL.call_once(|| {
        let mut avail = PhysAvail {
            ranges: [PhysRange { start: 0, end: 0 }; PHYS_AVAIL_ENTRIES],
            count: 0,
        };
        for (slot, range) in avail.ranges.iter_mut().zip(ranges) {
            *slot = range;
            avail.count += 1;
        }
        avail
    });
}

/// Memory that nothing uses: for the page allocator.
pub fn phys_avail() -> &'static [PhysRange] {
    PHYS_AVAIL
        .get()
        .map_or(&[], |avail| &avail.ranges[..avail.count])
}

/// Waits for an interrupt. Entered with interrupts off and nothing to run; returns with interrupts on.
#[inline]
pub fn cpu_idle() {
    sti_hlt();
}

/// Lets the other hyperthread, or the hypervisor, go ahead while this CPU spins.
///
/// Not under QEMU's emulator: there PAUSE leaves the translated code and takes QEMU's big lock, which the lock's owner needs
/// for its next access to a device.
#[inline]
pub fn cpu_spinwait() {
    if EMULATED.load(Ordering::Relaxed) {
        compiler_fence(Ordering::SeqCst);
    } else {
        core::hint::spin_loop();
    }
}

static EMULATED: AtomicBool = AtomicBool::new(false);
const CPUID_HYPERVISOR: u32 = 1 << 31;
/// The signature of QEMU's emulator in EBX, ECX and EDX of leaf 0x40000000.
const TCG: [u8; 12] = *b"TCGTCGTCGTCG";

/// Finds out what this CPU really is.
pub fn identify_hypervisor() {
    if cpuid(1, 0).ecx & CPUID_HYPERVISOR == 0 {
        return;
    }
    let leaf = cpuid(0x4000_0000, 0);
    let words = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    EMULATED.store(words.as_flattened() == TCG, Ordering::Relaxed);
}
