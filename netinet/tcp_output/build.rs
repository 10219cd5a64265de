//! Builds the packet that was planned: header, options, data by reference.
//!
//! FreeBSD: tcp_output (tcp_output.c), from "Grab a header mbuf" to "if (tso)"

use sys::errno::Errno;
use sys::mbuf::{CsumFlags, How, MAX_LINKHDR, MHLEN, Mbuf};
use sys::socketvar::SndGuard;

use crate::tcp::{TCP_HLEN, TCP_MAXOLEN, TCP_MAXWIN, TcpFlags, TcpHeader};
use crate::tcp_ecn::{IPTOS_ECN_MASK, tcp_ecn_output_established, tcp_ecn_output_syn_sent};
use crate::tcp_fsm::TcpState;
use crate::tcp_md5::tcp_md5_output;
use crate::tcp_output::plan::{Plan, World};
use crate::tcp_seq::TcpSeq;
use crate::tcp_subr::{Conn, Envelope, ip_hlen, tcp_mssopt, write_headers};
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{TcpTunables, Tcpcb, Tf, Tf2, TsoLimits};
use crate::udp::Udphdr;

/// Builds the packet; fails with `ENOBUFS` if there are no mbufs, with `ENOENT` if it cannot be signed. Settles what the plan left open: how much data TSO can take, PUSH,
/// the window.
pub(super) fn build(
    c: &Conn<'_>,
    tp: &mut Tcpcb,
    world: &World,
    plan: &mut Plan,
    snd: &mut SndGuard<'_>,
) -> Result<Mbuf, Errno> {
    let tcplen = TCP_HLEN + plan.optlen as usize;
    let udp = c.vt.tunnel.ports(tp.t_port);
    let hlen = ip_hlen(c.hdr.faddr()) + if udp.is_some() { Udphdr::LEN } else { 0 };
    let hdrlen = hlen + tcplen;
    let mut m = Mbuf::gethdr(How::NoWait).ok_or(Errno::ENOBUFS)?;
    m.reserve_front(MAX_LINKHDR);
    if plan.len > 0 {
        if plan.len as usize <= MHLEN - hdrlen - MAX_LINKHDR {
            // Small data beside the header: one mbuf, one DMA segment.
            let room = m.extend_mut(hdrlen + plan.len as usize);
            if !snd.copy_out(plan.off, &mut room[hdrlen..]) {
                return Err(Errno::ENOBUFS);
            }
        } else {
            let data = snd.copy_range(plan.off, plan.len, How::NoWait);
            let mut data = data.ok_or(Errno::ENOBUFS)?;
            if plan.tso {
                fit_tso(tp, plan, &mut data);
            }
            m.extend_mut(hdrlen);
            m.set_next(Some(data));
        }
        count_data(c, tp, plan);
        let syn = plan.flags.contains(TcpFlags::SYN);
        if plan.off + plan.len == world.buffers.snd_avail && !syn {
            plan.flags |= TcpFlags::PUSH;
        }
    } else {
        count_control(c, tp, plan);
        m.extend_mut(hdrlen);
    }
    if plan.flags.contains(TcpFlags::SYN) && plan.optlen > 0 {
        // The segment size stands first among the options of a SYN.
        let mss = tcp_mssopt(c.net, c.hdr.faddr(), tp.t_port, c.hdr.in6p_flags);
        plan.options[2..4].copy_from_slice(&mss.to_be_bytes());
    }
    let ecn = ecn(c, tp, plan);
    let header = header(c, tp, world, plan);
    let total = hdrlen + plan.len as usize;
    let place = Envelope {
        src: c.hdr.laddr(),
        dst: c.hdr.faddr(),
        ttl: c.hdr.ttl(),
        tos: match ecn {
            Some(ecn) => c.hdr.tos() & !IPTOS_ECN_MASK | ecn,
            None => c.hdr.tos(),
        },
        flow: c.hdr.inp_flow,
        options: None,
        route: None,
        route6: None,
        udp,
    };
    let tun = &c.vt.tun;
    let df = may_not_be_fragmented(tun, tp);
    if plan.len > 0 {
        let full = plan.len + plan.optlen >= tp.t_maxseg;
        tp.t_flags2.set(Tf2::PLPMTU_MAXSEGSNT, full);
    }
    let options = &plan.options[..(plan.optlen as usize).min(TCP_MAXOLEN)];
    write_headers(
        &mut m.data_mut()[..hdrlen],
        &place,
        &header,
        options,
        total as u16,
        df,
    );
    m.set_pkt_len(total);
    if tp.t_flags.contains(Tf::SIGNATURE) && plan.optlen > 0 {
        tcp_md5_output(c.vt, (place.src, place.dst), &mut m, hlen, tcplen)?;
    }
    let pkthdr = m.pkthdr_mut();
    pkthdr.flowid = c.hdr.inp_flowid;
    pkthdr.rsstype = c.hdr.inp_flowtype;
    place.ask_checksum(pkthdr, tcplen);
    if udp.is_some() {
        c.net.vnet.udpstat.udps_opackets.inc();
    }
    if plan.tso {
        pkthdr.csum_flags |= if place.dst.is_ipv6() {
            CsumFlags::IP6_TSO
        } else {
            CsumFlags::IP_TSO
        };
        pkthdr.tso_segsz = (tp.t_maxseg - plan.optlen) as u16;
    }
    Ok(m)
}

/// Whether routers may not cut segments, but must say that they are too large (RFC 1191).
///
/// Differs from FreeBSD: a connection that has found a black hole and gone down to the default size really does without.
#[inline]
fn may_not_be_fragmented(tun: &TcpTunables, tp: &mut Tcpcb) -> bool {
    let last_resort =
        tp.t_flags2.contains(Tf2::PLPMTU_BLACKHOLE) && tp.t_maxseg <= tun.mssdflt.get();
    let df = tun.path_mtu_discovery.get() && tp.t_maxseg > tun.minmss.get() && !last_resort;
    tp.t_flags2.set(Tf2::PLPMTU_PMTUD, df);
    df
}

/// Adds ECN's flags to the plan; what the IP header carries, of a connection with ECN.
#[inline]
fn ecn(c: &Conn<'_>, tp: &mut Tcpcb, plan: &mut Plan) -> Option<u8> {
    if tp.t_state == TcpState::SynSent {
        plan.flags |= tcp_ecn_output_syn_sent(&c.vt.tun, tp);
    }
    let agreed = tp.t_flags2.intersects(Tf2::ECN_PERMIT | Tf2::ACE_PERMIT);
    if !tp.t_state.have_received_syn() || !agreed {
        return None;
    }
    let retransmit = plan.hole.is_some();
    let stat = &c.vt.stat;
    // RFC 3168 §6.1.1: a SYN|ACK is not marked, though it carries data.
    let len = match plan.flags.contains(TcpFlags::SYN) {
        true => 0,
        false => plan.len,
    };
    let ecn = tcp_ecn_output_established(stat, tp, &mut plan.flags, len, retransmit);
    Some(ecn)
}

/// Cuts a TSO packet to the memory segments that the interface takes in one packet.
fn fit_tso(tp: &Tcpcb, plan: &mut Plan, data: &mut Mbuf) {
    let payload = tp.t_maxseg - plan.optlen;
    let fits = bytes_within(&tp.t_tso, data);
    if fits >= plan.len {
        return;
    }
    let cut = if fits > payload {
        fits - fits % payload
    } else {
        payload.min(plan.len)
    };
    data.trim_back((plan.len - cut) as usize);
    plan.len = cut;
    plan.sendalot = true;
    plan.tso = cut > payload;
}

/// How many bytes from the front of `data` stand in the memory segments that `limits` allow beside the header.
fn bytes_within(limits: &TsoLimits, data: &Mbuf) -> u32 {
    if limits.segcount == 0 {
        return u32::MAX;
    }
    let segsize = if limits.segsize == 0 {
        u32::MAX
    } else {
        limits.segsize
    };
    let mut left = u32::from(limits.segcount).saturating_sub(1);
    let mut bytes = 0;
    for piece in data.segments() {
        let len = piece.len() as u32;
        let pieces = len.div_ceil(segsize);
        if pieces > left {
            return bytes + left.saturating_mul(segsize).min(len);
        }
        left -= pieces;
        bytes += len;
    }
    bytes
}

/// The TCP header, and with it the window that goes out.
#[inline]
fn header(c: &Conn<'_>, tp: &mut Tcpcb, world: &World, plan: &mut Plan) -> TcpHeader {
    // A FIN sent again does not take a new sequence number.
    if plan.flags.contains(TcpFlags::FIN)
        && tp.t_flags.contains(Tf::SENTFIN)
        && tp.snd_nxt == tp.snd_max
    {
        tp.snd_nxt -= 1;
    }
    // An ACK amid retransmission goes out with the highest sequence number, so that the peer accepts it.
    let th_seq = match plan.hole {
        Some((_, rxmit)) => rxmit,
        None if plan.len > 0
            || plan.flags.intersects(TcpFlags::SYN | TcpFlags::FIN)
            || tp.t_timers.active(TcpTimer::Persist) =>
        {
            tp.snd_nxt
        }
        None => tp.snd_max,
    };
    let th_win = advertise(tp, world, plan);
    if th_win == 0 {
        tp.t_sndzerowin = tp.t_sndzerowin.wrapping_add(1);
        tp.t_flags |= Tf::RXWIN0SENT;
    } else {
        tp.t_flags.remove(Tf::RXWIN0SENT);
    }
    let mut th_urp = 0;
    if tp.snd_up.gt(tp.snd_nxt) {
        th_urp = (tp.snd_up - tp.snd_nxt).min(i32::from(u16::MAX)) as u16;
        plan.flags |= TcpFlags::URG;
    } else {
        // Drags the pointer along, so that it never falls half the circle behind.
        tp.snd_up = tp.snd_una;
    }
    let tcplen = TCP_HLEN as u32 + plan.optlen;
    TcpHeader {
        th_sport: c.hdr.lport(),
        th_dport: c.hdr.fport(),
        th_seq,
        th_ack: if plan.flags.contains(TcpFlags::ACK) {
            tp.rcv_nxt
        } else {
            TcpSeq(0)
        },
        th_flags: plan.flags,
        th_off: tcplen as u8,
        th_win,
        // `write_headers` fills it in.
        th_sum: 0,
        th_urp,
    }
}

/// The window to advertise: never shrunk, never silly (RFC 9293 §3.8.6.2.2). Leaves in the plan what it stands for.
#[inline]
fn advertise(tp: &Tcpcb, world: &World, plan: &mut Plan) -> u16 {
    if plan.flags.contains(TcpFlags::RST) {
        plan.recwin = 0;
        return 0;
    }
    if plan.flags.contains(TcpFlags::SYN) {
        // The window of a SYN is not scaled (RFC 7323 §2.2).
        plan.recwin = world.buffers.rcv_space.min(TCP_MAXWIN);
        return plan.recwin as u16;
    }
    if plan.recwin < world.buffers.rcv_hiwat / 4 && plan.recwin < tp.t_maxseg {
        plan.recwin = 0;
    }
    plan.recwin = plan.recwin.max(tp.rcv_adv.since(tp.rcv_nxt));
    let scaled = plan.recwin.div_ceil(1 << tp.rcv_scale).min(TCP_MAXWIN);
    plan.recwin = scaled << tp.rcv_scale;
    scaled as u16
}

/// Counts a segment with data.
#[inline]
fn count_data(c: &Conn<'_>, tp: &mut Tcpcb, plan: &Plan) {
    let stat = &c.vt.stat;
    if tp.t_flags.contains(Tf::FORCEDATA) && plan.len == 1 {
        stat.tcps_sndprobe.inc();
    } else if plan.hole.is_some() || tp.snd_nxt.lt(tp.snd_max) {
        tp.t_sndrexmitpack = tp.t_sndrexmitpack.wrapping_add(1);
        stat.tcps_sndrexmitpack.inc();
        stat.tcps_sndrexmitbyte.add(u64::from(plan.len));
        if plan.hole.is_some() {
            stat.tcps_sack_rexmits.inc();
            stat.tcps_sack_rexmit_bytes.add(u64::from(plan.len));
        }
    } else {
        stat.tcps_sndpack.inc();
        stat.tcps_sndbyte.add(u64::from(plan.len));
    }
}

/// Counts a segment without data.
#[inline]
fn count_control(c: &Conn<'_>, tp: &Tcpcb, plan: &Plan) {
    let stat = &c.vt.stat;
    if tp.t_flags.contains(Tf::ACKNOW) {
        stat.tcps_sndacks.inc();
    } else if plan
        .flags
        .intersects(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST)
    {
        stat.tcps_sndctrl.inc();
    } else if tp.snd_up.gt(tp.snd_una) {
        stat.tcps_sndurg.inc();
    } else {
        stat.tcps_sndwinup.inc();
    }
}
