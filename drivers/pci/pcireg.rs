//! Configuration registers and their bits.
//!
//! FreeBSD: sys/dev/pci/pcireg.h

/// Device id in the upper half, vendor id in the lower.
pub const PCIR_DEVVENDOR: u16 = 0x00;
/// Status in the upper half, command in the lower.
pub const PCIR_COMMAND: u16 = 0x04;
/// Class, subclass, programming interface, revision.
pub const PCIR_REVID: u16 = 0x08;
/// BIST, header type, latency timer, cache line.
pub const PCIR_CACHELNSZ: u16 = 0x0c;
/// First base address register.
pub const PCIR_BAR0: u16 = 0x10;
/// Base address registers of a device.
pub const PCI_MAXMAPS_0: u16 = 6;
/// Those of a bridge.
pub const PCI_MAXMAPS_1: u16 = 2;
/// Subsystem id and vendor.
pub const PCIR_SUBVEND_0: u16 = 0x2c;
/// First capability.
pub const PCIR_CAP_PTR: u16 = 0x34;
/// Interrupt line in byte 0, pin in byte 1.
pub const PCIR_INTLINE: u16 = 0x3c;
/// Bus numbers of a bridge.
pub const PCIR_PRIBUS_1: u16 = 0x18;

/// I/O decoding on.
pub const PCIM_CMD_PORTEN: u32 = 0x0001;
/// Memory decoding on.
pub const PCIM_CMD_MEMEN: u32 = 0x0002;
/// The function may do DMA.
pub const PCIM_CMD_BUSMASTEREN: u32 = 0x0004;
/// INTx off.
pub const PCIM_CMD_INTXDIS: u32 = 0x0400;
/// Status: there is a capability list.
pub const PCIM_STATUS_CAPPRESENT: u32 = 0x0010 << 16;

/// Header type of the byte at 0x0e: layout.
pub const PCIM_HDRTYPE: u8 = 0x7f;
/// A PCI-PCI bridge.
pub const PCIM_HDRTYPE_BRIDGE: u8 = 0x01;
/// More than one function.
pub const PCIM_MFDEV: u8 = 0x80;

/// BAR: I/O space.
pub const PCIM_BAR_IO_SPACE: u32 = 0x1;
/// BAR: type field of a memory BAR.
pub const PCIM_BAR_MEM_TYPE: u32 = 0x6;
/// BAR: 64 bits wide.
pub const PCIM_BAR_MEM_64: u32 = 0x4;

/// Capability: power management.
pub const PCIY_PMG: u8 = 0x01;
/// Capability: MSI.
pub const PCIY_MSI: u8 = 0x05;
/// Capability: PCI Express.
pub const PCIY_EXPRESS: u8 = 0x10;
/// Capability: MSI-X.
pub const PCIY_MSIX: u8 = 0x11;

// Of the capabilities: offsets from where they stand, and bits of their first register, whose upper half is the message control.

/// MSI: lower half of the address.
pub const PCIR_MSI_ADDR: u16 = 0x4;
/// MSI: upper half of the address, if it has one.
pub const PCIR_MSI_ADDR_HIGH: u16 = 0x8;
/// MSI: the data, with an address of 32 bits.
pub const PCIR_MSI_DATA: u16 = 0x8;
/// MSI: the data, with an address of 64 bits.
pub const PCIR_MSI_DATA_64BIT: u16 = 0xc;
/// MSI: the mask stands behind the data.
pub const PCIR_MSI_MASK_FROM_DATA: u16 = 0x4;
/// MSI: messages are on.
pub const PCIM_MSICTRL_MSI_ENABLE: u32 = 0x0001 << 16;
/// MSI: log2 of the number of messages in use.
pub const PCIM_MSICTRL_MME_MASK: u32 = 0x0070 << 16;
/// MSI: the address has 64 bits.
pub const PCIM_MSICTRL_64BIT: u32 = 0x0080 << 16;
/// MSI: messages can be masked.
pub const PCIM_MSICTRL_VECTOR: u32 = 0x0100 << 16;

/// MSI-X: where the table is, a BAR and an offset into it.
pub const PCIR_MSIX_TABLE: u16 = 0x4;
/// MSI-X: number of entries of the table, less one.
pub const PCIM_MSIXCTRL_TABLE_SIZE: u32 = 0x07ff << 16;
/// MSI-X: all messages are masked.
pub const PCIM_MSIXCTRL_FUNCTION_MASK: u32 = 0x4000 << 16;
/// MSI-X: messages are on.
pub const PCIM_MSIXCTRL_MSIX_ENABLE: u32 = 0x8000 << 16;
/// MSI-X: the BAR, in `PCIR_MSIX_TABLE`.
pub const PCIM_MSIX_BIR_MASK: u32 = 0x7;
/// MSI-X: an entry's message is masked.
pub const PCIM_MSIX_VCTRL_MASK: u32 = 0x1;
