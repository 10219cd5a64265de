//! Commands on two stacks: what is typed, and what stands on the screen then.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use netsim::wire::WireConfig;
use netsim::world::World;
use sys::kern::kern_intr::{FilterStatus, bus_setup_intr};
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_synch::{pause, pause_sbt};
use sys::kern::kern_thread::{Pri, kthread_add, threads};
use sys::kern::lock_order::Leaf;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::IrqLine;
use sys::socket::{AF_INET, MsgFlags, Shutdown, SockAddr, SockType};
use sys::time::Sbintime;

use super::sh::{Shell, Vnets};
use crate::apps::Output;
use crate::console::cn_input;

/// A screen that remembers.
struct Screen(Mutex<String, Leaf>);

impl Output for Screen {
    fn write(&self, text: &str) {
        self.0.lock().push_str(text);
    }
}

/// A shell in front of two stacks.
struct Desk {
    shell: Shell,
    screen: Arc<Screen>,
}

impl Desk {
    /// Types a line; returns the status and what was printed.
    fn run(&mut self, line: &str) -> (i32, String) {
        let status = self.shell.run_line(line);
        (status, core::mem::take(&mut *self.screen.0.lock()))
    }

    /// Types a line that must succeed.
    fn ok(&mut self, line: &str) -> String {
        let (status, text) = self.run(line);
        assert_eq!(status, 0, "{line}: {text}");
        text
    }

    /// Types a line that must fail.
    fn fails(&mut self, line: &str) -> String {
        let (status, text) = self.run(line);
        assert_ne!(status, 0, "{line}: {text}");
        text
    }
}

fn with_shell(test: impl FnOnce(&mut Desk, &World)) {
    let mut config = WireConfig::default();
    // As much as virtual time can carry without getting long.
    config.link.rate = Some(50_000_000);
    World::run(config, |world| {
        let vnets = vec![world.a.vnet.clone(), world.b.vnet.clone()];
        let screen = Arc::new(Screen(Mutex::new(String::new())));
        let shell = Shell::new(screen.clone(), Arc::new(Vnets::new(vnets)));
        let mut desk = Desk { shell, screen };
        test(&mut desk, world);
    });
}

#[test]
fn the_loopback_looks_as_in_freebsd() {
    with_shell(|desk, _| {
        let expected = "\
lo0: flags=1008049<UP,LOOPBACK,RUNNING,MULTICAST,LOWER_UP> metric 0 mtu 16384
\toptions=680003<RXCSUM,TXCSUM,LINKSTATE,RXCSUM_IPV6,TXCSUM_IPV6>
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 ::1 prefixlen 128
\tinet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
\tgroups: lo
\tnd6 options=21<PERFORMNUD,AUTO_LINKLOCAL>
";
        assert_eq!(desk.ok("ifconfig lo0"), expected);
        assert_eq!(
            desk.ok("ifconfig -f inet:cidr lo0").lines().nth(2),
            Some("\tinet 127.0.0.1/8")
        );
    });
}

#[test]
fn ifconfig_changes_an_interface() {
    with_shell(|desk, world| {
        let name = world.a.ifp.if_xname.clone();
        let show = |desk: &mut Desk| desk.ok(&format!("ifconfig {name}"));
        assert!(show(desk).contains("\tinet 10.0.0.1 netmask 0xffffff00 broadcast 10.0.0.255\n"));
        desk.ok(&format!("ifconfig {name} inet 10.1.0.1/16 alias"));
        assert!(show(desk).contains("\tinet 10.1.0.1 netmask 0xffff0000 broadcast 10.1.255.255\n"));
        desk.ok(&format!("ifconfig {name} 10.1.0.1 -alias"));
        assert!(!show(desk).contains("10.1.0.1"));
        desk.ok(&format!(
            "ifconfig {name} 192.168.7.1 netmask 255.255.255.128"
        ));
        assert!(
            show(desk).contains("\tinet 192.168.7.1 netmask 0xffffff80 broadcast 192.168.7.127\n")
        );
        assert!(!show(desk).contains("10.0.0.1"));
        desk.ok(&format!("ifconfig {name} mtu 1400 down"));
        let text = show(desk);
        assert!(text.contains("mtu 1400") && !text.contains("<UP"), "{text}");
        desk.ok(&format!("ifconfig {name} up"));
        assert!(show(desk).contains("<UP,"));
        assert!(
            desk.fails("ifconfig em7")
                .contains("interface em7 does not exist")
        );
        assert!(
            desk.fails(&format!("ifconfig {name} 10.0.0.300"))
                .contains("bad value")
        );
        assert!(
            desk.fails(&format!("ifconfig {name} mtu"))
                .contains("requires argument")
        );
        assert!(
            desk.fails("ifconfig -Z")
                .contains("illegal option -- Z\nusage: ifconfig")
        );
    });
}

#[test]
fn ping_reports_as_in_freebsd() {
    with_shell(|desk, _| {
        let text = desk.ok("ping -c 2 10.0.0.2");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "PING 10.0.0.2 (10.0.0.2): 56 data bytes");
        for (line, seq) in lines[1..3].iter().zip(0..) {
            let start = format!("64 bytes from 10.0.0.2: icmp_seq={seq} ttl=64 time=");
            assert!(line.starts_with(&start) && line.ends_with(" ms"), "{line}");
        }
        assert_eq!(lines[3], "");
        assert_eq!(lines[4], "--- 10.0.0.2 ping statistics ---");
        assert_eq!(
            lines[5],
            "2 packets transmitted, 2 packets received, 0.0% packet loss"
        );
        assert!(lines[6].starts_with("round-trip min/avg/max/stddev = "));
        // Large ones travel in fragments, unless they may not.
        let text = desk.ok("ping -c 1 -s 8000 10.0.0.2");
        assert!(text.contains("8008 bytes from 10.0.0.2"));
        let text = desk.ok("ping -c 1 -s 20000 10.0.0.2");
        assert!(text.contains("20008 bytes from 10.0.0.2"));
        let text = desk.fails("ping -c 1 -D -s 8000 10.0.0.2");
        assert!(text.contains("ping: sendto: Message too long"), "{text}");
        assert!(text.contains("1 packets transmitted, 0 packets received, 100.0% packet loss"));
        // The neighbour is known now.
        let arp = desk.ok("arp -an");
        assert!(arp.contains("? (10.0.0.2) at "), "{arp}");
        assert!(arp.contains("? (10.0.0.1) at ") && arp.contains(" permanent [ethernet]"));
        desk.ok("arp -d 10.0.0.2");
        assert!(
            desk.fails("arp 10.0.0.2")
                .contains("10.0.0.2 (10.0.0.2) -- no entry")
        );
        // Nobody there.
        let (status, text) = desk.run("ping -c 1 -W 500 10.0.0.9");
        assert_eq!(status, 2, "{text}");
    });
}

/// Gives both ends of the wire an IPv6 address.
fn speak_ipv6(desk: &mut Desk, world: &World) -> String {
    let name = world.a.ifp.if_xname.clone();
    desk.ok(&format!("ifconfig {name} inet6 2001:db8::1/64 alias"));
    let other = &world.b.ifp.if_xname;
    desk.ok(&format!(
        "vnet b ifconfig {other} inet6 2001:db8::2 prefixlen 64"
    ));
    desk.ok("sleep 3");
    name
}

#[test]
fn ifconfig_shows_and_changes_ipv6_addresses_and_flags() {
    with_shell(|desk, world| {
        let name = world.a.ifp.if_xname.clone();
        let show = |desk: &mut Desk| desk.ok(&format!("ifconfig {name}"));
        assert!(show(desk).ends_with("\tnd6 options=29<PERFORMNUD,IFDISABLED,AUTO_LINKLOCAL>\n"));
        desk.ok(&format!(
            "ifconfig {name} inet6 2001:db8::1 prefixlen 56 pltime 100 vltime 200"
        ));
        assert!(show(desk).contains("\tinet6 2001:db8::1 prefixlen 56 tentative\n"));
        desk.ok("sleep 3");
        let text = show(desk);
        let local = netinet::netinet6::in6::in6_linklocal_of(world.a.ifp.lladdr());
        let scope = world.a.ifp.if_index.0;
        let line = format!("\tinet6 {local}%{name} prefixlen 64 scopeid {scope:#x}\n");
        assert!(text.contains(&line), "{text}");
        assert!(
            text.contains("\tinet6 2001:db8::1 prefixlen 56\n"),
            "{text}"
        );
        assert!(
            text.ends_with("\tnd6 options=21<PERFORMNUD,AUTO_LINKLOCAL>\n"),
            "{text}"
        );
        let text = desk.ok(&format!("ifconfig -L {name} inet6"));
        assert!(
            text.contains("2001:db8::1 prefixlen 56 pltime 97 vltime 197\n"),
            "{text}"
        );
        assert!(!text.contains("\tinet "), "{text}");
        desk.ok(&format!(
            "ifconfig {name} inet6 accept_rtadv -auto_linklocal mtu 1400"
        ));
        let text = show(desk);
        assert!(
            text.contains("mtu 1400") && text.contains("nd6 options=3<PERFORMNUD,ACCEPT_RTADV>")
        );
        desk.ok(&format!("ifconfig {name} inet6 2001:db8::1 deprecated"));
        assert!(show(desk).contains("2001:db8::1 prefixlen 56 deprecated\n"));
        desk.ok(&format!("ifconfig {name} inet6 2001:db8::1 -alias"));
        assert!(!show(desk).contains("2001:db8"));
        let again = desk.fails(&format!("ifconfig {name} inet6 2001:db8::1 delete"));
        assert!(again.contains("SIOCDIFADDR"), "{again}");
        let bad = desk.fails(&format!("ifconfig {name} inet6 2001:db8::g"));
        assert!(bad.contains("bad value"), "{bad}");
    });
}

#[test]
fn ping_reports_answers_of_ipv6_as_in_freebsd() {
    with_shell(|desk, world| {
        let name = speak_ipv6(desk, world);
        for command in [
            "ping -6 -c 2 2001:db8::2",
            "ping6 -c 2 2001:db8::2",
            "ping -c 2 2001:db8::2",
        ] {
            let text = desk.ok(command);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(
                lines[0],
                "PING(56=40+8+8 bytes) 2001:db8::1 --> 2001:db8::2"
            );
            for (line, seq) in lines[1..3].iter().zip(0..) {
                let start = format!("16 bytes from 2001:db8::2, icmp_seq={seq} hlim=64 time=");
                assert!(line.starts_with(&start) && line.ends_with(" ms"), "{line}");
            }
            assert_eq!(
                lines[5],
                "2 packets transmitted, 2 packets received, 0.0% packet loss"
            );
        }
        let text = desk.ok("ping6 -c 1 -s 8000 2001:db8::2");
        assert!(text.contains("8008 bytes from 2001:db8::2"), "{text}");
        let text = desk.fails("ping6 -c 1 -D -s 8000 2001:db8::2");
        assert!(text.contains("Message too long"), "{text}");
        // Everybody on the link, from the link's own address.
        let text = desk.ok(&format!("ping6 -c 1 -I {name} ff02::1"));
        let local = netinet::netinet6::in6::in6_linklocal_of(world.a.ifp.lladdr());
        assert!(
            text.contains(&format!("{local}%{name} --> ff02::1%{name}")),
            "{text}"
        );
        let (status, text) = desk.run("ping6 -c 1 -W 500 2001:db8::9");
        assert_eq!(status, 2, "{text}");
        assert!(
            desk.fails("ping -4 2001:db8::2")
                .contains("not an IPv4 address")
        );
        assert!(
            desk.fails("ping -6 10.0.0.2")
                .contains("not an IPv6 address")
        );
    });
}

#[test]
fn ndp_shows_and_forgets_neighbours() {
    with_shell(|desk, world| {
        let name = speak_ipv6(desk, world);
        desk.ok("ping6 -c 1 2001:db8::2");
        let text = desk.ok("ndp -an");
        assert!(text.starts_with(
            "Neighbor                             Linklayer Address  Netif Expire    S Flags\n"
        ));
        let line = |text: &str, addr: &str| {
            let found = text
                .lines()
                .find(|line| line.starts_with(&format!("{addr} ")));
            found.map(|line| {
                line.split_whitespace()
                    .map(String::from)
                    .collect::<Vec<_>>()
            })
        };
        let neighbour = line(&text, "2001:db8::2").expect("the neighbour");
        assert_eq!((&neighbour[2], &neighbour[4][..]), (&name, "R"));
        assert_eq!(
            line(&text, "2001:db8::1").expect("ourselves")[3],
            "permanent"
        );
        assert!(desk.ok("ndp 2001:db8::2").contains(&neighbour[1]));
        assert_eq!(
            desk.ok("ndp -d 2001:db8::2"),
            "2001:db8::2 (2001:db8::2) deleted\n"
        );
        assert!(desk.fails("ndp 2001:db8::2").contains("-- no entry"));
        desk.ok("ndp -s 2001:db8::7 02:00:00:00:00:07");
        let text = desk.ok("ndp -n 2001:db8::7");
        assert_eq!(
            line(&text, "2001:db8::7").unwrap()[1..4],
            ["02:00:00:00:00:07", &name, "permanent"]
        );
        let text = desk.ok("ndp -c");
        assert!(text.contains("2001:db8::7 (2001:db8::7) deleted"), "{text}");
        let text = desk.ok(&format!("ndp -i {name} -nud no_radr"));
        assert!(
            text.contains("basereachable=30s0ms, retrans=1s0ms\nFlags: auto_linklocal no_radr \n"),
            "{text}"
        );
        assert!(
            desk.fails("ndp -d 2001:db8::99")
                .contains("No such process")
        );
    });
}

#[test]
fn routes_of_ipv6_are_added_shown_and_deleted() {
    with_shell(|desk, world| {
        let name = speak_ipv6(desk, world);
        assert_eq!(
            desk.ok(&format!("route add -inet6 default fe80::1%{name}")),
            format!("add net default: gateway fe80::1%{name}\n")
        );
        desk.ok("route -6 add 2001:db8:2::/48 2001:db8::2 -mtu 1400");
        desk.ok("route add -inet6 -net 2001:db8:3:: -prefixlen 64 2001:db8::2");
        let table = desk.ok("netstat -rn -f inet6");
        assert!(!table.contains("Internet:"), "{table}");
        let wanted = format!(
            "\nInternet6:\n\
             Destination                       Gateway                       Flags         Netif Expire\n\
             default                           fe80::1%{name}"
        );
        assert!(table.contains(&wanted), "{table}");
        assert!(
            table
                .contains("\n2001:db8:2::/48                   2001:db8::2                   UGS "),
            "{table}"
        );
        assert!(table.contains(&format!("\nfe80::%{name}/64")), "{table}");
        let get = desk.ok("route get -inet6 2001:db8:2::77");
        assert!(get.contains("destination: 2001:db8:2::\n       mask: ffff:ffff:ffff::\n    gateway: 2001:db8::2\n"), "{get}");
        assert!(get.contains("    1400 "), "{get}");
        desk.ok("route delete -inet6 2001:db8:2::/48");
        desk.ok("route flush -inet6");
        let table = desk.ok("netstat -rn");
        assert!(
            !table.contains("2001:db8:3") && table.contains("Internet:"),
            "{table}"
        );
        let failed = desk.fails("route add -inet6 2001:db8:2::/48 2001:db8:99::1");
        assert!(failed.contains("Network is unreachable"), "{failed}");
    });
}

#[test]
fn netstat_tells_the_families_apart() {
    with_shell(|desk, world| {
        let name = speak_ipv6(desk, world);
        desk.ok("digest recv 5000 &");
        desk.ok("iperf3 -s -6 -1 -D");
        desk.ok("iperf3 -s -4 -p 5202 -1 -D; sleep 0.1");
        let text = desk.ok("netstat -an");
        for line in [
            "tcp46      0      0 *.5000                 *.*                    LISTEN",
            "tcp6       0      0 *.5201                 *.*                    LISTEN",
            "tcp4       0      0 *.5202                 *.*                    LISTEN",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let text = desk.ok("netstat -an -f inet");
        assert!(!text.contains("tcp6") && text.contains("tcp46"), "{text}");
        // A connection by IPv4 to the socket of both is one of IPv4.
        desk.ok("vnet b digest send -c 10.0.0.1 5000 100K 7; wait");
        let text = desk.ok("netstat -s -p ip6");
        assert!(text.starts_with("ip6:\n") && text.contains(" packets sent from this host\n"));
        let text = desk.ok("netstat -s -p icmp6");
        assert!(
            text.contains("\tOutput histogram:\n\t\tneighbor solicitation: "),
            "{text}"
        );
        desk.ok("netstat -sz -p icmp6");
        assert!(
            !desk
                .ok("netstat -s -p icmp6")
                .contains("neighbor solicitation: ")
        );
        let text = desk.ok("netstat -in");
        assert!(
            text.contains(" 2001:db8::/64 ") && text.contains(&format!("fe80::%{name}/64")),
            "{text}"
        );
    });
}

#[test]
fn iperf3_measures_over_ipv6_in_both_directions() {
    with_shell(|desk, world| {
        speak_ipv6(desk, world);
        desk.ok("vnet b iperf3 -s -D; sleep 0.1");
        for options in [
            "",
            "-R",
            "-u -b 10M",
            "-u -b 10M -R",
            "-u -b 10M -l 8K -P 2",
        ] {
            let text = desk.ok(&format!("iperf3 -6 -c 2001:db8::2 -t 1 {options}"));
            assert!(text.contains("iperf Done."), "{options}: {text}");
            assert!(text.contains("local 2001:db8::1 port "), "{text}");
        }
        // The same server hears IPv4, and is bound to an address that is asked for.
        let text = desk.ok("iperf3 -c 10.0.0.2 -t 1 -B 10.0.0.1");
        assert!(text.contains("local 10.0.0.1 port "), "{text}");
        let text = desk.fails("iperf3 -c 2001:db8::2 -t 1 -B 2001:db8::99");
        assert!(text.contains("unable to bind to the address"), "{text}");
        let tcp = &world.b.inet.tcp.tcbinfo;
        assert!(tcp.snapshot().iter().any(|inp| inp.read().is_ipv6()));
    });
}

/// A connection to the iperf3 server of stack b that has shown its cookie.
fn iperf3_connection(world: &World) -> SocketHandle {
    let so = SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Stream, 0).unwrap();
    let server = SockAddr::v4(Ipv4Addr::new(10, 0, 0, 2), 5201);
    so.connect(&server).unwrap();
    so.send(&[b'c'; 37], MsgFlags::empty()).unwrap();
    so
}

/// Asks an iperf3 server for a test; the `answer` that comes.
fn iperf3_ask<const N: usize>(control: &SocketHandle, parameters: &str) -> [u8; N] {
    // PARAM_EXCHANGE.
    assert_eq!(heard(control), [9]);
    let len = (parameters.len() as u32).to_be_bytes();
    control.send(&len, MsgFlags::empty()).unwrap();
    control
        .send(parameters.as_bytes(), MsgFlags::empty())
        .unwrap();
    heard(control)
}

fn heard<const N: usize>(control: &SocketHandle) -> [u8; N] {
    let mut bytes = [0; N];
    assert_eq!(control.recv(&mut bytes, MsgFlags::WAITALL), Ok(N));
    bytes
}

#[test]
fn an_iperf3_client_that_stops_reading_does_not_hold_up_the_server() {
    with_shell(|desk, world| {
        desk.ok("vnet b iperf3 -s -D; sleep 0.1");
        let control = iperf3_connection(world);
        let reverse = r#"{"tcp":true,"time":10,"parallel":1,"len":131072,"reverse":true}"#;
        // CREATE_STREAMS, TEST_START, TEST_RUNNING.
        assert_eq!(iperf3_ask(&control, reverse), [10]);
        let stream = iperf3_connection(world);
        assert_eq!(heard(&control), [1, 2]);
        // The buffers fill, and the client is gone but for its stream.
        desk.ok("sleep 1");
        drop(control);
        desk.ok("sleep 1");
        let text = desk.ok("iperf3 -c 10.0.0.2 -t 1");
        assert!(text.contains("iperf Done."), "{text}");
        drop(stream);
    });
}

#[test]
fn an_iperf3_server_says_what_it_has_not() {
    with_shell(|desk, world| {
        desk.ok("vnet b iperf3 -s -D; sleep 0.1");
        for parameters in [r#"{"tcp":true,"bidirectional":true}"#, r#"{"sctp":true}"#] {
            // SERVER_ERROR, and IEUNIMP.
            let control = iperf3_connection(world);
            let answer = iperf3_ask(&control, parameters);
            assert_eq!(answer, [0xfe, 0, 0, 0, 13], "{parameters}");
        }
    });
}

#[test]
fn an_iperf3_test_shorter_than_an_interval_is_reported_as_one() {
    with_shell(|desk, _| {
        desk.ok("vnet b iperf3 -s -D; sleep 0.1");
        let rows = |text: &str| text.matches("/sec").count();
        // The interval, sender and receiver; all of it from the client and from the server.
        let text = desk.ok("iperf3 -c 10.0.0.2 -n 100K; sleep 0.1");
        assert_eq!(rows(&text), 6, "{text}");
        let text = desk.ok("iperf3 -c 10.0.0.2 -n 100K -i 0; sleep 0.1");
        assert_eq!(rows(&text), 5, "{text}");
    });
}

#[test]
fn an_idle_connection_to_inetd_keeps_nobody_out() {
    with_shell(|desk, world| {
        desk.ok("vnet b inetd discard & sleep 0.1");
        let connect = || {
            let so = SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Stream, 0).unwrap();
            so.connect(&SockAddr::v4(Ipv4Addr::new(10, 0, 0, 2), 9))
                .unwrap();
            so
        };
        let idle = connect();
        for _ in 0..100 {
            let so = connect();
            so.set_rcvtimeo(Some(Sbintime::from_s(2))).unwrap();
            so.shutdown(Shutdown::Write).unwrap();
            // The service ends the connection too.
            assert_eq!(so.recv(&mut [0; 1], MsgFlags::empty()), Ok(0));
        }
        drop(idle);
    });
}

#[test]
fn ctrl_c_ends_the_wait_for_jobs_and_leaves_them() {
    with_shell(|_, world| {
        let vnets = Arc::new(Vnets::new(vec![world.a.vnet.clone()]));
        let mut shell = Shell::on_console(vnets);
        let typist = kthread_add("typist", Pri::PUSER, None, || {
            pause_sbt("type", Sbintime::from_ms(500));
            cn_input([3]);
        });
        assert_eq!(shell.run_line("sleep 5 & wait"), 130);
        typist.join();
        assert_eq!(shell.run_line("wait %1"), 0);
        assert_eq!(shell.run_line("wait %1"), 127);
    });
}

#[test]
fn routes_are_added_shown_and_deleted() {
    with_shell(|desk, world| {
        let name = &world.a.ifp.if_xname;
        assert_eq!(
            desk.ok("route add default 10.0.0.2"),
            "add net default: gateway 10.0.0.2\n"
        );
        assert_eq!(
            desk.ok("route add -net 172.16.0.0/12 10.0.0.2"),
            "add net 172.16.0.0/12: gateway 10.0.0.2\n"
        );
        let table = desk.ok("netstat -rn");
        let row = |dst: &str, gw: &str, flags: &str| {
            table.lines().any(|line| {
                line.split_whitespace().collect::<Vec<_>>()[..].starts_with(&[dst, gw, flags])
            })
        };
        assert!(row("default", "10.0.0.2", "UGS"), "{table}");
        assert!(row("172.16.0.0/12", "10.0.0.2", "UGS"), "{table}");
        assert!(
            row(
                "10.0.0.0/24",
                &format!("link#{}", world.a.ifp.if_index.0),
                "U"
            ),
            "{table}"
        );
        assert!(table.starts_with("Routing tables\n\nInternet:\nDestination        Gateway            Flags         Netif Expire\n"));
        let text = desk.ok("route -n get 172.16.1.1");
        assert!(text.contains("    gateway: 10.0.0.2\n"), "{text}");
        assert!(text.contains(&format!("  interface: {name}\n")), "{text}");
        assert!(
            text.contains("      flags: <UP,GATEWAY,DONE,STATIC>\n"),
            "{text}"
        );
        assert!(
            desk.fails("route add default 10.0.0.2")
                .contains("route already in table")
        );
        assert_eq!(
            desk.ok("route delete 172.16.0.0/12"),
            "delete net 172.16.0.0/12\n"
        );
        assert!(
            desk.fails("route delete 172.16.0.0/12")
                .contains("not in table")
        );
        assert!(!desk.fails("route add 1.2.3.4 99.9.9.9").is_empty());
        assert!(desk.fails("route frob").contains("usage: route"));
    });
}

#[test]
fn sysctl_reads_and_writes() {
    with_shell(|desk, _| {
        assert_eq!(desk.ok("sysctl net.inet.ip.ttl"), "net.inet.ip.ttl: 64\n");
        assert_eq!(
            desk.ok("sysctl net.inet.ip.ttl=63"),
            "net.inet.ip.ttl: 64 -> 63\n"
        );
        assert_eq!(desk.ok("sysctl -n net.inet.ip.ttl"), "63\n");
        // The other instance has its own.
        assert_eq!(desk.ok("vnet b sysctl -n net.inet.ip.ttl"), "64\n");
        assert!(
            desk.ok("sysctl net.inet.ip")
                .contains("net.inet.ip.forwarding: 0\n")
        );
        assert_eq!(
            desk.fails("sysctl net.frob"),
            "sysctl: unknown oid 'net.frob'\n"
        );
        assert!(
            desk.fails("sysctl net.inet.ip.ttl=900")
                .contains("Invalid argument")
        );
        assert!(desk.fails("sysctl").contains("usage: sysctl"));
        let all = desk.ok("sysctl -a");
        // A value may have lines of its own, of words.
        let mut names: Vec<&str> = all
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name)
            .filter(|name| !name.contains(' '))
            .collect();
        let unsorted = names.clone();
        names.sort();
        names.dedup();
        assert_eq!(names, unsorted);
    });
}

#[test]
fn commands_that_do_not_exist_or_are_misspelt_say_so() {
    with_shell(|desk, _| {
        assert_eq!(
            desk.run("frobnicate -x"),
            (127, "frobnicate: not found\n".to_string())
        );
        assert_eq!(
            desk.run("ping 'x"),
            (
                2,
                "sh: Syntax error: unterminated quoted string\n".to_string()
            )
        );
        assert!(
            desk.fails("netstat -p frob")
                .contains("frob: unknown or uninstrumented protocol")
        );
        assert!(desk.fails("vmstat").contains("usage: vmstat"));
        assert!(
            desk.fails("vnet nowhere ping x")
                .contains("no such instance")
        );
        assert_eq!(desk.run("ping; echo -s").1.lines().last(), Some("64"));
        let help = desk.ok("help");
        for word in ["ifconfig", "iperf3", "poweroff", "jobs"] {
            assert!(help.contains(word), "{help}");
        }
    });
}

#[test]
fn netstat_shows_what_it_is_asked() {
    with_shell(|desk, _| {
        desk.ok("ping -c 1 10.0.0.2");
        let text = desk.ok("netstat -s");
        for heading in ["tcp:\n", "udp:\n", "ip:\n", "icmp:\n", "arp:\n"] {
            assert!(text.contains(heading), "{text}");
        }
        assert!(
            text.contains("\tInput histogram:\n\t\techo reply: 1\n"),
            "{text}"
        );
        assert!(
            text.contains("\t0 connections in TIME_WAIT state\n"),
            "{text}"
        );
        assert!(
            desk.ok("netstat -m")
                .contains(" mbufs in use (current/cache/total)\n")
        );
        assert!(desk.ok("netstat -Q").contains("Workstreams:\n"));
        assert!(
            desk.ok("netstat -in")
                .starts_with("Name    Mtu Network        Address")
        );
        assert!(desk.ok("netstat -s -p icmp").starts_with("icmp:\n"));
        assert!(desk.ok("vmstat -z").contains("\nmbuf:"));
        desk.ok("vmstat -ia");
        desk.ok("netstat -w 1 -q 2");
    });
}

#[test]
fn jobs_run_in_the_background_and_are_killed() {
    with_shell(|desk, _| {
        let text = desk.ok("sleep 1000 &");
        assert!(text.starts_with("[1] "), "{text}");
        assert_eq!(desk.ok("jobs"), "[1] Running                 sleep 1000\n");
        // The status of a job that was ended.
        assert_eq!(desk.run("kill %1; wait %1").0, 130);
        assert_eq!(desk.ok("jobs"), "");
        assert!(desk.fails("kill %1").contains("No such job"));
    });
}

#[test]
fn bytes_arrive_as_they_were_sent() {
    with_shell(|desk, _| {
        let mut text = desk.ok("vnet b digest recv 5000 &");
        text += &desk.ok("sleep 0.1; digest send -c 10.0.0.2 5000 3M 42; wait");
        let word = |what: &str| {
            let line = text.lines().find(|line| line.contains(what));
            line.unwrap_or_else(|| panic!("{text}"))
                .split(' ')
                .next_back()
                .map(String::from)
        };
        assert!(text.contains("listening on 5000\n"));
        assert!(text.contains("digest: received 3145728 sha256 "), "{text}");
        assert_eq!(word("received"), word("sent"));
        desk.ok("vnet b digest send 5001 100000 &");
        let text = desk.ok("sleep 0.1; digest recv -c 10.0.0.2 5001; wait");
        assert!(text.contains("digest: received 100000 sha256 "), "{text}");
        assert!(
            desk.fails("digest recv -c 10.0.0.2 5001")
                .contains("connect: Connection refused")
        );
    });
}

#[test]
fn requests_are_answered_and_counted() {
    with_shell(|desk, _| {
        desk.ok("vnet b rr -s -1 &");
        let text = desk.ok("sleep 0.1; rr -c 10.0.0.2 -t 2; wait");
        let line = text
            .lines()
            .find(|line| line.contains("transactions in"))
            .unwrap();
        assert!(
            line.starts_with("rr: ") && line.contains(" transactions in 2.0"),
            "{line}"
        );
        assert!(line.ends_with(" per second"));
    });
}

#[test]
fn iperf3_measures_both_ways_over_tcp_and_udp() {
    with_shell(|desk, _| {
        for options in [
            "-t 1",
            "-t 1 -R",
            "-n 4M -P 3",
            "-u -b 10M -t 1",
            "-u -b 10M -t 1 -R -P 2",
            "-u -b 20M -l 8000 -t 1",
        ] {
            desk.ok("vnet b iperf3 -s -1 &");
            let text = desk.ok(&format!("sleep 0.1; iperf3 -c 10.0.0.2 {options}"));
            assert!(text.contains("iperf Done.\n"), "{options}: {text}");
            let server = desk.ok("wait");
            assert!(
                server.contains("receiver") || text.contains("receiver"),
                "{options}: {server}"
            );
        }
        assert!(
            desk.fails("iperf3 -c 10.0.0.2 -t 1")
                .contains("unable to connect to server")
        );
        assert!(desk.fails("iperf3 -Z").contains("parameter error"));
    });
}

#[test]
fn small_services_answer() {
    with_shell(|desk, _| {
        desk.ok("vnet b inetd echo chargen:1900 &");
        let text = desk.ok("sleep 0.1; rr -c 10.0.0.2 -p 7 -n 100");
        assert!(text.contains("rr: 100 transactions in "), "{text}");
        desk.ok("netblast -r 1000 10.0.0.2 9 100 0.5");
        desk.run("kill %1; wait");
    });
}

#[test]
fn an_interrupt_is_bound_by_its_number() {
    with_shell(|desk, _| {
        let line = IrqLine {
            gsi: 11,
            level: true,
            active_low: true,
        };
        let filter = Box::new(|| FilterStatus::Handled);
        let cookie = bus_setup_intr(line, "em0:irq0", 0, filter, Box::new(|| {}));
        let cookie = cookie.expect("a vector is free");
        let irq = cookie.irq();
        let mask = |desk: &mut Desk| desk.ok(&format!("cpuset -g -x {irq}"));
        assert_eq!(mask(desk), format!("irq {irq} mask: 0\n"));
        assert_eq!(desk.ok(&format!("cpuset -l 1 -x {irq}")), "");
        assert_eq!(mask(desk), format!("irq {irq} mask: 1\n"));
        pause("bind", 5);
        let ithread = threads()
            .into_iter()
            .find(|thread| thread.name().ends_with("em0:irq0"));
        let tid = ithread.expect("every handler has a thread").tid();
        let shown = desk.ok(&format!("cpuset -g -t {tid}"));
        assert_eq!(shown, format!("tid {tid} mask: 1\n"));
        for all in ["0,1", "0-1", "all"] {
            desk.ok(&format!("cpuset -l 0 -x {irq}"));
            desk.ok(&format!("cpuset -l {all} -x {irq}"));
            assert_eq!(mask(desk), format!("irq {irq} mask: 0, 1\n"), "{all}");
        }
        for (line, error) in [
            (
                format!("cpuset -l 2 -x {irq}"),
                "setaffinity: Invalid argument",
            ),
            (
                format!("cpuset -l 0,2 -x {irq}"),
                "setaffinity: Invalid argument",
            ),
            (format!("cpuset -l 0-x -x {irq}"), "Malformed list 0-x"),
            ("cpuset -l 0 -x 4711".into(), "setaffinity: No such process"),
            ("cpuset -g -x 4711".into(), "getaffinity: No such process"),
            ("cpuset -g -t 4711".into(), "getaffinity: No such process"),
        ] {
            assert_eq!(desk.run(&line), (1, format!("cpuset: {error}\n")), "{line}");
        }
        assert_eq!(mask(desk), format!("irq {irq} mask: 0, 1\n"));
        for words in [
            "",
            "-g",
            "-l 0",
            "-x 1",
            "-g -l 0 -x 1",
            "-l 0 -t 1",
            "-g -x em0",
            "-g -x 1 -t 1",
            "-q",
        ] {
            let text = desk.fails(&format!("cpuset {words}"));
            assert!(
                text.contains("usage: cpuset -g -t tid | -x irq\n"),
                "{text}"
            );
        }
    });
}

#[test]
fn setkey_shares_a_secret_and_takes_it_back() {
    with_shell(|desk, world| {
        assert_eq!(desk.ok("setkey -D"), "No SAD entries.\n");
        desk.ok("setkey -c 'add 192.0.2.1 192.0.2.2 tcp 0x1000 -A tcp-md5 \"secret\" ;'");
        assert!(
            desk.ok("setkey -D")
                .starts_with("192.0.2.1 192.0.2.2\n\ttcp mode=any spi=4096")
        );
        let keydb = &world.a.inet.tcp.keydb;
        let (src, dst) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        assert_eq!(keydb.lookup(src, dst).as_deref(), Some(&b"secret"[..]));
        assert!(
            desk.fails("setkey -c 'add 192.0.2.1 ;'")
                .contains("syntax error")
        );
        desk.fails("setkey");
        desk.ok("setkey -F");
        assert_eq!(keydb.lookup(src, dst), None);
    });
}
