//! What a link does to the frames that cross it: rate, queue, delay, loss, reordering, duplication, corruption.
//!
//! Pure bookkeeping over a clock that the caller keeps, so that the simulated wire (virtual time) and the relay
//! before a real tap (real time) lose the same frames from the same seed.

use core::cmp::{Ordering, Reverse};
use core::time::Duration;
use oorandom::Rand64;
use std::collections::{BinaryHeap, VecDeque};

/// Which frames a link loses.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each with this probability.
    Random(f64),
    /// Every n-th, counted from 1.
    Every(u64),
    /// Exactly these, counted from 1 in the order they are offered.
    Exactly(Vec<u64>),
}

/// One direction of a link.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Time from the last bit sent to the frame received.
    pub delay: Duration,
    /// Bits per second; none: no time at all.
    pub rate: Option<u64>,
    /// Frames that may wait for the line when there is a rate; more are dropped.
    pub queue_limit: usize,
    /// Frames that wait for the line before those that come are marked (CE of RFC 3168) if their senders understand it.
    pub mark_above: Option<usize>,
    /// Frames lost.
    pub loss: Loss,
    /// Probability that a frame is held back by `reorder_by`, so that later ones overtake it.
    pub reorder: f64,
    /// How long a reordered frame is held back.
    pub reorder_by: Duration,
    /// Probability that a frame arrives twice.
    pub duplicate: f64,
    /// Probability that one bit of a frame is flipped.
    pub corrupt: f64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(50),
            rate: None,
            queue_limit: 1000,
            mark_above: None,
            loss: Loss::None,
            reorder: 0.0,
            reorder_by: Duration::from_millis(1),
            duplicate: 0.0,
            corrupt: 0.0,
        }
    }
}

/// What happened on one direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStat {
    /// Frames handed to the link.
    pub offered: u64,
    /// Bytes handed to the link.
    pub offered_bytes: u64,
    /// Frames that arrive at the other end, duplicates counted.
    pub passed: u64,
    /// Frames lost on purpose.
    pub lost: u64,
    /// Frames dropped at a full queue.
    pub queue_drops: u64,
    /// Frames marked.
    pub marked: u64,
    /// Frames held back.
    pub reordered: u64,
    /// Frames that arrive twice.
    pub duplicated: u64,
    /// Frames with a flipped bit.
    pub corrupted: u64,
}

/// Frames under way, by time of arrival and then in the order they were sent.
pub struct InFlight<T> {
    heap: BinaryHeap<Reverse<Arrival<T>>>,
    order: u64,
}

struct Arrival<T> {
    at: Duration,
    order: u64,
    what: T,
}

impl<T> Arrival<T> {
    fn key(&self) -> (Duration, u64) {
        (self.at, self.order)
    }
}

impl<T> PartialEq for Arrival<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Arrival<T> {}

impl<T> PartialOrd for Arrival<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Arrival<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            order: 0,
        }
    }
}

impl<T> InFlight<T> {
    /// Adds what will arrive at `at`.
    pub fn push(&mut self, at: Duration, what: T) {
        self.order += 1;
        let order = self.order;
        self.heap.push(Reverse(Arrival { at, order, what }));
    }

    /// When the next one arrives.
    pub fn next_at(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(a)| a.at)
    }

    /// Takes the next one that has arrived by `now`.
    pub fn pop_due(&mut self, now: Duration) -> Option<T> {
        if self.next_at()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(a)| a.what)
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

/// One direction of a link at work.
pub struct Lane {
    link: Link,
    rng: Rand64,
    stat: LinkStat,
    /// When the line is free again.
    line_free: Duration,
    /// When each waiting frame will have left.
    leaving: VecDeque<Duration>,
}

impl Lane {
    /// A lane whose decisions follow from `seed`.
    pub fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            rng: Rand64::new(u128::from(seed) ^ 0x9e37_79b9_7f4a_7c15),
            stat: LinkStat::default(),
            line_free: Duration::ZERO,
            leaving: VecDeque::new(),
        }
    }

    /// What happened so far.
    pub fn stat(&self) -> LinkStat {
        self.stat
    }

    /// The link's properties, to change them in the middle of a test.
    pub fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Takes a frame at time `now` and hands each copy that will arrive to `deliver`, with its time of arrival.
    pub fn offer(
        &mut self,
        now: Duration,
        mut frame: Vec<u8>,
        mut deliver: impl FnMut(Duration, Vec<u8>),
    ) {
        self.stat.offered += 1;
        self.stat.offered_bytes += frame.len() as u64;
        let Some(sent) = self.transmit(now, frame.len()) else {
            self.stat.queue_drops += 1;
            return;
        };
        let waiting = self.leaving.len();
        if self.link.mark_above.is_some_and(|most| waiting > most) && mark(&mut frame) {
            self.stat.marked += 1;
        }
        if self.loses() {
            self.stat.lost += 1;
            return;
        }
        if self.chance(self.link.corrupt) && !frame.is_empty() {
            let bit = self.rng.rand_range(0..frame.len() as u64 * 8);
            frame[(bit / 8) as usize] ^= 1 << (bit % 8);
            self.stat.corrupted += 1;
        }
        let mut at = sent + self.link.delay;
        if self.chance(self.link.duplicate) {
            self.stat.duplicated += 1;
            self.stat.passed += 1;
            deliver(at, frame.clone());
        }
        if self.chance(self.link.reorder) {
            self.stat.reordered += 1;
            at += self.link.reorder_by;
        }
        self.stat.passed += 1;
        deliver(at, frame);
    }

    /// When the last bit of the frame will have left; `None` if the queue is full.
    fn transmit(&mut self, now: Duration, len: usize) -> Option<Duration> {
        let Some(rate) = self.link.rate else {
            return Some(now);
        };
        while self.leaving.front().is_some_and(|&t| t <= now) {
            self.leaving.pop_front();
        }
        if self.leaving.len() > self.link.queue_limit {
            return None;
        }
        let ns = (len as u128 * 8 * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
        let done = self.line_free.max(now) + Duration::from_nanos(ns as u64);
        self.line_free = done;
        self.leaving.push_back(done);
        Some(done)
    }

    fn loses(&mut self) -> bool {
        match &self.link.loss {
            Loss::None => false,
            Loss::Random(p) => {
                let p = *p;
                self.chance(p)
            }
            Loss::Every(n) => self.stat.offered.is_multiple_of((*n).max(1)),
            Loss::Exactly(which) => which.contains(&self.stat.offered),
        }
    }

    fn chance(&mut self, p: f64) -> bool {
        // A link without a fault draws nothing, so that adding one does not move the others.
        p > 0.0 && self.rng.rand_float() < p
    }
}

/// Marks an IP packet in an Ethernet frame as one that met congestion; tells whether its sender understands that (RFC 3168 §5).
fn mark(frame: &mut [u8]) -> bool {
    const CE: u8 = 3;
    const ETHER_TYPE: usize = 12;
    const IP: usize = 14;
    const IP_SUM: usize = IP + 10;
    let [ether_type, old, sum] = [ETHER_TYPE, IP, IP_SUM].map(|at| {
        frame
            .get(at..at + 2)
            .map(|w| u16::from_be_bytes([w[0], w[1]]))
    });
    let (Some(ether_type), Some(old), Some(sum)) = (ether_type, old, sum) else {
        return false;
    };
    // Both headers begin with the version; behind it come the length of the header and tos, or the traffic class and more.
    let shift = match ether_type {
        0x0800 => 0,
        0x86dd => 4,
        _ => return false,
    };
    let ce = u16::from(CE) << shift;
    if old & ce == 0 {
        return false;
    }
    let new = old | ce;
    frame[IP..IP + 2].copy_from_slice(&new.to_be_bytes());
    if ether_type == 0x0800 {
        // RFC 1624 §3: the sum without the old word, with the new one.
        let sum = u32::from(!sum) + u32::from(!old) + u32::from(new);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        frame[IP_SUM..IP_SUM + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(link: Link, seed: u64, frames: u64) -> (Vec<(Duration, Vec<u8>)>, LinkStat) {
        let mut lane = Lane::new(link, seed);
        let mut out = Vec::new();
        for i in 0..frames {
            let frame = vec![i as u8; 100];
            lane.offer(Duration::from_micros(i), frame, |at, f| out.push((at, f)));
        }
        (out, lane.stat())
    }

    #[test]
    fn a_plain_link_delivers_every_frame_in_order_after_its_delay() {
        let (out, stat) = run(Link::default(), 1, 50);
        assert_eq!(stat.passed, 50);
        for (i, (at, frame)) in out.iter().enumerate() {
            assert_eq!(*at, Duration::from_micros(i as u64 + 50));
            assert_eq!(frame[0], i as u8);
        }
    }

    #[test]
    fn the_same_seed_loses_the_same_frames() {
        let link = Link {
            loss: Loss::Random(0.1),
            reorder: 0.1,
            duplicate: 0.1,
            corrupt: 0.1,
            ..Link::default()
        };
        assert_eq!(run(link.clone(), 7, 500), run(link.clone(), 7, 500));
        assert_ne!(run(link.clone(), 7, 500).0, run(link, 8, 500).0);
    }

    #[test]
    fn what_arrives_at_the_same_time_arrives_in_the_order_sent() {
        let mut flying = InFlight::default();
        for (at, what) in [(2, "b"), (1, "a"), (2, "c")] {
            flying.push(Duration::from_secs(at), what);
        }
        assert_eq!(flying.pop_due(Duration::ZERO), None);
        let now = Duration::from_secs(2);
        let order: Vec<_> = std::iter::from_fn(|| flying.pop_due(now)).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }

    #[test]
    fn frames_beyond_the_queue_are_dropped_and_counted() {
        let link = Link {
            rate: Some(8_000),
            queue_limit: 3,
            ..Link::default()
        };
        let (out, stat) = run(link, 1, 10);
        assert_eq!(out.len(), 4);
        assert_eq!(stat.queue_drops, 6);
        assert_eq!(
            out[0].0,
            Duration::from_millis(100) + Duration::from_micros(50)
        );
        assert_eq!(out[1].0 - out[0].0, Duration::from_millis(100));
    }

    #[test]
    fn periodic_and_chosen_losses_hit_the_frames_they_name() {
        let every = Link {
            loss: Loss::Every(3),
            ..Link::default()
        };
        let (out, stat) = run(every, 1, 9);
        assert_eq!(stat.lost, 3);
        assert!(out.iter().all(|(_, f)| !matches!(f[0], 2 | 5 | 8)));
        let chosen = Link {
            loss: Loss::Exactly(vec![2, 9]),
            ..Link::default()
        };
        let (out, _) = run(chosen, 1, 9);
        assert!(out.iter().all(|(_, f)| !matches!(f[0], 1 | 8)));
        assert_eq!(out.len(), 7);
    }

    #[test]
    fn frames_that_meet_a_queue_are_marked_if_their_senders_understand_it() {
        // Ethernet and IPv4 headers; the sum of the latter's words is ffff with a good checksum.
        let ip = |tos: u8| {
            let mut frame = vec![0; 1000];
            frame[12..14].copy_from_slice(&[8, 0]);
            frame[14..24].copy_from_slice(&[0x45, tos, 3, 0xda, 0, 0, 0x40, 0, 64, 6]);
            let sum: u32 = (14..34).step_by(2).map(|at| word(&frame, at)).sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            frame
        };
        fn word(frame: &[u8], at: usize) -> u32 {
            u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]))
        }
        let link = Link {
            rate: Some(8_000_000),
            mark_above: Some(2),
            ..Link::default()
        };
        let mut lane = Lane::new(link, 1);
        let mut tos = Vec::new();
        for ecn in [2, 2, 2, 1, 0] {
            lane.offer(Duration::ZERO, ip(ecn), |_, frame| {
                let sum: u32 = (14..34).step_by(2).map(|at| word(&frame, at)).sum();
                assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "header checksum");
                tos.push(frame[15]);
            });
        }
        assert_eq!(tos, [2, 2, 3, 3, 0]);
        assert_eq!(lane.stat().marked, 2);
    }
}
