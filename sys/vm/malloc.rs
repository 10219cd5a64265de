//! Zones behind the general heap: for pieces of a page at most, by size, and for some types by name.
//!
//! FreeBSD: sys/kern/kern_malloc.c (kmemzones)
//! Differs from FreeBSD: a free is told the layout of what it frees, so that no page needs to know its zone; a type
//! that is shared by reference counts has a zone by its layout, because `Arc` knows no allocator but the global one.

use super::uma::{How, Zone, find_or_create};
use crate::machine;
use crate::machine::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use crate::machine_local;
use core::alloc::Layout;
use core::ptr::{self, NonNull};

/// Sizes of the zones, as FreeBSD has them up to a page.
const SIZES: [usize; 10] = [16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096];

/// Largest piece.
pub const MALLOC_MAX: usize = SIZES[SIZES.len() - 1];

/// Types with zones of their own are aligned to cache lines, as hardly anything else is.
const DEDICATED_ALIGN: usize = 64;

/// Most types with zones of their own.
const DEDICATED: usize = 8;

machine_local! {
    static KMEMZONES: [Zone; SIZES.len()] = [
        kmemzone("malloc-16", 16),
        kmemzone("malloc-32", 32),
        kmemzone("malloc-64", 64),
        kmemzone("malloc-128", 128),
        kmemzone("malloc-256", 256),
        kmemzone("malloc-384", 384),
        kmemzone("malloc-512", 512),
        kmemzone("malloc-1024", 1024),
        kmemzone("malloc-2048", 2048),
        kmemzone("malloc-4096", 4096),
    ];
}

/// Items are aligned to the largest power of two in their size, since slabs are.
const fn kmemzone(name: &'static str, size: usize) -> Zone {
    Zone::new(name, size, size & size.wrapping_neg())
}

/// Index into `SIZES` by the number of 16-byte units.
const CLASS_OF: [u8; MALLOC_MAX / 16 + 1] = {
    let mut table = [0; MALLOC_MAX / 16 + 1];
    let (mut units, mut class) = (0, 0);
    while units < table.len() {
        if units * 16 > SIZES[class] {
            class += 1;
        }
        table[units] = class as u8;
        units += 1;
    }
    table
};

/// A type with a zone of its own.
struct DedicatedZone {
    size: AtomicUsize,
    zone: AtomicPtr<Zone>,
}

machine_local! {
    static DEDICATED_ZONES: [DedicatedZone; DEDICATED] = [const {
        DedicatedZone {
            size: AtomicUsize::new(0),
            zone: AtomicPtr::new(ptr::null_mut()),
        }
    }; DEDICATED];
}

machine_local! {
    /// Sizes, in units of `DEDICATED_ALIGN`, that went to the common zones: it is too late to dedicate these.
    static TAKEN: [AtomicU32; MALLOC_MAX / DEDICATED_ALIGN / 32 + 1] =
        [const { AtomicU32::new(0) }; MALLOC_MAX / DEDICATED_ALIGN / 32 + 1];
}

machine_local! {
    static READY: AtomicBool = AtomicBool::new(false);
}

/// From here on `malloc` serves: there are per-CPU areas, locks and memory.
#[doc(alias = "kmeminit")]
pub fn startup() {
    READY.store(true, Ordering::Release);
}

/// Gives what an `Arc<T>` points at a zone called `name`, if `T` is aligned to a cache line and none was made yet.
/// Returns whether it did.
pub fn dedicate<T>(name: &'static str) -> bool {
    let Ok((layout, _)) = Layout::new::<[usize; 2]>().extend(Layout::new::<T>()) else {
        return false;
    };
    let layout = layout.pad_to_align();
    if layout.align() != DEDICATED_ALIGN || layout.size() > MALLOC_MAX {
        return false;
    }
    if dedicated(layout.size()).is_some() || is_taken(layout.size()) {
        return false;
    }
    let zone = find_or_create(name, layout.size(), layout.align());
    for slot in DEDICATED_ZONES.get() {
        if slot.zone.load(Ordering::Acquire).is_null() {
            slot.size.store(layout.size(), Ordering::Relaxed);
            slot.zone
                .store(ptr::from_ref(zone).cast_mut(), Ordering::Release);
            return true;
        }
    }
    false
}

fn dedicated(size: usize) -> Option<&'static Zone> {
    for slot in DEDICATED_ZONES.get() {
        // SAFETY: null or a zone, which lives as long as the machine.
        let zone = unsafe { slot.zone.load(Ordering::Acquire).as_ref() }?;
        if slot.size.load(Ordering::Relaxed) == size {
            return Some(zone);
        }
    }
    None
}

/// Where the bit of a size is in `TAKEN`.
fn taken_bit(size: usize) -> (&'static AtomicU32, u32) {
    let unit = size.div_ceil(DEDICATED_ALIGN);
    (&TAKEN.get()[unit / 32], 1 << (unit % 32))
}

fn is_taken(size: usize) -> bool {
    let (word, bit) = taken_bit(size);
    word.load(Ordering::Relaxed) & bit != 0
}

/// The zone for pieces of this layout; the same for the same layout, always.
#[inline]
fn zone_for(layout: Layout) -> Option<&'static Zone> {
    let (size, align) = (layout.size(), layout.align());
    if align == DEDICATED_ALIGN
        && let Some(zone) = dedicated(size)
    {
        return Some(zone);
    }
    // Pieces of a power of two are aligned to their size, all to 16.
    let size = if align > 16 {
        size.max(align).next_power_of_two()
    } else {
        size
    };
    if size > MALLOC_MAX {
        return None;
    }
    let class = CLASS_OF[size.div_ceil(16)];
    Some(&KMEMZONES.get()[usize::from(class)])
}

/// Whether the CPU's buckets may be in use under us (in a critical section, and so in every interrupt handler), or locks are
/// held that the zones' should not be taken under.
#[inline]
fn buckets_in_use() -> bool {
    let pcpu = machine::pcpu();
    pcpu.critnest.load(Ordering::Relaxed) != 0 || pcpu.spinlock_count.load(Ordering::Relaxed) != 0
}

/// Allocates a piece. `None` if it is too large, or too early, or in a critical section, under a spin mutex or in an interrupt
/// handler; or if there is no memory.
#[inline]
pub fn malloc(layout: Layout) -> Option<NonNull<u8>> {
    if layout.size() > MALLOC_MAX || !READY.load(Ordering::Acquire) || buckets_in_use() {
        return None;
    }
    if layout.align() == DEDICATED_ALIGN && dedicated(layout.size()).is_none() {
        let (word, bit) = taken_bit(layout.size());
        word.fetch_or(bit, Ordering::Relaxed);
    }
    zone_for(layout)?.alloc(How::NoWait)
}

/// Frees a piece.
///
/// # Safety
/// It came from `malloc` with this layout, and nobody uses it any more.
#[inline]
pub unsafe fn free(piece: NonNull<u8>, layout: Layout) {
    // SAFETY: `malloc` found the zone by the same layout.
    unsafe {
        let zone = zone_for(layout).unwrap_unchecked();
        if buckets_in_use() {
            zone.free_to_keg(piece);
        } else {
            zone.free(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::hosted::Machine;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn every_layout_gets_a_piece_that_is_large_and_aligned_enough() {
        Machine::builder().run(|| {
            startup();
            for align in [1, 2, 8, 16, 32, 64, 128, 1024, 4096] {
                for size in [0, 1, 15, 16, 17, 100, 300, 385, 1000, 4095, 4096] {
                    let layout = layout(size, align);
                    let pieces: std::vec::Vec<_> =
                        (0..20).map(|_| malloc(layout).unwrap()).collect();
                    for piece in &pieces {
                        assert_eq!(piece.addr().get() % align, 0);
                        // SAFETY: ours, of this size.
                        unsafe { piece.write_bytes(0xa5, size) };
                    }
                    for piece in pieces {
                        // SAFETY: allocated with this layout.
                        unsafe { free(piece, layout) };
                    }
                }
            }
            assert!(malloc(layout(4097, 1)).is_none());
            assert!(crate::vm::uma_dbg::leaks().is_empty());
        });
    }

    #[test]
    fn a_critical_section_gets_nothing_but_may_free() {
        Machine::builder().run(|| {
            startup();
            let layout = layout(100, 8);
            let piece = malloc(layout).unwrap();
            let critical = machine::Critical::enter();
            assert!(malloc(layout).is_none());
            // SAFETY: allocated with this layout.
            unsafe { free(piece, layout) };
            drop(critical);
            assert!(crate::vm::uma_dbg::leaks().is_empty());
        });
    }

    #[repr(align(64))]
    struct Control {
        _state: [u64; 20],
    }

    #[test]
    fn a_type_with_a_zone_of_its_own_is_counted_there() {
        Machine::builder().run(|| {
            startup();
            assert!(dedicate::<Control>("control"));
            assert!(!dedicate::<Control>("again"));
            let layout = layout(64 + 192, 64);
            let piece = malloc(layout).unwrap();
            assert_eq!(crate::vm::uma_dbg::leaks(), [("control", 1)]);
            // SAFETY: allocated with this layout.
            unsafe { free(piece, layout) };
            assert_eq!(size_of::<Control>(), 192);
        });
    }

    #[test]
    fn it_is_too_late_for_a_zone_of_its_own_once_one_was_made() {
        Machine::builder().run(|| {
            startup();
            let layout = layout(64 + 192, 64);
            let piece = malloc(layout).unwrap();
            assert!(!dedicate::<Control>("control"));
            // SAFETY: allocated with this layout.
            unsafe { free(piece, layout) };
        });
    }
}
