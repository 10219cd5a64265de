//! The atomics that locks are built from.
//!
//! FreeBSD: sys/amd64/include/atomic.h
//!
//! Lock code takes its atomics, and the cells that stand under a lock, from here and nowhere else, so that a model checker
//! can put its own in their place (`machine/model`). It knows a store before a load to be in order only by a fence.

#[cfg(not(loom))]
pub use core::cell::{Cell, UnsafeCell};
#[cfg(not(loom))]
pub use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    AtomicUsize, Ordering, compiler_fence, fence,
};

#[cfg(loom)]
pub use super::model::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    AtomicUsize, Cell, Ordering, UnsafeCell, compiler_fence, fence,
};

/// A full fence behind a read-modify-write of the same thread: on x86 that instruction was one.
#[doc(alias = "smp_mb__after_atomic")]
#[inline(always)]
#[track_caller]
pub fn fence_after_rmw() {
    if cfg!(all(target_arch = "x86_64", not(loom))) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// Atomics on which no order rests: statistics, and what only one CPU and its own interrupt handlers use.
///
/// A model checker has nothing to find in them, and each of its own costs a step.
pub mod plain {
    pub use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
}
