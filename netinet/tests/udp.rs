//! UDP between two stacks: delivery, addresses, errors, limits.

mod common;

use common::*;
use core::net::Ipv4Addr;
use netinet::ip::IPPROTO_UDP;
use netsim::wire::Dir;
use netsim::world::World;
use sys::errno::Errno;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::socket::*;

const IP: u16 = 0x0800;

#[test]
fn datagrams_keep_their_borders_and_their_sender() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = (udp(&world.a, 5), udp(&world.b, 7));
        for len in [0, 1, 1000, 1472, 9216] {
            assert_eq!(send_to(&a, &pattern(len), ADDR_B, 7), Ok(len));
        }
        for len in [0, 1, 1000, 1472, 9216] {
            let (data, from) = receive(&b).expect("a datagram");
            assert_eq!(data, pattern(len));
            assert_eq!(from, SockAddr::v4(ADDR_A, 5));
        }
        assert_eq!(send_to(&a, &pattern(9217), ADDR_B, 7), Err(Errno::EMSGSIZE));
        assert_eq!(world.b.inet.udpstat.udps_ipackets.fetch(), 5);
        assert_eq!(world.a.inet.udpstat.udps_opackets.fetch(), 5);
    });
}

#[test]
fn a_connected_socket_hears_only_its_peer() {
    World::run(WireConfig::default(), |world| {
        let a = udp(&world.a, 5);
        let b = udp(&world.b, 7);
        b.connect(&SockAddr::v4(ADDR_A, 5)).unwrap();
        assert_eq!(b.getsockname(), Ok(SockAddr::v4(ADDR_B, 7)));
        assert_eq!(b.getpeername(), Ok(SockAddr::v4(ADDR_A, 5)));
        let stranger = udp(&world.a, 6);
        send_to(&stranger, b"stranger", ADDR_B, 7).unwrap();
        send_to(&a, b"peer", ADDR_B, 7).unwrap();
        assert_eq!(receive(&b).expect("a datagram").0, b"peer");
        assert_eq!(world.b.inet.udpstat.udps_noport.fetch(), 1);
        b.send(b"back", MsgFlags::empty()).unwrap();
        assert_eq!(receive(&a).expect("a datagram").0, b"back");
        assert_eq!(send_to(&b, b"x", ADDR_A, 6), Err(Errno::EISCONN));
    });
}

#[test]
fn a_connected_socket_can_be_connected_anew() {
    World::run(WireConfig::default(), |world| {
        let (a5, a6) = (udp(&world.a, 5), udp(&world.a, 6));
        let b = udp(&world.b, 7);
        for (peer, port) in [(&a5, 5), (&a6, 6), (&a5, 5)] {
            b.connect(&SockAddr::v4(ADDR_A, port)).unwrap();
            assert_eq!(b.getpeername(), Ok(SockAddr::v4(ADDR_A, port)));
            b.send(&[port as u8], MsgFlags::empty()).unwrap();
            assert_eq!(receive(peer).expect("a datagram").0, [port as u8]);
            send_to(peer, b"back", ADDR_B, 7).unwrap();
            assert_eq!(receive(&b).expect("a datagram").0, b"back");
        }
    });
}

#[test]
fn a_connection_is_preferred_to_who_listens_to_all() {
    World::run(WireConfig::default(), |world| {
        let all = udp(&world.b, 7);
        all.setsockopt_int(SOL_SOCKET, SO_REUSEADDR, 1).unwrap();
        let one = SocketHandle::socket(&world.b.vnet, AF_INET, SockType::Dgram, 0).unwrap();
        one.set_rcvtimeo(Some(PATIENCE)).unwrap();
        one.setsockopt_int(SOL_SOCKET, SO_REUSEADDR, 1).unwrap();
        one.bind(&SockAddr::v4(ADDR_B, 7)).unwrap();
        let a = udp(&world.a, 5);
        send_to(&a, b"1", ADDR_B, 7).unwrap();
        assert_eq!(receive(&one).expect("the bound address wins").0, b"1");
        one.connect(&SockAddr::v4(ADDR_A, 6)).unwrap();
        send_to(&a, b"2", ADDR_B, 7).unwrap();
        assert_eq!(receive(&all).expect("not its peer").0, b"2");
    });
}

#[test]
fn a_closed_port_is_refused_and_the_sender_hears_of_it() {
    World::run(WireConfig::default(), |world| {
        let a = udp(&world.a, 5);
        a.connect(&SockAddr::v4(ADDR_B, 99)).unwrap();
        a.send(b"x", MsgFlags::empty()).unwrap();
        let mut buffer = [0; 10];
        assert_eq!(
            a.recv(&mut buffer, MsgFlags::empty()),
            Err(Errno::ECONNREFUSED)
        );
        assert_eq!(world.b.inet.udpstat.udps_noport.fetch(), 1);
        // A black hole says nothing.
        world.b.inet.udp.blackhole.set(true);
        a.send(b"x", MsgFlags::empty()).unwrap();
        assert_eq!(
            a.recv(&mut buffer, MsgFlags::empty()),
            Err(Errno::EWOULDBLOCK)
        );
    });
}

#[test]
fn unreachables_are_limited_to_200_a_second() {
    World::run(WireConfig::default(), |world| {
        world.b.inet.icmp.icmplim_jitter.set(0);
        let a = udp(&world.a, 5);
        send_to(&a, b"x", ADDR_B, 99).unwrap();
        pass_s(2);
        let tap = Tap::on(world);
        for _ in 0..300 {
            send_to(&a, b"x", ADDR_B, 99).unwrap();
        }
        pass_ms(500);
        assert_eq!(tap.seen(Dir::BtoA, IP).len(), 200);
    });
}

#[test]
fn a_full_buffer_drops_and_counts() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = (udp(&world.a, 5), udp(&world.b, 7));
        b.setsockopt_int(SOL_SOCKET, SO_RCVBUF, 4000).unwrap();
        for _ in 0..10 {
            send_to(&a, &pattern(1000), ADDR_B, 7).unwrap();
        }
        pass_ms(100);
        let kept = (0..10).take_while(|_| {
            let mut buffer = [0; 1000];
            b.recv(&mut buffer, MsgFlags::DONTWAIT).is_ok()
        });
        let kept = kept.count() as u64;
        assert!((1..10).contains(&kept));
        assert_eq!(world.b.inet.udpstat.udps_fullsock.fetch(), 10 - kept);
    });
}

#[test]
fn bad_datagrams_are_counted_by_what_is_wrong_with_them() {
    World::run(WireConfig::default(), |world| {
        let b = udp(&world.b, 7);
        let good = udp_bytes(ADDR_A, ADDR_B, 5, 7, b"data");
        let stat = &world.b.inet.udpstat;
        let send = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            let packet = Packet::new(ADDR_A, ADDR_B, IPPROTO_UDP, &bytes).bytes();
            world
                .wire
                .inject(Dir::AtoB, &frame(&world.a, &world.b, IP, &packet));
            pass_ms(1);
        };
        send(&|b| b.truncate(7));
        assert_eq!(stat.udps_hdrops.fetch(), 1);
        send(&|b| b[5] = 200);
        send(&|b| b[5] = 7);
        assert_eq!(stat.udps_badlen.fetch(), 2);
        send(&|b| b[9] ^= 1);
        assert_eq!(stat.udps_badsum.fetch(), 1);
        send(&|b| b[2..4].fill(0));
        assert_eq!(stat.udps_badport.fetch(), 1);
        let mut buffer = [0; 10];
        assert_eq!(
            b.recv(&mut buffer, MsgFlags::DONTWAIT),
            Err(Errno::EWOULDBLOCK)
        );
        // No checksum at all is allowed.
        send(&|b| b[6..8].fill(0));
        assert_eq!(stat.udps_nosum.fetch(), 1);
        assert_eq!(receive(&b).expect("a datagram").0, b"data");
        // Less data than the packet has: the rest is cut.
        let short = udp_bytes(ADDR_A, ADDR_B, 5, 7, b"da");
        send(&|b| {
            *b = short.clone();
            b.extend_from_slice(b"tail");
        });
        assert_eq!(receive(&b).expect("a datagram").0, b"da");
    });
}

#[test]
fn a_datagram_without_checksum_is_sent_when_told_to() {
    World::run(WireConfig::default(), |world| {
        world.a.inet.udp.checksum.set(false);
        let (a, b) = (udp(&world.a, 5), udp(&world.b, 7));
        send_to(&a, b"bare", ADDR_B, 7).unwrap();
        assert_eq!(receive(&b).expect("a datagram").0, b"bare");
        assert_eq!(world.b.inet.udpstat.udps_nosum.fetch(), 1);
        assert_eq!(world.a.inet.ipstat.ips_swcsum_out.fetch(), 0);
    });
}

#[test]
fn a_broadcast_reaches_every_socket_on_the_port() {
    World::run(WireConfig::default(), |world| {
        let sockets: Vec<_> = (0..3)
            .map(|_| {
                let so = udp(&world.b, 0);
                so.setsockopt_int(SOL_SOCKET, SO_REUSEPORT, 1).unwrap();
                so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, 7)).unwrap();
                so
            })
            .collect();
        let a = udp(&world.a, 5);
        let broadcast = Ipv4Addr::new(10, 0, 0, 255);
        assert_eq!(send_to(&a, b"all", broadcast, 7), Err(Errno::EACCES));
        a.setsockopt_int(SOL_SOCKET, SO_BROADCAST, 1).unwrap();
        let tap = Tap::on(world);
        for to in [broadcast, Ipv4Addr::BROADCAST] {
            send_to(&a, b"all", to, 7).unwrap();
            for so in &sockets {
                let (data, from) = receive(so).expect("a broadcast");
                assert_eq!((&data[..], from), (&b"all"[..], SockAddr::v4(ADDR_A, 5)));
            }
        }
        assert_eq!(tap.seen(Dir::AtoB, IP).len(), 2);
        assert_eq!(&tap.seen(Dir::AtoB, IP)[0][16..20], [10, 0, 0, 255]);
        // A broadcast to a closed port is not answered.
        tap.clear();
        send_to(&a, b"x", broadcast, 8).unwrap();
        pass_ms(100);
        assert!(tap.seen(Dir::BtoA, IP).is_empty());
        assert_eq!(world.b.inet.udpstat.udps_noportbcast.fetch(), 1);
    });
}

#[test]
fn a_limited_broadcast_is_heard_before_there_is_an_address() {
    World::run(WireConfig::default(), |world| {
        netinet::in_control::in_difaddr(&world.b.inet, &world.b.ifp, ADDR_B).unwrap();
        let client = udp(&world.b, 68);
        let bytes = udp_bytes(ADDR_A, Ipv4Addr::BROADCAST, 67, 68, b"offer");
        let packet = Packet::new(ADDR_A, Ipv4Addr::BROADCAST, IPPROTO_UDP, &bytes).bytes();
        world
            .wire
            .inject(Dir::AtoB, &frame(&world.a, &world.b, IP, &packet));
        assert_eq!(receive(&client).expect("an offer").0, b"offer");
    });
}

#[test]
fn a_group_is_heard_by_members_only() {
    World::run(WireConfig::default(), |world| {
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let b = udp(&world.b, 7);
        let a = udp(&world.a, 5);
        let tap = Tap::on(world);
        send_to(&a, b"early", group, 7).unwrap();
        pass_ms(10);
        assert_eq!(world.b.inet.ipstat.ips_notmember.fetch(), 1);
        let mut mreq = group.octets().to_vec();
        mreq.extend_from_slice(&ADDR_B.octets());
        b.setsockopt(IPPROTO_IP, IP_ADD_MEMBERSHIP, &mreq).unwrap();
        send_to(&a, b"group", group, 7).unwrap();
        assert_eq!(receive(&b).expect("a multicast").0, b"group");
        // Time to live 1, unless asked for more.
        assert_eq!(tap.seen(Dir::AtoB, IP)[0][8], 1);
        a.setsockopt_int(IPPROTO_IP, IP_MULTICAST_TTL, 9).unwrap();
        send_to(&a, b"far", group, 7).unwrap();
        assert_eq!(receive(&b).expect("a multicast").0, b"far");
        assert_eq!(tap.seen(Dir::AtoB, IP)[2][8], 9);
        b.setsockopt(IPPROTO_IP, IP_DROP_MEMBERSHIP, &mreq).unwrap();
        assert_eq!(
            b.setsockopt(IPPROTO_IP, IP_DROP_MEMBERSHIP, &mreq),
            Err(Errno::EADDRNOTAVAIL)
        );
    });
}

#[test]
fn a_member_hears_its_own_groups_unless_it_does_not_want_to() {
    World::run(WireConfig::default(), |world| {
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let a = udp(&world.a, 7);
        let mut mreq = group.octets().to_vec();
        mreq.extend_from_slice(&ADDR_A.octets());
        a.setsockopt(IPPROTO_IP, IP_ADD_MEMBERSHIP, &mreq).unwrap();
        send_to(&a, b"echo", group, 7).unwrap();
        assert_eq!(receive(&a).expect("our own").0, b"echo");
        a.setsockopt_int(IPPROTO_IP, IP_MULTICAST_LOOP, 0).unwrap();
        send_to(&a, b"quiet", group, 7).unwrap();
        assert_eq!(receive(&a).unwrap_err(), Errno::EWOULDBLOCK);
    });
}

#[test]
fn what_comes_with_a_datagram_is_told_who_asks() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = (udp(&world.a, 5), udp(&world.b, 7));
        b.setsockopt_int(IPPROTO_IP, IP_RECVDSTADDR, 1).unwrap();
        b.setsockopt_int(IPPROTO_IP, IP_RECVTTL, 1).unwrap();
        a.setsockopt_int(IPPROTO_IP, IP_TTL, 33).unwrap();
        a.setsockopt_int(IPPROTO_IP, IP_TOS, 0x10).unwrap();
        assert_eq!(a.getsockopt_int(IPPROTO_IP, IP_TTL), Ok(33));
        assert_eq!(
            a.setsockopt_int(IPPROTO_IP, IP_TTL, 256),
            Err(Errno::EINVAL)
        );
        let tap = Tap::on(world);
        send_to(&a, b"x", ADDR_B, 7).unwrap();
        let mut buffer = [0; 10];
        let received = b
            .recvmsg(&mut buffer, MsgFlags::empty())
            .expect("a datagram");
        let control = received.control.expect("control messages");
        let bytes = control.data();
        assert_eq!(bytes[..4], 20u32.to_ne_bytes());
        assert_eq!(bytes[8..12], IP_RECVDSTADDR.to_ne_bytes());
        assert_eq!(bytes[16..20], ADDR_B.octets());
        assert_eq!(bytes[24..28], 17u32.to_ne_bytes());
        assert_eq!(
            (bytes[32..36].to_vec(), bytes[40]),
            (IP_RECVTTL.to_ne_bytes().to_vec(), 33)
        );
        let sent = &tap.seen(Dir::AtoB, IP)[0];
        assert_eq!((sent[1], sent[8]), (0x10, 33));
    });
}

#[test]
fn ports_are_shared_only_by_agreement() {
    World::run(WireConfig::default(), |world| {
        let any = |port| SockAddr::v4(Ipv4Addr::UNSPECIFIED, port);
        let new = || SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Dgram, 0).unwrap();
        let first = new();
        first.bind(&any(7)).unwrap();
        assert_eq!(first.bind(&any(8)), Err(Errno::EINVAL));
        let second = new();
        assert_eq!(second.bind(&any(7)), Err(Errno::EADDRINUSE));
        assert_eq!(
            second.bind(&SockAddr::v4(ADDR_A, 7)),
            Err(Errno::EADDRINUSE)
        );
        assert_eq!(
            second.bind(&SockAddr::v4(ADDR_B, 9)),
            Err(Errno::EADDRNOTAVAIL)
        );
        // SO_REUSEADDR: another address on the same port.
        second.setsockopt_int(SOL_SOCKET, SO_REUSEADDR, 1).unwrap();
        assert_eq!(second.bind(&any(7)), Err(Errno::EADDRINUSE));
        second.bind(&SockAddr::v4(ADDR_A, 7)).unwrap();
        // SO_REUSEPORT: the same address, if all agree.
        let third = new();
        third.setsockopt_int(SOL_SOCKET, SO_REUSEPORT, 1).unwrap();
        assert_eq!(third.bind(&any(7)), Err(Errno::EADDRINUSE));
        third.bind(&any(9)).unwrap();
        let fourth = new();
        fourth.setsockopt_int(SOL_SOCKET, SO_REUSEPORT, 1).unwrap();
        fourth.bind(&any(9)).unwrap();
        // A port is free again when its socket is closed.
        drop(first);
        drop(second);
        new().bind(&any(7)).unwrap();
    });
}

#[test]
fn an_anonymous_port_comes_from_its_range_until_that_is_used_up() {
    World::run(WireConfig::default(), |world| {
        let ip = &world.a.inet.ip;
        ip.first.set(20_000);
        ip.last.set(20_009);
        let any = SockAddr::v4(Ipv4Addr::UNSPECIFIED, 0);
        let new = || SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Dgram, 0).unwrap();
        let mut sockets = Vec::new();
        let mut ports = std::collections::BTreeSet::new();
        let refused = loop {
            let so = new();
            if let Err(error) = so.bind(&any) {
                break error;
            }
            ports.insert(so.getsockname().unwrap().port());
            sockets.push(so);
        };
        assert_eq!(refused, Errno::EADDRNOTAVAIL);
        assert_eq!(ports.len(), sockets.len());
        assert!(ports.iter().all(|port| (20_000..=20_009).contains(port)));
        assert!(ports.len() >= 9);
        // Of connected sockets one port serves many peers.
        drop(sockets);
        let connected: Vec<_> = (0..30u16)
            .map(|i| {
                let so = new();
                so.connect(&SockAddr::v4(ADDR_B, 1000 + i)).unwrap();
                so
            })
            .collect();
        assert!(
            connected
                .iter()
                .all(|so| (20_000..=20_009).contains(&so.getsockname().unwrap().port()))
        );
        let high = new();
        high.setsockopt_int(IPPROTO_IP, IP_PORTRANGE, 1).unwrap();
        high.bind(&any).unwrap();
        assert!(high.getsockname().unwrap().port() >= 49152);
    });
}

#[test]
fn many_threads_send_and_receive_on_one_socket() {
    use sys::kern::kern_thread::{Pri, kthread_add};
    World::run(WireConfig::default(), |world| {
        let a = std::sync::Arc::new(udp(&world.a, 5));
        let b = std::sync::Arc::new(udp(&world.b, 7));
        b.setsockopt_int(SOL_SOCKET, SO_RCVBUF, 1_000_000).unwrap();
        send_to(&a, b"resolve", ADDR_B, 7).unwrap();
        assert_eq!(receive(&b).unwrap().0, b"resolve");
        let threads: Vec<_> = (0..4u8)
            .map(|id| {
                let a = a.clone();
                kthread_add("sender", Pri::PUSER, None, move || {
                    for i in 0..100u8 {
                        send_to(&a, &[id, i], ADDR_B, 7).unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join();
        }
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..400 {
            seen.insert(receive(&b).expect("a datagram").0);
        }
        assert_eq!(seen.len(), 400);
        drop(a);
    });
}

#[test]
fn an_unconnected_socket_needs_to_be_told_where_to_send() {
    World::run(WireConfig::default(), |world| {
        let a = udp(&world.a, 5);
        let error = a.send(b"x", MsgFlags::empty()).unwrap_err();
        assert!(matches!(error, Errno::ENOTCONN | Errno::EDESTADDRREQ));
        assert_eq!(
            send_to(&a, b"x", Ipv4Addr::new(192, 0, 2, 1), 7),
            Err(Errno::ENETUNREACH)
        );
        assert_eq!(send_to(&a, b"x", ADDR_B, 0), Err(Errno::EADDRNOTAVAIL));
    });
}

#[test]
fn a_socket_that_must_not_use_routes_reaches_only_its_networks() {
    World::run(WireConfig::default(), |world| {
        let far = Ipv4Addr::new(192, 0, 2, 1);
        world
            .a
            .inet
            .rib
            .add(sys::net::route::RouteSpec {
                dst: Ipv4Addr::UNSPECIFIED,
                prefix_len: 0,
                gw: Some(ADDR_B),
                ifp: world.a.ifp.clone(),
                ifa: None,
                flags: sys::net::route::RtFlags::GATEWAY,
                mtu: 0,
            })
            .unwrap();
        let (a, b) = (udp(&world.a, 5), udp(&world.b, 7));
        let tap = Tap::on(world);
        assert_eq!(send_to(&a, b"far", far, 7), Ok(3));
        a.setsockopt_int(SOL_SOCKET, SO_DONTROUTE, 1).unwrap();
        assert_eq!(send_to(&a, b"far", far, 7), Err(Errno::ENETUNREACH));
        assert_eq!(send_to(&a, b"near", ADDR_B, 7), Ok(4));
        assert_eq!(receive(&b).expect("a datagram").0, b"near");
        assert_eq!(tap.seen(Dir::AtoB, IP).len(), 2);
    });
}

#[test]
fn a_route_that_changes_takes_effect_for_the_next_datagram() {
    World::run(WireConfig::default(), |world| {
        let a = udp(&world.a, 5);
        a.connect(&SockAddr::v4(ADDR_B, 7)).unwrap();
        let b = udp(&world.b, 7);
        let tap = Tap::on(world);
        a.send(&pattern(1400), MsgFlags::empty()).unwrap();
        receive(&b).expect("a datagram");
        assert_eq!(tap.seen(Dir::AtoB, IP).len(), 1);
        // A host route with a smaller MTU: the same datagram now goes in two pieces.
        world
            .a
            .inet
            .rib
            .add(sys::net::route::RouteSpec {
                dst: ADDR_B,
                prefix_len: 32,
                gw: None,
                ifp: world.a.ifp.clone(),
                ifa: None,
                flags: sys::net::route::RtFlags::HOST,
                mtu: 1000,
            })
            .unwrap();
        a.send(&pattern(1400), MsgFlags::empty()).unwrap();
        assert_eq!(receive(&b).expect("a datagram").0, pattern(1400));
        assert_eq!(tap.seen(Dir::AtoB, IP).len(), 3);
    });
}

#[test]
fn sockets_with_reuseport_lb_share_peers_and_keep_them() {
    World::run(WireConfig::default(), |world| {
        let group: Vec<_> = (0..3)
            .map(|_| {
                let so = udp(&world.b, 0);
                so.setsockopt_int(SOL_SOCKET, SO_REUSEPORT_LB, 1).unwrap();
                so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, 7)).unwrap();
                so.set_nonblocking(true);
                so
            })
            .collect();
        let peers: Vec<_> = (0..30).map(|at| udp(&world.a, 3000 + at)).collect();
        // ARP does not hold as many as there are.
        send_to(&peers[0], b"arp", ADDR_B, 9).unwrap();
        pass_ms(20);
        for round in 0..2 {
            for peer in &peers {
                send_to(peer, &[round], ADDR_B, 7).unwrap();
            }
            pass_ms(20);
        }
        let mut seen = 0;
        for so in &group {
            let mut froms: Vec<_> = core::iter::from_fn(|| receive(so).ok())
                .map(|(_, from)| from.port())
                .collect();
            seen += froms.len();
            froms.sort_unstable();
            assert!(froms.len() >= 6, "{froms:?}");
            // Both datagrams of a peer, or none.
            assert!(froms.chunks(2).all(|pair| pair[0] == pair[1]), "{froms:?}");
        }
        assert_eq!(seen, 60);
    });
}

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);

/// Joins or leaves a group (`struct ip_mreq`), on the interface with address `addr` or any.
fn member(so: &SocketHandle, name: i32, group: Ipv4Addr, addr: Ipv4Addr) -> Result<(), Errno> {
    let mreq = [group.octets(), addr.octets()].concat();
    so.setsockopt(IPPROTO_IP, name, &mreq)
}

/// A socket of `b` at port 7, which others share.
fn shared(world: &World) -> SocketHandle {
    let so = udp(&world.b, 0);
    so.setsockopt_int(SOL_SOCKET, SO_REUSEPORT, 1).unwrap();
    so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, 7)).unwrap();
    so.set_rcvtimeo(Some(sys::time::Sbintime::from_ms(100)))
        .unwrap();
    so
}

#[test]
fn a_socket_hears_the_groups_that_it_has_joined_and_no_others() {
    World::run(WireConfig::default(), |world| {
        let a = udp(&world.a, 5);
        let (one, two, three) = (shared(world), shared(world), shared(world));
        let other = Ipv4Addr::new(239, 1, 2, 4);
        member(&one, IP_ADD_MEMBERSHIP, GROUP, ADDR_B).unwrap();
        member(&two, IP_ADD_MEMBERSHIP, GROUP, ADDR_B).unwrap();
        member(&three, IP_ADD_MEMBERSHIP, other, ADDR_B).unwrap();
        let heard = |so: &SocketHandle| receive(so).map(|(data, _)| data);
        send_to(&a, b"first", GROUP, 7).unwrap();
        assert_eq!(heard(&one), Ok(b"first".to_vec()));
        assert_eq!(heard(&two), Ok(b"first".to_vec()));
        assert_eq!(heard(&three), Err(Errno::EAGAIN));
        send_to(&a, b"other", other, 7).unwrap();
        assert_eq!(heard(&three), Ok(b"other".to_vec()));
        assert_eq!(heard(&one), Err(Errno::EAGAIN));

        // One leaves: the other goes on hearing it.
        member(&one, IP_DROP_MEMBERSHIP, GROUP, ADDR_B).unwrap();
        send_to(&a, b"second", GROUP, 7).unwrap();
        assert_eq!(heard(&two), Ok(b"second".to_vec()));
        assert_eq!(heard(&one), Err(Errno::EAGAIN));
    });
}

#[test]
fn memberships_are_a_sockets_own_and_go_with_it() {
    World::run(WireConfig::default(), |world| {
        let (one, two) = (shared(world), shared(world));
        let any = Ipv4Addr::UNSPECIFIED;
        let refs = || {
            let epoch = sys::kern::subr_epoch::NetEpoch::enter();
            let groups = world.b.inet.ifaddrs.groups(&epoch);
            let group = groups.iter().find(|im| im.group == GROUP);
            group.map_or(0, |im| im.refs)
        };
        member(&one, IP_ADD_MEMBERSHIP, GROUP, ADDR_B).unwrap();
        let again = member(&one, IP_ADD_MEMBERSHIP, GROUP, any);
        assert_eq!(again, Err(Errno::EADDRINUSE));
        // Nobody leaves for another.
        let not_joined = member(&two, IP_DROP_MEMBERSHIP, GROUP, ADDR_B);
        assert_eq!(not_joined, Err(Errno::EADDRNOTAVAIL));
        assert_eq!(refs(), 1);
        member(&two, IP_ADD_MEMBERSHIP, GROUP, ADDR_B).unwrap();
        assert_eq!(refs(), 2);
        drop(two);
        assert_eq!(refs(), 1);
        // Any interface on which it was joined.
        member(&one, IP_DROP_MEMBERSHIP, GROUP, any).unwrap();
        assert_eq!(refs(), 0);
        let frames = world.b.inet.ipstat.ips_notmember.fetch();
        send_to(&udp(&world.a, 5), b"x", GROUP, 7).unwrap();
        pass_ms(10);
        assert_eq!(world.b.inet.ipstat.ips_notmember.fetch(), frames + 1);
    });
}

#[test]
fn an_interface_that_goes_takes_its_groups_along() {
    World::run(WireConfig::default(), |world| {
        let so = shared(world);
        member(&so, IP_ADD_MEMBERSHIP, GROUP, ADDR_B).unwrap();
        world.b.vnet.if_detach(&world.b.ifp);
        let left = member(&so, IP_DROP_MEMBERSHIP, GROUP, Ipv4Addr::UNSPECIFIED);
        assert_eq!(left, Ok(()));
    });
}
