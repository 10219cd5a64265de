//! CUBIC: after a loss the window returns to where the loss was along a cubic curve of time, whatever the round-trip time.
//!
//! FreeBSD: sys/netinet/cc/cc_cubic.c, cc_cubic.h
//! RFC 9438; HyStart++ of RFC 9406 ends the first slow start.

use sys::time::Ticks;

use crate::cc::cc_newreno::{newreno_ack_received, newreno_after_idle, newreno_post_recovery};
use crate::cc::hystart::HyStart;
use crate::cc::{CcAck, CcAlgo, CcSignal, CcVar};
use crate::tcp::TCP_MAXWIN;
use crate::tcp_var::{TCP_RTT_SHIFT, Tcpcb, Tf};

/// What is left of the window after a loss, in 1024ths (0.7, RFC 9438 §4.6).
const BETA: u64 = 717;
/// (1 + β) / 2 in 1024ths: what fast convergence leaves of the old maximum (RFC 9438 §4.7).
const FAST_CONVERGENCE: u64 = (1024 + BETA) / 2;
/// 3 (1 - β) / (1 + β) in 1024ths: growth of the Reno-friendly estimate, in segments per round trip (RFC 9438 §4.3).
const ALPHA: u64 = 3 * (1024 - BETA) * 1024 / (1024 + BETA);
/// The curve is cut off here, in milliseconds from its middle, far above any window.
const MOST_MS: i64 = 200_000;

/// The curve that the window follows since the last loss.
#[derive(Clone, Copy)]
struct Epoch {
    start: Ticks,
    /// The window that Reno would have, in 1024ths of a byte.
    w_est: u64,
    /// Time from its start to `w_max`, in milliseconds (K of RFC 9438 §4.2).
    k: i64,
}

/// CUBIC's state of a connection.
#[derive(Clone, Copy, Default)]
struct Curve {
    /// The window at the last loss, in bytes.
    w_max: u32,
    /// The window before the last reduction, in bytes.
    cwnd_prior: u32,
    /// None: to begin with the next ACK in congestion avoidance.
    epoch: Option<Epoch>,
    /// The last loss was a timeout: the curve begins at its middle (RFC 9438 §4.8).
    after_timeout: bool,
}

/// The algorithm and its state.
#[derive(Default)]
pub struct Cubic {
    curve: Curve,
    /// As it was before the last timeout, which may turn out to be spurious (RFC 9438 §4.9).
    before_timeout: Curve,
    hystart: HyStart,
}

/// Returns `bytes * part / 1024`.
fn part(bytes: u32, part: u64) -> u32 {
    (u64::from(bytes) * part / 1024) as u32
}

/// The cube root, rounded down.
fn cube_root(value: u64) -> u64 {
    let mut root = 0u64;
    for bit in (0..22).rev() {
        let larger = root | 1 << bit;
        // Below 2^66: compared without the cube itself.
        if u128::from(larger).pow(3) <= u128::from(value) {
            root = larger;
        }
    }
    root
}

/// C (t - K)³ in bytes, with C = 0.4 segments/s³ and the time in milliseconds.
fn cube(ms: i64, mss: u32) -> i64 {
    let ms = ms.clamp(-MOST_MS, MOST_MS);
    let thousandths_of_segments = ms * ms * ms * 4 / 10_000_000;
    thousandths_of_segments * i64::from(mss) / 1000
}

impl Curve {
    fn begin(&mut self, tp: &Tcpcb, now: Ticks, mss: u32) -> Epoch {
        let cwnd = tp.snd_cwnd;
        let missing = self.w_max.saturating_sub(cwnd);
        let k = if missing == 0 || self.after_timeout {
            self.w_max = cwnd;
            0
        } else {
            cube_root(u64::from(missing) * 2_500_000_000 / u64::from(mss)) as i64
        };
        self.after_timeout = false;
        Epoch {
            start: now,
            w_est: u64::from(cwnd) << 10,
            k,
        }
    }

    /// The window that the curve has at `ms` after the epoch's start.
    fn at(&self, epoch: &Epoch, ms: i64, mss: u32) -> i64 {
        i64::from(self.w_max) + cube(ms - epoch.k, mss)
    }

    /// Grows the window for an ACK in congestion avoidance.
    fn grow(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        let mss = tp.fixed_maxseg();
        let cwnd = tp.snd_cwnd.max(1);
        let mut epoch = match self.epoch {
            Some(epoch) => epoch,
            None => self.begin(tp, ccv.now, mss),
        };
        let acked = u64::from(ccv.bytes_this_ack.min(cwnd));

        // As fast as Reno would grow with this β; as Reno itself once the old window is reached (RFC 9438 §4.3).
        let reached = epoch.w_est >> 10 >= u64::from(self.cwnd_prior);
        let alpha = if reached { 1024 } else { ALPHA };
        epoch.w_est += acked * u64::from(mss) * alpha / u64::from(cwnd);
        self.epoch = Some(epoch);
        let w_est = (epoch.w_est >> 10).min(u64::from(u32::MAX)) as u32;

        let t = i64::from(ccv.now - epoch.start);
        let next = if self.at(&epoch, t, mss) < i64::from(w_est) {
            w_est
        } else {
            // Towards where the curve is a round trip from now, by at most half the window (RFC 9438 §4.2).
            let target = self.at(&epoch, t + i64::from(tp.t_srtt >> TCP_RTT_SHIFT), mss);
            let most = u64::from(cwnd) / 2;
            let missing = (target - i64::from(cwnd)).clamp(0, most as i64) as u64;
            cwnd.saturating_add((missing * acked / u64::from(cwnd)) as u32)
        };
        tp.snd_cwnd = cwnd.max(next).min(TCP_MAXWIN << tp.snd_scale);
    }

    /// Remembers where the loss was, and returns the threshold that follows from it (RFC 9438 §4.6, §4.7).
    fn reduce(&mut self, tp: &Tcpcb) -> u32 {
        let cwnd = tp.snd_cwnd;
        self.w_max = if cwnd < self.w_max {
            part(cwnd, FAST_CONVERGENCE)
        } else {
            cwnd
        };
        self.cwnd_prior = cwnd;
        self.epoch = None;
        part(cwnd, BETA).max(2 * tp.fixed_maxseg())
    }
}

impl CcAlgo for Cubic {
    fn name(&self) -> &'static str {
        "cubic"
    }

    fn ack_received(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>, kind: CcAck) {
        if kind != CcAck::Ack || tp.in_recovery() {
            return;
        }
        if !ccv.cwnd_limited {
            // Time in which the window was not used does not count (RFC 9438 §5.8).
            self.curve.epoch = None;
            return;
        }
        if tp.snd_cwnd > tp.snd_ssthresh {
            self.curve.grow(tp, ccv);
            return;
        }
        let before = tp.snd_cwnd;
        newreno_ack_received(tp, ccv);
        self.hystart.ack_received(tp, ccv.curack, before);
    }

    fn cong_signal(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>, signal: CcSignal) {
        let _ = ccv;
        match signal {
            CcSignal::NDupAck => {
                if !tp.in_fastrecovery() {
                    if !tp.t_flags.contains(Tf::CONGRECOVERY) {
                        tp.snd_ssthresh = self.curve.reduce(tp);
                    }
                    tp.enter_fastrecovery();
                }
            }
            CcSignal::Ecn => {
                if !tp.t_flags.contains(Tf::CONGRECOVERY) {
                    tp.snd_ssthresh = self.curve.reduce(tp);
                    tp.snd_cwnd = tp.snd_ssthresh;
                    tp.t_flags |= Tf::CONGRECOVERY;
                }
            }
            CcSignal::Rto => {
                // Once for each segment lost.
                if tp.t_rxtshift <= 1 {
                    self.before_timeout = self.curve;
                    tp.snd_ssthresh = self.curve.reduce(tp);
                    self.curve.after_timeout = true;
                }
                tp.snd_cwnd = tp.fixed_maxseg();
            }
            CcSignal::RtoErr => self.curve = self.before_timeout,
        }
    }

    fn post_recovery(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        newreno_post_recovery(tp, ccv);
    }

    fn after_idle(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        self.curve.epoch = None;
        newreno_after_idle(tp, ccv);
    }

    fn rttsample(&mut self, _tp: &mut Tcpcb, ms: u32) {
        self.hystart.rttsample(ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp_seq::TcpSeq;
    use crate::tcp_var::TcpTunables;
    use alloc::boxed::Box;
    use sys::machine::hosted::Machine;

    const MSS: u32 = 1000;
    const RTT: u32 = 100;

    /// A connection in congestion avoidance after a loss at `cwnd`.
    fn after_loss(tun: &TcpTunables, cubic: &mut Cubic, cwnd: u32) -> Tcpcb {
        let mut tp = Tcpcb::new(tun, Ticks(0), Box::new(Cubic::default()));
        tp.t_maxseg = MSS;
        tp.snd_scale = 14;
        tp.t_srtt = (RTT << TCP_RTT_SHIFT) as i32;
        tp.snd_cwnd = cwnd;
        tp.snd_ssthresh = cwnd;
        let ccv = ccv(tun, 0, 0);
        cubic.cong_signal(&mut tp, &ccv, CcSignal::NDupAck);
        tp.exit_recovery();
        tp.snd_cwnd = tp.snd_ssthresh;
        tp.snd_ssthresh -= 1;
        tp
    }

    fn ccv(tun: &TcpTunables, now: u32, bytes: u32) -> CcVar<'_> {
        CcVar {
            tun,
            now: Ticks(now),
            curack: TcpSeq(0),
            bytes_this_ack: bytes,
            nsegs: 1,
            cwnd_limited: true,
            abc_sentawnd: false,
        }
    }

    /// Acknowledges a window per round trip, a segment at a time, until `end`.
    fn acks(tun: &TcpTunables, cubic: &mut Cubic, tp: &mut Tcpcb, from: u32, end: u32) {
        let mut round = from;
        while round < end {
            let segments = tp.snd_cwnd / MSS;
            for i in 0..segments {
                let now = round + i * RTT / segments;
                cubic.ack_received(tp, &ccv(tun, now, MSS), CcAck::Ack);
            }
            round += RTT;
        }
    }

    #[test]
    fn the_cube_root_is_exact() {
        for root in [0, 1, 2, 9, 10, 1000, 123_456, 2_000_000] {
            let value: u64 = root * root * root;
            assert_eq!(cube_root(value), root);
            assert_eq!(cube_root(value + 1), root.max(u64::from(root == 0)));
        }
    }

    #[test]
    fn a_loss_leaves_seven_tenths_and_a_second_below_it_gives_way_faster() {
        Machine::builder().run(|| {
            let tun = TcpTunables::default();
            let mut cubic = Cubic::default();
            let mut tp = after_loss(&tun, &mut cubic, 1_000_000);
            assert_eq!(tp.snd_cwnd, part(1_000_000, BETA));
            assert_eq!(cubic.curve.w_max, 1_000_000);
            let cwnd = tp.snd_cwnd;
            cubic.cong_signal(&mut tp, &ccv(&tun, 0, 0), CcSignal::NDupAck);
            assert_eq!(cubic.curve.w_max, part(cwnd, FAST_CONVERGENCE));
        });
    }

    #[test]
    fn the_window_follows_the_cubic_curve() {
        Machine::builder().run(|| {
            let tun = TcpTunables::default();
            let mut cubic = Cubic::default();
            let w_max = 1000.0_f64;
            let mut tp = after_loss(&tun, &mut cubic, 1_000_000);
            let k = (w_max * (1.0 - BETA as f64 / 1024.0) / 0.4).cbrt();
            // Where the curve is steep Reno is slower than it, at both sides of its middle and beyond.
            let mut at = 0;
            for seconds in [2, 5, 8, 9, 12, 15, 18] {
                acks(&tun, &mut cubic, &mut tp, at, seconds * 1000);
                at = seconds * 1000;
                let expected = 0.4 * (f64::from(seconds) - k).powi(3) + w_max;
                let cwnd = f64::from(tp.snd_cwnd) / f64::from(MSS);
                let error = (cwnd - expected).abs() / expected;
                assert!(
                    error < 0.02,
                    "after {seconds} s: {cwnd} segments, not {expected}"
                );
            }
        });
    }

    #[test]
    fn a_short_path_with_a_small_window_grows_as_reno_does() {
        Machine::builder().run(|| {
            let tun = TcpTunables::default();
            let mut cubic = Cubic::default();
            let mut tp = after_loss(&tun, &mut cubic, 20 * MSS);
            let before = f64::from(tp.snd_cwnd) / f64::from(MSS);
            acks(&tun, &mut cubic, &mut tp, 0, 10 * RTT);
            let grown = f64::from(tp.snd_cwnd) / f64::from(MSS) - before;
            // α = 0.53 segments per round trip.
            assert!(
                (4.5..6.5).contains(&grown),
                "{grown} segments in 10 round trips"
            );
        });
    }

    #[test]
    fn a_spurious_timeout_is_forgotten() {
        Machine::builder().run(|| {
            let tun = TcpTunables::default();
            let mut cubic = Cubic::default();
            let mut tp = after_loss(&tun, &mut cubic, 1_000_000);
            acks(&tun, &mut cubic, &mut tp, 0, 3000);
            let (w_max, epoch) = (cubic.curve.w_max, cubic.curve.epoch.map(|epoch| epoch.k));
            tp.t_rxtshift = 1;
            cubic.cong_signal(&mut tp, &ccv(&tun, 3000, 0), CcSignal::Rto);
            assert_eq!(tp.snd_cwnd, MSS);
            assert_ne!(cubic.curve.w_max, w_max);
            cubic.cong_signal(&mut tp, &ccv(&tun, 3000, 0), CcSignal::RtoErr);
            assert_eq!(cubic.curve.w_max, w_max);
            assert_eq!(cubic.curve.epoch.map(|epoch| epoch.k), epoch);
        });
    }
}
