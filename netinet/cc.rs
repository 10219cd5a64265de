//! Congestion control: the window's growth and reduction, by module.
//!
//! FreeBSD: sys/netinet/cc/cc.h, cc.c, and the cc_* functions of tcp_input.c

pub mod cc_cubic;
pub mod cc_dctcp;
pub mod cc_newreno;
mod hystart;

use alloc::boxed::Box;

use sys::errno::Errno;
use sys::protosw::SockOpt;
use sys::time::Ticks;

use crate::tcp_seq::TcpSeq;
use crate::tcp_var::{TcpTunables, Tcpcb, Tf, Tf2};

/// What an acknowledgement says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CcAck {
    /// New data is acknowledged (`CC_ACK`).
    Ack,
    /// A duplicate (`CC_DUPACK`).
    DupAck,
    /// Some of what was outstanding when recovery began (`CC_PARTIALACK`).
    PartialAck,
}

/// A sign of congestion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CcSignal {
    /// The network marked a packet (`CC_ECN`).
    Ecn,
    /// The retransmission timer expired (`CC_RTO`).
    Rto,
    /// The last timeout was spurious (`CC_RTO_ERR`).
    RtoErr,
    /// Duplicate ACKs (`CC_NDUPACK`).
    NDupAck,
}

/// What a module is told with an event, beside the connection itself.
#[derive(Clone, Copy)]
pub struct CcVar<'a> {
    /// Tunables of the instance.
    pub tun: &'a TcpTunables,
    /// Now.
    pub now: Ticks,
    /// The acknowledgement number that brought the event.
    pub curack: TcpSeq,
    /// Bytes this ACK acknowledges.
    pub bytes_this_ack: u32,
    /// Segments this ACK stands for (LRO may have merged several).
    pub nsegs: u32,
    /// Whether the congestion window was what limited sending (`CCF_CWND_LIMITED`).
    pub cwnd_limited: bool,
    /// Whether a full window of bytes has been acknowledged since the window last grew (`CCF_ABC_SENTAWND`).
    pub abc_sentawnd: bool,
}

/// A congestion control algorithm with its state for one connection.
#[doc(alias = "cc_algo")]
pub trait CcAlgo: Send + Sync {
    /// The name, as in `net.inet.tcp.cc.algorithm`.
    fn name(&self) -> &'static str;

    /// The connection is established.
    fn conn_init(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        let _ = (tp, ccv);
    }

    /// An ACK came.
    fn ack_received(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>, kind: CcAck);

    /// A sign of congestion came.
    fn cong_signal(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>, signal: CcSignal);

    /// Recovery is over.
    fn post_recovery(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>);

    /// The connection sends again after an idle time longer than the retransmission timeout.
    fn after_idle(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>);

    /// A segment with data came, marked or not: whether that is a change, of an algorithm whose echo says so of each
    /// segment.
    fn ecnpkt_handler(&mut self, ce: bool) -> Option<bool> {
        let _ = ce;
        None
    }

    /// Sets or reads an option of its own (`TCP_CCALGOOPT`); `ENOENT` if it has none.
    fn ctl_output(&mut self, tun: &TcpTunables, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
        let _ = (tun, sopt);
        Err(Errno::ENOENT)
    }

    /// A round-trip time was measured.
    fn rttsample(&mut self, tp: &mut Tcpcb, ms: u32) {
        let _ = (tp, ms);
    }
}

/// Names of the algorithms there are, the default first.
pub const CC_AVAILABLE: [&str; 3] = ["cubic", "newreno", "dctcp"];

/// Makes the state of algorithm `name` for a new connection.
pub fn cc_attach(name: &str) -> Option<Box<dyn CcAlgo>> {
    match name {
        "cubic" => Some(Box::<cc_cubic::Cubic>::default()),
        "dctcp" => Some(Box::<cc_dctcp::Dctcp>::default()),
        "newreno" => Some(Box::<cc_newreno::NewReno>::default()),
        _ => None,
    }
}

/// Stands in a connection while its algorithm is at work on it.
struct AtWork;

impl CcAlgo for AtWork {
    fn name(&self) -> &'static str {
        ""
    }
    fn ack_received(&mut self, _: &mut Tcpcb, _: &CcVar<'_>, _: CcAck) {}
    fn cong_signal(&mut self, _: &mut Tcpcb, _: &CcVar<'_>, _: CcSignal) {}
    fn post_recovery(&mut self, _: &mut Tcpcb, _: &CcVar<'_>) {}
    fn after_idle(&mut self, _: &mut Tcpcb, _: &CcVar<'_>) {}
}

impl Tcpcb {
    /// Runs `f` with the connection's algorithm beside the connection. Nothing is allocated: the stand-in has no
    /// size.
    fn with_cc<R>(&mut self, f: impl FnOnce(&mut dyn CcAlgo, &mut Tcpcb) -> R) -> R {
        let mut cc = core::mem::replace(&mut self.t_cc, Box::new(AtWork));
        let result = f(&mut *cc, self);
        self.t_cc = cc;
        result
    }

    fn cc_var<'a>(&self, tun: &'a TcpTunables, now: Ticks, curack: TcpSeq) -> CcVar<'a> {
        CcVar {
            tun,
            now,
            curack,
            bytes_this_ack: curack.since(self.snd_una),
            nsegs: 1,
            cwnd_limited: false,
            abc_sentawnd: false,
        }
    }

    /// Tells the algorithm of an ACK.
    pub fn cc_ack_received(
        &mut self,
        tun: &TcpTunables,
        now: Ticks,
        ack: TcpSeq,
        nsegs: u32,
        kind: CcAck,
    ) {
        let mut ccv = self.cc_var(tun, now, ack);
        ccv.nsegs = nsegs;
        // RFC 7661 §4.3: a window of which not half is in use has not been shown to fit the path.
        let validated = !tun.newcwv.get() || self.snd_cwnd < self.compute_pipe().saturating_mul(2);
        ccv.cwnd_limited = validated
            && self.snd_cwnd <= self.snd_wnd
            && (!self.t_flags.contains(Tf::TSO)
                || self.snd_max.since(self.snd_una) >= self.snd_cwnd / 2);
        if kind == CcAck::Ack {
            if self.snd_cwnd > self.snd_ssthresh {
                let most = nsegs
                    .saturating_mul(tun.abc_l_var.get())
                    .saturating_mul(self.maxseg());
                self.t_bytes_acked = self
                    .t_bytes_acked
                    .saturating_add(ccv.bytes_this_ack.min(most));
                if self.t_bytes_acked >= self.snd_cwnd {
                    self.t_bytes_acked -= self.snd_cwnd;
                    ccv.abc_sentawnd = true;
                }
            } else {
                self.t_bytes_acked = 0;
            }
        }
        self.with_cc(|cc, tp| cc.ack_received(tp, &ccv, kind));
    }

    /// Tells the algorithm of congestion.
    pub fn cc_cong_signal(&mut self, tun: &TcpTunables, now: Ticks, ack: TcpSeq, signal: CcSignal) {
        let ccv = self.cc_var(tun, now, ack);
        match signal {
            CcSignal::NDupAck => {
                if !self.in_fastrecovery() {
                    self.snd_recover = self.snd_max;
                    self.tell_window_reduced();
                }
            }
            CcSignal::Ecn => {
                if !self.t_flags.contains(Tf::CONGRECOVERY) || ack.geq(self.snd_recover) {
                    self.exit_recovery();
                    self.snd_recover = self.snd_max + 1;
                    self.tell_window_reduced();
                }
            }
            CcSignal::Rto => {
                self.t_dupacks = 0;
                self.t_bytes_acked = 0;
                self.exit_recovery();
                self.tell_window_reduced();
            }
            CcSignal::RtoErr => self.restore_before_timeout(),
        }
        self.with_cc(|cc, tp| cc.cong_signal(tp, &ccv, signal));
    }

    /// With ECN the next data tells the peer that the window has been reduced (RFC 3168 §6.1.2).
    fn tell_window_reduced(&mut self) {
        if self.t_flags2.contains(Tf2::ECN_PERMIT) {
            self.t_flags2 |= Tf2::ECN_SND_CWR;
        }
    }

    /// Undoes a retransmission timeout that turned out to be spurious.
    fn restore_before_timeout(&mut self) {
        let prev = self.t_prev;
        self.snd_cwnd = prev.snd_cwnd_prev;
        self.snd_ssthresh = prev.snd_ssthresh_prev;
        self.snd_recover = prev.snd_recover_prev;
        if self.t_flags.contains(Tf::WASFRECOVERY) {
            self.t_flags |= Tf::FASTRECOVERY;
        }
        if self.t_flags.contains(Tf::WASCRECOVERY) {
            self.t_flags |= Tf::CONGRECOVERY;
        }
        self.snd_nxt = self.snd_max;
        self.t_flags.remove(Tf::PREVVALID);
        self.t_prev.t_badrxtwin = 0;
    }

    /// Tells the algorithm that recovery is over.
    pub fn cc_post_recovery(&mut self, tun: &TcpTunables, now: Ticks, ack: TcpSeq) {
        let ccv = self.cc_var(tun, now, ack);
        self.with_cc(|cc, tp| cc.post_recovery(tp, &ccv));
        self.t_bytes_acked = 0;
        self.exit_recovery();
        if let Some(sack) = &mut self.t_sack {
            sack.delivered_data = 0;
        }
        self.t_prr = Default::default();
    }

    /// Tells the algorithm that the connection was idle.
    pub fn cc_after_idle(&mut self, tun: &TcpTunables, now: Ticks) {
        let ccv = self.cc_var(tun, now, self.snd_una);
        self.with_cc(|cc, tp| cc.after_idle(tp, &ccv));
    }

    /// Sets the first window of a connection just established, and tells the algorithm.
    pub fn cc_conn_init(&mut self, tun: &TcpTunables, now: Ticks) {
        let maxseg = self.maxseg();
        // RFC 5681 §3.1: a SYN that had to be repeated leaves one segment.
        self.snd_cwnd = if self.snd_cwnd == 1 {
            maxseg
        } else {
            tcp_compute_initwnd(tun, maxseg)
        };
        let ccv = self.cc_var(tun, now, self.snd_una);
        self.with_cc(|cc, tp| cc.conn_init(tp, &ccv));
    }

    /// Tells the algorithm of a segment with data; whether marks began or ended, if it wants to echo each.
    pub fn cc_ecnpkt_handler(&mut self, ce: bool) -> Option<bool> {
        self.t_cc.ecnpkt_handler(ce)
    }

    /// Tells the algorithm of a round-trip time.
    pub fn cc_rttsample(&mut self, ms: u32) {
        self.with_cc(|cc, tp| cc.rttsample(tp, ms));
    }
}

/// Returns the initial congestion window (RFC 6928, RFC 3390, RFC 5681).
pub fn tcp_compute_initwnd(tun: &TcpTunables, maxseg: u32) -> u32 {
    let segments = tun.initcwnd_segments.get();
    if segments != 0 {
        (segments.saturating_mul(maxseg)).min((2 * maxseg).max(segments.saturating_mul(1460)))
    } else if tun.rfc3390.get() {
        (4 * maxseg).min((2 * maxseg).max(4380))
    } else if maxseg > 2190 {
        2 * maxseg
    } else if maxseg > 1095 {
        3 * maxseg
    } else {
        4 * maxseg
    }
}
