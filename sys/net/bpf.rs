//! Tap points: consumers that see every frame of an interface.
//!
//! FreeBSD: sys/net/bpf.c
//! Not carried over: /dev/bpf and the filter machine; a consumer is a trait object.

use alloc::sync::Arc;

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
    /// One frame, link header included (loopback: 4-byte family first is not added; the packet starts at IP).
    fn tap(&self, ifp: &Ifnet, dir: BpfDir, m: &Mbuf);
}

/// The consumers of one interface.
pub struct BpfIf {}

impl BpfIf {
    /// No consumer.
    pub fn new() -> BpfIf {
        todo!()
    }
    /// Whether anyone listens.
    pub fn peers_present(&self) -> bool {
        todo!()
    }
    /// Adds a consumer.
    pub fn attach(&self, _tap: Arc<dyn BpfTap>) {
        todo!()
    }
    /// Removes a consumer.
    pub fn detach(&self, _tap: &Arc<dyn BpfTap>) {
        todo!()
    }
}

impl Default for BpfIf {
    fn default() -> Self {
        Self::new()
    }
}
