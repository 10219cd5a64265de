//! What control blocks do only for IPv6: the source address of a connection.
//!
//! FreeBSD: sys/netinet6/in6_pcb.c
//! Binding, connecting and looking up is the code of `in_pcb`: one table holds both families.

use crate::in_pcb::InpHdr;
use crate::netinet6::in6_src::{in6_getscope, in6_selectsrc};
use crate::vnet::NetCx;
use alloc::sync::Arc;
use core::net::Ipv6Addr;
use sys::errno::Errno;
use sys::net::ifnet::Ifnet;

/// The interface by which packets to `dst` leave: that of its zone, else by route.
pub fn in6_ifp_for<'e>(cx: &NetCx<'e>, dst: Ipv6Addr) -> Option<&'e Arc<Ifnet>> {
    let zone = in6_getscope(dst);
    if zone.is_some() {
        return cx.vnet.ifnet_byindex(zone, cx.epoch);
    }
    let route = cx.vnet.rib6.fib6_lookup(dst, cx.epoch);
    route.map(|nhop| &nhop.nh_ifp)
}

/// The source address for packets to `faddr`.
pub fn in6_pcbladdr(cx: &NetCx<'_>, hdr: &InpHdr, faddr: Ipv6Addr) -> Result<Ipv6Addr, Errno> {
    let of_group = || {
        let imo = hdr.inp_moptions.as_deref()?;
        cx.vnet.ifnet_byindex(imo.imo_ifindex, cx.epoch)
    };
    let group = faddr.is_multicast().then(of_group).flatten();
    // A packet to ourselves leaves by the loopback, from the address it goes to.
    if let Some(ia) = cx.vnet.in6_ifaddrs.lookup(cx.epoch, faddr) {
        return Ok(ia.ia_addr);
    }
    let ifp = group
        .or_else(|| in6_ifp_for(cx, faddr))
        .ok_or(Errno::EHOSTUNREACH)?;
    let ia = in6_selectsrc(cx, faddr, ifp).ok_or(Errno::EADDRNOTAVAIL)?;
    Ok(ia.ia_addr)
}
