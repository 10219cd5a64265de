//! netstat -r: the routing tables.
//!
//! FreeBSD: usr.bin/netstat/route.c

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sys::net::nhop::Nexthop;
use sys::net::route::{InAddr, RouteEntry, RtFlags};

use crate::apps::Env;
use crate::apps::io::Family;
use crate::shell::format::{in6, network, network6};

/// Letters of flags, in the order they are shown.
const LETTERS: &[(RtFlags, char)] = &[
    (RtFlags::UP, 'U'),
    (RtFlags::GATEWAY, 'G'),
    (RtFlags::HOST, 'H'),
    (RtFlags::REJECT, 'R'),
    (RtFlags::DYNAMIC, 'D'),
    (RtFlags::MODIFIED, 'M'),
    (RtFlags::STATIC, 'S'),
    (RtFlags::PROTO1, '1'),
    (RtFlags::PROTO2, '2'),
    (RtFlags::PROTO3, '3'),
    (RtFlags::BLACKHOLE, 'B'),
    (RtFlags::BROADCAST, 'b'),
];

/// A line of the table.
struct Row {
    destination: String,
    gateway: String,
    flags: String,
    nhop: usize,
    mtu: u32,
    netif: String,
}

/// The tables of `netstat -rn`; `wide` adds next hop and MTU.
pub(in crate::shell) fn routing_table(env: &Env, wide: bool, family: Family) -> String {
    let vnet = &env.vnet;
    let mut text = String::from("Routing tables\n");
    if family != Family::Inet6 {
        let rows = rows(
            vnet.rib.dump(),
            network,
            |gw| gw.to_string(),
            |nhop| nhop.mtu(),
        );
        text += &render("Internet", &rows, wide, (18, 18));
    }
    if family != Family::Inet {
        let rows = rows(
            vnet.rib6.dump(),
            |dst, len| network6(vnet, dst, len),
            |gw| in6(vnet, gw),
            |nhop| nhop.mtu(),
        );
        if !rows.is_empty() {
            text += &render("Internet6", &rows, wide, (33, 29));
        }
    }
    text
}

/// The lines of one family's table, in order of destination.
fn rows<A: InAddr>(
    mut routes: Vec<RouteEntry<A>>,
    network: impl Fn(A, u8) -> String,
    gateway: impl Fn(A) -> String,
    mtu: impl Fn(&Nexthop<A>) -> u32,
) -> Vec<Row> {
    let mut nhops: Vec<usize> = Vec::new();
    routes.sort_by_key(|route| (route.dst, route.prefix_len));
    let row = |route: RouteEntry<A>| {
        let nhop = &route.nhop;
        let address = alloc::sync::Arc::as_ptr(nhop) as usize;
        let number = match nhops.iter().position(|known| *known == address) {
            Some(at) => at,
            None => {
                nhops.push(address);
                nhops.len() - 1
            }
        };
        Row {
            destination: network(route.dst, route.prefix_len),
            gateway: match nhop.gw {
                Some(gw) => gateway(gw),
                None => format!("link#{}", nhop.nh_ifp.if_index.0),
            },
            flags: letters(nhop.nh_flags | RtFlags::UP),
            nhop: number + 1,
            mtu: mtu(nhop),
            netif: nhop.nh_ifp.if_xname.clone(),
        }
    };
    routes.into_iter().map(row).collect()
}

fn letters(flags: RtFlags) -> String {
    LETTERS
        .iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .map(|(_, letter)| *letter)
        .collect()
}

fn render(name: &str, rows: &[Row], wide: bool, (dst, gw): (usize, usize)) -> String {
    let mut text = format!("\n{name}:\n{:<dst$} {:<gw$} ", "Destination", "Gateway");
    if wide {
        text += "Flags   Nhop#    Mtu      Netif Expire\n";
    } else {
        text += "Flags         Netif Expire\n";
    }
    for row in rows {
        let Row {
            destination,
            gateway,
            flags,
            nhop,
            mtu,
            netif,
        } = row;
        let line = if wide {
            format!(
                "{destination:<dst$.dst$} {gateway:<gw$.gw$} {flags:<6} {nhop:>6} {mtu:>6} {netif:>10}"
            )
        } else {
            format!("{destination:<dst$.dst$} {gateway:<gw$.gw$} {flags:<6} {netif:>12}")
        };
        text += &line;
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stands_in_freebsds_columns() {
        let row = |destination: &str, gateway: &str, flags: RtFlags, netif: &str| Row {
            destination: destination.into(),
            gateway: gateway.into(),
            flags: letters(flags),
            nhop: 1,
            mtu: 1500,
            netif: netif.into(),
        };
        let up = RtFlags::UP;
        let rows = [
            row(
                "default",
                "10.0.2.2",
                up | RtFlags::GATEWAY | RtFlags::STATIC,
                "em0",
            ),
            row("10.0.2.0/24", "link#1", up, "em0"),
            row(
                "10.0.2.15",
                "link#2",
                up | RtFlags::HOST | RtFlags::STATIC,
                "lo0",
            ),
            row("127.0.0.1", "link#2", up | RtFlags::HOST, "lo0"),
        ];
        let expected = "
Internet:
Destination        Gateway            Flags         Netif Expire
default            10.0.2.2           UGS             em0
10.0.2.0/24        link#1             U               em0
10.0.2.15          link#2             UHS             lo0
127.0.0.1          link#2             UH              lo0
";
        assert_eq!(render("Internet", &rows, false, (18, 18)), expected);
    }
}
