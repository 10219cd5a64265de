//! Congestion control on the simulated wire, measured beside the formulas that say what it should do.
//!
//! Mathis, Semke, Mahdavi, Ott: The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm (1997).
//! Padhye, Firoiu, Towsley, Kurose: Modeling TCP Throughput (1998). RFC 9438 §4.2 (CUBIC's curve). Jain, Chiu, Hawe:
//! A Quantitative Measure of Fairness (1984).

use crate::lab::{Flow, PORT, lock, now_ms, pass_ms, set};
use anyhow::{Context, Result, ensure};
use core::time::Duration;
use netinet::ip::{IPPROTO_TCP, Ip};
use netinet::tcp_seq::TcpSeq;
use netsim::impair::Link;
use netsim::wire::{Dir, Verdict, WireConfig};
use netsim::world::World;
use std::sync::{Arc, Mutex};

/// Socket buffers that no window of these experiments fills, within `kern.ipc.maxsockbuf`.
const AMPLE: i32 = 1_600_000;
/// C of RFC 9438, in segments per second cubed.
const CUBIC_C: f64 = 0.4;
/// β of RFC 9438 §4.6.
const CUBIC_BETA: f64 = 0.7;

/// The sequence number of a TCP segment that carries data, if the frame is one (IPv4).
fn data_segment(frame: &[u8]) -> Option<TcpSeq> {
    let packet = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let ip = Ip::parse(packet).filter(|ip| ip.ip_p == IPPROTO_TCP)?;
    let segment = packet.get(ip.hlen()..usize::from(ip.ip_len.get()))?;
    let offset = usize::from(segment.get(12)? >> 4) * 4;
    let seq: [u8; 4] = segment.get(4..8)?.try_into().ok()?;
    (segment.len() > offset).then_some(TcpSeq(u32::from_be_bytes(seq)))
}

/// A path of so much delay there and back together, with nothing else in the way.
fn path(seed: u64, rtt: Duration) -> WireConfig {
    let link = Link {
        delay: rtt / 2,
        ..Link::default()
    };
    WireConfig {
        seed,
        link,
        ..WireConfig::default()
    }
}

/// Makes a world whose sender uses `algorithm`.
fn with_algorithm<T>(config: WireConfig, algorithm: &str, body: impl FnOnce(&World) -> T) -> T {
    World::run(config, |world| {
        set(&world.a, "net.inet.tcp.cc.algorithm", algorithm);
        body(world)
    })
}

/// A steady flow under loss, as measured.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    /// Probability that a data segment is lost.
    pub loss: f64,
    /// Bytes of user data sent per second between the first loss counted and the last: the models' rate is that of the
    /// sender, the lost segment and its repetition included.
    pub rate: f64,
    /// The same without repetitions.
    pub goodput: f64,
    /// Payload of a full segment, in bytes.
    pub mss: f64,
    /// The path's round-trip time, in seconds.
    pub rtt: f64,
    /// The retransmission timeout at the end, in seconds.
    pub rto: f64,
    /// Losses between the first and the last.
    pub losses: u64,
    /// Retransmission timeouts, slow start included.
    pub timeouts: u64,
}

/// Segments that one ACK acknowledges in the models' sense, which is how slowly the window grows: by 1/b segments per
/// round trip.
///
/// The receiver delays ACKs, so an ACK stands for two segments, but the sender counts acknowledged bytes (RFC 3465 with
/// L = 2, `net.inet.tcp.rfc3465`, `abc_l_var`): the window grows by a segment per window acknowledged, however many ACKs
/// say so. That is the models' growth for b = 1, hence C = sqrt(3/2) and not sqrt(3/4).
const B: f64 = 1.0;

impl Steady {
    /// What Mathis's formula says, in bytes per second: MSS / RTT * sqrt(3 / 2b) / sqrt(p).
    pub fn mathis(&self) -> f64 {
        self.mss / self.rtt * (1.5 / B).sqrt() / self.loss.sqrt()
    }

    /// What Padhye's formula says, in bytes per second.
    pub fn padhye(&self) -> f64 {
        let p = self.loss;
        let fast = self.rtt * (2.0 * B * p / 3.0).sqrt();
        let often = (3.0 * (3.0 * B * p / 8.0).sqrt()).min(1.0);
        let slow = self.rto * often * p * (1.0 + 32.0 * p * p);
        self.mss / (fast + slow)
    }
}

/// Which data segments are lost.
#[derive(Clone, Copy, Debug)]
pub enum Pattern {
    /// Every n-th.
    Every(u64),
    /// Each with probability 1/n, from a seed.
    Random(u64, u64),
}

/// Sends under loss until `losses` have been seen after the first `skip`.
pub fn steady(algorithm: &str, pattern: Pattern, skip: u64, losses: u64) -> Steady {
    const RTT: Duration = Duration::from_millis(100);
    let (n, seed) = match pattern {
        Pattern::Every(n) => (n, 1),
        Pattern::Random(n, seed) => (n, seed),
    };
    with_algorithm(path(seed, RTT), algorithm, |world| {
        // Of each loss: when, which data segment of all, which sequence number.
        let seen: Arc<Mutex<Vec<(i64, u64, TcpSeq)>>> = Arc::default();
        let log = seen.clone();
        let mut rng = oorandom::Rand64::new(u128::from(seed));
        let mut count = 0;
        world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
            let Some(seq) = data_segment(frame).filter(|_| dir == Dir::AtoB) else {
                return Verdict::Pass;
            };
            count += 1;
            let lost = match pattern {
                Pattern::Every(n) => count % n == 0,
                Pattern::Random(n, _) => rng.rand_range(0..n) == 0,
            };
            if !lost {
                return Verdict::Pass;
            }
            lock(&log).push((now_ms(), count, seq));
            Verdict::Drop
        })));
        let flow = Flow::start(world, PORT, AMPLE);
        while (lock(&seen).len() as u64) < skip + losses + 1 {
            pass_ms(100);
        }
        let (mss, rto) = flow.look(|tp| (tp.fixed_maxseg(), tp.rexmtval()));
        let seen = std::mem::take(&mut *lock(&seen));
        world.wire.set_hook(None);
        flow.finish();
        let window = &seen[skip as usize..=(skip + losses) as usize];
        let (first, last) = (window[0], window[window.len() - 1]);
        let seconds = (last.0 - first.0) as f64 / 1000.0;
        let progress: f64 = window
            .windows(2)
            .map(|pair| f64::from(pair[1].2 - pair[0].2))
            .sum();
        Steady {
            loss: 1.0 / n as f64,
            rate: (last.1 - first.1) as f64 * f64::from(mss) / seconds,
            goodput: progress / seconds,
            mss: f64::from(mss),
            rtt: RTT.as_secs_f64(),
            rto: f64::from(rto + world.a.inet.tcp.tun.rexmit_slop.get()) / 1000.0,
            losses,
            timeouts: world.a.inet.tcp.stat.tcps_rexmttimeo.fetch(),
        }
    })
}

/// A look at the window.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Virtual time, in milliseconds since the flow began.
    pub at_ms: i64,
    /// Congestion window, in segments.
    pub cwnd: f64,
    /// Slow start threshold, in segments.
    pub ssthresh: f64,
    /// Whether recovery from loss goes on.
    pub recovery: bool,
}

fn sample(flow: &Flow, begun: i64) -> Sample {
    flow.look(|tp| {
        let mss = f64::from(tp.fixed_maxseg());
        Sample {
            at_ms: now_ms() - begun,
            cwnd: f64::from(tp.snd_cwnd) / mss,
            ssthresh: f64::from(tp.snd_ssthresh) / mss,
            recovery: tp.in_recovery(),
        }
    })
}

/// Looks at a flow's window every `every_ms` for `ms`.
fn watch(flow: &Flow, begun: i64, every_ms: i64, ms: i64) -> Vec<Sample> {
    let mut samples = Vec::new();
    while now_ms() - begun < ms {
        samples.push(sample(flow, begun));
        pass_ms(every_ms);
    }
    samples
}

/// The window beside CUBIC's curve.
#[derive(Clone, Copy, Debug)]
pub struct OnCurve {
    /// Number of the loss that began the epoch.
    pub epoch: usize,
    /// Seconds since the epoch began.
    pub t: f64,
    /// The window, in segments.
    pub cwnd: f64,
    /// What the formula says.
    pub curve: f64,
}

impl OnCurve {
    /// How far the window is from the curve, as a part of the curve.
    pub fn error(&self) -> f64 {
        (self.cwnd - self.curve).abs() / self.curve
    }
}

/// Runs CUBIC on a path of 100 ms where one segment is lost at the begin of each epoch, `epochs` times after two to
/// settle, and puts its window beside W(t) = C (t - K)³ + W_max, every 100 ms.
///
/// Epochs last 12 s and 3 s in turn, so that at one loss the window is well above W_max, at the next well below: both
/// parts of the curve are seen, and both rules for the next W_max. With one period it would come to rest where window
/// and W_max are equal, and a segment more or less would decide between the rules.
///
/// W_max is the window at the loss, or (1 + β) / 2 of it where the window had not reached the W_max before (RFC 9438
/// §4.7); K = cbrt((W_max - cwnd_epoch) / C) (§4.2). Nothing here comes from the stack but the windows seen.
pub fn cubic_curve(epochs: usize) -> Vec<OnCurve> {
    const SETTLE: usize = 2;
    const PERIODS_MS: [i64; 2] = [12_000, 3_000];
    with_algorithm(path(1, Duration::from_millis(100)), "cubic", |world| {
        let flow = {
            let flow = Flow::start(world, PORT, AMPLE);
            // The first window to lose from: CUBIC's own slow start would fill the buffers.
            while flow.look(|tp| tp.snd_cwnd / tp.fixed_maxseg()) < 300 {
                pass_ms(1);
            }
            flow
        };
        let mut points = Vec::new();
        let mut w_max = 0.0;
        for epoch in 0..epochs + SETTLE {
            let mut left = 1;
            world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
                if left > 0 && dir == Dir::AtoB && data_segment(frame).is_some() {
                    left -= 1;
                    return Verdict::Drop;
                }
                Verdict::Pass
            })));
            let begun = now_ms();
            let mut before = sample(&flow, begun);
            // Until recovery begins …
            loop {
                pass_ms(1);
                let now = sample(&flow, begun);
                if now.recovery {
                    break;
                }
                before = now;
            }
            assert!(
                (before.cwnd / w_max - 1.0).abs() > 0.02,
                "{} segments at the loss are too near to W_max = {w_max}",
                before.cwnd
            );
            w_max = if before.cwnd < w_max {
                before.cwnd * (1.0 + CUBIC_BETA) / 2.0
            } else {
                before.cwnd
            };
            // … and ends: the epoch begins with the first ACK of congestion avoidance, which slow start may precede where
            // little was in flight at the end of recovery.
            let start = loop {
                pass_ms(1);
                let now = sample(&flow, begun);
                if !now.recovery && now.cwnd > now.ssthresh {
                    break now;
                }
            };
            let k = ((w_max - start.cwnd).max(0.0) / CUBIC_C).cbrt();
            while now_ms() - begun < PERIODS_MS[epoch % 2] {
                pass_ms(100);
                let now = sample(&flow, begun);
                let t = (now.at_ms - start.at_ms) as f64 / 1000.0;
                if epoch >= SETTLE {
                    points.push(OnCurve {
                        epoch,
                        t,
                        cwnd: now.cwnd,
                        curve: CUBIC_C * (t - k).powi(3) + w_max,
                    });
                }
            }
        }
        world.wire.set_hook(None);
        assert_eq!(world.a.inet.tcp.stat.tcps_rexmttimeo.fetch(), 0);
        flow.finish();
        points
    })
}

/// Two flows of one algorithm over one bottleneck.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// Bytes of each that made progress while both were there.
    pub bytes: [f64; 2],
    /// Part of the line's rate that both used together, headers not counted.
    pub used: f64,
}

impl Shared {
    /// Jain's index: 1 where both have the same, 1/2 where one has all.
    pub fn jain(&self) -> f64 {
        let sum: f64 = self.bytes.iter().sum();
        let squares: f64 = self.bytes.iter().map(|x| x * x).sum();
        sum * sum / (self.bytes.len() as f64 * squares)
    }
}

/// Lets two flows share 10 Mbit/s of 40 ms with a queue of one bandwidth-delay product (34 frames); the second begins
/// 2 s after the first, and they are compared over `seconds` from 10 s on.
pub fn share(algorithm: &str, seed: u64, seconds: i64) -> Shared {
    const RATE: u64 = 10_000_000;
    let mut config = path(seed, Duration::from_millis(40));
    config.back = Some(config.link.clone());
    config.link.rate = Some(RATE);
    config.link.queue_limit = 34;
    with_algorithm(config, algorithm, |world| {
        let first = Flow::start(world, PORT, AMPLE);
        pass_ms(2_000 + (seed % 7) as i64 * 11);
        let second = Flow::start(world, PORT + 1, AMPLE);
        pass_ms(8_000);
        let una = || [&first, &second].map(|flow| flow.look(|tp| tp.snd_una));
        let mut bytes = [0.0; 2];
        let mut before = una();
        // In steps that sequence numbers can count.
        for _ in 0..seconds {
            pass_ms(1_000);
            let now = una();
            for i in 0..2 {
                bytes[i] += f64::from(now[i] - before[i]);
            }
            before = now;
        }
        let line = RATE as f64 / 8.0 * seconds as f64;
        first.finish();
        second.finish();
        Shared {
            bytes,
            used: (bytes[0] + bytes[1]) / line,
        }
    })
}

/// How a burst of lost segments was repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Segments lost.
    pub lost: u64,
    /// Segments sent again.
    pub again: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
}

/// Loses data segments `first..first + burst` of a flow.
pub fn burst(algorithm: &str, sack: bool, first: u64, burst: u64) -> Repair {
    with_algorithm(path(1, Duration::from_millis(50)), algorithm, |world| {
        set(
            &world.a,
            "net.inet.tcp.sack.enable",
            if sack { "1" } else { "0" },
        );
        let mut count = 0;
        world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
            if dir == Dir::BtoA || data_segment(frame).is_none() {
                return Verdict::Pass;
            }
            count += 1;
            if (first..first + burst).contains(&count) {
                Verdict::Drop
            } else {
                Verdict::Pass
            }
        })));
        let flow = Flow::start(world, PORT, AMPLE);
        pass_ms(1_500);
        let lost = world.wire.stat(Dir::AtoB).hook_drops;
        flow.finish();
        let stat = &world.a.inet.tcp.stat;
        Repair {
            lost,
            again: stat.tcps_sndrexmitpack.fetch(),
            timeouts: stat.tcps_rexmttimeo.fetch(),
        }
    })
}

/// The window of one flow over a bottleneck, by time: what the plot shows.
pub fn window(algorithm: &str, bottleneck: &Bottleneck) -> Vec<Sample> {
    let mut config = path(1, bottleneck.rtt);
    config.back = Some(config.link.clone());
    config.link.rate = Some(bottleneck.rate);
    config.link.queue_limit = bottleneck.queue;
    let marks = algorithm == "dctcp";
    config.link.mark_above = marks.then_some(bottleneck.mark_above);
    with_algorithm(config, algorithm, |world| {
        if marks {
            set(&world.a, "net.inet.tcp.ecn.enable", "1");
        }
        let flow = Flow::start(world, PORT, AMPLE);
        let samples = watch(&flow, now_ms(), 20, bottleneck.time.as_millis() as i64);
        flow.finish();
        samples
    })
}

/// A line that limits a flow.
#[derive(Clone, Copy, Debug)]
pub struct Bottleneck {
    /// Bits per second.
    pub rate: u64,
    /// Frames that wait at most.
    pub queue: usize,
    /// Frames that wait before more are marked, for an algorithm that lives on marks (RFC 8257).
    pub mark_above: usize,
    /// Round-trip time without queue.
    pub rtt: Duration,
    /// How long.
    pub time: Duration,
}

/// The bounds, fixed before anything was measured: a part of the formula's rate, …
const MATHIS_TOLERANCE: f64 = 0.10;
/// … of the curve's window at every sample after the epoch's first 300 ms (the window follows the curve by round
/// trips, and PRR ends recovery within a segment of the threshold), …
const CURVE_TOLERANCE: f64 = 0.05;
/// … on average over all of them, …
const CURVE_MEAN_TOLERANCE: f64 = 0.02;
/// … and the least of Jain's index.
const FAIR: f64 = 0.95;

/// Measures NewReno under periodic loss; an error if its rate is not that of Mathis's formula.
pub fn check_mathis(every: u64, losses: u64) -> Result<String> {
    let s = steady("newreno", Pattern::Every(every), 10, losses);
    let said = format!(
        "newreno, each {every}th lost, {} losses: {}",
        s.losses,
        beside(&s, "Mathis", s.mathis())
    );
    ensure!(
        (s.rate / s.mathis() - 1.0).abs() <= MATHIS_TOLERANCE,
        "{said}"
    );
    Ok(said)
}

/// Measures an algorithm under random loss, beside Padhye's formula, which is of Reno; reported only.
pub fn report_padhye(algorithm: &str, every: u64, losses: u64) -> String {
    let s = steady(algorithm, Pattern::Random(every, 1), 10, losses);
    format!(
        "{algorithm}, 1 of {every} lost at random, {losses} losses: {}",
        beside(&s, "Padhye", s.padhye())
    )
}

fn beside(s: &Steady, who: &str, formula: f64) -> String {
    format!(
        "{:.1} KB/s ({:.1} without repetitions), {who} {:.1} KB/s ({:+.1} %), {} timeouts",
        s.rate / 1000.0,
        s.goodput / 1000.0,
        formula / 1000.0,
        (s.rate / formula - 1.0) * 100.0,
        s.timeouts
    )
}

/// Puts CUBIC's window beside its formula; an error where it is off.
pub fn check_curve(epochs: usize) -> Result<String> {
    let points = cubic_curve(epochs);
    let settled = points.iter().filter(|p| p.t >= 0.3).collect::<Vec<_>>();
    ensure!(settled.len() > epochs, "too few samples");
    let mean = settled.iter().map(|p| p.error()).sum::<f64>() / settled.len() as f64;
    let worst = settled
        .iter()
        .max_by(|a, b| a.error().total_cmp(&b.error()))
        .context("no sample")?;
    let said = format!(
        "losses 12 s and 3 s apart, {epochs} epochs, {} samples: off the curve by {:.2} % on average, at most {:.2} % \
         ({:.1} segments instead of {:.1}, {:.1} s into epoch {})",
        settled.len(),
        mean * 100.0,
        worst.error() * 100.0,
        worst.cwnd,
        worst.curve,
        worst.t,
        worst.epoch
    );
    ensure!(
        worst.error() <= CURVE_TOLERANCE && mean <= CURVE_MEAN_TOLERANCE,
        "{said}"
    );
    Ok(said)
}

/// Lets two flows share a line; an error if they do not share alike, or leave much of it unused.
pub fn check_share(algorithm: &str, seed: u64, seconds: i64) -> Result<String> {
    let s = share(algorithm, seed, seconds);
    let said = format!(
        "{algorithm}, {seconds} s, seed {seed}: {:.0} and {:.0} KB/s, Jain's index {:.3}, {:.1} % of the line",
        s.bytes[0] / seconds as f64 / 1000.0,
        s.bytes[1] / seconds as f64 / 1000.0,
        s.jain(),
        s.used * 100.0
    );
    ensure!(s.jain() >= FAIR && s.used >= 0.85, "{said}");
    Ok(said)
}

/// Loses three segments in a row; an error unless exactly they are sent again, without a timeout.
pub fn check_burst(algorithm: &str, sack: bool) -> Result<String> {
    const LOST: u64 = 3;
    let repair = burst(algorithm, sack, 60, LOST);
    let said = format!(
        "{algorithm}{}: {repair:?}",
        if sack { "" } else { " without SACK" }
    );
    let expected = Repair {
        lost: LOST,
        again: LOST,
        timeouts: 0,
    };
    ensure!(repair == expected, "{said}");
    Ok(said)
}

#[cfg(test)]
mod tests;
