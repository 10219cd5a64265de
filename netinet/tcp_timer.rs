//! The five timers of a connection: retransmit, persist, keep, 2MSL, delayed ACK.
//!
//! FreeBSD: sys/netinet/tcp_timer.c, tcp_timer.h
//! Differs from FreeBSD: starting or stopping a timer only notes its deadline. The one callout of the connection is
//! armed when the connection is unlocked, and only if it would otherwise fire too late; fired too early, it is
//! armed again for what is left. So the wheel is touched a few times a second and not for every segment.

use alloc::sync::Arc;
use core::net::IpAddr;

use sys::errno::Errno;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::subr_epoch::NetEpoch;
use sys::sockbuf::SbState;
use sys::socket::SoOptions;
use sys::time::{Sbintime, Ticks};

use crate::cc::CcSignal;
use crate::tcp::TcpFlags;
use crate::tcp_fastopen::tcp_fastopen_disable_path;
use crate::tcp_fsm::TcpState;
use crate::tcp_output::tcp_output;
use crate::tcp_seq::TcpSeq;
use crate::tcp_subr::{Conn, Locked, TcpInpcb, tcp_close, tcp_drop, tcp_respond};
use crate::tcp_var::{TCP_RTT_SHIFT, TcpTunables, Tcpcb, Tf, Tf2};
use crate::vnet::NetCx;

/// Largest retransmission timeout in ms (`TCPTV_REXMTMAX`).
pub const TCPTV_REXMTMAX: u32 = 64_000;
/// Longest time in persist without an answer, in ms (`TCPTV_KEEP_IDLE`).
const TCP_MAXPERSISTIDLE: i32 = 7_200_000;

/// Backoff of retransmission and persist timer.
const TCP_BACKOFF: [u32; 13] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512, 512];
/// Sum of `TCP_BACKOFF`.
const TCP_TOTBACKOFF: u32 = 2559;

/// Returns the factor for the `shift`th retransmission.
pub fn tcp_backoff(shift: u8) -> u32 {
    TCP_BACKOFF[usize::from(shift).min(TCP_BACKOFF.len() - 1)]
}

/// Returns `value` with the slop added, between `min` and `max`.
#[doc(alias = "TCPT_RANGESET")]
pub fn rangeset(tun: &TcpTunables, value: u32, min: u32, max: u32) -> u32 {
    value
        .saturating_add(tun.rexmit_slop.get())
        .max(min)
        .min(max)
}

/// Which timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TcpTimer {
    /// Retransmission (`TT_REXMT`).
    Rexmt = 0,
    /// Persist: the peer's window is closed (`TT_PERSIST`).
    Persist = 1,
    /// Connection set-up and keepalive (`TT_KEEP`).
    Keep = 2,
    /// TIME_WAIT and FIN_WAIT_2 (`TT_2MSL`).
    Msl2 = 3,
    /// Delayed ACK (`TT_DELACK`).
    Delack = 4,
}

impl TcpTimer {
    const ALL: [TcpTimer; 5] = [
        TcpTimer::Rexmt,
        TcpTimer::Persist,
        TcpTimer::Keep,
        TcpTimer::Msl2,
        TcpTimer::Delack,
    ];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The timers of one connection.
pub struct TcpTimers {
    deadline: [Ticks; 5],
    active: u8,
    /// Whether a deadline lies before the time the callout is armed for.
    early: bool,
    armed: bool,
    fires: Ticks,
    callout: Callout,
}

impl TcpTimers {
    /// Timers of which none runs.
    pub fn new() -> TcpTimers {
        TcpTimers {
            deadline: [Ticks(0); 5],
            active: 0,
            early: false,
            armed: false,
            fires: Ticks(0),
            callout: Callout::new(),
        }
    }

    /// Lets `timer` expire `after` ms from now.
    #[doc(alias = "tcp_timer_activate")]
    #[inline]
    pub fn activate(&mut self, timer: TcpTimer, now: Ticks, after: u32) {
        let deadline = now + after;
        self.deadline[timer as usize] = deadline;
        self.active |= timer.bit();
        if !self.armed || self.fires - deadline > 0 {
            self.early = true;
        }
    }

    /// Stops `timer`.
    #[doc(alias = "tcp_timer_activate")]
    #[inline]
    pub fn stop(&mut self, timer: TcpTimer) {
        self.active &= !timer.bit();
    }

    /// Whether `timer` runs.
    #[doc(alias = "tcp_timer_active")]
    #[inline]
    pub fn active(&self, timer: TcpTimer) -> bool {
        self.active & timer.bit() != 0
    }

    /// When `timer` expires, if it runs.
    pub fn deadline(&self, timer: TcpTimer) -> Option<Ticks> {
        self.active(timer).then(|| self.deadline[timer as usize])
    }

    /// The timer that expires first.
    fn next(&self) -> Option<(TcpTimer, Ticks)> {
        let mut first: Option<(TcpTimer, Ticks)> = None;
        for timer in TcpTimer::ALL {
            if let Some(deadline) = self.deadline(timer)
                && first.is_none_or(|(_, earliest)| earliest - deadline > 0)
            {
                first = Some((timer, deadline));
            }
        }
        first
    }

    /// Sees to it that the callout fires in time.
    #[inline]
    pub fn commit(&mut self, inp: &TcpInpcb, now: Ticks) {
        if self.early {
            self.arm(inp, now);
        }
    }

    fn arm(&mut self, inp: &TcpInpcb, now: Ticks) {
        self.early = false;
        let Some((_, deadline)) = self.next() else {
            return;
        };
        if self.armed && self.fires - deadline <= 0 {
            return;
        }
        self.armed = true;
        self.fires = deadline;
        let after = (deadline - now).max(0);
        self.callout
            .reset(Sbintime::from_ms(i64::from(after)), &inp.arc());
    }

    /// Stops everything; the connection is gone.
    #[doc(alias = "tcp_timer_stop")]
    pub fn shut(&mut self) {
        self.active = 0;
        self.early = false;
        if self.armed {
            self.armed = false;
            self.callout.stop();
        }
    }
}

impl Default for TcpTimers {
    fn default() -> Self {
        Self::new()
    }
}

impl CalloutTarget for TcpInpcb {
    /// Runs what is due (`tcp_timer_enter`).
    fn callout(self: Arc<Self>, _now: Sbintime) {
        let epoch = NetEpoch::enter();
        let cx = NetCx::new(&self.inp_vnet, &epoch);
        let mut locked = Locked::new(&cx, &self);
        {
            let timers = &mut locked.tp().t_timers;
            timers.armed = false;
            timers.early = true;
        }
        loop {
            let Some((c, tp)) = locked.split() else {
                return;
            };
            if tp.t_flags.contains(Tf::CLOSED) {
                return;
            }
            match tp.t_timers.next() {
                Some((timer, deadline)) if cx.now - deadline >= 0 => {
                    tp.t_timers.stop(timer);
                    match timer {
                        TcpTimer::Rexmt => tcp_timer_rexmt(&c, tp),
                        TcpTimer::Persist => tcp_timer_persist(&c, tp),
                        TcpTimer::Keep => tcp_timer_keep(&c, tp),
                        TcpTimer::Msl2 => tcp_timer_2msl(&c, tp),
                        TcpTimer::Delack => tcp_timer_delack(&c, tp),
                    }
                }
                _ => return,
            }
        }
    }
}

/// Sends the ACK that was held back.
fn tcp_timer_delack(c: &Conn<'_>, tp: &mut Tcpcb) {
    tp.t_flags |= Tf::ACKNOW;
    c.vt.stat.tcps_delack.inc();
    let _ = tcp_output(c, tp);
}

/// Ends TIME_WAIT, or FIN_WAIT_2 with a peer that does not close.
fn tcp_timer_2msl(c: &Conn<'_>, tp: &mut Tcpcb) {
    let tun = &c.vt.tun;
    if tp.t_state == TcpState::TimeWait {
        tcp_close(c, tp);
        return;
    }
    let gone = tp.t_state == TcpState::FinWait2
        && tun.fast_finwait2_recycle.get()
        && c.so.rcv.lock().state().contains(SbState::CANTRCVMORE);
    let idle = c.net.now - tp.t_rcvtime;
    if gone || idle > tp.maxidle(tun) as i32 {
        if tp.t_state == TcpState::FinWait2 {
            c.vt.stat.tcps_finwait2_drops.inc();
        }
        tcp_close(c, tp);
    } else {
        tp.t_timers
            .activate(TcpTimer::Msl2, c.net.now, tp.keepintvl(tun));
    }
}

/// Probes an idle peer, or gives up: on a peer that does not answer, or on a handshake that takes too long.
fn tcp_timer_keep(c: &Conn<'_>, tp: &mut Tcpcb) {
    let tun = &c.vt.tun;
    let now = c.net.now;
    let idle = (now - tp.t_rcvtime).max(0) as u32;
    if tp.t_state.have_established() && idle < tp.keepidle(tun) {
        // The timer is not moved by every segment; here it catches up.
        tp.t_timers
            .activate(TcpTimer::Keep, now, tp.keepidle(tun) - idle);
        return;
    }
    c.vt.stat.tcps_keeptimeo.inc();
    let wanted = tun.always_keepalive.get() || c.so.options().contains(SoOptions::KEEPALIVE);
    if tp.t_state < TcpState::Established {
        drop_by_keepalive(c, tp);
    } else if wanted && tp.t_state <= TcpState::Closing {
        if idle >= tp.keepidle(tun).saturating_add(tp.maxidle(tun)) {
            drop_by_keepalive(c, tp);
            return;
        }
        // A segment below the window makes a live peer answer (RFC 9293 §3.8.4).
        c.vt.stat.tcps_keepprobe.inc();
        tcp_respond(c, tp, tp.rcv_nxt, tp.snd_una - 1, TcpFlags::ACK);
        tp.t_timers.activate(TcpTimer::Keep, now, tp.keepintvl(tun));
    } else {
        tp.t_timers.activate(TcpTimer::Keep, now, tp.keepidle(tun));
    }
}

fn drop_by_keepalive(c: &Conn<'_>, tp: &mut Tcpcb) {
    c.vt.stat.tcps_keepdrops.inc();
    tcp_drop(c, tp, Some(Errno::ETIMEDOUT));
}

/// Whether the peer has acknowledged nothing for longer than it may.
#[doc(alias = "tcp_maxunacktime_check")]
fn no_progress(c: &Conn<'_>, tp: &Tcpcb) -> bool {
    let limit = tp.maxunacktime(&c.vt.tun);
    let Some(since) = tp.t_acktime else {
        return false;
    };
    if limit == 0 || c.net.now - since < limit as i32 {
        return false;
    }
    c.vt.stat.tcps_progdrops.inc();
    true
}

/// Sends a byte into the closed window.
fn tcp_timer_persist(c: &Conn<'_>, tp: &mut Tcpcb) {
    let tun = &c.vt.tun;
    c.vt.stat.tcps_persisttimeo.inc();
    let idle = c.net.now - tp.t_rcvtime;
    let exhausted = u32::from(tp.t_rxtshift) >= tun.retries.get()
        && (idle >= TCP_MAXPERSISTIDLE
            || idle as u32 >= tp.rexmtval().saturating_mul(TCP_TOTBACKOFF));
    // Nobody waits for a connection that the program has closed.
    let closed = tp.t_state > TcpState::CloseWait && idle >= tun.persmax.get() as i32;
    if no_progress(c, tp) || exhausted || closed {
        c.vt.stat.tcps_persistdrop.inc();
        tcp_drop(c, tp, Some(Errno::ETIMEDOUT));
        return;
    }
    tcp_setpersist(c, tp);
    tp.t_flags |= Tf::FORCEDATA;
    let _ = tcp_output(c, tp);
    tp.t_flags.remove(Tf::FORCEDATA);
}

/// Starts the persist timer, and backs it off.
pub fn tcp_setpersist(c: &Conn<'_>, tp: &mut Tcpcb) {
    let tun = &c.vt.tun;
    let base = (((tp.t_srtt >> 2) + tp.t_rttvar) >> 1).max(0) as u32;
    let after = rangeset(
        tun,
        base.saturating_mul(tcp_backoff(tp.t_rxtshift)),
        tun.persmin.get(),
        tun.persmax.get(),
    );
    tp.t_timers.activate(TcpTimer::Persist, c.net.now, after);
    if u32::from(tp.t_rxtshift) < tun.retries.get() {
        tp.t_rxtshift += 1;
    }
}

/// Retransmits the first segment not acknowledged, with the timer backed off.
fn tcp_timer_rexmt(c: &Conn<'_>, tp: &mut Tcpcb) {
    let tun = &c.vt.tun;
    let now = c.net.now;
    tp.t_rxtshift = tp.t_rxtshift.saturating_add(1);
    let exhausted = u32::from(tp.t_rxtshift) > tun.retries.get();
    if exhausted || no_progress(c, tp) {
        if exhausted {
            c.vt.stat.tcps_timeoutdrop.inc();
        }
        tp.t_rxtshift = tun.retries.get().min(u32::from(u8::MAX)) as u8;
        tcp_drop(c, tp, Some(Errno::ETIMEDOUT));
        return;
    }
    if tp.t_state == TcpState::SynSent {
        // RFC 5681 §3.1: after a lost SYN begin with one segment.
        tp.snd_cwnd = 1;
        if tp.t_flags.contains(Tf::FASTOPEN) {
            // It may be the option that did not get through.
            tcp_fastopen_disable_path(c);
        }
    } else if tp.fast_open_child() {
        // The same for a SYN|ACK: one segment from now on.
        tp.snd_cwnd = tp.maxseg();
    } else if tp.t_rxtshift == 1 {
        save_before_timeout(tp, now);
    } else {
        tp.t_flags.remove(Tf::PREVVALID);
    }
    if let Some(sack) = &mut tp.t_sack {
        sack.resend_sackholes();
    }
    c.vt.stat.tcps_rexmttimeo.inc();
    let base = if matches!(tp.t_state, TcpState::SynSent | TcpState::SynReceived) {
        tun.rexmit_initial.get()
    } else {
        tp.rexmtval()
    };
    let value = base.saturating_mul(tcp_backoff(tp.t_rxtshift));
    tp.t_rxtcur = rangeset(tun, value, tp.t_rttmin, TCPTV_REXMTMAX);
    look_for_black_hole(c, tp);
    // A host that does not answer may dislike the options.
    if tun.rexmit_drop_options.get() && tp.t_state == TcpState::SynSent && tp.t_rxtshift == 3 {
        tp.t_flags
            .remove(Tf::REQ_SCALE | Tf::REQ_TSTMP | Tf::SACK_PERMIT);
    }
    // The path may have changed: ask for it anew, and do not trust the estimate of the old one.
    if u32::from(tp.t_rxtshift) > crate::tcp_var::TCP_RTT_INVALIDATE {
        c.inp.forget_route();
        tp.t_rttvar += tp.t_srtt >> TCP_RTT_SHIFT;
        tp.t_srtt = 0;
    }
    tp.snd_nxt = tp.snd_una;
    tp.snd_recover = tp.snd_max;
    tp.t_flags |= Tf::ACKNOW;
    // Karn: what is retransmitted is not timed.
    tp.t_rtttime = None;
    tp.cc_cong_signal(tun, now, TcpSeq(0), CcSignal::Rto);
    tp.t_prr = Default::default();
    let _ = tcp_output(c, tp);
}

/// Full segments that vanish may be too large for a router that does not say so (RFC 2923 §2.1): tries smaller ones, and
/// goes back when they vanish too.
fn look_for_black_hole(c: &Conn<'_>, tp: &mut Tcpcb) {
    let tun = &c.vt.tun;
    let stat = &c.vt.stat;
    let wanted = match (tun.pmtud_blackhole_detection.get(), c.hdr.is_ipv6()) {
        (1, _) | (2, false) | (3, true) => true,
        (_, _) => false,
    };
    if !wanted || !matches!(tp.t_state, TcpState::Established | TcpState::FinWait1) {
        return;
    }
    let suspect = Tf2::PLPMTU_PMTUD | Tf2::PLPMTU_MAXSEGSNT;
    // Each size has two tries.
    if tp.t_flags2.contains(suspect) && matches!(tp.t_rxtshift, 2 | 4) {
        if !tp.t_flags2.contains(Tf2::PLPMTU_BLACKHOLE) {
            tp.t_flags2 |= Tf2::PLPMTU_BLACKHOLE;
            tp.t_pmtud_saved_maxseg = tp.t_maxseg;
        }
        let (lowered, least) = match c.hdr.faddr() {
            IpAddr::V4(_) => (tun.pmtud_blackhole_mss.get(), tun.mssdflt.get()),
            IpAddr::V6(_) => (tun.v6pmtud_blackhole_mss.get(), tun.v6mssdflt.get()),
        };
        if tp.t_maxseg > lowered {
            tp.t_maxseg = lowered;
            stat.tcps_pmtud_blackhole_activated.inc();
        } else {
            tp.t_maxseg = least;
            stat.tcps_pmtud_blackhole_activated_min_mss.inc();
        }
        tp.cc_conn_init(tun, c.net.now);
    } else if tp.t_flags2.contains(Tf2::PLPMTU_BLACKHOLE) && tp.t_rxtshift >= 6 {
        tp.t_flags2.remove(Tf2::PLPMTU_BLACKHOLE);
        tp.t_maxseg = tp.t_pmtud_saved_maxseg;
        stat.tcps_pmtud_blackhole_failed.inc();
        tp.cc_conn_init(tun, c.net.now);
    }
}

/// Keeps the congestion state, to restore it if the ACK turns out to have been on its way.
fn save_before_timeout(tp: &mut Tcpcb, now: Ticks) {
    tp.t_prev.snd_cwnd_prev = tp.snd_cwnd;
    tp.t_prev.snd_ssthresh_prev = tp.snd_ssthresh;
    tp.t_prev.snd_recover_prev = tp.snd_recover;
    tp.t_flags
        .set(Tf::WASFRECOVERY, tp.t_flags.contains(Tf::FASTRECOVERY));
    tp.t_flags
        .set(Tf::WASCRECOVERY, tp.t_flags.contains(Tf::CONGRECOVERY));
    // With timestamps, `tcp_output` notes the time of the retransmission itself.
    tp.t_prev.t_badrxtwin = if tp.t_flags.contains(Tf::RCVD_TSTMP) {
        0
    } else {
        (now + (tp.t_srtt >> (TCP_RTT_SHIFT + 1)) as u32).0
    };
    tp.t_flags |= Tf::PREVVALID;
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::machine::hosted::Machine;

    #[test]
    fn the_backoffs_sum_up_to_what_persist_waits_for() {
        assert_eq!(TCP_BACKOFF.iter().sum::<u32>(), TCP_TOTBACKOFF);
    }

    #[test]
    fn moving_a_deadline_later_does_not_ask_for_the_wheel() {
        Machine::builder().run(|| {
            let mut timers = TcpTimers::new();
            timers.activate(TcpTimer::Rexmt, Ticks(0), 230);
            assert!(timers.early);
            timers.early = false;
            timers.armed = true;
            timers.fires = Ticks(230);
            timers.activate(TcpTimer::Rexmt, Ticks(100), 230);
            assert!(!timers.early);
            timers.activate(TcpTimer::Delack, Ticks(100), 40);
            assert!(timers.early);
            assert_eq!(timers.next(), Some((TcpTimer::Delack, Ticks(140))));
            timers.stop(TcpTimer::Delack);
            assert_eq!(timers.next(), Some((TcpTimer::Rexmt, Ticks(330))));
        });
    }

    #[test]
    fn deadlines_are_compared_over_the_wrap() {
        Machine::builder().run(|| {
            let mut timers = TcpTimers::new();
            timers.activate(TcpTimer::Keep, Ticks(u32::MAX - 10), 100);
            timers.activate(TcpTimer::Rexmt, Ticks(u32::MAX - 10), 5);
            assert_eq!(timers.next(), Some((TcpTimer::Rexmt, Ticks(u32::MAX - 5))));
        });
    }
}
