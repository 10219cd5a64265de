//! Router advertisements: reads them, and keeps the lists of routers and prefixes.
//!
//! FreeBSD: sys/netinet6/nd6_rtr.c (nd6_ra_input, defrtrlist_update, prelist_update)

use super::{
    DefRouter, Lists, MAX_ADVERTISERS, MAX_PREFIXES, MAX_ROUTERS, NdPrefix, RouterPreference,
    masked, uptime,
};
use crate::netinet6::icmp6::ICMP6_HLEN;
use crate::netinet6::in6_src::in6_clearscope;
use crate::netinet6::ip6::{IPV6_MMTU, Ip6, in6_is_linklocal};
use crate::netinet6::nd6::{Heard, NdOpts, nd6_cache_lladdr};
use crate::vnet::NetCx;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use sys::kern::subr_epoch::NetEpoch;
use sys::kprintf;
use sys::mbuf::Mbuf;
use sys::net::ifnet::{Ifnet, In6Ifaddr, In6Iff, ND6_INFINITE_LIFETIME};
use sys::net::nd_ifinfo::Nd6Iff;

/// Length of an advertisement without options.
const RA_LEN: usize = ICMP6_HLEN + 8;
/// Longest reachable time that is believed, ms (RFC 4861 §6.2.1).
const MAX_REACHABLE_TIME: u32 = 3_600_000;
/// Bits of an interface identifier on Ethernet (RFC 2464 §4).
const IFID_LEN: u8 = 64;
/// RFC 4862 §5.5.3 (e): nobody shortens what is left of an address's life to less than this, s.
const TWOHOUR: u32 = 7200;

/// A prefix information option (RFC 4861 §4.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixInfo {
    /// Length.
    pub plen: u8,
    /// L: on the link.
    pub onlink: bool,
    /// A: for addresses.
    pub autonomous: bool,
    /// Valid lifetime, s.
    pub vltime: u32,
    /// Preferred lifetime, s.
    pub pltime: u32,
    /// The prefix.
    pub prefix: Ipv6Addr,
}

impl PrefixInfo {
    /// Length of the option.
    pub const LEN: usize = 32;

    /// Reads the option; `None` if it is not one.
    pub fn parse(option: &[u8]) -> Option<Self> {
        let option: &[u8; Self::LEN] = option.first_chunk()?;
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_be_bytes(*option.get(at..)?.first_chunk()?))
        };
        let prefix: [u8; 16] = *option.get(16..)?.first_chunk()?;
        let plen = option[2];
        if plen > 128 {
            return None;
        }
        Some(Self {
            plen,
            onlink: option[3] & 0x80 != 0,
            autonomous: option[3] & 0x40 != 0,
            vltime: word(4)?,
            pltime: word(8)?,
            prefix: masked(Ipv6Addr::from(prefix), plen),
        })
    }
}

/// An advertisement that has been read.
struct RouterAdvert {
    src: Ipv6Addr,
    hlim: u8,
    flags: u8,
    lifetime: u16,
    reachable: u32,
    retrans: u32,
    options: NdOpts,
}

/// Reads an advertisement; `None` if it is to be dropped (RFC 4861 §6.1.2).
fn parse(m: &Mbuf, off: usize) -> Option<RouterAdvert> {
    let mut fixed = [0; RA_LEN];
    if !m.copydata(off, &mut fixed) {
        return None;
    }
    let [_, _, _, _, hlim, flags, life_high, life_low, rest @ ..] = fixed;
    let [r0, r1, r2, r3, t0, t1, t2, t3] = rest;
    let src = Ip6::parse(m.data())?.src();
    if !in6_is_linklocal(src) {
        return None;
    }
    Some(RouterAdvert {
        src,
        hlim,
        flags,
        lifetime: u16::from_be_bytes([life_high, life_low]),
        reachable: u32::from_be_bytes([r0, r1, r2, r3]),
        retrans: u32::from_be_bytes([t0, t1, t2, t3]),
        options: NdOpts::parse(m, off + RA_LEN)?,
    })
}

/// An advertisement (RFC 4861 §6.3.4).
pub fn nd6_ra_input(cx: &NetCx<'_>, m: Mbuf, off: usize) {
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        return;
    };
    if !ifp.nd6.flags().contains(Nd6Iff::ACCEPT_RTADV) {
        return;
    }
    let Some(ra) = parse(&m, off) else {
        cx.vnet.icmp6stat.icp6s_badra.inc();
        return;
    };
    take_link_values(ifp, &ra, cx.vnet.ip6.hlim.get());
    let now = uptime();
    let mut lists = cx.vnet.nd6.lists.lock();
    if !ifp.nd6.flags().contains(Nd6Iff::NO_RADR) {
        defrtrlist_update(&mut lists, ifp, &ra, now);
    }
    for prefix in &ra.options.prefixes {
        prelist_update(&mut lists, ifp, &ra, prefix, now, cx.epoch);
    }
    // A router has answered (RFC 4861 §6.3.7).
    if ra.lifetime != 0 {
        lists.soliciting.retain(|at| at.ifindex != ifp.if_index);
    }
    drop(lists);
    nd6_cache_lladdr(cx, ifp, ra.src, ra.options.source, Heard::RouterAdvert);
    cx.vnet.nd6.kick();
}

/// Times, hop limit and MTU of the link; zero means "unspecified".
fn take_link_values(ifp: &Arc<Ifnet>, ra: &RouterAdvert, default_hlim: u32) {
    let ndi = &ifp.nd6;
    if ra.reachable != 0 && ra.reachable <= MAX_REACHABLE_TIME {
        ndi.set_basereachable(ra.reachable);
    }
    if ra.retrans != 0 {
        ndi.set_retrans(ra.retrans);
    }
    // A lower limit than ours could keep us from everybody beyond the link, so that none is taken.
    let own = ndi.chlim().map_or(default_hlim, u32::from);
    if u32::from(ra.hlim) > own {
        ndi.set_chlim(ra.hlim);
    }
    let Some(mtu) = ra.options.mtu else { return };
    let known = ndi.linkmtu();
    if mtu < IPV6_MMTU || mtu > ifp.mtu() {
        kprintf!(
            "nd6_ra_input: mtu option mtu={mtu} sent from {} on {}; it is ignored\n",
            in6_clearscope(ra.src),
            ifp.if_xname
        );
    } else if known != Some(mtu) {
        ndi.set_linkmtu(mtu);
    }
}

/// Adds the router to the list of default routers, or renews or removes it.
fn defrtrlist_update(lists: &mut Lists, ifp: &Ifnet, ra: &RouterAdvert, now: u32) {
    let at = lists
        .routers
        .iter()
        .position(|router| router.rtaddr == ra.src && router.ifindex == ifp.if_index);
    if ra.lifetime == 0 {
        if let Some(at) = at {
            lists.routers.remove(at);
            lists.reselect = true;
        }
        return;
    }
    // RFC 4191 §2.2: the reserved value counts as medium.
    let preference = match ra.flags & 0x18 {
        0x08 => RouterPreference::High,
        0x18 => RouterPreference::Low,
        _ => RouterPreference::Medium,
    };
    let expire = now.saturating_add(u32::from(ra.lifetime));
    let known = at.and_then(|at| lists.routers.get_mut(at));
    if let Some(router) = known {
        (router.expire, router.raflags) = (expire, ra.flags);
        if router.preference != preference {
            router.preference = preference;
            lists.reselect = true;
        }
    } else {
        let here = |router: &&DefRouter| router.ifindex == ifp.if_index;
        if lists.routers.iter().filter(here).count() >= MAX_ROUTERS {
            return;
        }
        lists.routers.push(DefRouter {
            rtaddr: ra.src,
            ifindex: ifp.if_index,
            raflags: ra.flags,
            preference,
            expire,
            installed: false,
        });
        lists.reselect = true;
    }
    lists
        .routers
        .sort_by_key(|router| core::cmp::Reverse(router.preference));
}

/// Takes a prefix into the list, and its lifetimes to the addresses made from it (RFC 4861 §6.3.4, RFC 4862 §5.5.3).
fn prelist_update(
    lists: &mut Lists,
    ifp: &Ifnet,
    ra: &RouterAdvert,
    new: &PrefixInfo,
    now: u32,
    epoch: &NetEpoch,
) {
    let unusable = new.prefix.is_multicast()
        || in6_is_linklocal(new.prefix)
        || new.prefix.is_unspecified()
        || new.pltime > new.vltime;
    if unusable || !new.onlink && !new.autonomous {
        return;
    }
    let here = |known: &NdPrefix| known.ifindex == ifp.if_index;
    let at = lists
        .prefixes
        .iter()
        .position(|known| here(known) && known.prefix == new.prefix && known.plen == new.plen);
    let at = match at {
        Some(at) => at,
        None if new.vltime == 0 => return,
        None if lists.prefixes.iter().filter(|known| here(known)).count() >= MAX_PREFIXES => return,
        None => {
            lists.prefixes.push(NdPrefix {
                prefix: new.prefix,
                plen: new.plen,
                ifindex: ifp.if_index,
                onlink: false,
                autonomous: false,
                vltime: 0,
                pltime: 0,
                lastupdate: now,
                advrtrs: Vec::new(),
                detached: false,
                wants_address: false,
                routed: false,
            });
            lists.reselect = true;
            lists.prefixes.len() - 1
        }
    };
    let Some(prefix) = lists.prefixes.get_mut(at) else {
        return;
    };
    prefix.onlink |= new.onlink;
    prefix.autonomous |= new.autonomous;
    (prefix.vltime, prefix.pltime, prefix.lastupdate) = (new.vltime, new.pltime, now);
    if !prefix.advrtrs.contains(&ra.src) && prefix.advrtrs.len() < MAX_ADVERTISERS {
        prefix.advrtrs.push(ra.src);
        lists.reselect = true;
    }
    if !new.autonomous || new.plen != 128 - IFID_LEN {
        return;
    }
    let mut made = false;
    for ia in ifp.addrs6(epoch) {
        if prefix.made(ia) {
            made = true;
            renew(ia, new, now);
        }
    }
    prefix.wants_address = !made && new.vltime != 0;
}

/// New lifetimes for an address (RFC 4862 §5.5.3 (e)).
fn renew(ia: &In6Ifaddr, new: &PrefixInfo, now: u32) {
    let (left, _) = ia.lifetimes(now);
    let vltime = if new.vltime > TWOHOUR || new.vltime > left {
        new.vltime
    } else if left <= TWOHOUR {
        left
    } else {
        TWOHOUR
    };
    ia.set_lifetimes(now, vltime, new.pltime);
    if new.pltime != 0 {
        ia.update_flags(In6Iff::empty(), In6Iff::DEPRECATED);
    }
}

/// What is left of a lifetime that was given `passed` seconds ago.
pub(super) fn remaining(lifetime: u32, passed: u32) -> u32 {
    match lifetime {
        ND6_INFINITE_LIFETIME => ND6_INFINITE_LIFETIME,
        lifetime => lifetime.saturating_sub(passed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_option_is_read_as_rfc_4861_lays_it_out() {
        let mut option = [0u8; 32];
        option[..4].copy_from_slice(&[3, 4, 64, 0xc0]);
        option[4..8].copy_from_slice(&86400u32.to_be_bytes());
        option[8..12].copy_from_slice(&14400u32.to_be_bytes());
        let addr: Ipv6Addr = "2001:db8::ffff:0:0:1".parse().unwrap();
        option[16..].copy_from_slice(&addr.octets());
        let read = PrefixInfo::parse(&option).unwrap();
        assert_eq!((read.plen, read.onlink, read.autonomous), (64, true, true));
        assert_eq!((read.vltime, read.pltime), (86400, 14400));
        assert_eq!(read.prefix, "2001:db8::".parse::<Ipv6Addr>().unwrap());
        assert_eq!(PrefixInfo::parse(&option[..31]), None);
        option[2] = 129;
        assert_eq!(PrefixInfo::parse(&option), None);
    }
}
