//! A program for two stacks on a wire that spoils frames: socket calls on both sides, time, and the fate of each frame.
//!
//! What arrives must be what was sent, from its beginning and in order, whatever the wire loses, doubles, delays, cuts and
//! corrupts; and when the wire is good again and all is closed, nothing may be left in either stack.

use super::input::Reader;
use super::stack::lock;
use netsim::impair::Link;
use netsim::wire::{Verdict, WireConfig};
use netsim::world::{ADDR_B, Host, World};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::pump;
use sys::machine::sbinuptime;
use sys::socket::{
    AF_INET, IPPROTO_TCP, MsgFlags, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, Shutdown, SockAddr, SockType,
    TCP_MAXSEG, TCP_NODELAY, TCP_NOPUSH,
};
use sys::time::Sbintime;

const PORT: u16 = 5201;
/// Most steps of a program.
const STEPS: usize = 64;
/// Most connections.
const CONNECTIONS: usize = 4;

/// What becomes of a frame.
#[derive(Clone, Copy)]
enum Fate {
    Pass,
    Lost,
    Twice,
    Cut(u8),
    Changed(u8, u8),
}

/// A side of a connection, and how far its streams are.
struct End {
    so: SocketHandle,
    sent: u64,
    received: u64,
}

/// Runs a program. Panics if a stack does, if a stream is not what was sent, and if something is left at the end.
pub fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let how = reader.u8();
    let link = Link {
        delay: Duration::from_micros(u64::from(reader.u8()) * 100),
        rate: (how & 1 != 0).then_some(10_000_000),
        queue_limit: 16,
        reorder: f64::from(how >> 1 & 3) / 8.0,
        ..Link::default()
    };
    let base = if how & 8 != 0 {
        WireConfig::offloading()
    } else {
        WireConfig::default()
    };
    let config = WireConfig {
        seed: u64::from(how >> 4),
        link,
        ..base
    };
    World::run(config, |world| play(world, &mut reader));
}

fn play(world: &World, reader: &mut Reader<'_>) {
    let fates = Arc::new(Mutex::new(Vec::new()));
    let upcoming = Arc::clone(&fates);
    let wire = world.wire.clone();
    world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
        let fate = lock(&upcoming).pop().unwrap_or(Fate::Pass);
        spoil(fate, frame, |copy| wire.inject(dir, copy))
    })));
    let listener = socket(&world.b);
    listener
        .bind(&SockAddr::v4(core::net::Ipv4Addr::UNSPECIFIED, PORT))
        .expect("a free port");
    listener.listen(8).expect("listening");
    let mut ends: Vec<End> = Vec::new();
    let mut connections = 0;
    for _ in 0..STEPS {
        if reader.is_empty() {
            break;
        }
        match reader.u8() % 10 {
            0 if connections < CONNECTIONS => {
                connections += 1;
                let so = socket(&world.a);
                let _ = so.connect(&SockAddr::v4(ADDR_B, PORT));
                ends.push(End::new(so));
            }
            1 => {
                if let Ok((so, _)) = listener.accept_nowait() {
                    so.set_nonblocking(true);
                    ends.push(End::new(so));
                }
            }
            0 | 2 | 3 => with(&mut ends, reader, |end, reader| end.send(reader.u16())),
            4 => with(&mut ends, reader, |end, reader| end.receive(reader.u16())),
            5 => {
                let us = 1_i64 << (reader.u8() % 28);
                pump(sbinuptime() + Sbintime::from_us(us));
            }
            6 => {
                let count = usize::from(reader.u8() % 32);
                let mut next: Vec<_> = (0..count).map(|_| fate(reader)).collect();
                next.reverse();
                *lock(&fates) = next;
            }
            7 => with(&mut ends, reader, |end, reader| {
                let how = [
                    Shutdown::Write,
                    Shutdown::Write,
                    Shutdown::Read,
                    Shutdown::Both,
                ];
                let _ = end.so.shutdown(reader.pick(&how));
            }),
            8 => {
                let at = usize::from(reader.u8());
                if !ends.is_empty() {
                    let at = at % ends.len();
                    drop(ends.remove(at));
                }
            }
            _ => with(&mut ends, reader, |end, reader| {
                let (level, name) = reader.pick(&[
                    (SOL_SOCKET, SO_SNDBUF),
                    (SOL_SOCKET, SO_RCVBUF),
                    (IPPROTO_TCP, TCP_NODELAY),
                    (IPPROTO_TCP, TCP_NOPUSH),
                    (IPPROTO_TCP, TCP_MAXSEG),
                ]);
                let _ = end.so.setsockopt_int(level, name, i32::from(reader.u16()));
            }),
        }
    }
    lock(&fates).clear();
    world.wire.set_hook(None);
    // The wire is good again: what was sent still arrives, as long as anybody takes it.
    for _ in 0..4 {
        pump(sbinuptime() + Sbintime::from_s(120));
        for end in &mut ends {
            while end.receive(u16::MAX) > 0 {}
        }
    }
    drop(listener);
    drop(ends);
    pump(sbinuptime() + Sbintime::from_s(3 * 3600));
    for host in [&world.a, &world.b] {
        netinet::if_ether::arp_flush(&host.inet);
        assert_eq!(
            host.inet.tcp.tcbinfo.count(),
            0,
            "connections of {}",
            host.addr
        );
        assert_eq!(
            host.inet.tcp.syncache.count(),
            0,
            "half-open ones of {}",
            host.addr
        );
    }
}

fn socket(host: &Host) -> SocketHandle {
    let so = SocketHandle::socket(&host.vnet, AF_INET, SockType::Stream, 0).expect("a socket");
    so.set_nonblocking(true);
    so
}

/// Calls `with` for the end that the next byte names.
fn with<T>(
    ends: &mut [End],
    reader: &mut Reader<'_>,
    with: impl FnOnce(&mut End, &mut Reader<'_>) -> T,
) {
    let at = usize::from(reader.u8());
    if !ends.is_empty() {
        let at = at % ends.len();
        with(&mut ends[at], reader);
    }
}

fn fate(reader: &mut Reader<'_>) -> Fate {
    match reader.u8() {
        0..128 => Fate::Pass,
        128..192 => Fate::Lost,
        192..224 => Fate::Twice,
        224..240 => Fate::Cut(reader.u8()),
        240.. => Fate::Changed(reader.u8(), reader.u8()),
    }
}

fn spoil(fate: Fate, frame: &mut Vec<u8>, inject: impl FnOnce(&[u8])) -> Verdict {
    match fate {
        Fate::Pass => Verdict::Pass,
        Fate::Lost => Verdict::Drop,
        Fate::Twice => {
            inject(frame);
            Verdict::Pass
        }
        Fate::Cut(by) => {
            let len = frame.len().saturating_sub(usize::from(by));
            frame.truncate(len);
            Verdict::Pass
        }
        // One byte changed is always noticed by a checksum of 16 bits.
        Fate::Changed(at, change) => {
            let len = frame.len();
            if let Some(byte) = frame.get_mut(usize::from(at) * 7 % len.max(1)) {
                *byte ^= change;
            }
            Verdict::Pass
        }
    }
}

/// The byte at a place of the stream: not the same again for a while.
fn byte_at(place: u64) -> u8 {
    (place ^ place >> 8 ^ place >> 16) as u8
}

impl End {
    fn new(so: SocketHandle) -> Self {
        Self {
            so,
            sent: 0,
            received: 0,
        }
    }

    fn send(&mut self, len: u16) {
        let places = self.sent..self.sent + u64::from(len);
        let bytes: Vec<u8> = places.map(byte_at).collect();
        self.sent += self.so.send(&bytes, MsgFlags::empty()).unwrap_or(0) as u64;
    }

    fn receive(&mut self, len: u16) -> usize {
        let mut bytes = vec![0; usize::from(len)];
        let count = self.so.recv(&mut bytes, MsgFlags::empty()).unwrap_or(0);
        for &byte in &bytes[..count] {
            assert_eq!(
                byte,
                byte_at(self.received),
                "byte {} of a stream",
                self.received
            );
            self.received += 1;
        }
        count
    }
}
