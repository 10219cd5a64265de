//! Neighbours of an interface: addresses on the link and packets that wait for them.
//!
//! FreeBSD: sys/net/if_llatbl.c, if_llatbl.h
//! The state machines that drive an entry are netinet's `if_ether` and `nd6`; this is table, entry and expiry.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;
use core::net::Ipv4Addr;

use bitflags::bitflags;

use crate::kern::kern_mutex::Mutex;
use crate::kern::kern_timeout::{Callout, CalloutTarget};
use crate::kern::lock_order::{LleClass, LltableClass};
use crate::kern::subr_epoch::{EpochCell, NetEpoch};
use crate::machine::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::mbuf::MbufQueue;
use crate::net::ifnet::Ifnet;
use crate::net::radix::Bits;
use crate::net::route::InAddr;
use crate::time::{Sbintime, Ticks};

bitflags! {
    /// Entry flags (LLE_*).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LleFlags: u16 {
        /// Unlinked.
        const DELETED = 0x1;
        /// Added by hand; never expires.
        const STATIC = 0x2;
        /// Our own address.
        const IFADDR = 0x4;
        /// The link-layer address is valid.
        const VALID = 0x8;
        /// Answered on behalf of another.
        const PUB = 0x20;
        /// In the table.
        const LINKED = 0x40;
        /// Published for a while.
        const PROXY = 0x100;
    }
}

/// State of a dynamic entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LleState {
    /// Asked, no answer yet.
    Incomplete,
    /// Known.
    Reachable,
    /// Known, being asked again before it expires.
    Verify,
    /// Known, but not confirmed of late (IPv6, as the next two).
    Stale,
    /// Used though stale: what uses it may confirm it yet.
    Delay,
    /// Being asked whether it is still there.
    Probe,
    /// Asked in vain; refuses for a while.
    Down,
}

/// What the entry's lock protects.
pub struct LleInner {
    /// State.
    pub state: LleState,
    /// Flags.
    pub flags: LleFlags,
    /// Packets waiting for the address.
    pub la_hold: MbufQueue,
    /// Requests sent since the last answer.
    pub la_asked: u16,
    /// When the entry expires.
    pub la_expire: Ticks,
    /// Link-layer address.
    pub ll_addr: [u8; 6],
    /// The neighbour says that it is a router (IPv6).
    pub ln_router: bool,
}

/// The protocol behind a table.
pub trait LltOps<A: InAddr = Ipv4Addr>: Send + Sync {
    /// The entry's timer ran out.
    fn timer(&self, lle: &Arc<LlEntry<A>>, now: Ticks);
}

/// A neighbour.
#[doc(alias = "llentry")]
pub struct LlEntry<A: InAddr = Ipv4Addr> {
    /// Its protocol address.
    pub r_l3addr: A,
    /// The interface.
    pub ifp: Weak<Ifnet>,
    /// The link-layer address in the lower 48 bits and `USABLE`, or 0: what output reads without a lock.
    resolved: AtomicU64,
    /// Output used the entry since somebody last asked (`r_hittime`).
    used: AtomicBool,
    inner: Mutex<LleInner, LleClass>,
    timer: Callout,
    ops: Weak<dyn LltOps<A>>,
}

const USABLE: u64 = 1 << 48;

impl<A: InAddr> LlEntry<A> {
    /// The link-layer address if it may be used now: one load, no lock.
    #[inline]
    pub fn resolved(&self) -> Option<[u8; 6]> {
        let word = self.resolved.load(Ordering::Acquire);
        if word & USABLE == 0 {
            return None;
        }
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let [a, b, c, d, e, f, ..] = word.to_le_bytes();
        Some([a, b, c, d, e, f])
    }

    /// Whether output used the entry since the last time this was asked.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Runs `f` with the entry locked; what it leaves in `flags` and `ll_addr` is then what output sees.
    #[doc(alias = "LLE_WLOCK")]
    pub fn with<R>(&self, f: impl FnOnce(&mut LleInner) -> R) -> R {
        let mut inner = self.inner.lock();
        let result = f(&mut inner);
        let [a, b, c, d, e, g] = inner.ll_addr;
        let usable =
            inner.flags.contains(LleFlags::VALID) && !inner.flags.contains(LleFlags::DELETED);
        let word = if usable {
            u64::from_le_bytes([a, b, c, d, e, g, 0, 0]) | USABLE
        } else {
            0
        };
        if self.resolved.load(Ordering::Relaxed) != word {
            self.resolved.store(word, Ordering::Release);
        }
        result
    }

    /// Arms the entry's timer.
    pub fn timer_reset(self: &Arc<Self>, after: Sbintime) {
        self.timer.reset(after, self);
    }

    /// When the entry's timer runs out, if it runs.
    pub fn timer_deadline(&self) -> Option<Sbintime> {
        self.timer.deadline()
    }

    /// Stops the entry's timer.
    pub fn timer_stop(&self) {
        self.timer.stop();
    }
}

impl<A: InAddr> CalloutTarget for LlEntry<A> {
    fn callout(self: Arc<Self>, now: Sbintime) {
        if let Some(ops) = self.ops.upgrade() {
            ops.timer(&self, now.ticks());
        }
    }
}

/// Lists that entries are spread over (`LLTBL_HASHTBL_SIZE`).
const BUCKETS: usize = 32;

/// The neighbours of one interface.
#[doc(alias = "lltable")]
pub struct LlTable<A: InAddr = Ipv4Addr> {
    ifp: Weak<Ifnet>,
    ops: Arc<dyn LltOps<A>>,
    lock: Mutex<(), LltableClass>,
    /// Ordered by address.
    buckets: [EpochCell<Vec<Arc<LlEntry<A>>>>; BUCKETS],
}

impl<A: InAddr> LlTable<A> {
    /// An empty table for `ifp`.
    pub fn new(ifp: &Arc<Ifnet>, ops: Arc<dyn LltOps<A>>) -> Arc<Self> {
        Arc::new(LlTable {
            ifp: Arc::downgrade(ifp),
            ops,
            lock: Mutex::new(()),
            buckets: core::array::from_fn(|_| EpochCell::new(Vec::new())),
        })
    }

    fn bucket(&self, addr: A) -> &EpochCell<Vec<Arc<LlEntry<A>>>> {
        &self.buckets[usize::from(addr.bits().lower()) % BUCKETS]
    }

    /// Finds an entry; no lock.
    #[doc(alias = "lla_lookup")]
    #[inline]
    pub fn lookup<'e>(&'e self, addr: A, epoch: &'e NetEpoch) -> Option<&'e Arc<LlEntry<A>>> {
        let list = self.bucket(addr).load(epoch);
        let at = list.binary_search_by_key(&addr, |lle| lle.r_l3addr).ok()?;
        list.get(at)
    }

    /// Finds or makes an entry: incomplete, nothing asked, nothing held.
    #[doc(alias = "lla_create")]
    pub fn lookup_or_create(&self, addr: A) -> Arc<LlEntry<A>> {
        let _lock = self.lock.lock();
        let bucket = self.bucket(addr);
        let mut list = bucket.load(&NetEpoch::enter()).clone();
        match list.binary_search_by_key(&addr, |lle| lle.r_l3addr) {
            Ok(at) => list[at].clone(),
            Err(at) => {
                let lle = self.make(addr);
                list.insert(at, lle.clone());
                bucket.replace(Box::new(list));
                lle
            }
        }
    }

    fn make(&self, addr: A) -> Arc<LlEntry<A>> {
        Arc::new(LlEntry {
            r_l3addr: addr,
            ifp: self.ifp.clone(),
            resolved: AtomicU64::new(0),
            used: AtomicBool::new(false),
            inner: Mutex::new(LleInner {
                state: LleState::Incomplete,
                flags: LleFlags::LINKED,
                la_hold: MbufQueue::new(),
                la_asked: 0,
                la_expire: Ticks(0),
                ll_addr: [0; 6],
                ln_router: false,
            }),
            timer: Callout::new(),
            ops: Arc::downgrade(&self.ops),
        })
    }

    /// Removes an entry, frees what it holds and stops its timer. `false`: somebody else did.
    #[doc(alias = "lltable_unlink_entry")]
    pub fn delete(&self, lle: &Arc<LlEntry<A>>) -> bool {
        let removed = {
            let _lock = self.lock.lock();
            let bucket = self.bucket(lle.r_l3addr);
            let mut list = bucket.load(&NetEpoch::enter()).clone();
            let before = list.len();
            list.retain(|there| !Arc::ptr_eq(there, lle));
            let removed = list.len() < before;
            if removed {
                bucket.replace(Box::new(list));
            }
            removed
        };
        if removed {
            lle.timer_stop();
            let held = lle.with(|inner| {
                inner.flags.insert(LleFlags::DELETED);
                inner.flags.remove(LleFlags::LINKED | LleFlags::VALID);
                mem::take(&mut inner.la_hold)
            });
            drop(held);
        }
        removed
    }

    /// All entries, by address.
    #[doc(alias = "lltable_foreach_lle")]
    pub fn entries(&self) -> Vec<Arc<LlEntry<A>>> {
        let epoch = NetEpoch::enter();
        let mut all: Vec<Arc<LlEntry<A>>> = self
            .buckets
            .iter()
            .flat_map(|b| b.load(&epoch).iter().cloned())
            .collect();
        all.sort_by_key(|lle| lle.r_l3addr);
        all
    }

    /// Removes all entries (static ones too if asked).
    #[doc(alias = "lltable_purge_entries")]
    pub fn flush(&self, static_too: bool) {
        for lle in self.entries() {
            if static_too || !lle.with(|inner| inner.flags.contains(LleFlags::STATIC)) {
                self.delete(&lle);
            }
        }
    }
}
