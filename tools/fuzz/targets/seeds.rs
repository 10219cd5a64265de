//! First inputs for the targets: some of each kind, and what packetdrill scripts tell.
//!
//! A script's packets become records for the parsers they would meet; the whole script, calls and times included, becomes
//! a program for `connection`. Its numbers become distances from what each side expects at that point, so that the program
//! goes the same way although the stack's own numbers are others.

use super::connection::{FLAGS, Step, push_step};
use super::frame::{OUR_IP, OUR_IP6, PEER_IP, PEER_IP6, PEER_MAC, PEER_PORT, PORT};
use super::input::{Control, push_record};
use super::{Kind, Target};
use netinet::netinet6::in6::in6_linklocal_of;
use packetdrill::ast::{
    Action, Body, Direction, Event, Expr, IcmpSpec, Packet, Script, SeqSpec, Syscall, TcpOption,
    TcpSpec, Time,
};
use packetdrill::wire::encode_options;

/// Inputs of a target from what is known of its subject.
pub fn built_in(target: &Target) -> Vec<Vec<u8>> {
    match target.name {
        "ether" => ether(),
        "arp" => arp(),
        "ipv4" => ipv4(),
        "icmp" => icmp(),
        "reassembly" | "frag6" => fragments(),
        "udp" => udp(),
        "tcp" => tcp(),
        "lro" => lro(),
        "ipv6" => ipv6(),
        "ip6-headers" => ip6_headers(),
        "icmp6" => icmp6(),
        "tcp-options" => tcp_options(),
        "headers" => vec![segment(2, 0, 0, &[], 20), ipv4_packet(17, &[0; 12])],
        "checksums" => vec![
            vec![0xff; 64],
            (0..=255).collect(),
            vec![0x61, 1, 3, 200, 1, 2],
        ],
        "dhcp" => dhcp(),
        "iperf3" => iperf3(),
        "connection" => connection(),
        "pair" => pair(),
        _ => Vec::new(),
    }
}

/// Inputs of a target from one script.
pub fn from_script(target: &Target, text: &str) -> Vec<Vec<u8>> {
    if target.name == "packetdrill" {
        return vec![without_comments(text).into_bytes()];
    }
    let Ok(script) = packetdrill::parser::parse(text) else {
        return Vec::new();
    };
    match target.name {
        "tcp" | "lro" => vec![segments_of(&script)],
        "tcp-options" => options_of(&script),
        "headers" => inbound(&script).map(|spec| header_of(spec, 0, 0)).collect(),
        "icmp" => icmps_of(&script),
        "connection" => vec![program_of(&script)],
        _ => Vec::new(),
    }
}

/// Whether a target has inputs of records, which `mutate` knows how to change.
pub fn has_records(target: &Target) -> bool {
    matches!(target.kind, Kind::Frames(_)) || target.name == "lro"
}

/// A script as short as it can be said: licences and explanations are nothing to a parser.
fn without_comments(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let lines = lines.filter(|line| !line.trim().is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

fn inbound(script: &Script) -> impl Iterator<Item = &TcpSpec> {
    script
        .events
        .iter()
        .filter_map(|event| match &event.action {
            Action::Packet(Packet {
                direction: Direction::Inbound,
                body: Body::Tcp(spec),
                ..
            }) => Some(spec),
            _ => None,
        })
}

/// Where both sides of a script are.
#[derive(Default)]
struct Ends {
    /// Behind what the peer has sent.
    peer: u32,
    /// Behind what the stack has sent.
    stack: u32,
}

impl Ends {
    fn take(&mut self, packet: &Packet, spec: &TcpSpec) {
        let flags = spec.flags;
        let len = spec.len + u32::from(flags & 1 != 0) + u32::from(flags & 2 != 0);
        let end = number(spec.seq).wrapping_add(len);
        let side = match packet.direction {
            Direction::Inbound => &mut self.peer,
            Direction::Outbound => &mut self.stack,
        };
        if flags & 2 != 0 || end.wrapping_sub(*side) as i32 > 0 {
            *side = end;
        }
    }
}

fn number(seq: SeqSpec) -> u32 {
    match seq {
        SeqSpec::Any => 0,
        SeqSpec::Relative(seq) | SeqSpec::Absolute(seq) => seq,
    }
}

/// A script's segments for `tcp`: one record each.
fn segments_of(script: &Script) -> Vec<u8> {
    let mut ends = Ends::default();
    let mut input = Vec::new();
    for event in &script.events {
        let Action::Packet(packet) = &event.action else {
            continue;
        };
        let Body::Tcp(spec) = &packet.body else {
            continue;
        };
        if packet.direction == Direction::Inbound {
            let first = spec.flags & 0x12 == 2;
            let (control, seq, ack) = match first {
                true => (Control::USUAL, number(spec.seq), 0),
                false => (
                    Control(0x40),
                    number(spec.seq).wrapping_sub(ends.peer),
                    spec.ack.unwrap_or(0).wrapping_sub(ends.stack),
                ),
            };
            push_record(&mut input, control, &header_of(spec, seq, ack));
        }
        ends.take(packet, spec);
    }
    input
}

/// A segment with the flags, window, options and length of `spec`.
fn header_of(spec: &TcpSpec, seq: u32, ack: u32) -> Vec<u8> {
    let options = spec.options.as_deref().unwrap_or(&[]);
    let mut options = encode_options(options, [0x4d; 16]);
    options.resize(options.len().next_multiple_of(4).min(40), 0);
    let len = spec.len.min(1400) as usize;
    let mut m = segment(spec.flags as u8, seq, ack, &options, len);
    m[12] |= (spec.flags >> 8) as u8 & 15;
    m[14..16].copy_from_slice(&spec.win.unwrap_or(0xffff).to_be_bytes());
    m[18..20].copy_from_slice(&spec.urg.unwrap_or(0).to_be_bytes());
    m
}

fn segment(flags: u8, seq: u32, ack: u32, options: &[u8], len: usize) -> Vec<u8> {
    let mut m = [PEER_PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
    m.extend(seq.to_be_bytes());
    m.extend(ack.to_be_bytes());
    m.extend([((20 + options.len()) as u8 / 4) << 4, flags]);
    m.extend([0xff, 0xff, 0, 0, 0, 0]);
    m.extend(options);
    m.resize(m.len() + len, 0x5a);
    m
}

fn options_of(script: &Script) -> Vec<Vec<u8>> {
    let options = |spec: &TcpSpec| {
        let syn = (spec.flags >> 1) as u8 & 1;
        let bytes = encode_options(spec.options.as_deref()?, [0x4d; 16]);
        Some([&[syn], &bytes[..]].concat())
    };
    inbound(script).filter_map(options).collect()
}

fn icmps_of(script: &Script) -> Vec<Vec<u8>> {
    let packets = script
        .events
        .iter()
        .filter_map(|event| match &event.action {
            Action::Packet(Packet {
                body: Body::Icmp(spec),
                ..
            }) => Some(spec),
            _ => None,
        });
    packets
        .map(|spec: &IcmpSpec| {
            let mtu = spec.mtu.unwrap_or(0) as u16;
            let mut m = vec![3, 4, 0, 0, 0, 0];
            m.extend(mtu.to_be_bytes());
            let mut quoted = ipv4_packet(6, &segment(0x10, 0, 0, &[], 8));
            quoted[12..16].copy_from_slice(&OUR_IP.octets());
            quoted[16..20].copy_from_slice(&PEER_IP.octets());
            m.extend(quoted);
            let mut input = Vec::new();
            push_record(&mut input, Control::USUAL, &m);
            input
        })
        .collect()
}

/// A script as a program for `connection`.
fn program_of(script: &Script) -> Vec<u8> {
    let v6 = script.options.iter().any(|o| o.value == "ipv6");
    let mut program = vec![u8::from(v6)];
    let mut ends = Ends::default();
    let mut clock = 0;
    for event in &script.events {
        pause(&mut program, event, &mut clock);
        match &event.action {
            Action::Packet(packet) => {
                if let Body::Tcp(spec) = &packet.body {
                    if packet.direction == Direction::Inbound {
                        arrival(&mut program, spec, &ends);
                    }
                    ends.take(packet, spec);
                } else if let (Body::Icmp(spec), Direction::Inbound) =
                    (&packet.body, packet.direction)
                {
                    let [high, low] = (spec.mtu.unwrap_or(0) as u16).to_be_bytes();
                    push_step(&mut program, Step::Icmp, &[0, high, low, 0]);
                }
            }
            Action::Syscall(call) => syscall(&mut program, call),
            Action::Command(_) | Action::Code(_) => {}
        }
    }
    program
}

fn pause(program: &mut Vec<u8>, event: &Event, clock: &mut i64) {
    let us = match event.time {
        Time::Absolute(at) | Time::AbsoluteRange(at, _) => {
            let us = at - *clock;
            *clock = at;
            us
        }
        Time::Relative(us) | Time::RelativeRange(us, _) => {
            *clock += us;
            us
        }
        Time::Any => 0,
    };
    if us > 0 {
        push_step(program, Step::Pause, &[us.ilog2() as u8]);
    }
}

fn arrival(program: &mut Vec<u8>, spec: &TcpSpec, ends: &Ends) {
    let flags = spec.flags as u8;
    let options = spec.options.as_deref().unwrap_or(&[]);
    if flags & 2 != 0 {
        let (step, mut arguments) = match flags & 0x10 {
            0 => (Step::Syn, vec![0, 0]),
            _ => (Step::SynAck, vec![0, 0]),
        };
        arguments.extend(syn_options(options));
        if step == Step::Syn {
            arguments.push(spec.len.min(255) as u8);
        }
        push_step(program, step, &arguments);
        return;
    }
    let known = FLAGS.iter().position(|&f| f == flags);
    let mut arguments = vec![0];
    match known {
        Some(number) => arguments.push(number as u8),
        None => arguments.extend([15, flags]),
    }
    let ack = spec.ack.unwrap_or(0);
    arguments.push(0);
    arguments.extend(distance(number(spec.seq).wrapping_sub(ends.peer)));
    arguments.extend(distance(ack.wrapping_sub(ends.stack)));
    arguments.push((spec.win.unwrap_or(0xffff) >> 8) as u8);
    let blocks = options.iter().find_map(|option| match option {
        TcpOption::Sack(blocks) => Some(blocks.as_slice()),
        _ => None,
    });
    match blocks {
        Some(blocks) if !blocks.is_empty() => {
            let blocks = &blocks[..blocks.len().min(3)];
            arguments.extend([3, blocks.len() as u8 - 1]);
            let mut edge = ack;
            for &next in blocks.iter().flat_map(|(start, end)| [start, end]) {
                arguments.extend(distance(next.wrapping_sub(edge)));
                edge = next;
            }
        }
        _ => arguments.push(0),
    }
    arguments.extend((spec.len.min(2899) as u16).to_be_bytes());
    push_step(program, Step::Segment, &arguments);
}

/// What `Program::syn_options` reads.
fn syn_options(options: &[TcpOption]) -> Vec<u8> {
    let mut which = vec![0];
    for option in options {
        match option {
            TcpOption::Mss(mss) => {
                which[0] |= 1;
                which.splice(1..1, mss.to_be_bytes());
            }
            TcpOption::WindowScale(shift) => {
                which[0] |= 2;
                let at = if which[0] & 1 != 0 { 3 } else { 1 };
                which.insert(at, *shift);
            }
            TcpOption::SackPermitted => which[0] |= 4,
            TcpOption::Timestamps { .. } => which[0] |= 8,
            TcpOption::FastOpen(cookie) => {
                which[0] |= 16;
                which.push(cookie.len().min(16) as u8);
                which.extend(&cookie[..cookie.len().min(16)]);
            }
            _ => {}
        }
    }
    which
}

/// What `connection`'s `distance` reads: a factor, and the number of a unit.
fn distance(wanted: u32) -> [u8; 2] {
    let wanted = wanted.cast_signed();
    let units = [1, 16, 536, 1448, 1 << 16, 1 << 24];
    let exact = units
        .iter()
        .position(|unit| wanted % unit == 0 && i8::try_from(wanted / unit).is_ok());
    let near = || {
        units
            .iter()
            .position(|unit| i8::try_from(wanted / unit).is_ok())
    };
    let unit = exact.or_else(near).unwrap_or(0);
    [(wanted / units[unit]) as u8, unit as u8]
}

fn syscall(program: &mut Vec<u8>, call: &Syscall) {
    let len = call.args.iter().skip(1).find_map(|arg| match arg {
        Expr::Int(len) => Some((*len).clamp(0, 0xffff) as u16),
        _ => None,
    });
    let [high, low] = len.unwrap_or(1000).to_be_bytes();
    match call.name.as_str() {
        "connect" => push_step(program, Step::Connect, &[0]),
        "accept" => push_step(program, Step::Accept, &[]),
        "write" | "send" | "sendto" | "writev" | "sendmsg" => {
            push_step(program, Step::Send, &[0, high, low, 0]);
        }
        "read" | "recv" | "recvfrom" | "readv" | "recvmsg" => {
            push_step(program, Step::Receive, &[0, high, low, 0]);
        }
        "shutdown" => push_step(program, Step::Shutdown, &[0, 1]),
        "close" => push_step(program, Step::Close, &[0]),
        "getsockopt" => push_step(program, Step::Look, &[0]),
        _ => {}
    }
}

/// One input of one record each.
fn each<const N: usize>(records: [&[u8]; N]) -> Vec<Vec<u8>> {
    let one = |bytes: &&[u8]| {
        let mut input = Vec::new();
        push_record(&mut input, Control::USUAL, bytes);
        input
    };
    records.iter().map(one).collect()
}

/// One input of several records.
fn together(records: &[(u8, &[u8])]) -> Vec<u8> {
    let mut input = Vec::new();
    for (control, bytes) in records {
        push_record(&mut input, Control(*control), bytes);
    }
    input
}

fn ether() -> Vec<Vec<u8>> {
    let mut tagged = [
        &super::frame::OUR_MAC[..],
        &PEER_MAC,
        &[0x81, 0, 0, 0, 8, 0],
    ]
    .concat();
    tagged.extend(ipv4_packet(17, &[0; 12]));
    let foreign = [&PEER_MAC[..], &PEER_MAC, &[8, 0, 1]].concat();
    let other = [&super::frame::OUR_MAC[..], &PEER_MAC, &[0x88, 0xcc, 1]].concat();
    each([&tagged, &foreign, &other, &[1, 2, 3]])
}

fn arp() -> Vec<Vec<u8>> {
    let packet = |op: u8, sender: [u8; 4], target: [u8; 4]| {
        let mut p = vec![0, 1, 8, 0, 6, 4, 0, op];
        p.extend(PEER_MAC);
        p.extend(sender);
        p.extend([0; 6]);
        p.extend(target);
        p
    };
    let (ours, peers) = (OUR_IP.octets(), PEER_IP.octets());
    let (request, reply) = (packet(1, peers, ours), packet(2, [10, 0, 0, 7], ours));
    let mut all = each([
        &request,
        &reply,
        &packet(1, ours, ours),
        &packet(1, [0; 4], ours),
    ]);
    all.push(together(&[(0, &reply), (0xc0, &request), (0x38, &request)]));
    all
}

fn ipv4_packet(proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, proto, 0, 0];
    p.extend(PEER_IP.octets());
    p.extend(OUR_IP.octets());
    p.extend(payload);
    p
}

fn with_ip_options(options: &[u8]) -> Vec<u8> {
    let mut p = ipv4_packet(1, &[8, 0, 0, 0, 0, 1, 0, 1]);
    p[0] = 0x45 + (options.len() / 4) as u8;
    p.splice(20..20, options.iter().copied());
    p
}

fn ipv4() -> Vec<Vec<u8>> {
    let datagram = [&PEER_PORT.to_be_bytes()[..], &PORT.to_be_bytes(), &[0; 20]].concat();
    let mut elsewhere = ipv4_packet(17, &datagram);
    elsewhere[16..20].copy_from_slice(&[192, 0, 2, 1]);
    each([
        &ipv4_packet(17, &datagram),
        &ipv4_packet(6, &segment(2, 7, 0, &[2, 4, 5, 0xb4], 0)),
        &ipv4_packet(99, &[1, 2, 3]),
        &elsewhere,
        &with_ip_options(&[7, 7, 4, 0, 0, 0, 0, 0]),
        &with_ip_options(&[68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        &with_ip_options(&[131, 7, 4, 10, 0, 0, 9, 0]),
        &with_ip_options(&[148, 4, 0, 0]),
    ])
}

fn icmp() -> Vec<Vec<u8>> {
    let mut quoted = ipv4_packet(17, &[0x14, 0x51, 0x0f, 0xa0, 0, 8, 0, 0]);
    quoted[12..16].copy_from_slice(&OUR_IP.octets());
    quoted[16..20].copy_from_slice(&PEER_IP.octets());
    let unreachable = [&[3, 3, 0, 0, 0, 0, 0, 0], &quoted[..]].concat();
    let too_big = [&[3, 4, 0, 0, 0, 0, 2, 0x40], &quoted[..]].concat();
    let stamp = [&[13, 0, 0, 0, 0, 1, 0, 1][..], &[0; 12]].concat();
    each([
        &[8, 0, 0, 0, 0, 1, 0, 1, 9, 9],
        &stamp,
        &unreachable,
        &too_big,
        &[17, 0, 0, 0, 0, 0, 0, 0],
    ])
}

fn fragments() -> Vec<Vec<u8>> {
    let piece = |off: u16, more: bool, len: usize| {
        let word = off | if more { 0x2000 } else { 0 };
        let mut p = word.to_be_bytes().to_vec();
        p.extend([7, 17]);
        p.extend(PEER_PORT.to_be_bytes());
        p.extend(PORT.to_be_bytes());
        p.extend((len as u16 * 2).to_be_bytes());
        p.resize(4 + len, 0);
        p
    };
    let (first, second) = (piece(0, true, 64), piece(8, false, 64));
    let overlapping = piece(4, true, 64);
    vec![
        together(&[(0, &first), (0, &second)]),
        together(&[(0, &second), (0, &first)]),
        together(&[(0, &first), (0, &overlapping), (0, &second)]),
        together(&[(0, &first), (0x38, &second)]),
        together(&[(0, &piece(8180, false, 200)), (0, &first)]),
        together(&[(0, &piece(0, false, 20))]),
        // Pieces of a datagram whose end never comes.
        together(
            &[0, 8, 16, 24, 32]
                .map(|off| piece(off, true, 64))
                .each_ref()
                .map(|p| (0, p.as_slice())),
        ),
    ]
}

fn udp() -> Vec<Vec<u8>> {
    let datagram = |port: u16, len: usize| {
        let mut m = [PEER_PORT.to_be_bytes(), port.to_be_bytes()].concat();
        m.resize(8 + len, 0);
        m
    };
    let (ours, closed) = (datagram(PORT, 40), datagram(9, 40));
    let mut all = each([&ours, &closed, &datagram(0, 4), &datagram(PORT, 0)]);
    all.push(together(&[(0x80, &ours), (0x80, &closed), (7, &ours)]));
    all
}

fn tcp() -> Vec<Vec<u8>> {
    let options = [
        2, 4, 5, 0xb4, 1, 3, 3, 6, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0,
    ];
    let syn = segment(2, 1000, 0, &options, 0);
    let stamps = [1, 1, 8, 10, 0, 0, 0, 2, 0, 0, 0, 0];
    let ack = segment(0x10, 0, 0, &stamps, 0);
    let data = segment(0x18, 0, 0, &stamps, 100);
    let fin = segment(0x11, 0, 0, &stamps, 0);
    vec![
        together(&[(0, &syn), (0x40, &ack), (0x40, &data), (0x40, &fin)]),
        together(&[(0x80, &syn), (0xc0, &ack)]),
        together(&[(0, &syn), (0x40, &segment(4, 0, 0, &[], 0))]),
        together(&[(0, &segment(0x10, 5, 5, &[], 10))]),
    ]
}

fn lro() -> Vec<Vec<u8>> {
    let stamps = [1, 1, 8, 10, 0, 0, 0, 2, 0, 0, 0, 0];
    let data = |seq, options: &[u8]| segment(0x10, seq, 7, options, 100);
    let (first, second, third) = (data(0, &stamps), data(100, &stamps), data(200, &stamps));
    vec![
        together(&[(0, &first), (0, &second), (0, &third)]),
        together(&[(0, &first), (0, &third), (0, &second)]),
        together(&[
            (0, &data(0, &[])),
            (0x20, &data(100, &[])),
            (0, &data(200, &[])),
        ]),
        together(&[
            (0, &first),
            (0, &segment(0x11, 100, 7, &stamps, 0)),
            (0, &second),
        ]),
    ]
}

fn ip6_packet(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    p.extend(PEER_IP6.octets());
    p.extend(OUR_IP6.octets());
    p.extend(payload);
    p
}

fn ipv6() -> Vec<Vec<u8>> {
    let datagram = [&PEER_PORT.to_be_bytes()[..], &PORT.to_be_bytes(), &[0; 20]].concat();
    let mut elsewhere = ip6_packet(17, &datagram);
    elsewhere[24..40].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    each([
        &ip6_packet(17, &datagram),
        &ip6_packet(6, &segment(2, 7, 0, &[2, 4, 5, 0xb4], 0)),
        &ip6_packet(99, &[1, 2, 3]),
        &ip6_packet(59, &[]),
        &ip6_packet(58, &[128, 0, 0, 0, 0, 1, 0, 1]),
        &elsewhere,
    ])
}

fn ip6_headers() -> Vec<Vec<u8>> {
    let datagram = [&PEER_PORT.to_be_bytes()[..], &PORT.to_be_bytes(), &[0; 8]].concat();
    let chain = |parts: &[&[u8]]| parts.concat();
    each([
        // Hop by hop with a router alert; a jumbo payload; an unknown option; destination options; routing; a fragment.
        &chain(&[&[0], &[17, 0, 5, 2, 0, 0, 1, 0], &datagram]),
        &chain(&[&[0], &[17, 0, 0xc2, 4, 0, 1, 0, 0], &datagram]),
        &chain(&[&[0], &[17, 0, 0x80, 1, 0, 1, 1, 0], &datagram]),
        &chain(&[&[60], &[17, 0, 1, 4, 0, 0, 0, 0], &datagram]),
        &chain(&[
            &[60],
            &[60, 0, 1, 4, 0, 0, 0, 0],
            &[17, 0, 1, 4, 0, 0, 0, 0],
            &datagram,
        ]),
        &chain(&[&[43], &[17, 0, 0, 0, 0, 0, 0, 0], &datagram]),
        &chain(&[&[43], &[17, 2, 0, 1, 0, 0, 0, 0], &[0; 16], &datagram]),
        &chain(&[&[44], &[17, 0, 0, 0, 0, 0, 0, 9], &datagram]),
        &chain(&[
            &[0],
            &[44, 0, 1, 4, 0, 0, 0, 0],
            &[17, 0, 0, 1, 0, 0, 0, 9],
            &datagram,
        ]),
        &chain(&[&[51], &[17, 4, 0, 0], &[0; 20], &datagram]),
        &chain(&[&[59]]),
    ])
}

fn icmp6() -> Vec<Vec<u8>> {
    let target = OUR_IP6.octets();
    let lladdr = |kind: u8| [&[kind, 1][..], &PEER_MAC].concat();
    let ns = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, &lladdr(1)].concat();
    let dad = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target].concat();
    let na = [
        &[136, 0, 0, 0, 0x60, 0, 0, 0][..],
        &PEER_IP6.octets(),
        &lladdr(2),
    ]
    .concat();
    let prefix = [
        &[3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 7, 8, 0, 0, 0, 0][..],
        &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let ra = [
        &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &lladdr(1),
        &[5, 1, 0, 0, 0, 0, 5, 0xdc],
        &prefix,
    ]
    .concat();
    let redirect = [
        &[137, 0, 0, 0, 0, 0, 0, 0][..],
        &in6_linklocal_of(PEER_MAC).octets(),
        &PEER_IP6.octets(),
    ]
    .concat();
    let mut quoted = ip6_packet(17, &[0x14, 0x51, 0x0f, 0xa0, 0, 8, 0, 0]);
    quoted[8..24].copy_from_slice(&OUR_IP6.octets());
    quoted[24..40].copy_from_slice(&PEER_IP6.octets());
    let too_big = [&[2, 0, 0, 0, 0, 0, 5, 0], &quoted[..]].concat();
    let unreachable = [&[1, 4, 0, 0, 0, 0, 0, 0], &quoted[..]].concat();
    let at = |how: u8, message: &[u8]| [&[how], message].concat();
    each([
        &at(0, &[128, 0, 0, 0, 0, 1, 0, 1, 9]),
        &at(4, &ns),
        &at(2, &ns),
        &at(5, &dad),
        &at(3, &na),
        &at(0, &na),
        &at(3, &ra),
        &at(2, &redirect),
        &at(2, &[133, 0, 0, 0, 0, 0, 0, 0]),
        &at(0, &too_big),
        &at(0, &unreachable),
        &at(
            3,
            &[
                130, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
    ])
}

fn tcp_options() -> Vec<Vec<u8>> {
    vec![
        vec![
            1, 2, 4, 5, 180, 1, 3, 3, 6, 4, 2, 8, 10, 0, 0, 0, 100, 0, 0, 0, 0,
        ],
        vec![0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        vec![
            0, 1, 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4,
        ],
        vec![1, 34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 0],
        vec![
            0, 19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
        ],
    ]
}

fn dhcp() -> Vec<Vec<u8>> {
    vec![
        vec![
            53, 1, 2, 0, 0, 54, 4, 10, 0, 2, 2, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 2, 2, 51, 4,
            0, 1, 0x51, 0x80, 58, 4, 0, 0, 0, 9, 59, 4, 0, 0, 0, 10, 28, 4, 10, 0, 2, 255, 255,
        ],
        vec![53, 1, 5, 54, 4, 10, 0, 2, 2, 255],
        vec![53, 1, 6, 54, 4, 10, 0, 2, 2, 255],
    ]
}

fn iperf3() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 4] = [
        br#"{"tcp":true,"omit":0,"time":10,"num":0,"blockcount":0,"parallel":4,"reverse":true,"len":131072,"pacing_timer":1000,"client_version":"3.12"}"#,
        br#"{"udp":true,"num":1048576,"parallel":1,"len":1448,"bandwidth":1000000,"udp_counters_64bit":1,"window":4096,"MSS":1400,"nodelay":true}"#,
        br#"{"cpu_util_total":1.5,"sender_has_retransmits":-1,"congestion_used":"cubic","streams":[{"id":1,"bytes":5,"retransmits":18446744073709551615,"jitter":0.1,"errors":0,"packets":3,"start_time":0,"end_time":3.5}]}"#,
        b"{}",
    ];
    texts.iter().map(|text| text.to_vec()).collect()
}

/// A connection each way, with data both ways and an orderly end.
fn connection() -> Vec<Vec<u8>> {
    let mut passive = vec![0];
    push_step(&mut passive, Step::Syn, &[0, 7, 15, 5, 0xb4, 6, 0]);
    push_step(&mut passive, Step::AckAll, &[0]);
    push_step(&mut passive, Step::Accept, &[]);
    let data = [0, 1, 0, 0, 0, 0, 0, 0xff, 0, 1, 0];
    push_step(&mut passive, Step::Segment, &data);
    push_step(&mut passive, Step::Receive, &[0, 4, 0, 0]);
    push_step(&mut passive, Step::Send, &[0, 4, 0, 0]);
    push_step(&mut passive, Step::AckAll, &[0]);
    push_step(&mut passive, Step::Close, &[0]);
    push_step(&mut passive, Step::AckAll, &[0]);
    push_step(
        &mut passive,
        Step::Segment,
        &[0, 2, 0, 0, 0, 0, 0, 0xff, 0, 0, 0],
    );
    let mut active = vec![1];
    push_step(&mut active, Step::Connect, &[0]);
    push_step(&mut active, Step::SynAck, &[0, 9, 15, 5, 0xb4, 6]);
    push_step(&mut active, Step::Send, &[0, 40, 0, 0]);
    push_step(&mut active, Step::Pause, &[18]);
    push_step(&mut active, Step::AckAll, &[0]);
    push_step(&mut active, Step::Segment, &data);
    push_step(&mut active, Step::Receive, &[0, 4, 0, 0]);
    push_step(&mut active, Step::Shutdown, &[0, 1]);
    push_step(&mut active, Step::Pause, &[22]);
    push_step(&mut active, Step::Close, &[0]);
    // Data out of order, then more that overlaps it, then what fills the gap.
    let mut disorder = vec![0];
    push_step(&mut disorder, Step::Syn, &[0, 7, 15, 5, 0xb4, 6, 0]);
    push_step(&mut disorder, Step::AckAll, &[0]);
    push_step(&mut disorder, Step::Accept, &[]);
    for (far, unit, len) in [(2, 2, 536_u16), (80, 1, 600), (0, 0, 1072)] {
        let [high, low] = len.to_be_bytes();
        let segment = [0, 1, 1, far, unit, 0, 0, 0xff, 0, high, low];
        push_step(&mut disorder, Step::Segment, &segment);
    }
    push_step(&mut disorder, Step::Receive, &[0, 16, 0, 0]);
    vec![passive, active, disorder]
}

fn pair() -> Vec<Vec<u8>> {
    // Connect, wait, accept, send, wait, receive, send back, close.
    let usual = [
        0, 1, 0, 5, 14, 1, 2, 0, 40, 0, 5, 14, 4, 1, 40, 0, 2, 1, 40, 0, 5, 16, 4, 0, 40, 0, 8, 0,
        5, 20,
    ];
    let lossy = [
        0, 1, 0, 5, 14, 1, 6, 8, 0, 130, 0, 200, 0, 230, 40, 245, 50, 3, 0, 2, 0, 80, 0, 5, 20, 4,
        1, 80, 0,
    ];
    let mut offloading = usual;
    offloading[0] = 8;
    vec![usual.to_vec(), lossy.to_vec(), offloading.to_vec()]
}
