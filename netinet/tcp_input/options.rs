//! Timestamps: which segments are too old, and what the options of a SYN settle.
//!
//! FreeBSD: tcp_do_segment (tcp_input.c), "Parse options" to "tolerate_missing_ts", "RFC 1323 PAWS", "record its timestamp"
//! RFC 7323.

use sys::time::Ticks;

use crate::cc::CcSignal;
use crate::tcp::{TcpFlags, TcpOptFlags};
use crate::tcp_fastopen::tcp_fastopen_input_syn_sent;
use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
use crate::tcp_input::exits::{Exit, Step};
use crate::tcp_subr::{Conn, tcp_mss};
use crate::tcp_var::{Tcpcb, Tf};

/// RFC 7323 §5.5: after 24 days without a segment a timestamp says nothing about age (`TCP_PAWS_IDLE`).
pub(super) const PAWS_IDLE: u32 = 24 * 24 * 60 * 60 * 1000;

/// Whether timestamp `a` is older than `b` (`TSTMP_LT`).
#[inline]
pub(super) fn older(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Takes what the options settle, and refuses segments without the timestamps agreed on.
#[inline]
pub(super) fn check(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> Step {
    if tp.t_state == TcpState::SynSent && seg.has(TcpFlags::SYN) {
        settle(c, tp, seg);
    }
    let agreed = tp.t_flags.contains(Tf::RCVD_TSTMP);
    let has = seg.to.to_flags.contains(TcpOptFlags::TS);
    if agreed && !has && !seg.has(TcpFlags::RST) && !c.vt.tun.tolerate_missing_ts.get() {
        return Err(Exit::Drop);
    }
    if !agreed {
        seg.to.to_flags.remove(TcpOptFlags::TS);
        return Ok(());
    }
    if has && seg.to.to_tsecr != 0 {
        // Our clock when the echoed segment was sent; an echo from the future is none.
        let echoed = seg.to.to_tsecr.wrapping_sub(tp.ts_offset);
        if older(c.net.now.0, echoed) {
            seg.to.to_tsecr = 0;
        } else if tp.t_rxtshift == 1
            && tp.t_flags.contains(Tf::PREVVALID)
            && tp.t_prev.t_badrxtwin != 0
            && older(seg.to.to_tsecr, tp.t_prev.t_badrxtwin)
        {
            // RFC 3522: the ACK answers the original, so the timeout was spurious.
            c.vt.stat.tcps_sndrexmitbad.inc();
            tp.cc_cong_signal(&c.vt.tun, c.net.now, seg.th.th_ack, CcSignal::RtoErr);
        }
    }
    Ok(())
}

/// What the options of the peer's SYN say to what ours asked for.
fn settle(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) {
    let to = &seg.to;
    let wanted = !tp.t_flags.contains(Tf::NOOPT);
    if wanted && to.to_flags.contains(TcpOptFlags::SCALE) && tp.t_flags.contains(Tf::REQ_SCALE) {
        tp.t_flags |= Tf::RCVD_SCALE;
        tp.snd_scale = to.to_wscale;
    } else {
        tp.t_flags.remove(Tf::REQ_SCALE);
    }
    // The window of a SYN is not scaled.
    tp.snd_wnd = u32::from(seg.th.th_win);
    if wanted && to.to_flags.contains(TcpOptFlags::TS) && tp.t_flags.contains(Tf::REQ_TSTMP) {
        tp.t_flags |= Tf::RCVD_TSTMP;
        tp.ts_recent = to.to_tsval;
        tp.ts_recent_age = c.net.now;
    } else {
        tp.t_flags.remove(Tf::REQ_TSTMP);
    }
    if to.to_flags.contains(TcpOptFlags::MSS) {
        tcp_mss(c, tp, Some(to.to_mss));
    }
    if !wanted || !to.to_flags.contains(TcpOptFlags::SACKPERM) {
        tp.t_flags.remove(Tf::SACK_PERMIT);
    }
    tcp_fastopen_input_syn_sent(c, tp, &seg.th, &seg.to);
}

/// Protection against wrapped sequence numbers: a segment older than the newest is dropped (RFC 7323 §5).
pub(super) fn paws(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> Step {
    if !seg.to.to_flags.contains(TcpOptFlags::TS)
        || tp.ts_recent == 0
        || !older(seg.to.to_tsval, tp.ts_recent)
    {
        return Ok(());
    }
    if too_long_ago(c.net.now, tp.ts_recent_age) {
        // Invalid until a segment in the window sets it again; zero is echoed meanwhile.
        tp.ts_recent = 0;
        return Ok(());
    }
    let stat = &c.vt.stat;
    stat.tcps_rcvduppack.inc();
    stat.tcps_rcvdupbyte.add(u64::from(seg.tlen));
    stat.tcps_pawsdrop.inc();
    Err(if seg.tlen > 0 {
        Exit::DropAfterAck
    } else {
        Exit::Drop
    })
}

fn too_long_ago(now: Ticks, age: Ticks) -> bool {
    now.0.wrapping_sub(age.0) > PAWS_IDLE
}

/// Remembers the timestamp of the segment that covers the last ACK sent (RFC 7323 §4.3).
#[inline]
pub(super) fn record_timestamp(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) {
    if !seg.to.to_flags.contains(TcpOptFlags::TS) {
        return;
    }
    let control = u32::from(seg.has(TcpFlags::SYN | TcpFlags::FIN));
    if seg.th.th_seq.leq(tp.last_ack_sent)
        && tp.last_ack_sent.leq(seg.th.th_seq + seg.tlen + control)
    {
        tp.ts_recent_age = c.net.now;
        tp.ts_recent = seg.to.to_tsval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_timestamp_is_believed_again_after_24_idle_days() {
        assert!(!too_long_ago(Ticks(1_000), Ticks(0)));
        assert!(!too_long_ago(Ticks(PAWS_IDLE), Ticks(0)));
        assert!(too_long_ago(Ticks(PAWS_IDLE + 1), Ticks(0)));
        assert!(older(499, 500) && !older(500, 500));
        assert!(older(u32::MAX, 5));
    }
}
