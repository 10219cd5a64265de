//! The contract with the machine; exactly one backend is compiled.

pub mod atomic;
pub mod bus_dma;
pub mod bus_space;
pub mod in_cksum;
pub mod pci_cfg;

#[cfg(target_os = "none")]
pub mod amd64;
#[cfg(not(target_os = "none"))]
pub mod hosted;
