//! Connections between two stacks: how they begin, and how they end.

mod tcp_common;

use core::net::Ipv4Addr;
use netinet::tcp::{TcpFlags, TcpOptFlags};
use netinet::tcp_fsm::TcpState;
use netsim::wire::Dir;
use netsim::world::{ADDR_B, World};
use sys::errno::Errno;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::socket::{MsgFlags, SO_REUSEPORT, SO_REUSEPORT_LB, SOL_SOCKET, SockAddr};
use tcp_common::*;

#[test]
fn a_connection_carries_bytes_both_ways_and_closes_in_order() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        assert_eq!(state(&world.a, &a), TcpState::Established);
        assert_eq!(state(&world.b, &b), TcpState::Established);
        send_all(&a, b"hello");
        let mut buffer = [0; 16];
        assert_eq!(b.recv(&mut buffer, MsgFlags::empty()), Ok(5));
        assert_eq!(&buffer[..5], b"hello");
        send_all(&b, b"world!");
        assert_eq!(a.recv(&mut buffer, MsgFlags::empty()), Ok(6));
        shut(&a);
        assert_eq!(b.recv(&mut buffer, MsgFlags::empty()), Ok(0));
        pass_ms(50);
        assert_eq!(state(&world.a, &a), TcpState::FinWait2);
        assert_eq!(state(&world.b, &b), TcpState::CloseWait);
        send_all(&b, b"still here");
        assert_eq!(a.recv(&mut buffer, MsgFlags::empty()), Ok(10));
        drop(b);
        pass_ms(50);
        assert_eq!(a.recv(&mut buffer, MsgFlags::empty()), Ok(0));
        assert_eq!(state(&world.a, &a), TcpState::TimeWait);
        assert_eq!(in_state(&world.b, TcpState::LastAck), 0);
        drop(a);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 1);
        pass_ms(59_000);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 1);
        pass_ms(2_000);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 0);
        assert_eq!(world.a.inet.tcp.tcbinfo.count(), 0);
    });
}

#[test]
fn the_handshake_agrees_on_scaling_timestamps_and_sack() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        let (a, _b) = connected(world);
        let syn = &tap.seen(Dir::AtoB)[0];
        assert_eq!(syn.th.th_flags, TcpFlags::SYN);
        assert_eq!(syn.th.th_win, 65535);
        let all = TcpOptFlags::MSS | TcpOptFlags::SCALE | TcpOptFlags::SACKPERM | TcpOptFlags::TS;
        assert_eq!(syn.to.to_flags, all);
        assert_eq!((syn.to.to_mss, syn.to.to_wscale), (1460, 6));
        let answer = &tap.seen(Dir::BtoA)[0];
        assert_eq!(answer.th.th_flags, TcpFlags::SYN | TcpFlags::ACK);
        assert_eq!(answer.to.to_flags, all);
        assert_eq!(answer.to.to_tsecr, syn.to.to_tsval);
        look(&world.a, &a, |tp| {
            assert_eq!((tp.t_maxseg, tp.snd_scale, tp.rcv_scale), (1460, 6, 6));
            assert_eq!(tp.snd_cwnd, 10 * 1448);
        });
        assert!(tap.seen(Dir::AtoB).iter().all(|segment| segment.good));
    });
}

#[test]
fn a_closed_port_refuses() {
    World::run(WireConfig::default(), |world| {
        let a = tcp(&world.a);
        assert_eq!(
            a.connect(&SockAddr::v4(ADDR_B, 1)),
            Err(Errno::ECONNREFUSED)
        );
        assert_eq!(world.a.inet.tcp.stat.tcps_conndrops.fetch(), 1);
    });
}

#[test]
fn both_may_close_at_once() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        world.wire.change_link(Dir::AtoB, |link| {
            link.delay = core::time::Duration::from_millis(10)
        });
        world.wire.change_link(Dir::BtoA, |link| {
            link.delay = core::time::Duration::from_millis(10)
        });
        shut(&a);
        shut(&b);
        pass_ms(15);
        assert_eq!(state(&world.a, &a), TcpState::Closing);
        assert_eq!(state(&world.b, &b), TcpState::Closing);
        pass_ms(30);
        assert_eq!(state(&world.a, &a), TcpState::TimeWait);
        assert_eq!(state(&world.b, &b), TcpState::TimeWait);
    });
}

#[test]
fn both_may_open_at_once() {
    World::run(WireConfig::default(), |world| {
        world.wire.change_link(Dir::AtoB, |link| {
            link.delay = core::time::Duration::from_millis(10)
        });
        world.wire.change_link(Dir::BtoA, |link| {
            link.delay = core::time::Duration::from_millis(10)
        });
        // Settle ARP first.
        drop(connected(world));
        let (a, b) = (tcp(&world.a), tcp(&world.b));
        a.bind(&SockAddr::v4(netsim::world::ADDR_A, 1111)).unwrap();
        b.bind(&SockAddr::v4(ADDR_B, 2222)).unwrap();
        a.set_nonblocking(true);
        b.set_nonblocking(true);
        assert_eq!(
            a.connect(&SockAddr::v4(ADDR_B, 2222)),
            Err(Errno::EINPROGRESS)
        );
        assert_eq!(
            b.connect(&SockAddr::v4(netsim::world::ADDR_A, 1111)),
            Err(Errno::EINPROGRESS)
        );
        pass_ms(100);
        assert_eq!(state(&world.a, &a), TcpState::Established);
        assert_eq!(state(&world.b, &b), TcpState::Established);
        assert_eq!(a.send(b"x", MsgFlags::empty()), Ok(1));
        pass_ms(100);
        assert_eq!(b.recv(&mut [0; 4], MsgFlags::empty()), Ok(1));
    });
}

#[test]
fn closing_with_unread_data_and_no_linger_sends_the_rest_and_a_fin() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        send_all(&a, &pattern(1, 20_000));
        drop(a);
        assert_eq!(receive_all(&b).unwrap(), pattern(1, 20_000));
    });
}

#[test]
fn lingering_for_no_time_resets() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        a.set_linger(Some(0)).unwrap();
        drop(a);
        pass_ms(10);
        assert_eq!(
            b.recv(&mut [0; 4], MsgFlags::empty()),
            Err(Errno::ECONNRESET)
        );
        assert_eq!(world.a.inet.tcp.tcbinfo.count(), 0);
    });
}

#[test]
fn data_for_a_program_that_is_gone_is_answered_by_reset() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        drop(b);
        pass_ms(10);
        send_all(&a, b"anyone?");
        pass_ms(10);
        assert_eq!(world.b.inet.tcp.stat.tcps_rcvafterclose.fetch(), 1);
        assert_eq!(
            a.send(b"again", MsgFlags::empty()),
            Err(Errno::ECONNRESET).or(Err(Errno::EPIPE))
        );
        assert_eq!(world.b.inet.tcp.tcbinfo.count(), 0);
    });
}

#[test]
fn a_full_listen_queue_refuses_and_counts() {
    World::run(WireConfig::default(), |world| {
        let listen = listener(&world.b, 2);
        let mut clients = std::vec::Vec::new();
        let mut refused = 0;
        for _ in 0..8 {
            let so = tcp(&world.a);
            let connected = so.connect(&SockAddr::v4(ADDR_B, PORT));
            pass_ms(10);
            if connected.is_err()
                || so.recv(&mut [0; 1], MsgFlags::DONTWAIT) != Err(Errno::EWOULDBLOCK)
            {
                refused += 1;
            } else {
                clients.push(so);
            }
        }
        // The queue takes 3/2 of the backlog and one.
        assert_eq!(clients.len(), 4);
        assert_eq!(refused, 4);
        assert_eq!(world.b.inet.tcp.stat.tcps_listendrop.fetch(), 4);
        for _ in 0..4 {
            assert!(listen.accept_nowait().is_ok());
        }
        assert!(listen.accept_nowait().is_err());
    });
}

#[test]
fn loopback_works_without_time_wait() {
    World::run(WireConfig::default(), |world| {
        let listen = listener(&world.a, 5);
        let client = tcp(&world.a);
        client
            .connect(&SockAddr::v4(core::net::Ipv4Addr::LOCALHOST, PORT))
            .unwrap();
        let (server, _) = listen.accept().unwrap();
        let data = pattern(3, 300_000);
        let copy = data.clone();
        let sender = spawn(move || {
            send_all(&client, &copy);
            drop(client);
        });
        assert_eq!(receive_all(&server).unwrap(), data);
        sender.join();
        drop(server);
        drop(listen);
        pass_ms(100);
        assert_eq!(world.a.inet.tcp.tcbinfo.count(), 0);
    });
}

#[test]
fn listeners_with_reuseport_lb_share_connections_and_others_may_not_join_them() {
    World::run(WireConfig::default(), |world| {
        let bound = |option: i32| {
            let so = tcp(&world.b);
            so.setsockopt_int(SOL_SOCKET, option, 1).unwrap();
            so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, PORT))
                .map(|()| so)
        };
        let mut group: Vec<_> = (0..3)
            .map(|_| {
                let so = bound(SO_REUSEPORT_LB).expect("a place in the group");
                so.listen(50).unwrap();
                so
            })
            .collect();
        assert_eq!(bound(SO_REUSEPORT).err(), Some(Errno::EADDRINUSE));
        // One that does not listen gets nothing.
        let silent = bound(SO_REUSEPORT_LB).expect("a place in the group");
        let connect = |count: usize| -> Vec<_> {
            (0..count)
                .map(|_| {
                    let so = tcp(&world.a);
                    so.connect(&SockAddr::v4(ADDR_B, PORT)).expect("a listener");
                    so
                })
                .collect()
        };
        let share = |group: &[SocketHandle]| -> Vec<usize> {
            let count = |so: &SocketHandle| core::iter::from_fn(|| so.accept_nowait().ok()).count();
            group.iter().map(count).collect()
        };
        let clients = connect(48);
        pass_ms(50);
        let shares = share(&group);
        assert_eq!(shares.iter().sum::<usize>(), 48);
        assert!(shares.iter().all(|&share| share >= 6), "{shares:?}");
        drop(clients);
        // Who leaves, leaves its share to the others.
        group.pop();
        let clients = connect(24);
        pass_ms(50);
        assert_eq!(share(&group).iter().sum::<usize>(), 24);
        drop((clients, silent, group));
    });
}
