//! One PRO/1000: its registers and what kind it is.
//!
//! FreeBSD: sys/dev/e1000/e1000_hw.h, e1000_api.c

use sys::machine::atomic::{AtomicU32, Ordering};
use sys::machine::bus_space::{Mmio, Readable, Reg, Writable};

use super::e1000_regs::*;

/// Vendor.
pub const INTEL_VENDOR_ID: u16 = 0x8086;
/// 82544EI, copper.
pub const E1000_DEV_ID_82544EI_COPPER: u16 = 0x1008;
/// 82544GC, copper.
pub const E1000_DEV_ID_82544GC_COPPER: u16 = 0x100c;
/// 82540EM.
pub const E1000_DEV_ID_82540EM: u16 = 0x100e;
/// 82545EM, copper.
pub const E1000_DEV_ID_82545EM_COPPER: u16 = 0x100f;

/// Kinds of controller, older first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MacType {
    /// 82544.
    E82544,
    /// 82540.
    E82540,
    /// 82545.
    E82545,
}

/// What one device id stands for.
#[derive(Clone, Copy, Debug)]
pub struct DeviceId {
    /// PCI device id.
    pub device: u16,
    /// Kind.
    pub mac_type: MacType,
    /// What dmesg calls it.
    pub description: &'static str,
}

/// The devices this driver attaches to.
#[doc(alias = "em_vendor_info_array")]
pub const DEVICES: &[DeviceId] = &[
    DeviceId {
        device: E1000_DEV_ID_82540EM,
        mac_type: MacType::E82540,
        description: "Intel(R) Legacy PRO/1000 MT 82540EM",
    },
    DeviceId {
        device: E1000_DEV_ID_82545EM_COPPER,
        mac_type: MacType::E82545,
        description: "Intel(R) Legacy PRO/1000 MT 82545EM (Copper)",
    },
    DeviceId {
        device: E1000_DEV_ID_82544GC_COPPER,
        mac_type: MacType::E82544,
        description: "Intel(R) Legacy PRO/1000 T 82544GC (Copper)",
    },
    DeviceId {
        device: E1000_DEV_ID_82544EI_COPPER,
        mac_type: MacType::E82544,
        description: "Intel(R) Legacy PRO/1000 XT 82544EI (Copper)",
    },
];

/// Why the hardware could not be brought up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HwError {
    /// The EEPROM did not answer or its checksum is wrong.
    Nvm,
    /// The PHY did not answer.
    Phy,
    /// No usable station address.
    MacAddress,
}

/// A controller. Sequences of accesses (PHY, EEPROM, reset) are made by one thread at a time: iflib holds the
/// interface's context lock around them.
pub struct E1000Hw {
    mmio: Mmio,
    /// Kind.
    pub mac_type: MacType,
    /// RCTL as last written: see [`E1000Hw::write_rctl`].
    rctl: AtomicU32,
}

impl E1000Hw {
    /// The controller behind `mmio`.
    pub fn new(mmio: Mmio, mac_type: MacType) -> Self {
        let rctl = AtomicU32::new(mmio.read(RCTL));
        Self {
            mmio,
            mac_type,
            rctl,
        }
    }

    /// Reads a register.
    pub fn read<A: Readable>(&self, reg: Reg<A>) -> u32 {
        self.mmio.read(reg)
    }

    /// Writes a register.
    pub fn write<A: Writable>(&self, reg: Reg<A>, value: u32) {
        self.mmio.write(reg, value);
    }

    /// Makes sure that what was written has arrived.
    #[doc(alias = "E1000_WRITE_FLUSH")]
    pub fn flush(&self) {
        self.read(STATUS);
    }

    /// Writes RCTL if it changes anything: QEMU's model stops reception for a second after every write, even of
    /// the same value (hw/net/e1000.c:set_rx_control).
    pub fn write_rctl(&self, value: u32) {
        if self.rctl.swap(value, Ordering::Relaxed) != value {
            self.write(RCTL, value);
        }
    }

    /// RCTL as last written.
    pub fn rctl(&self) -> u32 {
        self.rctl.load(Ordering::Relaxed)
    }
}
