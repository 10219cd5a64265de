//! Extension headers and fragments of IPv6, built by hand: what is walked over, what is refused, and who is told.

mod common;

use common::*;
use core::net::Ipv6Addr;
use netinet::netinet6::in6::in6_update_ifa;
use netsim::wire::Dir;
use netsim::world::World;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::in_cksum::in_cksum;
use sys::net::ifnet::In6Iff;
use sys::socket::{AF_INET6, MsgFlags, SockAddr, SockType};

const A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const ETHERTYPE_IPV6: u16 = 0x86dd;
const HOPOPTS: u8 = 0;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DSTOPTS: u8 = 60;
const PORT: u16 = 7;

/// A world whose hosts know each other, a socket at B, and what crosses the wire from now on.
fn with_socket(test: impl FnOnce(&World, &SocketHandle, &Tap)) {
    World::run(WireConfig::default(), |world| {
        for (host, addr) in [(&world.a, A6), (&world.b, B6)] {
            in6_update_ifa(&host.inet, &host.ifp, addr, 64, In6Iff::NODAD).expect("an address");
        }
        let so = SocketHandle::socket(&world.b.vnet, AF_INET6, SockType::Dgram, 0).unwrap();
        so.bind(&SockAddr::v6(Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
        pass_s(3);
        let tap = Tap::on(world);
        test(world, &so, &tap);
    });
}

fn udp6(data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len()) as u16;
    let mut bytes = Vec::new();
    for word in [9, PORT, len, 0] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    let mut pseudo = [A6.octets(), B6.octets()].concat();
    pseudo.extend_from_slice(&u32::from(len).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, UDP]);
    pseudo.extend_from_slice(&bytes);
    let sum = in_cksum(&pseudo).to_be_bytes();
    bytes[6..8].copy_from_slice(&sum);
    bytes
}

/// A packet from A to B: headers, each with its number, and what follows them.
fn packet(headers: &[(u8, Vec<u8>)], last: u8, payload: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    for (n, (_, header)) in headers.iter().enumerate() {
        let next = headers.get(n + 1).map_or(last, |(kind, _)| *kind);
        let at = rest.len();
        rest.extend_from_slice(header);
        rest[at] = next;
    }
    rest.extend_from_slice(payload);
    let first = headers.first().map_or(last, |(kind, _)| *kind);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(rest.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[first, 64]);
    packet.extend_from_slice(&A6.octets());
    packet.extend_from_slice(&B6.octets());
    packet.extend_from_slice(&rest);
    packet
}

/// Options that fill a header, with its length.
fn options(bytes: &[u8]) -> Vec<u8> {
    let mut header = vec![0, 0];
    header.extend_from_slice(bytes);
    assert!(header.len().is_multiple_of(8));
    header[1] = (header.len() / 8 - 1) as u8;
    header
}

fn fragment(off: u16, more: bool, ident: u32) -> Vec<u8> {
    let mut header = vec![0, 0];
    header.extend_from_slice(&(off | u16::from(more)).to_be_bytes());
    header.extend_from_slice(&ident.to_be_bytes());
    header
}

fn inject(world: &World, packet: &[u8]) {
    let frame = frame(&world.a, &world.b, ETHERTYPE_IPV6, packet);
    world.wire.inject(Dir::AtoB, &frame);
    pass_ms(20);
}

/// The datagram that has come, if one has.
fn arrived(so: &SocketHandle) -> Option<Vec<u8>> {
    let mut buffer = [0; 4096];
    let len = so.recv(&mut buffer, MsgFlags::DONTWAIT).ok()?;
    Some(buffer[..len].to_vec())
}

/// Type, code and pointer of the errors that B has sent.
fn errors(tap: &Tap) -> Vec<(u8, u8, u32)> {
    let sent = tap.seen(Dir::BtoA, ETHERTYPE_IPV6);
    let errors = sent.iter().filter(|p| p[6] == 58 && p[40] < 128);
    errors
        .map(|p| {
            (
                p[40],
                p[41],
                u32::from_be_bytes(p[44..48].try_into().unwrap()),
            )
        })
        .collect()
}

#[test]
fn headers_that_say_nothing_to_us_are_walked_over() {
    with_socket(|world, so, tap| {
        // A padding, an unknown option that may be skipped, a routing header that has been used up.
        let hop_by_hop = options(&[0x3e, 2, 0, 0, 1, 0]);
        let routing = vec![
            0, 2, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2,
        ];
        let destination = options(&[1, 4, 0, 0, 0, 0]);
        let headers = [
            (HOPOPTS, hop_by_hop),
            (ROUTING, routing),
            (DSTOPTS, destination),
        ];
        inject(world, &packet(&headers, UDP, &udp6(b"through")));
        assert_eq!(arrived(so).as_deref(), Some(&b"through"[..]));
        assert!(errors(tap).is_empty());
    });
}

#[test]
fn options_that_we_do_not_know_say_themselves_who_is_told() {
    with_socket(|world, so, tap| {
        let send = |option: u8| {
            let headers = [(DSTOPTS, options(&[1, 0, option, 2, 0, 0]))];
            inject(world, &packet(&headers, UDP, &udp6(b"x")));
            assert_eq!(arrived(so), None, "{option:#x}");
        };
        send(0x41);
        assert!(errors(tap).is_empty(), "dropped in silence");
        send(0x81);
        send(0xc1);
        // Parameter problem, unrecognized option, at its place behind header, length and padding.
        assert_eq!(errors(tap), [(4, 2, 44), (4, 2, 44)]);
        assert_eq!(world.b.inet.ip6stat.ip6s_badoptions.fetch(), 3);
    });
}

#[test]
fn a_routing_header_that_wants_us_to_pass_the_packet_on_is_refused() {
    with_socket(|world, so, tap| {
        let mut routing = vec![0, 2, 0, 1, 0, 0, 0, 0];
        routing.extend_from_slice(&A6.octets());
        inject(world, &packet(&[(ROUTING, routing)], UDP, &udp6(b"x")));
        assert_eq!(arrived(so), None);
        assert_eq!(errors(tap), [(4, 0, 42)], "the routing type is wrong");
    });
}

#[test]
fn hop_by_hop_options_come_first_or_not_at_all() {
    with_socket(|world, so, tap| {
        let padding = || options(&[1, 4, 0, 0, 0, 0]);
        let headers = [(DSTOPTS, padding()), (HOPOPTS, padding())];
        inject(world, &packet(&headers, UDP, &udp6(b"x")));
        assert_eq!(arrived(so), None);
        assert_eq!(errors(tap), [(4, 1, 40)]);
    });
}

#[test]
fn a_chain_of_headers_has_an_end() {
    with_socket(|world, so, tap| {
        let headers: Vec<_> = (0..16)
            .map(|_| (DSTOPTS, options(&[1, 4, 0, 0, 0, 0])))
            .collect();
        inject(world, &packet(&headers[..15], UDP, &udp6(b"x")));
        assert!(arrived(so).is_some());
        inject(world, &packet(&headers, UDP, &udp6(b"x")));
        assert_eq!(arrived(so), None);
        assert_eq!(world.b.inet.ip6stat.ip6s_toomanyhdr.fetch(), 1);
        assert!(errors(tap).is_empty());
    });
}

#[test]
fn a_header_that_is_longer_than_the_packet_is_dropped() {
    with_socket(|world, so, _| {
        let mut long = options(&[1, 4, 0, 0, 0, 0]);
        long[1] = 9;
        inject(world, &packet(&[(DSTOPTS, long)], UDP, &udp6(b"x")));
        assert_eq!(arrived(so), None);
        assert_eq!(world.b.inet.ip6stat.ip6s_tooshort.fetch(), 1);
    });
}

#[test]
fn a_fragment_that_is_all_of_a_packet_waits_for_nobody() {
    with_socket(|world, so, _| {
        // Others with the same identification do not matter to it (RFC 6946).
        let datagram = udp6(&pattern(100));
        inject(
            world,
            &packet(&[(FRAGMENT, fragment(0, true, 5))], UDP, &datagram[..64]),
        );
        inject(
            world,
            &packet(&[(FRAGMENT, fragment(0, false, 5))], UDP, &udp6(b"atomic")),
        );
        assert_eq!(arrived(so).as_deref(), Some(&b"atomic"[..]));
        inject(
            world,
            &packet(&[(FRAGMENT, fragment(64, false, 5))], UDP, &datagram[64..]),
        );
        assert_eq!(arrived(so), Some(pattern(100)));
        assert_eq!(world.b.inet.ip6stat.ip6s_atomicfrags.fetch(), 1);
    });
}

#[test]
fn fragments_that_overlap_take_their_packet_with_them() {
    with_socket(|world, so, _| {
        let datagram = udp6(&pattern(120));
        let send = |off: u16, len: usize, more| {
            let off_bytes = usize::from(off);
            let part = &datagram[off_bytes..off_bytes + len];
            inject(
                world,
                &packet(&[(FRAGMENT, fragment(off, more, 6))], UDP, part),
            );
        };
        send(0, 64, true);
        send(0, 64, true);
        assert_eq!(
            world.b.inet.frag6.fragments(),
            1,
            "the same again is no overlap"
        );
        send(56, 64, true);
        assert_eq!(
            world.b.inet.frag6.fragments(),
            0,
            "all are dropped (RFC 5722)"
        );
        send(64, 64, false);
        assert_eq!(arrived(so), None);
        assert_eq!(world.b.inet.ip6stat.ip6s_fragdropped.fetch(), 3);
    });
}

#[test]
fn fragments_of_broken_length_are_told_to_the_sender() {
    with_socket(|world, so, tap| {
        let datagram = udp6(&pattern(100));
        // Not the last one, and no multiple of eight: the length field is at fault.
        inject(
            world,
            &packet(&[(FRAGMENT, fragment(0, true, 7))], UDP, &datagram[..61]),
        );
        // Its end would be beyond what a packet can be: the offset is.
        inject(
            world,
            &packet(
                &[(FRAGMENT, fragment(0xfff8, false, 8))],
                UDP,
                &datagram[..64],
            ),
        );
        assert_eq!(errors(tap), [(4, 0, 4), (4, 0, 42)]);
        assert_eq!(arrived(so), None);
        assert_eq!(world.b.inet.frag6.packets(), 0);
    });
}
