//! What the parts of IPv4 share: statistics, arguments of `ip_output`, the face of a protocol above IP.
//!
//! FreeBSD: sys/netinet/ip_var.h, sys/sys/protosw.h (pr_input, pr_ctlinput)

use crate::in_mcast::Membership;
use crate::ip::MAX_IPOPTLEN;
use crate::netinet6::in6_src::in6_clearscope;
use crate::vnet::NetCx;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::net::{IpAddr, Ipv4Addr};
use sys::counters;
use sys::machine::in_cksum::{in_pseudo, in6_cksum_pseudo};
use sys::mbuf::{IfIndex, Mbuf};

counters! {
    /// What IP has seen (`netstat -s -p ip`).
    pub struct IpStat {
        ips_total: "total packets received",
        ips_badsum: "bad header checksums",
        ips_toosmall: "with size smaller than minimum",
        ips_tooshort: "with data size < data length",
        ips_toolong: "with ip length > max ip packet size",
        ips_badhlen: "with header length < data size",
        ips_badlen: "with data length < header length",
        ips_badoptions: "with bad options",
        ips_badvers: "with incorrect version number",
        ips_fragments: "fragments received",
        ips_fragdropped: "fragments dropped (dup or out of space)",
        ips_fragtimeout: "fragments dropped after timeout",
        ips_reassembled: "packets reassembled ok",
        ips_delivered: "packets for this host",
        ips_noproto: "packets for unknown/unsupported protocol",
        ips_forward: "packets forwarded",
        ips_fastforward: "packets fast forwarded",
        ips_cantforward: "packets not forwardable",
        ips_notmember: "packets received for unknown multicast group",
        ips_redirectsent: "redirects sent",
        ips_localout: "packets sent from this host",
        ips_rawout: "packets sent with fabricated ip header",
        ips_odropped: "output packets dropped due to no bufs, etc.",
        ips_noroute: "output packets discarded due to no route",
        ips_fragmented: "output datagrams fragmented",
        ips_ofragments: "fragments created",
        ips_cantfrag: "datagrams that can't be fragmented",
        ips_nogif: "tunneling packets that can't find gif",
        ips_badaddr: "datagrams with bad address in header",
        ips_swcsum_in: "checksums computed in software on input",
        ips_swcsum_out: "checksums computed in software on output",
        ips_filtered: "packets dropped by a packet filter",
        ips_rawfull: "packets dropped due to full raw socket buffers",
        ips_nointerface: "packets whose interface has gone",
    }
}

bitflags! {
    /// How `ip_output` treats a packet.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IpOutFlags: u32 {
        /// Most of the IP header exists: the packet is being forwarded.
        const FORWARDING = 0x1;
        /// The whole IP header exists: from a raw socket with `IP_HDRINCL`.
        const RAWOUTPUT = 0x2;
        /// Send to 255.255.255.255 although the destination names a subnet's broadcast address.
        const SENDONES = 0x4;
        /// Out of `IpOutArgs::ifp`, whatever the routes say.
        const SENDTOIF = 0x8;
        /// Only to directly attached networks (`SO_DONTROUTE`).
        const ROUTETOIF = 0x10;
        /// Broadcast is allowed (`SO_BROADCAST`).
        const ALLOWBROADCAST = 0x20;
        /// The source address stays as it is, even 0.0.0.0 (a DHCP client has no other).
        const KEEPSRC = 0x40;
    }
}

/// Options of the IP header as they go on the wire, padded to a multiple of four.
#[derive(Clone, Debug)]
pub struct IpOptions {
    /// First hop of a source route, `None` without one.
    pub first_hop: Option<Ipv4Addr>,
    len: u8,
    bytes: [u8; MAX_IPOPTLEN],
}

impl IpOptions {
    /// Takes options as they stand on the wire; `None` if they are too long. Pads with end-of-list.
    pub fn new(options: &[u8]) -> Option<Self> {
        let len = options.len().checked_next_multiple_of(4)?;
        let mut bytes = [0; MAX_IPOPTLEN];
        bytes
            .get_mut(..len)?
            .get_mut(..options.len())?
            .copy_from_slice(options);
        Some(Self {
            first_hop: None,
            len: len as u8,
            bytes,
        })
    }

    /// No options.
    pub fn none() -> Self {
        Self {
            first_hop: None,
            len: 0,
            bytes: [0; MAX_IPOPTLEN],
        }
    }

    /// The bytes, a multiple of four.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What multicast datagrams of a socket ask for (`struct ip_moptions`).
#[derive(Clone, Debug)]
pub struct IpMoptions {
    /// Interface to send from, none: by route.
    pub imo_ifindex: IfIndex,
    /// Time to live.
    pub imo_ttl: u8,
    /// Whether members on this host hear it too.
    pub imo_loop: bool,
    /// The groups that the socket hears.
    pub imo_groups: Vec<Membership>,
}

impl Default for IpMoptions {
    fn default() -> Self {
        Self {
            imo_ifindex: IfIndex::NONE,
            imo_ttl: 1,
            imo_loop: true,
            imo_groups: Vec::new(),
        }
    }
}

/// What comes with a packet for `ip_output`; the default asks for nothing special.
#[derive(Clone, Copy, Default)]
pub struct IpOutArgs<'a> {
    /// Options to insert behind the header.
    pub options: Option<&'a IpOptions>,
    /// Where the last route to the same place is remembered.
    pub ro: Option<&'a crate::in_pcb::Route>,
    /// Treatment.
    pub flags: IpOutFlags,
    /// Multicast options of the socket.
    pub imo: Option<&'a IpMoptions>,
    /// Interface for `SENDTOIF`.
    pub ifindex: IfIndex,
}

/// A packet of ours that an ICMP error of either version quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a> {
    /// Its source, which is ours.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Length of the whole packet.
    pub len: u32,
    /// The beginning of what IP carried: eight bytes at least.
    pub transport: &'a [u8],
}

/// Sums the pseudo header of a transport protocol: folded, not complemented.
#[inline]
pub fn pseudo_sum(src: IpAddr, dst: IpAddr, proto: u8, len: u32) -> u16 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => in_pseudo(src, dst, u32::from(proto) + len),
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            in6_cksum_pseudo(&in6_clearscope(src), &in6_clearscope(dst), len, proto)
        }
        // Both ends are of one family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    }
}

/// A protocol above IP (`ip_protox[proto]`).
pub trait IpProto: Send + Sync {
    /// Takes a packet for this host. `m` begins with the IP header of `hlen` bytes, contiguous; `ip_len` has been
    /// checked and the packet is exactly that long.
    fn input(&self, cx: &NetCx<'_>, m: Mbuf, hlen: usize);

    /// Hears of an error about a packet we sent.
    fn ctlinput(&self, cx: &NetCx<'_>, cmd: PrcCmd, quoted: &Quoted<'_>) {
        let _ = (cx, cmd, quoted);
    }
}

/// What went wrong with a packet we sent (`PRC_*`), from an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrcCmd {
    /// Packet needs fragmentation but says "don't": the next hop's MTU, 0 if the router did not say.
    Msgsize(u32),
    /// Network unreachable.
    UnreachNet,
    /// Host unreachable.
    UnreachHost,
    /// Protocol unknown to the other end.
    UnreachProtocol,
    /// Port closed at the other end.
    UnreachPort,
    /// Source route failed.
    UnreachSrcfail,
    /// Forbidden by an administrator.
    UnreachAdminProhib,
    /// Time to live reached zero on the way.
    TimxceedIntrans,
    /// Reassembly timed out at the other end.
    TimxceedReass,
    /// A header field is wrong.
    Paramprob,
    /// Route changed by a router.
    RedirectHost,
}

impl PrcCmd {
    /// The error for the socket (`inetctlerrmap`), if there is one.
    pub fn errno(self) -> Option<sys::errno::Errno> {
        use sys::errno::Errno;
        match self {
            PrcCmd::Msgsize(_) => Some(Errno::EMSGSIZE),
            PrcCmd::UnreachNet
            | PrcCmd::UnreachHost
            | PrcCmd::UnreachSrcfail
            | PrcCmd::TimxceedIntrans => Some(Errno::EHOSTUNREACH),
            PrcCmd::UnreachProtocol | PrcCmd::UnreachPort | PrcCmd::UnreachAdminProhib => {
                Some(Errno::ECONNREFUSED)
            }
            PrcCmd::TimxceedReass | PrcCmd::RedirectHost => None,
            PrcCmd::Paramprob => Some(Errno::ENOPROTOOPT),
        }
    }
}
