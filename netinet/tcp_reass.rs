//! Segments that arrived out of order.
//!
//! FreeBSD: sys/netinet/tcp_reass.c
//! Differs from FreeBSD: a range keeps its segments as a packet queue, so that joining two ranges moves three
//! pointers and no mbuf chain is walked.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use sys::mbuf::{Mbuf, MbufQueue};

use crate::tcp::SackBlk;
use crate::tcp_seq::TcpSeq;

/// A contiguous range of bytes received, above `rcv_nxt`.
#[derive(Default)]
struct Range {
    start: TcpSeq,
    end: TcpSeq,
    segments: MbufQueue,
}

/// The ranges of a connection in order; none touches another.
#[derive(Default)]
pub struct ReassQueue {
    ranges: Vec<Range>,
    /// Bytes of mbufs held, with their overhead.
    mbcnt: u32,
    /// Segments held.
    segments: u32,
    /// Where the peer's FIN stands.
    fin: Option<TcpSeq>,
    /// Where all queues count their segments, and how many of this are in it.
    global: Option<(Arc<AtomicU32>, u32)>,
}

impl Drop for ReassQueue {
    fn drop(&mut self) {
        self.segments = 0;
        self.recount();
    }
}

/// What became of a segment that was queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queued {
    /// It is in the range `start..end` now; `dup` bytes of it had been there already.
    Kept {
        /// Start of the range it belongs to.
        start: TcpSeq,
        /// End of that range.
        end: TcpSeq,
        /// Bytes it repeated.
        dup: u32,
        /// The first range it repeated, empty if none.
        repeated: SackBlk,
    },
    /// All of it had been received before.
    Duplicate {
        /// The range that holds it.
        within: SackBlk,
    },
    /// The queue is full.
    Full,
}

/// Limits of one connection's queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most ranges.
    pub ranges: usize,
    /// Most bytes of mbufs.
    pub mbcnt: u32,
    /// Most segments of all queues.
    pub global: u32,
}

impl ReassQueue {
    /// An empty queue whose segments `global` counts.
    pub fn new(global: &Arc<AtomicU32>) -> ReassQueue {
        ReassQueue {
            ranges: Vec::new(),
            mbcnt: 0,
            segments: 0,
            fin: None,
            global: Some((global.clone(), 0)),
        }
    }

    /// Brings the count of all queues up to date.
    fn recount(&mut self) {
        if let Some((global, counted)) = &mut self.global {
            global.fetch_add(self.segments.wrapping_sub(*counted), Ordering::Relaxed);
            *counted = self.segments;
        }
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.fin.is_none()
    }

    /// Segments held.
    pub fn segments(&self) -> u32 {
        self.segments
    }

    /// Bytes of payload held.
    pub fn bytes(&self) -> u32 {
        self.ranges
            .iter()
            .map(|range| range.end.since(range.start))
            .sum()
    }

    /// Notes that the peer's FIN has sequence number `at`.
    pub fn set_fin(&mut self, at: TcpSeq) {
        self.fin = Some(at);
    }

    /// Queues the `len` bytes of `m` that begin at `seq`. Bytes received before win over their repetition,
    /// but a range wholly inside of it gives way.
    #[doc(alias = "tcp_reass")]
    pub fn insert(
        &mut self,
        mut seq: TcpSeq,
        mut m: Mbuf,
        len: u32,
        next: TcpSeq,
        limits: Limits,
    ) -> Queued {
        let end = seq + len;
        // The first range that could touch the segment; most arrive behind the last.
        let mut at = self.ranges.len();
        while at > 0 && self.ranges[at - 1].end.geq(seq) {
            at -= 1;
        }
        let mbcnt = mbuf_bytes(&m);
        // The segment that fills the gap is always taken: it frees the others.
        let all = self
            .global
            .as_ref()
            .map_or(0, |(global, _)| global.load(Ordering::Relaxed));
        if seq != next
            && (all >= limits.global
                || self.mbcnt.saturating_add(mbcnt) > limits.mbcnt
                || (self.ranges.len() >= limits.ranges && !self.touches(at, seq, end)))
        {
            return Queued::Full;
        }
        let mut dup = 0;
        let mut repeated = SackBlk::default();
        if let Some(before) = self.ranges.get(at)
            && before.start.leq(seq)
        {
            let overlap = before.end.since(seq);
            if overlap >= len {
                let within = SackBlk {
                    start: before.start,
                    end: before.end,
                };
                return Queued::Duplicate { within };
            }
            if overlap > 0 {
                repeated = SackBlk {
                    start: seq,
                    end: before.end,
                };
                m.trim_front(overlap as usize);
                seq += overlap;
                dup += overlap;
            }
        }
        // Ranges wholly inside the segment give way to it; it is cut at the start of one that reaches further.
        let joins_left = self
            .ranges
            .get(at)
            .is_some_and(|range| range.end == seq && range.start.lt(seq));
        let first = if joins_left { at + 1 } else { at };
        let mut cut = end;
        let mut past = first;
        while let Some(range) = self.ranges.get(past) {
            if range.start.gt(end) {
                break;
            }
            let overlap = end.min(range.end).since(range.start);
            if dup == 0 && overlap > 0 {
                repeated = SackBlk {
                    start: range.start,
                    end: range.start + overlap,
                };
            }
            dup += overlap;
            if range.end.gt(end) {
                cut = range.start;
                break;
            }
            past += 1;
        }
        for covered in self.ranges.drain(first..past) {
            self.segments = self.segments.saturating_sub(covered.segments.len() as u32);
            let bytes: u32 = covered.segments.iter().map(mbuf_bytes).sum();
            self.mbcnt = self.mbcnt.saturating_sub(bytes);
        }
        if cut.lt(end) {
            m.trim_back(end.since(cut) as usize);
        }
        if cut != seq {
            self.mbcnt = self.mbcnt.saturating_add(mbuf_bytes(&m));
            self.segments += 1;
            if joins_left {
                self.ranges[at].segments.push(m);
                self.ranges[at].end = cut;
            } else {
                let mut segments = MbufQueue::new();
                segments.push(m);
                self.ranges.insert(
                    at,
                    Range {
                        start: seq,
                        end: cut,
                        segments,
                    },
                );
            }
        }
        // Close up with the range behind.
        if self
            .ranges
            .get(at + 1)
            .is_some_and(|right| right.start == self.ranges[at].end)
        {
            let mut right = self.ranges.remove(at + 1);
            self.ranges[at].end = right.end;
            self.ranges[at].segments.append(&mut right.segments);
        }
        self.recount();
        let range = &self.ranges[at];
        Queued::Kept {
            start: range.start,
            end: range.end,
            dup,
            repeated,
        }
    }

    fn touches(&self, at: usize, seq: TcpSeq, end: TcpSeq) -> bool {
        self.ranges
            .get(at)
            .is_some_and(|range| range.start.leq(end) && range.end.geq(seq))
    }

    /// Takes the range that begins at `next`, if it has arrived.
    pub fn take_ready(&mut self, next: TcpSeq) -> Option<(MbufQueue, TcpSeq)> {
        let first = self.ranges.first()?;
        if first.start != next {
            return None;
        }
        let range = self.ranges.remove(0);
        let bytes: u32 = range.segments.iter().map(mbuf_bytes).sum();
        self.mbcnt = self.mbcnt.saturating_sub(bytes);
        self.segments = self.segments.saturating_sub(range.segments.len() as u32);
        self.recount();
        Some((range.segments, range.end))
    }

    /// Whether the peer's FIN stands at `next`.
    pub fn fin_at(&self, next: TcpSeq) -> bool {
        self.fin == Some(next)
    }
}

/// Memory a segment holds.
fn mbuf_bytes(m: &Mbuf) -> u32 {
    let mut bytes = 0;
    let mut next = Some(m);
    while let Some(m) = next {
        bytes += sys::mbuf::MSIZE as u32;
        if m.flags().contains(sys::mbuf::MFlags::EXT) {
            bytes += m.size() as u32;
        }
        next = m.next();
    }
    bytes
}

#[cfg(test)]
mod tests;
