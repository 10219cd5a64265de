//! Takes segments from IP: checks them, finds their connection, and walks through the steps of RFC 9293 §3.10.7.
//!
//! FreeBSD: sys/netinet/tcp_input.c
//! Differs from FreeBSD: `tcp_do_segment` is a list of steps that leave by named exits.

mod ack;
mod data;
mod exits;
mod listen;
mod options;
mod predict;
mod recovery;
mod segment;
mod sequence;

pub use segment::Segment;

use core::net::IpAddr;
use sys::kprintf;
use sys::mbuf::{CsumFlags, Mbuf};

use crate::in_pcb::{InConninfo, Lookup};
use crate::ip::{IPPROTO_TCP, IPVERSION, Ip};
use crate::ip_icmp::{Bandlim, badport_bandlim};
use crate::ip_var::pseudo_sum;
use crate::netinet6::ip6::Ip6;
use crate::tcp::{TCP_HLEN, TcpFlags, TcpHeader, TcpOpt, TcpOptFlags};
use crate::tcp_fsm::TcpState;
use crate::tcp_md5::tcp_md5_input;
use crate::tcp_offload::tcp_offload_input;
use crate::tcp_subr::{Conn, Locked, Refusal, TcpVnet, tcp_dropwithreset};
use crate::tcp_timewait::{TwCheck, tcp_twcheck};
use crate::tcp_var::{Tcpcb, Tf};
use crate::vnet::NetCx;

/// Takes a segment. `m` begins with the IP header of `hlen` bytes and is as long as the datagram.
pub fn tcp_input(cx: &NetCx<'_>, vt: &TcpVnet, m: Mbuf, hlen: usize) {
    tcp_input_with_port(cx, vt, m, hlen, 0);
}

/// Takes a segment that came inside UDP from `port`; 0 stands for one without.
pub(crate) fn tcp_input_with_port(cx: &NetCx<'_>, vt: &TcpVnet, m: Mbuf, hlen: usize, port: u16) {
    vt.stat.tcps_rcvtotal.inc();
    let Some(mut seg) = parse(vt, m, hlen, port) else {
        return;
    };
    let inc = InConninfo {
        inc_faddr: seg.src,
        inc_laddr: seg.dst,
        inc_fport: seg.th.th_sport,
        inc_lport: seg.th.th_dport,
    };
    // Twice at most: a SYN may end a connection in TIME_WAIT and then belongs to a listener.
    loop {
        let Some((inp, guard)) = vt.tcbinfo.lookup_write(&inc, Lookup::Wildcard, cx.epoch) else {
            closed_port(cx, vt, &seg);
            return;
        };
        let mut locked = Locked::from_guard(cx, inp, guard);
        if seg.src.is_ipv4() && seg.ttl < locked.hdr().inp_ip_minttl {
            return;
        }
        let Some((c, tp)) = locked.split() else {
            return;
        };
        let refusal = |c: &Conn<'_>, tp: &Tcpcb| Refusal::of(c.hdr, tp, cx.now, seg.src.is_ipv6());
        let over = matches!(
            tp.t_state,
            TcpState::Listen | TcpState::Closed | TcpState::TimeWait
        );
        if tp.t_port != seg.port && !over {
            // Whoever sent it is not the peer, though it has its address.
            if reset_allowed(cx, Some(Bandlim::RstClosedport)) {
                tcp_dropwithreset(cx, Some(&refusal(&c, tp)), &seg);
            }
            return;
        }
        match tp.t_state {
            TcpState::Closed => {
                // Bound, but neither listening nor connecting.
                if reset_allowed(cx, Some(Bandlim::RstClosedport)) {
                    tcp_dropwithreset(cx, Some(&refusal(&c, tp)), &seg);
                }
                return;
            }
            TcpState::TimeWait => match tcp_twcheck(&c, tp, &seg) {
                TwCheck::Done => return,
                TwCheck::Recycled => continue,
                TwCheck::Refused => {
                    vt.stat.tcps_tw_resets.inc();
                    if reset_allowed(cx, Some(Bandlim::RstClosedport)) {
                        tcp_dropwithreset(cx, Some(&refusal(&c, tp)), &seg);
                    }
                    return;
                }
            },
            TcpState::Listen => {
                listen::listen(locked, inc, seg);
                return;
            }
            _ => {
                if tcp_offload_input(&c, tp, &mut seg) {
                    return;
                }
                if !signature_good(vt, tp, &seg) {
                    return;
                }
                segment::tcp_do_segment(&c, tp, &mut seg);
                return;
            }
        }
    }
}

/// Checks a segment and reads its header. `None`: dropped and counted.
fn parse(vt: &TcpVnet, m: Mbuf, hlen: usize, port: u16) -> Option<Segment> {
    let stat = &vt.stat;
    let Ok(mut m) = m.pullup(hlen + TCP_HLEN) else {
        stat.tcps_rcvshort.inc();
        return None;
    };
    let ip = Ip::parse(m.data())?;
    let (src, dst, ttl, tos): (IpAddr, IpAddr, u8, u8) = if ip.version() == IPVERSION {
        (ip.src().into(), ip.dst().into(), ip.ip_ttl, ip.ip_tos)
    } else {
        let ip6 = Ip6::parse(m.data())?;
        (
            ip6.src().into(),
            ip6.dst().into(),
            ip6.ip6_hlim,
            ip6.tclass(),
        )
    };
    let total = m.pkt_len();
    let tcplen = total.saturating_sub(hlen);
    let Ok(fixed) = TcpHeader::parse_fixed(m.data().get(hlen..)?) else {
        stat.tcps_rcvbadoff.inc();
        return None;
    };
    // Inside UDP its checksum has been looked at.
    if port == 0 && !checksum_good(&m, src, dst, hlen, total) {
        stat.tcps_rcvbadsum.inc();
        return None;
    }
    let off = usize::from(fixed.th_off);
    if off > tcplen {
        stat.tcps_rcvbadoff.inc();
        return None;
    }
    if off > TCP_HLEN {
        m = match m.pullup(hlen + off) {
            Ok(m) => m,
            Err(_) => {
                stat.tcps_rcvshort.inc();
                return None;
            }
        };
    }
    let options = m.data().get(hlen + TCP_HLEN..hlen + off)?;
    let to = TcpOpt::parse(options, fixed.th_flags.contains(TcpFlags::SYN));
    if vt.tun.drop_synfin.get() && fixed.th_flags.contains(TcpFlags::SYN | TcpFlags::FIN) {
        stat.tcps_badsyn.inc();
        return None;
    }
    let nsegs = u32::from(m.pkthdr().lro_nsegs().max(1));
    Some(Segment {
        th: fixed,
        to,
        src,
        dst,
        port,
        ttl,
        tos,
        hdrlen: (hlen + off) as u32,
        tlen: (tcplen - off) as u32,
        tiwin: u32::from(fixed.th_win),
        nsegs,
        m: Some(m),
    })
}

/// Whether the checksum is right: as the hardware found it, as far as it looked.
#[inline]
fn checksum_good(m: &Mbuf, src: IpAddr, dst: IpAddr, hlen: usize, total: usize) -> bool {
    let tcplen = (total - hlen) as u32;
    let pkthdr = m.pkthdr();
    if pkthdr.csum_flags.contains(CsumFlags::DATA_VALID) {
        let sum = pkthdr.csum_data;
        if pkthdr.csum_flags.contains(CsumFlags::PSEUDO_HDR) {
            return sum as u16 == 0xffff;
        }
        let pseudo = pseudo_sum(src, dst, IPPROTO_TCP, tcplen);
        let (folded, carry) = (sum as u16).overflowing_add(pseudo);
        return folded.wrapping_add(u16::from(carry)) == 0xffff;
    }
    let pseudo = pseudo_sum(src, dst, IPPROTO_TCP, tcplen);
    // Complemented sum of the segment; with the pseudo header it must come to all ones.
    let (folded, carry) = (!m.in_cksum_skip(total, hlen)).overflowing_add(pseudo);
    folded.wrapping_add(u16::from(carry)) == 0xffff
}

/// Whether the segment is signed as its connection wants it; what is not is dropped.
fn signature_good(vt: &TcpVnet, tp: &Tcpcb, seg: &Segment) -> bool {
    let signed = seg.to.to_flags.contains(TcpOptFlags::SIGNATURE);
    if !tp.t_flags.contains(Tf::SIGNATURE) {
        if signed {
            // As any other option that we did not agree on.
            vt.stat.tcps_sig_err_sigopt.inc();
        }
        return true;
    }
    if !signed {
        vt.stat.tcps_sig_err_nosigopt.inc();
        return false;
    }
    tcp_md5_input(vt, seg).is_ok()
}

/// Nobody has this port: says so by RST, unless told not to or too often.
fn closed_port(cx: &NetCx<'_>, vt: &TcpVnet, seg: &Segment) {
    let tun = &vt.tun;
    let syn = seg.th.th_flags.contains(TcpFlags::SYN);
    let log = tun.log_in_vain.get();
    if log >= 2 || (log == 1 && syn) {
        kprintf!(
            "TCP: [{}]:{} to [{}]:{} tcpflags {:#x}; tcp_input: Connection attempt to closed port\n",
            seg.src,
            seg.th.th_sport,
            seg.dst,
            seg.th.th_dport,
            seg.th.th_flags.bits()
        );
    }
    let silent = match tun.blackhole.get() {
        0 => false,
        1 => syn,
        _ => true,
    };
    if (silent && blackholed(cx, vt, seg)) || !reset_allowed(cx, Some(Bandlim::RstClosedport)) {
        return;
    }
    tcp_dropwithreset(cx, None, seg);
}

/// Whether black holes are for whoever sent the segment: for ourselves only if that is wanted.
fn blackholed(cx: &NetCx<'_>, vt: &TcpVnet, seg: &Segment) -> bool {
    let local = || match seg.src {
        IpAddr::V4(src) => cx.vnet.ifaddrs.lookup(cx.epoch, src).is_some(),
        IpAddr::V6(src) => cx.vnet.in6_ifaddrs.lookup(cx.epoch, src).is_some(),
    };
    vt.tun.blackhole_local.get() || !local()
}

/// Whether a RST of this kind may be sent now; those without a kind always.
fn reset_allowed(cx: &NetCx<'_>, kind: Option<Bandlim>) -> bool {
    kind.is_none_or(|kind| badport_bandlim(cx, kind))
}
