//! Pointers that are kept in words: the one place where an address becomes a pointer again.
//!
//! Lock words hold flags beside a thread's address, and handlers are passed a word: so a pointer loses what it may reach and
//! has to get it back.

/// The address of `thing`, to be kept in a word.
#[inline(always)]
pub(crate) fn to_word<T>(thing: *const T) -> usize {
    #[cfg(miri)]
    strict::remember(thing.cast());
    thing.expose_provenance()
}

/// The pointer whose address `to_word` gave; it may reach what that one could.
#[inline(always)]
pub(crate) fn from_word<T>(word: usize) -> *const T {
    #[cfg(miri)]
    return strict::find(word).cast();
    #[cfg(not(miri))]
    core::ptr::with_exposed_provenance(word)
}

/// Miri, told to be strict, knows no pointers from addresses: there the pointers themselves are kept.
#[cfg(miri)]
mod strict {
    use alloc::collections::BTreeMap;
    use core::sync::atomic::{AtomicPtr, Ordering};
    use std::sync::Mutex;

    static KEPT: Mutex<BTreeMap<usize, AtomicPtr<()>>> = Mutex::new(BTreeMap::new());

    pub(super) fn remember(thing: *const ()) {
        let mut kept = KEPT.lock().expect("never poisoned");
        kept.insert(thing.addr(), AtomicPtr::new(thing.cast_mut()));
    }

    pub(super) fn find(word: usize) -> *const () {
        let kept = KEPT.lock().expect("never poisoned");
        kept.get(&word)
            .expect("a word that was made from a pointer")
            .load(Ordering::Relaxed)
    }
}
