//! Header prediction: the two segments an established connection nearly always sees.
//!
//! FreeBSD: tcp_do_segment (tcp_input.c), "Header prediction"
//! Van Jacobson's: the next bytes in order, or an ACK of bytes outstanding, with nothing else changed.

use sys::sockbuf::SbState;

use crate::cc::{CcAck, CcSignal};
use crate::tcp::{TcpFlags, TcpOptFlags};
use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
use crate::tcp_input::ack::sample_rtt;
use crate::tcp_input::data::{autosize_receive_buffer, may_delay_ack};
use crate::tcp_input::exits::Exit;
use crate::tcp_input::options::older;
use crate::tcp_output::tcp_output;
use crate::tcp_subr::Conn;
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{Tcpcb, Tf};

/// Deals with the segment if it is one of the two, else leaves it to the steps.
#[inline]
pub(super) fn header_prediction(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> Option<Exit> {
    let flags = seg.th.th_flags
        & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST | TcpFlags::URG | TcpFlags::ACK);
    let timestamp = seg.to.to_flags.contains(TcpOptFlags::TS);
    if tp.t_state != TcpState::Established
        || seg.th.th_seq != tp.rcv_nxt
        || flags != TcpFlags::ACK
        || tp.snd_nxt != tp.snd_max
        || seg.tiwin == 0
        || seg.tiwin != tp.snd_wnd
        || tp.t_flags.intersects(Tf::NEEDSYN | Tf::NEEDFIN)
        || tp.t_segq.is_some()
        || (timestamp && older(seg.to.to_tsval, tp.ts_recent))
    {
        return None;
    }
    if seg.tlen == 0 {
        let new = seg.th.th_ack.gt(tp.snd_una) && seg.th.th_ack.leq(tp.snd_max);
        if !new
            || tp.in_recovery()
            || seg.to.to_nsacks > 0
            || tp.t_sack.as_ref().is_some_and(|sack| sack.has_holes())
        {
            return None;
        }
        record(c, tp, seg, timestamp);
        return Some(pure_ack(c, tp, seg));
    }
    if seg.th.th_ack != tp.snd_una {
        return None;
    }
    pure_data(c, tp, seg, timestamp)
}

#[inline]
fn record(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment, timestamp: bool) {
    if timestamp && seg.th.th_seq.leq(tp.last_ack_sent) {
        tp.ts_recent_age = c.net.now;
        tp.ts_recent = seg.to.to_tsval;
    }
}

/// An ACK of bytes outstanding, and nothing else.
#[inline]
fn pure_ack(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> Exit {
    let stat = &c.vt.stat;
    let now = c.net.now;
    let th_ack = seg.th.th_ack;
    stat.tcps_predack.inc();
    if !seg.to.to_flags.contains(TcpOptFlags::TS)
        && tp.t_rxtshift == 1
        && tp.t_flags.contains(Tf::PREVVALID)
        && tp.t_prev.t_badrxtwin != 0
        && older(now.0, tp.t_prev.t_badrxtwin)
    {
        stat.tcps_sndrexmitbad.inc();
        tp.cc_cong_signal(&c.vt.tun, now, th_ack, CcSignal::RtoErr);
    }
    sample_rtt(c, tp, seg);
    let acked = th_ack.since(tp.snd_una);
    stat.tcps_rcvackpack.add(u64::from(seg.nsegs));
    stat.tcps_rcvackbyte.add(u64::from(acked));
    // snd_recover must not fall half the circle behind.
    if tp.snd_una.gt(tp.snd_recover) && th_ack.leq(tp.snd_recover) {
        tp.snd_recover = th_ack - 1;
    }
    tp.cc_ack_received(&c.vt.tun, now, th_ack, seg.nsegs, CcAck::Ack);
    tp.snd_una = th_ack;
    tp.snd_wl2 = th_ack;
    tp.t_dupacks = 0;
    let outstanding = tp.snd_max.since(tp.snd_una);
    if outstanding == 0 {
        tp.t_timers.stop(TcpTimer::Rexmt);
    } else if !tp.t_timers.active(TcpTimer::Persist) {
        tp.t_timers.activate(TcpTimer::Rexmt, now, tp.t_rxtcur);
    }
    let left = {
        let mut snd = c.so.snd.lock();
        snd.drop_bytes(acked);
        let left = snd.used();
        c.so.sowwakeup(snd);
        left
    };
    tp.t_acktime = (left > 0).then_some(now);
    if tp.t_flags.contains(Tf::ACKNOW) || left > outstanding {
        let _ = tcp_output(c, tp);
    }
    Exit::CheckDelack
}

/// The next bytes in order, with room for them and nothing in the reassembly queue.
#[inline]
fn pure_data(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment, timestamp: bool) -> Option<Exit> {
    let stat = &c.vt.stat;
    let mut rcv = c.so.rcv.lock();
    if i64::from(seg.tlen) > i64::from(rcv.space()) {
        return None;
    }
    record(c, tp, seg, timestamp);
    if let Some(sack) = &mut tp.t_sack {
        sack.clean_report();
    }
    stat.tcps_preddat.inc();
    tp.rcv_nxt += seg.tlen;
    tp.snd_wl1 = seg.th.th_seq;
    tp.rcv_up = tp.rcv_nxt;
    stat.tcps_rcvpack.add(u64::from(seg.nsegs));
    stat.tcps_rcvbyte.add(u64::from(seg.tlen));
    autosize_receive_buffer(c, tp, &mut rcv, seg.tlen);
    let m = seg.take_payload();
    if !rcv.state().contains(SbState::CANTRCVMORE)
        && let Some(m) = m
    {
        rcv.appendstream(m);
    }
    c.so.sorwakeup(rcv);
    if !tp.t_flags.contains(Tf::ACKNOW) && may_delay_ack(c, tp, seg.tlen) {
        tp.t_flags |= Tf::DELACK;
    } else {
        tp.t_flags |= Tf::ACKNOW;
        let _ = tcp_output(c, tp);
    }
    Some(Exit::CheckDelack)
}
