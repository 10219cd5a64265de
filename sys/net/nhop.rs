//! The next hop: all that output needs to know about a destination.
//!
//! FreeBSD: sys/net/route/nhop.c, nhop.h

use alloc::sync::Arc;
use core::net::Ipv4Addr;

use crate::net::ifnet::Ifnet;
use crate::net::route::{InAddr, RtFlags};

/// A next hop; immutable once made.
pub struct Nexthop<A: InAddr = Ipv4Addr> {
    /// The interface to send on.
    pub nh_ifp: Arc<Ifnet>,
    /// The gateway; none: the destination is on the link.
    pub gw: Option<A>,
    /// Path MTU towards it.
    pub nh_mtu: u32,
    /// RTF_* of the route.
    pub nh_flags: RtFlags,
    /// The address whose network this is: the preferred source.
    pub nh_ifa: Option<Arc<A::Ifaddr>>,
}

impl<A: InAddr> Nexthop<A> {
    /// The address to resolve on the link for `dst`.
    pub fn link_dst(&self, dst: A) -> A {
        self.gw.unwrap_or(dst)
    }
    /// A copy to make another one of.
    pub(crate) fn copy(&self) -> Self {
        Nexthop {
            nh_ifp: self.nh_ifp.clone(),
            gw: self.gw,
            nh_mtu: self.nh_mtu,
            nh_flags: self.nh_flags,
            nh_ifa: self.nh_ifa.clone(),
        }
    }

    /// MTU towards it: its own, and never more than the interface's now.
    #[inline]
    pub fn mtu(&self) -> u32 {
        let of_interface = A::link_mtu(&self.nh_ifp);
        match self.nh_mtu {
            0 => of_interface,
            mtu => mtu.min(of_interface),
        }
    }
}

impl Nexthop {
    /// The preferred source address.
    pub fn src(&self) -> Option<Ipv4Addr> {
        self.nh_ifa.as_ref().map(|ia| ia.ia_addr)
    }
}
