//! The framework under every driver: rings, refill, transmit queue, interrupts, link, sysctls.
//!
//! FreeBSD: sys/net/iflib.c, iflib.h
//! A driver is an [`IfTxRx`]: it turns packet descriptions into descriptors and back, and touches registers.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;
use core::ops::Range;

use spin::Once;

use crate::counter::Counter;
use crate::errno::Errno;
use crate::kern::kern_intr::{
    AssertFilterSafe, FilterStatus, IntrCookie, IrqResource, bus_setup_intr,
};
use crate::kern::kern_sx::Sx;
use crate::kern::kern_thread::Pri;
use crate::kern::kern_timeout::{Callout, CalloutTarget};
use crate::kern::lock_order::{IflibCtx, IflibIntr};
use crate::kern::subr_taskqueue::{Task, Taskqueue};
use crate::kprintf;
use crate::machine::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::machine::bus_dma::DmaAddr;
use crate::machine::{curcpu, ncpus};
use crate::mbuf::{ClusterSize, CsumFlags, HashType, Mbuf, MbufQueue};
use crate::net::if_ethersubr::{ETHERMTU, EtherText};
use crate::net::iflib_rx::{RX_COUNTERS, RxQueue};
use crate::net::iflib_tx::{TX_COUNTERS, TxQueue};
use crate::net::ifnet::{IfCap, IfDriver, IfFlags, Ifnet, IfnetInit, LinkState, Media};
use crate::net::vnet::Vnet;
use crate::sysctl::{Procedure, ReadOnly, kenv, root};
use crate::time::Sbintime;

/// What a driver says once about its hardware (FreeBSD: struct if_shared_ctx and if_softc_ctx).
#[derive(Clone, Debug)]
pub struct IflibSharedCtx {
    /// Driver name ("em").
    pub name: &'static str,
    /// What the hardware is, for `dev.em.0.%desc`.
    pub desc: &'static str,
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
    /// Largest segment of a packet that is not TSO.
    pub tx_maxsegsize: usize,
    /// Descriptors that a packet may need besides one for each segment.
    pub tx_extra_descriptors: usize,
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
    /// Tells the hardware about everything up to `pidx`, asking it to report the completion of the last packet: one
    /// tail write.
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
    /// Registers the driver's own variables below `prefix` ("dev.em.0").
    fn register_sysctls(self: Arc<Self>, _prefix: &str) {}
    /// After each receive batch: how many bytes and packets it brought. Interrupt moderation adapts to it.
    fn adapt_moderation(&self, _q: usize, _bytes: usize, _packets: usize) {}
}

/// The receive-coalescing hook: a lower crate's face of tcp_lro.
pub trait Lro: Send {
    /// Takes a received frame: keeps it to join it with others, or puts it into `out`, behind what it held of its flow.
    fn rx(&mut self, m: Mbuf, out: &mut MbufQueue);
    /// Ends a batch: everything held is appended to `out`.
    fn flush_all(&mut self, out: &mut MbufQueue);
}

/// Makes the coalescer of one receive queue.
pub type LroFactory = Box<dyn Fn() -> Box<dyn Lro> + Send + Sync>;

/// Twice a second, as FreeBSD's iflib timer.
const TIMER_PERIOD: Sbintime = Sbintime::from_ms(500);
/// Timer ticks without progress after which a transmit queue hangs.
const WATCHDOG_TICKS: u32 = 4;
/// Timer ticks between readings of statistics registers.
const STATS_TICKS: u32 = 2;

/// An interface run by iflib.
pub struct Iflib {
    pub(super) sctx: IflibSharedCtx,
    pub(super) driver: Arc<dyn IfTxRx>,
    pub(super) rxqs: Vec<RxQueue>,
    pub(super) txqs: Vec<TxQueue>,
    /// `rx_budget`: frames per pass; 0 is the default.
    pub(super) rx_budget: AtomicU32,
    /// Itself, for the callout.
    me: Weak<Iflib>,
    ifp: Once<Weak<Ifnet>>,
    /// The control path: init, stop, link, modes. Sleepable, because resets wait.
    ctx: Sx<Ctx, IflibCtx>,
    intr: Sx<Vec<IntrCookie>, IflibIntr>,
    admin: Once<(Taskqueue, Arc<Task>)>,
    /// An interrupt found something for the admin thread.
    admin_pending: AtomicBool,
    /// The timer ran out since the admin thread last looked.
    timer_fired: AtomicBool,
    timer: Callout,
    watchdog_timeouts: Counter,
}

#[derive(Default)]
struct Ctx {
    running: bool,
    detached: bool,
    ticks: u32,
}

impl Iflib {
    /// Sets up rings and queues over `driver`, attaches the interface to `vnet`, and listens to its interrupts:
    /// one source for each queue, or one for all.
    #[doc(alias = "iflib_device_register")]
    pub fn attach(
        vnet: &Arc<Vnet>,
        sctx: IflibSharedCtx,
        driver: Arc<dyn IfTxRx>,
        interrupts: &[IrqResource],
    ) -> Result<Arc<Ifnet>, Errno> {
        Self::attach_parts(vnet, sctx, driver, interrupts).map(|(ifp, _)| ifp)
    }

    fn attach_parts(
        vnet: &Arc<Vnet>,
        sctx: IflibSharedCtx,
        driver: Arc<dyn IfTxRx>,
        interrupts: &[IrqResource],
    ) -> Result<(Arc<Ifnet>, Arc<Iflib>), Errno> {
        let prefix = format!("dev.{}.{}", sctx.name, sctx.unit);
        let name = format!("{}{}", sctx.name, sctx.unit);
        let ntxd = descriptors(&prefix, "override_ntxds", sctx.ntxd);
        let nrxd = descriptors(&prefix, "override_nrxds", sctx.nrxd);
        let mut txqs = Vec::with_capacity(sctx.ntxqs);
        for q in 0..sctx.ntxqs {
            txqs.push(TxQueue::new(&sctx, driver.tx_queue_alloc(q, ntxd)?, ntxd));
        }
        let mut rxqs = Vec::with_capacity(sctx.nrxqs);
        for q in 0..sctx.nrxqs {
            rxqs.push(RxQueue::new(driver.rx_queue_alloc(q, nrxd)?, nrxd));
        }
        kprintf!("{name}: Using {ntxd} TX descriptors and {nrxd} RX descriptors\n");
        if sctx.nrxqs > 1 || sctx.ntxqs > 1 {
            kprintf!(
                "{name}: Using {} RX queues {} TX queues\n",
                sctx.nrxqs,
                sctx.ntxqs
            );
        }
        kprintf!("{name}: Ethernet address: {}\n", EtherText(sctx.mac));
        let init = sctx.ifnet_init(vnet);
        let iflib = Arc::new_cyclic(|me| Iflib {
            me: me.clone(),
            rxqs,
            txqs,
            sctx,
            driver,
            rx_budget: AtomicU32::new(0),
            ifp: Once::new(),
            ctx: Sx::new(Ctx::default()),
            intr: Sx::new(Vec::new()),
            admin: Once::new(),
            admin_pending: AtomicBool::new(false),
            timer_fired: AtomicBool::new(false),
            timer: Callout::new(),
            watchdog_timeouts: Counter::new(),
        });
        iflib.start_admin(&name);
        let ifp = vnet.if_attach(init, iflib.clone());
        iflib.ifp.call_once(|| Arc::downgrade(&ifp));
        if let Err(error) = iflib.setup_interrupts(&name, interrupts) {
            kprintf!("{name}: Unable to register interrupt handler\n");
            vnet.if_detach(&ifp);
            return Err(error);
        }
        iflib.register_sysctls(&prefix);
        iflib.driver.clone().register_sysctls(&prefix);
        Ok((ifp, iflib))
    }

    fn start_admin(self: &Arc<Self>, name: &str) {
        let weak = Arc::downgrade(self);
        self.admin.call_once(|| {
            let task = Task::new(move || {
                if let Some(iflib) = weak.upgrade() {
                    iflib.admin_task();
                }
            });
            (Taskqueue::new(&format!("if_{name}_tq"), Pri::PI_SOFT), task)
        });
    }

    fn setup_interrupts(
        self: &Arc<Self>,
        name: &str,
        sources: &[IrqResource],
    ) -> Result<(), Errno> {
        let mut cookies = Vec::new();
        let nqueues = self.rxqs.len();
        for (v, source) in sources.iter().enumerate() {
            // One source serves all queues; otherwise each queue has its own, and one left over is the link's.
            let queues = if sources.len() == 1 {
                0..nqueues
            } else {
                v.min(nqueues)..(v + 1).min(nqueues)
            };
            let suffix = match source {
                IrqResource::Line(_) => String::from("irq0"),
                IrqResource::Message(_) if queues.is_empty() => String::from("aq"),
                IrqResource::Message(_) => format!("rxq{v}"),
            };
            // Of all of it the filter uses an atomic, and the driver's own filter.
            let filter = AssertFilterSafe(Arc::downgrade(self));
            let thread = Arc::downgrade(self);
            cookies.push(bus_setup_intr(
                source.clone(),
                &format!("{name}:{suffix}"),
                (self.sctx.unit as usize + v) % ncpus(),
                Box::new(move || {
                    // The whole, not its field: that would be captured alone.
                    let filter = &filter;
                    filter
                        .0
                        .upgrade()
                        .map_or(FilterStatus::Stray, |iflib| iflib.filter(v))
                }),
                Box::new(move || {
                    if let Some(iflib) = thread.upgrade() {
                        iflib.queue_thread(queues.clone());
                    }
                }),
            )?);
        }
        *self.intr.xlock() = cookies;
        Ok(())
    }

    /// Runs in the interrupt.
    fn filter(&self, v: usize) -> FilterStatus {
        let Some(cause) = self.driver.intr_filter(v) else {
            return FilterStatus::Stray;
        };
        if cause.admin {
            self.admin_pending.store(true, Ordering::Release);
        }
        if cause.admin || cause.queue {
            FilterStatus::ScheduleThread
        } else {
            FilterStatus::Handled
        }
    }

    /// Runs on the interrupt thread of `queues`.
    #[doc(alias = "_task_fn_rx")]
    fn queue_thread(&self, queues: Range<usize>) {
        if self.admin_pending.load(Ordering::Acquire) {
            self.request_admin();
        }
        let Some(ifp) = self.ifp() else { return };
        for q in queues {
            if let Some(txq) = self.txqs.get(q)
                && txq.is_stalled()
            {
                txq.make_room();
                self.driver.tx_intr_want(q, txq.is_stalled());
            }
            self.rxeof(&ifp, q);
            self.driver.queue_intr_enable(q);
        }
    }

    pub(super) fn ifp(&self) -> Option<Arc<Ifnet>> {
        self.ifp.get()?.upgrade()
    }

    fn name(&self) -> String {
        format!("{}{}", self.sctx.name, self.sctx.unit)
    }

    /// Wakes the admin thread.
    #[doc(alias = "iflib_admin_intr_deferred")]
    fn request_admin(&self) {
        if let Some((queue, task)) = self.admin.get() {
            queue.enqueue(task);
        }
    }

    /// Link, timer and watchdog, on the admin thread.
    #[doc(alias = "_task_fn_admin")]
    fn admin_task(self: &Arc<Self>) {
        let Some(ifp) = self.ifp() else { return };
        let link = self.admin_pending.swap(false, Ordering::AcqRel);
        let timer = self.timer_fired.swap(false, Ordering::AcqRel);
        let media = {
            let mut ctx = self.ctx.xlock();
            if ctx.detached {
                return;
            }
            if timer && ctx.running {
                self.timer_work(&ifp, &mut ctx);
            }
            (link || ctx.running).then(|| self.driver.update_admin_status())
        };
        // Outside the lock: who hears of it may come back to the driver.
        if let Some(media) = media {
            self.update_link(&ifp, media);
        }
    }

    /// What the driver says of the link becomes the interface's state.
    #[doc(alias = "iflib_link_state_change")]
    fn update_link(&self, ifp: &Arc<Ifnet>, media: Media) {
        let was = ifp.link_state();
        if media.active {
            ifp.set_baudrate(u64::from(media.speed) * 1_000_000);
            if was != LinkState::Up {
                // First: who hears of it sends at once.
                self.txqs.iter().for_each(|txq| txq.set_link(true));
            }
            ifp.set_link_state(LinkState::Up);
        } else {
            ifp.set_link_state(LinkState::Down);
            if was != LinkState::Down {
                self.txqs.iter().for_each(|txq| txq.set_link(false));
            }
        }
    }

    #[doc(alias = "iflib_timer")]
    fn timer_work(self: &Arc<Self>, ifp: &Arc<Ifnet>, ctx: &mut Ctx) {
        ctx.ticks = ctx.ticks.wrapping_add(1);
        if ctx.ticks.is_multiple_of(STATS_TICKS) {
            self.driver.timer(ifp);
        }
        let mut hung = false;
        let link = ifp.link_state() == LinkState::Up;
        for (q, txq) in self.txqs.iter().enumerate() {
            if txq.tick(link) >= WATCHDOG_TICKS {
                let (avail, pidx) = txq.describe();
                let name = self.name();
                kprintf!(
                    "{name}: Watchdog timeout (TX: {q} desc avail: {avail} pidx: {pidx}) -- resetting\n"
                );
                hung = true;
            }
        }
        for rxq in &self.rxqs {
            rxq.replenish();
        }
        if hung {
            self.watchdog_timeouts.inc();
            self.stop_locked(ifp, ctx);
            if let Err(error) = self.init_locked(ifp, ctx) {
                kprintf!("{}: could not be started again: {error}\n", self.name());
                return;
            }
        }
        self.timer.reset(TIMER_PERIOD, self);
    }

    #[doc(alias = "iflib_init_locked")]
    fn init_locked(&self, ifp: &Ifnet, ctx: &mut Ctx) -> Result<(), Errno> {
        if ctx.detached {
            return Err(Errno::ENXIO);
        }
        if ctx.running {
            self.stop_locked(ifp, ctx);
        }
        let size = self.sctx.rx_cluster(ifp.mtu());
        self.driver.init(ifp, size.bytes())?;
        for txq in &self.txqs {
            txq.start();
        }
        for rxq in &self.rxqs {
            rxq.start(size, ifp.vnet().lro().map(|make| make()))?;
        }
        self.driver.rx_enable(ifp);
        ctx.running = true;
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::OACTIVE);
        self.driver.intr_enable();
        Ok(())
    }

    #[doc(alias = "iflib_stop")]
    fn stop_locked(&self, ifp: &Ifnet, ctx: &mut Ctx) {
        ifp.set_drv_flags(IfFlags::empty(), IfFlags::RUNNING | IfFlags::OACTIVE);
        ctx.running = false;
        self.timer.stop();
        self.driver.intr_disable();
        self.driver.stop();
        for rxq in &self.rxqs {
            rxq.stop();
        }
        for txq in &self.txqs {
            txq.stop();
        }
    }

    /// After `init_locked`, without its lock: arms the timer and looks at the link.
    fn started(&self) {
        if let Some(me) = self.me.upgrade() {
            self.timer.reset(TIMER_PERIOD, &me);
        }
        self.admin_pending.store(true, Ordering::Release);
        self.request_admin();
    }

    fn register_sysctls(self: &Arc<Self>, prefix: &str) {
        let tree = root();
        let leaf = |name: &str, description, read: Box<dyn Fn(&Iflib) -> String + Send + Sync>| {
            let weak = Arc::downgrade(self);
            let read = move || weak.upgrade().map(|iflib| read(&iflib)).unwrap_or_default();
            tree.register(
                &format!("{prefix}.{name}"),
                Arc::new(ReadOnly::new(description, read)),
            );
        };
        leaf(
            "%desc",
            "device description",
            Box::new(|iflib| iflib.sctx.desc.to_string()),
        );
        leaf(
            "iflib.driver_version",
            "driver version",
            Box::new(|_| String::from("7.7.8")),
        );
        leaf(
            "watchdog_timeouts",
            "Watchdog timeouts",
            Box::new(|iflib| iflib.watchdog_timeouts.fetch().to_string()),
        );
        let weak = Arc::downgrade(self);
        let write = weak.clone();
        let budget = Procedure::new(
            "set the RX budget",
            move || {
                weak.upgrade()
                    .map_or(0, |iflib| iflib.rx_budget.load(Ordering::Relaxed))
                    .to_string()
            },
            move |value: &str| {
                let new: u32 = value.parse().map_err(|_| Errno::EINVAL)?;
                let iflib = write.upgrade().ok_or(Errno::ENXIO)?;
                iflib.rx_budget.store(new, Ordering::Relaxed);
                Ok(())
            },
        );
        tree.register(&format!("{prefix}.iflib.rx_budget"), Arc::new(budget));
        for q in 0..self.txqs.len() {
            for (i, &(name, description)) in TX_COUNTERS.iter().enumerate() {
                let read = move |iflib: &Iflib| iflib.txqs[q].counter(i).to_string();
                leaf(&format!("iflib.txq{q}.{name}"), description, Box::new(read));
            }
            let state = move |iflib: &Iflib| iflib.txqs[q].ring_state();
            leaf(
                &format!("iflib.txq{q}.ring_state"),
                "soft ring state",
                Box::new(state),
            );
        }
        for q in 0..self.rxqs.len() {
            for (i, &(name, description)) in RX_COUNTERS.iter().enumerate() {
                let read = move |iflib: &Iflib| iflib.rxqs[q].counter(i).to_string();
                leaf(&format!("iflib.rxq{q}.{name}"), description, Box::new(read));
            }
        }
    }
}

/// Size of a ring: the default, or what the kernel's command line says, within limits.
fn descriptors(prefix: &str, tunable: &str, (min, default, max): (usize, usize, usize)) -> usize {
    let asked = kenv().get(&format!("{prefix}.iflib.{tunable}"));
    match asked.and_then(|text| text.trim().parse().ok()) {
        // The hardware wants multiples of 128 bytes, which is 8 descriptors.
        Some(n) if n != 0 => usize::clamp(n, min, max).next_multiple_of(8).min(max),
        _ => default,
    }
}

impl IflibSharedCtx {
    fn ifnet_init(&self, vnet: &Vnet) -> IfnetInit {
        let lro = if vnet.lro().is_some() {
            IfCap::LRO
        } else {
            IfCap::empty()
        };
        IfnetInit {
            capabilities: self.capabilities | lro,
            capenable: self.capenable | lro,
            hw_tsomax: self.tx_tso_size_max as u32,
            hw_tsomaxsegcount: self.tx_tso_segments_max as u32,
            hw_tsomaxsegsize: self.tx_tso_segsize_max as u32,
            baudrate: 1_000_000_000,
            ..IfnetInit::ether(self.name, self.unit, self.mac)
        }
    }

    /// Receive buffers for frames of this MTU; longer ones span several.
    #[doc(alias = "iflib_get_rx_mbuf_sz")]
    fn rx_cluster(&self, mtu: u32) -> ClusterSize {
        if mtu <= ETHERMTU {
            ClusterSize::K2
        } else {
            ClusterSize::K4
        }
    }
}

impl IfDriver for Iflib {
    #[doc(alias = "iflib_if_transmit")]
    fn transmit(&self, ifp: &Ifnet, m: Mbuf) -> Result<(), Errno> {
        // Differs from FreeBSD: a link of which nothing is known yet is tried.
        if !ifp.flags().contains(IfFlags::RUNNING) || ifp.link_state() == LinkState::Down {
            return Err(Errno::ENETDOWN);
        }
        let txq = match self.txqs.as_slice() {
            [only] => only,
            several => {
                // A flow stays on its queue; what belongs to no flow goes by CPU.
                let header = m.pkthdr();
                let hashed = header.rsstype != HashType::NONE;
                let number = if hashed {
                    header.flowid as usize
                } else {
                    curcpu()
                };
                several.get(number % several.len()).ok_or(Errno::ENXIO)?
            }
        };
        txq.transmit(m)
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        self.init_locked(ifp, &mut self.ctx.xlock())?;
        self.started();
        Ok(())
    }

    fn stop(&self, ifp: &Ifnet) {
        let mut ctx = self.ctx.xlock();
        if ctx.running {
            self.stop_locked(ifp, &mut ctx);
        }
    }

    fn set_cap(&self, ifp: &Ifnet, _enable: IfCap) -> Result<(), Errno> {
        let ctx = self.ctx.xlock();
        for rxq in &self.rxqs {
            rxq.set_lro(ifp.capenable().contains(IfCap::LRO));
        }
        if ctx.running {
            self.driver.set_cap(ifp);
        }
        Ok(())
    }

    fn set_rxmode(&self, ifp: &Ifnet) {
        let ctx = self.ctx.xlock();
        if ctx.running {
            self.driver.set_rxmode(ifp);
        }
    }

    fn set_mtu(&self, ifp: &Ifnet, mtu: u32) -> Result<(), Errno> {
        if mtu > self.sctx.max_mtu {
            return Err(Errno::EINVAL);
        }
        let mut ctx = self.ctx.xlock();
        if ctx.running {
            self.init_locked(ifp, &mut ctx)?;
            drop(ctx);
            self.started();
        }
        Ok(())
    }

    fn media_status(&self, _ifp: &Ifnet) -> Option<Media> {
        let _ctx = self.ctx.xlock();
        Some(self.driver.update_admin_status())
    }

    fn detach(&self, ifp: &Ifnet) {
        {
            let mut ctx = self.ctx.xlock();
            if ctx.running {
                self.stop_locked(ifp, &mut ctx);
            }
            ctx.detached = true;
        }
        self.timer.drain();
        // Threads end before their cookies are gone: not under the context lock, which they may want.
        let cookies = mem::take(&mut *self.intr.xlock());
        drop(cookies);
        if let Some((queue, _)) = self.admin.get() {
            queue.drain();
        }
        root().unregister(&format!("dev.{}.{}", self.sctx.name, self.sctx.unit));
    }
}

impl CalloutTarget for Iflib {
    fn callout(self: Arc<Self>, _now: Sbintime) {
        self.timer_fired.store(true, Ordering::Release);
        self.request_admin();
    }
}

#[cfg(test)]
mod tests;
