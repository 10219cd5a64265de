//! Checks on items, in debug builds: writes after free, double free, leaks.
//!
//! FreeBSD: sys/vm/uma_dbg.c

#[cfg(debug_assertions)]
use super::uma_core::Zone;
use alloc::vec::Vec;
use core::ptr::NonNull;

/// What free memory is filled with.
#[doc(alias = "uma_junk")]
const JUNK: u64 = 0xdead_c0de_dead_c0de;

/// Most bytes of an item that are filled and checked.
const JUNK_MAX: usize = 2048;

/// Fills a free item.
///
/// # Safety
/// `size` bytes at `item` are ours.
#[doc(alias = "trash_dtor")]
pub(super) unsafe fn trash(item: NonNull<u8>, size: usize) {
    let words = item.cast::<u64>();
    for i in 0..size.min(JUNK_MAX) / 8 {
        // SAFETY: within the promised bytes.
        unsafe { words.add(i).write_unaligned(JUNK) };
    }
}

/// Panics if somebody wrote to a free item.
///
/// # Safety
/// `size` bytes at `item` are ours.
#[doc(alias = "trash_ctor")]
#[cfg(debug_assertions)]
pub(super) unsafe fn check_trash(zone: &Zone, item: NonNull<u8>, size: usize) {
    let words = item.cast::<u64>();
    for i in 0..size.min(JUNK_MAX) / 8 {
        // SAFETY: within the promised bytes.
        let found = unsafe { words.add(i).read_unaligned() };
        assert!(
            found == JUNK,
            "memory modified after free {item:p}({size}) val={found:#x} @ +{}: zone {}",
            i * 8,
            zone.name(),
        );
    }
}

/// Zones with items in use, and how many: what a test that began with none has leaked.
pub fn leaks() -> Vec<(&'static str, u64)> {
    super::uma::zones()
        .map(|zone| (zone.name(), zone.stats().used))
        .filter(|&(name, used)| used > 0 && !name.ends_with(" Bucket"))
        .collect()
}
