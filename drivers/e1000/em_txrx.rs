//! Packets to descriptors and back: 8254x legacy receive, legacy context and data transmit descriptors.
//!
//! FreeBSD: sys/dev/e1000/em_txrx.c

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use sys::machine::bus_dma::{DmaAddr, DmaRing, dma_wmb};
use sys::mbuf::{CsumFlags, HashType};
use sys::net::iflib::{EncapErr, IflibRxq, IflibTxq, PktInfo, RxFrag, RxGet, RxInfo};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::e1000_hw::E1000Hw;
use super::e1000_regs::*;

/// A legacy receive descriptor (8254x SDM §3.2.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RxDesc {
    addr: u64,
    length: u16,
    csum: u16,
    status: u8,
    errors: u8,
    special: u16,
}

const RXD_STAT_DD: u8 = 0x01;
const RXD_STAT_EOP: u8 = 0x02;
const RXD_STAT_IXSM: u8 = 0x04;
const RXD_STAT_VP: u8 = 0x08;
const RXD_STAT_UDPCS: u8 = 0x10;
const RXD_STAT_TCPCS: u8 = 0x20;
const RXD_STAT_IPCS: u8 = 0x40;
const RXD_ERR_CE: u8 = 0x01;
const RXD_ERR_SE: u8 = 0x02;
const RXD_ERR_SEQ: u8 = 0x04;
const RXD_ERR_CXE: u8 = 0x10;
const RXD_ERR_TCPE: u8 = 0x20;
const RXD_ERR_IPE: u8 = 0x40;
const RXD_ERR_RXE: u8 = 0x80;
/// Errors after which the frame's bytes cannot be trusted.
const RXD_ERR_FRAME: u8 = RXD_ERR_CE | RXD_ERR_SE | RXD_ERR_SEQ | RXD_ERR_CXE | RXD_ERR_RXE;

/// A transmit descriptor: data and context share the shape of 8 + 4 + 4 bytes (8254x SDM §3.3.5, §3.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct TxDesc {
    /// Data: buffer address. Context: ipcss, ipcso, ipcse, tucss, tucso, tucse.
    pub(super) addr: u64,
    /// Length and command.
    pub(super) lower: u32,
    /// Data: status, popts, special. Context: status, header length, mss.
    pub(super) upper: u32,
}

const _: () = assert!(size_of::<RxDesc>() == 16 && size_of::<TxDesc>() == 16);

pub(super) const TXD_DTYP_D: u32 = 0x0010_0000;
pub(super) const TXD_CMD_EOP: u32 = 0x0100_0000;
pub(super) const TXD_CMD_IFCS: u32 = 0x0200_0000;
pub(super) const TXD_CMD_RS: u32 = 0x0800_0000;
pub(super) const TXD_CMD_DEXT: u32 = 0x2000_0000;
pub(super) const TXD_CMD_VLE: u32 = 0x4000_0000;
/// In a data or context descriptor: part of a TSO packet.
pub(super) const TXD_CMD_TSE: u32 = 0x0400_0000;
/// In a context descriptor: the packet is TCP.
pub(super) const TXD_CMD_TCP: u32 = 0x0100_0000;
/// In a context descriptor: the packet is IPv4.
pub(super) const TXD_CMD_IP: u32 = 0x0200_0000;
pub(super) const TXD_STAT_DD: u32 = 0x1;
pub(super) const TXD_POPTS_IXSM: u32 = 0x01 << 8;
pub(super) const TXD_POPTS_TXSM: u32 = 0x02 << 8;

/// Data bytes that one descriptor may name (the buffers of a TSO packet are cut to this).
pub(super) const EM_TSO_SEG_SIZE: usize = 4096;
/// Data bytes that one descriptor of another packet may name (8254x SDM §3.3.7.1: at most 16288).
pub(super) const EM_MAX_DATA_PER_TXD: usize = 8192;
/// Besides one for each piece: context and sentinel.
pub(super) const EM_EXTRA_DESCRIPTORS: usize = 2;
/// Most pieces of a packet.
pub(super) const EM_MAX_SCATTER: usize = 40;
/// The last descriptor of a TSO packet must be short: see `txd_encap`.
const TSO_SENTINEL: usize = 4;

/// The transmit ring of an em.
pub(super) struct EmTxq {
    hw: Arc<E1000Hw>,
    ring: DmaRing<TxDesc>,
    /// Descriptors whose completion is reported, oldest first, and how many descriptors each stands for.
    reports: VecDeque<(usize, usize)>,
    /// Descriptors written since the last reported one.
    unreported: usize,
    /// Last descriptor of the last packet.
    last: usize,
    /// What the checksum context in the hardware was made for.
    context: Option<Context>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Context {
    offload: CsumFlags,
    l2hlen: u8,
    l3hlen: u8,
}

impl EmTxq {
    pub(super) fn new(hw: Arc<E1000Hw>, ring: DmaRing<TxDesc>) -> Self {
        let reports = VecDeque::with_capacity(ring.count());
        Self {
            hw,
            ring,
            reports,
            unreported: 0,
            last: 0,
            context: None,
        }
    }

    fn next(&self, i: usize) -> usize {
        if i + 1 == self.ring.count() { 0 } else { i + 1 }
    }

    fn put(&mut self, i: usize, addr: u64, lower: u32, upper: u32) {
        let descriptor = TxDesc {
            addr: addr.to_le(),
            lower: lower.to_le(),
            upper: upper.to_le(),
        };
        self.ring.write(i, descriptor);
        self.unreported += 1;
    }

    /// Writes a context descriptor if the packet needs another one than the hardware has. Returns where data begins
    /// and the bits its descriptors carry.
    fn offload(&mut self, pi: &PktInfo<'_>) -> (usize, u32, u32) {
        let tso = pi.csum_flags.intersects(CsumFlags::TSO);
        let wanted = pi.csum_flags
            & (CsumFlags::IP | CsumFlags::IP_TCP | CsumFlags::IP_UDP | CsumFlags::TSO);
        if wanted.is_empty() {
            return (pi.pidx, 0, 0);
        }
        let mut popts = 0;
        if tso || wanted.contains(CsumFlags::IP) {
            popts |= TXD_POPTS_IXSM;
        }
        if wanted.intersects(CsumFlags::IP_TCP | CsumFlags::IP_UDP | CsumFlags::TSO) {
            popts |= TXD_POPTS_TXSM;
        }
        let context = Context {
            offload: wanted,
            l2hlen: pi.l2hlen,
            l3hlen: pi.l3hlen,
        };
        let lower = if tso { TXD_CMD_TSE } else { 0 };
        if !tso && self.context == Some(context) {
            return (pi.pidx, lower, popts);
        }
        // A TSO packet has its own context in the hardware, made anew each time for its length.
        if !tso {
            self.context = Some(context);
        }
        let (addr, command, rest) = context_descriptor(pi, wanted, tso);
        self.put(pi.pidx, addr, command, rest);
        (self.next(pi.pidx), lower, popts)
    }
}

/// 8254x SDM §3.3.6.
fn context_descriptor(pi: &PktInfo<'_>, wanted: CsumFlags, tso: bool) -> (u64, u32, u32) {
    let l2 = u64::from(pi.l2hlen);
    let l3 = u64::from(pi.l3hlen);
    let ipcss = l2;
    let ipcso = l2 + 10;
    let ipcse = l2 + l3 - 1;
    let tucss = l2 + l3;
    let tcp = tso || wanted.contains(CsumFlags::IP_TCP);
    let tucso = tucss + if tcp { 16 } else { 6 };
    let addr = (ipcss & 0xff)
        | (ipcso & 0xff) << 8
        | (ipcse & 0xffff) << 16
        | (tucss & 0xff) << 32
        | (tucso & 0xff) << 40;
    let mut lower = TXD_CMD_DEXT | TXD_CMD_IP | if tcp { TXD_CMD_TCP } else { 0 };
    let mut upper = 0;
    if tso {
        let headers = usize::from(pi.l2hlen) + usize::from(pi.l3hlen) + usize::from(pi.l4hlen);
        lower |= TXD_CMD_TSE | (pi.len - headers) as u32;
        upper = (headers as u32) << 8 | u32::from(pi.tso_segsz) << 16;
    }
    (addr, lower, upper)
}

impl IflibTxq for EmTxq {
    fn txd_encap(&mut self, pi: &PktInfo<'_>) -> Result<usize, EncapErr> {
        let tso = pi.csum_flags.intersects(CsumFlags::TSO);
        if pi.csum_flags.intersects(CsumFlags::TSO) && pi.tso_segsz == 0 {
            return Err(EncapErr::Unsupported);
        }
        let (mut i, lower, upper) = self.offload(pi);
        let mut command = TXD_CMD_IFCS;
        let mut special = 0;
        if let Some(tag) = pi.vtag {
            command |= TXD_CMD_VLE;
            special = u32::from(tag) << 16;
        }
        let data = TXD_CMD_DEXT | TXD_DTYP_D | command | lower;
        let upper = upper | special;
        let mut last = i;
        for (n, &(addr, len)) in pi.segs.iter().enumerate() {
            let final_piece = n + 1 == pi.segs.len();
            let (mut at, mut rest) = (addr.as_u64(), len);
            // FreeBSD em_txrx.c "TSO Workaround": controllers before the 82571 may report the end of a TSO packet
            // before they fetched all of a large last buffer, so it is made small.
            if tso && final_piece && len > 2 * TSO_SENTINEL {
                rest = TSO_SENTINEL;
                let head = len - rest;
                self.put(i, at, data | head as u32, upper);
                at += head as u64;
                i = self.next(i);
            }
            let bits = if final_piece { TXD_CMD_EOP } else { 0 };
            self.put(i, at, data | bits | rest as u32, upper);
            last = i;
            i = self.next(i);
        }
        self.last = last;
        Ok(i)
    }

    fn txd_flush(&mut self, pidx: usize) {
        // One report for all: the controller completes descriptors in order.
        if self.unreported > 0 {
            let mut end = self.ring.read(self.last);
            end.lower |= TXD_CMD_RS.to_le();
            self.ring.write(self.last, end);
            self.reports.push_back((self.last, self.unreported));
            self.unreported = 0;
        }
        dma_wmb();
        self.hw.write(TDT, pidx as u32);
    }

    fn txd_credits_update(&mut self) -> usize {
        let mut credits = 0;
        while let Some(&(last, descriptors)) = self.reports.front() {
            if self.ring.read_u32(last, 12) & TXD_STAT_DD == 0 {
                break;
            }
            self.reports.pop_front();
            credits += descriptors;
        }
        credits
    }

    fn reset(&mut self) {
        self.ring.clear();
        self.reports.clear();
        self.unreported = 0;
        self.context = None;
        let hw = &self.hw;
        let addr = self.ring.addr().as_u64();
        hw.write(TDLEN, self.ring.len_bytes() as u32);
        hw.write(TDBAH, (addr >> 32) as u32);
        hw.write(TDBAL, addr as u32);
        hw.write(TDH, 0);
        hw.write(TDT, 0);
    }

    fn head_tail(&self) -> (u32, u32) {
        (self.hw.read(TDH), self.hw.read(TDT))
    }
}

/// The receive ring of an em.
pub(super) struct EmRxq {
    hw: Arc<E1000Hw>,
    ring: DmaRing<RxDesc>,
    /// The head of an overlong frame was dropped, and its tail is still to come.
    discard: bool,
}

impl EmRxq {
    pub(super) fn new(hw: Arc<E1000Hw>, ring: DmaRing<RxDesc>) -> Self {
        Self {
            hw,
            ring,
            discard: false,
        }
    }
}

/// What the descriptor says about checksums (rule of COMPAT: IXSM says nothing, an error says nothing).
#[doc(alias = "em_receive_checksum")]
fn receive_checksum(status: u8, errors: u8) -> (CsumFlags, u32) {
    let mut flags = CsumFlags::empty();
    if status & RXD_STAT_IXSM != 0 || errors & (RXD_ERR_TCPE | RXD_ERR_IPE) != 0 {
        return (flags, 0);
    }
    if status & RXD_STAT_IPCS != 0 {
        flags |= CsumFlags::IP_CHECKED | CsumFlags::IP_VALID;
    }
    if status & (RXD_STAT_TCPCS | RXD_STAT_UDPCS) == 0 {
        return (flags, 0);
    }
    (
        flags | CsumFlags::DATA_VALID | CsumFlags::PSEUDO_HDR,
        0xffff,
    )
}

impl IflibRxq for EmRxq {
    fn rxd_pkt_get(&mut self, cidx: usize, ri: &mut RxInfo) -> RxGet {
        let count = self.ring.count();
        let mut i = cidx;
        let mut errors = 0;
        ri.nfrags = 0;
        ri.len = 0;
        let last = loop {
            let desc = self.ring.read(i);
            if desc.status & RXD_STAT_DD == 0 {
                return RxGet::Empty;
            }
            errors |= desc.errors;
            let len = usize::from(u16::from_le(desc.length));
            let Some(frag) = ri.frags.get_mut(ri.nfrags) else {
                // Longer than the longest frame there can be: dropped piece by piece, this descriptor with the next.
                self.discard = true;
                return RxGet::Bad;
            };
            *frag = RxFrag { idx: i, len };
            ri.nfrags += 1;
            ri.len += len;
            if desc.status & RXD_STAT_EOP != 0 {
                break desc;
            }
            i = if i + 1 == count { 0 } else { i + 1 };
        };
        if core::mem::take(&mut self.discard) || errors & RXD_ERR_FRAME != 0 {
            return RxGet::Bad;
        }
        (ri.csum_flags, ri.csum_data) = receive_checksum(last.status, last.errors);
        ri.vtag = (last.status & RXD_STAT_VP != 0).then(|| u16::from_le(last.special));
        ri.flowid = 0;
        ri.rsstype = HashType::NONE;
        RxGet::Frame
    }

    fn rxd_refill(&mut self, pidx: usize, bufs: &[DmaAddr]) {
        let count = self.ring.count();
        let mut i = pidx;
        for buf in bufs {
            let empty = RxDesc {
                addr: buf.as_u64().to_le(),
                length: 0,
                csum: 0,
                status: 0,
                errors: 0,
                special: 0,
            };
            self.ring.write(i, empty);
            i = if i + 1 == count { 0 } else { i + 1 };
        }
    }

    fn rxd_flush(&mut self, pidx: usize) {
        dma_wmb();
        self.hw.write(RDT, pidx as u32);
    }

    fn reset(&mut self) {
        self.ring.clear();
        self.discard = false;
        let hw = &self.hw;
        let addr = self.ring.addr().as_u64();
        hw.write(RDLEN, self.ring.len_bytes() as u32);
        hw.write(RDBAH, (addr >> 32) as u32);
        hw.write(RDBAL, addr as u32);
        hw.write(RDH, 0);
        hw.write(RDT, 0);
    }

    fn head_tail(&self) -> (u32, u32) {
        (self.hw.read(RDH), self.hw.read(RDT))
    }
}

#[cfg(test)]
mod tests;
