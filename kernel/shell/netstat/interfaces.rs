//! netstat -i, -I, -w: interfaces and their counters.
//!
//! FreeBSD: usr.bin/netstat/if.c

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use netinet::in_control::mask_len;
use netinet::netinet6::nd6_rtr::masked;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine;
use sys::net::ifnet::{IFT_ETHER, IfFlags, Ifnet};
use sys::time::Sbintime;

use super::Options;
use crate::apps::Env;
use crate::apps::io::{Failure, Family};
use crate::shell::format;

/// Counters of an interface or of all.
#[derive(Clone, Copy, Default)]
struct Totals {
    ipackets: u64,
    ierrors: u64,
    idrops: u64,
    ibytes: u64,
    opackets: u64,
    oerrors: u64,
    odrops: u64,
    obytes: u64,
    collisions: u64,
}

impl Totals {
    fn of(ifp: &Ifnet) -> Totals {
        let c = &ifp.counters;
        Totals {
            ipackets: c.ipackets.fetch(),
            ierrors: c.ierrors.fetch(),
            idrops: c.iqdrops.fetch(),
            ibytes: c.ibytes.fetch(),
            opackets: c.opackets.fetch(),
            oerrors: c.oerrors.fetch(),
            odrops: c.oqdrops.fetch(),
            obytes: c.obytes.fetch(),
            collisions: c.collisions.fetch(),
        }
    }

    fn map(self, other: Totals, f: fn(u64, u64) -> u64) -> Totals {
        Totals {
            ipackets: f(self.ipackets, other.ipackets),
            ierrors: f(self.ierrors, other.ierrors),
            idrops: f(self.idrops, other.idrops),
            ibytes: f(self.ibytes, other.ibytes),
            opackets: f(self.opackets, other.opackets),
            oerrors: f(self.oerrors, other.oerrors),
            odrops: f(self.odrops, other.odrops),
            obytes: f(self.obytes, other.obytes),
            collisions: f(self.collisions, other.collisions),
        }
    }
}

/// A line of the table; `None` is shown as `-`.
struct Row {
    name: String,
    mtu: Option<u32>,
    network: String,
    address: String,
    ipackets: u64,
    ibytes: u64,
    opackets: u64,
    obytes: u64,
    /// Only of the interface itself.
    link: Option<Totals>,
}

/// The table of `netstat -i`.
pub(super) fn table(env: &Env, options: &Options) -> String {
    let mut rows = Vec::new();
    for ifp in env.vnet.ifnets() {
        if options
            .interface
            .as_ref()
            .is_none_or(|name| ifp.if_xname == *name)
        {
            rows_of(env, &ifp, options.family, &mut rows);
        }
    }
    render(&rows, options.bytes, options.drops)
}

fn rows_of(env: &Env, ifp: &Arc<Ifnet>, family: Family, rows: &mut Vec<Row>) {
    let up = ifp.flags().contains(IfFlags::UP);
    let name = if up {
        ifp.if_xname.clone()
    } else {
        format!("{}*", ifp.if_xname)
    };
    let totals = Totals::of(ifp);
    rows.push(Row {
        name: name.clone(),
        mtu: Some(ifp.mtu()),
        network: format!("<Link#{}>", ifp.if_index.0),
        address: if ifp.if_type == IFT_ETHER {
            format::ether(&ifp.lladdr())
        } else {
            ifp.if_xname.clone()
        },
        ipackets: totals.ipackets,
        ibytes: totals.ibytes,
        opackets: totals.opackets,
        obytes: totals.obytes,
        link: Some(totals),
    });
    let epoch = NetEpoch::enter();
    let (four, six) = (family != Family::Inet6, family != Family::Inet);
    for ia in ifp.addrs(&epoch).iter().filter(|_| four) {
        let len = mask_len(ia.ia_netmask).unwrap_or(32);
        let net = ia.ia_addr.to_bits() & ia.ia_netmask.to_bits();
        rows.push(Row {
            name: name.clone(),
            mtu: None,
            network: format::network(net.into(), len),
            address: ia.ia_addr.to_string(),
            ipackets: ia.ipackets.fetch(),
            ibytes: ia.ibytes.fetch(),
            opackets: ia.opackets.fetch(),
            obytes: ia.obytes.fetch(),
            link: None,
        });
    }
    for ia in ifp.addrs6(&epoch).iter().filter(|_| six) {
        let net = masked(ia.ia_addr, ia.ia_prefixlen);
        // Of a host's network, too, FreeBSD shows the length.
        let network = match ia.ia_prefixlen {
            128 => format!("{}/128", format::in6(&env.vnet, net)),
            len => format::network6(&env.vnet, net, len),
        };
        rows.push(Row {
            name: name.clone(),
            mtu: None,
            network,
            address: format::in6(&env.vnet, ia.ia_addr),
            ipackets: ia.ipackets.fetch(),
            ibytes: ia.ibytes.fetch(),
            opackets: ia.opackets.fetch(),
            obytes: ia.obytes.fetch(),
            link: None,
        });
    }
}

fn render(rows: &[Row], bytes: bool, drops: bool) -> String {
    let width = |least: usize, column: fn(&Row) -> usize| {
        rows.iter().map(column).max().unwrap_or(0).max(least)
    };
    let name_width = width(5, |row| row.name.len());
    let net_width = width(14, |row| row.network.len());
    let addr_width = width(17, |row| row.address.len());
    let mut text = String::new();
    let mut line = |name: &str, mtu: &str, net: &str, addr: &str, cells: [&str; 10]| {
        let [
            ipackets,
            ierrors,
            idrops,
            ibytes,
            opackets,
            oerrors,
            obytes,
            coll,
            odrops,
            _,
        ] = cells;
        text += &format!(
            "{name:<name_width$} {mtu:>5} {net:<net_width$} {addr:<addr_width$} \
             {ipackets:>8} {ierrors:>5} {idrops:>5}"
        );
        if bytes {
            text += &format!(" {ibytes:>10}");
        }
        text += &format!(" {opackets:>8} {oerrors:>5}");
        if bytes {
            text += &format!(" {obytes:>10}");
        }
        text += &format!(" {coll:>5}");
        if drops {
            text += &format!(" {odrops:>5}");
        }
        text.push('\n');
    };
    line(
        "Name",
        "Mtu",
        "Network",
        "Address",
        [
            "Ipkts", "Ierrs", "Idrop", "Ibytes", "Opkts", "Oerrs", "Obytes", "Coll", "Drop", "",
        ],
    );
    for row in rows {
        let only_link = |value: fn(&Totals) -> u64| match &row.link {
            Some(totals) => value(totals).to_string(),
            None => "-".to_string(),
        };
        line(
            &row.name,
            &row.mtu.map_or("-".to_string(), |mtu| mtu.to_string()),
            &row.network,
            &row.address,
            [
                &row.ipackets.to_string(),
                &only_link(|t| t.ierrors),
                &only_link(|t| t.idrops),
                &row.ibytes.to_string(),
                &row.opackets.to_string(),
                &only_link(|t| t.oerrors),
                &row.obytes.to_string(),
                &only_link(|t| t.collisions),
                &only_link(|t| t.odrops),
                "",
            ],
        );
    }
    text
}

/// Prints what changed, every `interval` (`netstat -w`).
pub(super) fn watch(env: &Env, options: &Options, interval: Sbintime) -> Result<(), Failure> {
    /// Lines between headings.
    const PAGE: u64 = 20;
    let totals = || {
        let mut sum = Totals::default();
        for ifp in env.vnet.ifnets() {
            if options
                .interface
                .as_ref()
                .is_none_or(|name| ifp.if_xname == *name)
            {
                sum = sum.map(Totals::of(&ifp), |a, b| a + b);
            }
        }
        sum
    };
    let name = options.interface.as_deref().unwrap_or("(Total)");
    let mut last = totals();
    let mut due = machine::sbinuptime();
    let mut lines = 0;
    while options.count.is_none_or(|count| lines < count) {
        if lines % PAGE == 0 {
            env.out.write(&headings(name, options.drops));
        }
        due += interval;
        if env.sleep(due - machine::sbinuptime()) {
            return Err(Failure::Interrupted);
        }
        let now = totals();
        env.out
            .write(&watch_line(now.map(last, u64::wrapping_sub), options.drops));
        last = now;
        lines += 1;
    }
    Ok(())
}

fn headings(name: &str, drops: bool) -> String {
    let mut text = format!("{:>17} {name:>14} {:>16}\n", "input", "output");
    text += &format!(
        "{:>10} {:>5} {:>5} {:>10} {:>10} {:>5} {:>10} {:>5}",
        "packets", "errs", "idrops", "bytes", "packets", "errs", "bytes", "colls"
    );
    if drops {
        text += &format!(" {:>5}", "drops");
    }
    text.push('\n');
    text
}

fn watch_line(t: Totals, drops: bool) -> String {
    let mut text = format!(
        "{:>10} {:>5} {:>5} {:>10} {:>10} {:>5} {:>10} {:>5}",
        t.ipackets, t.ierrors, t.idrops, t.ibytes, t.opackets, t.oerrors, t.obytes, t.collisions
    );
    if drops {
        text += &format!(" {:>5}", t.odrops);
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stands_in_freebsds_columns() {
        let rows = [
            Row {
                name: "em0".into(),
                mtu: Some(1500),
                network: "<Link#1>".into(),
                address: "52:54:00:12:34:56".into(),
                ipackets: 1204,
                ibytes: 9000,
                opackets: 988,
                obytes: 8000,
                link: Some(Totals::default()),
            },
            Row {
                name: "em0".into(),
                mtu: None,
                network: "10.0.2.0/24".into(),
                address: "10.0.2.15".into(),
                ipackets: 1190,
                ibytes: 8900,
                opackets: 985,
                obytes: 7900,
                link: None,
            },
        ];
        let expected = "\
Name    Mtu Network        Address              Ipkts Ierrs Idrop    Opkts Oerrs  Coll
em0    1500 <Link#1>       52:54:00:12:34:56     1204     0     0      988     0     0
em0       - 10.0.2.0/24    10.0.2.15             1190     -     -      985     -     -
";
        assert_eq!(render(&rows, false, false), expected);
    }
}
