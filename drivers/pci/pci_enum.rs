//! Finds the functions on the bus.
//!
//! FreeBSD: sys/dev/pci/pci.c

use alloc::vec::Vec;

use sys::errno::Errno;
use sys::machine::bus_space::Mmio;
use sys::machine::pci_cfg::{PciAddr, pci_cfgregread, pci_cfgregwrite, pci_map_bar, pci_present};

use super::pcireg::*;

/// A base address register, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bar {
    /// Memory.
    Memory {
        /// First address.
        base: u64,
        /// Size in bytes.
        size: u64,
        /// Takes two registers.
        wide: bool,
    },
    /// I/O ports.
    Io {
        /// First port.
        base: u32,
        /// Number of ports.
        size: u32,
    },
}

/// A function of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciFunction {
    /// Where it sits.
    pub addr: PciAddr,
    /// Who made it.
    pub vendor: u16,
    /// What it is.
    pub device: u16,
    /// Class in bits 23:16, subclass in 15:8, interface in 7:0.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Layout of its header, without the multi-function bit.
    pub header: u8,
}

/// Finds every function, buses behind bridges included.
#[doc(alias = "pci_add_children")]
pub fn pci_enumerate() -> Vec<PciFunction> {
    let mut found = Vec::new();
    if pci_present() {
        let mut seen = [false; 256];
        scan_bus(0, &mut seen, &mut found);
    }
    found
}

fn scan_bus(bus: u8, seen: &mut [bool; 256], found: &mut Vec<PciFunction>) {
    if core::mem::replace(&mut seen[usize::from(bus)], true) {
        return;
    }
    for slot in 0..32 {
        let mut functions = 1;
        for func in 0..8 {
            if func >= functions {
                break;
            }
            let addr = PciAddr { bus, slot, func };
            let Some((function, multi)) = PciFunction::probe(addr) else {
                continue;
            };
            if multi {
                functions = 8;
            }
            found.push(function);
            if function.header == PCIM_HDRTYPE_BRIDGE {
                let buses = pci_cfgregread(addr, PCIR_PRIBUS_1);
                scan_bus((buses >> 8) as u8, seen, found);
            }
        }
    }
}

impl PciFunction {
    /// Looks at one place. Disabled virtual functions answer with all ones, as empty slots do.
    fn probe(addr: PciAddr) -> Option<(PciFunction, bool)> {
        let id = pci_cfgregread(addr, PCIR_DEVVENDOR);
        let vendor = id as u16;
        if vendor == 0xffff || vendor == 0 {
            return None;
        }
        let class = pci_cfgregread(addr, PCIR_REVID);
        let header = (pci_cfgregread(addr, PCIR_CACHELNSZ) >> 16) as u8;
        let function = PciFunction {
            addr,
            vendor,
            device: (id >> 16) as u16,
            class: class >> 8,
            revision: class as u8,
            header: header & PCIM_HDRTYPE,
        };
        Some((function, header & PCIM_MFDEV != 0))
    }

    /// The register at `reg`.
    pub fn read_config(&self, reg: u16) -> u32 {
        pci_cfgregread(self.addr, reg)
    }

    /// Writes the register at `reg`.
    pub fn write_config(&self, reg: u16, value: u32) {
        pci_cfgregwrite(self.addr, reg, value);
    }

    /// Turns command bits on.
    #[doc(alias = "pci_enable_busmaster")]
    pub fn enable(&self, bits: u32) {
        // The upper half is the status register, whose set bits clear when written.
        let command = self.read_config(PCIR_COMMAND) & 0xffff;
        self.write_config(PCIR_COMMAND, command | bits);
    }

    /// Decodes BAR `index` by writing ones and reading what sticks. Memory decoding is off meanwhile.
    pub fn bar(&self, index: u8) -> Option<Bar> {
        let reg = PCIR_BAR0 + 4 * u16::from(index);
        let command = self.read_config(PCIR_COMMAND) & 0xffff;
        self.write_config(PCIR_COMMAND, command & !(PCIM_CMD_PORTEN | PCIM_CMD_MEMEN));
        let low = self.read_config(reg);
        let size_low = self.probe_bar(reg, low);
        let bar = if low & PCIM_BAR_IO_SPACE != 0 {
            let mask = size_low & !0x3;
            (mask != 0).then(|| Bar::Io {
                base: low & !0x3,
                size: (mask | 0xffff_0000).wrapping_neg(),
            })
        } else if low & PCIM_BAR_MEM_TYPE == PCIM_BAR_MEM_64 {
            let high = self.read_config(reg + 4);
            let size_high = self.probe_bar(reg + 4, high);
            let mask = u64::from(size_high) << 32 | u64::from(size_low & !0xf);
            (mask != 0).then(|| Bar::Memory {
                base: u64::from(high) << 32 | u64::from(low & !0xf),
                size: mask.wrapping_neg(),
                wide: true,
            })
        } else {
            let mask = size_low & !0xf;
            (mask != 0).then(|| Bar::Memory {
                base: u64::from(low & !0xf),
                size: u64::from(mask.wrapping_neg()),
                wide: false,
            })
        };
        self.write_config(PCIR_COMMAND, command);
        bar
    }

    fn probe_bar(&self, reg: u16, old: u32) -> u32 {
        self.write_config(reg, u32::MAX);
        let mask = self.read_config(reg);
        self.write_config(reg, old);
        mask
    }

    /// Maps memory BAR `index`; turns memory decoding and bus mastering on.
    #[doc(alias = "bus_alloc_resource")]
    pub fn map(&self, index: u8) -> Result<Mmio, Errno> {
        pci_map_bar(self.addr, index).ok_or(Errno::ENXIO)
    }

    /// Offset of capability `id`, if the function has it.
    #[doc(alias = "pci_find_cap")]
    pub fn find_cap(&self, id: u8) -> Option<u16> {
        if self.read_config(PCIR_COMMAND) & PCIM_STATUS_CAPPRESENT == 0 {
            return None;
        }
        let mut at = self.read_config(PCIR_CAP_PTR) as u8 & !0x3;
        // A list cannot have more entries than fit; more means that it bites its tail.
        for _ in 0..48 {
            if at < 0x40 {
                return None;
            }
            let header = self.read_config(u16::from(at));
            if header as u8 == id {
                return Some(u16::from(at));
            }
            at = (header >> 8) as u8 & !0x3;
        }
        None
    }

    /// The interrupt line the firmware wrote and the pin (1 = INTA).
    pub fn intline(&self) -> (u8, u8) {
        let value = self.read_config(PCIR_INTLINE);
        (value as u8, (value >> 8) as u8)
    }
}
