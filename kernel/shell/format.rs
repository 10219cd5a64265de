//! Pieces of output that several commands share.

use alloc::format;
use alloc::string::{String, ToString};
use core::net::{Ipv4Addr, Ipv6Addr};

use netinet::netinet6::in6_src::{in6_setscope, in6_sockaddr};
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::IfIndex;
use sys::net::vnet::Vnet;
use sys::socket::SockAddr;

use crate::apps::io;

/// Bits as FreeBSD's `%b` prints them: `flags=8843<UP,BROADCAST,…>`, without the name before it.
pub(super) fn bits(value: u64, names: &[(u64, &str)]) -> String {
    let mut text = format!("{value:x}");
    let mut open = false;
    for (bit, name) in names {
        if value & bit != 0 {
            text.push(if open { ',' } else { '<' });
            text.push_str(name);
            open = true;
        }
    }
    if open {
        text.push('>');
    }
    text
}

/// An Ethernet address.
pub(super) fn ether(addr: &[u8; 6]) -> String {
    let [a, b, c, d, e, f] = addr;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Reads an Ethernet address.
pub(super) fn parse_ether(word: &str) -> Option<[u8; 6]> {
    let mut addr = [0; 6];
    let mut parts = word.split([':', '-']);
    for byte in &mut addr {
        let part = parts.next().filter(|part| (1..=2).contains(&part.len()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(addr)
}

/// A network as netstat shows it: `10.0.2.0/24`, `default`, a bare address for a host.
pub(super) fn network(addr: Ipv4Addr, prefix_len: u8) -> String {
    match prefix_len {
        0 if addr.is_unspecified() => "default".to_string(),
        32 => addr.to_string(),
        len => format!("{addr}/{len}"),
    }
}

/// An IPv6 address of the stack, its zone by name.
pub(super) fn in6(vnet: &Vnet, addr: Ipv6Addr) -> String {
    io::numeric(vnet, &in6_sockaddr(addr, 0))
}

/// An IPv6 network as netstat shows it: `2001:db8::/64`, `fe80::%em0/64`, `default`, a bare address for a host.
pub(super) fn network6(vnet: &Vnet, addr: Ipv6Addr, prefix_len: u8) -> String {
    match prefix_len {
        0 if addr.is_unspecified() => "default".to_string(),
        128 => in6(vnet, addr),
        len => format!("{}/{len}", in6(vnet, addr)),
    }
}

/// Reads an IPv6 address, which may name its zone, as it stands inside the stack.
pub(super) fn parse_in6(vnet: &Vnet, word: &str) -> Option<Ipv6Addr> {
    let SockAddr::In6(sin6) = io::address(vnet, word)? else {
        return None;
    };
    let epoch = NetEpoch::enter();
    let index = IfIndex(u16::try_from(sin6.scope_id).ok()?);
    Some(match vnet.ifnet_byindex(index, &epoch) {
        Some(ifp) => in6_setscope(sin6.addr, ifp),
        None => sin6.addr,
    })
}

/// Reads `a.b.c.d` or `a.b.c.d/len`; the length is `None` if there is none.
pub(super) fn parse_prefix(word: &str) -> Option<(Ipv4Addr, Option<u8>)> {
    match word.split_once('/') {
        None => Some((word.parse().ok()?, None)),
        Some((addr, len)) => {
            let len: u8 = len.parse().ok().filter(|len| *len <= 32)?;
            Some((addr.parse().ok()?, Some(len)))
        }
    }
}

/// Reads a mask: `255.255.255.0` or `0xffffff00`.
pub(super) fn parse_mask(word: &str) -> Option<Ipv4Addr> {
    match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok().map(Ipv4Addr::from_bits),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_named_in_angle_brackets() {
        let names = [(1, "UP"), (2, "BROADCAST"), (0x40, "RUNNING")];
        assert_eq!(bits(0x43, &names), "43<UP,BROADCAST,RUNNING>");
        assert_eq!(bits(0x100, &names), "100");
        assert_eq!(bits(0, &names), "0");
    }

    #[test]
    fn masks_are_read_in_both_forms_and_lengths_have_a_limit() {
        let mask = Some(Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(parse_mask("0xffffff00"), mask);
        assert_eq!(parse_mask("255.255.255.0"), mask);
        assert_eq!(parse_prefix("10.1.2.3/33"), None);
    }

    #[test]
    fn ethernet_addresses_are_read_strictly() {
        assert_eq!(
            parse_ether("52:54:0:12:34:56"),
            Some([0x52, 0x54, 0, 0x12, 0x34, 0x56])
        );
        for word in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5g",
            "1:2:3:4:5:666",
        ] {
            assert_eq!(parse_ether(word), None, "{word}");
        }
    }
}
