//! What ifconfig shows and changes of IPv6.
//!
//! FreeBSD: sbin/ifconfig/af_inet6.c, af_nd6.c

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv6Addr;

use netinet::netinet6::in6::{in6_hw_ifid, in6_purgeaddr, in6_update_ifa, nd6_set_ifflags};
use netinet::netinet6::in6_src::{in6_clearscope, in6_getscope, in6_setscope};
use netinet::netinet6::nd6_rtr::uptime;
use netinet::vnet::inet_of;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::net::ifnet::{Ifnet, In6Ifaddr, In6Iff, ND6_INFINITE_LIFETIME};
use sys::net::nd_ifinfo::Nd6Iff;

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::shell::format;

/// Names of an interface's flags (`ND6BITS`).
const ND6_NAMES: &[(u64, &str)] = &[
    (0x1, "PERFORMNUD"),
    (0x2, "ACCEPT_RTADV"),
    (0x4, "PREFER_SOURCE"),
    (0x8, "IFDISABLED"),
    (0x10, "DONT_SET_IFROUTE"),
    (0x20, "AUTO_LINKLOCAL"),
    (0x40, "NO_RADR"),
    (0x80, "NO_PREFER_IFACE"),
    (0x100, "NO_DAD"),
];

/// Words after an address, in the order in which they are shown.
const STATES: &[(In6Iff, &str)] = &[
    (In6Iff::ANYCAST, "anycast"),
    (In6Iff::TENTATIVE, "tentative"),
    (In6Iff::DUPLICATED, "duplicated"),
    (In6Iff::DETACHED, "detached"),
    (In6Iff::DEPRECATED, "deprecated"),
    (In6Iff::AUTOCONF, "autoconf"),
    (In6Iff::TEMPORARY, "temporary"),
    (In6Iff::PREFER_SOURCE, "prefer_source"),
];

/// The line of an address (`in6_status`).
pub(super) fn line(ia: &In6Ifaddr, lifetimes: bool) -> String {
    let addr = in6_clearscope(ia.ia_addr);
    let scope = in6_getscope(ia.ia_addr).0;
    let mut line = format!("\tinet6 {addr}");
    if scope != 0 {
        line += &format!("%{}", ia.ia_ifp.if_xname);
    }
    line += &format!(" prefixlen {}", ia.ia_prefixlen);
    let flags = ia.flags();
    for (flag, word) in STATES {
        if flags.contains(*flag) {
            line += &format!(" {word}");
        }
    }
    if scope != 0 {
        line += &format!(" scopeid {scope:#x}");
    }
    let (valid, preferred) = ia.lifetimes(uptime());
    if lifetimes {
        let text = |time| match time {
            ND6_INFINITE_LIFETIME => "infty".to_string(),
            time => time.to_string(),
        };
        line += &format!(" pltime {} vltime {}", text(preferred), text(valid));
    }
    line.push('\n');
    line
}

/// The line of an interface's flags (`nd6_status`).
pub(super) fn nd6_line(ifp: &Ifnet) -> String {
    let flags = u64::from(ifp.nd6.flags().bits());
    format!("\tnd6 options={}\n", format::bits(flags, ND6_NAMES))
}

/// The flag of an interface that a word switches.
fn nd6_flag(word: &str) -> Option<Nd6Iff> {
    Some(match word {
        "accept_rtadv" => Nd6Iff::ACCEPT_RTADV,
        "auto_linklocal" => Nd6Iff::AUTO_LINKLOCAL,
        "ifdisabled" => Nd6Iff::IFDISABLED,
        "no_radr" => Nd6Iff::NO_RADR,
        "no_prefer_iface" => Nd6Iff::NO_PREFER_IFACE,
        "no_dad" => Nd6Iff::NO_DAD,
        "nud" => Nd6Iff::PERFORMNUD,
        _ => return None,
    })
}

/// What the words ask for.
struct Request6 {
    address: Option<Ipv6Addr>,
    prefix_len: Option<u8>,
    delete: bool,
    eui64: bool,
    set: In6Iff,
    clear: In6Iff,
    preferred: Option<u32>,
    valid: Option<u32>,
    nd6_set: Nd6Iff,
    nd6_clear: Nd6Iff,
}

/// Does what the words after `inet6` ask for, and gives back those that are not of IPv6 (`up`, `mtu 1400`, …).
pub(super) fn run(env: &Env, ifp: &Arc<Ifnet>, words: &[String]) -> Result<Vec<String>, Failure> {
    let (request, rest) = Request6::parse(env, ifp, words)?;
    request.apply(env, ifp)?;
    Ok(rest)
}

impl Request6 {
    fn parse(env: &Env, ifp: &Ifnet, words: &[String]) -> Result<(Self, Vec<String>), Failure> {
        let mut request = Self {
            address: None,
            prefix_len: None,
            delete: false,
            eui64: false,
            set: In6Iff::empty(),
            clear: In6Iff::empty(),
            preferred: None,
            valid: None,
            nd6_set: Nd6Iff::empty(),
            nd6_clear: Nd6Iff::empty(),
        };
        let mut rest = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                let missing = || Failure::Usage(format!("'{word}' requires argument"));
                words.next().ok_or_else(missing)
            };
            let (plain, on) = match word.strip_prefix('-') {
                Some(plain) => (plain, false),
                None => (word.as_str(), true),
            };
            let mut lifetime = |what: &str| match value()?.as_str() {
                "infty" => Ok(ND6_INFINITE_LIFETIME),
                word => io::number(what, word, 0, u64::from(u32::MAX)).map(|n| n as u32),
            };
            match (plain, on) {
                ("add" | "alias", true) => {}
                ("delete" | "remove", true) | ("alias", false) => request.delete = true,
                ("prefixlen", true) => {
                    request.prefix_len = Some(io::number("prefixlen", value()?, 0, 128)? as u8);
                }
                ("pltime", true) => request.preferred = Some(lifetime("pltime")?),
                ("vltime", true) => request.valid = Some(lifetime("vltime")?),
                ("eui64", true) => request.eui64 = true,
                ("anycast", true) => request.set |= In6Iff::ANYCAST,
                ("deprecated" | "prefer_source", on) => {
                    let flag = if plain == "deprecated" {
                        In6Iff::DEPRECATED
                    } else {
                        In6Iff::PREFER_SOURCE
                    };
                    request.set.set(flag, on);
                    request.clear.set(flag, !on);
                }
                (plain, on) if nd6_flag(plain).is_some() => {
                    let flag = nd6_flag(plain).unwrap_or(Nd6Iff::empty());
                    request.nd6_set.set(flag, on);
                    request.nd6_clear.set(flag, !on);
                }
                // Parameters of the interface; some have a value.
                ("mtu" | "metric" | "ether" | "lladdr", true) => {
                    rest.push(word.clone());
                    rest.push(value()?.clone());
                }
                (_, true) if word.contains(':') && request.address.is_none() => {
                    request.take_address(env, ifp, word)?;
                }
                _ => rest.push(word.clone()),
            }
        }
        Ok((request, rest))
    }

    fn take_address(&mut self, env: &Env, ifp: &Ifnet, word: &str) -> Result<(), Failure> {
        let bad = || Failure::Other(format!("{word}: bad value"));
        let (addr, len) = match word.split_once('/') {
            Some((addr, len)) => (addr, Some(len)),
            None => (word, None),
        };
        if let Some(len) = len {
            let len = len.parse().ok().filter(|len| *len <= 128);
            self.prefix_len = Some(len.ok_or_else(bad)?);
        }
        let addr = format::parse_in6(&env.vnet, addr).ok_or_else(bad)?;
        self.address = Some(in6_setscope(addr, ifp));
        Ok(())
    }

    fn apply(&self, env: &Env, ifp: &Arc<Ifnet>) -> Result<(), Failure> {
        let failed =
            |what: &'static str| move |errno: Errno| Failure::Other(format!("{what}: {errno}"));
        let Some(inet) = inet_of(&env.vnet) else {
            return Err(failed("socket")(Errno::EAFNOSUPPORT));
        };
        if !(self.nd6_set | self.nd6_clear).is_empty() {
            nd6_set_ifflags(&inet, ifp, self.nd6_set, self.nd6_clear);
        }
        let Some(mut addr) = self.address else {
            if self.delete {
                return Err(failed("ioctl (SIOCDIFADDR)")(Errno::EADDRNOTAVAIL));
            }
            return Ok(());
        };
        if self.eui64 {
            let own = u128::from(in6_hw_ifid(ifp.lladdr()));
            addr = Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX) | own);
        }
        if self.delete {
            return in6_purgeaddr(&inet, ifp, addr).map_err(failed("ioctl (SIOCDIFADDR)"));
        }
        let (valid, preferred) = (
            self.valid.unwrap_or(ND6_INFINITE_LIFETIME),
            self.preferred.unwrap_or(ND6_INFINITE_LIFETIME),
        );
        if self.preferred.is_some_and(|preferred| preferred > valid) {
            return Err(failed("ioctl (SIOCAIFADDR)")(Errno::EINVAL));
        }
        let added = in6_update_ifa(&inet, ifp, addr, self.prefix_len.unwrap_or(64), self.set);
        match added {
            // It is there: its flags and lifetimes change.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed("ioctl (SIOCAIFADDR)")(errno)),
        }
        let epoch = NetEpoch::enter();
        if let Some(ia) = inet.in6_ifaddrs.lookup(&epoch, addr) {
            if !Arc::ptr_eq(&ia.ia_ifp, ifp) {
                return Err(failed("ioctl (SIOCAIFADDR)")(Errno::EEXIST));
            }
            ia.update_flags(self.set, self.clear);
            if self.valid.is_some() || self.preferred.is_some() {
                ia.set_lifetimes(uptime(), valid, preferred.min(valid));
                inet.nd6.lifetimes_changed();
            }
        }
        Ok(())
    }
}
