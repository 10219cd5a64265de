//! The atomics that locks are built from.
//!
//! FreeBSD: sys/amd64/include/atomic.h
//!
//! Lock code takes its atomics from here and nowhere else, so that a model checker can put its own in their place.

pub use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    AtomicUsize, Ordering, compiler_fence, fence,
};
