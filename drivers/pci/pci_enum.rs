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

    /// The base address registers in order, one of 64 bits once. Decoding is off meanwhile.
    #[doc(alias = "pci_add_resources")]
    pub fn bars(&self) -> Vec<Bar> {
        let count = match self.header {
            PCIM_HDRTYPE_BRIDGE => PCI_MAXMAPS_1,
            _ => PCI_MAXMAPS_0,
        };
        let command = self.read_config(PCIR_COMMAND) & 0xffff;
        self.write_config(PCIR_COMMAND, command & !(PCIM_CMD_PORTEN | PCIM_CMD_MEMEN));
        let bars = read_bars(count, &|reg| self.read_config(reg), &|reg, value| {
            self.write_config(reg, value)
        });
        self.write_config(PCIR_COMMAND, command);
        bars
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

/// Decodes `count` registers by writing ones and reading what sticks.
fn read_bars(count: u16, read: &dyn Fn(u16) -> u32, write: &dyn Fn(u16, u32)) -> Vec<Bar> {
    let probe = |reg: u16| {
        let old = read(reg);
        write(reg, u32::MAX);
        let mask = read(reg);
        write(reg, old);
        (old, mask)
    };
    let mut bars = Vec::new();
    let mut index = 0;
    while index < count {
        let reg = PCIR_BAR0 + 4 * index;
        let (low, size_low) = probe(reg);
        let bar = if low & PCIM_BAR_IO_SPACE != 0 {
            let mask = size_low & !0x3;
            (mask != 0).then(|| Bar::Io {
                base: low & !0x3,
                size: (mask | 0xffff_0000).wrapping_neg(),
            })
        } else if low & PCIM_BAR_MEM_TYPE == PCIM_BAR_MEM_64 && index + 1 < count {
            // The next register is the upper half of this one.
            index += 1;
            let (high, size_high) = probe(reg + 4);
            let mask = u64::from(size_high) << 32 | u64::from(size_low & !0xf);
            (size_low & !0xf != 0 || size_high != 0).then(|| Bar::Memory {
                base: u64::from(high) << 32 | u64::from(low & !0xf),
                size: mask.wrapping_neg(),
            })
        } else {
            let mask = size_low & !0xf;
            (mask != 0).then(|| Bar::Memory {
                base: u64::from(low & !0xf),
                size: u64::from(mask.wrapping_neg()),
            })
        };
        bars.extend(bar);
        index += 1;
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;

    #[test]
    fn a_register_of_64_bits_is_one_and_its_upper_half_none() {
        // Values, and the bits that can be written: the 82576's memory, its ports, and MSI-X tables above 4 GiB.
        let values = RefCell::new([0xfeb8_0004, 0, 0xc041, 0, 0xc000_000c_u32, 0x8]);
        let writable: [u32; 6] = [0xfffe_0000, u32::MAX, 0xffe0, 0, 0xffff_c000, u32::MAX];
        let index = |reg: u16| usize::from((reg - PCIR_BAR0) / 4);
        let before = *values.borrow();
        let bars = read_bars(6, &|reg| values.borrow()[index(reg)], &|reg, value| {
            let at = index(reg);
            let register = &mut values.borrow_mut()[at];
            *register = *register & !writable[at] | value & writable[at];
        });
        let expected = [
            Bar::Memory {
                base: 0xfeb8_0000,
                size: 0x2_0000,
            },
            Bar::Io {
                base: 0xc040,
                size: 0x20,
            },
            Bar::Memory {
                base: 0x8_c000_0000,
                size: 0x4000,
            },
        ];
        assert_eq!(bars, expected);
        assert_eq!(*values.borrow(), before);
    }
}
