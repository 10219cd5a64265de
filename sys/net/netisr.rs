//! Takes packets from interfaces to protocols: at once, or by a thread.
//!
//! FreeBSD: sys/net/netisr.c
//! Differs from FreeBSD: handlers belong to a stack instance and policies to the machine; packets may come in batches.
//! Not carried over: `netisr_rmlock`; handlers are found in a section of the network epoch, by one load, as in `pfil`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use spin::Once;

use crate::errno::Errno;
use crate::kern::kern_intr::Swi;
use crate::kern::kern_mutex::Mutex;
use crate::kern::kern_thread::Pri;
use crate::kern::lock_order::NetisrWs;
use crate::kern::subr_epoch::NetEpoch;
use crate::machine::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::machine::{PerCpu, curcpu, ncpus};
use crate::mbuf::{HashType, IfIndex, Mbuf, MbufQueue};
use crate::net::vnet::{Vnet, ifnet_byindex};
use crate::param::MAXCPU;
use crate::sysctl::{Procedure, ReadOnly, root};
use crate::{machine_local, tunables};

/// Protocol numbers are below this.
pub const NETISR_MAXPROT: usize = 16;

tunables! {
    /// Settings of netisr.
    pub struct NetisrTunables {
        maxthreads: i32 = 1, "net.isr.maxthreads", "Use at most this many CPUs for netisr processing" (-1..=64);
        bindthreads: bool = false, "net.isr.bindthreads", "Bind netisr threads to CPUs.";
        defaultqlimit: u32 = 256, "net.isr.defaultqlimit", "Default netisr per-protocol, per-CPU queue limit if not set by protocol" (1..=10240);
        maxqlimit: u32 = 10240, "net.isr.maxqlimit", "Maximum netisr per-protocol, per-CPU queue depth." (1..=1_000_000);
    }
}

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

impl NetisrProto {
    fn from_number(number: usize) -> Option<NetisrProto> {
        use NetisrProto::*;
        [Ip, Igmp, Route, Arp, Ether, Ip6, Epair]
            .into_iter()
            .find(|&proto| proto as usize == number)
    }
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

impl NetisrPolicy {
    /// The word netstat -Q prints.
    pub fn as_str(self) -> &'static str {
        match self {
            NetisrPolicy::Source => "source",
            NetisrPolicy::Flow => "flow",
            NetisrPolicy::Cpu => "cpu",
        }
    }
}

impl NetisrDispatch {
    /// The word sysctl and netstat -Q print.
    pub fn as_str(self) -> &'static str {
        match self {
            NetisrDispatch::Default => "default",
            NetisrDispatch::Deferred => "deferred",
            NetisrDispatch::Hybrid => "hybrid",
            NetisrDispatch::Direct => "direct",
        }
    }

    const fn from_bits(bits: u8) -> NetisrDispatch {
        match bits {
            1 => NetisrDispatch::Deferred,
            2 => NetisrDispatch::Hybrid,
            3 => NetisrDispatch::Direct,
            _ => NetisrDispatch::Default,
        }
    }
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

machine_local! {
    static NETISR: Once<Netisr> = Once::new();
}

/// What the machine's netisr consists of.
struct Netisr {
    tunables: Arc<NetisrTunables>,
    /// `net.isr.dispatch`.
    dispatch: AtomicU8,
    /// Policy of each registered protocol, ready for the packet path.
    protos: [ProtoState; NETISR_MAXPROT],
    registered: Mutex<Vec<NetisrInfo>, NetisrWs>,
    counts: PerCpu<[ProtoCounts; NETISR_MAXPROT]>,
    workers: Once<Vec<Worker>>,
}

struct ProtoState {
    policy: AtomicU8,
    dispatch: AtomicU8,
    qlimit: AtomicU32,
}

/// What happened on one CPU. Only that CPU writes, but for what workers on it count.
struct ProtoCounts {
    dispatched: AtomicU64,
    hybrid_dispatched: AtomicU64,
    handled: AtomicU64,
}

struct Worker {
    workstream: Arc<Workstream>,
    swi: Swi,
}

/// Queues of one worker.
struct Workstream {
    cpu: usize,
    inner: Mutex<WsInner, NetisrWs>,
}

struct WsInner {
    work: [WsWork; NETISR_MAXPROT],
    /// Packets in all queues.
    pending: usize,
    /// The worker is at it, or a thread runs a handler in its place, or the worker has been asked to run.
    busy: bool,
}

struct WsWork {
    queue: MbufQueue,
    watermark: u32,
    queued: u64,
    qdrops: u64,
}

impl Netisr {
    fn new() -> Netisr {
        Netisr {
            tunables: Arc::new(NetisrTunables::new()),
            dispatch: AtomicU8::new(NetisrDispatch::Direct as u8),
            protos: core::array::from_fn(|_| ProtoState {
                policy: AtomicU8::new(NetisrPolicy::Source as u8),
                dispatch: AtomicU8::new(NetisrDispatch::Default as u8),
                qlimit: AtomicU32::new(256),
            }),
            registered: Mutex::new(Vec::new()),
            counts: PerCpu::new(|_| {
                core::array::from_fn(|_| ProtoCounts {
                    dispatched: AtomicU64::new(0),
                    hybrid_dispatched: AtomicU64::new(0),
                    handled: AtomicU64::new(0),
                })
            }),
            workers: Once::new(),
        }
    }

    fn workers(&self) -> &[Worker] {
        self.workers.get().map_or(&[], Vec::as_slice)
    }

    fn counts(&self, proto: NetisrProto) -> &ProtoCounts {
        &self.counts.get(curcpu())[proto as usize]
    }

    /// Which worker takes `m`.
    #[doc(alias = "netisr_select_cpuid")]
    fn select(&self, proto: NetisrProto, m: &Mbuf) -> Option<&Worker> {
        let workers = self.workers();
        if workers.len() <= 1 {
            return workers.first();
        }
        let header = m.pkthdr();
        let flow =
            self.protos[proto as usize].policy.load(Ordering::Relaxed) == NetisrPolicy::Flow as u8;
        let number = if flow && header.rsstype != HashType::NONE {
            header.flowid as usize
        } else {
            usize::from(header.rcvif.0)
        };
        workers.get(number % workers.len())
    }

    /// What to do with packets of `proto`.
    fn dispatch_of(&self, proto: NetisrProto) -> NetisrDispatch {
        let own = self.protos[proto as usize].dispatch.load(Ordering::Relaxed);
        match NetisrDispatch::from_bits(own) {
            NetisrDispatch::Default => {
                NetisrDispatch::from_bits(self.dispatch.load(Ordering::Relaxed))
            }
            special => special,
        }
    }

    fn enqueue(&self, proto: NetisrProto, m: Mbuf) -> Result<(), Errno> {
        let worker = self.select(proto, &m).ok_or(Errno::ENXIO)?;
        let limit = self.protos[proto as usize].qlimit.load(Ordering::Relaxed);
        let signal = {
            let mut inner = worker.workstream.inner.lock();
            inner.put(proto, m, limit)?;
            !mem::replace(&mut inner.busy, true)
        };
        if signal {
            worker.swi.sched();
        }
        Ok(())
    }
}

impl WsInner {
    /// Queues a packet; one too many is dropped and counted.
    fn put(&mut self, proto: NetisrProto, m: Mbuf, limit: u32) -> Result<(), Errno> {
        let work = &mut self.work[proto as usize];
        let len = work.queue.len() as u32;
        if len >= limit {
            work.qdrops += 1;
            return Err(Errno::ENOBUFS);
        }
        work.queue.push(m);
        work.queued += 1;
        work.watermark = work.watermark.max(len + 1);
        self.pending += 1;
        Ok(())
    }
}

/// Starts the worker threads, once per machine.
#[doc(alias = "netisr_init")]
pub(super) fn init() {
    let netisr = NETISR.call_once(Netisr::new);
    netisr.workers.call_once(|| {
        register_sysctls(netisr);
        let tunables = &netisr.tunables;
        let count = match tunables.maxthreads.get() {
            all if all < 0 => ncpus(),
            n => (n.max(1) as usize).min(ncpus()),
        };
        (0..count)
            .map(|i| start_worker(netisr, i, tunables.bindthreads.get()))
            .collect()
    });
}

fn start_worker(netisr: &'static Netisr, i: usize, bind: bool) -> Worker {
    let workstream = Arc::new(Workstream {
        cpu: i,
        inner: Mutex::new(WsInner {
            work: core::array::from_fn(|_| WsWork {
                queue: MbufQueue::new(),
                watermark: 0,
                queued: 0,
                qdrops: 0,
            }),
            pending: 0,
            busy: false,
        }),
    });
    let own = workstream.clone();
    let cpu = bind.then_some(i);
    let swi = Swi::add(
        &format!("swi1: netisr {i}"),
        Pri::PI_SWINET,
        cpu,
        move || swi_net(netisr, &own),
    );
    Worker { workstream, swi }
}

fn register_sysctls(netisr: &'static Netisr) {
    netisr.tunables.register(root());
    for name in ["maxthreads", "bindthreads", "defaultqlimit", "maxqlimit"] {
        root().seal(&format!("net.isr.{name}"));
    }
    root().register(
        "net.isr.dispatch",
        Arc::new(Procedure::new(
            "netisr dispatch policy",
            || {
                NetisrDispatch::from_bits(netisr.dispatch.load(Ordering::Relaxed))
                    .as_str()
                    .to_string()
            },
            |value: &str| {
                let new = match value {
                    "direct" => NetisrDispatch::Direct,
                    "hybrid" => NetisrDispatch::Hybrid,
                    "deferred" => NetisrDispatch::Deferred,
                    _ => return Err(Errno::EINVAL),
                };
                netisr.dispatch.store(new as u8, Ordering::Relaxed);
                Ok(())
            },
        )),
    );
    let text = |name: &str, description, read: fn(&Netisr) -> String| {
        root().register(
            name,
            Arc::new(ReadOnly::new(description, move || read(netisr))),
        );
    };
    text(
        "net.isr.numthreads",
        "Number of extant netisr threads.",
        |netisr| netisr.workers().len().to_string(),
    );
    text(
        "net.isr.maxprot",
        "Compile-time limit on the number of protocols supported by netisr.",
        |_| NETISR_MAXPROT.to_string(),
    );
}

/// Makes a protocol's policy known; instances register the same protocol again.
pub(super) fn register(info: NetisrInfo) {
    let Some(netisr) = NETISR.get().get() else {
        return;
    };
    let state = &netisr.protos[info.proto as usize];
    state.policy.store(info.policy as u8, Ordering::Relaxed);
    state.dispatch.store(info.dispatch as u8, Ordering::Relaxed);
    let tunables = &netisr.tunables;
    let limit = tunables.defaultqlimit.get().min(tunables.maxqlimit.get());
    state.qlimit.store(limit, Ordering::Relaxed);
    let mut registered = netisr.registered.lock();
    registered.retain(|known| known.proto != info.proto);
    registered.push(info);
    registered.sort_by_key(|known| known.proto as u8);
}

/// Hands a packet to its protocol, by policy: at once or queued.
#[doc(alias = "netisr_dispatch")]
pub fn dispatch(
    vnet: &Arc<Vnet>,
    epoch: &NetEpoch,
    proto: NetisrProto,
    m: Mbuf,
) -> Result<(), Errno> {
    let netisr = NETISR.get().get().ok_or(Errno::ENXIO)?;
    match netisr.dispatch_of(proto) {
        NetisrDispatch::Deferred => netisr.enqueue(proto, m),
        NetisrDispatch::Hybrid => dispatch_hybrid(netisr, vnet, epoch, proto, m),
        NetisrDispatch::Direct | NetisrDispatch::Default => {
            let handler = vnet
                .netisr_handler(proto, epoch)
                .ok_or(Errno::EPROTONOSUPPORT)?;
            let counts = netisr.counts(proto);
            counts.dispatched.fetch_add(1, Ordering::Relaxed);
            counts.handled.fetch_add(1, Ordering::Relaxed);
            handler.input(vnet, epoch, m);
            Ok(())
        }
    }
}

/// Hands a batch to its protocol. What cannot be handed over is dropped and counted there.
pub fn dispatch_batch(vnet: &Arc<Vnet>, epoch: &NetEpoch, proto: NetisrProto, q: &mut MbufQueue) {
    let direct = NETISR
        .get()
        .get()
        .map(|netisr| (netisr, netisr.dispatch_of(proto)));
    if let Some((netisr, NetisrDispatch::Direct)) = direct
        && let Some(handler) = vnet.netisr_handler(proto, epoch)
    {
        let counts = netisr.counts(proto);
        let n = q.len() as u64;
        counts.dispatched.fetch_add(n, Ordering::Relaxed);
        counts.handled.fetch_add(n, Ordering::Relaxed);
        handler.input_batch(vnet, epoch, q);
    }
    while let Some(m) = q.pop() {
        let ifp = ifnet_byindex(m.pkthdr().rcvif, epoch);
        match (dispatch(vnet, epoch, proto, m), ifp) {
            (Err(Errno::EPROTONOSUPPORT), Some(ifp)) => ifp.counters.noproto.inc(),
            (Err(_), Some(ifp)) => ifp.counters.iqdrops.inc(),
            (Ok(()), _) | (_, None) => {}
        }
    }
}

/// Counts packets that `proto` handled at once without being called through here (Ethernet itself).
#[inline]
pub(super) fn count_direct(proto: NetisrProto, packets: u64) {
    if let Some(netisr) = NETISR.get().get() {
        let counts = netisr.counts(proto);
        counts.dispatched.fetch_add(packets, Ordering::Relaxed);
        counts.handled.fetch_add(packets, Ordering::Relaxed);
    }
}

/// At once if the packet's CPU is this one and nothing waits there, which keeps order; else queued.
fn dispatch_hybrid(
    netisr: &Netisr,
    vnet: &Arc<Vnet>,
    epoch: &NetEpoch,
    proto: NetisrProto,
    m: Mbuf,
) -> Result<(), Errno> {
    let worker = netisr.select(proto, &m).ok_or(Errno::ENXIO)?;
    let here = worker.workstream.cpu == curcpu();
    let claimed = here && !mem::replace(&mut worker.workstream.inner.lock().busy, true);
    if !claimed {
        return netisr.enqueue(proto, m);
    }
    if let Some(handler) = vnet.netisr_handler(proto, epoch) {
        let counts = netisr.counts(proto);
        counts.hybrid_dispatched.fetch_add(1, Ordering::Relaxed);
        counts.handled.fetch_add(1, Ordering::Relaxed);
        handler.input(vnet, epoch, m);
    }
    // What was queued meanwhile is the worker's; `busy` stays set for it.
    let signal = {
        let mut inner = worker.workstream.inner.lock();
        inner.busy = inner.pending > 0;
        inner.busy
    };
    if signal {
        worker.swi.sched();
    }
    Ok(())
}

/// Queues a packet for its protocol; never calls it. The packet must say where it came in (`rcvif`).
#[doc(alias = "netisr_queue")]
pub fn queue(_vnet: &Vnet, proto: NetisrProto, m: Mbuf) -> Result<(), Errno> {
    NETISR.get().get().ok_or(Errno::ENXIO)?.enqueue(proto, m)
}

/// The worker: takes all that waits, protocol by protocol, until nothing does.
fn swi_net(netisr: &Netisr, workstream: &Workstream) {
    loop {
        let mut taken: [MbufQueue; NETISR_MAXPROT] = core::array::from_fn(|_| MbufQueue::new());
        {
            let mut inner = workstream.inner.lock();
            if inner.pending == 0 {
                inner.busy = false;
                return;
            }
            inner.pending = 0;
            for (work, taken) in inner.work.iter_mut().zip(&mut taken) {
                mem::swap(&mut work.queue, taken);
            }
        }
        for (proto, queue) in taken.iter_mut().enumerate() {
            if !queue.is_empty() {
                process(netisr, proto, queue);
            }
        }
    }
}

/// Hands packets that came in by one interface in a row to its instance's handler.
fn process(netisr: &Netisr, proto: usize, queue: &mut MbufQueue) {
    let Some(proto) = NetisrProto::from_number(proto) else {
        return queue.clear();
    };
    let epoch = NetEpoch::enter();
    let counts = netisr.counts(proto);
    counts
        .handled
        .fetch_add(queue.len() as u64, Ordering::Relaxed);
    let mut run = MbufQueue::new();
    while let Some(first) = queue.pop() {
        let rcvif: IfIndex = first.pkthdr().rcvif;
        run.push(first);
        while queue.first().is_some_and(|m| m.pkthdr().rcvif == rcvif)
            && let Some(m) = queue.pop()
        {
            run.push(m);
        }
        // The interface may have gone while its packets waited: they go with it.
        let Some(ifp) = ifnet_byindex(rcvif, &epoch) else {
            run.clear();
            continue;
        };
        match ifp.vnet().netisr_handler(proto, &epoch) {
            Some(handler) => handler.input_batch(ifp.vnet(), &epoch, &mut run),
            None => ifp.counters.noproto.add(run.len() as u64),
        }
        run.clear();
    }
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

/// The counters behind `netstat -Q`: for each CPU, each registered protocol.
pub fn workstreams() -> Vec<WorkstreamRow> {
    let Some(netisr) = NETISR.get().get() else {
        return Vec::new();
    };
    let infos = netisr.registered.lock().clone();
    let mut rows = Vec::new();
    for cpu in 0..ncpus().min(MAXCPU) {
        let worker = netisr
            .workers()
            .iter()
            .find(|worker| worker.workstream.cpu == cpu);
        for info in &infos {
            let counts = &netisr.counts.get(cpu)[info.proto as usize];
            let mut row = WorkstreamRow {
                wsid: cpu,
                cpu,
                name: info.name,
                len: 0,
                watermark: 0,
                dispatched: counts.dispatched.load(Ordering::Relaxed),
                hybrid_dispatched: counts.hybrid_dispatched.load(Ordering::Relaxed),
                qdrops: 0,
                queued: 0,
                handled: counts.handled.load(Ordering::Relaxed),
            };
            if let Some(worker) = worker {
                let inner = worker.workstream.inner.lock();
                let work = &inner.work[info.proto as usize];
                row.len = work.queue.len() as u32;
                row.watermark = work.watermark;
                row.qdrops = work.qdrops;
                row.queued = work.queued;
            }
            rows.push(row);
        }
    }
    rows
}

/// The settings behind `netstat -Q`: threads, default limit, highest limit, policy, whether threads are bound.
pub fn configuration() -> Option<(usize, u32, u32, NetisrDispatch, bool)> {
    let netisr = NETISR.get().get()?;
    let tunables = &netisr.tunables;
    let dispatch = NetisrDispatch::from_bits(netisr.dispatch.load(Ordering::Relaxed));
    Some((
        netisr.workers().len(),
        tunables.defaultqlimit.get(),
        tunables.maxqlimit.get(),
        dispatch,
        tunables.bindthreads.get(),
    ))
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
    let Some(netisr) = NETISR.get().get() else {
        return Vec::new();
    };
    let row = |info: &NetisrInfo| ProtoRow {
        info: *info,
        qlimit: netisr.protos[info.proto as usize]
            .qlimit
            .load(Ordering::Relaxed),
    };
    netisr.registered.lock().iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::hosted::Machine;

    #[test]
    fn what_is_looked_at_once_cannot_be_set_later() {
        Machine::builder().run(|| {
            let _vnet = Vnet::new("a");
            for name in ["maxthreads", "bindthreads", "defaultqlimit", "maxqlimit"] {
                let name = format!("net.isr.{name}");
                let before = root().get(&name).expect("a setting");
                assert_eq!(root().set(&name, "2"), Err(Errno::EPERM), "{name}");
                assert_eq!(root().get(&name), Some(before));
            }
            assert!(root().set("net.isr.dispatch", "hybrid").is_ok());
        });
    }
}
