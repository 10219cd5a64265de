//! One stack whose network is the input: frames go in, what comes out is looked at, and nothing is left behind.

use super::frame::{self, Layer, OUR_IP, OUR_IP6, OUR_MAC, PEER_IP, PEER_IP6, PEER_MAC, PORT};
use super::input::{Record, records};
use core::net::{Ipv4Addr, Ipv6Addr};
use core::ops::Deref;
use netinet::vnet::InetVnet;
use netsim::station::Station;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use sys::counter::Counter;
use sys::errno::Errno;
use sys::kern::kern_mbuf::MbufStat;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::{Builder, Machine, pump};
use sys::machine::sbinuptime;
use sys::mbuf::Mbuf;
use sys::net::ifnet::{IfDriver, IfFlags, Ifnet, IfnetInit};
use sys::net::vnet::Vnet;
use sys::socket::{AF_INET, AF_INET6, MsgFlags, SockAddr, SockType};
use sys::time::Sbintime;

/// Inputs after which the stack is taken apart and made anew.
const LIFE: u32 = 2048;
/// Longest that something waits in a stack that hears nothing: a half-open connection that is answered again and again.
const LINGER: Sbintime = Sbintime::from_s(1300);
/// Inputs after which fragments are waited for.
const FRAGMENTS: u32 = 16;
/// Longest that a fragment waits for others.
const PATIENCE: Sbintime = Sbintime::from_s(65);
/// Frames that the driver keeps for a look at them.
const KEPT: usize = 256;

/// Locks, whoever panicked before.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

/// The interface's driver: keeps what the stack sends.
#[derive(Default)]
struct Tap {
    sent: Mutex<VecDeque<Vec<u8>>>,
}

impl IfDriver for Tap {
    fn transmit(&self, _ifp: &Ifnet, m: Mbuf) -> Result<(), Errno> {
        let mut frame = Vec::with_capacity(m.pkt_len());
        for piece in m.segments() {
            frame.extend_from_slice(piece);
        }
        let mut sent = lock(&self.sent);
        if sent.len() == KEPT {
            sent.pop_front();
        }
        sent.push_back(frame);
        Ok(())
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::OACTIVE);
        Ok(())
    }

    fn stop(&self, ifp: &Ifnet) {
        ifp.set_drv_flags(IfFlags::empty(), IfFlags::RUNNING | IfFlags::OACTIVE);
    }
}

/// A stack of both versions with an interface.
pub struct Net {
    station: Station,
    tap: Arc<Tap>,
    /// Which of the counters that have names tell what became of a frame.
    outcome: Vec<bool>,
}

/// The counters that have names.
fn named(inet: &InetVnet) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
    let first = inet.arpstat.iter().chain(inet.ipstat.iter());
    let second = inet.udpstat.iter().chain(inet.tcp.stat.iter());
    first.chain(second).chain(inet.ip6stat.iter())
}

impl Deref for Net {
    type Target = Station;

    fn deref(&self) -> &Station {
        &self.station
    }
}

impl Net {
    /// A stack on the machine that runs already.
    pub fn new() -> Net {
        let believe_routers = |vnet: &Vnet| {
            let set = vnet.sysctl.set("net.inet6.ip6.accept_rtadv", "1");
            set.expect("the variable is known");
        };
        let tap = Arc::new(Tap::default());
        let init = IfnetInit::ether("tap", 0, OUR_MAC);
        let station = Station::new("fuzz", believe_routers, init, tap.clone());
        let station = station.expect("the first attachment");
        for (addr, prefix_len) in [(OUR_IP.into(), 24), (OUR_IP6.into(), 64)] {
            let set = station.address(addr, prefix_len);
            set.expect("a new address");
        }
        for gateway in [PEER_IP.into(), PEER_IP6.into()] {
            let set = station.gateway(gateway, PEER_MAC);
            set.expect("a new neighbour and the first route");
        }
        lock(&tap.sent).clear();
        let outcome = named(&station.inet)
            .map(|(name, _, _)| !ARRIVAL.contains(&name))
            .collect();
        Net {
            outcome,
            station,
            tap,
        }
    }

    /// The next frame that the stack has sent; panics if something is wrong with it.
    pub fn take_sent(&self) -> Option<Vec<u8>> {
        let frame = lock(&self.tap.sent).pop_front()?;
        if let Some(fault) = frame::fault(&frame) {
            panic!("the stack sends a frame with a fault ({fault}): {frame:02x?}");
        }
        Some(frame)
    }

    /// Forgets neighbours that were learned, and what waits for their answers.
    pub fn flush_neighbours(&self) {
        if let Some(llt) = self.ifp.lltable() {
            llt.flush(false);
        }
        if let Some(llt) = self.ifp.lltable6() {
            llt.flush(false);
        }
    }

    /// What the stack holds: mbufs, clusters, control blocks, half-open connections, fragments.
    pub fn held(&self) -> Held {
        let (mbufs, clusters) = MbufStat::snapshot().in_use();
        let inet = &self.inet;
        Held {
            mbufs,
            clusters,
            tcp: inet.tcp.tcbinfo.count(),
            udp: inet.udbinfo.count(),
            raw: inet.ripcbinfo.count(),
            syncache: inet.tcp.syncache.count(),
            fragments: inet.reass.fragments() + inet.frag6.fragments(),
            datagrams: inet.reass.packets() + inet.frag6.packets(),
        }
    }

    /// Counts what has become of frames: all counters but those of arrival and of sending.
    pub fn outcomes(&self) -> u64 {
        let inet = &self.inet;
        let counting = self.outcome.iter().zip(named(inet));
        let counting = counting.filter(|(outcome, _)| **outcome);
        let named: u64 = counting.map(|(_, (_, _, value))| value).sum();
        let (icmp, icmp6, ifp) = (&inet.icmpstat, &inet.icmp6stat, &self.ifp.counters);
        let others = [
            &icmp.icps_tooshort,
            &icmp.icps_checksum,
            &icmp.icps_badlen,
            &icmp6.icp6s_tooshort,
            &icmp6.icp6s_checksum,
            &icmp6.icp6s_badlen,
            &ifp.ierrors,
            &ifp.iqdrops,
            &ifp.noproto,
        ];
        // What ICMP takes it counts by type.
        let types = icmp.icps_inhist.iter().chain(icmp6.icp6s_inhist.iter());
        let others = others.into_iter().chain(types).map(Counter::fetch);
        named + others.sum::<u64>()
    }

    /// Lets what lingers expire, then takes the stack apart.
    pub fn destroy(self) {
        pump(sbinuptime() + LINGER);
        self.station.destroy();
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

/// Counters that say that a frame has come, or has gone out, and not what has become of it.
const ARRIVAL: [&str; 13] = [
    "received",
    "txrequests",
    "ips_total",
    "ips_swcsum_in",
    "ips_swcsum_out",
    "ips_delivered",
    "ips_localout",
    "udps_ipackets",
    "tcps_rcvtotal",
    "ip6s_total",
    "ip6s_delivered",
    "ip6s_localout",
    "ips_fragmented",
];

/// What a stack holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    mbufs: u64,
    clusters: u64,
    tcp: usize,
    udp: usize,
    raw: usize,
    syncache: u32,
    fragments: u32,
    datagrams: u32,
}

/// Sockets that listen on both versions.
struct Sockets {
    listeners: [SocketHandle; 2],
    datagrams: [SocketHandle; 2],
    raw: [SocketHandle; 2],
}

impl Sockets {
    fn new(net: &Net) -> Self {
        let any = [
            (AF_INET, SockAddr::v4(Ipv4Addr::UNSPECIFIED, PORT)),
            (AF_INET6, SockAddr::v6(Ipv6Addr::UNSPECIFIED, PORT)),
        ];
        let open = |af, ty, proto| {
            let so = SocketHandle::socket(&net.vnet, af, ty, proto).expect("a socket");
            so.set_nonblocking(true);
            so
        };
        let listeners = any.map(|(af, addr)| {
            let so = open(af, SockType::Stream, 0);
            so.bind(&addr).expect("a free port");
            so.listen(16).expect("listening");
            so
        });
        let datagrams = any.map(|(af, addr)| {
            let so = open(af, SockType::Dgram, 0);
            so.bind(&addr).expect("a free port");
            so
        });
        let raw = [(AF_INET, 1), (AF_INET6, 58)].map(|(af, proto)| open(af, SockType::Raw, proto));
        Self {
            listeners,
            datagrams,
            raw,
        }
    }

    /// Reads all datagrams; how many there were.
    fn drain(&self) -> u64 {
        let mut bytes = [0; 4096];
        let mut count = 0;
        for so in self.datagrams.iter().chain(&self.raw) {
            while so.recv(&mut bytes, MsgFlags::DONTWAIT).is_ok() {
                count += 1;
            }
        }
        count
    }

    /// Accepts all connections, reads what they have, and resets them.
    fn reset_connections(&self) {
        let mut bytes = [0; 4096];
        for listener in &self.listeners {
            loop {
                match listener.accept_nowait() {
                    Ok((so, _)) => {
                        while so.recv(&mut bytes, MsgFlags::DONTWAIT).is_ok_and(|n| n > 0) {}
                        so.set_linger(Some(0)).expect("the option is known");
                    }
                    Err(Errno::ECONNABORTED) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// A stack that takes one input after the other.
pub struct Stack {
    running: Option<(Net, Sockets)>,
    /// What it holds when nothing goes on.
    rest: Option<Held>,
    /// mbufs and clusters in use before it was made.
    before: (u64, u64),
    inputs: u32,
    /// What the stack's last TCP segment expects and continues with: sequence and acknowledgement of an answer.
    answer: (u32, u32),
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}

impl Stack {
    /// A stack that will be made when there is an input.
    pub fn new() -> Self {
        Self {
            running: None,
            rest: None,
            before: (0, 0),
            inputs: 0,
            answer: (0, 0),
        }
    }

    /// Whether the next input meets a new stack, so that what came before does not matter.
    pub fn is_fresh(&self) -> bool {
        self.running.is_none()
    }

    /// Feeds an input's frames to the stack. Panics if it does, if it sends anything malformed, if it loses a frame without
    /// counting it, and if it does not give back what the frames cost.
    pub fn run(&mut self, layers: &[Layer], input: &[u8]) {
        if self.running.is_none() {
            self.start();
        }
        // What is limited by the second begins anew.
        pump(sbinuptime() + Sbintime::SECOND);
        let mut all = records(input).enumerate();
        for (number, record) in &mut all {
            let layer = layers[(number + usize::from(record.control.0 >> 7)) % layers.len()];
            self.one(layer, &record);
        }
        self.inputs += 1;
        self.settle();
        if self.inputs == LIFE {
            self.stop();
        }
    }

    fn start(&mut self) {
        self.before = MbufStat::snapshot().in_use();
        let net = Net::new();
        let sockets = Sockets::new(&net);
        pump(sbinuptime() + Sbintime::from_s(5));
        while net.take_sent().is_some() {}
        net.flush_neighbours();
        self.rest = Some(net.held());
        self.running = Some((net, sockets));
        self.inputs = 0;
        self.answer = (0, 0);
    }

    /// Takes the stack apart and looks whether all memory is back.
    pub fn stop(&mut self) {
        let Some((net, sockets)) = self.running.take() else {
            return;
        };
        drop(sockets);
        net.destroy();
        let after = MbufStat::snapshot().in_use();
        assert_eq!(
            self.before, after,
            "mbufs and clusters before and after a stack"
        );
    }

    fn one(&mut self, layer: Layer, record: &Record<'_>) {
        let Some((net, sockets)) = &self.running else {
            return;
        };
        let pause = record.control.pause_us();
        if pause > 0 {
            pump(sbinuptime() + Sbintime::from_us(pause as i64));
        }
        let mut changed;
        let mut record = *record;
        if matches!(layer, Layer::Tcp | Layer::Tcp6) && record.control.0 >> 6 == 1 {
            changed = record.bytes.to_vec();
            follow(&mut changed, self.answer);
            record.bytes = &changed;
        }
        let frame = frame::frame(layer, &record);
        let before = net.outcomes();
        // FreeBSD logs what it ignores of a handshake's last ACK, and does not count it.
        let half_open = net.inet.tcp.syncache.count() > 0;
        net.inject(&frame);
        let taken = sockets.drain();
        let mut answers = 0;
        while let Some(sent) = net.take_sent() {
            answers += 1;
            self.answer = answer_to(&sent).unwrap_or(self.answer);
        }
        let counted = net.outcomes() != before || taken > 0 || answers > 0;
        let connected = Some(net.inet.tcp.tcbinfo.count()) != self.rest.map(|rest| rest.tcp);
        assert!(
            counted || may_vanish(&frame, connected || half_open),
            "a frame is neither taken nor counted as dropped: {frame:02x?}"
        );
    }

    /// Ends what the frames have begun, and checks that nothing is left of it.
    fn settle(&mut self) {
        let Some((net, sockets)) = &self.running else {
            return;
        };
        sockets.reset_connections();
        sockets.drain();
        net.flush_neighbours();
        let rest = self.rest;
        let mut waited = Sbintime::ZERO;
        let held = net.held();
        if held.fragments > 0 && !self.inputs.is_multiple_of(FRAGMENTS) {
            // The longest of waits; the fragments of the next inputs may well meet these.
            return;
        }
        while Some(net.held()) != rest {
            assert!(
                waited < LINGER,
                "the stack holds {:?}, at rest {rest:?}",
                net.held()
            );
            pump(sbinuptime() + PATIENCE);
            waited += PATIENCE;
            sockets.reset_connections();
            sockets.drain();
            net.flush_neighbours();
        }
        while net.take_sent().is_some() {}
    }
}

/// Makes sequence and acknowledgement number of a segment count from what the stack expects.
fn follow(segment: &mut [u8], (seq, ack): (u32, u32)) {
    for (at, from) in [(4, seq), (8, ack)] {
        if let Some(field) = segment.get_mut(at..at + 4) {
            let [a, b, c, d] = *field else { return };
            let sum = u32::from_be_bytes([a, b, c, d]).wrapping_add(from);
            field.copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// Sequence and acknowledgement number of an answer to a segment that the stack sent.
pub fn answer_to(frame: &[u8]) -> Option<(u32, u32)> {
    let at = match frame.get(12..14)? {
        [8, 0] if frame.get(23) == Some(&6) => 14 + usize::from(frame[14] & 15) * 4,
        [0x86, 0xdd] if frame.get(20) == Some(&6) => 54,
        _ => return None,
    };
    let tcp = frame.get(at..)?;
    let word = |at: usize| {
        let bytes = tcp.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*bytes))
    };
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    let flags = *tcp.get(13)?;
    let len = tcp.len().checked_sub(header)? as u32;
    let control = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
    Some((word(8)?, word(4)?.wrapping_add(len + control)))
}

/// Whether a frame may end without a word: of these FreeBSD counts only that they have come. `connected`: a connection
/// may have taken it, or found it too odd for a counter.
fn may_vanish(frame: &[u8], connected: bool) -> bool {
    let ipv4 = frame.get(12..14) == Some(&[8, 0]);
    let many = |addr: &[u8]| matches!(addr, [224..=255, ..] | [10, 0, 0, 255] | [0, 0, 0, 0]);
    let to_all = frame[0] & 1 != 0 || ipv4 && frame.get(30..34).is_some_and(many);
    // Nor is a sender answered that stands for many (`tcp_dropwithreset`).
    let from_all = ipv4 && frame.get(26..30).is_some_and(many);
    let tcp = match frame.get(12..14) {
        // ARP that neither asks nor answers, and what seems to be our own.
        Some([8, 6]) => {
            let other = !matches!(frame.get(20..22), Some([0, 1 | 2]));
            return frame.len() >= 42 && (other || frame[22..28] == OUR_MAC);
        }
        Some([8, 0]) if frame.get(23) == Some(&6) => {
            frame.get(14 + usize::from(frame[14] & 15) * 4..)
        }
        Some([0x86, 0xdd]) => {
            // "No next header": nothing is left to be taken or dropped (RFC 8200 §4.7).
            let (proto, at) = match frame::transport6(&frame[14..]) {
                Some((59, _)) => return true,
                Some(found) => found,
                None => return false,
            };
            frame.get(14 + at..).filter(|_| proto == 6)
        }
        _ => None,
    };
    // A segment that nobody waits for is answered with a reset, but a reset is not, nor is what came to a group.
    tcp.and_then(|tcp| tcp.get(13))
        .is_some_and(|flags| flags & 4 != 0 || to_all || from_all || connected)
}

/// The machine that targets share among their inputs: one CPU, and time without end.
pub fn machine() -> Builder {
    Machine::builder()
        .seed(1)
        .cpus(1)
        .quiet()
        .time_limit(Sbintime::from_s(i64::from(i32::MAX)))
}
