//! Puts fragments of IPv6 packets together.
//!
//! FreeBSD: sys/netinet6/frag6.c (RFC 8200 §4.5, RFC 5722, RFC 6946)
//! Differs from FreeBSD: one callout for the table instead of a slow timeout of the protocol; it runs only while there are
//! fragments.

use crate::ip::{IPTOS_ECN_CE, IPTOS_ECN_MASK, IPTOS_ECN_NOTECT};
use crate::netinet6::icmp6::{
    ICMP6_PARAM_PROB, ICMP6_PARAMPROB_HEADER, ICMP6_TIME_EXCEED_REASSEMBLY, ICMP6_TIME_EXCEEDED,
    icmp6_error,
};
use crate::netinet6::ip6::{IP6F_MORE_FRAG, IP6F_OFF_MASK, IPV6_MAXPACKET, Ip6, Ip6Frag};
use crate::vnet::{InetVnet, NetCx};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::IpReass as IpReassClass;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::atomic::{AtomicBool, AtomicU32, Ordering};
use sys::mbuf::{CsumFlags, How, MAX_LINKHDR, Mbuf};
use sys::time::{Sbintime, Ticks};

/// Chains of the table (`IP6REASS_NHASH`).
const IP6REASS_NHASH: usize = 1024;
/// How often expired packets are sought.
const SWEEP: Sbintime = Sbintime::from_ms(500);

/// What belongs together: the fragments of one packet.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    ident: u32,
}

impl Key {
    fn hash(&self, seed: u32) -> usize {
        let mut hash = u64::from(seed) << 32 | u64::from(self.ident);
        for bits in [self.src.to_bits(), self.dst.to_bits()] {
            for half in [bits as u64, (bits >> 64) as u64] {
                hash = (hash ^ half)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(29);
            }
        }
        (hash ^ hash >> 32) as usize
    }
}

struct Fragment {
    off: usize,
    m: Mbuf,
}

impl Fragment {
    fn end(&self) -> usize {
        self.off + self.m.pkt_len()
    }
}

/// A packet in pieces (`struct ip6q`).
struct Ip6q {
    key: Key,
    /// Headers before the fragment header of the first fragment, once it has come, and where its "next header" stands.
    header: Option<(Vec<u8>, usize)>,
    /// What the fragmentable part begins with, as the first fragment says.
    nxt: u8,
    /// In order of offset, without overlaps.
    fragments: Vec<Fragment>,
    /// Length of the fragmentable part, once the last fragment has come.
    total: Option<usize>,
    ecn: u8,
    expires: Ticks,
}

/// What became of a fragment.
pub enum Reassembly6 {
    /// The packet is complete, without its fragment header.
    Whole {
        /// The packet.
        m: Mbuf,
        /// What stood behind the fragment header.
        nxt: u8,
    },
    /// Others are missing, or the fragment was dropped and counted.
    Incomplete,
}

/// What a fragment does to its packet.
enum Entered {
    /// It waits, or repeats one that does.
    Waits,
    /// All are there.
    Complete,
    /// It overlaps others: the whole packet goes (RFC 5722).
    Overlaps,
}

/// All IPv6 packets in pieces of one stack instance.
pub struct Frag6 {
    seed: u32,
    inet: Weak<InetVnet>,
    buckets: Box<[Mutex<Vec<Ip6q>, IpReassClass>]>,
    nfrags: AtomicU32,
    nqueues: AtomicU32,
    armed: AtomicBool,
    callout: Callout,
}

impl Frag6 {
    pub(crate) fn new(seed: u32, inet: Weak<InetVnet>) -> Arc<Self> {
        Arc::new(Self {
            seed,
            inet,
            buckets: (0..IP6REASS_NHASH)
                .map(|_| Mutex::new(Vec::new()))
                .collect(),
            nfrags: AtomicU32::new(0),
            nqueues: AtomicU32::new(0),
            armed: AtomicBool::new(false),
            callout: Callout::new(),
        })
    }

    /// Fragments held now (`net.inet6.ip6.frag6_nfrags`).
    pub fn fragments(&self) -> u32 {
        self.nfrags.load(Ordering::Relaxed)
    }

    /// Packets held now (`net.inet6.ip6.frag6_nfragpackets`).
    pub fn packets(&self) -> u32 {
        self.nqueues.load(Ordering::Relaxed)
    }

    /// Takes a fragment for this host. Its fragment header begins at `off`; `nxt_at` is where the header before says so.
    #[doc(alias = "frag6_input")]
    pub fn input(
        self: &Arc<Self>,
        cx: &NetCx<'_>,
        m: Mbuf,
        off: usize,
        nxt_at: usize,
    ) -> Reassembly6 {
        let stat = &cx.vnet.ip6stat;
        let limits = &cx.vnet.ip6;
        stat.ip6s_fragments.inc();
        let dropped = || {
            stat.ip6s_fragdropped.inc();
            Reassembly6::Incomplete
        };
        let Ok(mut m) = m.pullup(off + Ip6Frag::LEN) else {
            return dropped();
        };
        let frag = m.data().get(off..).and_then(Ip6Frag::parse).copied();
        let (Some(&ip6), Some(frag)) = (Ip6::parse(m.data()), frag) else {
            return dropped();
        };
        let offlg = frag.ip6f_offlg.get();
        let more = offlg & IP6F_MORE_FRAG != 0;
        let fragoff = usize::from(offlg & IP6F_OFF_MASK);
        let hlen = off + Ip6Frag::LEN;
        let len = m.pkt_len() - hlen;
        // RFC 8200 §4.5: every fragment but the last fills whole units of eight bytes.
        if more && !len.is_multiple_of(8) {
            stat.ip6s_fragdropped.inc();
            // `ip6_plen` is what is wrong.
            icmp6_error(cx, m, ICMP6_PARAM_PROB, ICMP6_PARAMPROB_HEADER, 4);
            return Reassembly6::Incomplete;
        }
        if !more && fragoff == 0 {
            // RFC 6946: all of a packet; nothing to wait for.
            stat.ip6s_atomicfrags.inc();
            return match whole(m.data().get(..off), nxt_at, frag.ip6f_nxt, len) {
                Some(mut head) => {
                    copy_meta(&m, &mut head);
                    m.trim_front(hlen);
                    m.demote();
                    head.cat(m);
                    head.set_pkt_len(off + len);
                    Reassembly6::Whole {
                        m: head,
                        nxt: frag.ip6f_nxt,
                    }
                }
                None => dropped(),
            };
        }
        if off - Ip6::LEN + fragoff + len > IPV6_MAXPACKET {
            stat.ip6s_fragdropped.inc();
            icmp6_error(
                cx,
                m,
                ICMP6_PARAM_PROB,
                ICMP6_PARAMPROB_HEADER,
                off as u32 + 2,
            );
            return Reassembly6::Incomplete;
        }
        if len == 0 || limits.maxfragpackets.get() == 0 || self.fragments() >= limits.maxfrags.get()
        {
            return dropped();
        }
        let key = Key {
            src: ip6.src(),
            dst: ip6.dst(),
            ident: frag.ip6f_ident.get(),
        };
        let header = (fragoff == 0).then(|| (m.data().get(..off).unwrap_or(&[]).to_vec(), nxt_at));
        let ecn = ip6.tclass() & IPTOS_ECN_MASK;
        m.trim_front(hlen);
        let index = key.hash(self.seed) & (self.buckets.len() - 1);
        let Some(bucket) = self.buckets.get(index) else {
            return dropped();
        };
        let mut bucket = bucket.lock();
        let at = match bucket.iter().position(|q| q.key == key) {
            Some(at) => at,
            None => {
                if self.packets() >= limits.maxfragpackets.get() {
                    stat.ip6s_fragoverflow.inc();
                    return dropped();
                }
                bucket.push(Ip6q {
                    key,
                    header: None,
                    nxt: frag.ip6f_nxt,
                    fragments: Vec::new(),
                    total: None,
                    ecn,
                    expires: cx.now + limits.fraglifetime.get() * 1000,
                });
                self.nqueues.fetch_add(1, Ordering::Relaxed);
                self.arm();
                bucket.len() - 1
            }
        };
        let Some(queue) = bucket.get_mut(at) else {
            return dropped();
        };
        let before = queue.fragments.len();
        if header.is_some() {
            queue.nxt = frag.ip6f_nxt;
        }
        let entered = queue.insert(Fragment { off: fragoff, m }, more, ecn, header);
        let after = queue.fragments.len();
        self.nfrags.fetch_add(after as u32, Ordering::Relaxed);
        self.nfrags.fetch_sub(before as u32, Ordering::Relaxed);
        let too_many = after > limits.maxfragsperpacket.get() as usize;
        match entered {
            Entered::Waits if !too_many => {
                if after == before {
                    stat.ip6s_fragdropped.inc();
                }
                Reassembly6::Incomplete
            }
            Entered::Complete if !too_many => {
                let queue = bucket.swap_remove(at);
                drop(bucket);
                self.forget(&queue);
                match queue.join() {
                    Some((m, nxt)) => {
                        stat.ip6s_reassembled.inc();
                        Reassembly6::Whole { m, nxt }
                    }
                    None => dropped(),
                }
            }
            Entered::Waits | Entered::Complete | Entered::Overlaps => {
                let queue = bucket.swap_remove(at);
                drop(bucket);
                self.forget(&queue);
                let others = queue
                    .fragments
                    .len()
                    .saturating_sub(usize::from(after > before));
                stat.ip6s_fragdropped.add(others as u64);
                dropped()
            }
        }
    }

    fn forget(&self, queue: &Ip6q) {
        self.nqueues.fetch_sub(1, Ordering::Relaxed);
        self.nfrags
            .fetch_sub(queue.fragments.len() as u32, Ordering::Relaxed);
    }

    fn arm(self: &Arc<Self>) {
        if !self.armed.swap(true, Ordering::AcqRel) {
            self.callout.reset(SWEEP, self);
        }
    }

    /// Drops packets whose time is over (`frag6_slowtimo`).
    fn sweep(self: &Arc<Self>, cx: &NetCx<'_>) {
        for bucket in &self.buckets {
            let mut gone = Vec::new();
            let mut bucket = bucket.lock();
            let mut at = 0;
            while let Some(queue) = bucket.get(at) {
                if cx.now - queue.expires >= 0 {
                    gone.push(bucket.swap_remove(at));
                } else {
                    at += 1;
                }
            }
            drop(bucket);
            for queue in gone {
                self.forget(&queue);
                cx.vnet
                    .ip6stat
                    .ip6s_fragtimeout
                    .add(queue.fragments.len() as u64);
                // RFC 8200 §4.5: the sender hears of it, if the first fragment came.
                if let Some(first) = queue.first_fragment() {
                    icmp6_error(
                        cx,
                        first,
                        ICMP6_TIME_EXCEEDED,
                        ICMP6_TIME_EXCEED_REASSEMBLY,
                        0,
                    );
                }
            }
        }
        self.armed.store(false, Ordering::Release);
        if self.packets() != 0 {
            self.arm();
        }
    }

    /// Drops everything and stops the timer.
    pub(crate) fn destroy(&self) {
        self.armed.store(true, Ordering::Release);
        self.callout.drain();
        for bucket in &self.buckets {
            let queues = core::mem::take(&mut *bucket.lock());
            for queue in queues {
                self.forget(&queue);
            }
        }
    }
}

impl CalloutTarget for Frag6 {
    fn callout(self: Arc<Self>, _now: Sbintime) {
        if let Some(inet) = self.inet.upgrade() {
            let epoch = NetEpoch::enter();
            self.sweep(&NetCx::new(&inet, &epoch));
        }
    }
}

/// The headers of a packet that was in pieces, in an mbuf of their own.
fn whole(header: Option<&[u8]>, nxt_at: usize, nxt: u8, len: usize) -> Option<Mbuf> {
    let header = header?;
    let mut m = Mbuf::getm2(How::NoWait, MAX_LINKHDR + header.len(), true)?;
    m.reserve_front(MAX_LINKHDR);
    if !m.append(header) || m.len() < header.len() {
        return None;
    }
    *m.data_mut().get_mut(nxt_at)? = nxt;
    let plen = u16::try_from(header.len() - Ip6::LEN + len).ok()?;
    Ip6::parse_mut(m.data_mut())?.ip6_plen.set(plen);
    Some(m)
}

/// The interface of a packet goes on; what the hardware said of the sums of fragments does not.
fn copy_meta(from: &Mbuf, to: &mut Mbuf) {
    to.set_flags(to.flags() | from.flags() & (sys::mbuf::MFlags::BCAST | sys::mbuf::MFlags::MCAST));
    let (from, to) = (from.pkthdr(), to.pkthdr_mut());
    to.rcvif = from.rcvif;
    // The hash of a fragment knows no ports: it says nothing about the packet's flow.
    to.rsstype = sys::mbuf::HashType::NONE;
    to.fibnum = from.fibnum;
    to.csum_flags = CsumFlags::empty();
}

impl Ip6q {
    fn insert(
        &mut self,
        new: Fragment,
        more: bool,
        ecn: u8,
        header: Option<(Vec<u8>, usize)>,
    ) -> Entered {
        let (start, end) = (new.off, new.end());
        let at = self.fragments.partition_point(|f| f.off < start);
        let exactly = self
            .fragments
            .get(at)
            .is_some_and(|f| f.off == start && f.end() == end);
        if exactly {
            // RFC 8200 §4.5: a duplicate may be dropped alone.
            return Entered::Waits;
        }
        let behind = at.checked_sub(1).and_then(|i| self.fragments.get(i));
        let overlaps = behind.is_some_and(|f| f.end() > start)
            || self.fragments.get(at).is_some_and(|f| f.off < end);
        // What lies behind the last fragment, or a second last one elsewhere, is as bad as an overlap.
        let beyond = match self.total {
            Some(total) => end > total || !more && end != total,
            None => !more && self.fragments.last().is_some_and(|f| f.end() > end),
        };
        if overlaps || beyond {
            return Entered::Overlaps;
        }
        // RFC 3168 §5.3: congestion that one fragment met was met by the packet; a mixture of marks is an error.
        if ecn != self.ecn {
            if ecn == IPTOS_ECN_NOTECT || self.ecn == IPTOS_ECN_NOTECT {
                return Entered::Overlaps;
            }
            if ecn == IPTOS_ECN_CE {
                self.ecn = IPTOS_ECN_CE;
            }
        }
        if !more {
            self.total = Some(end);
        }
        if header.is_some() {
            self.header = header;
        }
        self.fragments.insert(at, new);
        let mut next = 0;
        for fragment in &self.fragments {
            if fragment.off != next {
                return Entered::Waits;
            }
            next = fragment.end();
        }
        if self.total == Some(next) {
            Entered::Complete
        } else {
            Entered::Waits
        }
    }

    fn join(self) -> Option<(Mbuf, u8)> {
        let (header, nxt_at) = self.header?;
        let total = self.total?;
        let mut m = whole(Some(&header), nxt_at, self.nxt, total)?;
        let mut first = true;
        for mut fragment in self.fragments {
            if first {
                copy_meta(&fragment.m, &mut m);
                first = false;
            }
            fragment.m.demote();
            m.cat(fragment.m);
        }
        m.set_pkt_len(header.len() + total);
        let ip6 = Ip6::parse_mut(m.data_mut())?;
        let tclass = ip6.tclass() & !IPTOS_ECN_MASK | self.ecn;
        let label = ip6.flowlabel();
        ip6.set_flow(tclass, label);
        Some((m, self.nxt))
    }

    /// The first fragment, as a packet to quote.
    fn first_fragment(self) -> Option<Mbuf> {
        let (header, nxt_at) = self.header?;
        let mut first = self.fragments.into_iter().next().filter(|f| f.off == 0)?;
        let len = first.m.pkt_len();
        let mut m = whole(Some(&header), nxt_at, self.nxt, len)?;
        copy_meta(&first.m, &mut m);
        first.m.demote();
        m.cat(first.m);
        m.set_pkt_len(header.len() + len);
        Some(m)
    }
}
