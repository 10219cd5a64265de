//! What every part of the kernel stands on.
//!
//! Six floors, each importing only lower ones: vocabulary · machine · locks, threads, callouts · vm ·
//! mbufs and sockets · net. The table of contents below stands in that order.
//!
//! FreeBSD: sys/sys, sys/kern, sys/vm, sys/net

#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(
    loom,
    allow(
        dead_code,
        clippy::modulo_one,
        reason = "a model has no scheduler, no devices and no start, and one chain of each kind"
    )
)]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

// Vocabulary.
pub mod endian;
pub mod errno;
pub mod param;
pub mod time;

// The contract with the machine.
pub mod machine;

// Locks, threads, callouts, sysctl.
#[expect(unsafe_code, reason = "producers and consumers share slots")]
pub mod buf_ring;
#[expect(unsafe_code, reason = "per-CPU slots, reached by address")]
pub mod counter;
pub mod kern;
pub mod sysctl;

// Memory.
#[allow(unsafe_code, reason = "hands out untyped memory")]
pub mod vm;

// mbufs and sockets.
#[allow(
    unsafe_code,
    reason = "an mbuf is reached through raw pointers; `Mbuf` owns the invariants"
)]
pub mod mbuf;
pub mod protosw;
pub mod sockbuf;
pub mod socket;
pub mod socketvar;

// Interfaces, routes, dispatch.
pub mod net;
