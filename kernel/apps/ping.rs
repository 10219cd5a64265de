//! Sends ICMP and ICMPv6 echo requests and measures the answers.
//!
//! FreeBSD: sbin/ping/ping.c, ping6.c

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use netinet::ip::IP_MAXPACKET;
use netinet::ip_ctloutput::control_messages;
use sys::errno::Errno;
use sys::kern::uipc_syscalls::{PollEvents, SocketHandle};
use sys::machine;
use sys::machine::in_cksum::in_cksum;
use sys::mbuf::Mbuf;
use sys::socket::{
    AF_INET, AF_INET6, ICMP6_FILTER, IP_DONTFRAG, IP_TTL, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IP,
    IPPROTO_IPV6, IPV6_DONTFRAG, IPV6_HOPLIMIT, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_IF,
    IPV6_RECVHOPLIMIT, IPV6_UNICAST_HOPS, MsgFlags, SO_BROADCAST, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET,
    SockAddr, SockType,
};
use sys::time::Sbintime;

use crate::apps::Env;
use crate::apps::io::{self, Failure, Family, call};
use crate::outln;
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: ping [-4Dfnoqv] [-c count] [-i wait] [-m ttl] [-s packetsize] [-S src_addr]
            [-t timeout] [-W waittime] host
       ping -6 [-Dfnoqv] [-c count] [-I interface] [-i wait] [-m hoplimit] [-s packetsize] [-S src_addr]
            [-t timeout] [-W waittime] host
";

const ICMP6_ECHO_REQUEST: u8 = 128;
const ICMP6_ECHO_REPLY: u8 = 129;
/// Up to here messages of ICMPv6 are errors.
const ICMP6_LAST_ERROR: u8 = 4;
const IP6_HLEN: usize = 40;
const ICMP_ECHOREPLY: u8 = 0;
const ICMP_UNREACH: u8 = 3;
const ICMP_ECHO: u8 = 8;
const ICMP_TIMXCEED: u8 = 11;
/// Type, code, checksum, identification, sequence.
const ICMP_MINLEN: usize = 8;
/// Bytes at the front of the data that carry the time of sending.
const TIMEVAL_LEN: usize = 16;
/// Most data in one packet: 65535 less the headers of IP and ICMP.
const MAX_DATA: u64 = 65507;
/// Data of a packet, if nothing is said.
const DEFAULT_DATA: usize = 56;
/// The same in IPv6: the time.
const DEFAULT_DATA6: usize = 8;
/// Sequence numbers remembered to tell duplicates.
const MAX_DUP_CHK: usize = 65536;

struct Options {
    host: SockAddr,
    host_word: String,
    count: Option<u64>,
    interval: Sbintime,
    size: usize,
    dont_fragment: bool,
    flood: bool,
    quiet: bool,
    once: bool,
    verbose: bool,
    ttl: Option<u8>,
    source: Option<SockAddr>,
    interface: Option<String>,
    timeout: Option<Sbintime>,
    wait: Sbintime,
}

/// Runs `ping`: 0 if anyone answered, 2 if nobody did.
pub fn main(env: &Env) -> i32 {
    let outcome = parse(env).and_then(|options| {
        let mut ping = Ping::new(env, options)?;
        ping.run()?;
        Ok(ping.summary())
    });
    match outcome {
        Ok(answered) => {
            if answered {
                0
            } else {
                2
            }
        }
        Err(failure) => io::finish(env, USAGE, Err(failure)),
    }
}

fn parse(env: &Env) -> Result<Options, Failure> {
    let mut options = Options {
        host: SockAddr::v4(Ipv4Addr::UNSPECIFIED, 0),
        host_word: String::new(),
        count: None,
        interval: Sbintime::SECOND,
        size: DEFAULT_DATA,
        dont_fragment: false,
        flood: false,
        quiet: false,
        once: false,
        verbose: false,
        ttl: None,
        source: None,
        interface: None,
        timeout: None,
        wait: Sbintime::from_s(10),
    };
    let mut family = match env.name() {
        "ping6" => Family::Inet6,
        _ => Family::Any,
    };
    let (mut size, mut source) = (None, None);
    let mut getopt = Getopt::new(&env.args, "46Dfnoqvc:I:i:m:s:S:t:W:");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('4', _) => family = Family::Inet,
            ('6', _) => family = Family::Inet6,
            ('I', name) => options.interface = Some(name.into()),
            ('D', _) => options.dont_fragment = true,
            ('f', _) => {
                options.flood = true;
                options.interval = Sbintime::from_ms(10);
            }
            ('n', _) => {}
            ('o', _) => options.once = true,
            ('q', _) => options.quiet = true,
            ('v', _) => options.verbose = true,
            ('c', word) => {
                options.count = Some(io::number(
                    "count of packets to transmit",
                    word,
                    1,
                    1 << 62,
                )?);
            }
            ('i', word) => options.interval = io::seconds("timing interval", word)?,
            ('m', word) => options.ttl = Some(io::number("TTL", word, 0, 255)? as u8),
            ('s', word) => size = Some(io::number("packet size", word, 0, MAX_DATA)? as usize),
            ('S', word) => source = Some(word),
            ('t', word) => options.timeout = Some(io::seconds("timeout", word)?),
            ('W', word) => {
                let ms = io::number("timing interval", word, 0, 1 << 31)?;
                options.wait = Sbintime::from_ms(ms as i64);
            }
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        }
    }
    let [host] = getopt.operands() else {
        return Err(Failure::Usage(String::new()));
    };
    options.host = io::host_of(&env.vnet, host, family)?;
    let family = match options.host {
        SockAddr::In(_) => Family::Inet,
        SockAddr::In6(_) => Family::Inet6,
    };
    if let (SockAddr::In6(sin6), Some(name)) = (&mut options.host, &options.interface) {
        let unknown = || Failure::Other(format!("{name}: invalid interface name"));
        let ifp = env.vnet.ifunit(name).ok_or_else(unknown)?;
        sin6.scope_id = u32::from(ifp.if_index.0);
    }
    if let Some(word) = source {
        options.source = Some(io::host_of(&env.vnet, word, family)?);
    }
    let default = match family {
        Family::Inet6 => DEFAULT_DATA6,
        Family::Any | Family::Inet => DEFAULT_DATA,
    };
    options.size = size.unwrap_or(default);
    options.host_word = host.clone();
    options.interval = options.interval.max(Sbintime::from_ms(1));
    Ok(options)
}

/// Round-trip times, in ns.
#[derive(Default)]
struct Times {
    count: u64,
    min: u64,
    max: u64,
    sum: u128,
    sum_of_squares: u128,
}

impl Times {
    fn add(&mut self, ns: u64) {
        self.min = if self.count == 0 {
            ns
        } else {
            self.min.min(ns)
        };
        self.max = self.max.max(ns);
        self.count += 1;
        self.sum += u128::from(ns);
        self.sum_of_squares += u128::from(ns) * u128::from(ns);
    }

    fn line(&self) -> String {
        let n = u128::from(self.count.max(1));
        let mean = self.sum / n;
        let variance = (self.sum_of_squares / n).saturating_sub(mean * mean);
        format!(
            "round-trip min/avg/max/stddev = {}/{}/{}/{} ms",
            milliseconds(self.min),
            milliseconds(mean as u64),
            milliseconds(self.max),
            milliseconds(variance.isqrt() as u64)
        )
    }
}

/// Milliseconds with three decimals.
fn milliseconds(ns: u64) -> String {
    let us = (ns + 500) / 1000;
    format!("{}.{:03}", us / 1000, us % 1000)
}

/// One run of the program.
struct Ping<'a> {
    env: &'a Env,
    options: Options,
    so: SocketHandle,
    v6: bool,
    /// Bytes at the front of the data that are ours.
    time_len: usize,
    ident: u16,
    seen: Vec<bool>,
    packet: Vec<u8>,
    transmitted: u64,
    received: u64,
    repeats: u64,
    times: Times,
}

impl<'a> Ping<'a> {
    fn new(env: &'a Env, options: Options) -> Result<Ping<'a>, Failure> {
        let v6 = matches!(options.host, SockAddr::In6(_));
        let so = if v6 {
            socket6(env, &options)?
        } else {
            socket4(env, &options)?
        };
        // Room for many answers, and for the longest packet: `net.inet.raw.maxdgram` is short of it. Less will do.
        let _ = so.setsockopt_int(SOL_SOCKET, SO_RCVBUF, 192 * 1024);
        let _ = so.setsockopt_int(SOL_SOCKET, SO_SNDBUF, IP_MAXPACKET as i32 + 128);
        if let Some(source) = &options.source {
            so.bind(source).map_err(call("bind"))?;
        }
        let mut packet = vec![0; ICMP_MINLEN + options.size];
        for (i, byte) in packet.iter_mut().enumerate().skip(ICMP_MINLEN) {
            *byte = i as u8;
        }
        Ok(Ping {
            env,
            so,
            v6,
            time_len: if v6 { DEFAULT_DATA6 } else { TIMEVAL_LEN },
            ident: machine::random_u64() as u16,
            seen: vec![false; MAX_DUP_CHK],
            packet,
            transmitted: 0,
            received: 0,
            repeats: 0,
            times: Times::default(),
            options,
        })
    }

    fn run(&mut self) -> Result<(), Failure> {
        self.announce()?;
        let start = machine::sbinuptime();
        let deadline = self.options.timeout.map(|timeout| start + timeout);
        let mut buffer = vec![0; 65536];
        let mut next_send = start;
        let mut last_wait = None;
        loop {
            if self.env.interrupted() {
                return Ok(());
            }
            let now = machine::sbinuptime();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(());
            }
            let all_sent = self
                .options
                .count
                .is_some_and(|count| self.transmitted >= count);
            if !all_sent && now >= next_send {
                self.transmit(now)?;
                next_send = if self.options.flood {
                    now + self.options.interval
                } else {
                    (next_send + self.options.interval).max(now)
                };
                continue;
            }
            if all_sent {
                if self.received >= self.transmitted {
                    return Ok(());
                }
                // Twice the longest answer so far, or as long as -W says when there was none.
                let wait = if self.received > 0 {
                    Sbintime::from_ns(2 * self.times.max as i64).max(Sbintime::SECOND)
                } else {
                    self.options.wait
                };
                next_send = *last_wait.get_or_insert(now + wait.min(self.options.wait));
                if now >= next_send {
                    return Ok(());
                }
            }
            let mut until = (next_send - now).min(io::POLL);
            if let Some(deadline) = deadline {
                until = until.min(deadline - now);
            }
            match self
                .so
                .poll(PollEvents::IN, Some(until.max(Sbintime::from_us(1))))
            {
                Ok(events) if events.is_empty() => continue,
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(call("poll")(errno)),
            }
            loop {
                match self.so.recvmsg(&mut buffer, MsgFlags::DONTWAIT) {
                    Ok(received) => {
                        let from = received.from.unwrap_or(self.options.host);
                        let from = io::numeric(&self.env.vnet, &from);
                        let before = self.received;
                        let packet = buffer.get(..received.len).unwrap_or(&[]);
                        if self.v6 {
                            let hops = received.control.as_ref().and_then(hop_limit);
                            self.input6(packet, &from, hops.unwrap_or(0));
                        } else {
                            self.input(packet, &from);
                        }
                        if self.received > before {
                            if self.options.once {
                                return Ok(());
                            }
                            if self.options.flood {
                                next_send = machine::sbinuptime();
                            }
                        }
                    }
                    Err(Errno::EAGAIN | Errno::EINTR) => break,
                    Err(errno) => return Err(call("recvmsg")(errno)),
                }
            }
        }
    }

    /// Sends one request (`pinger`).
    fn transmit(&mut self, now: Sbintime) -> Result<(), Failure> {
        let seq = self.transmitted as u16;
        self.seen[usize::from(seq)] = false;
        let packet = &mut self.packet;
        packet[0] = if self.v6 {
            ICMP6_ECHO_REQUEST
        } else {
            ICMP_ECHO
        };
        packet[1] = 0;
        packet[2..4].fill(0);
        packet[4..6].copy_from_slice(&self.ident.to_be_bytes());
        packet[6..8].copy_from_slice(&seq.to_be_bytes());
        if self.options.size >= self.time_len {
            packet[8..16].copy_from_slice(&now.0.to_be_bytes());
            packet[16..8 + self.time_len].fill(0);
        }
        // That of ICMPv6 is the kernel's affair.
        if !self.v6 {
            let sum = in_cksum(packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let to = &self.options.host;
        self.transmitted += 1;
        match self.so.sendto(&self.packet, MsgFlags::empty(), to) {
            Ok(_) => {
                if self.options.flood && !self.options.quiet {
                    self.env.out.write(".");
                }
                Ok(())
            }
            // Such packets are lost and counted as lost.
            Err(
                errno @ (Errno::ENOBUFS
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::ENETDOWN
                | Errno::EADDRNOTAVAIL
                | Errno::EACCES
                | Errno::EMSGSIZE),
            ) => {
                outln!(self.env, "ping: sendto: {errno}");
                Ok(())
            }
            Err(errno) => Err(call("sendto")(errno)),
        }
    }

    /// Looks at a received packet (`pr_pack`).
    fn input(&mut self, packet: &[u8], from: &str) {
        let now = machine::sbinuptime();
        let Some((ttl, icmp)) = split_ip(packet) else {
            if self.options.verbose {
                outln!(
                    self.env,
                    "packet too short ({} bytes) from {from}",
                    packet.len()
                );
            }
            return;
        };
        let word = |at: usize| u16::from_be_bytes([icmp[at], icmp[at + 1]]);
        match icmp[0] {
            ICMP_ECHOREPLY if word(4) == self.ident => {
                let seq = word(6);
                self.reply(icmp, from, ttl, seq, now);
            }
            ICMP_UNREACH | ICMP_TIMXCEED => {
                // The request that it is about must be ours.
                let Some((_, quoted)) = icmp.get(ICMP_MINLEN..).and_then(split_ip) else {
                    return;
                };
                let ours = quoted[0] == ICMP_ECHO
                    && u16::from_be_bytes([quoted[4], quoted[5]]) == self.ident;
                if ours && !self.options.quiet {
                    outln!(
                        self.env,
                        "{} bytes from {from}: {}",
                        icmp.len() + 20,
                        describe(icmp[0], icmp[1], word(6))
                    );
                }
            }
            _ => {}
        }
    }

    /// Looks at a received message of ICMPv6.
    fn input6(&mut self, icmp6: &[u8], from: &str, hops: u8) {
        let now = machine::sbinuptime();
        if icmp6.len() < ICMP_MINLEN {
            return;
        }
        let word = |bytes: &[u8], at: usize| {
            bytes
                .get(at..at + 2)
                .map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        match icmp6[0] {
            ICMP6_ECHO_REPLY if word(icmp6, 4) == self.ident => {
                self.reply(icmp6, from, hops, word(icmp6, 6), now);
            }
            kind @ 1..=ICMP6_LAST_ERROR => {
                // The request that it is about must be ours.
                let quoted = icmp6.get(ICMP_MINLEN + IP6_HLEN..).unwrap_or(&[]);
                let ours =
                    quoted.first() == Some(&ICMP6_ECHO_REQUEST) && word(quoted, 4) == self.ident;
                if ours && !self.options.quiet {
                    let param = u32::from(word(icmp6, 4)) << 16 | u32::from(word(icmp6, 6));
                    outln!(
                        self.env,
                        "{} bytes from {from}: {}",
                        icmp6.len(),
                        describe6(kind, icmp6[1], param)
                    );
                }
            }
            _ => {}
        }
    }

    /// The first line.
    fn announce(&self) -> Result<(), Failure> {
        let (env, size) = (self.env, self.options.size);
        let host = io::numeric(&env.vnet, &self.options.host);
        if !self.v6 {
            let word = &self.options.host_word;
            outln!(env, "PING {word} ({host}): {size} data bytes");
            return Ok(());
        }
        // The source that the packets will have.
        let probe = SocketHandle::socket(&env.vnet, AF_INET6, SockType::Dgram, 0)
            .map_err(call("socket"))?;
        let source = match &self.options.source {
            Some(source) => *source,
            None => {
                let mut to = self.options.host;
                if let SockAddr::In6(sin6) = &mut to {
                    sin6.port = 58;
                }
                probe.connect(&to).map_err(call("UDP connect"))?;
                probe.getsockname().map_err(call("getsockname"))?
            }
        };
        let source = io::numeric(&env.vnet, &source);
        let total = IP6_HLEN + ICMP_MINLEN + size;
        outln!(env, "PING({total}=40+8+{size} bytes) {source} --> {host}");
        Ok(())
    }

    fn reply(&mut self, icmp: &[u8], from: &str, ttl: u8, seq: u16, now: Sbintime) {
        let timed = self.options.size >= self.time_len;
        let sent = icmp
            .get(ICMP_MINLEN..ICMP_MINLEN + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(|bytes| Sbintime(i64::from_be_bytes(bytes)));
        let took = match sent {
            Some(sent) if timed && sent <= now => Some((now - sent).as_ns() as u64),
            _ => None,
        };
        let duplicate = core::mem::replace(&mut self.seen[usize::from(seq)], true);
        if duplicate {
            self.repeats += 1;
        } else {
            self.received += 1;
        }
        if let Some(ns) = took {
            self.times.add(ns);
        }
        if self.options.quiet {
            return;
        }
        if self.options.flood {
            self.env.out.write("\u{8} \u{8}");
            return;
        }
        let len = icmp.len();
        let mut line = if self.v6 {
            format!("{len} bytes from {from}, icmp_seq={seq} hlim={ttl}")
        } else {
            format!("{len} bytes from {from}: icmp_seq={seq} ttl={ttl}")
        };
        if let Some(ns) = took {
            line += &format!(" time={} ms", milliseconds(ns));
        }
        if duplicate {
            line += " (DUP!)";
        }
        // What came back must be what was sent.
        let from_byte = if timed {
            ICMP_MINLEN + self.time_len
        } else {
            ICMP_MINLEN
        };
        let sent = self.packet.get(from_byte..).unwrap_or(&[]);
        let back = icmp.get(from_byte..).unwrap_or(&[]);
        let wrong = sent.iter().zip(back).position(|(a, b)| a != b);
        if let Some(at) = wrong {
            line += &format!(
                "\nwrong data byte #{} should be {:#x} but was {:#x}",
                from_byte - ICMP_MINLEN + at,
                sent[at],
                back[at]
            );
        } else if icmp.len() < self.packet.len() {
            line += &format!(" (truncated, {} bytes sent)", self.packet.len());
        }
        outln!(self.env, "{line}");
    }

    /// Prints the statistics; whether anyone answered.
    fn summary(&self) -> bool {
        if self.options.flood {
            outln!(self.env);
        }
        outln!(self.env);
        outln!(
            self.env,
            "--- {} ping statistics ---",
            self.options.host_word
        );
        outln!(
            self.env,
            "{}",
            counts(self.transmitted, self.received, self.repeats)
        );
        if self.times.count > 0 {
            outln!(self.env, "{}", self.times.line());
        }
        self.received > 0
    }
}

fn socket4(env: &Env, options: &Options) -> Result<SocketHandle, Failure> {
    let so = SocketHandle::socket(&env.vnet, AF_INET, SockType::Raw, IPPROTO_ICMP)
        .map_err(call("socket"))?;
    so.setsockopt_int(SOL_SOCKET, SO_BROADCAST, 1)
        .map_err(call("setsockopt"))?;
    if options.dont_fragment {
        so.setsockopt_int(IPPROTO_IP, IP_DONTFRAG, 1)
            .map_err(call("setsockopt IP_DONTFRAG"))?;
    }
    if let Some(ttl) = options.ttl {
        so.setsockopt_int(IPPROTO_IP, IP_TTL, i32::from(ttl))
            .map_err(call("setsockopt IP_TTL"))?;
    }
    Ok(so)
}

fn socket6(env: &Env, options: &Options) -> Result<SocketHandle, Failure> {
    let so = SocketHandle::socket(&env.vnet, AF_INET6, SockType::Raw, IPPROTO_ICMPV6)
        .map_err(call("socket"))?;
    // Replies and errors, nothing else (RFC 3542 §3.2).
    let mut filter = [0u32; 8];
    for kind in (1..=ICMP6_LAST_ERROR).chain([ICMP6_ECHO_REPLY]) {
        filter[usize::from(kind >> 5)] |= 1 << (kind & 31);
    }
    let filter: Vec<u8> = filter.iter().flat_map(|word| word.to_ne_bytes()).collect();
    so.setsockopt(IPPROTO_ICMPV6, ICMP6_FILTER, &filter)
        .map_err(call("setsockopt(ICMP6_FILTER)"))?;
    so.setsockopt_int(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
        .map_err(call("setsockopt(IPV6_RECVHOPLIMIT)"))?;
    if options.dont_fragment {
        so.setsockopt_int(IPPROTO_IPV6, IPV6_DONTFRAG, 1)
            .map_err(call("setsockopt(IPV6_DONTFRAG)"))?;
    }
    if let Some(hops) = options.ttl {
        for name in [IPV6_UNICAST_HOPS, IPV6_MULTICAST_HOPS] {
            so.setsockopt_int(IPPROTO_IPV6, name, i32::from(hops))
                .map_err(call("setsockopt(IPV6_UNICAST_HOPS)"))?;
        }
    }
    if let SockAddr::In6(sin6) = &options.host
        && sin6.scope_id != 0
    {
        so.setsockopt_int(IPPROTO_IPV6, IPV6_MULTICAST_IF, sin6.scope_id as i32)
            .map_err(call("setsockopt(IPV6_MULTICAST_IF)"))?;
    }
    Ok(so)
}

/// The hop limit of a received message, from its control messages.
fn hop_limit(control: &Mbuf) -> Option<u8> {
    let mut bytes = vec![0; control.length()];
    if !control.copydata(0, &mut bytes) {
        return None;
    }
    let messages = control_messages(&bytes);
    let wanted = messages
        .into_iter()
        .find(|(level, kind, _)| (*level, *kind) == (IPPROTO_IPV6, IPV6_HOPLIMIT));
    let (_, _, data) = wanted?;
    u8::try_from(i32::from_ne_bytes(*data.first_chunk()?)).ok()
}

/// What an error of ICMPv6 says (`pr_icmph`); `param` is the MTU or the place of the problem.
fn describe6(kind: u8, code: u8, param: u32) -> String {
    match (kind, code) {
        (1, 0) => "No Route to Destination".into(),
        (1, 1) => "Destination Administratively Unreachable".into(),
        (1, 2) => "Destination Unreachable Beyond Scope".into(),
        (1, 3) => "Destination Host Unreachable".into(),
        (1, 4) => "Destination Port Unreachable".into(),
        (1, code) => format!("Destination Unreachable, Bad Code: {code}"),
        (2, _) => format!("Packet too big mtu = {param}"),
        (3, 0) => "Time to live exceeded".into(),
        (3, 1) => "Frag reassembly time exceeded".into(),
        (3, code) => format!("Time exceeded, Bad Code: {code}"),
        (_, 0) => format!("Parameter problem: Erroneous Header {param:#04x}"),
        (_, 1) => format!("Parameter problem: Unrecognized Next Header {param:#04x}"),
        (_, 2) => format!("Parameter problem: Unrecognized Option {param:#04x}"),
        (_, code) => format!("Parameter problem, Bad Code: {code}"),
    }
}

/// The line of packets sent, received and lost.
fn counts(transmitted: u64, received: u64, repeats: u64) -> String {
    let mut line = format!("{transmitted} packets transmitted, {received} packets received, ");
    if repeats > 0 {
        line += &format!("+{repeats} duplicates, ");
    }
    if transmitted > 0 {
        if received > transmitted {
            line += "-- somebody's printing up packets!";
        } else {
            let lost = (transmitted - received) * 1000 / transmitted;
            line += &format!("{}.{}% packet loss", lost / 10, lost % 10);
        }
    }
    line
}

/// Splits an IPv4 packet: its TTL and an ICMP message of at least its header.
fn split_ip(packet: &[u8]) -> Option<(u8, &[u8])> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let hlen = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || hlen < 20 {
        return None;
    }
    let icmp = packet.get(hlen..)?;
    (icmp.len() >= ICMP_MINLEN).then_some((header[8], icmp))
}

/// What an ICMP error says (`pr_icmph`).
fn describe(icmp_type: u8, code: u8, next_mtu: u16) -> String {
    match (icmp_type, code) {
        (ICMP_UNREACH, 0) => "Destination Net Unreachable".into(),
        (ICMP_UNREACH, 1) => "Destination Host Unreachable".into(),
        (ICMP_UNREACH, 2) => "Destination Protocol Unreachable".into(),
        (ICMP_UNREACH, 3) => "Destination Port Unreachable".into(),
        (ICMP_UNREACH, 4) => format!("frag needed and DF set (MTU {next_mtu})"),
        (ICMP_UNREACH, 5) => "Source Route Failed".into(),
        (ICMP_UNREACH, 13) => "Communication prohibited by filter".into(),
        (ICMP_UNREACH, code) => format!("Dest Unreachable, Bad Code: {code}"),
        (ICMP_TIMXCEED, 0) => "Time to live exceeded".into(),
        (ICMP_TIMXCEED, 1) => "Frag reassembly time exceeded".into(),
        (_, code) => format!("Time exceeded, Bad Code: {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_worded_as_in_freebsd() {
        assert_eq!(
            counts(3, 2, 0),
            "3 packets transmitted, 2 packets received, 33.3% packet loss"
        );
        assert_eq!(
            counts(2, 2, 1),
            "2 packets transmitted, 2 packets received, +1 duplicates, 0.0% packet loss"
        );
        let mut times = Times::default();
        for us in [100, 200, 300] {
            times.add(us * 1000);
        }
        assert_eq!(
            times.line(),
            "round-trip min/avg/max/stddev = 0.100/0.200/0.300/0.082 ms"
        );
    }

    #[test]
    fn short_packets_are_not_looked_into() {
        assert!(split_ip(&[]).is_none());
        assert!(split_ip(&[0x45; 27]).is_none());
        assert!(split_ip(&[0x4f; 40]).is_none());
        assert!(split_ip(&[0x65; 40]).is_none());
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[8] = 64;
        assert_eq!(split_ip(&packet).unwrap().0, 64);
    }
}
