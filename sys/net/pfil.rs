//! Places where filters may look at packets.
//!
//! FreeBSD: sys/net/pfil.c
//! Not carried over: the rmlock around the lists of FreeBSD 8. Packets come in a section of the network epoch, in which reading a list
//! costs one load; a read lock for each would only add to that.
//! Differs from FreeBSD: a filter owns the packet while it looks, and says in its verdict what became of it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bitflags::bitflags;

use crate::kern::kern_mutex::Mutex;
use crate::kern::lock_order::Pfil;
use crate::kern::subr_epoch::{EpochCell, NetEpoch};
use crate::machine::atomic::{AtomicBool, Ordering};
use crate::mbuf::Mbuf;
use crate::net::ifnet::Ifnet;

bitflags! {
    /// Which packets a filter wants to see.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PfilWhen: u32 {
        /// Those received.
        const IN = 0x10000;
        /// Those to be sent.
        const OUT = 0x20000;
    }
}

/// Which way the packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PfilDir {
    /// Received.
    In,
    /// To be sent.
    Out,
}

/// What a filter did.
pub enum PfilVerdict {
    /// The packet goes on, perhaps changed.
    Pass(Mbuf),
    /// It was freed.
    Dropped,
    /// It was taken.
    Consumed,
}

/// A filter.
pub trait PfilHook: Send + Sync {
    /// Looks at one packet.
    fn filter(&self, epoch: &NetEpoch, ifp: &Ifnet, dir: PfilDir, m: Mbuf) -> PfilVerdict;
}

type Hooks = Vec<Arc<dyn PfilHook>>;

/// A point of the stack with its filters.
pub struct PfilHead {
    name: &'static str,
    linked_in: AtomicBool,
    linked_out: AtomicBool,
    lock: Mutex<(), Pfil>,
    input: EpochCell<Hooks>,
    output: EpochCell<Hooks>,
}

impl PfilHead {
    /// A point without filters.
    #[doc(alias = "pfil_head_register")]
    pub fn new(name: &'static str) -> PfilHead {
        PfilHead {
            name,
            linked_in: AtomicBool::new(false),
            linked_out: AtomicBool::new(false),
            lock: Mutex::new(()),
            input: EpochCell::new(Vec::new()),
            output: EpochCell::new(Vec::new()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether no filter wants packets of this direction: all that an unused point costs.
    #[doc(alias = "PFIL_HOOKED_IN")]
    #[inline]
    pub fn is_empty(&self, dir: PfilDir) -> bool {
        match dir {
            PfilDir::In => !self.linked_in.load(Ordering::Relaxed),
            PfilDir::Out => !self.linked_out.load(Ordering::Relaxed),
        }
    }

    /// Links a filter: last on input, first on output, so that filters see a packet's two ways mirrored.
    #[doc(alias = "pfil_link")]
    pub fn link(&self, hook: Arc<dyn PfilHook>, when: PfilWhen) {
        self.change(|input, output| {
            if when.contains(PfilWhen::IN) {
                input.push(hook.clone());
            }
            if when.contains(PfilWhen::OUT) {
                output.insert(0, hook);
            }
        });
    }

    /// Unlinks a filter.
    #[doc(alias = "pfil_unlink")]
    pub fn unlink(&self, hook: &Arc<dyn PfilHook>) {
        self.change(|input, output| {
            input.retain(|there| !Arc::ptr_eq(there, hook));
            output.retain(|there| !Arc::ptr_eq(there, hook));
        });
    }

    fn change(&self, edit: impl FnOnce(&mut Hooks, &mut Hooks)) {
        let _lock = self.lock.lock();
        let epoch = NetEpoch::enter();
        let mut input = self.input.load(&epoch).clone();
        let mut output = self.output.load(&epoch).clone();
        edit(&mut input, &mut output);
        self.linked_in.store(!input.is_empty(), Ordering::Relaxed);
        self.linked_out.store(!output.is_empty(), Ordering::Relaxed);
        self.input.replace(Box::new(input));
        self.output.replace(Box::new(output));
    }

    /// Runs the filters in turn until one keeps or drops the packet.
    #[doc(alias = "pfil_run_hooks")]
    #[inline]
    pub fn run(&self, epoch: &NetEpoch, ifp: &Ifnet, dir: PfilDir, m: Mbuf) -> PfilVerdict {
        if self.is_empty(dir) {
            return PfilVerdict::Pass(m);
        }
        let hooks = match dir {
            PfilDir::In => &self.input,
            PfilDir::Out => &self.output,
        };
        let mut m = m;
        for hook in hooks.load(epoch) {
            match hook.filter(epoch, ifp, dir, m) {
                PfilVerdict::Pass(passed) => m = passed,
                gone => return gone,
            }
        }
        PfilVerdict::Pass(m)
    }
}
