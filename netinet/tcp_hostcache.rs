//! What was learned about a host from earlier connections: path MTU, round trip, threshold of slow start.
//!
//! FreeBSD: sys/netinet/tcp_hostcache.c
//! Differs from FreeBSD: `cwnd`, `sendpipe` and `recvpipe` are not kept: nothing there has read them since 9.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use core::hash::Hasher;
use core::net::IpAddr;

use siphasher::sip::SipHasher24;
use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::Leaf;
use sys::machine;
use sys::machine::atomic::{AtomicBool, AtomicU32, Ordering};
use sys::net::vnet::Vnet;
use sys::sysctl::{Procedure, ReadOnly, Tunable};
use sys::time::{Sbintime, Ticks};

use crate::in_pcb::hash_addr;
use crate::tcp_subr::random_key;
use crate::tcp_var::{TCP_RTT_SHIFT, TCP_RTTVAR_SHIFT, TcpStat};

/// Buckets (`net.inet.tcp.hostcache.hashsize`).
const TCP_HOSTCACHE_HASHSIZE: usize = 512;
/// Hosts in a bucket (`net.inet.tcp.hostcache.bucketlimit`).
const TCP_HOSTCACHE_BUCKETLIMIT: usize = 30;
/// Hosts in all.
const CACHELIMIT: usize = TCP_HOSTCACHE_HASHSIZE * TCP_HOSTCACHE_BUCKETLIMIT;
/// Seconds that a host is remembered.
const TCP_HOSTCACHE_EXPIRE: u32 = 60 * 60;
/// Seconds between two looks for hosts to forget.
const TCP_HOSTCACHE_PRUNE: u32 = 5 * 60;

/// What is known of a host; 0 is nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "hc_metrics_lite")]
pub struct Metrics {
    /// Largest packet of the path.
    pub rmx_mtu: u32,
    /// Where slow start ends, in bytes.
    pub rmx_ssthresh: u32,
    /// `t_srtt`: ms with 5 fraction bits.
    pub rmx_rtt: i32,
    /// `t_rttvar`: ms with 4 fraction bits.
    pub rmx_rttvar: i32,
}

/// A host.
#[derive(Clone, Copy)]
#[doc(alias = "hc_metrics")]
struct Entry {
    addr: IpAddr,
    metrics: Metrics,
    /// When it is forgotten, if nothing asks for it or changes it before.
    expire: Ticks,
    hits: u32,
    updates: u32,
}

/// The cache of a stack instance. In a bucket what was used last stands first.
#[doc(alias = "tcp_hostcache")]
pub struct Hostcache {
    buckets: Box<[Mutex<VecDeque<Entry>, Leaf>]>,
    key: [u8; 16],
    count: AtomicU32,
    enabled: Arc<Tunable<bool>>,
    expire: Arc<Tunable<u32>>,
    prune: Arc<Tunable<u32>>,
    /// The next look for hosts to forget also forgets all.
    purge_all: Arc<Tunable<bool>>,
    pruner: Callout,
    pruning: AtomicBool,
}

impl Hostcache {
    /// An empty cache with its variables.
    #[doc(alias = "tcp_hc_init")]
    pub fn new(vnet: &Arc<Vnet>) -> Arc<Hostcache> {
        let tunable = |value: u32, description| {
            Arc::new(Tunable::new(
                value,
                1,
                i64::from(i32::MAX) / 1000,
                description,
            ))
        };
        let cache = Arc::new(Hostcache {
            buckets: (0..TCP_HOSTCACHE_HASHSIZE)
                .map(|_| Mutex::new(VecDeque::new()))
                .collect(),
            key: random_key(),
            count: AtomicU32::new(0),
            enabled: Arc::new(Tunable::new(true, 0, 1, "Enable the TCP hostcache")),
            expire: tunable(TCP_HOSTCACHE_EXPIRE, "Expire time of TCP hostcache entries"),
            prune: tunable(TCP_HOSTCACHE_PRUNE, "Time between purge runs"),
            purge_all: Arc::new(Tunable::new(
                false,
                0,
                1,
                "Expire all entries on next purge run",
            )),
            pruner: Callout::new(),
            pruning: AtomicBool::new(false),
        });
        cache.register(vnet);
        cache
    }

    fn register(self: &Arc<Self>, vnet: &Arc<Vnet>) {
        let name = |leaf: &str| format!("net.inet.tcp.hostcache.{leaf}");
        let tree = &vnet.sysctl;
        tree.register(&name("enable"), self.enabled.clone());
        tree.register(&name("expire"), self.expire.clone());
        tree.register(&name("prune"), self.prune.clone());
        tree.register(&name("purge"), self.purge_all.clone());
        let fixed = [
            (
                "hashsize",
                "Size of TCP hostcache hashtable",
                TCP_HOSTCACHE_HASHSIZE,
            ),
            (
                "bucketlimit",
                "Per-bucket hash limit for hostcache",
                TCP_HOSTCACHE_BUCKETLIMIT,
            ),
            (
                "cachelimit",
                "Overall entry limit for hostcache",
                CACHELIMIT,
            ),
        ];
        for (leaf, words, value) in fixed {
            let node = ReadOnly::new(words, move || value.to_string());
            tree.register(&name(leaf), Arc::new(node));
        }
        let weak = |read: fn(&Hostcache) -> String| {
            let this: Weak<Hostcache> = Arc::downgrade(self);
            move || {
                this.upgrade()
                    .map_or_else(String::new, |cache| read(&cache))
            }
        };
        let count = ReadOnly::new(
            "Current number of entries in hostcache",
            weak(|cache| cache.count().to_string()),
        );
        tree.register(&name("count"), Arc::new(count));
        let list = ReadOnly::new("List of all hostcache entries", weak(Hostcache::list)).skipped();
        tree.register(&name("list"), Arc::new(list));
        let this = Arc::downgrade(self);
        let purgenow = Procedure::new(
            "Immediately purge all entries",
            || "0".to_string(),
            move |value: &str| {
                let value: i32 = value.parse().map_err(|_| Errno::EINVAL)?;
                if value != 0
                    && let Some(cache) = this.upgrade()
                {
                    cache.purge(true);
                }
                Ok(())
            },
        );
        tree.register(&name("purgenow"), Arc::new(purgenow));
    }

    /// Stops the timer and forgets everything.
    #[doc(alias = "tcp_hc_destroy")]
    pub fn destroy(&self) {
        self.pruner.stop();
        self.purge(true);
    }

    /// Hosts there are.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    fn bucket(&self, addr: IpAddr) -> &Mutex<VecDeque<Entry>, Leaf> {
        // Keyed, so that nobody can fill one bucket on purpose.
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hash_addr(&mut hasher, addr);
        &self.buckets[hasher.finish() as usize % TCP_HOSTCACHE_HASHSIZE]
    }

    /// What is known of a host.
    #[doc(alias = "tcp_hc_get")]
    pub fn get(&self, addr: IpAddr, now: Ticks) -> Option<Metrics> {
        if !self.enabled.get() || self.count() == 0 {
            return None;
        }
        let mut bucket = self.bucket(addr).lock();
        let at = bucket.iter().position(|entry| entry.addr == addr)?;
        let mut entry = bucket.remove(at)?;
        entry.hits = entry.hits.saturating_add(1);
        entry.expire = now + self.expire_ms();
        bucket.push_front(entry);
        Some(entry.metrics)
    }

    /// Largest packet of the path to a host, if it is known.
    #[doc(alias = "tcp_hc_getmtu")]
    pub fn mtu(&self, addr: IpAddr, now: Ticks) -> Option<u32> {
        let mtu = self.get(addr, now)?.rmx_mtu;
        (mtu != 0).then_some(mtu)
    }

    /// The path to a host takes packets of `mtu` bytes only.
    #[doc(alias = "tcp_hc_updatemtu")]
    pub fn update_mtu(self: &Arc<Self>, stat: &TcpStat, addr: IpAddr, mtu: u32, now: Ticks) {
        self.change(stat, addr, now, |metrics| metrics.rmx_mtu = mtu);
    }

    /// Takes over what a connection has learned: the mean of what was known and what is new.
    #[doc(alias = "tcp_hc_update")]
    pub fn update(self: &Arc<Self>, stat: &TcpStat, addr: IpAddr, new: &Metrics, now: Ticks) {
        let mean = |old: &mut i32, new: i32| {
            if new != 0 {
                *old = if *old == 0 {
                    new
                } else {
                    (*old >> 1) + (new >> 1)
                };
            }
        };
        self.change(stat, addr, now, |old| {
            mean(&mut old.rmx_rtt, new.rmx_rtt);
            mean(&mut old.rmx_rttvar, new.rmx_rttvar);
            if new.rmx_ssthresh != 0 {
                old.rmx_ssthresh = match old.rmx_ssthresh {
                    0 => new.rmx_ssthresh,
                    known => known / 2 + new.rmx_ssthresh / 2,
                };
            }
        });
        if new.rmx_rtt != 0 {
            stat.tcps_cachedrtt.inc();
        }
        if new.rmx_rttvar != 0 {
            stat.tcps_cachedrttvar.inc();
        }
        if new.rmx_ssthresh != 0 {
            stat.tcps_cachedssthresh.inc();
        }
    }

    fn change(
        self: &Arc<Self>,
        stat: &TcpStat,
        addr: IpAddr,
        now: Ticks,
        change: impl FnOnce(&mut Metrics),
    ) {
        if !self.enabled.get() {
            return;
        }
        let mut bucket = self.bucket(addr).lock();
        let known = bucket.iter().position(|entry| entry.addr == addr);
        let mut entry = match known.and_then(|at| bucket.remove(at)) {
            Some(entry) => entry,
            None => {
                let full = bucket.len() >= TCP_HOSTCACHE_BUCKETLIMIT;
                if full || self.count() as usize >= CACHELIMIT {
                    // What was not used for longest gives way.
                    if bucket.pop_back().is_none() {
                        return;
                    }
                    self.count.fetch_sub(1, Ordering::Relaxed);
                    stat.tcps_hc_bucketoverflow.inc();
                }
                self.count.fetch_add(1, Ordering::Relaxed);
                stat.tcps_hc_added.inc();
                Entry {
                    addr,
                    metrics: Metrics::default(),
                    expire: now,
                    hits: 0,
                    updates: 0,
                }
            }
        };
        change(&mut entry.metrics);
        entry.updates = entry.updates.saturating_add(1);
        entry.expire = now + self.expire_ms();
        bucket.push_front(entry);
        drop(bucket);
        if !self.pruning.swap(true, Ordering::Relaxed) {
            self.arm();
        }
    }

    fn expire_ms(&self) -> u32 {
        self.expire.get().saturating_mul(1000)
    }

    fn arm(self: &Arc<Self>) {
        let wait = Sbintime::from_s(i64::from(self.prune.get()));
        self.pruner.reset(wait, self);
    }

    /// Forgets what has expired, or all.
    #[doc(alias = "tcp_hc_purge_internal")]
    fn purge(&self, all: bool) {
        let now = machine::ticks();
        for bucket in &self.buckets {
            let mut bucket = bucket.lock();
            let before = bucket.len();
            bucket.retain(|entry| !all && entry.expire - now > 0);
            let gone = (before - bucket.len()) as u32;
            self.count.fetch_sub(gone, Ordering::Relaxed);
        }
    }

    /// The table as `sysctl net.inet.tcp.hostcache.list` prints it.
    #[doc(alias = "sysctl_tcp_hc_list")]
    fn list(&self) -> String {
        let now = machine::ticks();
        let mut out = String::from(
            "\nIP address        MTU  SSTRESH      RTT   RTTVAR     HITS      UPD  EXP\n",
        );
        for bucket in &self.buckets {
            for entry in bucket.lock().iter() {
                let m = &entry.metrics;
                out += &format!(
                    "{:<15} {:>5} {:>8} {:>6}ms {:>6}ms {:>8} {:>8} {:>4}\n",
                    entry.addr.to_string(),
                    m.rmx_mtu,
                    m.rmx_ssthresh,
                    m.rmx_rtt >> TCP_RTT_SHIFT,
                    m.rmx_rttvar >> TCP_RTTVAR_SHIFT,
                    entry.hits,
                    entry.updates,
                    ((entry.expire - now) / 1000).max(0),
                );
            }
        }
        out
    }
}

impl CalloutTarget for Hostcache {
    /// Looks for hosts to forget, as long as there are any.
    fn callout(self: Arc<Self>, _now: Sbintime) {
        let all = self.purge_all.get();
        self.purge_all.set(false);
        self.purge(all);
        if self.count() > 0 {
            self.arm();
        } else {
            self.pruning.store(false, Ordering::Relaxed);
            // Somebody may have come in between and found the timer still set.
            if self.count() > 0 && !self.pruning.swap(true, Ordering::Relaxed) {
                self.arm();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use sys::machine::hosted::{Machine, pump};
    use sys::machine::sbinuptime;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn with_cache(body: impl FnOnce(&Arc<Vnet>, &Arc<Hostcache>, &TcpStat)) {
        Machine::builder().quiet().run(|| {
            let vnet = Vnet::new("hostcache");
            let cache = Hostcache::new(&vnet);
            body(&vnet, &cache, &TcpStat::new());
            cache.destroy();
        });
    }

    #[test]
    fn a_host_is_remembered_with_the_mean_of_what_was_seen() {
        with_cache(|vnet, cache, stat| {
            let now = machine::ticks();
            let seen = |rtt| Metrics {
                rmx_rtt: rtt,
                rmx_ssthresh: 8000,
                ..Metrics::default()
            };
            cache.update(stat, HOST, &seen(100), now);
            cache.update(stat, HOST, &seen(200), now);
            cache.update_mtu(stat, HOST, 1400, now);
            let known = cache.get(HOST, now).expect("a known host");
            assert_eq!((known.rmx_rtt, known.rmx_ssthresh), (150, 8000));
            assert_eq!(cache.mtu(HOST, now), Some(1400));
            assert_eq!(cache.get(Ipv4Addr::LOCALHOST.into(), now), None);
            assert_eq!(
                vnet.sysctl.get("net.inet.tcp.hostcache.count").as_deref(),
                Some("1")
            );
            vnet.sysctl
                .set("net.inet.tcp.hostcache.purgenow", "1")
                .expect("a variable");
            assert_eq!((cache.get(HOST, now), cache.count()), (None, 0));
        });
    }

    #[test]
    fn a_host_is_forgotten_after_an_hour_without_use() {
        with_cache(|_, cache, stat| {
            cache.update_mtu(stat, HOST, 1400, machine::ticks());
            pump(sbinuptime() + Sbintime::from_s(1800));
            assert!(cache.mtu(HOST, machine::ticks()).is_some());
            pump(sbinuptime() + Sbintime::from_s(3300));
            assert_eq!(cache.count(), 1, "asked for half an hour after the start");
            pump(sbinuptime() + Sbintime::from_s(700));
            assert_eq!(cache.count(), 0);
            // The timer starts again with the next host.
            cache.update_mtu(stat, HOST, 1400, machine::ticks());
            pump(sbinuptime() + Sbintime::from_s(4000));
            assert_eq!(cache.count(), 0);
        });
    }

    #[test]
    fn a_full_bucket_drops_what_was_not_used_for_longest() {
        with_cache(|_, cache, stat| {
            let now = machine::ticks();
            for number in 0..40_000_u32 {
                cache.update_mtu(stat, Ipv4Addr::from_bits(number).into(), 1400, now);
            }
            assert!(cache.count() as usize <= CACHELIMIT);
            assert!(stat.tcps_hc_bucketoverflow.fetch() > 0);
            assert!(cache.mtu(Ipv4Addr::from_bits(39_999).into(), now).is_some());
        });
    }
}
