//! The programs the shell can run.

use crate::apps::{Env, dhclient, digest, inetd, iperf3, kbench, ktest, netblast, ping, rr};
use crate::shell::{arp, cpuset, ifconfig, ndp, netstat, route, setkey, sysctl, system, vmstat};

/// A program.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) main: fn(&Env) -> i32,
}

/// Finds a program.
pub(super) fn find(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|program| program.name == name)
}

macro_rules! programs {
    ($($name:literal, $main:path, $summary:literal;)*) => {
        &[$(Program { name: $name, summary: $summary, main: $main },)*]
    };
}

pub(super) const PROGRAMS: &[Program] = programs! {
    "arp", arp::main, "address resolution display and control";
    "cpuset", cpuset::main, "show and set the CPUs of interrupts";
    "dhclient", dhclient::main, "lease an address for an interface";
    "digest", digest::main, "move bytes over TCP and print their SHA-256";
    "dmesg", system::dmesg, "display the kernel's messages";
    "ifconfig", ifconfig::main, "configure network interfaces";
    "inetd", inetd::main, "serve echo, discard and chargen";
    "iperf3", iperf3::main, "measure throughput with any iperf3";
    "kenv", system::kenv, "display the words the kernel was booted with";
    "kbench", kbench::main, "measure what the kernel's own operations cost";
    "ktest", ktest::main, "torture the kernel's locks, threads and timers on all CPUs";
    "ndp", ndp::main, "show and change what is known of IPv6 neighbors and routers";
    "netblast", netblast::main, "send UDP datagrams as fast as possible";
    "netstat", netstat::main, "show network status and statistics";
    "ping", ping::main, "send ICMP echo requests to a host";
    "ping6", ping::main, "send ICMPv6 echo requests to a host";
    "poweroff", system::poweroff, "stop the machine";
    "ps", system::ps, "show threads";
    "reboot", system::reboot, "restart the machine";
    "route", route::main, "change and show the routing table";
    "rr", rr::main, "measure TCP requests and responses per second";
    "rtsol", ndp::rtsol, "ask for IPv6 routers";
    "setkey", setkey::main, "show and change the secrets of TCP-MD5";
    "sleep", system::sleep, "wait for some seconds";
    "sysctl", sysctl::main, "get or set kernel state";
    "uname", system::uname, "display information about the system";
    "uptime", system::uptime, "show how long the system has been running";
    "vmstat", vmstat::main, "show memory zones and interrupts";
};
