//! Socket options of level `IPPROTO_IPV6`, and what comes along with a datagram.
//!
//! FreeBSD: sys/netinet6/ip6_output.c (ip6_ctloutput), ip6_input.c (ip6_savecontrol)

use crate::in_pcb::{In6pFlags, InpFlags, InpHdr, InpVflag, Inpcb};
use crate::ip_ctloutput::control_message;
use crate::netinet6::in6::{in6_joingroup, in6_leavegroup};
use crate::netinet6::in6_pcb::in6_ifp_for;
use crate::netinet6::in6_src::in6_clearscope;
use crate::netinet6::ip6::Ip6;
use crate::vnet::NetCx;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::{How, IfIndex, Mbuf, MbufType};
use sys::protosw::{SockOpt, SoptDir};
use sys::socket::*;

/// The flag behind a boolean option.
fn flag_of(name: i32) -> Option<In6pFlags> {
    Some(match name {
        IPV6_V6ONLY => In6pFlags::IPV6_V6ONLY,
        IPV6_RECVPKTINFO => In6pFlags::PKTINFO,
        IPV6_RECVHOPLIMIT => In6pFlags::HOPLIMIT,
        IPV6_RECVTCLASS => In6pFlags::TCLASS,
        IPV6_USE_MIN_MTU => In6pFlags::USE_MIN_MTU,
        _ => return None,
    })
}

/// Gets or sets an option of level `IPPROTO_IPV6`.
pub fn ip6_ctloutput<P: Send + Sync + 'static>(
    inp: &Inpcb<P>,
    sopt: &mut SockOpt<'_>,
) -> Result<(), Errno> {
    if !inp.read().inp_vflag.contains(InpVflag::IPV6PROTO) {
        return Err(Errno::EINVAL);
    }
    match sopt.dir {
        SoptDir::Set => set_option(inp, sopt),
        SoptDir::Get => get_option(inp, sopt),
    }
}

fn set_option<P: Send + Sync + 'static>(inp: &Inpcb<P>, sopt: &SockOpt<'_>) -> Result<(), Errno> {
    // -1 means the default.
    let limit = |value: i32, default: u8| match value {
        -1 => Ok(default),
        value => u8::try_from(value).map_err(|_| Errno::EINVAL),
    };
    let mut guard = inp.write();
    let hdr = &mut guard.hdr;
    if let Some(flag) = flag_of(sopt.name) {
        let on = sopt.int()? != 0;
        if flag == In6pFlags::IPV6_V6ONLY {
            // Once it has an address it has its place in the tables.
            if hdr.lport() != 0 || !hdr.laddr().is_unspecified() {
                return Err(Errno::EINVAL);
            }
            hdr.inp_vflag.set(InpVflag::IPV4, !on);
        }
        hdr.in6p_flags.set(flag, on);
        return Ok(());
    }
    match sopt.name {
        IPV6_UNICAST_HOPS => {
            let default = inp.inp_vnet.ip6.hlim.get() as u8;
            hdr.in6p_hops = limit(sopt.int()?, default)?;
            hdr.in6p_flags.set(In6pFlags::HOPS_SET, sopt.int()? != -1);
        }
        IPV6_TCLASS => hdr.in6p_tclass = limit(sopt.int()?, 0)?,
        IPV6_DONTFRAG => hdr.inp_flags.set(InpFlags::DONTFRAG, sopt.int()? != 0),
        IPV6_BINDANY => hdr.inp_flags.set(InpFlags::BINDANY, sopt.int()? != 0),
        IPV6_MULTICAST_HOPS => {
            let hops = limit(sopt.int()?, 1)?;
            hdr.inp_moptions.get_or_insert_with(Box::default).imo_ttl = hops;
        }
        IPV6_MULTICAST_LOOP => {
            let on = sopt.int()? != 0;
            hdr.inp_moptions.get_or_insert_with(Box::default).imo_loop = on;
        }
        IPV6_MULTICAST_IF => {
            let index = IfIndex(u16::try_from(sopt.int()?).map_err(|_| Errno::ENXIO)?);
            let known = inp
                .inp_vnet
                .ifnet_byindex(index, &NetEpoch::enter())
                .is_some();
            if index.is_some() && !known {
                return Err(Errno::ENXIO);
            }
            hdr.inp_moptions
                .get_or_insert_with(Box::default)
                .imo_ifindex = index;
        }
        IPV6_JOIN_GROUP | IPV6_LEAVE_GROUP => {
            drop(guard);
            return membership(inp, sopt);
        }
        _ => return Err(Errno::ENOPROTOOPT),
    }
    Ok(())
}

fn get_option<P: Send + Sync + 'static>(
    inp: &Inpcb<P>,
    sopt: &mut SockOpt<'_>,
) -> Result<(), Errno> {
    let guard = inp.read();
    let hdr = &guard.hdr;
    if let Some(flag) = flag_of(sopt.name) {
        return sopt.answer_int(i32::from(hdr.in6p_flags.contains(flag)));
    }
    let imo = hdr.inp_moptions.as_deref().cloned().unwrap_or_default();
    let value = match sopt.name {
        IPV6_UNICAST_HOPS => i32::from(hdr.in6p_hops),
        IPV6_TCLASS => i32::from(hdr.in6p_tclass),
        IPV6_DONTFRAG => i32::from(hdr.inp_flags.contains(InpFlags::DONTFRAG)),
        IPV6_BINDANY => i32::from(hdr.inp_flags.contains(InpFlags::BINDANY)),
        IPV6_MULTICAST_HOPS => i32::from(imo.imo_ttl),
        IPV6_MULTICAST_LOOP => i32::from(imo.imo_loop),
        IPV6_MULTICAST_IF => i32::from(imo.imo_ifindex.0),
        _ => return Err(Errno::ENOPROTOOPT),
    };
    sopt.answer_int(value)
}

/// Joins or leaves a group: `struct ipv6_mreq`.
///
/// Differs from FreeBSD: memberships count per interface, not per socket, as those of IPv4 here.
fn membership<P: Send + Sync + 'static>(inp: &Inpcb<P>, sopt: &SockOpt<'_>) -> Result<(), Errno> {
    let bytes = sopt.bytes();
    let group: &[u8; 16] = bytes.first_chunk().ok_or(Errno::EINVAL)?;
    let index: &[u8; 4] = bytes
        .get(16..)
        .and_then(|b| b.first_chunk())
        .ok_or(Errno::EINVAL)?;
    let (group, index) = (Ipv6Addr::from(*group), u32::from_ne_bytes(*index));
    if !group.is_multicast() {
        return Err(Errno::EINVAL);
    }
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(&inp.inp_vnet, &epoch);
    let ifp = if index == 0 {
        in6_ifp_for(&cx, group).ok_or(Errno::EADDRNOTAVAIL)?.clone()
    } else {
        let index = IfIndex(u16::try_from(index).map_err(|_| Errno::ENXIO)?);
        cx.vnet
            .ifnet_byindex(index, &epoch)
            .ok_or(Errno::ENXIO)?
            .clone()
    };
    drop(epoch);
    if sopt.name == IPV6_JOIN_GROUP {
        in6_joingroup(&inp.inp_vnet, &ifp, group)
    } else {
        in6_leavegroup(&inp.inp_vnet, &ifp, group)
    }
}

/// The control messages that a socket asked for, about packet `m`; appended to `out`.
pub fn ip6_savecontrol(hdr: &InpHdr, ip6: &Ip6, m: &Mbuf, out: &mut Vec<u8>) {
    if hdr.in6p_flags.contains(In6pFlags::PKTINFO) {
        let mut info = in6_clearscope(ip6.dst()).octets().to_vec();
        info.extend_from_slice(&u32::from(m.pkthdr().rcvif.0).to_ne_bytes());
        control_message(out, IPPROTO_IPV6, IPV6_PKTINFO, &info);
    }
    if hdr.in6p_flags.contains(In6pFlags::HOPLIMIT) {
        let limit = i32::from(ip6.ip6_hlim).to_ne_bytes();
        control_message(out, IPPROTO_IPV6, IPV6_HOPLIMIT, &limit);
    }
    if hdr.in6p_flags.contains(In6pFlags::TCLASS) {
        let tclass = i32::from(ip6.tclass()).to_ne_bytes();
        control_message(out, IPPROTO_IPV6, IPV6_TCLASS, &tclass);
    }
}

/// Control messages as an mbuf.
pub(crate) fn control_mbuf(out: &[u8]) -> Option<Mbuf> {
    let mut control = Mbuf::getm2(How::NoWait, out.len(), false)?;
    control.set_mtype(MbufType::Control);
    control.append(out).then_some(control)
}
