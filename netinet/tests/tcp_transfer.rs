//! Transfers over wires with faults: every byte arrives, once and in order, and nothing leaks.

mod tcp_common;

use core::time::Duration;

use netinet::tcp_fsm::TcpState;
use netinet::tcp_usrreq::TCP_NODELAY;
use netsim::impair::{Link, Loss};
use netsim::wire::Dir;
use netsim::world::World;
use sys::socket::{IPPROTO_TCP, MsgFlags, SO_RCVBUF, SOL_SOCKET};
use tcp_common::*;

/// Sends `up` bytes from a to b and `down` bytes back at the same time, and compares.
fn transfer(world: &World, seed: u64, up: usize, down: usize) {
    let (a, b) = connected(world);
    let (up, down) = (pattern(seed, up), pattern(seed + 1, down));
    let (a, b) = (std::sync::Arc::new(a), std::sync::Arc::new(b));
    let task = |so: &std::sync::Arc<sys::kern::uipc_syscalls::SocketHandle>, data: &[u8]| {
        let (so, data) = (so.clone(), data.to_vec());
        spawn(move || {
            send_all(&so, &data);
            shut(&so);
        })
    };
    let reader = |so: &std::sync::Arc<sys::kern::uipc_syscalls::SocketHandle>| {
        let so = so.clone();
        spawn(move || receive_all(&so).expect("a connection that stands"))
    };
    let tasks = [task(&a, &up), task(&b, &down)];
    let (at_b, at_a) = (reader(&b), reader(&a));
    for task in tasks {
        task.join();
    }
    assert!(at_b.join() == up, "every byte up");
    assert!(at_a.join() == down, "every byte down");
}

fn faulty(seed: u64, change: impl FnOnce(&mut Link)) -> WireConfig {
    let mut link = Link {
        delay: Duration::from_millis(5),
        ..Link::default()
    };
    change(&mut link);
    WireConfig {
        seed,
        link,
        ..WireConfig::default()
    }
}

#[test]
fn a_clean_wire_needs_no_retransmission() {
    World::run(WireConfig::default(), |world| {
        transfer(world, 1, 3_000_000, 1_000_000);
        for host in [&world.a, &world.b] {
            let stat = &host.inet.tcp.stat;
            assert_eq!(stat.tcps_sndrexmitpack.fetch(), 0);
            assert_eq!(stat.tcps_rcvoopack.fetch(), 0);
            assert!(stat.tcps_preddat.fetch() > 0);
        }
    });
}

#[test]
fn tso_sends_the_same_bytes() {
    World::run(WireConfig::offloading(), |world| {
        transfer(world, 2, 3_000_000, 1_000_000);
        let stat = world.wire.stat(Dir::AtoB);
        assert!(stat.tso_frames > 20, "{stat:?}");
        assert!(stat.tso_segments > 4 * stat.tso_frames, "{stat:?}");
        assert_eq!((stat.bad_requests, stat.oversized), (0, 0));
        assert_eq!(world.a.inet.tcp.stat.tcps_sndrexmitpack.fetch(), 0);
    });
}

#[test]
fn an_interface_that_stops_tso_is_noticed_at_once() {
    World::run(WireConfig::offloading(), |world| {
        let (a, b) = connected(world);
        let reader = spawn(move || receive_all(&b).unwrap());
        send_all(&a, &pattern(1, 500_000));
        let cap = world.a.ifp.capenable();
        world
            .a
            .ifp
            .set_capenable(cap - sys::net::ifnet::IfCap::TSO4)
            .unwrap();
        send_all(&a, &pattern(2, 500_000));
        drop(a);
        let mut all = pattern(1, 500_000);
        all.extend(pattern(2, 500_000));
        assert!(reader.join() == all);
        assert!(world.a.inet.tcp.stat.tcps_mturesent.fetch() <= 1);
        assert_eq!(world.a.inet.tcp.stat.tcps_rexmttimeo.fetch(), 0);
    });
}

#[test]
fn loss_is_repaired_by_sack() {
    for seed in 1..=8 {
        World::run(
            faulty(seed, |link| link.loss = Loss::Random(0.01)),
            |world| {
                transfer(world, seed, 1_000_000, 300_000);
                let stat = &world.a.inet.tcp.stat;
                assert!(stat.tcps_sack_recovery_episode.fetch() > 0, "seed {seed}");
            },
        );
    }
}

#[test]
fn loss_is_repaired_without_sack() {
    for seed in 1..=8 {
        World::run(
            faulty(seed, |link| link.loss = Loss::Random(0.01)),
            |world| {
                for host in [&world.a, &world.b] {
                    host.vnet
                        .sysctl
                        .set("net.inet.tcp.sack.enable", "0")
                        .unwrap();
                }
                transfer(world, seed, 1_000_000, 300_000);
                let stat = &world.a.inet.tcp.stat;
                assert_eq!(stat.tcps_sack_recovery_episode.fetch(), 0);
                assert!(stat.tcps_sndrexmitpack.fetch() > 0);
            },
        );
    }
}

#[test]
fn loss_is_repaired_without_any_extension() {
    for seed in 1..=4 {
        World::run(
            faulty(seed, |link| link.loss = Loss::Random(0.01)),
            |world| {
                for name in ["net.inet.tcp.sack.enable", "net.inet.tcp.rfc1323"] {
                    world.a.vnet.sysctl.set(name, "0").unwrap();
                }
                transfer(world, seed, 500_000, 300_000);
            },
        );
    }
}

#[test]
fn reordering_and_duplication_change_nothing() {
    for seed in 1..=6 {
        let config = faulty(seed, |link| {
            link.reorder = 0.05;
            link.reorder_by = Duration::from_millis(7);
            link.duplicate = 0.02;
        });
        World::run(config, |world| transfer(world, seed, 1_000_000, 300_000));
    }
}

#[test]
fn corruption_is_found_by_the_checksum() {
    for seed in 1..=6 {
        World::run(faulty(seed, |link| link.corrupt = 0.01), |world| {
            transfer(world, seed, 500_000, 300_000);
            let stats = [&world.a, &world.b].map(|host| {
                host.inet.tcp.stat.tcps_rcvbadsum.fetch() + host.inet.ipstat.ips_badsum.fetch()
            });
            assert!(stats[0] + stats[1] > 0, "seed {seed}");
        });
    }
}

#[test]
fn everything_at_once_with_offloads() {
    for seed in 1..=8 {
        let mut config = WireConfig::offloading();
        config.seed = seed;
        config.link = Link {
            delay: Duration::from_millis(3),
            rate: Some(100_000_000),
            loss: Loss::Random(0.01),
            reorder: 0.02,
            reorder_by: Duration::from_millis(4),
            duplicate: 0.01,
            corrupt: 0.002,
            ..Link::default()
        };
        World::run(config, |world| transfer(world, seed, 2_000_000, 500_000));
    }
}

#[test]
fn a_read_of_all_that_is_longer_than_the_buffer_takes_it_in_parts() {
    World::run(faulty(1, |_| {}), |world| {
        let (a, b) = connected(world);
        b.setsockopt_int(SOL_SOCKET, SO_RCVBUF, 2801).unwrap();
        let data = pattern(1, 150_000);
        let sent = data.clone();
        // Each piece takes a cluster, and the buffer holds no clusters for so many bytes as it is large.
        a.setsockopt_int(IPPROTO_TCP, TCP_NODELAY, 1).unwrap();
        let sender = spawn(move || {
            for piece in sent.chunks(250) {
                send_all(&a, piece);
            }
        });
        let mut read = std::vec![0; data.len()];
        assert_eq!(b.recv(&mut read, MsgFlags::WAITALL), Ok(data.len()));
        assert!(read == data);
        sender.join();
        // The buffer became smaller under a window already offered; after that no byte needs to be probed for.
        assert!(world.a.inet.tcp.stat.tcps_persisttimeo.fetch() <= 1);
    });
}

#[test]
fn heavy_loss_only_takes_longer() {
    for seed in 1..=4 {
        World::run(
            faulty(seed, |link| link.loss = Loss::Random(0.2)),
            |world| {
                transfer(world, seed, 50_000, 20_000);
            },
        );
    }
}

#[test]
fn a_long_fat_path_is_filled_by_growing_buffers() {
    let config = faulty(1, |link| {
        link.delay = Duration::from_millis(25);
        link.rate = Some(200_000_000);
        link.queue_limit = 4000;
    });
    World::run(config, |world| {
        let begun = now_ms();
        transfer(world, 1, 20_000_000, 0);
        let took = now_ms() - begun;
        // 20 MB at 200 Mbit/s take 0.84 s; slow start some round trips more.
        assert!(took < 2_000, "{took} ms");
        assert_eq!(world.a.inet.tcp.stat.tcps_rexmttimeo.fetch(), 0);
    });
}

#[test]
fn many_connections_at_once() {
    World::run(faulty(5, |link| link.loss = Loss::Random(0.005)), |world| {
        let listen = listener(&world.b, 64);
        let server = spawn(move || {
            let mut tasks = std::vec::Vec::new();
            for _ in 0..20 {
                let (so, _) = listen.accept().unwrap();
                tasks.push(spawn(move || {
                    let data = receive_all(&so).unwrap();
                    send_all(&so, &data);
                }));
            }
            for task in tasks {
                task.join();
            }
        });
        let mut clients = std::vec::Vec::new();
        for i in 0..20 {
            let so = tcp(&world.a);
            clients.push(spawn(move || {
                so.connect(&sys::socket::SockAddr::v4(netsim::world::ADDR_B, PORT))
                    .unwrap();
                let data = pattern(i, 30_000 + 1000 * i as usize);
                send_all(&so, &data);
                shut(&so);
                assert!(receive_all(&so).unwrap() == data);
            }));
        }
        for client in clients {
            client.join();
        }
        server.join();
        pass_ms(65_000);
        for host in [&world.a, &world.b] {
            assert_eq!(host.inet.tcp.tcbinfo.count(), 0);
            assert_eq!(in_state(host, TcpState::Established), 0);
        }
    });
}
