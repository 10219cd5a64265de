//! A client on a simulated wire, whose other end is a server that a test switches.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use netsim::wire::{Dir, Verdict, WireConfig};
use netsim::world::World;
use sys::kern::kern_synch::pause_sbt;
use sys::kern::lock_order::Leaf;
use sys::machine::in_cksum::in_cksum;

use super::*;
use crate::apps::Output;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Seconds of a lease.
const LEASE: u32 = 100;

struct Screen(Mutex<String, Leaf>);

impl Output for Screen {
    fn write(&self, text: &str) {
        self.0.lock().push_str(text);
    }
}

/// What the server does.
#[derive(Default)]
struct Server {
    answers: AtomicBool,
    /// The last octet of the address it leases.
    host: AtomicU8,
    /// Whether somebody answers for that address.
    taken: AtomicBool,
    /// Messages of a type that came.
    came: [AtomicU8; 9],
}

struct Desk<'a> {
    world: &'a World,
    screen: Arc<Screen>,
    server: Arc<Server>,
}

impl Desk<'_> {
    fn env(&self, line: &str) -> Env {
        Env {
            vnet: self.world.a.vnet.clone(),
            out: self.screen.clone(),
            args: line.split_whitespace().map(String::from).collect(),
            interrupt: Arc::default(),
        }
    }

    fn run(&self, line: &str) -> (i32, String) {
        let status = main(&self.env(line));
        (status, self.printed())
    }

    fn printed(&self) -> String {
        core::mem::take(&mut *self.screen.0.lock())
    }

    fn addresses(&self) -> Vec<String> {
        let epoch = NetEpoch::enter();
        let addrs = self.world.a.ifp.addrs(&epoch);
        addrs.iter().map(|ia| ia.ia_addr.to_string()).collect()
    }

    fn router(&self) -> Option<Ipv4Addr> {
        let route = self.world.a.inet.rib.get(Ipv4Addr::UNSPECIFIED, 0)?;
        route.nhop.gw
    }

    /// Takes the interface down, which ends its client.
    fn end(&self) {
        let ifp = &self.world.a.ifp;
        let _ = ifp.change_flags(IfFlags::empty(), IfFlags::UP);
        wait(1);
    }
}

fn wait(seconds: i64) {
    pause_sbt("test", Sbintime::from_s(seconds));
}

/// A frame that the server sends for one of the client's, which is all of Ethernet, IP, UDP and DHCP.
fn answer(server: &Server, frame: &[u8]) -> Option<Vec<u8>> {
    let dhcp = frame.get(42..)?;
    if frame[12..14] != [8, 0] || frame[23] != 17 || frame[36..38] != [0, 67] {
        return None;
    }
    // Our client's first option is the message's type.
    let said = dhcp[242];
    server.came[usize::from(said)].fetch_add(1, Ordering::Relaxed);
    let kind = match said {
        1 => 2,
        3 => 5,
        _ => return None,
    };
    if !server.answers.load(Ordering::Relaxed) {
        return None;
    }
    let mut out = frame[..42].to_vec();
    let mut text = dhcp[..240].to_vec();
    text[0] = 2;
    text[16..20].copy_from_slice(&[10, 0, 0, server.host.load(Ordering::Relaxed)]);
    text.extend_from_slice(&[53, 1, kind, 54, 4, 10, 0, 0, 2]);
    text.extend_from_slice(&[1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 0, 1, 51, 4]);
    text.extend_from_slice(&LEASE.to_be_bytes());
    text.push(255);
    out[..6].fill(0xff);
    out[6..12].copy_from_slice(&[2, 0x53, 0, 0, 0, 2]);
    let total = 28 + text.len() as u16;
    out[16..18].copy_from_slice(&total.to_be_bytes());
    out[24..26].fill(0);
    out[26..30].copy_from_slice(&SERVER.octets());
    out[30..34].fill(0xff);
    let sum = in_cksum(&out[14..34]);
    out[24..26].copy_from_slice(&sum.to_be_bytes());
    out[34..38].copy_from_slice(&[0, 67, 0, 68]);
    out[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    out[40..42].fill(0);
    out.extend_from_slice(&text);
    Some(out)
}

/// Somebody's answer to the client's ARP probe.
fn arp_answer(server: &Server, frame: &[u8]) -> Option<Vec<u8>> {
    let taken = server.taken.load(Ordering::Relaxed);
    let target = [10, 0, 0, server.host.load(Ordering::Relaxed)];
    if !taken || frame[12..14] != [8, 6] || frame[28..32] != [0; 4] || frame[38..42] != target {
        return None;
    }
    let mut out = frame.to_vec();
    out[..6].copy_from_slice(&frame[6..12]);
    out[6..12].fill(6);
    out[21] = 2;
    out[22..28].fill(6);
    out[28..32].copy_from_slice(&target);
    Some(out)
}

fn with_server(test: impl FnOnce(&Desk<'_>)) {
    World::run(WireConfig::default(), |world| {
        let server = Arc::new(Server::default());
        server.answers.store(true, Ordering::Relaxed);
        server.host.store(50, Ordering::Relaxed);
        let (wire, theirs) = (world.wire.clone(), server.clone());
        world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
            if dir == Dir::AtoB {
                let answers = [answer(&theirs, frame), arp_answer(&theirs, frame)];
                for answer in answers.into_iter().flatten() {
                    wire.inject(Dir::BtoA, &answer);
                }
            }
            Verdict::Pass
        })));
        let screen = Arc::new(Screen(Mutex::new(String::new())));
        let desk = Desk {
            world,
            screen,
            server,
        };
        test(&desk);
        desk.end();
    });
}

#[test]
fn a_lease_gives_the_interface_its_address_and_a_second_client_is_refused() {
    with_server(|desk| {
        let (status, text) = desk.run("dhclient sim0");
        assert_eq!(status, 0, "{text}");
        assert!(text.contains("DHCPOFFER from 10.0.0.2\n"), "{text}");
        assert!(text.ends_with("bound to 10.0.0.50 -- renewal in 50 seconds.\n"));
        assert_eq!(desk.addresses(), ["10.0.0.50"]);
        assert_eq!(desk.router(), Some(Ipv4Addr::new(10, 0, 0, 1)));
        let (status, text) = desk.run("dhclient -b sim0");
        assert_eq!(status, 1);
        assert_eq!(text, "sim0: dhclient already running\n");
        // The first goes on.
        wait(i64::from(LEASE) * 3);
        assert_eq!(desk.addresses(), ["10.0.0.50"]);
    });
}

#[test]
fn a_client_ends_when_its_interface_or_its_address_is_taken_away() {
    with_server(|desk| {
        desk.run("dhclient sim0");
        desk.end();
        assert_eq!(desk.printed(), "Interface sim0 is down, dhclient exiting\n");
        // So another may begin.
        assert_eq!(desk.run("dhclient sim0").0, 0);
        let address = Ipv4Addr::new(10, 0, 0, 50);
        in_difaddr(&desk.world.a.inet, &desk.world.a.ifp, address).unwrap();
        wait(1);
        assert_eq!(
            desk.printed(),
            "My address (10.0.0.50) was deleted, dhclient exiting\n"
        );
    });
}

#[test]
fn a_renewal_with_another_address_takes_the_old_one_off() {
    with_server(|desk| {
        desk.run("dhclient sim0");
        desk.server.host.store(60, Ordering::Relaxed);
        wait(55);
        assert_eq!(desk.addresses(), ["10.0.0.60"]);
        assert_eq!(desk.router(), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(
            desk.printed(),
            "bound to 10.0.0.60 -- renewal in 50 seconds.\n"
        );
    });
}

#[test]
fn a_server_that_is_away_for_hours_is_found_again() {
    with_server(|desk| {
        desk.run("dhclient sim0");
        desk.server.answers.store(false, Ordering::Relaxed);
        wait(i64::from(LEASE) + 1);
        assert_eq!(desk.addresses(), [""; 0]);
        assert_eq!(desk.router(), None);
        wait(7200);
        desk.server.answers.store(true, Ordering::Relaxed);
        wait(RETRY.as_s());
        assert_eq!(desk.addresses(), ["10.0.0.50"]);
    });
}

#[test]
fn without_a_server_the_prompt_returns_after_a_minute_and_the_client_tries_on() {
    with_server(|desk| {
        desk.server.answers.store(false, Ordering::Relaxed);
        let (status, text) = desk.run("dhclient sim0");
        assert_eq!(status, 0);
        assert!(text.contains("No DHCPOFFERS received.\n"), "{text}");
        desk.server.answers.store(true, Ordering::Relaxed);
        wait(RETRY.as_s() + 1);
        assert_eq!(desk.addresses(), ["10.0.0.50"]);
    });
}

#[test]
fn an_address_that_somebody_has_is_declined() {
    with_server(|desk| {
        desk.server.taken.store(true, Ordering::Relaxed);
        desk.run("dhclient -b sim0");
        wait(5);
        assert_eq!(desk.server.came[4].load(Ordering::Relaxed), 1);
        assert_eq!(desk.addresses(), ["10.0.0.1"]);
        let text = desk.printed();
        assert!(
            text.contains("sim0: 10.0.0.50 is in use, declined.\n"),
            "{text}"
        );
        desk.server.taken.store(false, Ordering::Relaxed);
        wait(7);
        assert_eq!(desk.addresses(), ["10.0.0.50"]);
    });
}
