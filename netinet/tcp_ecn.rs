//! Explicit congestion notification: what routers mark, said back to the sender.
//!
//! FreeBSD: sys/netinet/tcp_ecn.c
//! RFC 3168. Not carried over: accurate ECN (`net.inet.tcp.ecn.enable` 3 and 4).
//! Differs from FreeBSD: a SYN|ACK agrees to ECN only if our SYN asked for it (RFC 3168 §6.1.1).

use crate::tcp::TcpFlags;
use crate::tcp_fsm::TcpState;
use crate::tcp_output::tcp_output;
use crate::tcp_seq::TcpSeq;
use crate::tcp_subr::Conn;
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{TcpStat, TcpTunables, Tcpcb, Tf, Tf2};

/// The field of ECN in an IP header.
pub const IPTOS_ECN_MASK: u8 = 0x03;
/// ECN-capable, the second code point.
pub const IPTOS_ECN_ECT1: u8 = 0x01;
/// ECN-capable, the first.
pub const IPTOS_ECN_ECT0: u8 = 0x02;
/// A router was congested.
pub const IPTOS_ECN_CE: u8 = 0x03;

/// `net.inet.tcp.ecn.enable`: we ask for ECN ourselves.
const ECN_ASK: u32 = 1;

/// Both flags: what asks for ECN in a SYN.
const ECE_CWR: TcpFlags = TcpFlags::ECE.union(TcpFlags::CWR);

/// Whether the SYN that is sent now, or was last, asks for ECN. After so many without an answer it does not: someone on
/// the way may drop it for that.
fn asks(tun: &TcpTunables, tp: &Tcpcb) -> bool {
    tun.ecn_enable.get() == ECN_ASK && u32::from(tp.t_rxtshift) <= tun.ecn_maxretries.get()
}

/// Flags of a SYN.
pub fn tcp_ecn_output_syn_sent(tun: &TcpTunables, tp: &Tcpcb) -> TcpFlags {
    match asks(tun, tp) {
        true => ECE_CWR,
        false => TcpFlags::empty(),
    }
}

/// Adds to the flags of a segment with ECN, and says what its IP header carries: new data is marked, acknowledgements,
/// retransmissions and probes are not (RFC 3168 §6.1.4 to 6.1.6).
pub fn tcp_ecn_output_established(
    stat: &TcpStat,
    tp: &mut Tcpcb,
    flags: &mut TcpFlags,
    len: u32,
    retransmit: bool,
) -> u8 {
    let probe = tp.t_flags.contains(Tf::FORCEDATA) && len == 1 && tp.snd_una.lt(tp.snd_max);
    let new = len > 0 && tp.snd_nxt.geq(tp.snd_max) && !retransmit && !probe;
    let mut ecn = 0;
    if new {
        ecn = IPTOS_ECN_ECT0;
        stat.tcps_ecn_sndect0.inc();
        if tp.t_flags2.contains(Tf2::ECN_SND_CWR) {
            *flags |= TcpFlags::CWR;
            tp.t_flags2.remove(Tf2::ECN_SND_CWR);
        }
    }
    if tp.t_flags2.contains(Tf2::ECN_SND_ECE) {
        *flags |= TcpFlags::ECE;
        if tp.t_state == TcpState::SynReceived {
            // In a SYN|ACK it only agrees to ECN.
            tp.t_flags2.remove(Tf2::ECN_SND_ECE);
        }
    }
    ecn
}

/// The peer's SYN|ACK: whether it agrees to ECN.
pub fn tcp_ecn_input_syn_sent(c: &Conn<'_>, tp: &mut Tcpcb, flags: TcpFlags) {
    if asks(&c.vt.tun, tp) && flags & ECE_CWR == TcpFlags::ECE {
        tp.t_flags2 |= Tf2::ECN_PERMIT;
        c.vt.stat.tcps_ecn_shs.inc();
    }
}

/// The peer's SYN that crossed ours: whether it asks for ECN, which our SYN|ACK then agrees to.
pub fn tcp_ecn_input_parallel_syn(c: &Conn<'_>, tp: &mut Tcpcb, flags: TcpFlags) {
    if tcp_ecn_syncache_add(&c.vt.tun, flags) {
        tp.t_flags2 |= Tf2::ECN_PERMIT | Tf2::ECN_SND_ECE;
        c.vt.stat.tcps_ecn_shs.inc();
    }
}

/// Whether we agree to what a SYN with these flags asks for.
pub fn tcp_ecn_syncache_add(tun: &TcpTunables, flags: TcpFlags) -> bool {
    tun.ecn_enable.get() != 0 && flags.contains(ECE_CWR)
}

/// A segment of a connection: takes what a router marked, and what the peer says of ours. True if the peer was told of
/// congestion.
pub fn tcp_ecn_input_segment(
    c: &Conn<'_>,
    tp: &mut Tcpcb,
    flags: TcpFlags,
    tos: u8,
    tlen: u32,
) -> bool {
    if !tp.t_flags2.contains(Tf2::ECN_PERMIT) {
        return false;
    }
    let stat = &c.vt.stat;
    let ecn = tos & IPTOS_ECN_MASK;
    match ecn {
        IPTOS_ECN_CE => stat.tcps_ecn_rcvce.inc(),
        IPTOS_ECN_ECT0 => stat.tcps_ecn_rcvect0.inc(),
        IPTOS_ECN_ECT1 => stat.tcps_ecn_rcvect1.inc(),
        _ => {}
    }
    if tlen > 0
        && let Some(changed) = tp.cc_ecnpkt_handler(ecn == IPTOS_ECN_CE)
    {
        echo_each(c, tp, ecn == IPTOS_ECN_CE, changed);
        return flags & (TcpFlags::SYN | TcpFlags::ECE) == TcpFlags::ECE;
    }
    if flags.contains(TcpFlags::CWR) {
        tp.t_flags2.remove(Tf2::ECN_SND_ECE);
        // RFC 3168 §6.1.3: the sender wants to know that its window counts from here.
        tp.t_flags |= Tf::ACKNOW;
    }
    if ecn == IPTOS_ECN_CE {
        tp.t_flags2 |= Tf2::ECN_SND_ECE;
    }
    flags & (TcpFlags::SYN | TcpFlags::ECE) == TcpFlags::ECE
}

/// Echoes the mark of this very segment (RFC 8257 §3.2).
#[doc(alias = "cc_ecnpkt_handler_flags")]
fn echo_each(c: &Conn<'_>, tp: &mut Tcpcb, ce: bool, changed: bool) {
    let delayed = tp.t_flags.contains(Tf::DELACK) || tp.t_timers.active(TcpTimer::Delack);
    if changed && delayed {
        // What was not acknowledged yet was as before.
        tp.t_flags |= Tf::ACKNOW;
        let _ = tcp_output(c, tp);
    }
    tp.t_flags2.set(Tf2::ECN_SND_ECE, ce);
    if changed {
        tp.t_flags |= Tf::ACKNOW;
    }
}

/// The peer reports congestion: the window is reduced, once per window.
pub fn tcp_ecn_congestion(c: &Conn<'_>, tp: &mut Tcpcb, ack: TcpSeq) {
    let before = tp.snd_recover;
    tp.cc_cong_signal(&c.vt.tun, c.net.now, ack, crate::cc::CcSignal::Ecn);
    if tp.snd_recover != before {
        c.vt.stat.tcps_ecn_rcwnd.inc();
    }
}
