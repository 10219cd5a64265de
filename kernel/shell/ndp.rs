//! ndp: shows and changes what is known of IPv6 neighbours, routers and prefixes. rtsol: asks for routers.
//!
//! FreeBSD: usr.sbin/ndp/ndp.c, usr.sbin/rtsold/rtsol.c

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use netinet::netinet6::in6::nd6_set_ifflags;
use netinet::netinet6::nd6::{Nd6Row, nd6_delete, nd6_set_static, nd6_table};
use netinet::netinet6::nd6_rtr::{
    NdPrefix, RouterPreference, nd6_rs_start, probably_reachable, uptime,
};
use netinet::vnet::{InetVnet, inet_of};
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::IfIndex;
use sys::net::if_llatbl::LleState;
use sys::net::ifnet::{Ifnet, ND6_INFINITE_LIFETIME};
use sys::net::nd_ifinfo::Nd6Iff;

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::outln;
use crate::shell::format;
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: ndp [-n] hostname
       ndp [-n] -a | -c | -p | -r | -P | -R
       ndp -d hostname
       ndp -s hostname ether_addr
       ndp -i interface [flag...]
";

/// What the command line asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Show,
    All,
    Clear,
    Prefixes,
    Routers,
    FlushPrefixes,
    FlushRouters,
    Delete,
    Set,
    Interface,
}

/// Runs `ndp`.
pub(super) fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

/// Runs `rtsol`.
pub(super) fn rtsol(env: &Env) -> i32 {
    let result = inet(env).and_then(|inet| {
        let [name] = env.operands() else {
            return Err(Failure::Usage(String::new()));
        };
        let ifp = interface(env, name)?;
        if !ifp.nd6.flags().contains(Nd6Iff::ACCEPT_RTADV) {
            let reason = format!("{name}: accept_rtadv is off");
            return Err(Failure::Other(reason));
        }
        nd6_rs_start(&inet, &ifp);
        Ok(())
    });
    io::finish(env, "usage: rtsol interface\n", result)
}

fn inet(env: &Env) -> Result<Arc<InetVnet>, Failure> {
    inet_of(&env.vnet).ok_or_else(|| Failure::Other(format!("socket: {}", Errno::EAFNOSUPPORT)))
}

fn interface(env: &Env, name: &str) -> Result<Arc<Ifnet>, Failure> {
    let unknown = || Failure::Other(format!("interface {name} does not exist"));
    env.vnet.ifunit(name).ok_or_else(unknown)
}

fn run(env: &Env) -> Result<(), Failure> {
    let mut action = Action::Show;
    let mut getopt = Getopt::new(&env.args, "acdinprPRs");
    for option in getopt.by_ref() {
        action = match option.map_err(Failure::Usage)? {
            ('a', _) => Action::All,
            ('c', _) => Action::Clear,
            ('d', _) => Action::Delete,
            ('i', _) => Action::Interface,
            ('n', _) => action,
            ('p', _) => Action::Prefixes,
            ('r', _) => Action::Routers,
            ('P', _) => Action::FlushPrefixes,
            ('R', _) => Action::FlushRouters,
            ('s', _) => Action::Set,
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        }
    }
    let inet = inet(env)?;
    match (action, getopt.operands()) {
        (Action::All, []) => {
            outln!(env, "{}", heading());
            for row in nd6_table(&inet) {
                outln!(env, "{}", line(env, &row));
            }
            Ok(())
        }
        (Action::Show, [host]) => show(env, &inet, host),
        (Action::Clear, []) => {
            for row in nd6_table(&inet) {
                // What has gone by itself is gone too.
                if !row.own && nd6_delete(&inet, row.addr).is_ok() {
                    let addr = format::in6(&env.vnet, row.addr);
                    outln!(env, "{addr} ({addr}) deleted");
                }
            }
            Ok(())
        }
        (Action::Delete, [host]) => {
            let addr = address(env, host)?;
            let failed = |errno| Failure::Other(format!("{host}: {errno}"));
            nd6_delete(&inet, addr).map_err(failed)?;
            outln!(env, "{host} ({host}) deleted");
            Ok(())
        }
        (Action::Set, [host, lladdr]) => {
            let addr = address(env, host)?;
            let bad = || Failure::Other(format!("bad address: {lladdr}"));
            let lladdr = format::parse_ether(lladdr).ok_or_else(bad)?;
            let epoch = NetEpoch::enter();
            let route = env.vnet.rib6.fib6_lookup(addr, &epoch);
            let ifp = route.map(|nhop| nhop.nh_ifp.clone());
            drop(epoch);
            let unreachable = || Failure::Other(format!("cannot locate {host}"));
            nd6_set_static(&ifp.ok_or_else(unreachable)?, addr, lladdr)
                .map_err(|errno| Failure::Other(format!("{host}: {errno}")))
        }
        (Action::Prefixes, []) => {
            for prefix in inet.nd6.prefixes() {
                env.out.write(&prefix_lines(env, &prefix));
            }
            Ok(())
        }
        (Action::Routers, []) => {
            for router in inet.nd6.routers() {
                let preference = match router.preference {
                    RouterPreference::High => "high",
                    RouterPreference::Medium => "medium",
                    RouterPreference::Low => "low",
                };
                let mut flags = String::new();
                for (bit, letter) in [(0x80, 'M'), (0x40, 'O')] {
                    if router.raflags & bit != 0 {
                        flags.push(letter);
                    }
                }
                outln!(
                    env,
                    "{} if={}, flags={flags}, pref={preference}, expire={}",
                    format::in6(&env.vnet, router.rtaddr),
                    ifname(env, router.ifindex),
                    span(i64::from(router.expire.saturating_sub(uptime())))
                );
            }
            Ok(())
        }
        (Action::FlushPrefixes, []) => {
            inet.nd6.flush_prefixes(&inet);
            Ok(())
        }
        (Action::FlushRouters, []) => {
            inet.nd6.flush_routers();
            Ok(())
        }
        (Action::Interface, [name, words @ ..]) => {
            let ifp = interface(env, name)?;
            change_interface(&inet, &ifp, words)?;
            env.out.write(&interface_lines(&inet, &ifp));
            Ok(())
        }
        _ => Err(Failure::Usage(String::new())),
    }
}

fn address(env: &Env, host: &str) -> Result<core::net::Ipv6Addr, Failure> {
    let unknown = || Failure::Other(format!("{host}: not an IPv6 address"));
    format::parse_in6(&env.vnet, host).ok_or_else(unknown)
}

fn show(env: &Env, inet: &InetVnet, host: &str) -> Result<(), Failure> {
    let addr = address(env, host)?;
    let mut rows = nd6_table(inet);
    rows.retain(|row| row.addr == addr);
    if rows.is_empty() {
        return Err(Failure::Other(format!("{host} ({host}) -- no entry")));
    }
    outln!(env, "{}", heading());
    for row in &rows {
        outln!(env, "{}", line(env, row));
    }
    Ok(())
}

fn heading() -> String {
    format!(
        "{:<36.36} {:<17.17} {:>6.6} {:<9.9} {:1} Flags",
        "Neighbor", "Linklayer Address", "Netif", "Expire", "S"
    )
}

fn line(env: &Env, row: &Nd6Row) -> String {
    let lladdr = row.lladdr.as_ref().map(format::ether);
    let state = match row.state {
        LleState::Incomplete | LleState::Verify | LleState::Down => 'I',
        LleState::Reachable => 'R',
        LleState::Stale => 'S',
        LleState::Delay => 'D',
        LleState::Probe => 'P',
    };
    let line = format!(
        "{:<36} {:<17} {:>6} {:<9} {state} {}",
        format::in6(&env.vnet, row.addr),
        lladdr.as_deref().unwrap_or("(incomplete)"),
        row.ifname,
        row.expire.map_or("permanent".to_string(), span),
        if row.router { "R" } else { "" }
    );
    line.trim_end().to_string()
}

/// Seconds as days, hours, minutes and seconds (`sec2str`).
fn span(seconds: i64) -> String {
    if seconds <= 0 {
        return "expired".to_string();
    }
    let mut text = String::new();
    let (mut left, mut begun) = (seconds, false);
    for (unit, letter) in [(86400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')] {
        let count = left / unit;
        left %= unit;
        begun |= count > 0;
        if begun {
            text += &format!("{count}{letter}");
        }
    }
    text
}

fn ifname(env: &Env, index: IfIndex) -> String {
    let epoch = NetEpoch::enter();
    let ifp = env.vnet.ifnet_byindex(index, &epoch);
    ifp.map_or_else(|| "?".to_string(), |ifp| ifp.if_xname.clone())
}

fn prefix_lines(env: &Env, prefix: &NdPrefix) -> String {
    let mut flags = String::new();
    for (set, letter) in [
        (prefix.onlink, 'L'),
        (prefix.autonomous, 'A'),
        (prefix.onlink && !prefix.detached, 'O'),
        (prefix.detached, 'D'),
    ] {
        if set {
            flags.push(letter);
        }
    }
    let lifetime = |time| match time {
        ND6_INFINITE_LIFETIME => "infinity".to_string(),
        time => time.to_string(),
    };
    let expire = match prefix.expire() {
        None => "Never".to_string(),
        Some(at) => span(i64::from(at.saturating_sub(uptime()))),
    };
    let epoch = NetEpoch::enter();
    let ifp = env.vnet.ifnet_byindex(prefix.ifindex, &epoch);
    let addresses = ifp.map_or(0, |ifp| {
        let made = |ia: &&Arc<_>| prefix.made(ia);
        ifp.addrs6(&epoch).iter().filter(made).count()
    });
    let mut text = format!(
        "{}/{} if={}\nflags={flags} vltime={}, pltime={}, expire={expire}, ref={addresses}\n",
        prefix.prefix,
        prefix.plen,
        ifp.map_or("?", |ifp| &ifp.if_xname),
        lifetime(prefix.vltime),
        lifetime(prefix.pltime)
    );
    if prefix.advrtrs.is_empty() {
        text += "  No advertising router\n";
        return text;
    }
    text += "  advertised by\n";
    for router in &prefix.advrtrs {
        let reachable = ifp.is_some_and(|ifp| probably_reachable(ifp, *router, &epoch));
        text += &format!(
            "    {} ({})\n",
            format::in6(&env.vnet, *router),
            if reachable {
                "reachable"
            } else {
                "unreachable"
            }
        );
    }
    text
}

/// Words of flags, as `ndp -i` takes and shows them.
const FLAGS: &[(&str, Nd6Iff)] = &[
    ("nud", Nd6Iff::PERFORMNUD),
    ("accept_rtadv", Nd6Iff::ACCEPT_RTADV),
    ("prefer_source", Nd6Iff::PREFER_SOURCE),
    ("disabled", Nd6Iff::IFDISABLED),
    ("auto_linklocal", Nd6Iff::AUTO_LINKLOCAL),
    ("no_radr", Nd6Iff::NO_RADR),
    ("no_prefer_iface", Nd6Iff::NO_PREFER_IFACE),
    ("no_dad", Nd6Iff::NO_DAD),
];

fn change_interface(
    inet: &Arc<InetVnet>,
    ifp: &Arc<Ifnet>,
    words: &[String],
) -> Result<(), Failure> {
    let (mut set, mut clear) = (Nd6Iff::empty(), Nd6Iff::empty());
    for word in words {
        let (plain, on) = match word.strip_prefix('-') {
            Some(plain) => (plain, false),
            None => (word.as_str(), true),
        };
        let Some((_, flag)) = FLAGS.iter().find(|(name, _)| *name == plain) else {
            return Err(Failure::Usage(format!("{word}: unknown flag")));
        };
        if on {
            set |= *flag;
        } else {
            clear |= *flag;
        }
    }
    if !(set | clear).is_empty() {
        nd6_set_ifflags(inet, ifp, set, clear);
    }
    Ok(())
}

fn interface_lines(inet: &InetVnet, ifp: &Ifnet) -> String {
    let ndi = &ifp.nd6;
    let ms = |ms: u32| format!("{}s{}ms", ms / 1000, ms % 1000);
    let mut text = format!(
        "linkmtu={}, curhlim={}, basereachable={}, retrans={}\nFlags: ",
        ndi.linkmtu().unwrap_or(0),
        ndi.chlim().map_or(inet.ip6.hlim.get(), u32::from),
        ms(ndi.basereachable()),
        ms(ndi.retrans())
    );
    for (name, flag) in FLAGS {
        if ndi.flags().contains(*flag) {
            text += &format!("{name} ");
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_leave_out_what_is_nothing_before_the_first_unit() {
        assert_eq!(span(86398), "23h59m58s");
        assert_eq!(span(3600), "1h0m0s");
        assert_eq!(span(90061), "1d1h1m1s");
        assert_eq!(span(0), "expired");
    }
}
