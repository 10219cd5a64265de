//! What neighbour discovery keeps for each interface.
//!
//! FreeBSD: sys/netinet6/nd6.h (struct nd_ifinfo), in6_var.h (`ND6_IFF_*`)
//! It stands beside the interface, as in FreeBSD (`if_afdata`), because next hops read the link's MTU here.

use bitflags::bitflags;

use crate::machine::atomic::{AtomicU32, Ordering};

bitflags! {
    /// Flags of an interface (`ND6_IFF_*`), as `ifconfig` shows them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Nd6Iff: u32 {
        /// Asks neighbours whether they are still there.
        const PERFORMNUD = 0x1;
        /// Hears router advertisements.
        const ACCEPT_RTADV = 0x2;
        /// Its addresses are preferred as sources.
        const PREFER_SOURCE = 0x4;
        /// Speaks no IPv6.
        const IFDISABLED = 0x8;
        /// Makes itself a link-local address.
        const AUTO_LINKLOCAL = 0x20;
        /// Takes no default routers from advertisements.
        const NO_RADR = 0x40;
        /// Does not prefer its own addresses as sources.
        const NO_PREFER_IFACE = 0x80;
        /// Does not look for duplicates of its addresses.
        const NO_DAD = 0x100;
    }
}

/// Values of one interface, some of which routers announce.
pub struct NdIfinfo {
    flags: AtomicU32,
    /// MTU that a router announced; 0: none did.
    linkmtu: AtomicU32,
    /// Mean time for which a neighbour counts as reachable, ms.
    basereachable: AtomicU32,
    /// Time between solicitations, ms.
    retrans: AtomicU32,
    /// Hop limit of our packets; 0: the instance's default.
    chlim: AtomicU32,
}

/// How long a confirmation holds, ms, until a router says otherwise (RFC 4861 §10: REACHABLE_TIME).
const REACHABLE_TIME: u32 = 30_000;
/// Time between solicitations, ms (RETRANS_TIMER).
const RETRANS_TIMER: u32 = 1000;

impl NdIfinfo {
    /// The values of RFC 4861 §10; no flags.
    pub(super) fn new() -> Self {
        Self {
            flags: AtomicU32::new(0),
            linkmtu: AtomicU32::new(0),
            basereachable: AtomicU32::new(REACHABLE_TIME),
            retrans: AtomicU32::new(RETRANS_TIMER),
            chlim: AtomicU32::new(0),
        }
    }

    /// The flags.
    pub fn flags(&self) -> Nd6Iff {
        Nd6Iff::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// Changes the flags.
    pub fn update_flags(&self, set: Nd6Iff, clear: Nd6Iff) {
        self.flags.fetch_or(set.bits(), Ordering::Relaxed);
        self.flags.fetch_and(!clear.bits(), Ordering::Relaxed);
    }

    /// The MTU that a router announced.
    pub fn linkmtu(&self) -> Option<u32> {
        match self.linkmtu.load(Ordering::Relaxed) {
            0 => None,
            mtu => Some(mtu),
        }
    }

    /// Takes an MTU from a router.
    pub fn set_linkmtu(&self, mtu: u32) {
        self.linkmtu.store(mtu, Ordering::Relaxed);
    }

    /// Mean time for which a neighbour counts as reachable, ms.
    pub fn basereachable(&self) -> u32 {
        self.basereachable.load(Ordering::Relaxed)
    }

    /// Takes that time, ms.
    pub fn set_basereachable(&self, ms: u32) {
        self.basereachable.store(ms, Ordering::Relaxed);
    }

    /// Time between solicitations, ms.
    pub fn retrans(&self) -> u32 {
        self.retrans.load(Ordering::Relaxed)
    }

    /// Takes that time, ms.
    pub fn set_retrans(&self, ms: u32) {
        self.retrans.store(ms, Ordering::Relaxed);
    }

    /// The hop limit that a router announced.
    pub fn chlim(&self) -> Option<u8> {
        match self.chlim.load(Ordering::Relaxed) {
            0 => None,
            hops => Some(hops as u8),
        }
    }

    /// Takes a hop limit from a router.
    pub fn set_chlim(&self, hops: u8) {
        self.chlim.store(u32::from(hops), Ordering::Relaxed);
    }

    /// What routers announced is forgotten.
    pub fn reset(&self) {
        self.set_linkmtu(0);
        self.set_basereachable(REACHABLE_TIME);
        self.set_retrans(RETRANS_TIMER);
        self.set_chlim(0);
    }
}
