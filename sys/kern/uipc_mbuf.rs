//! The `m_*` operations on chains.
//!
//! FreeBSD: sys/kern/uipc_mbuf.c
//! Differs from FreeBSD: bytes that others share are never written (`copyback` refuses, `pullup` and `cat` copy
//! elsewhere); lengths that a chain does not have are answered, not asserted.

use crate::machine;
use crate::machine::bus_dma::DmaAddr;
use crate::machine::in_cksum::{CksumAccum, in_cksum_partial};
use crate::mbuf::{
    ClusterSize, How, M_COPYALL, MAX_LINKHDR, MFlags, MHLEN, MJUM16BYTES, MLEN, Mbuf, NoBufs,
    PktHdr, RawMbuf, Short, TagList,
};
use crate::param::PAGE_SIZE;
use core::ptr::NonNull;

/// A chain under construction, with its end at hand.
pub(crate) struct Builder {
    head: Option<Mbuf>,
    tail: Option<NonNull<RawMbuf>>,
}

impl Builder {
    pub(crate) const fn new() -> Self {
        Self {
            head: None,
            tail: None,
        }
    }

    /// Hangs the single mbuf `m` behind the last.
    pub(crate) fn push(&mut self, m: Mbuf) {
        debug_assert!(m.next().is_none());
        // SAFETY: only copied, and used while `head` holds the chain.
        let raw = unsafe { NonNull::new_unchecked(m.raw()) };
        match self.tail {
            // SAFETY: the last mbuf of the chain that `head` owns; nothing hangs behind it, and writing `None`'s
            // place frees nothing.
            Some(tail) => unsafe { Mbuf::link_next(tail, Some(m)) },
            None => self.head = Some(m),
        }
        self.tail = Some(raw);
    }

    pub(crate) fn finish(self) -> Option<Mbuf> {
        self.head
    }
}

/// Where a packet header moves or is copied to.
impl Mbuf {
    /// Moves the packet header of `from` here; `from` becomes an inner mbuf.
    #[doc(alias = "m_move_pkthdr")]
    fn move_pkthdr(&mut self, from: &mut Mbuf) {
        debug_assert!(self.has_pkthdr() && from.has_pkthdr());
        *self.pkthdr_mut() = core::mem::take(from.pkthdr_mut());
        self.inherit_flags(from.flags());
        // SAFETY: the header holds nothing any more, and without it the buffer of `from` only grows.
        unsafe { from.set_flags_raw(from.flags() & MFlags::DEMOTEFLAGS) }
    }

    /// Copies the packet header of `from` here.
    #[doc(alias = "m_dup_pkthdr")]
    fn dup_pkthdr(&mut self, from: &Mbuf) {
        debug_assert!(self.has_pkthdr());
        let header = from.pkthdr();
        *self.pkthdr_mut() = PktHdr {
            tags: header.tags.clone(),
            ..*header
        };
        self.inherit_flags(from.flags());
    }

    /// Takes over flags that belong to the packet and not to its storage.
    fn inherit_flags(&mut self, flags: MFlags) {
        self.add_flags(flags & (MFlags::COPYFLAGS - MFlags::RDONLY));
    }

    /// Refers to the external storage of `m` from its byte `off` on, `len` bytes.
    #[doc(alias = "mb_dupcl")]
    fn dupcl(&mut self, m: &Mbuf, off: usize, len: usize) {
        assert!(m.flags().contains(MFlags::EXT) && off + len <= m.len());
        assert!(!self.flags().contains(MFlags::EXT));
        // SAFETY: `m` has external storage, which the new reference keeps; the range was just checked.
        unsafe {
            RawMbuf::share_ext(self.raw(), m.raw());
            self.set_flags_raw(self.flags() | MFlags::EXT | (m.flags() & MFlags::RDONLY));
            self.set_data_raw(m.data_ptr().add(off), len);
        }
    }

    /// A single mbuf with the bytes `off .. off + len` of this single mbuf, shared if external. Has a packet
    /// header if `pkthdr`.
    fn copy_part(&self, off: usize, len: usize, pkthdr: bool, how: How) -> Option<Mbuf> {
        let mut n = if pkthdr {
            Mbuf::gethdr(how)?
        } else {
            Mbuf::get(how)?
        };
        if self.flags().contains(MFlags::EXT) {
            n.dupcl(self, off, len);
        } else {
            // Keep the room before the data, so that headers can be put there.
            let room = (self.offset_in_buffer() + off).min(n.size() - len);
            n.reserve_front(room);
            n.extend_mut(len)
                .copy_from_slice(&self.data()[off..off + len]);
        }
        Some(n)
    }

    /// Takes `n` bytes, which are there, off the front of the first mbuf.
    fn advance(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        // SAFETY: what is left lies in what was.
        unsafe { self.set_data_raw(self.data_ptr().add(n), self.len() - n) }
    }

    fn subtract_pkt_len(&mut self, n: usize) {
        if self.has_pkthdr() {
            let header = self.pkthdr_mut();
            header.len = header.len.saturating_sub(n as u32);
        }
    }

    fn add_pkt_len(&mut self, n: usize) {
        if self.has_pkthdr() {
            self.pkthdr_mut().len += n as u32;
        }
    }

    /// An empty single mbuf with at least `len` bytes of room.
    fn get_room(len: usize, pkthdr: bool, how: How) -> Option<Mbuf> {
        let small = if pkthdr { MHLEN } else { MLEN };
        if len <= small {
            return if pkthdr {
                Mbuf::gethdr(how)
            } else {
                Mbuf::get(how)
            };
        }
        let size = ClusterSize::at_least(len)?;
        if pkthdr {
            Mbuf::getjcl(how, size)
        } else {
            Mbuf::getcl_nohdr(how, size)
        }
    }

    /// Copies `to.len()` bytes off the front of `rest` and frees the mbufs that this empties. The bytes are there.
    fn consume(mut rest: Option<Mbuf>, mut to: &mut [u8]) -> Option<Mbuf> {
        while !to.is_empty() {
            let mut m = rest?;
            let n = m.len().min(to.len());
            let (now, later) = to.split_at_mut(n);
            now.copy_from_slice(&m.data()[..n]);
            to = later;
            m.advance(n);
            rest = if m.is_empty() { m.take_next() } else { Some(m) };
        }
        rest
    }
}

impl Mbuf {
    /// Makes room for `n` bytes before the data, which become part of it (contents unspecified).
    #[doc(alias = "M_PREPEND")]
    #[inline]
    pub fn prepend(mut self, n: usize, how: How) -> Result<Mbuf, NoBufs> {
        if self.grow_front(n) {
            return Ok(self);
        }
        self.prepend_mbuf(n, how)
    }

    #[doc(alias = "m_prepend")]
    #[cold]
    fn prepend_mbuf(mut self, n: usize, how: How) -> Result<Mbuf, NoBufs> {
        let mut front = Mbuf::get_room(n, self.has_pkthdr(), how).ok_or(NoBufs)?;
        if self.has_pkthdr() {
            front.move_pkthdr(&mut self);
        }
        front.align_end(n);
        front.extend_mut(n);
        front.add_pkt_len(n);
        front.set_next(Some(self));
        Ok(front)
    }

    /// Makes the first `n` bytes contiguous.
    ///
    /// Differs from FreeBSD: `n` may exceed `MHLEN`, up to the largest cluster.
    #[doc(alias = "m_pullup")]
    #[inline]
    pub fn pullup(self, n: usize) -> Result<Mbuf, Short> {
        if self.len() >= n {
            return Ok(self);
        }
        self.pullup_slow(n)
    }

    #[cold]
    fn pullup_slow(mut self, n: usize) -> Result<Mbuf, Short> {
        if !self.has_bytes(n) {
            return Err(Short);
        }
        let missing = n - self.len();
        if missing <= self.trailing_space() {
            let rest = self.take_next();
            let rest = Mbuf::consume(rest, self.extend_mut(missing));
            self.set_next(rest);
            return Ok(self);
        }
        let pkthdr = self.has_pkthdr();
        let mut front = Mbuf::get_room(n, pkthdr, How::NoWait).ok_or(Short)?;
        if pkthdr {
            front.move_pkthdr(&mut self);
        }
        front.reserve_front((front.size() - n).min(MAX_LINKHDR));
        let rest = Mbuf::consume(Some(self), front.extend_mut(n));
        front.set_next(rest);
        Ok(front)
    }

    /// Whether the chain has at least `n` bytes.
    fn has_bytes(&self, n: usize) -> bool {
        let mut missing = n;
        self.iter().any(|m| {
            missing = missing.saturating_sub(m.len());
            missing == 0
        })
    }

    /// Cuts `n` bytes off the front (all there are, if fewer).
    #[doc(alias = "m_adj")]
    #[inline]
    pub fn trim_front(&mut self, n: usize) {
        let mut left = n;
        let here = left.min(self.len());
        self.advance(here);
        left -= here;
        while left > 0 {
            let Some(mut m) = self.take_next() else { break };
            if m.len() <= left {
                left -= m.len();
                self.set_next(m.take_next());
            } else {
                m.advance(left);
                left = 0;
                self.set_next(Some(m));
            }
        }
        self.subtract_pkt_len(n - left);
    }

    /// Cuts `n` bytes off the back (all there are, if fewer).
    #[doc(alias = "m_adj")]
    pub fn trim_back(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let total = self.length();
        let n = n.min(total);
        self.keep_front(total - n);
        self.subtract_pkt_len(n);
    }

    /// Keeps the first `keep` bytes, which are there, and frees the mbufs behind. Packet length is left alone.
    fn keep_front(&mut self, keep: usize) {
        let mut left = keep;
        let mut m = self;
        while m.len() < left {
            left -= m.len();
            let Some(next) = m.next_mut() else { return };
            m = next;
        }
        m.set_len(left);
        m.set_next(None);
    }

    /// Appends a copy of `bytes`, in new mbufs where needed; false if there were none (then nothing changed).
    #[doc(alias = "m_append")]
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let last = self.last_mut();
        let (here, beyond) = bytes.split_at(bytes.len().min(last.trailing_space()));
        let more = if beyond.is_empty() {
            None
        } else {
            let Some(mut more) = Mbuf::getm2(How::NoWait, beyond.len(), false) else {
                return false;
            };
            more.fill(beyond);
            Some(more)
        };
        last.extend_mut(here.len()).copy_from_slice(here);
        last.set_next(more);
        self.add_pkt_len(bytes.len());
        true
    }

    /// Fills the room of this chain of empty mbufs from its front; returns what did not fit.
    fn fill<'b>(&mut self, mut bytes: &'b [u8]) -> &'b [u8] {
        let mut m = Some(self);
        while let Some(this) = m {
            let (now, later) = bytes.split_at(bytes.len().min(this.trailing_space()));
            this.extend_mut(now.len()).copy_from_slice(now);
            bytes = later;
            m = this.next_mut();
        }
        bytes
    }

    /// Copies from offset `off` into `to`; false if the chain is too short.
    #[doc(alias = "m_copydata")]
    pub fn copydata(&self, off: usize, to: &mut [u8]) -> bool {
        let (mut skip, mut to) = (off, to);
        for m in self {
            if to.is_empty() {
                break;
            }
            if skip >= m.len() {
                skip -= m.len();
                continue;
            }
            let from = &m.data()[skip..];
            skip = 0;
            let n = from.len().min(to.len());
            let (now, later) = to.split_at_mut(n);
            now.copy_from_slice(&from[..n]);
            to = later;
        }
        to.is_empty()
    }

    /// Copies `from` into the chain at `off`, extending it (with zeroes up to `off`) as needed. False if there were no
    /// mbufs, or if the bytes there are shared; then nothing changed.
    #[doc(alias = "m_copyback")]
    pub fn copyback(&mut self, off: usize, from: &[u8], how: How) -> bool {
        let total = self.length();
        let end = off + from.len();
        if !self.range_writable(off, end.min(total)) {
            return false;
        }
        let more = end.saturating_sub(total);
        if more > 0 {
            let Some(mut room) = Mbuf::getm2(how, more, false) else {
                return false;
            };
            room.extend_zeroed(more);
            self.last_mut().set_next(Some(room));
            self.add_pkt_len(more);
        }
        let (mut skip, mut from) = (off, from);
        let mut m = Some(self);
        while let Some(this) = m {
            if skip < this.len() && !from.is_empty() {
                let n = from.len().min(this.len() - skip);
                this.data_mut()[skip..skip + n].copy_from_slice(&from[..n]);
                (skip, from) = (0, &from[n..]);
            } else {
                skip = skip.saturating_sub(this.len());
            }
            m = this.next_mut();
        }
        true
    }

    fn range_writable(&self, start: usize, end: usize) -> bool {
        let mut at = 0;
        self.iter().all(|m| {
            let (from, to) = (at, at + m.len());
            at = to;
            m.is_empty() || from >= end || to <= start || m.writable()
        })
    }

    /// Fills the room of this chain of empty mbufs with `n` zeroes.
    fn extend_zeroed(&mut self, mut n: usize) {
        let mut m = Some(self);
        while let Some(this) = m {
            let here = n.min(this.trailing_space());
            this.extend_mut(here).fill(0);
            n -= here;
            m = this.next_mut();
        }
    }

    /// A second chain for `len` bytes from `off` (`M_COPYALL`: to the end), sharing external storage. With a packet
    /// header if this has one and `off` is 0. `None` if there were no mbufs or not as many bytes.
    #[doc(alias = "m_copym")]
    pub fn copym(&self, off: usize, len: usize, how: How) -> Option<Mbuf> {
        let copy_header = off == 0 && self.has_pkthdr();
        let (mut skip, mut left) = (off, len);
        let mut copy = Builder::new();
        if copy_header && (self.is_empty() || len == 0) {
            copy.push(Mbuf::gethdr(how)?);
        }
        for m in self {
            if left == 0 {
                break;
            }
            if skip >= m.len() {
                skip -= m.len();
                continue;
            }
            let n = left.min(m.len() - skip);
            let first = copy_header && copy.head.is_none();
            copy.push(m.copy_part(skip, n, first, how)?);
            skip = 0;
            left -= n;
        }
        if left > 0 && len != M_COPYALL {
            return None;
        }
        let mut copy = match copy.finish() {
            Some(copy) => copy,
            None => Mbuf::get(how)?,
        };
        if copy_header {
            copy.dup_pkthdr(self);
            if len != M_COPYALL {
                copy.set_pkt_len(len);
            }
        }
        Some(copy)
    }

    /// A second chain for the whole packet, sharing external storage.
    #[doc(alias = "m_copypacket")]
    pub fn copypacket(&self, how: How) -> Option<Mbuf> {
        self.copym(0, M_COPYALL, how)
    }

    /// A deep copy, writable throughout.
    #[doc(alias = "m_dup")]
    pub fn dup(&self, how: How) -> Option<Mbuf> {
        let mut copy = Mbuf::getm2(how, self.length(), self.has_pkthdr())?;
        copy.fill_from(self);
        if self.has_pkthdr() {
            copy.dup_pkthdr(self);
        }
        Some(copy)
    }

    /// Fills the room of this chain of empty mbufs with the bytes of `from`.
    fn fill_from(&mut self, from: &Mbuf) {
        let mut m = self;
        for mut bytes in from.segments() {
            loop {
                bytes = m.fill_one(bytes);
                if bytes.is_empty() {
                    break;
                }
                let Some(next) = m.next_mut() else { return };
                m = next;
            }
        }
    }

    fn fill_one<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (now, later) = bytes.split_at(bytes.len().min(self.trailing_space()));
        self.extend_mut(now.len()).copy_from_slice(now);
        later
    }

    /// Keeps the first `len` bytes and returns the others as a chain of its own, a packet if this is one. `None` if
    /// there were no mbufs or nothing is beyond `len` (then nothing changed).
    #[doc(alias = "m_split")]
    pub fn split(&mut self, len: usize, how: How) -> Option<Mbuf> {
        let is_packet = self.has_pkthdr();
        let total = self.length();
        if len >= total {
            return None;
        }
        let mut header = if is_packet {
            Some(Mbuf::gethdr(how)?)
        } else {
            None
        };
        if let Some(header) = &mut header {
            *header.pkthdr_mut() = PktHdr {
                tags: TagList::new(),
                len: (total - len) as u32,
                ..*self.pkthdr()
            };
            header.inherit_flags(self.flags());
        }

        // The mbuf that holds byte `len - 1`, or the first.
        let mut keep = len;
        let mut m = &mut *self;
        while keep > m.len() {
            keep -= m.len();
            m = m.next_mut()?;
        }
        let tail = if keep == m.len() {
            m.take_next()
        } else {
            let mut part = m.copy_part(keep, m.len() - keep, false, how)?;
            part.set_next(m.take_next());
            m.set_len(keep);
            Some(part)
        };
        if !is_packet {
            return tail;
        }
        self.set_pkt_len(len);
        let mut header = header?;
        header.set_next(tail);
        Some(header)
    }

    /// Hangs `other` behind the chain, or copies it there if it is small and there is room. Packet lengths are left
    /// alone; `other` is a packet no more.
    #[doc(alias = "m_cat")]
    pub fn cat(&mut self, mut other: Mbuf) {
        other.demote();
        let mut last = self.last_mut();
        loop {
            if last.trailing_space() < other.len() {
                last.set_next(Some(other));
                return;
            }
            last.extend_mut(other.len()).copy_from_slice(other.data());
            match other.take_next() {
                Some(next) => other = next,
                None => return,
            }
            last = last.last_mut();
        }
    }

    /// Hangs packet `other` behind this packet and adds its length; its header is dropped.
    #[doc(alias = "m_catpkt")]
    pub fn cat_pkt(&mut self, other: Mbuf) {
        let len = other.pkt_len();
        self.cat(other);
        self.add_pkt_len(len);
    }

    /// Copies a packet into as few mbufs as possible. On failure the packet comes back.
    #[doc(alias = "m_defrag")]
    pub fn defrag(mut self, how: How) -> Result<Mbuf, Mbuf> {
        let pkthdr = self.has_pkthdr();
        let Some(mut copy) = Mbuf::getm2(how, self.length(), pkthdr) else {
            return Err(self);
        };
        copy.fill_from(&self);
        if pkthdr {
            copy.move_pkthdr(&mut self);
        }
        Ok(copy)
    }

    /// Makes every byte writable, copying what is shared. On failure the chain is freed.
    #[doc(alias = "m_unshare")]
    pub fn unshare(self, how: How) -> Option<Mbuf> {
        if self.iter().all(Mbuf::writable) {
            return Some(self);
        }
        let mut chain = Builder::new();
        let mut rest = Some(self);
        while let Some(mut m) = rest {
            rest = m.take_next();
            if m.writable() {
                chain.push(m);
                continue;
            }
            let mut at = 0;
            loop {
                let n = (m.len() - at).min(MJUM16BYTES);
                let pkthdr = m.has_pkthdr();
                let mut copy = Mbuf::get_room(n, pkthdr, how)?;
                if pkthdr {
                    copy.move_pkthdr(&mut m);
                }
                copy.reserve_front((copy.size() - n).min(MAX_LINKHDR));
                copy.extend_mut(n).copy_from_slice(&m.data()[at..at + n]);
                chain.push(copy);
                at += n;
                if at == m.len() {
                    break;
                }
            }
        }
        chain.finish()
    }

    /// Makes this packet's first mbuf an inner mbuf: drops the packet header and the flags that belong to it.
    #[doc(alias = "m_demote")]
    pub fn demote(&mut self) {
        if self.has_pkthdr() {
            self.pkthdr_mut().tags = TagList::new();
        }
        // SAFETY: no header, nothing that needs dropping in it, and the buffer only grows.
        unsafe { self.set_flags_raw(self.flags() & MFlags::DEMOTEFLAGS) }
    }

    /// The pieces of data in order, empty ones left out.
    #[inline]
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.iter().map(Mbuf::data).filter(|data| !data.is_empty())
    }

    /// Where a device finds the pieces of data. Valid while the chain lives.
    #[doc(alias = "bus_dmamap_load_mbuf_sg")]
    #[inline]
    pub fn dma_segments(&self) -> impl Iterator<Item = (DmaAddr, usize)> + '_ {
        let mut chain = self.iter();
        // What is left of the mbuf at hand, and how much of it is contiguous at most.
        let mut rest: &[u8] = &[];
        let mut most = 0;
        core::iter::from_fn(move || {
            while rest.is_empty() {
                let m = chain.next()?;
                rest = m.data();
                most = m.physically_contiguous();
            }
            let here = rest.as_ptr();
            let len = rest.len().min(most - here.addr() % most);
            rest = &rest[len..];
            Some((DmaAddr::new(machine::virt_to_phys(here)), len))
        })
    }

    /// Pieces of this size and alignment of the first mbuf's buffer are contiguous to a device: mbufs and clusters are as a
    /// whole, storage that others made only within a page.
    #[inline]
    fn physically_contiguous(&self) -> usize {
        if self.has_foreign_storage() {
            PAGE_SIZE
        } else {
            1 << 63
        }
    }

    /// Where a device may put received bytes: the first mbuf's data and trailing space. Panics if shared.
    #[inline]
    #[track_caller]
    pub fn dma_receive(&mut self) -> (DmaAddr, usize) {
        assert!(self.writable(), "receive into a shared mbuf");
        let addr = DmaAddr::new(machine::virt_to_phys(self.data_ptr()));
        (addr, self.len() + self.trailing_space())
    }

    /// Number of mbufs in the chain that have data.
    pub fn nsegs(&self) -> usize {
        self.segments().count()
    }

    /// Sums the bytes from `skip` to `end` (both counted from the start of the chain).
    pub fn in_cksum_range(&self, end: usize, skip: usize) -> CksumAccum {
        let (mut skip, mut left) = (skip, end.saturating_sub(skip));
        let mut sum = CksumAccum::ZERO;
        let mut odd = false;
        for m in self {
            if left == 0 {
                break;
            }
            if skip >= m.len() {
                skip -= m.len();
                continue;
            }
            let data = &m.data()[skip..];
            let data = &data[..data.len().min(left)];
            skip = 0;
            left -= data.len();
            sum = sum.plus(in_cksum_partial(data, odd));
            odd ^= data.len() % 2 == 1;
        }
        sum
    }

    /// Checksums the bytes from `skip` to `end` (both counted from the start of the chain).
    pub fn in_cksum_skip(&self, end: usize, skip: usize) -> u16 {
        self.in_cksum_range(end, skip).finish()
    }
}

#[cfg(test)]
mod tests;
