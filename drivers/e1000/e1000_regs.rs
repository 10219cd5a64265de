//! Registers of the PRO/1000 family, by their names in the data sheet.
//!
//! FreeBSD: sys/dev/e1000/e1000_regs.h, e1000_defines.h

use sys::machine::bus_space::{Reg, RegArray, Ro, Rw, Wo};

/// Device control.
pub const CTRL: Reg<Rw> = Reg::at(0x0000);
/// Device status.
pub const STATUS: Reg<Ro> = Reg::at(0x0008);
/// EEPROM/Flash control.
pub const EECD: Reg<Rw> = Reg::at(0x0010);
/// EEPROM read.
pub const EERD: Reg<Rw> = Reg::at(0x0014);
/// Extended device control.
pub const CTRL_EXT: Reg<Rw> = Reg::at(0x0018);
/// MDI control.
pub const MDIC: Reg<Rw> = Reg::at(0x0020);
/// Flow control address, low.
pub const FCAL: Reg<Rw> = Reg::at(0x0028);
/// Flow control address, high.
pub const FCAH: Reg<Rw> = Reg::at(0x002c);
/// Flow control type.
pub const FCT: Reg<Rw> = Reg::at(0x0030);
/// VLAN EtherType.
pub const VET: Reg<Rw> = Reg::at(0x0038);
/// Interrupt cause: reading clears it.
pub const ICR: Reg<Ro> = Reg::at(0x00c0);
/// Interrupt throttling, in units of 256 ns.
pub const ITR: Reg<Rw> = Reg::at(0x00c4);
/// Interrupt cause set.
pub const ICS: Reg<Wo> = Reg::at(0x00c8);
/// Interrupt mask set.
pub const IMS: Reg<Rw> = Reg::at(0x00d0);
/// Interrupt mask clear.
pub const IMC: Reg<Wo> = Reg::at(0x00d8);
/// Receive control.
pub const RCTL: Reg<Rw> = Reg::at(0x0100);
/// Flow control transmit timer.
pub const FCTTV: Reg<Rw> = Reg::at(0x0170);
/// Transmit control.
pub const TCTL: Reg<Rw> = Reg::at(0x0400);
/// Transmit inter-packet gap.
pub const TIPG: Reg<Rw> = Reg::at(0x0410);
/// Adaptive IFS throttle.
pub const AIT: Reg<Rw> = Reg::at(0x0458);
/// Packet buffer allocation.
pub const PBA: Reg<Rw> = Reg::at(0x1000);
/// Flow control receive threshold, low.
pub const FCRTL: Reg<Rw> = Reg::at(0x2160);
/// Flow control receive threshold, high.
pub const FCRTH: Reg<Rw> = Reg::at(0x2168);
/// Receive ring: base, low.
pub const RDBAL: Reg<Rw> = Reg::at(0x2800);
/// Receive ring: base, high.
pub const RDBAH: Reg<Rw> = Reg::at(0x2804);
/// Receive ring: bytes.
pub const RDLEN: Reg<Rw> = Reg::at(0x2808);
/// Receive ring: head.
pub const RDH: Reg<Rw> = Reg::at(0x2810);
/// Receive ring: tail.
pub const RDT: Reg<Rw> = Reg::at(0x2818);
/// Receive delay timer.
pub const RDTR: Reg<Rw> = Reg::at(0x2820);
/// Receive descriptor control.
pub const RXDCTL: Reg<Rw> = Reg::at(0x2828);
/// Receive absolute delay.
pub const RADV: Reg<Rw> = Reg::at(0x282c);
/// Transmit ring: base, low.
pub const TDBAL: Reg<Rw> = Reg::at(0x3800);
/// Transmit ring: base, high.
pub const TDBAH: Reg<Rw> = Reg::at(0x3804);
/// Transmit ring: bytes.
pub const TDLEN: Reg<Rw> = Reg::at(0x3808);
/// Transmit ring: head.
pub const TDH: Reg<Rw> = Reg::at(0x3810);
/// Transmit ring: tail.
pub const TDT: Reg<Rw> = Reg::at(0x3818);
/// Transmit interrupt delay.
pub const TIDV: Reg<Rw> = Reg::at(0x3820);
/// Transmit descriptor control.
pub const TXDCTL: Reg<Rw> = Reg::at(0x3828);
/// Transmit absolute interrupt delay.
pub const TADV: Reg<Rw> = Reg::at(0x382c);
/// First of the statistics registers; all clear when read.
pub const STATS: RegArray<Ro> = RegArray::at(0x4000, 4, 74);
/// Receive checksum control.
pub const RXCSUM: Reg<Rw> = Reg::at(0x5000);
/// Multicast table.
pub const MTA: RegArray<Rw> = RegArray::at(0x5200, 4, 128);
/// Receive address, low.
pub const RAL: RegArray<Rw> = RegArray::at(0x5400, 8, 16);
/// Receive address, high.
pub const RAH: RegArray<Rw> = RegArray::at(0x5404, 8, 16);
/// VLAN filter table.
pub const VFTA: RegArray<Rw> = RegArray::at(0x5600, 4, 128);
/// Wake up control.
pub const WUC: Reg<Rw> = Reg::at(0x5800);

/// Full duplex.
pub const CTRL_FD: u32 = 0x0000_0001;
/// Link reset.
pub const CTRL_LRST: u32 = 0x0000_0008;
/// Detect the speed.
pub const CTRL_ASDE: u32 = 0x0000_0020;
/// Set link up.
pub const CTRL_SLU: u32 = 0x0000_0040;
/// Invert loss of signal.
pub const CTRL_ILOS: u32 = 0x0000_0080;
/// Force speed.
pub const CTRL_FRCSPD: u32 = 0x0000_0800;
/// Force duplex.
pub const CTRL_FRCDPX: u32 = 0x0000_1000;
/// Reset.
pub const CTRL_RST: u32 = 0x0400_0000;
/// Receive flow control.
pub const CTRL_RFCE: u32 = 0x0800_0000;
/// Transmit flow control.
pub const CTRL_TFCE: u32 = 0x1000_0000;
/// VLAN mode: strip tags on receive, insert on transmit.
pub const CTRL_VME: u32 = 0x4000_0000;
/// PHY reset.
pub const CTRL_PHY_RST: u32 = 0x8000_0000;

/// Full duplex.
pub const STATUS_FD: u32 = 0x1;
/// Link up.
pub const STATUS_LU: u32 = 0x2;
/// Speed.
pub const STATUS_SPEED_MASK: u32 = 0xc0;
/// 100 Mbit/s.
pub const STATUS_SPEED_100: u32 = 0x40;
/// 1000 Mbit/s.
pub const STATUS_SPEED_1000: u32 = 0x80;

/// Receiver on.
pub const RCTL_EN: u32 = 0x0000_0002;
/// Store bad packets.
pub const RCTL_SBP: u32 = 0x0000_0004;
/// Unicast promiscuous.
pub const RCTL_UPE: u32 = 0x0000_0008;
/// Multicast promiscuous.
pub const RCTL_MPE: u32 = 0x0000_0010;
/// Long packets.
pub const RCTL_LPE: u32 = 0x0000_0020;
/// Accept broadcast.
pub const RCTL_BAM: u32 = 0x0000_8000;
/// Buffers of 2048 bytes (of 4096 with `RCTL_BSEX | RCTL_SZ_4096`).
pub const RCTL_SZ_2048: u32 = 0x0000_0000;
/// With `RCTL_BSEX`: 4096 bytes.
pub const RCTL_SZ_4096: u32 = 0x0003_0000;
/// Buffer sizes times 16.
pub const RCTL_BSEX: u32 = 0x0200_0000;
/// Strip the CRC.
pub const RCTL_SECRC: u32 = 0x0400_0000;

/// Transmitter on.
pub const TCTL_EN: u32 = 0x0000_0002;
/// Pad short packets.
pub const TCTL_PSP: u32 = 0x0000_0008;
/// Collision threshold.
pub const TCTL_CT: u32 = 15 << 4;
/// Collision distance, full duplex.
pub const TCTL_COLD: u32 = 63 << 12;
/// Retransmit on late collision.
pub const TCTL_RTLC: u32 = 0x0100_0000;
/// IPGT, IPGR1, IPGR2 for copper.
pub const TIPG_COPPER: u32 = 8 | 8 << 10 | 6 << 20;

/// IP checksum offload on.
pub const RXCSUM_IPOFL: u32 = 0x100;
/// TCP/UDP checksum offload on.
pub const RXCSUM_TUOFL: u32 = 0x200;

/// Transmit descriptor written back.
pub const ICR_TXDW: u32 = 0x0000_0001;
/// Transmit queue empty.
pub const ICR_TXQE: u32 = 0x0000_0002;
/// Link status change.
pub const ICR_LSC: u32 = 0x0000_0004;
/// Receive sequence error.
pub const ICR_RXSEQ: u32 = 0x0000_0008;
/// Receive descriptors below threshold.
pub const ICR_RXDMT0: u32 = 0x0000_0010;
/// Receive overrun.
pub const ICR_RXO: u32 = 0x0000_0040;
/// Receive timer.
pub const ICR_RXT0: u32 = 0x0000_0080;

/// Descriptor control: refresh policy of FreeBSD's em: PTHRESH 0x1f, HTHRESH 1, WTHRESH 1, granularity descriptors.
pub const TXDCTL_EM: u32 = 0x1f | 1 << 8 | 1 << 16 | 1 << 22 | 1 << 24;

/// Receive address valid.
pub const RAH_AV: u32 = 0x8000_0000;

/// MDIC: write operation.
pub const MDIC_OP_WRITE: u32 = 0x0400_0000;
/// MDIC: read operation.
pub const MDIC_OP_READ: u32 = 0x0800_0000;
/// MDIC: done.
pub const MDIC_READY: u32 = 0x1000_0000;
/// MDIC: failed.
pub const MDIC_ERROR: u32 = 0x4000_0000;

/// EERD: start.
pub const EERD_START: u32 = 0x1;
/// EERD: done on the 82540 family.
pub const EERD_DONE: u32 = 0x10;
/// EERD: shift of the address on the 82540 family.
pub const EERD_ADDR_SHIFT: u32 = 8;
/// EERD: shift of the data.
pub const EERD_DATA_SHIFT: u32 = 16;
/// EECD: request the EEPROM.
pub const EECD_REQ: u32 = 0x40;
/// EECD: granted.
pub const EECD_GNT: u32 = 0x80;
