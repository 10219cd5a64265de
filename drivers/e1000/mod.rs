//! Intel PRO/1000: registers, hardware access, and the em driver.
//!
//! FreeBSD: sys/dev/e1000

pub mod e1000_hw;
mod e1000_mac;
mod e1000_nvm;
mod e1000_phy;
pub mod e1000_regs;
mod em_txrx;
mod if_em;

pub use if_em::{em_attach, em_functions, em_probe_attach};
