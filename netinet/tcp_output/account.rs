//! Notes what was sent: sequence numbers, timers, the round trip being timed.
//!
//! FreeBSD: tcp_output (tcp_output.c), from "In transmit state, time the transmission" on

use sys::errno::Errno;

use crate::tcp::TcpFlags;
use crate::tcp_output::plan::Plan;
use crate::tcp_subr::Conn;
use crate::tcp_timer::{TcpTimer, tcp_setpersist};
use crate::tcp_var::{Tcpcb, Tf};

/// Moves the sequence numbers over what was sent, and sees to the timers.
#[inline]
pub(super) fn advance(c: &Conn<'_>, tp: &mut Tcpcb, plan: &Plan, snd_avail: u32) {
    let now = c.net.now;
    let fin = plan.flags.contains(TcpFlags::FIN);
    let control = u32::from(plan.flags.contains(TcpFlags::SYN)) + u32::from(fin);
    if fin {
        tp.t_flags |= Tf::SENTFIN;
    }
    if tp.in_recovery() {
        tp.t_prr.out = tp.t_prr.out.saturating_add(plan.len);
    }
    if tp.t_flags.contains(Tf::FORCEDATA) && tp.t_timers.active(TcpTimer::Persist) {
        // A probe: the next one starts at the same place.
        tp.snd_max = tp.snd_max.max(tp.snd_nxt + plan.len + control);
        return;
    }
    match plan.hole {
        Some((at, _)) => {
            if let Some(sack) = &mut tp.t_sack {
                sack.retransmitted(at, plan.len);
            }
        }
        None => {
            let start = tp.snd_nxt;
            tp.snd_nxt += control + plan.len;
            if tp.snd_nxt.gt(tp.snd_max) {
                tp.snd_max = tp.snd_nxt;
                if tp.t_rtttime.is_none() {
                    tp.t_rtttime = Some(now);
                    tp.t_rtseq = start;
                    c.vt.stat.tcps_segstimed.inc();
                }
            }
        }
    }
    if tp.t_timers.active(TcpTimer::Rexmt) {
        return;
    }
    let outstanding = tp.snd_nxt != tp.snd_una || (plan.hole.is_some() && tp.snd_nxt != tp.snd_max);
    if outstanding {
        if tp.t_timers.active(TcpTimer::Persist) {
            tp.t_timers.stop(TcpTimer::Persist);
            tp.t_rxtshift = 0;
        }
        tp.t_timers.activate(TcpTimer::Rexmt, now, tp.t_rxtcur);
    } else if plan.len == 0 && snd_avail > 0 && !tp.t_timers.active(TcpTimer::Persist) {
        // The window closed with data waiting, and this segment said nothing about it.
        tp.t_rxtshift = 0;
        tcp_setpersist(c, tp);
    }
}

/// Takes back what was not sent after all, so that it is sent next.
pub(super) fn take_back(tp: &mut Tcpcb, plan: &Plan) {
    let probing = tp.t_flags.contains(Tf::FORCEDATA) && tp.t_timers.active(TcpTimer::Persist);
    if probing || plan.flags.contains(TcpFlags::SYN) {
        return;
    }
    match plan.hole {
        Some((at, _)) => {
            if let Some(sack) = &mut tp.t_sack {
                sack.not_retransmitted(at, plan.len);
            }
        }
        None => tp.snd_nxt -= plan.len + u32::from(plan.flags.contains(TcpFlags::FIN)),
    }
}

/// The segment is on its way, and with it an ACK.
#[inline]
pub(super) fn sent(c: &Conn<'_>, tp: &mut Tcpcb, plan: &Plan) {
    c.vt.stat.tcps_sndtotal.inc();
    if plan.nsacks > 0 {
        c.vt.stat.tcps_sack_send_blocks.inc();
        if let Some(sack) = &mut tp.t_sack {
            sack.clean_dsack();
        }
    }
    tp.rcv_adv = tp.rcv_adv.max(tp.rcv_nxt + plan.recwin);
    tp.last_ack_sent = tp.rcv_nxt;
    tp.t_flags.remove(Tf::ACKNOW | Tf::DELACK);
    tp.t_timers.stop(TcpTimer::Delack);
    if tp.rfbuf_ts == 0 {
        // Begins to measure how much arrives in a round trip.
        tp.rfbuf_ts = c.net.now.0.max(1);
    }
    if tp.t_rxtshift == 1 && tp.t_flags.contains(Tf::PREVVALID) && tp.t_prev.t_badrxtwin == 0 {
        // The clock of the retransmission: an older echo answers the original.
        tp.t_prev.t_badrxtwin = tp.ts_now(c.net.now).max(1);
    }
}

/// The interface's queue is full, or memory short: begin again slowly, when the timer expires at the latest.
pub(super) fn no_buffers(c: &Conn<'_>, tp: &mut Tcpcb) -> Result<(), Errno> {
    if !tp.t_timers.active(TcpTimer::Rexmt) && !tp.t_timers.active(TcpTimer::Persist) {
        tp.t_timers
            .activate(TcpTimer::Rexmt, c.net.now, tp.t_rxtcur);
    }
    tp.snd_cwnd = tp.maxseg();
    Ok(())
}
