//! Selective acknowledgement: the blocks we report, and the scoreboard of what the peer reported.
//!
//! FreeBSD: sys/netinet/tcp_sack.c
//! RFC 2018, RFC 2883, RFC 6675.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::tcp::{SackBlk, TCP_MAX_SACK, TcpOpt, TcpOptFlags};
use crate::tcp_seq::TcpSeq;
use crate::tcp_var::{TCP_REXMT_THRESH, TcpStat, Tcpcb};

/// Most blocks a receiver remembers.
const MAX_SACK_BLKS: usize = 6;

/// A range the peer lacks, on the sender's scoreboard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "sackhole")]
pub struct SackHole {
    /// First byte missing.
    pub start: TcpSeq,
    /// First byte after the hole.
    pub end: TcpSeq,
    /// Next byte to retransmit.
    pub rxmit: TcpSeq,
}

/// What an ACK did to the scoreboard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "sackstatus_t")]
pub enum SackStatus {
    /// Nothing (`SACK_NOCHANGE`).
    NoChange,
    /// The peer holds more (`SACK_CHANGE`).
    Change,
    /// There is a new hole (`SACK_NEWLOSS`).
    NewLoss,
}

/// SACK state of a connection that needs some.
#[derive(Debug, Default)]
pub struct SackState {
    sackblks: [SackBlk; MAX_SACK_BLKS],
    rcv_numsacks: u8,
    /// A range received twice, reported once (RFC 2883).
    dsack: Option<SackBlk>,

    snd_holes: VecDeque<SackHole>,
    /// Highest byte the peer has reported, plus one.
    pub snd_fack: TcpSeq,
    /// Bytes in holes that have been retransmitted.
    pub sack_bytes_rexmit: u32,
    /// Bytes above `snd_una` that the peer holds.
    pub sacked_bytes: u32,
    /// Bytes in holes that are believed lost (RFC 6675 §4, `IsLost`).
    pub lost_bytes: u32,
    /// Bytes the last ACK reported for the first time.
    pub delivered_data: u32,
    /// Where all scoreboards count their holes, and how many of this are in it.
    global: Option<(Arc<AtomicU32>, u32)>,
}

impl Drop for SackState {
    fn drop(&mut self) {
        if let Some((global, counted)) = &self.global {
            global.fetch_sub(*counted, Ordering::Relaxed);
        }
    }
}

impl SackState {
    /// How many blocks the next segment reports.
    pub fn rcv_numsacks(&self) -> usize {
        usize::from(self.rcv_numsacks) + usize::from(self.dsack.is_some())
    }

    /// Whether the scoreboard has holes.
    pub fn has_holes(&self) -> bool {
        !self.snd_holes.is_empty()
    }

    /// Brings the count of all scoreboards' holes up to date (`V_tcp_sack_globalholes`).
    pub fn count_holes(&mut self, global: &Arc<AtomicU32>) {
        let holes = self.snd_holes.len() as u32;
        if self.global.is_none() && holes == 0 {
            return;
        }
        let (global, counted) = self.global.get_or_insert_with(|| (global.clone(), 0));
        global.fetch_add(holes.wrapping_sub(*counted), Ordering::Relaxed);
        *counted = holes;
    }

    /// How many holes.
    pub fn numholes(&self) -> usize {
        self.snd_holes.len()
    }

    /// Puts the blocks to report into `to`.
    pub fn report(&self, to: &mut TcpOpt) {
        let known = &self.sackblks[..usize::from(self.rcv_numsacks).min(MAX_SACK_BLKS)];
        let mut n = 0;
        for (slot, block) in to.to_sacks.iter_mut().zip(self.dsack.iter().chain(known)) {
            *slot = *block;
            n += 1;
        }
        to.to_nsacks = n;
        if n > 0 {
            to.to_flags |= TcpOptFlags::SACK;
        }
    }

    /// Whether a range that came twice waits to be reported.
    pub fn has_dsack(&self) -> bool {
        self.dsack.is_some()
    }

    /// Forgets the duplicate range: it has been reported.
    #[doc(alias = "tcp_clean_dsack_blocks")]
    pub fn clean_dsack(&mut self) {
        self.dsack = None;
    }

    /// Notes that `start..end` came a second time.
    #[doc(alias = "tcp_update_dsack_list")]
    pub fn update_dsack(&mut self, start: TcpSeq, end: TcpSeq) {
        if start.lt(end) {
            self.dsack = Some(SackBlk { start, end });
        }
    }

    /// Notes that `start..end` is in the reassembly queue; with an empty range only drops what `rcv_nxt` has passed.
    #[doc(alias = "tcp_update_sack_list")]
    pub fn update_sack_list(&mut self, rcv_nxt: TcpSeq, start: TcpSeq, end: TcpSeq) {
        let mut head = SackBlk { start, end };
        let mut saved = [SackBlk::default(); MAX_SACK_BLKS];
        let mut num_saved = 0;
        for &block in &self.sackblks[..usize::from(self.rcv_numsacks).min(MAX_SACK_BLKS)] {
            if block.start.geq(block.end) || block.start.leq(rcv_nxt) {
                continue;
            }
            if start.lt(end) && head.start.leq(block.end) && head.end.geq(block.start) {
                head.start = head.start.min(block.start);
                head.end = head.end.max(block.end);
            } else {
                saved[num_saved] = block;
                num_saved += 1;
            }
        }
        let mut n = 0;
        if start.lt(end) {
            // RFC 2018 §4: the block with the segment just received comes first.
            self.sackblks[0] = head;
            n = 1;
            num_saved = num_saved.min(MAX_SACK_BLKS - 1);
        }
        self.sackblks[n..n + num_saved].copy_from_slice(&saved[..num_saved]);
        self.rcv_numsacks = (n + num_saved) as u8;
    }

    /// Forgets what was to be reported: everything has arrived.
    #[doc(alias = "tcp_clean_sackreport")]
    pub fn clean_report(&mut self) {
        self.rcv_numsacks = 0;
        self.dsack = None;
    }

    /// Forgets everything the peer reported.
    #[doc(alias = "tcp_free_sackholes")]
    pub fn free_sackholes(&mut self) {
        self.snd_holes.clear();
        self.sack_bytes_rexmit = 0;
        self.sacked_bytes = 0;
        self.lost_bytes = 0;
        self.delivered_data = 0;
    }

    fn insert(&mut self, at: usize, start: TcpSeq, end: TcpSeq, max: usize) -> bool {
        if self.snd_holes.len() >= max {
            return false;
        }
        self.snd_holes.insert(
            at,
            SackHole {
                start,
                end,
                rxmit: start,
            },
        );
        true
    }

    fn rexmitted(hole: &SackHole) -> u32 {
        hole.rxmit.min(hole.end).since(hole.start)
    }

    /// Finds the first hole with something left to retransmit.
    #[doc(alias = "tcp_sack_output")]
    pub fn next_hole(&self) -> Option<(usize, SackHole)> {
        let at = self
            .snd_holes
            .iter()
            .position(|hole| hole.rxmit.lt(hole.end))?;
        Some((at, self.snd_holes[at]))
    }

    /// Notes that `len` bytes of hole `at` have been retransmitted.
    pub fn retransmitted(&mut self, at: usize, len: u32) {
        if let Some(hole) = self.snd_holes.get_mut(at) {
            hole.rxmit += len;
            self.sack_bytes_rexmit = self.sack_bytes_rexmit.saturating_add(len);
        }
    }

    /// Takes back the note: the segment could not be sent.
    pub fn not_retransmitted(&mut self, at: usize, len: u32) {
        if let Some(hole) = self.snd_holes.get_mut(at) {
            hole.rxmit -= len;
            self.sack_bytes_rexmit = self.sack_bytes_rexmit.saturating_sub(len);
        }
    }

    /// Makes every hole wholly to be retransmitted again.
    #[doc(alias = "tcp_resend_sackholes")]
    pub fn resend_sackholes(&mut self) {
        for hole in &mut self.snd_holes {
            hole.rxmit = hole.start;
        }
        self.sack_bytes_rexmit = 0;
    }

    /// Whether the retransmission of the first hole is lost: it has gone out whole, and what was first sent beyond
    /// `recover`, in the same recovery, has arrived. Then every hole that went out whole is to go again.
    pub fn retransmission_lost(&mut self, recover: TcpSeq) -> bool {
        let went_whole = |hole: &SackHole| hole.rxmit.geq(hole.end);
        if !self.snd_holes.front().is_some_and(went_whole) || !self.snd_fack.gt(recover) {
            return false;
        }
        let mut again = 0;
        for hole in self.snd_holes.iter_mut().filter(|hole| went_whole(hole)) {
            again += Self::rexmitted(hole);
            hole.rxmit = hole.start;
        }
        self.sack_bytes_rexmit = self.sack_bytes_rexmit.saturating_sub(again);
        true
    }

    /// RFC 6675 §5 step 4: a hole for the last segment sent, when a partial ACK brought no news of it.
    pub fn rescue(&mut self, start: TcpSeq, end: TcpSeq, max: usize) {
        if self.snd_holes.is_empty() && start.lt(end) {
            self.insert(0, start, end, max);
            self.snd_fack = self.snd_fack.max(end);
        }
    }

    /// Counts what is believed lost: holes with three blocks or more than two segments reported above them.
    fn count_lost(&mut self, maxseg: u32) {
        let mut above_blocks = 0;
        let mut above_bytes = 0;
        let mut right = self.snd_fack;
        self.lost_bytes = 0;
        for hole in self.snd_holes.iter().rev() {
            let reported = right.since(hole.end);
            if reported > 0 {
                above_blocks += 1;
                above_bytes += reported;
            }
            if above_blocks >= TCP_REXMT_THRESH || above_bytes > (TCP_REXMT_THRESH - 1) * maxseg {
                self.lost_bytes += hole.end.since(hole.start);
            }
            right = hole.start;
        }
    }
}

impl Tcpcb {
    /// Updates the scoreboard with the ACK `th_ack` and the blocks of `to`.
    #[doc(alias = "tcp_sack_doack")]
    pub fn sack_doack(
        &mut self,
        stat: &TcpStat,
        maxholes: usize,
        to: &TcpOpt,
        th_ack: TcpSeq,
    ) -> SackStatus {
        let maxseg = self.maxseg();
        let snd_una = self.snd_una;
        let snd_max = self.snd_max;
        if self.t_sack.is_none() && to.to_nsacks == 0 {
            return SackStatus::NoChange;
        }
        let sack = self.sack_mut();
        let mut blocks = [SackBlk::default(); TCP_MAX_SACK + 1];
        let mut n = 0;
        let mut delivered = 0;
        let mut changed = SackStatus::NoChange;
        let left_edge_delta = th_ack.since(snd_una);
        // What th_ack covers is reported as well, if there are holes to fill.
        if left_edge_delta > 0 {
            if sack.snd_holes.is_empty() {
                delivered = left_edge_delta;
            } else {
                blocks[n] = SackBlk {
                    start: snd_una,
                    end: th_ack,
                };
                n += 1;
            }
        }
        for block in to.sacks() {
            let valid = block.end.gt(block.start)
                && block.start.gt(snd_una)
                && block.start.gt(th_ack)
                && block.start.lt(snd_max)
                && block.end.leq(snd_max);
            if valid {
                blocks[n] = *block;
                n += 1;
            } else if block.start.lt(block.end) && block.end.leq(th_ack) {
                stat.tcps_dsack_count.inc();
                stat.tcps_dsack_bytes
                    .add(u64::from(block.end.since(block.start)));
            }
        }
        if n == 0 {
            sack.delivered_data = delivered;
            return SackStatus::NoChange;
        }
        let blocks = &mut blocks[..n];
        // Insertion sort: at most five.
        for i in 1..n {
            let mut j = i;
            while j > 0 && blocks[j].end.lt(blocks[j - 1].end) {
                blocks.swap(j, j - 1);
                j -= 1;
            }
        }
        if sack.snd_holes.is_empty() {
            sack.snd_fack = snd_una.max(th_ack);
            sack.sacked_bytes = 0;
            sack.sack_bytes_rexmit = 0;
        }
        let counted_left_edge = if delivered > 0 { 0 } else { left_edge_delta };
        let mut newly = 0u32;

        // Blocks and holes are walked from their ends in one pass.
        let mut remaining = n;
        let last = blocks[n - 1];
        if sack.snd_fack.lt(last.start) {
            let at = sack.snd_holes.len();
            let fack = sack.snd_fack;
            if sack.insert(at, fack, last.start, maxholes) {
                newly += last.end.since(last.start);
                sack.snd_fack = last.end;
                remaining -= 1;
                changed = SackStatus::NewLoss;
            } else {
                stat.tcps_sack_sboverflow.inc();
                while remaining > 0 && sack.snd_fack.lt(blocks[remaining - 1].start) {
                    remaining -= 1;
                }
                if remaining > 0 && sack.snd_fack.lt(blocks[remaining - 1].end) {
                    newly += blocks[remaining - 1].end.since(sack.snd_fack);
                    sack.snd_fack = blocks[remaining - 1].end;
                    changed = SackStatus::NewLoss;
                }
            }
        } else if sack.snd_fack.lt(last.end) {
            newly += last.end.since(sack.snd_fack);
            sack.snd_fack = last.end;
            changed = SackStatus::Change;
        }

        let mut cur = sack.snd_holes.len();
        while cur > 0 && remaining > 0 {
            let block = blocks[remaining - 1];
            let Some(&hole) = sack.snd_holes.get(cur - 1) else {
                break;
            };
            if block.start.geq(hole.end) {
                remaining -= 1;
                continue;
            }
            if block.end.leq(hole.start) {
                cur -= 1;
                continue;
            }
            sack.sack_bytes_rexmit = sack
                .sack_bytes_rexmit
                .saturating_sub(SackState::rexmitted(&hole));
            if changed == SackStatus::NoChange {
                changed = SackStatus::Change;
            }
            let mut left = hole;
            if block.start.leq(hole.start) {
                if block.end.geq(hole.end) {
                    newly += hole.end.since(hole.start);
                    sack.snd_holes.remove(cur - 1);
                    cur -= 1;
                    continue;
                }
                newly += block.end.since(hole.start);
                left.start = block.end;
                left.rxmit = left.rxmit.max(left.start);
            } else if block.end.geq(hole.end) {
                newly += hole.end.since(block.start);
                left.end = block.start;
                left.rxmit = left.rxmit.min(left.end);
            } else if sack.insert(cur, block.end, hole.end, maxholes) {
                changed = SackStatus::NewLoss;
                newly += block.end.since(block.start);
                if let Some(right) = sack.snd_holes.get_mut(cur) {
                    right.rxmit = right.rxmit.max(hole.rxmit);
                    sack.sack_bytes_rexmit += SackState::rexmitted(right);
                }
                left.end = block.start;
                left.rxmit = left.rxmit.min(left.end);
            } else {
                stat.tcps_sack_sboverflow.inc();
            }
            sack.sack_bytes_rexmit += SackState::rexmitted(&left);
            if let Some(slot) = sack.snd_holes.get_mut(cur - 1) {
                *slot = left;
            }
            if block.start.leq(left.start) {
                cur -= 1;
            } else {
                remaining -= 1;
            }
        }
        sack.sacked_bytes = (sack.sacked_bytes + newly).saturating_sub(counted_left_edge);
        sack.delivered_data = delivered + newly;
        if sack.snd_holes.is_empty() {
            sack.sacked_bytes = sack.snd_fack.since(snd_una.max(th_ack));
            sack.sack_bytes_rexmit = 0;
        }
        sack.count_lost(maxseg);
        // A pure cumulative ACK is no duplicate, whatever it did to the scoreboard.
        if to.to_nsacks == 0 {
            SackStatus::NoChange
        } else {
            changed
        }
    }

    /// After a timeout, moves `snd_nxt` over what the peer holds.
    #[doc(alias = "tcp_sack_adjust")]
    pub fn sack_adjust(&mut self) {
        let Some(sack) = &self.t_sack else { return };
        if sack.snd_holes.is_empty() {
            return;
        }
        if self.snd_nxt.geq(sack.snd_fack) {
            self.snd_nxt = self.snd_max;
            return;
        }
        for hole in &sack.snd_holes {
            if self.snd_nxt.lt(hole.start) {
                // Between two holes, or before the first one which starts at snd_una.
                self.snd_nxt = hole.start;
                return;
            }
            if self.snd_nxt.lt(hole.end) {
                return;
            }
        }
        self.snd_nxt = self.snd_max;
    }
}

#[cfg(test)]
mod tests;
