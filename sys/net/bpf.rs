//! Tap points: consumers that see every frame of an interface.
//!
//! FreeBSD: sys/net/bpf.c (bpf_mtap)
//! Not carried over: /dev/bpf and the filter machine; a consumer is a trait object that gets every frame.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::kern::kern_mutex::Mutex;
use crate::kern::lock_order::Bpf;
use crate::kern::subr_epoch::{EpochCell, NetEpoch};
use crate::machine::atomic::{AtomicBool, Ordering};
use crate::mbuf::Mbuf;
use crate::net::ifnet::Ifnet;

/// Which way a tapped frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfDir {
    /// Received.
    In,
    /// Sent.
    Out,
}

/// Sees frames; must not block.
pub trait BpfTap: Send + Sync {
    /// One frame: from the link header on, on the loopback from the IP header on.
    fn tap(&self, ifp: &Ifnet, dir: BpfDir, m: &Mbuf);
}

/// The consumers of one interface.
pub struct BpfIf {
    present: AtomicBool,
    lock: Mutex<(), Bpf>,
    taps: EpochCell<Vec<Arc<dyn BpfTap>>>,
}

impl BpfIf {
    /// No consumer.
    pub fn new() -> BpfIf {
        BpfIf {
            present: AtomicBool::new(false),
            lock: Mutex::new(()),
            taps: EpochCell::new(Vec::new()),
        }
    }

    /// Whether anyone listens: all that an interface without consumers pays.
    #[doc(alias = "bpf_peers_present")]
    #[inline]
    pub fn peers_present(&self) -> bool {
        self.present.load(Ordering::Relaxed)
    }

    /// Adds a consumer.
    pub fn attach(&self, tap: Arc<dyn BpfTap>) {
        self.change(|taps| taps.push(tap));
    }

    /// Removes a consumer.
    pub fn detach(&self, tap: &Arc<dyn BpfTap>) {
        self.change(|taps| taps.retain(|there| !Arc::ptr_eq(there, tap)));
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Arc<dyn BpfTap>>)) {
        let _lock = self.lock.lock();
        let epoch = NetEpoch::enter();
        let mut taps = self.taps.load(&epoch).clone();
        edit(&mut taps);
        self.present.store(!taps.is_empty(), Ordering::Relaxed);
        self.taps.replace(Box::new(taps));
    }
}

impl Default for BpfIf {
    fn default() -> Self {
        Self::new()
    }
}

/// Shows a frame to the interface's consumers.
#[inline]
pub fn bpf_mtap(ifp: &Ifnet, epoch: &NetEpoch, dir: BpfDir, m: &Mbuf) {
    if ifp.if_bpf.peers_present() {
        for tap in ifp.if_bpf.taps.load(epoch) {
            tap.tap(ifp, dir, m);
        }
    }
}
