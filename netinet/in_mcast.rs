//! Multicast groups of sockets: each hears those that it has joined.
//!
//! FreeBSD: sys/netinet/in_mcast.c (inp_join_group, inp_leave_group, imo_multi_filter, inp_freemoptions); RFC 1112 §7
//! Not carried over: source filters (RFC 3678); a membership takes every source.

use crate::in_control::{in_joingroup, in_leavegroup};
use crate::in_pcb::{InpFlags, InpHdr, Inpcb};
use crate::ip::{IPPROTO_TCP, in_multicast};
use crate::ip_ctloutput::address;
use crate::ip_var::IpMoptions;
use crate::vnet::InetVnet;
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::net::Ipv4Addr;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::IfIndex;
use sys::net::ifnet::{IfFlags, Ifnet};
use sys::protosw::SockOpt;
use sys::socket::IP_ADD_MEMBERSHIP;

/// Groups one socket can join.
const IP_MAX_MEMBERSHIPS: usize = 4095;

/// A group that a socket has joined on an interface.
#[derive(Clone, Debug)]
pub struct Membership {
    group: Ipv4Addr,
    /// Weak: a socket does not keep an interface.
    ifp: Weak<Ifnet>,
}

impl Membership {
    fn is(&self, group: Ipv4Addr, ifp: &Ifnet) -> bool {
        self.group == group && core::ptr::eq(self.ifp.as_ptr(), ifp)
    }
}

/// Whether a socket hears what came for `group` to interface `rcvif`: only a member does.
#[doc(alias = "imo_multi_filter")]
pub(crate) fn hears_group(
    inet: &InetVnet,
    epoch: &NetEpoch,
    hdr: &InpHdr,
    group: Ipv4Addr,
    rcvif: IfIndex,
) -> bool {
    let Some(imo) = hdr.inp_moptions.as_deref() else {
        return false;
    };
    let rcvif = inet.ifnet_byindex(rcvif, epoch);
    rcvif.is_some_and(|ifp| imo.imo_groups.iter().any(|joined| joined.is(group, ifp)))
}

/// Leaves the groups of a socket that is gone; without its lock, because interfaces are told.
pub(crate) fn inp_freemoptions(inet: &InetVnet, imo: Option<Box<IpMoptions>>) {
    for membership in imo.into_iter().flat_map(|imo| imo.imo_groups) {
        leave(inet, &membership);
    }
}

fn leave(inet: &InetVnet, membership: &Membership) {
    if let Some(ifp) = membership.ifp.upgrade() {
        // Of an interface that was detached the groups are gone already.
        let _ = in_leavegroup(inet, &ifp, membership.group);
    }
}

/// Joins or leaves a group: `struct ip_mreq` or `struct ip_mreqn`.
///
/// `EADDRINUSE` if the socket is a member already, `EADDRNOTAVAIL` if it is none.
#[doc(alias = "inp_setmoptions")]
pub(crate) fn membership<P: Send + Sync + 'static>(
    inp: &Inpcb<P>,
    sopt: &SockOpt<'_>,
) -> Result<(), Errno> {
    let bytes = sopt.bytes();
    let (group, addr) = (address(bytes, 0)?, address(bytes, 4)?);
    if !in_multicast(group) || inp.inp_ip_p == IPPROTO_TCP {
        return Err(Errno::EINVAL);
    }
    let index = bytes
        .get(8..12)
        .and_then(|b| b.try_into().ok())
        .map(|b| IfIndex(i32::from_ne_bytes(b) as u16))
        .filter(|index| index.is_some());
    if sopt.name == IP_ADD_MEMBERSHIP {
        inp_join_group(inp, group, addr, index)
    } else {
        inp_leave_group(inp, group, addr, index)
    }
}

fn inp_join_group<P: Send + Sync + 'static>(
    inp: &Inpcb<P>,
    group: Ipv4Addr,
    addr: Ipv4Addr,
    index: Option<IfIndex>,
) -> Result<(), Errno> {
    let inet = &inp.inp_vnet;
    let ifp = group_interface(inet, group, addr, index)?;
    // The interface first: its lock may sleep, which the socket's may not.
    in_joingroup(inet, &ifp, group)?;
    let joined = Membership {
        group,
        ifp: Arc::downgrade(&ifp),
    };
    let mut guard = inp.write();
    let entered = if guard.inp_flags.contains(InpFlags::FREED) {
        Err(Errno::EINVAL)
    } else {
        let imo = guard.inp_moptions.get_or_insert_with(Box::default);
        if imo.imo_groups.iter().any(|other| other.is(group, &ifp)) {
            Err(Errno::EADDRINUSE)
        } else if imo.imo_groups.len() == IP_MAX_MEMBERSHIPS {
            Err(Errno::ENOMEM)
        } else {
            imo.imo_groups.push(joined.clone());
            Ok(())
        }
    };
    drop(guard);
    if entered.is_err() {
        leave(inet, &joined);
    }
    entered
}

fn inp_leave_group<P: Send + Sync + 'static>(
    inp: &Inpcb<P>,
    group: Ipv4Addr,
    addr: Ipv4Addr,
    index: Option<IfIndex>,
) -> Result<(), Errno> {
    let inet = &inp.inp_vnet;
    // One that names no interface means the first on which the group was joined.
    let ifp = if index.is_some() || addr != Ipv4Addr::UNSPECIFIED {
        Some(group_interface(inet, group, addr, index)?)
    } else {
        None
    };
    let mut guard = inp.write();
    let groups = guard.inp_moptions.as_mut().map(|imo| &mut imo.imo_groups);
    let left = groups.and_then(|groups| {
        let at = groups.iter().position(|joined| match &ifp {
            Some(ifp) => joined.is(group, ifp),
            None => joined.group == group,
        })?;
        Some(groups.remove(at))
    });
    drop(guard);
    leave(inet, &left.ok_or(Errno::EADDRNOTAVAIL)?);
    Ok(())
}

/// The interface a membership is about: named by address or index, else where the route leads.
fn group_interface(
    inet: &Arc<InetVnet>,
    group: Ipv4Addr,
    addr: Ipv4Addr,
    index: Option<IfIndex>,
) -> Result<Arc<Ifnet>, Errno> {
    let epoch = NetEpoch::enter();
    if let Some(index) = index {
        return inet
            .ifnet_byindex(index, &epoch)
            .cloned()
            .ok_or(Errno::ENXIO);
    }
    if addr != Ipv4Addr::UNSPECIFIED {
        return inet
            .ifaddrs
            .lookup(&epoch, addr)
            .map(|ia| ia.ia_ifp.clone())
            .ok_or(Errno::EADDRNOTAVAIL);
    }
    let by_route = inet.rib.fib4_lookup(group, &epoch).map(|nhop| &nhop.nh_ifp);
    let first = || {
        inet.ifaddrs
            .all(&epoch)
            .iter()
            .map(|ia| &ia.ia_ifp)
            .find(|ifp| {
                let flags = ifp.flags();
                flags.contains(IfFlags::MULTICAST) && !flags.contains(IfFlags::LOOPBACK)
            })
    };
    by_route.or_else(first).cloned().ok_or(Errno::EADDRNOTAVAIL)
}
