//! Socket options of level `IPPROTO_IP`, and what comes along with a datagram.
//!
//! FreeBSD: sys/netinet/ip_output.c (ip_ctloutput), ip_input.c (ip_savecontrol)

use crate::in_mcast::membership;
use crate::in_pcb::{InpFlags, InpHdr, Inpcb};
use crate::ip::Ip;
use crate::ip_var::{IpMoptions, IpOptions};
use crate::netinet6::ip6::Ip6;
use crate::netinet6::ip6_ctloutput::{control_mbuf, ip6_ctloutput, ip6_savecontrol};
use crate::vnet::NetCx;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine;
use sys::mbuf::{HashType, IfIndex, Mbuf};
use sys::net::ifnet::Ifnet;
use sys::protosw::{SockOpt, SoptDir};
use sys::socket::*;
use sys::socketvar::Socket;

/// Flow id of the connection.
pub const IP_FLOWID: i32 = 90;
/// Kind of flow id.
pub const IP_FLOWTYPE: i32 = 91;
/// Options for a reply.
const IP_RETOPTS: i32 = 8;
const IP_PORTRANGE_LOW: i32 = 2;
const IP_PORTRANGE_HIGH: i32 = 1;
const IP_PORTRANGE_DEFAULT: i32 = 0;
/// `SCM_TIMESTAMP`.
const SCM_TIMESTAMP: i32 = 2;

/// The flag behind a boolean option.
fn flag_of(name: i32) -> Option<InpFlags> {
    Some(match name {
        IP_RECVOPTS => InpFlags::RECVOPTS,
        IP_RECVRETOPTS => InpFlags::RECVRETOPTS,
        IP_RECVDSTADDR => InpFlags::RECVDSTADDR,
        IP_RECVTTL => InpFlags::RECVTTL,
        IP_RECVTOS => InpFlags::RECVTOS,
        IP_RECVIF => InpFlags::RECVIF,
        IP_ONESBCAST => InpFlags::ONESBCAST,
        IP_DONTFRAG => InpFlags::DONTFRAG,
        IP_BINDANY => InpFlags::BINDANY,
        _ => return None,
    })
}

/// Gets or sets an option of level `IPPROTO_IP`; takes note of `SO_REUSEADDR` and `SO_REUSEPORT`.
pub fn ip_ctloutput<P: Send + Sync + 'static>(
    inp: &Inpcb<P>,
    so: &Arc<Socket>,
    sopt: &mut SockOpt<'_>,
) -> Result<(), Errno> {
    if sopt.level == SOL_SOCKET {
        inp.set_reuse(so.options());
        return Ok(());
    }
    if sopt.level == IPPROTO_IPV6 {
        return ip6_ctloutput(inp, sopt);
    }
    if sopt.level != IPPROTO_IP {
        return Err(Errno::ENOPROTOOPT);
    }
    match sopt.dir {
        SoptDir::Set => set_option(inp, sopt),
        SoptDir::Get => get_option(inp, sopt),
    }
}

fn set_option<P: Send + Sync + 'static>(
    inp: &Inpcb<P>,
    sopt: &mut SockOpt<'_>,
) -> Result<(), Errno> {
    if let Some(flag) = flag_of(sopt.name) {
        let on = sopt.int()? != 0;
        inp.write().inp_flags.set(flag, on);
        return Ok(());
    }
    let byte = |value: i32| u8::try_from(value).map_err(|_| Errno::EINVAL);
    match sopt.name {
        IP_TTL => {
            inp.write().inp_ip_ttl = byte(sopt.int()?).and_then(|ttl| {
                if ttl == 0 {
                    Err(Errno::EINVAL)
                } else {
                    Ok(ttl)
                }
            })?
        }
        IP_TOS => inp.write().inp_ip_tos = byte(sopt.int()?)?,
        IP_MINTTL => inp.write().inp_ip_minttl = byte(sopt.int()?)?,
        IP_OPTIONS | IP_RETOPTS => return set_ip_options(inp, sopt.bytes()),
        IP_PORTRANGE => {
            let range = match sopt.int()? {
                IP_PORTRANGE_DEFAULT => InpFlags::empty(),
                IP_PORTRANGE_HIGH => InpFlags::HIGHPORT,
                IP_PORTRANGE_LOW => InpFlags::LOWPORT,
                _ => return Err(Errno::EINVAL),
            };
            let mut guard = inp.write();
            guard.inp_flags -= InpFlags::HIGHPORT | InpFlags::LOWPORT;
            guard.inp_flags |= range;
        }
        IP_MULTICAST_TTL => {
            // A byte or an int, as programs have it.
            let ttl = byte_or_int(sopt)?;
            moptions(&mut inp.write().hdr).imo_ttl = byte(ttl)?;
        }
        IP_MULTICAST_LOOP => {
            let on = byte_or_int(sopt)? != 0;
            moptions(&mut inp.write().hdr).imo_loop = on;
        }
        IP_MULTICAST_IF => {
            let addr = address(sopt.bytes(), 0)?;
            let ifindex = if addr == Ipv4Addr::UNSPECIFIED {
                IfIndex::NONE
            } else {
                let epoch = NetEpoch::enter();
                let ia = inp
                    .inp_vnet
                    .ifaddrs
                    .lookup(&epoch, addr)
                    .ok_or(Errno::EADDRNOTAVAIL)?;
                ia.ia_ifp.if_index
            };
            moptions(&mut inp.write().hdr).imo_ifindex = ifindex;
        }
        IP_ADD_MEMBERSHIP | IP_DROP_MEMBERSHIP => return membership(inp, sopt),
        _ => return Err(Errno::ENOPROTOOPT),
    }
    // What is remembered of the route holds no options, but a datagram under way should not mix old and new.
    Ok(())
}

fn get_option<P: Send + Sync + 'static>(
    inp: &Inpcb<P>,
    sopt: &mut SockOpt<'_>,
) -> Result<(), Errno> {
    let guard = inp.read();
    let hdr = &guard.hdr;
    if let Some(flag) = flag_of(sopt.name) {
        return sopt.answer_int(i32::from(hdr.inp_flags.contains(flag)));
    }
    let default = IpMoptions::default();
    let imo = hdr.inp_moptions.as_deref().unwrap_or(&default);
    match sopt.name {
        IP_TTL => sopt.answer_int(i32::from(hdr.inp_ip_ttl)),
        IP_TOS => sopt.answer_int(i32::from(hdr.inp_ip_tos)),
        IP_MINTTL => sopt.answer_int(i32::from(hdr.inp_ip_minttl)),
        IP_OPTIONS | IP_RETOPTS => sopt.answer(
            hdr.inp_options
                .as_ref()
                .map_or(&[], |options| options.bytes()),
        ),
        IP_PORTRANGE => sopt.answer_int(if hdr.inp_flags.contains(InpFlags::HIGHPORT) {
            IP_PORTRANGE_HIGH
        } else if hdr.inp_flags.contains(InpFlags::LOWPORT) {
            IP_PORTRANGE_LOW
        } else {
            IP_PORTRANGE_DEFAULT
        }),
        IP_MULTICAST_TTL => sopt.answer_int(i32::from(imo.imo_ttl)),
        IP_MULTICAST_LOOP => sopt.answer_int(i32::from(imo.imo_loop)),
        IP_MULTICAST_IF => {
            let epoch = NetEpoch::enter();
            let addr = inp
                .inp_vnet
                .ifnet_byindex(imo.imo_ifindex, &epoch)
                .and_then(|ifp| ifp.addrs(&epoch).first())
                .map_or(Ipv4Addr::UNSPECIFIED, |ia| ia.ia_addr);
            sopt.answer(&addr.octets())
        }
        IP_FLOWID => sopt.answer_int(hdr.inp_flowid as i32),
        IP_FLOWTYPE => sopt.answer_int(i32::from(hdr.inp_flowtype.0)),
        _ => Err(Errno::ENOPROTOOPT),
    }
}

fn moptions(hdr: &mut InpHdr) -> &mut IpMoptions {
    hdr.inp_moptions.get_or_insert_with(Box::default)
}

fn byte_or_int(sopt: &SockOpt<'_>) -> Result<i32, Errno> {
    match *sopt.bytes() {
        [byte] => Ok(i32::from(byte)),
        _ => sopt.int(),
    }
}

/// An address at `off` in a structure.
pub(crate) fn address(bytes: &[u8], off: usize) -> Result<Ipv4Addr, Errno> {
    let octets: [u8; 4] = bytes
        .get(off..off + 4)
        .and_then(|b| b.try_into().ok())
        .ok_or(Errno::EINVAL)?;
    Ok(Ipv4Addr::from(octets))
}

/// Sets the options sent with every packet (`ip_pcbopts`). Source routes are refused.
fn set_ip_options<P: Send + Sync + 'static>(inp: &Inpcb<P>, bytes: &[u8]) -> Result<(), Errno> {
    use crate::ip::{IPOPT_EOL, IPOPT_LSRR, IPOPT_NOP, IPOPT_SSRR};
    if bytes.is_empty() {
        inp.write().inp_options = None;
        return Ok(());
    }
    let mut rest = bytes;
    while let Some(&opt) = rest.first() {
        let len = match opt {
            IPOPT_EOL => break,
            IPOPT_NOP => 1,
            IPOPT_LSRR | IPOPT_SSRR => return Err(Errno::EINVAL),
            _ => usize::from(*rest.get(1).ok_or(Errno::EINVAL)?),
        };
        if len == 0 || opt != IPOPT_NOP && len < 2 {
            return Err(Errno::EINVAL);
        }
        rest = rest.get(len..).ok_or(Errno::EINVAL)?;
    }
    let options = IpOptions::new(bytes).ok_or(Errno::EINVAL)?;
    inp.write().inp_options = Some(Box::new(options));
    Ok(())
}

/// Length of the header of a control message, with its padding.
const CMSG_HEADER: usize = 16;

/// The control messages in what came with a datagram: level, type and data (`CMSG_FIRSTHDR`, `CMSG_NXTHDR`).
pub fn control_messages(mut bytes: &[u8]) -> Vec<(i32, i32, &[u8])> {
    let mut messages = Vec::new();
    while let Some(header) = bytes.first_chunk::<CMSG_HEADER>() {
        let &[l0, l1, l2, l3, v0, v1, v2, v3, t0, t1, t2, t3, ..] = header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let level = i32::from_ne_bytes([v0, v1, v2, v3]);
        let kind = i32::from_ne_bytes([t0, t1, t2, t3]);
        let Some(data) = bytes.get(CMSG_HEADER..len) else {
            break;
        };
        messages.push((level, kind, data));
        bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    messages
}

/// Appends one control message: header, data, padding to eight bytes (`sbcreatecontrol`).
pub(crate) fn control_message(out: &mut Vec<u8>, level: i32, kind: i32, data: &[u8]) {
    out.extend_from_slice(&((CMSG_HEADER + data.len()) as u32).to_ne_bytes());
    out.extend_from_slice(&level.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// The control messages that a socket asked for, about packet `m`, which begins with its IP header of either version.
pub fn ip_savecontrol(cx: &NetCx<'_>, hdr: &InpHdr, so: &Socket, m: &Mbuf) -> Option<Mbuf> {
    let mut out = Vec::new();
    let flags = hdr.inp_flags;
    if so.options().contains(SoOptions::TIMESTAMP) {
        // struct timeval of the time since boot: this machine knows no other.
        let us = machine::sbinuptime().as_us();
        let mut timeval = [0; 16];
        timeval[..8].copy_from_slice(&(us / 1_000_000).to_ne_bytes());
        timeval[8..].copy_from_slice(&(us % 1_000_000).to_ne_bytes());
        control_message(&mut out, SOL_SOCKET, SCM_TIMESTAMP, &timeval);
    }
    let version = m.data().first().map(|first| first >> 4);
    if version == Some(6)
        && let Some(ip6) = Ip6::parse(m.data())
    {
        ip6_savecontrol(hdr, ip6, m, &mut out);
        return control_mbuf(&out);
    }
    let ip = Ip::parse(m.data())?;
    if flags.contains(InpFlags::RECVDSTADDR) {
        control_message(&mut out, IPPROTO_IP, IP_RECVDSTADDR, &ip.ip_dst);
    }
    if flags.contains(InpFlags::RECVTTL) {
        control_message(&mut out, IPPROTO_IP, IP_RECVTTL, &[ip.ip_ttl]);
    }
    if flags.contains(InpFlags::RECVTOS) {
        control_message(&mut out, IPPROTO_IP, IP_RECVTOS, &[ip.ip_tos]);
    }
    if flags.intersects(InpFlags::RECVOPTS | InpFlags::RECVRETOPTS)
        && let Some(options) = m
            .data()
            .get(Ip::LEN..ip.hlen())
            .filter(|options| !options.is_empty())
    {
        let kind = if flags.contains(InpFlags::RECVOPTS) {
            IP_RECVOPTS
        } else {
            IP_RECVRETOPTS
        };
        control_message(&mut out, IPPROTO_IP, kind, options);
    }
    if flags.contains(InpFlags::RECVIF)
        && let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch)
    {
        control_message(&mut out, IPPROTO_IP, IP_RECVIF, &sockaddr_dl(ifp));
    }
    control_mbuf(&out)
}

/// `struct sockaddr_dl` of an interface: index and name.
fn sockaddr_dl(ifp: &Ifnet) -> Vec<u8> {
    let name = ifp.if_xname.as_bytes();
    let mut out = Vec::with_capacity(54);
    out.extend_from_slice(&[54, AF_LINK]);
    out.extend_from_slice(&ifp.if_index.0.to_ne_bytes());
    out.extend_from_slice(&[ifp.if_type, name.len() as u8, 0, 0]);
    out.extend_from_slice(name);
    out.resize(54, 0);
    out
}

/// Sets flow id and kind, as found on a packet received (`inp_flowid`).
pub fn remember_flow(hdr: &mut InpHdr, flowid: u32, flowtype: HashType) {
    hdr.inp_flowid = flowid;
    hdr.inp_flowtype = flowtype;
}
