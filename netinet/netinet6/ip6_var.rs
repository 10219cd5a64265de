//! What the parts of IPv6 share: settings, statistics, arguments of `ip6_output`.
//!
//! FreeBSD: sys/netinet6/ip6_var.h, in6_proto.c (the variables)

use crate::in_pcb::Route;
use crate::ip_var::IpMoptions;
use core::net::Ipv6Addr;
use sys::mbuf::IfIndex;
use sys::{counters, tunables};

tunables! {
    /// `net.inet6.ip6`.
    pub struct Ip6Tunables {
        hlim: u32 = 64, "net.inet6.ip6.hlim", "Default hop limit to use for outgoing IPv6 packets" (1..=255);
        hdrnestlimit: u32 = 15, "net.inet6.ip6.hdrnestlimit", "Default maximum number of IPv6 extension headers permitted on incoming IPv6 packets, 0 for no artificial limit";
        maxfragpackets: u32 = 2048, "net.inet6.ip6.maxfragpackets", "Default maximum number of outstanding fragmented IPv6 packets";
        maxfrags: u32 = 2048, "net.inet6.ip6.maxfrags", "Maximum allowed number of outstanding IPv6 packet fragments";
        maxfragsperpacket: u32 = 64, "net.inet6.ip6.maxfragsperpacket", "Maximum allowed number of fragments per packet";
        fraglifetime: u32 = 60, "net.inet6.ip6.fraglifetime", "Fragment lifetime, in seconds" (1..=255);
        auto_flowlabel: bool = true, "net.inet6.ip6.auto_flowlabel", "Provide an IPv6 flowlabel in outbound packets";
        v6only: bool = true, "net.inet6.ip6.v6only", "Restrict AF_INET6 sockets to IPv6 addresses only";
        connect_in6addr_wild: bool = true, "net.inet6.ip6.connect_in6addr_wild", "Allow connecting to the unspecified address for connect(2)";
        dad_count: u32 = 1, "net.inet6.ip6.dad_count", "Number of ICMPv6 NS messages sent during duplicate address detection" (0..=100);
        auto_linklocal: bool = true, "net.inet6.ip6.auto_linklocal", "Default value of per-interface flag for automatically adding an IPv6 link-local address to interfaces when attached";
        accept_rtadv: bool = false, "net.inet6.ip6.accept_rtadv", "Default value of per-interface flag for accepting ICMPv6 RA messages";
        no_radr: bool = false, "net.inet6.ip6.no_radr", "Default value of per-interface flag to control whether routers sending ICMPv6 RA messages on that interface are added into the default router list";
        use_deprecated: bool = true, "net.inet6.ip6.use_deprecated", "Allow the use of addresses whose preferred lifetimes have expired";
        source_address_validation: bool = true, "net.inet6.ip6.source_address_validation", "Drop incoming packets with source address that is a local address";
    }
}

counters! {
    /// What IPv6 has seen (`netstat -s -p ip6`).
    pub struct Ip6Stat {
        ip6s_total: "total packets received",
        ip6s_toosmall: "with size smaller than minimum",
        ip6s_tooshort: "with data size < data length",
        ip6s_badoptions: "with bad options",
        ip6s_badvers: "with incorrect version number",
        ip6s_fragments: "fragments received",
        ip6s_fragdropped: "fragments dropped (dup or out of space)",
        ip6s_fragtimeout: "fragments dropped after timeout",
        ip6s_fragoverflow: "fragments that exceeded limit",
        ip6s_atomicfrags: "atomic fragments",
        ip6s_reassembled: "packets reassembled ok",
        ip6s_delivered: "packets for this host",
        ip6s_forward: "packets forwarded",
        ip6s_cantforward: "packets not forwardable",
        ip6s_redirectsent: "redirects sent",
        ip6s_localout: "packets sent from this host",
        ip6s_rawout: "packets sent with fabricated ip header",
        ip6s_odropped: "output packets dropped due to no bufs, etc.",
        ip6s_noroute: "output packets discarded due to no route",
        ip6s_fragmented: "output datagrams fragmented",
        ip6s_ofragments: "fragments created",
        ip6s_cantfrag: "datagrams that can't be fragmented",
        ip6s_badscope: "packets that violated scope rules",
        ip6s_notmember: "multicast packets which we don't join",
        ip6s_toomanyhdr: "packets with too many headers",
        ip6s_nogif: "tunneling packets that can't find gif",
        ip6s_swcsum_in: "checksums computed in software on input",
        ip6s_swcsum_out: "checksums computed in software on output",
        ip6s_filtered: "packets dropped by a packet filter",
        ip6s_noproto: "packets for unknown/unsupported protocol",
        ip6s_nointerface: "packets whose interface has gone",
        ip6s_ifdisabled: "packets on an interface that speaks no IPv6",
        ip6s_notready: "packets for an address that is not usable yet",
    }
}

/// What comes with a packet for `ip6_output`; the default asks for nothing special.
#[derive(Clone, Copy, Default)]
pub struct Ip6OutArgs<'a> {
    /// Where the last route to the same place is remembered.
    pub ro: Option<&'a Route<Ipv6Addr>>,
    /// Multicast options of the socket.
    pub imo: Option<&'a IpMoptions>,
    /// Send out of this interface, whatever the routes say.
    pub ifindex: IfIndex,
    /// The packet may not be fragmented: `EMSGSIZE` instead (`IPV6_DONTFRAG`).
    pub dontfrag: bool,
    /// Fragments of 1280 bytes at most (`IPV6_USE_MIN_MTU`).
    pub use_min_mtu: bool,
    /// The source stays as it is, even unspecified (duplicate address detection).
    pub unspecsrc: bool,
    /// The hop limit is the default one, for which the router of the link may have another.
    pub select_hlim: bool,
    /// The packet is being forwarded.
    pub forwarding: bool,
}
