//! Brings addresses and routes into line with what routers say, lets them end when their time is over, and asks for routers.
//!
//! FreeBSD: sys/netinet6/nd6.c (nd6_timer), nd6_rtr.c (defrouter_select, pfxlist_onlink_check, nd6_prefix_onlink, in6_ifadd),
//! usr.sbin/rtsold/rtsol.c

use super::advert::remaining;
use super::{DefRouter, Lists, NdPrefix, Soliciting, probably_reachable, uptime};
use crate::netinet6::in6::{in6_hw_ifid, in6_purgeaddr, in6_update_ifa};
use crate::netinet6::in6_src::in6_setscope;
use crate::netinet6::ip6::{IN6ADDR_LINKLOCAL_ALLROUTERS, in6_is_linklocal};
use crate::netinet6::nd6_nbr::{nd6_dad_start, nd6_rs_output};
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::{self, sbinuptime};
use sys::mbuf::IfIndex;
use sys::net::ifnet::{Ifnet, In6Ifaddr, In6Iff, ND6_INFINITE_LIFETIME};
use sys::net::nd_ifinfo::Nd6Iff;
use sys::net::route::{RouteSpec, RtFlags};
use sys::time::Sbintime;

/// How often a router is asked for (RFC 4861 §10: MAX_RTR_SOLICITATIONS).
const MAX_RTR_SOLICITATIONS: u32 = 3;
/// Time between two of them (RTR_SOLICITATION_INTERVAL).
const RTR_SOLICITATION_INTERVAL: Sbintime = Sbintime::from_s(4);
/// The first one waits for a random part of this, ms (MAX_RTR_SOLICITATION_DELAY).
const MAX_RTR_SOLICITATION_DELAY: u64 = 1000;

/// Begins to look for routers on an interface (`rtsol`).
pub fn nd6_rs_start(inet: &InetVnet, ifp: &Ifnet) {
    let wait = machine::random_u64() % MAX_RTR_SOLICITATION_DELAY;
    let mut lists = inet.nd6.lists.lock();
    lists.soliciting.retain(|at| at.ifindex != ifp.if_index);
    lists.soliciting.push(Soliciting {
        ifindex: ifp.if_index,
        left: MAX_RTR_SOLICITATIONS,
        due: sbinuptime() + Sbintime::from_ms(wait as i64),
    });
    drop(lists);
    inet.nd6.kick();
}

/// Looks at everything that has a lifetime or was changed by a message. Runs in a thread of its own, which may sleep.
pub(super) fn nd6_timer(inet: &Arc<InetVnet>) {
    expire_addresses(inet);
    expire_lists(inet);
    check_prefixes(inet);
    make_addresses(inet);
    route_prefixes(inet);
    defrouter_select(inet);
    solicit(inet);
    if let Some(span) = next_look(inet) {
        inet.nd6.kick_after(span);
    }
}

fn ifnet(inet: &InetVnet, index: IfIndex) -> Option<Arc<Ifnet>> {
    inet.ifnet_byindex(index, &NetEpoch::enter()).cloned()
}

/// Addresses whose valid lifetime is over go; those whose preferred lifetime is over are used for nothing new.
fn expire_addresses(inet: &Arc<InetVnet>) {
    let now = uptime();
    let all: Vec<Arc<In6Ifaddr>> = inet.in6_ifaddrs.all(&NetEpoch::enter()).to_vec();
    for ia in all {
        let (valid, preferred) = ia.lifetimes(now);
        if valid == 0 {
            let _ = in6_purgeaddr(inet, &ia.ia_ifp, ia.ia_addr);
        } else if preferred == 0 {
            ia.update_flags(In6Iff::DEPRECATED, In6Iff::empty());
        }
    }
}

/// Routers, prefixes and redirects whose time is over.
fn expire_lists(inet: &InetVnet) {
    let now = uptime();
    let mut lists = inet.nd6.lists.lock();
    let Lists {
        routers,
        prefixes,
        redirects,
        reselect,
        ..
    } = &mut *lists;
    let before = routers.len();
    routers.retain(|router| router.expire > now);
    *reselect |= routers.len() != before;
    let ended = |expire: Option<u32>| expire.is_some_and(|expire| expire <= now);
    let over: Vec<NdPrefix> = prefixes.extract_if(.., |p| ended(p.expire())).collect();
    let stale: Vec<_> = redirects
        .extract_if(.., |route| route.expire <= now)
        .collect();
    drop(lists);
    for prefix in over.iter().filter(|prefix| prefix.routed) {
        let _ = inet.rib6.delete(prefix.prefix, prefix.plen);
    }
    for route in stale {
        unredirect(inet, route.dst, route.via);
    }
}

/// Removes a route that a redirect made, unless it leads elsewhere by now.
fn unredirect(inet: &InetVnet, dst: Ipv6Addr, via: Ipv6Addr) {
    let ours = inet.rib6.get(dst, 128).is_some_and(|route| {
        route.nhop.nh_flags.contains(RtFlags::DYNAMIC) && route.nhop.link_dst(dst) == via
    });
    if ours {
        let _ = inet.rib6.delete(dst, 128);
    }
}

/// Prefixes whose routers are all gone, while those of others are there, count as left behind on another link
/// (`pfxlist_onlink_check`).
fn check_prefixes(inet: &Arc<InetVnet>) {
    let mut changed = Vec::new();
    {
        let epoch = NetEpoch::enter();
        let mut lists = inet.nd6.lists.lock();
        if !lists.reselect {
            return;
        }
        let reachable = |prefix: &NdPrefix| {
            let ifp = inet.ifnet_byindex(prefix.ifindex, &epoch);
            ifp.is_some_and(|ifp| {
                let answers = |&router: &Ipv6Addr| probably_reachable(ifp, router, &epoch);
                prefix.advrtrs.iter().any(answers)
            })
        };
        let answers: Vec<bool> = lists.prefixes.iter().map(reachable).collect();
        let any = answers.contains(&true);
        for (prefix, answers) in lists.prefixes.iter_mut().zip(answers) {
            let detached = any && !answers;
            if prefix.detached != detached {
                prefix.detached = detached;
                changed.push(prefix.clone());
            }
        }
    }
    for prefix in changed {
        let Some(ifp) = ifnet(inet, prefix.ifindex) else {
            continue;
        };
        let addresses: Vec<_> = ifp.addrs6(&NetEpoch::enter()).to_vec();
        for ia in addresses.iter().filter(|ia| prefix.made(ia)) {
            if prefix.detached {
                ia.update_flags(In6Iff::DETACHED, In6Iff::empty());
            } else if ia.flags().contains(In6Iff::DETACHED) {
                // Somebody may have taken the address meanwhile.
                ia.update_flags(In6Iff::TENTATIVE, In6Iff::DETACHED);
                nd6_dad_start(inet, ia);
            }
        }
    }
}

/// Makes the addresses that prefixes want (`in6_ifadd`).
fn make_addresses(inet: &Arc<InetVnet>) {
    let mut lists = inet.nd6.lists.lock();
    let wanting = lists.prefixes.iter_mut().filter(|p| p.wants_address);
    let wanted: Vec<NdPrefix> = wanting
        .map(|prefix| {
            prefix.wants_address = false;
            prefix.clone()
        })
        .collect();
    drop(lists);
    for prefix in wanted {
        let Some(ifp) = ifnet(inet, prefix.ifindex) else {
            continue;
        };
        let ifid = u128::from(in6_hw_ifid(ifp.lladdr()));
        let addr = Ipv6Addr::from_bits(prefix.prefix.to_bits() | ifid);
        let flags = In6Iff::AUTOCONF;
        // EEXIST: the administrator has given the interface that address already.
        if in6_update_ifa(inet, &ifp, addr, prefix.plen, flags).is_err() {
            continue;
        }
        let epoch = NetEpoch::enter();
        if let Some(ia) = inet.in6_ifaddrs.lookup(&epoch, addr) {
            let now = uptime();
            let passed = now.saturating_sub(prefix.lastupdate);
            ia.set_lifetimes(
                now,
                remaining(prefix.vltime, passed),
                remaining(prefix.pltime, passed),
            );
        }
    }
}

/// Gives prefixes on the link their routes, and takes those away that are left behind (`nd6_prefix_onlink`).
fn route_prefixes(inet: &InetVnet) {
    for prefix in inet.nd6.prefixes() {
        let wanted = prefix.onlink && !prefix.detached;
        let routed = if wanted && !prefix.routed {
            // EEXIST: an address with this prefix has brought the route; should it go, we come again.
            add_prefix_route(inet, &prefix)
        } else if !wanted && prefix.routed {
            let _ = inet.rib6.delete(prefix.prefix, prefix.plen);
            false
        } else {
            continue;
        };
        let mut lists = inet.nd6.lists.lock();
        let same = |known: &&mut NdPrefix| {
            known.prefix == prefix.prefix
                && known.plen == prefix.plen
                && known.ifindex == prefix.ifindex
        };
        if let Some(known) = lists.prefixes.iter_mut().find(same) {
            known.routed = routed;
        }
    }
}

fn add_prefix_route(inet: &InetVnet, prefix: &NdPrefix) -> bool {
    let Some(ifp) = ifnet(inet, prefix.ifindex) else {
        return false;
    };
    let ifa = ifp
        .addrs6(&NetEpoch::enter())
        .iter()
        .find(|ia| prefix.covers(ia.ia_addr))
        .cloned();
    let spec = RouteSpec {
        dst: prefix.prefix,
        prefix_len: prefix.plen,
        gw: None,
        ifp,
        ifa,
        flags: RtFlags::empty(),
        mtu: 0,
    };
    inet.rib6.add(spec).is_ok()
}

/// Chooses the default router: the most preferred of those that answer, and while none does, one after the other (RFC 4861
/// §6.3.6, RFC 4191 §3.2). The one in use stays if no better one is there.
fn defrouter_select(inet: &InetVnet) {
    let mut lists = inet.nd6.lists.lock();
    let installed = lists.routers.iter().any(|router| router.installed);
    if !core::mem::take(&mut lists.reselect) && (installed || lists.routers.is_empty()) {
        return;
    }
    let routers = lists.routers.clone();
    drop(lists);
    let chosen = choose(inet, &routers);
    let current = inet.rib6.get(Ipv6Addr::UNSPECIFIED, 0);
    let done = match (chosen, current) {
        (None, None) => None,
        // What the administrator has said stands.
        (_, Some(route)) if !route.nhop.nh_flags.contains(RtFlags::PROTO1) => None,
        (Some(router), Some(route)) if route.nhop.gw == Some(router.rtaddr) => Some(router),
        (chosen, current) => {
            if let Some(route) = current {
                let _ = inet.rib6.delete(Ipv6Addr::UNSPECIFIED, 0);
                if let Some(old) = route.nhop.gw {
                    flush_redirects(inet, old);
                }
            }
            chosen.filter(|router| add_default_route(inet, router))
        }
    };
    let mut lists = inet.nd6.lists.lock();
    for router in &mut lists.routers {
        let same =
            |done: &DefRouter| done.rtaddr == router.rtaddr && done.ifindex == router.ifindex;
        router.installed = done.is_some_and(same);
    }
}

fn choose<'r>(inet: &InetVnet, routers: &'r [DefRouter]) -> Option<&'r DefRouter> {
    let epoch = NetEpoch::enter();
    let answers = |router: &&DefRouter| {
        inet.ifnet_byindex(router.ifindex, &epoch)
            .is_some_and(|ifp| probably_reachable(ifp, router.rtaddr, &epoch))
    };
    let in_use = routers.iter().position(|router| router.installed);
    if let Some(best) = routers.iter().find(answers) {
        let keep = in_use
            .and_then(|at| routers.get(at))
            .filter(answers)
            .filter(|router| router.preference >= best.preference);
        return keep.or(Some(best));
    }
    // Nobody answers: the next one, so that each has its turn.
    let next = in_use.map_or(0, |at| at + 1);
    routers.get(next).or(routers.first())
}

fn add_default_route(inet: &InetVnet, router: &DefRouter) -> bool {
    let Some(ifp) = ifnet(inet, router.ifindex) else {
        return false;
    };
    let spec = RouteSpec {
        dst: Ipv6Addr::UNSPECIFIED,
        prefix_len: 0,
        gw: Some(router.rtaddr),
        ifp,
        ifa: None,
        flags: RtFlags::GATEWAY | RtFlags::PROTO1,
        mtu: 0,
    };
    inet.rib6.add(spec).is_ok()
}

/// A router is the default one no more, so that what it said of other ways is void (`rt6_flush`).
fn flush_redirects(inet: &InetVnet, router: Ipv6Addr) {
    let mut lists = inet.nd6.lists.lock();
    let gone: Vec<_> = lists
        .redirects
        .extract_if(.., |route| route.via == router)
        .collect();
    drop(lists);
    for route in gone {
        unredirect(inet, route.dst, route.via);
    }
}

/// Sends the solicitations that are due, from interfaces whose link-local address is ready (RFC 4861 §6.3.7).
fn solicit(inet: &Arc<InetVnet>) {
    let now = sbinuptime();
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(inet, &epoch);
    let mut lists = inet.nd6.lists.lock();
    let mut due = Vec::new();
    for at in lists.soliciting.iter_mut().filter(|at| at.due <= now) {
        let Some(ifp) = inet.ifnet_byindex(at.ifindex, &epoch) else {
            at.left = 0;
            continue;
        };
        let source = ifp
            .addrs6(&epoch)
            .iter()
            .find(|ia| in6_is_linklocal(ia.ia_addr) && !ia.flags().intersects(In6Iff::NOTREADY));
        let listens = ifp.nd6.flags().contains(Nd6Iff::ACCEPT_RTADV);
        match source {
            Some(source) if ifp.is_running() => {
                due.push((ifp, source.ia_addr));
                at.left -= 1;
                at.due = now + RTR_SOLICITATION_INTERVAL;
            }
            _ if !listens => at.left = 0,
            _ => at.due = now + Sbintime::from_s(1),
        }
    }
    lists.soliciting.retain(|at| at.left != 0);
    drop(lists);
    for (ifp, source) in due {
        let group = in6_setscope(IN6ADDR_LINKLOCAL_ALLROUTERS, ifp);
        nd6_rs_output(&cx, ifp, source, group);
    }
}

/// When there will be something to do; `None`: not before something changes.
fn next_look(inet: &InetVnet) -> Option<Sbintime> {
    let prune = Sbintime::from_s(i64::from(inet.icmp6.nd6_prune.get()));
    let now = uptime();
    let ends = |ia: &&Arc<In6Ifaddr>| {
        ia.lifetimes(now).0 != ND6_INFINITE_LIFETIME || ia.lifetimes(now).1 != ND6_INFINITE_LIFETIME
    };
    let addresses = inet
        .in6_ifaddrs
        .all(&NetEpoch::enter())
        .iter()
        .any(|ia| ends(&ia));
    let lists = inet.nd6.lists.lock();
    let kept =
        !lists.routers.is_empty() || !lists.prefixes.is_empty() || !lists.redirects.is_empty();
    let first = lists.soliciting.iter().map(|at| at.due).min();
    let solicit = first.map(|due| (due - sbinuptime()).max(Sbintime::from_ms(1)));
    let prune = (kept || addresses || lists.reselect).then_some(prune);
    match (solicit, prune) {
        (Some(solicit), Some(prune)) => Some(solicit.min(prune)),
        (one, other) => one.or(other),
    }
}
