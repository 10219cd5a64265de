//! The wire: two interfaces, one lane each way, in virtual time.

use crate::capture::Capture;
use crate::impair::{InFlight, Lane, Link, LinkStat};
use crate::offload::{self, Request};
use core::time::Duration;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use sys::errno::Errno;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::{cpu_spinwait, critical_enter, critical_exit, ncpus, sbinuptime};
use sys::mbuf::{CsumFlags, How, Mbuf, MbufQueue};
use sys::net::if_ethersubr::{ETHER_HDR_LEN, ETHER_VLAN_ENCAP_LEN};
use sys::net::ifnet::{IfCap, IfDriver, IfFlags, Ifnet, IfnetInit, LinkState, Media};
use sys::net::vnet::Vnet;
use sys::time::Sbintime;

/// Shortest frame on an Ethernet, without FCS.
const MIN_FRAME: usize = 60;

/// What a wire is like.
#[derive(Clone, Debug)]
pub struct WireConfig {
    /// Every random decision follows from it.
    pub seed: u64,
    /// The link from the first interface to the second.
    pub link: Link,
    /// The link back; the same if not given.
    pub back: Option<Link>,
    /// MTU of both interfaces.
    pub mtu: u32,
    /// Offloads both interfaces have, and switch on.
    pub capabilities: IfCap,
    /// Whether short frames are padded, as Ethernet demands.
    pub pad: bool,
    /// Unit number: the interfaces are `sim<unit>`.
    pub unit: u32,
    /// Where to write the frames that cross.
    pub capture: Option<PathBuf>,
}

impl Default for WireConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            link: Link::default(),
            back: None,
            mtu: 1500,
            capabilities: IfCap::empty(),
            pad: true,
            unit: 0,
            capture: None,
        }
    }
}

impl WireConfig {
    /// A wire with checksum offload both ways and TSO.
    pub fn offloading() -> Self {
        Self {
            capabilities: IfCap::TXCSUM | IfCap::RXCSUM | IfCap::TSO4,
            ..Self::default()
        }
    }
}

/// A way across the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dir {
    /// From the first interface to the second.
    AtoB,
    /// From the second to the first.
    BtoA,
}

impl Dir {
    fn index(self) -> usize {
        match self {
            Self::AtoB => 0,
            Self::BtoA => 1,
        }
    }
}

/// What becomes of a frame that a hook has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, as the hook left it.
    Pass,
    /// It is gone.
    Drop,
}

/// Sees each frame as it is put on the wire: its way, its number (from 1, each way on its own), its bytes. It may
/// look at the wire and inject frames, but not sleep.
pub type Hook = Box<dyn FnMut(Dir, u64, &mut Vec<u8>) -> Verdict + Send>;

/// Sees each frame as it reaches the other end, at a time since boot. It may not use the stack or the wire.
pub type Observer = Box<dyn FnMut(Dir, Duration, &[u8]) + Send>;

/// What crossed the wire, and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireStat {
    /// The lane's own counts.
    pub link: LinkStat,
    /// Frames a hook dropped.
    pub hook_drops: u64,
    /// Frames longer than the MTU allows.
    pub oversized: u64,
    /// Requests to the NIC that did not fit their frame.
    pub bad_requests: u64,
    /// Frames lost for want of an mbuf at the receiver.
    pub no_mbuf: u64,
    /// Frames handed to the receiving stack.
    pub delivered: u64,
    /// TSO frames cut.
    pub tso_frames: u64,
    /// Segments they were cut into.
    pub tso_segments: u64,
}

/// A wire between two interfaces. Its handles share it.
#[derive(Clone)]
pub struct Wire(Arc<Shared>);

struct Shared {
    config: WireConfig,
    ports: OnceLock<[Arc<Port>; 2]>,
    lanes: [Mutex<LaneState>; 2],
    hook: Mutex<HookSlot>,
    observer: Mutex<Option<Observer>>,
    capture: Mutex<Option<Capture>>,
}

enum HookSlot {
    Free(Option<Hook>),
    /// Looking at a frame.
    Busy,
}

struct LaneState {
    lane: Lane,
    stat: WireStat,
    frames: u64,
    flying: InFlight<Vec<u8>>,
    down: bool,
}

/// One end: what an interface's driver is, and the callout that delivers to it.
struct Port {
    wire: Weak<Shared>,
    ifp: OnceLock<Weak<Ifnet>>,
    /// The way out from here.
    out: Dir,
    /// The way in to here.
    into: Dir,
    arrival: Callout,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

fn uptime() -> Duration {
    Duration::from_nanos(sbinuptime().as_ns() as u64)
}

impl Wire {
    /// A wire that joins nothing yet.
    ///
    /// Panics if the capture can't be written: a test that asks for one wants to know.
    pub fn new(config: WireConfig) -> Self {
        let lane = |link: &Link, salt: u64| {
            Mutex::new(LaneState {
                lane: Lane::new(link.clone(), config.seed.wrapping_mul(2).wrapping_add(salt)),
                stat: WireStat::default(),
                frames: 0,
                flying: InFlight::default(),
                down: false,
            })
        };
        let lanes = [
            lane(&config.link, 0),
            lane(config.back.as_ref().unwrap_or(&config.link), 1),
        ];
        let capture = config.capture.as_deref().map(|path| {
            Capture::create(path).unwrap_or_else(|e| panic!("capture {}: {e}", path.display()))
        });
        Self(Arc::new(Shared {
            config,
            ports: OnceLock::new(),
            lanes,
            hook: Mutex::new(HookSlot::Free(None)),
            observer: Mutex::new(None),
            capture: Mutex::new(capture),
        }))
    }

    /// Attaches an interface to each instance and joins them. Once per wire.
    pub fn connect(&self, a: &Arc<Vnet>, b: &Arc<Vnet>) -> (Arc<Ifnet>, Arc<Ifnet>) {
        let port = |out, into| {
            Arc::new(Port {
                wire: Arc::downgrade(&self.0),
                ifp: OnceLock::new(),
                out,
                into,
                arrival: Callout::new(),
            })
        };
        let ports = [port(Dir::AtoB, Dir::BtoA), port(Dir::BtoA, Dir::AtoB)];
        let attach = |vnet: &Arc<Vnet>, port: &Arc<Port>, end: u8| {
            let config = &self.0.config;
            let unit = config.unit.to_be_bytes();
            let lladdr = [0x02, 0x53, unit[2], unit[3], 0, end];
            let init = IfnetInit {
                mtu: config.mtu,
                capabilities: config.capabilities | IfCap::JUMBO_MTU | IfCap::LINKSTATE,
                capenable: config.capabilities | IfCap::LINKSTATE,
                baudrate: config.link.rate.unwrap_or(1_000_000_000),
                ..IfnetInit::ether("sim", config.unit, lladdr)
            };
            // The driver keeps the wire alive; the wire knows its ports, and they it, only weakly.
            let driver = SimDriver {
                wire: Arc::clone(&self.0),
                port: Arc::clone(port),
            };
            let ifp = vnet.if_attach(init, Arc::new(driver));
            let _ = port.ifp.set(Arc::downgrade(&ifp));
            ifp.set_link_state(LinkState::Up);
            ifp
        };
        let ends = (attach(a, &ports[0], 1), attach(b, &ports[1], 2));
        assert!(self.0.ports.set(ports).is_ok(), "a wire has two ends");
        ends
    }

    /// Lets `hook` see each frame from now on; `None` stops it.
    pub fn set_hook(&self, hook: Option<Hook>) {
        loop {
            let mut slot = lock(&self.0.hook);
            if let HookSlot::Free(old) = &mut *slot {
                let old = std::mem::replace(old, hook);
                drop(slot);
                drop(old);
                return;
            }
            drop(slot);
            cpu_spinwait();
        }
    }

    /// Lets `observer` see each frame that arrives from now on; `None` stops it.
    pub fn set_observer(&self, observer: Option<Observer>) {
        *lock(&self.0.observer) = observer;
    }

    /// Changes the properties of one way across.
    pub fn change_link(&self, dir: Dir, change: impl FnOnce(&mut Link)) {
        change(lock(&self.0.lanes[dir.index()]).lane.link_mut());
    }

    /// Puts a frame of a test's own on the wire, past hook and faults.
    pub fn inject(&self, dir: Dir, frame: &[u8]) {
        let now = uptime();
        self.0.record(now, frame);
        lock(&self.0.lanes[dir.index()])
            .flying
            .push(now, frame.to_vec());
        self.0.schedule(dir);
    }

    /// Puts a frame of a test's own on the wire like those of an interface, but past the hook: it takes the line's time,
    /// and has its faults.
    pub fn offer(&self, dir: Dir, frame: &[u8]) {
        let now = uptime();
        self.0.record(now, frame);
        {
            let lane = &mut *lock(&self.0.lanes[dir.index()]);
            let flying = &mut lane.flying;
            lane.lane
                .offer(now, frame.to_vec(), |at, frame| flying.push(at, frame));
        }
        self.0.schedule(dir);
    }

    /// Pulls the plug or puts it back: frames are lost and both interfaces see the link go.
    pub fn set_link_up(&self, up: bool) {
        for lane in &self.0.lanes {
            lock(lane).down = !up;
        }
        let state = if up { LinkState::Up } else { LinkState::Down };
        for port in self.0.ports.get().into_iter().flatten() {
            if let Some(ifp) = port.ifp() {
                ifp.set_link_state(state);
            }
        }
    }

    /// What happened on one way across.
    pub fn stat(&self, dir: Dir) -> WireStat {
        let lane = lock(&self.0.lanes[dir.index()]);
        WireStat {
            link: lane.lane.stat(),
            ..lane.stat
        }
    }

    /// Frames on the wire now, both ways.
    pub fn in_flight(&self) -> usize {
        self.0.lanes.iter().map(|l| lock(l).flying.len()).sum()
    }
}

impl Shared {
    fn record(&self, now: Duration, frame: &[u8]) {
        if let Some(capture) = &mut *lock(&self.capture) {
            capture.write(now, frame);
        }
    }

    /// Puts one finished frame on the wire.
    fn send(&self, dir: Dir, mut frame: Vec<u8>) {
        if self.config.pad && frame.len() < MIN_FRAME {
            frame.resize(MIN_FRAME, 0);
        }
        let now = uptime();
        let lane = &self.lanes[dir.index()];
        let number = {
            let mut lane = lock(lane);
            lane.frames += 1;
            lane.frames
        };
        if self.ask_hook(dir, number, &mut frame) == Verdict::Drop {
            lock(lane).stat.hook_drops += 1;
            return;
        }
        if lock(lane).down {
            return;
        }
        self.record(now, &frame);
        let lane = &mut *lock(lane);
        let flying = &mut lane.flying;
        lane.lane
            .offer(now, frame, |at, frame| flying.push(at, frame));
    }

    fn ask_hook(&self, dir: Dir, number: u64, frame: &mut Vec<u8>) -> Verdict {
        // The hook may come back to the wire, or let another virtual CPU run: it is taken out meanwhile, and
        // whoever needs it spins. Not preempted, or the one who spins may be the one who preempts.
        critical_enter();
        let mut hook = loop {
            // Not in the head of the match, which would hold the host's lock while others run.
            let taken = std::mem::replace(&mut *lock(&self.hook), HookSlot::Busy);
            match taken {
                HookSlot::Busy => cpu_spinwait(),
                HookSlot::Free(hook) => break hook,
            }
        };
        let verdict = hook
            .as_mut()
            .map_or(Verdict::Pass, |hook| hook(dir, number, frame));
        *lock(&self.hook) = HookSlot::Free(hook);
        critical_exit();
        verdict
    }

    /// Sees to it that the receiver is called for the next arrival.
    fn schedule(&self, dir: Dir) {
        let next = lock(&self.lanes[dir.index()]).flying.next_at();
        let Some(ports) = self.ports.get() else {
            return;
        };
        let receiver = &ports[1 - dir.index()];
        if let Some(at) = next {
            let wait = at.saturating_sub(uptime());
            let wait = Sbintime::from_ns(wait.as_nanos() as i64);
            // Always on one CPU: two would hand up frames side by side, and a NIC keeps their order.
            let cpu = dir.index() % ncpus();
            receiver.arrival.reset_on(wait, cpu, receiver);
        }
    }
}

impl Port {
    fn ifp(&self) -> Option<Arc<Ifnet>> {
        self.ifp.get()?.upgrade()
    }
}

impl CalloutTarget for Port {
    /// Hands all frames that have arrived to the stack, in one batch.
    fn callout(self: Arc<Self>, _now: Sbintime) {
        let (Some(wire), Some(ifp)) = (self.wire.upgrade(), self.ifp()) else {
            return;
        };
        let now = uptime();
        let mut batch = MbufQueue::new();
        loop {
            let due = lock(&wire.lanes[self.into.index()]).flying.pop_due(now);
            let Some(frame) = due else { break };
            if !ifp.is_running() {
                continue;
            }
            if let Some(observer) = &mut *lock(&wire.observer) {
                observer(self.into, now, &frame);
            }
            let made = receive(&ifp, &frame);
            let mut lane = lock(&wire.lanes[self.into.index()]);
            match made {
                Some(m) => {
                    lane.stat.delivered += 1;
                    batch.push(m);
                }
                None => lane.stat.no_mbuf += 1,
            }
        }
        if !batch.is_empty() {
            let epoch = NetEpoch::enter();
            ifp.if_input_batch(&epoch, &mut batch);
        }
        wire.schedule(self.into);
    }
}

/// Makes the packet that a NIC would hand up.
fn receive(ifp: &Ifnet, frame: &[u8]) -> Option<Mbuf> {
    let Some(mut m) = Mbuf::from_bytes(frame, How::NoWait) else {
        ifp.counters.iqdrops.inc();
        return None;
    };
    let checked = ifp.capenable().contains(IfCap::RXCSUM);
    let hdr = m.pkthdr_mut();
    hdr.rcvif = ifp.if_index;
    if checked {
        let found = offload::verify(frame);
        hdr.csum_flags = found;
        if found.contains(CsumFlags::DATA_VALID) {
            hdr.csum_data = 0xffff;
        }
    }
    Some(m)
}

/// An interface's driver: one end of the wire.
struct SimDriver {
    wire: Arc<Shared>,
    port: Arc<Port>,
}

impl SimDriver {
    fn stat(&self, count: impl FnOnce(&mut WireStat)) {
        count(&mut lock(&self.wire.lanes[self.port.out.index()]).stat);
    }
}

impl IfDriver for SimDriver {
    fn transmit(&self, ifp: &Ifnet, m: Mbuf) -> Result<(), Errno> {
        let hdr = m.pkthdr();
        let request = Request {
            flags: hdr.csum_flags,
            l2: hdr.l2hlen.into(),
            l3: hdr.l3hlen.into(),
            l4: hdr.l4hlen.into(),
            segment: hdr.tso_segsz.into(),
            csum_offset: hdr.csum_data as usize,
        };
        let mut frame = Vec::with_capacity(m.pkt_len());
        for piece in m.segments() {
            frame.extend_from_slice(piece);
        }
        drop(m);
        let Ok(frames) = offload::apply(frame, &request) else {
            self.stat(|s| s.bad_requests += 1);
            ifp.counters.oerrors.inc();
            return Err(Errno::EINVAL);
        };
        if frames.len() > 1 {
            self.stat(|s| {
                s.tso_frames += 1;
                s.tso_segments += frames.len() as u64;
            });
        }
        let limit = ifp.mtu() as usize + ETHER_HDR_LEN + ETHER_VLAN_ENCAP_LEN;
        for frame in frames {
            if frame.len() > limit {
                self.stat(|s| s.oversized += 1);
                ifp.counters.oerrors.inc();
                continue;
            }
            self.wire.send(self.port.out, frame);
        }
        self.wire.schedule(self.port.out);
        Ok(())
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::OACTIVE);
        Ok(())
    }

    fn stop(&self, ifp: &Ifnet) {
        ifp.set_drv_flags(IfFlags::empty(), IfFlags::RUNNING | IfFlags::OACTIVE);
    }

    fn media_status(&self, ifp: &Ifnet) -> Option<Media> {
        Some(Media {
            speed: (ifp.baudrate() / 1_000_000) as u32,
            full_duplex: true,
            active: ifp.link_state() == LinkState::Up,
        })
    }

    fn detach(&self, _ifp: &Ifnet) {
        self.port.arrival.drain();
    }
}

#[cfg(test)]
mod tests;
