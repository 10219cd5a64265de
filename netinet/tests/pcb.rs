//! Control blocks: lookups without a lock beside their creation and destruction.

mod common;

use common::*;
use core::net::Ipv4Addr;
use netinet::in_pcb::{InConninfo, InpFlags, Lookup};
use netsim::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sys::kern::kern_thread::{Pri, kthread_add};
use sys::kern::sched::kern_yield;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::socket::{AF_INET, SockAddr, SockType};

fn to_b(world: &World, fport: u16) -> SocketHandle {
    let so = SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Dgram, 0).unwrap();
    so.bind(&SockAddr::v4(ADDR_A, 7)).unwrap();
    so.connect(&SockAddr::v4(ADDR_B, fport)).unwrap();
    so
}

fn tuple(fport: u16) -> InConninfo {
    InConninfo {
        inc_faddr: ADDR_B.into(),
        inc_laddr: ADDR_A.into(),
        inc_fport: fport,
        inc_lport: 7,
    }
}

#[test]
fn a_lookup_finds_what_is_there_while_others_come_and_go() {
    for seed in 1..20 {
        World::run(
            WireConfig {
                seed,
                ..WireConfig::default()
            },
            |world| {
                // It stands in the way of nobody: the others bind after it is connected.
                let stays = to_b(world, 1);
                let inet = &world.a.inet;
                inet.udbinfo
                    .snapshot()
                    .iter()
                    .for_each(|inp| assert!(!inp.read().inp_flags.contains(InpFlags::DROPPED)));
                let stop = Arc::new(AtomicBool::new(false));
                let lookups = Arc::new(AtomicU64::new(0));
                let reader = {
                    let (inet, stop, lookups) = (inet.clone(), stop.clone(), lookups.clone());
                    kthread_add("reader", Pri::PUSER, None, move || {
                        while !stop.load(Ordering::Relaxed) {
                            let epoch = NetEpoch::enter();
                            let (_, inp) = inet
                                .udbinfo
                                .lookup_read(&tuple(1), Lookup::Exact, &epoch)
                                .expect("it never left");
                            assert_eq!(inp.fport(), 1);
                            drop(inp);
                            // One that comes and goes is found whole or not at all.
                            if let Some((_, inp)) =
                                inet.udbinfo.lookup_read(&tuple(2), Lookup::Exact, &epoch)
                            {
                                assert_eq!((inp.fport(), inp.lport()), (2, 7));
                                assert!(inp.inp_socket.is_some());
                            }
                            lookups.fetch_add(1, Ordering::Relaxed);
                            drop(epoch);
                            kern_yield();
                        }
                    })
                };
                for _ in 0..50 {
                    let goes =
                        SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Dgram, 0).unwrap();
                    goes.setsockopt_int(sys::socket::SOL_SOCKET, sys::socket::SO_REUSEADDR, 1)
                        .unwrap();
                    goes.bind(&SockAddr::v4(ADDR_A, 7)).unwrap();
                    goes.connect(&SockAddr::v4(ADDR_B, 2)).unwrap();
                    kern_yield();
                    drop(goes);
                }
                pass_ms(10);
                stop.store(true, Ordering::Relaxed);
                reader.join();
                assert!(lookups.load(Ordering::Relaxed) > 0);
                assert_eq!(inet.udbinfo.count(), 1);
                drop(stays);
                assert_eq!(inet.udbinfo.count(), 0);
            },
        );
    }
}

#[test]
fn thousands_of_connections_are_found_and_forgotten() {
    World::run(WireConfig::default(), |world| {
        let sockets: Vec<_> = (0..3000u16)
            .map(|i| {
                let so = SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Dgram, 0).unwrap();
                so.connect(&SockAddr::v4(
                    Ipv4Addr::new(10, 0, 0, 2 + (i % 100) as u8),
                    1000 + i,
                ))
                .unwrap();
                so
            })
            .collect();
        let inet = &world.a.inet;
        let epoch = NetEpoch::enter();
        for so in &sockets {
            let (own, peer) = (so.getsockname().unwrap(), so.getpeername().unwrap());
            let (own, peer) = (*own.as_in().unwrap(), *peer.as_in().unwrap());
            let inc = InConninfo {
                inc_faddr: peer.addr.into(),
                inc_laddr: own.addr.into(),
                inc_fport: peer.port,
                inc_lport: own.port,
            };
            let (_, inp) = inet
                .udbinfo
                .lookup_read(&inc, Lookup::Exact, &epoch)
                .expect("a connection");
            assert_eq!(inp.inp_inc, inc);
        }
        drop(epoch);
        // Every other one goes; the rest stay where they can be found.
        let mut kept = Vec::new();
        for (i, so) in sockets.into_iter().enumerate() {
            if i % 2 == 0 {
                kept.push(so);
            }
        }
        assert_eq!(inet.udbinfo.count(), 1500);
        let epoch = NetEpoch::enter();
        for so in &kept {
            let (own, peer) = (so.getsockname().unwrap(), so.getpeername().unwrap());
            let inc = InConninfo {
                inc_faddr: peer.as_in().unwrap().addr.into(),
                inc_laddr: own.as_in().unwrap().addr.into(),
                inc_fport: peer.port(),
                inc_lport: own.port(),
            };
            assert!(inet.udbinfo.lookup(&inc, Lookup::Exact, &epoch).is_some());
        }
    });
}
