//! Contexts for Miri, which runs no assembly: each is a thread of the host that waits for its turn.
//!
//! Exactly one runs at a time, as of the contexts in assembly (`switch.rs`). One that is not continued any more waits for
//! good.

use core::cell::UnsafeCell;
use std::sync::{Arc, Condvar, Mutex};

use crate::machine::hosted::MachineRef;

/// What a context that does not run waits for.
#[derive(Default)]
struct Turn {
    come: Mutex<bool>,
    wake: Condvar,
}

impl Turn {
    fn give(&self) {
        *self.come.lock().expect("never poisoned") = true;
        self.wake.notify_one();
    }

    fn wait(&self) {
        let come = self.come.lock().expect("never poisoned");
        let waited = self.wake.wait_while(come, |come| !*come);
        drop(waited.expect("never poisoned"));
    }
}

/// A context that does not run.
pub struct Pcb {
    turn: UnsafeCell<Option<Arc<Turn>>>,
}

// SAFETY: only `prepare` and `cpu_switch` touch it, whose callers promise that nobody else uses the context.
unsafe impl Sync for Pcb {}
// SAFETY: as above.
unsafe impl Send for Pcb {}

impl Pcb {
    /// Makes a context to save into.
    pub const fn new() -> Pcb {
        Pcb {
            turn: UnsafeCell::new(None),
        }
    }

    /// Makes the context call `entry(arg)` when first switched to.
    ///
    /// # Safety
    /// Nobody else uses the context.
    pub unsafe fn prepare(&self, _: &KStack, entry: extern "C" fn(usize) -> !, arg: usize) {
        let turn = Arc::new(Turn::default());
        // SAFETY: promised by the caller.
        unsafe { *self.turn.get() = Some(Arc::clone(&turn)) };
        let machine = MachineRef::of_current();
        std::thread::spawn(move || {
            turn.wait();
            machine.enter();
            entry(arg)
        });
    }
}

impl Default for Pcb {
    fn default() -> Self {
        Pcb::new()
    }
}

/// Saves the caller's context in `old` and continues `new`.
///
/// # Safety
/// `new` was prepared, or saved by a switch, and has not been continued since.
pub unsafe fn cpu_switch(old: &Pcb, new: &Pcb) {
    let mine = Arc::new(Turn::default());
    // SAFETY: promised by the caller.
    let theirs = unsafe {
        *old.turn.get() = Some(Arc::clone(&mine));
        (*new.turn.get()).take()
    };
    theirs.expect("a context that was saved").give();
    // From here on `old` may be continued, and `new` saved again, by others.
    mine.wait();
}

/// The host's threads have stacks of their own.
pub struct KStack;

impl KStack {
    /// Makes one.
    pub fn alloc(_: usize) -> Option<KStack> {
        Some(KStack)
    }

    /// Unknown.
    pub fn top(&self) -> usize {
        0
    }

    /// Unknown.
    pub fn bottom(&self) -> usize {
        0
    }
}
