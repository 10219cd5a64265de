//! What goes into socket buffers and out of them.
//!
//! FreeBSD: sys/kern/uipc_sockbuf.c

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::mbuf::{How, MCLBYTES, MFlags, MSIZE, Mbuf};
use crate::sockbuf::{Record, SbFlags, SbState, Sockbuf};
use crate::socket::SockAddr;

/// The limits `reserve` obeys.
#[derive(Clone, Copy, Debug)]
pub struct SbLimits {
    /// `kern.ipc.maxsockbuf`.
    pub sb_max: u32,
    /// `kern.ipc.sockbuf_waste_factor`.
    pub waste_factor: u32,
}

impl SbLimits {
    /// The most bytes a buffer may be asked for: `sb_max` less the share that mbufs around clusters take.
    #[doc(alias = "sb_max_adj")]
    pub fn max_adj(&self) -> u32 {
        (u64::from(self.sb_max) * MCLBYTES as u64 / (MSIZE + MCLBYTES) as u64) as u32
    }
}

/// The buffer may not be that large.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "ENOBUFS")]
pub struct TooLarge;

/// The datagram did not fit; it comes back.
pub struct NoSpace(pub Mbuf);

/// What `m` alone costs: the mbuf, and its cluster.
#[inline]
fn charge(m: &Mbuf) -> u32 {
    if m.flags().contains(MFlags::EXT) {
        (MSIZE + m.size()) as u32
    } else {
        MSIZE as u32
    }
}

/// Bytes and cost of a chain.
fn chain_charge(m: &Mbuf) -> (u32, u32) {
    let mut bytes = 0;
    let mut cost = 0;
    let mut next = Some(m);
    while let Some(m) = next {
        bytes += m.len() as u32;
        cost += charge(m);
        next = m.next();
    }
    (bytes, cost)
}

impl Sockbuf {
    /// An empty buffer that nothing may be put in yet.
    pub const fn new() -> Sockbuf {
        Sockbuf {
            sb_mb: VecDeque::new(),
            sb_sndptr: 0,
            sb_sndptroff: 0,
            sb_records: VecDeque::new(),
            sb_state: SbState::empty(),
            sb_flags: SbFlags::empty(),
            sb_ccc: 0,
            sb_mbcnt: 0,
            sb_oobmark: 0,
            sb_hiwat: 0,
            sb_mbmax: 0,
            sb_lowat: 0,
            sb_timeo: None,
            sb_upcall: None,
            sb_sel: Vec::new(),
        }
    }

    /// Allots the buffer `cc` bytes.
    #[doc(alias = "sbreserve")]
    pub fn reserve(&mut self, cc: u32, limits: &SbLimits) -> Result<(), TooLarge> {
        if cc > limits.max_adj() {
            return Err(TooLarge);
        }
        self.sb_hiwat = cc;
        self.sb_mbmax = cc.saturating_mul(limits.waste_factor).min(limits.sb_max);
        self.sb_lowat = self.sb_lowat.min(self.sb_hiwat);
        Ok(())
    }

    /// Appends to the stream. The packet header, if any, is dropped.
    #[doc(alias = "sbappendstream")]
    #[inline]
    pub fn appendstream(&mut self, m: Mbuf) {
        let mut next = Some(m);
        while let Some(mut m) = next {
            next = m.take_next();
            self.append_one(m);
        }
    }

    /// Appends a single mbuf, or copies it into the last one if it is small (`sbcompress`).
    fn append_one(&mut self, mut m: Mbuf) {
        let len = m.len();
        if len == 0 {
            return;
        }
        self.sb_ccc += len as u32;
        if len <= MCLBYTES / 4
            && !self.sb_flags.contains(SbFlags::NOCOALESCE)
            && let Some(last) = self.sb_mb.back_mut()
            && last.trailing_space() >= len
        {
            last.extend_mut(len).copy_from_slice(m.data());
            return;
        }
        if m.has_pkthdr() {
            m.demote();
        }
        self.sb_mbcnt += charge(&m);
        self.sb_mb.push_back(m);
    }

    /// Cuts `len` bytes off the front: they were acknowledged, or read.
    #[doc(alias = "sbdrop")]
    pub fn drop_bytes(&mut self, len: u32) {
        let mut left = len.min(self.sb_ccc);
        self.sb_ccc -= left;
        self.sb_sndptroff = self.sb_sndptroff.saturating_sub(left);
        while left > 0 {
            let Some(first) = self.sb_mb.front_mut() else {
                return;
            };
            let have = first.len() as u32;
            if have > left {
                first.trim_front(left as usize);
                break;
            }
            left -= have;
            self.sb_mbcnt -= charge(first);
            self.sb_mb.pop_front();
            if self.sb_sndptr == 0 {
                // The cut passed the cached place: it is now the new front.
                self.sb_sndptroff = 0;
            } else {
                self.sb_sndptr -= 1;
            }
        }
        if self.sb_sndptr == 0 {
            self.sb_sndptroff = 0;
        }
    }

    /// Finds the element that holds offset `off`, and the offset it begins at, starting from the cached place
    /// if that is not behind `off`.
    #[doc(alias = "sbsndptr_noadv")]
    #[inline]
    fn seek(&self, off: u32) -> (usize, u32) {
        let (mut index, mut start) = if off >= self.sb_sndptroff {
            (self.sb_sndptr, self.sb_sndptroff)
        } else {
            (0, 0)
        };
        while let Some(m) = self.sb_mb.get(index) {
            let len = m.len() as u32;
            if off < start + len {
                break;
            }
            start += len;
            index += 1;
        }
        (index, start)
    }

    /// A chain, without packet header, for `len` bytes from `off`; clusters are shared. The place after it is
    /// remembered, so that sending on costs nothing for what was sent before. `None` if there are no mbufs or
    /// not so many bytes.
    #[doc(alias = "sbsndptr_adv")]
    #[doc(alias = "tcp_m_copym")]
    pub fn copy_range(&mut self, off: u32, len: u32, how: How) -> Option<Mbuf> {
        let end = off.checked_add(len)?;
        if len == 0 || end > self.sb_ccc {
            return None;
        }
        let (first, first_start) = self.seek(off);
        let (mut last, mut last_start) = (first, first_start);
        loop {
            let have = self.sb_mb.get(last)?.len() as u32;
            if end <= last_start + have {
                break;
            }
            last_start += have;
            last += 1;
        }
        // From the back to the front, so that hanging each piece before the others is all the linking there is.
        let mut chain: Option<Mbuf> = None;
        let mut piece_end = (end - last_start) as usize;
        for index in (first..=last).rev() {
            let m = self.sb_mb.get(index)?;
            let piece_start = if index == first {
                (off - first_start) as usize
            } else {
                0
            };
            let mut piece = m.copym(piece_start, piece_end - piece_start, how)?;
            piece.set_next(chain);
            chain = Some(piece);
            if index > first {
                piece_end = self.sb_mb.get(index - 1)?.len();
            }
        }
        self.sb_sndptr = last;
        self.sb_sndptroff = last_start;
        chain
    }

    /// Copies bytes from `off` on; false if there are not so many.
    #[doc(alias = "m_copydata")]
    pub fn copy_out(&self, off: u32, to: &mut [u8]) -> bool {
        if u64::from(off) + to.len() as u64 > u64::from(self.sb_ccc) {
            return false;
        }
        let (mut index, start) = self.seek(off);
        let mut skip = (off - start) as usize;
        let mut to = to;
        while !to.is_empty() {
            let Some(m) = self.sb_mb.get(index) else {
                return false;
            };
            let from = &m.data()[skip..];
            let n = from.len().min(to.len());
            let (now, rest) = to.split_at_mut(n);
            now.copy_from_slice(&from[..n]);
            to = rest;
            skip = 0;
            index += 1;
        }
        true
    }

    /// Appends a datagram with its sender and control messages, whole or not at all.
    #[doc(alias = "sbappendaddr")]
    pub fn appendaddr(
        &mut self,
        from: Option<&SockAddr>,
        mut m: Mbuf,
        control: Option<Mbuf>,
    ) -> Result<(), NoSpace> {
        let (bytes, cost) = Self::record_charge(from, &m, control.as_ref());
        if bytes as i64 > i64::from(self.space()) {
            return Err(NoSpace(m));
        }
        m.clrprotoflags();
        self.sb_ccc += bytes;
        self.sb_mbcnt += cost;
        self.sb_records.push_back(Record {
            from: from.copied(),
            m,
            control,
        });
        Ok(())
    }

    fn record_charge(from: Option<&SockAddr>, m: &Mbuf, control: Option<&Mbuf>) -> (u32, u32) {
        let (mut bytes, mut cost) = chain_charge(m);
        if let Some(from) = from {
            bytes += from.sa_len() as u32;
        }
        if let Some(control) = control {
            let (control_bytes, control_cost) = chain_charge(control);
            bytes += control_bytes;
            cost += control_cost;
        }
        (bytes, cost)
    }

    /// Takes the first datagram.
    pub(crate) fn pop_record(&mut self) -> Option<Record> {
        let record = self.sb_records.pop_front()?;
        let (bytes, cost) =
            Self::record_charge(record.from.as_ref(), &record.m, record.control.as_ref());
        self.sb_ccc -= bytes;
        self.sb_mbcnt -= cost;
        Some(record)
    }

    /// Takes the first mbuf of the stream, of which the reader will consume at most `want` bytes. What is
    /// left of it must come back by `unread`, and stays counted.
    pub(crate) fn pop_stream(&mut self, want: u32) -> Option<Mbuf> {
        let m = self.sb_mb.pop_front()?;
        let taken = (m.len() as u32).min(want);
        self.sb_ccc -= taken;
        self.sb_state -= SbState::RCVATMARK;
        if self.sb_oobmark > 0 {
            self.sb_oobmark = self.sb_oobmark.saturating_sub(taken);
            if self.sb_oobmark == 0 {
                self.sb_state |= SbState::RCVATMARK;
            }
        }
        self.sb_mbcnt -= charge(&m);
        self.sb_sndptr = 0;
        self.sb_sndptroff = 0;
        Some(m)
    }

    /// Puts back what is left of the mbuf that `pop_stream` gave.
    pub(crate) fn unread(&mut self, m: Mbuf) {
        self.sb_mbcnt += charge(&m);
        self.sb_mb.push_front(m);
    }

    /// Empties the buffer.
    #[doc(alias = "sbflush")]
    pub fn flush(&mut self) {
        self.sb_mb.clear();
        self.sb_records.clear();
        self.sb_sndptr = 0;
        self.sb_sndptroff = 0;
        self.sb_ccc = 0;
        self.sb_mbcnt = 0;
        self.sb_oobmark = 0;
    }
}

impl Default for Sockbuf {
    fn default() -> Sockbuf {
        Sockbuf::new()
    }
}

#[cfg(test)]
mod tests;
