//! What the tests of TCP share: connections by one line, threads that send and receive, a peer by hand.

#![allow(dead_code, reason = "each test file uses a part of it")]

use core::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use netinet::ip::{IPPROTO_TCP, Ip};
use netinet::tcp::{TCP_HLEN, TCP_MAXOLEN, TcpFlags, TcpHeader, TcpOpt};
use netinet::tcp_fsm::TcpState;
use netinet::tcp_seq::TcpSeq;
use netinet::tcp_subr::TcpInpcb;
use netinet::tcp_var::Tcpcb;
use netsim::wire::{Dir, Verdict};
use netsim::world::{ADDR_A, ADDR_B, Host, World};
use sys::errno::Errno;
use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::pump;
use sys::machine::in_cksum::{in_cksum, in_cksum_partial, in_pseudo};
use sys::machine::sbinuptime;
use sys::socket::{AF_INET, MsgFlags, Shutdown, SockAddr, SockType};
use sys::time::Sbintime;
use zerocopy::IntoBytes;

pub use netsim::wire::WireConfig;

/// The port servers listen on.
pub const PORT: u16 = 8080;

/// Lets virtual time pass.
pub fn pass_ms(ms: i64) {
    pump(sbinuptime() + Sbintime::from_ms(ms));
}

/// Milliseconds of virtual time so far.
pub fn now_ms() -> i64 {
    sbinuptime().as_ms()
}

/// A TCP socket.
pub fn tcp(host: &Host) -> SocketHandle {
    SocketHandle::socket(&host.vnet, AF_INET, SockType::Stream, 0).expect("a TCP socket")
}

/// A socket that listens on `PORT`.
pub fn listener(host: &Host, backlog: i32) -> SocketHandle {
    let so = tcp(host);
    so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, PORT))
        .expect("a free port");
    so.listen(backlog).expect("a bound socket");
    so
}

/// A connection from `a` to `b`, both ends.
pub fn connected(world: &World) -> (SocketHandle, SocketHandle) {
    let listen = listener(&world.b, 5);
    let a = tcp(&world.a);
    a.connect(&SockAddr::v4(ADDR_B, PORT))
        .expect("someone listens");
    let (b, from) = listen.accept().expect("a connection");
    assert_eq!(from, a.getsockname().unwrap());
    (a, b)
}

/// Lets both hosts find each other, and leaves nothing behind.
pub fn settle(world: &World) {
    let refused = tcp(&world.a).connect(&SockAddr::v4(ADDR_B, 1));
    assert_eq!(refused, Err(Errno::ECONNREFUSED));
}

/// Bytes that differ from place to place, and from seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Receives until the peer closes.
pub fn receive_all(so: &SocketHandle) -> Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    let mut buffer = std::vec![0; 65536];
    loop {
        match so.recv(&mut buffer, MsgFlags::empty())? {
            0 => return Ok(all),
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Sends everything.
pub fn send_all(so: &SocketHandle, data: &[u8]) {
    let mut sent = 0;
    while sent < data.len() {
        sent += so
            .send(&data[sent..], MsgFlags::empty())
            .expect("a connection that stands");
    }
}

/// Runs `f` in a thread of the machine.
pub fn spawn<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    let result = Arc::new(Mutex::new(None));
    let slot = result.clone();
    let thread = kthread_add("test", Pri::PUSER, None, move || {
        let value = f();
        *slot.lock().unwrap() = Some(value);
    });
    Task { thread, result }
}

/// A thread with a result.
pub struct Task<T> {
    thread: ThreadHandle,
    result: Arc<Mutex<Option<T>>>,
}

impl<T> Task<T> {
    /// Waits for the result.
    pub fn join(self) -> T {
        self.thread.join();
        self.result
            .lock()
            .unwrap()
            .take()
            .expect("a thread that ended has a result")
    }
}

/// The control block of a socket.
pub fn inpcb(host: &Host, so: &SocketHandle) -> Arc<TcpInpcb> {
    let all = host.inet.tcp.tcbinfo.snapshot();
    all.into_iter()
        .find(|inp| {
            inp.read()
                .inp_socket
                .as_ref()
                .is_some_and(|other| Arc::ptr_eq(other, so.inner()))
        })
        .expect("a socket of this host")
}

/// Looks at a connection.
pub fn look<T>(host: &Host, so: &SocketHandle, f: impl FnOnce(&Tcpcb) -> T) -> T {
    let inp = inpcb(host, so);
    let guard = inp.read();
    f(&guard.ppcb)
}

/// The state of a connection.
pub fn state(host: &Host, so: &SocketHandle) -> TcpState {
    look(host, so, |tp| tp.t_state)
}

/// How many connections of a host are in a state.
pub fn in_state(host: &Host, state: TcpState) -> u64 {
    host.inet.tcp.state_count(state)
}

/// Closes for sending.
pub fn shut(so: &SocketHandle) {
    so.shutdown(Shutdown::Write)
        .expect("a connection that stands");
}

/// A segment seen on the wire.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When, in ms.
    pub at: i64,
    /// Which way.
    pub dir: Dir,
    /// Header.
    pub th: TcpHeader,
    /// Options.
    pub to: TcpOpt,
    /// Time to live.
    pub ttl: u8,
    /// Payload.
    pub data: Vec<u8>,
    /// Options as they stand.
    pub raw_opts: Vec<u8>,
    /// Whether the checksum was right.
    pub good: bool,
}

/// Reads a frame.
pub fn parse(dir: Dir, frame: &[u8]) -> Option<Seen> {
    if frame.get(12..14)? != [8, 0] {
        return None;
    }
    let packet = &frame[14..];
    let ip = Ip::parse(packet)?;
    if ip.ip_p != IPPROTO_TCP {
        return None;
    }
    let segment = &packet[ip.hlen()..usize::from(ip.ip_len.get())];
    let th = TcpHeader::parse(segment).ok()?;
    let off = usize::from(th.th_off);
    let pseudo = in_pseudo(
        ip.src(),
        ip.dst(),
        u32::from(IPPROTO_TCP) + segment.len() as u32,
    );
    Some(Seen {
        at: now_ms(),
        dir,
        ttl: ip.ip_ttl,
        to: TcpOpt::parse(&segment[TCP_HLEN..off], th.th_flags.contains(TcpFlags::SYN)),
        data: segment[off..].to_vec(),
        raw_opts: segment[TCP_HLEN..off].to_vec(),
        good: in_cksum_partial(segment, false).add_u16(pseudo).finish() == 0,
        th,
    })
}

/// All segments that cross the wire.
#[derive(Clone, Default)]
pub struct Tap(Arc<Mutex<Vec<Seen>>>);

impl Tap {
    /// Watches from now on, and drops what `drops` says.
    pub fn dropping(world: &World, mut drops: impl FnMut(&Seen) -> bool + Send + 'static) -> Tap {
        let tap = Tap::default();
        let seen = tap.0.clone();
        world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
            let Some(segment) = parse(dir, frame) else {
                return Verdict::Pass;
            };
            let verdict = if drops(&segment) {
                Verdict::Drop
            } else {
                Verdict::Pass
            };
            seen.lock().unwrap().push(segment);
            verdict
        })));
        tap
    }

    /// Watches from now on.
    pub fn on(world: &World) -> Tap {
        Tap::dropping(world, |_| false)
    }

    /// What was seen of one way.
    pub fn seen(&self, dir: Dir) -> Vec<Seen> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| seen.dir == dir)
            .cloned()
            .collect()
    }

    /// Everything seen.
    pub fn all(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }

    /// Forgets what was seen.
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// A peer of host `a` that is played by the test: its segments are written by hand, and what `a` sends to it goes no
/// further.
pub struct Peer<'w> {
    world: &'w World,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Port of the peer.
    pub port: u16,
    /// Port of `a`.
    pub a_port: u16,
    /// Next sequence number to send.
    pub seq: TcpSeq,
    /// Acknowledgement number to send.
    pub ack: TcpSeq,
    /// Window to send.
    pub win: u16,
    /// Options of further segments.
    pub to: TcpOpt,
    /// Where they go.
    pub a_addr: Ipv4Addr,
}

impl<'w> Peer<'w> {
    /// A peer without connection.
    pub fn new(world: &'w World) -> Peer<'w> {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let tap = seen.clone();
        world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
            if dir == Dir::BtoA {
                return Verdict::Pass;
            }
            match parse(dir, frame) {
                Some(segment) => {
                    tap.lock().unwrap().push(segment);
                    Verdict::Drop
                }
                None => Verdict::Pass,
            }
        })));
        Peer {
            world,
            seen,
            port: 2000,
            a_port: PORT,
            seq: TcpSeq(1000),
            ack: TcpSeq(0),
            win: 32767,
            to: TcpOpt::default(),
            a_addr: ADDR_A,
        }
    }

    /// The next segment from `a`, if there is one by now.
    pub fn next(&self) -> Option<Seen> {
        pass_ms(1);
        let mut seen = self.seen.lock().unwrap();
        if seen.is_empty() {
            None
        } else {
            Some(seen.remove(0))
        }
    }

    /// The next segment from `a`, which comes within `ms`.
    #[track_caller]
    pub fn expect_within(&self, ms: i64) -> Seen {
        for _ in 0..=ms {
            if let Some(segment) = self.next() {
                assert!(segment.good, "a good checksum");
                return segment;
            }
        }
        panic!("no segment within {ms} ms");
    }

    /// The next segment from `a`, which comes at once.
    #[track_caller]
    pub fn expect(&self) -> Seen {
        self.expect_within(2)
    }

    /// Nothing comes for `ms`.
    #[track_caller]
    pub fn expect_nothing(&self, ms: i64) {
        pass_ms(ms);
        if let Some(segment) = self.next() {
            panic!("unexpected {segment:?}");
        }
    }

    /// Sends a segment at `seq`; does not move `seq`.
    pub fn send_at(&self, seq: TcpSeq, flags: TcpFlags, data: &[u8]) {
        self.inject(seq, self.ack, flags, &self.to, data);
    }

    /// Sends a segment, and moves `seq` over it.
    pub fn send(&mut self, flags: TcpFlags, data: &[u8]) {
        self.send_at(self.seq, flags, data);
        self.seq += data.len() as u32;
        if flags.intersects(TcpFlags::SYN | TcpFlags::FIN) {
            self.seq += 1;
        }
    }

    /// Sends any segment.
    pub fn inject(&self, seq: TcpSeq, ack: TcpSeq, flags: TcpFlags, to: &TcpOpt, data: &[u8]) {
        let mut options = [0; TCP_MAXOLEN];
        let optlen = to.write(&mut options);
        let header = TcpHeader {
            th_sport: self.port,
            th_dport: self.a_port,
            th_seq: seq,
            th_ack: if flags.contains(TcpFlags::ACK) {
                ack
            } else {
                TcpSeq(0)
            },
            th_flags: flags,
            th_off: (TCP_HLEN + optlen) as u8,
            th_win: self.win,
            ..TcpHeader::default()
        };
        let mut segment = std::vec![0; TCP_HLEN];
        header.write(segment.first_chunk_mut().unwrap());
        segment.extend_from_slice(&options[..optlen]);
        segment.extend_from_slice(data);
        let pseudo = in_pseudo(
            ADDR_B,
            self.a_addr,
            u32::from(IPPROTO_TCP) + segment.len() as u32,
        );
        let sum = in_cksum_partial(&segment, false).add_u16(pseudo).finish();
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.inject_ip(IPPROTO_TCP, &segment);
    }

    /// Sends any IP payload.
    pub fn inject_ip(&self, proto: u8, payload: &[u8]) {
        let mut ip = Ip::new();
        ip.set_src(ADDR_B);
        ip.set_dst(self.a_addr);
        ip.ip_p = proto;
        ip.ip_ttl = 64;
        ip.ip_len.set((Ip::LEN + payload.len()) as u16);
        let sum = in_cksum(ip.as_bytes());
        ip.ip_sum.set(sum);
        let mut frame = Vec::new();
        frame.extend_from_slice(&self.world.a.ifp.lladdr());
        frame.extend_from_slice(&self.world.b.ifp.lladdr());
        frame.extend_from_slice(&[8, 0]);
        frame.extend_from_slice(ip.as_bytes());
        frame.extend_from_slice(payload);
        self.world.wire.inject(Dir::BtoA, &frame);
        pass_ms(1);
    }

    /// Answers the SYN of `a`'s `connect`, with options; `a`'s ACK is taken.
    pub fn accept(world: &'w World, so: &SocketHandle, syn_options: TcpOpt) -> Peer<'w> {
        // ARP must be settled before segments are taken away.
        let mut peer = Peer::new(world);
        so.set_nonblocking(true);
        let result = so.connect(&SockAddr::v4(ADDR_B, peer.port));
        assert_eq!(result, Err(Errno::EINPROGRESS));
        let syn = peer.expect_within(1500);
        assert_eq!(syn.th.th_flags, TcpFlags::SYN);
        peer.a_port = syn.th.th_sport;
        peer.ack = syn.th.th_seq + 1;
        let seq = peer.seq;
        peer.inject(
            seq,
            peer.ack,
            TcpFlags::SYN | TcpFlags::ACK,
            &syn_options,
            &[],
        );
        peer.seq += 1;
        let ack = peer.expect();
        assert_eq!(ack.th.th_flags, TcpFlags::ACK);
        assert_eq!(ack.th.th_ack, peer.seq);
        so.set_nonblocking(false);
        peer
    }
}
