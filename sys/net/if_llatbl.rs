//! Neighbours of an interface: addresses on the link and packets that wait for them.
//!
//! FreeBSD: sys/net/if_llatbl.c, if_llatbl.h
//! The ARP state machine that drives an entry is netinet's `if_ether`; this is table, entry and expiry.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use bitflags::bitflags;

use crate::kern::subr_epoch::NetEpoch;
use crate::mbuf::MbufQueue;
use crate::net::ifnet::Ifnet;
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
}

/// The protocol behind a table.
pub trait LltOps: Send + Sync {
    /// The entry's timer ran out.
    fn timer(&self, lle: &Arc<LlEntry>, now: Ticks);
}

/// A neighbour.
pub struct LlEntry {
    /// Its protocol address.
    pub r_l3addr: Ipv4Addr,
    /// The interface.
    pub ifp: Weak<Ifnet>,
}

impl LlEntry {
    /// The link-layer address if it may be used now: one load, no lock.
    pub fn resolved(&self) -> Option<[u8; 6]> {
        todo!()
    }
    /// Locks the entry (`let mut lle = entry.lock();`).
    pub fn with<R>(&self, _f: impl FnOnce(&mut LleInner) -> R) -> R {
        todo!()
    }
    /// Arms the entry's timer.
    pub fn timer_reset(self: &Arc<Self>, _after: Sbintime) {
        todo!()
    }
    /// Stops the entry's timer.
    pub fn timer_stop(&self) -> bool {
        todo!()
    }
}

/// The neighbours of one interface.
pub struct LlTable {}

impl LlTable {
    /// An empty table for `ifp`.
    pub fn new(_ifp: &Arc<Ifnet>, _ops: Arc<dyn LltOps>) -> Arc<LlTable> {
        todo!()
    }
    /// Finds an entry; no lock.
    pub fn lookup<'e>(&self, _addr: Ipv4Addr, _epoch: &'e NetEpoch) -> Option<&'e Arc<LlEntry>> {
        todo!()
    }
    /// Finds or makes an entry (INCOMPLETE, not yet asked).
    pub fn lookup_or_create(&self, _addr: Ipv4Addr) -> Arc<LlEntry> {
        todo!()
    }
    /// Removes an entry, frees what it holds and stops its timer.
    pub fn delete(&self, _lle: &Arc<LlEntry>) -> bool {
        todo!()
    }
    /// All entries.
    pub fn entries(&self) -> Vec<Arc<LlEntry>> {
        todo!()
    }
    /// Removes all entries (static ones too if asked).
    pub fn flush(&self, _static_too: bool) {
        todo!()
    }
}
