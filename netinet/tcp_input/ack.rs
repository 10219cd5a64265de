//! What a segment acknowledges.
//!
//! FreeBSD: tcp_do_segment (tcp_input.c), "Ack processing" to "step6", and tcp_xmit_timer

use core::sync::atomic::Ordering;

use sys::sockbuf::SbState;

use crate::cc::CcAck;
use crate::ip_icmp::Bandlim;
use crate::tcp::{TcpFlags, TcpOptFlags};
use crate::tcp_fastopen::TfoRole;
use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
use crate::tcp_input::exits::{Exit, Step, challenge_ack};
use crate::tcp_input::recovery;
use crate::tcp_input::sequence::established;
use crate::tcp_sack::SackStatus;
use crate::tcp_subr::{Conn, tcp_close, tcp_use_metrics};
use crate::tcp_timer::{TCPTV_REXMTMAX, TcpTimer, rangeset};
use crate::tcp_timewait::tcp_twstart;
use crate::tcp_var::{TCP_DELTA_SHIFT, TCP_RTT_SHIFT, TCP_RTTVAR_SHIFT, TcpTunables, Tcpcb, Tf};

/// Where the steps go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resume {
    /// With the acknowledgement.
    Ack,
    /// With an acknowledgement known to be new.
    ProcessAck,
    /// Behind the acknowledgement.
    Step6,
}

/// A segment without ACK counts only while the handshake goes on.
pub(super) fn check_ack_bit(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> Step<Resume> {
    if seg.has(TcpFlags::ACK) {
        return Ok(Resume::Ack);
    }
    if tp.t_state == TcpState::SynReceived || tp.t_flags.contains(Tf::NEEDSYN) {
        if tp.fast_open_child() && seg.th.th_seq == tp.rcv_nxt {
            // The answer may carry data already. The window of a SYN is not scaled.
            tp.snd_wnd = u32::from(seg.th.th_win);
            tcp_use_metrics(c, tp);
            tp.cc_conn_init(&c.vt.tun, c.net.now);
        }
        Ok(Resume::Step6)
    } else if tp.t_flags.contains(Tf::ACKNOW) {
        Err(Exit::DropAfterAck)
    } else {
        Err(Exit::Drop)
    }
}

/// RFC 9293 §3.10.7.4, fifth: duplicate, partial or new.
pub(super) fn ack_processing(
    c: &Conn<'_>,
    tp: &mut Tcpcb,
    seg: &mut Segment,
    need_output: &mut bool,
) -> Step {
    let th_ack = seg.th.th_ack;
    let mut incforsyn = false;
    if tp.t_state == TcpState::SynReceived {
        // It was checked before that the ACK is for our SYN.
        c.vt.stat.tcps_connects.inc();
        if tp.t_flags.contains(Tf::RCVD_SCALE | Tf::REQ_SCALE) {
            tp.rcv_scale = tp.request_r_scale;
            seg.tiwin = u32::from(seg.th.th_win) << tp.snd_scale;
        }
        tp.snd_wnd = seg.tiwin;
        established(c, tp);
        if tp.fast_open_child() {
            tp.t_tfo = TfoRole::None;
        } else {
            c.so.soisconnected();
        }
        incforsyn = th_ack.gt(tp.snd_una);
        // What came before the ACK is data now.
        super::data::pass_queued(c, tp);
        tp.snd_wl1 = seg.th.th_seq - 1;
    }
    acceptable(c, tp, seg)?;
    let sack_changed = if tp.t_flags.contains(Tf::SACK_PERMIT) && tp.snd_max != tp.snd_una {
        let tun = &c.vt.tun;
        if seg.to.to_nsacks > 0 {
            c.vt.stat.tcps_sack_rcv_blocks.inc();
        }
        // What all connections together still may have.
        let all = c.vt.sack_holes.load(Ordering::Relaxed);
        let left = tun.sack_globalmaxholes.get().saturating_sub(all);
        let mine = tp.t_sack.as_ref().map_or(0, |sack| sack.numholes());
        let most = (tun.sack_maxholes.get() as usize).min(mine + left as usize);
        let changed = tp.sack_doack(&c.vt.stat, most, &seg.to, th_ack);
        if let Some(sack) = &mut tp.t_sack {
            sack.count_holes(&c.vt.sack_holes);
        }
        if changed != SackStatus::NoChange && tp.t_flags.contains(Tf::LRD) {
            recovery::lost_retransmission(c, tp, th_ack);
        }
        changed
    } else {
        SackStatus::NoChange
    };
    if th_ack.leq(tp.snd_una) {
        return recovery::duplicate_ack(c, tp, seg, sack_changed);
    }
    recovery::advancing_ack(c, tp, seg, sack_changed)?;
    process_ack(c, tp, seg, need_output, incforsyn)
}

/// RFC 5961 §5.2: neither beyond what was sent, nor older than the largest window.
fn acceptable(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> Step {
    let stat = &c.vt.stat;
    let th_ack = seg.th.th_ack;
    if th_ack.gt(tp.snd_max) {
        stat.tcps_rcvacktoomuch.inc();
        return Err(Exit::DropAfterAck);
    }
    if c.vt.tun.insecure_ack.get() {
        return Ok(());
    }
    // Before the first byte of the connection nothing was ever sent; later the oldest window bounds.
    let oldest = tp.snd_una - tp.max_sndwnd;
    let young = tp.snd_una.0.wrapping_sub(tp.iss.0) < tp.max_sndwnd;
    let ghost = young && th_ack.leq(tp.iss);
    if ghost {
        stat.tcps_rcvghostack.inc();
    } else if th_ack.lt(oldest) {
        stat.tcps_rcvacktooold.inc();
    } else {
        return Ok(());
    }
    if tp.t_state == TcpState::SynReceived {
        return Err(Exit::DropWithReset(Some(Bandlim::RstOpenport)));
    }
    challenge_ack(c, tp, &seg.th);
    Err(Exit::Drop)
}

/// Takes what is acknowledged off the send buffer, and moves the connection on.
pub(super) fn process_ack(
    c: &Conn<'_>,
    tp: &mut Tcpcb,
    seg: &mut Segment,
    need_output: &mut bool,
    incforsyn: bool,
) -> Step {
    let stat = &c.vt.stat;
    let now = c.net.now;
    let th_ack = seg.th.th_ack;
    // The SYN takes a sequence number, but is no data.
    if incforsyn {
        tp.snd_una += 1;
    }
    let acked = th_ack.since(tp.snd_una);
    stat.tcps_rcvackpack.add(u64::from(seg.nsegs));
    stat.tcps_rcvackbyte.add(u64::from(acked));
    sample_rtt(c, tp, seg);
    // Answered: a timeout later would be another one.
    if th_ack == tp.snd_max {
        tp.t_timers.stop(TcpTimer::Rexmt);
        *need_output = true;
    } else if !tp.t_timers.active(TcpTimer::Persist) {
        tp.t_timers.activate(TcpTimer::Rexmt, now, tp.t_rxtcur);
    }
    if acked == 0 {
        return Ok(());
    }
    tp.cc_ack_received(&c.vt.tun, now, th_ack, seg.nsegs, CcAck::Ack);
    let our_fin_acked = {
        let mut snd = c.so.snd.lock();
        let avail = snd.used();
        let cut = acked.min(avail);
        tp.snd_wnd = tp.snd_wnd.saturating_sub(cut);
        snd.drop_bytes(cut);
        let left = snd.used();
        c.so.sowwakeup(snd);
        let fin = acked > avail;
        tp.t_acktime = if fin || (left == 0 && tp.t_state <= TcpState::CloseWait) {
            None
        } else {
            Some(now)
        };
        fin
    };
    // snd_recover must not fall half the circle behind.
    if !tp.in_recovery() && tp.snd_una.gt(tp.snd_recover) && th_ack.leq(tp.snd_recover) {
        tp.snd_recover = th_ack - 1;
    }
    if tp.in_recovery() && th_ack.geq(tp.snd_recover) {
        tp.snd_una = th_ack;
        tp.cc_post_recovery(&c.vt.tun, now, th_ack);
    }
    tp.snd_una = th_ack;
    if tp.t_flags.contains(Tf::SACK_PERMIT) && tp.snd_una.gt(tp.snd_recover) {
        tp.snd_recover = tp.snd_una;
    }
    if tp.snd_nxt.lt(tp.snd_una) {
        tp.snd_nxt = tp.snd_una;
    }
    if our_fin_acked {
        return fin_acked(c, tp);
    }
    Ok(())
}

/// The peer has all we sent, the FIN too.
fn fin_acked(c: &Conn<'_>, tp: &mut Tcpcb) -> Step {
    match tp.t_state {
        TcpState::FinWait1 => {
            // If nobody reads any more, do not wait for the peer's FIN for ever.
            if c.so.rcv.lock().state().contains(SbState::CANTRCVMORE) {
                c.so.soisdisconnected();
                let tun = &c.vt.tun;
                let timeout = if tun.fast_finwait2_recycle.get() {
                    tun.finwait2_timeout.get()
                } else {
                    tp.maxidle(tun)
                };
                tp.t_timers.activate(TcpTimer::Msl2, c.net.now, timeout);
            }
            crate::tcp_subr::tcp_state_change(c, tp, TcpState::FinWait2);
            Ok(())
        }
        TcpState::Closing => {
            tcp_twstart(c, tp);
            Err(Exit::Drop)
        }
        TcpState::LastAck => {
            tcp_close(c, tp);
            Err(Exit::Drop)
        }
        TcpState::Closed
        | TcpState::Listen
        | TcpState::SynSent
        | TcpState::SynReceived
        | TcpState::Established
        | TcpState::CloseWait
        | TcpState::FinWait2
        | TcpState::TimeWait => Ok(()),
    }
}

/// Takes a round-trip sample from the ACK: by timestamps from every one that acknowledges something new, else from the
/// segment being timed.
#[inline]
pub(super) fn sample_rtt(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) {
    let now = c.net.now;
    if seg.to.to_flags.contains(TcpOptFlags::TS) && seg.to.to_tsecr != 0 {
        let t = tp.ts_now(now).wrapping_sub(seg.to.to_tsecr);
        if tp.t_rttlow == 0 || tp.t_rttlow > t {
            tp.t_rttlow = t;
        }
        tcp_xmit_timer(c, tp, t.min(i32::MAX as u32 >> 8) + 1);
    } else if let Some(since) = tp.t_rtttime
        && seg.th.th_ack.gt(tp.t_rtseq)
    {
        let t = (now - since).max(0) as u32;
        if tp.t_rttlow == 0 || tp.t_rttlow > t {
            tp.t_rttlow = t;
        }
        tcp_xmit_timer(c, tp, t + 1);
    }
}

/// Updates the estimate with a sample of `rtt` ms (already one too large).
fn tcp_xmit_timer(c: &Conn<'_>, tp: &mut Tcpcb, rtt: u32) {
    c.vt.stat.tcps_rttupdated.inc();
    update_estimate(&c.vt.tun, tp, rtt);
    tp.cc_rttsample(rtt);
}

/// Jacobson's estimator (RFC 6298) in fixed point.
fn update_estimate(tun: &TcpTunables, tp: &mut Tcpcb, rtt: u32) {
    let sample = rtt as i32;
    tp.t_rttupdated = tp.t_rttupdated.saturating_add(1);
    if tp.t_srtt != 0 {
        let mut delta =
            ((sample - 1) << TCP_DELTA_SHIFT) - (tp.t_srtt >> (TCP_RTT_SHIFT - TCP_DELTA_SHIFT));
        tp.t_srtt = (tp.t_srtt + delta).max(1);
        delta = delta.abs() - (tp.t_rttvar >> (TCP_RTTVAR_SHIFT - TCP_DELTA_SHIFT));
        tp.t_rttvar = (tp.t_rttvar + delta).max(1);
    } else {
        tp.t_srtt = sample << TCP_RTT_SHIFT;
        tp.t_rttvar = sample << (TCP_RTTVAR_SHIFT - 1);
    }
    tp.t_rtttime = None;
    tp.t_rxtshift = 0;
    tp.t_rxtcur = rangeset(tun, tp.rexmtval(), tp.t_rttmin.max(rtt + 2), TCPTV_REXMTMAX);
    tp.t_softerror = None;
}
