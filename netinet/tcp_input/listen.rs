//! A segment for a listening socket.
//!
//! FreeBSD: tcp_input (tcp_input.c), "When the socket is accepting connections"

use core::net::Ipv4Addr;

use sys::mbuf::MFlags;

use crate::in_pcb::InConninfo;
use crate::ip_icmp::Bandlim;
use crate::tcp::TcpFlags;
use crate::tcp_fsm::TcpState;
use crate::tcp_input::segment::tcp_do_segment;
use crate::tcp_input::{Segment, blackholed, reset_allowed};
use crate::tcp_subr::{Locked, Refusal, in_broadcast, tcp_dropwithreset};
use crate::tcp_syncache::{Expanded, Listener};

/// Starts a connection, or completes one that the SYN cache holds.
pub(super) fn listen(mut locked: Locked<'_>, inc: InConninfo, mut seg: Segment) {
    let cx = locked.net();
    let vt = &cx.vnet.tcp;
    let Some((c, tp)) = locked.split() else {
        return;
    };
    if !c.so.is_listening() {
        // It is being torn down.
        return;
    }
    let listener = Listener::new(&c, cx, tp);
    let refusal = Refusal::of(c.hdr, tp, cx.now, seg.src.is_ipv6());
    // A child must not wait for its parent.
    drop(locked);

    let th = seg.th;
    let flags = th.th_flags & (TcpFlags::RST | TcpFlags::ACK | TcpFlags::SYN);
    if flags == TcpFlags::ACK {
        match vt.syncache.expand(&listener, &inc, &seg) {
            Expanded::Connection(inp) => {
                let mut locked = Locked::new(cx, &inp);
                // It may have been accepted and closed already.
                if locked.dropped() {
                    return;
                }
                if let Some((c, tp)) = locked.split()
                    && tp.t_state != TcpState::Closed
                {
                    tcp_do_segment(&c, tp, &mut seg);
                }
            }
            Expanded::NoSocket => {
                if vt.tun.syncache_rst_on_sock_fail.get() {
                    reset(cx, &refusal, &seg, None);
                }
            }
            Expanded::Bad => reset(cx, &refusal, &seg, Some(Bandlim::RstOpenport)),
            Expanded::Ignore => {}
        }
        return;
    }
    if seg.has(TcpFlags::RST) {
        vt.syncache.chkrst(cx, vt, &inc, &seg);
        return;
    }
    if !seg.has(TcpFlags::SYN) {
        vt.stat.tcps_badsyn.inc();
        return;
    }
    if seg.has(TcpFlags::ACK) {
        // RFC 9293 §3.10.7.2 would answer with a RST; FreeBSD does not say that somebody listens.
        vt.syncache.badack(vt, &inc, seg.port);
        vt.stat.tcps_badsyn.inc();
        return;
    }
    if !acceptable_peer(cx, &seg) {
        vt.stat.tcps_badsyn.inc();
        return;
    }
    let Some(inp) = vt.syncache.add(&listener, inc, &seg) else {
        return;
    };
    // Fast Open: the data of the SYN counts. A FIN beside it will come again.
    seg.th.th_flags.remove(TcpFlags::FIN);
    let mut locked = Locked::new(cx, &inp);
    if locked.dropped() {
        return;
    }
    if let Some((c, tp)) = locked.split() {
        tcp_do_segment(&c, tp, &mut seg);
    }
}

/// RFC 9293 §3.9.2.3: no connections with groups, nor with ourselves by forgery.
fn acceptable_peer(cx: &crate::vnet::NetCx<'_>, seg: &Segment) -> bool {
    let group = seg
        .packet()
        .is_none_or(|m| m.flags().intersects(MFlags::BCAST | MFlags::MCAST));
    let forged = seg.src == seg.dst && seg.th.th_sport == seg.th.th_dport;
    !group
        && !forged
        && !seg.src.is_multicast()
        && !seg.dst.is_multicast()
        && seg.src != Ipv4Addr::BROADCAST
        && !seg.src.is_unspecified()
        && !in_broadcast(cx, seg.dst)
}

fn reset(cx: &crate::vnet::NetCx<'_>, refusal: &Refusal, seg: &Segment, kind: Option<Bandlim>) {
    let vt = &cx.vnet.tcp;
    if vt.tun.blackhole.get() >= 3 && blackholed(cx, vt, seg) {
        return;
    }
    if reset_allowed(cx, kind) {
        tcp_dropwithreset(cx, Some(refusal), seg);
    }
}
