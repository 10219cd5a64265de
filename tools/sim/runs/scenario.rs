//! What happens in a run: everything that a seed decides.
//!
//! A seed first chooses which kinds of trouble there are, then how much of each, so that clean runs, runs with one fault
//! and runs with everything at once are all common.

use core::ops::RangeInclusive;
use core::time::Duration;
use netinet::cc::CC_AVAILABLE;
use netinet::tcp::TcpFlags;
use netinet::tcp_usrreq::{TCP_MAXSEG, TCP_NODELAY, TCP_NOOPT, TCP_NOPUSH};
use netsim::impair::{Link, Loss};
use netsim::wire::Dir;
use oorandom::Rand64;
use sys::net::ifnet::IfCap;

/// A generator with the questions that a scenario asks.
pub struct Dice(Rand64);

impl Dice {
    /// All answers follow from `seed`.
    pub fn new(seed: u64) -> Dice {
        Dice(Rand64::new(u128::from(seed) ^ 0x7f4a_7c15_5eed))
    }

    /// Yes with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.0.rand_float() < p
    }

    /// A number of a range, each alike.
    pub fn range(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.0.rand_range(*range.start()..*range.end() + 1)
    }

    /// A number of a range, each order of magnitude alike.
    pub fn magnitude(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (low, high) = (*range.start() as f64, *range.end() as f64);
        let value = low * (high / low).powf(self.0.rand_float());
        (value as u64).clamp(*range.start(), *range.end())
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.range(0..=of.len() as u64 - 1) as usize]
    }

    /// Any 32 bits.
    pub fn word(&mut self) -> u32 {
        self.0.rand_u64() as u32
    }
}

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// 10.0.0.1.
    A,
    /// 10.0.0.2.
    B,
}

impl Side {
    /// Both.
    pub const BOTH: [Side; 2] = [Side::A, Side::B];

    /// 0 or 1.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// By which protocol a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4 to a server whose socket is of IPv6 and takes both.
    Mapped,
}

/// What an end does with what it has to say.
#[derive(Clone, Copy, Debug)]
pub enum Write {
    /// Sends so many bytes, in pieces of so many.
    Bytes {
        /// Bytes in all.
        total: usize,
        /// Bytes of one call.
        piece: usize,
    },
    /// Waits.
    Pause(u64),
}

/// How an end goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finale {
    /// Says that it has said all (`shutdown`), hears the peer out, closes.
    Shutdown,
    /// Hears the peer out, then closes; says nothing before. Only one end may.
    CloseAfterPeer,
    /// Closes when it has said all and read so many bytes, whatever the peer still says.
    CloseEarly(usize),
    /// Says all, reads so many bytes and resets the connection (`SO_LINGER` of 0).
    Abort(usize),
}

/// What an end does.
#[derive(Clone, Debug)]
pub struct End {
    /// `SO_SNDBUF`.
    pub sndbuf: Option<i32>,
    /// `SO_RCVBUF`.
    pub rcvbuf: Option<i32>,
    /// TCP's options to set to 1 or another value: (name, value).
    pub options: Vec<(i32, i32)>,
    /// What it says.
    pub writes: Vec<Write>,
    /// Bytes of one call of `recv`.
    pub read_piece: usize,
    /// Bytes read between pauses, and how long they are in ms; no pauses if none.
    pub read_pause: Option<(usize, u64)>,
    /// Whether it looks before it reads (`MSG_PEEK`).
    pub peeks: bool,
    /// Whether it reads whole pieces only (`MSG_WAITALL`).
    pub waits_for_all: bool,
    /// Whether it never blocks, but polls.
    pub polls: bool,
    /// Whether it says that it won't read any more (`SHUT_RD`) when it has read what it wants.
    pub turns_deaf: bool,
    /// `SO_LINGER` in s.
    pub linger: Option<u16>,
    /// How it goes.
    pub finale: Finale,
}

impl End {
    /// Bytes that it means to say.
    pub fn total(&self) -> usize {
        let bytes = self.writes.iter().map(|w| match w {
            Write::Bytes { total, .. } => *total,
            Write::Pause(_) => 0,
        });
        bytes.sum()
    }

    /// Whether it may reset the connection, or close while the peer still speaks.
    pub fn is_rude(&self) -> bool {
        matches!(self.finale, Finale::CloseEarly(_) | Finale::Abort(_))
    }
}

/// How the ends of a connection meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meet {
    /// One listens at the other host.
    Listener,
    /// One listens at the same host.
    Loopback,
    /// Both connect to each other at once.
    Simultaneous,
    /// Nobody listens.
    Nobody,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who connects.
    pub from: Side,
    /// By which protocol.
    pub family: Family,
    /// When, in ms after the begin.
    pub at_ms: u64,
    /// How the ends meet.
    pub meet: Meet,
    /// The ends: who connects, who accepts.
    pub ends: [End; 2],
}

impl Connection {
    /// Where the server is.
    pub fn to(&self) -> Side {
        match self.meet {
            Meet::Loopback => self.from,
            Meet::Listener | Meet::Simultaneous | Meet::Nobody => self.from.other(),
        }
    }
}

/// Something that happens in the middle.
#[derive(Clone, Debug)]
pub enum Event {
    /// A link becomes another.
    Link(Dir, Box<Link>),
    /// All frames are lost, one way or both, for so many ms.
    Outage(Option<Dir>, u64),
    /// The plug is pulled for so many ms.
    Unplug(u64),
    /// A host's MTU changes.
    Mtu(Side, u32),
    /// A host forgets all neighbours.
    FlushNeighbours(Side),
    /// Packets longer than so many bytes are lost one way; whether their sender is told.
    PathMtu(Dir, usize, bool),
    /// A host's sysctl is set.
    Set(Side, &'static str, &'static str),
}

/// Frames of one kind that are lost: the first so many.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// With these flags.
    pub flags: TcpFlags,
    /// And without these.
    pub without: TcpFlags,
    /// With data, or without; either if none.
    pub data: Option<bool>,
    /// How many are still to be lost.
    pub count: u32,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it was made from.
    pub seed: u64,
    /// CPUs of the machine.
    pub cpus: usize,
    /// Offloads of both interfaces.
    pub capabilities: IfCap,
    /// MTUs of the two hosts.
    pub mtu: [u32; 2],
    /// The links: from A to B, and back.
    pub links: [Link; 2],
    /// Probability that a frame is garbled, in its network layer.
    pub garble: f64,
    /// Whether the hosts know each other before the links get bad.
    pub acquainted: bool,
    /// sysctls of the two hosts.
    pub settings: [Vec<(&'static str, String)>; 2],
    /// Frames that are lost by kind.
    pub targets: Vec<Target>,
    /// Segments that someone else forges, one every so many ms; none if 0.
    pub forge_ms: u64,
    /// What happens when, in ms after the begin.
    pub events: Vec<(u64, Event)>,
    /// The connections.
    pub connections: Vec<Connection>,
}

/// Which kinds of trouble a run has.
struct Kinds {
    loss: bool,
    reorder: bool,
    duplicate: bool,
    garble: bool,
    slow: bool,
    events: bool,
    targets: bool,
    rude: bool,
    pauses: bool,
    harsh: bool,
}

impl Scenario {
    /// The run of a seed.
    pub fn new(seed: u64) -> Scenario {
        let d = &mut Dice::new(seed);
        let busy = d.pick(&[0.0, 0.15, 0.35, 0.6]);
        let kinds = Kinds {
            loss: d.chance(busy + 0.1),
            reorder: d.chance(busy),
            duplicate: d.chance(busy),
            garble: d.chance(busy * 0.6),
            slow: d.chance(0.3),
            events: d.chance(busy * 0.7),
            targets: d.chance(0.25),
            rude: d.chance(0.35),
            pauses: d.chance(0.5),
            harsh: d.chance(0.06),
        };
        let links = [link(d, &kinds), link(d, &kinds)];
        let mtu = d.pick(&[1500, 1500, 1500, 1500, 1280, 1400, 4000, 9000]);
        let mtu = match d.range(0..=9) {
            0 => [mtu, d.pick(&[1280, 1500, 9000])],
            // Too small for IPv6.
            1 => [d.pick(&[296, 576, 1006]); 2],
            _ => [mtu; 2],
        };
        let v6 = mtu.iter().all(|&m| m >= 1280);
        let count = d.pick(&[1, 1, 2, 3, 4, 6]);
        let connections: Vec<_> = (0..count).map(|_| connection(d, &kinds, v6)).collect();
        let last = connections.iter().map(|c| c.at_ms).max().unwrap_or(0);
        Scenario {
            seed,
            cpus: d.pick(&[1, 2, 2, 3, 4]),
            capabilities: d.pick(&[
                IfCap::empty(),
                IfCap::empty(),
                IfCap::TXCSUM | IfCap::RXCSUM,
                IfCap::RXCSUM,
                IfCap::TXCSUM | IfCap::RXCSUM | IfCap::TSO4,
                IfCap::TXCSUM | IfCap::TSO4,
            ]),
            mtu,
            links,
            garble: match kinds.garble {
                true => d.magnitude(1..=200) as f64 / 10_000.0,
                false => 0.0,
            },
            acquainted: d.chance(0.6),
            settings: [settings(d), settings(d)],
            targets: match kinds.targets {
                true => targets(d),
                false => Vec::new(),
            },
            forge_ms: match d.chance(0.1) {
                true => d.magnitude(1..=500),
                false => 0,
            },
            events: match kinds.events {
                true => events(d, &kinds, last, v6),
                false => Vec::new(),
            },
            connections,
        }
    }

    /// Whether the path may lose, or seem to lose, a frame.
    pub fn is_lossless(&self) -> bool {
        self.targets.is_empty()
            && self.events.is_empty()
            && self.garble == 0.0
            && self
                .links
                .iter()
                .all(|l| l.loss == Loss::None && l.rate.is_none())
    }

    /// Time in ms for which events take frames away.
    pub fn outage_ms(&self) -> u64 {
        let of = |event: &Event| match event {
            Event::Outage(_, ms) | Event::Unplug(ms) => *ms,
            // Each segment that is too long is lost as often as it takes to suspect that.
            Event::PathMtu(_, _, false) => u64::MAX / 8,
            Event::Link(..)
            | Event::Mtu(..)
            | Event::FlushNeighbours(_)
            | Event::PathMtu(_, _, true)
            | Event::Set(..) => 0,
        };
        self.events.iter().map(|(_, event)| of(event)).sum()
    }

    /// Probability that a frame there or its answer is lost, at worst.
    pub fn worst_loss(&self) -> f64 {
        let of = |link: &Link| match &link.loss {
            Loss::Random(p) => *p + link.corrupt,
            Loss::Every(n) => 1.0 / *n as f64,
            Loss::None | Loss::Exactly(_) => 0.0,
        };
        let mut worst = [of(&self.links[0]), of(&self.links[1])];
        for (_, event) in &self.events {
            if let Event::Link(dir, link) = event {
                let at = usize::from(*dir == Dir::BtoA);
                worst[at] = f64::max(worst[at], of(link));
            }
        }
        1.0 - (1.0 - worst[0] - self.garble) * (1.0 - worst[1] - self.garble)
    }

    /// A number that a host's sysctl is set to, or its default.
    pub fn setting(&self, side: Side, name: &str, default: u64) -> u64 {
        let set = self.settings[side.index()].iter().find(|(n, _)| *n == name);
        set.and_then(|(_, value)| value.parse().ok())
            .unwrap_or(default)
    }

    /// Time in ms that the ends spend waiting by plan, at most.
    pub fn planned_ms(&self) -> u64 {
        let of = |end: &End, peer: &End| {
            let writing: u64 = end
                .writes
                .iter()
                .map(|w| match w {
                    Write::Pause(ms) => *ms,
                    Write::Bytes { .. } => 0,
                })
                .sum();
            let reading = end.read_pause.map_or(0, |(every, ms)| {
                (peer.total() / every.max(1) + 1) as u64 * ms
            });
            writing + reading
        };
        let connections = self.connections.iter().map(|c| {
            let [client, server] = &c.ends;
            c.at_ms + of(client, server) + of(server, client)
        });
        let events = self.events.iter().map(|(at, _)| *at).max().unwrap_or(0);
        // Longer than a few hours nobody waits.
        connections.max().unwrap_or(0).max(events) + self.outage_ms().min(20_000_000)
    }
}

fn link(d: &mut Dice, kinds: &Kinds) -> Link {
    let delay = Duration::from_micros(d.magnitude(20..=150_000));
    let mut link = Link {
        delay,
        ..Link::default()
    };
    if kinds.slow {
        let rate = d.magnitude(256_000..=200_000_000);
        link.rate = Some(rate);
        // At most two seconds of queue.
        let most = (rate / 4000).clamp(8, 1000);
        link.queue_limit = d.magnitude(4..=most) as usize;
    }
    if kinds.loss {
        link.loss = match d.range(0..=9) {
            0 | 1 => Loss::Every(d.magnitude(7..=300)),
            2 => Loss::Exactly((0..d.range(1..=12)).map(|_| d.magnitude(1..=200)).collect()),
            3 if kinds.harsh => Loss::Random(d.range(200..=600) as f64 / 1000.0),
            _ => Loss::Random(d.magnitude(1..=100) as f64 / 1000.0),
        };
    }
    if kinds.reorder {
        link.reorder = d.magnitude(1..=300) as f64 / 1000.0;
        let most = (delay.as_micros() as u64 * 3).clamp(1_000, 400_000);
        link.reorder_by = Duration::from_micros(d.magnitude(10..=most));
    }
    if kinds.duplicate {
        link.duplicate = d.magnitude(1..=200) as f64 / 1000.0;
    }
    link
}

/// At most four losses in all, so that no segment is lost as often as nobody would try.
fn targets(d: &mut Dice) -> Vec<Target> {
    match d.range(0..=2) {
        0 => vec![target(d, 4)],
        1 => vec![target(d, 2), target(d, 2)],
        _ => vec![target(d, 1), target(d, 1), target(d, 2)],
    }
}

fn target(d: &mut Dice, most: u64) -> Target {
    let (syn, ack, fin) = (TcpFlags::SYN, TcpFlags::ACK, TcpFlags::FIN);
    let none = TcpFlags::empty();
    let (flags, without, data) = d.pick(&[
        (syn, ack, None),
        (syn | ack, none, None),
        (fin, none, None),
        (ack, syn | fin, Some(false)),
        (ack, syn, Some(true)),
        (TcpFlags::RST, none, None),
    ]);
    Target {
        flags,
        without,
        data,
        count: d.range(1..=most) as u32,
    }
}

fn events(d: &mut Dice, kinds: &Kinds, last: u64, v6: bool) -> Vec<(u64, Event)> {
    let mut events = Vec::new();
    for _ in 0..d.range(1..=4) {
        let at = d.magnitude(1..=last + 8_000);
        let way = d.pick(&[None, Some(Dir::AtoB), Some(Dir::BtoA)]);
        let ms = match d.range(0..=19) {
            0 if kinds.harsh => 20_000_000,
            1..=3 if kinds.harsh => d.range(60_000..=900_000),
            4..=6 => d.range(3_000..=30_000),
            _ => d.magnitude(5..=3_000),
        };
        let event = match d.range(0..=14) {
            0..=3 => Event::Outage(way, ms),
            10 | 11 => Event::PathMtu(
                d.pick(&[Dir::AtoB, Dir::BtoA]),
                d.pick(if v6 {
                    &[1280, 1281, 1400][..]
                } else {
                    &[296, 576, 1006]
                }),
                d.chance(0.9),
            ),
            12 => {
                let (name, value) = d.pick(&[
                    ("net.inet.tcp.sack.enable", "0"),
                    ("net.inet.tcp.rfc1323", "0"),
                    ("net.inet.tcp.delayed_ack", "0"),
                    ("net.inet.tcp.syncookies", "0"),
                    ("net.inet.tcp.do_prr", "0"),
                    ("net.inet.tcp.initcwnd_segments", "3"),
                    ("net.inet.tcp.reass.maxqueuelen", "2"),
                    ("net.inet.tcp.recvbuf_auto", "0"),
                    ("net.inet.tcp.path_mtu_discovery", "0"),
                    ("net.inet.tcp.cc.algorithm", "newreno"),
                    ("net.inet.tcp.ecn.enable", "1"),
                ]);
                Event::Set(d.pick(&Side::BOTH), name, value)
            }
            4 => Event::Unplug(ms),
            5 => {
                let least = if v6 { 1280 } else { 296 };
                let mtu = d.pick(&[296, 576, 1280, 1400, 1500]);
                Event::Mtu(d.pick(&Side::BOTH), mtu.max(least))
            }
            6 => Event::FlushNeighbours(d.pick(&Side::BOTH)),
            _ => Event::Link(d.pick(&[Dir::AtoB, Dir::BtoA]), Box::new(link(d, kinds))),
        };
        events.push((at, event));
    }
    events.sort_by_key(|(at, _)| *at);
    events
}

fn connection(d: &mut Dice, kinds: &Kinds, v6: bool) -> Connection {
    let mut ends = [end(d, kinds), end(d, kinds)];
    // If both wait for the other to go first, nobody goes.
    if ends.iter().all(|e| e.finale == Finale::CloseAfterPeer) {
        ends[0].finale = Finale::Shutdown;
    }
    // An end that stops sending options in the middle has only itself to blame.
    ends[1].options.retain(|(name, _)| *name != TCP_NOOPT);
    // Nobody can read more than the other says; and if both stopped reading before, both might wait to say the rest.
    let totals = [ends[0].total(), ends[1].total()];
    let both = ends.iter().all(End::is_rude);
    for (i, end) in ends.iter_mut().enumerate() {
        if let Finale::CloseEarly(n) | Finale::Abort(n) = &mut end.finale {
            *n = if both {
                totals[1 - i]
            } else {
                (*n).min(totals[1 - i])
            };
        }
    }
    Connection {
        from: d.pick(&[Side::A, Side::A, Side::B]),
        family: match v6 {
            true => d.pick(&[
                Family::V4,
                Family::V4,
                Family::V6,
                Family::V6,
                Family::Mapped,
            ]),
            false => Family::V4,
        },
        at_ms: match d.chance(0.5) {
            true => d.range(0..=5),
            false => d.magnitude(1..=20_000),
        },
        meet: match d.range(0..=39) {
            0 => Meet::Nobody,
            1..=3 => Meet::Loopback,
            4..=6 => Meet::Simultaneous,
            _ => Meet::Listener,
        },
        ends,
    }
}

fn end(d: &mut Dice, kinds: &Kinds) -> End {
    let buffer = |d: &mut Dice| d.chance(0.3).then(|| d.magnitude(1_500..=500_000) as i32);
    let mut writes = Vec::new();
    if d.chance(0.85) {
        for _ in 0..d.range(1..=4) {
            let total = d.magnitude(1..=120_000) as usize;
            let piece = d.magnitude(1..=total as u64).max(total as u64 / 200) as usize;
            writes.push(Write::Bytes { total, piece });
            if kinds.pauses && d.chance(0.5) {
                let long = d.chance(0.1);
                let ms = d.magnitude(1..=if long { 90_000 } else { 2_000 });
                writes.push(Write::Pause(ms));
            }
        }
    }
    let mut options = Vec::new();
    for (name, p) in [(TCP_NODELAY, 0.25), (TCP_NOPUSH, 0.08), (TCP_NOOPT, 0.04)] {
        if d.chance(p) {
            options.push((name, 1));
        }
    }
    if d.chance(0.08) {
        options.push((TCP_MAXSEG, d.range(216..=1400) as i32));
    }
    End {
        sndbuf: buffer(d),
        rcvbuf: buffer(d),
        options,
        writes,
        read_piece: d.magnitude(1..=65_536).max(200) as usize,
        read_pause: (kinds.pauses && d.chance(0.4)).then(|| {
            let every = d.magnitude(2_000..=100_000) as usize;
            (
                every,
                d.magnitude(1..=if every > 30_000 { 20_000 } else { 500 }),
            )
        }),
        peeks: d.chance(0.15),
        waits_for_all: d.chance(0.1),
        polls: d.chance(0.25),
        turns_deaf: d.chance(0.2),
        linger: d.chance(0.1).then(|| d.range(1..=20) as u16),
        finale: match d.range(0..=9) {
            0 if kinds.rude => Finale::Abort(d.magnitude(1..=100_000) as usize - 1),
            1..=3 if kinds.rude => Finale::CloseEarly(d.magnitude(1..=100_000) as usize - 1),
            4..=5 => Finale::CloseAfterPeer,
            _ => Finale::Shutdown,
        },
    }
}

fn settings(d: &mut Dice) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if d.chance(0.25) {
        return settings;
    }
    let mut set = |name, value: u64| settings.push((name, value.to_string()));
    // Switches, by how often they are not as usual.
    for (name, usual, p) in [
        ("net.inet.tcp.sack.enable", 1, 0.25),
        ("net.inet.tcp.sack.revised", 1, 0.25),
        ("net.inet.tcp.rfc1323", 1, 0.25),
        ("net.inet.tcp.delayed_ack", 1, 0.25),
        ("net.inet.tcp.do_prr", 1, 0.25),
        ("net.inet.tcp.rfc3042", 1, 0.2),
        ("net.inet.tcp.rfc3465", 1, 0.2),
        ("net.inet.tcp.rfc3390", 1, 0.1),
        ("net.inet.tcp.syncookies", 1, 0.1),
        ("net.inet.tcp.syncookies_only", 0, 0.12),
        ("net.inet.tcp.path_mtu_discovery", 1, 0.15),
        ("net.inet.tcp.pmtud_blackhole_detection", 0, 0.15),
        ("net.inet.tcp.tso", 1, 0.2),
        ("net.inet.tcp.sendbuf_auto", 1, 0.2),
        ("net.inet.tcp.recvbuf_auto", 1, 0.2),
        ("net.inet.tcp.sendbuf_auto_lowat", 0, 0.1),
        ("net.inet.tcp.tolerate_missing_ts", 1, 0.1),
        ("net.inet.tcp.ts_offset_per_conn", 1, 0.2),
        ("net.inet.tcp.rexmit_drop_options", 0, 0.15),
        ("net.inet.tcp.fast_finwait2_recycle", 0, 0.15),
        ("net.inet.tcp.drop_synfin", 0, 0.1),
        ("net.inet.tcp.insecure_ack", 0, 0.05),
    ] {
        if d.chance(p) {
            set(name, 1 - usual);
        }
    }
    // Numbers, by how often they are others.
    for (name, p, range) in [
        ("net.inet.tcp.initcwnd_segments", 0.2, 1..=30),
        ("net.inet.tcp.abc_l_var", 0.1, 1..=8),
        ("net.inet.tcp.mssdflt", 0.1, 216..=1460),
        ("net.inet.tcp.sendspace", 0.2, 2_048..=300_000),
        ("net.inet.tcp.recvspace", 0.2, 2_048..=300_000),
        ("net.inet.tcp.sendbuf_inc", 0.1, 1_000..=60_000),
        ("net.inet.tcp.sendbuf_max", 0.1, 20_000..=2_000_000),
        ("net.inet.tcp.recvbuf_max", 0.1, 20_000..=2_000_000),
        ("net.inet.tcp.reass.maxqueuelen", 0.15, 1..=200),
        ("net.inet.tcp.sack.maxholes", 0.1, 1..=128),
        ("net.inet.tcp.rexmit_min", 0.15, 3..=1_000),
        ("net.inet.tcp.rexmit_slop", 0.15, 20..=1_000),
        ("net.inet.tcp.delacktime", 0.1, 5..=500),
        ("net.inet.tcp.msl", 0.15, 100..=30_000),
        ("net.inet.tcp.persmin", 0.1, 500..=10_000),
        ("net.inet.tcp.finwait2_timeout", 0.1, 2_000..=60_000),
        ("net.inet.tcp.keepidle", 0.15, 2_000..=100_000),
        ("net.inet.tcp.keepintvl", 0.15, 2_000..=75_000),
        ("net.inet.tcp.minmss", 0.05, 216..=600),
    ] {
        if d.chance(p) {
            set(name, d.magnitude(range));
        }
    }
    if d.chance(0.4) {
        set("net.inet.tcp.ecn.enable", d.range(0..=2));
    }
    if d.chance(0.5) {
        let algorithm = d.pick(&CC_AVAILABLE).to_string();
        settings.push(("net.inet.tcp.cc.algorithm", algorithm));
    }
    settings
}
