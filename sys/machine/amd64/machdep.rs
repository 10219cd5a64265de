//! Idling, and the memory that boot leaves for the page allocator.
//!
//! FreeBSD: sys/amd64/amd64/machdep.c, sys/x86/x86/cpu_machdep.c

use super::cpufunc::sti_hlt;
use crate::machine::PhysRange;
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
#[inline]
pub fn cpu_spinwait() {
    core::hint::spin_loop();
}
