//! The transmit half of iflib: packets to descriptors, completed descriptors back to free mbufs.
//!
//! FreeBSD: sys/net/iflib.c (iflib_if_transmit, iflib_txq_drain, iflib_encap, iflib_completed_tx_reclaim)
//! Differs from FreeBSD: what is sent from within a receive batch (acknowledgments mostly) shares the tail write
//! at the end of the batch.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use crate::counter::Counter;
use crate::errno::Errno;
use crate::kern::kern_synch::pause_sbt;
use crate::machine::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use crate::machine::bus_dma::DmaAddr;
use crate::machine::curthread;
use crate::machine::in_cksum::in_pseudo;
use crate::mbuf::{CsumFlags, How, MFlags, Mbuf};
use crate::net::iflib::{EncapErr, Iflib, IflibSharedCtx, IflibTxq, PktInfo};
use crate::net::mp_ring::{Drained, Items, MpRing, RingConsumer, RingFull};
use crate::time::Sbintime;

/// Packets that may wait for the consumer.
const RING_SIZE: usize = 2048;
/// Bytes that may wait for a tail write during a receive batch.
const DEFER_BYTES: usize = 64 * 1024;
const IPPROTO_TCP: u32 = 6;

/// Names of a transmit queue's counters, in the order of [`TxQueue::counter`].
pub(super) const TX_COUNTERS: [(&str, &str); 18] = [
    ("txq_dequeued", "total mbufs freed"),
    ("txq_enqueued", "total mbufs enqueued"),
    ("mbuf_defrag", "# of times m_defrag was called"),
    ("mbuf_defrag_failed", "# of times m_defrag failed"),
    ("m_pullups", "# of times m_pullup was called"),
    ("no_desc_avail", "# of times no descriptors were available"),
    ("txd_encap_efbig", "# of times txd_encap returned EFBIG"),
    ("tx_bytes", "bytes handed to the hardware"),
    ("tail_writes", "# of tail register writes"),
    ("txq_pidx", "Producer Index"),
    ("txq_in_use", "descriptors in use"),
    ("txq_processed", "descriptors processed for clean"),
    ("r_enqueues", "# of enqueues to the mp_ring for this queue"),
    ("r_drops", "# of drops in the mp_ring for this queue"),
    (
        "r_starts",
        "# of normal consumer starts in mp_ring for this queue",
    ),
    (
        "r_stalls",
        "# of consumer stalls in the mp_ring for this queue",
    ),
    (
        "r_restarts",
        "# of consumer restarts in the mp_ring for this queue",
    ),
    (
        "r_abdications",
        "# of consumer abdications in the mp_ring for this queue",
    ),
];

/// A transmit queue.
pub(super) struct TxQueue {
    ring: MpRing<Mbuf, TxState>,
    shared: Arc<TxShared>,
}

/// What others than the consumer look at.
struct TxShared {
    dequeued: Counter,
    enqueued: Counter,
    defrags: Counter,
    defrag_failed: Counter,
    pullups: Counter,
    no_desc: Counter,
    efbig: Counter,
    bytes: Counter,
    tail_writes: Counter,
    processed: Counter,
    flushed: Counter,
    pidx: AtomicUsize,
    in_use: AtomicUsize,
    size: usize,
    /// The thread (as a number) that is inside a receive batch and wants its tail writes gathered; 0: none.
    gatherer: AtomicUsize,
    /// Descriptors wait for a tail write.
    unflushed: AtomicBool,
    /// Timer ticks since something was completed.
    idle_ticks: AtomicU32,
}

/// The consumer of the ring: the one who writes descriptors.
struct TxState {
    hw: Box<dyn IflibTxq>,
    shared: Arc<TxShared>,
    /// The packet that ends at each descriptor.
    bufs: Vec<Option<Mbuf>>,
    pidx: usize,
    cidx: usize,
    in_use: usize,
    running: bool,
    /// The link is there. What waited when it went would be stale when it returns.
    link: bool,
    /// Bytes described since the last tail write.
    unflushed_bytes: usize,
    unflushed: usize,
    segs: Vec<(DmaAddr, usize)>,
    nsegments: usize,
    maxsegsize: usize,
    tso_segsize: usize,
    /// Free descriptors without which no packet is begun.
    reserve: usize,
    min_frame: usize,
}

/// Identifies the running thread.
fn this_thread() -> usize {
    core::ptr::from_ref(curthread()).addr()
}

impl TxQueue {
    pub(super) fn new(sctx: &IflibSharedCtx, hw: Box<dyn IflibTxq>, ndesc: usize) -> TxQueue {
        let shared = Arc::new(TxShared {
            dequeued: Counter::new(),
            enqueued: Counter::new(),
            defrags: Counter::new(),
            defrag_failed: Counter::new(),
            pullups: Counter::new(),
            no_desc: Counter::new(),
            efbig: Counter::new(),
            bytes: Counter::new(),
            tail_writes: Counter::new(),
            processed: Counter::new(),
            flushed: Counter::new(),
            pidx: AtomicUsize::new(0),
            in_use: AtomicUsize::new(0),
            size: ndesc,
            gatherer: AtomicUsize::new(0),
            unflushed: AtomicBool::new(false),
            idle_ticks: AtomicU32::new(0),
        });
        let nsegments = sctx.tx_nsegments.max(sctx.tx_tso_segments_max);
        let state = TxState {
            hw,
            shared: shared.clone(),
            bufs: (0..ndesc).map(|_| None).collect(),
            pidx: 0,
            cidx: 0,
            in_use: 0,
            running: false,
            link: true,
            unflushed_bytes: 0,
            unflushed: 0,
            segs: Vec::with_capacity(nsegments + 1),
            nsegments,
            maxsegsize: sctx.tx_maxsegsize,
            tso_segsize: sctx.tx_tso_segsize_max,
            reserve: nsegments + sctx.tx_extra_descriptors + 1,
            min_frame: sctx.min_frame,
        };
        TxQueue {
            ring: MpRing::new(RING_SIZE, state),
            shared,
        }
    }

    /// Queues a packet and, if nobody else is at it, hands what is queued to the hardware.
    pub(super) fn transmit(&self, m: Mbuf) -> Result<(), Errno> {
        self.ring.enqueue(m).map_err(|RingFull(_)| Errno::ENOBUFS)
    }

    /// Counter `i` of [`TX_COUNTERS`].
    pub(super) fn counter(&self, i: usize) -> u64 {
        let s = &*self.shared;
        let r = &self.ring.counters;
        let counters = [
            &s.dequeued,
            &s.enqueued,
            &s.defrags,
            &s.defrag_failed,
            &s.pullups,
            &s.no_desc,
            &s.efbig,
            &s.bytes,
            &s.tail_writes,
        ];
        match i {
            0..9 => counters[i].fetch(),
            9 => s.pidx.load(Ordering::Relaxed) as u64,
            10 => s.in_use.load(Ordering::Relaxed) as u64,
            11 => s.processed.fetch(),
            12 => r.enqueues.fetch(),
            13 => r.drops.fetch() + s.flushed.fetch(),
            14 => r.starts.fetch(),
            15 => r.stalls.fetch(),
            16 => r.restarts.fetch(),
            _ => r.abdications.fetch(),
        }
    }

    /// The ring's fields, as FreeBSD prints them.
    pub(super) fn ring_state(&self) -> String {
        let (head, tail, cidx, flags) = self.ring.describe();
        format!("pidx_head: {head:04} pidx_tail: {tail:04} cidx: {cidx:04} state: {flags:?}")
    }

    /// Free descriptors and producer index.
    pub(super) fn describe(&self) -> (usize, usize) {
        let in_use = self.shared.in_use.load(Ordering::Relaxed);
        (
            self.shared.size - 1 - in_use,
            self.shared.pidx.load(Ordering::Relaxed),
        )
    }

    /// Whether packets wait for free descriptors.
    pub(super) fn is_stalled(&self) -> bool {
        self.ring.is_stalled()
    }

    /// Frees what was completed, and goes on with what waits. Somebody who is at it does the same.
    pub(super) fn make_room(&self) {
        self.ring.with_consumer(TxState::clean);
    }

    /// The timer: frees what was completed. Returns for how many ticks nothing was, though something should be: without
    /// a link nothing should.
    pub(super) fn tick(&self, link: bool) -> u32 {
        self.make_room();
        if !link || self.shared.in_use.load(Ordering::Relaxed) == 0 {
            self.shared.idle_ticks.store(0, Ordering::Relaxed);
            return 0;
        }
        self.shared.idle_ticks.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Begins with an empty ring; the hardware is stopped.
    pub(super) fn start(&self) {
        self.as_consumer(|state| {
            state.forget();
            state.hw.reset();
            state.running = true;
        });
    }

    /// Frees everything; the hardware has stopped.
    pub(super) fn stop(&self) {
        self.as_consumer(|state| {
            state.running = false;
            state.forget();
        });
    }

    /// The link came, or went: then what waits for descriptors is freed.
    #[doc(alias = "iflib_if_qflush")]
    pub(super) fn set_link(&self, up: bool) {
        self.as_consumer(|state| state.link = up);
        self.shared.idle_ticks.store(0, Ordering::Relaxed);
    }

    /// Becomes the consumer, waiting for the present one to finish.
    fn as_consumer(&self, mut work: impl FnMut(&mut TxState)) {
        while self.ring.with_consumer(&mut work).is_none() {
            pause_sbt("iflibtx", Sbintime::from_ms(1));
        }
    }

    fn begin_gathering(&self, thread: usize) -> bool {
        let order = Ordering::Relaxed;
        self.shared
            .gatherer
            .compare_exchange(0, thread, order, order)
            .is_ok()
    }

    fn end_gathering(&self) {
        self.shared.gatherer.store(0, Ordering::Relaxed);
        // Who is consumer instead of us flushes when it ends, ours too.
        if self.shared.unflushed.load(Ordering::Relaxed) {
            self.ring.with_consumer(TxState::clean);
        }
    }
}

impl Iflib {
    /// Until the returned value is dropped, packets that this thread sends wait for one tail write per queue.
    pub(super) fn gather_answers(&self) -> Gathering<'_> {
        let thread = this_thread();
        let ours = self
            .txqs
            .iter()
            .enumerate()
            .filter(|(_, txq)| txq.begin_gathering(thread));
        Gathering {
            txqs: &self.txqs,
            ours: ours.fold(0, |set, (q, _)| set | 1 << (q % 64)),
        }
    }
}

/// A thread is inside a receive batch.
pub(super) struct Gathering<'a> {
    txqs: &'a [TxQueue],
    ours: u64,
}

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        for (q, txq) in self.txqs.iter().enumerate() {
            if self.ours & 1 << (q % 64) != 0 {
                txq.end_gathering();
            }
        }
    }
}

impl RingConsumer<Mbuf> for TxState {
    #[doc(alias = "iflib_txq_drain")]
    fn drain(&mut self, items: &mut Items<'_, Mbuf>) -> Drained {
        if !self.running || !self.link {
            while items.pop().is_some() {
                self.shared.flushed.inc();
            }
            return Drained::Progress;
        }
        let mut drained = Drained::Progress;
        while !items.is_empty() {
            if !self.has_room() {
                self.clean();
                if !self.has_room() {
                    self.shared.no_desc.inc();
                    drained = Drained::Stalled;
                    break;
                }
            }
            if let Some(m) = items.pop() {
                self.encap(m);
            }
        }
        self.finish();
        drained
    }
}

impl TxState {
    fn has_room(&self) -> bool {
        self.in_use + self.reserve < self.bufs.len()
    }

    /// Ends a turn as consumer: tells the hardware, unless this thread gathers.
    fn finish(&mut self) {
        let gatherer = self.shared.gatherer.load(Ordering::Relaxed);
        let defer =
            gatherer != 0 && gatherer == this_thread() && self.unflushed_bytes < DEFER_BYTES;
        if defer && self.unflushed != 0 {
            self.shared.unflushed.store(true, Ordering::Relaxed);
            self.publish();
        } else {
            self.clean();
        }
    }

    /// Tells the hardware what it does not know yet, and frees what it completed.
    fn clean(&mut self) {
        if self.unflushed != 0 && self.running {
            self.hw.txd_flush(self.pidx);
            self.shared.tail_writes.inc();
            self.unflushed = 0;
            self.unflushed_bytes = 0;
            self.shared.unflushed.store(false, Ordering::Relaxed);
        }
        self.reclaim();
        self.publish();
    }

    fn publish(&self) {
        self.shared.pidx.store(self.pidx, Ordering::Relaxed);
        self.shared.in_use.store(self.in_use, Ordering::Relaxed);
    }

    /// Frees the packets of completed descriptors.
    #[doc(alias = "iflib_completed_tx_reclaim")]
    fn reclaim(&mut self) {
        if self.in_use == 0 {
            return;
        }
        let credits = self.hw.txd_credits_update().min(self.in_use);
        let mut freed = 0;
        for _ in 0..credits {
            freed += u64::from(self.bufs[self.cidx].take().is_some());
            self.cidx = self.next(self.cidx);
        }
        if credits > 0 {
            self.in_use -= credits;
            self.shared.dequeued.add(freed);
            self.shared.processed.add(credits as u64);
            self.shared.idle_ticks.store(0, Ordering::Relaxed);
        }
    }

    fn next(&self, index: usize) -> usize {
        if index + 1 == self.bufs.len() {
            0
        } else {
            index + 1
        }
    }

    /// Describes one packet to the hardware. What cannot be described is dropped and counted.
    #[doc(alias = "iflib_encap")]
    fn encap(&mut self, m: Mbuf) {
        let Some(m) = self.prepare(m) else { return };
        let tso = m.pkthdr().csum_flags.intersects(CsumFlags::TSO);
        self.collect_segments(&m, tso);
        let m = if self.segs.len() <= self.nsegments {
            m
        } else {
            // Too many pieces: the same bytes in fewer mbufs.
            self.shared.defrags.inc();
            let Ok(m) = m.defrag(How::NoWait) else {
                self.shared.defrag_failed.inc();
                return;
            };
            self.collect_segments(&m, tso);
            if self.segs.len() > self.nsegments {
                self.shared.efbig.inc();
                return;
            }
            m
        };
        let header = m.pkthdr();
        let info = PktInfo {
            segs: &self.segs,
            len: header.len as usize,
            csum_flags: header.csum_flags,
            l2hlen: header.l2hlen,
            l3hlen: header.l3hlen,
            l4hlen: header.l4hlen,
            tso_segsz: header.tso_segsz,
            vtag: m
                .flags()
                .contains(MFlags::VLANTAG)
                .then_some(header.ether_vtag),
            pidx: self.pidx,
        };
        let len = info.len;
        match self.hw.txd_encap(&info) {
            Ok(next) => {
                let size = self.bufs.len();
                let used = (next + size - self.pidx) % size;
                let last = (next + size - 1) % size;
                self.bufs[last] = Some(m);
                self.pidx = next;
                self.in_use += used;
                self.unflushed += used;
                self.unflushed_bytes += len;
                self.shared.enqueued.inc();
                self.shared.bytes.add(len as u64);
            }
            Err(EncapErr::TooManySegments | EncapErr::Unsupported) => self.shared.efbig.inc(),
        }
    }

    fn collect_segments(&mut self, m: &Mbuf, tso: bool) {
        let limit = if tso {
            self.tso_segsize
        } else {
            self.maxsegsize
        };
        self.segs.clear();
        for (addr, len) in m.dma_segments() {
            let (mut addr, mut len) = (addr, len);
            while len > limit {
                self.segs.push((addr, limit));
                addr = addr.offset(limit);
                len -= limit;
            }
            self.segs.push((addr, len));
        }
    }

    /// Pads a runt, and readies the headers of a TSO packet.
    fn prepare(&mut self, m: Mbuf) -> Option<Mbuf> {
        let mut m = m;
        let len = m.pkt_len();
        if len < self.min_frame {
            const ZEROS: [u8; 64] = [0; 64];
            if !m.append(&ZEROS[..(self.min_frame - len).min(ZEROS.len())]) {
                self.shared.efbig.inc();
                return None;
            }
        }
        if m.pkthdr().csum_flags.intersects(CsumFlags::TSO) {
            m = self.prepare_tso(m)?;
        }
        Some(m)
    }

    /// FreeBSD iflib_parse_header, TSO: the hardware adds the length of each segment to the pseudo header's sum, so
    /// that the sum it starts from must be without length; and it wants the IP header's own sum zero and its length
    /// that of a full segment.
    fn prepare_tso(&mut self, m: Mbuf) -> Option<Mbuf> {
        let (l2, l3, l4) = {
            let header = m.pkthdr();
            (
                usize::from(header.l2hlen),
                usize::from(header.l3hlen),
                usize::from(header.l4hlen),
            )
        };
        let headers = l2 + l3 + l4;
        let mut m = m;
        if m.len() < headers || !m.writable() {
            self.shared.pullups.inc();
            // A private copy of the headers in front of the payload.
            let rest = m.split(headers, How::NoWait);
            let (Some(mut front), Some(rest)) = (m.dup(How::NoWait), rest) else {
                self.shared.efbig.inc();
                return None;
            };
            front.cat_pkt(rest);
            m = front;
        }
        let segment = m.pkthdr().tso_segsz;
        m.pkthdr_mut().csum_flags |= CsumFlags::IP | CsumFlags::IP_TCP;
        let data = m.data_mut();
        let Some(ip) = data
            .get_mut(l2..headers)
            .filter(|ip| ip.len() >= 40 && l3 >= 20)
        else {
            self.shared.efbig.inc();
            return None;
        };
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let seed = in_pseudo(address(12), address(16), IPPROTO_TCP);
        let full = segment.wrapping_add((l3 + l4) as u16);
        ip[2..4].copy_from_slice(&full.to_be_bytes());
        ip[10..12].fill(0);
        ip[l3 + 16..l3 + 18].copy_from_slice(&seed.to_be_bytes());
        Some(m)
    }

    /// Frees every packet and starts over.
    fn forget(&mut self) {
        self.bufs.iter_mut().for_each(|slot| *slot = None);
        self.pidx = 0;
        self.cidx = 0;
        self.in_use = 0;
        self.unflushed = 0;
        self.unflushed_bytes = 0;
        self.shared.unflushed.store(false, Ordering::Relaxed);
        self.shared.idle_ticks.store(0, Ordering::Relaxed);
        self.publish();
    }
}
