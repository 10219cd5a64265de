//! The `m_*` operations on chains.
//!
//! FreeBSD: sys/kern/uipc_mbuf.c

use crate::machine::bus_dma::DmaAddr;
use crate::mbuf::{How, Mbuf, NoBufs, Short};

impl Drop for Mbuf {
    /// Frees the chain (`m_freem`).
    fn drop(&mut self) {
        todo!()
    }
}

impl Mbuf {
    /// Makes room for `n` bytes before the data, which become part of it (contents unspecified).
    #[doc(alias = "M_PREPEND")]
    pub fn prepend(self, n: usize, how: How) -> Result<Mbuf, NoBufs> {
        let _ = (n, how);
        todo!()
    }

    /// Makes the first `n` bytes contiguous.
    #[doc(alias = "m_pullup")]
    pub fn pullup(self, n: usize) -> Result<Mbuf, Short> {
        let _ = n;
        todo!()
    }

    /// Cuts `n` bytes off the front (all there are, if fewer).
    #[doc(alias = "m_adj")]
    pub fn trim_front(&mut self, n: usize) {
        let _ = n;
        todo!()
    }

    /// Cuts `n` bytes off the back (all there are, if fewer).
    #[doc(alias = "m_adj")]
    pub fn trim_back(&mut self, n: usize) {
        let _ = n;
        todo!()
    }

    /// Appends a copy of `bytes`, in new mbufs where needed; false if there were none (then nothing changed).
    #[doc(alias = "m_append")]
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let _ = bytes;
        todo!()
    }

    /// Copies from offset `off` into `to`; false if the chain is too short.
    #[doc(alias = "m_copydata")]
    pub fn copydata(&self, off: usize, to: &mut [u8]) -> bool {
        let _ = (off, to);
        todo!()
    }

    /// Copies `from` into the chain at `off`, extending it as needed. False if there were no mbufs, or if the bytes
    /// there are shared.
    #[doc(alias = "m_copyback")]
    pub fn copyback(&mut self, off: usize, from: &[u8], how: How) -> bool {
        let _ = (off, from, how);
        todo!()
    }

    /// A second chain for `len` bytes from `off` (`M_COPYALL`: to the end), sharing external storage.
    #[doc(alias = "m_copym")]
    pub fn copym(&self, off: usize, len: usize, how: How) -> Option<Mbuf> {
        let _ = (off, len, how);
        todo!()
    }

    /// A second chain for the whole packet, sharing external storage.
    #[doc(alias = "m_copypacket")]
    pub fn copypacket(&self, how: How) -> Option<Mbuf> {
        let _ = how;
        todo!()
    }

    /// A deep copy, writable throughout.
    #[doc(alias = "m_dup")]
    pub fn dup(&self, how: How) -> Option<Mbuf> {
        let _ = how;
        todo!()
    }

    /// Keeps the first `len` bytes and returns the others as a chain of its own. `None` if there were no mbufs
    /// or the chain is shorter (then nothing changed).
    #[doc(alias = "m_split")]
    pub fn split(&mut self, len: usize, how: How) -> Option<Mbuf> {
        let _ = (len, how);
        todo!()
    }

    /// Hangs `other` behind the chain. Packet lengths are left alone.
    #[doc(alias = "m_cat")]
    pub fn cat(&mut self, other: Mbuf) {
        let _ = other;
        todo!()
    }

    /// Hangs packet `other` behind this packet and adds its length; its header is dropped.
    #[doc(alias = "m_catpkt")]
    pub fn cat_pkt(&mut self, other: Mbuf) {
        let _ = other;
        todo!()
    }

    /// Copies a packet into as few mbufs as possible. On failure the packet comes back.
    #[doc(alias = "m_defrag")]
    pub fn defrag(self, how: How) -> Result<Mbuf, Mbuf> {
        let _ = how;
        todo!()
    }

    /// Makes every byte writable, copying what is shared.
    #[doc(alias = "m_unshare")]
    pub fn unshare(self, how: How) -> Option<Mbuf> {
        let _ = how;
        todo!()
    }

    /// Makes this chain's first mbuf a packet's inner mbuf: drops the packet header.
    #[doc(alias = "m_demote")]
    pub fn demote(&mut self) {
        todo!()
    }

    /// The pieces of data in order, empty ones left out.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        core::iter::empty()
    }

    /// Where a device finds the pieces of data.
    pub fn dma_segments(&self) -> impl Iterator<Item = (DmaAddr, usize)> + '_ {
        core::iter::empty()
    }

    /// Where a device may put received bytes: the first mbuf's data and trailing space. Panics if shared.
    pub fn dma_receive(&mut self) -> (DmaAddr, usize) {
        todo!()
    }

    /// Number of mbufs in the chain that have data.
    pub fn nsegs(&self) -> usize {
        self.segments().count()
    }

    /// Checksums the bytes from `skip` to `end` (both counted from the start of the chain).
    pub fn in_cksum_skip(&self, end: usize, skip: usize) -> u16 {
        let _ = (end, skip);
        todo!()
    }
}
