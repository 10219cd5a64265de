//! HyStart++: leaves slow start when the round-trip time rises, before packets are lost.
//!
//! FreeBSD: sys/netinet/cc/cc_newreno.c, cc_cubic.c (hystart)
//! RFC 9406. Differs from FreeBSD: round-trip times have a resolution of 1 ms.

use crate::tcp::{TCP_MAX_WINSHIFT, TCP_MAXWIN};
use crate::tcp_seq::TcpSeq;
use crate::tcp_var::Tcpcb;

/// A rise of the round-trip time counts from here, in milliseconds.
const MIN_RTT_THRESH: u32 = 4;
/// A rise of so much counts on every path, in milliseconds.
const MAX_RTT_THRESH: u32 = 16;
/// On paths between, a rise of one part in so many counts.
const MIN_RTT_DIVISOR: u32 = 8;
/// Samples of a round before it is judged.
const N_RTT_SAMPLE: u32 = 8;
/// Conservative slow start grows by one part in so many of slow start's growth.
const CSS_GROWTH_DIVISOR: u32 = 4;
/// Rounds of conservative slow start before congestion avoidance.
const CSS_ROUNDS: u32 = 5;

/// What is known of the rounds of the first slow start.
#[derive(Default)]
pub(super) struct HyStart {
    /// The round ends when this is acknowledged.
    window_end: Option<TcpSeq>,
    /// Shortest time of the round before, in milliseconds.
    last_min: Option<u32>,
    /// Shortest time of this round.
    min: Option<u32>,
    samples: u32,
    css: Option<ConservativeStart>,
}

/// The round-trip time has risen: grow slowly until that is certain.
struct ConservativeStart {
    /// The time that made it begin; a shorter one was right.
    baseline: u32,
    rounds: u32,
}

impl HyStart {
    /// Notes a round-trip time in milliseconds.
    pub(super) fn rttsample(&mut self, ms: u32) {
        self.min = Some(self.min.map_or(ms, |min| min.min(ms)));
        self.samples += 1;
    }

    /// Looks at an ACK of slow start, which has grown the window from `before`.
    pub(super) fn ack_received(&mut self, tp: &mut Tcpcb, ack: TcpSeq, before: u32) {
        if tp.snd_ssthresh < TCP_MAXWIN << TCP_MAX_WINSHIFT {
            // Only the first slow start of a connection goes on without knowing where to end.
            return;
        }
        if self.css.is_some() {
            let grown = tp.snd_cwnd.saturating_sub(before);
            tp.snd_cwnd = before + grown / CSS_GROWTH_DIVISOR;
        }
        self.judge();
        match self.window_end {
            Some(end) if !ack.geq(end) => {}
            _ => {
                self.window_end = Some(tp.snd_max);
                self.last_min = self.min.take().or(self.last_min);
                self.samples = 0;
                if let Some(css) = &mut self.css {
                    css.rounds += 1;
                    if css.rounds >= CSS_ROUNDS {
                        tp.snd_ssthresh = tp.snd_cwnd;
                    }
                }
            }
        }
    }

    fn judge(&mut self) {
        let (Some(last), Some(min)) = (self.last_min, self.min) else {
            return;
        };
        if self.samples < N_RTT_SAMPLE {
            return;
        }
        match &self.css {
            None => {
                let thresh = (last / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if min >= last + thresh {
                    self.css = Some(ConservativeStart {
                        baseline: min,
                        rounds: 0,
                    });
                }
            }
            Some(css) if min < css.baseline => self.css = None,
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cc::cc_cubic::Cubic;
    use crate::tcp_var::TcpTunables;
    use alloc::boxed::Box;
    use sys::machine::hosted::Machine;
    use sys::time::Ticks;

    const MSS: u32 = 1000;

    /// Rounds of slow start on a path whose queue adds `queue(round)` milliseconds to 50; returns the window at each
    /// round's end, until slow start is over.
    fn rounds(count: u32, queue: impl Fn(u32) -> u32) -> alloc::vec::Vec<u32> {
        let tun = TcpTunables::default();
        let mut tp = Tcpcb::new(&tun, Ticks(0), Box::new(Cubic::default()));
        tp.t_maxseg = MSS;
        tp.snd_cwnd = 10 * MSS;
        let mut hystart = HyStart::default();
        let mut ack = TcpSeq(0);
        let mut windows = alloc::vec::Vec::new();
        for round in 0..count {
            tp.snd_max = ack + tp.snd_cwnd;
            for _ in 0..tp.snd_cwnd / MSS {
                ack += MSS;
                tp.snd_max += 2 * MSS;
                hystart.rttsample(50 + queue(round));
                let before = tp.snd_cwnd;
                tp.snd_cwnd += MSS;
                hystart.ack_received(&mut tp, ack, before);
                if tp.snd_ssthresh <= tp.snd_cwnd {
                    windows.push(tp.snd_cwnd);
                    return windows;
                }
            }
            windows.push(tp.snd_cwnd);
        }
        windows
    }

    #[test]
    fn a_steady_path_is_filled_by_doubling() {
        Machine::builder().run(|| {
            let windows = rounds(6, |_| 0);
            assert_eq!(windows.len(), 6);
            for pair in windows.windows(2) {
                assert_eq!(pair[1], 2 * pair[0]);
            }
        });
    }

    #[test]
    fn a_growing_queue_slows_the_start_and_then_ends_it() {
        Machine::builder().run(|| {
            let windows = rounds(20, |round| if round < 4 { 0 } else { 10 });
            assert!(windows.len() < 20, "slow start has not ended: {windows:?}");
            let last = windows.windows(2).last().expect("rounds");
            assert!(last[1] < last[0] * 3 / 2, "{windows:?}");
        });
    }

    #[test]
    fn a_passing_rise_is_forgiven() {
        Machine::builder().run(|| {
            let windows = rounds(9, |round| if round == 4 { 10 } else { 0 });
            assert_eq!(windows.len(), 9);
            let last = windows.windows(2).last().expect("rounds");
            // The window is no whole number of segments any more.
            assert!(last[1] > 2 * last[0] - MSS, "{windows:?}");
        });
    }
}
