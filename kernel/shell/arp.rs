//! arp: shows and changes what is known of neighbours.
//!
//! FreeBSD: usr.sbin/arp/arp.c

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use netinet::if_ether::{ArpRow, arp_delete, arp_set, arp_table};
use netinet::vnet::inet_of;
use sys::errno::Errno;

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::outln;
use crate::shell::format;
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: arp [-n] [-i interface] hostname
       arp [-n] [-i interface] -a
       arp -d hostname
       arp -d [-i interface] -a
       arp -s hostname ether_addr [pub]
";

/// Runs `arp`.
pub(super) fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let (mut all, mut delete, mut set, mut interface) = (false, false, false, None);
    let mut getopt = Getopt::new(&env.args, "adnsi:");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('a', _) => all = true,
            ('d', _) => delete = true,
            ('n', _) => {}
            ('s', _) => set = true,
            ('i', name) => interface = Some(name),
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        }
    }
    if let Some(name) = interface
        && env.vnet.ifunit(name).is_none()
    {
        return Err(Failure::Other(format!("interface {name} does not exist")));
    }
    let Some(inet) = inet_of(&env.vnet) else {
        return Err(Failure::Other(format!("socket: {}", Errno::EAFNOSUPPORT)));
    };
    let mut rows = arp_table(&inet);
    rows.retain(|row| interface.is_none_or(|name| row.ifname == name));
    match (all, delete, set, getopt.operands()) {
        (true, false, false, []) => {
            for row in rows {
                outln!(env, "{row}");
            }
            Ok(())
        }
        (true, true, false, []) => {
            rows.retain(|row| !row.own);
            for ArpRow { addr, .. } in rows {
                // What has gone by itself is gone too.
                if arp_delete(&inet, addr).is_ok() {
                    outln!(env, "{addr} ({addr}) deleted");
                }
            }
            Ok(())
        }
        (false, false, false, [host]) => {
            let addr = io::host(host)?;
            rows.retain(|row| row.addr == addr);
            for row in &rows {
                outln!(env, "{row}");
            }
            if rows.is_empty() {
                let on = interface.map_or(String::new(), |name| format!(" on {name}"));
                outln!(env, "{addr} ({addr}) -- no entry{on}");
                return Err(Failure::Other(format!("{addr}: no entry")));
            }
            Ok(())
        }
        (false, true, false, [host]) => {
            let addr = io::host(host)?;
            arp_delete(&inet, addr)
                .map_err(|errno| Failure::Other(format!("delete {addr}: {errno}")))?;
            outln!(env, "{addr} ({addr}) deleted");
            Ok(())
        }
        (false, false, true, [host, ether, rest @ ..]) => {
            let words: Vec<&str> = rest.iter().map(String::as_str).collect();
            let published = match words[..] {
                [] => false,
                ["pub"] => true,
                _ => return Err(Failure::Usage(String::new())),
            };
            let lladdr = format::parse_ether(ether)
                .ok_or_else(|| Failure::Other(format!("invalid Ethernet address '{ether}'")))?;
            arp_set(&inet, io::host(host)?, lladdr, published)
                .map_err(|errno| Failure::Other(format!("set {host}: {errno}")))
        }
        _ => Err(Failure::Usage(String::new())),
    }
}
