//! route: changes and shows the routing table.
//!
//! FreeBSD: sbin/route/route.c

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use netinet::in_control::{class_mask, len_mask, mask_len};
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::net::ifnet::Ifnet;
use sys::net::nhop::Nexthop;
use sys::net::radix::Bits;
use sys::net::route::{InAddr, Rib, RouteSpec, RtFlags};
use sys::net::vnet::Vnet;

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::shell::getopt::Getopt;
use crate::shell::{format, netstat};

const USAGE: &str = "\
usage: route [-n46qv] command [[modifiers] args]
       route add [-inet | -inet6] [-net | -host] destination[/length] gateway [netmask] [-interface] [-mtu n]
       route delete | change | get [-inet | -inet6] [-net | -host] destination[/length] [gateway]
       route flush [-inet | -inet6] | show
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
    let (mut quiet, mut inet6) = (false, false);
    let mut getopt = Getopt::new(&env.args, "n46qvtd");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('q', _) => quiet = true,
            ('6', _) => inet6 = true,
            ('n' | '4' | 'v' | 't' | 'd', _) => {}
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        }
    }
    let Some((command, words)) = getopt.operands().split_first() else {
        return Err(Failure::Usage(String::new()));
    };
    let named = |family: &str| words.iter().any(|word| word == family);
    let inet6 = inet6 || named("-inet6") || named("-6");
    let only = inet6 || named("-inet") || named("-4");
    let words: Vec<String> = words
        .iter()
        .filter(|word| !matches!(word.as_str(), "-inet" | "-inet6" | "-4" | "-6"))
        .cloned()
        .collect();
    match command.as_str() {
        "show" if words.is_empty() => {
            let family = match (only, inet6) {
                (false, _) => io::Family::Any,
                (true, false) => io::Family::Inet,
                (true, true) => io::Family::Inet6,
            };
            env.out.write(&netstat::routing_table(env, false, family));
            Ok(())
        }
        "flush" if words.is_empty() => {
            if !inet6 {
                flush::<Ipv4Addr>(env, quiet)?;
            }
            if inet6 || !only {
                flush::<Ipv6Addr>(env, quiet)?;
            }
            Ok(())
        }
        "add" | "delete" | "del" | "change" | "get" => {
            if inet6 {
                run_command::<Ipv6Addr>(env, command, &words, quiet)
            } else {
                run_command::<Ipv4Addr>(env, command, &words, quiet)
            }
        }
        other => Err(Failure::Usage(format!("bad keyword: {other}"))),
    }
}

/// What the commands need of a family of addresses.
trait Family: InAddr {
    /// Bits of an address.
    const LEN: u8;
    fn rib(vnet: &Vnet) -> &Rib<Self>;
    fn lookup<'e>(
        vnet: &'e Vnet,
        addr: Self,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Nexthop<Self>>>;
    /// Reads an address and the length of its prefix.
    fn parse(vnet: &Vnet, word: &str) -> Option<(Self, Option<u8>)>;
    /// Reads a mask: its length.
    fn parse_mask(word: &str) -> Option<u8>;
    /// The length of a network that does not say.
    fn net_len(self) -> u8;
    fn masked(self, len: u8) -> Self;
    fn text(vnet: &Vnet, addr: Self) -> String;
    fn network(vnet: &Vnet, addr: Self, len: u8) -> String;
    fn mask_text(len: u8) -> String;
    /// The address of an interface to send from, if the table is not to choose it.
    fn source(ifp: &Ifnet) -> Option<Arc<Self::Ifaddr>>;
}

impl Family for Ipv4Addr {
    const LEN: u8 = 32;

    fn rib(vnet: &Vnet) -> &Rib<Self> {
        &vnet.rib
    }

    fn lookup<'e>(
        vnet: &'e Vnet,
        addr: Self,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Nexthop<Self>>> {
        vnet.rib.fib4_lookup(addr, epoch)
    }

    fn parse(_: &Vnet, word: &str) -> Option<(Self, Option<u8>)> {
        format::parse_prefix(word)
    }

    fn parse_mask(word: &str) -> Option<u8> {
        mask_len(format::parse_mask(word)?)
    }

    fn net_len(self) -> u8 {
        mask_len(class_mask(self)).unwrap_or(Self::LEN)
    }

    fn masked(self, len: u8) -> Self {
        Ipv4Addr::from_bits(self.to_bits() & len_mask(len).to_bits())
    }

    fn text(_: &Vnet, addr: Self) -> String {
        format!("{addr}")
    }

    fn network(_: &Vnet, addr: Self, len: u8) -> String {
        format::network(addr, len)
    }

    fn mask_text(len: u8) -> String {
        format!("{}", len_mask(len))
    }

    fn source(_ifp: &Ifnet) -> Option<Arc<Self::Ifaddr>> {
        None
    }
}

impl Family for Ipv6Addr {
    const LEN: u8 = 128;

    fn rib(vnet: &Vnet) -> &Rib<Self> {
        &vnet.rib6
    }

    fn lookup<'e>(
        vnet: &'e Vnet,
        addr: Self,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Nexthop<Self>>> {
        vnet.rib6.fib6_lookup(addr, epoch)
    }

    fn parse(vnet: &Vnet, word: &str) -> Option<(Self, Option<u8>)> {
        match word.split_once('/') {
            None => Some((format::parse_in6(vnet, word)?, None)),
            Some((addr, len)) => {
                let len = len.parse().ok().filter(|len| *len <= 128)?;
                Some((format::parse_in6(vnet, addr)?, Some(len)))
            }
        }
    }

    fn parse_mask(word: &str) -> Option<u8> {
        let mask = word.parse::<Ipv6Addr>().ok()?.to_bits();
        let ones = mask.leading_ones();
        (mask.checked_shl(ones).unwrap_or(0) == 0).then_some(ones as u8)
    }

    fn net_len(self) -> u8 {
        64
    }

    fn masked(self, len: u8) -> Self {
        Ipv6Addr::from_bits(self.to_bits() & mask6(len))
    }

    fn text(vnet: &Vnet, addr: Self) -> String {
        format::in6(vnet, addr)
    }

    fn network(vnet: &Vnet, addr: Self, len: u8) -> String {
        format::network6(vnet, addr, len)
    }

    fn mask_text(len: u8) -> String {
        format!("{}", Ipv6Addr::from_bits(mask6(len)))
    }

    fn source(ifp: &Ifnet) -> Option<Arc<Self::Ifaddr>> {
        ifp.addrs6(&NetEpoch::enter()).first().cloned()
    }
}

/// The mask of a length up to 128.
fn mask6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

fn run_command<A: Family>(
    env: &Env,
    command: &str,
    words: &[String],
    quiet: bool,
) -> Result<(), Failure> {
    let target = Target::<A>::parse(env, words)?;
    let rib = A::rib(&env.vnet);
    match command {
        "get" => get(env, &target),
        "add" => change(env, &target, quiet, "add", |spec| rib.add(spec)),
        "change" => change(env, &target, quiet, "change", |spec| rib.change(spec)),
        _ => delete(env, &target, quiet),
    }
}

/// What a command is about.
struct Target<A: Family> {
    /// As it was written.
    name: String,
    dst: A,
    prefix_len: u8,
    gateway: Option<String>,
    on_link: bool,
    flags: RtFlags,
    mtu: u32,
}

impl<A: Family> Target<A> {
    fn parse(env: &Env, words: &[String]) -> Result<Self, Failure> {
        let mut operands = alloc::vec::Vec::new();
        let (mut net, mut host, mut on_link) = (false, false, false);
        let mut mask = None;
        let mut prefix_len = None;
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
                "-static" => {}
                "-interface" | "-iface" => on_link = true,
                "-reject" => flags |= RtFlags::REJECT,
                "-blackhole" => flags |= RtFlags::BLACKHOLE,
                "-proto1" => flags |= RtFlags::PROTO1,
                "-proto2" => flags |= RtFlags::PROTO2,
                "-mtu" => mtu = io::number("mtu", value()?, 72, 65535)? as u32,
                "-netmask" => mask = Some(value()?.clone()),
                "-prefixlen" => {
                    let len = io::number("prefixlen", value()?, 0, u64::from(A::LEN))?;
                    prefix_len = Some(len as u8);
                }
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
            "default" => (A::of_bits(A::Bits::ZERO), Some(0)),
            name => A::parse(&env.vnet, name).ok_or_else(|| bad(name))?,
        };
        let mask_len = match &mask {
            None => None,
            Some(word) => Some(A::parse_mask(word).ok_or_else(|| bad(word))?),
        };
        let prefix_len = match len.or(prefix_len).or(mask_len) {
            Some(len) => len,
            None if net => dst.net_len(),
            None => A::LEN,
        };
        if host && prefix_len != A::LEN {
            return Err(Failure::Usage("a host has no netmask".into()));
        }
        let dst = dst.masked(prefix_len);
        Ok(Self {
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
        self.prefix_len == A::LEN
    }

    /// The route as it is to be.
    fn spec(&self, env: &Env) -> Result<RouteSpec<A>, Failure> {
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
                let gw = A::parse(&env.vnet, gateway).filter(|(_, len)| len.is_none());
                let bad = || Failure::Other(format!("bad address: {gateway}"));
                let (gw, _) = gw.ok_or_else(bad)?;
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
        let ifa = A::source(&ifp);
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
fn interface_to<A: Family>(env: &Env, addr: A) -> Option<Arc<Ifnet>> {
    let epoch = NetEpoch::enter();
    let nhop = A::lookup(&env.vnet, addr, &epoch)?;
    // A gateway is a neighbour, not something behind another gateway.
    (!nhop.nh_flags.contains(RtFlags::GATEWAY)).then(|| nhop.nh_ifp.clone())
}

fn reason(errno: Errno) -> &'static str {
    match errno {
        Errno::EEXIST => "route already in table",
        Errno::ESRCH => "not in table",
        errno => errno.text(),
    }
}

fn change<A: Family>(
    env: &Env,
    target: &Target<A>,
    quiet: bool,
    what: &str,
    work: impl FnOnce(RouteSpec<A>) -> Result<(), Errno>,
) -> Result<(), Failure> {
    let spec = target.spec(env)?;
    told(env, target, quiet, what, work(spec))
}

fn delete<A: Family>(env: &Env, target: &Target<A>, quiet: bool) -> Result<(), Failure> {
    let rib = A::rib(&env.vnet);
    let pinned = rib
        .get(target.dst, target.prefix_len)
        .is_some_and(|route| route.nhop.nh_flags.contains(RtFlags::PINNED));
    let result = if pinned {
        Err(Errno::EADDRINUSE)
    } else {
        rib.delete(target.dst, target.prefix_len).map(drop)
    };
    told(env, target, quiet, "delete", result)
}

/// Says what was done, unless `quiet`, or why it was not.
#[doc(alias = "newroute")]
fn told<A: Family>(
    env: &Env,
    target: &Target<A>,
    quiet: bool,
    what: &str,
    result: Result<(), Errno>,
) -> Result<(), Failure> {
    let kind = if target.is_host() { "host" } else { "net" };
    let gateway = target.gateway.as_ref();
    let gateway = gateway.map_or(String::new(), |word| format!(": gateway {word}"));
    let line = format!("{what} {kind} {}{gateway}", target.name);
    match result {
        Ok(()) if quiet => Ok(()),
        Ok(()) => {
            env.out.write(&format!("{line}\n"));
            Ok(())
        }
        Err(errno) => {
            env.out.write(&format!("{line} fib 0: {}\n", reason(errno)));
            Err(target.failed(errno.text()))
        }
    }
}

/// Deletes all routes through gateways.
fn flush<A: Family>(env: &Env, quiet: bool) -> Result<(), Failure> {
    let rib = A::rib(&env.vnet);
    for route in rib.dump() {
        let Some(gw) = route.nhop.gw else { continue };
        if rib.delete(route.dst, route.prefix_len).is_ok() && !quiet {
            let dst = A::network(&env.vnet, route.dst, route.prefix_len);
            env.out.write(&format!(
                "{dst:<20} {gw:<20} fib 0  done\n",
                gw = A::text(&env.vnet, gw)
            ));
        }
    }
    Ok(())
}

fn get<A: Family>(env: &Env, target: &Target<A>) -> Result<(), Failure> {
    let epoch = NetEpoch::enter();
    let Some(nhop) = A::lookup(&env.vnet, target.dst, &epoch) else {
        drop(epoch);
        return Err(Failure::Other("route has not been found".into()));
    };
    let route = A::rib(&env.vnet).lookup_entry(target.dst);
    let mut text = format!("   route to: {}\n", A::text(&env.vnet, target.dst));
    if let Some(route) = &route {
        let dst = match (route.dst, route.prefix_len) {
            (dst, 0) => format!("{dst}"),
            (dst, _) => A::text(&env.vnet, dst),
        };
        text += &format!("destination: {dst}\n");
        if route.prefix_len < A::LEN {
            text += &format!("       mask: {}\n", A::mask_text(route.prefix_len));
        }
    }
    if let Some(gw) = nhop.gw {
        text += &format!("    gateway: {}\n", A::text(&env.vnet, gw));
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
        0,
        0,
        0,
        0,
        nhop.mtu(),
        1,
        0
    );
    env.out.write(&text);
    Ok(())
}
