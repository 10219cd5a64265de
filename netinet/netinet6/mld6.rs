//! Multicast listener discovery: tells routers and switches which groups are heard here.
//!
//! FreeBSD: sys/netinet6/mld6.c (RFC 3810; RFC 2710 where a querier speaks nothing newer)
//! Not carried over: lists of sources. Every group is heard from everybody (`EXCLUDE {}`).

use crate::ip_var::pseudo_sum;
use crate::netinet6::in6_src::in6_setscope;
use crate::netinet6::ip6::{
    IN6ADDR_LINKLOCAL_ALLNODES, IN6ADDR_LINKLOCAL_ALLROUTERS, IP6OPT_PAD1, IP6OPT_ROUTER_ALERT,
    IPPROTO_HOPOPTS, IPPROTO_ICMPV6, IPV6_ADDR_SCOPE_LINKLOCAL, Ip6, in6_is_linklocal,
    in6_mc_scope,
};
use crate::netinet6::ip6_output::ip6_output;
use crate::netinet6::ip6_var::Ip6OutArgs;
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::Nd6Class;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::{self, sbinuptime};
use sys::mbuf::{How, IfIndex, MAX_LINKHDR, Mbuf};
use sys::net::ifnet::{Ifnet, In6Iff};
use sys::net::nd_ifinfo::Nd6Iff;
use sys::time::Sbintime;
use sys::tunables;
use zerocopy::IntoBytes;

/// Somebody asks which groups are heard.
pub const MLD_LISTENER_QUERY: u8 = 130;
/// A group is heard (version 1).
const MLD_LISTENER_REPORT: u8 = 131;
/// A group is heard no more (version 1).
const MLD_LISTENER_DONE: u8 = 132;
/// Which groups are heard (version 2).
const MLDV2_LISTENER_REPORT: u8 = 143;
/// Length of a query of version 1, and of the part of a report before its records.
const MLD_V1_LEN: usize = 24;
/// Least length of a query of version 2.
const MLD_V2_LEN: usize = 28;
/// Bytes of a record without sources.
const RECORD_LEN: usize = 20;
/// Records of one report, so that it fits every link.
const MAX_RECORDS: usize = 60;
/// ff02::16: every router that understands version 2.
const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// Hop-by-hop options: a router alert that means MLD, padded (RFC 2711).
const ROUTER_ALERT: [u8; 8] = [IPPROTO_ICMPV6, 0, IP6OPT_ROUTER_ALERT, 2, 0, 0, 1, 0];
/// How often a change is reported (RFC 3810 §9.1: the Robustness Variable).
const ROBUSTNESS: u8 = 2;
/// Time within which a change is reported again, ms (§9.11).
const UNSOLICITED_REPORT_INTERVAL: u64 = 1000;
/// How long a querier of version 1 is remembered (§9.12: 2 · 125 s + 10 s).
const OLDER_VERSION_QUERIER_PRESENT: Sbintime = Sbintime::from_s(260);

tunables! {
    /// `net.inet6.mld`.
    pub struct MldTunables {
        v2enable: bool = true, "net.inet6.mld.v2enable", "Enable MLDv2";
        v1enable: bool = true, "net.inet6.mld.v1enable", "Enable fallback to MLDv1";
    }
}

/// What is said of a group (RFC 3810 §5.2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    /// `MODE_IS_EXCLUDE`: it is heard, in answer to a query.
    Heard = 2,
    /// `CHANGE_TO_INCLUDE_MODE`: it is heard no more.
    Left = 3,
    /// `CHANGE_TO_EXCLUDE_MODE`: it is heard from now on.
    Joined = 4,
}

/// Something to be reported.
struct Pending {
    ifindex: IfIndex,
    group: Ipv6Addr,
    record: Record,
    left: u8,
    due: Sbintime,
}

#[derive(Default)]
struct State {
    pending: Vec<Pending>,
    /// Interfaces with a querier of version 1, and until when that is believed.
    old_queriers: Vec<(IfIndex, Sbintime)>,
}

/// What an instance has to report.
pub struct Mld {
    inet: Weak<InetVnet>,
    /// `net.inet6.mld`.
    pub tun: Arc<MldTunables>,
    state: Mutex<State, Nd6Class>,
    callout: Callout,
}

/// Whether a group is reported: that of all nodes is not, nor is one that stays inside a host (RFC 3810 §6).
fn is_reported(ifp: &Ifnet, group: Ipv6Addr) -> bool {
    !ifp.is_loopback()
        && in6_mc_scope(group) >= IPV6_ADDR_SCOPE_LINKLOCAL
        && group != in6_setscope(IN6ADDR_LINKLOCAL_ALLNODES, ifp)
}

impl Mld {
    pub(crate) fn new(inet: Weak<InetVnet>) -> Arc<Self> {
        Arc::new(Self {
            inet,
            tun: Arc::new(MldTunables::new()),
            state: Mutex::new(State::default()),
            callout: Callout::new(),
        })
    }

    /// Stops the timer.
    pub(crate) fn destroy(&self) {
        self.callout.drain();
        *self.state.lock() = State::default();
    }

    /// An interface goes.
    pub(crate) fn purge(&self, ifp: &Ifnet) {
        let mut state = self.state.lock();
        state.pending.retain(|one| one.ifindex != ifp.if_index);
        state
            .old_queriers
            .retain(|(index, _)| *index != ifp.if_index);
    }

    /// A group was joined (`mld_change_state`).
    pub(crate) fn joined(self: &Arc<Self>, ifp: &Ifnet, group: Ipv6Addr) {
        self.report(ifp, group, Record::Joined, ROBUSTNESS, sbinuptime());
    }

    /// A group was left.
    pub(crate) fn left(self: &Arc<Self>, ifp: &Ifnet, group: Ipv6Addr) {
        self.report(ifp, group, Record::Left, ROBUSTNESS, sbinuptime());
    }

    /// Reports all groups of an interface: it has come up, or its link has (`mld_v2_dispatch_general_query`).
    pub(crate) fn announce(self: &Arc<Self>, inet: &InetVnet, ifp: &Ifnet) {
        let epoch = NetEpoch::enter();
        for im in inet.in6_ifaddrs.groups(&epoch) {
            if im.ifindex == ifp.if_index {
                self.joined(ifp, im.group);
            }
        }
    }

    fn report(
        self: &Arc<Self>,
        ifp: &Ifnet,
        group: Ipv6Addr,
        record: Record,
        left: u8,
        due: Sbintime,
    ) {
        if !is_reported(ifp, group) {
            return;
        }
        let mut state = self.state.lock();
        let same = |one: &&mut Pending| one.ifindex == ifp.if_index && one.group == group;
        match state.pending.iter_mut().find(same) {
            // A change that is being reported answers a query too, if it comes soon enough.
            Some(one) if record == Record::Heard => one.due = one.due.min(due),
            Some(one) => (one.record, one.left, one.due) = (record, left, due),
            None => state.pending.push(Pending {
                ifindex: ifp.if_index,
                group,
                record,
                left,
                due,
            }),
        }
        self.arm(&state);
    }

    /// Sets the timer to what is due first.
    fn arm(self: &Arc<Self>, state: &State) {
        if let Some(due) = state.pending.iter().map(|one| one.due).min() {
            let wait = (due - sbinuptime()).max(Sbintime::ZERO);
            self.callout.reset(wait, self);
        }
    }

    fn speaks_v1(&self, state: &State, ifindex: IfIndex) -> bool {
        let now = sbinuptime();
        let old = |(index, until): &(IfIndex, Sbintime)| *index == ifindex && *until > now;
        !self.tun.v2enable.get() || state.old_queriers.iter().any(old)
    }
}

impl CalloutTarget for Mld {
    fn callout(self: Arc<Self>, now: Sbintime) {
        let Some(inet) = self.inet.upgrade() else {
            return;
        };
        let epoch = NetEpoch::enter();
        let cx = NetCx::new(&inet, &epoch);
        let mut due: Vec<(IfIndex, Ipv6Addr, Record, bool)> = Vec::new();
        {
            let mut state = self.state.lock();
            let now = now.max(sbinuptime());
            for at in 0..state.pending.len() {
                let v1 = state
                    .pending
                    .get(at)
                    .is_some_and(|one| self.speaks_v1(&state, one.ifindex));
                let Some(one) = state.pending.get_mut(at).filter(|one| one.due <= now) else {
                    continue;
                };
                due.push((one.ifindex, one.group, one.record, v1));
                one.left = one.left.saturating_sub(1);
                let wait = 1 + machine::random_u64() % UNSOLICITED_REPORT_INTERVAL;
                one.due = now + Sbintime::from_ms(wait as i64);
            }
            state.pending.retain(|one| one.left != 0);
            self.arm(&state);
        }
        while let Some(&(ifindex, _, _, v1)) = due.first() {
            let one_interface =
                |(index, ..): &mut (IfIndex, Ipv6Addr, Record, bool)| *index == ifindex;
            let records: Vec<_> = due.extract_if(.., one_interface).collect();
            let Some(ifp) = inet.ifnet_byindex(ifindex, &epoch) else {
                continue;
            };
            if !ifp.is_running() || ifp.nd6.flags().contains(Nd6Iff::IFDISABLED) {
                continue;
            }
            if v1 {
                for (_, group, record, _) in records {
                    send_v1(&cx, ifp, group, record);
                }
            } else {
                for records in records.chunks(MAX_RECORDS) {
                    send_v2(&cx, ifp, records);
                }
            }
        }
    }
}

/// A report of version 2 with all that is due (RFC 3810 §5.2).
fn send_v2(cx: &NetCx<'_>, ifp: &Ifnet, records: &[(IfIndex, Ipv6Addr, Record, bool)]) {
    let mut message = Vec::with_capacity(8 + RECORD_LEN * records.len());
    message.extend_from_slice(&[MLDV2_LISTENER_REPORT, 0, 0, 0, 0, 0]);
    message.extend_from_slice(&(records.len() as u16).to_be_bytes());
    for (_, group, record, _) in records {
        message.extend_from_slice(&[*record as u8, 0, 0, 0]);
        message.extend_from_slice(&crate::netinet6::in6_src::in6_clearscope(*group).octets());
    }
    send(cx, ifp, ALL_MLDV2_ROUTERS, &message);
}

/// A message of version 1, about one group (RFC 2710 §3).
fn send_v1(cx: &NetCx<'_>, ifp: &Ifnet, group: Ipv6Addr, record: Record) {
    let (kind, dst) = match record {
        Record::Heard | Record::Joined => (MLD_LISTENER_REPORT, group),
        Record::Left => (MLD_LISTENER_DONE, IN6ADDR_LINKLOCAL_ALLROUTERS),
    };
    let mut message = Vec::with_capacity(MLD_V1_LEN);
    message.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(&crate::netinet6::in6_src::in6_clearscope(group).octets());
    send(cx, ifp, dst, &message);
}

/// Sends a message with its router alert, from the link's own address, or from none while that is being checked.
fn send(cx: &NetCx<'_>, ifp: &Ifnet, dst: Ipv6Addr, message: &[u8]) {
    let ready = |ia: &&Arc<sys::net::ifnet::In6Ifaddr>| {
        in6_is_linklocal(ia.ia_addr) && !ia.flags().intersects(In6Iff::NOTREADY | In6Iff::ANYCAST)
    };
    let source = ifp.addrs6(cx.epoch).iter().find(ready);
    let src = source.map_or(Ipv6Addr::UNSPECIFIED, |ia| ia.ia_addr);
    let dst = in6_setscope(dst, ifp);
    let mut ip6 = Ip6::new(0, 0);
    ip6.ip6_plen
        .set((ROUTER_ALERT.len() + message.len()) as u16);
    ip6.ip6_nxt = IPPROTO_HOPOPTS;
    ip6.ip6_hlim = 1;
    ip6.set_src(src);
    ip6.set_dst(dst);
    let hlen = Ip6::LEN + ROUTER_ALERT.len();
    let pseudo = pseudo_sum(src.into(), dst.into(), IPPROTO_ICMPV6, message.len() as u32);
    let built =
        Mbuf::getm2(How::NoWait, MAX_LINKHDR + hlen + message.len(), true).and_then(|mut m| {
            m.reserve_front(MAX_LINKHDR);
            let whole = m.append(ip6.as_bytes()) && m.append(&ROUTER_ALERT) && m.append(message);
            whole.then_some(m)
        });
    let Some(mut m) = built else {
        cx.vnet.icmp6stat.icp6s_dropped.inc();
        return;
    };
    // The field holds the sum of the pseudo header, so that it is part of the sum.
    m.copyback(hlen + 2, &pseudo.to_be_bytes(), How::NoWait);
    let sum = m.in_cksum_skip(m.pkt_len(), hlen);
    m.copyback(hlen + 2, &sum.to_be_bytes(), How::NoWait);
    let kind = message.first().copied().unwrap_or(0);
    cx.vnet.icmp6stat.icp6s_outhist.inc(usize::from(kind));
    let args = Ip6OutArgs {
        ifindex: ifp.if_index,
        unspecsrc: src.is_unspecified(),
        ..Ip6OutArgs::default()
    };
    // ip6_output has counted what becomes of it.
    let _ = ip6_output(cx, m, &args);
}

/// A query (RFC 3810 §6.2, RFC 2710 §4). It must come from the link, with a router alert.
pub(crate) fn mld_input(cx: &NetCx<'_>, m: &Mbuf, off: usize) {
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        return;
    };
    let Some(ip6) = Ip6::parse(m.data()) else {
        return;
    };
    if ip6.ip6_hlim != 1 || !in6_is_linklocal(ip6.src()) || !has_router_alert(m) {
        cx.vnet.icmp6stat.icp6s_badlen.inc();
        return;
    }
    let mut query = [0; MLD_V1_LEN];
    let len = m.pkt_len().saturating_sub(off);
    if !m.copydata(off, &mut query) || len > MLD_V1_LEN && len < MLD_V2_LEN {
        cx.vnet.icmp6stat.icp6s_badlen.inc();
        return;
    }
    let [_, _, _, _, high, low, _, _, group @ ..] = query;
    let group = in6_setscope(Ipv6Addr::from(group), ifp);
    let code = u16::from_be_bytes([high, low]);
    let mld = &cx.vnet.mld;
    let v1 = len == MLD_V1_LEN;
    if v1 {
        if !mld.tun.v1enable.get() {
            return;
        }
        let until = sbinuptime() + OLDER_VERSION_QUERIER_PRESENT;
        let mut state = mld.state.lock();
        state
            .old_queriers
            .retain(|(index, _)| *index != ifp.if_index);
        state.old_queriers.push((ifp.if_index, until));
    }
    let most = if v1 {
        u64::from(code)
    } else {
        max_response_delay(code)
    };
    // Version 2 answers for all groups in one report, so that they have one time.
    let wait = || Sbintime::from_ms((machine::random_u64() % (most + 1)) as i64);
    let together = wait();
    for im in cx.vnet.in6_ifaddrs.groups(cx.epoch) {
        if im.ifindex == ifp.if_index && (group.is_unspecified() || im.group == group) {
            let wait = if v1 { wait() } else { together };
            mld.report(ifp, im.group, Record::Heard, 1, sbinuptime() + wait);
        }
    }
}

/// Maximum Response Code of version 2, in ms (RFC 3810 §5.1.3).
fn max_response_delay(code: u16) -> u64 {
    if code < 0x8000 {
        return u64::from(code);
    }
    let (exponent, mantissa) = (code >> 12 & 0x7, u64::from(code & 0x0fff));
    (mantissa | 0x1000) << (exponent + 3)
}

/// Whether the hop-by-hop options of a packet hold a router alert.
fn has_router_alert(m: &Mbuf) -> bool {
    let data = m.data();
    if Ip6::parse(data).is_none_or(|ip6| ip6.ip6_nxt != IPPROTO_HOPOPTS) {
        return false;
    }
    let Some(&[_, len]) = data.get(Ip6::LEN..Ip6::LEN + 2) else {
        return false;
    };
    let end = Ip6::LEN + (usize::from(len) + 1) * 8;
    let mut at = Ip6::LEN + 2;
    while at < end {
        match data.get(at) {
            Some(&IP6OPT_PAD1) => at += 1,
            Some(&IP6OPT_ROUTER_ALERT) => return true,
            Some(_) => at += 2 + usize::from(data.get(at + 1).copied().unwrap_or(0)),
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_delays_are_floating_point() {
        assert_eq!(max_response_delay(10_000), 10_000);
        assert_eq!(max_response_delay(0x8000), 0x1000 << 3);
        assert_eq!(max_response_delay(0xffff), 0x1fff << 10);
    }
}
