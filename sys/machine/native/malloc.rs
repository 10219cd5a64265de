//! The heap: the host's, with interrupts off while it works.
//!
//! The host keeps free memory by thread, and takes it for granted that nobody else uses it in the middle of a call. A kernel
//! thread that is preempted there would break that.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;

use super::pcpu_machdep::{intr_disable, intr_restore};

std::thread_local! {
    /// This host thread is a CPU.
    static IS_CPU: Cell<bool> = const { Cell::new(false) };
}

/// Says that the host thread is a CPU from here on.
pub(super) fn this_thread_is_a_cpu() {
    IS_CPU.set(true);
}

/// Tells whether the host thread is a CPU.
pub(super) fn is_cpu() -> bool {
    IS_CPU.get()
}

/// The host's allocator, made safe for kernel threads.
pub struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

impl Heap {
    fn uninterrupted<R>(f: impl FnOnce() -> R) -> R {
        if !is_cpu() {
            return f();
        }
        let state = intr_disable();
        let result = f();
        intr_restore(state);
        result
    }
}

// SAFETY: the host's allocator keeps the contract.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, here and below.
        Heap::uninterrupted(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        Heap::uninterrupted(|| unsafe { System.dealloc(pointer, layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        Heap::uninterrupted(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        Heap::uninterrupted(|| unsafe { System.realloc(pointer, layout, size) })
    }
}
