//! The Internet protocols' part of a stack instance, and the context every protocol function is passed.
//!
//! FreeBSD: the V_ variables of sys/netinet; sys/netinet/in_proto.c (the domain), ip_init, in_domifattach
//! Differs from FreeBSD: an instance is a value; `netinet` has no variables of its own.

use crate::if_ether::{ArpHandler, ArpStat, ArpTunables};
use crate::in_control::{self, IfAddrs};
use crate::in_pcb::{InpFlags, Pcbinfo, PortRange};
use crate::ip::{IPPROTO_ICMP, IPPROTO_RAW, IPPROTO_TCP, IPPROTO_UDP};
use crate::ip_icmp::{Icmp, IcmpStat, IcmpTunables};
use crate::ip_input::{IpHandler, IpTunables};
use crate::ip_reass::IpReass;
use crate::ip_var::{IpProto, IpStat};
use crate::netinet6::frag6::Frag6;
use crate::netinet6::icmp6::{Icmp6, Icmp6Stat, Icmp6Tunables};
use crate::netinet6::in6::{self, In6IfAddrs};
use crate::netinet6::ip6::IPPROTO_ICMPV6;
use crate::netinet6::ip6_input::Ip6Handler;
use crate::netinet6::ip6_var::{Ip6Stat, Ip6Tunables};
use crate::netinet6::mld6::Mld;
use crate::netinet6::nd6::Nd6Timers;
use crate::netinet6::nd6_nbr::DadQueue;
use crate::netinet6::nd6_rtr::{self, Nd6Rtr};
use crate::netinet6::raw_ip6::{Raw6Pcb, Rip6, Rip6Stat};
use crate::raw_ip::{RawIp, RawPcb, RawTunables};
use crate::route_temporal::TmpRoutes;
use crate::tcp_fsm::TcpState;
use crate::tcp_lro::TcpLro;
use crate::tcp_subr::TcpVnet;
use crate::udp::UdpStat;
use crate::udp_usrreq::{Udp, UdpTunables, Udpcb};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::ops::Deref;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine;
use sys::machine::atomic::{AtomicU32, Ordering};
use sys::net::if_llatbl::LlTable;
use sys::net::iflib::LroFactory;
use sys::net::ifnet::{IfEvent, IfFlags, Ifnet, LinkState};
use sys::net::nd_ifinfo::Nd6Iff;
use sys::net::netisr::{NetisrDispatch, NetisrInfo, NetisrPolicy, NetisrProto};
use sys::net::vnet::Vnet;
use sys::protosw::{Domain, Protosw};
use sys::socket::{
    AF_INET, AF_INET6, IPPROTO_ICMP as SO_ICMP, IPPROTO_TCP as SO_TCP, IPPROTO_UDP as SO_UDP,
    SockType,
};
use sys::socketvar::Socket;
use sys::sysctl::ReadOnly;
use sys::time::Ticks;

/// Which instance, the proof of being in the network epoch, and the time; made at exactly three kinds of entry: a
/// netisr handler, a callout, a socket call.
#[derive(Clone, Copy)]
pub struct NetCx<'a> {
    /// The stack instance; derefs to the [`Vnet`] below it.
    pub vnet: &'a Arc<InetVnet>,
    /// Proof that the caller is inside the network epoch.
    pub epoch: &'a NetEpoch,
    /// The time at which this entry into the stack began.
    pub now: Ticks,
}

impl<'a> NetCx<'a> {
    /// Makes the context of an entry into the stack, now.
    pub fn new(vnet: &'a Arc<InetVnet>, epoch: &'a NetEpoch) -> Self {
        Self {
            vnet,
            epoch,
            now: machine::ticks(),
        }
    }
}

/// Chains of TCP's connection table, unless `net.inet.tcp.tcbhashsize` says otherwise.
const TCBHASHSIZE: usize = 8192;
/// Chains of UDP's table (`UDBHASHSIZE`).
const UDBHASHSIZE: usize = 128;
/// Chains of the raw sockets' table (`INP_PCBHASH_RAW_SIZE`).
const RIPHASHSIZE: usize = 16;

/// State of IPv4 and what stands on it in one stack instance.
pub struct InetVnet {
    /// The instance: interfaces, routes, tunables.
    pub vnet: Arc<Vnet>,
    /// `net.inet.ip`.
    pub ip: Arc<IpTunables>,
    /// `net.inet.icmp`.
    pub icmp: Arc<IcmpTunables>,
    /// `net.inet.udp`.
    pub udp: Arc<UdpTunables>,
    /// `net.inet.raw`.
    pub raw: Arc<RawTunables>,
    /// `net.link.ether.inet`.
    pub arp: Arc<ArpTunables>,
    /// Statistics of IP.
    pub ipstat: IpStat,
    /// Statistics of ICMP.
    pub icmpstat: IcmpStat,
    /// Statistics of UDP.
    pub udpstat: UdpStat,
    /// Statistics of ARP.
    pub arpstat: ArpStat,
    /// Our addresses.
    pub ifaddrs: IfAddrs,
    /// Datagrams being put together.
    pub reass: IpReass,
    /// Rates of ICMP errors and resets.
    pub icmp_limits: crate::ip_icmp::Bandlims,
    /// UDP's control blocks.
    pub udbinfo: Pcbinfo<Udpcb>,
    /// Raw sockets' control blocks.
    pub ripcbinfo: Pcbinfo<RawPcb>,
    /// TCP.
    pub tcp: TcpVnet,
    /// `net.inet6.ip6`.
    pub ip6: Arc<Ip6Tunables>,
    /// `net.inet6.icmp6`.
    pub icmp6: Arc<Icmp6Tunables>,
    /// Statistics of IPv6.
    pub ip6stat: Ip6Stat,
    /// Statistics of ICMPv6.
    pub icmp6stat: Icmp6Stat,
    /// Our IPv6 addresses.
    pub in6_ifaddrs: In6IfAddrs,
    /// IPv6 packets being put together.
    pub frag6: Arc<Frag6>,
    /// Routes that redirects made.
    pub tmproutes: Arc<TmpRoutes>,
    /// Searches for duplicates of our addresses.
    pub dad: DadQueue,
    /// What routers are told of our groups.
    pub mld: Arc<Mld>,
    /// Routers and prefixes of the links.
    pub nd6: Nd6Rtr,
    /// Raw sockets' control blocks, in IPv6.
    pub rip6cbinfo: Pcbinfo<Raw6Pcb>,
    /// Statistics of raw sockets, in IPv6.
    pub rip6stat: Rip6Stat,
    pub(crate) rip6: Rip6,
    icmp6_proto: Icmp6,
    /// Identification of datagrams that may be fragmented.
    pub(crate) ip_id: crate::ip_output::IpIds,
    udp_proto: Udp,
    icmp_proto: Icmp,
    pub(crate) raw_proto: RawIp,
}

impl Deref for InetVnet {
    type Target = Vnet;

    fn deref(&self) -> &Vnet {
        &self.vnet
    }
}

impl InetVnet {
    /// The protocol `proto`, or whoever takes what no protocol takes (`ip_protox`).
    pub(crate) fn protox(&self, proto: u8) -> &dyn IpProto {
        match proto {
            IPPROTO_TCP => &self.tcp,
            IPPROTO_UDP => &self.udp_proto,
            IPPROTO_ICMP => &self.icmp_proto,
            _ => &self.raw_proto,
        }
    }

    /// The protocol behind IPv6's next header `nxt`, if there is one (`ip6_protox`).
    pub(crate) fn protox6(&self, nxt: u8) -> Option<&dyn IpProto> {
        match nxt {
            IPPROTO_TCP => Some(&self.tcp),
            IPPROTO_UDP => Some(&self.udp_proto),
            IPPROTO_ICMPV6 => Some(&self.icmp6_proto),
            _ => None,
        }
    }

    /// The range of anonymous ports for a socket with `flags`.
    pub fn port_range(&self, flags: InpFlags) -> PortRange {
        let ip = &self.ip;
        let (first, last) = if flags.contains(InpFlags::HIGHPORT) {
            (ip.hifirst.get(), ip.hilast.get())
        } else if flags.contains(InpFlags::LOWPORT) {
            (ip.lowfirst.get(), ip.lowlast.get())
        } else {
            (ip.first.get(), ip.last.get())
        };
        let port = |port: u32| port.min(u32::from(u16::MAX)) as u16;
        PortRange {
            first: port(first),
            last: port(last),
            randomized: ip.randomized.get(),
        }
    }

    /// Stops timers and empties tables, so that the instance can be freed; the [`Vnet`] below is destroyed by its owner,
    /// sockets must be closed before.
    pub fn destroy(&self) {
        self.reass.destroy();
        self.frag6.destroy();
        self.tmproutes.destroy();
        self.dad.destroy();
        self.nd6.destroy();
        self.mld.destroy();
        self.tcp.destroy();
    }
}

/// Gives a stack instance the Internet protocols: registers their input with netisr, their sockets with the domain,
/// their variables with sysctl, and hears of interfaces from now on.
pub fn inet_attach(vnet: &Arc<Vnet>) -> Result<Arc<InetVnet>, Errno> {
    let ip = Arc::new(IpTunables::new());
    crate::ip_reass::size_limits(&ip);
    let icmp = Arc::new(IcmpTunables::new());
    let udp = Arc::new(UdpTunables::new());
    let raw = Arc::new(RawTunables::new());
    let arp = Arc::new(ArpTunables::new());
    ip.register(&vnet.sysctl);
    icmp.register(&vnet.sysctl);
    udp.register(&vnet.sysctl);
    raw.register(&vnet.sysctl);
    arp.register(&vnet.sysctl);
    let ip6 = Arc::new(Ip6Tunables::new());
    let icmp6 = Arc::new(Icmp6Tunables::new());
    ip6.register(&vnet.sysctl);
    icmp6.register(&vnet.sysctl);
    let seed = || machine::random_u64() as u32;
    let inet = Arc::new_cyclic(|this| InetVnet {
        vnet: vnet.clone(),
        reass: IpReass::new(seed()),
        ip,
        icmp,
        udp,
        raw,
        arp,
        ipstat: IpStat::new(),
        icmpstat: IcmpStat::new(),
        udpstat: UdpStat::new(),
        arpstat: ArpStat::new(),
        ifaddrs: IfAddrs::new(),
        ip6,
        icmp6,
        ip6stat: Ip6Stat::new(),
        icmp6stat: Icmp6Stat::new(),
        in6_ifaddrs: In6IfAddrs::new(),
        frag6: Frag6::new(seed(), this.clone()),
        tmproutes: TmpRoutes::new(this.clone()),
        dad: DadQueue::new(),
        mld: Mld::new(this.clone()),
        nd6: Nd6Rtr::new(this.clone()),
        rip6cbinfo: Pcbinfo::new("rip6", IPPROTO_RAW, RIPHASHSIZE, RIPHASHSIZE, seed()),
        rip6stat: Rip6Stat::new(),
        rip6: Rip6::new(),
        icmp6_proto: Icmp6,
        icmp_limits: crate::ip_icmp::Bandlims::new(),
        udbinfo: Pcbinfo::new("udp", IPPROTO_UDP, UDBHASHSIZE, UDBHASHSIZE, seed()),
        ripcbinfo: Pcbinfo::new("rip", IPPROTO_RAW, RIPHASHSIZE, RIPHASHSIZE, seed()),
        tcp: TcpVnet::new(
            vnet,
            Pcbinfo::new("tcp", IPPROTO_TCP, TCBHASHSIZE, TCBHASHSIZE / 4, seed()),
            this.clone(),
        ),
        ip_id: crate::ip_output::IpIds::new(),
        udp_proto: Udp,
        icmp_proto: Icmp,
        raw_proto: RawIp {
            sockets: AtomicU32::new(0),
        },
    });
    inet.mld.tun.register(&vnet.sysctl);
    register_figures(&inet);
    vnet.netisr_register(
        NetisrInfo {
            name: "ip",
            proto: NetisrProto::Ip,
            policy: NetisrPolicy::Flow,
            dispatch: NetisrDispatch::Default,
        },
        Arc::new(IpHandler::new(&inet)),
    )?;
    vnet.netisr_register(
        NetisrInfo {
            name: "arp",
            proto: NetisrProto::Arp,
            policy: NetisrPolicy::Source,
            dispatch: NetisrDispatch::Default,
        },
        Arc::new(ArpHandler::new(&inet)),
    )?;
    vnet.netisr_register(
        NetisrInfo {
            name: "ip6",
            proto: NetisrProto::Ip6,
            policy: NetisrPolicy::Flow,
            dispatch: NetisrDispatch::Default,
        },
        Arc::new(Ip6Handler::new(&inet)),
    )?;
    vnet.domain_add(AF_INET, Arc::new(InetDomain(inet.clone())));
    vnet.domain_add(AF_INET6, Arc::new(Inet6Domain(inet.clone())));
    vnet.set_inet(inet.clone() as Arc<dyn Any + Send + Sync>);
    vnet.if_event_register(Arc::new(InetIfEvents(Arc::downgrade(&inet))));
    vnet.set_lro(lro_factory(&inet));
    Ok(inet)
}

/// How receive queues of the instance join segments.
fn lro_factory(inet: &InetVnet) -> LroFactory {
    let ip = inet.ip.clone();
    let tcp = inet.tcp.tun.clone();
    let stat = inet.tcp.lro_stat.clone();
    Box::new(move || {
        let entries = tcp.lro_entries.get() as usize;
        Box::new(TcpLro::new(ip.clone(), stat.clone(), entries))
    })
}

/// Puts the figures that can only be read into the instance's tree.
fn register_figures(inet: &Arc<InetVnet>) {
    let tree = &inet.vnet.sysctl;
    let figure = |name: &str, description: &'static str, read: fn(&InetVnet) -> usize| {
        let inet = Arc::downgrade(inet);
        let read = move || inet.upgrade().map_or(0, |inet| read(&inet)).to_string();
        tree.register(name, Arc::new(ReadOnly::new(description, read)));
    };
    figure(
        "net.inet.ip.curfrags",
        "Current number of IPv4 fragments across all reassembly queues",
        |inet| inet.reass.fragments() as usize,
    );
    figure(
        "net.inet.ip.fragpackets",
        "Current number of IPv4 fragment reassembly queue entries",
        |inet| inet.reass.packets() as usize,
    );
    figure(
        "net.inet.ip.reass_hashsize",
        "Size of IP fragment reassembly hashtable",
        |inet| inet.reass.chains(),
    );
    for (name, description, read) in [
        (
            "net.inet.tcp.lro.lro_queued",
            "Segments that LRO has joined or held",
            (|inet| inet.tcp.lro_stat.lro_queued.fetch() as usize) as fn(&InetVnet) -> usize,
        ),
        (
            "net.inet.tcp.lro.lro_flushed",
            "Packets that LRO has handed to the stack",
            |inet| inet.tcp.lro_stat.lro_flushed.fetch() as usize,
        ),
        (
            "net.inet.tcp.lro.lro_bad_csum",
            "Segments that LRO left alone for their checksum",
            |inet| inet.tcp.lro_stat.lro_bad_csum.fetch() as usize,
        ),
    ] {
        figure(name, description, read);
    }
    let weak = Arc::downgrade(inet);
    let available = move || {
        let inet = weak.upgrade();
        inet.map_or_else(Default::default, |inet| inet.tcp.cc_available())
    };
    tree.register(
        "net.inet.tcp.cc.available",
        Arc::new(ReadOnly::new(
            "List available congestion control algorithms",
            available,
        )),
    );
    for (name, words, value) in [
        (
            "net.inet.tcp.functions_default",
            "Set/get the default TCP functions",
            || "freebsd".to_string(),
        ),
        (
            "net.inet.tcp.tcbhashsize",
            "Size of TCP control-block hashtable",
            || TCBHASHSIZE.to_string(),
        ),
    ] as [(&str, &'static str, fn() -> String); 2]
    {
        tree.register(name, Arc::new(ReadOnly::new(words, value)));
    }
    let weak = Arc::downgrade(inet);
    let functions = move || {
        let count = weak.upgrade().map_or(0, |inet| inet.tcp.tcbinfo.count());
        format!(
            "\n{:<32}{} {:<32} PCB count\n{:<32}{} {:<32} {count}\n",
            "Stack", "D", "Alias", "freebsd", "*", "-"
        )
    };
    tree.register(
        "net.inet.tcp.functions_available",
        Arc::new(ReadOnly::new("list available TCP Function sets", functions)),
    );
    let weak = Arc::downgrade(inet);
    let states = move || {
        let Some(inet) = weak.upgrade() else {
            return String::new();
        };
        let counts = TcpState::ALL.map(|state| inet.tcp.state_count(state).to_string());
        counts.join(" ")
    };
    tree.register(
        "net.inet.tcp.states",
        Arc::new(ReadOnly::new("TCP connection counts by TCP state", states)),
    );
    figure(
        "net.inet.tcp.reass.maxsegments",
        "Global maximum number of TCP Segments in Reassembly Queue",
        |inet| inet.tcp.reass_maxsegments as usize,
    );
    figure(
        "net.inet.tcp.reass.cursegments",
        "Global number of TCP Segments currently in Reassembly Queue",
        |inet| inet.tcp.reass_segments.load(Ordering::Relaxed) as usize,
    );
    figure(
        "net.inet.tcp.sack.globalholes",
        "Global number of TCP SACK holes currently allocated",
        |inet| inet.tcp.sack_holes.load(Ordering::Relaxed) as usize,
    );
    figure(
        "net.inet.tcp.pcbcount",
        "Number of TCP control blocks",
        |inet| inet.tcp.tcbinfo.count(),
    );
    figure(
        "net.inet.udp.pcbcount",
        "Number of UDP control blocks",
        |inet| inet.udbinfo.count(),
    );
    figure(
        "net.inet.raw.pcbcount",
        "Number of raw control blocks",
        |inet| inet.ripcbinfo.count(),
    );
}

/// The Internet protocols of `vnet`, if they were attached.
pub fn inet_of(vnet: &Vnet) -> Option<Arc<InetVnet>> {
    vnet.inet()?.downcast().ok()
}

/// `inetdomain`: which protocol serves which socket.
struct InetDomain(Arc<InetVnet>);

impl Domain for InetDomain {
    fn attach(
        &self,
        so: &Arc<Socket>,
        ty: SockType,
        proto: i32,
    ) -> Result<Arc<dyn Protosw>, Errno> {
        match (ty, proto) {
            (SockType::Stream, 0 | SO_TCP) => crate::tcp_usrreq::tcp_usr_attach(&self.0, so),
            (SockType::Dgram, 0 | SO_UDP) => crate::udp_usrreq::udp_attach(&self.0, so),
            // ICMP over datagram sockets is Linux's.
            (SockType::Raw, 0..=255) => crate::raw_ip::rip_attach(&self.0, so, proto as u8),
            (SockType::Stream | SockType::Dgram, SO_TCP | SO_UDP | SO_ICMP) => {
                Err(Errno::EPROTOTYPE)
            }
            _ => Err(Errno::EPROTONOSUPPORT),
        }
    }
}

/// `inet6domain`: the same protocols for sockets of `AF_INET6`.
struct Inet6Domain(Arc<InetVnet>);

impl Domain for Inet6Domain {
    fn attach(
        &self,
        so: &Arc<Socket>,
        ty: SockType,
        proto: i32,
    ) -> Result<Arc<dyn Protosw>, Errno> {
        match (ty, proto) {
            (SockType::Stream, 0 | SO_TCP) => crate::tcp_usrreq::tcp_usr_attach(&self.0, so),
            (SockType::Dgram, 0 | SO_UDP) => crate::udp_usrreq::udp_attach(&self.0, so),
            (SockType::Raw, 0..=255) => {
                crate::netinet6::raw_ip6::rip6_attach(&self.0, so, proto as u8)
            }
            (SockType::Stream | SockType::Dgram, SO_TCP | SO_UDP) => Err(Errno::EPROTOTYPE),
            _ => Err(Errno::EPROTONOSUPPORT),
        }
    }
}

/// Prepares interfaces for IPv4 and IPv6 as they come, and clears up behind them (`in_domifattach`, `in_ifdetach`).
struct InetIfEvents(Weak<InetVnet>);

impl IfEvent for InetIfEvents {
    fn attached(&self, ifp: &Arc<Ifnet>) {
        let Some(inet) = self.0.upgrade() else { return };
        in6::nd6_ifattach(&inet, ifp);
        if ifp.is_loopback() {
            in_control::loopback_attached(&inet);
            in6::in6_if_up(&inet, ifp);
        } else if ifp.lltable().is_none() {
            let ops = Arc::new(crate::if_ether::ArpTimers::new(&inet));
            ifp.set_lltable(LlTable::new(ifp, ops));
            let ops = Arc::new(Nd6Timers::new(&inet));
            ifp.set_lltable6(LlTable::new(ifp, ops));
        }
    }

    fn flags_changed(&self, ifp: &Arc<Ifnet>, old: IfFlags) {
        let Some(inet) = self.0.upgrade() else { return };
        if (ifp.flags() - old).contains(IfFlags::UP) {
            in_control::in_ifup(&inet, ifp);
            in6::in6_if_up(&inet, ifp);
        } else if (old - ifp.flags()).contains(IfFlags::UP) {
            in_control::in_ifdown(&inet, ifp);
        }
    }

    fn lladdr_changed(&self, ifp: &Arc<Ifnet>) {
        if let Some(inet) = self.0.upgrade() {
            crate::if_ether::arp_iflladdr(&inet, ifp);
        }
    }

    fn link_changed(&self, ifp: &Arc<Ifnet>, state: LinkState) {
        // The link may be another one now: its routers, and what its switches know, are others (RFC 4861 §6.3.7).
        if state == LinkState::Up
            && !ifp.nd6.flags().contains(Nd6Iff::IFDISABLED)
            && let Some(inet) = self.0.upgrade()
        {
            inet.mld.announce(&inet, ifp);
            if ifp.nd6.flags().contains(Nd6Iff::ACCEPT_RTADV) {
                nd6_rtr::nd6_rs_start(&inet, ifp);
            }
        }
    }

    fn departing(&self, ifp: &Arc<Ifnet>) {
        if let Some(inet) = self.0.upgrade() {
            in_control::in_ifdetach(&inet, ifp);
            in6::in6_ifdetach(&inet, ifp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_made_on_a_kernel_stack_with_room_to_spare() {
        // It passes through the stack of its maker, of 32 KiB, on its way into the heap.
        let size = size_of::<InetVnet>();
        assert!(size <= 10 * 1024, "{size} bytes");
    }
}
