//! Which source address a packet gets, and how addresses with a scope are written inside the stack.
//!
//! FreeBSD: sys/netinet6/in6_src.c, scope6.c (RFC 6724, RFC 4007)
//!
//! A link-local address means nothing without its link. Inside the stack the link's number stands in the address itself, in
//! the second 16 bits, which are zero on the wire; so one number is enough for tables and comparisons.

use crate::netinet6::ip6::{
    IPV6_ADDR_SCOPE_GLOBAL, IPV6_ADDR_SCOPE_INTFACELOCAL, IPV6_ADDR_SCOPE_LINKLOCAL,
    in6_is_linklocal, in6_mc_scope,
};
use crate::vnet::NetCx;
use alloc::sync::Arc;
use core::net::Ipv6Addr;
use sys::errno::Errno;
use sys::mbuf::IfIndex;
use sys::net::ifnet::{Ifnet, In6Ifaddr, In6Iff};
use sys::socket::{SockAddr, SockAddrIn6};

/// Whether the address needs a zone: link-local, or a group of the link or the interface.
#[inline]
pub fn has_zone(addr: Ipv6Addr) -> bool {
    in6_is_linklocal(addr)
        || addr.is_multicast()
            && matches!(
                in6_mc_scope(addr),
                IPV6_ADDR_SCOPE_LINKLOCAL | IPV6_ADDR_SCOPE_INTFACELOCAL
            )
}

/// Writes the zone of `ifp` into an address that needs one.
#[inline]
pub fn in6_setscope(addr: Ipv6Addr, ifp: &Ifnet) -> Ipv6Addr {
    // The loopback address belongs to every zone of the loopback, and needs none.
    if has_zone(addr) {
        with_zone(addr, ifp.if_index.0)
    } else {
        addr
    }
}

fn with_zone(addr: Ipv6Addr, zone: u16) -> Ipv6Addr {
    let mut segments = addr.segments();
    segments[1] = zone;
    Ipv6Addr::from(segments)
}

/// The address as it stands on the wire.
#[inline]
pub fn in6_clearscope(addr: Ipv6Addr) -> Ipv6Addr {
    if has_zone(addr) {
        with_zone(addr, 0)
    } else {
        addr
    }
}

/// The interface that an address inside the stack names (`in6_getscope`).
pub fn in6_getscope(addr: Ipv6Addr) -> IfIndex {
    if has_zone(addr) {
        IfIndex(addr.segments()[1])
    } else {
        IfIndex::NONE
    }
}

/// A program's address, with the zone it names: `ENXIO` if there is no such interface.
#[doc(alias = "sa6_embedscope")]
pub fn in6_embedscope(cx: &NetCx<'_>, addr: Ipv6Addr, scope_id: u32) -> Result<Ipv6Addr, Errno> {
    if !has_zone(addr) || scope_id == 0 {
        return Ok(addr);
    }
    let index = IfIndex(u16::try_from(scope_id).map_err(|_| Errno::ENXIO)?);
    let ifp = cx.vnet.ifnet_byindex(index, cx.epoch).ok_or(Errno::ENXIO)?;
    Ok(in6_setscope(addr, ifp))
}

/// An address of the stack as programs see it (`sa6_recoverscope`).
pub fn in6_sockaddr(addr: Ipv6Addr, port: u16) -> SockAddr {
    SockAddr::In6(SockAddrIn6 {
        addr: in6_clearscope(addr),
        port,
        flowinfo: 0,
        scope_id: u32::from(in6_getscope(addr).0),
    })
}

/// How far an address reaches (`in6_addrscope`).
pub fn in6_addrscope(addr: Ipv6Addr) -> u8 {
    if addr.is_multicast() {
        in6_mc_scope(addr)
    } else if addr == Ipv6Addr::LOCALHOST {
        IPV6_ADDR_SCOPE_INTFACELOCAL
    } else if in6_is_linklocal(addr) {
        IPV6_ADDR_SCOPE_LINKLOCAL
    } else {
        IPV6_ADDR_SCOPE_GLOBAL
    }
}

/// Policy of prefixes (RFC 6724 §2.1): label by prefix, longest first.
fn label(addr: Ipv6Addr) -> u8 {
    let segments = addr.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => 0,
        [0, 0, 0, 0, 0, 0xffff, _, _] => 4,
        [0x2001, 0, ..] => 5,
        [0x2002, ..] => 2,
        [0x3ffe, ..] => 12,
        [first, ..] if first & 0xfe00 == 0xfc00 => 13,
        [first, ..] if first & 0xffc0 == 0xfec0 => 11,
        [0, 0, 0, 0, 0, 0, _, _] => 3,
        _ => 1,
    }
}

/// The best source for packets to `dst` out of `ifp` (RFC 6724 §5).
pub fn in6_selectsrc<'e>(
    cx: &NetCx<'e>,
    dst: Ipv6Addr,
    ifp: &Arc<Ifnet>,
) -> Option<&'e Arc<In6Ifaddr>> {
    let scope = in6_addrscope(dst);
    let use_deprecated = cx.vnet.ip6.use_deprecated.get();
    let candidates = cx.vnet.in6_ifaddrs.all(cx.epoch).iter().filter(|ia| {
        let flags = ia.flags();
        let zone = in6_getscope(ia.ia_addr);
        !flags.intersects(In6Iff::NOTREADY | In6Iff::ANYCAST | In6Iff::DETACHED)
            && (use_deprecated || !flags.contains(In6Iff::DEPRECATED))
            // An address of another zone means nothing there.
            && (!has_zone(ia.ia_addr) || zone == ifp.if_index)
            && (ia.ia_addr != Ipv6Addr::LOCALHOST || ifp.is_loopback())
    });
    candidates.reduce(|best, new| {
        if better(dst, scope, ifp, new, best) {
            new
        } else {
            best
        }
    })
}

/// Whether `new` is a better source for `dst` than `best`: the rules of RFC 6724 §5 in their order.
fn better(dst: Ipv6Addr, scope: u8, ifp: &Arc<Ifnet>, new: &In6Ifaddr, best: &In6Ifaddr) -> bool {
    // Rule 1: the destination itself.
    if (new.ia_addr == dst) != (best.ia_addr == dst) {
        return new.ia_addr == dst;
    }
    // Rule 2: an appropriate scope.
    let (new_scope, best_scope) = (in6_addrscope(new.ia_addr), in6_addrscope(best.ia_addr));
    if new_scope != best_scope {
        return if best_scope < new_scope {
            best_scope < scope
        } else {
            new_scope >= scope
        };
    }
    // Rule 3: not deprecated. FreeBSD asks for PREFER_SOURCE as a rule of its own.
    for flag in [In6Iff::DEPRECATED, In6Iff::PREFER_SOURCE] {
        let (n, b) = (new.flags().contains(flag), best.flags().contains(flag));
        if n != b {
            return n == (flag == In6Iff::PREFER_SOURCE);
        }
    }
    // Rule 5: of the outgoing interface.
    let (n, b) = (
        Arc::ptr_eq(&new.ia_ifp, ifp),
        Arc::ptr_eq(&best.ia_ifp, ifp),
    );
    if n != b {
        return n;
    }
    // Rule 6: the same label.
    let (n, b) = (
        label(new.ia_addr) == label(dst),
        label(best.ia_addr) == label(dst),
    );
    if n != b {
        return n;
    }
    // Rule 8: the longest common prefix.
    let common = |addr: Ipv6Addr| (addr.to_bits() ^ dst.to_bits()).leading_zeros();
    common(new.ia_addr) > common(best.ia_addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_go_in_and_out_of_link_local_addresses_alone() {
        let local: Ipv6Addr = "fe80::1".parse().unwrap();
        let inside = with_zone(local, 7);
        assert_eq!(inside, "fe80:7::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(in6_getscope(inside), IfIndex(7));
        assert_eq!(in6_clearscope(inside), local);
        let global: Ipv6Addr = "2001:db8:7::1".parse().unwrap();
        assert_eq!(in6_clearscope(global), global);
        assert_eq!(in6_getscope(global), IfIndex::NONE);
    }

    #[test]
    fn policies_have_the_labels_of_rfc_6724() {
        let label = |text: &str| label(text.parse().unwrap());
        let found = [
            "::1",
            "::ffff:1.2.3.4",
            "2002::1",
            "2001::1",
            "fd00::1",
            "2001:db8::1",
        ]
        .map(label);
        assert_eq!(found, [0, 4, 2, 5, 13, 1]);
    }
}
