//! The ways out of `tcp_do_segment`.
//!
//! FreeBSD: the labels dropafterack, dropwithreset, drop, check_delack (tcp_input.c)

use crate::ip_icmp::Bandlim;
use crate::tcp::{TcpFlags, TcpHeader};
use crate::tcp_fsm::TcpState;
use crate::tcp_input::{Segment, reset_allowed};
use crate::tcp_output::tcp_output;
use crate::tcp_subr::{Conn, Refusal, tcp_dropwithreset, tcp_respond};
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{Tcpcb, Tf};

/// How the steps are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    /// Drop the segment, and acknowledge what we have.
    DropAfterAck,
    /// Drop the segment and answer with RST, as often as this kind may be.
    DropWithReset(Option<Bandlim>),
    /// Drop the segment.
    Drop,
    /// Start the delayed ACK if one is owed.
    CheckDelack,
    /// Everything was taken: send what is owed.
    Output {
        /// Something may be sent that could not be before.
        needed: bool,
    },
}

/// A step returns what the next needs, or leaves.
pub(super) type Step<T = ()> = Result<T, Exit>;

/// Leaves.
#[inline]
pub(super) fn finish(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment, exit: Exit) {
    if tp.t_flags.contains(Tf::CLOSED) {
        if let Exit::DropWithReset(kind) = exit {
            reset(c, tp, seg, kind);
        }
        return;
    }
    match exit {
        Exit::Output { needed } => {
            if needed || tp.t_flags.contains(Tf::ACKNOW) {
                let _ = tcp_output(c, tp);
            }
            check_delack(c, tp);
        }
        Exit::CheckDelack => check_delack(c, tp),
        Exit::Drop => {}
        Exit::DropAfterAck => {
            // In SYN_RECEIVED an ACK that is not for our SYN is an attack, or from another time.
            if tp.t_state == TcpState::SynReceived
                && seg.has(TcpFlags::ACK)
                && (tp.snd_una.gt(seg.th.th_ack) || seg.th.th_ack.gt(tp.snd_max))
            {
                reset(c, tp, seg, Some(Bandlim::RstOpenport));
                return;
            }
            tp.t_flags |= Tf::ACKNOW;
            let _ = tcp_output(c, tp);
        }
        Exit::DropWithReset(kind) => reset(c, tp, seg, kind),
    }
}

fn reset(c: &Conn<'_>, tp: &Tcpcb, seg: &Segment, kind: Option<Bandlim>) {
    if reset_allowed(c.net, kind) {
        let refusal = Refusal::of(c.hdr, tp, c.net.now, seg.src.is_ipv6());
        tcp_dropwithreset(c.net, Some(&refusal), seg);
    }
}

#[inline]
fn check_delack(c: &Conn<'_>, tp: &mut Tcpcb) {
    if tp.t_flags.contains(Tf::DELACK) {
        tp.t_flags.remove(Tf::DELACK);
        tp.t_timers
            .activate(TcpTimer::Delack, c.net.now, c.vt.tun.delacktime.get());
    }
}

/// Says where we are, to someone who may not be our peer; so often per second and no more (RFC 5961 §7).
#[doc(alias = "tcp_send_challenge_ack")]
pub(super) fn challenge_ack(c: &Conn<'_>, tp: &mut Tcpcb, _th: &TcpHeader) {
    let window = c.vt.tun.ack_war_timewindow.get();
    let limit = c.vt.tun.ack_war_cnt.get();
    if window != 0 && limit != 0 {
        if c.net.now - tp.t_challenge_ack_end >= 0 {
            tp.t_challenge_ack_cnt = 0;
            tp.t_challenge_ack_end = c.net.now + window;
        }
        if tp.t_challenge_ack_cnt >= limit {
            return;
        }
        tp.t_challenge_ack_cnt += 1;
    }
    tcp_respond(c, tp, tp.rcv_nxt, tp.snd_nxt, TcpFlags::ACK);
    tp.last_ack_sent = tp.rcv_nxt;
}
