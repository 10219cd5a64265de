//! Frames that no stack should have to see, from a seed.

use oorandom::Rand64;
use std::collections::VecDeque;

/// Valid frames and connections remembered.
const MEMORY: usize = 64;
const ETHER: usize = 14;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Who sends to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The fuzzer's link address.
    pub our_mac: [u8; 6],
    /// The target's.
    pub target_mac: [u8; 6],
    /// The fuzzer's address.
    pub our_ip: [u8; 4],
    /// The target's.
    pub target_ip: [u8; 4],
}

impl Ends {
    /// The ARP reply that says who we are, so that the target's answers leave it.
    pub fn arp_answer(&self) -> Vec<u8> {
        let mut f = Vec::with_capacity(42);
        f.extend(self.target_mac);
        f.extend(self.our_mac);
        f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        f.extend(self.our_mac);
        f.extend(self.our_ip);
        f.extend(self.target_mac);
        f.extend(self.target_ip);
        f
    }
}

/// What kind of frame was made; counts are kept by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// Random bytes behind an Ethernet header.
    Noise,
    /// A good frame cut short.
    Truncated,
    /// A frame longer than the MTU.
    Oversized,
    /// ARP with wrong sizes, operations, addresses.
    Arp,
    /// An IP header whose lengths, version, checksum or addresses are wrong.
    IpHeader,
    /// IP options that are wrong.
    IpOptions,
    /// Fragments that overlap, are tiny, or exceed the largest packet.
    Fragments,
    /// ICMP of all types, quoting what was never sent.
    Icmp,
    /// UDP with wrong lengths and sums.
    Udp,
    /// TCP with impossible flags, offsets, options.
    Tcp,
    /// TCP within the window of a connection of the target's.
    TcpInWindow,
    /// A valid frame with bytes changed.
    Mutation,
}

/// All kinds, for printing counts.
pub const KINDS: [Kind; 12] = [
    Kind::Noise,
    Kind::Truncated,
    Kind::Oversized,
    Kind::Arp,
    Kind::IpHeader,
    Kind::IpOptions,
    Kind::Fragments,
    Kind::Icmp,
    Kind::Udp,
    Kind::Tcp,
    Kind::TcpInWindow,
    Kind::Mutation,
];

/// A connection of the target's, as its last segment showed it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    target_port: u16,
    our_port: u16,
    /// What the target expects next.
    rcv_nxt: u32,
    /// What the target sends next.
    snd_nxt: u32,
}

/// Makes frames.
pub struct Generator {
    rng: Rand64,
    ends: Ends,
    /// Ports that listen at the target.
    ports: Vec<u16>,
    valid: VecDeque<Vec<u8>>,
    connections: VecDeque<Connection>,
    /// Frames that belong together and are sent one after the other.
    pending: VecDeque<Vec<u8>>,
    counts: [u64; KINDS.len()],
}

impl Generator {
    /// A generator whose frames follow from `seed` and from what it is shown.
    pub fn new(seed: u64, ends: Ends, ports: &[u16]) -> Self {
        Self {
            rng: Rand64::new(u128::from(seed)),
            ends,
            ports: ports.to_vec(),
            valid: VecDeque::new(),
            connections: VecDeque::new(),
            pending: VecDeque::new(),
            counts: [0; KINDS.len()],
        }
    }

    /// Frames made so far, by kind.
    pub fn counts(&self) -> impl Iterator<Item = (Kind, u64)> {
        KINDS.into_iter().zip(self.counts)
    }

    /// Shows a frame the target sent: it is remembered, turned round and used.
    pub fn observe(&mut self, frame: &[u8]) {
        let ip_tcp = frame.len() >= ETHER + 40 && frame[12..14] == [8, 0] && frame[23] == TCP;
        if ip_tcp && frame[ETHER] == 0x45 {
            let tcp = &frame[ETHER + 20..];
            let word =
                |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let header = usize::from(tcp[12] >> 4) * 4;
            let payload = total.saturating_sub(20 + header) as u32;
            let flags = u32::from(tcp[13] & SYN != 0) + u32::from(tcp[13] & FIN != 0);
            remember(
                &mut self.connections,
                Connection {
                    target_port: u16::from_be_bytes([tcp[0], tcp[1]]),
                    our_port: u16::from_be_bytes([tcp[2], tcp[3]]),
                    snd_nxt: word(4).wrapping_add(payload + flags),
                    rcv_nxt: word(8),
                },
            );
            // An answer to a SYN of ours: complete the handshake often, so that there are connections to spoil.
            if tcp[13] & (SYN | ACK | RST) == SYN | ACK && self.one_in(2) {
                let c = self.connections[self.connections.len() - 1];
                let segment = tcp_segment(
                    c.our_port,
                    c.target_port,
                    c.rcv_nxt,
                    c.snd_nxt,
                    ACK,
                    &[],
                    &[],
                );
                let frame = self.ip_frame(TCP, &segment);
                self.pending.push_back(frame);
            }
        }
        let arp_request = frame.len() >= ETHER + 28 && frame[12..14] == [8, 6] && frame[21] == 1;
        if arp_request && frame[38..42] == self.ends.our_ip {
            let answer = self.ends.arp_answer();
            self.pending.push_front(answer);
        }
        if frame.len() >= ETHER {
            let mut turned = frame.to_vec();
            turned[..6].copy_from_slice(&self.ends.target_mac);
            turned[6..12].copy_from_slice(&self.ends.our_mac);
            if turned.len() >= ETHER + 20 && turned[12..14] == [8, 0] {
                let (src, dst) = (self.ends.our_ip, self.ends.target_ip);
                turned[26..30].copy_from_slice(&src);
                turned[30..34].copy_from_slice(&dst);
                fix_sums(&mut turned);
            }
            remember(&mut self.valid, turned);
        }
    }

    /// The next frame.
    pub fn frame(&mut self) -> Vec<u8> {
        if let Some(frame) = self.pending.pop_front() {
            return frame;
        }
        let kind = KINDS[self.below(KINDS.len())];
        self.counts[kind as usize] += 1;
        match kind {
            Kind::Noise => self.noise(),
            Kind::Truncated => {
                let mut f = self.good();
                let len = self.below(f.len() + 1);
                f.truncate(len);
                f
            }
            Kind::Oversized => {
                let mut f = self.good();
                let most = if self.one_in(20) { 60_000 } else { 8000 };
                let extra = 1500 + self.below(most);
                f.resize(f.len() + extra, 0xa5);
                f
            }
            Kind::Arp => self.arp(),
            Kind::IpHeader => self.ip_header(),
            Kind::IpOptions => self.ip_options(),
            Kind::Fragments => self.fragments(),
            Kind::Icmp => self.icmp(),
            Kind::Udp => self.udp(),
            Kind::Tcp => self.tcp(),
            Kind::TcpInWindow => self.tcp_in_window(),
            Kind::Mutation => {
                let mut f = self.good();
                self.spoil(&mut f);
                f
            }
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.rng.rand_range(0..n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn byte(&mut self) -> u8 {
        self.rng.rand_u64() as u8
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn port(&mut self) -> u16 {
        if !self.ports.is_empty() && !self.one_in(4) {
            let ports = std::mem::take(&mut self.ports);
            let port = self.pick(&ports);
            self.ports = ports;
            return port;
        }
        self.rng.rand_u64() as u16
    }

    fn ether(&mut self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut f = Vec::with_capacity(ETHER + payload.len());
        let to = match self.below(12) {
            0 => [0xff; 6],
            1 => [0x01, 0, 0x5e, 0, 0, 1],
            _ => self.ends.target_mac,
        };
        f.extend(to);
        f.extend(self.ends.our_mac);
        f.extend(ether_type.to_be_bytes());
        f.extend(payload);
        f
    }

    /// A whole IPv4 packet from us to the target.
    fn ip(&mut self, proto: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0; 20];
        p.extend(options);
        p[0] = 0x40 | (p.len() / 4) as u8;
        let total = (p.len() + payload.len()) as u16;
        p[2..4].copy_from_slice(&total.to_be_bytes());
        let id = self.rng.rand_u64() as u16;
        p[4..6].copy_from_slice(&id.to_be_bytes());
        p[8] = 64;
        p[9] = proto;
        p[12..16].copy_from_slice(&self.ends.our_ip);
        p[16..20].copy_from_slice(&self.ends.target_ip);
        let sum = checksum(0, &p);
        p[10..12].copy_from_slice(&sum.to_be_bytes());
        p.extend(payload);
        p
    }

    fn ip_frame(&mut self, proto: u8, payload: &[u8]) -> Vec<u8> {
        let packet = self.ip(proto, &[], payload);
        let mut f = self.ether(0x0800, &packet);
        f[..6].copy_from_slice(&self.ends.target_mac);
        fix_sums(&mut f);
        f
    }

    /// A frame without fault: one the target sent, turned round, or one of ours.
    fn good(&mut self) -> Vec<u8> {
        if !self.valid.is_empty() && !self.one_in(3) {
            let at = self.below(self.valid.len());
            return self.valid[at].clone();
        }
        let len = self.below(600);
        let data = self.bytes(len);
        match self.below(4) {
            0 => {
                let mut m = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
                m.extend(data);
                self.ip_frame(ICMP, &m)
            }
            1 => {
                let port = self.port();
                let m = udp_datagram(4000, port, &data);
                self.ip_frame(UDP, &m)
            }
            _ => {
                let (from, to) = (self.rng.rand_u64() as u16, self.port());
                let seq = self.rng.rand_u64() as u32;
                let m = tcp_segment(from, to, seq, 0, SYN, &[2, 4, 5, 0xb4], &[]);
                self.ip_frame(TCP, &m)
            }
        }
    }

    fn noise(&mut self) -> Vec<u8> {
        let types = [
            0x0800, 0x0806, 0x86dd, 0x8100, 0x88cc, 0x0000, 0x05dc, 0xffff,
        ];
        let ether_type = self.pick(&types);
        let len = self.below(1500);
        let data = self.bytes(len);
        self.ether(ether_type, &data)
    }

    fn arp(&mut self) -> Vec<u8> {
        let ends = self.ends;
        let mut p = vec![0, 1, 8, 0, 6, 4, 0];
        p.push(1 + self.below(2) as u8);
        p.extend(ends.our_mac);
        p.extend(ends.our_ip);
        p.extend([0; 6]);
        p.extend(ends.target_ip);
        match self.below(9) {
            0 => p[0] = self.byte(),
            1 => p[2] = self.byte(),
            2 => p[4] = self.byte(),
            3 => p[5] = self.byte(),
            4 => p[7] = self.byte(),
            // Claims the target's own address, or everyone's.
            5 => p[14..18].copy_from_slice(&ends.target_ip),
            6 => p[14..18].copy_from_slice(&[255, 255, 255, 255]),
            7 => p[8..14].copy_from_slice(&[0xff; 6]),
            _ => {
                let len = self.below(p.len() + 1);
                p.truncate(len);
            }
        }
        self.ether(0x0806, &p)
    }

    fn ip_header(&mut self) -> Vec<u8> {
        let mut f = self.good();
        if f.len() < ETHER + 20 || f[12..14] != [8, 0] {
            return f;
        }
        let mut sum = true;
        match self.below(10) {
            0 => f[14] = self.byte(),
            1 => f[14] = 0x40 | self.below(5) as u8,
            2 => f[14] = 0x4f,
            3 => {
                let len = self.rng.rand_u64() as u16;
                f[16..18].copy_from_slice(&len.to_be_bytes());
            }
            4 => {
                let len = self.below(24) as u16;
                f[16..18].copy_from_slice(&len.to_be_bytes());
            }
            5 => f[22] = self.below(2) as u8,
            6 => f[23] = self.byte(),
            7 => {
                let sources = [
                    [255, 255, 255, 255],
                    [224, 0, 0, 1],
                    [127, 0, 0, 1],
                    [0, 0, 0, 0],
                    self.ends.target_ip,
                ];
                let source = self.pick(&sources);
                f[26..30].copy_from_slice(&source);
            }
            8 => {
                let wrong = self.bytes(2);
                f[24..26].copy_from_slice(&wrong);
                sum = false;
            }
            _ => {
                let to = self.bytes(4);
                f[30..34].copy_from_slice(&to);
            }
        }
        if sum {
            fix_ip_sum(&mut f);
        }
        f
    }

    fn ip_options(&mut self) -> Vec<u8> {
        // Record route, timestamp, loose and strict source route, router alert, security, unknown ones.
        let kinds = [7, 68, 131, 137, 148, 130, 0x1e, 0xff, 0, 1];
        let mut options = Vec::new();
        while options.len() < 40 && !self.one_in(4) {
            let kind = self.pick(&kinds);
            options.push(kind);
            if kind < 2 {
                continue;
            }
            let len = match self.below(4) {
                0 => self.below(4) as u8,
                1 => self.byte(),
                _ => 3 + 4 * self.below(5) as u8,
            };
            options.push(len);
            // The pointer of a route or timestamp.
            let pointer = if self.one_in(2) { 4 } else { self.byte() };
            options.push(pointer);
            let rest = usize::from(len).saturating_sub(3).min(37);
            options.extend(self.bytes(rest));
        }
        options.truncate(40);
        while options.len() % 4 != 0 {
            options.push(0);
        }
        let data = vec![8, 0, 0, 0, 0, 1, 0, 1];
        let packet = self.ip(ICMP, &options, &data);
        let mut f = self.ether(0x0800, &packet);
        fix_sums(&mut f);
        f
    }

    fn fragments(&mut self) -> Vec<u8> {
        let len = 64 + self.below(3000);
        let data = self.bytes(len);
        let port = self.port();
        let whole = udp_datagram(4000, port, &data);
        let id = self.rng.rand_u64() as u16;
        let pieces = 1 + self.below(8);
        for _ in 0..pieces {
            let from = match self.below(6) {
                0 => 0,
                1 => 8189,
                2 => self.below(8192),
                _ => self.below(whole.len() / 8 + 1),
            };
            let start = (from * 8).min(whole.len());
            let mut size = 1 + self.below(1400);
            if !self.one_in(3) {
                size = size.next_multiple_of(8);
            }
            let mut piece = whole[start..whole.len().min(start + size)].to_vec();
            if self.one_in(8) {
                piece.clear();
            }
            if piece.is_empty() && !self.one_in(4) {
                piece = self.bytes(size.min(1400));
            }
            let mut packet = self.ip(UDP, &[], &piece);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            let more = !self.one_in(4);
            let mut word = from as u16 & 0x1fff;
            if more {
                word |= 0x2000;
            }
            if self.one_in(10) {
                word |= 0x4000;
            }
            packet[6..8].copy_from_slice(&word.to_be_bytes());
            let mut f = self.ether(0x0800, &packet);
            fix_ip_sum(&mut f);
            self.pending.push_back(f);
        }
        self.pending.pop_front().unwrap_or_default()
    }

    fn icmp(&mut self) -> Vec<u8> {
        let types = [0, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 30, 255];
        let mut m = vec![self.pick(&types), self.below(16) as u8, 0, 0];
        match self.below(3) {
            // The next hop's MTU of "fragmentation needed".
            0 => m.extend([0, 0, 0, self.byte()]),
            _ => m.extend(self.bytes(4)),
        }
        // Quotes a packet the target might have sent.
        let mut quoted = match self.connections.back().copied() {
            Some(c) if !self.one_in(3) => {
                let near = c.snd_nxt.wrapping_sub(self.below(3000) as u32);
                let t = tcp_segment(c.target_port, c.our_port, near, c.rcv_nxt, ACK, &[], &[]);
                let mut p = self.ip(TCP, &[], &t);
                p[12..16].copy_from_slice(&self.ends.target_ip);
                p[16..20].copy_from_slice(&self.ends.our_ip);
                p
            }
            _ => {
                let len = self.below(64);
                self.bytes(len)
            }
        };
        let len = self.below(quoted.len() + 1);
        quoted.truncate(len);
        m.extend(quoted);
        let mut f = self.ip_frame(ICMP, &m);
        if self.one_in(6) {
            self.spoil(&mut f);
        }
        f
    }

    fn udp(&mut self) -> Vec<u8> {
        let len = self.below(1400);
        let data = self.bytes(len);
        let (from, to) = (self.rng.rand_u64() as u16, self.port());
        let mut f = {
            let m = udp_datagram(from, to, &data);
            self.ip_frame(UDP, &m)
        };
        let udp = ETHER + 20;
        match self.below(5) {
            0 => {
                let wrong = self.bytes(2);
                f[udp + 4..udp + 6].copy_from_slice(&wrong);
            }
            1 => f[udp + 4..udp + 6].copy_from_slice(&[0, self.below(9) as u8]),
            2 => {
                let wrong = self.bytes(2);
                f[udp + 6..udp + 8].copy_from_slice(&wrong);
            }
            3 => f[udp + 6..udp + 8].fill(0),
            _ => f[udp..udp + 4].fill(0),
        }
        f
    }

    fn tcp_options(&mut self) -> Vec<u8> {
        let mut o = Vec::new();
        while o.len() < 40 && !self.one_in(5) {
            // MSS, window scale, SACK permitted, SACK, timestamps, MD5, fast open, unknown.
            let kind = self.pick(&[2, 3, 4, 5, 8, 19, 34, 200, 0, 1]);
            o.push(kind);
            if kind < 2 {
                continue;
            }
            let right = match kind {
                2 => 4,
                3 => 3,
                4 => 2,
                5 => 10,
                8 => 10,
                _ => 2 + self.below(16) as u8,
            };
            let len = match self.below(4) {
                0 => self.byte(),
                1 => self.below(3) as u8,
                _ => right,
            };
            o.push(len);
            let rest = usize::from(right) - 2;
            o.extend(self.bytes(rest));
        }
        o.truncate(40);
        while o.len() % 4 != 0 {
            o.push(0);
        }
        o
    }

    fn tcp(&mut self) -> Vec<u8> {
        let options = self.tcp_options();
        let len = if self.one_in(2) { 0 } else { self.below(1000) };
        let data = self.bytes(len);
        let (from, to) = (self.rng.rand_u64() as u16, self.port());
        let (seq, ack) = (self.rng.rand_u64() as u32, self.rng.rand_u64() as u32);
        let flags = match self.below(4) {
            0 => self.byte(),
            1 => 0,
            2 => SYN,
            _ => SYN | FIN,
        };
        let m = tcp_segment(from, to, seq, ack, flags, &options, &data);
        let mut f = self.ip_frame(TCP, &m);
        let tcp = ETHER + 20;
        if self.one_in(4) {
            f[tcp + 12] = self.byte();
            fix_sums(&mut f);
        }
        if self.one_in(8) {
            f[tcp + 16] ^= 0x55;
        }
        if self.one_in(16) {
            // A connection with itself.
            let target = self.ends.target_ip;
            f[26..30].copy_from_slice(&target);
            f.copy_within(tcp + 2..tcp + 4, tcp);
            fix_sums(&mut f);
        }
        f
    }

    fn tcp_in_window(&mut self) -> Vec<u8> {
        if self.connections.is_empty() {
            return self.tcp();
        }
        let at = self.below(self.connections.len());
        let c = self.connections[at];
        let options = if self.one_in(2) {
            self.tcp_options()
        } else {
            Vec::new()
        };
        let len = if self.one_in(3) { 0 } else { self.below(1400) };
        let data = self.bytes(len);
        let shift = |g: &mut Self| match g.below(5) {
            0 => 0,
            1 => g.below(4000) as u32,
            2 => (g.below(4000) as u32).wrapping_neg(),
            3 => g.rng.rand_u64() as u32,
            _ => g.below(60_000) as u32,
        };
        let seq = c.rcv_nxt.wrapping_add(shift(self));
        let ack = c.snd_nxt.wrapping_add(shift(self));
        let flags = match self.below(6) {
            0 => self.byte(),
            1 => ACK | FIN,
            2 => RST,
            3 => ACK | SYN,
            _ => ACK | 0x08,
        };
        let m = tcp_segment(c.our_port, c.target_port, seq, ack, flags, &options, &data);
        let mut f = self.ip_frame(TCP, &m);
        let tcp = ETHER + 20;
        if self.one_in(3) {
            let window = self.bytes(2);
            f[tcp + 14..tcp + 16].copy_from_slice(&window);
        }
        if self.one_in(5) {
            let urgent = self.bytes(2);
            f[tcp + 13] |= 0x20;
            f[tcp + 18..tcp + 20].copy_from_slice(&urgent);
        }
        fix_sums(&mut f);
        f
    }

    /// Changes a frame here and there; often the sums are made right again, so that the change is seen deeper in.
    fn spoil(&mut self, f: &mut Vec<u8>) {
        for _ in 0..1 + self.below(4) {
            if f.is_empty() {
                return;
            }
            let at = self.below(f.len());
            match self.below(6) {
                0 => f[at] ^= 1 << self.below(8),
                1 => f[at] = self.pick(&[0, 1, 0x7f, 0x80, 0xff]),
                2 => f[at] = self.byte(),
                3 => {
                    f.remove(at);
                }
                4 => {
                    let b = self.byte();
                    f.insert(at, b);
                }
                _ => {
                    let n = self.below(f.len() - at).min(64);
                    let piece = f[at..at + n].to_vec();
                    f.splice(at..at, piece);
                }
            }
        }
        if !self.one_in(3) {
            fix_sums(f);
        }
    }
}

fn remember<T>(memory: &mut VecDeque<T>, item: T) {
    if memory.len() == MEMORY {
        memory.pop_front();
    }
    memory.push_back(item);
}

fn udp_datagram(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut m = Vec::with_capacity(8 + data.len());
    m.extend(from.to_be_bytes());
    m.extend(to.to_be_bytes());
    m.extend(((8 + data.len()) as u16).to_be_bytes());
    m.extend([0, 0]);
    m.extend(data);
    m
}

fn tcp_segment(
    from: u16,
    to: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    options: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let mut m = Vec::with_capacity(20 + options.len() + data.len());
    m.extend(from.to_be_bytes());
    m.extend(to.to_be_bytes());
    m.extend(seq.to_be_bytes());
    m.extend(ack.to_be_bytes());
    m.push(((20 + options.len()) as u8 / 4) << 4);
    m.push(flags);
    m.extend(8192u16.to_be_bytes());
    m.extend([0; 4]);
    m.extend(options);
    m.extend(data);
    m
}

/// The Internet checksum, with a sum to begin with. Slow, and independent of the stack's own.
pub(crate) fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn fix_ip_sum(f: &mut [u8]) {
    let header = f.get(ETHER).map_or(0, |b| usize::from(b & 15) * 4);
    if let Some(ip) = f.get_mut(ETHER..ETHER + header).filter(|ip| ip.len() >= 20) {
        ip[10..12].fill(0);
        let sum = checksum(0, ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Makes the checksums of an IPv4 frame right, as far as its lengths make sense.
fn fix_sums(f: &mut [u8]) {
    if f.len() < ETHER + 20 || f[12..14] != [8, 0] {
        return;
    }
    fix_ip_sum(f);
    let header = usize::from(f[ETHER] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([f[16], f[17]]));
    let end = (ETHER + total).min(f.len());
    let proto = f[23];
    let (start, at) = (
        ETHER + header,
        match proto {
            ICMP => 2,
            TCP => 16,
            UDP => 6,
            _ => return,
        },
    );
    if header < 20 || end < start || end - start < at + 2 {
        return;
    }
    let mut pseudo = 0;
    if proto != ICMP {
        for pair in f[26..34].chunks(2) {
            pseudo += u32::from(pair[0]) << 8 | u32::from(pair[1]);
        }
        pseudo += u32::from(proto) + (end - start) as u32;
        pseudo = (pseudo & 0xffff) + (pseudo >> 16);
    }
    f[start + at..start + at + 2].fill(0);
    let sum = checksum(pseudo, &f[start..end]);
    f[start + at..start + at + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> Ends {
        Ends {
            our_mac: [2, 0, 0, 0, 0, 1],
            target_mac: [2, 0, 0, 0, 0, 2],
            our_ip: [10, 0, 0, 1],
            target_ip: [10, 0, 0, 2],
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_frames() {
        let frames = |seed| {
            let mut g = Generator::new(seed, ends(), &[5201]);
            (0..500).map(|_| g.frame()).collect::<Vec<_>>()
        };
        assert_eq!(frames(3), frames(3));
        assert_ne!(frames(3), frames(4));
    }

    #[test]
    fn every_kind_of_frame_is_made() {
        let mut g = Generator::new(1, ends(), &[5201]);
        for _ in 0..2000 {
            g.frame();
        }
        for (kind, count) in g.counts() {
            assert!(count > 50, "{kind:?}: {count}");
        }
    }

    #[test]
    fn what_is_called_good_parses_with_right_checksums() {
        let mut g = Generator::new(1, ends(), &[5201]);
        for _ in 0..200 {
            let f = g.good();
            let p = etherparse::PacketHeaders::from_ethernet_slice(&f).unwrap();
            let Some(etherparse::NetHeaders::Ipv4(ip, _)) = p.net else {
                panic!("no IPv4: {f:02x?}");
            };
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            match p.transport {
                Some(etherparse::TransportHeader::Tcp(t)) => {
                    let sum = t.calc_checksum_ipv4(&ip, p.payload.slice()).unwrap();
                    assert_eq!(t.checksum, sum);
                }
                Some(etherparse::TransportHeader::Udp(u)) => {
                    let sum = u.calc_checksum_ipv4(&ip, p.payload.slice()).unwrap();
                    assert_eq!(u.checksum, sum);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_handshake_that_the_target_answers_is_completed_and_used() {
        let mut g = Generator::new(1, ends(), &[5201]);
        let mut answer = tcp_segment(5201, 999, 1000, 501, SYN | ACK, &[], &[]);
        answer.resize(20, 0);
        let mut frame = g.ip_frame(TCP, &answer);
        frame[6..12].copy_from_slice(&ends().target_mac);
        let mut seen = false;
        for _ in 0..20 {
            g.observe(&frame);
            if let Some(f) = g.pending.pop_front() {
                assert_eq!(f[38..46], [0, 0, 1, 0xf5, 0, 0, 3, 0xe9]);
                seen = true;
            }
        }
        assert!(seen);
    }
}
