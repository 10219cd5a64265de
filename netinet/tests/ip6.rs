//! IPv6 between two stacks on a wire: neighbours are found, packets cut and joined, errors reported, families mixed.

mod common;

use common::*;
use core::net::Ipv6Addr;
use netinet::netinet6::in6::{in6_linklocal_of, in6_update_ifa};
use netsim::wire::Dir;
use netsim::world::{Host, World};
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::net::if_llatbl::LleState;
use sys::net::ifnet::In6Iff;
use sys::socket::*;

const A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Gives both hosts an address that nobody checks.
fn configure(world: &World) {
    for (host, addr) in [(&world.a, A6), (&world.b, B6)] {
        in6_update_ifa(&host.inet, &host.ifp, addr, 64, In6Iff::NODAD).expect("an address");
    }
}

fn socket6(host: &Host, ty: SockType) -> SocketHandle {
    let so = SocketHandle::socket(&host.vnet, AF_INET6, ty, 0).expect("an IPv6 socket");
    so.set_rcvtimeo(Some(PATIENCE)).expect("a timeout");
    so
}

fn bound(host: &Host, port: u16) -> SocketHandle {
    let so = socket6(host, SockType::Dgram);
    so.bind(&SockAddr::v6(Ipv6Addr::UNSPECIFIED, port))
        .expect("a free port");
    so
}

fn state_of(host: &Host, neighbour: Ipv6Addr) -> Option<LleState> {
    let epoch = NetEpoch::enter();
    let lle = host.ifp.lltable6()?.lookup(neighbour, &epoch)?;
    Some(lle.with(|ln| ln.state))
}

#[test]
fn datagrams_find_the_neighbour_and_come_with_their_sender() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let (tx, rx) = (bound(&world.a, 1000), bound(&world.b, 7));
        tx.sendto(b"hello", MsgFlags::empty(), &SockAddr::v6(B6, 7))
            .expect("a datagram");
        let (data, from) = receive(&rx).expect("the datagram");
        assert_eq!((&data[..], from), (&b"hello"[..], SockAddr::v6(A6, 1000)));
        // Asked for, B has answered; B knows A from the question.
        assert_eq!(state_of(&world.a, B6), Some(LleState::Reachable));
        assert_eq!(state_of(&world.b, A6), Some(LleState::Stale));
    });
}

#[test]
fn a_neighbour_that_is_used_though_stale_is_asked_again() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let (tx, rx) = (bound(&world.a, 1000), bound(&world.b, 7));
        let send = || tx.sendto(b"x", MsgFlags::empty(), &SockAddr::v6(B6, 7));
        send().expect("a datagram");
        receive(&rx).expect("the datagram");
        pass_s(50);
        assert_eq!(state_of(&world.a, B6), Some(LleState::Stale));
        let tap = Tap::on(world);
        send().expect("a datagram");
        pass_s(12);
        assert_eq!(state_of(&world.a, B6), Some(LleState::Reachable));
        let solicited = |packet: &Vec<u8>| packet[6] == 58 && packet[40] == 135;
        let probes = tap.seen(Dir::AtoB, ETHERTYPE_IPV6);
        let probe = probes.iter().find(|p| solicited(p)).expect("a probe");
        assert_eq!(probe[24..40], B6.octets(), "it goes to the neighbour alone");
    });
}

#[test]
fn nobody_there_is_said_to_the_sender_after_three_questions() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let tap = Tap::on(world);
        let so = socket6(&world.a, SockType::Dgram);
        let nobody = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 99);
        so.connect(&SockAddr::v6(nobody, 7)).expect("a route");
        so.send(b"x", MsgFlags::empty()).expect("a datagram");
        assert_eq!(
            so.recv(&mut [0; 8], MsgFlags::empty()),
            Err(Errno::EHOSTUNREACH)
        );
        let sent = tap.seen(Dir::AtoB, ETHERTYPE_IPV6);
        let solicitations = sent.iter().filter(|p| p[6] == 58 && p[40] == 135);
        assert_eq!(solicitations.count(), 3);
        assert_eq!(state_of(&world.a, nobody), None);
    });
}

#[test]
fn a_closed_port_refuses() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let so = socket6(&world.a, SockType::Dgram);
        so.connect(&SockAddr::v6(B6, 7)).expect("a route");
        so.send(b"x", MsgFlags::empty()).expect("a datagram");
        assert_eq!(
            so.recv(&mut [0; 8], MsgFlags::empty()),
            Err(Errno::ECONNREFUSED)
        );
        assert_eq!(world.b.inet.icmp6stat.icp6s_outhist[1].fetch(), 1);
    });
}

#[test]
fn large_datagrams_travel_in_fragments() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let (tx, rx) = (bound(&world.a, 1000), bound(&world.b, 7));
        let data = pattern(5000);
        tx.sendto(&data, MsgFlags::empty(), &SockAddr::v6(B6, 7))
            .expect("a datagram");
        assert_eq!(receive(&rx).expect("the datagram").0, data);
        let stat = &world.b.inet.ip6stat;
        assert_eq!(stat.ip6s_fragments.fetch(), 4);
        assert_eq!(stat.ip6s_reassembled.fetch(), 1);
        assert_eq!(world.b.inet.frag6.fragments(), 0);
    });
}

#[test]
fn fragments_that_miss_one_are_forgotten_after_a_minute() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let (tx, _rx) = (bound(&world.a, 1000), bound(&world.b, 7));
        let mut count = 0;
        let _tap = Tap::dropping(world, move |dir, frame| {
            let fragment = dir == Dir::AtoB && frame[12..14] == [0x86, 0xdd] && frame[20] == 44;
            count += u32::from(fragment);
            fragment && count == 2
        });
        tx.sendto(&pattern(5000), MsgFlags::empty(), &SockAddr::v6(B6, 7))
            .expect("a datagram");
        pass_s(1);
        assert_eq!(world.b.inet.frag6.fragments(), 3);
        pass_s(61);
        assert_eq!(world.b.inet.frag6.fragments(), 0);
        assert_eq!(world.b.inet.ip6stat.ip6s_fragtimeout.fetch(), 3);
        // The first fragment came, so the sender hears of it.
        assert_eq!(world.a.inet.icmp6stat.icp6s_inhist[3].fetch(), 1);
    });
}

#[test]
fn an_address_that_somebody_has_is_not_used() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        in6_update_ifa(&world.a.inet, &world.a.ifp, B6, 64, In6Iff::empty()).expect("an entry");
        let flags = || {
            let epoch = NetEpoch::enter();
            let ia = world.a.inet.in6_ifaddrs.lookup(&epoch, B6);
            ia.expect("the entry").flags()
        };
        assert!(flags().contains(In6Iff::TENTATIVE));
        pass_s(3);
        assert_eq!(flags(), In6Iff::DUPLICATED);
        let so = socket6(&world.a, SockType::Dgram);
        assert_eq!(so.bind(&SockAddr::v6(B6, 0)), Err(Errno::EADDRNOTAVAIL));
    });
}

#[test]
fn an_address_that_nobody_has_is_used_after_the_check() {
    World::run(WireConfig::default(), |world| {
        in6_update_ifa(&world.a.inet, &world.a.ifp, A6, 64, In6Iff::empty()).expect("an entry");
        let so = socket6(&world.a, SockType::Dgram);
        assert_eq!(so.bind(&SockAddr::v6(A6, 0)), Err(Errno::EADDRNOTAVAIL));
        pass_s(3);
        so.bind(&SockAddr::v6(A6, 0)).expect("it is ours now");
    });
}

#[test]
fn link_local_addresses_need_their_link_and_show_it() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let (tx, rx) = (bound(&world.a, 1000), bound(&world.b, 7));
        let to = SockAddr::In6(SockAddrIn6 {
            addr: in6_linklocal_of(world.b.ifp.lladdr()),
            port: 7,
            flowinfo: 0,
            scope_id: u32::from(world.a.ifp.if_index.0),
        });
        tx.sendto(b"near", MsgFlags::empty(), &to)
            .expect("a datagram");
        let (_, from) = receive(&rx).expect("the datagram");
        let expected = SockAddr::In6(SockAddrIn6 {
            addr: in6_linklocal_of(world.a.ifp.lladdr()),
            port: 1000,
            flowinfo: 0,
            scope_id: u32::from(world.b.ifp.if_index.0),
        });
        assert_eq!(from, expected);
    });
}

#[test]
fn a_socket_of_both_families_accepts_ipv4_as_mapped_addresses() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let listener = socket6(&world.b, SockType::Stream);
        let off = 0i32.to_ne_bytes();
        listener
            .setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, &off)
            .expect("an unbound socket");
        listener
            .bind(&SockAddr::v6(Ipv6Addr::UNSPECIFIED, 80))
            .expect("a free port");
        listener.listen(5).expect("a listener");
        let four =
            SocketHandle::socket(&world.a.vnet, sys::socket::AF_INET, SockType::Stream, 0).unwrap();
        four.connect(&SockAddr::v4(ADDR_B, 80))
            .expect("a connection");
        let (accepted, peer) = listener.accept().expect("a connection");
        let SockAddr::In6(peer) = peer else {
            panic!("an address of another family: {peer}");
        };
        assert_eq!(peer.addr, ADDR_A.to_ipv6_mapped());
        four.send(b"four", MsgFlags::empty()).unwrap();
        let mut buffer = [0; 4];
        assert_eq!(accepted.recv(&mut buffer, MsgFlags::WAITALL), Ok(4));
        let six = socket6(&world.a, SockType::Stream);
        six.connect(&SockAddr::v6(B6, 80)).expect("a connection");
        let (_, peer) = listener.accept().expect("a connection");
        assert_eq!(peer, six.getsockname().unwrap());
        // A socket of IPv6 alone does not reach mapped addresses.
        let alone = socket6(&world.a, SockType::Stream);
        let mapped = SockAddr::v6(ADDR_B.to_ipv6_mapped(), 80);
        assert!(alone.connect(&mapped).is_err());
    });
}

#[test]
fn we_talk_to_ourselves_by_the_loopback() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let rx = bound(&world.a, 7);
        let tx = bound(&world.a, 1000);
        tx.sendto(b"me", MsgFlags::empty(), &SockAddr::v6(A6, 7))
            .expect("a datagram");
        assert_eq!(receive(&rx).expect("the datagram").0, b"me");
        let own = SockAddr::In6(SockAddrIn6 {
            addr: in6_linklocal_of(world.a.ifp.lladdr()),
            port: 7,
            flowinfo: 0,
            scope_id: u32::from(world.a.ifp.if_index.0),
        });
        tx.sendto(b"me too", MsgFlags::empty(), &own)
            .expect("a datagram");
        assert_eq!(receive(&rx).expect("the datagram").0, b"me too");
    });
}

/// An echo request, its checksum left to the kernel.
fn echo_request() -> Vec<u8> {
    let mut message = vec![128, 0, 0, 0, 0x12, 0x34, 0, 1];
    message.extend_from_slice(&pattern(32));
    message
}

fn raw6(host: &Host, proto: i32) -> SocketHandle {
    let so =
        SocketHandle::socket(&host.vnet, AF_INET6, SockType::Raw, proto).expect("a raw socket");
    so.set_rcvtimeo(Some(PATIENCE)).expect("a timeout");
    so
}

#[test]
fn a_raw_socket_pings_and_hears_only_what_its_filter_lets_pass() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let so = raw6(&world.a, IPPROTO_ICMPV6);
        let mut filter = [0u32; 8];
        filter[129 >> 5] |= 1 << (129 & 31);
        let bytes: Vec<u8> = filter.iter().flat_map(|word| word.to_ne_bytes()).collect();
        so.setsockopt(IPPROTO_ICMPV6, ICMP6_FILTER, &bytes)
            .expect("a filter");
        so.sendto(&echo_request(), MsgFlags::empty(), &SockAddr::v6(B6, 0))
            .expect("a message");
        // The neighbour's advertisement came first, and was not let pass.
        let (reply, from) = receive(&so).expect("a reply");
        assert_eq!(from, SockAddr::v6(B6, 0));
        assert_eq!((reply[0], &reply[4..]), (129, &echo_request()[4..]));
        assert_eq!(world.b.inet.icmp6stat.icp6s_checksum.fetch(), 0);
        assert_eq!(world.a.inet.icmp6stat.icp6s_outhist[128].fetch(), 1);
        let bad = so.setsockopt(IPPROTO_IPV6, IPV6_CHECKSUM, &4i32.to_ne_bytes());
        assert_eq!(
            bad,
            Err(Errno::EINVAL),
            "the checksum of ICMPv6 is where it is"
        );
    });
}

#[test]
fn a_raw_socket_of_another_protocol_gets_the_checksum_it_asks_for() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let (tx, rx) = (raw6(&world.a, 200), raw6(&world.b, 200));
        let at = |so: &SocketHandle, at: i32| {
            so.setsockopt(IPPROTO_IPV6, IPV6_CHECKSUM, &at.to_ne_bytes())
        };
        assert_eq!(at(&tx, 3), Err(Errno::EINVAL));
        at(&tx, 4).expect("an offset");
        at(&rx, 4).expect("an offset");
        let to = SockAddr::v6(B6, 0);
        tx.sendto(&[1, 2, 3, 4, 0, 0, 7], MsgFlags::empty(), &to)
            .expect("a message");
        let (data, _) = receive(&rx).expect("the message");
        assert_eq!((&data[..4], &data[6..]), (&[1, 2, 3, 4][..], &[7][..]));
        at(&tx, -1).expect("none");
        tx.sendto(&[1, 2, 3, 4, 0, 0, 7], MsgFlags::empty(), &to)
            .expect("a message");
        pass_s(1);
        assert_eq!(world.b.inet.rip6stat.rip6s_badsum.fetch(), 1);
        assert_eq!(
            tx.sendto(&[1, 2], MsgFlags::empty(), &SockAddr::v4(ADDR_B, 0)),
            Err(Errno::EAFNOSUPPORT)
        );
        // Of a protocol that nobody hears the sender is told.
        let other = raw6(&world.a, 201);
        other
            .sendto(&[0; 8], MsgFlags::empty(), &to)
            .expect("a message");
        pass_s(1);
        assert_eq!(world.b.inet.ip6stat.ip6s_noproto.fetch(), 1);
        assert_eq!(world.a.inet.icmp6stat.icp6s_inhist[4].fetch(), 1);
    });
}

#[test]
fn datagrams_are_cut_to_what_the_path_takes() {
    World::run(WireConfig::default(), |world| {
        configure(world);
        let (tx, rx) = (bound(&world.a, 1000), bound(&world.b, 7));
        let data = pattern(3000);
        let to = SockAddr::v6(B6, 7);
        let tap = Tap::on(world);
        tx.sendto(&data, MsgFlags::empty(), &to)
            .expect("a datagram");
        receive(&rx).expect("the datagram");
        // A router on the way says that its next link takes 1300 bytes; it quotes the first fragment.
        let sent = tap.seen(Dir::AtoB, ETHERTYPE_IPV6);
        let first = sent.iter().find(|p| p[6] == 44).expect("a fragment");
        assert_eq!(first.len(), 1496);
        let too_big = |mtu: u32| {
            let mut message = vec![2, 0, 0, 0];
            message.extend_from_slice(&mtu.to_be_bytes());
            message.extend_from_slice(&first[..200]);
            let mut pseudo = [B6.octets(), A6.octets()].concat();
            pseudo.extend_from_slice(&(message.len() as u32).to_be_bytes());
            pseudo.extend_from_slice(&[0, 0, 0, 58]);
            pseudo.extend_from_slice(&message);
            let sum = sys::machine::in_cksum::in_cksum(&pseudo).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend_from_slice(&(message.len() as u16).to_be_bytes());
            packet.extend_from_slice(&[58, 64]);
            packet.extend_from_slice(&B6.octets());
            packet.extend_from_slice(&A6.octets());
            packet.extend_from_slice(&message);
            world.wire.inject(
                Dir::BtoA,
                &frame(&world.b, &world.a, ETHERTYPE_IPV6, &packet),
            );
            pass_ms(10);
            tap.clear();
            tx.sendto(&data, MsgFlags::empty(), &to)
                .expect("a datagram");
            assert_eq!(receive(&rx).expect("the datagram").0, data);
            let sent = tap.seen(Dir::AtoB, ETHERTYPE_IPV6);
            let fragments = sent.iter().filter(|p| p[6] == 44);
            fragments.map(Vec::len).max().expect("fragments")
        };
        assert_eq!(too_big(1300), 1296);
        assert_eq!(world.a.inet.icmp6stat.icp6s_pmtuchg.fetch(), 1);
        // No link of IPv6 takes less than 1280 bytes, whatever is said.
        assert_eq!(too_big(600), 1280);
    });
}
