//! ifconfig: shows and changes interfaces.
//!
//! FreeBSD: sbin/ifconfig/ifconfig.c, af_inet.c, af_inet6.c, af_nd6.c, af_link.c, ifmedia.c

mod inet6;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use netinet::in_control::{AddrArgs, in_aifaddr, in_difaddr, in_sifaddr, len_mask, mask_len};
use netinet::vnet::inet_of;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::net::ifnet::{IFT_ETHER, IfCap, IfFlags, Ifaddr, Ifnet};

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::shell::format;
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: ifconfig [-adLlmu] [-f inet:cidr|dotted|hex] [interface] [address_family] [address[/length]]
                [netmask mask] [broadcast addr] [alias | -alias] [parameters]
parameters: up down mtu n metric n ether addr [-]promisc [-]arp [-]monitor [-]debug [-]link0..2
            [-]rxcsum [-]txcsum [-]tso [-]tso4 [-]tso6 [-]lro [-]rxcsum6 [-]txcsum6
            [-]vlanmtu [-]vlanhwtag [-]vlanhwfilter [-]vlanhwtso [-]vlanhwcsum
            delete
inet6:      prefixlen n  pltime n  vltime n  eui64  anycast  [-]deprecated  [-]prefer_source
            [-]accept_rtadv [-]auto_linklocal [-]ifdisabled [-]no_radr [-]no_prefer_iface [-]no_dad [-]nud
";

/// Names of flags (`IFFBITS`).
const FLAG_NAMES: &[(u64, &str)] = &[
    (0x1, "UP"),
    (0x2, "BROADCAST"),
    (0x4, "DEBUG"),
    (0x8, "LOOPBACK"),
    (0x10, "POINTOPOINT"),
    (0x40, "RUNNING"),
    (0x80, "NOARP"),
    (0x100, "PROMISC"),
    (0x200, "ALLMULTI"),
    (0x400, "DRV_OACTIVE"),
    (0x800, "SIMPLEX"),
    (0x1000, "LINK0"),
    (0x2000, "LINK1"),
    (0x4000, "LINK2"),
    (0x8000, "MULTICAST"),
    (0x10000, "CANTCONFIG"),
    (0x20000, "PPROMISC"),
    (0x40000, "MONITOR"),
    (0x80000, "STATICARP"),
    (0x100000, "STICKYARP"),
    (0x200000, "DYING"),
    (0x400000, "RENAMING"),
    (0x800000, "PALLMULTI"),
    (0x1000000, "LOWER_UP"),
];

/// Names of capabilities (`IFCAPBITS`).
const CAP_NAMES: &[(u64, &str)] = &[
    (1 << 0, "RXCSUM"),
    (1 << 1, "TXCSUM"),
    (1 << 2, "NETCONS"),
    (1 << 3, "VLAN_MTU"),
    (1 << 4, "VLAN_HWTAGGING"),
    (1 << 5, "JUMBO_MTU"),
    (1 << 6, "POLLING"),
    (1 << 7, "VLAN_HWCSUM"),
    (1 << 8, "TSO4"),
    (1 << 9, "TSO6"),
    (1 << 10, "LRO"),
    (1 << 11, "WOL_UCAST"),
    (1 << 12, "WOL_MCAST"),
    (1 << 13, "WOL_MAGIC"),
    (1 << 14, "TOE4"),
    (1 << 15, "TOE6"),
    (1 << 16, "VLAN_HWFILTER"),
    (1 << 18, "VLAN_HWTSO"),
    (1 << 19, "LINKSTATE"),
    (1 << 20, "NETMAP"),
    (1 << 21, "RXCSUM_IPV6"),
    (1 << 22, "TXCSUM_IPV6"),
    (1 << 23, "HWSTATS"),
    (1 << 26, "MEXTPG"),
];

/// Words that switch capabilities; `-word` switches off.
fn capability(word: &str) -> Option<IfCap> {
    Some(match word {
        "rxcsum" => IfCap::RXCSUM,
        "txcsum" => IfCap::TXCSUM,
        "rxcsum6" => IfCap::RXCSUM_IPV6,
        "txcsum6" => IfCap::TXCSUM_IPV6,
        "tso" => IfCap::TSO4 | IfCap::TSO6,
        "tso4" => IfCap::TSO4,
        "tso6" => IfCap::TSO6,
        "lro" => IfCap::LRO,
        "toe" => IfCap::TOE4 | IfCap::TOE6,
        "vlanmtu" => IfCap::VLAN_MTU,
        "vlanhwtag" => IfCap::VLAN_HWTAGGING,
        "vlanhwfilter" => IfCap::VLAN_HWFILTER,
        "vlanhwtso" => IfCap::VLAN_HWTSO,
        "vlanhwcsum" => IfCap::VLAN_HWCSUM,
        "polling" => IfCap::POLLING,
        "netcons" => IfCap::NETCONS,
        "wol" => IfCap::WOL_UCAST | IfCap::WOL_MCAST | IfCap::WOL_MAGIC,
        "wol_ucast" => IfCap::WOL_UCAST,
        "wol_mcast" => IfCap::WOL_MCAST,
        "wol_magic" => IfCap::WOL_MAGIC,
        _ => return None,
    })
}

/// Words that switch flags.
fn flag(word: &str) -> Option<IfFlags> {
    Some(match word {
        "debug" => IfFlags::DEBUG,
        "promisc" => IfFlags::PPROMISC,
        "monitor" => IfFlags::MONITOR,
        "link0" => IfFlags::LINK0,
        "link1" => IfFlags::LINK1,
        "link2" => IfFlags::LINK2,
        "staticarp" => IfFlags::STATICARP,
        "stickyarp" => IfFlags::STICKYARP,
        "allmulti" => IfFlags::PALLMULTI,
        _ => return None,
    })
}

/// How masks are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MaskStyle {
    Hex,
    Cidr,
    Dotted,
}

struct Options {
    all: bool,
    down_only: bool,
    up_only: bool,
    list: bool,
    more: bool,
    masks: MaskStyle,
    lifetimes: bool,
    /// Only the addresses of this family.
    family: Option<&'static str>,
}

/// Runs `ifconfig`.
pub(super) fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let mut options = Options {
        all: false,
        down_only: false,
        up_only: false,
        list: false,
        more: false,
        masks: MaskStyle::Hex,
        lifetimes: false,
        family: None,
    };
    let mut getopt = Getopt::new(&env.args, "adlmuf:Lvkn");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('a', _) => options.all = true,
            ('d', _) => options.down_only = true,
            ('l', _) => options.list = true,
            ('m', _) => options.more = true,
            ('u', _) => options.up_only = true,
            ('f', format) => {
                options.masks = match format {
                    "inet:cidr" => MaskStyle::Cidr,
                    "inet:dotted" => MaskStyle::Dotted,
                    "inet:hex" => MaskStyle::Hex,
                    other => return Err(Failure::Usage(format!("unknown format: {other}"))),
                };
            }
            ('L', _) => options.lifetimes = true,
            ('v' | 'k' | 'n', _) => {}
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        }
    }
    let words = getopt.operands();
    let Some((name, words)) = words.split_first() else {
        return show_all(env, &options);
    };
    let family = |word: &str| match word {
        "inet" => Some("inet"),
        "inet6" => Some("inet6"),
        "ether" | "link" => Some("link"),
        _ => None,
    };
    if let (Some(family), true) = (family(name), words.is_empty()) {
        options.family = Some(family);
        return show_all(env, &options);
    }
    let Some(ifp) = env.vnet.ifunit(name) else {
        return Err(Failure::Other(format!("interface {name} does not exist")));
    };
    let (named, words) = match words {
        [word, rest @ ..] if word != "ether" && family(word).is_some() => (family(word), rest),
        words => (None, words),
    };
    options.family = named;
    if named == Some("inet6") && !words.is_empty() {
        let words = inet6::run(env, &ifp, words)?;
        return Request::parse(&ifp, &words)?.apply(env, &ifp);
    }
    if words.is_empty() {
        env.out.write(&describe(&ifp, &options));
        return Ok(());
    }
    Request::parse(&ifp, words)?.apply(env, &ifp)
}

fn show_all(env: &Env, options: &Options) -> Result<(), Failure> {
    let mut names = Vec::new();
    for ifp in env.vnet.ifnets() {
        let up = ifp.flags().contains(IfFlags::UP);
        if options.up_only && !up || options.down_only && up {
            continue;
        }
        if options.list {
            names.push(ifp.if_xname.clone());
        } else {
            env.out.write(&describe(&ifp, options));
        }
    }
    if options.list {
        env.out.write(&format!("{}\n", names.join(" ")));
    }
    Ok(())
}

/// The paragraph of one interface.
fn describe(ifp: &Arc<Ifnet>, options: &Options) -> String {
    let mut text = format!(
        "{}: flags={} metric 0 mtu {}\n",
        ifp.if_xname,
        format::bits(u64::from(ifp.flags().bits()), FLAG_NAMES),
        ifp.mtu()
    );
    let enabled = u64::from(ifp.capenable().bits());
    if enabled != 0 {
        text += &format!("\toptions={}\n", format::bits(enabled, CAP_NAMES));
    }
    let capabilities = u64::from(ifp.capabilities().bits());
    if options.more && capabilities != 0 {
        text += &format!("\tcapabilities={}\n", format::bits(capabilities, CAP_NAMES));
    }
    if ifp.if_type == IFT_ETHER {
        text += &format!("\tether {}\n", format::ether(&ifp.lladdr()));
    }
    let shows = |family| options.family.is_none_or(|only| only == family);
    {
        let epoch = NetEpoch::enter();
        for ia in ifp.addrs(&epoch).iter().filter(|_| shows("inet")) {
            text += &inet_line(ia, ifp, options.masks);
        }
        for ia in ifp.addrs6(&epoch).iter().filter(|_| shows("inet6")) {
            text += &inet6::line(ia, options.lifetimes);
        }
    }
    if ifp.is_loopback() {
        text += "\tgroups: lo\n";
    }
    if let Some(media) = ifp.driver().media_status(ifp) {
        text += &format!("\tmedia: {}\n", media.describe());
        text += &format!("\tstatus: {}\n", media.status());
        if options.more {
            text += "\tsupported media:\n\t\tmedia autoselect\n";
        }
    }
    text += &inet6::nd6_line(ifp);
    text
}

fn inet_line(ia: &Ifaddr, ifp: &Ifnet, masks: MaskStyle) -> String {
    let mut line = format!("\tinet {}", ia.ia_addr);
    if masks == MaskStyle::Cidr
        && let Some(len) = mask_len(ia.ia_netmask)
    {
        line += &format!("/{len}");
    }
    if ifp.flags().contains(IfFlags::POINTOPOINT)
        && let Some(dst) = ia.ia_dstaddr
    {
        line += &format!(" --> {dst}");
    }
    match masks {
        MaskStyle::Hex => line += &format!(" netmask {:#010x}", ia.ia_netmask.to_bits()),
        MaskStyle::Dotted => line += &format!(" netmask {}", ia.ia_netmask),
        MaskStyle::Cidr => {}
    }
    if let Some(broadcast) = ia.ia_broadaddr {
        line += &format!(" broadcast {broadcast}");
    }
    line.push('\n');
    line
}

/// What happens to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AddressChange {
    /// It replaces the first one.
    Set,
    /// It comes to the others.
    Alias,
    /// It goes.
    Delete,
}

/// What the words of a command line ask for, all of it understood before any is done.
#[derive(Debug)]
struct Request {
    address: Option<Ipv4Addr>,
    args: AddrArgs,
    change: AddressChange,
    set: IfFlags,
    clear: IfFlags,
    enable: IfCap,
    disable: IfCap,
    mtu: Option<u32>,
    lladdr: Option<[u8; 6]>,
}

impl Request {
    fn parse(ifp: &Ifnet, words: &[String]) -> Result<Request, Failure> {
        let mut request = Request {
            address: None,
            args: AddrArgs::default(),
            change: AddressChange::Set,
            set: IfFlags::empty(),
            clear: IfFlags::empty(),
            enable: IfCap::empty(),
            disable: IfCap::empty(),
            mtu: None,
            lladdr: None,
        };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let mut value = |what: &str| {
                let missing = || Failure::Usage(format!("'{what}' requires argument"));
                words.next().ok_or_else(missing)
            };
            match word {
                "up" => request.flag(IfFlags::UP, true),
                "down" => request.flag(IfFlags::UP, false),
                "arp" => request.flag(IfFlags::NOARP, false),
                "-arp" => request.flag(IfFlags::NOARP, true),
                "add" | "alias" => request.change = AddressChange::Alias,
                "delete" | "-alias" | "remove" => request.change = AddressChange::Delete,
                "mtu" => request.mtu = Some(io::number("mtu", value("mtu")?, 0, 65535)? as u32),
                "metric" => {
                    if io::number("metric", value("metric")?, 0, 255)? != 0 {
                        return Err(Failure::Other("metric: not supported".into()));
                    }
                }
                "netmask" => {
                    let word = value("netmask")?;
                    let mask = format::parse_mask(word)
                        .filter(|mask| mask_len(*mask).is_some())
                        .ok_or_else(|| Failure::Other(format!("{word}: bad value (netmask)")))?;
                    request.args.netmask = Some(mask);
                }
                "broadcast" => request.args.broadcast = Some(address(value("broadcast")?)?),
                "ether" | "lladdr" => {
                    let word = value(word)?;
                    let addr = format::parse_ether(word)
                        .ok_or_else(|| Failure::Other(format!("{word}: bad value (ether)")))?;
                    request.lladdr = Some(addr);
                }
                "create" | "destroy" | "media" | "mediaopt" | "-mediaopt" | "name" | "group"
                | "description" | "descr" | "vnet" | "-vnet" | "fib" => {
                    return Err(Failure::Other(format!("{word}: not supported")));
                }
                _ => {
                    let (plain, on) = match word.strip_prefix('-') {
                        Some(plain) => (plain, false),
                        None => (word, true),
                    };
                    if let Some(cap) = capability(plain) {
                        request.capability(cap, on);
                    } else if let Some(flag) = flag(plain) {
                        request.flag(flag, on);
                    } else if on && request.address.is_none() {
                        request.take_address(word)?;
                    } else if on && ifp.flags().contains(IfFlags::POINTOPOINT) {
                        request.args.dest = Some(address(word)?);
                    } else {
                        return Err(Failure::Other(format!("{word}: bad value")));
                    }
                }
            }
        }
        Ok(request)
    }

    fn flag(&mut self, flag: IfFlags, on: bool) {
        self.set.set(flag, on);
        self.clear.set(flag, !on);
    }

    fn capability(&mut self, cap: IfCap, on: bool) {
        self.enable.set(cap, on);
        self.disable.set(cap, !on);
    }

    fn take_address(&mut self, word: &str) -> Result<(), Failure> {
        let (addr, len) = format::parse_prefix(word)
            .ok_or_else(|| Failure::Other(format!("{word}: bad value")))?;
        self.address = Some(addr);
        if let Some(len) = len {
            self.args.netmask = Some(len_mask(len));
        }
        Ok(())
    }

    fn apply(&self, env: &Env, ifp: &Arc<Ifnet>) -> Result<(), Failure> {
        let failed =
            |what: &'static str| move |errno: Errno| Failure::Other(format!("{what}: {errno}"));
        if let Some(lladdr) = self.lladdr {
            if ifp.if_type != IFT_ETHER || lladdr[0] & 1 != 0 {
                return Err(failed("ioctl (SIOCSIFLLADDR)")(Errno::EINVAL));
            }
            ifp.set_lladdr(lladdr)
                .map_err(failed("ioctl (SIOCSIFLLADDR)"))?;
        }
        if !(self.enable | self.disable).is_empty() {
            let lacking = self.enable - ifp.capabilities();
            // A word for several, such as tso, takes what there is of them.
            let wanted = self.enable & ifp.capabilities();
            if !lacking.is_empty() && wanted.is_empty() {
                return Err(failed("ioctl (SIOCSIFCAP)")(Errno::EINVAL));
            }
            let enable = (ifp.capenable() | wanted) - self.disable;
            ifp.set_capenable(enable)
                .map_err(failed("ioctl (SIOCSIFCAP)"))?;
        }
        if let Some(mtu) = self.mtu {
            ifp.set_mtu(mtu).map_err(failed("ioctl (set mtu)"))?;
        }
        self.apply_address(env, ifp)?;
        if !(self.set | self.clear).is_empty() {
            ifp.change_flags(self.set, self.clear)
                .map_err(failed("ioctl (SIOCSIFFLAGS)"))?;
        }
        Ok(())
    }

    fn apply_address(&self, env: &Env, ifp: &Arc<Ifnet>) -> Result<(), Failure> {
        let failed =
            |what: &'static str| move |errno: Errno| Failure::Other(format!("{what}: {errno}"));
        let Some(inet) = inet_of(&env.vnet) else {
            return Err(failed("socket")(Errno::EAFNOSUPPORT));
        };
        match (self.address, self.change) {
            (Some(addr), AddressChange::Set) => {
                in_sifaddr(&inet, ifp, addr, &self.args).map_err(failed("ioctl (SIOCAIFADDR)"))
            }
            (Some(addr), AddressChange::Alias) => {
                in_aifaddr(&inet, ifp, addr, &self.args).map_err(failed("ioctl (SIOCAIFADDR)"))
            }
            (addr, AddressChange::Delete) => {
                let first = || {
                    let epoch = NetEpoch::enter();
                    ifp.addrs(&epoch).first().map(|ia| ia.ia_addr)
                };
                let Some(addr) = addr.or_else(first) else {
                    return Err(failed("ioctl (SIOCDIFADDR)")(Errno::EADDRNOTAVAIL));
                };
                in_difaddr(&inet, ifp, addr).map_err(failed("ioctl (SIOCDIFADDR)"))
            }
            (None, AddressChange::Set) => {
                self.change_first(|addr, args| in_sifaddr(&inet, ifp, addr, args), ifp)
            }
            (None, AddressChange::Alias) => Err(Failure::Usage("alias needs an address".into())),
        }
    }

    /// A mask or broadcast address without address concerns the first one.
    fn change_first(
        &self,
        set: impl Fn(Ipv4Addr, &AddrArgs) -> Result<(), Errno>,
        ifp: &Arc<Ifnet>,
    ) -> Result<(), Failure> {
        if self.args.netmask.is_none() && self.args.broadcast.is_none() {
            return Ok(());
        }
        let first = {
            let epoch = NetEpoch::enter();
            ifp.addrs(&epoch)
                .first()
                .map(|ia| (ia.ia_addr, ia.ia_netmask))
        };
        let Some((addr, mask)) = first else {
            return Err(Failure::Other(
                "ioctl (SIOCAIFADDR): Destination address required".into(),
            ));
        };
        let args = AddrArgs {
            netmask: self.args.netmask.or(Some(mask)),
            ..self.args
        };
        set(addr, &args).map_err(|errno| Failure::Other(format!("ioctl (SIOCAIFADDR): {errno}")))
    }
}

fn address(word: &str) -> Result<Ipv4Addr, Failure> {
    word.parse()
        .map_err(|_| Failure::Other(format!("{}: bad value", word)))
}
