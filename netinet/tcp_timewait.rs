//! TIME_WAIT: a connection that is over, until its last segments have died out.
//!
//! FreeBSD: sys/netinet/tcp_timewait.c
//! As in FreeBSD 14 it keeps its control block, relieved of everything it can do without.

use crate::ip::in_loopback;
use crate::tcp::{TcpFlags, TcpOptFlags};
use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
use crate::tcp_output::tcp_output;
use crate::tcp_subr::{Conn, tcp_close, tcp_respond, tcp_state_change};
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{Tcpcb, Tf};
use core::net::IpAddr;

/// Enters TIME_WAIT.
pub fn tcp_twstart(c: &Conn<'_>, tp: &mut Tcpcb) {
    tcp_state_change(c, tp, TcpState::TimeWait);
    tp.t_segq = None;
    tp.t_sack = None;
    tp.t_own = None;
    for timer in [
        TcpTimer::Rexmt,
        TcpTimer::Persist,
        TcpTimer::Keep,
        TcpTimer::Delack,
    ] {
        tp.t_timers.stop(timer);
    }
    c.so.soisdisconnected();
    if tp.t_flags.contains(Tf::ACKNOW) {
        let _ = tcp_output(c, tp);
    }
    // A segment to ourselves does not get lost on the way.
    let vnet = c.net.vnet;
    let local = match c.hdr.faddr() {
        IpAddr::V4(faddr) => {
            in_loopback(faddr) || vnet.ifaddrs.lookup(c.net.epoch, faddr).is_some()
        }
        IpAddr::V6(faddr) => vnet.in6_ifaddrs.lookup(c.net.epoch, faddr).is_some(),
    };
    if c.vt.tun.nolocaltimewait.get() && local {
        tcp_close(c, tp);
        return;
    }
    tp.t_timers.activate(
        TcpTimer::Msl2,
        c.net.now,
        c.vt.tun.msl.get().saturating_mul(2),
    );
}

/// What became of a segment for a connection in TIME_WAIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TwCheck {
    /// It has been dealt with.
    Done,
    /// It opens a new connection; the old one is closed.
    Recycled,
    /// It came by another UDP port than the peer's: to be answered with RST.
    Refused,
}

/// A segment for a connection in TIME_WAIT.
pub fn tcp_twcheck(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> TwCheck {
    let th = &seg.th;
    let flags = th.th_flags;
    // RFC 1337: a RST must not cut TIME_WAIT short.
    if flags.contains(TcpFlags::RST) {
        return TwCheck::Done;
    }
    let timestamps = tp.t_flags.contains(Tf::RCVD_TSTMP);
    let has = seg.to.to_flags.contains(TcpOptFlags::TS);
    // RFC 6191: a newer SYN begins a new connection.
    let syn_only = flags & (TcpFlags::SYN | TcpFlags::ACK) == TcpFlags::SYN;
    let old_clock = timestamps
        && has
        && tp.ts_recent != 0
        && (seg.to.to_tsval.wrapping_sub(tp.ts_recent) as i32) < 0;
    if syn_only && th.th_seq.gt(tp.rcv_nxt) && !old_clock {
        c.vt.stat.tcps_tw_recycles.inc();
        tcp_close(c, tp);
        return TwCheck::Recycled;
    }
    if tp.t_port != seg.port {
        return TwCheck::Refused;
    }
    if !flags.contains(TcpFlags::ACK) || (timestamps && !has && !c.vt.tun.tolerate_missing_ts.get())
    {
        return TwCheck::Done;
    }
    // The FIN again: our ACK was lost, and the time begins anew.
    if flags.contains(TcpFlags::FIN) {
        let fin = th.th_seq + seg.tlen + u32::from(flags.contains(TcpFlags::SYN));
        if fin + 1 == tp.rcv_nxt {
            let after = c.vt.tun.msl.get().saturating_mul(2);
            tp.t_timers.activate(TcpTimer::Msl2, c.net.now, after);
        }
    }
    if flags != TcpFlags::ACK || seg.tlen != 0 || th.th_seq != tp.rcv_nxt || th.th_ack != tp.snd_nxt
    {
        c.vt.stat.tcps_tw_responds.inc();
        tcp_respond(c, tp, tp.rcv_nxt, tp.snd_nxt, TcpFlags::ACK);
    }
    TwCheck::Done
}
