//! PCI configuration space.
//!
//! FreeBSD: sys/amd64/pci/pci_cfgreg.c, sys/dev/pci/pci.c (pci_add_map)
//! Not carried over: the memory-mapped access of PCI Express. Configuration mechanism 1 reaches all 256 registers that our
//! devices use, on either machine type.

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

/// What a read returns where nothing answers.
pub const PCI_NOTHING: u32 = 0xffff_ffff;

/// `PCIR_COMMAND`: command in the low half, status in the high.
const COMMAND: u16 = 0x04;
/// `PCIM_CMD_MEMEN`.
const COMMAND_MEMORY: u32 = 0x2;
/// `PCIM_CMD_BUSMASTEREN`.
const COMMAND_BUS_MASTER: u32 = 0x4;
/// `PCIR_BARS`.
const BARS: u16 = 0x10;
/// Number of them in an ordinary function.
const BAR_COUNT: u8 = 6;
/// A BAR is for ports, not memory.
const BAR_IO: u32 = 0x1;
/// Kind of memory BAR.
const BAR_TYPE: u32 = 0x6;
/// Of 64 bits, with the next BAR.
const BAR_TYPE_64: u32 = 0x4;
/// Bits of a memory BAR that are not address.
const BAR_FLAGS: u64 = 0xf;

#[cfg(target_os = "none")]
mod mechanism1 {
    use super::PciAddr;
    use crate::kern::kern_mutex::SpinMutex;
    use crate::kern::lock_order::Icu;
    use x86_64::instructions::port::Port;

    /// `CONF1_ADDR_PORT` and `CONF1_DATA_PORT`: a pair that must be used in one go.
    static PORTS: SpinMutex<(Port<u32>, Port<u32>), Icu> =
        SpinMutex::new((Port::new(0xcf8), Port::new(0xcfc)));

    /// `CONF1_ENABLE`.
    const ENABLE: u32 = 0x8000_0000;

    fn select(addr: PciAddr, reg: u16) -> u32 {
        ENABLE
            | u32::from(addr.bus) << 16
            | u32::from(addr.slot & 31) << 11
            | u32::from(addr.func & 7) << 8
            | u32::from(reg & 0xfc)
    }

    pub(super) fn read(addr: PciAddr, reg: u16) -> u32 {
        let mut ports = PORTS.lock();
        // SAFETY: these ports are the configuration mechanism's on every PC; reading a register there changes nothing that
        // memory safety rests on.
        unsafe {
            ports.0.write(select(addr, reg));
            ports.1.read()
        }
    }

    pub(super) fn write(addr: PciAddr, reg: u16, value: u32) {
        let mut ports = PORTS.lock();
        // SAFETY: as for `read`. What the value does to the device is its driver's business; devices reach memory only
        // where they are given a `DmaAddr`.
        unsafe {
            ports.0.write(select(addr, reg));
            ports.1.write(value);
        }
    }
}

/// The bus of a machine on the host: device models.
#[cfg(not(any(target_os = "none", loom)))]
mod mechanism1 {
    use super::{PCI_NOTHING, PciAddr};
    use crate::kern::kern_mutex::SpinMutex;
    use crate::kern::lock_order::Icu;
    use crate::machine_local;
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    /// The configuration registers of a model of a function.
    pub trait PciModel: Send + Sync {
        /// Reads the register at `reg`, a multiple of 4.
        fn read(&self, reg: u16) -> u32;
        /// Writes the register at `reg`, a multiple of 4.
        fn write(&self, reg: u16, value: u32);
    }

    machine_local! {
        static MODELS: SpinMutex<Vec<(PciAddr, Arc<dyn PciModel>)>, Icu> = SpinMutex::new(Vec::new());
    }

    /// Puts a model on the bus of this machine. There is a bus if there is a function 0:0.0.
    pub fn pci_add_model(addr: PciAddr, model: Arc<dyn PciModel>) {
        MODELS.get().lock().push((addr, model));
    }

    fn model(addr: PciAddr) -> Option<Arc<dyn PciModel>> {
        let models = MODELS.get().lock();
        let found = models.iter().find(|(at, _)| *at == addr);
        found.map(|(_, model)| Arc::clone(model))
    }

    pub(super) fn read(addr: PciAddr, reg: u16) -> u32 {
        model(addr).map_or(PCI_NOTHING, |model| model.read(reg))
    }

    pub(super) fn write(addr: PciAddr, reg: u16, value: u32) {
        if let Some(model) = model(addr) {
            model.write(reg, value);
        }
    }
}

#[cfg(not(any(target_os = "none", loom)))]
pub use mechanism1::{PciModel, pci_add_model};

#[cfg(loom)]
mod mechanism1 {
    use super::{PCI_NOTHING, PciAddr};

    /// A model of locks has no devices.
    pub(super) fn read(_: PciAddr, _: u16) -> u32 {
        PCI_NOTHING
    }

    pub(super) fn write(_: PciAddr, _: u16, _: u32) {}
}

/// Reads the 32-bit configuration register at `reg` (a multiple of 4, below 256); all ones where nothing answers.
pub fn pci_cfgregread(addr: PciAddr, reg: u16) -> u32 {
    if reg > 0xfc {
        return PCI_NOTHING;
    }
    mechanism1::read(addr, reg)
}

/// Writes the 32-bit configuration register at `reg` (a multiple of 4, below 256).
pub fn pci_cfgregwrite(addr: PciAddr, reg: u16, value: u32) {
    if reg <= 0xfc {
        mechanism1::write(addr, reg, value);
    }
}

/// Whether there is a PCI bus: whether its first function answers.
pub fn pci_present() -> bool {
    let host_bridge = PciAddr {
        bus: 0,
        slot: 0,
        func: 0,
    };
    pci_cfgregread(host_bridge, 0) != PCI_NOTHING
}

/// Finds the size of memory BAR `bar` of `addr`, turns memory decoding and bus mastering on, and maps it.
///
/// `None` if the BAR does not exist, is for ports or was given no address.
#[doc(alias = "bus_alloc_resource")]
pub fn pci_map_bar(addr: PciAddr, bar: u8) -> Option<Mmio> {
    let (base, size) = memory_bar(addr, bar)?;
    let command = pci_cfgregread(addr, COMMAND) & 0xffff;
    pci_cfgregwrite(addr, COMMAND, command | COMMAND_MEMORY | COMMAND_BUS_MASTER);
    let mapping = super::pmap_mapdev(base, size);
    // SAFETY: `pmap_mapdev` maps device memory for good, page-aligned, and the device answers there: it says so in its BAR.
    Some(unsafe { Mmio::new(mapping, size) })
}

/// Address and size of a memory BAR.
#[doc(alias = "pci_read_bar")]
fn memory_bar(addr: PciAddr, bar: u8) -> Option<(u64, usize)> {
    if bar >= BAR_COUNT {
        return None;
    }
    let reg = BARS + 4 * u16::from(bar);
    let low = pci_cfgregread(addr, reg);
    if low == PCI_NOTHING || low & BAR_IO != 0 {
        return None;
    }
    let wide = low & BAR_TYPE == BAR_TYPE_64 && bar + 1 < BAR_COUNT;
    let high = if wide {
        pci_cfgregread(addr, reg + 4)
    } else {
        0
    };

    // While the BAR is all ones to learn its size, the device must not answer there.
    let command = pci_cfgregread(addr, COMMAND) & 0xffff;
    pci_cfgregwrite(addr, COMMAND, command & !COMMAND_MEMORY);
    let probe = |reg: u16, value: u32| {
        pci_cfgregwrite(addr, reg, 0xffff_ffff);
        let mask = pci_cfgregread(addr, reg);
        pci_cfgregwrite(addr, reg, value);
        u64::from(mask)
    };
    let mask_low = probe(reg, low);
    let mask_high = if wide {
        probe(reg + 4, high)
    } else {
        0xffff_ffff
    };
    pci_cfgregwrite(addr, COMMAND, command);

    let base = (u64::from(high) << 32 | u64::from(low)) & !BAR_FLAGS;
    let mask = (mask_high << 32 | mask_low) & !BAR_FLAGS;
    let size = (!mask).wrapping_add(1);
    (base != 0 && size != 0 && mask_low != 0).then_some((base, usize::try_from(size).ok()?))
}

/// Where the function's INTA is delivered, by the interrupt line that the firmware wrote. `None` if it wrote none.
pub fn pci_intx(addr: PciAddr) -> Option<super::IrqLine> {
    const PCIR_INTLINE: u16 = 0x3c;
    let value = pci_cfgregread(addr, PCIR_INTLINE);
    let (line, pin) = (value as u8, (value >> 8) as u8);
    if pin == 0 || line == 0xff {
        return None;
    }
    #[cfg(target_os = "none")]
    {
        let (gsi, signal) = super::amd64::io_apic::pci_irq(line);
        Some(super::IrqLine {
            gsi,
            level: signal.level,
            active_low: signal.active_low,
        })
    }
    #[cfg(not(target_os = "none"))]
    Some(super::IrqLine {
        gsi: u32::from(line),
        level: true,
        active_low: true,
    })
}
