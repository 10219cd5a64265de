//! Routers of IPv6: who hears advertisements gets addresses, routes and times from them, and loses them again.

mod common;

use common::*;
use core::net::Ipv6Addr;
use netinet::netinet6::in6::{in6_hw_ifid, in6_linklocal_of, in6_update_ifa, nd6_set_ifflags};
use netinet::netinet6::in6_src::{in6_selectsrc, in6_setscope};
use netinet::netinet6::nd6_rtr::{RouterPreference, uptime};
use netinet::vnet::NetCx;
use netsim::wire::Dir;
use netsim::world::{Host, World};
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::in_cksum::in_cksum;
use sys::net::ifnet::{IfFlags, In6Iff};
use sys::net::nd_ifinfo::Nd6Iff;
use sys::net::route::RtFlags;

const ETHERTYPE_IPV6: u16 = 0x86dd;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const PREFIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0);
const R1: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x11);
const R2: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x12);

/// A prefix of /64, on the link and for addresses.
fn prefix_option(prefix: Ipv6Addr, flags: u8, valid: u32, preferred: u32) -> Vec<u8> {
    let mut option = vec![3, 4, 64, flags];
    option.extend_from_slice(&valid.to_be_bytes());
    option.extend_from_slice(&preferred.to_be_bytes());
    option.extend_from_slice(&[0; 4]);
    option.extend_from_slice(&prefix.octets());
    option
}

fn mtu_option(mtu: u32) -> Vec<u8> {
    let mut option = vec![5, 1, 0, 0];
    option.extend_from_slice(&mtu.to_be_bytes());
    option
}

/// The Ethernet address of a router that only the test plays.
fn lladdr_of(router: Ipv6Addr) -> [u8; 6] {
    [2, 0, 0, 0, 0, router.octets()[15]]
}

/// An ICMPv6 message as a frame from a router.
fn icmp6_frame(src: Ipv6Addr, dst: Ipv6Addr, hlim: u8, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let mut pseudo = Vec::new();
    pseudo.extend_from_slice(&src.octets());
    pseudo.extend_from_slice(&dst.octets());
    pseudo.extend_from_slice(&(message.len() as u32).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, 58]);
    pseudo.extend_from_slice(&message);
    let sum = in_cksum(&pseudo).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend_from_slice(&lladdr_of(src));
    frame.extend_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&(message.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[58, hlim]);
    frame.extend_from_slice(&src.octets());
    frame.extend_from_slice(&dst.octets());
    frame.extend_from_slice(&message);
    frame
}

/// An advertisement to be sent.
#[derive(Clone)]
struct Advert {
    from: Ipv6Addr,
    hlim: u8,
    flags: u8,
    lifetime: u16,
    reachable: u32,
    retrans: u32,
    options: Vec<u8>,
}

impl Advert {
    fn from(router: Ipv6Addr) -> Self {
        let mut options = vec![1, 1];
        options.extend_from_slice(&lladdr_of(router));
        Self {
            from: router,
            hlim: 0,
            flags: 0,
            lifetime: 1800,
            reachable: 0,
            retrans: 0,
            options,
        }
    }

    fn with(mut self, option: &[u8]) -> Self {
        self.options.extend_from_slice(option);
        self
    }

    fn message(&self) -> Vec<u8> {
        let mut message = vec![134, 0, 0, 0, self.hlim, self.flags];
        message.extend_from_slice(&self.lifetime.to_be_bytes());
        message.extend_from_slice(&self.reachable.to_be_bytes());
        message.extend_from_slice(&self.retrans.to_be_bytes());
        message.extend_from_slice(&self.options);
        message
    }

    /// Host A hears it.
    fn send(&self, world: &World) {
        let frame = icmp6_frame(self.from, ALL_NODES, 255, &self.message());
        world.wire.inject(Dir::BtoA, &frame);
        pass_ms(100);
    }
}

/// With the usual prefix.
fn advert() -> Advert {
    Advert::from(R1).with(&prefix_option(PREFIX, 0xc0, 86400, 14400))
}

/// Host A hears advertisements from now on; its link-local address is checked.
fn listen(world: &World) {
    let set = Nd6Iff::ACCEPT_RTADV;
    nd6_set_ifflags(&world.a.inet, &world.a.ifp, set, Nd6Iff::IFDISABLED);
    pass_s(3);
}

fn own(host: &Host, prefix: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(prefix.to_bits() | u128::from(in6_hw_ifid(host.ifp.lladdr())))
}

fn flags_of(host: &Host, addr: Ipv6Addr) -> Option<In6Iff> {
    let epoch = NetEpoch::enter();
    Some(host.inet.in6_ifaddrs.lookup(&epoch, addr)?.flags())
}

fn lifetimes_of(host: &Host, addr: Ipv6Addr) -> (u32, u32) {
    let epoch = NetEpoch::enter();
    let ia = host.inet.in6_ifaddrs.lookup(&epoch, addr);
    ia.expect("the address").lifetimes(uptime())
}

/// The gateway of the default route, without its zone.
fn default_router(host: &Host) -> Option<Ipv6Addr> {
    let route = host.inet.rib6.get(Ipv6Addr::UNSPECIFIED, 0)?;
    route
        .nhop
        .gw
        .map(netinet::netinet6::in6_src::in6_clearscope)
}

#[test]
fn an_advertised_prefix_becomes_an_address_a_route_and_a_default_route() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        advert().send(world);
        let addr = own(&world.a, PREFIX);
        assert_eq!(
            flags_of(&world.a, addr),
            Some(In6Iff::AUTOCONF | In6Iff::TENTATIVE),
            "it is checked first"
        );
        pass_s(3);
        assert_eq!(flags_of(&world.a, addr), Some(In6Iff::AUTOCONF));
        let (valid, preferred) = lifetimes_of(&world.a, addr);
        assert!((86390..=86400).contains(&valid), "{valid}");
        assert!((14390..=14400).contains(&preferred), "{preferred}");
        let route = world.a.inet.rib6.get(PREFIX, 64).expect("a route");
        assert_eq!(route.nhop.gw, None);
        assert_eq!(default_router(&world.a), Some(R1));
    });
}

#[test]
fn nobody_who_was_not_told_to_hears_advertisements() {
    World::run(WireConfig::default(), |world| {
        nd6_set_ifflags(
            &world.a.inet,
            &world.a.ifp,
            Nd6Iff::empty(),
            Nd6Iff::IFDISABLED,
        );
        pass_s(3);
        advert().send(world);
        assert_eq!(world.a.inet.icmp6stat.icp6s_inhist[134].fetch(), 1);
        assert_eq!(default_router(&world.a), None);
        assert!(world.a.inet.nd6.prefixes().is_empty());
    });
}

#[test]
fn an_interface_that_is_disabled_says_and_hears_nothing() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        advert().send(world);
        pass_s(10);
        assert!(tap.seen(Dir::AtoB, ETHERTYPE_IPV6).is_empty());
        assert_eq!(world.a.inet.ip6stat.ip6s_ifdisabled.fetch(), 1);
        assert!(world.a.ifp.addrs6(&NetEpoch::enter()).is_empty());
    });
}

#[test]
fn routers_are_asked_for_three_times_and_no_more_once_one_has_answered() {
    let solicitations = |tap: &Tap| {
        let seen = tap.seen(Dir::AtoB, ETHERTYPE_IPV6);
        seen.into_iter()
            .filter(|p| p[6] == 58 && p[40] == 133)
            .collect::<Vec<_>>()
    };
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        listen(world);
        pass_s(30);
        let seen = solicitations(&tap);
        assert_eq!(seen.len(), 3);
        let first = &seen[0];
        assert_eq!(first[7], 255);
        let local = in6_linklocal_of(world.a.ifp.lladdr());
        assert_eq!(first[8..24], local.octets());
        assert_eq!(
            first[24..40],
            "ff02::2".parse::<Ipv6Addr>().unwrap().octets()
        );
        assert_eq!(first[48..50], [1, 1], "with our link-layer address");
        assert_eq!(first[50..56], world.a.ifp.lladdr());
        // The link goes and comes: it may be another one.
        tap.clear();
        world.wire.set_link_up(false);
        pass_s(1);
        world.wire.set_link_up(true);
        pass_s(2);
        assert_eq!(solicitations(&tap).len(), 1);
        advert().send(world);
        pass_s(20);
        assert_eq!(solicitations(&tap).len(), 1);
    });
}

#[test]
fn advertisements_that_came_from_beyond_the_link_or_are_malformed_are_dropped() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let good = advert().message();
        let global: Ipv6Addr = "2001:db8::11".parse().unwrap();
        let mut zero_option = good.clone();
        zero_option.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        let mut long_option = good.clone();
        long_option.extend_from_slice(&[1, 2, 0, 0, 0, 0, 0, 0]);
        let mut code = good.clone();
        code[1] = 1;
        let bad = [
            icmp6_frame(R1, ALL_NODES, 64, &good),
            icmp6_frame(global, ALL_NODES, 255, &good),
            icmp6_frame(R1, ALL_NODES, 255, &good[..12]),
            icmp6_frame(R1, ALL_NODES, 255, &zero_option),
            icmp6_frame(R1, ALL_NODES, 255, &long_option),
            icmp6_frame(R1, ALL_NODES, 255, &code),
        ];
        for (n, frame) in bad.iter().enumerate() {
            world.wire.inject(Dir::BtoA, frame);
            pass_ms(10);
            let counted = world.a.inet.icmp6stat.icp6s_badra.fetch();
            assert_eq!(counted, n as u64 + 1, "message {n}");
        }
        assert!(world.a.inet.nd6.routers().is_empty());
        assert!(world.a.inet.nd6.prefixes().is_empty());
    });
}

#[test]
fn prefixes_that_make_no_sense_are_ignored() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
        Advert::from(R1)
            .with(&prefix_option(local, 0xc0, 86400, 14400))
            .with(&prefix_option(ALL_NODES, 0xc0, 86400, 14400))
            .with(&prefix_option(PREFIX, 0xc0, 100, 200))
            .with(&prefix_option(PREFIX, 0x00, 200, 100))
            .with(&prefix_option(PREFIX, 0xc0, 0, 0))
            .send(world);
        pass_s(2);
        assert!(world.a.inet.nd6.prefixes().is_empty());
        assert_eq!(flags_of(&world.a, own(&world.a, PREFIX)), None);
    });
}

#[test]
fn a_prefix_of_another_length_makes_a_route_and_no_address() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let mut option = prefix_option(PREFIX, 0xc0, 86400, 14400);
        option[2] = 56;
        Advert::from(R1).with(&option).send(world);
        pass_s(3);
        assert!(world.a.inet.rib6.get(PREFIX, 56).is_some());
        assert_eq!(world.a.ifp.addrs6(&NetEpoch::enter()).len(), 1);
    });
}

#[test]
fn a_prefix_that_is_not_on_the_link_makes_an_address_and_no_route() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        Advert::from(R1)
            .with(&prefix_option(PREFIX, 0x40, 86400, 14400))
            .send(world);
        pass_s(3);
        let addr = own(&world.a, PREFIX);
        assert_eq!(flags_of(&world.a, addr), Some(In6Iff::AUTOCONF));
        assert!(world.a.inet.rib6.get(PREFIX, 64).is_none());
    });
}

#[test]
fn an_address_is_deprecated_and_then_goes_when_its_lifetimes_end() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        Advert::from(R1)
            .with(&prefix_option(PREFIX, 0xc0, 60, 20))
            .send(world);
        pass_s(10);
        let addr = own(&world.a, PREFIX);
        assert_eq!(flags_of(&world.a, addr), Some(In6Iff::AUTOCONF));
        pass_s(15);
        let deprecated = In6Iff::AUTOCONF | In6Iff::DEPRECATED;
        assert_eq!(flags_of(&world.a, addr), Some(deprecated));
        pass_s(40);
        assert_eq!(flags_of(&world.a, addr), None);
        assert!(world.a.inet.rib6.get(PREFIX, 64).is_none());
        assert!(world.a.inet.nd6.prefixes().is_empty());
    });
}

#[test]
fn a_deprecated_address_is_used_again_after_the_next_advertisement() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let short = Advert::from(R1).with(&prefix_option(PREFIX, 0xc0, 60, 20));
        short.send(world);
        pass_s(25);
        short.send(world);
        let addr = own(&world.a, PREFIX);
        assert_eq!(flags_of(&world.a, addr), Some(In6Iff::AUTOCONF));
    });
}

#[test]
fn nobody_shortens_an_address_to_less_than_two_hours() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        advert().send(world);
        let addr = own(&world.a, PREFIX);
        let say = |valid| {
            Advert::from(R1)
                .with(&prefix_option(PREFIX, 0xc0, valid, 0))
                .send(world);
            lifetimes_of(&world.a, addr).0
        };
        assert!((7190..=7200).contains(&say(60)), "cut to two hours");
        let left = say(60);
        assert!((7190..=7200).contains(&left), "then left alone: {left}");
        assert_eq!(say(90_000), 90_000, "lengthened without limit");
        assert_eq!(say(8000), 8000, "and shortened to more than two hours");
        let deprecated = flags_of(&world.a, addr).unwrap();
        assert!(deprecated.contains(In6Iff::DEPRECATED), "preferred for 0 s");
    });
}

#[test]
fn a_router_that_says_lifetime_zero_is_no_default_router_any_more() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        advert().send(world);
        assert_eq!(default_router(&world.a), Some(R1));
        let mut last = Advert::from(R1);
        last.lifetime = 0;
        last.send(world);
        assert_eq!(default_router(&world.a), None);
        assert!(world.a.inet.nd6.routers().is_empty());
        // What it said of prefixes holds.
        assert!(world.a.inet.rib6.get(PREFIX, 64).is_some());
    });
}

#[test]
fn a_router_is_forgotten_when_its_lifetime_ends() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let mut advert = advert();
        advert.lifetime = 30;
        advert.send(world);
        pass_s(25);
        assert_eq!(default_router(&world.a), Some(R1));
        pass_s(7);
        assert_eq!(default_router(&world.a), None);
    });
}

#[test]
fn the_more_preferred_router_is_the_default_one() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let with = |router, flags| {
            let mut advert = Advert::from(router);
            advert.flags = flags;
            advert.send(world);
            default_router(&world.a)
        };
        assert_eq!(with(R1, 0x00), Some(R1));
        assert_eq!(with(R2, 0x00), Some(R1), "of equals the one in use stays");
        assert_eq!(with(R2, 0x08), Some(R2), "high");
        assert_eq!(with(R2, 0x18), Some(R1), "low");
        assert_eq!(with(R2, 0x10), Some(R1), "the reserved value is medium");
        let routers = world.a.inet.nd6.routers();
        assert_eq!(routers[1].preference, RouterPreference::Medium);
        assert_eq!(with(R1, 0x18), Some(R2));
    });
}

#[test]
fn a_router_that_does_not_answer_gives_way_to_one_that_was_heard() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        advert().send(world);
        Advert::from(R2).send(world);
        pass_s(3);
        assert_eq!(default_router(&world.a), Some(R1));
        // What is sent beyond the link goes to a router that is not there. The entry is stale: it is used, and then asked for.
        let so = sys::kern::uipc_syscalls::SocketHandle::socket(
            &world.a.vnet,
            sys::socket::AF_INET6,
            sys::socket::SockType::Dgram,
            0,
        )
        .unwrap();
        let far = sys::socket::SockAddr::v6("2001:db8:ffff::1".parse().unwrap(), 7);
        for _ in 0..12 {
            so.sendto(b"x", sys::socket::MsgFlags::empty(), &far)
                .expect("a route");
            pass_s(1);
        }
        assert_eq!(default_router(&world.a), Some(R2));
    });
}

#[test]
fn a_default_route_of_the_administrator_stands() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let gw = in6_setscope(R2, &world.a.ifp);
        let spec = sys::net::route::RouteSpec {
            dst: Ipv6Addr::UNSPECIFIED,
            prefix_len: 0,
            gw: Some(gw),
            ifp: world.a.ifp.clone(),
            ifa: None,
            flags: RtFlags::GATEWAY | RtFlags::STATIC,
            mtu: 0,
        };
        world.a.inet.rib6.add(spec).unwrap();
        advert().send(world);
        assert_eq!(default_router(&world.a), Some(R2));
        world.a.inet.rib6.delete(Ipv6Addr::UNSPECIFIED, 0).unwrap();
        pass_s(3);
        assert_eq!(default_router(&world.a), Some(R1), "after it has gone");
    });
}

#[test]
fn a_neighbour_that_says_it_is_no_router_is_none() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        advert().send(world);
        assert_eq!(default_router(&world.a), Some(R1));
        let mut advertisement = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        advertisement.extend_from_slice(&R1.octets());
        advertisement.extend_from_slice(&[2, 1]);
        advertisement.extend_from_slice(&lladdr_of(R1));
        let frame = icmp6_frame(R1, ALL_NODES, 255, &advertisement);
        world.wire.inject(Dir::BtoA, &frame);
        pass_ms(100);
        assert_eq!(default_router(&world.a), None);
    });
}

#[test]
fn times_hop_limit_and_mtu_of_the_link_are_taken() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let ndi = &world.a.ifp.nd6;
        let mut advert = advert().with(&mtu_option(1400));
        (advert.hlim, advert.reachable, advert.retrans) = (128, 10_000, 500);
        advert.send(world);
        assert_eq!(ndi.chlim(), Some(128));
        assert_eq!((ndi.basereachable(), ndi.retrans()), (10_000, 500));
        assert_eq!(world.a.ifp.link_mtu6(), 1400);
        // A lower hop limit could cut us off; an MTU that no link has, or ours has not, is wrong; zero says nothing.
        let mut nonsense = Advert::from(R1).with(&mtu_option(1200));
        (nonsense.hlim, nonsense.reachable) = (1, 4_000_000);
        nonsense.send(world);
        Advert::from(R1).with(&mtu_option(9000)).send(world);
        assert_eq!(ndi.chlim(), Some(128));
        assert_eq!((ndi.basereachable(), ndi.retrans()), (10_000, 500));
        assert_eq!(world.a.ifp.link_mtu6(), 1400);
        let route = world.a.inet.rib6.get(PREFIX, 64).expect("a route");
        assert_eq!(route.nhop.mtu(), 1400);
    });
}

#[test]
fn what_is_sent_has_the_hop_limit_of_the_link_unless_the_program_says_otherwise() {
    use sys::socket::*;
    World::run(WireConfig::default(), |world| {
        listen(world);
        let mut advert = advert();
        advert.hlim = 200;
        advert.send(world);
        pass_s(3);
        let b = Ipv6Addr::from_bits(PREFIX.to_bits() | 2);
        in6_update_ifa(&world.b.inet, &world.b.ifp, b, 64, In6Iff::NODAD).unwrap();
        let tap = Tap::on(world);
        let so = sys::kern::uipc_syscalls::SocketHandle::socket(
            &world.a.vnet,
            AF_INET6,
            SockType::Dgram,
            0,
        )
        .unwrap();
        let to = SockAddr::v6(b, 7);
        so.sendto(b"x", MsgFlags::empty(), &to).unwrap();
        so.setsockopt(IPPROTO_IPV6, IPV6_UNICAST_HOPS, &9i32.to_ne_bytes())
            .unwrap();
        so.sendto(b"x", MsgFlags::empty(), &to).unwrap();
        pass_s(1);
        let sent = tap.seen(Dir::AtoB, ETHERTYPE_IPV6);
        let hops: Vec<u8> = sent.iter().filter(|p| p[6] == 17).map(|p| p[7]).collect();
        assert_eq!(hops, [200, 9]);
    });
}

#[test]
fn an_advertised_address_that_somebody_has_is_not_used() {
    World::run(WireConfig::default(), |world| {
        let addr = own(&world.a, PREFIX);
        in6_update_ifa(&world.b.inet, &world.b.ifp, addr, 64, In6Iff::NODAD).unwrap();
        listen(world);
        advert().send(world);
        pass_s(3);
        let flags = flags_of(&world.a, addr).unwrap();
        assert_eq!(flags, In6Iff::AUTOCONF | In6Iff::DUPLICATED);
        advert().send(world);
        assert_eq!(flags_of(&world.a, addr), Some(flags), "nor made again");
    });
}

#[test]
fn two_hosts_of_one_link_layer_address_do_not_both_speak() {
    World::run(WireConfig::default(), |world| {
        world.b.ifp.set_lladdr(world.a.ifp.lladdr()).unwrap();
        let wake = |host: &Host| {
            nd6_set_ifflags(&host.inet, &host.ifp, Nd6Iff::empty(), Nd6Iff::IFDISABLED);
            pass_s(3);
        };
        wake(&world.b);
        wake(&world.a);
        assert!(world.a.ifp.nd6.flags().contains(Nd6Iff::IFDISABLED));
        assert!(!world.b.ifp.nd6.flags().contains(Nd6Iff::IFDISABLED));
    });
}

#[test]
fn new_connections_come_from_addresses_that_are_not_deprecated() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let other = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0);
        Advert::from(R1)
            .with(&prefix_option(PREFIX, 0xc0, 86400, 20))
            .with(&prefix_option(other, 0xc0, 86400, 14400))
            .send(world);
        pass_s(3);
        let far = Ipv6Addr::from_bits(PREFIX.to_bits() | 0xffff << 64);
        let source = || {
            let epoch = NetEpoch::enter();
            let cx = NetCx::new(&world.a.inet, &epoch);
            in6_selectsrc(&cx, far, &world.a.ifp).map(|ia| ia.ia_addr)
        };
        assert_eq!(source(), Some(own(&world.a, PREFIX)), "the longer match");
        pass_s(20);
        assert_eq!(
            source(),
            Some(own(&world.a, other)),
            "which is deprecated now"
        );
    });
}

#[test]
fn a_prefix_whose_routers_are_gone_is_left_behind_while_another_is_there() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        advert().send(world);
        pass_s(3);
        // The host has moved: another router, another prefix, and the old router does not answer.
        let other = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0);
        Advert::from(R2)
            .with(&prefix_option(other, 0xc0, 86400, 14400))
            .send(world);
        let llt = world.a.ifp.lltable6().unwrap();
        let lle = llt.lookup_or_create(in6_setscope(R1, &world.a.ifp));
        llt.delete(&lle);
        Advert::from(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x13)).send(world);
        let flags = flags_of(&world.a, own(&world.a, PREFIX)).unwrap();
        assert!(flags.contains(In6Iff::DETACHED));
        assert!(world.a.inet.rib6.get(PREFIX, 64).is_none());
        assert!(world.a.inet.rib6.get(other, 64).is_some());
        // It comes back, and so does its prefix; the address is checked again.
        advert().send(world);
        let back = In6Iff::AUTOCONF | In6Iff::TENTATIVE;
        assert_eq!(flags_of(&world.a, own(&world.a, PREFIX)), Some(back));
        assert!(world.a.inet.rib6.get(PREFIX, 64).is_some());
    });
}

#[test]
fn a_prefix_route_survives_the_removal_of_an_address_by_hand() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        let addr = Ipv6Addr::from_bits(PREFIX.to_bits() | 5);
        in6_update_ifa(&world.a.inet, &world.a.ifp, addr, 64, In6Iff::NODAD).unwrap();
        advert().send(world);
        netinet::netinet6::in6::in6_purgeaddr(&world.a.inet, &world.a.ifp, addr).unwrap();
        pass_s(2);
        assert!(world.a.inet.rib6.get(PREFIX, 64).is_some());
    });
}

/// A redirect from a router.
fn redirect(target: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![137, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&dst.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&lladdr_of(target));
    message
}

#[test]
fn a_redirect_of_the_router_in_use_is_followed_for_a_while() {
    World::run(WireConfig::default(), |world| {
        listen(world);
        advert().send(world);
        let far: Ipv6Addr = "2001:db8:ffff::1".parse().unwrap();
        let hear = |src, hlim, target, dst| {
            let frame = icmp6_frame(
                src,
                in6_linklocal_of(world.a.ifp.lladdr()),
                hlim,
                &redirect(target, dst),
            );
            let mut frame = frame;
            frame[..6].copy_from_slice(&world.a.ifp.lladdr());
            world.wire.inject(Dir::BtoA, &frame);
            pass_ms(100);
        };
        let bad = || world.a.inet.icmp6stat.icp6s_badredirect.fetch();
        hear(R2, 255, R2, far);
        hear(R1, 254, R2, far);
        hear(R1, 255, "2001:db8::5".parse().unwrap(), far);
        hear(R1, 255, R2, ALL_NODES);
        assert_eq!(
            bad(),
            4,
            "not of the router in use, not of the link, not to a router, about a group"
        );
        assert!(world.a.inet.rib6.get(far, 128).is_none());
        hear(R1, 255, R2, far);
        let route = world.a.inet.rib6.get(far, 128).expect("a route");
        assert_eq!(route.nhop.gw, Some(in6_setscope(R2, &world.a.ifp)));
        let flags = RtFlags::UP | RtFlags::GATEWAY | RtFlags::HOST | RtFlags::DYNAMIC;
        assert!(route.nhop.nh_flags.contains(flags));
        // From there on only the new router has a say: the destination is on the link.
        hear(R2, 255, far, far);
        let route = world.a.inet.rib6.get(far, 128).expect("a route");
        assert_eq!(route.nhop.gw, None);
        pass_s(610);
        assert!(world.a.inet.rib6.get(far, 128).is_none());
        world
            .a
            .inet
            .vnet
            .sysctl
            .set("net.inet6.icmp6.rediraccept", "0")
            .unwrap();
        hear(R1, 255, R2, far);
        assert!(world.a.inet.rib6.get(far, 128).is_none());
        assert_eq!(bad(), 4);
    });
}

#[test]
fn an_interface_that_comes_up_makes_itself_a_link_local_address() {
    World::run(WireConfig::default(), |world| {
        let ifp = &world.a.ifp;
        ifp.change_flags(IfFlags::empty(), IfFlags::UP).unwrap();
        let set = Nd6Iff::empty();
        nd6_set_ifflags(&world.a.inet, ifp, set, Nd6Iff::IFDISABLED);
        assert!(ifp.addrs6(&NetEpoch::enter()).is_empty());
        ifp.change_flags(IfFlags::UP, IfFlags::empty()).unwrap();
        pass_s(3);
        let local = in6_setscope(in6_linklocal_of(ifp.lladdr()), ifp);
        assert_eq!(flags_of(&world.a, local), Some(In6Iff::empty()));
        let lo: Vec<_> = world.a.lo.addrs6(&NetEpoch::enter()).to_vec();
        assert_eq!(lo[0].ia_addr, Ipv6Addr::LOCALHOST);
        assert_eq!(lo.len(), 2, "the loopback has ::1 and fe80::1");
    });
}
