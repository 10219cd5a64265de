//! Takes packets from interfaces to protocols: at once, or by a thread.
//!
//! FreeBSD: sys/net/netisr.c

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::Errno;
use crate::kern::subr_epoch::NetEpoch;
use crate::mbuf::{Mbuf, MbufQueue};
use crate::net::vnet::Vnet;

/// Protocols netisr knows, with FreeBSD's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NetisrProto {
    /// IPv4.
    Ip = 1,
    /// IGMP to user space.
    Igmp = 2,
    /// Routing socket.
    Route = 3,
    /// ARP.
    Arp = 4,
    /// Ethernet itself.
    Ether = 5,
    /// IPv6.
    Ip6 = 6,
    /// epair.
    Epair = 8,
}

/// How a protocol's packets are spread over CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetisrPolicy {
    /// By receiving interface.
    Source = 1,
    /// By flow id.
    Flow = 2,
    /// By the protocol's own function.
    Cpu = 3,
}

/// Whether a packet is handled at once or queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetisrDispatch {
    /// As `net.isr.dispatch` says.
    Default = 0,
    /// Always queued.
    Deferred = 1,
    /// At once if the chosen CPU is this one and nothing waits.
    Hybrid = 2,
    /// Always at once.
    Direct = 3,
}

/// What a protocol registers.
#[derive(Clone, Copy, Debug)]
pub struct NetisrInfo {
    /// Name in netstat -Q.
    pub name: &'static str,
    /// Number.
    pub proto: NetisrProto,
    /// Spread.
    pub policy: NetisrPolicy,
    /// When.
    pub dispatch: NetisrDispatch,
}

/// A protocol's input function.
pub trait NetisrHandler: Send + Sync {
    /// One packet, link header removed.
    fn input(&self, vnet: &Arc<Vnet>, epoch: &NetEpoch, m: Mbuf);
    /// Several packets of one kind.
    fn input_batch(&self, vnet: &Arc<Vnet>, epoch: &NetEpoch, q: &mut MbufQueue) {
        while let Some(m) = q.pop() {
            self.input(vnet, epoch, m);
        }
    }
}

/// Hands a packet to its protocol, by policy: at once or queued.
pub fn dispatch(
    _vnet: &Arc<Vnet>,
    _epoch: &NetEpoch,
    _proto: NetisrProto,
    _m: Mbuf,
) -> Result<(), Errno> {
    todo!()
}

/// Hands a batch to its protocol.
pub fn dispatch_batch(
    _vnet: &Arc<Vnet>,
    _epoch: &NetEpoch,
    _proto: NetisrProto,
    _q: &mut MbufQueue,
) {
    todo!()
}

/// Queues a packet for its protocol; never calls it. `m.rcvif` must be set.
pub fn queue(_vnet: &Vnet, _proto: NetisrProto, _m: Mbuf) -> Result<(), Errno> {
    todo!()
}

/// One row of `netstat -Q`'s workstreams.
#[derive(Clone, Copy, Debug)]
pub struct WorkstreamRow {
    /// Workstream.
    pub wsid: usize,
    /// CPU.
    pub cpu: usize,
    /// Protocol.
    pub name: &'static str,
    /// Queue length now.
    pub len: u32,
    /// Longest ever.
    pub watermark: u32,
    /// Handled at once.
    pub dispatched: u64,
    /// Handled at once under the hybrid policy.
    pub hybrid_dispatched: u64,
    /// Dropped for a full queue.
    pub qdrops: u64,
    /// Queued.
    pub queued: u64,
    /// Handled in all.
    pub handled: u64,
}

/// The counters behind `netstat -Q`.
pub fn workstreams() -> Vec<WorkstreamRow> {
    todo!()
}

/// One row of `netstat -Q`'s protocols.
#[derive(Clone, Copy, Debug)]
pub struct ProtoRow {
    /// What was registered.
    pub info: NetisrInfo,
    /// Queue limit.
    pub qlimit: u32,
}

/// The protocols behind `netstat -Q`.
pub fn protocols() -> Vec<ProtoRow> {
    todo!()
}
