//! The interface: flags, capabilities, addresses, counters, link state.
//!
//! FreeBSD: sys/net/if.c, sys/net/if_var.h, sys/net/if.h

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use bitflags::bitflags;

use crate::counter::Counter;
use crate::errno::Errno;
use crate::kern::subr_epoch::NetEpoch;
use crate::mbuf::{CsumFlags, Mbuf, MbufQueue};
use crate::net::if_llatbl::LlTable;
use crate::net::vnet::Vnet;

bitflags! {
    /// Interface flags, `if_flags` and `if_drv_flags` in one space as `SIOCGIFFLAGS` shows them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IfFlags: u32 {
        /// Administratively up.
        const UP = 0x1;
        /// Broadcast address valid.
        const BROADCAST = 0x2;
        /// Debugging on.
        const DEBUG = 0x4;
        /// The loopback.
        const LOOPBACK = 0x8;
        /// Point-to-point link.
        const POINTOPOINT = 0x10;
        /// The driver has its resources and runs (driver flag).
        const RUNNING = 0x40;
        /// No address resolution.
        const NOARP = 0x80;
        /// Receives all frames.
        const PROMISC = 0x100;
        /// Receives all multicast.
        const ALLMULTI = 0x200;
        /// The transmit queue is full (driver flag).
        const OACTIVE = 0x400;
        /// Cannot hear its own transmissions.
        const SIMPLEX = 0x800;
        /// Per link layer.
        const LINK0 = 0x1000;
        /// Per link layer.
        const LINK1 = 0x2000;
        /// Per link layer.
        const LINK2 = 0x4000;
        /// Supports multicast.
        const MULTICAST = 0x8000;
        /// Addresses cannot be assigned.
        const CANTCONFIG = 0x10000;
        /// Promiscuous by the administrator's request.
        const PPROMISC = 0x20000;
        /// Monitor mode: packets end at bpf.
        const MONITOR = 0x40000;
        /// Static ARP only.
        const STATICARP = 0x80000;
        /// Static ARP entries cannot be replaced.
        const STICKYARP = 0x100000;
        /// Being detached.
        const DYING = 0x200000;
        /// Being renamed.
        const RENAMING = 0x400000;
        /// All multicast by the administrator's request.
        const PALLMULTI = 0x800000;
        /// Link is up (shown as LOWER_UP).
        const LOWER_UP = 0x1000000;
    }
}

bitflags! {
    /// Interface capabilities.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IfCap: u32 {
        /// Verifies IPv4/TCP/UDP checksums on receive.
        const RXCSUM = 1 << 0;
        /// Computes IPv4/TCP/UDP checksums on transmit.
        const TXCSUM = 1 << 1;
        /// Can be a network console.
        const NETCONS = 1 << 2;
        /// Frames may be four bytes longer for a VLAN tag.
        const VLAN_MTU = 1 << 3;
        /// Inserts and strips VLAN tags.
        const VLAN_HWTAGGING = 1 << 4;
        /// MTU above 1500.
        const JUMBO_MTU = 1 << 5;
        /// Polling.
        const POLLING = 1 << 6;
        /// Checksums inside VLAN frames.
        const VLAN_HWCSUM = 1 << 7;
        /// TCP segmentation, IPv4.
        const TSO4 = 1 << 8;
        /// TCP segmentation, IPv6.
        const TSO6 = 1 << 9;
        /// Large receive (software).
        const LRO = 1 << 10;
        /// Wake on unicast.
        const WOL_UCAST = 1 << 11;
        /// Wake on multicast.
        const WOL_MCAST = 1 << 12;
        /// Wake on magic packet.
        const WOL_MAGIC = 1 << 13;
        /// TCP offload engine, IPv4.
        const TOE4 = 1 << 14;
        /// TCP offload engine, IPv6.
        const TOE6 = 1 << 15;
        /// Filters VLANs.
        const VLAN_HWFILTER = 1 << 16;
        /// Segmentation inside VLAN frames.
        const VLAN_HWTSO = 1 << 18;
        /// Reports link state.
        const LINKSTATE = 1 << 19;
        /// netmap.
        const NETMAP = 1 << 20;
        /// Verifies TCP/UDP over IPv6 checksums.
        const RXCSUM_IPV6 = 1 << 21;
        /// Computes TCP/UDP over IPv6 checksums.
        const TXCSUM_IPV6 = 1 << 22;
        /// Counts in hardware.
        const HWSTATS = 1 << 23;
        /// Accepts unmapped external pages.
        const MEXTPG = 1 << 26;
    }
}

/// `ifi_type` of an Ethernet.
pub const IFT_ETHER: u8 = 0x6;
/// `ifi_type` of the loopback.
pub const IFT_LOOP: u8 = 0x18;
/// Default output queue length (`net.link.ifqmaxlen`).
pub const IFQ_MAXLEN: u32 = 50;

/// State of the link as the driver reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkState {
    /// Not known.
    Unknown = 0,
    /// No carrier.
    Down = 1,
    /// Carrier.
    Up = 2,
}

/// Media as ifconfig shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Media {
    /// Speed in Mbit/s; 0 without link.
    pub speed: u32,
    /// Full duplex.
    pub full_duplex: bool,
    /// Carrier present.
    pub active: bool,
}

impl Media {
    /// The text after `media: `.
    pub fn describe(&self) -> String {
        todo!()
    }
    /// The text after `status: `.
    pub fn status(&self) -> &'static str {
        if self.active { "active" } else { "no carrier" }
    }
}

/// What a driver says about a new interface.
#[derive(Clone, Debug)]
pub struct IfnetInit {
    /// Driver name ("em").
    pub dname: &'static str,
    /// Unit number.
    pub dunit: u32,
    /// IFT_*.
    pub if_type: u8,
    /// Link-layer address (zero for the loopback).
    pub lladdr: [u8; 6],
    /// MTU.
    pub mtu: u32,
    /// Initial flags.
    pub flags: IfFlags,
    /// What exists.
    pub capabilities: IfCap,
    /// What is on.
    pub capenable: IfCap,
    /// Bits per second.
    pub baudrate: u64,
    /// Largest TSO payload in bytes including headers (0 = default).
    pub hw_tsomax: u32,
    /// Most segments of a TSO frame (0 = default).
    pub hw_tsomaxsegcount: u32,
    /// Largest segment of a TSO frame (0 = default).
    pub hw_tsomaxsegsize: u32,
}

impl IfnetInit {
    /// An Ethernet interface with the usual flags and no offloads.
    pub fn ether(_dname: &'static str, _dunit: u32, _lladdr: [u8; 6]) -> IfnetInit {
        todo!()
    }
}

/// A driver's face to the stack.
pub trait IfDriver: Send + Sync {
    /// Sends one frame (link header included). Owns `m` also on failure.
    fn transmit(&self, ifp: &Ifnet, m: Mbuf) -> Result<(), Errno>;
    /// Brings the hardware up; sets RUNNING.
    fn init(&self, _ifp: &Ifnet) -> Result<(), Errno> {
        Ok(())
    }
    /// Stops the hardware; clears RUNNING.
    fn stop(&self, _ifp: &Ifnet) {}
    /// Switches capabilities; `enable` is the whole new set.
    fn set_cap(&self, _ifp: &Ifnet, _enable: IfCap) -> Result<(), Errno> {
        Ok(())
    }
    /// PROMISC, ALLMULTI or the multicast list changed.
    fn set_rxmode(&self, _ifp: &Ifnet) {}
    /// Is asked before the MTU changes.
    fn set_mtu(&self, _ifp: &Ifnet, _mtu: u32) -> Result<(), Errno> {
        Ok(())
    }
    /// Media and carrier.
    fn media_status(&self, _ifp: &Ifnet) -> Option<Media> {
        None
    }
    /// The interface goes away.
    fn detach(&self, _ifp: &Ifnet) {}
}

/// Is told about interfaces coming, going and changing (FreeBSD's eventhandlers and dom_ifattach).
pub trait IfEvent: Send + Sync {
    /// `ifp` was attached.
    fn attached(&self, _ifp: &Arc<Ifnet>) {}
    /// `ifp` is about to go.
    fn departing(&self, _ifp: &Arc<Ifnet>) {}
    /// `ifp` went UP or DOWN administratively.
    fn flags_changed(&self, _ifp: &Arc<Ifnet>, _old: IfFlags) {}
    /// The link came or went.
    fn link_changed(&self, _ifp: &Arc<Ifnet>, _state: LinkState) {}
}

/// The interface's counters (`if_data`).
pub struct IfCounters {
    /// Packets received.
    pub ipackets: Counter,
    /// Receive errors.
    pub ierrors: Counter,
    /// Packets sent.
    pub opackets: Counter,
    /// Send errors.
    pub oerrors: Counter,
    /// Collisions.
    pub collisions: Counter,
    /// Bytes received.
    pub ibytes: Counter,
    /// Bytes sent.
    pub obytes: Counter,
    /// Multicasts received.
    pub imcasts: Counter,
    /// Multicasts sent.
    pub omcasts: Counter,
    /// Dropped on input.
    pub iqdrops: Counter,
    /// Dropped on output.
    pub oqdrops: Counter,
    /// For a protocol nobody speaks.
    pub noproto: Counter,
}

/// An IPv4 address of an interface.
#[doc(alias = "in_ifaddr")]
pub struct Ifaddr {
    /// The address.
    pub ia_addr: Ipv4Addr,
    /// Its mask.
    pub ia_netmask: Ipv4Addr,
    /// The broadcast address of the network, if the link has one.
    pub ia_broadaddr: Option<Ipv4Addr>,
    /// The other end of a point-to-point link.
    pub ia_dstaddr: Option<Ipv4Addr>,
    /// The interface it belongs to.
    pub ia_ifp: Arc<Ifnet>,
    /// Packets in to this address.
    pub ipackets: Counter,
    /// Bytes in.
    pub ibytes: Counter,
    /// Packets out from it.
    pub opackets: Counter,
    /// Bytes out.
    pub obytes: Counter,
}

/// A network interface.
pub struct Ifnet {
    /// Index, unique in the machine; never 0.
    pub if_index: u16,
    /// Name ("em0").
    pub if_xname: String,
    /// Driver name ("em").
    pub if_dname: &'static str,
    /// Unit number.
    pub if_dunit: u32,
    /// IFT_*.
    pub if_type: u8,
    /// Counters.
    pub counters: IfCounters,
    vnet: Arc<Vnet>,
    driver: Arc<dyn IfDriver>,
}

impl Ifnet {
    /// The instance it belongs to.
    pub fn vnet(&self) -> &Arc<Vnet> {
        &self.vnet
    }
    /// The driver.
    pub fn driver(&self) -> &Arc<dyn IfDriver> {
        &self.driver
    }
    /// Link-layer address.
    pub fn lladdr(&self) -> [u8; 6] {
        todo!()
    }
    /// Changes the link-layer address.
    pub fn set_lladdr(&self, _addr: [u8; 6]) {
        todo!()
    }
    /// Flags of both kinds merged, as user space sees them.
    pub fn flags(&self) -> IfFlags {
        todo!()
    }
    /// IFF_UP and driver running.
    pub fn is_running(&self) -> bool {
        todo!()
    }
    /// Whether it is the loopback.
    pub fn is_loopback(&self) -> bool {
        self.if_type == IFT_LOOP
    }
    /// ifconfig up/down, promisc, ... : changes administrative flags and tells driver and protocols.
    pub fn change_flags(self: &Arc<Self>, _set: IfFlags, _clear: IfFlags) -> Result<(), Errno> {
        todo!()
    }
    /// For drivers: RUNNING and OACTIVE.
    pub fn set_drv_flags(&self, _set: IfFlags, _clear: IfFlags) {
        todo!()
    }
    /// MTU.
    pub fn mtu(&self) -> u32 {
        todo!()
    }
    /// Changes the MTU (72 ≤ mtu ≤ what the driver takes).
    pub fn set_mtu(&self, _mtu: u32) -> Result<(), Errno> {
        todo!()
    }
    /// What exists.
    pub fn capabilities(&self) -> IfCap {
        todo!()
    }
    /// What is on.
    pub fn capenable(&self) -> IfCap {
        todo!()
    }
    /// Switches capabilities (`ifconfig em0 -tso`): the whole new set.
    pub fn set_capenable(&self, _enable: IfCap) -> Result<(), Errno> {
        todo!()
    }
    /// Which checksums and segmentation the hardware does for us now.
    pub fn hwassist(&self) -> CsumFlags {
        todo!()
    }
    /// TSO limits: (bytes, segments, segment size).
    pub fn hw_tsomax(&self) -> (u32, u32, u32) {
        todo!()
    }
    /// State of the link.
    pub fn link_state(&self) -> LinkState {
        todo!()
    }
    /// For drivers: the link came or went; logs and tells the protocols.
    #[doc(alias = "if_link_state_change")]
    pub fn set_link_state(self: &Arc<Self>, _state: LinkState) {
        todo!()
    }
    /// Bits per second.
    pub fn baudrate(&self) -> u64 {
        todo!()
    }
    /// For drivers.
    pub fn set_baudrate(&self, _bits_per_second: u64) {
        todo!()
    }
    /// The IPv4 addresses, primary first.
    pub fn addrs<'e>(&self, _epoch: &'e NetEpoch) -> &'e [Arc<Ifaddr>] {
        todo!()
    }
    /// Adds an address to the list (in_control does the rest: routes, ARP).
    pub fn addr_add(&self, _ia: Arc<Ifaddr>) {
        todo!()
    }
    /// Removes an address from the list.
    pub fn addr_remove(&self, _addr: Ipv4Addr) -> Option<Arc<Ifaddr>> {
        todo!()
    }
    /// Joins a link-layer multicast group.
    #[doc(alias = "if_addmulti")]
    pub fn multi_add(&self, _group: [u8; 6]) {
        todo!()
    }
    /// Leaves it.
    pub fn multi_del(&self, _group: [u8; 6]) {
        todo!()
    }
    /// The link-layer groups joined.
    pub fn multiaddrs(&self) -> Vec<[u8; 6]> {
        todo!()
    }
    /// Sets the table of IPv4 neighbours (in_domifattach).
    pub fn set_lltable(&self, _llt: Arc<LlTable>) {
        todo!()
    }
    /// The table of IPv4 neighbours.
    pub fn lltable(&self) -> Option<&Arc<LlTable>> {
        todo!()
    }
    /// A received frame, link header included, enters the stack here.
    pub fn if_input(&self, _epoch: &NetEpoch, _m: Mbuf) {
        todo!()
    }
    /// A batch of received frames enters the stack.
    pub fn if_input_batch(&self, _epoch: &NetEpoch, _q: &mut MbufQueue) {
        todo!()
    }
}
