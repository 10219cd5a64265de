//! PCI configuration space.
//!
//! FreeBSD: sys/amd64/pci/pci_cfgreg.c

use super::bus_space::Mmio;

/// Where a function sits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct PciAddr {
    /// Bus number.
    pub bus: u8,
    /// Slot, 0 to 31.
    pub slot: u8,
    /// Function, 0 to 7.
    pub func: u8,
}

/// Reads the 32-bit configuration register at `reg` (a multiple of 4); all ones where nothing answers.
pub fn pci_cfgregread(addr: PciAddr, reg: u16) -> u32 {
    let _ = (addr, reg);
    todo!()
}

/// Writes the 32-bit configuration register at `reg` (a multiple of 4).
pub fn pci_cfgregwrite(addr: PciAddr, reg: u16, value: u32) {
    let _ = (addr, reg, value);
    todo!()
}

/// Whether this machine has PCI at all.
pub fn pci_present() -> bool {
    todo!()
}

/// Finds the size of memory BAR `bar` of `addr`, turns memory decoding and bus mastering on, and maps it.
///
/// `None` if the BAR does not exist, is an I/O BAR or has no address.
pub fn pci_map_bar(addr: PciAddr, bar: u8) -> Option<Mmio> {
    let _ = (addr, bar);
    todo!()
}
