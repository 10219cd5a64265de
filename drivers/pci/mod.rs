//! The PCI bus: who is there and where its resources are.
//!
//! FreeBSD: sys/dev/pci

mod pci_enum;
mod pci_msi;
mod pcireg;

pub use pci_enum::{Bar, PciFunction, pci_enumerate};
pub use pcireg::*;
