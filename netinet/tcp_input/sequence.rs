//! Whether a segment belongs to the connection now: SYN_SENT, RST, SYN, the window.
//!
//! FreeBSD: tcp_do_segment (tcp_input.c), from "Calculate amount of space in receive window" to "If segment ends after window"

use sys::errno::Errno;
use sys::socketvar::SoState;

use crate::ip_icmp::Bandlim;
use crate::tcp::{TCP_MAXWIN, TcpFlags};
use crate::tcp_ecn::{tcp_ecn_input_parallel_syn, tcp_ecn_input_syn_sent};
use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
use crate::tcp_input::ack::Resume;
use crate::tcp_input::data::may_delay_ack;
use crate::tcp_input::exits::{Exit, Step, challenge_ack};
use crate::tcp_subr::{
    Conn, tcp_close, tcp_drop, tcp_rcvseqinit, tcp_state_change, tcp_use_metrics,
};
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{Tcpcb, Tf};

/// The window is what there is room for, but never less than was advertised.
pub(super) fn receive_window(c: &Conn<'_>, tp: &mut Tcpcb) {
    let space = c.so.rcv.lock().space().max(0) as u32;
    tp.rcv_wnd = space.max(tp.rcv_adv.since(tp.rcv_nxt));
}

/// In SYN_RECEIVED an ACK must be for our SYN; of Fast Open the first SYN counts too.
pub(super) fn syn_received(tp: &Tcpcb, seg: &Segment) -> Step {
    if tp.t_state == TcpState::SynReceived && tp.fast_open_child() {
        if seg.th.th_flags.contains(TcpFlags::SYN | TcpFlags::ACK) {
            return Err(Exit::DropWithReset(Some(Bandlim::RstOpenport)));
        }
        let answered = tp.t_timers.active(TcpTimer::Delack) || tp.t_timers.active(TcpTimer::Rexmt);
        let useless = match seg.has(TcpFlags::SYN) {
            true => answered,
            false => !seg.has(TcpFlags::ACK | TcpFlags::FIN | TcpFlags::RST),
        };
        if useless {
            return Err(Exit::Drop);
        }
    }
    if tp.t_state == TcpState::SynReceived
        && seg.has(TcpFlags::ACK)
        && !seg.has(TcpFlags::RST)
        && (seg.th.th_ack.leq(tp.snd_una) || seg.th.th_ack.gt(tp.snd_max))
    {
        return Err(Exit::DropWithReset(Some(Bandlim::RstOpenport)));
    }
    Ok(())
}

/// RFC 9293 §3.10.7.3, first: in SYN_SENT an ACK must be for our SYN, before anything else of the segment counts.
#[inline]
pub(super) fn syn_sent_ack(tp: &Tcpcb, seg: &Segment) -> Step {
    if tp.t_state == TcpState::SynSent
        && seg.has(TcpFlags::ACK)
        && (seg.th.th_ack.leq(tp.iss) || seg.th.th_ack.gt(tp.snd_max))
    {
        return Err(Exit::DropWithReset(None));
    }
    Ok(())
}

/// RFC 9293 §3.10.7.3: waits for a SYN, and for an ACK of ours.
pub(super) fn syn_sent(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> Step<Resume> {
    let ack = seg.has(TcpFlags::ACK);
    if seg.has(TcpFlags::RST) {
        if ack {
            tcp_drop(c, tp, Some(Errno::ECONNREFUSED));
        }
        return Err(Exit::Drop);
    }
    if !seg.has(TcpFlags::SYN) {
        return Err(Exit::Drop);
    }
    tp.irs = seg.th.th_seq;
    tcp_rcvseqinit(tp);
    if ack {
        tcp_ecn_input_syn_sent(c, tp, seg.th.th_flags, seg.tos);
        connected(c, tp, seg);
    } else {
        tcp_ecn_input_parallel_syn(c, tp, seg.th.th_flags, seg.tos);
        // Simultaneous open: our SYN goes again, now with an ACK of theirs.
        tp.t_flags |= Tf::ACKNOW;
        tp.snd_nxt = tp.snd_una;
        tp.t_timers.stop(TcpTimer::Rexmt);
        tcp_state_change(c, tp, TcpState::SynReceived);
        tp.rcv_adv += tp.rcv_wnd.min(TCP_MAXWIN);
    }
    // The data begins behind the SYN, and must stay within the window.
    seg.th.th_seq += 1;
    if seg.tlen > tp.rcv_wnd {
        let todrop = seg.tlen - tp.rcv_wnd;
        seg.trim_tail(todrop);
        seg.th.th_flags.remove(TcpFlags::FIN);
        c.vt.stat.tcps_rcvpackafterwin.inc();
        c.vt.stat.tcps_rcvbyteafterwin.add(u64::from(todrop));
    }
    tp.snd_wl1 = seg.th.th_seq - 1;
    tp.rcv_up = seg.th.th_seq;
    Ok(if ack {
        Resume::ProcessAck
    } else {
        Resume::Step6
    })
}

/// Our SYN is acknowledged, and theirs has come.
fn connected(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) {
    c.vt.stat.tcps_connects.inc();
    c.so.soisconnected();
    if tp.t_flags.contains(Tf::RCVD_SCALE | Tf::REQ_SCALE) {
        tp.rcv_scale = tp.request_r_scale;
    }
    tp.rcv_adv += tp.rcv_wnd.min(TCP_MAXWIN << tp.rcv_scale);
    // The SYN counts in sequence numbers, not in the buffer.
    tp.snd_una += 1;
    if tp.snd_nxt.lt(tp.snd_una) {
        tp.snd_nxt = tp.snd_una;
    }
    // Data of the SYN that was not taken is sent again at once.
    let data_sent = tp.t_flags.contains(Tf::FASTOPEN) && tp.snd_una != tp.snd_max;
    if data_sent {
        tp.snd_nxt = seg.th.th_ack;
    }
    if seg.tlen != 0 && !data_sent && may_delay_ack(c, tp, seg.tlen) {
        tp.t_timers
            .activate(TcpTimer::Delack, c.net.now, c.vt.tun.delacktime.get());
    } else {
        tp.t_flags |= Tf::ACKNOW;
    }
    established(c, tp);
}

/// The handshake is complete: ESTABLISHED, or FIN_WAIT_1 if the program has closed meanwhile.
pub(super) fn established(c: &Conn<'_>, tp: &mut Tcpcb) {
    tp.t_starttime = c.net.now;
    if tp.t_flags.contains(Tf::NEEDFIN) {
        tp.t_acktime = Some(c.net.now);
        tcp_state_change(c, tp, TcpState::FinWait1);
        tp.t_flags.remove(Tf::NEEDFIN);
    } else {
        tcp_state_change(c, tp, TcpState::Established);
        // One of Fast Open did so at the SYN; again it would undo what a lost SYN|ACK did to the window.
        if !tp.fast_open_child() {
            tcp_use_metrics(c, tp);
            tp.cc_conn_init(&c.vt.tun, c.net.now);
        }
        tp.t_timers
            .activate(TcpTimer::Keep, c.net.now, tp.keepidle(&c.vt.tun));
    }
}

/// RFC 5961 §3.2: only an exact match resets; anything else in the window earns a challenge ACK.
pub(super) fn check_rst(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> Step {
    if !seg.has(TcpFlags::RST) {
        return Ok(());
    }
    // Compared with `last_ack_sent` rather than `rcv_nxt`, to allow for delayed ACKs.
    let seq = seg.th.th_seq;
    let edge = tp.last_ack_sent;
    let in_window =
        (seq.geq(edge) && seq.lt(edge + tp.rcv_wnd)) || (tp.rcv_wnd == 0 && seq == edge);
    if in_window {
        if seq == edge || c.vt.tun.insecure_rst.get() {
            c.vt.stat.tcps_drops.inc();
            match tp.t_state {
                TcpState::SynReceived => c.so.set_error(Errno::ECONNREFUSED),
                TcpState::Established
                | TcpState::FinWait1
                | TcpState::FinWait2
                | TcpState::CloseWait
                | TcpState::Closing
                | TcpState::LastAck => c.so.set_error(Errno::ECONNRESET),
                TcpState::Closed | TcpState::Listen | TcpState::SynSent | TcpState::TimeWait => {}
            }
            tcp_close(c, tp);
        } else {
            c.vt.stat.tcps_badrst.inc();
            challenge_ack(c, tp, &seg.th);
        }
    }
    Err(Exit::Drop)
}

/// RFC 5961 §4.2: a SYN in a synchronized state earns a challenge ACK.
pub(super) fn check_syn(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> Step {
    if !seg.has(TcpFlags::SYN) || tp.t_state == TcpState::SynReceived {
        return Ok(());
    }
    c.vt.stat.tcps_badsyn.inc();
    let seq = seg.th.th_seq;
    let edge = tp.last_ack_sent;
    if c.vt.tun.insecure_syn.get() && seq.geq(edge) && seq.lt(edge + tp.rcv_wnd) {
        tcp_drop(c, tp, Some(Errno::ECONNRESET));
    } else {
        challenge_ack(c, tp, &seg.th);
    }
    Err(Exit::Drop)
}

/// Cuts what has been received before and what lies beyond the window.
pub(super) fn trim_to_window(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> Step {
    // In SYN_RECEIVED sequence numbers have not wrapped: what is older than the SYN is forged ("LAND").
    if tp.t_state == TcpState::SynReceived && seg.th.th_seq.lt(tp.irs) {
        return Err(Exit::DropWithReset(Some(Bandlim::RstOpenport)));
    }
    trim_front(c, tp, seg);
    // Data that nobody can receive any more. Behind the peer's FIN there is none: that is not the peer's.
    let closed = c.so.state_has(SoState::NOFDREF) && tp.t_state > TcpState::CloseWait;
    if closed && seg.tlen > 0 && !tp.t_state.have_received_fin() {
        c.vt.stat.tcps_rcvafterclose.inc();
        tcp_close(c, tp);
        return Err(Exit::DropWithReset(None));
    }
    trim_back(c, tp, seg)
}

/// Cuts what has been received before.
fn trim_front(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) {
    let mut todrop = tp.rcv_nxt.since(seg.th.th_seq);
    if todrop == 0 {
        return;
    }
    let stat = &c.vt.stat;
    if seg.has(TcpFlags::SYN) {
        seg.th.th_flags.remove(TcpFlags::SYN);
        seg.th.th_seq += 1;
        if seg.th.th_urp > 1 {
            seg.th.th_urp -= 1;
        } else {
            seg.th.th_flags.remove(TcpFlags::URG);
        }
        todrop -= 1;
    }
    if todrop > seg.tlen || (todrop == seg.tlen && !seg.has(TcpFlags::FIN)) {
        // Nothing new in it. A FIN here is a duplicate too. What it acknowledges may still be news.
        seg.th.th_flags.remove(TcpFlags::FIN);
        tp.t_flags |= Tf::ACKNOW;
        todrop = seg.tlen;
        stat.tcps_rcvduppack.inc();
        stat.tcps_rcvdupbyte.add(u64::from(todrop));
    } else {
        stat.tcps_rcvpartduppack.inc();
        stat.tcps_rcvpartdupbyte.add(u64::from(todrop));
    }
    if todrop > 0 && tp.t_flags.contains(Tf::SACK_PERMIT) && tp.t_state.have_established() {
        // RFC 2883 §4: the peer should know at once what came twice.
        let start = seg.th.th_seq;
        tp.sack_mut().update_dsack(start, start + todrop);
        tp.t_flags |= Tf::ACKNOW;
    }
    seg.hdrlen += todrop;
    seg.th.th_seq += todrop;
    seg.tlen -= todrop;
    if u32::from(seg.th.th_urp) > todrop {
        seg.th.th_urp -= todrop as u16;
    } else {
        seg.th.th_flags.remove(TcpFlags::URG);
        seg.th.th_urp = 0;
    }
}

/// Cuts what lies beyond the window.
fn trim_back(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> Step {
    let todrop = (seg.th.th_seq + seg.tlen).since(tp.rcv_nxt + tp.rcv_wnd);
    if todrop == 0 {
        return Ok(());
    }
    let stat = &c.vt.stat;
    stat.tcps_rcvpackafterwin.inc();
    if todrop >= seg.tlen {
        stat.tcps_rcvbyteafterwin.add(u64::from(seg.tlen));
        // A closed window takes nothing, but the ACK of a probe at its edge counts.
        if tp.rcv_wnd != 0 || seg.th.th_seq != tp.rcv_nxt {
            return Err(Exit::DropAfterAck);
        }
        tp.t_flags |= Tf::ACKNOW;
        stat.tcps_rcvwinprobe.inc();
    } else {
        stat.tcps_rcvbyteafterwin.add(u64::from(todrop));
    }
    seg.trim_tail(todrop);
    seg.th.th_flags.remove(TcpFlags::PUSH | TcpFlags::FIN);
    Ok(())
}
