//! The IPv6 header, its extension headers, and the numbers that go with them.
//!
//! FreeBSD: sys/netinet/ip6.h, sys/netinet6/in6.h (RFC 8200, RFC 4291)

use core::net::Ipv6Addr;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version number of IPv6.
pub const IPV6_VERSION: u8 = 6;
/// Default hop limit.
pub const IPV6_DEFHLIM: u8 = 64;
/// Smallest MTU of any link (RFC 8200 §5).
pub const IPV6_MMTU: u32 = 1280;
/// Largest payload without the jumbo option.
pub const IPV6_MAXPACKET: usize = 65535;

/// Next header: hop-by-hop options.
pub const IPPROTO_HOPOPTS: u8 = 0;
/// Next header: routing.
pub const IPPROTO_ROUTING: u8 = 43;
/// Next header: fragment.
pub const IPPROTO_FRAGMENT: u8 = 44;
/// Next header: ICMPv6.
pub const IPPROTO_ICMPV6: u8 = 58;
/// Next header: nothing follows.
pub const IPPROTO_NONE: u8 = 59;
/// Next header: destination options.
pub const IPPROTO_DSTOPTS: u8 = 60;

/// Option: one byte of padding.
pub const IP6OPT_PAD1: u8 = 0;
/// Option: padding.
pub const IP6OPT_PADN: u8 = 1;
/// Option: routers have a look at the packet (RFC 2711).
pub const IP6OPT_ROUTER_ALERT: u8 = 5;

/// `ip6f_offlg`: offset, in units of eight bytes, shifted as it stands.
pub const IP6F_OFF_MASK: u16 = 0xfff8;
/// `ip6f_offlg`: more fragments follow.
pub const IP6F_MORE_FRAG: u16 = 0x0001;

/// Bits of the flow label.
pub const IPV6_FLOWLABEL_MASK: u32 = 0x000f_ffff;

/// The IPv6 header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ip6 {
    /// Version, traffic class, flow label.
    pub ip6_flow: U32,
    /// Length of what follows.
    pub ip6_plen: U16,
    /// What follows.
    pub ip6_nxt: u8,
    /// Hop limit.
    pub ip6_hlim: u8,
    /// Source address.
    pub ip6_src: [u8; 16],
    /// Destination address.
    pub ip6_dst: [u8; 16],
}

const _: () = assert!(size_of::<Ip6>() == Ip6::LEN);

impl Ip6 {
    /// Length of the header.
    pub const LEN: usize = 40;

    /// A header with traffic class and flow label; lengths and addresses zero.
    pub fn new(tclass: u8, flowlabel: u32) -> Self {
        let mut ip6 = Self {
            ip6_flow: U32::ZERO,
            ip6_plen: U16::ZERO,
            ip6_nxt: IPPROTO_NONE,
            ip6_hlim: IPV6_DEFHLIM,
            ip6_src: [0; 16],
            ip6_dst: [0; 16],
        };
        ip6.set_flow(tclass, flowlabel);
        ip6
    }

    /// Views the start of `packet` as a header; `None` if it is too short.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<&Ip6> {
        Ip6::ref_from_prefix(packet).ok().map(|(ip6, _)| ip6)
    }

    /// Views the start of `packet` as a header that can be changed.
    #[inline]
    pub fn parse_mut(packet: &mut [u8]) -> Option<&mut Ip6> {
        Ip6::mut_from_prefix(packet).ok().map(|(ip6, _)| ip6)
    }

    /// Version.
    pub fn version(&self) -> u8 {
        (self.ip6_flow.get() >> 28) as u8
    }

    /// Traffic class.
    #[doc(alias = "IPV6_TRAFFIC_CLASS")]
    pub fn tclass(&self) -> u8 {
        (self.ip6_flow.get() >> 20) as u8
    }

    /// Flow label.
    pub fn flowlabel(&self) -> u32 {
        self.ip6_flow.get() & IPV6_FLOWLABEL_MASK
    }

    /// Sets traffic class and flow label.
    pub fn set_flow(&mut self, tclass: u8, flowlabel: u32) {
        let version = u32::from(IPV6_VERSION) << 28;
        let tclass = u32::from(tclass) << 20;
        self.ip6_flow
            .set(version | tclass | flowlabel & IPV6_FLOWLABEL_MASK);
    }

    /// Source address.
    pub fn src(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.ip6_src)
    }

    /// Destination address.
    pub fn dst(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.ip6_dst)
    }

    /// Sets the source address.
    pub fn set_src(&mut self, src: Ipv6Addr) {
        self.ip6_src = src.octets();
    }

    /// Sets the destination address.
    pub fn set_dst(&mut self, dst: Ipv6Addr) {
        self.ip6_dst = dst.octets();
    }

    /// Length of the whole packet.
    pub fn packet_len(&self) -> usize {
        Self::LEN + usize::from(self.ip6_plen.get())
    }
}

/// The fragment header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ip6Frag {
    /// What the fragmentable part begins with.
    pub ip6f_nxt: u8,
    /// Reserved.
    pub ip6f_reserved: u8,
    /// Offset and flag.
    pub ip6f_offlg: U16,
    /// Identification.
    pub ip6f_ident: U32,
}

impl Ip6Frag {
    /// Length of the header.
    pub const LEN: usize = 8;

    /// Views the start of `bytes` as a fragment header.
    pub fn parse(bytes: &[u8]) -> Option<&Ip6Frag> {
        Ip6Frag::ref_from_prefix(bytes).ok().map(|(frag, _)| frag)
    }
}

/// Whether `addr` is in fe80::/10 (`IN6_IS_ADDR_LINKLOCAL`).
#[inline]
pub fn in6_is_linklocal(addr: Ipv6Addr) -> bool {
    addr.segments()[0] & 0xffc0 == 0xfe80
}

/// Scope of a multicast address (RFC 4291 §2.7).
pub fn in6_mc_scope(addr: Ipv6Addr) -> u8 {
    addr.octets()[1] & 0x0f
}

/// Multicast scope: this interface.
pub const IPV6_ADDR_SCOPE_INTFACELOCAL: u8 = 0x01;
/// Scope: this link.
pub const IPV6_ADDR_SCOPE_LINKLOCAL: u8 = 0x02;
/// Scope: this site.
pub const IPV6_ADDR_SCOPE_SITELOCAL: u8 = 0x05;
/// Scope: everywhere.
pub const IPV6_ADDR_SCOPE_GLOBAL: u8 = 0x0e;

/// ff02::1: every node on the link.
pub const IN6ADDR_LINKLOCAL_ALLNODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// ff02::2: every router on the link.
pub const IN6ADDR_LINKLOCAL_ALLROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// The group that `addr`'s owner listens on for solicitations (RFC 4291 §2.7.1).
pub fn in6_solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

/// The 48-bit group of an IPv6 multicast address (`ETHER_MAP_IPV6_MULTICAST`, RFC 2464 §7).
pub fn ether_map_ipv6_multicast(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_and_label_come_back_as_they_were_set() {
        let mut ip6 = Ip6::new(0xab, 0xc_dead);
        assert_eq!(
            (ip6.version(), ip6.tclass(), ip6.flowlabel()),
            (6, 0xab, 0xc_dead)
        );
        ip6.set_flow(1, 0xffff_ffff);
        assert_eq!(
            (ip6.version(), ip6.tclass(), ip6.flowlabel()),
            (6, 1, 0xf_ffff)
        );
    }

    #[test]
    fn solicited_nodes_and_their_ethernet_groups_take_the_end_of_the_address() {
        let addr: Ipv6Addr = "fe80::2aa:ff:fe28:9c5a".parse().unwrap();
        let group = in6_solicited_node(addr);
        assert_eq!(group, "ff02::1:ff28:9c5a".parse::<Ipv6Addr>().unwrap());
        assert_eq!(
            ether_map_ipv6_multicast(group),
            [0x33, 0x33, 0xff, 0x28, 0x9c, 0x5a]
        );
    }
}
