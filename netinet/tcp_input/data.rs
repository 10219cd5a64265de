//! The payload: windows, urgent data, the stream, the FIN.
//!
//! FreeBSD: tcp_do_segment (tcp_input.c), from "step6" on; tcp_autorcvbuf; tcp_reass

use alloc::boxed::Box;

use sys::kern::kern_ipc::sb_limits;
use sys::mbuf::How;
use sys::sockbuf::SbState;
use sys::socket::SoOptions;
use sys::socketvar::RcvGuard;

use crate::tcp::{SackBlk, TcpFlags};
use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
use crate::tcp_input::exits::{Exit, Step};
use crate::tcp_reass::{Limits, Queued, ReassQueue};
use crate::tcp_subr::{Conn, tcp_state_change};
use crate::tcp_timer::TcpTimer;
use crate::tcp_timewait::tcp_twstart;
use crate::tcp_var::{Oob, TCP_RTT_SHIFT, Tcpcb, Tf};

/// Takes over the peer's window, if the segment is newer than the one it came from (RFC 9293 §3.10.7.4). Says
/// whether more may be sent now.
pub(super) fn update_window(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> bool {
    let th = &seg.th;
    let newer = tp.snd_wl1.lt(th.th_seq)
        || (tp.snd_wl1 == th.th_seq
            && (tp.snd_wl2.lt(th.th_ack) || (tp.snd_wl2 == th.th_ack && seg.tiwin > tp.snd_wnd)));
    if !seg.has(TcpFlags::ACK) || !newer {
        return false;
    }
    if seg.tlen == 0 && tp.snd_wl2 == th.th_ack && seg.tiwin > tp.snd_wnd {
        c.vt.stat.tcps_rcvwinupd.inc();
    }
    tp.snd_wnd = seg.tiwin;
    tp.snd_wl1 = th.th_seq;
    tp.snd_wl2 = th.th_ack;
    tp.max_sndwnd = tp.max_sndwnd.max(tp.snd_wnd);
    true
}

/// Follows the urgent pointer: marks the stream before the last byte of urgent data, and takes that out of it unless the
/// program wants it there (RFC 9293 §3.8.5; the pointer points behind the byte, RFC 6093 §2.1).
///
/// Differs from FreeBSD: of a segment out of order the byte stays in the stream, where a program that reads to the mark
/// finds it next.
pub(super) fn urgent(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) {
    let th_urp = u32::from(seg.th.th_urp);
    if !seg.has(TcpFlags::URG) || th_urp == 0 || tp.t_state.have_received_fin() {
        tp.rcv_up = tp.rcv_up.max(tp.rcv_nxt);
        return;
    }
    let mut rcv = c.so.rcv.lock();
    let used = rcv.used();
    if th_urp.saturating_add(used) > sb_limits().sb_max {
        return;
    }
    let up = seg.th.th_seq + th_urp;
    if up.gt(tp.rcv_up) {
        tp.rcv_up = up;
        rcv.set_oobmark((used + up.since(tp.rcv_nxt)).saturating_sub(1));
        tp.t_oob = Oob::None;
        // Who polls for urgent data hears of it before it has come.
        c.so.sorwakeup(rcv);
    } else {
        drop(rcv);
    }
    let inline = c.so.options().contains(SoOptions::OOBINLINE);
    let in_order =
        seg.th.th_seq == tp.rcv_nxt && tp.t_segq.is_none() && tp.t_state.have_established();
    if th_urp <= seg.tlen && !inline && in_order {
        pull_out_of_band(tp, seg, th_urp - 1);
    }
}

/// Takes byte `at` out of the payload. The segment counts it still.
#[doc(alias = "tcp_pulloutofband")]
fn pull_out_of_band(tp: &mut Tcpcb, seg: &mut Segment, at: u32) {
    let Some(m) = &mut seg.m else { return };
    let at = (seg.hdrlen + at) as usize;
    let Some(mut rest) = m.split(at, How::NoWait) else {
        return;
    };
    let mut byte = [0];
    if rest.copydata(0, &mut byte) {
        tp.t_oob = Oob::Have(byte[0]);
        rest.trim_front(1);
    }
    m.cat_pkt(rest);
}

/// Whether the ACK of this segment may wait for the next, or for 40 ms.
#[doc(alias = "DELAY_ACK")]
#[inline]
pub(super) fn may_delay_ack(c: &Conn<'_>, tp: &Tcpcb, tlen: u32) -> bool {
    !tp.t_timers.active(TcpTimer::Delack)
        && !tp.t_flags.contains(Tf::RXWIN0SENT)
        && tlen <= tp.t_maxseg
        && c.vt.tun.delayed_ack.get()
}

/// Hands payload and FIN on.
pub(super) fn dodata(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> Step {
    let mut fin = seg.has(TcpFlags::FIN);
    if (seg.tlen > 0 || fin) && !tp.t_state.have_received_fin() {
        let in_order = seg.th.th_seq == tp.rcv_nxt && tp.t_segq.is_none();
        let fast_open = tp.t_state == TcpState::SynReceived && tp.fast_open_child();
        if in_order && (tp.t_state.have_established() || fast_open) {
            append(c, tp, seg);
        } else {
            fin = reassemble(c, tp, seg);
            tp.t_flags |= Tf::ACKNOW;
        }
    } else {
        fin = false;
        seg.m = None;
    }
    if fin { fin_received(c, tp) } else { Ok(()) }
}

/// The next bytes, in order, with nothing queued.
fn append(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) {
    let stat = &c.vt.stat;
    if may_delay_ack(c, tp, seg.tlen) {
        tp.t_flags |= Tf::DELACK;
    } else {
        tp.t_flags |= Tf::ACKNOW;
    }
    tp.rcv_nxt += seg.tlen;
    stat.tcps_rcvpack.add(u64::from(seg.nsegs));
    stat.tcps_rcvbyte.add(u64::from(seg.tlen));
    if let Some(sack) = &mut tp.t_sack {
        sack.update_sack_list(tp.rcv_nxt, tp.rcv_nxt, tp.rcv_nxt);
    }
    let tlen = seg.tlen;
    let m = seg.take_payload();
    let mut rcv = c.so.rcv.lock();
    if rcv.state().contains(SbState::CANTRCVMORE) {
        return;
    }
    autosize_receive_buffer(c, tp, &mut rcv, tlen);
    if tlen > 0
        && let Some(m) = m
    {
        rcv.appendstream(m);
    }
    c.so.sorwakeup(rcv);
}

/// Puts the segment into the reassembly queue, and hands on what is contiguous now. Says whether the FIN is next.
#[doc(alias = "tcp_reass")]
fn reassemble(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> bool {
    let stat = &c.vt.stat;
    let (hiwat, mbmax, used) = {
        let rcv = c.so.rcv.lock();
        (rcv.hiwat(), rcv.mbmax(), rcv.mbcnt())
    };
    let limits = Limits {
        ranges: (hiwat / tp.t_maxseg.max(1) + 1).min(c.vt.tun.reass_maxqueuelen.get()) as usize,
        mbcnt: mbmax.saturating_sub(used),
        global: c.vt.reass_maxsegments,
    };
    let next = tp.rcv_nxt;
    let start = seg.th.th_seq;
    let len = seg.tlen;
    let mut queue = tp
        .t_segq
        .take()
        .unwrap_or_else(|| Box::new(ReassQueue::new(&c.vt.reass_segments)));
    let mut full = false;
    if len > 0
        && let Some(m) = seg.take_payload()
    {
        match queue.insert(start, m, len, next, limits) {
            Queued::Kept {
                start: from,
                end: to,
                dup,
                repeated,
            } => {
                if dup > 0 {
                    stat.tcps_rcvpartduppack.inc();
                    stat.tcps_rcvpartdupbyte.add(u64::from(dup));
                    report_repeated(tp, repeated);
                }
                if start != next {
                    tp.t_rcvoopack = tp.t_rcvoopack.wrapping_add(1);
                    stat.tcps_rcvoopack.add(u64::from(seg.nsegs));
                    stat.tcps_rcvoobyte.add(u64::from(len));
                    report(tp, from, to);
                }
            }
            Queued::Duplicate { within } => {
                stat.tcps_rcvduppack.inc();
                stat.tcps_rcvdupbyte.add(u64::from(len));
                report(tp, within.start, within.end);
                let end = start + len;
                report_repeated(tp, SackBlk { start, end });
            }
            Queued::Full => {
                full = true;
                stat.tcps_rcvreassfull.inc();
            }
        }
    }
    if seg.has(TcpFlags::FIN) && !full {
        queue.set_fin(start + len);
    }
    tp.t_segq = Some(queue);
    pass_queued(c, tp)
}

/// Remembers to report what came twice: of several ranges the lowest (RFC 2883 §4.1), which may have been cut off
/// before as older than the window.
fn report_repeated(tp: &mut Tcpcb, repeated: SackBlk) {
    if tp.t_flags.contains(Tf::SACK_PERMIT)
        && tp.t_state.have_established()
        && !tp.sack_mut().has_dsack()
    {
        tp.sack_mut().update_dsack(repeated.start, repeated.end);
    }
}

/// Remembers to report `from..to`.
fn report(tp: &mut Tcpcb, from: crate::tcp_seq::TcpSeq, to: crate::tcp_seq::TcpSeq) {
    if tp.t_flags.contains(Tf::SACK_PERMIT) && tp.t_state.have_established() {
        let rcv_nxt = tp.rcv_nxt;
        tp.sack_mut().update_sack_list(rcv_nxt, from, to);
    }
}

/// Hands on what is contiguous in the reassembly queue. Says whether the FIN is next.
pub(super) fn pass_queued(c: &Conn<'_>, tp: &mut Tcpcb) -> bool {
    if !tp.t_state.have_established() {
        // Not before the handshake is complete.
        return false;
    }
    let Some(queue) = &mut tp.t_segq else {
        return false;
    };
    if let Some((mut segments, end)) = queue.take_ready(tp.rcv_nxt) {
        let bytes = end.since(tp.rcv_nxt);
        c.vt.stat.tcps_rcvpack.add(segments.len() as u64);
        c.vt.stat.tcps_rcvbyte.add(u64::from(bytes));
        tp.rcv_nxt = end;
        let mut rcv = c.so.rcv.lock();
        if rcv.state().contains(SbState::CANTRCVMORE) {
            segments.clear();
        }
        while let Some(m) = segments.pop() {
            rcv.appendstream(m);
        }
        c.so.sorwakeup(rcv);
        if let Some(sack) = &mut tp.t_sack {
            sack.update_sack_list(end, end, end);
        }
    }
    let fin = queue.fin_at(tp.rcv_nxt);
    if fin || queue.is_empty() {
        tp.t_segq = None;
    }
    fin
}

/// The peer sends no more.
fn fin_received(c: &Conn<'_>, tp: &mut Tcpcb) -> Step {
    if !tp.t_state.have_received_fin() {
        c.so.socantrcvmore();
        tp.t_flags |= Tf::ACKNOW;
        tp.rcv_nxt += 1;
    }
    match tp.t_state {
        TcpState::SynReceived => {
            tp.t_starttime = c.net.now;
            tcp_state_change(c, tp, TcpState::CloseWait);
        }
        TcpState::Established => tcp_state_change(c, tp, TcpState::CloseWait),
        TcpState::FinWait1 => tcp_state_change(c, tp, TcpState::Closing),
        TcpState::FinWait2 => {
            tcp_twstart(c, tp);
            return Err(Exit::Drop);
        }
        TcpState::Closed
        | TcpState::Listen
        | TcpState::SynSent
        | TcpState::CloseWait
        | TcpState::Closing
        | TcpState::LastAck
        | TcpState::TimeWait => {}
    }
    Ok(())
}

/// Grows the receive buffer when more than 3/8 of it arrive within half a round trip.
#[doc(alias = "tcp_autorcvbuf")]
#[inline]
pub(super) fn autosize_receive_buffer(
    c: &Conn<'_>,
    tp: &mut Tcpcb,
    rcv: &mut RcvGuard<'_>,
    tlen: u32,
) {
    let tun = &c.vt.tun;
    if tp.t_srtt == 0 || tp.rfbuf_ts == 0 {
        tp.rfbuf_cnt = tp.rfbuf_cnt.saturating_add(tlen);
        return;
    }
    let elapsed = c.net.now.0.wrapping_sub(tp.rfbuf_ts);
    if elapsed <= (tp.t_srtt >> TCP_RTT_SHIFT) as u32 / 2 {
        tp.rfbuf_cnt = tp.rfbuf_cnt.saturating_add(tlen);
        return;
    }
    let hiwat = rcv.hiwat();
    let max = tun.recvbuf_max.get();
    if rcv.autosize()
        && tun.recvbuf_auto.get()
        && tp.rfbuf_cnt > hiwat / 8 * 3
        && hiwat < max
        && rcv
            .reserve((hiwat + hiwat / 2).min(max), &sb_limits())
            .is_err()
    {
        rcv.set_autosize(false);
    }
    tp.rfbuf_ts = 0;
    tp.rfbuf_cnt = 0;
}
