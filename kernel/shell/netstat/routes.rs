//! netstat -r: the routing table.
//!
//! FreeBSD: usr.bin/netstat/route.c

use alloc::format;
use alloc::string::{String, ToString};

use sys::net::route::RtFlags;

use crate::apps::Env;
use crate::shell::format::network;

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

/// The table of `netstat -rn`; `wide` adds next hop and MTU.
pub(in crate::shell) fn routing_table(env: &Env, wide: bool) -> String {
    let mut nhops: alloc::vec::Vec<usize> = alloc::vec::Vec::new();
    let mut rows = alloc::vec::Vec::new();
    let mut routes = env.vnet.rib.dump();
    routes.sort_by_key(|route| (route.dst, route.prefix_len));
    for route in routes {
        let nhop = &route.nhop;
        let address = alloc::sync::Arc::as_ptr(nhop) as usize;
        let number = match nhops.iter().position(|known| *known == address) {
            Some(at) => at,
            None => {
                nhops.push(address);
                nhops.len() - 1
            }
        };
        rows.push(Row {
            destination: network(route.dst, route.prefix_len),
            gateway: match nhop.gw {
                Some(gw) => gw.to_string(),
                None => format!("link#{}", nhop.nh_ifp.if_index.0),
            },
            flags: letters(nhop.nh_flags | RtFlags::UP),
            nhop: number + 1,
            mtu: nhop.nh_mtu,
            netif: nhop.nh_ifp.if_xname.clone(),
        });
    }
    render(&rows, wide)
}

fn letters(flags: RtFlags) -> String {
    LETTERS
        .iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .map(|(_, letter)| *letter)
        .collect()
}

fn render(rows: &[Row], wide: bool) -> String {
    let mut text = String::from("Routing tables\n\nInternet:\n");
    if wide {
        text += "Destination        Gateway            Flags   Nhop#    Mtu      Netif Expire\n";
    } else {
        text += "Destination        Gateway            Flags         Netif Expire\n";
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
                "{destination:<18.18} {gateway:<18.18} {flags:<6} {nhop:>6} {mtu:>6} {netif:>10}"
            )
        } else {
            format!("{destination:<18.18} {gateway:<18.18} {flags:<6} {netif:>12}")
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
        let expected = "\
Routing tables

Internet:
Destination        Gateway            Flags         Netif Expire
default            10.0.2.2           UGS             em0
10.0.2.0/24        link#1             U               em0
10.0.2.15          link#2             UHS             lo0
127.0.0.1          link#2             UH              lo0
";
        assert_eq!(render(&rows, false), expected);
    }
}
