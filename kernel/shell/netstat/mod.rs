//! netstat: shows sockets, interfaces, routes, statistics and memory of the network.
//!
//! FreeBSD: usr.bin/netstat/main.c

mod dispatch;
mod interfaces;
mod memory;
mod routes;
mod sockets;
mod statistics;
mod tcp;

use alloc::format;
use alloc::string::String;

use sys::time::Sbintime;

use crate::apps::Env;
use crate::apps::io::{self, Failure, Family};
use crate::shell::getopt::Getopt;

pub(super) use routes::routing_table;

const USAGE: &str = "\
usage: netstat [-46AaCcLnRSTWx] [-f inet | inet6] [-p protocol]
       netstat -i | -I interface [-46abdhnW] [-f inet | inet6]
       netstat -w wait [-I interface] [-46d] [-q howmany]
       netstat -s [-46sz] [-f inet | inet6] [-p protocol]
       netstat -i | -I interface -s
       netstat -m
       netstat -r [-46nW] [-f inet | inet6]
       netstat -Q
";

/// What the command line asks for.
#[derive(Default)]
struct Options {
    addresses: bool,
    all: bool,
    bytes: bool,
    congestion: bool,
    drops: bool,
    interfaces: bool,
    interface: Option<String>,
    listen: bool,
    memory: bool,
    netisr: bool,
    flows: bool,
    routes: bool,
    statistics: u8,
    tcp_info: bool,
    wide: bool,
    buffers: bool,
    stack: bool,
    zero: bool,
    protocol: Option<String>,
    family: Family,
    interval: Option<Sbintime>,
    count: Option<u64>,
}

/// Runs `netstat`.
pub(super) fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let mut options = Options::default();
    let mut getopt = Getopt::new(&env.args, "46AaBbCcdf:hI:iLmnOPp:Qq:RrSsTWw:xz");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('A', _) => options.addresses = true,
            ('a', _) => options.all = true,
            ('b', _) => options.bytes = true,
            ('C', _) => options.congestion = true,
            ('c', _) => options.stack = true,
            ('d', _) => options.drops = true,
            ('f', "inet") | ('4', _) => options.family = Family::Inet,
            ('f', "inet6") | ('6', _) => options.family = Family::Inet6,
            ('h' | 'n' | 'S', _) => {}
            ('f', family) => {
                return Err(Failure::Other(format!("{family}: unknown address family")));
            }
            ('I', name) => {
                options.interfaces = true;
                options.interface = Some(name.into());
            }
            ('i', _) => options.interfaces = true,
            ('L', _) => options.listen = true,
            ('m', _) => options.memory = true,
            ('p', name) => {
                if !statistics::knows(name) {
                    return Err(Failure::Other(format!(
                        "{name}: unknown or uninstrumented protocol"
                    )));
                }
                options.protocol = Some(name.into());
            }
            ('Q', _) => options.netisr = true,
            ('q', count) => options.count = Some(io::number("count", count, 1, 1 << 32)?),
            ('R', _) => options.flows = true,
            ('r', _) => options.routes = true,
            ('s', _) => options.statistics += 1,
            ('T', _) => options.tcp_info = true,
            ('W', _) => options.wide = true,
            ('w', seconds) => options.interval = Some(io::seconds("interval", seconds)?),
            ('x', _) => options.buffers = true,
            ('z', _) => options.zero = true,
            (other, _) => {
                return Err(Failure::Other(format!("-{other}: not supported")));
            }
        }
    }
    if let Some(word) = getopt.operands().first() {
        return Err(Failure::Usage(format!("unexpected word: {word}")));
    }
    if options.buffers && options.tcp_info {
        return Err(Failure::Other("-x and -T are incompatible".into()));
    }
    if let Some(name) = &options.interface
        && env.vnet.ifunit(name).is_none()
    {
        return Err(Failure::Other(format!("{name}: unknown interface")));
    }
    if options.memory {
        env.out.write(&memory::report());
        return Ok(());
    }
    if options.netisr {
        env.out.write(&dispatch::report());
        return Ok(());
    }
    if let Some(interval) = options.interval {
        return interfaces::watch(env, &options, interval.max(Sbintime::from_ms(100)));
    }
    if options.interfaces && options.statistics == 0 {
        env.out.write(&interfaces::table(env, &options));
        return Ok(());
    }
    if options.interfaces {
        return Err(Failure::Other("-is: not supported; see sysctl dev".into()));
    }
    if options.routes {
        env.out
            .write(&routing_table(env, options.wide, options.family));
        return Ok(());
    }
    if options.statistics > 0 {
        return statistics::report(env, &options);
    }
    env.out.write(&sockets::table(env, &options));
    Ok(())
}
