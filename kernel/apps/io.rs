//! What programs share: addresses and numbers on the command line, transfers that can be interrupted.

use alloc::format;
use alloc::string::String;
use core::net::{Ipv4Addr, Ipv6Addr};

use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::mbuf::IfIndex;
use sys::net::vnet::Vnet;
use sys::socket::{
    AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, MsgFlags, SO_REUSEADDR, SOL_SOCKET, SockAddr, SockAddrIn,
    SockAddrIn6, SockType,
};
use sys::time::Sbintime;

use crate::apps::Env;

/// How often a wait looks whether the program should stop.
pub const POLL: Sbintime = Sbintime::from_ms(200);

/// Why a program ends with an error.
#[derive(Debug)]
pub enum Failure {
    /// The command line is wrong: the reason.
    Usage(String),
    /// A socket call failed.
    Socket(&'static str, Errno),
    /// Something else: what to print.
    Other(String),
    /// The user ended it.
    Interrupted,
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Failure::Usage(reason) | Failure::Other(reason) => f.write_str(reason),
            Failure::Socket(call, errno) => write!(f, "{call}: {errno}"),
            Failure::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// Names the call whose error it is.
pub fn call(name: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| match errno {
        Errno::EINTR => Failure::Interrupted,
        errno => Failure::Socket(name, errno),
    }
}

/// Ends a program: prints why, and the usage if the command line was wrong, as FreeBSD's do (`EX_USAGE` is 64).
pub fn finish(env: &Env, usage: &str, result: Result<(), Failure>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(Failure::Usage(reason)) => {
            if !reason.is_empty() {
                let text = if reason.starts_with(env.name()) {
                    format!("{reason}\n")
                } else {
                    format!("{}: {reason}\n", env.name())
                };
                env.out.write(&text);
            }
            env.out.write(usage);
            64
        }
        // As after a signal; the terminal has shown ^C.
        Err(Failure::Interrupted) => 130,
        Err(failure) => {
            env.out.write(&format!("{}: {failure}\n", env.name()));
            1
        }
    }
}

/// Reads an IPv4 address; there is no resolver here.
pub fn host(word: &str) -> Result<Ipv4Addr, Failure> {
    match word {
        "localhost" => Ok(Ipv4Addr::LOCALHOST),
        word => word
            .parse()
            .map_err(|_| Failure::Other(format!("cannot resolve {word}: not an IPv4 address"))),
    }
}

/// The address with a port.
pub fn with_port(addr: SockAddr, port: u16) -> SockAddr {
    match addr {
        SockAddr::In(sin) => SockAddr::In(SockAddrIn { port, ..sin }),
        SockAddr::In6(sin6) => SockAddr::In6(SockAddrIn6 { port, ..sin6 }),
    }
}

/// A peer's address as it was on the wire: a socket of both families sees those of IPv4 as mapped ones.
pub fn unmapped(addr: SockAddr) -> SockAddr {
    match addr {
        SockAddr::In6(sin6) => match sin6.addr.to_ipv4_mapped() {
            Some(addr) => SockAddr::v4(addr, sin6.port),
            None => SockAddr::In6(sin6),
        },
        SockAddr::In(_) => addr,
    }
}

/// Reads an address of either family, with port 0: `10.0.0.1`, `2001:db8::1`, `fe80::1%em0`; `None` if it is none, or names
/// an interface that is not there.
pub fn address(vnet: &Vnet, word: &str) -> Option<SockAddr> {
    if let Ok(addr) = word.parse() {
        return Some(SockAddr::v4(addr, 0));
    }
    let (addr, zone) = match word.split_once('%') {
        Some((addr, zone)) => (addr, Some(zone)),
        None => (word, None),
    };
    let addr: Ipv6Addr = addr.parse().ok()?;
    let scope_id = match zone {
        None => 0,
        Some(zone) => vnet.ifunit(zone)?.if_index.0,
    };
    Some(SockAddr::In6(SockAddrIn6 {
        addr,
        port: 0,
        flowinfo: 0,
        scope_id: u32::from(scope_id),
    }))
}

/// Which addresses a program may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Family {
    /// Those of both families.
    #[default]
    Any,
    /// Those of IPv4 (`-4`).
    Inet,
    /// Those of IPv6 (`-6`).
    Inet6,
}

/// Reads the address of a host; there is no resolver here but for `localhost`.
pub fn host_of(vnet: &Vnet, word: &str, family: Family) -> Result<SockAddr, Failure> {
    let found = match (word, family) {
        ("localhost", Family::Inet6) => Some(SockAddr::v6(Ipv6Addr::LOCALHOST, 0)),
        ("localhost", _) => Some(SockAddr::v4(Ipv4Addr::LOCALHOST, 0)),
        (word, _) => address(vnet, word),
    };
    let fits = |addr: &SockAddr| match addr {
        SockAddr::In(_) => family != Family::Inet6,
        SockAddr::In6(_) => family != Family::Inet,
    };
    let what = match family {
        Family::Any => "an address",
        Family::Inet => "an IPv4 address",
        Family::Inet6 => "an IPv6 address",
    };
    let unknown = || Failure::Other(format!("cannot resolve {word}: not {what}"));
    found.filter(fits).ok_or_else(unknown)
}

/// An address without its port, its zone by name (`getnameinfo` with `NI_NUMERICHOST`).
pub fn numeric(vnet: &Vnet, addr: &SockAddr) -> String {
    match addr {
        SockAddr::In(sin) => format!("{}", sin.addr),
        SockAddr::In6(sin6) => {
            let index = u16::try_from(sin6.scope_id).unwrap_or(0);
            let epoch = NetEpoch::enter();
            match vnet.ifnet_byindex(IfIndex(index), &epoch) {
                Some(ifp) => format!("{}%{}", sin6.addr, ifp.if_xname),
                None => format!("{}", sin6.addr),
            }
        }
    }
}

/// Reads a number between two bounds.
pub fn number(what: &str, word: &str, low: u64, high: u64) -> Result<u64, Failure> {
    match word.parse() {
        Ok(n) if (low..=high).contains(&n) => Ok(n),
        _ => Err(Failure::Usage(format!(
            "invalid {what}: `{word}' (from {low} to {high})"
        ))),
    }
}

/// Reads a count of bytes with an optional K, M or G of 1024.
pub fn bytes(what: &str, word: &str) -> Result<u64, Failure> {
    let bad = || Failure::Usage(format!("invalid {what}: `{word}'"));
    let (digits, shift) = match word.as_bytes().last() {
        Some(b'k' | b'K') => (&word[..word.len() - 1], 10),
        Some(b'm' | b'M') => (&word[..word.len() - 1], 20),
        Some(b'g' | b'G') => (&word[..word.len() - 1], 30),
        _ => (word, 0),
    };
    let n: u64 = digits.parse().map_err(|_| bad())?;
    n.checked_mul(1 << shift).ok_or_else(bad)
}

/// Reads seconds with an optional fraction.
pub fn seconds(what: &str, word: &str) -> Result<Sbintime, Failure> {
    let bad = || Failure::Usage(format!("invalid {what}: `{word}'"));
    let (whole, fraction) = word.split_once('.').unwrap_or((word, ""));
    if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let whole: i64 = if whole.is_empty() && !fraction.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| bad())?
    };
    let micros: i64 = format!("{fraction:0<6}").parse().map_err(|_| bad())?;
    if !(0..=100_000_000).contains(&whole) {
        return Err(bad());
    }
    Ok(Sbintime::from_s(whole) + Sbintime::from_us(micros))
}

/// A listening TCP socket whose waits end every [`POLL`].
pub fn listen(env: &Env, port: u16) -> Result<SocketHandle, Failure> {
    let so = bound(env, SockType::Stream, port)?;
    so.listen(-1).map_err(call("listen"))?;
    Ok(so)
}

/// A socket bound to a port of all our addresses of both families, whose waits end every [`POLL`].
pub fn bound(env: &Env, ty: SockType, port: u16) -> Result<SocketHandle, Failure> {
    let so = SocketHandle::socket(&env.vnet, AF_INET6, ty, 0).map_err(call("socket"))?;
    so.setsockopt_int(IPPROTO_IPV6, IPV6_V6ONLY, 0)
        .map_err(call("setsockopt"))?;
    so.setsockopt_int(SOL_SOCKET, SO_REUSEADDR, 1)
        .map_err(call("setsockopt"))?;
    so.bind(&SockAddr::v6(Ipv6Addr::UNSPECIFIED, port))
        .map_err(call("bind"))?;
    so.set_rcvtimeo(Some(POLL)).map_err(call("setsockopt"))?;
    Ok(so)
}

/// A TCP connection, whose waits end every [`POLL`].
pub fn connect(env: &Env, host: SockAddr, port: u16) -> Result<SocketHandle, Failure> {
    let so = SocketHandle::socket(&env.vnet, host.family(), SockType::Stream, 0)
        .map_err(call("socket"))?;
    so.connect(&with_port(host, port))
        .map_err(call("connect"))?;
    so.set_rcvtimeo(Some(POLL)).map_err(call("setsockopt"))?;
    so.set_sndtimeo(Some(POLL)).map_err(call("setsockopt"))?;
    Ok(so)
}

/// The next connection, however long it takes.
pub fn accept(env: &Env, listener: &SocketHandle) -> Result<(SocketHandle, SockAddr), Failure> {
    loop {
        if env.interrupted() {
            return Err(Failure::Interrupted);
        }
        match listener.accept() {
            Ok((so, peer)) => {
                so.set_rcvtimeo(Some(POLL)).map_err(call("setsockopt"))?;
                so.set_sndtimeo(Some(POLL)).map_err(call("setsockopt"))?;
                return Ok((so, unmapped(peer)));
            }
            // Nobody yet, or somebody who is gone already.
            Err(Errno::EAGAIN | Errno::ECONNABORTED) => {}
            Err(errno) => return Err(call("accept")(errno)),
        }
    }
}

/// Receives some bytes, however long it takes; 0 is the end.
pub fn read(env: &Env, so: &SocketHandle, into: &mut [u8]) -> Result<usize, Failure> {
    loop {
        match so.recv(into, MsgFlags::empty()) {
            Ok(n) => return Ok(n),
            Err(Errno::EAGAIN) if !env.interrupted() => {}
            Err(Errno::EAGAIN) => return Err(Failure::Interrupted),
            Err(errno) => return Err(call("recv")(errno)),
        }
    }
}

/// Fills `into`; false if the stream ended before.
pub fn read_exact(env: &Env, so: &SocketHandle, into: &mut [u8]) -> Result<bool, Failure> {
    let mut got = 0;
    while got < into.len() {
        match read(env, so, &mut into[got..])? {
            0 => return Ok(false),
            n => got += n,
        }
    }
    Ok(true)
}

/// Sends everything.
pub fn write_all(env: &Env, so: &SocketHandle, from: &[u8]) -> Result<(), Failure> {
    let mut sent = 0;
    while sent < from.len() {
        if env.interrupted() {
            return Err(Failure::Interrupted);
        }
        match so.send(&from[sent..], MsgFlags::NOSIGNAL) {
            Ok(n) => sent += n,
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(call("send")(errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_fractions() {
        assert_eq!(seconds("x", "1.5").unwrap().as_us(), 1_500_000);
        assert_eq!(seconds("x", ".02").unwrap().as_us(), 20_000);
        assert_eq!(seconds("x", "3").unwrap().as_us(), 3_000_000);
        for word in ["", ".", "-1", "1.x", "1.1234567", "9999999999999"] {
            assert!(seconds("x", word).is_err(), "{word}");
        }
    }

    #[test]
    fn counts_of_bytes_have_suffixes() {
        assert_eq!(bytes("x", "64M").unwrap(), 64 << 20);
        assert_eq!(bytes("x", "10").unwrap(), 10);
        for word in ["", "K", "-1", "1T", "99999999999G"] {
            assert!(bytes("x", word).is_err(), "{word}");
        }
    }
}
