//! The hardware: PCI and the Intel NICs.
//!
//! FreeBSD: sys/dev

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod e1000;
pub mod pci;
