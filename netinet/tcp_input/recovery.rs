//! Loss: duplicate ACKs, fast retransmit, recovery with and without SACK.
//!
//! FreeBSD: tcp_do_segment (tcp_input.c), the part on duplicate ACKs; tcp_do_prr_ack, tcp_newreno_partial_ack,
//! tcp_sack_partialack
//! RFC 5681, RFC 6582, RFC 6675, RFC 6937, RFC 3042.

use crate::cc::{CcAck, CcSignal};
use crate::tcp::TcpFlags;
use crate::tcp_input::Segment;
use crate::tcp_input::exits::{Exit, Step};
use crate::tcp_output::tcp_output;
use crate::tcp_sack::SackStatus;
use crate::tcp_seq::TcpSeq;
use crate::tcp_subr::Conn;
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{Prr, TCP_REXMT_THRESH, Tcpcb, Tf};

/// An ACK that acknowledges nothing new.
pub(super) fn duplicate_ack(
    c: &Conn<'_>,
    tp: &mut Tcpcb,
    seg: &Segment,
    sack_changed: SackStatus,
) -> Step {
    let no_data = seg.tlen == 0;
    let same_window = seg.tiwin == tp.snd_wnd || tp.t_flags.contains(Tf::SACK_PERMIT);
    // The first FIN of the peer is news.
    if !no_data || !same_window || (seg.has(TcpFlags::FIN) && !tp.t_state.have_received_fin()) {
        if seg.has(TcpFlags::FIN) {
            tp.t_dupacks = 0;
        }
        return Ok(());
    }
    c.vt.stat.tcps_rcvdupack.inc();
    let by_sack = tp.is_sack_recovery(&seg.to);
    if seg.th.th_ack != tp.snd_una || (by_sack && sack_changed == SackStatus::NoChange) {
        return Ok(());
    }
    if !tp.t_timers.active(TcpTimer::Rexmt) {
        // Nothing is outstanding, or the window is being probed.
        tp.t_dupacks = 0;
        return Ok(());
    }
    tp.t_dupacks += 1;
    if tp.t_dupacks > TCP_REXMT_THRESH || tp.in_fastrecovery() {
        go_on(c, tp, seg, sack_changed, by_sack);
        return Err(Exit::Drop);
    }
    let maxseg = tp.maxseg();
    if tp.t_dupacks == TCP_REXMT_THRESH || enough_sacked(c, tp, maxseg) {
        return enter_recovery(c, tp, seg);
    }
    if c.vt.tun.rfc3042.get() {
        limited_transmit(c, tp, seg);
        return Err(Exit::Drop);
    }
    Ok(())
}

/// RFC 6675 §5 (1): more than two segments are reported above the ACK.
fn enough_sacked(c: &Conn<'_>, tp: &Tcpcb, maxseg: u32) -> bool {
    c.vt.tun.sack_revised.get()
        && tp.t_flags.contains(Tf::SACK_PERMIT)
        && tp
            .t_sack
            .as_ref()
            .is_some_and(|sack| sack.sacked_bytes > (TCP_REXMT_THRESH - 1) * maxseg)
}

/// Another duplicate during recovery: something has left the network.
fn go_on(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment, sack_changed: SackStatus, by_sack: bool) {
    let tun = &c.vt.tun;
    let maxseg = tp.maxseg();
    tp.cc_ack_received(tun, c.net.now, seg.th.th_ack, seg.nsegs, CcAck::DupAck);
    let delivered = tp.t_sack.as_ref().map_or(0, |sack| sack.delivered_data);
    if tun.do_prr.get() && tp.in_fastrecovery() && tp.t_flags.contains(Tf::SACK_PERMIT) {
        prr_ack(tp, by_sack, sack_changed);
    } else if by_sack && tp.in_fastrecovery() {
        let more = maxseg.max(delivered.min(2 * maxseg));
        if tp.snd_nxt == tp.snd_max {
            if tp.compute_pipe() < tp.snd_ssthresh {
                tp.snd_cwnd = tp.snd_cwnd.saturating_add(more).min(tp.snd_ssthresh);
            }
        } else {
            tp.snd_cwnd = tp.snd_cwnd.saturating_add(more);
        }
    } else {
        tp.snd_cwnd = tp.snd_cwnd.saturating_add(maxseg);
    }
    let _ = tcp_output(c, tp);
}

/// The third duplicate: a segment is lost, and the window was too large.
fn enter_recovery(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> Step {
    let tun = &c.vt.tun;
    let maxseg = tp.maxseg();
    let th_ack = seg.th.th_ack;
    let by_sack = tp.is_sack_recovery(&seg.to);
    tp.t_dupacks = TCP_REXMT_THRESH;
    // RFC 6582 §3.2 step 2: not again for what was sent before the last recovery.
    if if by_sack {
        tp.in_fastrecovery()
    } else {
        th_ack.leq(tp.snd_recover)
    } {
        tp.t_dupacks = 0;
        return Ok(());
    }
    let onxt = tp.snd_nxt;
    tp.cc_cong_signal(tun, c.net.now, th_ack, CcSignal::NDupAck);
    tp.cc_ack_received(tun, c.net.now, th_ack, seg.nsegs, CcAck::DupAck);
    tp.t_timers.stop(TcpTimer::Rexmt);
    tp.t_rtttime = None;
    if tun.do_prr.get() {
        tp.t_prr.delivered = if by_sack {
            tp.snd_max
                .since(th_ack)
                .min((u32::from(tp.snd_limited) + 1) * maxseg)
        } else {
            maxseg
        };
        tp.t_prr.recover_fs = tp.snd_nxt.since(tp.snd_una).max(1);
        tp.t_prr.out = 0;
    }
    if by_sack {
        tp.snd_limited = 0;
        c.vt.stat.tcps_sack_recovery_episode.inc();
        if let Some(sack) = &mut tp.t_sack {
            sack.resend_sackholes();
        }
        tp.snd_nxt = tp.snd_max;
        tp.snd_recover = tp.snd_max;
        // One segment of the first hole now; how much more, each further ACK decides.
        tp.snd_cwnd = maxseg;
        let _ = tcp_output(c, tp);
        return if th_ack.gt(tp.snd_una) {
            Ok(())
        } else {
            Err(Exit::Drop)
        };
    }
    tp.snd_nxt = th_ack;
    tp.snd_cwnd = maxseg;
    let _ = tcp_output(c, tp);
    tp.snd_cwnd = tp
        .snd_ssthresh
        .saturating_add(maxseg * tp.t_dupacks.saturating_sub(u32::from(tp.snd_limited)));
    tp.snd_limited = 0;
    if onxt.gt(tp.snd_nxt) {
        tp.snd_nxt = onxt;
    }
    Err(Exit::Drop)
}

/// Detects that a retransmission was lost: what was sent behind it in this recovery has arrived, it has not. Everything
/// retransmitted so far goes again, and the window is reduced once more; without this only a timeout would tell.
#[doc(alias = "tcp_sack_lost_retransmission")]
pub(super) fn lost_retransmission(c: &Conn<'_>, tp: &mut Tcpcb, th_ack: TcpSeq) {
    let (recover, maxseg) = (tp.snd_recover, tp.maxseg());
    let lost = tp.in_fastrecovery()
        && tp
            .t_sack
            .as_mut()
            .is_some_and(|sack| sack.retransmission_lost(recover));
    if !lost {
        return;
    }
    c.vt.stat.tcps_sack_lostrexmt.inc();
    // The algorithm reduces from what this recovery was to end with, not from where the window stands amid it.
    tp.snd_cwnd = tp.snd_ssthresh;
    tp.exit_recovery();
    tp.snd_recover = tp.snd_max;
    tp.snd_nxt = tp.snd_max;
    tp.cc_cong_signal(&c.vt.tun, c.net.now, th_ack, CcSignal::NDupAck);
    tp.snd_cwnd = maxseg;
    tp.t_prr = Prr {
        recover_fs: tp.snd_max.since(tp.snd_una).max(1),
        ..Prr::default()
    };
}

/// RFC 3042: the first two duplicates let a new segment out each, so that there will be a third.
fn limited_transmit(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) {
    tp.cc_ack_received(
        &c.vt.tun,
        c.net.now,
        seg.th.th_ack,
        seg.nsegs,
        CcAck::DupAck,
    );
    let maxseg = tp.maxseg();
    let oldcwnd = tp.snd_cwnd;
    let oldsndmax = tp.snd_max;
    if tp.t_dupacks == 1 {
        tp.snd_limited = 0;
    }
    let in_flight = tp.snd_nxt.since(tp.snd_una);
    let extra = tp.t_dupacks.saturating_sub(u32::from(tp.snd_limited));
    tp.snd_cwnd = in_flight + extra * maxseg;
    // Only new data: a small rest must wait for the ACK.
    let waiting = c.so.snd.lock().used() > in_flight;
    if waiting || tp.t_flags.contains(Tf::ACKNOW) {
        let _ = tcp_output(c, tp);
    }
    let sent = tp.snd_max.since(oldsndmax);
    if sent > maxseg {
        tp.snd_limited = 2;
    } else if sent > 0 {
        tp.snd_limited = (tp.snd_limited + 1).min(2);
    }
    tp.snd_cwnd = oldcwnd;
}

/// An ACK that acknowledges something new, before it is processed: recovery may begin, or go on.
pub(super) fn advancing_ack(
    c: &Conn<'_>,
    tp: &mut Tcpcb,
    seg: &Segment,
    sack_changed: SackStatus,
) -> Step {
    let th_ack = seg.th.th_ack;
    tp.t_dupacks = 0;
    let by_sack = tp.is_sack_recovery(&seg.to);
    // RFC 6675: news of holes count as a duplicate, though the left edge moved.
    let news = if tp.t_rxtshift == 0 {
        sack_changed != SackStatus::NoChange
    } else {
        sack_changed == SackStatus::NewLoss
    };
    if by_sack && news && tp.snd_nxt == tp.snd_max {
        tp.t_dupacks += 1;
        let maxseg = tp.maxseg();
        if !tp.in_fastrecovery() && enough_sacked(c, tp, maxseg) && th_ack.lt(tp.snd_max) {
            enter_recovery(c, tp, seg)?;
        }
    }
    if !tp.in_fastrecovery() || th_ack.geq(tp.snd_recover) {
        return Ok(());
    }
    // A partial ACK: the next hole is lost as well.
    if tp.t_flags.contains(Tf::SACK_PERMIT) {
        tp.t_timers.stop(TcpTimer::Rexmt);
        tp.t_rtttime = None;
        if c.vt.tun.do_prr.get() && seg.to.to_nsacks > 0 {
            prr_ack(tp, by_sack, sack_changed);
            let _ = tcp_output(c, tp);
        } else {
            sack_partialack(c, tp, seg);
        }
    } else {
        newreno_partial_ack(c, tp, seg);
    }
    Ok(())
}

/// How much may be sent in answer to this ACK: in proportion to what arrived (RFC 6937).
#[doc(alias = "tcp_do_prr_ack")]
fn prr_ack(tp: &mut Tcpcb, by_sack: bool, sack_changed: SackStatus) {
    let maxseg = tp.maxseg();
    let (delivered, pipe) = if by_sack {
        (
            tp.t_sack.as_ref().map_or(0, |sack| sack.delivered_data),
            tp.compute_pipe(),
        )
    } else {
        let most = (TCP_REXMT_THRESH * maxseg).saturating_add(tp.snd_recover.since(tp.snd_una));
        let delivered = if tp.t_prr.delivered < most { maxseg } else { 0 };
        let flight = tp.snd_max.since(tp.snd_una);
        (
            delivered,
            flight.saturating_sub(tp.t_dupacks.min(0x7fff) * maxseg),
        )
    };
    tp.t_prr.delivered = tp.t_prr.delivered.saturating_add(delivered);
    let balance = i64::from(tp.t_prr.delivered) - i64::from(tp.t_prr.out);
    let send = if pipe >= tp.snd_ssthresh {
        let fs = tp.t_prr.recover_fs.max(1);
        let share =
            (u64::from(tp.t_prr.delivered) * u64::from(tp.snd_ssthresh)).div_ceil(u64::from(fs));
        share as i64 - i64::from(tp.t_prr.out)
    } else {
        // Below the target: catch up, but carefully when this ACK brings bad news.
        let limit = if sack_changed == SackStatus::NewLoss || delivered == 0 {
            balance
        } else {
            balance.max(i64::from(delivered)) + i64::from(maxseg)
        };
        limit.min(i64::from(tp.snd_ssthresh - pipe))
    };
    let send = (send.max(0) / i64::from(maxseg)) as u32 * maxseg;
    let window = if by_sack {
        tp.snd_nxt
            .since(tp.snd_recover)
            .saturating_add(tp.sack_bytes_rexmit())
            .saturating_add(send)
    } else {
        tp.snd_max.since(tp.snd_una).saturating_add(send)
    };
    tp.snd_cwnd = window.max(maxseg);
}

/// Goes on with the next hole, or with the last segment if the peer reports none (RFC 6675 §5 step 4).
#[doc(alias = "tcp_sack_partialack")]
fn sack_partialack(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) {
    let maxseg = tp.maxseg();
    let th_ack = seg.th.th_ack;
    let acked = th_ack.since(tp.snd_una);
    let segments = if acked / maxseg >= 2 { 2 } else { 1 };
    let (snd_max, recover) = (tp.snd_max, tp.snd_recover);
    let maxholes = c.vt.tun.sack_maxholes.get() as usize;
    if let Some(sack) = &mut tp.t_sack
        && !sack.has_holes()
        && recover == snd_max
    {
        // Everything reported is acknowledged, yet something is missing: the first segment not acknowledged.
        let end = (th_ack + maxseg).min(snd_max);
        sack.rescue(th_ack, end, maxholes);
    }
    let flight = tp.snd_nxt.since(th_ack);
    let lost = tp
        .t_sack
        .as_ref()
        .map_or(0, |sack| sack.sacked_bytes + sack.lost_bytes);
    let pipe = (flight + tp.sack_bytes_rexmit()).saturating_sub(lost);
    tp.snd_cwnd = (pipe.max(maxseg) + segments * maxseg)
        .min(tp.snd_ssthresh)
        .max(maxseg);
    let _ = tcp_output(c, tp);
}

/// RFC 6582 §3.2 step 3: retransmits the next segment and deflates the window.
#[doc(alias = "tcp_newreno_partial_ack")]
fn newreno_partial_ack(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) {
    let maxseg = tp.maxseg();
    let th_ack = seg.th.th_ack;
    let acked = th_ack.since(tp.snd_una);
    let onxt = tp.snd_nxt;
    let ocwnd = tp.snd_cwnd;
    tp.t_timers.stop(TcpTimer::Rexmt);
    tp.t_rtttime = None;
    tp.snd_nxt = th_ack;
    // `snd_una` has not moved yet: one segment beyond the ACK.
    tp.snd_cwnd = maxseg.saturating_add(acked);
    tp.t_flags |= Tf::ACKNOW;
    let _ = tcp_output(c, tp);
    if onxt.gt(tp.snd_nxt) {
        tp.snd_nxt = onxt;
    }
    tp.snd_cwnd = ocwnd.saturating_sub(acked).saturating_add(maxseg);
}
