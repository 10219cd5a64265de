//! Places where filters may look at packets.
//!
//! FreeBSD: sys/net/pfil.c

use alloc::sync::Arc;

use crate::kern::subr_epoch::NetEpoch;
use crate::mbuf::Mbuf;
use crate::net::ifnet::Ifnet;

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
    /// Goes on, perhaps changed.
    Pass(Mbuf),
    /// Was freed.
    Dropped,
    /// Was taken.
    Consumed,
}

/// A filter.
pub trait PfilHook: Send + Sync {
    /// Looks at one packet.
    fn filter(&self, epoch: &NetEpoch, ifp: &Ifnet, dir: PfilDir, m: Mbuf) -> PfilVerdict;
}

/// A point of the stack with its filters.
pub struct PfilHead {}

impl PfilHead {
    /// A point without filters.
    pub fn new(_name: &'static str) -> PfilHead {
        todo!()
    }
    /// Whether no filter is linked: the only cost of an unused point.
    pub fn is_empty(&self) -> bool {
        todo!()
    }
    /// Links a filter, last for In, first for Out.
    pub fn link(&self, _hook: Arc<dyn PfilHook>, _input: bool, _output: bool) {
        todo!()
    }
    /// Unlinks a filter.
    pub fn unlink(&self, _hook: &Arc<dyn PfilHook>) {
        todo!()
    }
    /// Runs the filters.
    pub fn run(&self, _epoch: &NetEpoch, _ifp: &Ifnet, _dir: PfilDir, m: Mbuf) -> PfilVerdict {
        PfilVerdict::Pass(m)
    }
}
