//! Explicit congestion notification: what routers mark, said back to the sender.
//!
//! FreeBSD: sys/netinet/tcp_ecn.c
//! RFC 3168; accurate ECN by RFC 9768, which counts the marks instead of only telling that there were some. Like FreeBSD's
//! it does without the option, so that what counts is the three bits of the ACE field.
//! Differs from FreeBSD: a SYN|ACK agrees to ECN only if our SYN asked for it (RFC 3168 §6.1.1), and the ACE field counts
//! only in segments that acknowledge what is outstanding (RFC 9768 §3.2.2.5).

use crate::tcp::TcpFlags;
use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
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
/// We ask for accurate ECN ourselves; with the next value we agree to it if the peer asks.
const ACE_ASK: u32 = 3;

/// Both flags: what asks for ECN in a SYN.
const ECE_CWR: TcpFlags = TcpFlags::ECE.union(TcpFlags::CWR);
/// The ACE field: what asks for accurate ECN in a SYN.
const ACE: TcpFlags = ECE_CWR.union(TcpFlags::AE);
/// Where both counters of marks begin (RFC 9768 §3.2.1): a field cleared on the way looks like marks.
pub const ACE_INIT: u32 = 5;

/// What a SYN asked for, and we agree to (`SCF_ECN_MASK`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EcnOffer {
    /// Nothing.
    #[default]
    None,
    /// ECN by RFC 3168.
    Classic,
    /// Accurate ECN; this was in the IP header of the SYN.
    Accurate(u8),
}

/// The ACE field of `flags`.
fn ace(flags: TcpFlags) -> u32 {
    u32::from((flags & ACE).bits() / TcpFlags::ECE.bits())
}

/// The flags of a count.
fn ace_flags(count: u32) -> TcpFlags {
    TcpFlags::from_bits_truncate((count & 7) as u16 * TcpFlags::ECE.bits())
}

/// The ACE field that says how a SYN or SYN|ACK arrived (RFC 9768 §3.1.1, table 2).
fn arrived_ace(ecn: u8) -> u32 {
    match ecn & IPTOS_ECN_MASK {
        IPTOS_ECN_ECT1 => 0b011,
        IPTOS_ECN_ECT0 => 0b100,
        IPTOS_ECN_CE => ARRIVED_CE,
        _ => 0b010,
    }
}

/// The same of one that was marked.
const ARRIVED_CE: u32 = 0b110;

/// Where the counter begins behind such a field: with the mark of the handshake, if there was one.
fn first_count(arrived: u32) -> u32 {
    ACE_INIT + u32::from(arrived == ARRIVED_CE)
}

/// What the SYN that is sent now, or was last, asks for. After so many without an answer it does not: someone on the way
/// may drop it for that.
pub fn tcp_ecn_output_syn_sent(tun: &TcpTunables, tp: &Tcpcb) -> TcpFlags {
    let asked = match tun.ecn_enable.get() {
        ECN_ASK => ECE_CWR,
        ACE_ASK => ACE,
        _ => TcpFlags::empty(),
    };
    match u32::from(tp.t_rxtshift) <= tun.ecn_maxretries.get() {
        true => asked,
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
    }
    if tp.t_flags2.contains(Tf2::ACE_PERMIT) {
        flags.remove(ACE);
        *flags |= ace_flags(tp.t_rcep);
        if !tp.t_flags2.contains(Tf2::ECN_PERMIT) && tp.t_state.have_established() {
            // That was the last of the handshake; from now on the field counts.
            tp.t_rcep = first_count(tp.t_rcep);
            tp.t_flags2 |= Tf2::ECN_PERMIT;
        }
        return ecn;
    }
    if new && tp.t_flags2.contains(Tf2::ECN_SND_CWR) {
        *flags |= TcpFlags::CWR;
        tp.t_flags2.remove(Tf2::ECN_SND_CWR);
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

/// The peer's SYN|ACK, with `tos` in its IP header: whether it agrees to what our SYN asked for.
pub fn tcp_ecn_input_syn_sent(c: &Conn<'_>, tp: &mut Tcpcb, flags: TcpFlags, tos: u8) {
    let asked = tcp_ecn_output_syn_sent(&c.vt.tun, tp);
    if asked.is_empty() {
        return;
    }
    if flags & ECE_CWR == TcpFlags::ECE && !(asked == ACE && flags.contains(TcpFlags::AE)) {
        tp.t_flags2 |= Tf2::ECN_PERMIT;
        c.vt.stat.tcps_ecn_shs.inc();
        return;
    }
    let arrived = ace(flags);
    if asked == ACE && matches!(arrived, 0b010 | 0b011 | 0b100 | ARRIVED_CE) {
        tp.t_flags2 |= Tf2::ACE_PERMIT;
        tp.t_scep = first_count(arrived);
        tp.t_rcep = arrived_ace(tos);
        c.vt.stat.tcps_ecn_shs.inc();
        count_arrived(&c.vt.stat, arrived);
    }
}

/// Counts how the SYN of a handshake with accurate ECN arrived.
fn count_arrived(stat: &TcpStat, arrived: u32) {
    match arrived {
        0b011 => stat.tcps_ace_ect1.inc(),
        0b100 => stat.tcps_ace_ect0.inc(),
        ARRIVED_CE => stat.tcps_ace_ce.inc(),
        _ => stat.tcps_ace_nect.inc(),
    }
}

/// The peer's SYN that crossed ours, with `tos` in its IP header: what it asks for, our SYN|ACK then agrees to.
pub fn tcp_ecn_input_parallel_syn(c: &Conn<'_>, tp: &mut Tcpcb, flags: TcpFlags, tos: u8) {
    let offer = tcp_ecn_syncache_add(&c.vt.tun, flags, tos);
    if offer == EcnOffer::None {
        return;
    }
    tcp_ecn_syncache_socket(tp, offer);
    tcp_ecn_agree(tp, offer);
    c.vt.stat.tcps_ecn_shs.inc();
}

/// Whether we agree to what a SYN with these flags, and `tos` in its IP header, asks for.
pub fn tcp_ecn_syncache_add(tun: &TcpTunables, flags: TcpFlags, tos: u8) -> EcnOffer {
    let enable = tun.ecn_enable.get();
    match ace(flags) {
        _ if enable == 0 => EcnOffer::None,
        0b000 => EcnOffer::None,
        0b011 => EcnOffer::Classic,
        // What is neither may be a later version of it (RFC 9768 §3.1.3).
        _ if enable >= ACE_ASK => EcnOffer::Accurate(tos & IPTOS_ECN_MASK),
        0b111 => EcnOffer::Classic,
        _ => EcnOffer::None,
    }
}

/// Flags of the SYN|ACK that agrees to `offer`.
pub fn tcp_ecn_syncache_respond(stat: &TcpStat, offer: EcnOffer) -> TcpFlags {
    let flags = match offer {
        EcnOffer::None => return TcpFlags::empty(),
        EcnOffer::Classic => TcpFlags::ECE,
        EcnOffer::Accurate(ecn) => {
            let arrived = arrived_ace(ecn);
            count_arrived(stat, arrived);
            ace_flags(arrived)
        }
    };
    stat.tcps_ecn_shs.inc();
    flags
}

/// The connection whose SYN|ACK has agreed to `offer`.
pub fn tcp_ecn_syncache_socket(tp: &mut Tcpcb, offer: EcnOffer) {
    match offer {
        EcnOffer::None => {}
        EcnOffer::Classic => tp.t_flags2 |= Tf2::ECN_PERMIT,
        EcnOffer::Accurate(ecn) => {
            tp.t_flags2 |= Tf2::ACE_PERMIT;
            tp.t_scep = ACE_INIT;
            tp.t_rcep = first_count(arrived_ace(ecn));
        }
    }
}

/// The connection that sends this SYN|ACK itself.
pub fn tcp_ecn_agree(tp: &mut Tcpcb, offer: EcnOffer) {
    match offer {
        EcnOffer::None => {}
        EcnOffer::Classic => tp.t_flags2 |= Tf2::ECN_SND_ECE,
        EcnOffer::Accurate(ecn) => tp.t_rcep = arrived_ace(ecn),
    }
}

/// A segment of a connection: takes what a router marked, and what the peer says of ours. True if the peer was told of
/// congestion.
pub fn tcp_ecn_input_segment(c: &Conn<'_>, tp: &mut Tcpcb, seg: &Segment) -> bool {
    if !tp.t_flags2.intersects(Tf2::ECN_PERMIT | Tf2::ACE_PERMIT) {
        return false;
    }
    let (flags, tos, tlen) = (seg.th.th_flags, seg.tos, seg.tlen);
    let stat = &c.vt.stat;
    let ecn = tos & IPTOS_ECN_MASK;
    match ecn {
        IPTOS_ECN_CE => stat.tcps_ecn_rcvce.inc(),
        IPTOS_ECN_ECT0 => stat.tcps_ecn_rcvect0.inc(),
        IPTOS_ECN_ECT1 => stat.tcps_ecn_rcvect1.inc(),
        _ => {}
    }
    if tp.t_flags2.contains(Tf2::ACE_PERMIT) {
        return ace_input(tp, seg, ecn == IPTOS_ECN_CE);
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

/// A segment of a connection with accurate ECN: counts its mark, and the marks that it reports. True if there are such.
fn ace_input(tp: &mut Tcpcb, seg: &Segment, ce: bool) -> bool {
    let established = tp.t_flags2.contains(Tf2::ECN_PERMIT);
    let th = &seg.th;
    if th.th_flags.contains(TcpFlags::SYN) {
        // How it arrived was noted with the handshake.
        return false;
    }
    if !established {
        tp.t_rcep = first_count(tp.t_rcep);
    }
    if ce {
        tp.t_rcep = tp.t_rcep.wrapping_add(seg.nsegs);
    }
    if !th.th_flags.contains(TcpFlags::ACK)
        || th.th_flags.contains(TcpFlags::RST)
        || th.th_ack.lt(tp.snd_una)
        || th.th_ack.gt(tp.snd_max)
    {
        return false;
    }
    let field = ace(th.th_flags);
    if !established {
        // The last of the handshake says how our SYN|ACK arrived.
        tp.t_scep = first_count(field);
        tp.t_flags2 |= Tf2::ECN_PERMIT;
        return false;
    }
    let packets = th.th_ack.since(tp.snd_una).div_ceil(tp.maxseg());
    let delta = newly_marked(field, tp.t_scep, packets);
    tp.t_scep = tp.t_scep.wrapping_add(delta);
    delta > 0
}

/// How many marks an ACE field reports beyond the `count` known, in an acknowledgement of `packets`. The field may have
/// wrapped: rather too many than too few (RFC 9768 §3.2.2.5.2).
fn newly_marked(field: u32, count: u32, packets: u32) -> u32 {
    let delta = field.wrapping_sub(count) & 7;
    if delta < packets {
        packets - ((packets - delta) & 7)
    } else {
        delta
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use sys::machine::hosted::Machine;

    #[test]
    fn a_field_of_three_bits_counts_as_many_marks_as_the_packets_acknowledged_allow() {
        for (field, count, packets, marks) in [
            (5, 5, 2, 0),
            (6, 5, 2, 1),
            (0, 7, 1, 1),
            (5, 13, 2, 0),
            // Eight of ten may have been marked, or none.
            (5, 5, 10, 8),
            (6, 5, 10, 9),
            (7, 5, 10, 10),
            (0, 5, 10, 3),
            (2, u32::MAX, 4, 3),
        ] {
            let what = (field, count, packets);
            assert_eq!(newly_marked(field, count, packets), marks, "{what:?}");
        }
    }

    #[test]
    fn a_syn_is_answered_by_how_it_arrived_or_as_rfc_3168_has_it() {
        Machine::builder().quiet().run(|| {
            let tun = TcpTunables::default();
            let stat = TcpStat::new();
            let answer = |enable, flags, tos| {
                tun.ecn_enable.set(enable);
                let offer = tcp_ecn_syncache_add(&tun, ace_flags(flags), tos);
                ace(tcp_ecn_syncache_respond(&stat, offer))
            };
            for (enable, flags, tos, answered) in [
                (0, 0b111, 0, 0),
                (0, 0b011, 0, 0),
                (2, 0b000, 0, 0),
                (2, 0b011, 0, 0b001),
                (2, 0b111, 0, 0b001),
                (2, 0b101, 0, 0),
                (4, 0b011, IPTOS_ECN_CE, 0b001),
                (4, 0b111, 0, 0b010),
                (4, 0b111, IPTOS_ECN_ECT1, 0b011),
                (4, 0b111, IPTOS_ECN_ECT0, 0b100),
                (3, 0b111, IPTOS_ECN_CE, 0b110),
                (3, 0b100, 0, 0b010),
                (3, 0b000, 0, 0),
            ] {
                let what = (enable, flags, tos);
                assert_eq!(answer(enable, flags, tos), answered, "{what:?}");
            }
        });
    }
}
