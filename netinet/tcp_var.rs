//! The control block of a TCP connection, and TCP's part of a stack instance: statistics, tunables.
//!
//! FreeBSD: sys/netinet/tcp_var.h
//! Differs from FreeBSD: what few connections need (reassembly queue, scoreboard, own keepalive times) hangs in
//! boxes, so that an idle connection stays small.

use alloc::boxed::Box;
use alloc::sync::Arc;

use bitflags::bitflags;
use sys::errno::Errno;
use sys::time::Ticks;
use sys::{counters, tunables};

use crate::cc::CcAlgo;
use crate::cc::cc_dctcp::MAX_ALPHA_VALUE;
use crate::tcp::{TCP_MAXOLEN, TCP_MSS, TCP6_MSS, TCPOLEN_SIGNATURE_APPA, TcpOpt, TfoCookie};
use crate::tcp_fastopen::TfoRole;
use crate::tcp_fsm::TcpState;
use crate::tcp_offload::ToeDev;
use crate::tcp_reass::ReassQueue;
use crate::tcp_sack::SackState;
use crate::tcp_seq::TcpSeq;
use crate::tcp_timer::TcpTimers;

bitflags! {
    /// `t_flags`, with FreeBSD's bits.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Tf: u32 {
        /// Acknowledge at once.
        const ACKNOW = 0x0000_0001;
        /// Acknowledge, but try to delay it.
        const DELACK = 0x0000_0002;
        /// Send small segments without waiting (`TCP_NODELAY`).
        const NODELAY = 0x0000_0004;
        /// Send no options (`TCP_NOOPT`).
        const NOOPT = 0x0000_0008;
        /// A FIN has been sent.
        const SENTFIN = 0x0000_0010;
        /// We have asked for window scaling, or will.
        const REQ_SCALE = 0x0000_0020;
        /// The peer has asked for window scaling.
        const RCVD_SCALE = 0x0000_0040;
        /// We have asked for timestamps, or will.
        const REQ_TSTMP = 0x0000_0080;
        /// A timestamp came with the SYN.
        const RCVD_TSTMP = 0x0000_0100;
        /// SACK has been agreed on.
        const SACK_PERMIT = 0x0000_0200;
        /// A SYN is still to be sent.
        const NEEDSYN = 0x0000_0400;
        /// A FIN is still to be sent.
        const NEEDFIN = 0x0000_0800;
        /// Do not push (`TCP_NOPUSH`).
        const NOPUSH = 0x0000_1000;
        /// The saved congestion state is valid.
        const PREVVALID = 0x0000_2000;
        /// Wake the reader when this segment is done.
        const WAKESOR = 0x0000_4000;
        /// More data follows from this send call.
        const MORETOCOME = 0x0001_0000;
        /// The connection was idle when the last send call began.
        const LASTIDLE = 0x0004_0000;
        /// The last segment sent advertised a window of zero.
        const RXWIN0SENT = 0x0008_0000;
        /// In loss recovery.
        const FASTRECOVERY = 0x0010_0000;
        /// Was in loss recovery before the timeout.
        const WASFRECOVERY = 0x0020_0000;
        /// Segments are signed (`TCP_MD5SIG`).
        const SIGNATURE = 0x0040_0000;
        /// Force out one byte (persist).
        const FORCEDATA = 0x0080_0000;
        /// The interface segments for us.
        const TSO = 0x0100_0000;
        /// `tcp_close` has been called.
        const CLOSED = 0x0400_0000;
        /// Retransmissions that were lost are detected (`net.inet.tcp.sack.lrd`, `TCP_LRD`).
        const LRD = 0x1000_0000;
        /// Fast Open is wanted (`TCP_FASTOPEN`).
        const FASTOPEN = 0x8000_0000;
        /// In congestion recovery.
        const CONGRECOVERY = 0x2000_0000;
        /// Was in congestion recovery before the timeout.
        const WASCRECOVERY = 0x4000_0000;

        /// In any recovery.
        const RECOVERY = 0x2010_0000;
    }
}

bitflags! {
    /// `t_flags2`, with FreeBSD's bits.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Tf2: u32 {
        /// Segments seem to vanish for their size.
        const PLPMTU_BLACKHOLE = 0x0000_0001;
        /// Segments may not be fragmented on the way.
        const PLPMTU_PMTUD = 0x0000_0002;
        /// The last segment with data was a full one.
        const PLPMTU_MAXSEGSNT = 0x0000_0004;
        /// Accurate ECN has been agreed on; it is in use once `ECN_PERMIT` is set too.
        const ACE_PERMIT = 0x0000_0010;
        /// ECN has been agreed on.
        const ECN_PERMIT = 0x0000_0020;
        /// The next data says that the window has been reduced.
        const ECN_SND_CWR = 0x0000_0040;
        /// Segments say that a router was congested.
        const ECN_SND_ECE = 0x0000_0080;
    }
}

/// Most retransmissions of a segment.
pub const TCP_MAXRXTSHIFT: usize = 12;
/// After so many retransmissions the estimate of the round trip is not believed any more.
pub const TCP_RTT_INVALIDATE: u32 = 3;
/// Fraction bits of `t_srtt`.
pub const TCP_RTT_SHIFT: u32 = 5;
/// Fraction bits of `t_rttvar`.
pub const TCP_RTTVAR_SHIFT: u32 = 4;
/// Extra fraction bits while updating.
pub const TCP_DELTA_SHIFT: u32 = 2;
/// Duplicate ACKs that mean a loss.
pub const TCP_REXMT_THRESH: u32 = 3;

/// What a socket set differently from the instance's tunables; 0 means not set. Times in ms.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnTimes {
    /// `TCP_KEEPINIT`.
    pub keepinit: u32,
    /// `TCP_KEEPIDLE`.
    pub keepidle: u32,
    /// `TCP_KEEPINTVL`.
    pub keepintvl: u32,
    /// `TCP_KEEPCNT`.
    pub keepcnt: u32,
    /// `TCP_MAXUNACKTIME`.
    pub maxunacktime: u32,
}

/// Limits of the interface for one TSO packet (0: none).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TsoLimits {
    /// Bytes, link header included.
    pub max: u32,
    /// Memory segments.
    pub segcount: u16,
    /// Bytes in one memory segment.
    pub segsize: u32,
}

/// Congestion state saved at the first retransmission timeout, to undo it if it was spurious.
#[derive(Clone, Copy, Debug, Default)]
pub struct BadRetransmit {
    /// `snd_cwnd` before.
    pub snd_cwnd_prev: u32,
    /// `snd_ssthresh` before.
    pub snd_ssthresh_prev: u32,
    /// `snd_recover` before.
    pub snd_recover_prev: TcpSeq,
    /// An ACK that answers something sent before this time shows the timeout was spurious; 0: not known.
    pub t_badrxtwin: u32,
}

/// The byte of urgent data that was taken out of the stream (`t_iobc`, `t_oobflags`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Oob {
    /// It has not come.
    #[default]
    None,
    /// It waits to be read (`TCPOOB_HAVEDATA`).
    Have(u8),
    /// It has been read (`TCPOOB_HADDATA`).
    Had,
}

/// Proportional rate reduction (RFC 6937): what recovery has delivered and sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prr {
    /// Bytes in flight when recovery began; 0: not known.
    pub recover_fs: u32,
    /// Bytes delivered since.
    pub delivered: u32,
    /// Bytes sent since.
    pub out: u32,
}

/// The control block of a connection. Whoever has `&mut Tcpcb` has the connection locked.
#[doc(alias = "tcpcb")]
pub struct Tcpcb {
    /// State of the connection.
    pub t_state: TcpState,
    /// Log2 of the backoff of the retransmission timer.
    pub t_rxtshift: u8,
    /// Shift for windows we receive from the peer.
    pub snd_scale: u8,
    /// Shift for windows we send.
    pub rcv_scale: u8,
    /// The shift we ask for.
    pub request_r_scale: u8,
    /// Flags.
    pub t_flags: Tf,
    /// More flags.
    pub t_flags2: Tf2,

    /// First byte not acknowledged.
    pub snd_una: TcpSeq,
    /// Next byte to send.
    pub snd_nxt: TcpSeq,
    /// Highest byte sent, plus one.
    pub snd_max: TcpSeq,
    /// Send window.
    pub snd_wnd: u32,
    /// Congestion window.
    pub snd_cwnd: u32,
    /// Slow start ends here.
    pub snd_ssthresh: u32,
    /// Segment sequence number of the last window update.
    pub snd_wl1: TcpSeq,
    /// Segment acknowledgement number of the last window update.
    pub snd_wl2: TcpSeq,
    /// Urgent pointer of what we send.
    pub snd_up: TcpSeq,
    /// Recovery ends when this is acknowledged.
    pub snd_recover: TcpSeq,
    /// Initial send sequence number.
    pub iss: TcpSeq,
    /// Largest window the peer has offered.
    pub max_sndwnd: u32,

    /// Next byte expected.
    pub rcv_nxt: TcpSeq,
    /// End of the window we have advertised.
    pub rcv_adv: TcpSeq,
    /// Receive window.
    pub rcv_wnd: u32,
    /// Urgent pointer received.
    pub rcv_up: TcpSeq,
    /// Initial receive sequence number.
    pub irs: TcpSeq,
    /// The last acknowledgement sent.
    pub last_ack_sent: TcpSeq,

    /// UDP port through which the peer is reached, 0 without UDP (`TCP_REMOTE_UDP_ENCAPS_PORT`).
    pub t_port: u16,
    /// Largest segment to send, options included.
    pub t_maxseg: u32,
    /// `t_maxseg` before a black hole was suspected.
    pub t_pmtud_saved_maxseg: u32,
    /// Timestamp of the peer to echo.
    pub ts_recent: u32,
    /// When `ts_recent` was updated.
    pub ts_recent_age: Ticks,
    /// Added to our clock in timestamps sent.
    pub ts_offset: u32,
    /// The time that the last timestamp sent was made of.
    ts_sent: Option<Ticks>,

    /// Smoothed round-trip time in ms, 5 fraction bits.
    pub t_srtt: i32,
    /// Mean deviation in ms, 4 fraction bits.
    pub t_rttvar: i32,
    /// Current retransmission timeout in ms, backed off.
    pub t_rxtcur: u32,
    /// Smallest retransmission timeout in ms.
    pub t_rttmin: u32,
    /// Smallest round trip seen by timestamps, in ms; 0: none yet.
    pub t_rttlow: u32,
    /// When the segment being timed was sent.
    pub t_rtttime: Option<Ticks>,
    /// Sequence number of the segment being timed.
    pub t_rtseq: TcpSeq,
    /// How many samples the estimator has seen.
    pub t_rttupdated: u32,
    /// When the last segment came in.
    pub t_rcvtime: Ticks,
    /// When the connection began.
    pub t_starttime: Ticks,
    /// When the peer last acknowledged something while data was waiting.
    pub t_acktime: Option<Ticks>,
    /// Consecutive duplicate ACKs.
    pub t_dupacks: u32,
    /// Segments sent by limited transmit since the first duplicate ACK.
    pub snd_limited: u8,
    /// Challenge ACKs sent in the current interval.
    pub t_challenge_ack_cnt: u32,
    /// When that interval ends.
    pub t_challenge_ack_end: Ticks,
    /// Bytes acknowledged in congestion avoidance since the window last grew.
    pub t_bytes_acked: u32,
    /// For undoing a spurious timeout.
    pub t_prev: BadRetransmit,
    /// Proportional rate reduction.
    pub t_prr: Prr,
    /// Urgent data outside the stream.
    pub t_oob: Oob,
    /// An error to report if the connection fails.
    pub t_softerror: Option<Errno>,

    /// Start of the current receive buffer measurement; 0: none.
    pub rfbuf_ts: u32,
    /// Bytes received since.
    pub rfbuf_cnt: u32,
    /// Segments retransmitted.
    pub t_sndrexmitpack: u32,
    /// Segments received out of order.
    pub t_rcvoopack: u32,
    /// Zero windows sent.
    pub t_sndzerowin: u32,
    /// Accurate ECN: how many marked packets the peer has reported, from 5 on (`s.cep`).
    pub t_scep: u32,
    /// How many have come, from 5 on; until the handshake is over, how its first segment did (`r.cep`).
    pub t_rcep: u32,

    /// What the interface's TSO can take.
    pub t_tso: TsoLimits,
    /// The five timers.
    pub t_timers: TcpTimers,
    /// Segments received out of order.
    pub t_segq: Option<Box<ReassQueue>>,
    /// SACK: what we report and what the peer reported.
    pub t_sack: Option<Box<SackState>>,
    /// The cookie that the SYN carries; before, a secret that the program shares with the server.
    pub t_tfo_client_cookie: TfoCookie,
    /// What Fast Open makes of it as a server.
    pub t_tfo: TfoRole,
    /// Times set for this socket.
    pub t_own: Option<Box<OwnTimes>>,
    /// The device that runs the connection (`tod`).
    pub t_toe: Option<Arc<dyn ToeDev>>,
    /// Congestion control.
    pub t_cc: Box<dyn CcAlgo>,
}

impl Tcpcb {
    /// Makes the control block of a new socket.
    #[doc(alias = "tcp_newtcpcb")]
    pub fn new(tun: &TcpTunables, now: Ticks, cc: Box<dyn CcAlgo>) -> Tcpcb {
        let mut t_flags = Tf::empty();
        if tun.rfc1323.get() {
            t_flags |= Tf::REQ_SCALE | Tf::REQ_TSTMP;
        }
        if tun.sack_enable.get() {
            t_flags |= Tf::SACK_PERMIT;
        }
        if tun.sack_lrd.get() {
            t_flags |= Tf::LRD;
        }
        let initial = tun.rexmit_initial.get();
        Tcpcb {
            t_state: TcpState::Closed,
            t_rxtshift: 0,
            snd_scale: 0,
            rcv_scale: 0,
            request_r_scale: 0,
            t_flags,
            t_flags2: Tf2::empty(),
            snd_una: TcpSeq(0),
            snd_nxt: TcpSeq(0),
            snd_max: TcpSeq(0),
            snd_wnd: 0,
            snd_cwnd: crate::tcp::TCP_MAXWIN << crate::tcp::TCP_MAX_WINSHIFT,
            snd_ssthresh: crate::tcp::TCP_MAXWIN << crate::tcp::TCP_MAX_WINSHIFT,
            snd_wl1: TcpSeq(0),
            snd_wl2: TcpSeq(0),
            snd_up: TcpSeq(0),
            snd_recover: TcpSeq(0),
            iss: TcpSeq(0),
            max_sndwnd: 0,
            rcv_nxt: TcpSeq(0),
            rcv_adv: TcpSeq(0),
            rcv_wnd: 0,
            rcv_up: TcpSeq(0),
            irs: TcpSeq(0),
            last_ack_sent: TcpSeq(0),
            t_port: 0,
            t_maxseg: tun.mssdflt.get(),
            t_pmtud_saved_maxseg: 0,
            ts_recent: 0,
            ts_recent_age: now,
            ts_offset: 0,
            ts_sent: None,
            t_srtt: 0,
            // So that srtt + 4 * rttvar is the initial timeout.
            t_rttvar: ((initial << TCP_RTTVAR_SHIFT) >> 2) as i32,
            t_rxtcur: initial,
            t_rttmin: tun.rexmit_min.get(),
            t_rttlow: 0,
            t_rtttime: None,
            t_rtseq: TcpSeq(0),
            t_rttupdated: 0,
            t_rcvtime: now,
            t_starttime: now,
            t_acktime: None,
            t_dupacks: 0,
            snd_limited: 0,
            t_challenge_ack_cnt: 0,
            t_challenge_ack_end: now,
            t_bytes_acked: 0,
            t_prev: BadRetransmit::default(),
            t_prr: Prr::default(),
            t_oob: Oob::None,
            t_softerror: None,
            rfbuf_ts: 0,
            rfbuf_cnt: 0,
            t_sndrexmitpack: 0,
            t_rcvoopack: 0,
            t_sndzerowin: 0,
            t_scep: 0,
            t_rcep: 0,
            t_tso: TsoLimits::default(),
            t_timers: TcpTimers::new(),
            t_segq: None,
            t_sack: None,
            t_tfo_client_cookie: TfoCookie::default(),
            t_tfo: TfoRole::None,
            t_own: None,
            t_toe: None,
            t_cc: cc,
        }
    }

    /// Bytes of options a data segment carries now.
    pub fn optlen(&self) -> u32 {
        if self.t_flags.contains(Tf::NOOPT) {
            return 0;
        }
        if !self.t_state.have_established() {
            let timestamps = if self.t_flags.contains(Tf::REQ_TSTMP) {
                12
            } else {
                0
            };
            return timestamps + self.signature_len();
        }
        let timestamps = if self.t_flags.contains(Tf::RCVD_TSTMP) {
            12
        } else {
            0
        };
        let fixed = timestamps + self.signature_len();
        let sacks = match &self.t_sack {
            Some(sack) if sack.rcv_numsacks() > 0 => {
                // NOP NOP, kind, length, blocks: as many as still fit.
                match (TCP_MAXOLEN as u32 - fixed).saturating_sub(4) / 8 {
                    0 => 0,
                    most => 4 + 8 * most.min(sack.rcv_numsacks() as u32),
                }
            }
            _ => 0,
        };
        fixed + sacks
    }

    /// Payload of a full segment with the options it carries now.
    #[doc(alias = "tcp_maxseg")]
    pub fn maxseg(&self) -> u32 {
        self.t_maxseg.saturating_sub(self.optlen()).max(1)
    }

    /// Payload of a full segment with the options the connection has by itself.
    #[doc(alias = "tcp_fixed_maxseg")]
    pub fn fixed_maxseg(&self) -> u32 {
        let timestamps = self.t_flags.contains(Tf::RCVD_TSTMP) && !self.t_flags.contains(Tf::NOOPT);
        let signature = match self.t_flags.contains(Tf::NOOPT) {
            true => 0,
            false => self.signature_len(),
        };
        self.t_maxseg
            .saturating_sub(if timestamps { 12 } else { 0 })
            .saturating_sub(signature)
            .max(1)
    }

    /// Bytes that the signature takes of the options.
    fn signature_len(&self) -> u32 {
        if self.t_flags.contains(Tf::SIGNATURE) {
            TCPOLEN_SIGNATURE_APPA as u32
        } else {
            0
        }
    }

    /// Whether it is a server's connection of Fast Open whose peer has not completed the handshake.
    #[inline]
    pub fn fast_open_child(&self) -> bool {
        matches!(self.t_tfo, TfoRole::Child(_))
    }

    /// Whether recovery from loss is going on.
    #[doc(alias = "IN_FASTRECOVERY")]
    #[inline]
    pub fn in_fastrecovery(&self) -> bool {
        self.t_flags.contains(Tf::FASTRECOVERY)
    }

    /// Whether any recovery is going on.
    #[doc(alias = "IN_RECOVERY")]
    #[inline]
    pub fn in_recovery(&self) -> bool {
        self.t_flags.intersects(Tf::RECOVERY)
    }

    /// Enters recovery from loss.
    #[doc(alias = "ENTER_FASTRECOVERY")]
    pub fn enter_fastrecovery(&mut self) {
        self.t_flags |= Tf::FASTRECOVERY;
    }

    /// Leaves every recovery.
    #[doc(alias = "EXIT_RECOVERY")]
    pub fn exit_recovery(&mut self) {
        self.t_flags.remove(Tf::RECOVERY);
    }

    /// Whether recovery goes by SACK: agreed on, and with blocks on the scoreboard or in this segment.
    #[doc(alias = "tcp_is_sack_recovery")]
    pub fn is_sack_recovery(&self, to: &TcpOpt) -> bool {
        self.t_flags.contains(Tf::SACK_PERMIT)
            && (to.to_nsacks > 0 || self.t_sack.as_ref().is_some_and(|sack| sack.has_holes()))
    }

    /// The SACK state, made when first needed.
    pub fn sack_mut(&mut self) -> &mut SackState {
        self.t_sack.get_or_insert_with(Box::default)
    }

    /// Whether there is more SACK state than none.
    pub fn sack_bytes_rexmit(&self) -> u32 {
        self.t_sack
            .as_ref()
            .map_or(0, |sack| sack.sack_bytes_rexmit)
    }

    /// Bytes believed to be in the network (RFC 6675 §4, `pipe`).
    #[doc(alias = "tcp_compute_pipe")]
    pub fn compute_pipe(&self) -> u32 {
        let flight = self.snd_max.since(self.snd_una);
        match &self.t_sack {
            Some(sack) => (flight + sack.sack_bytes_rexmit)
                .saturating_sub(sack.sacked_bytes)
                .saturating_sub(sack.lost_bytes),
            None => flight,
        }
    }

    /// Retransmission timeout from the estimator in ms, without backoff and slop.
    #[doc(alias = "TCP_REXMTVAL")]
    pub fn rexmtval(&self) -> u32 {
        let srtt = self.t_srtt >> (TCP_RTT_SHIFT - TCP_DELTA_SHIFT);
        let value = (srtt + self.t_rttvar) >> TCP_DELTA_SHIFT;
        value.max(self.t_rttmin as i32) as u32
    }

    /// Initial keepalive time in ms.
    #[doc(alias = "TP_KEEPINIT")]
    pub fn keepinit(&self, tun: &TcpTunables) -> u32 {
        self.own(|own| own.keepinit)
            .unwrap_or_else(|| tun.keepinit.get())
    }

    /// Idle time before keepalive probes in ms.
    #[doc(alias = "TP_KEEPIDLE")]
    pub fn keepidle(&self, tun: &TcpTunables) -> u32 {
        self.own(|own| own.keepidle)
            .unwrap_or_else(|| tun.keepidle.get())
    }

    /// Time between keepalive probes in ms.
    #[doc(alias = "TP_KEEPINTVL")]
    pub fn keepintvl(&self, tun: &TcpTunables) -> u32 {
        self.own(|own| own.keepintvl)
            .unwrap_or_else(|| tun.keepintvl.get())
    }

    /// How many keepalive probes.
    #[doc(alias = "TP_KEEPCNT")]
    pub fn keepcnt(&self, tun: &TcpTunables) -> u32 {
        self.own(|own| own.keepcnt)
            .unwrap_or_else(|| tun.keepcnt.get())
    }

    /// Time without progress after which the connection is dropped, in ms; 0: never.
    #[doc(alias = "TP_MAXUNACKTIME")]
    pub fn maxunacktime(&self, tun: &TcpTunables) -> u32 {
        self.own(|own| own.maxunacktime)
            .unwrap_or_else(|| tun.maxunacktime.get())
    }

    fn own(&self, field: impl Fn(&OwnTimes) -> u32) -> Option<u32> {
        self.t_own
            .as_ref()
            .map(|own| field(own))
            .filter(|&value| value != 0)
    }

    /// Times after which all keepalive probes have failed, in ms.
    #[doc(alias = "TP_MAXIDLE")]
    pub fn maxidle(&self, tun: &TcpTunables) -> u32 {
        self.keepcnt(tun).saturating_mul(self.keepintvl(tun))
    }

    /// The time for the next timestamp: never before that of the last one. Of two threads the one that entered the
    /// stack later may send first, and a timestamp that goes back is dropped as an old duplicate (RFC 7323 §5).
    #[inline]
    pub fn ts_clock(&mut self, now: Ticks) -> Ticks {
        let clock = self.ts_sent.filter(|sent| *sent - now > 0).unwrap_or(now);
        self.ts_sent = Some(clock);
        clock
    }

    /// Our timestamp clock.
    #[inline]
    pub fn ts_now(&self, now: Ticks) -> u32 {
        now.0.wrapping_add(self.ts_offset)
    }
}

counters! {
    /// What TCP has seen (`netstat -s -p tcp`).
    pub struct TcpStat {
        tcps_sndtotal: "packets sent",
        tcps_sndpack: "data packets",
        tcps_sndbyte: "bytes in data packets",
        tcps_sndrexmitpack: "data packets retransmitted",
        tcps_sndrexmitbyte: "bytes in data packets retransmitted",
        tcps_sndrexmitbad: "data packets unnecessarily retransmitted",
        tcps_mturesent: "resends initiated by MTU discovery",
        tcps_sndacks: "ack-only packets",
        tcps_delack: "delayed acks",
        tcps_sndurg: "URG only packets",
        tcps_sndprobe: "window probe packets",
        tcps_sndwinup: "window update packets",
        tcps_sndctrl: "control packets",
        tcps_rcvtotal: "packets received",
        tcps_rcvackpack: "acks",
        tcps_rcvackbyte: "bytes acked by received acks",
        tcps_rcvdupack: "duplicate acks",
        tcps_tunneled_pkts: "UDP tunneled pkts",
        tcps_tunneled_errs: "UDP tunneled pkt cnt with errors",
        tcps_rcvacktoomuch: "acks for data not yet sent",
        tcps_rcvghostack: "acks for data never been sent (ghost acks)",
        tcps_rcvacktooold: "acks for data being too old",
        tcps_rcvpack: "packets received in-sequence",
        tcps_rcvbyte: "bytes received in-sequence",
        tcps_rcvduppack: "completely duplicate packets",
        tcps_rcvdupbyte: "bytes in completely duplicate packets",
        tcps_pawsdrop: "old duplicate packets",
        tcps_rcvpartduppack: "packets with some dup. data",
        tcps_rcvpartdupbyte: "dup. bytes in part-duplicate packets",
        tcps_rcvoopack: "out-of-order packets",
        tcps_rcvoobyte: "bytes in out-of-order packets",
        tcps_rcvpackafterwin: "packets of data after window",
        tcps_rcvbyteafterwin: "bytes of data after window",
        tcps_rcvwinprobe: "window probes",
        tcps_rcvwinupd: "window update packets received",
        tcps_dsack_count: "packets received with dsack",
        tcps_dsack_bytes: "dsack bytes received (no TLP involved)",
        tcps_dsack_tlp_bytes: "dsack bytes received (TLP responsible)",
        tcps_rcvafterclose: "packets received after close",
        tcps_rcvbadsum: "discarded for bad checksums",
        tcps_rcvbadoff: "discarded for bad header offset fields",
        tcps_rcvshort: "discarded because packet too short",
        tcps_rcvreassfull: "discarded due to full reassembly queue",
        tcps_connattempt: "connection requests",
        tcps_accepts: "connection accepts",
        tcps_badsyn: "bad connection attempts",
        tcps_listendrop: "listen queue overflows",
        tcps_badrst: "ignored RSTs in the windows",
        tcps_connects: "connections established (including accepts)",
        tcps_usedrtt: "times used RTT from hostcache",
        tcps_usedrttvar: "times used RTT variance from hostcache",
        tcps_usedssthresh: "times used slow-start threshold from hostcache",
        tcps_closed: "connections closed",
        tcps_drops: "connections dropped",
        tcps_cachedrtt: "connections updated cached RTT on close",
        tcps_cachedrttvar: "connections updated cached RTT variance on close",
        tcps_cachedssthresh: "connections updated cached ssthresh on close",
        tcps_conndrops: "embryonic connections dropped",
        tcps_rttupdated: "segments updated rtt",
        tcps_segstimed: "segments timed",
        tcps_rexmttimeo: "retransmit timeouts",
        tcps_timeoutdrop: "connections dropped by rexmit timeout",
        tcps_persisttimeo: "persist timeouts",
        tcps_persistdrop: "connections dropped by persist timeout",
        tcps_finwait2_drops: "Connections (fin_wait_2) dropped because of timeout",
        tcps_keeptimeo: "keepalive timeouts",
        tcps_keepprobe: "keepalive probes sent",
        tcps_keepdrops: "connections dropped by keepalive",
        tcps_progdrops: "connections dropped due to exceeding progress time",
        tcps_predack: "correct ACK header predictions",
        tcps_preddat: "correct data packet header predictions",
        tcps_sc_added: "syncache entries added",
        tcps_sc_retransmitted: "syncache entries retransmitted",
        tcps_sc_dupsyn: "duplicate SYNs in the syncache",
        tcps_sc_dropped: "syncache entries that could not be answered",
        tcps_sc_completed: "syncache entries completed",
        tcps_sc_bucketoverflow: "syncache bucket overflows",
        tcps_sc_cacheoverflow: "syncache overflows",
        tcps_sc_reset: "syncache entries reset by the peer",
        tcps_sc_stale: "syncache entries timed out or without listener",
        tcps_sc_aborted: "syncache entries aborted",
        tcps_sc_badack: "bad acks for syncache entries",
        tcps_sc_unreach: "syncache entries unreachable",
        tcps_sc_zonefail: "syncache zone failures",
        tcps_sc_sendcookie: "cookies sent",
        tcps_sc_recvcookie: "cookies received",
        tcps_hc_added: "hostcache entries added",
        tcps_hc_bucketoverflow: "hostcache bucket overflows",
        tcps_sack_recovery_episode: "SACK recovery episodes",
        tcps_sack_rexmits: "segment rexmits in SACK recovery episodes",
        tcps_sack_rexmit_bytes: "byte rexmits in SACK recovery episodes",
        tcps_sack_rcv_blocks: "SACK options (SACK blocks) received",
        tcps_sack_send_blocks: "SACK options (SACK blocks) sent",
        tcps_sack_lostrexmt: "SACK retransmissions lost",
        tcps_sack_sboverflow: "SACK scoreboard overflow",
        tcps_ecn_rcvce: "packets received with ECN CE bit set",
        tcps_ecn_rcvect0: "packets received with ECN ECT(0) bit set",
        tcps_ecn_rcvect1: "packets received with ECN ECT(1) bit set",
        tcps_ecn_sndect0: "packets sent with ECN ECT(0) bit set",
        tcps_ecn_sndect1: "packets sent with ECN ECT(1) bit set",
        tcps_ecn_shs: "successful ECN handshakes",
        tcps_ecn_rcwnd: "times ECN reduced the congestion window",
        tcps_ace_nect: "ACE SYN packets with Non-ECT",
        tcps_ace_ect0: "ACE SYN packets with ECT0",
        tcps_ace_ect1: "ACE SYN packets with ECT1",
        tcps_ace_ce: "ACE SYN packets with CE",
        tcps_sig_rcvgoodsig: "packets with matching signature received",
        tcps_sig_rcvbadsig: "packets with bad signature received",
        tcps_sig_err_buildsig: "times failed to make signature due to no SA",
        tcps_sig_err_sigopt: "times unexpected signature received",
        tcps_sig_err_nosigopt: "times no signature provided by segment",
        tcps_pmtud_blackhole_activated: "Path MTU discovery black hole detection activations",
        tcps_pmtud_blackhole_activated_min_mss: "Path MTU discovery black hole detection min MSS activations",
        tcps_pmtud_blackhole_failed: "Path MTU discovery black hole detection failures",
        tcps_tw_responds: "times connection in TIME-WAIT responded with ACK",
        tcps_tw_recycles: "times connection in TIME-WAIT was actively recycled",
        tcps_tw_resets: "times connection in TIME-WAIT responded with RST",
    }
}

tunables! {
    /// `net.inet.tcp`: what can be changed while it runs. Times in ms.
    pub struct TcpTunables {
        rfc1323: bool = true, "net.inet.tcp.rfc1323", "Enable rfc1323 (high performance TCP) extensions";
        mssdflt: u32 = TCP_MSS, "net.inet.tcp.mssdflt", "Default TCP Maximum Segment Size";
        v6mssdflt: u32 = TCP6_MSS, "net.inet.tcp.v6mssdflt", "Default TCP Maximum Segment Size for IPv6";
        minmss: u32 = 216, "net.inet.tcp.minmss", "Minimum TCP Maximum Segment Size";
        keepinit: u32 = 75_000, "net.inet.tcp.keepinit", "time to establish connection";
        keepidle: u32 = 7_200_000, "net.inet.tcp.keepidle", "time before keepalive probes begin";
        keepintvl: u32 = 75_000, "net.inet.tcp.keepintvl", "time between keepalive probes";
        keepcnt: u32 = 8, "net.inet.tcp.keepcnt", "Number of keepalive probes to send";
        always_keepalive: bool = true, "net.inet.tcp.always_keepalive", "Assume SO_KEEPALIVE on all TCP connections";
        delayed_ack: bool = true, "net.inet.tcp.delayed_ack", "Delay ACK to try and piggyback it onto a data packet";
        delacktime: u32 = 40, "net.inet.tcp.delacktime", "Time before a delayed ACK is sent";
        msl: u32 = 30_000, "net.inet.tcp.msl", "Maximum segment lifetime";
        rexmit_initial: u32 = 1_000, "net.inet.tcp.rexmit_initial", "Initial Retransmission Timeout";
        rexmit_min: u32 = 30, "net.inet.tcp.rexmit_min", "Minimum Retransmission Timeout";
        rexmit_slop: u32 = 200, "net.inet.tcp.rexmit_slop", "Retransmission Timer Slop";
        rexmit_drop_options: bool = false, "net.inet.tcp.rexmit_drop_options", "Drop TCP options from 3rd and later retransmitted SYN";
        persmin: u32 = 5_000, "net.inet.tcp.persmin", "minimum persistence interval";
        persmax: u32 = 60_000, "net.inet.tcp.persmax", "maximum persistence interval";
        retries: u32 = 12, "net.inet.tcp.retries", "maximum number of consecutive timer based retransmissions";
        finwait2_timeout: u32 = 60_000, "net.inet.tcp.finwait2_timeout", "FIN-WAIT2 timeout";
        fast_finwait2_recycle: bool = false, "net.inet.tcp.fast_finwait2_recycle", "Recycle closed FIN_WAIT_2 connections faster";
        maxunacktime: u32 = 0, "net.inet.tcp.maxunacktime", "Maximum time (in ms) that a session can linger without making progress";
        sendspace: u32 = 32_768, "net.inet.tcp.sendspace", "Initial send socket buffer size";
        recvspace: u32 = 65_536, "net.inet.tcp.recvspace", "Initial receive socket buffer size";
        sendbuf_auto: bool = true, "net.inet.tcp.sendbuf_auto", "Enable automatic send buffer sizing";
        sendbuf_inc: u32 = 8_192, "net.inet.tcp.sendbuf_inc", "Incrementor step size of automatic send buffer";
        sendbuf_max: u32 = 2_097_152, "net.inet.tcp.sendbuf_max", "Max size of automatic send buffer";
        sendbuf_auto_lowat: bool = false, "net.inet.tcp.sendbuf_auto_lowat", "Modify threshold for auto send buffer growth to account for SO_SNDLOWAT";
        recvbuf_auto: bool = true, "net.inet.tcp.recvbuf_auto", "Enable automatic receive buffer sizing";
        recvbuf_max: u32 = 2_097_152, "net.inet.tcp.recvbuf_max", "Max size of automatic receive buffer";
        initcwnd_segments: u32 = 10, "net.inet.tcp.initcwnd_segments", "Slow-start flight size (initial congestion window) in number of segments";
        rfc3390: bool = true, "net.inet.tcp.rfc3390", "Enable RFC 3390 (Increasing TCP's Initial Congestion Window)";
        rfc3042: bool = true, "net.inet.tcp.rfc3042", "Enable RFC 3042 (Limited Transmit)";
        rfc3465: bool = true, "net.inet.tcp.rfc3465", "Enable RFC 3465 (Appropriate Byte Counting)";
        abc_l_var: u32 = 2, "net.inet.tcp.abc_l_var", "Cap the max cwnd increment during slow-start to this number of segments";
        newcwv: bool = false, "net.inet.tcp.newcwv", "Enable New Congestion Window Validation per RFC7661";
        do_prr: bool = true, "net.inet.tcp.do_prr", "Enable Proportional Rate Reduction per RFC 6937";
        sack_enable: bool = true, "net.inet.tcp.sack.enable", "Enable/Disable TCP SACK support";
        sack_revised: bool = true, "net.inet.tcp.sack.revised", "Use revised SACK loss recovery per RFC 6675";
        sack_lrd: bool = true, "net.inet.tcp.sack.lrd", "Perform Lost Retransmission Detection";
        sack_maxholes: u32 = 128, "net.inet.tcp.sack.maxholes", "Maximum number of TCP SACK holes allowed per connection";
        sack_globalmaxholes: u32 = 65_536, "net.inet.tcp.sack.globalmaxholes", "Global maximum number of TCP SACK holes";
        ecn_enable: u32 = 2, "net.inet.tcp.ecn.enable", "TCP ECN support: 0 off, 1 asked for, 2 agreed to if the peer asks; accurate ECN: 3 asked for, 4 agreed to" (0..=4);
        ecn_maxretries: u32 = 1, "net.inet.tcp.ecn.maxretries", "Max retries before giving up on ECN";
        syncookies: bool = true, "net.inet.tcp.syncookies", "Use TCP SYN cookies if the syncache overflows";
        syncookies_only: bool = false, "net.inet.tcp.syncookies_only", "Use only TCP SYN cookies";
        tso: bool = true, "net.inet.tcp.tso", "Enable TCP Segmentation Offload";
        path_mtu_discovery: bool = true, "net.inet.tcp.path_mtu_discovery", "Enable Path MTU Discovery";
        pmtud_blackhole_detection: u32 = 0, "net.inet.tcp.pmtud_blackhole_detection", "Path MTU Discovery Black Hole Detection: 0 off, 1 IPv4 and IPv6, 2 only IPv4, 3 only IPv6" (0..=3);
        v6pmtud_blackhole_mss: u32 = 1220, "net.inet.tcp.v6pmtud_blackhole_mss", "Path MTU Discovery IPv6 Black Hole Detection lowered MSS" (216..=65_535);
        pmtud_blackhole_mss: u32 = 1200, "net.inet.tcp.pmtud_blackhole_mss", "Path MTU Discovery Black Hole Detection lowered MSS" (216..=65_535);
        blackhole: u32 = 0, "net.inet.tcp.blackhole", "Do not send RST on segments to closed ports";
        blackhole_local: bool = false, "net.inet.tcp.blackhole_local", "Enforce net.inet.tcp.blackhole for locally originated packets";
        log_in_vain: u32 = 0, "net.inet.tcp.log_in_vain", "Log all incoming TCP segments to closed ports";
        drop_synfin: bool = false, "net.inet.tcp.drop_synfin", "Drop TCP packets with SYN+FIN set";
        insecure_rst: bool = false, "net.inet.tcp.insecure_rst", "Follow RFC793 instead of RFC5961 criteria for accepting RST packets";
        insecure_syn: bool = false, "net.inet.tcp.insecure_syn", "Follow RFC793 instead of RFC5961 criteria for accepting SYN packets";
        insecure_ack: bool = false, "net.inet.tcp.insecure_ack", "Follow RFC793 criteria for validating SEG.ACK";
        ack_war_timewindow: u32 = 1_000, "net.inet.tcp.ack_war_timewindow", "Time interval in ms used to limit the number (ack_war_cnt) of challenge ACKs sent per TCP connection";
        ack_war_cnt: u32 = 5, "net.inet.tcp.ack_war_cnt", "Maximum number of challenge ACKs sent per TCP connection during the time interval (ack_war_timewindow)";
        icmp_may_rst: bool = true, "net.inet.tcp.icmp_may_rst", "Certain ICMP unreachable messages may abort connections in SYN_SENT";
        isn_reseed_interval: u32 = 0, "net.inet.tcp.isn_reseed_interval", "Seconds between reseeding of ISN secret";
        syncache_rexmtlimit: u32 = 3, "net.inet.tcp.syncache.rexmtlimit", "Limit on SYN/ACK retransmissions";
        syncache_rst_on_sock_fail: bool = true, "net.inet.tcp.syncache.rst_on_sock_fail", "Send reset on socket allocation failure";
        reass_maxqueuelen: u32 = 100, "net.inet.tcp.reass.maxqueuelen", "Maximum number of TCP Segments per Reassembly Queue";
        nolocaltimewait: bool = true, "net.inet.tcp.nolocaltimewait", "Do not create TCP TIME_WAIT state for local connections";
        tolerate_missing_ts: bool = true, "net.inet.tcp.tolerate_missing_ts", "Tolerate missing TCP timestamps";
        ts_offset_per_conn: bool = true, "net.inet.tcp.ts_offset_per_conn", "Initialize TCP timestamps per connection instead of per host pair";
        newreno_beta: u32 = 50, "net.inet.tcp.cc.newreno.beta", "New Reno beta, specified as number between 1 and 100";
        newreno_beta_ecn: u32 = 80, "net.inet.tcp.cc.newreno.beta_ecn", "New Reno beta ecn, specified as number between 1 and 100" (1..=100);
        cc_abe: bool = false, "net.inet.tcp.cc.abe", "Enable RFC8511 (Alternative Backoff with ECN, ABE)";
        cc_abe_frlossreduce: bool = false, "net.inet.tcp.cc.abe_frlossreduce", "Apply standard beta instead of ABE-beta during ECN-signalled congestion recovery episodes if loss also needs to be repaired";
        dctcp_alpha: u32 = MAX_ALPHA_VALUE, "net.inet.tcp.cc.dctcp.alpha", "dctcp alpha parameter at start of session" (0..=1024);
        dctcp_shift_g: u32 = 4, "net.inet.tcp.cc.dctcp.shift_g", "dctcp shift parameter" (1..=10);
        dctcp_slowstart: bool = false, "net.inet.tcp.cc.dctcp.slowstart", "half CWND reduction after the first slow start";
        lro_entries: u32 = 8, "net.inet.tcp.lro.entries", "default number of LRO entries";
    }
}
