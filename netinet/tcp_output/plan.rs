//! Decides what to send: a pure function of the connection and its buffers.
//!
//! FreeBSD: tcp_output (tcp_output.c), from "again:" to the end of "Adjust data length"

use sys::mbuf::MAX_LINKHDR;
use sys::time::Ticks;

use crate::tcp::{
    TCP_HLEN, TCP_MAXOLEN, TCP_MAXWIN, TCPOLEN_TSTAMP_APPA, TcpFlags, TcpOpt, TcpOptFlags,
    TfoCookie,
};
use crate::tcp_fastopen::TfoRole;
use crate::tcp_fsm::TcpState;
use crate::tcp_seq::TcpSeq;
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{Tcpcb, Tf};

/// What the socket buffers hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffers {
    /// Bytes in the send buffer.
    pub snd_avail: u32,
    /// Room in the receive buffer.
    pub rcv_space: u32,
    /// Size of the receive buffer.
    pub rcv_hiwat: u32,
}

/// What beside the connection decides what is sent.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Socket buffers.
    pub buffers: Buffers,
    /// Now.
    pub now: Ticks,
    /// Whether everything sent has been acknowledged.
    pub idle: bool,
    /// Whether TSO is wanted (`net.inet.tcp.tso`).
    pub tso: bool,
    /// Bytes of the IP header without options.
    pub ip_hlen: u32,
    /// Bytes of IP options.
    pub ipoptlen: u32,
}

/// Why a segment is sent; the first reason that applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// A full segment, or more.
    FullSegment,
    /// Everything there is, and Nagle does not object.
    Rest,
    /// A probe of a closed window.
    Probe,
    /// At least half of the largest window the peer ever offered.
    HalfWindow,
    /// Again, after a timeout.
    Retransmission,
    /// A hole the peer reported.
    SackHole,
    /// The window can be moved far enough.
    WindowUpdate,
    /// An ACK is owed.
    AckNow,
    /// SYN or RST.
    Control,
    /// Urgent data.
    Urgent,
    /// The FIN.
    Fin,
}

/// What to do when nothing is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// An ACK will come: the retransmission or persist timer runs.
    Waiting,
    /// Something is outstanding and nothing watches over it.
    StartRexmt,
    /// Something waits for the window to open.
    StartPersist,
}

/// The outcome.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// Send this.
    Send(Plan),
    /// Send nothing.
    Hold(Held),
    /// The window closed under data: go back to `snd_una`, start the persist timer, and ask again.
    EnterPersist,
}

/// One packet to be sent; with TSO it becomes several segments.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Offset of the data in the send buffer.
    pub off: u32,
    /// Bytes of data.
    pub len: u32,
    /// Flags of the header, without PUSH and URG.
    pub flags: TcpFlags,
    /// Why.
    pub why: Why,
    /// The interface cuts it into segments.
    pub tso: bool,
    /// More can be sent after this.
    pub sendalot: bool,
    /// Room in the receive buffer to advertise, not yet kept from silly windows.
    pub recwin: u32,
    /// The hole that is retransmitted: its place on the scoreboard, and where in it.
    pub hole: Option<(usize, TcpSeq)>,
    /// The send window is open.
    pub sendwin_open: bool,
    /// The options as they go on the wire.
    pub options: [u8; TCP_MAXOLEN],
    /// How many bytes of `options`.
    pub optlen: u32,
    /// How many SACK blocks are in them.
    pub nsacks: u8,
}

/// Decides what to send now.
#[inline]
pub fn plan(tp: &Tcpcb, world: &World) -> Verdict {
    let avail = world.buffers.snd_avail;
    let mut flags = tp.t_state.outflags();
    let mut sendwin = tp.snd_wnd.min(tp.snd_cwnd);
    let sendwin_open = sendwin > 0;
    let mut off = tp.snd_nxt - tp.snd_una;
    let hole = hole_to_fill(tp, sendwin);

    if tp.t_flags.contains(Tf::NEEDFIN) {
        flags |= TcpFlags::FIN;
    }
    if tp.t_flags.contains(Tf::NEEDSYN) {
        flags |= TcpFlags::SYN;
    }
    if tp.t_flags.contains(Tf::FORCEDATA) && sendwin == 0 {
        // One byte to probe the window.
        sendwin = 1;
    }
    let mut len = match hole {
        _ if flags.contains(TcpFlags::RST) => 0,
        Some(hole) => {
            off = hole.rxmit - tp.snd_una;
            i64::from(hole.len)
        }
        None => new_data(tp, avail, sendwin, off),
    };
    if flags.contains(TcpFlags::SYN) {
        if tp.snd_nxt.gt(tp.snd_una) {
            // It has been sent; it takes a sequence number, but no place in the buffer.
            flags.remove(TcpFlags::SYN);
            off -= 1;
            len += 1;
        } else {
            // Data waits for the handshake, unless Fast Open lets it go with the first SYN; the FIN waits always.
            if fast_open(tp).is_none_or(|cookie| cookie.is_empty()) {
                len = 0;
            }
            flags.remove(TcpFlags::FIN);
        }
    }
    if len <= 0 {
        // Below zero: a FIN was sent and is not acknowledged, or the peer shrank its window.
        len = 0;
        if sendwin == 0
            && tp.t_state.have_established()
            && i64::from(off) < i64::from(avail)
            && !tp.t_timers.active(TcpTimer::Persist)
        {
            return Verdict::EnterPersist;
        }
    }
    let mut len = len as u32;
    let off = off.max(0) as u32;
    if off + len < avail {
        flags.remove(TcpFlags::FIN);
    }
    let recwin = world.buffers.rcv_space.min(TCP_MAXWIN << tp.rcv_scale);
    let Some(why) = reason(tp, world, flags, off, len, recwin, hole.is_some()) else {
        return Verdict::Hold(held(tp, avail));
    };
    if len == 0 && why == Why::AckNow && misses_data_behind_its_fin(tp) {
        flags.remove(TcpFlags::FIN);
    }
    let mut bytes = [0; TCP_MAXOLEN];
    let (optlen, nsacks) = options(tp, world, flags, &mut bytes);
    let mut tso = tp.t_flags.contains(Tf::TSO)
        && world.tso
        && tp.t_port == 0
        && !tp.t_flags.contains(Tf::SIGNATURE)
        && len > tp.t_maxseg
        && nsacks == 0
        && hole.is_none()
        && world.ipoptlen == 0
        && !flags.contains(TcpFlags::SYN);
    // After a hole comes the next, or new data.
    let mut sendalot = hole.is_some();
    if len + optlen + world.ipoptlen > tp.t_maxseg {
        let wanted = len;
        let fin = flags.contains(TcpFlags::FIN);
        let payload = tp.t_maxseg.saturating_sub(optlen + world.ipoptlen).max(1);
        flags.remove(TcpFlags::FIN);
        if tso {
            (len, tso) = shape(tp, off, len, avail, payload, world.ip_hlen + optlen);
            // The FIN goes by itself, behind the bulk.
            sendalot |= fin || len < wanted;
        } else {
            len = payload;
            // What does not fit our SYN waits for its answer.
            sendalot = tp.t_state != TcpState::SynSent;
        }
    } else {
        tso = false;
    }
    Verdict::Send(Plan {
        off,
        len,
        flags,
        why,
        tso,
        sendalot,
        recwin,
        hole: hole.map(|hole| (hole.at, hole.rxmit)),
        sendwin_open,
        options: bytes,
        optlen,
        nsacks,
    })
}

/// Whether our FIN has been sent and something of the peer is missing before what it sent last.
///
/// Differs from FreeBSD, which repeats its FIN with every ACK: two ends that both miss data before the other's FIN would
/// answer each other's FINs without end, until a retransmission timer expires.
fn misses_data_behind_its_fin(tp: &Tcpcb) -> bool {
    tp.t_flags.contains(Tf::SENTFIN)
        && tp.snd_nxt == tp.snd_max
        && tp.t_segq.as_ref().is_some_and(|segq| !segq.is_empty())
}

/// The cookie of a SYN sent now, or of the answer to one, if it is one of Fast Open: only the first is, someone on the way
/// may drop it for that.
fn fast_open(tp: &Tcpcb) -> Option<TfoCookie> {
    if !tp.t_flags.contains(Tf::FASTOPEN) || tp.t_flags.contains(Tf::NOOPT) || tp.t_rxtshift != 0 {
        return None;
    }
    match &tp.t_tfo {
        TfoRole::Child(child) => Some(child.1),
        TfoRole::None if tp.t_state == TcpState::SynSent => Some(tp.t_tfo_client_cookie),
        TfoRole::None | TfoRole::Listener(_) => None,
    }
}

/// Part of a hole that may be retransmitted now.
#[derive(Clone, Copy)]
struct ToFill {
    at: usize,
    rxmit: TcpSeq,
    len: u32,
}

/// The first hole of the scoreboard that recovery has not filled yet, as far as the window allows.
#[inline]
fn hole_to_fill(tp: &Tcpcb, sendwin: u32) -> Option<ToFill> {
    if !tp.t_flags.contains(Tf::SACK_PERMIT) || !tp.in_fastrecovery() {
        return None;
    }
    let sack = tp.t_sack.as_ref()?;
    let (at, hole) = sack.next_hole()?;
    // RFC 6675 §5 (C): recovery uses the window together with the new data sent meanwhile.
    let new = tp.snd_nxt.since(tp.snd_recover);
    let cwin = sendwin
        .saturating_sub(sack.sack_bytes_rexmit)
        .saturating_sub(new);
    // What lies beyond the recovery point is for the next recovery.
    let len = hole.end.min(tp.snd_recover).since(hole.rxmit).min(cwin);
    (len > 0).then_some(ToFill {
        at,
        rxmit: hole.rxmit,
        len,
    })
}

/// How much of the send buffer from `off` on may be sent; below zero if `off` is beyond it.
#[inline]
fn new_data(tp: &Tcpcb, avail: u32, sendwin: u32, off: i32) -> i64 {
    let rexmitted = tp.sack_bytes_rexmit();
    if rexmitted == 0 || !tp.in_fastrecovery() {
        return i64::from(avail.min(sendwin)) - i64::from(off);
    }
    // During recovery `snd_cwnd` counts what was retransmitted and what was sent beyond the recovery point.
    let by_peer = i64::from(avail.min(tp.snd_wnd)) - i64::from(off);
    let beyond = i64::from(tp.snd_nxt - tp.snd_recover);
    let cwin = i64::from(tp.snd_cwnd) - beyond - i64::from(rexmitted);
    by_peer.min(cwin.max(0))
}

/// How much goes into one TSO packet, and whether it still is one; `beside_tcp` are the bytes of IP header and options.
fn shape(
    tp: &Tcpcb,
    off: u32,
    mut len: u32,
    avail: u32,
    payload: u32,
    beside_tcp: u32,
) -> (u32, bool) {
    let headers = TCP_HLEN as u32 + beside_tcp;
    let max = if tp.t_tso.max == 0 {
        65535
    } else {
        tp.t_tso.max.min(65535)
    };
    len = len.min(max.saturating_sub(headers + MAX_LINKHDR as u32));
    // Only what empties the buffer may end in a short segment.
    if off + len < avail {
        len -= len % payload;
    }
    if len <= payload {
        (payload, false)
    } else {
        (len, true)
    }
}

/// Why to send now, if there is a reason.
#[inline]
fn reason(
    tp: &Tcpcb,
    world: &World,
    flags: TcpFlags,
    off: u32,
    len: u32,
    recwin: u32,
    sack_rexmit: bool,
) -> Option<Why> {
    if len > 0 {
        if len >= tp.maxseg() {
            return Some(Why::FullSegment);
        }
        // Nagle (RFC 9293 §3.7.4): a small segment goes when nothing is outstanding.
        if !tp.t_flags.intersects(Tf::MORETOCOME | Tf::NOPUSH)
            && (world.idle || tp.t_flags.contains(Tf::NODELAY))
            && off + len >= world.buffers.snd_avail
        {
            return Some(Why::Rest);
        }
        if tp.t_flags.contains(Tf::FORCEDATA) {
            return Some(Why::Probe);
        }
        // Silly windows: the peer's buffer may be smaller than a segment.
        if tp.max_sndwnd > 0 && len >= tp.max_sndwnd / 2 {
            return Some(Why::HalfWindow);
        }
        if tp.snd_nxt.lt(tp.snd_max) {
            return Some(Why::Retransmission);
        }
        if sack_rexmit {
            return Some(Why::SackHole);
        }
    }
    if worth_an_update(tp, world.buffers.rcv_hiwat, recwin) {
        return Some(Why::WindowUpdate);
    }
    if tp.t_flags.contains(Tf::ACKNOW) {
        return Some(Why::AckNow);
    }
    if flags.contains(TcpFlags::RST)
        || (flags.contains(TcpFlags::SYN) && !tp.t_flags.contains(Tf::NEEDSYN))
    {
        return Some(Why::Control);
    }
    if tp.snd_up.gt(tp.snd_una) {
        return Some(Why::Urgent);
    }
    if flags.contains(TcpFlags::FIN)
        && (!tp.t_flags.contains(Tf::SENTFIN) || tp.snd_nxt == tp.snd_una)
    {
        return Some(Why::Fin);
    }
    None
}

/// Whether the window can be moved so far that the peer should hear of it at once (RFC 9293 §3.8.6.2.2).
#[inline]
pub fn worth_an_update(tp: &Tcpcb, hiwat: u32, recwin: u32) -> bool {
    if recwin == 0
        || tp.t_flags.intersects(Tf::NEEDSYN | Tf::DELACK)
        || !tp.t_state.have_established()
        || tp.t_state.have_received_fin()
    {
        return false;
    }
    let oldwin = tp.rcv_adv.since(tp.rcv_nxt);
    let adv = recwin.saturating_sub(oldwin);
    // Differs from FreeBSD: of a buffer larger than the largest window only that window counts. Otherwise a peer without
    // window scaling, stopped just above zero, never hears that all of it is open again.
    let hiwat = hiwat.min(TCP_MAXWIN << tp.rcv_scale);
    // What does not change the scaled window is no news.
    if oldwin >> tp.rcv_scale >= (adv + oldwin) >> tp.rcv_scale {
        return false;
    }
    let far = adv >= 2 * tp.t_maxseg
        && (adv >= hiwat / 4
            || recwin <= hiwat / 8
            || hiwat <= 8 * tp.t_maxseg
            || adv >= TCP_MAXWIN << tp.rcv_scale);
    far || 2 * adv >= hiwat
}

/// What watches over the connection when nothing is sent.
fn held(tp: &Tcpcb, avail: u32) -> Held {
    if tp.t_timers.active(TcpTimer::Rexmt) || tp.t_timers.active(TcpTimer::Persist) {
        return Held::Waiting;
    }
    if tp.t_flags.contains(Tf::SACK_PERMIT) && tp.snd_max.gt(tp.snd_una) {
        return Held::StartRexmt;
    }
    if avail > 0 {
        Held::StartPersist
    } else {
        Held::Nothing
    }
}

/// Writes the options of a segment with `flags`: how many bytes, and how many SACK blocks.
#[inline]
fn options(tp: &Tcpcb, world: &World, flags: TcpFlags, bytes: &mut [u8; TCP_MAXOLEN]) -> (u32, u8) {
    if tp.t_flags.contains(Tf::NOOPT) {
        return (0, 0);
    }
    let timestamps = tp.t_flags.contains(Tf::RCVD_TSTMP);
    if !flags.contains(TcpFlags::SYN) && tp.t_sack.is_none() && !tp.t_flags.contains(Tf::SIGNATURE)
    {
        // What nearly every segment carries.
        if !timestamps {
            return (0, 0);
        }
        TcpOpt::write_timestamp_only(tp.ts_now(world.now), tp.ts_recent, bytes);
        return (TCPOLEN_TSTAMP_APPA as u32, 0);
    }
    all_options(tp, world, flags, bytes)
}

fn all_options(
    tp: &Tcpcb,
    world: &World,
    flags: TcpFlags,
    bytes: &mut [u8; TCP_MAXOLEN],
) -> (u32, u8) {
    let mut to = TcpOpt::default();
    let syn = flags.contains(TcpFlags::SYN);
    if syn {
        // The size to offer depends on the path; whoever builds the segment fills it in.
        to.to_flags |= TcpOptFlags::MSS;
        if tp.t_flags.contains(Tf::REQ_SCALE) {
            to.to_flags |= TcpOptFlags::SCALE;
            to.to_wscale = tp.request_r_scale;
        }
        if tp.t_flags.contains(Tf::SACK_PERMIT) {
            to.to_flags |= TcpOptFlags::SACKPERM;
        }
        if let Some(cookie) = fast_open(tp) {
            to.to_flags |= TcpOptFlags::FASTOPEN;
            to.to_tfo = cookie;
        }
    }
    if tp.t_flags.contains(Tf::RCVD_TSTMP) || (syn && tp.t_flags.contains(Tf::REQ_TSTMP)) {
        to.to_flags |= TcpOptFlags::TS;
        to.to_tsval = tp.ts_now(world.now);
        to.to_tsecr = tp.ts_recent;
    }
    if tp.t_flags.contains(Tf::SIGNATURE) {
        to.to_flags |= TcpOptFlags::SIGNATURE;
    }
    if !syn
        && tp.t_state.have_established()
        && tp.t_flags.contains(Tf::SACK_PERMIT)
        && let Some(sack) = &tp.t_sack
    {
        sack.report(&mut to);
    }
    if to.to_flags.is_empty() {
        return (0, 0);
    }
    (to.write(bytes) as u32, to.to_nsacks)
}

#[cfg(test)]
mod tests;
