//! route: changes and shows the routing table.
//!
//! FreeBSD: sbin/route/route.c

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::net::Ipv4Addr;

use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::net::ifnet::Ifnet;
use sys::net::route::{RouteSpec, RtFlags};

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::shell::getopt::Getopt;
use crate::shell::{format, netstat};

const USAGE: &str = "\
usage: route [-n46qv] command [[modifiers] args]
       route add [-net | -host] destination[/length] gateway [netmask] [-interface] [-mtu n]
       route delete | change | get [-net | -host] destination[/length] [gateway]
       route flush | show
";

/// Names of route flags, as `route get` prints them.
const FLAG_NAMES: &[(u64, &str)] = &[
    (0x1, "UP"),
    (0x2, "GATEWAY"),
    (0x4, "HOST"),
    (0x8, "REJECT"),
    (0x10, "DYNAMIC"),
    (0x20, "MODIFIED"),
    (0x40, "DONE"),
    (0x200, "XRESOLVE"),
    (0x400, "LLINFO"),
    (0x800, "STATIC"),
    (0x1000, "BLACKHOLE"),
    (0x4000, "PROTO2"),
    (0x8000, "PROTO1"),
    (0x40000, "PROTO3"),
    (0x80000, "FIXEDMTU"),
    (0x100000, "PINNED"),
    (0x200000, "LOCAL"),
    (0x400000, "BROADCAST"),
    (0x800000, "MULTICAST"),
];

/// Runs `route`.
pub(super) fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let mut quiet = false;
    let mut getopt = Getopt::new(&env.args, "n46qvtd");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('q', _) => quiet = true,
            ('6', _) => return Err(Failure::Other("inet6: not supported".into())),
            ('n' | '4' | 'v' | 't' | 'd', _) => {}
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        }
    }
    let Some((command, words)) = getopt.operands().split_first() else {
        return Err(Failure::Usage(String::new()));
    };
    match command.as_str() {
        "show" if words.is_empty() => {
            env.out.write(&netstat::routing_table(env, false));
            Ok(())
        }
        "flush" if words.is_empty() => flush(env, quiet),
        "add" | "delete" | "del" | "change" | "get" => {
            let target = Target::parse(words)?;
            match command.as_str() {
                "get" => get(env, &target),
                "add" => change(env, &target, quiet, "add net", "add host", |spec| {
                    env.vnet.rib.add(spec)
                }),
                "change" => change(env, &target, quiet, "change net", "change host", |spec| {
                    env.vnet.rib.change(spec)
                }),
                _ => delete(env, &target, quiet),
            }
        }
        other => Err(Failure::Usage(format!("bad keyword: {other}"))),
    }
}

/// What a command is about.
struct Target {
    /// As it was written.
    name: String,
    dst: Ipv4Addr,
    prefix_len: u8,
    gateway: Option<String>,
    on_link: bool,
    flags: RtFlags,
    mtu: u32,
}

impl Target {
    fn parse(words: &[String]) -> Result<Target, Failure> {
        let mut operands = alloc::vec::Vec::new();
        let (mut net, mut host, mut on_link) = (false, false, false);
        let mut mask = None;
        let mut mtu = 0;
        let mut flags = RtFlags::empty();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                let missing = || Failure::Usage(format!("{word} needs a value"));
                words.next().ok_or_else(missing)
            };
            match word.as_str() {
                "-net" => net = true,
                "-host" => host = true,
                "-inet" | "-4" | "-static" => {}
                "-interface" | "-iface" => on_link = true,
                "-reject" => flags |= RtFlags::REJECT,
                "-blackhole" => flags |= RtFlags::BLACKHOLE,
                "-proto1" => flags |= RtFlags::PROTO1,
                "-proto2" => flags |= RtFlags::PROTO2,
                "-mtu" => mtu = io::number("mtu", value()?, 72, 65535)? as u32,
                "-netmask" => mask = Some(value()?.clone()),
                "-inet6" | "-6" => return Err(Failure::Other("inet6: not supported".into())),
                other if other.starts_with('-') => {
                    return Err(Failure::Usage(format!("bad keyword: {other}")));
                }
                _ => operands.push(word.clone()),
            }
        }
        let mut operands = operands.into_iter();
        let Some(name) = operands.next() else {
            return Err(Failure::Usage("destination expected".into()));
        };
        let gateway = operands.next();
        let mask = operands.next().or(mask);
        if operands.next().is_some() {
            return Err(Failure::Usage("too many arguments".into()));
        }
        let bad = |word: &str| Failure::Other(format!("bad address: {word}"));
        let (dst, len) = match name.as_str() {
            "default" => (Ipv4Addr::UNSPECIFIED, Some(0)),
            name => format::parse_prefix(name).ok_or_else(|| bad(name))?,
        };
        let mask_len = match &mask {
            None => None,
            Some(word) => {
                let mask = format::parse_mask(word).ok_or_else(|| bad(word))?;
                Some(format::mask_len(mask).ok_or_else(|| bad(word))?)
            }
        };
        let prefix_len = match len.or(mask_len) {
            Some(len) => len,
            None if net => classful(dst),
            None => 32,
        };
        if host && prefix_len != 32 {
            return Err(Failure::Usage("a host has no netmask".into()));
        }
        let dst = Ipv4Addr::from_bits(dst.to_bits() & format::len_mask(prefix_len).to_bits());
        Ok(Target {
            name,
            dst,
            prefix_len,
            gateway,
            on_link,
            flags,
            mtu,
        })
    }

    fn is_host(&self) -> bool {
        self.prefix_len == 32
    }

    /// The route as it is to be.
    fn spec(&self, env: &Env) -> Result<RouteSpec, Failure> {
        let Some(gateway) = &self.gateway else {
            return Err(Failure::Usage("gateway expected".into()));
        };
        let mut flags = RtFlags::STATIC | self.flags;
        if self.is_host() {
            flags |= RtFlags::HOST;
        }
        if self.mtu > 0 {
            flags |= RtFlags::FIXEDMTU;
        }
        let by_name = env.vnet.ifunit(gateway);
        let (gw, ifp) = match by_name {
            Some(ifp) if self.on_link => (None, ifp),
            _ => {
                let gw: Ipv4Addr = gateway
                    .parse()
                    .map_err(|_| Failure::Other(format!("bad address: {gateway}")))?;
                let ifp =
                    interface_to(env, gw).ok_or_else(|| self.failed("Network is unreachable"))?;
                if self.on_link {
                    (None, ifp)
                } else {
                    flags |= RtFlags::GATEWAY;
                    (Some(gw), ifp)
                }
            }
        };
        let epoch = NetEpoch::enter();
        let ifa = ifp.addrs(&epoch).first().cloned();
        drop(epoch);
        Ok(RouteSpec {
            dst: self.dst,
            prefix_len: self.prefix_len,
            gw,
            ifp,
            ifa,
            flags,
            mtu: self.mtu,
        })
    }

    fn failed(&self, reason: &str) -> Failure {
        Failure::Other(format!("writing to routing socket: {reason}"))
    }
}

/// The interface on whose network `addr` is.
fn interface_to(env: &Env, addr: Ipv4Addr) -> Option<Arc<Ifnet>> {
    let epoch = NetEpoch::enter();
    let nhop = env.vnet.rib.fib4_lookup(addr, &epoch)?;
    // A gateway is a neighbour, not something behind another gateway.
    (!nhop.nh_flags.contains(RtFlags::GATEWAY)).then(|| nhop.nh_ifp.clone())
}

/// Length of the class of an address.
fn classful(addr: Ipv4Addr) -> u8 {
    match addr.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

fn reason(errno: Errno) -> &'static str {
    match errno {
        Errno::EEXIST => "route already in table",
        Errno::ESRCH => "not in table",
        errno => errno.text(),
    }
}

fn change(
    env: &Env,
    target: &Target,
    quiet: bool,
    net: &str,
    host: &str,
    work: impl FnOnce(RouteSpec) -> Result<(), Errno>,
) -> Result<(), Failure> {
    let what = if target.is_host() { host } else { net };
    let spec = target.spec(env)?;
    let gateway = target.gateway.as_deref().unwrap_or("");
    match work(spec) {
        Ok(()) => {
            if !quiet {
                env.out
                    .write(&format!("{what} {}: gateway {gateway}\n", target.name));
            }
            Ok(())
        }
        Err(errno) => {
            env.out.write(&format!(
                "{what} {}: gateway {gateway} fib 0: {}\n",
                target.name,
                reason(errno)
            ));
            Err(target.failed(errno.text()))
        }
    }
}

fn delete(env: &Env, target: &Target, quiet: bool) -> Result<(), Failure> {
    let what = if target.is_host() {
        "delete host"
    } else {
        "delete net"
    };
    let pinned = env
        .vnet
        .rib
        .get(target.dst, target.prefix_len)
        .is_some_and(|route| route.nhop.nh_flags.contains(RtFlags::PINNED));
    let result = if pinned {
        Err(Errno::EADDRINUSE)
    } else {
        env.vnet.rib.delete(target.dst, target.prefix_len)
    };
    match result {
        Ok(route) => {
            if !quiet {
                let gateway = match (route.nhop.gw, &target.gateway) {
                    (_, Some(word)) => format!(": gateway {word}"),
                    (Some(_), None) | (None, None) => String::new(),
                };
                env.out.write(&format!("{what} {}{gateway}\n", target.name));
            }
            Ok(())
        }
        Err(errno) => {
            env.out.write(&format!(
                "{what} {} fib 0: {}\n",
                target.name,
                reason(errno)
            ));
            Err(target.failed(errno.text()))
        }
    }
}

/// Deletes all routes through gateways.
fn flush(env: &Env, quiet: bool) -> Result<(), Failure> {
    for route in env.vnet.rib.dump() {
        let Some(gw) = route.nhop.gw else { continue };
        if env.vnet.rib.delete(route.dst, route.prefix_len).is_ok() && !quiet {
            let dst = format::network(route.dst, route.prefix_len);
            env.out.write(&format!(
                "{dst:<20} {gw:<20} fib 0  done\n",
                gw = format!("{gw}")
            ));
        }
    }
    Ok(())
}

fn get(env: &Env, target: &Target) -> Result<(), Failure> {
    let epoch = NetEpoch::enter();
    let Some(nhop) = env.vnet.rib.fib4_lookup(target.dst, &epoch) else {
        drop(epoch);
        return Err(Failure::Other("route has not been found".into()));
    };
    // The longest route that covers the address and leads where the lookup did.
    let covering = env.vnet.rib.dump().into_iter().filter(|route| {
        let mask = format::len_mask(route.prefix_len).to_bits();
        target.dst.to_bits() & mask == route.dst.to_bits()
    });
    let route = covering.max_by_key(|route| route.prefix_len);
    let mut text = format!("   route to: {}\n", target.dst);
    if let Some(route) = &route {
        let dst = match (route.dst, route.prefix_len) {
            (_, 0) => String::from("0.0.0.0"),
            (dst, _) => format!("{dst}"),
        };
        text += &format!("destination: {dst}\n");
        if route.prefix_len < 32 {
            text += &format!("       mask: {}\n", format::len_mask(route.prefix_len));
        }
    }
    if let Some(gw) = nhop.gw {
        text += &format!("    gateway: {gw}\n");
    }
    text += "        fib: 0\n";
    text += &format!("  interface: {}\n", nhop.nh_ifp.if_xname);
    let flags = u64::from((nhop.nh_flags | RtFlags::UP).bits()) | 0x40;
    let named = format::bits(flags, FLAG_NAMES);
    let named = named.split_once('<').map_or("", |(_, names)| names);
    text += &format!("      flags: <{named}\n");
    text += " recvpipe  sendpipe  ssthresh  rtt,msec    mtu        weight    expire\n";
    text += &format!(
        "{:8}  {:8}  {:8}  {:8}  {:8}  {:8}  {:8} \n",
        0, 0, 0, 0, nhop.nh_mtu, 1, 0
    );
    env.out.write(&text);
    Ok(())
}
