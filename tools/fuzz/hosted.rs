//! Malformed frames at a stack in this process, in virtual time.

use crate::generate::{Ends, Generator};
use netinet::if_ether::arp_flush;
use netsim::wire::{Dir, Verdict, WireConfig};
use netsim::world::{ADDR_B, Host, World};
use std::sync::{Arc, Mutex, MutexGuard};
use sys::errno::Errno;
use sys::kern::kern_thread::{Pri, kthread_add};
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::pump;
use sys::machine::sbinuptime;
use sys::net::ifnet::Ifnet;
use sys::socket::{AF_INET, MsgFlags, SockAddr, SockAddrIn, SockType};
use sys::time::Sbintime;

/// The sender of the frames: neither of the two stacks.
const OUR_MAC: [u8; 6] = [0x02, 0x46, 0, 0, 0, 9];
const OUR_IP: [u8; 4] = [10, 0, 0, 9];
/// Ports that the target listens on: TCP and UDP.
const PORT: u16 = 5201;
/// Frames sent before the target gets to run.
const BATCH: u64 = 32;
/// Bytes of the transfer that shows the target alive.
const TRANSFER: usize = 1 << 20;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Frames sent.
    pub frames: u64,
    /// Frames the target sent meanwhile.
    pub answers: u64,
    /// Drops and errors the target counted.
    pub counted: u64,
    /// Connections the target accepted.
    pub accepted: u64,
}

/// Sends `frames` malformed frames that follow from `seed` to a stack, then moves data to it. Panics if the stack
/// does, if it does not live afterwards, or if mbufs are lost.
pub fn run(seed: u64, frames: u64) -> Outcome {
    let config = WireConfig {
        seed,
        ..WireConfig::default()
    };
    World::run(config, |world| {
        serve(&world.b);
        let before = counted(&world.b);
        let mut outcome = fuzz(world, seed, frames);
        outcome.counted = counted(&world.b) - before;
        outcome.accepted = world.b.inet.tcp.stat.tcps_accepts.fetch();
        assert!(outcome.counted > 0, "malformed frames, and no drop counted");
        assert_alive(world);
        outcome
    })
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

fn fuzz(world: &World, seed: u64, frames: u64) -> Outcome {
    let ends = Ends {
        our_mac: OUR_MAC,
        target_mac: world.b.ifp.lladdr(),
        our_ip: OUR_IP,
        target_ip: ADDR_B.octets(),
    };
    let generator = Arc::new(Mutex::new((Generator::new(seed, ends, &[PORT]), 0)));
    let observer = Arc::clone(&generator);
    world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
        if dir == Dir::AtoB {
            return Verdict::Pass;
        }
        let mut observer = lock(&observer);
        observer.0.observe(frame);
        observer.1 += 1;
        match frame.get(..6) == Some(&OUR_MAC) {
            true => Verdict::Drop,
            false => Verdict::Pass,
        }
    })));
    let mut pace = oorandom::Rand64::new(u128::from(seed));
    for number in 0..frames {
        let frame = lock(&generator).0.frame();
        world.wire.inject(Dir::AtoB, &frame);
        if number % BATCH == BATCH - 1 {
            let pause = Sbintime::from_us(pace.rand_range(100..5000) as i64);
            pump(sbinuptime() + pause);
        }
    }
    pump(sbinuptime() + Sbintime::from_s(1));
    world.wire.set_hook(None);
    let answers = lock(&generator).1;
    Outcome {
        frames,
        answers,
        ..Outcome::default()
    }
}

/// What the target's protocols and interface count as dropped or wrong.
fn counted(host: &Host) -> u64 {
    const WORDS: [&str; 10] = [
        "bad", "drop", "short", "small", "long", "noport", "noproto", "err", "full", "after",
    ];
    let inet = &host.inet;
    let all = inet
        .ipstat
        .iter()
        .chain(inet.udpstat.iter())
        .chain(inet.arpstat.iter())
        .chain(inet.tcp.stat.iter());
    let protocols: u64 = all
        .filter(|(name, _, _)| WORDS.iter().any(|w| name.contains(w)))
        .map(|(_, _, value)| value)
        .sum();
    let icmp = &inet.icmpstat;
    let icmp = [
        &icmp.icps_badcode,
        &icmp.icps_tooshort,
        &icmp.icps_checksum,
        &icmp.icps_badlen,
    ];
    let icmp: u64 = icmp.iter().map(|c| c.fetch()).sum();
    let ifp: &Ifnet = &host.ifp;
    protocols + icmp + ifp.counters.ierrors.fetch() + ifp.counters.iqdrops.fetch()
}

fn any(port: u16) -> SockAddr {
    SockAddr::In(SockAddrIn {
        addr: core::net::Ipv4Addr::UNSPECIFIED,
        port,
    })
}

/// Starts a TCP server that reads whatever comes, and a UDP socket that does.
fn serve(host: &Host) {
    let open = |ty| SocketHandle::socket(&host.vnet, AF_INET, ty, 0).expect("a socket");
    let tcp = open(SockType::Stream);
    tcp.bind(&any(PORT)).expect("a free port");
    tcp.listen(128).expect("listening");
    let vnet = Arc::clone(&host.vnet);
    kthread_add("sink", Pri::PUSER, None, move || {
        let _vnet = vnet;
        loop {
            let so = match tcp.accept() {
                Ok((so, _)) => so,
                // The peer was gone before it was accepted.
                Err(Errno::ECONNABORTED) => continue,
                Err(_) => return,
            };
            kthread_add("drain", Pri::PUSER, None, move || {
                let mut bytes = vec![0; 65536];
                // A peer that falls silent is given up, so that its socket goes.
                let _ = so.set_rcvtimeo(Some(Sbintime::from_s(5)));
                while so.recv(&mut bytes, MsgFlags::empty()).is_ok_and(|n| n > 0) {}
            });
        }
    });
    let udp = open(SockType::Dgram);
    udp.bind(&any(PORT)).expect("a free port");
    kthread_add("udp sink", Pri::PUSER, None, move || {
        let mut bytes = vec![0; 65536];
        while udp.recv(&mut bytes, MsgFlags::empty()).is_ok() {}
    });
}

/// Connects from the other stack and sends data until all is acknowledged.
fn assert_alive(world: &World) {
    for host in [&world.a, &world.b] {
        arp_flush(&host.inet);
    }
    let so = SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Stream, 0).expect("a socket");
    let to = SockAddr::In(SockAddrIn {
        addr: ADDR_B,
        port: PORT,
    });
    so.connect(&to).expect("the target accepts connections");
    let data = vec![0x5a; TRANSFER];
    let mut sent = 0;
    while sent < data.len() {
        sent += so
            .send(&data[sent..], MsgFlags::empty())
            .expect("the target reads");
    }
    so.set_linger(Some(30)).expect("the option is known");
    drop(so);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_stack_lives_through_malformed_frames_and_counts_them() {
        for seed in 1..4 {
            let outcome = super::run(seed, 3_000);
            assert!(outcome.answers > 0, "the target answered nothing");
        }
    }

    #[test]
    fn the_same_seed_has_the_same_outcome() {
        assert_eq!(super::run(9, 500), super::run(9, 500));
    }
}
