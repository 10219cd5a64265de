//! The contract with the machine; exactly one backend is compiled.

pub mod atomic;
#[allow(
    unsafe_code,
    reason = "memory shared with devices, reached by volatile access"
)]
pub mod bus_dma;
#[allow(unsafe_code, reason = "device registers, reached by volatile access")]
pub mod bus_space;
pub mod in_cksum;
#[allow(unsafe_code, reason = "port input and output")]
pub mod pci_cfg;

#[cfg(target_os = "none")]
pub mod amd64;
#[cfg(not(target_os = "none"))]
pub mod hosted;
