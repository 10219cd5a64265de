//! Connections that a SYN has asked for and no ACK has confirmed: a small record each, no socket.
//!
//! FreeBSD: sys/netinet/tcp_syncache.c
//! Differs from FreeBSD: a record is copied out of its bucket before anything is sent or created from it, so that no
//! bucket is locked while output runs.
//! Not carried over: pausing the whole cache after an overflow; a bucket that has overflowed takes cookies for a while.

mod cookie;

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::hash::Hasher;
use core::sync::atomic::{AtomicU32, Ordering};

use siphasher::sip::SipHasher24;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::Syncache as SyncacheClass;
use sys::kern::subr_epoch::NetEpoch;
use sys::net::vnet::Vnet;
use sys::socketvar::Socket;
use sys::sysctl::ReadOnly;
use sys::time::{Sbintime, Ticks};
use sys::vm::uma::{How, TypedZone, ZBox};

use crate::in_pcb::{In6pFlags, InConninfo, hash_addr};
use crate::netinet6::ip6_output::ip6_randomflowlabel;
use crate::tcp::{
    TCP_MAX_WINSHIFT, TCP_MAXWIN, TCP_MSS, TcpFlags, TcpHeader, TcpOpt, TcpOptFlags, TfoCookie,
};
use crate::tcp_ecn::{
    EcnOffer, tcp_ecn_agree, tcp_ecn_syncache_add, tcp_ecn_syncache_respond,
    tcp_ecn_syncache_socket,
};
use crate::tcp_fastopen::{Checked, Pending, TfoRole};
use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
use crate::tcp_md5::tcp_md5_input;
use crate::tcp_seq::TcpSeq;
use crate::tcp_subr::{
    Conn, Envelope, Locked, Marks, TcpInpcb, TcpVnet, random_key, send_bare, tcp_mss, tcp_mssopt,
    tcp_newtcpcb, tcp_rcvseqinit, tcp_sendseqinit, tcp_state_change,
};
use crate::tcp_syncache::cookie::{Offer, SYNCOOKIE_LIFETIME, Secrets};
use crate::tcp_timer::{TcpTimer, tcp_backoff};
use crate::tcp_var::{OwnTimes, TcpTunables, Tcpcb, Tf};
use crate::vnet::{InetVnet, NetCx};

/// Buckets (`net.inet.tcp.syncache.hashsize`).
const TCP_SYNCACHE_HASHSIZE: usize = 512;
/// Records in a bucket (`net.inet.tcp.syncache.bucketlimit`).
const TCP_SYNCACHE_BUCKETLIMIT: usize = 30;

/// A connection half made.
#[derive(Clone, Copy)]
#[doc(alias = "syncache")]
struct Entry {
    inc: InConninfo,
    /// UDP port of the peer, 0 without UDP.
    port: u16,
    iss: TcpSeq,
    irs: TcpSeq,
    /// Our timestamp offset.
    tsoff: u32,
    /// Timestamp of the peer to echo.
    tsreflect: u32,
    /// When the SYN|ACK is sent next.
    rxttime: Ticks,
    /// Window we offered.
    wnd: u16,
    peer_mss: Option<u16>,
    /// How many SYN|ACKs were sent.
    rxmits: u8,
    /// Shifts, if the peer offered scaling: the peer's and ours.
    scale: Option<(u8, u8)>,
    timestamps: bool,
    sack: bool,
    /// Cookie of Fast Open for the first SYN|ACK; empty: none.
    tfo: TfoCookie,
    /// The peer signs, and so do we.
    signed: bool,
    noopt: bool,
    /// The ECN that has been agreed on.
    ecn: EcnOffer,
    unreach: bool,
    ttl: u8,
    tos: u8,
    /// What the listener says of packets of IPv6.
    in6p_flags: In6pFlags,
    /// Flow label, 0 in IPv4.
    flow: u32,
}

/// The records of one hash value, oldest first.
struct Bucket {
    entries: Vec<ZBox<Entry>>,
    armed: bool,
    fires: Ticks,
    /// When a record last gave way to another: its ACK, if it comes, is known by its cookie.
    last_overflow: Option<Ticks>,
}

/// A bucket with its lock and callout.
#[doc(alias = "syncache_head")]
struct Head {
    bucket: Mutex<Bucket, SyncacheClass>,
    callout: Callout,
    inet: Weak<InetVnet>,
}

/// The SYN cache of a stack instance.
pub struct Syncache {
    heads: Box<[Arc<Head>]>,
    zone: TypedZone<Entry>,
    key: [u8; 16],
    secrets: Secrets,
    count: Arc<AtomicU32>,
}

/// What an ACK for a listening socket turned out to be.
pub enum Expanded {
    /// It completes a handshake: the new connection, not locked.
    Connection(Arc<TcpInpcb>),
    /// There was a record, but no socket to be had.
    NoSocket,
    /// It fits no record: to be answered with RST.
    Bad,
    /// It fits a record but not its window or time: dropped.
    Ignore,
}

impl Syncache {
    /// An empty cache.
    #[doc(alias = "syncache_init")]
    pub fn new(vnet: &Arc<Vnet>, inet: Weak<InetVnet>) -> Arc<Syncache> {
        let count = Arc::new(AtomicU32::new(0));
        let fixed = [
            (
                "hashsize",
                "Size of TCP syncache hashtable",
                TCP_SYNCACHE_HASHSIZE,
            ),
            (
                "bucketlimit",
                "Per-bucket hash limit for syncache",
                TCP_SYNCACHE_BUCKETLIMIT,
            ),
            ("cachelimit", "Overall entry limit for syncache", CACHELIMIT),
        ];
        for (name, words, value) in fixed {
            let leaf = ReadOnly::new(words, move || value.to_string());
            vnet.sysctl.register(
                &alloc::format!("net.inet.tcp.syncache.{name}"),
                Arc::new(leaf),
            );
        }
        let shown = count.clone();
        let leaf = ReadOnly::new("Current number of entries in syncache", move || {
            shown.load(Ordering::Relaxed).to_string()
        });
        vnet.sysctl
            .register("net.inet.tcp.syncache.count", Arc::new(leaf));
        let head = |_| {
            Arc::new(Head {
                bucket: Mutex::new(Bucket {
                    // All it ever holds, so that no SYN waits for an allocation of it.
                    entries: Vec::with_capacity(TCP_SYNCACHE_BUCKETLIMIT),
                    armed: false,
                    fires: Ticks(0),
                    last_overflow: None,
                }),
                callout: Callout::new(),
                inet: inet.clone(),
            })
        };
        Arc::new(Syncache {
            heads: (0..TCP_SYNCACHE_HASHSIZE).map(head).collect(),
            zone: TypedZone::new("syncache"),
            key: random_key(),
            secrets: Secrets::new(),
            count,
        })
    }

    /// Forgets all records and stops their callouts.
    pub fn destroy(&self) {
        for head in &self.heads {
            head.callout.stop();
            let mut bucket = head.bucket.lock();
            self.count
                .fetch_sub(bucket.entries.len() as u32, Ordering::Relaxed);
            bucket.entries.clear();
        }
    }

    /// Records there are.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Bytes that the records take, with the room kept for more.
    pub fn memory(&self) -> usize {
        let zone = self.zone.stats();
        let places = TCP_SYNCACHE_BUCKETLIMIT * size_of::<ZBox<Entry>>();
        zone.size * (zone.used + zone.free) as usize
            + self.heads.len() * (size_of::<Head>() + places)
    }

    /// The connections half made, for `netstat`.
    #[doc(alias = "syncache_pcblist")]
    pub fn pcblist(&self) -> Vec<InConninfo> {
        let mut list = Vec::new();
        for head in &self.heads {
            list.extend(head.bucket.lock().entries.iter().map(|entry| entry.inc));
        }
        list
    }

    fn head(&self, inc: &InConninfo) -> &Arc<Head> {
        // Keyed, so that nobody can fill one bucket on purpose.
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hash_addr(&mut hasher, inc.inc_faddr);
        hash_addr(&mut hasher, inc.inc_laddr);
        hasher.write(&inc.inc_fport.to_be_bytes());
        hasher.write(&inc.inc_lport.to_be_bytes());
        &self.heads[hasher.finish() as usize % TCP_SYNCACHE_HASHSIZE]
    }

    fn remove(&self, bucket: &mut Bucket, at: usize) -> Entry {
        self.count.fetch_sub(1, Ordering::Relaxed);
        *bucket.entries.remove(at)
    }

    /// Answers a SYN for the listening socket, and remembers it. With a cookie of Fast Open it makes the connection at once:
    /// the segment is then for that.
    #[doc(alias = "syncache_add")]
    #[doc(alias = "syncache_tfo_expand")]
    pub fn add(&self, l: &Listener<'_>, inc: InConninfo, seg: &Segment) -> Option<Arc<TcpInpcb>> {
        let (th, to) = (&seg.th, &seg.to);
        let cx = l.cx;
        let vt = l.vt;
        if !l.signature_good(seg) {
            return None;
        }
        let fast_open = l.fast_open(&inc, to);
        let head = self.head(&inc);
        let mut entry = {
            let mut bucket = head.bucket.lock();
            if let Some(known) = bucket.entries.iter_mut().find(|entry| entry.inc == inc) {
                if known.port != seg.port {
                    // Another's, from the same address.
                    return None;
                }
                vt.stat.tcps_sc_dupsyn.inc();
                // The peer sends its SYN again: the answer was lost. Its clock has moved on.
                if known.timestamps && to.to_flags.contains(TcpOptFlags::TS) {
                    known.tsreflect = to.to_tsval;
                }
                if tcp_ecn_syncache_add(&vt.tun, th.th_flags, seg.tos) == EcnOffer::None {
                    known.ecn = EcnOffer::None;
                }
                known.rxmits = 0;
                let again = **known;
                drop(bucket);
                if respond(cx, vt, &again, TcpFlags::SYN | TcpFlags::ACK) {
                    self.note_sent(vt, head, cx.now, &inc);
                }
                return None;
            }
            l.new_entry(inc, th, to, (seg.port, seg.tos))
        };
        if vt.tun.syncookies.get() {
            entry.iss = self.cookie(l, &entry);
            vt.stat.tcps_sc_sendcookie.inc();
        }
        if let Some((pending, checked)) = fast_open {
            let answer = checked.answer.unwrap_or_default();
            if checked.valid {
                return open_fast(l, &entry, pending, answer);
            }
            entry.tfo = answer;
        }
        if !respond(cx, vt, &entry, TcpFlags::SYN | TcpFlags::ACK) {
            vt.stat.tcps_sc_dropped.inc();
            return None;
        }
        entry.tfo = TfoCookie::default();
        vt.stat.tcps_sndacks.inc();
        entry.rxmits = 0;
        if !vt.tun.syncookies.get() || !vt.tun.syncookies_only.get() {
            self.insert(vt, head, cx.now, entry);
        }
        None
    }

    /// The initial sequence number that tells what is in `entry`.
    fn cookie(&self, l: &Listener<'_>, entry: &Entry) -> TcpSeq {
        // No larger than we would send, no smaller than we accept.
        let ours = tcp_mssopt(l.cx, entry.inc.inc_faddr, entry.port, entry.in6p_flags);
        let least = l.vt.tun.minmss.get().min(u32::from(u16::MAX)) as u16;
        let offer = Offer {
            mss: entry
                .peer_mss
                .unwrap_or(TCP_MSS as u16)
                .max(least)
                .min(ours),
            wscale: entry.scale.map(|(theirs, _)| theirs),
            sack: entry.sack,
        };
        self.secrets
            .generate(&entry.inc, entry.irs, &offer, l.cx.now)
    }

    /// Counts an answer and sets the time of the next.
    fn note_sent(&self, vt: &TcpVnet, head: &Arc<Head>, now: Ticks, inc: &InConninfo) {
        vt.stat.tcps_sndacks.inc();
        let mut bucket = head.bucket.lock();
        let Some(at) = bucket.entries.iter().position(|entry| entry.inc == *inc) else {
            return;
        };
        timeout(vt, &mut bucket, at, now);
        arm(head, &mut bucket, now);
    }

    #[doc(alias = "syncache_insert")]
    fn insert(&self, vt: &TcpVnet, head: &Arc<Head>, now: Ticks, entry: Entry) {
        let mut bucket = head.bucket.lock();
        if bucket.entries.iter().any(|known| known.inc == entry.inc) {
            return;
        }
        if bucket.entries.len() >= TCP_SYNCACHE_BUCKETLIMIT {
            // The oldest gives way; its cookie is as good.
            self.remove(&mut bucket, 0);
            bucket.last_overflow = Some(now);
            vt.stat.tcps_sc_bucketoverflow.inc();
        }
        let entry = self.zone.alloc(entry, How::NoWait).or_else(|entry| {
            vt.stat.tcps_sc_zonefail.inc();
            bucket.last_overflow = Some(now);
            if !bucket.entries.is_empty() {
                self.remove(&mut bucket, 0);
            }
            self.zone.alloc(entry, How::NoWait)
        });
        let Ok(entry) = entry else {
            // What has been sent is a cookie, unless there are to be none.
            return;
        };
        bucket.entries.push(entry);
        let at = bucket.entries.len() - 1;
        timeout(vt, &mut bucket, at, now);
        arm(head, &mut bucket, now);
        drop(bucket);
        self.count.fetch_add(1, Ordering::Relaxed);
        vt.stat.tcps_sc_added.inc();
    }

    /// A RST for a connection half made (RFC 5961 §3.2).
    #[doc(alias = "syncache_chkrst")]
    pub fn chkrst(&self, cx: &NetCx<'_>, vt: &TcpVnet, inc: &InConninfo, seg: &Segment) {
        let th = &seg.th;
        let head = self.head(inc);
        let mut bucket = head.bucket.lock();
        let Some(at) = bucket.entries.iter().position(|entry| entry.inc == *inc) else {
            return;
        };
        let entry = *bucket.entries[at];
        if entry.port != seg.port {
            return;
        }
        let next = entry.irs + 1;
        let in_window =
            th.th_seq == next || (th.th_seq.geq(next) && th.th_seq.lt(next + u32::from(entry.wnd)));
        if !in_window {
            return;
        }
        if th.th_seq == next || vt.tun.insecure_rst.get() {
            self.remove(&mut bucket, at);
            vt.stat.tcps_sc_reset.inc();
        } else {
            drop(bucket);
            vt.stat.tcps_badrst.inc();
            respond(cx, vt, &entry, TcpFlags::ACK);
        }
    }

    /// Forgets a connection half made: something impossible came for it.
    #[doc(alias = "syncache_badack")]
    pub fn badack(&self, vt: &TcpVnet, inc: &InConninfo, port: u16) {
        let head = self.head(inc);
        let mut bucket = head.bucket.lock();
        let is = |entry: &ZBox<Entry>| entry.inc == *inc && entry.port == port;
        if let Some(at) = bucket.entries.iter().position(is) {
            self.remove(&mut bucket, at);
            vt.stat.tcps_sc_badack.inc();
        }
    }

    /// An ICMP error about our SYN|ACK: believed the second time, when three answers went unheard.
    #[doc(alias = "syncache_unreach")]
    pub fn unreach(&self, vt: &TcpVnet, inc: &InConninfo, seq: TcpSeq, port: u16) {
        let head = self.head(inc);
        let mut bucket = head.bucket.lock();
        let Some(at) = bucket.entries.iter().position(|entry| entry.inc == *inc) else {
            return;
        };
        let entry = &mut bucket.entries[at];
        if entry.iss != seq || entry.port != port {
            return;
        }
        if !entry.unreach || entry.rxmits < 3 + 1 {
            entry.unreach = true;
            return;
        }
        self.remove(&mut bucket, at);
        vt.stat.tcps_sc_unreach.inc();
    }

    /// An ACK for a listening socket: makes the connection if it completes a handshake.
    #[doc(alias = "syncache_expand")]
    pub fn expand(&self, l: &Listener<'_>, inc: &InConninfo, seg: &Segment) -> Expanded {
        let (th, to) = (&seg.th, &seg.to);
        let vt = l.vt;
        let head = self.head(inc);
        let entry = {
            let mut bucket = head.bucket.lock();
            let known = bucket.entries.iter().position(|entry| entry.inc == *inc);
            let Some(at) = known.filter(|_| !cookies_only(&vt.tun)) else {
                let overflow = bucket.last_overflow;
                drop(bucket);
                return self.expand_cookie(l, inc, seg, overflow);
            };
            let entry = *bucket.entries[at];
            if entry.port != seg.port || th.th_ack != entry.iss + 1 {
                return Expanded::Bad;
            }
            let in_window =
                th.th_seq.gt(entry.irs) && th.th_seq.leq(entry.irs + u32::from(entry.wnd).max(1));
            if !in_window {
                drop(bucket);
                respond(l.cx, vt, &entry, TcpFlags::ACK);
                return Expanded::Ignore;
            }
            if entry.signed {
                if tcp_md5_input(vt, seg).is_err() {
                    return Expanded::Ignore;
                }
            } else if to.to_flags.contains(TcpOptFlags::SIGNATURE) {
                vt.stat.tcps_sig_err_sigopt.inc();
                return Expanded::Ignore;
            }
            if entry.timestamps {
                let has = to.to_flags.contains(TcpOptFlags::TS);
                if !has && !vt.tun.tolerate_missing_ts.get() {
                    return Expanded::Ignore;
                }
                if has && (to.to_tsval.wrapping_sub(entry.tsreflect) as i32) < 0 {
                    return Expanded::Ignore;
                }
            }
            self.remove(&mut bucket, at)
        };
        complete(l, &entry)
    }

    /// An ACK for which there is no record: makes the connection if it answers a cookie.
    fn expand_cookie(
        &self,
        l: &Listener<'_>,
        inc: &InConninfo,
        seg: &Segment,
        overflow: Option<Ticks>,
    ) -> Expanded {
        let (th, to) = (&seg.th, &seg.to);
        let (vt, tun, now) = (l.vt, &l.vt.tun, l.cx.now);
        // Without overflow there would be a record.
        let lost = overflow.is_some_and(|at| now - at < SYNCOOKIE_LIFETIME as i32);
        if !tun.syncookies.get() || !(lost || tun.syncookies_only.get()) {
            return Expanded::Bad;
        }
        let (irs, iss) = (th.th_seq - 1, th.th_ack - 1);
        let Some(offer) = self.secrets.lookup(inc, irs, iss, now) else {
            return Expanded::Bad;
        };
        if !l.signature_good(seg) {
            return Expanded::Ignore;
        }
        vt.stat.tcps_sc_recvcookie.inc();
        // As if its SYN had come now.
        let mut syn = TcpOpt {
            to_flags: TcpOptFlags::MSS,
            to_mss: offer.mss,
            ..TcpOpt::default()
        };
        if let Some(wscale) = offer.wscale {
            syn.to_flags |= TcpOptFlags::SCALE;
            syn.to_wscale = wscale;
        }
        if offer.sack {
            syn.to_flags |= TcpOptFlags::SACKPERM;
        }
        syn.to_flags |= to.to_flags & TcpOptFlags::SIGNATURE;
        if to.to_flags.contains(TcpOptFlags::TS) {
            syn.to_flags |= TcpOptFlags::TS;
            syn.to_tsval = to.to_tsval;
        }
        let header = TcpHeader {
            th_seq: irs,
            th_flags: TcpFlags::SYN,
            ..*th
        };
        let mut entry = l.new_entry(*inc, &header, &syn, (seg.port, 0));
        entry.iss = iss;
        complete(l, &entry)
    }
}

/// Whether no records are kept.
fn cookies_only(tun: &TcpTunables) -> bool {
    tun.syncookies.get() && tun.syncookies_only.get()
}

/// Makes the connection of a handshake that is complete.
fn complete(l: &Listener<'_>, entry: &Entry) -> Expanded {
    let stat = &l.vt.stat;
    match syncache_socket(l, entry) {
        Some(inp) => {
            stat.tcps_sc_completed.inc();
            Expanded::Connection(inp)
        }
        None => {
            stat.tcps_sc_aborted.inc();
            Expanded::NoSocket
        }
    }
}

/// Records there can be in all.
const CACHELIMIT: usize = TCP_SYNCACHE_HASHSIZE * TCP_SYNCACHE_BUCKETLIMIT;

/// Sets when `bucket.entries[at]` answers again.
#[doc(alias = "syncache_timeout")]
fn timeout(vt: &TcpVnet, bucket: &mut Bucket, at: usize, now: Ticks) {
    let entry = &mut bucket.entries[at];
    let after = vt
        .tun
        .rexmit_initial
        .get()
        .saturating_mul(tcp_backoff(entry.rxmits));
    entry.rxttime = now + after;
    entry.rxmits = entry.rxmits.saturating_add(1);
}

/// Arms the bucket's callout for its earliest record.
fn arm(head: &Arc<Head>, bucket: &mut Bucket, now: Ticks) {
    let Some(first) = bucket
        .entries
        .iter()
        .map(|entry| entry.rxttime)
        .reduce(|a, b| if a - b < 0 { a } else { b })
    else {
        return;
    };
    if bucket.armed && bucket.fires - first <= 0 {
        return;
    }
    bucket.armed = true;
    bucket.fires = first;
    let after = (first - now).max(0);
    head.callout
        .reset(Sbintime::from_ms(i64::from(after)), head);
}

impl CalloutTarget for Head {
    /// Answers again, or gives up (`syncache_timer`).
    fn callout(self: Arc<Self>, _now: Sbintime) {
        let Some(inet) = self.inet.upgrade() else {
            return;
        };
        let epoch = NetEpoch::enter();
        let cx = NetCx::new(&inet, &epoch);
        let vt = &inet.tcp;
        let mut due = [None; TCP_SYNCACHE_BUCKETLIMIT];
        {
            let mut bucket = self.bucket.lock();
            bucket.armed = false;
            let limit = vt.tun.syncache_rexmtlimit.get();
            let before = bucket.entries.len();
            bucket
                .entries
                .retain(|entry| cx.now - entry.rxttime < 0 || u32::from(entry.rxmits) <= limit);
            let stale = before - bucket.entries.len();
            vt.stat.tcps_sc_stale.add(stale as u64);
            vt.syncache.count.fetch_sub(stale as u32, Ordering::Relaxed);
            let mut slots = due.iter_mut();
            for at in 0..bucket.entries.len() {
                if cx.now - bucket.entries[at].rxttime < 0 {
                    continue;
                }
                if let Some(slot) = slots.next() {
                    *slot = Some(*bucket.entries[at]);
                }
                timeout(vt, &mut bucket, at, cx.now);
                let entry = &mut bucket.entries[at];
                // Someone on the way may not like ECN.
                if u32::from(entry.rxmits) > vt.tun.ecn_maxretries.get() {
                    entry.ecn = EcnOffer::None;
                }
            }
            arm(&self, &mut bucket, cx.now);
        }
        for entry in due.iter().flatten() {
            if respond(&cx, vt, entry, TcpFlags::SYN | TcpFlags::ACK) {
                vt.stat.tcps_sndacks.inc();
                vt.stat.tcps_sc_retransmitted.inc();
            } else {
                vt.stat.tcps_sc_dropped.inc();
            }
        }
    }
}

/// Sends the answer to a SYN, or a challenge ACK for it.
#[doc(alias = "syncache_respond")]
fn respond(cx: &NetCx<'_>, vt: &TcpVnet, entry: &Entry, flags: TcpFlags) -> bool {
    let syn = flags.contains(TcpFlags::SYN);
    let mut to = TcpOpt::default();
    if !entry.noopt {
        if syn {
            to.to_flags |= TcpOptFlags::MSS;
            to.to_mss = tcp_mssopt(cx, entry.inc.inc_faddr, entry.port, entry.in6p_flags)
                .max(vt.tun.minmss.get().min(65535) as u16);
            if let Some((_, ours)) = entry.scale {
                to.to_flags |= TcpOptFlags::SCALE;
                to.to_wscale = ours;
            }
            if entry.sack {
                to.to_flags |= TcpOptFlags::SACKPERM;
            }
            if !entry.tfo.is_empty() {
                to.to_flags |= TcpOptFlags::FASTOPEN;
                to.to_tfo = entry.tfo;
            }
        }
        if entry.signed {
            to.to_flags |= TcpOptFlags::SIGNATURE;
        }
        if entry.timestamps {
            to.to_flags |= TcpOptFlags::TS;
            to.to_tsval = cx.now.0.wrapping_add(entry.tsoff);
            to.to_tsecr = entry.tsreflect;
        }
    }
    let mut flags = flags;
    if syn {
        flags |= tcp_ecn_syncache_respond(&vt.stat, entry.ecn);
    }
    let header = TcpHeader {
        th_sport: entry.inc.inc_lport,
        th_dport: entry.inc.inc_fport,
        th_seq: if syn { entry.iss } else { entry.iss + 1 },
        th_ack: entry.irs + 1,
        th_flags: flags,
        // Only the window of a SYN is not scaled.
        th_win: if syn {
            entry.wnd
        } else {
            entry.wnd >> entry.scale.map_or(0, |(_, ours)| ours)
        },
        ..TcpHeader::default()
    };
    let place = Envelope {
        src: entry.inc.inc_laddr,
        dst: entry.inc.inc_faddr,
        ttl: entry.ttl,
        tos: entry.tos,
        flow: entry.flow,
        options: None,
        route: None,
        route6: None,
        udp: vt.tunnel.ports(entry.port),
    };
    send_bare(cx, &place, header, &to)
}

/// What the cache needs of a listening socket; a copy, so that the listener need not stay locked.
pub struct Listener<'a> {
    /// Instance, epoch, time.
    pub cx: &'a NetCx<'a>,
    /// TCP's part of the instance.
    pub vt: &'a TcpVnet,
    /// The socket.
    pub so: Arc<Socket>,
    flags: Tf,
    own: Option<OwnTimes>,
    window: u16,
    /// Of connections by IPv4 and by IPv6.
    marks: [Marks; 2],
    in6p_flags: In6pFlags,
    /// Connections of Fast Open not complete yet, if the socket has it.
    pending: Option<Arc<AtomicU32>>,
}

impl<'a> Listener<'a> {
    /// Reads off a listening connection what its children inherit.
    pub fn new(c: &Conn<'_>, cx: &'a NetCx<'a>, tp: &Tcpcb) -> Listener<'a> {
        let space = c.so.rcv.lock().space().max(0) as u32;
        Listener {
            cx,
            vt: &cx.vnet.tcp,
            so: c.so.clone(),
            flags: tp.t_flags,
            own: tp.t_own.as_deref().copied(),
            window: space.min(TCP_MAXWIN) as u16,
            marks: [false, true].map(|v6| Marks::of_family(c.hdr, v6)),
            in6p_flags: c.hdr.in6p_flags,
            pending: match &tp.t_tfo {
                TfoRole::Listener(pending) if tp.t_flags.contains(Tf::FASTOPEN) => {
                    Some(pending.clone())
                }
                TfoRole::Listener(_) | TfoRole::None | TfoRole::Child(_) => None,
            },
        }
    }

    /// What Fast Open says to a SYN that asks for it: nothing if half of the queue are connections of Fast Open that nobody
    /// has confirmed.
    fn fast_open(&self, inc: &InConninfo, to: &TcpOpt) -> Option<(Pending, Checked)> {
        let counter = self.pending.as_ref()?;
        let server = &self.vt.fastopen_server;
        if !to.to_flags.contains(TcpOptFlags::FASTOPEN) || !server.enabled() {
            return None;
        }
        let (pending, before) = Pending::begin(counter);
        let (_, _, qlimit) = self.so.listen_queue();
        (before <= qlimit / 2).then(|| (pending, server.check(inc, &to.to_tfo, self.cx.now)))
    }

    /// Whether a segment that may begin a connection is signed as the listener wants it: what is signed must be so rightly,
    /// and whoever shares a secret with us must sign.
    fn signature_good(&self, seg: &Segment) -> bool {
        let signed = seg.to.to_flags.contains(TcpOptFlags::SIGNATURE);
        if !self.flags.contains(Tf::SIGNATURE) {
            if signed {
                self.vt.stat.tcps_sig_err_sigopt.inc();
            }
            return !signed;
        }
        match signed {
            true => tcp_md5_input(self.vt, seg).is_ok(),
            false => {
                let shared = self.vt.keydb.lookup(seg.src, seg.dst).is_some();
                if shared {
                    self.vt.stat.tcps_sig_err_nosigopt.inc();
                }
                !shared
            }
        }
    }

    fn new_entry(
        &self,
        inc: InConninfo,
        th: &TcpHeader,
        to: &TcpOpt,
        (port, tos): (u16, u8),
    ) -> Entry {
        let tun = &self.vt.tun;
        let noopt = self.flags.contains(Tf::NOOPT);
        let extensions = tun.rfc1323.get() && !noopt;
        let timestamps = extensions && to.to_flags.contains(TcpOptFlags::TS);
        let scaled = extensions && to.to_flags.contains(TcpOptFlags::SCALE);
        let isn = &self.vt.isn;
        let marks = self.marks[usize::from(inc.is_ipv6())];
        Entry {
            inc,
            port,
            iss: isn.new_isn(self.cx.now, &inc, tun.isn_reseed_interval.get()),
            irs: th.th_seq,
            tsoff: if timestamps {
                isn.new_ts_offset(tun.ts_offset_per_conn.get(), &inc)
            } else {
                0
            },
            tsreflect: if timestamps { to.to_tsval } else { 0 },
            rxttime: self.cx.now,
            wnd: self.window,
            peer_mss: to.to_flags.contains(TcpOptFlags::MSS).then_some(to.to_mss),
            rxmits: 0,
            scale: scaled.then(|| (to.to_wscale, receive_scale())),
            timestamps,
            sack: tun.sack_enable.get() && !noopt && to.to_flags.contains(TcpOptFlags::SACKPERM),
            tfo: TfoCookie::default(),
            signed: self.flags.contains(Tf::SIGNATURE)
                && to.to_flags.contains(TcpOptFlags::SIGNATURE),
            noopt,
            ecn: tcp_ecn_syncache_add(tun, th.th_flags, tos),
            unreach: false,
            ttl: marks.ttl,
            tos: marks.tos,
            in6p_flags: self.in6p_flags & In6pFlags::USE_MIN_MTU,
            flow: if inc.is_ipv6() && self.in6p_flags.contains(In6pFlags::AUTOFLOWLABEL) {
                ip6_randomflowlabel()
            } else {
                0
            },
        }
    }
}

/// The smallest shift with which the largest socket buffer can be offered.
pub fn receive_scale() -> u8 {
    let sb_max = sys::kern::kern_ipc::sb_limits().sb_max;
    (0..TCP_MAX_WINSHIFT)
        .find(|&shift| TCP_MAXWIN << shift >= sb_max)
        .unwrap_or(TCP_MAX_WINSHIFT)
}

/// Makes socket and control block of a connection whose handshake is complete but for the ACK at hand.
fn syncache_socket(l: &Listener<'_>, entry: &Entry) -> Option<Arc<TcpInpcb>> {
    let (cx, vt) = (l.cx, l.vt);
    let Some(so) = l.so.solisten_clone() else {
        vt.stat.tcps_listendrop.inc();
        return None;
    };
    let inp = tcp_newtcpcb(cx.vnet, &so, cx.now);
    so.set_pcb(inp.clone());
    // Before the block is locked: making room in the queue may reset another connection.
    let queued = so.solisten_enqueue(false);
    let entered = {
        let mut locked = Locked::new(cx, &inp);
        let entered = queued && !locked.dropped() && locked.enter(entry.inc);
        locked
            .hdr()
            .set_marks(entry.inc.is_ipv6(), entry.ttl, entry.tos);
        locked.hdr().inp_flow = entry.flow;
        locked.hdr().in6p_flags |= entry.in6p_flags;
        match locked.split() {
            Some((c, tp)) if entered => {
                set_up(l, &c, tp, entry);
                true
            }
            Some((c, tp)) => {
                crate::tcp_subr::tcp_close(&c, tp);
                false
            }
            None => false,
        }
    };
    if entered {
        return Some(inp);
    }
    // Nobody will accept it: as if the program had closed it.
    sys::kern::uipc_socket::soabort(&so);
    None
}

/// Makes the connection of a SYN with a good cookie: it can be accepted, and takes and sends data, before its peer has
/// confirmed it.
#[doc(alias = "syncache_tfo_expand")]
fn open_fast(
    l: &Listener<'_>,
    entry: &Entry,
    pending: Pending,
    answer: TfoCookie,
) -> Option<Arc<TcpInpcb>> {
    let Some(inp) = syncache_socket(l, entry) else {
        l.vt.stat.tcps_sc_aborted.inc();
        return None;
    };
    l.vt.stat.tcps_sc_completed.inc();
    let mut locked = Locked::new(l.cx, &inp);
    if let Some((c, tp)) = locked.split() {
        tp.t_flags |= Tf::FASTOPEN;
        tp.t_tfo = TfoRole::Child(Box::new((pending, answer)));
        // The SYN|ACK is the connection's own to send.
        tp.snd_max = tp.iss;
        tp.snd_nxt = tp.iss;
        tcp_ecn_agree(tp, entry.ecn);
        c.so.soisconnected();
    }
    drop(locked);
    Some(inp)
}

/// Brings the new connection to where the handshake stands.
fn set_up(l: &Listener<'_>, c: &Conn<'_>, tp: &mut Tcpcb, entry: &Entry) {
    tcp_state_change(c, tp, TcpState::SynReceived);
    tp.t_port = entry.port;
    tp.iss = entry.iss;
    tp.irs = entry.irs;
    tcp_rcvseqinit(tp);
    tcp_sendseqinit(tp);
    tp.snd_wl1 = entry.irs;
    tp.snd_max = entry.iss + 1;
    tp.snd_nxt = entry.iss + 1;
    tp.rcv_wnd = u32::from(entry.wnd);
    tp.rcv_adv += tp.rcv_wnd;
    tp.last_ack_sent = tp.rcv_nxt;
    tp.t_flags = l.flags & (Tf::NOPUSH | Tf::NODELAY | Tf::LRD);
    if entry.noopt {
        tp.t_flags |= Tf::NOOPT;
    } else {
        if let Some((theirs, ours)) = entry.scale {
            tp.t_flags |= Tf::REQ_SCALE | Tf::RCVD_SCALE;
            tp.snd_scale = theirs;
            tp.request_r_scale = ours;
        }
        if entry.timestamps {
            tp.t_flags |= Tf::REQ_TSTMP | Tf::RCVD_TSTMP;
            tp.ts_recent = entry.tsreflect;
            tp.ts_recent_age = c.net.now;
            tp.ts_offset = entry.tsoff;
        }
        if entry.sack {
            tp.t_flags |= Tf::SACK_PERMIT;
        }
        if entry.signed {
            tp.t_flags |= Tf::SIGNATURE;
        }
    }
    tcp_ecn_syncache_socket(tp, entry.ecn);
    tcp_mss(c, tp, entry.peer_mss);
    // RFC 5681 §3.1: after a lost SYN|ACK begin with one segment. `rxmits` counts the first one too.
    if entry.rxmits > 1 {
        tp.snd_cwnd = 1;
    }
    tp.t_own = l.own.map(Box::new);
    tp.t_timers
        .activate(TcpTimer::Keep, c.net.now, tp.keepinit(&l.vt.tun));
    l.vt.stat.tcps_accepts.inc();
}
