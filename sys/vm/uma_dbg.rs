//! Checks on items: writes after free, double free, frees to the wrong zone, writes past the end, leaks.
//!
//! FreeBSD: sys/vm/uma_dbg.c, sys/vm/redzone.c
//! Differs from FreeBSD: red zones belong to all zones whose alignment leaves room for one.
//! Not carried over: memguard(9), whose page per item costs more than the rest finds.
//!
//! All of it is there in builds with debug assertions (FreeBSD's INVARIANTS) and nothing of it in others. There
//! `vm.debug.divisor` on the kernel's command line says how many items are checked: each one (1, the default), every `n`th
//! of a slab, or none (0).

use super::uma_core::Keg;
#[cfg(debug_assertions)]
use super::uma_core::{NotAnItem, Zone};
use crate::kern::kern_sysctl::{kenv, root};
use crate::machine::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::machine_local;
use crate::sysctl::ReadOnly;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

/// What free memory is filled with.
#[doc(alias = "uma_junk")]
const JUNK: u64 = 0xdead_c0de_dead_c0de;

/// Most bytes of an item that are filled and checked.
const JUNK_MAX: usize = if cfg!(miri) { 64 } else { 2048 };

/// What the bytes after an item are filled with while it is in use.
#[cfg(debug_assertions)]
#[doc(alias = "REDZONE_CFILL")]
const RED: u8 = 0x42;

/// Bytes that are left free after each item of a zone, to see what is written past its end. Where items are aligned to more
/// than a cache line, as packet memory is, there is no room.
pub(super) const fn red_zone(align: usize) -> usize {
    if cfg!(debug_assertions) && align <= 64 {
        16
    } else {
        0
    }
}

machine_local! {
    static DEBUG: Debug = Debug {
        divisor: AtomicU32::new(1),
        trashed: AtomicU64::new(0),
        skipped: AtomicU64::new(0),
    };
}

struct Debug {
    divisor: AtomicU32,
    trashed: AtomicU64,
    skipped: AtomicU64,
}

/// Reads what the kernel's command line says, and shows what is done, in `vm.debug`.
pub(super) fn startup() {
    if !cfg!(debug_assertions) {
        return;
    }
    if let Some(divisor) = kenv()
        .get("vm.debug.divisor")
        .and_then(|value| value.parse().ok())
    {
        DEBUG.get().divisor.store(divisor, Ordering::Relaxed);
    }
    let show = |name, about, read: fn(&Debug) -> u64| {
        let leaf = ReadOnly::new(about, move || read(DEBUG.get()).to_string());
        root().register(name, Arc::new(leaf));
    };
    show(
        "vm.debug.divisor",
        "Debug & thrash every this item in memory allocator",
        |debug| u64::from(debug.divisor.load(Ordering::Relaxed)),
    );
    show("vm.debug.trashed", "memory items debugged", |debug| {
        debug.trashed.load(Ordering::Relaxed)
    });
    show(
        "vm.debug.skipped",
        "memory items skipped, not debugged",
        |debug| debug.skipped.load(Ordering::Relaxed),
    );
}

/// Whether an item is not to be checked; always the same for one item.
#[doc(alias = "uma_dbg_kskip")]
fn skips(keg: &Keg, item: NonNull<u8>) -> bool {
    if !cfg!(debug_assertions) {
        return true;
    }
    match DEBUG.get().divisor.load(Ordering::Relaxed) {
        0 => true,
        1 => false,
        divisor => !(item.addr().get() / keg.rsize()).is_multiple_of(divisor as usize),
    }
}

/// Fills a free item.
///
/// # Safety
/// The item is the keg's, and nobody uses it.
#[doc(alias = "trash_dtor")]
#[doc(alias = "trash_init")]
pub(super) unsafe fn trash(keg: &Keg, item: NonNull<u8>) {
    if skips(keg, item) {
        return;
    }
    let words = item.cast::<u64>();
    for i in 0..keg.size().min(JUNK_MAX) / 8 {
        // SAFETY: within the item.
        unsafe { words.add(i).write_unaligned(JUNK) };
    }
}

/// Panics if somebody wrote to a free item.
///
/// # Safety
/// The item is the keg's, `trash` filled it, and nobody uses it.
#[doc(alias = "trash_ctor")]
#[doc(alias = "trash_fini")]
pub(super) unsafe fn check_trash(keg: &Keg, zone: &str, item: NonNull<u8>) {
    if skips(keg, item) {
        return;
    }
    let size = keg.size();
    let words = item.cast::<u64>();
    for i in 0..size.min(JUNK_MAX) / 8 {
        // SAFETY: within the item.
        let found = unsafe { words.add(i).read_unaligned() };
        assert!(
            found == JUNK,
            "Memory modified after free {item:p}({size}) val={found:x} @ +{}: zone {zone}",
            i * 8,
        );
    }
}

/// Checks and notes that an item is handed to a user.
#[doc(alias = "uma_dbg_alloc")]
#[cfg(debug_assertions)]
pub(super) fn on_alloc(zone: &Zone, item: NonNull<u8>) {
    let (keg, name) = (zone.keg(), zone.name());
    if skips(keg, item) {
        DEBUG.get().skipped.fetch_add(1, Ordering::Relaxed);
        return;
    }
    DEBUG.get().trashed.fetch_add(1, Ordering::Relaxed);
    match keg.mark(item, true) {
        Ok(false) => {}
        Ok(true) => panic!("Duplicate alloc of {item:p} from zone {name}"),
        Err(_) => panic!("Allocated item {item:p} does not belong to zone {name}"),
    }
    // SAFETY: ours, and of this zone; after its end stands nothing up to the next item.
    unsafe {
        if zone.trashes() {
            check_trash(keg, name, item);
        }
        let rest = keg.rsize() - keg.size();
        item.add(keg.size()).write_bytes(RED, rest);
    }
}

/// Checks and notes that a user hands an item back.
#[doc(alias = "uma_dbg_free")]
#[cfg(debug_assertions)]
pub(super) fn check_free(zone: &Zone, item: NonNull<u8>) {
    let (keg, name) = (zone.keg(), zone.name());
    if skips(keg, item) {
        return;
    }
    match keg.mark(item, false) {
        Ok(true) => {}
        Ok(false) => panic!("Duplicate free of {item:p} from zone {name}"),
        Err(NotAnItem::Of(other)) => {
            panic!("Freed item {item:p} did not belong to zone {name}, but to {other}")
        }
        Err(NotAnItem::NoSlab) => panic!("Freed item {item:p} did not belong to zone {name}"),
        Err(NotAnItem::Unaligned) => panic!("Unaligned free of {item:p} from zone {name}"),
    }
    let size = keg.size();
    // SAFETY: an item of this zone, in use until now; after its end stands nothing up to the next item.
    let rest = unsafe { (size..keg.rsize()).map(|at| item.add(at).read()) };
    let corrupted = rest.filter(|&byte| byte != RED).count();
    assert!(
        corrupted == 0,
        "REDZONE: Buffer overflow detected. {corrupted} bytes corrupted after {item:p} ({size} bytes allocated): zone \
         {name}"
    );
}

/// Zones with items in use, and how many: what a test that began with none has leaked.
pub fn leaks() -> Vec<(&'static str, u64)> {
    super::uma::zones()
        .filter(|zone| !zone.is_internal())
        .map(|zone| (zone.name(), zone.stats().used))
        .filter(|&(_, used)| used > 0)
        .collect()
}
