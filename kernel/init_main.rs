//! The start of everything that is not the machine's own, in order.
//!
//! FreeBSD: sys/kern/init_main.c (mi_startup), libexec/rc/rc.d/netif, libexec/rc/rc.d/routing
//! Differs from FreeBSD: no linker sets; the order is this file. There is no `rc.conf` either: what would stand there are
//! words of the kernel's command line.
//!
//! | word | does |
//! |---|---|
//! | `net.inet.tcp.msl=1000`, any tunable | sets it as its subsystem starts |
//! | `ifconfig_em0="inet 10.0.0.2/24"`, `em0=10.0.0.2/24` | runs `ifconfig em0 inet 10.0.0.2/24 up` |
//! | `ifconfig_em0=DHCP`, `em0=dhcp` | leases an address in the background |
//! | `ifconfig_em0=SYNCDHCP` | leases an address before the prompt |
//! | `ifconfig_em0_ipv6="inet6 2001:db8::2/64"`, `em0_ipv6=2001:db8::2/64` | gives it an IPv6 address |
//! | `ifconfig_em0_ipv6="inet6 accept_rtadv"`, `em0_ipv6=accept_rtadv` | hears router advertisements |
//! | `em0=none` | leaves the interface alone |
//! | `defaultrouter=10.0.0.1`, `gateway=10.0.0.1` | adds the default route |
//! | `ipv6_defaultrouter=fe80::1%em0` | adds the default route of IPv6 |
//! | `vnet_em1=b` | gives em1 to the stack instance `b`, which is made if need be |
//! | `init="sysctl net.inet; iperf3 -s"` | runs the line before the prompt |
//!
//! If nothing is said about any interface, the first one leases its address.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use drivers::e1000::{em_attach, em_functions};
use netinet::in_pcb::Inpcb;
use netinet::tcp_var::Tcpcb;
use netinet::udp_usrreq::UdpInpcb;
use netinet::vnet::inet_attach;
use sys::errno::Errno;
use sys::kern;
use sys::kern::kern_thread::{Pri, kthread_add};
use sys::kprintf;
use sys::machine::{self, sbinuptime};
use sys::net::if_loop::loop_attach;
use sys::net::vnet::Vnet;
use sys::socketvar::Socket;
use sys::sysctl::{self, Procedure, ReadOnly, SysctlNode, kenv};
use sys::vm::malloc;

use crate::cmdline;
use crate::shell::sh::{ConsoleOutput, Shell, Vnets};

/// What the start needs of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Machdep {
    /// Starts the other CPUs; each goes to the scheduler.
    pub start_all_aps: fn(),
    /// Lets what is typed come to the console.
    pub attach_console: fn() -> Result<(), Errno>,
    /// The CPU's name.
    pub model: fn() -> String,
    /// Bytes of memory that there are.
    pub physmem: u64,
    /// Crashes.
    pub crash: fn(Crash),
}

/// A way to crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// A page fault.
    Trap,
    /// A write where only execution is allowed.
    WriteText,
    /// A runaway recursion.
    StackOverflow,
}

/// The first lines of the boot messages.
#[doc(alias = "copyright")]
pub fn announce() {
    // What the libraries underneath have to say comes with the kernel's messages.
    let logger: Result<(), log::SetLoggerError> = log::set_logger(&Klog);
    if logger.is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    // The firmware has left its last line open.
    kprintf!("\n---<<BOOT>>---\n");
    kprintf!(
        "{} {} amd64\n",
        sys::param::OSTYPE,
        env!("CARGO_PKG_VERSION")
    );
}

struct Klog;

impl log::Log for Klog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            kprintf!("{}: {}\n", record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Starts all services, the network and the shell. Called on the first thread with interrupts on.
pub fn mi_startup(md: &Machdep) -> ! {
    for (name, value) in cmdline::iter() {
        kenv().set(name, value);
    }
    kern::start_bsp();
    sys::vm::malloc::startup();
    (md.start_all_aps)();
    register_sysctls(md);

    if let Err(errno) = (md.attach_console)() {
        kprintf!("uart0: no interrupt, nothing can be typed: {errno}\n");
    }
    dedicate_zones();
    let vnets = Arc::new(Vnets::new(Vec::new()));
    let interfaces = start_network(&vnets);
    let mut shell = Shell::on_console(vnets.clone());
    for line in rc_lines(&interfaces, cmdline::get) {
        match line.strip_suffix(" &") {
            None => {
                shell.run_line(&line);
            }
            // Not a job of the shell's: nobody is told when it is done.
            Some(line) => {
                let mut background = Shell::new(Arc::new(ConsoleOutput), vnets.clone());
                let line = line.to_string();
                kthread_add("rc", Pri::PUSER, None, move || {
                    background.run_line(&line);
                });
            }
        }
    }
    kprintf!("boot complete: {} ms\n", sbinuptime().as_ms());
    if let Some(line) = cmdline::get("init") {
        shell.run_line(line);
    }
    shell.interact()
}

/// Gives what connections are made of zones of their own.
fn dedicate_zones() {
    malloc::dedicate::<Socket>("socket");
    malloc::dedicate::<Inpcb<Tcpcb>>("tcp_inpcb");
    malloc::dedicate::<UdpInpcb>("udp_inpcb");
}

/// An interface and the stack instance it is in; `None` for the first.
struct Interface {
    name: String,
    vnet: Option<String>,
}

/// Makes the stack instances, and attaches the network interfaces to them.
fn start_network(vnets: &Vnets) -> Vec<Interface> {
    let first = new_vnet(vnets, "vnet0");
    let mut interfaces = Vec::new();
    for (unit, (function, id)) in em_functions().into_iter().enumerate() {
        let name = format!("em{unit}");
        let vnet_name = cmdline::get(&format!("vnet_{name}"));
        let vnet = match vnet_name {
            None => first.clone(),
            Some(wanted) => vnets
                .find(wanted)
                .unwrap_or_else(|| new_vnet(vnets, wanted)),
        };
        match em_attach(&vnet, &function, id, unit as u32) {
            Ok(_) => interfaces.push(Interface {
                name,
                vnet: vnet_name.map(str::to_string),
            }),
            Err(errno) => kprintf!("{name}: attach returned {errno}\n"),
        }
    }
    interfaces
}

fn new_vnet(vnets: &Vnets, name: &str) -> Arc<Vnet> {
    let vnet = Vnet::new(name);
    vnets.add(vnet.clone());
    if let Err(errno) = inet_attach(&vnet) {
        kprintf!("{name}: no Internet protocols: {errno}\n");
    }
    loop_attach(&vnet);
    vnet
}

/// The commands that the command line's words stand for.
fn rc_lines<'a>(interfaces: &[Interface], get: impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
    let mut lines = vec!["ifconfig lo0 inet 127.0.0.1/8 up".to_string()];
    let mut instances: Vec<&str> = interfaces
        .iter()
        .filter_map(|i| i.vnet.as_deref())
        .collect();
    instances.dedup();
    lines.extend(
        instances
            .iter()
            .map(|name| format!("vnet {name} ifconfig lo0 inet 127.0.0.1/8 up")),
    );

    let value = |name: &str| get(&format!("ifconfig_{name}")).or_else(|| get(name));
    let any_said = interfaces
        .iter()
        .any(|i| value(&i.name).is_some() || value(&format!("{}_ipv6", i.name)).is_some());
    for (number, interface) in interfaces.iter().enumerate() {
        let name = &interface.name;
        let prefix = interface
            .vnet
            .as_ref()
            .map_or(String::new(), |vnet| format!("vnet {vnet} "));
        if let Some(said) = value(&format!("{name}_ipv6")) {
            // FreeBSD's start-up scripts wake the interface in the same way.
            let said = said.strip_prefix("inet6 ").unwrap_or(said);
            lines.push(format!(
                "{prefix}ifconfig {name} inet6 {said} -ifdisabled up"
            ));
        }
        let said = match value(name) {
            None if number == 0 && !any_said => "DHCP",
            None | Some("none") => continue,
            Some(said) => said,
        };
        lines.push(match said.to_ascii_lowercase().as_str() {
            "dhcp" => format!("{prefix}dhclient -b {name} &"),
            "syncdhcp" => format!("{prefix}dhclient {name}"),
            // An address by itself, with or without a prefix length.
            _ if said.contains(':') && !said.contains(' ') => {
                format!("{prefix}ifconfig {name} inet6 {said} up")
            }
            _ if said.starts_with(|c: char| c.is_ascii_digit()) => {
                format!("{prefix}ifconfig {name} inet {said} up")
            }
            _ => format!("{prefix}ifconfig {name} {said} up"),
        });
    }
    if let Some(router) = get("defaultrouter").or_else(|| get("gateway")) {
        lines.push(format!("route add default {router}"));
    }
    if let Some(router) = get("ipv6_defaultrouter") {
        lines.push(format!("route add -inet6 default {router}"));
    }
    lines
}

fn register_sysctls(md: &Machdep) {
    let root = sysctl::root();
    let read = |name: &str, description: &'static str, value: String| {
        root.register(
            name,
            Arc::new(ReadOnly::new(description, move || value.clone())) as Arc<dyn SysctlNode>,
        );
    };
    read(
        "kern.ostype",
        "Operating system type",
        sys::param::OSTYPE.to_string(),
    );
    read(
        "kern.osrelease",
        "Operating system release",
        env!("CARGO_PKG_VERSION").to_string(),
    );
    read("hw.machine", "Machine class", "amd64".to_string());
    read("hw.model", "Machine model", (md.model)());
    read(
        "hw.ncpu",
        "Number of active CPUs",
        machine::ncpus().to_string(),
    );
    read(
        "hw.physmem",
        "Amount of physical memory (in bytes)",
        md.physmem.to_string(),
    );

    let mut crashes: Vec<(&str, &'static str, Option<Crash>)> = vec![
        ("debug.kdb.panic", "set to panic the kernel", None),
        (
            "debug.kdb.trap",
            "set to cause a page fault via data access",
            Some(Crash::Trap),
        ),
        (
            "debug.kdb.trap_code",
            "set to cause a write to read-only code",
            Some(Crash::WriteText),
        ),
        (
            "debug.kdb.stack_overflow",
            "set to cause a stack overflow",
            Some(Crash::StackOverflow),
        ),
    ];
    for (name, description, how) in crashes.drain(..) {
        let crash = md.crash;
        let write = move |value: &str| match (value, how) {
            ("0", _) => Ok(()),
            ("1", None) => panic!("kdb_sysctl_panic"),
            ("1", Some(how)) => {
                crash(how);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        };
        root.register(
            name,
            Arc::new(Procedure::new(description, || "0".to_string(), write)) as Arc<dyn SysctlNode>,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(interfaces: &[(&str, Option<&str>)], words: &[(&str, &'static str)]) -> Vec<String> {
        let interfaces: Vec<_> = interfaces
            .iter()
            .map(|(name, vnet)| Interface {
                name: name.to_string(),
                vnet: vnet.map(str::to_string),
            })
            .collect();
        let get = |name: &str| {
            words
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| *value)
        };
        rc_lines(&interfaces, get).split_off(1)
    }

    #[test]
    fn the_first_interface_leases_an_address_if_nothing_is_said() {
        assert_eq!(
            lines(&[("em0", None), ("em1", None)], &[]),
            ["dhclient -b em0 &"]
        );
        assert_eq!(lines(&[], &[]), [""; 0]);
    }

    #[test]
    fn an_interface_is_configured_as_its_word_says_and_the_others_left_alone() {
        let words = [
            ("ifconfig_em1", "inet 10.0.0.2/24 -tso"),
            ("defaultrouter", "10.0.0.1"),
        ];
        assert_eq!(
            lines(&[("em0", None), ("em1", None)], &words),
            [
                "ifconfig em1 inet 10.0.0.2/24 -tso up",
                "route add default 10.0.0.1"
            ]
        );
        assert_eq!(lines(&[("em0", None)], &[("em0", "none")]), [""; 0]);
        assert_eq!(
            lines(&[("em0", None)], &[("em0", "SYNCDHCP")]),
            ["dhclient em0"]
        );
    }

    #[test]
    fn an_interface_speaks_ipv6_if_that_is_said() {
        let words = [
            ("em0", "fd00::2/64"),
            ("ipv6_defaultrouter", "fe80::1%em0"),
            ("ifconfig_em1_ipv6", "inet6 accept_rtadv"),
        ];
        assert_eq!(
            lines(&[("em0", None), ("em1", None)], &words),
            [
                "ifconfig em0 inet6 fd00::2/64 up",
                "ifconfig em1 inet6 accept_rtadv -ifdisabled up",
                "route add -inet6 default fe80::1%em0",
            ]
        );
        // Nothing is said of IPv4, so that none is asked for.
        let words = [("em0_ipv6", "fd00::2/64")];
        assert_eq!(
            lines(&[("em0", None)], &words),
            ["ifconfig em0 inet6 fd00::2/64 -ifdisabled up"]
        );
    }

    #[test]
    fn an_interface_of_another_instance_is_configured_there() {
        let words = [("em0", "10.0.0.1/24"), ("em1", "10.0.0.2/24")];
        assert_eq!(
            lines(&[("em0", None), ("em1", Some("b"))], &words),
            [
                "vnet b ifconfig lo0 inet 127.0.0.1/8 up",
                "ifconfig em0 inet 10.0.0.1/24 up",
                "vnet b ifconfig em1 inet 10.0.0.2/24 up",
            ]
        );
    }
}
