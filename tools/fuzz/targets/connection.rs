//! A program for one stack: socket calls, segments of a peer, and time.
//!
//! The first byte is how the machine is made, then each byte names a step that takes a few more. The peer knows what the
//! stack has sent, so that segments count from what is expected. What is sent tells its place in the stream, in
//! both directions: data that is lost, doubled or moved on its way through buffers and queues is noticed.

use super::frame::{self, Layer, PEER_IP, PEER_IP6, PEER_PORT, PORT};
use super::input::{Control, Reader, Record};
use super::stack::{Held, Net};
use core::net::{Ipv4Addr, Ipv6Addr};
use sys::kern::kern_mbuf::MbufStat;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::{Machine, pump};
use sys::machine::sbinuptime;
use sys::net::ifnet::{IfFlags, LinkState};
use sys::socket::{
    AF_INET, AF_INET6, IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_TCP, MsgFlags, SO_KEEPALIVE,
    SO_OOBINLINE, SO_RCVBUF, SO_RCVLOWAT, SO_REUSEADDR, SO_SNDBUF, SO_SNDLOWAT, SOL_SOCKET,
    Shutdown, SockAddr, SockType, TCP_CONGESTION, TCP_DELACK, TCP_FASTOPEN, TCP_INFO, TCP_KEEPCNT,
    TCP_KEEPIDLE, TCP_KEEPINIT, TCP_KEEPINTVL, TCP_MAXSEG, TCP_MAXUNACKTIME, TCP_NODELAY,
    TCP_NOOPT, TCP_NOPUSH,
};
use sys::time::Sbintime;

/// Most steps of a program.
const STEPS: usize = 64;
/// Most sockets at a time.
const SOCKETS: usize = 8;
/// Ports of the peer, and so connections, that it tells apart.
const FLOWS: usize = 4;
/// Longest that a closed connection with the timers that a program can set takes to go.
const LINGER: Sbintime = Sbintime::from_s(4 * 3600);

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Steps of a program, by their first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Step {
    /// A segment of the peer: flow, flags, distances of sequence and acknowledgement number, window, options, length.
    Segment,
    /// A SYN of the peer, with options.
    Syn,
    /// The peer answers the stack's SYN.
    SynAck,
    /// The peer acknowledges all it has seen.
    AckAll,
    /// Time passes.
    Pause,
    /// `connect`.
    Connect,
    /// `accept`.
    Accept,
    /// `send`.
    Send,
    /// `recv`.
    Receive,
    /// `shutdown`.
    Shutdown,
    /// `close`.
    Close,
    /// `setsockopt`.
    Option,
    /// `getsockopt` and the addresses.
    Look,
    /// A sysctl is changed.
    Sysctl,
    /// An ICMP error about what the stack has sent last.
    Icmp,
    /// What the stack has sent last comes back, with a byte changed.
    Echo,
    /// The interface: MTU, link, up and down.
    Interface,
    /// A datagram either way.
    Datagram,
    /// Any frame.
    Frame,
}

const ALL_STEPS: [Step; 19] = [
    Step::Segment,
    Step::Syn,
    Step::SynAck,
    Step::AckAll,
    Step::Pause,
    Step::Connect,
    Step::Accept,
    Step::Send,
    Step::Receive,
    Step::Shutdown,
    Step::Close,
    Step::Option,
    Step::Look,
    Step::Sysctl,
    Step::Icmp,
    Step::Echo,
    Step::Interface,
    Step::Datagram,
    Step::Frame,
];

/// Flags that segments have, by number; from 16 on they stand as they are in the next byte.
pub const FLAGS: [u8; 12] = [
    ACK,
    ACK | PSH,
    ACK | FIN,
    RST,
    RST | ACK,
    FIN,
    0,
    ACK | URG,
    ACK | ECE,
    ACK | CWR,
    SYN,
    SYN | ACK,
];

/// Runs a program. Panics if the stack does, if data is not what was sent, and if something is left at the end.
pub fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let how = reader.u8();
    let machine = Machine::builder()
        .seed(u64::from(how >> 2))
        .cpus(1 + usize::from(how >> 1 & 1))
        .memory(64 << 20)
        .quiet();
    machine.run(|| {
        let before = MbufStat::snapshot().in_use();
        let mut program = Program::new(how & 1 != 0);
        let mut steps = 0;
        while !reader.is_empty() && steps < STEPS {
            let step = reader.pick(&ALL_STEPS);
            program.step(step, &mut reader);
            program.look();
            steps += 1;
        }
        program.end();
        let after = MbufStat::snapshot().in_use();
        assert_eq!(before, after, "mbufs and clusters in use before and after");
    });
}

/// What the peer knows of one connection.
#[derive(Clone, Copy, Default)]
struct Flow {
    /// The stack's port.
    port: u16,
    /// What the stack expects of the peer next, as it has said.
    expected: u32,
    /// Behind the last byte that the peer sent.
    sent: u32,
    /// Behind the last byte that the peer has seen.
    seen: u32,
    /// The stack's first sequence number.
    iss: Option<u32>,
    /// The stack's last timestamp.
    ts: Option<u32>,
}

/// A socket of the program, and what has passed through it.
struct Open {
    so: SocketHandle,
    /// Bytes sent.
    sent: usize,
    /// The byte that comes next, once one has been received.
    next: Option<u8>,
}

struct Program {
    net: Net,
    v6: bool,
    listener: Option<SocketHandle>,
    udp: Option<SocketHandle>,
    open: Vec<Open>,
    flows: [Flow; FLOWS],
    /// The last TCP frame of the stack.
    last: Vec<u8>,
    /// Segments of somebody else's making, or urgent data: bytes may be missing or foreign.
    tainted: bool,
    rest: Held,
}

impl Program {
    fn new(v6: bool) -> Self {
        let net = Net::new();
        let rest = net.held();
        let mut program = Self {
            net,
            v6,
            listener: None,
            udp: None,
            open: Vec::new(),
            flows: [Flow::default(); FLOWS],
            last: Vec::new(),
            tainted: false,
            rest,
        };
        let listener = program.socket(SockType::Stream);
        listener.bind(&program.any()).expect("a free port");
        listener.listen(4).expect("listening");
        let udp = program.socket(SockType::Dgram);
        udp.bind(&program.any()).expect("a free port");
        (program.listener, program.udp) = (Some(listener), Some(udp));
        for flow in &mut program.flows {
            flow.port = PORT;
        }
        program
    }

    fn socket(&self, ty: SockType) -> SocketHandle {
        let af = if self.v6 { AF_INET6 } else { AF_INET };
        let so = SocketHandle::socket(&self.net.vnet, af, ty, 0).expect("a socket");
        so.set_nonblocking(true);
        so
    }

    fn any(&self) -> SockAddr {
        match self.v6 {
            false => SockAddr::v4(Ipv4Addr::UNSPECIFIED, PORT),
            true => SockAddr::v6(Ipv6Addr::UNSPECIFIED, PORT),
        }
    }

    fn peer(&self, flow: usize) -> SockAddr {
        let port = PEER_PORT + flow as u16;
        match self.v6 {
            false => SockAddr::v4(PEER_IP, port),
            true => SockAddr::v6(PEER_IP6, port),
        }
    }

    fn tcp_layer(&self) -> Layer {
        match self.v6 {
            false => Layer::Tcp,
            true => Layer::Tcp6,
        }
    }

    fn step(&mut self, step: Step, reader: &mut Reader<'_>) {
        match step {
            Step::Segment => self.segment(reader),
            Step::Syn => {
                let flow = usize::from(reader.u8()) % FLOWS;
                let isn = u32::from(reader.u8()) << 24 | 0x00ff_fff0;
                self.flows[flow] = Flow {
                    port: PORT,
                    sent: isn.wrapping_add(1),
                    expected: isn.wrapping_add(1),
                    ..Flow::default()
                };
                let options = self.syn_options(reader);
                let len = usize::from(reader.u8());
                self.send_segment(flow, isn, 0, SYN, 0xffff, &options, len);
            }
            Step::SynAck => {
                let flow = usize::from(reader.u8()) % FLOWS;
                let isn = u32::from(reader.u8()) << 24;
                let options = self.syn_options(reader);
                self.flows[flow].sent = isn.wrapping_add(1);
                self.flows[flow].expected = isn.wrapping_add(1);
                let ack = self.flows[flow].seen;
                self.send_segment(flow, isn, ack, SYN | ACK, 0xffff, &options, 0);
            }
            Step::AckAll => {
                let flow = usize::from(reader.u8()) % FLOWS;
                let f = self.flows[flow];
                let options = self.timestamps(flow);
                self.send_segment(flow, f.sent, f.seen, ACK, 0xffff, &options, 0);
            }
            Step::Pause => {
                let us = 1_i64 << (reader.u8() % 34);
                pump(sbinuptime() + Sbintime::from_us(us));
            }
            Step::Connect => {
                let flow = usize::from(reader.u8()) % FLOWS;
                let so = self.socket(SockType::Stream);
                if self.open.len() < SOCKETS {
                    let _ = so.connect(&self.peer(flow));
                    self.flows[flow] = Flow::default();
                    if let Ok(SockAddr::In(a)) = so.getsockname() {
                        self.flows[flow].port = a.port;
                    }
                    self.push(so);
                }
            }
            Step::Accept => {
                let next = self.listener.as_ref().map(SocketHandle::accept_nowait);
                if let Some(Ok((so, _))) = next {
                    so.set_nonblocking(true);
                    self.push(so);
                }
            }
            Step::Send => {
                let (at, len) = (reader.u8(), usize::from(reader.u16()));
                let flags = match reader.u8() {
                    0xff => MsgFlags::OOB,
                    0xfe => MsgFlags::EOF,
                    _ => MsgFlags::empty(),
                };
                self.tainted |= flags.contains(MsgFlags::OOB);
                if let Some(open) = self.open_mut(at) {
                    let bytes: Vec<u8> = (open.sent..open.sent + len).map(|i| i as u8).collect();
                    open.sent += open.so.send(&bytes, flags).unwrap_or(0);
                }
            }
            Step::Receive => {
                let (at, len) = (reader.u8(), usize::from(reader.u16()));
                let flags = match reader.u8() {
                    0xff => MsgFlags::OOB,
                    0xfe => MsgFlags::PEEK,
                    _ => MsgFlags::empty(),
                };
                self.receive(at, len, flags);
            }
            Step::Shutdown => {
                let (at, how) = (reader.u8(), reader.u8());
                let how = match how % 3 {
                    0 => Shutdown::Read,
                    1 => Shutdown::Write,
                    _ => Shutdown::Both,
                };
                if let Some(open) = self.open_mut(at) {
                    let _ = open.so.shutdown(how);
                }
            }
            Step::Close => {
                let at = reader.u8();
                if at == 0xff {
                    self.listener = None;
                } else if !self.open.is_empty() {
                    let at = usize::from(at) % self.open.len();
                    drop(self.open.swap_remove(at));
                }
            }
            Step::Option => self.set_option(reader),
            Step::Look => self.get_options(reader),
            Step::Sysctl => {
                let (name, values) = reader.pick(SYSCTLS);
                let value = reader.pick(values);
                let _ = self.net.vnet.sysctl.set(name, value);
            }
            Step::Icmp => self.icmp(reader),
            Step::Echo => {
                let mut frame = self.last.clone();
                let (at, change) = (usize::from(reader.u8()), reader.u8());
                if let Some(packet) = frame.get_mut(14..).filter(|p| !p.is_empty()) {
                    let at = at % packet.len();
                    packet[at] ^= change;
                    turn_round(packet);
                    let layer = if self.v6 { Layer::Ip6 } else { Layer::Ip };
                    self.inject(layer, Control::USUAL, &frame[14..]);
                    self.tainted = true;
                }
            }
            Step::Interface => {
                let ifp = &self.net.ifp;
                match reader.u8() % 6 {
                    0 => _ = ifp.set_mtu(576),
                    1 => _ = ifp.set_mtu(1500),
                    2 => _ = ifp.set_mtu(1280),
                    3 => ifp.set_link_state(LinkState::Down),
                    4 => ifp.set_link_state(LinkState::Up),
                    _ => {
                        let _ = ifp.change_flags(IfFlags::empty(), IfFlags::UP);
                        let _ = ifp.change_flags(IfFlags::UP, IfFlags::empty());
                    }
                }
            }
            Step::Datagram => {
                let (flow, len) = (usize::from(reader.u8()), usize::from(reader.u16()));
                let data = vec![0x5a; len];
                if flow & 0x80 != 0 {
                    let ports = [PEER_PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
                    let datagram = [&ports, &[0; 4][..], &data[..len.min(1400)]].concat();
                    let layer = if self.v6 { Layer::Udp6 } else { Layer::Udp };
                    self.inject(layer, Control::USUAL, &datagram);
                } else if let Some(udp) = &self.udp {
                    let mut bytes = [0; 2048];
                    let _ = udp.sendto(&data, MsgFlags::DONTWAIT, &self.peer(flow % FLOWS));
                    let _ = udp.recvfrom(&mut bytes, MsgFlags::DONTWAIT);
                }
            }
            Step::Frame => {
                let (control, len) = (reader.u8(), usize::from(reader.u8()));
                let bytes = reader.bytes(len);
                let layers = [
                    Layer::Arp,
                    Layer::Ip,
                    Layer::Icmp,
                    Layer::Fragment,
                    Layer::Ip6Ext,
                    Layer::Fragment6,
                    Layer::Icmp6,
                ];
                let layer = layers[usize::from(control >> 3) % layers.len()];
                self.tainted = true;
                self.inject(layer, Control(control & 7), bytes);
            }
        }
    }

    fn push(&mut self, so: SocketHandle) {
        if self.open.len() < SOCKETS {
            self.open.push(Open {
                so,
                sent: 0,
                next: None,
            });
        }
    }

    fn open_mut(&mut self, at: u8) -> Option<&mut Open> {
        let count = self.open.len();
        (count > 0).then(|| &mut self.open[usize::from(at) % count])
    }

    /// Receives, and compares what comes with its place in the stream.
    fn receive(&mut self, at: u8, len: usize, flags: MsgFlags) {
        let tainted = self.tainted;
        let Some(open) = self.open_mut(at) else {
            return;
        };
        let mut bytes = vec![0; len];
        let Ok(count) = open.so.recv(&mut bytes, flags) else {
            return;
        };
        if flags.contains(MsgFlags::OOB) || tainted {
            return;
        }
        let mut next = open.next;
        for &byte in &bytes[..count] {
            let right = next.is_none_or(|next| next == byte);
            assert!(right, "received {byte:#x} where {next:x?} belongs");
            next = Some(byte.wrapping_add(1));
        }
        if !flags.contains(MsgFlags::PEEK) {
            open.next = next;
        }
    }

    fn segment(&mut self, reader: &mut Reader<'_>) {
        let flow = usize::from(reader.u8()) % FLOWS;
        let flags = match reader.u8() {
            number if number >= 16 => FLAGS[usize::from(number) % 2],
            15 => reader.u8(),
            number => FLAGS[usize::from(number) % FLAGS.len()],
        };
        let f = self.flows[flow];
        let base = if reader.u8() & 1 == 0 {
            f.sent
        } else {
            f.expected
        };
        let seq = base.wrapping_add(distance(reader));
        let ack = f.seen.wrapping_add(distance(reader));
        let win = u16::from(reader.u8()) << 8 | 0xff;
        let options = match reader.u8() % 6 {
            0 | 1 => self.timestamps(flow),
            2 => Vec::new(),
            3 => {
                // Blocks of what the peer has got, above what it acknowledges.
                let mut options = self.timestamps(flow);
                let blocks = 1 + usize::from(reader.u8() % 3);
                options.extend([1, 1, 5, 2 + 8 * blocks as u8]);
                let mut edge = ack;
                for _ in 0..2 * blocks {
                    edge = edge.wrapping_add(distance(reader));
                    options.extend(edge.to_be_bytes());
                }
                options
            }
            4 => self.syn_options(reader),
            _ => {
                let len = usize::from(reader.u8() % 41);
                let mut options = reader.bytes(len).to_vec();
                options.resize(options.len().next_multiple_of(4), 0);
                options
            }
        };
        let len = usize::from(reader.u16() % 2900);
        self.send_segment(flow, seq, ack, flags, win, &options, len);
    }

    /// The options of a SYN, as the bits of a byte say.
    fn syn_options(&self, reader: &mut Reader<'_>) -> Vec<u8> {
        let which = reader.u8();
        let mut options = Vec::new();
        if which & 1 != 0 {
            let mss = reader.u16();
            options.extend([2, 4]);
            options.extend(mss.to_be_bytes());
        }
        if which & 2 != 0 {
            options.extend([1, 3, 3, reader.u8()]);
        }
        if which & 4 != 0 {
            options.extend([1, 1, 4, 2]);
        }
        if which & 8 != 0 {
            options.extend([1, 1, 8, 10, 0, 0, 0, 1]);
            options.extend([0; 4]);
        }
        if which & 16 != 0 {
            let len = usize::from(reader.u8() % 17);
            options.extend([34, 2 + len as u8]);
            options.extend(reader.bytes(len));
            while options.len() % 4 != 0 {
                options.push(1);
            }
        }
        options.truncate(40);
        options
    }

    /// Timestamps, if the stack sends them.
    fn timestamps(&self, flow: usize) -> Vec<u8> {
        let Some(ts) = self.flows[flow].ts else {
            return Vec::new();
        };
        let now = (sbinuptime().as_us() / 1000) as u32;
        let mut options = vec![1, 1, 8, 10];
        options.extend(now.wrapping_add(2).to_be_bytes());
        options.extend(ts.to_be_bytes());
        options
    }

    #[expect(clippy::too_many_arguments, reason = "a segment has these fields")]
    fn send_segment(
        &mut self,
        flow: usize,
        seq: u32,
        ack: u32,
        flags: u8,
        win: u16,
        options: &[u8],
        len: usize,
    ) {
        let options = &options[..options.len().min(40) & !3];
        let f = &mut self.flows[flow];
        let mut m = Vec::with_capacity(20 + options.len() + len);
        m.extend((PEER_PORT + flow as u16).to_be_bytes());
        m.extend(f.port.to_be_bytes());
        m.extend(seq.to_be_bytes());
        m.extend(ack.to_be_bytes());
        m.extend([((20 + options.len()) as u8 / 4) << 4, flags]);
        m.extend(win.to_be_bytes());
        m.extend([0, 0]);
        // Urgent data is at the end, if there is any.
        let urgent = if flags & URG != 0 { len as u16 } else { 0 };
        m.extend(urgent.to_be_bytes());
        m.extend(options);
        let start = seq.wrapping_add(u32::from(flags & SYN != 0));
        m.extend((0..len as u32).map(|i| start.wrapping_add(i) as u8));
        let end = start
            .wrapping_add(len as u32)
            .wrapping_add(u32::from(flags & FIN != 0));
        if end.wrapping_sub(f.sent) as i32 > 0 {
            f.sent = end;
        }
        self.tainted |= flags & URG != 0;
        self.inject(self.tcp_layer(), Control::USUAL, &m);
    }

    fn inject(&self, layer: Layer, control: Control, bytes: &[u8]) {
        let frame = frame::frame(layer, &Record { control, bytes });
        self.net.inject(&frame);
    }

    fn set_option(&mut self, reader: &mut Reader<'_>) {
        let at = reader.u8();
        let (level, name) = reader.pick(&OPTIONS);
        let value = match reader.u8() {
            small if small < 128 => i32::from(small),
            large => i32::from(large & 127) << 12,
        };
        let v6 = self.v6;
        let Some(open) = self.open_mut(at) else {
            return;
        };
        match name {
            TCP_CONGESTION if level == IPPROTO_TCP => {
                let algorithm: &[u8] = if value & 1 == 0 { b"newreno" } else { b"cubic" };
                let _ = open.so.setsockopt(level, name, algorithm);
            }
            // Long keepalives would outlive the program.
            TCP_KEEPIDLE | TCP_KEEPINTVL | TCP_KEEPINIT | TCP_KEEPCNT | TCP_MAXUNACKTIME
                if level == IPPROTO_TCP =>
            {
                let _ = open.so.setsockopt_int(level, name, value & 63);
            }
            IP_TOS | IP_TTL if level == IPPROTO_IP && v6 => {}
            _ => _ = open.so.setsockopt_int(level, name, value),
        }
    }

    fn get_options(&mut self, reader: &mut Reader<'_>) {
        let at = reader.u8();
        let Some(open) = self.open_mut(at) else {
            return;
        };
        for (level, name) in OPTIONS {
            let _ = open.so.getsockopt(level, name, 64);
        }
        let _ = open.so.getsockopt(IPPROTO_TCP, TCP_INFO, 512);
        let _ = (open.so.getsockname(), open.so.getpeername());
    }

    /// An ICMP error that quotes the stack's last segment.
    fn icmp(&mut self, reader: &mut Reader<'_>) {
        let (kind, code) = match self.v6 {
            false => reader.pick(&[
                (3, 4),
                (3, 1),
                (3, 3),
                (3, 2),
                (11, 0),
                (12, 0),
                (4, 0),
                (3, 13),
            ]),
            true => reader.pick(&[
                (2, 0),
                (1, 0),
                (1, 4),
                (1, 1),
                (3, 0),
                (4, 1),
                (4, 0),
                (1, 3),
            ]),
        };
        let mtu = reader.u16();
        let cut = usize::from(reader.u8());
        let quoted = self.last.get(14..).unwrap_or(&[]);
        // As much of it as any router quotes; sometimes less.
        let len = if cut < 128 {
            quoted.len().min(68)
        } else {
            cut - 128
        };
        let quoted = &quoted[..len.min(quoted.len())];
        let message = [&[kind, code, 0, 0, 0, 0], &mtu.to_be_bytes()[..], quoted].concat();
        match self.v6 {
            false => self.inject(Layer::Icmp, Control::USUAL, &message),
            true => self.inject(Layer::Icmp6, Control::USUAL, &[&[0], &message[..]].concat()),
        }
    }

    /// Looks at all that the stack has sent: the peer learns from it, and data must be where it belongs.
    fn look(&mut self) {
        while let Some(frame) = self.net.take_sent() {
            let at = match frame[12..14] {
                [8, 0] if frame[23] == 6 && frame[20] & 0x1f == 0 && frame[21] == 0 => {
                    14 + usize::from(frame[14] & 15) * 4
                }
                [0x86, 0xdd] if frame[20] == 6 => 54,
                _ => continue,
            };
            self.learn(&frame[at..]);
            self.last = frame;
        }
    }

    fn learn(&mut self, tcp: &[u8]) {
        let half = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let word = |at: usize| u32::from(half(at)) << 16 | u32::from(half(at + 2));
        let flow = usize::from(half(2).wrapping_sub(PEER_PORT));
        let Some(f) = self.flows.get_mut(flow) else {
            return;
        };
        let (seq, flags) = (word(4), tcp[13]);
        let header = usize::from(tcp[12] >> 4) * 4;
        if flags & RST != 0 {
            return;
        }
        if flags & SYN != 0 {
            *f = Flow {
                port: half(0),
                iss: Some(seq),
                seen: seq,
                sent: f.sent,
                expected: f.expected,
                ts: None,
            };
        }
        if f.port != half(0) {
            return;
        }
        if flags & ACK != 0 {
            f.expected = word(8);
        }
        let mut options = &tcp[20..header];
        while let [kind, rest @ ..] = options {
            let len = match kind {
                0 => break,
                1 => 1,
                _ => rest.first().map_or(1, |&len| usize::from(len).max(2)),
            };
            if let (8, Some(ts)) = (kind, options.get(2..6)) {
                f.ts = Some(u32::from_be_bytes([ts[0], ts[1], ts[2], ts[3]]));
            }
            options = options.get(len..).unwrap_or(&[]);
        }
        let data = &tcp[header..];
        let start = seq.wrapping_add(u32::from(flags & SYN != 0));
        let end = start
            .wrapping_add(data.len() as u32)
            .wrapping_add(u32::from(flags & FIN != 0));
        if end.wrapping_sub(f.seen) as i32 > 0 {
            f.seen = end;
        }
        // A probe of a closed window or an idle connection carries a byte that counts for nothing.
        let (Some(iss), false) = (f.iss, self.tainted || data.len() == 1) else {
            return;
        };
        for (i, &byte) in data.iter().enumerate() {
            let place = start
                .wrapping_sub(iss)
                .wrapping_sub(1)
                .wrapping_add(i as u32);
            assert_eq!(byte, place as u8, "sent as byte {place} of the stream");
        }
    }

    /// Closes everything and checks that nothing is left.
    fn end(mut self) {
        self.listener = None;
        self.udp = None;
        self.open.clear();
        for _ in 0..4 {
            pump(sbinuptime() + LINGER);
            self.look();
            self.net.flush_neighbours();
            if self.net.held() == self.rest {
                break;
            }
        }
        assert_eq!(
            self.net.held(),
            self.rest,
            "what the stack holds after and before"
        );
        self.net.destroy();
    }
}

/// A signed distance: a byte for how far, one for the unit.
fn distance(reader: &mut Reader<'_>) -> u32 {
    let far = i32::from(reader.u8().cast_signed());
    let unit = [1, 16, 536, 1448, 1 << 16, 1 << 24][usize::from(reader.u8()) % 6];
    far.wrapping_mul(unit).cast_unsigned()
}

/// Exchanges the ends of a packet.
fn turn_round(packet: &mut [u8]) {
    let (addresses, transport) = match packet.first().map(|first| first >> 4) {
        Some(4) => (12..20, usize::from(packet[0] & 15) * 4),
        Some(6) => (8..40, 40),
        _ => return,
    };
    for (range, half) in [
        (addresses.clone(), addresses.len() / 2),
        (transport..transport + 4, 2),
    ] {
        if let Some(both) = packet.get_mut(range) {
            both.rotate_left(half);
        }
    }
}

const OPTIONS: [(i32, i32); 24] = [
    (SOL_SOCKET, SO_SNDBUF),
    (SOL_SOCKET, SO_RCVBUF),
    (SOL_SOCKET, SO_KEEPALIVE),
    (SOL_SOCKET, SO_OOBINLINE),
    (SOL_SOCKET, SO_RCVLOWAT),
    (SOL_SOCKET, SO_SNDLOWAT),
    (SOL_SOCKET, SO_REUSEADDR),
    (IPPROTO_TCP, TCP_NODELAY),
    (IPPROTO_TCP, TCP_NOPUSH),
    (IPPROTO_TCP, TCP_NOOPT),
    (IPPROTO_TCP, TCP_MAXSEG),
    (IPPROTO_TCP, TCP_DELACK),
    (IPPROTO_TCP, TCP_CONGESTION),
    (IPPROTO_TCP, TCP_FASTOPEN),
    (IPPROTO_TCP, TCP_KEEPIDLE),
    (IPPROTO_TCP, TCP_KEEPINTVL),
    (IPPROTO_TCP, TCP_KEEPINIT),
    (IPPROTO_TCP, TCP_KEEPCNT),
    (IPPROTO_TCP, TCP_MAXUNACKTIME),
    (IPPROTO_IP, IP_TOS),
    (IPPROTO_IP, IP_TTL),
    (SOL_SOCKET, SO_RCVBUF),
    (SOL_SOCKET, SO_SNDBUF),
    (IPPROTO_TCP, TCP_NOPUSH),
];

/// Names of variables, and values that they take.
const SYSCTLS: &[(&str, &[&str])] = &[
    ("net.inet.tcp.rfc1323", &["0", "1", "2", "3"]),
    ("net.inet.tcp.sack.enable", &["0", "1"]),
    ("net.inet.tcp.ecn.enable", &["0", "1", "2", "3"]),
    ("net.inet.tcp.syncookies", &["0", "1"]),
    ("net.inet.tcp.syncookies_only", &["0", "1"]),
    ("net.inet.tcp.syncache.rst_on_sock_fail", &["0", "1"]),
    ("net.inet.tcp.fastopen.server_enable", &["0", "1"]),
    ("net.inet.tcp.fastopen.client_enable", &["0", "1"]),
    ("net.inet.tcp.delayed_ack", &["0", "1"]),
    ("net.inet.tcp.path_mtu_discovery", &["0", "1"]),
    ("net.inet.tcp.pmtud_blackhole_detection", &["0", "1", "3"]),
    ("net.inet.tcp.minmss", &["216", "1"]),
    ("net.inet.tcp.mssdflt", &["536", "48"]),
    ("net.inet.tcp.recvspace", &["65536", "512", "1048576"]),
    ("net.inet.tcp.sendspace", &["32768", "512", "1048576"]),
    ("net.inet.tcp.recvbuf_auto", &["0", "1"]),
    ("net.inet.tcp.sendbuf_auto", &["0", "1"]),
    ("net.inet.tcp.blackhole", &["0", "1", "2"]),
    ("net.inet.tcp.drop_synfin", &["0", "1"]),
    ("net.inet.tcp.reass.maxqueuelen", &["100", "1", "0"]),
    ("net.inet.tcp.tolerate_missing_ts", &["0", "1"]),
    ("net.inet.tcp.do_prr", &["0", "1"]),
    ("net.inet.tcp.newcwd", &["0", "1"]),
    ("net.inet.tcp.nolocaltimewait", &["0", "1"]),
    ("net.inet.tcp.initcwnd_segments", &["10", "1", "0"]),
    ("net.inet.tcp.cc.algorithm", &["newreno", "cubic"]),
    ("net.inet.tcp.fast_finwait2_recycle", &["0", "1"]),
    ("net.inet.tcp.always_keepalive", &["0", "1"]),
    ("net.inet.tcp.rexmit_min", &["30", "1000"]),
    ("net.inet.udp.checksum", &["0", "1"]),
    ("net.inet.ip.forwarding", &["0", "1"]),
    ("net.inet6.ip6.forwarding", &["0", "1"]),
    ("net.inet.ip.process_options", &["0", "1", "2"]),
    ("net.inet.ip.accept_sourceroute", &["0", "1"]),
];

/// The steps of the seeds.
pub(super) fn push_step(program: &mut Vec<u8>, step: Step, arguments: &[u8]) {
    let number = ALL_STEPS.iter().position(|&s| s == step).unwrap_or(0);
    program.push(number as u8);
    program.extend(arguments);
}
