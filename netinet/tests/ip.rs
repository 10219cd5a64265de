//! IPv4 on a simulated wire: delivery, fragments, options, errors, checksums.

mod common;

use common::*;
use core::net::Ipv4Addr;
use netinet::in_control::{AddrArgs, in_aifaddr, in_difaddr, in_sifaddr, len_mask};
use netinet::ip::{IP_DF, IP_MF, IPPROTO_ICMP, IPPROTO_UDP, IPTOS_ECN_CE, IPTOS_ECN_ECT0, Ip};
use netinet::ip_icmp::icmp_echo_message;
use netsim::wire::Dir;
use netsim::world::World;
use std::sync::{Arc, Mutex};
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::Mbuf;
use sys::net::ifnet::{IfCap, IfDriver, IfFlags, Ifnet, IfnetInit};
use sys::net::route::{RouteSpec, RtFlags};
use sys::socket::*;

const IP: u16 = 0x0800;

fn ping(world: &World, to: Ipv4Addr, seq: u16, data: &[u8]) -> Result<Vec<u8>, Errno> {
    let so = raw(&world.a, IPPROTO_ICMP);
    send_to(&so, &icmp_echo_message(77, seq, data), to, 0)?;
    loop {
        let (packet, from) = receive(&so)?;
        // On the loopback the request is heard too.
        if packet[20] == 0 {
            assert_eq!(from, SockAddr::v4(to, 0));
            return Ok(packet);
        }
    }
}

#[test]
fn a_ping_is_answered_with_its_data() {
    World::run(WireConfig::default(), |world| {
        let data = pattern(56);
        let answer = ping(world, ADDR_B, 9, &data).expect("an answer");
        assert_eq!(&answer[20..28], [0, 0, answer[22], answer[23], 0, 77, 0, 9]);
        assert_eq!(&answer[28..], data);
        assert_eq!(world.b.inet.icmpstat.icps_reflect.fetch(), 1);
        assert_eq!(world.b.inet.icmpstat.icps_inhist[8].fetch(), 1);
        assert_eq!(world.a.inet.icmpstat.icps_inhist[0].fetch(), 1);
    });
}

#[test]
fn a_ping_larger_than_the_mtu_comes_back_whole() {
    World::run(WireConfig::default(), |world| {
        let data = pattern(8000);
        let answer = ping(world, ADDR_B, 1, &data).expect("an answer");
        assert_eq!(&answer[28..], data);
        assert_eq!(world.b.inet.ipstat.ips_reassembled.fetch(), 1);
        assert_eq!(world.a.inet.ipstat.ips_fragmented.fetch(), 1);
        assert_eq!(world.a.inet.ipstat.ips_ofragments.fetch(), 6);
    });
}

#[test]
fn our_own_addresses_answer_through_the_loopback() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        assert!(ping(world, ADDR_A, 1, b"self").is_ok());
        assert!(ping(world, Ipv4Addr::LOCALHOST, 1, b"self").is_ok());
        assert!(tap.seen(Dir::AtoB, IP).is_empty());
    });
}

#[test]
fn a_broadcast_ping_is_ignored() {
    World::run(WireConfig::default(), |world| {
        let so = raw(&world.a, IPPROTO_ICMP);
        let to = Ipv4Addr::new(10, 0, 0, 255);
        assert_eq!(
            send_to(&so, &icmp_echo_message(1, 1, b""), to, 0),
            Err(Errno::EACCES)
        );
        so.setsockopt_int(SOL_SOCKET, SO_BROADCAST, 1).unwrap();
        send_to(&so, &icmp_echo_message(1, 1, b""), to, 0).unwrap();
        // All we hear is ourselves.
        assert_eq!(receive(&so).expect("our own request").0[20], 8);
        assert_eq!(receive(&so).unwrap_err(), Errno::EWOULDBLOCK);
        assert_eq!(world.b.inet.icmpstat.icps_bmcastecho.fetch(), 1);
    });
}

#[test]
fn a_timestamp_request_is_answered_unless_switched_off() {
    World::run(WireConfig::default(), |world| {
        let mut message = vec![13, 0, 0, 0, 0, 1, 0, 2, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0];
        let sum = sys::machine::in_cksum::in_cksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        let so = raw(&world.a, IPPROTO_ICMP);
        send_to(&so, &message, ADDR_B, 0).unwrap();
        let answer = receive(&so).expect("an answer").0;
        assert_eq!(&answer[20..22], [14, 0]);
        assert_eq!(&answer[24..32], &message[4..12]);
        // Received and sent at a time that is not midnight UT's (RFC 792: the high bit).
        assert!(answer[32] & 0x80 != 0 && answer[32..36] == answer[36..40]);
        message.truncate(12);
        message[2..4].fill(0);
        let sum = sys::machine::in_cksum::in_cksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        send_to(&so, &message, ADDR_B, 0).unwrap();
        assert_eq!(receive(&so).unwrap_err(), Errno::EWOULDBLOCK);
        assert_eq!(world.b.inet.icmpstat.icps_badlen.fetch(), 1);
    });
}

#[test]
fn errors_are_not_sent_about_errors() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        // An unreachable that came with a bad option.
        let mut quoted = vec![3, 1, 0, 0, 0, 0, 0, 0];
        quoted.extend_from_slice(&Packet::new(ADDR_B, ADDR_A, IPPROTO_UDP, &[0; 8]).bytes());
        let mut packet = Packet::new(ADDR_A, ADDR_B, IPPROTO_ICMP, &quoted);
        packet.options = vec![7, 1, 4, 0];
        inject(world, &packet);
        pass_ms(10);
        assert!(tap.seen(Dir::BtoA, IP).is_empty());
        assert_eq!(world.b.inet.icmpstat.icps_oldicmp.fetch(), 1);
    });
}

#[test]
fn pings_beyond_the_limit_are_not_answered() {
    World::run(WireConfig::default(), |world| {
        world.b.inet.icmp.icmplim.set(10);
        world.b.inet.icmp.icmplim_jitter.set(0);
        assert!(ping(world, ADDR_B, 0, b"").is_ok());
        let so = raw(&world.a, IPPROTO_ICMP);
        pass_s(2);
        for seq in 0..50 {
            send_to(&so, &icmp_echo_message(1, seq, b""), ADDR_B, 0).unwrap();
        }
        pass_ms(500);
        assert_eq!(world.a.inet.icmpstat.icps_inhist[0].fetch(), 11);
        assert_eq!(world.b.inet.icmpstat.icps_limited.fetch(), 40);
    });
}

/// Fragments of a UDP datagram with `data` to port 7, cut at the offsets given.
fn fragments(data: &[u8], cuts: &[usize]) -> Vec<Packet> {
    let whole = udp_bytes(ADDR_A, ADDR_B, 5000, 7, data);
    let mut pieces = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&whole.len()]) {
        let mut packet = Packet::new(ADDR_A, ADDR_B, IPPROTO_UDP, &whole[from..to]);
        let more = if to < whole.len() { IP_MF } else { 0 };
        packet.ip.ip_off.set((from / 8) as u16 | more);
        pieces.push(packet);
        from = to;
    }
    pieces
}

fn inject(world: &World, packet: &Packet) {
    world
        .wire
        .inject(Dir::AtoB, &frame(&world.a, &world.b, IP, &packet.bytes()));
    pass_ms(1);
}

#[test]
fn fragments_in_any_order_make_one_datagram() {
    let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]];
    World::run(WireConfig::default(), |world| {
        let so = udp(&world.b, 7);
        let data = pattern(992);
        let pieces = fragments(&data, &[256, 512, 760]);
        for order in orders {
            for at in order {
                inject(world, &pieces[at]);
            }
            assert_eq!(receive(&so).expect("a datagram").0, data);
        }
        let stat = &world.b.inet.ipstat;
        assert_eq!(stat.ips_reassembled.fetch(), 4);
        assert_eq!(stat.ips_fragments.fetch(), 16);
        assert_eq!(stat.ips_fragdropped.fetch(), 0);
        assert_eq!(world.b.inet.reass.fragments(), 0);
        assert_eq!(world.b.inet.reass.packets(), 0);
    });
}

#[test]
fn a_fragment_that_comes_twice_is_dropped_once() {
    World::run(WireConfig::default(), |world| {
        let so = udp(&world.b, 7);
        let data = pattern(500);
        let pieces = fragments(&data, &[256]);
        inject(world, &pieces[0]);
        inject(world, &pieces[0]);
        inject(world, &pieces[1]);
        assert_eq!(receive(&so).expect("a datagram").0, data);
        assert_eq!(world.b.inet.ipstat.ips_fragdropped.fetch(), 1);
    });
}

#[test]
fn what_a_fragment_brings_again_is_trimmed() {
    World::run(WireConfig::default(), |world| {
        let so = udp(&world.b, 7);
        let data = pattern(992);
        let whole = udp_bytes(ADDR_A, ADDR_B, 5000, 7, &data);
        // Overlaps at both ends: 0..400, 600..1000, then 200..800 between them.
        for (from, to) in [(0, 400), (600, 1000), (200, 800)] {
            let mut packet = Packet::new(ADDR_A, ADDR_B, IPPROTO_UDP, &whole[from..to]);
            packet
                .ip
                .ip_off
                .set((from / 8) as u16 | if to < 1000 { IP_MF } else { 0 });
            inject(world, &packet);
        }
        assert_eq!(receive(&so).expect("a datagram").0, data);
    });
}

#[test]
fn a_datagram_that_stays_incomplete_expires_after_30_seconds() {
    World::run(WireConfig::default(), |world| {
        let pieces = fragments(&pattern(992), &[256, 512]);
        inject(world, &pieces[0]);
        inject(world, &pieces[2]);
        assert_eq!(world.b.inet.reass.fragments(), 2);
        pass_s(29);
        assert_eq!(world.b.inet.reass.packets(), 1);
        pass_s(2);
        assert_eq!(world.b.inet.reass.packets(), 0);
        assert_eq!(world.b.inet.reass.fragments(), 0);
        assert_eq!(world.b.inet.ipstat.ips_fragtimeout.fetch(), 2);
    });
}

#[test]
fn fragments_that_cannot_be_are_dropped() {
    World::run(WireConfig::default(), |world| {
        let stat = &world.b.inet.ipstat;
        let fragment = |len: usize, off: u16| {
            let mut packet = Packet::new(ADDR_A, ADDR_B, IPPROTO_UDP, &pattern(len));
            packet.ip.ip_off.set(off);
            packet
        };
        // Not the last, and not a multiple of eight.
        inject(world, &fragment(100, IP_MF));
        assert_eq!(stat.ips_fragdropped.fetch(), 1);
        // Empty.
        inject(world, &fragment(0, IP_MF | 8));
        assert_eq!(stat.ips_fragdropped.fetch(), 2);
        // Beyond the largest packet.
        inject(world, &fragment(200, 0x1fff));
        assert_eq!(stat.ips_toolong.fetch(), 1);
        assert_eq!(world.b.inet.reass.packets(), 0);
        // More than 16 for one datagram.
        for i in 0..17 {
            inject(world, &fragment(8, IP_MF | (i * 2 + 2)));
        }
        assert_eq!(stat.ips_fragdropped.fetch(), 2 + 17);
        assert_eq!(world.b.inet.reass.packets(), 0);
        assert_eq!(world.b.inet.reass.fragments(), 0);
    });
}

#[test]
fn congestion_on_one_fragment_marks_the_datagram() {
    World::run(WireConfig::default(), |world| {
        let so = udp(&world.b, 7);
        so.setsockopt_int(IPPROTO_IP, IP_RECVTOS, 1).unwrap();
        let tos_of = |second: u8| {
            let mut pieces = fragments(&pattern(500), &[256]);
            pieces[0].ip.ip_tos = IPTOS_ECN_ECT0;
            pieces[1].ip.ip_tos = second;
            for piece in &pieces {
                inject(world, piece);
            }
            let mut buffer = [0; 600];
            let received = so.recvmsg(&mut buffer, MsgFlags::DONTWAIT)?;
            let control = received.control.expect("the TOS was asked for");
            Ok::<u8, Errno>(control.data()[16])
        };
        assert_eq!(tos_of(IPTOS_ECN_ECT0), Ok(IPTOS_ECN_ECT0));
        assert_eq!(tos_of(IPTOS_ECN_CE), Ok(IPTOS_ECN_CE));
        assert_eq!(tos_of(0), Err(Errno::EWOULDBLOCK));
        assert_eq!(world.b.inet.ipstat.ips_fragdropped.fetch(), 1);
    });
}

#[test]
fn every_kind_of_bad_header_is_counted_and_dropped() {
    World::run(WireConfig::default(), |world| {
        let so = udp(&world.b, 7);
        let good = Packet::new(
            ADDR_A,
            ADDR_B,
            IPPROTO_UDP,
            &udp_bytes(ADDR_A, ADDR_B, 1, 7, b"x"),
        )
        .bytes();
        let stat = &world.b.inet.ipstat;
        let send = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            world
                .wire
                .inject(Dir::AtoB, &frame(&world.a, &world.b, IP, &bytes));
            pass_ms(1);
        };
        send(&|b| b[10] ^= 1);
        assert_eq!(stat.ips_badsum.fetch(), 1);
        send(&|b| b[0] = 0x65);
        assert_eq!(stat.ips_badvers.fetch(), 1);
        send(&|b| b[0] = 0x44);
        assert_eq!(stat.ips_badhlen.fetch(), 1);
        send(&|b| b.truncate(10));
        assert_eq!(stat.ips_toosmall.fetch(), 1);
        let resum = |b: &mut Vec<u8>| {
            b[10..12].copy_from_slice(&[0, 0]);
            let sum = sys::machine::in_cksum::in_cksum(&b[..20]).to_be_bytes();
            b[10..12].copy_from_slice(&sum);
        };
        send(&|b| {
            b[2..4].copy_from_slice(&19u16.to_be_bytes());
            resum(b);
        });
        assert_eq!(stat.ips_badlen.fetch(), 1);
        send(&|b| {
            b[2..4].copy_from_slice(&1000u16.to_be_bytes());
            resum(b);
        });
        assert_eq!(stat.ips_tooshort.fetch(), 1);
        send(&|b| {
            b[12..16].copy_from_slice(&[127, 0, 0, 1]);
            resum(b);
        });
        // Source of a packet from outside is our own address.
        send(&|b| {
            b[12..16].copy_from_slice(&ADDR_B.octets());
            resum(b);
        });
        assert_eq!(stat.ips_badaddr.fetch(), 2);
        assert_eq!(stat.ips_delivered.fetch(), 0);
        send(&|_| {});
        assert_eq!(receive(&so).expect("a datagram").0, b"x");
    });
}

#[test]
fn packets_for_others_are_not_forwarded_unless_asked() {
    World::run(WireConfig::default(), |world| {
        let other = Ipv4Addr::new(192, 0, 2, 1);
        let packet = Packet::new(
            ADDR_A,
            other,
            IPPROTO_UDP,
            &udp_bytes(ADDR_A, other, 1, 7, b"x"),
        );
        inject(world, &packet);
        assert_eq!(world.b.inet.ipstat.ips_cantforward.fetch(), 1);

        // As a router: no route, then a route, then no life left.
        world.b.inet.ip.forwarding.set(true);
        let tap = Tap::on(world);
        inject(world, &packet);
        pass_ms(10);
        let errors = tap.seen(Dir::BtoA, IP);
        assert_eq!((errors.len(), &errors[0][20..22]), (1, &[3, 1][..]));
        world.a.configure(&world.a.ifp, other, 24);
        world
            .b
            .configure(&world.b.ifp, Ipv4Addr::new(192, 0, 2, 2), 24);
        let so = udp(&world.a, 7);
        let src = Ipv4Addr::new(198, 51, 100, 1);
        let mut packet = Packet::new(
            src,
            other,
            IPPROTO_UDP,
            &udp_bytes(src, other, 1, 7, b"through"),
        );
        inject(world, &packet);
        assert_eq!(receive(&so).expect("a forwarded datagram").0, b"through");
        assert_eq!(world.b.inet.ipstat.ips_forward.fetch(), 1);
        tap.clear();
        packet = Packet::new(
            ADDR_A,
            other,
            IPPROTO_UDP,
            &udp_bytes(ADDR_A, other, 1, 7, b"x"),
        );
        packet.ip.ip_ttl = 1;
        inject(world, &packet);
        pass_ms(10);
        let errors = tap.seen(Dir::BtoA, IP);
        assert_eq!((errors.len(), &errors[0][20..22]), (1, &[11, 0][..]));
    });
}

#[test]
fn a_packet_too_big_for_a_router_says_which_mtu_fits() {
    World::run(WireConfig::default(), |world| {
        world.b.inet.ip.forwarding.set(true);
        let other = Ipv4Addr::new(192, 0, 2, 1);
        world
            .b
            .configure(&world.b.ifp, Ipv4Addr::new(192, 0, 2, 2), 24);
        world.b.ifp.set_mtu(1000).unwrap();
        let tap = Tap::on(world);
        let mut packet = Packet::new(
            ADDR_A,
            other,
            IPPROTO_UDP,
            &udp_bytes(ADDR_A, other, 1, 7, &pattern(1200)),
        );
        packet.ip.ip_off.set(IP_DF);
        inject(world, &packet);
        pass_ms(10);
        let errors = tap.seen(Dir::BtoA, IP);
        assert_eq!(errors.len(), 1);
        assert_eq!(&errors[0][20..22], [3, 4]);
        assert_eq!(&errors[0][26..28], 1000u16.to_be_bytes());
        assert_eq!(world.b.inet.ipstat.ips_cantfrag.fetch(), 1);
    });
}

/// The other leg of a router: an interface that records what is sent on it.
#[derive(Clone, Default)]
struct Leg(Arc<Mutex<Vec<Vec<u8>>>>);

impl IfDriver for Leg {
    fn transmit(&self, _ifp: &Ifnet, m: Mbuf) -> Result<(), Errno> {
        let mut frame = vec![0; m.pkt_len()];
        assert!(m.copydata(0, &mut frame));
        self.0.lock().unwrap().push(frame);
        Ok(())
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::empty());
        Ok(())
    }
}

impl Leg {
    /// Makes `world.b` a router to 192.0.2.0/24, where it is 192.0.2.1 and 192.0.2.7 is its neighbour.
    fn to_another_network(world: &World) -> (Self, Arc<Ifnet>) {
        let (leg, b) = (Self::default(), &world.b);
        let ifp = b.vnet.if_attach(
            IfnetInit::ether("leg", 0, [2, 0, 0, 0, 9, 1]),
            Arc::new(leg.clone()),
        );
        b.configure(&ifp, Ipv4Addr::new(192, 0, 2, 1), 24);
        netinet::if_ether::arp_set(&b.inet, BEYOND, [2, 0, 0, 0, 9, 7], false).unwrap();
        b.inet.ip.forwarding.set(true);
        leg.0.lock().unwrap().clear();
        (leg, ifp)
    }

    /// The packets sent on it since last asked.
    fn sent(&self) -> Vec<Vec<u8>> {
        let frames = std::mem::take(&mut *self.0.lock().unwrap());
        frames.iter().map(|frame| frame[14..].to_vec()).collect()
    }
}

const BEYOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

fn datagram(src: Ipv4Addr, dst: Ipv4Addr) -> Packet {
    Packet::new(src, dst, IPPROTO_UDP, &udp_bytes(src, dst, 1, 7, b"x"))
}

#[test]
fn a_router_does_not_carry_broadcasts_to_another_network() {
    World::run(WireConfig::default(), |world| {
        let (leg, _) = Leg::to_another_network(world);
        let tap = Tap::on(world);
        inject(world, &datagram(ADDR_A, BEYOND));
        assert_eq!(leg.sent().len(), 1);
        inject(world, &datagram(ADDR_A, Ipv4Addr::new(192, 0, 2, 255)));
        assert_eq!(leg.sent().len(), 0);
        assert_eq!(world.b.inet.ipstat.ips_cantforward.fetch(), 1);
        // And says nothing about it.
        pass_ms(10);
        assert_eq!(tap.seen(Dir::BtoA, IP).len(), 0);
    });
}

#[test]
fn a_black_hole_swallows_and_a_rejecting_route_says_so() {
    World::run(WireConfig::default(), |world| {
        let (leg, ifp) = Leg::to_another_network(world);
        let route = |last: u8, flags| {
            let spec = RouteSpec {
                dst: Ipv4Addr::new(198, 51, 100, last),
                prefix_len: 32,
                gw: Some(BEYOND),
                ifp: ifp.clone(),
                ifa: None,
                flags,
                mtu: 0,
            };
            let dst = spec.dst;
            world.b.inet.rib.add(spec).unwrap();
            dst
        };
        let hole = route(1, RtFlags::BLACKHOLE);
        let rejecting = route(2, RtFlags::REJECT);
        let tap = Tap::on(world);
        inject(world, &datagram(ADDR_A, hole));
        pass_ms(10);
        assert_eq!(tap.seen(Dir::BtoA, IP).len(), 0);
        inject(world, &datagram(ADDR_A, rejecting));
        pass_ms(10);
        let errors = tap.seen(Dir::BtoA, IP);
        assert_eq!((errors.len(), &errors[0][20..22]), (1, &[3, 1][..]));
        let stat = &world.b.inet.ipstat;
        assert_eq!(stat.ips_cantforward.fetch(), 2);
        assert_eq!(stat.ips_forward.fetch(), 0);
        // Our own packets fare alike.
        let so = udp(&world.b, 0);
        let dropped = stat.ips_odropped.fetch();
        assert_eq!(send_to(&so, b"x", hole, 7), Ok(1));
        assert_eq!(stat.ips_odropped.fetch(), dropped + 1);
        assert_eq!(send_to(&so, b"x", rejecting, 7), Err(Errno::EHOSTUNREACH));
        assert_eq!(leg.sent().len(), 0);
    });
}

/// A better router to 192.0.2.0/24 than `b`, on the same network.
const BETTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

fn route_via(dst: Ipv4Addr, prefix_len: u8, gw: Ipv4Addr, ifp: &Arc<Ifnet>) -> RouteSpec {
    RouteSpec {
        dst,
        prefix_len,
        gw: Some(gw),
        ifp: ifp.clone(),
        ifa: None,
        flags: RtFlags::GATEWAY | RtFlags::STATIC,
        mtu: 0,
    }
}

/// `b` as a router that sends packets for a network back to where they came from.
fn detour(world: &World, network: Ipv4Addr, prefix_len: u8) {
    let b = &world.b;
    b.inet.ip.forwarding.set(true);
    netinet::if_ether::arp_set(&b.inet, BETTER, [2, 0, 0, 0, 9, 9], false).unwrap();
    let route = route_via(network, prefix_len, BETTER, &b.ifp);
    b.inet.rib.add(route).unwrap();
}

#[test]
fn a_router_tells_its_neighbour_of_a_better_one_and_the_neighbour_obeys_for_a_while() {
    World::run(WireConfig::default(), |world| {
        let network = Ipv4Addr::new(192, 0, 2, 0);
        detour(world, network, 24);
        let rib = &world.a.inet.rib;
        rib.add(route_via(network, 24, ADDR_B, &world.a.ifp))
            .unwrap();
        let tap = Tap::on(world);
        let so = udp(&world.a, 5);
        send_to(&so, b"x", BEYOND, 7).unwrap();
        pass_ms(100);
        let told = tap.seen(Dir::BtoA, IP);
        let redirect = told.iter().find(|packet| packet[9] == IPPROTO_ICMP);
        let redirect = redirect.expect("a redirect");
        assert_eq!(redirect[20..22], [5, 1]);
        assert_eq!(redirect[24..28], BETTER.octets());
        // What it is about, as it was sent.
        assert_eq!(redirect[28 + 16..28 + 20], BEYOND.octets());
        assert_eq!(redirect[28 + 8], 64);
        assert_eq!(world.b.inet.ipstat.ips_redirectsent.fetch(), 1);
        assert_eq!(world.b.inet.ipstat.ips_forward.fetch(), 1);
        assert_eq!(world.b.inet.icmpstat.icps_error.fetch(), 0);

        let route = rib.get(BEYOND, 32).expect("a route to the host");
        assert_eq!(route.nhop.gw, Some(BETTER));
        assert!(route.nhop.nh_flags.contains(RtFlags::DYNAMIC));
        // The other hosts of the network are another matter.
        let epoch = NetEpoch::enter();
        let next = rib.fib4_lookup(Ipv4Addr::new(192, 0, 2, 8), &epoch);
        assert_eq!(next.unwrap().gw, Some(ADDR_B));
        drop(epoch);
        pass_s(599);
        assert!(rib.get(BEYOND, 32).is_some());
        pass_s(2);
        assert!(rib.get(BEYOND, 32).is_none(), "after redirtimeout");
    });
}

#[test]
fn who_cannot_go_by_another_router_is_told_nothing() {
    World::run(WireConfig::default(), |world| {
        detour(world, Ipv4Addr::new(192, 0, 2, 0), 24);
        let sent = || world.b.inet.ipstat.ips_redirectsent.fetch();
        let forwarded = || world.b.inet.ipstat.ips_forward.fetch();
        // From another network.
        inject(world, &datagram(Ipv4Addr::new(198, 51, 100, 1), BEYOND));
        // On a way with options.
        let mut packet = datagram(ADDR_A, BEYOND);
        packet.options = vec![1; 4];
        inject(world, &packet);
        // Switched off.
        world.b.inet.ip.redirect.set(false);
        inject(world, &datagram(ADDR_A, BEYOND));
        world.b.inet.ip.redirect.set(true);
        // By the default route.
        world
            .b
            .inet
            .rib
            .delete(Ipv4Addr::new(192, 0, 2, 0), 24)
            .unwrap();
        detour(world, Ipv4Addr::UNSPECIFIED, 0);
        inject(world, &datagram(ADDR_A, BEYOND));
        assert_eq!((forwarded(), sent()), (4, 0));
    });
}

#[test]
fn a_redirect_is_obeyed_from_the_router_in_use_to_a_neighbour_by_a_host_only() {
    World::run(WireConfig::default(), |world| {
        let (a, network) = (&world.a, Ipv4Addr::new(192, 0, 2, 0));
        let rib = &a.inet.rib;
        rib.add(route_via(network, 24, ADDR_B, &a.ifp)).unwrap();
        let redirect = |from: Ipv4Addr, code: u8, gateway: Ipv4Addr, quoted: &[u8]| {
            let mut message = vec![5, code, 0, 0];
            message.extend_from_slice(&gateway.octets());
            message.extend_from_slice(quoted);
            let sum = sys::machine::in_cksum::in_cksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let packet = Packet::new(from, ADDR_A, IPPROTO_ICMP, &message);
            let bytes = frame(&world.b, a, IP, &packet.bytes());
            world.wire.inject(Dir::BtoA, &bytes);
            pass_ms(10);
            rib.get(BEYOND, 32).is_some()
        };
        let quoted = datagram(ADDR_A, BEYOND).bytes();
        let stat = &a.inet.icmpstat;
        let stranger = Ipv4Addr::new(10, 0, 0, 66);
        assert!(!redirect(stranger, 1, BETTER, &quoted));
        let far = Ipv4Addr::new(203, 0, 113, 1);
        assert!(!redirect(ADDR_B, 1, far, &quoted));
        assert!(!redirect(ADDR_B, 1, ADDR_A, &quoted), "to ourselves");
        let broadcast = Ipv4Addr::new(10, 0, 0, 255);
        assert!(!redirect(ADDR_B, 1, broadcast, &quoted));
        assert!(!redirect(ADDR_B, 1, BETTER, &quoted[..24]));
        assert_eq!(stat.icps_badlen.fetch(), 1);
        assert!(!redirect(ADDR_B, 4, BETTER, &quoted));
        assert_eq!(stat.icps_badcode.fetch(), 1);
        a.inet.icmp.drop_redirect.set(true);
        assert!(!redirect(ADDR_B, 1, BETTER, &quoted));
        a.inet.icmp.drop_redirect.set(false);
        a.inet.ip.forwarding.set(true);
        assert!(!redirect(ADDR_B, 1, BETTER, &quoted));
        a.inet.ip.forwarding.set(false);
        assert!(redirect(ADDR_B, 1, BETTER, &quoted));
    });
}

#[test]
fn reserved_networks_work_like_others_once_they_are_allowed() {
    World::run(WireConfig::default(), |world| {
        let (leg, _) = Leg::to_another_network(world);
        for (net, switch) in [
            (240, &world.b.inet.ip.allow_net240),
            (0, &world.b.inet.ip.allow_net0),
        ] {
            let from = Ipv4Addr::new(net, 0, 0, 2);
            inject(world, &datagram(from, BEYOND));
            assert_eq!(leg.sent().len(), 0);
            switch.set(true);
            inject(world, &datagram(from, BEYOND));
            assert_eq!(leg.sent().len(), 1);
        }
        let (own, peer) = (Ipv4Addr::new(240, 0, 0, 1), Ipv4Addr::new(240, 0, 0, 2));
        world.a.inet.ip.allow_net240.set(true);
        world.a.configure(&world.a.ifp, own, 24);
        world.b.configure(&world.b.ifp, peer, 24);
        assert!(ping(world, peer, 1, b"").is_ok());
    });
}

#[test]
fn a_router_is_not_bound_to_the_strong_model() {
    World::run(WireConfig::default(), |world| {
        let (_, ifp) = Leg::to_another_network(world);
        let ip = &world.b.inet.ip;
        ip.rfc1122_strong_es.set(true);
        let so = udp(&world.b, 7);
        let far = ifp.addrs(&NetEpoch::enter())[0].ia_addr;
        inject(world, &datagram(ADDR_A, far));
        assert_eq!(receive(&so).expect("a datagram").0, b"x");
        ip.forwarding.set(false);
        inject(world, &datagram(ADDR_A, far));
        assert_eq!(world.b.inet.ipstat.ips_badaddr.fetch(), 1);
    });
}

#[test]
fn a_router_records_the_address_that_a_packet_leaves_by() {
    World::run(WireConfig::default(), |world| {
        let (leg, _) = Leg::to_another_network(world);
        let mut packet = datagram(ADDR_A, BEYOND);
        packet.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
        inject(world, &packet);
        assert_eq!(leg.sent()[0][20..27], [7, 7, 8, 192, 0, 2, 1]);
        // A time stamp is made where the packet comes in, or by whom it names.
        packet.options = vec![68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        inject(world, &packet);
        assert_eq!(leg.sent()[0][20..28], [68, 12, 13, 1, 10, 0, 0, 2]);
        packet.options = vec![68, 12, 5, 3, 192, 0, 2, 1, 0, 0, 0, 0];
        inject(world, &packet);
        let stamped = &leg.sent()[0];
        assert_eq!(stamped[20..28], [68, 12, 13, 3, 192, 0, 2, 1]);
        assert_ne!(stamped[28..32], [0; 4]);
        // At the end, the address the packet was for, not the first of the interface.
        let alias = Ipv4Addr::new(10, 0, 0, 22);
        world.b.configure(&world.b.ifp, alias, 24);
        let tap = Tap::on(world);
        packet = Packet::new(ADDR_A, alias, IPPROTO_ICMP, &icmp_echo_message(1, 1, b""));
        packet.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
        inject(world, &packet);
        pass_ms(10);
        assert_eq!(tap.seen(Dir::BtoA, IP)[0][20..27], [7, 7, 8, 10, 0, 0, 22]);
    });
}

#[test]
fn an_unknown_protocol_earns_an_unreachable() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        inject(world, &Packet::new(ADDR_A, ADDR_B, 200, b"whatever"));
        pass_ms(10);
        let errors = tap.seen(Dir::BtoA, IP);
        assert_eq!((errors.len(), &errors[0][20..22]), (1, &[3, 2][..]));
        // The offending packet is quoted whole, as it came.
        assert_eq!(
            &errors[0][28..56],
            Packet::new(ADDR_A, ADDR_B, 200, b"whatever").bytes()
        );
        assert_eq!(world.b.inet.ipstat.ips_noproto.fetch(), 1);
        // Who listens raw hears it instead.
        let so = raw(&world.b, 200);
        inject(world, &Packet::new(ADDR_A, ADDR_B, 200, b"whatever"));
        assert_eq!(&receive(&so).expect("a packet").0[20..], b"whatever");
        assert_eq!(world.b.inet.ipstat.ips_noproto.fetch(), 1);
        assert_eq!(world.b.inet.ipstat.ips_delivered.fetch(), 1);
        // Unless it listens to somebody else.
        so.connect(&SockAddr::v4(Ipv4Addr::new(10, 0, 0, 77), 0))
            .unwrap();
        tap.clear();
        inject(world, &Packet::new(ADDR_A, ADDR_B, 200, b"whatever"));
        pass_ms(10);
        let errors = tap.seen(Dir::BtoA, IP);
        assert_eq!((errors.len(), &errors[0][20..22]), (1, &[3, 2][..]));
        assert_eq!(world.b.inet.ipstat.ips_noproto.fetch(), 2);
        assert_eq!(world.b.inet.ipstat.ips_delivered.fetch(), 1);
    });
}

#[test]
fn record_route_is_filled_in_and_source_routes_are_refused() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        let mut packet = Packet::new(ADDR_A, ADDR_B, IPPROTO_ICMP, &icmp_echo_message(1, 1, b""));
        packet.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
        inject(world, &packet);
        pass_ms(10);
        let answers = tap.seen(Dir::BtoA, IP);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0][0], 0x47);
        assert_eq!(&answers[0][20..27], [7, 7, 8, 10, 0, 0, 2]);
        tap.clear();
        packet.options = vec![131, 7, 4, 192, 0, 2, 1, 0];
        // A host drops what would have to go on, without a word, whatever it accepts for itself.
        world.b.inet.ip.accept_sourceroute.set(true);
        inject(world, &packet);
        pass_ms(10);
        assert!(tap.seen(Dir::BtoA, IP).is_empty());
        assert_eq!(world.b.inet.ipstat.ips_cantforward.fetch(), 1);
        // A route that ends here has done its work.
        let ended = Packet {
            options: vec![131, 7, 8, 192, 0, 2, 1, 0],
            ..packet.clone()
        };
        inject(world, &ended);
        pass_ms(10);
        assert_eq!(tap.seen(Dir::BtoA, IP)[0][20], 0);
        tap.clear();
        // By default it is refused, as a router refuses all.
        world.b.inet.ip.accept_sourceroute.set(false);
        inject(world, &ended);
        pass_ms(10);
        assert_eq!(&tap.seen(Dir::BtoA, IP)[0][20..22], [3, 5]);
        tap.clear();
        world.b.inet.ip.forwarding.set(true);
        inject(world, &packet);
        pass_ms(10);
        // ICMP errors are sent about an echo request: source route failed.
        assert_eq!(&tap.seen(Dir::BtoA, IP)[0][20..22], [3, 5]);
        assert_eq!(world.b.inet.ipstat.ips_badoptions.fetch(), 2);
        tap.clear();
        packet.options = vec![7, 1, 4, 0];
        inject(world, &packet);
        pass_ms(10);
        // The pointer names the option's length byte.
        let errors = tap.seen(Dir::BtoA, IP);
        assert_eq!((errors[0][20], errors[0][24]), (12, 21));
        // Refused altogether.
        world.b.inet.ip.process_options.set(2);
        tap.clear();
        packet.options = vec![1, 1, 1, 0];
        inject(world, &packet);
        pass_ms(10);
        assert_eq!(&tap.seen(Dir::BtoA, IP)[0][20..22], [3, 13]);
    });
}

#[test]
fn options_of_a_socket_stand_in_every_packet() {
    World::run(WireConfig::default(), |world| {
        let so = udp(&world.a, 0);
        so.setsockopt(IPPROTO_IP, IP_OPTIONS, &[148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0])
            .unwrap();
        let there = udp(&world.b, 7);
        let tap = Tap::on(world);
        send_to(&so, &pattern(2000), ADDR_B, 7).unwrap();
        assert_eq!(receive(&there).expect("a datagram").0, pattern(2000));
        let sent = tap.seen(Dir::AtoB, IP);
        assert_eq!(sent.len(), 2);
        // The first has both options, the second only the one with the copied bit.
        assert_eq!((sent[0][0], sent[1][0]), (0x48, 0x46));
        assert_eq!(&sent[1][20..24], [148, 4, 0, 0]);
    });
}

/// Sends datagrams both ways with the given offloads and looks at what crosses.
fn checksums_with(capabilities: IfCap) {
    let config = WireConfig {
        capabilities,
        ..WireConfig::default()
    };
    World::run(config, |world| {
        let tap = Tap::on(world);
        let (a, b) = (udp(&world.a, 5), udp(&world.b, 7));
        for len in [0, 1, 18, 1472, 1473, 9000] {
            let data = pattern(len);
            send_to(&a, &data, ADDR_B, 7).unwrap();
            assert_eq!(receive(&b).expect("a datagram").0, data);
            send_to(&b, &data, ADDR_A, 5).unwrap();
            assert_eq!(receive(&a).expect("a datagram").0, data);
        }
        for packet in tap.seen(Dir::AtoB, IP) {
            let ip = Ip::parse(&packet).unwrap();
            assert_eq!(sys::machine::in_cksum::in_cksum(&packet[..20]), 0);
            if !ip.is_fragment() {
                let datagram = &packet[20..usize::from(ip.ip_len.get())];
                let data = &datagram[8..];
                assert_eq!(
                    datagram,
                    udp_bytes(ADDR_A, ADDR_B, 5, 7, data),
                    "{} bytes",
                    data.len()
                );
            }
        }
        let software = world.a.inet.ipstat.ips_swcsum_out.fetch();
        // With offload only the two datagrams that had to be cut are summed here.
        assert_eq!(
            software,
            if capabilities.contains(IfCap::TXCSUM) {
                2
            } else {
                6
            }
        );
        assert_eq!(world.b.inet.udpstat.udps_badsum.fetch(), 0);
        assert_eq!(world.b.inet.ipstat.ips_badsum.fetch(), 0);
    });
}

#[test]
fn checksums_are_good_without_offload() {
    checksums_with(IfCap::empty());
}

#[test]
fn checksums_are_good_with_transmit_offload() {
    checksums_with(IfCap::TXCSUM);
}

#[test]
fn checksums_are_good_with_offload_both_ways() {
    checksums_with(IfCap::TXCSUM | IfCap::RXCSUM);
}

#[test]
fn offload_can_be_switched_off_between_two_packets() {
    let config = WireConfig {
        capabilities: IfCap::TXCSUM | IfCap::RXCSUM,
        ..WireConfig::default()
    };
    World::run(config, |world| {
        let (a, b) = (udp(&world.a, 0), udp(&world.b, 7));
        send_to(&a, b"with", ADDR_B, 7).unwrap();
        assert_eq!(world.a.inet.ipstat.ips_swcsum_out.fetch(), 0);
        world
            .a
            .ifp
            .set_capenable(world.a.ifp.capenable() - IfCap::TXCSUM)
            .unwrap();
        send_to(&a, b"without", ADDR_B, 7).unwrap();
        assert_eq!(world.a.inet.ipstat.ips_swcsum_out.fetch(), 1);
        assert_eq!(receive(&b).expect("the first").0, b"with");
        assert_eq!(receive(&b).expect("the second").0, b"without");
    });
}

#[test]
fn a_datagram_that_must_not_be_cut_is_refused_with_the_reason() {
    World::run(WireConfig::default(), |world| {
        let so = udp(&world.a, 0);
        so.setsockopt_int(IPPROTO_IP, IP_DONTFRAG, 1).unwrap();
        assert_eq!(
            send_to(&so, &pattern(1473), ADDR_B, 7),
            Err(Errno::EMSGSIZE)
        );
        assert_eq!(send_to(&so, &pattern(1472), ADDR_B, 7), Ok(1472));
        assert_eq!(world.a.inet.ipstat.ips_cantfrag.fetch(), 1);
    });
}

#[test]
fn atomic_datagrams_have_no_identification_and_others_a_new_one_each() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        let so = udp(&world.a, 0);
        let sink = udp(&world.b, 7);
        for _ in 0..3 {
            send_to(&so, b"x", ADDR_B, 7).unwrap();
        }
        so.setsockopt_int(IPPROTO_IP, IP_DONTFRAG, 1).unwrap();
        send_to(&so, b"x", ADDR_B, 7).unwrap();
        pass_ms(10);
        drop(sink);
        let ids: Vec<u16> = tap
            .seen(Dir::AtoB, IP)
            .iter()
            .map(|p| Ip::parse(p).unwrap().ip_id.get())
            .collect();
        assert_eq!(ids.len(), 4);
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
        assert_eq!(ids[3], 0);
    });
}

#[test]
fn an_address_comes_with_its_routes_and_goes_with_them() {
    World::run(WireConfig::default(), |world| {
        let a = &world.a;
        let extra = Ipv4Addr::new(172, 16, 1, 1);
        let args = AddrArgs {
            netmask: Some(len_mask(16)),
            ..AddrArgs::default()
        };
        let before: Vec<_> = a
            .inet
            .rib
            .dump()
            .iter()
            .map(|r| (r.dst, r.prefix_len))
            .collect();
        in_aifaddr(&a.inet, &a.ifp, extra, &args).unwrap();
        // Another interface can't have it too.
        assert_eq!(in_aifaddr(&a.inet, &a.lo, extra, &args), Err(Errno::EEXIST));
        let network = a
            .inet
            .rib
            .get(Ipv4Addr::new(172, 16, 0, 0), 16)
            .expect("a route to the network");
        assert_eq!(network.nhop.nh_ifp.if_xname, a.ifp.if_xname);
        let own = a.inet.rib.get(extra, 32).expect("a route to ourselves");
        assert!(own.nhop.nh_ifp.is_loopback());
        assert!(ping(world, extra, 1, b"").is_ok());
        in_difaddr(&a.inet, &a.ifp, extra).unwrap();
        assert_eq!(
            in_difaddr(&a.inet, &a.ifp, extra),
            Err(Errno::EADDRNOTAVAIL)
        );
        let after: Vec<_> = a
            .inet
            .rib
            .dump()
            .iter()
            .map(|r| (r.dst, r.prefix_len))
            .collect();
        assert_eq!(before, after);
    });
}

#[test]
fn a_network_keeps_its_route_while_an_address_is_left() {
    World::run(WireConfig::default(), |world| {
        let a = &world.a;
        let second = Ipv4Addr::new(10, 0, 0, 9);
        a.configure(&a.ifp, second, 24);
        in_difaddr(&a.inet, &a.ifp, ADDR_A).unwrap();
        let so = udp(&world.b, 7);
        send_to(&udp(a, 0), b"still", ADDR_B, 7).unwrap();
        let (data, from) = receive(&so).expect("a datagram");
        assert_eq!(data, b"still");
        assert_eq!(from.as_in().unwrap().addr, second);
    });
}

#[test]
fn an_address_given_again_gets_its_new_mask() {
    World::run(WireConfig::default(), |world| {
        let a = &world.a;
        let second = Ipv4Addr::new(10, 0, 1, 9);
        a.configure(&a.ifp, second, 24);
        a.configure(&a.ifp, second, 28);
        let masks: Vec<_> = a
            .ifp
            .addrs(&NetEpoch::enter())
            .iter()
            .map(|ia| (ia.ia_addr, ia.ia_netmask))
            .collect();
        assert_eq!(masks, [(ADDR_A, len_mask(24)), (second, len_mask(28))]);
        assert!(a.inet.rib.get(Ipv4Addr::new(10, 0, 1, 0), 28).is_some());
        assert!(a.inet.rib.get(Ipv4Addr::new(10, 0, 1, 0), 24).is_none());
        // As the only address too, where the old primary goes first.
        let args = AddrArgs {
            netmask: Some(len_mask(24)),
            ..AddrArgs::default()
        };
        in_sifaddr(&a.inet, &a.ifp, second, &args).unwrap();
        let left: Vec<_> = a.inet.ifaddrs.all(&NetEpoch::enter()).to_vec();
        let left: Vec<_> = left.iter().map(|ia| ia.ia_addr).collect();
        assert_eq!(left, [Ipv4Addr::LOCALHOST, second]);
    });
}

#[test]
fn routes_that_send_from_an_address_go_with_it() {
    World::run(WireConfig::default(), |world| {
        let a = &world.a;
        let far = Ipv4Addr::new(203, 0, 113, 0);
        let ifa = a.ifp.addrs(&NetEpoch::enter())[0].clone();
        let spec = RouteSpec {
            dst: far,
            prefix_len: 24,
            gw: Some(ADDR_B),
            ifp: a.ifp.clone(),
            ifa: Some(ifa),
            flags: RtFlags::STATIC,
            mtu: 0,
        };
        a.inet.rib.add(spec.clone()).unwrap();
        a.configure(&a.ifp, Ipv4Addr::new(10, 0, 0, 9), 24);
        // One that names no address sends from the one on its gateway's network.
        let (alias, beyond) = (Ipv4Addr::new(172, 16, 0, 1), Ipv4Addr::new(198, 51, 100, 0));
        a.configure(&a.ifp, alias, 16);
        let spec = RouteSpec {
            dst: beyond,
            gw: Some(Ipv4Addr::new(172, 16, 0, 9)),
            ifa: None,
            ..spec
        };
        a.inet.rib.add(spec).unwrap();
        let sends_from = a.inet.rib.get(beyond, 24).expect("the route").nhop.src();
        assert_eq!(sends_from, Some(alias));
        in_difaddr(&a.inet, &a.ifp, ADDR_A).unwrap();
        assert!(a.inet.rib.get(far, 24).is_none());
        assert!(a.inet.rib.get(beyond, 24).is_some());
        in_difaddr(&a.inet, &a.ifp, alias).unwrap();
        assert!(a.inet.rib.get(beyond, 24).is_none());
        assert!(a.inet.rib.get(Ipv4Addr::new(10, 0, 0, 0), 24).is_some());
    });
}

#[test]
fn an_interface_switched_off_takes_its_networks_along_and_brings_them_back() {
    World::run(WireConfig::default(), |world| {
        let (rib, ifp) = (&world.a.inet.rib, &world.a.ifp);
        let has = |dst: [u8; 4], len| rib.get(Ipv4Addr::from(dst), len).is_some();
        let second = AddrArgs {
            netmask: Some(len_mask(24)),
            ..AddrArgs::default()
        };
        let addr = Ipv4Addr::new(10, 0, 0, 9);
        in_aifaddr(&world.a.inet, ifp, addr, &second).unwrap();
        let by_neighbour = |dst, flags| RouteSpec {
            dst,
            prefix_len: 16,
            gw: Some(ADDR_B),
            ifp: ifp.clone(),
            ifa: None,
            flags: RtFlags::GATEWAY | flags,
            mtu: 0,
        };
        let by_hand = by_neighbour(Ipv4Addr::new(10, 7, 0, 0), RtFlags::STATIC);
        rib.add(by_hand).unwrap();
        let by_daemon = by_neighbour(Ipv4Addr::new(10, 8, 0, 0), RtFlags::empty());
        rib.add(by_daemon).unwrap();
        ping(world, ADDR_B, 1, &[]).expect("an answer");

        ifp.change_flags(IfFlags::empty(), IfFlags::UP).unwrap();
        assert!(!has([10, 0, 0, 0], 24));
        assert!(!has([10, 8, 0, 0], 16));
        assert!(has([10, 7, 0, 0], 16), "set by hand");
        let so = raw(&world.a, IPPROTO_ICMP);
        let sent = send_to(&so, &icmp_echo_message(77, 2, &[]), ADDR_B, 0);
        assert_eq!(sent, Err(Errno::ENETUNREACH));
        // Through the loopback.
        ping(world, ADDR_A, 3, &[]).expect("an answer of our own");

        ifp.change_flags(IfFlags::UP, IfFlags::empty()).unwrap();
        assert!(has([10, 0, 0, 0], 24));
        ping(world, ADDR_B, 4, &[]).expect("an answer");
    });
}

#[test]
fn a_network_behind_a_pulled_cable_is_out_of_reach_at_once() {
    World::run(WireConfig::default(), |world| {
        let so = raw(&world.a, IPPROTO_ICMP);
        so.connect(&SockAddr::v4(ADDR_B, 0)).unwrap();
        so.bind(&SockAddr::v4(ADDR_A, 0)).unwrap();
        let echo = icmp_echo_message(77, 2, &[]);
        so.send(&echo, MsgFlags::empty()).expect("sent");
        world.wire.set_link_up(false);
        let sent = so.send(&echo, MsgFlags::empty());
        assert_eq!(sent, Err(Errno::EHOSTUNREACH));
        assert_eq!(world.a.inet.ipstat.ips_noroute.fetch(), 1);
        world.wire.set_link_up(true);
        so.send(&echo, MsgFlags::empty()).expect("sent");
    });
}

#[test]
fn addresses_that_name_no_host_are_refused() {
    World::run(WireConfig::default(), |world| {
        let a = &world.a;
        for bad in [
            [224, 0, 0, 1],
            [255, 255, 255, 255],
            [0, 0, 0, 0],
            [127, 0, 0, 2],
            [240, 0, 0, 1],
        ] {
            let refused = in_aifaddr(&a.inet, &a.ifp, Ipv4Addr::from(bad), &AddrArgs::default());
            assert_eq!(refused, Err(Errno::EINVAL), "{bad:?}");
        }
        let holes = AddrArgs {
            netmask: Some(Ipv4Addr::new(255, 0, 255, 0)),
            ..AddrArgs::default()
        };
        assert_eq!(
            in_aifaddr(&a.inet, &a.ifp, Ipv4Addr::new(10, 9, 9, 9), &holes),
            Err(Errno::EINVAL)
        );
    });
}

#[test]
fn random_frames_are_survived_and_leak_nothing() {
    let seeds = 0..4;
    for seed in seeds {
        World::run(
            WireConfig {
                seed,
                ..WireConfig::default()
            },
            |world| {
                let _listener = udp(&world.b, 7);
                let _raw = raw(&world.b, IPPROTO_ICMP);
                world.b.inet.ip.forwarding.set(seed % 2 == 1);
                let mut random = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed + 1);
                let mut next = move || {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random
                };
                for round in 0..3000 {
                    let len = (next() % 120) as usize;
                    let payload: Vec<u8> = (0..len).map(|_| next() as u8).collect();
                    let proto = [1, 2, 6, 17, 17, 1, next() as u8][(next() % 7) as usize];
                    let mut packet = Packet::new(ADDR_A, ADDR_B, proto, &payload);
                    if next() % 3 == 0 {
                        packet.ip.ip_off.set(next() as u16);
                    }
                    if next() % 4 == 0 {
                        packet.options = (0..(next() % 11) * 4).map(|_| next() as u8).collect();
                    }
                    packet.ip.ip_ttl = next() as u8;
                    packet.ip.ip_tos = next() as u8;
                    if next() % 8 == 0 {
                        packet.ip.set_dst(Ipv4Addr::from_bits(next() as u32));
                    }
                    if next() % 8 == 0 {
                        packet.ip.set_src(Ipv4Addr::from_bits(next() as u32));
                    }
                    let mut bytes = packet.bytes();
                    if next() % 4 == 0 {
                        let at = (next() % bytes.len() as u64) as usize;
                        bytes[at] ^= next() as u8;
                    }
                    if next() % 6 == 0 {
                        bytes.truncate((next() % (bytes.len() as u64 + 1)) as usize);
                    }
                    let ether_type = [IP, IP, IP, IP, 0x0806, next() as u16][(next() % 6) as usize];
                    world
                        .wire
                        .inject(Dir::AtoB, &frame(&world.a, &world.b, ether_type, &bytes));
                    if round % 50 == 0 {
                        pass_ms(5);
                    }
                }
                pass_s(40);
                assert_eq!(world.b.inet.reass.packets(), 0);
            },
        );
    }
}
