//! Plays a scenario: two stacks, a wire, and the ends of all connections in threads of their own.

use crate::lab::{Task, lock, now_ms, pass_ms, spawn};
use crate::runs::end::{Told, live, prepare};
use crate::runs::judge::{self, Accepted};
use crate::runs::scenario::{Connection, Dice, Event, Family, Meet, Scenario, Side};
use crate::runs::trouble::{self, Shared};
use core::net::{Ipv4Addr, Ipv6Addr};
use netinet::if_ether::arp_flush;
use netinet::netinet6::in6::in6_update_ifa;
use netinet::tcp_subr::TcpInpcb;
use netsim::wire::{Dir, WireConfig};
use netsim::world::{Host, World};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use sys::errno::Errno;
use sys::kern::kern_mbuf::MbufStat;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::Machine;
use sys::net::ifnet::In6Iff;
use sys::net::vnet::Vnet;
use sys::socket::{AF_INET, AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, SockAddr, SockType};
use sys::socketvar::PollEvents;
use sys::time::Sbintime;

/// Addresses of the hosts in IPv6.
const ADDR6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
];
/// Where servers listen for IPv4, and for IPv6 and IPv4 both.
const PORTS: [u16; 2] = [80, 81];
/// Where nobody listens.
const NOBODY: u16 = 82;
/// Port of the other end of the first connection, if it connects too; the others follow.
const FIRST_PEER_PORT: u16 = 30_000;
/// Port of the first client; the others follow.
pub const FIRST_PORT: u16 = 20_000;
/// What everything must be over by, in ms after the last thing planned: two hours of silence, eight keepalive probes,
/// thirteen retransmissions; or a reader's patience twice, if it has read a part before.
const PATIENCE_MS: i64 = 7 * 3_600_000;
/// What must be forgotten by, in ms after all is over.
const FORGET_MS: i64 = 3 * 3_600_000;

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Of every frame sent and received with its time, and of what every end told.
    pub digest: u64,
    /// Frames sent and received.
    pub frames: u64,
    /// Virtual time until all ends were done, in ms.
    pub took_ms: i64,
    /// Bytes that arrived, as meant.
    pub bytes: u64,
    /// Segments sent again.
    pub again: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Ends by how it went: as meant, told of an error.
    pub ends: [u64; 2],
    /// Errors by name.
    pub errors: Vec<(&'static str, u64)>,
}

/// Plays `scenario` on a machine of its own. Returns what came of it, and all that was wrong, in words.
pub fn play(scenario: &Scenario, capture: Option<PathBuf>) -> (Outcome, Vec<String>) {
    let machine = Machine::builder()
        .seed(scenario.seed)
        .cpus(scenario.cpus)
        .quiet();
    machine.run(|| {
        let start = Held::now();
        let world = world_of(scenario, capture);
        let (outcome, mut wrong) = on(scenario, &world);
        world.destroy();
        let end = Held::now();
        if start != end {
            wrong.push(format!(
                "{start:?} before the world was made, {end:?} afterwards"
            ));
        }
        (outcome, wrong)
    })
}

/// What must be as at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    mbufs_and_clusters: (u64, u64),
    sockets: String,
}

impl Held {
    fn now() -> Held {
        let sockets = sys::sysctl::root().get("kern.ipc.numopensockets");
        Held {
            mbufs_and_clusters: MbufStat::snapshot().in_use(),
            sockets: sockets.unwrap_or_else(|| "0".into()),
        }
    }
}

fn world_of(scenario: &Scenario, capture: Option<PathBuf>) -> World {
    let [link, back] = scenario.links.clone();
    let world = World::new(WireConfig {
        seed: scenario.seed,
        link,
        back: Some(back),
        mtu: 9000,
        capabilities: scenario.capabilities,
        capture,
        ..WireConfig::default()
    });
    for side in Side::BOTH {
        let host = host(&world, side);
        host.ifp
            .set_mtu(scenario.mtu[side.index()])
            .expect("an MTU that the wire takes");
        if v6(scenario) {
            let addr = ADDR6[side.index()];
            in6_update_ifa(&host.inet, &host.ifp, addr, 64, In6Iff::NODAD).expect("an address");
        }
        for (name, value) in &scenario.settings[side.index()] {
            crate::lab::set(host, name, value);
        }
    }
    world
}

fn v6(scenario: &Scenario) -> bool {
    scenario.mtu.iter().all(|&mtu| mtu >= 1280)
}

fn host(world: &World, side: Side) -> &Host {
    match side {
        Side::A => &world.a,
        Side::B => &world.b,
    }
}

/// Bytes that differ from place to place, and from end to end.
fn pattern(seed: u64, len: usize) -> Arc<Vec<u8>> {
    let mut dice = Dice::new(seed);
    let mut bytes = Vec::with_capacity(len + 4);
    while bytes.len() < len {
        bytes.extend_from_slice(&dice.word().to_le_bytes());
    }
    bytes.truncate(len);
    Arc::new(bytes)
}

/// What the ends of a connection say: the client, the server.
type Speeches = [Arc<Vec<u8>>; 2];

/// Everything that the threads of a run need.
struct Play {
    scenario: Scenario,
    speeches: Vec<Speeches>,
    shared: Arc<Mutex<Shared>>,
    /// Servers at work, or what is wrong with who came.
    servers: Mutex<Vec<Arriving>>,
    over: AtomicBool,
}

enum Arriving {
    Server(usize, Task<Told>),
    Stranger(String),
}

fn on(scenario: &Scenario, world: &World) -> (Outcome, Vec<String>) {
    let speeches = scenario.connections.iter().enumerate().map(|(i, c)| {
        let seed = scenario.seed.wrapping_mul(1_000).wrapping_add(i as u64 * 2);
        [0, 1].map(|end| pattern(seed + end as u64, c.ends[end].total()))
    });
    let shared = Arc::new(Mutex::new(Shared::new(scenario.connections.len())));
    let play = Arc::new(Play {
        scenario: scenario.clone(),
        speeches: speeches.collect(),
        shared: shared.clone(),
        servers: Mutex::default(),
        over: AtomicBool::new(false),
    });
    let troubles = Arc::new(Mutex::new(false));
    let hook = trouble::hook(scenario, &world.wire, shared.clone(), troubles.clone());
    world.wire.set_hook(Some(hook));
    world
        .wire
        .set_observer(Some(trouble::observer(shared.clone())));
    if scenario.acquainted {
        for side in Side::BOTH {
            acquaint(scenario, world, side);
        }
    }
    *lock(&troubles) = true;

    let sockets = Held::now().sockets;
    let acceptors = Side::BOTH.map(|side| accept_all(&play, host(world, side), side));
    let begun = now_ms();
    start_events(&play, world, begun);
    let clients: Vec<Task<Told>> = (0..scenario.connections.len())
        .map(|i| start_client(&play, host(world, scenario.connections[i].from), i))
        .collect();
    for (i, connection) in scenario.connections.iter().enumerate() {
        if connection.meet == Meet::Simultaneous {
            let task = start_peer(&play, host(world, connection.to()), i);
            lock(&play.servers).push(Arriving::Server(i, task));
        }
    }
    let mut blocks = Blocks::default();
    let late = begun + scenario.planned_ms() as i64 + PATIENCE_MS;
    let mut wrong = Vec::new();
    loop {
        let waited = now_ms() - begun;
        pass_ms((waited / 20).clamp(20, 10_000));
        blocks.look(world);
        let served = lock(&play.servers).iter().all(|a| {
            matches!(a, Arriving::Server(_, task) if task.is_done())
                || matches!(a, Arriving::Stranger(_))
        });
        if served && clients.iter().all(Task::is_done) {
            break;
        }
        if now_ms() > late {
            wrong.push(stuck(world, &play, &clients, now_ms() - begun));
            break;
        }
    }
    let took_ms = now_ms() - begun;
    play.over.store(true, Ordering::Relaxed);
    if !wrong.is_empty() {
        // Threads that hang hold sockets; there is no more to learn.
        return (Outcome::default(), wrong);
    }
    for acceptor in acceptors.into_iter().flatten() {
        acceptor.join();
    }
    let clients: Vec<Told> = clients.into_iter().map(Task::join).collect();
    let mut servers: Vec<Vec<Told>> = vec![Vec::new(); clients.len()];
    for arriving in std::mem::take(&mut *lock(&play.servers)) {
        match arriving {
            Arriving::Server(i, task) => servers[i].push(task.join()),
            Arriving::Stranger(what) => wrong.push(what),
        }
    }
    for (i, client) in clients.iter().enumerate() {
        let told = Accepted {
            client,
            servers: &servers[i],
            arrivals: lock(&shared).arrivals[i],
        };
        let found = judge::connection(scenario, &scenario.connections[i], &told);
        wrong.extend(found.into_iter().map(|w| format!("connection {i}: {w}")));
    }
    wrong.extend(judge::time(scenario, took_ms));
    wrong.extend(forgotten(world, &sockets, &blocks));
    world.wire.set_observer(None);
    (outcome(world, &shared, &clients, &servers, took_ms), wrong)
}

/// Lets a host learn the neighbour's link address.
fn acquaint(scenario: &Scenario, world: &World, side: Side) {
    let (here, there) = (host(world, side), side.other());
    let peers = [
        SockAddr::v4(host(world, there).addr, NOBODY),
        SockAddr::v6(ADDR6[there.index()], NOBODY),
    ];
    for (peer, af) in peers.into_iter().zip([AF_INET, AF_INET6]) {
        if af == AF_INET6 && !v6(scenario) {
            continue;
        }
        let so = SocketHandle::socket(&here.vnet, af, SockType::Dgram, 0).expect("a socket");
        let _ = so.sendto(b"hello", sys::socket::MsgFlags::empty(), &peer);
        pass_ms(1500);
    }
}

/// Listens for both families, and lets a thread accept whoever comes.
fn accept_all(play: &Arc<Play>, host: &Host, side: Side) -> Vec<Task<()>> {
    let families = [AF_INET, AF_INET6];
    let count = if v6(&play.scenario) { 2 } else { 1 };
    let mut acceptors = Vec::new();
    for (af, port) in families.into_iter().zip(PORTS).take(count) {
        let so = SocketHandle::socket(&host.vnet, af, SockType::Stream, 0).expect("a socket");
        let any = if af == AF_INET {
            SockAddr::v4(Ipv4Addr::UNSPECIFIED, port)
        } else {
            so.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, &0i32.to_ne_bytes())
                .expect("an unbound socket");
            SockAddr::v6(Ipv6Addr::UNSPECIFIED, port)
        };
        so.bind(&any).expect("a free port");
        so.listen(32).expect("a bound socket");
        let play = play.clone();
        acceptors.push(spawn(move || accept_some(&play, &so, side)));
    }
    acceptors
}

fn accept_some(play: &Arc<Play>, listener: &SocketHandle, side: Side) {
    while !play.over.load(Ordering::Relaxed) {
        let ready = listener.poll(PollEvents::IN, Some(Sbintime::from_s(10)));
        if !ready.is_ok_and(|events| events.contains(PollEvents::IN)) {
            continue;
        }
        let (so, from) = match listener.accept_nowait() {
            Ok(accepted) => accepted,
            Err(Errno::EWOULDBLOCK | Errno::ECONNABORTED) => continue,
            Err(e) => {
                let what = format!("accept at {side:?}: {e}");
                return lock(&play.servers).push(Arriving::Stranger(what));
            }
        };
        let port = match from {
            SockAddr::In(sin) => sin.port,
            SockAddr::In6(sin6) => sin6.port,
        };
        let i = usize::from(port.wrapping_sub(FIRST_PORT));
        let meets =
            |c: &&Connection| c.to() == side && matches!(c.meet, Meet::Listener | Meet::Loopback);
        let Some(connection) = play.scenario.connections.get(i).filter(meets) else {
            let what = format!("accept at {side:?}: a stranger, {from}");
            lock(&play.servers).push(Arriving::Stranger(what));
            continue;
        };
        let end = connection.ends[1].clone();
        prepare(&so, &end);
        let [theirs, mine] = play.speeches[i].clone();
        let task = spawn(move || live(so, &end, mine, theirs));
        lock(&play.servers).push(Arriving::Server(i, task));
    }
}

fn start_client(play: &Arc<Play>, host: &Host, i: usize) -> Task<Told> {
    let play = play.clone();
    let vnet = host.vnet.clone();
    spawn(move || {
        let connection = &play.scenario.connections[i];
        let port = match (connection.meet, connection.family) {
            (Meet::Nobody, _) => NOBODY,
            (Meet::Simultaneous, _) => FIRST_PEER_PORT + i as u16,
            (_, Family::V4) => PORTS[0],
            (_, Family::V6 | Family::Mapped) => PORTS[1],
        };
        let [mine, theirs] = play.speeches[i].clone();
        let (own, to) = (FIRST_PORT + i as u16, connection.to());
        connect(&vnet, connection, 0, own, (to, port), mine, theirs)
    })
}

/// Starts the other end of a connection whose ends connect to each other.
fn start_peer(play: &Arc<Play>, host: &Host, i: usize) -> Task<Told> {
    let play = play.clone();
    let vnet = host.vnet.clone();
    spawn(move || {
        let connection = &play.scenario.connections[i];
        let [theirs, mine] = play.speeches[i].clone();
        let own = FIRST_PEER_PORT + i as u16;
        let peer = (connection.from, FIRST_PORT + i as u16);
        connect(&vnet, connection, 1, own, peer, mine, theirs)
    })
}

/// Connects from port `own` to `peer` when it is time, and lives as end `which` of the connection.
fn connect(
    vnet: &Arc<Vnet>,
    connection: &Connection,
    which: usize,
    own: u16,
    (to, port): (Side, u16),
    mine: Arc<Vec<u8>>,
    theirs: Arc<Vec<u8>>,
) -> Told {
    {
        let end = &connection.ends[which];
        pass_ms(connection.at_ms as i64);
        let (af, own, peer) = match connection.family {
            Family::V4 | Family::Mapped => {
                let addrs = [netsim::world::ADDR_A, netsim::world::ADDR_B];
                (
                    AF_INET,
                    SockAddr::v4(Ipv4Addr::UNSPECIFIED, own),
                    SockAddr::v4(addrs[to.index()], port),
                )
            }
            Family::V6 => (
                AF_INET6,
                SockAddr::v6(Ipv6Addr::UNSPECIFIED, own),
                SockAddr::v6(ADDR6[to.index()], port),
            ),
        };
        let so = SocketHandle::socket(vnet, af, SockType::Stream, 0).expect("a socket");
        prepare(&so, end);
        so.bind(&own).expect("a port of our own");
        if let Err(e) = so.connect(&peer) {
            return Told {
                connect_error: Some((e, now_ms())),
                ..Told::default()
            };
        }
        live(so, end, mine, theirs)
    }
}

/// Starts a thread for each event, and one that forges.
fn start_events(play: &Arc<Play>, world: &World, begun: i64) {
    for (at, event) in play.scenario.events.clone() {
        let (wire, shared) = (world.wire.clone(), play.shared.clone());
        let hosts = Side::BOTH.map(|side| {
            let host = host(world, side);
            (host.ifp.clone(), host.inet.clone())
        });
        spawn(move || {
            pass_ms(begun + at as i64 - now_ms());
            match event {
                Event::Link(dir, link) => wire.change_link(dir, |old| *old = *link),
                Event::Outage(way, ms) => {
                    let ways = [Dir::AtoB, Dir::BtoA].map(|dir| way.is_none_or(|w| w == dir));
                    let add = |n: u32| {
                        let mut shared = lock(&shared);
                        for (count, hit) in shared.outages.iter_mut().zip(ways) {
                            *count = count.wrapping_add(if hit { n } else { 0 });
                        }
                    };
                    add(1);
                    pass_ms(ms as i64);
                    add(u32::MAX);
                }
                Event::Unplug(ms) => {
                    wire.set_link_up(false);
                    pass_ms(ms as i64);
                    wire.set_link_up(true);
                }
                Event::Mtu(side, mtu) => hosts[side.index()]
                    .0
                    .set_mtu(mtu)
                    .expect("an MTU that the wire takes"),
                Event::FlushNeighbours(side) => arp_flush(&hosts[side.index()].1),
                Event::PathMtu(dir, mtu, told) => {
                    lock(&shared).path_mtu[usize::from(dir == Dir::BtoA)] = Some((mtu, told));
                }
                Event::Set(side, name, value) => {
                    let sysctl = &hosts[side.index()].1.vnet.sysctl;
                    sysctl.set(name, value).expect("a setting of TCP");
                }
            }
        });
    }
    if play.scenario.forge_ms > 0 {
        let (wire, play) = (world.wire.clone(), play.clone());
        spawn(move || forge(&wire, &play));
    }
}

/// Forges segments like the last that crossed, until all is over.
fn forge(wire: &netsim::wire::Wire, play: &Play) {
    let mut dice = Dice::new(play.scenario.seed ^ 0xf0e);
    // A run may last hours, of which most are silence.
    for _ in 0..2_000 {
        pass_ms(play.scenario.forge_ms as i64);
        if play.over.load(Ordering::Relaxed) {
            return;
        }
        let last = lock(&play.shared).last.clone();
        let Some((dir, frame)) = last else { continue };
        if let Some(frame) = trouble::forge(&mut dice, &frame) {
            wire.inject(dir, &frame);
        }
    }
}

/// Control blocks that were seen, to see them go.
#[derive(Default)]
struct Blocks(HashMap<*const TcpInpcb, Weak<TcpInpcb>>);

impl Blocks {
    fn look(&mut self, world: &World) {
        for side in Side::BOTH {
            for inp in host(world, side).inet.tcp.tcbinfo.snapshot() {
                self.0.insert(Arc::as_ptr(&inp), Arc::downgrade(&inp));
            }
        }
    }

    fn alive(&self) -> usize {
        self.0.values().filter(|w| w.strong_count() > 0).count()
    }
}

/// Waits until both hosts have forgotten all connections; says what they have not forgotten.
fn forgotten(world: &World, sockets: &str, blocks: &Blocks) -> Vec<String> {
    let late = now_ms() + FORGET_MS;
    loop {
        pass_ms(10_000);
        let mut left = Vec::new();
        for side in Side::BOTH {
            let inet = &host(world, side).inet;
            for (what, count) in [
                ("control blocks", inet.tcp.tcbinfo.count()),
                ("syncache entries", inet.tcp.syncache.count() as usize),
                ("fragments", inet.reass.fragments() as usize),
                ("IPv6 fragments", inet.frag6.fragments() as usize),
            ] {
                if count != 0 {
                    left.push(format!("{count} {what} at {side:?}"));
                }
            }
            for inp in inet.tcp.tcbinfo.snapshot() {
                left.push(describe(&inp));
            }
        }
        let now = Held::now().sockets;
        if now != sockets {
            left.push(format!("{now} sockets instead of {sockets}"));
        }
        if blocks.alive() != 0 {
            left.push(format!("{} control blocks have owners", blocks.alive()));
        }
        if left.is_empty() {
            return left;
        }
        if now_ms() > late {
            return vec![format!("not forgotten after hours: {}", left.join("; "))];
        }
    }
}

/// A control block in words.
fn describe(inp: &TcpInpcb) -> String {
    let guard = inp.read();
    let tp = &guard.ppcb;
    format!(
        "{:?} {:?}: {:?} una {} nxt {} max {} wnd {} cwnd {} rcv_nxt {} rcv_wnd {} shift {} flags {:?}",
        guard.inp_inc.inc_fport,
        guard.inp_inc.inc_lport,
        tp.t_state,
        tp.snd_una - tp.iss,
        tp.snd_nxt - tp.iss,
        tp.snd_max - tp.iss,
        tp.snd_wnd,
        tp.snd_cwnd,
        tp.rcv_nxt - tp.irs,
        tp.rcv_wnd,
        tp.t_rxtshift,
        tp.t_flags
    )
}

/// Who is not done, in words.
fn stuck(world: &World, play: &Play, clients: &[Task<Told>], waited: i64) -> String {
    let mut words = format!("after {} s of virtual time not over:", waited / 1000);
    for (i, client) in clients.iter().enumerate() {
        if !client.is_done() {
            words.push_str(&format!(" client {i};"));
        }
    }
    for arriving in lock(&play.servers).iter() {
        if let Arriving::Server(i, task) = arriving
            && !task.is_done()
        {
            words.push_str(&format!(" server {i};"));
        }
    }
    for side in Side::BOTH {
        for inp in host(world, side).inet.tcp.tcbinfo.snapshot() {
            words.push_str(&format!("\n    {side:?} {}", describe(&inp)));
        }
    }
    words
}

fn outcome(
    world: &World,
    shared: &Mutex<Shared>,
    clients: &[Told],
    servers: &[Vec<Told>],
    took_ms: i64,
) -> Outcome {
    let mut shared = lock(shared);
    let all: Vec<&Told> = clients.iter().chain(servers.iter().flatten()).collect();
    for told in &all {
        shared.note(&format!("{told:?}"));
    }
    let stats = [&world.a, &world.b].map(|host| &host.inet.tcp.stat);
    let mut errors: Vec<(&'static str, u64)> = Vec::new();
    for (error, _) in all.iter().flat_map(|told| told.errors()) {
        match errors.iter_mut().find(|(name, _)| *name == error.name()) {
            Some((_, count)) => *count += 1,
            None => errors.push((error.name(), 1)),
        }
    }
    let failed = all.iter().filter(|t| t.errors().next().is_some()).count() as u64;
    Outcome {
        digest: shared.digest(),
        frames: shared.frames,
        took_ms,
        bytes: all.iter().map(|told| told.received as u64).sum(),
        again: stats.iter().map(|s| s.tcps_sndrexmitpack.fetch()).sum(),
        timeouts: stats.iter().map(|s| s.tcps_rexmttimeo.fetch()).sum(),
        ends: [all.len() as u64 - failed, failed],
        errors,
    }
}
