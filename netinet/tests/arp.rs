//! The life of an ARP entry, and what strangers can do to it.

mod common;

use common::*;
use core::net::Ipv4Addr;
use netinet::if_ether::{arp_delete, arp_set, arp_table};
use netsim::wire::Dir;
use netsim::world::World;
use std::sync::{Arc, Mutex};
use sys::errno::Errno;
use sys::mbuf::Mbuf;
use sys::net::ifnet::{IfDriver, IfFlags, Ifnet, IfnetInit};

const ARP: u16 = 0x0806;
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);

/// An ARP packet by hand.
fn arp_packet(op: u16, sha: [u8; 6], spa: Ipv4Addr, tha: [u8; 6], tpa: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend_from_slice(&op.to_be_bytes());
    bytes.extend_from_slice(&sha);
    bytes.extend_from_slice(&spa.octets());
    bytes.extend_from_slice(&tha);
    bytes.extend_from_slice(&tpa.octets());
    bytes
}

fn inject(world: &World, payload: &[u8]) {
    world
        .wire
        .inject(Dir::AtoB, &frame(&world.a, &world.b, ARP, payload));
    pass_ms(1);
}

/// The neighbours `b` knows.
fn known(world: &World) -> Vec<(Ipv4Addr, Option<[u8; 6]>)> {
    let rows = arp_table(&world.b.inet);
    rows.into_iter()
        .filter(|row| !row.own)
        .map(|row| (row.addr, row.lladdr))
        .collect()
}

#[test]
fn packets_wait_for_the_answer_and_go_in_order() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        let (a, b) = (udp(&world.a, 0), udp(&world.b, 7));
        for byte in 0..16 {
            send_to(&a, &[byte], ADDR_B, 7).unwrap();
        }
        for byte in 0..16 {
            assert_eq!(receive(&b).expect("a held packet").0, [byte]);
        }
        // One question, though sixteen packets wanted to know.
        assert_eq!(tap.seen(Dir::AtoB, ARP).len(), 1);
        assert_eq!(tap.seen(Dir::BtoA, ARP).len(), 1);
        assert_eq!(
            world.a.inet.arpstat.txrequests.fetch(),
            2,
            "with the announcement"
        );
        assert_eq!(world.a.inet.arpstat.dropped.fetch(), 0);
    });
}

#[test]
fn of_too_many_waiting_packets_the_oldest_goes() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = (udp(&world.a, 0), udp(&world.b, 7));
        for byte in 0..20 {
            send_to(&a, &[byte], ADDR_B, 7).unwrap();
        }
        assert_eq!(receive(&b).expect("a held packet").0, [4]);
        assert_eq!(world.a.inet.arpstat.dropped.fetch(), 4);
    });
}

#[test]
fn a_silent_neighbour_is_asked_five_times_and_then_down() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        let so = udp(&world.a, 0);
        for _ in 0..4 {
            // Twice in a second: asked once.
            assert!(send_to(&so, b"x", NOBODY, 7).is_ok());
            pass_ms(600);
            assert!(send_to(&so, b"x", NOBODY, 7).is_ok());
            pass_ms(600);
        }
        assert!(send_to(&so, b"x", NOBODY, 7).is_ok());
        pass_ms(600);
        assert_eq!(tap.seen(Dir::AtoB, ARP).len(), 5);
        assert_eq!(send_to(&so, b"x", NOBODY, 7), Err(Errno::EHOSTDOWN));
        // After 20 seconds without a packet the entry and what it holds are forgotten.
        pass_s(19);
        assert!(
            arp_table(&world.a.inet)
                .iter()
                .any(|row| row.addr == NOBODY)
        );
        pass_s(2);
        assert!(
            !arp_table(&world.a.inet)
                .iter()
                .any(|row| row.addr == NOBODY)
        );
        assert_eq!(world.a.inet.arpstat.timeouts.fetch(), 1);
        assert_eq!(world.a.inet.arpstat.dropped.fetch(), 10);
        assert!(send_to(&so, b"x", NOBODY, 7).is_ok());
    });
}

#[test]
fn an_entry_in_use_is_refreshed_before_it_expires() {
    World::run(WireConfig::default(), |world| {
        let (a, _b) = (udp(&world.a, 0), udp(&world.b, 7));
        send_to(&a, b"x", ADDR_B, 7).unwrap();
        pass_s(1);
        let tap = Tap::on(world);
        for _ in 0..1250 {
            send_to(&a, b"x", ADDR_B, 7).unwrap();
            pass_s(1);
        }
        let questions = tap.seen(Dir::AtoB, ARP);
        assert_eq!(questions.len(), 1, "asked once, around the 1195th second");
        assert_eq!(world.a.inet.arpstat.timeouts.fetch(), 0);
        assert!(
            arp_table(&world.a.inet)
                .iter()
                .any(|row| row.addr == ADDR_B)
        );
    });
}

#[test]
fn an_entry_out_of_use_expires_after_twenty_minutes() {
    World::run(WireConfig::default(), |world| {
        let (a, _b) = (udp(&world.a, 0), udp(&world.b, 7));
        send_to(&a, b"x", ADDR_B, 7).unwrap();
        pass_s(1190);
        let row = arp_table(&world.a.inet)
            .into_iter()
            .find(|row| row.addr == ADDR_B)
            .expect("an entry");
        assert_eq!(row.lladdr, Some(world.b.ifp.lladdr()));
        assert!(row.expires_s.is_some_and(|s| s <= 11));
        pass_s(12);
        assert!(
            !arp_table(&world.a.inet)
                .iter()
                .any(|row| row.addr == ADDR_B)
        );
        assert_eq!(world.a.inet.arpstat.timeouts.fetch(), 1);
    });
}

#[test]
fn an_address_is_announced_when_it_is_assigned() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        world
            .a
            .configure(&world.a.ifp, Ipv4Addr::new(10, 0, 0, 5), 24);
        pass_ms(1);
        let seen = tap.seen(Dir::AtoB, ARP);
        assert_eq!(seen.len(), 1);
        assert_eq!(&seen[0][14..18], [10, 0, 0, 5]);
        assert_eq!(&seen[0][24..28], [10, 0, 0, 5]);
        // Who did not know the address before learns nothing from it.
        assert!(known(world).is_empty());
    });
}

/// An interface that notes with which address it starts, and what it sends.
#[derive(Default)]
struct Leg {
    starts: Mutex<Vec<[u8; 6]>>,
    sent: Mutex<Vec<Vec<u8>>>,
}

impl IfDriver for Leg {
    fn transmit(&self, _ifp: &Ifnet, m: Mbuf) -> Result<(), Errno> {
        let mut frame = vec![0; m.pkt_len()];
        assert!(m.copydata(0, &mut frame));
        self.sent.lock().unwrap().push(frame);
        Ok(())
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        self.starts.lock().unwrap().push(ifp.lladdr());
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::empty());
        Ok(())
    }

    fn stop(&self, ifp: &Ifnet) {
        ifp.set_drv_flags(IfFlags::empty(), IfFlags::RUNNING);
    }
}

impl Leg {
    /// One more interface of `b`, at `addr` in a network of 24 bits.
    fn of_b(world: &World, addr: Ipv4Addr) -> (Arc<Self>, Arc<Ifnet>) {
        let leg = Arc::new(Self::default());
        let init = IfnetInit::ether("leg", 0, OLD);
        let ifp = world.b.vnet.if_attach(init, leg.clone());
        world.b.configure(&ifp, addr, 24);
        (leg, ifp)
    }
}

const OLD: [u8; 6] = [2, 0, 0, 0, 9, 1];
const NEW: [u8; 6] = [2, 0, 0, 0, 9, 2];

#[test]
fn another_link_layer_address_is_told_to_the_driver_and_the_neighbours() {
    World::run(WireConfig::default(), |world| {
        let addr = Ipv4Addr::new(192, 0, 2, 1);
        let (leg, ifp) = Leg::of_b(world, addr);
        leg.sent.lock().unwrap().clear();
        ifp.set_lladdr(NEW).unwrap();
        assert_eq!(*leg.starts.lock().unwrap(), [OLD, NEW]);
        let sent = leg.sent.lock().unwrap().clone();
        let announcement = arp_packet(1, NEW, addr, [0; 6], addr);
        let arp: Vec<_> = sent.iter().filter(|f| f[12..14] == [8, 6]).collect();
        assert_eq!(arp.len(), 1);
        assert_eq!(arp[0][14..42], announcement);
        // What is down learns of it when it comes up.
        ifp.change_flags(IfFlags::empty(), IfFlags::UP).unwrap();
        ifp.set_lladdr(OLD).unwrap();
        assert_eq!(leg.starts.lock().unwrap().len(), 2);
        ifp.change_flags(IfFlags::UP, IfFlags::empty()).unwrap();
        assert_eq!(leg.starts.lock().unwrap().last(), Some(&OLD));
    });
}

#[test]
fn a_proxy_answers_for_hosts_elsewhere_to_hosts_that_belong_here() {
    World::run(WireConfig::default(), |world| {
        let (_leg, _) = Leg::of_b(world, Ipv4Addr::new(192, 0, 2, 1));
        let elsewhere = Ipv4Addr::new(192, 0, 2, 7);
        let tap = Tap::on(world);
        let mac = world.a.ifp.lladdr();
        let ask = |spa| {
            tap.clear();
            inject(world, &arp_packet(1, mac, spa, [0; 6], elsewhere));
            pass_ms(10);
            tap.seen(Dir::BtoA, ARP).len()
        };
        assert_eq!(ask(ADDR_A), 0);
        world.b.inet.arp.proxyall.set(true);
        assert_eq!(ask(ADDR_A), 1);
        // This one's network is behind the other interface.
        assert_eq!(ask(Ipv4Addr::new(192, 0, 2, 9)), 0);
    });
}

#[test]
fn an_announcement_moves_an_entry_that_exists() {
    World::run(WireConfig::default(), |world| {
        let (a, _b) = (udp(&world.a, 0), udp(&world.b, 7));
        send_to(&a, b"x", ADDR_B, 7).unwrap();
        pass_ms(10);
        assert_eq!(known(world), [(ADDR_A, Some(world.a.ifp.lladdr()))]);
        let other = [2, 0, 0, 0, 0, 9];
        inject(world, &arp_packet(1, other, ADDR_A, [0; 6], ADDR_A));
        assert_eq!(known(world), [(ADDR_A, Some(other))]);
    });
}

#[test]
fn only_who_talks_to_us_gets_an_entry() {
    World::run(WireConfig::default(), |world| {
        let mac = [2, 0, 0, 0, 0, 9];
        inject(world, &arp_packet(1, mac, NOBODY, [0; 6], ADDR_A));
        inject(world, &arp_packet(2, mac, NOBODY, [2; 6], ADDR_A));
        assert!(known(world).is_empty());
        inject(world, &arp_packet(1, mac, NOBODY, [0; 6], ADDR_B));
        assert_eq!(known(world), [(NOBODY, Some(mac))]);
        assert_eq!(world.b.inet.arpstat.txreplies.fetch(), 1);
        // A stranger from another network is answered, but not remembered.
        inject(
            world,
            &arp_packet(1, mac, Ipv4Addr::new(192, 0, 2, 1), [0; 6], ADDR_B),
        );
        assert_eq!(world.b.inet.arpstat.txreplies.fetch(), 2);
        assert_eq!(known(world).len(), 1);
    });
}

#[test]
fn who_takes_our_address_is_told_off_and_not_believed() {
    World::run(WireConfig::default(), |world| {
        let tap = Tap::on(world);
        inject(
            world,
            &arp_packet(1, [2, 0, 0, 0, 0, 9], ADDR_B, [0; 6], ADDR_B),
        );
        assert_eq!(world.b.inet.arpstat.dupips.fetch(), 1);
        let answers = tap.seen(Dir::BtoA, ARP);
        assert_eq!(answers.len(), 1);
        assert_eq!(&answers[0][8..14], world.b.ifp.lladdr());
        assert!(known(world).is_empty());
        // A probe claims nothing, and is answered.
        inject(
            world,
            &arp_packet(1, [2, 0, 0, 0, 0, 9], Ipv4Addr::UNSPECIFIED, [0; 6], ADDR_B),
        );
        assert_eq!(world.b.inet.arpstat.dupips.fetch(), 1);
        assert_eq!(tap.seen(Dir::BtoA, ARP).len(), 2);
        assert!(known(world).is_empty());
    });
}

#[test]
fn malformed_packets_are_refused_and_counted() {
    World::run(WireConfig::default(), |world| {
        let good = arp_packet(1, [2, 0, 0, 0, 0, 9], NOBODY, [0; 6], ADDR_B);
        let change = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let bad = [
            good[..7].to_vec(),
            good[..27].to_vec(),
            change(1, 6),
            change(2, 0x86),
            change(4, 8),
            change(5, 16),
            change(8, 3),
            arp_packet(1, [0xff; 6], NOBODY, [0; 6], ADDR_B),
        ];
        for packet in &bad {
            inject(world, packet);
        }
        let stat = &world.b.inet.arpstat;
        assert_eq!(stat.badpackets.fetch(), bad.len() as u64);
        assert_eq!((stat.txreplies.fetch(), known(world).len()), (0, 0));
        inject(world, &good);
        assert_eq!((stat.txreplies.fetch(), known(world).len()), (1, 1));
    });
}

#[test]
fn an_entry_made_by_hand_stays_until_it_is_removed_by_hand() {
    World::run(WireConfig::default(), |world| {
        let b = &world.b.inet;
        let mac = [2, 0, 0, 0, 0, 9];
        arp_set(b, NOBODY, mac, true).unwrap();
        assert_eq!(
            arp_set(b, Ipv4Addr::new(192, 0, 2, 1), mac, false),
            Err(Errno::ENETUNREACH)
        );
        inject(
            world,
            &arp_packet(1, [2, 0, 0, 0, 0, 8], NOBODY, [0; 6], ADDR_B),
        );
        assert_eq!(known(world), [(NOBODY, Some(mac))]);
        let row = arp_table(b)
            .into_iter()
            .find(|row| row.addr == NOBODY)
            .unwrap();
        let text = std::string::ToString::to_string(&row);
        assert_eq!(
            text,
            "? (10.0.0.77) at 02:00:00:00:00:09 on sim0 permanent published [ethernet]"
        );
        // Published: we answer for it.
        let tap = Tap::on(world);
        inject(
            world,
            &arp_packet(1, world.a.ifp.lladdr(), ADDR_A, [0; 6], NOBODY),
        );
        assert_eq!(&tap.seen(Dir::BtoA, ARP)[0][8..14], mac);
        pass_s(3000);
        assert!(known(world).contains(&(NOBODY, Some(mac))));
        arp_delete(b, NOBODY).unwrap();
        assert_eq!(arp_delete(b, NOBODY), Err(Errno::ENOENT));
    });
}

#[test]
fn a_lost_answer_is_made_good_by_the_next_packet() {
    World::run(WireConfig::default(), |world| {
        let mut lost = 0;
        let _tap = Tap::dropping(world, move |dir, frame| {
            let drop = dir == Dir::BtoA && frame[12..14] == ARP.to_be_bytes() && lost < 2;
            lost += i32::from(drop);
            drop
        });
        let (a, b) = (udp(&world.a, 0), udp(&world.b, 7));
        for byte in 0..3 {
            send_to(&a, &[byte], ADDR_B, 7).unwrap();
            pass_ms(1100);
        }
        for byte in 0..3 {
            assert_eq!(receive(&b).expect("a held packet").0, [byte]);
        }
    });
}
