//! The next hop: all that output needs to know about a destination.
//!
//! FreeBSD: sys/net/route/nhop.c, nhop.h

use alloc::sync::Arc;
use core::net::Ipv4Addr;

use crate::net::ifnet::{Ifaddr, Ifnet};
use crate::net::route::RtFlags;

/// A next hop; immutable once made.
pub struct Nexthop {
    /// The interface to send on.
    pub nh_ifp: Arc<Ifnet>,
    /// The gateway; none: the destination is on the link.
    pub gw: Option<Ipv4Addr>,
    /// Path MTU towards it.
    pub nh_mtu: u32,
    /// RTF_* of the route.
    pub nh_flags: RtFlags,
    /// The address whose network this is: the preferred source.
    pub nh_ifa: Option<Arc<Ifaddr>>,
}

impl Nexthop {
    /// The address to resolve on the link for `dst`.
    pub fn link_dst(&self, dst: Ipv4Addr) -> Ipv4Addr {
        self.gw.unwrap_or(dst)
    }
    /// A copy to make another one of.
    pub(crate) fn copy(&self) -> Nexthop {
        Nexthop {
            nh_ifp: self.nh_ifp.clone(),
            gw: self.gw,
            nh_mtu: self.nh_mtu,
            nh_flags: self.nh_flags,
            nh_ifa: self.nh_ifa.clone(),
        }
    }

    /// The preferred source address.
    pub fn src(&self) -> Option<Ipv4Addr> {
        self.nh_ifa.as_ref().map(|ia| ia.ia_addr)
    }
}
