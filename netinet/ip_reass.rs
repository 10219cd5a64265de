//! Puts fragments of IPv4 datagrams together.
//!
//! FreeBSD: sys/netinet/ip_reass.c (RFC 791, RFC 815; ECN: RFC 3168 §5.3)
//! Differs from FreeBSD: one callout for the table instead of one per chain; it runs only while there are fragments.

use crate::ip::{
    IP_DF, IP_MAXPACKET, IP_MF, IP_OFFMASK, IPTOS_ECN_CE, IPTOS_ECN_MASK, IPTOS_ECN_NOTECT, Ip,
};
use crate::ip_input::IpTunables;
use crate::vnet::{InetVnet, NetCx};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::IpReass as IpReassClass;
use sys::machine;
use sys::machine::atomic::{AtomicBool, AtomicU32, Ordering};
use sys::mbuf::{CsumFlags, How, MAX_LINKHDR, Mbuf, MbufStat};
use sys::time::{Sbintime, Ticks};

/// Chains of the table (`net.inet.ip.reass_hashsize`).
const IPREASS_NHASH: usize = 1024;
/// How often expired datagrams are sought.
const SWEEP: Sbintime = Sbintime::from_ms(500);

/// Sizes the limits by the clusters there are, as FreeBSD does, before the command line has its say.
pub(crate) fn size_limits(limits: &IpTunables) {
    let nmbclusters = MbufStat::snapshot().cluster.max.min(1 << 24) as u32;
    let maxfrags = (nmbclusters / 32).max(64);
    let maxfragpackets = maxfrags.min(50 * IPREASS_NHASH as u32);
    limits.maxfrags.set(maxfrags);
    limits.maxfragpackets.set(maxfragpackets);
    limits
        .maxfragbucketsize
        .set((maxfragpackets / (IPREASS_NHASH as u32 / 2)).max(1));
}

/// What belongs together: the fragments of one datagram (RFC 791).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    id: u16,
    proto: u8,
}

impl Key {
    fn hash(&self, seed: u32) -> usize {
        let mix = |hash: u32, word: u32| (hash ^ word).wrapping_mul(0x9e37_79b1).rotate_left(15);
        let ports = u32::from(self.id) << 8 | u32::from(self.proto);
        let hash = mix(
            mix(mix(seed, self.src.to_bits()), self.dst.to_bits()),
            ports,
        );
        (hash ^ hash >> 16) as usize
    }
}

/// The data of one fragment; `m` has a packet header and no IP header.
struct Fragment {
    off: usize,
    m: Mbuf,
}

impl Fragment {
    fn end(&self) -> usize {
        self.off + self.m.pkt_len()
    }
}

/// A datagram in pieces (`struct ipq`).
struct Ipq {
    key: Key,
    /// Header of the first fragment, options included, once it has come.
    header: Vec<u8>,
    /// In order of offset, without overlaps.
    fragments: Vec<Fragment>,
    /// Length of the data, once the last fragment has come.
    total: Option<usize>,
    /// ECN field of the first fragment to come; CE if any had it.
    ecn: u8,
    expires: Ticks,
}

/// What became of a fragment.
pub enum Reassembly {
    /// The datagram is complete: it begins with its header, as if it had never been cut.
    Whole(Mbuf),
    /// Others are missing, or the fragment was dropped and counted.
    Incomplete,
}

type Bucket = Mutex<Vec<Ipq>, IpReassClass>;

/// All datagrams in pieces of one stack instance.
pub struct IpReass {
    seed: u32,
    buckets: Box<[Bucket]>,
    /// Fragments held.
    nfrags: AtomicU32,
    /// Datagrams held.
    nqueues: AtomicU32,
    armed: AtomicBool,
    callout: Callout,
}

/// Why a fragment is dropped: it is counted either as too long or as dropped.
enum BadFragment {
    TooLong,
    Dropped,
}

impl IpReass {
    pub(crate) fn new(seed: u32) -> Self {
        Self {
            seed,
            buckets: (0..IPREASS_NHASH).map(|_| Mutex::new(Vec::new())).collect(),
            nfrags: AtomicU32::new(0),
            nqueues: AtomicU32::new(0),
            armed: AtomicBool::new(false),
            callout: Callout::new(),
        }
    }

    /// Fragments held now (`net.inet.ip.curfrags`).
    pub fn fragments(&self) -> u32 {
        self.nfrags.load(Ordering::Relaxed)
    }

    /// Datagrams held now (`net.inet.ip.fragpackets`).
    pub fn packets(&self) -> u32 {
        self.nqueues.load(Ordering::Relaxed)
    }

    /// Chains of the table.
    pub fn chains(&self) -> usize {
        self.buckets.len()
    }

    /// Takes a fragment for this host; `m` begins with its header of `hlen` bytes and is as long as `ip_len` says.
    #[doc(alias = "ip_reass")]
    pub fn input(&self, cx: &NetCx<'_>, m: Mbuf, hlen: usize) -> Reassembly {
        let stat = &cx.vnet.ipstat;
        stat.ips_fragments.inc();
        match self.enter(cx, m, hlen) {
            Ok(None) => Reassembly::Incomplete,
            Ok(Some(whole)) => {
                stat.ips_reassembled.inc();
                Reassembly::Whole(whole)
            }
            Err(BadFragment::TooLong) => {
                stat.ips_toolong.inc();
                Reassembly::Incomplete
            }
            Err(BadFragment::Dropped) => {
                stat.ips_fragdropped.inc();
                Reassembly::Incomplete
            }
        }
    }

    fn enter(&self, cx: &NetCx<'_>, mut m: Mbuf, hlen: usize) -> Result<Option<Mbuf>, BadFragment> {
        let limits = &cx.vnet.ip;
        let ip = *Ip::parse(m.data()).ok_or(BadFragment::Dropped)?;
        let ip_off = ip.ip_off.get();
        let more = ip_off & IP_MF != 0;
        let off = usize::from(ip_off & IP_OFFMASK) * 8;
        let len = m.pkt_len().checked_sub(hlen).ok_or(BadFragment::Dropped)?;
        // Every fragment but the last fills whole units of eight bytes, and none is empty or says "don't fragment".
        if len == 0 || more && len % 8 != 0 || ip_off & IP_DF != 0 {
            return Err(BadFragment::Dropped);
        }
        if off + len + hlen > IP_MAXPACKET {
            return Err(BadFragment::TooLong);
        }
        if limits.maxfragsperpacket.get() == 0
            || limits.maxfragpackets.get() == 0
            || self.fragments() >= limits.maxfrags.get()
        {
            return Err(BadFragment::Dropped);
        }
        let key = Key {
            src: ip.src(),
            dst: ip.dst(),
            id: ip.ip_id.get(),
            proto: ip.ip_p,
        };
        let header = if off == 0 {
            m.data().get(..hlen).unwrap_or(&[]).to_vec()
        } else {
            Vec::new()
        };
        m.trim_front(hlen);

        let index = key.hash(self.seed) & (self.buckets.len() - 1);
        let mut bucket = self.buckets.get(index).ok_or(BadFragment::Dropped)?.lock();
        let ecn = ip.ip_tos & IPTOS_ECN_MASK;
        let at = match bucket.iter().position(|q| q.key == key) {
            Some(at) => at,
            None => {
                self.make_room(cx, &mut bucket)?;
                bucket.push(Ipq {
                    key,
                    header: Vec::new(),
                    fragments: Vec::new(),
                    total: None,
                    ecn,
                    expires: cx.now + limits.fragttl.get() * 1000,
                });
                self.nqueues.fetch_add(1, Ordering::Relaxed);
                self.arm(cx.vnet);
                bucket.len() - 1
            }
        };
        let queue = bucket.get_mut(at).ok_or(BadFragment::Dropped)?;
        let before = queue.fragments.len();
        let entered = queue.insert(Fragment { off, m }, more, ecn, header);
        let after = queue.fragments.len();
        let complete = queue.is_complete();
        let too_many = !complete && after > limits.maxfragsperpacket.get() as usize;
        let empty = after == 0;
        // Both are counts of what lies in the buckets, wherever this fragment went.
        self.nfrags.fetch_add(after as u32, Ordering::Relaxed);
        self.nfrags.fetch_sub(before as u32, Ordering::Relaxed);
        if complete || too_many || empty {
            let queue = bucket.swap_remove(at);
            drop(bucket);
            self.nqueues.fetch_sub(1, Ordering::Relaxed);
            self.nfrags.fetch_sub(after as u32, Ordering::Relaxed);
            if complete {
                return queue.join().map(Some).ok_or(BadFragment::Dropped);
            }
            if too_many {
                // One of them is counted by the caller.
                cx.vnet.ipstat.ips_fragdropped.add(after as u64 - 1);
                return Err(BadFragment::Dropped);
            }
        }
        let covered = entered?;
        cx.vnet.ipstat.ips_fragdropped.add(covered as u64);
        Ok(None)
    }

    /// Makes room for one more datagram: the oldest of a full chain goes; if all is full, the oldest of this chain, or
    /// else nothing comes in.
    fn make_room(&self, cx: &NetCx<'_>, bucket: &mut Vec<Ipq>) -> Result<(), BadFragment> {
        let limits = &cx.vnet.ip;
        let chain_full = bucket.len() >= limits.maxfragbucketsize.get().max(1) as usize;
        let all_full = self.packets() >= limits.maxfragpackets.get();
        if !chain_full && !all_full {
            return Ok(());
        }
        let oldest =
            (0..bucket.len()).min_by_key(|&i| bucket.get(i).map_or(0, |q| q.expires - cx.now));
        let Some(oldest) = oldest else {
            return Err(BadFragment::Dropped);
        };
        let gone = bucket.swap_remove(oldest);
        self.forget(&gone);
        cx.vnet
            .ipstat
            .ips_fragdropped
            .add(gone.fragments.len() as u64);
        Ok(())
    }

    fn forget(&self, queue: &Ipq) {
        self.nqueues.fetch_sub(1, Ordering::Relaxed);
        self.nfrags
            .fetch_sub(queue.fragments.len() as u32, Ordering::Relaxed);
    }

    fn arm(&self, inet: &Arc<InetVnet>) {
        if !self.armed.swap(true, Ordering::AcqRel) {
            self.callout.reset(SWEEP, inet);
        }
    }

    /// Drops datagrams whose time is over (`ipreass_slowtimo`).
    fn sweep(&self, inet: &Arc<InetVnet>, now: Ticks) {
        for bucket in &self.buckets {
            let mut gone = Vec::new();
            let mut bucket = bucket.lock();
            let mut at = 0;
            while let Some(queue) = bucket.get(at) {
                if now - queue.expires >= 0 {
                    gone.push(bucket.swap_remove(at));
                } else {
                    at += 1;
                }
            }
            drop(bucket);
            for queue in gone {
                self.forget(&queue);
                inet.ipstat
                    .ips_fragtimeout
                    .add(queue.fragments.len() as u64);
            }
        }
        self.armed.store(false, Ordering::Release);
        if self.packets() != 0 {
            self.arm(inet);
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

impl CalloutTarget for InetVnet {
    fn callout(self: Arc<Self>, _now: Sbintime) {
        self.reass.sweep(&self, machine::ticks());
    }
}

impl Ipq {
    /// Enters a fragment at its place. What an earlier one already brought is cut off the new one; what later ones brought
    /// of the new one's data is cut off them. Says how many others it covered completely.
    fn insert(
        &mut self,
        new: Fragment,
        more: bool,
        ecn: u8,
        header: Vec<u8>,
    ) -> Result<usize, BadFragment> {
        self.merge_ecn(ecn)?;
        let end = new.end();
        // A second end, or data behind the end, is an attack or an error; what came first stands.
        match self.total {
            Some(total) if end > total || !more && end != total => {
                return Err(BadFragment::Dropped);
            }
            None if !more && self.fragments.last().is_some_and(|last| last.end() > end) => {
                return Err(BadFragment::Dropped);
            }
            _ => {}
        }
        let mut new = new;
        let at = self.fragments.partition_point(|f| f.off <= new.off);
        if let Some(before) = at.checked_sub(1).and_then(|i| self.fragments.get(i)) {
            let overlap = before.end().saturating_sub(new.off);
            if overlap >= new.m.pkt_len() {
                return Err(BadFragment::Dropped);
            }
            if overlap > 0 {
                new.m.trim_front(overlap);
                new.off += overlap;
            }
        }
        let mut covered = 0;
        while let Some(after) = self.fragments.get_mut(at) {
            let overlap = end.saturating_sub(after.off);
            if overlap == 0 {
                break;
            }
            if overlap < after.m.pkt_len() {
                after.m.trim_front(overlap);
                after.off += overlap;
                break;
            }
            self.fragments.remove(at);
            covered += 1;
        }
        if !more {
            self.total = Some(end);
        }
        if !header.is_empty() && self.header.is_empty() {
            self.header = header;
        }
        self.fragments.insert(at, new);
        Ok(covered)
    }

    /// RFC 3168 §5.3: CE on one fragment marks the datagram; Not-ECT does not go with ECT or CE.
    fn merge_ecn(&mut self, ecn: u8) -> Result<(), BadFragment> {
        if ecn == IPTOS_ECN_CE {
            if self.ecn == IPTOS_ECN_NOTECT {
                return Err(BadFragment::Dropped);
            }
            self.ecn = IPTOS_ECN_CE;
        }
        if ecn == IPTOS_ECN_NOTECT && self.ecn != IPTOS_ECN_NOTECT {
            return Err(BadFragment::Dropped);
        }
        if ecn != IPTOS_ECN_NOTECT && self.ecn == IPTOS_ECN_NOTECT {
            return Err(BadFragment::Dropped);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        let Some(total) = self.total else {
            return false;
        };
        let mut next = 0;
        for fragment in &self.fragments {
            if fragment.off != next {
                return false;
            }
            next = fragment.end();
        }
        next == total && !self.header.is_empty()
    }

    /// Joins the pieces behind the first one's header.
    fn join(self) -> Option<Mbuf> {
        let Ipq {
            header,
            fragments,
            total,
            ecn,
            ..
        } = self;
        let len = u16::try_from(header.len() + total?).ok()?;
        let mut whole = Mbuf::gethdr(How::NoWait)?;
        whole.reserve_front(MAX_LINKHDR);
        whole.extend_mut(header.len()).copy_from_slice(&header);
        let mut first = true;
        for Fragment { mut m, .. } in fragments {
            if first {
                let flags = m.flags();
                whole.set_flags(whole.flags() | flags & sys::mbuf::MFlags::COPYFLAGS);
                let (from, to) = (m.pkthdr(), whole.pkthdr_mut());
                to.rcvif = from.rcvif;
                to.fibnum = from.fibnum;
                // The hash of a fragment knows no ports: it says nothing about the datagram's flow.
                to.rsstype = sys::mbuf::HashType::NONE;
                first = false;
            }
            m.demote();
            whole.cat(m);
        }
        whole.set_pkt_len(usize::from(len));
        // What interfaces said about the pieces does not hold for the whole; the header was good.
        whole.pkthdr_mut().csum_flags = CsumFlags::IP_CHECKED | CsumFlags::IP_VALID;
        let ip = Ip::parse_mut(whole.data_mut())?;
        ip.ip_len.set(len);
        ip.ip_off.set(0);
        ip.ip_tos = ip.ip_tos & !IPTOS_ECN_MASK | ecn;
        Some(whole)
    }
}
