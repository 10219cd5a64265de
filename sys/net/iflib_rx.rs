//! The receive half of iflib: descriptors to packets, packets to the stack, fresh buffers to the ring.
//!
//! FreeBSD: sys/net/iflib.c (iflib_rxeof, assemble_segments, iflib_fl_refill)
//! Differs from FreeBSD: the ring is locked while packets are taken from it, and not while they go up.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::counter::Counter;
use crate::errno::Errno;
use crate::kern::kern_mutex::Mutex;
use crate::kern::lock_order::IflibRx;
use crate::kern::subr_epoch::NetEpoch;
use crate::machine::atomic::Ordering;
use crate::machine::bus_dma::{DmaAddr, dma_rmb};
use crate::mbuf::{ClusterSize, How, MFlags, Mbuf, MbufQueue};
use crate::net::iflib::{Iflib, IflibRxq, Lro, RxGet, RxInfo};
use crate::net::ifnet::{IfCap, Ifnet};

/// Frames taken before the stack gets them. FreeBSD takes 16; with more there is more to coalesce, and answers that
/// the stack gives meanwhile share more of one tail write.
const DEFAULT_RX_BUDGET: usize = 64;
/// Frames up to this are copied, so that their cluster stays in the ring (`IFLIB_RX_COPY_THRESH`).
const RX_COPY_THRESH: usize = 128;
/// Free descriptors worth a tail write (`IFLIB_MAX_RX_REFRESH`).
const RX_REFRESH: usize = 32;

/// Names of a receive queue's counters, in the order of [`RxQueue::counter`].
pub(super) const RX_COUNTERS: [(&str, &str); 7] = [
    ("rx_packets", "frames received"),
    ("rx_bytes", "bytes received"),
    ("rx_batches", "batches handed to the stack"),
    ("rx_copied", "small frames copied"),
    ("rx_bad", "frames dropped for errors"),
    ("rx_no_mbuf", "times no buffer was to be had"),
    ("rxq_fl0.credits", "credits available"),
];

/// A receive queue.
pub(super) struct RxQueue {
    state: Mutex<RxState, IflibRx>,
    counters: [Counter; RX_COUNTERS.len() - 1],
}

#[derive(Clone, Copy)]
enum Count {
    Packets,
    Bytes,
    Batches,
    Copied,
    Bad,
    NoMbuf,
}

struct RxState {
    hw: Box<dyn IflibRxq>,
    /// The buffer that each descriptor names, and where the hardware finds it.
    bufs: Vec<Option<(Mbuf, DmaAddr)>>,
    /// Next descriptor to look at.
    cidx: usize,
    /// Next descriptor to give to the hardware.
    pidx: usize,
    /// Descriptors the hardware has.
    credits: usize,
    size: ClusterSize,
    running: bool,
    lro_enabled: bool,
    lro: Option<Box<dyn Lro>>,
    info: RxInfo,
    /// Addresses on their way into descriptors.
    fresh: Vec<DmaAddr>,
}

/// What a look at the ring brought.
#[derive(Default)]
struct Taken {
    packets: usize,
    bytes: usize,
    copied: usize,
    bad: usize,
    no_mbuf: usize,
}

impl RxQueue {
    pub(super) fn new(hw: Box<dyn IflibRxq>, ndesc: usize) -> RxQueue {
        RxQueue {
            state: Mutex::new(RxState {
                hw,
                bufs: (0..ndesc).map(|_| None).collect(),
                cidx: 0,
                pidx: 0,
                credits: 0,
                size: ClusterSize::K2,
                running: false,
                lro_enabled: true,
                lro: None,
                info: RxInfo::default(),
                fresh: Vec::with_capacity(RX_REFRESH),
            }),
            counters: core::array::from_fn(|_| Counter::new()),
        }
    }

    fn count(&self, what: Count, n: usize) {
        if n != 0 {
            self.counters[what as usize].add(n as u64);
        }
    }

    /// Counter `i` of [`RX_COUNTERS`].
    pub(super) fn counter(&self, i: usize) -> u64 {
        match self.counters.get(i) {
            Some(counter) => counter.fetch(),
            None => self.state.lock().credits as u64,
        }
    }

    /// Fills the (reset) ring with buffers of `size`. ENOBUFS if not even a few are to be had.
    pub(super) fn start(&self, size: ClusterSize, lro: Option<Box<dyn Lro>>) -> Result<(), Errno> {
        let mut state = self.state.lock();
        state.clear();
        state.hw.reset();
        state.size = size;
        if lro.is_some() {
            state.lro = lro;
        }
        state.refill();
        state.running = state.credits > 0;
        if state.running {
            Ok(())
        } else {
            Err(Errno::ENOBUFS)
        }
    }

    /// Forgets the ring; the hardware has stopped.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.running = false;
        state.clear();
    }

    pub(super) fn set_lro(&self, enabled: bool) {
        self.state.lock().lro_enabled = enabled;
    }

    /// Tries again what a lack of memory prevented: a ring without buffers gets no interrupts that would.
    pub(super) fn replenish(&self) {
        let mut state = self.state.lock();
        if state.running && state.missing() >= RX_REFRESH {
            state.refill();
        }
    }
}

impl Iflib {
    /// Takes frames from queue `q` and hands them to the stack, batch by batch, until none is left.
    #[doc(alias = "iflib_rxeof")]
    pub(super) fn rxeof(&self, ifp: &Ifnet, q: usize) {
        let Some(rxq) = self.rxqs.get(q) else { return };
        let budget = match self.rx_budget.load(Ordering::Relaxed) {
            0 => DEFAULT_RX_BUDGET,
            set => set as usize,
        };
        let lro = ifp.capenable().contains(IfCap::LRO);
        let mut batch = MbufQueue::new();
        loop {
            let taken = rxq.state.lock().take(budget, lro, &mut batch);
            rxq.count(Count::Packets, taken.packets);
            rxq.count(Count::Bytes, taken.bytes);
            rxq.count(Count::Copied, taken.copied);
            rxq.count(Count::Bad, taken.bad);
            rxq.count(Count::NoMbuf, taken.no_mbuf);
            if taken.bad + taken.no_mbuf > 0 {
                ifp.counters.ierrors.add(taken.bad as u64);
                ifp.counters.iqdrops.add(taken.no_mbuf as u64);
            }
            if taken.packets == 0 {
                return;
            }
            rxq.count(Count::Batches, 1);
            {
                let epoch = NetEpoch::enter();
                // What the stack answers from here goes out with one tail write per queue, at the end.
                let _answers = self.gather_answers();
                ifp.if_input_batch(&epoch, &mut batch);
            }
            self.driver.adapt_moderation(q, taken.bytes, taken.packets);
            if taken.packets < budget {
                return;
            }
        }
    }
}

impl RxState {
    /// Takes up to `budget` frames into `out` and gives the hardware fresh buffers for them.
    fn take(&mut self, budget: usize, lro: bool, out: &mut MbufQueue) -> Taken {
        let mut taken = Taken::default();
        if !self.running {
            return taken;
        }
        let mut info = core::mem::take(&mut self.info);
        while taken.packets < budget {
            match self.hw.rxd_pkt_get(self.cidx, &mut info) {
                RxGet::Empty => break,
                RxGet::Bad => taken.bad += 1,
                RxGet::Frame if !self.fits(&info) => taken.bad += 1,
                RxGet::Frame => {
                    dma_rmb();
                    match self.assemble(&info) {
                        Some((m, copied)) => {
                            taken.copied += usize::from(copied);
                            taken.bytes += info.len;
                            match &mut self.lro {
                                Some(coalescer) if lro => coalescer.rx(m, out),
                                _ => out.push(m),
                            }
                        }
                        None => taken.no_mbuf += 1,
                    }
                }
            }
            taken.packets += 1;
            self.cidx = self.advance(self.cidx, info.nfrags);
            self.credits -= info.nfrags.min(self.credits);
            if self.missing() >= 2 * RX_REFRESH {
                self.refill();
            }
        }
        self.info = info;
        if let Some(coalescer) = &mut self.lro {
            coalescer.flush_all(out);
        }
        if self.missing() >= RX_REFRESH {
            self.refill();
        }
        taken
    }

    fn advance(&self, index: usize, by: usize) -> usize {
        let next = index + by;
        if next >= self.bufs.len() {
            next - self.bufs.len()
        } else {
            next
        }
    }

    /// Descriptors the hardware could have and has not; one always stays unused.
    fn missing(&self) -> usize {
        self.bufs.len() - 1 - self.credits
    }

    /// Whether the buffers that `info` names are there and as large as it says: hardware that claims more than it was given
    /// is not believed.
    fn fits(&self, info: &RxInfo) -> bool {
        let frags = info.frags.get(..info.nfrags).unwrap_or_default();
        frags.iter().all(|frag| {
            let buffer = self.bufs.get(frag.idx).and_then(Option::as_ref);
            buffer.is_some_and(|(m, _)| frag.len <= m.trailing_space())
        })
    }

    /// Makes a packet of the buffers that `info` names. Says whether it is a copy.
    #[doc(alias = "assemble_segments")]
    fn assemble(&mut self, info: &RxInfo) -> Option<(Mbuf, bool)> {
        let frags = info.frags.get(..info.nfrags)?;
        let small = info.len <= RX_COPY_THRESH;
        let (mut m, copied) = match frags {
            [only] if small => (self.copy(only.idx, only.len)?, true),
            [first, rest @ ..] => {
                let mut m = self.buffer(first.idx, first.len)?;
                for frag in rest {
                    let mut piece = self.buffer(frag.idx, frag.len)?;
                    piece.demote();
                    m.cat(piece);
                }
                (m, false)
            }
            [] => return None,
        };
        let header = m.pkthdr_mut();
        header.len = info.len as u32;
        header.csum_flags = info.csum_flags;
        header.csum_data = info.csum_data;
        header.flowid = info.flowid;
        header.rsstype = info.rsstype;
        if let Some(tag) = info.vtag {
            header.ether_vtag = tag;
            m.add_flags(MFlags::VLANTAG);
        }
        Some((m, copied))
    }

    /// A copy of a small frame; its buffer stays with the descriptor.
    fn copy(&mut self, idx: usize, len: usize) -> Option<Mbuf> {
        let mut m = Mbuf::gethdr(How::NoWait)?;
        let (buffer, _) = self.bufs.get_mut(idx)?.as_mut()?;
        buffer.set_len(len);
        m.extend_mut(len).copy_from_slice(buffer.data());
        buffer.set_len(0);
        Some(m)
    }

    /// The buffer of a descriptor, now `len` bytes long.
    fn buffer(&mut self, idx: usize, len: usize) -> Option<Mbuf> {
        let (mut m, _) = self.bufs.get_mut(idx)?.take()?;
        m.set_len(len);
        Some(m)
    }

    /// Gives the hardware every descriptor it lacks, with one tail write. Stops when memory runs out.
    #[doc(alias = "iflib_fl_refill")]
    fn refill(&mut self) {
        let mut left = self.missing();
        let mut announced = self.pidx;
        while left > 0 {
            let mut at = self.pidx;
            self.fresh.clear();
            while self.fresh.len() < left.min(RX_REFRESH) {
                if self.bufs[at].is_none() {
                    let Some(mut m) = self.new_buffer() else {
                        break;
                    };
                    let (addr, _) = m.dma_receive();
                    self.bufs[at] = Some((m, addr));
                }
                let Some((_, addr)) = self.bufs[at] else {
                    break;
                };
                self.fresh.push(addr);
                at = self.advance(at, 1);
            }
            if self.fresh.is_empty() {
                break;
            }
            self.hw.rxd_refill(self.pidx, &self.fresh);
            left -= self.fresh.len();
            self.credits += self.fresh.len();
            self.pidx = at;
        }
        if announced != self.pidx {
            announced = self.pidx;
            self.hw.rxd_flush(announced);
        }
    }

    fn new_buffer(&self) -> Option<Mbuf> {
        match self.size {
            ClusterSize::K2 => Mbuf::getcl(How::NoWait),
            larger => Mbuf::getjcl(How::NoWait, larger),
        }
    }

    fn clear(&mut self) {
        self.bufs.iter_mut().for_each(|slot| *slot = None);
        if let Some(lro) = &mut self.lro {
            lro.flush_all(&mut MbufQueue::new());
        }
        self.cidx = 0;
        self.pidx = 0;
        self.credits = 0;
    }
}
