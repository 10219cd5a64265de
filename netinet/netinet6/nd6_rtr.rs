//! Routers and prefixes of the links: what advertisements and redirects say, and what becomes of it.
//!
//! FreeBSD: sys/netinet6/nd6_rtr.c, nd6.c (nd6_timer), usr.sbin/rtsold (RFC 4861 §6.3, RFC 4862 §5.5, RFC 4191)
//! Differs from FreeBSD: messages change lists only; a thread then brings addresses and routes into line with them, because
//! giving an interface an address may sleep, and input may not. The same thread solicits routers, which FreeBSD leaves to a
//! daemon.

mod advert;
mod upkeep;

pub use advert::{PrefixInfo, nd6_ra_input};
pub use upkeep::nd6_rs_start;

use crate::vnet::InetVnet;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_thread::Pri;
use sys::kern::lock_order::Nd6Class;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::subr_taskqueue::{Task, Taskqueue, TimeoutTask};
use sys::machine::sbinuptime;
use sys::mbuf::IfIndex;
use sys::net::if_llatbl::{LleFlags, LleState};
use sys::net::ifnet::{Ifnet, In6Ifaddr, In6Iff, ND6_INFINITE_LIFETIME};
use sys::time::Sbintime;

/// Routers that are remembered on one interface (`ip6_maxifdefrouters`).
const MAX_ROUTERS: usize = 16;
/// Prefixes that are remembered on one interface (`ip6_maxifprefixes`).
const MAX_PREFIXES: usize = 16;
/// Routers that are remembered as advertising one prefix.
const MAX_ADVERTISERS: usize = 8;
/// Routes that redirects may make (`ip6_maxdynroutes`).
const MAX_REDIRECTS: usize = 4096;

/// How much a router wants to be the default one (RFC 4191 §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouterPreference {
    /// After the others.
    Low,
    /// As routers that don't say.
    Medium,
    /// Before the others.
    High,
}

/// A router that may be the default one (`struct nd_defrouter`).
#[derive(Clone, Debug)]
pub struct DefRouter {
    /// Its link-local address, zone embedded.
    pub rtaddr: Ipv6Addr,
    /// The interface.
    pub ifindex: IfIndex,
    /// Flags of its advertisement (M 0x80, O 0x40).
    pub raflags: u8,
    /// Its preference.
    pub preference: RouterPreference,
    /// Seconds since boot at which it is no router any more.
    pub expire: u32,
    /// Whether the default route leads there.
    pub installed: bool,
}

/// A prefix that routers advertise (`struct nd_prefix`).
#[derive(Clone, Debug)]
pub struct NdPrefix {
    /// The prefix, the bits behind it zero.
    pub prefix: Ipv6Addr,
    /// Its length.
    pub plen: u8,
    /// The interface.
    pub ifindex: IfIndex,
    /// Who has such an address is on the link.
    pub onlink: bool,
    /// Addresses are made from it.
    pub autonomous: bool,
    /// Valid for so many seconds from `lastupdate`.
    pub vltime: u32,
    /// Preferred for so many seconds from `lastupdate`.
    pub pltime: u32,
    /// Seconds since boot at which a router spoke of it last.
    pub lastupdate: u32,
    /// Who advertises it, zones embedded.
    pub advrtrs: Vec<Ipv6Addr>,
    /// None of its routers answers, while those of others do (`NDPRF_DETACHED`).
    pub detached: bool,
    /// An address is to be made from it.
    wants_address: bool,
    /// The route to it is ours.
    routed: bool,
}

impl NdPrefix {
    fn covers(&self, addr: Ipv6Addr) -> bool {
        masked(addr, self.plen) == self.prefix
    }

    /// Whether an address was made from it.
    pub fn made(&self, ia: &In6Ifaddr) -> bool {
        ia.flags().contains(In6Iff::AUTOCONF) && self.covers(ia.ia_addr)
    }

    /// Seconds since boot at which it ends; `None`: never.
    pub fn expire(&self) -> Option<u32> {
        (self.vltime != ND6_INFINITE_LIFETIME).then(|| self.lastupdate.saturating_add(self.vltime))
    }
}

/// A route that a redirect made.
struct Redirected {
    dst: Ipv6Addr,
    /// The router, or the destination if that is on the link.
    via: Ipv6Addr,
    ifindex: IfIndex,
    expire: u32,
}

/// An interface on which routers are being looked for.
struct Soliciting {
    ifindex: IfIndex,
    left: u32,
    due: Sbintime,
}

#[derive(Default)]
struct Lists {
    /// Better ones first, of equals the older.
    routers: Vec<DefRouter>,
    prefixes: Vec<NdPrefix>,
    redirects: Vec<Redirected>,
    soliciting: Vec<Soliciting>,
    /// The default router is to be chosen anew.
    reselect: bool,
}

/// The thread that acts on the lists.
struct Worker {
    task: Arc<Task>,
    timer: TimeoutTask,
    queue: Taskqueue,
}

/// What an instance knows of routers.
pub struct Nd6Rtr {
    lists: Mutex<Lists, Nd6Class>,
    worker: Mutex<Option<Worker>, Nd6Class>,
}

impl Nd6Rtr {
    /// Knows nothing, and has a thread that waits.
    pub(crate) fn new(inet: Weak<InetVnet>) -> Self {
        let task = Task::new(move || {
            if let Some(inet) = inet.upgrade() {
                upkeep::nd6_timer(&inet);
            }
        });
        Self {
            lists: Mutex::new(Lists::default()),
            worker: Mutex::new(Some(Worker {
                timer: TimeoutTask::new(&task),
                queue: Taskqueue::new("nd6_taskq", Pri::PI_SOFT),
                task,
            })),
        }
    }

    /// Something has changed: the thread looks at everything.
    pub(crate) fn kick(&self) {
        if let Some(worker) = &*self.worker.lock() {
            worker.queue.enqueue(&worker.task);
        }
    }

    /// An address has got lifetimes, which are to be watched.
    pub fn lifetimes_changed(&self) {
        self.kick();
    }

    fn kick_after(&self, span: Sbintime) {
        if let Some(worker) = &*self.worker.lock() {
            worker.queue.enqueue_timeout(&worker.timer, span);
        }
    }

    /// Stops the thread.
    pub(crate) fn destroy(&self) {
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            worker.queue.cancel_timeout(&worker.timer);
            drop(worker.queue);
        }
        *self.lists.lock() = Lists::default();
    }

    /// The default routers, better ones first (`ndp -r`).
    pub fn routers(&self) -> Vec<DefRouter> {
        self.lists.lock().routers.clone()
    }

    /// The prefixes (`ndp -p`).
    pub fn prefixes(&self) -> Vec<NdPrefix> {
        self.lists.lock().prefixes.clone()
    }

    /// Whether `addr` is a default router.
    pub(crate) fn is_defrouter(&self, addr: Ipv6Addr) -> bool {
        self.lists.lock().routers.iter().any(|r| r.rtaddr == addr)
    }

    /// A neighbour that said it was a router answers no more, or answers again: another one may be better.
    pub(crate) fn reselect(&self) {
        self.lists.lock().reselect = true;
        self.kick();
    }

    /// The neighbour is no router any more (RFC 4861 §7.2.5).
    pub(crate) fn router_gone(&self, addr: Ipv6Addr) {
        let mut lists = self.lists.lock();
        lists.routers.retain(|router| router.rtaddr != addr);
        lists.reselect = true;
        drop(lists);
        self.kick();
    }

    /// Forgets all routers (`ndp -R`).
    pub fn flush_routers(&self) {
        let mut lists = self.lists.lock();
        lists.routers.clear();
        lists.reselect = true;
        drop(lists);
        self.kick();
    }

    /// Forgets all prefixes (`ndp -P`); addresses made from them stay until they expire.
    pub fn flush_prefixes(&self, inet: &InetVnet) {
        let gone = core::mem::take(&mut self.lists.lock().prefixes);
        for prefix in gone.iter().filter(|prefix| prefix.routed) {
            let _ = inet.rib6.delete(prefix.prefix, prefix.plen);
        }
        self.kick();
    }

    /// Remembers a route that a redirect made, to take it away again; `false` if there are too many.
    pub(crate) fn redirected(
        &self,
        dst: Ipv6Addr,
        via: Ipv6Addr,
        ifp: &Ifnet,
        timeout: u32,
    ) -> bool {
        let expire = uptime().saturating_add(timeout);
        let mut lists = self.lists.lock();
        let full = lists.redirects.len() >= MAX_REDIRECTS;
        let known = lists.redirects.iter_mut().find(|known| known.dst == dst);
        match known {
            Some(known) => (known.via, known.expire) = (via, expire),
            None if full => return false,
            None => lists.redirects.push(Redirected {
                dst,
                via,
                ifindex: ifp.if_index,
                expire,
            }),
        }
        drop(lists);
        self.kick();
        true
    }

    /// An interface goes: what was learnt on it goes with it (`nd6_purge`). Its routes are removed by whoever detaches it.
    pub(crate) fn purge(&self, ifp: &Ifnet) {
        let mut lists = self.lists.lock();
        let here = ifp.if_index;
        lists.routers.retain(|router| router.ifindex != here);
        lists.prefixes.retain(|prefix| prefix.ifindex != here);
        lists.redirects.retain(|route| route.ifindex != here);
        lists.soliciting.retain(|at| at.ifindex != here);
        lists.reselect = true;
    }
}

/// Seconds since boot.
pub fn uptime() -> u32 {
    sbinuptime().as_s() as u32
}

/// The first `plen` bits of an address.
pub fn masked(addr: Ipv6Addr, plen: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(plen.min(128)));
    Ipv6Addr::from_bits(addr.to_bits() & mask.unwrap_or(0))
}

/// Whether a neighbour is known and has not failed to answer (`nd6_is_llinfo_probreach`).
pub fn probably_reachable(ifp: &Ifnet, addr: Ipv6Addr, epoch: &NetEpoch) -> bool {
    let entry = ifp.lltable6().and_then(|llt| llt.lookup(addr, epoch));
    entry.is_some_and(|lle| {
        lle.with(|ln| ln.flags.contains(LleFlags::VALID) && ln.state != LleState::Incomplete)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn prefixes_of_every_length_are_cut() {
        let addr: Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        let cut = |plen| masked(addr, plen).to_string();
        assert_eq!(cut(64), "2001:db8:1:2::");
        assert_eq!(cut(0), "::");
        assert_eq!(cut(128), addr.to_string());
        assert_eq!(cut(33), "2001:db8::");
    }
}
