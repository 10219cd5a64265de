//! Which groups a host hears is reported to the routers and switches of its links.

mod common;

use common::*;
use core::net::Ipv6Addr;
use netinet::netinet6::in6::{in6_joingroup, in6_leavegroup, in6_linklocal_of, in6_update_ifa};
use netsim::wire::Dir;
use netsim::world::World;
use sys::machine::in_cksum::in_cksum;
use sys::net::ifnet::In6Iff;

const ETHERTYPE_IPV6: u16 = 0x86dd;
const A6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xa5);
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0x77);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x11);
const IS_EXCLUDE: u8 = 2;
const TO_INCLUDE: u8 = 3;
const TO_EXCLUDE: u8 = 4;

/// Checksum of an ICMPv6 message with its pseudo header.
fn sum_of(src: &[u8], dst: &[u8], message: &[u8]) -> u16 {
    let mut pseudo = [src, dst].concat();
    pseudo.extend_from_slice(&(message.len() as u32).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, 58]);
    pseudo.extend_from_slice(message);
    in_cksum(&pseudo)
}

/// The listener messages that A has sent, each checked for what all of them must have.
fn messages(tap: &Tap) -> Vec<(Ipv6Addr, Vec<u8>)> {
    let sent = tap.seen(Dir::AtoB, ETHERTYPE_IPV6);
    let listener = sent.into_iter().filter(|p| p[6] == 0);
    listener
        .map(|packet| {
            assert_eq!(packet[7], 1, "hop limit");
            assert_eq!(packet[40..48], [58, 0, 5, 2, 0, 0, 1, 0], "router alert");
            assert_eq!(sum_of(&packet[8..24], &packet[24..40], &packet[48..]), 0);
            let dst: [u8; 16] = packet[24..40].try_into().unwrap();
            (Ipv6Addr::from(dst), packet[48..].to_vec())
        })
        .collect()
}

/// The records of version 2's reports: type and group.
fn records(tap: &Tap) -> Vec<(u8, Ipv6Addr)> {
    let mut all = Vec::new();
    for (dst, message) in messages(tap) {
        assert_eq!(dst, "ff02::16".parse::<Ipv6Addr>().unwrap());
        assert_eq!(message[0], 143);
        let count = usize::from(u16::from_be_bytes([message[6], message[7]]));
        assert_eq!(message.len(), 8 + 20 * count);
        for record in message[8..].chunks(20) {
            assert_eq!(record[1..4], [0; 3], "no sources");
            let group: [u8; 16] = record[4..].try_into().unwrap();
            all.push((record[0], Ipv6Addr::from(group)));
        }
    }
    all
}

/// A host whose addresses have been reported.
fn settled(world: &World) -> Tap {
    in6_update_ifa(&world.a.inet, &world.a.ifp, A6, 64, In6Iff::NODAD).expect("an address");
    pass_s(3);
    Tap::on(world)
}

/// A query from a router.
fn query(world: &World, len: usize, delay: u16, group: Ipv6Addr, hlim: u8, alert: bool) {
    let mut message = vec![130, 0, 0, 0];
    message.extend_from_slice(&delay.to_be_bytes());
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(&group.octets());
    message.resize(len, 0);
    let dst = if group.is_unspecified() {
        ALL_NODES
    } else {
        group
    };
    let sum = sum_of(&ROUTER.octets(), &dst.octets(), &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let options: &[u8] = if alert {
        &[58, 0, 5, 2, 0, 0, 1, 0]
    } else {
        &[58, 0, 1, 4, 0, 0, 0, 0]
    };
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&((options.len() + message.len()) as u16).to_be_bytes());
    packet.extend_from_slice(&[0, hlim]);
    packet.extend_from_slice(&ROUTER.octets());
    packet.extend_from_slice(&dst.octets());
    packet.extend_from_slice(options);
    packet.extend_from_slice(&message);
    let frame = frame(&world.b, &world.a, ETHERTYPE_IPV6, &packet);
    world.wire.inject(Dir::BtoA, &frame);
}

#[test]
fn the_groups_of_an_address_are_reported_as_it_is_made() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        in6_update_ifa(&world.a.inet, &world.a.ifp, A6, 64, In6Iff::NODAD).expect("an address");
        pass_s(3);
        let node: Ipv6Addr = "ff02::1:ff00:a5".parse().unwrap();
        let seen = records(&tap);
        let mine = seen.iter().filter(|(_, group)| *group == node);
        assert_eq!(mine.clone().count(), 2, "twice, since one may get lost");
        assert!(mine.clone().all(|(kind, _)| *kind == TO_EXCLUDE));
        assert!(seen.iter().all(|(_, group)| *group != ALL_NODES));
    });
}

#[test]
fn groups_that_are_joined_and_left_are_reported() {
    World::run(WireConfig::default(), |world| {
        let tap = settled(world);
        in6_joingroup(&world.a.inet, &world.a.ifp, GROUP).unwrap();
        in6_joingroup(&world.a.inet, &world.a.ifp, GROUP).unwrap();
        pass_s(3);
        assert_eq!(records(&tap), [(TO_EXCLUDE, GROUP); 2]);
        let local = in6_linklocal_of(world.a.ifp.lladdr());
        let sent = tap.seen(Dir::AtoB, ETHERTYPE_IPV6);
        assert_eq!(
            sent[0][8..24],
            local.octets(),
            "from the link's own address"
        );
        tap.clear();
        in6_leavegroup(&world.a.inet, &world.a.ifp, GROUP).unwrap();
        pass_s(3);
        assert!(records(&tap).is_empty(), "somebody hears it still");
        in6_leavegroup(&world.a.inet, &world.a.ifp, GROUP).unwrap();
        pass_s(3);
        assert_eq!(records(&tap), [(TO_INCLUDE, GROUP); 2]);
    });
}

#[test]
fn a_query_is_answered_with_all_groups_in_one_report() {
    World::run(WireConfig::default(), |world| {
        let tap = settled(world);
        in6_joingroup(&world.a.inet, &world.a.ifp, GROUP).unwrap();
        pass_s(3);
        tap.clear();
        query(world, 28, 1000, Ipv6Addr::UNSPECIFIED, 1, true);
        pass_s(2);
        assert_eq!(messages(&tap).len(), 1);
        let mut seen = records(&tap);
        seen.sort();
        assert!(seen.iter().all(|(kind, _)| *kind == IS_EXCLUDE));
        // The nodes of both addresses, and the group.
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen[2].1, GROUP);
        tap.clear();
        query(world, 28, 1000, GROUP, 1, true);
        pass_s(2);
        assert_eq!(records(&tap), [(IS_EXCLUDE, GROUP)]);
    });
}

#[test]
fn an_old_querier_is_answered_in_its_version_for_a_while() {
    World::run(WireConfig::default(), |world| {
        let tap = settled(world);
        in6_joingroup(&world.a.inet, &world.a.ifp, GROUP).unwrap();
        pass_s(3);
        tap.clear();
        query(world, 24, 1000, GROUP, 1, true);
        pass_s(2);
        let seen = messages(&tap);
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].0, seen[0].1[0]), (GROUP, 131));
        assert_eq!(seen[0].1[8..24], GROUP.octets());
        tap.clear();
        in6_leavegroup(&world.a.inet, &world.a.ifp, GROUP).unwrap();
        pass_s(3);
        let (dst, done) = messages(&tap).remove(0);
        assert_eq!((dst, done[0]), ("ff02::2".parse().unwrap(), 132));
        pass_s(300);
        tap.clear();
        in6_joingroup(&world.a.inet, &world.a.ifp, GROUP).unwrap();
        pass_s(3);
        assert_eq!(records(&tap), [(TO_EXCLUDE, GROUP); 2], "it is forgotten");
    });
}

#[test]
fn queries_that_are_not_of_the_link_are_not_answered() {
    World::run(WireConfig::default(), |world| {
        let tap = settled(world);
        query(world, 28, 100, Ipv6Addr::UNSPECIFIED, 64, true);
        query(world, 28, 100, Ipv6Addr::UNSPECIFIED, 1, false);
        query(world, 26, 100, Ipv6Addr::UNSPECIFIED, 1, true);
        query(world, 20, 100, Ipv6Addr::UNSPECIFIED, 1, true);
        pass_s(3);
        assert!(messages(&tap).is_empty());
        assert_eq!(world.a.inet.icmp6stat.icp6s_badlen.fetch(), 4);
    });
}
