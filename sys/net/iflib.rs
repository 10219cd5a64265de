//! The framework under every driver: rings, refill, transmit queue, interrupts, link, sysctls.
//!
//! FreeBSD: sys/net/iflib.c, iflib.h
//! A driver is an [`IfTxRx`]: it turns packet descriptions into descriptors and back, and touches registers.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::Errno;
use crate::machine::bus_dma::DmaAddr;
use crate::mbuf::{CsumFlags, HashType};
use crate::net::ifnet::{IfCap, Ifnet, Media};
use crate::net::vnet::Vnet;

/// What a driver says once about its hardware (FreeBSD: struct if_shared_ctx and if_softc_ctx).
#[derive(Clone, Debug)]
pub struct IflibSharedCtx {
    /// Driver name ("em").
    pub name: &'static str,
    /// Unit.
    pub unit: u32,
    /// Station address.
    pub mac: [u8; 6],
    /// Transmit descriptors: (min, default, max).
    pub ntxd: (usize, usize, usize),
    /// Receive descriptors: (min, default, max).
    pub nrxd: (usize, usize, usize),
    /// Receive and transmit queues.
    pub nrxqs: usize,
    /// Receive and transmit queues.
    pub ntxqs: usize,
    /// Most data segments of one packet.
    pub tx_nsegments: usize,
    /// Most data segments of a TSO packet.
    pub tx_tso_segments_max: usize,
    /// Largest TSO packet.
    pub tx_tso_size_max: usize,
    /// Largest segment of a TSO packet.
    pub tx_tso_segsize_max: usize,
    /// IFCAP_* that exist.
    pub capabilities: IfCap,
    /// IFCAP_* that are on.
    pub capenable: IfCap,
    /// Frames shorter than this are padded with zeros before transmit (0 = never).
    pub min_frame: usize,
    /// Largest MTU.
    pub max_mtu: u32,
}

/// One packet to be described to the hardware (FreeBSD: struct if_pkt_info).
pub struct PktInfo<'a> {
    /// Where its bytes are.
    pub segs: &'a [(DmaAddr, usize)],
    /// Bytes in all.
    pub len: usize,
    /// Work asked of the hardware.
    pub csum_flags: CsumFlags,
    /// Link header.
    pub l2hlen: u8,
    /// IP header.
    pub l3hlen: u8,
    /// TCP or UDP header.
    pub l4hlen: u8,
    /// TSO segment size.
    pub tso_segsz: u16,
    /// VLAN tag to insert.
    pub vtag: Option<u16>,
    /// First free descriptor.
    pub pidx: usize,
    /// Ask for a completion report.
    pub report: bool,
}

/// Why a packet could not be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncapErr {
    /// Too many segments: try again after defragmenting.
    TooManySegments,
    /// The hardware cannot send this.
    Unsupported,
}

/// One fragment of a received frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxFrag {
    /// Descriptor index, which names the buffer.
    pub idx: usize,
    /// Bytes in it.
    pub len: usize,
}

/// Most buffers of one received frame.
pub const IFLIB_MAX_RX_SEGS: usize = 16;

/// One received frame as the hardware describes it (FreeBSD: struct if_rxd_info).
#[derive(Clone, Debug, Default)]
pub struct RxInfo {
    /// Its buffers.
    pub frags: [RxFrag; IFLIB_MAX_RX_SEGS],
    /// How many.
    pub nfrags: usize,
    /// Bytes in all.
    pub len: usize,
    /// Checksum results.
    pub csum_flags: CsumFlags,
    /// Checksum data.
    pub csum_data: u32,
    /// Flow hash.
    pub flowid: u32,
    /// M_HASHTYPE_*.
    pub rsstype: HashType,
    /// VLAN tag stripped.
    pub vtag: Option<u16>,
}

/// What stands at a place of a receive ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxGet {
    /// The hardware has not finished it.
    Empty,
    /// A frame: its buffers are in the `RxInfo`.
    Frame,
    /// A frame that must be dropped: its buffers are in the `RxInfo`.
    Bad,
}

/// What an interrupt asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IntrCause {
    /// Receive or transmit work of the queue.
    pub queue: bool,
    /// The link may have changed.
    pub admin: bool,
}

/// One transmit queue of a driver. Whoever has it has it alone: the consumer that the queue's `mp_ring` elected.
pub trait IflibTxq: Send {
    /// Describes a packet from `pi.pidx` on; returns the next free index.
    fn txd_encap(&mut self, pi: &PktInfo<'_>) -> Result<usize, EncapErr>;
    /// Tells the hardware about everything up to `pidx`: one tail write.
    fn txd_flush(&mut self, pidx: usize);
    /// How many descriptors were completed since the last call.
    fn txd_credits_update(&mut self) -> usize;
    /// Empties the ring and programs its base and size; called while the hardware is stopped.
    fn reset(&mut self);
    /// Head and tail registers.
    fn head_tail(&self) -> (u32, u32);
}

/// One receive queue of a driver. Whoever has it has it alone.
pub trait IflibRxq: Send {
    /// Looks at the frame that starts at `cidx`.
    fn rxd_pkt_get(&mut self, cidx: usize, ri: &mut RxInfo) -> RxGet;
    /// Gives buffers to the hardware from `pidx` on (not yet announced).
    fn rxd_refill(&mut self, pidx: usize, bufs: &[DmaAddr]);
    /// Announces refilled descriptors up to and excluding `pidx`: one tail write.
    fn rxd_flush(&mut self, pidx: usize);
    /// Empties the ring and programs its base and size; called while the hardware is stopped.
    fn reset(&mut self);
    /// Head and tail registers.
    fn head_tail(&self) -> (u32, u32);
}

/// A driver's back-end (FreeBSD: struct if_txrx and the ifdi_* methods). The framework calls everything but the
/// interrupt functions under the interface's context lock.
pub trait IfTxRx: Send + Sync {
    /// Makes transmit queue `q` with `ndesc` descriptors.
    fn tx_queue_alloc(&self, q: usize, ndesc: usize) -> Result<Box<dyn IflibTxq>, Errno>;
    /// Makes receive queue `q` with `ndesc` descriptors.
    fn rx_queue_alloc(&self, q: usize, ndesc: usize) -> Result<Box<dyn IflibRxq>, Errno>;
    /// Programs the hardware for `ifp`; rings are reset and empty, reception stays off.
    fn init(&self, ifp: &Ifnet, rx_buf_size: usize) -> Result<(), Errno>;
    /// Turns reception on: receive rings are filled.
    fn rx_enable(&self, ifp: &Ifnet);
    /// Stops DMA and interrupts.
    fn stop(&self);
    /// Lets the hardware interrupt.
    fn intr_enable(&self);
    /// Silences the hardware.
    fn intr_disable(&self);
    /// Reads and clears the cause of vector `v`'s interrupt; runs in interrupt context. `None`: not ours.
    fn intr_filter(&self, v: usize) -> Option<IntrCause>;
    /// Queue `q`'s interrupt thread has found no more work.
    fn queue_intr_enable(&self, _q: usize) {}
    /// Asks for an interrupt (or the silence of it) when transmit queue `q` has completed something.
    fn tx_intr_want(&self, _q: usize, _want: bool) {}
    /// Looks at the link.
    fn update_admin_status(&self) -> Media;
    /// PROMISC, ALLMULTI or the multicast list changed.
    fn set_rxmode(&self, ifp: &Ifnet);
    /// What is enabled changed without need for `init`.
    fn set_cap(&self, _ifp: &Ifnet) {}
    /// Once a second: folds the statistics registers.
    fn timer(&self, _ifp: &Ifnet) {}
    /// Statistics for sysctl `dev.<name>.<unit>.*`.
    fn stats(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
    /// After each receive batch: how many bytes and packets it brought. Interrupt moderation adapts to it.
    fn adapt_moderation(&self, _q: usize, _bytes: usize, _packets: usize) {}
}

/// The receive-coalescing hook: a lower crate's face of tcp_lro.
pub trait Lro: Send {
    /// Takes a received packet, or gives it back to be passed up as it is.
    fn rx(&mut self, m: crate::mbuf::Mbuf) -> Option<crate::mbuf::Mbuf>;
    /// Ends a batch: everything held is appended to `out`.
    fn flush_all(&mut self, out: &mut crate::mbuf::MbufQueue);
}

/// An interface run by iflib.
pub struct Iflib {}

impl Iflib {
    /// Sets up rings and queues over `driver` and attaches the interface.
    #[doc(alias = "iflib_device_register")]
    pub fn attach(
        _vnet: &Arc<Vnet>,
        _sctx: IflibSharedCtx,
        _driver: Arc<dyn IfTxRx>,
    ) -> Result<Arc<Ifnet>, Errno> {
        todo!()
    }
}
