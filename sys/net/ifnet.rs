//! The interface: flags, capabilities, addresses, counters, link state.
//!
//! FreeBSD: sys/net/if.c, sys/net/if_var.h, sys/net/if.h

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use bitflags::bitflags;
use spin::Once;

use crate::counter::Counter;
use crate::errno::Errno;
use crate::kern::kern_mutex::Mutex;
use crate::kern::kern_sx::Sx;
use crate::kern::lock_order::{IfAddr, IfnetCtl};
use crate::kern::subr_epoch::{EpochCell, NetEpoch};
use crate::kprintf;
use crate::machine::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::mbuf::{CsumFlags, IfIndex, Mbuf, MbufQueue};
use crate::net::bpf::BpfIf;
use crate::net::if_ethersubr;
use crate::net::if_llatbl::LlTable;
use crate::net::nd_ifinfo::NdIfinfo;
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
        let medium = match self.speed {
            _ if !self.active => return String::from("Ethernet autoselect"),
            10 => "10baseT/UTP",
            100 => "100baseTX",
            _ => "1000baseT",
        };
        let duplex = if self.full_duplex {
            " <full-duplex>"
        } else {
            ""
        };
        format!("Ethernet autoselect ({medium}{duplex})")
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
    pub fn ether(dname: &'static str, dunit: u32, lladdr: [u8; 6]) -> IfnetInit {
        IfnetInit {
            dname,
            dunit,
            if_type: IFT_ETHER,
            lladdr,
            mtu: 1500,
            flags: IfFlags::BROADCAST | IfFlags::SIMPLEX | IfFlags::MULTICAST,
            capabilities: IfCap::VLAN_MTU,
            capenable: IfCap::VLAN_MTU,
            baudrate: 0,
            hw_tsomax: 0,
            hw_tsomaxsegcount: 0,
            hw_tsomaxsegsize: 0,
        }
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
    /// `ifp` has another link-layer address.
    fn lladdr_changed(&self, _ifp: &Arc<Ifnet>) {}
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

impl IfCounters {
    fn new() -> IfCounters {
        IfCounters {
            ipackets: Counter::new(),
            ierrors: Counter::new(),
            opackets: Counter::new(),
            oerrors: Counter::new(),
            collisions: Counter::new(),
            ibytes: Counter::new(),
            obytes: Counter::new(),
            imcasts: Counter::new(),
            omcasts: Counter::new(),
            iqdrops: Counter::new(),
            oqdrops: Counter::new(),
            noproto: Counter::new(),
        }
    }
}

/// The counters at one moment, those of the hardware included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(alias = "if_data")]
pub struct IfData {
    /// Packets received.
    pub ipackets: u64,
    /// Receive errors.
    pub ierrors: u64,
    /// Packets sent.
    pub opackets: u64,
    /// Send errors.
    pub oerrors: u64,
    /// Collisions.
    pub collisions: u64,
    /// Bytes received.
    pub ibytes: u64,
    /// Bytes sent.
    pub obytes: u64,
    /// Multicasts received.
    pub imcasts: u64,
    /// Multicasts sent.
    pub omcasts: u64,
    /// Dropped on input.
    pub iqdrops: u64,
    /// Dropped on output.
    pub oqdrops: u64,
    /// For a protocol nobody speaks.
    pub noproto: u64,
}

impl Ifaddr {
    /// An address of `ifp` with counters at zero.
    pub fn new(
        ifp: &Arc<Ifnet>,
        addr: Ipv4Addr,
        netmask: Ipv4Addr,
        broadcast: Option<Ipv4Addr>,
    ) -> Ifaddr {
        Ifaddr {
            ia_addr: addr,
            ia_netmask: netmask,
            ia_broadaddr: broadcast,
            ia_dstaddr: None,
            ia_ifp: ifp.clone(),
            ipackets: Counter::new(),
            ibytes: Counter::new(),
            opackets: Counter::new(),
            obytes: Counter::new(),
        }
    }

    /// Whether `addr` is of this address's network: a neighbour, where there is a link.
    #[inline]
    pub fn has_neighbour(&self, addr: Ipv4Addr) -> bool {
        (self.ia_addr.to_bits() ^ addr.to_bits()) & self.ia_netmask.to_bits() == 0
    }

    /// Bits of the network part.
    pub fn prefix_len(&self) -> u8 {
        self.ia_netmask.to_bits().leading_ones() as u8
    }
}

bitflags! {
    /// State of an IPv6 address (`IN6_IFF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct In6Iff: u32 {
        /// Belongs to more than one host.
        const ANYCAST = 0x01;
        /// Being checked for duplicates.
        const TENTATIVE = 0x02;
        /// Somebody else has it.
        const DUPLICATED = 0x04;
        /// The interface it belongs to has no link.
        const DETACHED = 0x08;
        /// Not to be used for anything new.
        const DEPRECATED = 0x10;
        /// Not checked for duplicates.
        const NODAD = 0x20;
        /// Made from an advertised prefix.
        const AUTOCONF = 0x40;
        /// Made of random bits, for a while (RFC 8981).
        const TEMPORARY = 0x80;
        /// Preferred as source.
        const PREFER_SOURCE = 0x0100;
    }
}

impl In6Iff {
    /// Not usable yet, or no more (`IN6_IFF_NOTREADY`).
    pub const NOTREADY: In6Iff = In6Iff::TENTATIVE.union(In6Iff::DUPLICATED);
}

/// A lifetime that never ends (RFC 4861 §4.6.2).
pub const ND6_INFINITE_LIFETIME: u32 = u32::MAX;

/// An IPv6 address of an interface. Addresses with a scope carry its zone in their second 16 bits, as everywhere
/// inside the stack.
#[doc(alias = "in6_ifaddr")]
pub struct In6Ifaddr {
    /// The address.
    pub ia_addr: Ipv6Addr,
    /// Bits of its prefix.
    pub ia_prefixlen: u8,
    /// The interface it belongs to.
    pub ia_ifp: Arc<Ifnet>,
    flags: AtomicU32,
    /// Valid for so many seconds from `updated`.
    vltime: AtomicU32,
    /// Preferred for so many seconds from `updated`.
    pltime: AtomicU32,
    updated: AtomicU32,
    /// Packets in to this address.
    pub ipackets: Counter,
    /// Bytes in.
    pub ibytes: Counter,
    /// Packets out from it.
    pub opackets: Counter,
    /// Bytes out.
    pub obytes: Counter,
}

impl In6Ifaddr {
    /// An address of `ifp` that lasts, with counters at zero.
    pub fn new(ifp: &Arc<Ifnet>, addr: Ipv6Addr, prefixlen: u8, flags: In6Iff) -> In6Ifaddr {
        In6Ifaddr {
            ia_addr: addr,
            ia_prefixlen: prefixlen,
            ia_ifp: ifp.clone(),
            flags: AtomicU32::new(flags.bits()),
            vltime: AtomicU32::new(ND6_INFINITE_LIFETIME),
            pltime: AtomicU32::new(ND6_INFINITE_LIFETIME),
            updated: AtomicU32::new(0),
            ipackets: Counter::new(),
            ibytes: Counter::new(),
            opackets: Counter::new(),
            obytes: Counter::new(),
        }
    }

    /// Its state.
    #[doc(alias = "ia6_flags")]
    pub fn flags(&self) -> In6Iff {
        In6Iff::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// Changes its state.
    pub fn update_flags(&self, set: In6Iff, clear: In6Iff) {
        self.flags.fetch_or(set.bits(), Ordering::Relaxed);
        self.flags.fetch_and(!clear.bits(), Ordering::Relaxed);
    }

    /// Sets for how many seconds from `now`, seconds since boot, it is valid and preferred.
    #[doc(alias = "in6_addrlifetime")]
    pub fn set_lifetimes(&self, now: u32, valid: u32, preferred: u32) {
        self.updated.store(now, Ordering::Relaxed);
        self.vltime.store(valid, Ordering::Relaxed);
        self.pltime.store(preferred, Ordering::Relaxed);
    }

    /// For how many seconds from `now`, seconds since boot, it is valid and preferred.
    pub fn lifetimes(&self, now: u32) -> (u32, u32) {
        let passed = now.saturating_sub(self.updated.load(Ordering::Relaxed));
        let left = |time: &AtomicU32| match time.load(Ordering::Relaxed) {
            ND6_INFINITE_LIFETIME => ND6_INFINITE_LIFETIME,
            time => time.saturating_sub(passed),
        };
        (left(&self.vltime), left(&self.pltime))
    }
}

/// Smallest MTU (`IF_MINMTU`).
pub const IF_MINMTU: u32 = 72;
/// Largest MTU (`IF_MAXMTU`).
pub const IF_MAXMTU: u32 = 65535;

/// A network interface.
pub struct Ifnet {
    /// Index, unique in the machine; never 0.
    pub if_index: IfIndex,
    /// Name ("em0").
    pub if_xname: String,
    /// Driver name ("em").
    pub if_dname: &'static str,
    /// Unit number.
    pub if_dunit: u32,
    /// IFT_*.
    pub if_type: u8,
    /// Counters kept by software.
    pub counters: IfCounters,
    /// Consumers that see every frame.
    pub if_bpf: BpfIf,
    hw: HwCounters,
    lladdr: AtomicU64,
    flags: AtomicU32,
    mtu: AtomicU32,
    capabilities: AtomicU32,
    capenable: AtomicU32,
    hwassist: AtomicU32,
    link_state: AtomicU8,
    baudrate: AtomicU64,
    promisc: AtomicU32,
    tsomax: (u32, u32, u32),
    control: Sx<(), IfnetCtl>,
    addrs: EpochCell<Vec<Arc<Ifaddr>>>,
    addrs6: EpochCell<Vec<Arc<In6Ifaddr>>>,
    addrs_lock: Mutex<(), IfAddr>,
    multi: Mutex<Vec<([u8; 6], usize)>, IfAddr>,
    lltable: Once<Arc<LlTable>>,
    lltable6: Once<Arc<LlTable<Ipv6Addr>>>,
    /// What neighbour discovery keeps.
    pub nd6: NdIfinfo,
    vnet: Arc<Vnet>,
    driver: Arc<dyn IfDriver>,
}

/// Counts that hardware keeps, as last read.
struct HwCounters {
    ierrors: AtomicU64,
    oerrors: AtomicU64,
    collisions: AtomicU64,
}

impl Ifnet {
    /// Builds an interface; `Vnet::if_attach` makes it known.
    pub(super) fn new(
        index: IfIndex,
        vnet: &Arc<Vnet>,
        init: IfnetInit,
        driver: Arc<dyn IfDriver>,
    ) -> Ifnet {
        let tsomax =
            if init.hw_tsomax == 0 && init.hw_tsomaxsegcount == 0 && init.hw_tsomaxsegsize == 0 {
                // FreeBSD if_attach: what fits in 32 clusters less link headers.
                (65_518, 35, 2048)
            } else {
                (
                    init.hw_tsomax,
                    init.hw_tsomaxsegcount,
                    init.hw_tsomaxsegsize,
                )
            };
        Ifnet {
            if_index: index,
            if_xname: format!("{}{}", init.dname, init.dunit),
            if_dname: init.dname,
            if_dunit: init.dunit,
            if_type: init.if_type,
            counters: IfCounters::new(),
            if_bpf: BpfIf::new(),
            hw: HwCounters {
                ierrors: AtomicU64::new(0),
                oerrors: AtomicU64::new(0),
                collisions: AtomicU64::new(0),
            },
            lladdr: AtomicU64::new(pack_lladdr(init.lladdr)),
            flags: AtomicU32::new(init.flags.bits()),
            mtu: AtomicU32::new(init.mtu),
            capabilities: AtomicU32::new(init.capabilities.bits()),
            capenable: AtomicU32::new(init.capenable.bits()),
            hwassist: AtomicU32::new(hwassist_of(init.capenable).bits()),
            link_state: AtomicU8::new(LinkState::Unknown as u8),
            baudrate: AtomicU64::new(init.baudrate),
            promisc: AtomicU32::new(0),
            tsomax,
            control: Sx::new(()),
            addrs: EpochCell::new(Vec::new()),
            addrs6: EpochCell::new(Vec::new()),
            addrs_lock: Mutex::new(()),
            multi: Mutex::new(Vec::new()),
            lltable: Once::new(),
            lltable6: Once::new(),
            nd6: NdIfinfo::new(),
            vnet: vnet.clone(),
            driver,
        }
    }

    /// The instance it belongs to.
    pub fn vnet(&self) -> &Arc<Vnet> {
        &self.vnet
    }

    /// The driver.
    pub fn driver(&self) -> &Arc<dyn IfDriver> {
        &self.driver
    }

    /// Link-layer address.
    #[inline]
    pub fn lladdr(&self) -> [u8; 6] {
        unpack_lladdr(self.lladdr.load(Ordering::Relaxed))
    }

    /// Changes the link-layer address (`ifconfig em0 ether …`): a running interface starts again with it, and the
    /// protocols are told.
    #[doc(alias = "if_setlladdr")]
    #[doc(alias = "SIOCSIFLLADDR")]
    pub fn set_lladdr(self: &Arc<Self>, addr: [u8; 6]) -> Result<(), Errno> {
        {
            let _control = self.control.xlock();
            self.lladdr.store(pack_lladdr(addr), Ordering::Relaxed);
            if self.flags().contains(IfFlags::RUNNING) {
                self.driver.stop(self);
                self.driver.init(self)?;
            }
        }
        self.vnet.announce(|handler| handler.lladdr_changed(self));
        Ok(())
    }

    /// Flags of both kinds merged, as programs see them.
    #[inline]
    pub fn flags(&self) -> IfFlags {
        IfFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// Administratively up, and the driver runs.
    #[inline]
    pub fn is_running(&self) -> bool {
        self.flags().contains(IfFlags::UP | IfFlags::RUNNING)
    }

    /// Whether it is the loopback.
    #[inline]
    pub fn is_loopback(&self) -> bool {
        self.if_type == IFT_LOOP
    }

    /// `ifconfig em0 up`, `down`, `promisc` and so on: changes administrative flags and tells driver and protocols.
    #[doc(alias = "SIOCSIFFLAGS")]
    pub fn change_flags(self: &Arc<Self>, set: IfFlags, clear: IfFlags) -> Result<(), Errno> {
        let changeable = IfFlags::UP
            | IfFlags::DEBUG
            | IfFlags::NOARP
            | IfFlags::LINK0
            | IfFlags::LINK1
            | IfFlags::LINK2
            | IfFlags::PPROMISC
            | IfFlags::PALLMULTI
            | IfFlags::MONITOR
            | IfFlags::STATICARP
            | IfFlags::STICKYARP;
        if !changeable.contains(set | clear) {
            return Err(Errno::EINVAL);
        }
        let old = {
            let _control = self.control.xlock();
            let old = self.flags();
            self.update_flags(set, clear);
            self.derive_rx_flags();
            if let Err(error) = self.tell_driver(old) {
                self.update_flags(old - self.flags(), self.flags() - old);
                return Err(error);
            }
            old
        };
        if old != self.flags() {
            self.vnet
                .announce(|handler| handler.flags_changed(self, old));
        }
        Ok(())
    }

    /// Asks for (or no longer for) all frames, as bpf does.
    #[doc(alias = "ifpromisc")]
    pub fn set_promisc(self: &Arc<Self>, on: bool) -> Result<(), Errno> {
        let _control = self.control.xlock();
        let old = self.flags();
        let count = self.promisc.load(Ordering::Relaxed);
        self.promisc.store(
            if on {
                count + 1
            } else {
                count.saturating_sub(1)
            },
            Ordering::Relaxed,
        );
        self.derive_rx_flags();
        if (old ^ self.flags()).contains(IfFlags::PROMISC) {
            let state = if on { "enabled" } else { "disabled" };
            kprintf!("{}: promiscuous mode {state}\n", self.if_xname);
        }
        self.tell_driver(old)
    }

    /// PROMISC and ALLMULTI follow from who asked for them.
    fn derive_rx_flags(&self) {
        let flags = self.flags();
        let mut derived = IfFlags::empty();
        if flags.contains(IfFlags::PPROMISC) || self.promisc.load(Ordering::Relaxed) > 0 {
            derived |= IfFlags::PROMISC;
        }
        if flags.contains(IfFlags::PALLMULTI) {
            derived |= IfFlags::ALLMULTI;
        }
        self.update_flags(derived, (IfFlags::PROMISC | IfFlags::ALLMULTI) - derived);
    }

    fn tell_driver(&self, old: IfFlags) -> Result<(), Errno> {
        let now = self.flags();
        let up = now.contains(IfFlags::UP);
        if up && !now.contains(IfFlags::RUNNING) {
            self.driver.init(self)
        } else if !up && now.contains(IfFlags::RUNNING) {
            self.driver.stop(self);
            Ok(())
        } else {
            if up && (old ^ now).intersects(IfFlags::PROMISC | IfFlags::ALLMULTI) {
                self.driver.set_rxmode(self);
            }
            Ok(())
        }
    }

    fn update_flags(&self, set: IfFlags, clear: IfFlags) {
        self.flags.fetch_or(set.bits(), Ordering::Relaxed);
        self.flags.fetch_and(!clear.bits(), Ordering::Relaxed);
    }

    /// For drivers: RUNNING and OACTIVE.
    pub fn set_drv_flags(&self, set: IfFlags, clear: IfFlags) {
        let driver = IfFlags::RUNNING | IfFlags::OACTIVE;
        self.update_flags(set & driver, clear & driver);
    }

    /// MTU.
    #[inline]
    pub fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Changes the MTU if the driver takes it; routes learn the new one.
    #[doc(alias = "SIOCSIFMTU")]
    pub fn set_mtu(self: &Arc<Self>, mtu: u32) -> Result<(), Errno> {
        if !(IF_MINMTU..=IF_MAXMTU).contains(&mtu) {
            return Err(Errno::EINVAL);
        }
        {
            let _control = self.control.xlock();
            let old = self.mtu.swap(mtu, Ordering::Relaxed);
            if old == mtu {
                return Ok(());
            }
            if let Err(error) = self.driver.set_mtu(self, mtu) {
                self.mtu.store(old, Ordering::Relaxed);
                return Err(error);
            }
        }
        self.vnet.rib.refresh_mtu(self);
        self.vnet.rib6.refresh_mtu(self);
        Ok(())
    }

    /// What exists.
    pub fn capabilities(&self) -> IfCap {
        IfCap::from_bits_retain(self.capabilities.load(Ordering::Relaxed))
    }

    /// What is on.
    #[inline]
    pub fn capenable(&self) -> IfCap {
        IfCap::from_bits_retain(self.capenable.load(Ordering::Relaxed))
    }

    /// Switches capabilities (`ifconfig em0 -tso`): `enable` is the whole new set.
    #[doc(alias = "SIOCSIFCAP")]
    pub fn set_capenable(&self, enable: IfCap) -> Result<(), Errno> {
        let _control = self.control.xlock();
        let old = self.capenable();
        let changed = old ^ enable;
        if !self.capabilities().contains(enable) || changed.contains(IfCap::NETMAP) {
            return Err(Errno::EINVAL);
        }
        self.store_capenable(enable);
        self.driver.set_cap(self, enable).inspect_err(|_| {
            self.store_capenable(old);
        })
    }

    fn store_capenable(&self, enable: IfCap) {
        self.capenable.store(enable.bits(), Ordering::Relaxed);
        self.hwassist
            .store(hwassist_of(enable).bits(), Ordering::Relaxed);
    }

    /// Which checksums and segmentation the hardware does for us now.
    #[doc(alias = "if_hwassist")]
    #[inline]
    pub fn hwassist(&self) -> CsumFlags {
        CsumFlags::from_bits_retain(self.hwassist.load(Ordering::Relaxed))
    }

    /// TSO limits: bytes, segments, bytes of a segment; 0 is no limit.
    pub fn hw_tsomax(&self) -> (u32, u32, u32) {
        self.tsomax
    }

    /// State of the link.
    pub fn link_state(&self) -> LinkState {
        match self.link_state.load(Ordering::Relaxed) {
            1 => LinkState::Down,
            2 => LinkState::Up,
            _ => LinkState::Unknown,
        }
    }

    /// Whether a route through the interface leads anywhere.
    ///
    /// Differs from FreeBSD: a link of which nothing is known yet is tried.
    #[doc(alias = "RT_LINK_IS_UP")]
    #[inline]
    pub fn rt_link_is_up(&self) -> bool {
        self.link_state() != LinkState::Down || !self.capabilities().contains(IfCap::LINKSTATE)
    }

    /// For drivers: the link came or went; logs it and tells the protocols.
    #[doc(alias = "if_link_state_change")]
    pub fn set_link_state(self: &Arc<Self>, state: LinkState) {
        if self.link_state.swap(state as u8, Ordering::Relaxed) == state as u8 {
            return;
        }
        let word = match state {
            LinkState::Up => "UP",
            LinkState::Down => "DOWN",
            LinkState::Unknown => "UNKNOWN",
        };
        match state {
            LinkState::Up => self.update_flags(IfFlags::LOWER_UP, IfFlags::empty()),
            LinkState::Down | LinkState::Unknown => {
                self.update_flags(IfFlags::empty(), IfFlags::LOWER_UP)
            }
        }
        kprintf!("{}: link state changed to {word}\n", self.if_xname);
        self.vnet
            .announce(|handler| handler.link_changed(self, state));
    }

    /// The link state of an interface that has never been down, without ado.
    pub(super) fn init_link_state(&self, state: LinkState) {
        self.link_state.store(state as u8, Ordering::Relaxed);
    }

    /// Bits per second.
    pub fn baudrate(&self) -> u64 {
        self.baudrate.load(Ordering::Relaxed)
    }

    /// For drivers.
    pub fn set_baudrate(&self, bits_per_second: u64) {
        self.baudrate.store(bits_per_second, Ordering::Relaxed);
    }

    /// For drivers whose hardware counts errors: the totals as last read.
    pub fn set_hwstats(&self, ierrors: u64, oerrors: u64, collisions: u64) {
        self.hw.ierrors.store(ierrors, Ordering::Relaxed);
        self.hw.oerrors.store(oerrors, Ordering::Relaxed);
        self.hw.collisions.store(collisions, Ordering::Relaxed);
    }

    /// All counters at this moment.
    #[doc(alias = "if_data_copy")]
    pub fn data(&self) -> IfData {
        let c = &self.counters;
        IfData {
            ipackets: c.ipackets.fetch(),
            ierrors: c.ierrors.fetch() + self.hw.ierrors.load(Ordering::Relaxed),
            opackets: c.opackets.fetch(),
            oerrors: c.oerrors.fetch() + self.hw.oerrors.load(Ordering::Relaxed),
            collisions: c.collisions.fetch() + self.hw.collisions.load(Ordering::Relaxed),
            ibytes: c.ibytes.fetch(),
            obytes: c.obytes.fetch(),
            imcasts: c.imcasts.fetch(),
            omcasts: c.omcasts.fetch(),
            iqdrops: c.iqdrops.fetch(),
            oqdrops: c.oqdrops.fetch(),
            noproto: c.noproto.fetch(),
        }
    }

    /// The IPv4 addresses, primary first.
    #[inline]
    pub fn addrs<'e>(&'e self, epoch: &'e NetEpoch) -> &'e [Arc<Ifaddr>] {
        self.addrs.load(epoch)
    }

    /// Adds an address to the list (in_control does the rest: routes, ARP).
    pub fn addr_add(&self, ia: Arc<Ifaddr>) {
        let _lock = self.addrs_lock.lock();
        let epoch = NetEpoch::enter();
        let mut list = self.addrs.load(&epoch).clone();
        list.retain(|old| old.ia_addr != ia.ia_addr);
        list.push(ia);
        self.addrs.replace(Box::new(list));
    }

    /// Removes an address from the list.
    pub fn addr_remove(&self, addr: Ipv4Addr) -> Option<Arc<Ifaddr>> {
        let _lock = self.addrs_lock.lock();
        let epoch = NetEpoch::enter();
        let mut list = self.addrs.load(&epoch).clone();
        let at = list.iter().position(|ia| ia.ia_addr == addr)?;
        let ia = list.remove(at);
        self.addrs.replace(Box::new(list));
        Some(ia)
    }

    /// The IPv6 addresses, in order of assignment.
    #[inline]
    pub fn addrs6<'e>(&'e self, epoch: &'e NetEpoch) -> &'e [Arc<In6Ifaddr>] {
        self.addrs6.load(epoch)
    }

    /// Adds an IPv6 address to the list (in6 does the rest: routes, duplicate detection).
    pub fn addr6_add(&self, ia: Arc<In6Ifaddr>) {
        let _lock = self.addrs_lock.lock();
        let epoch = NetEpoch::enter();
        let mut list = self.addrs6.load(&epoch).clone();
        list.retain(|old| old.ia_addr != ia.ia_addr);
        list.push(ia);
        self.addrs6.replace(Box::new(list));
    }

    /// Removes an IPv6 address from the list.
    pub fn addr6_remove(&self, addr: Ipv6Addr) -> Option<Arc<In6Ifaddr>> {
        let _lock = self.addrs_lock.lock();
        let epoch = NetEpoch::enter();
        let mut list = self.addrs6.load(&epoch).clone();
        let at = list.iter().position(|ia| ia.ia_addr == addr)?;
        let ia = list.remove(at);
        self.addrs6.replace(Box::new(list));
        Some(ia)
    }

    /// Joins a link-layer multicast group.
    #[doc(alias = "if_addmulti")]
    pub fn multi_add(&self, group: [u8; 6]) {
        let fresh = {
            let mut multi = self.multi.lock();
            match multi.iter_mut().find(|(g, _)| *g == group) {
                Some((_, count)) => {
                    *count += 1;
                    false
                }
                None => {
                    multi.push((group, 1));
                    true
                }
            }
        };
        if fresh && self.is_running() {
            self.driver.set_rxmode(self);
        }
    }

    /// Leaves it.
    #[doc(alias = "if_delmulti")]
    pub fn multi_del(&self, group: [u8; 6]) {
        let last = {
            let mut multi = self.multi.lock();
            let Some(at) = multi.iter().position(|(g, _)| *g == group) else {
                return;
            };
            multi[at].1 -= 1;
            let last = multi[at].1 == 0;
            if last {
                multi.remove(at);
            }
            last
        };
        if last && self.is_running() {
            self.driver.set_rxmode(self);
        }
    }

    /// The link-layer groups joined.
    pub fn multiaddrs(&self) -> Vec<[u8; 6]> {
        self.multi.lock().iter().map(|&(group, _)| group).collect()
    }

    /// Sets the table of IPv4 neighbours, once (in_domifattach).
    pub fn set_lltable(&self, llt: Arc<LlTable>) {
        self.lltable.call_once(|| llt);
    }

    /// The table of IPv4 neighbours.
    #[inline]
    pub fn lltable(&self) -> Option<&Arc<LlTable>> {
        self.lltable.get()
    }

    /// Sets the table of IPv6 neighbours, once (in6_domifattach).
    pub fn set_lltable6(&self, llt: Arc<LlTable<Ipv6Addr>>) {
        self.lltable6.call_once(|| llt);
    }

    /// The table of IPv6 neighbours.
    #[inline]
    pub fn lltable6(&self) -> Option<&Arc<LlTable<Ipv6Addr>>> {
        self.lltable6.get()
    }

    /// MTU of IPv6 packets: the interface's, or less if a router says so (`IN6_LINKMTU`).
    #[inline]
    pub fn link_mtu6(&self) -> u32 {
        let mtu = self.mtu();
        self.nd6
            .linkmtu()
            .map_or(mtu, |announced| announced.min(mtu))
    }

    /// A received frame, link header included, enters the stack here.
    pub fn if_input(&self, epoch: &NetEpoch, m: Mbuf) {
        let mut q = MbufQueue::new();
        q.push(m);
        if_ethersubr::ether_input_batch(self, epoch, &mut q);
    }

    /// A batch of received frames enters the stack.
    pub fn if_input_batch(&self, epoch: &NetEpoch, q: &mut MbufQueue) {
        if_ethersubr::ether_input_batch(self, epoch, q);
    }

    /// What detaching leaves behind is freed: addresses, neighbours, groups.
    pub(super) fn purge(&self) {
        self.update_flags(IfFlags::DYING, IfFlags::UP);
        if let Some(llt) = self.lltable.get() {
            llt.flush(true);
        }
        if let Some(llt) = self.lltable6.get() {
            llt.flush(true);
        }
        {
            let _lock = self.addrs_lock.lock();
            self.addrs.replace(Box::new(Vec::new()));
            self.addrs6.replace(Box::new(Vec::new()));
        }
        self.multi.lock().clear();
    }
}

impl fmt::Debug for Ifnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.if_xname)
    }
}

/// `if_hwassist` follows from what is switched on.
fn hwassist_of(enable: IfCap) -> CsumFlags {
    let mut assist = CsumFlags::empty();
    if enable.contains(IfCap::TXCSUM) {
        assist |= CsumFlags::IP | CsumFlags::IP_TCP | CsumFlags::IP_UDP;
    }
    if enable.contains(IfCap::TXCSUM_IPV6) {
        assist |= CsumFlags::IP6_TCP | CsumFlags::IP6_UDP;
    }
    if enable.contains(IfCap::TSO4) {
        assist |= CsumFlags::IP_TSO;
    }
    if enable.contains(IfCap::TSO6) {
        assist |= CsumFlags::IP6_TSO;
    }
    assist
}

fn pack_lladdr([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

fn unpack_lladdr(packed: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, _, _] = packed.to_le_bytes();
    [a, b, c, d, e, f]
}
