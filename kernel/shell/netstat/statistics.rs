//! netstat -s: what the protocols have counted.
//!
//! FreeBSD: usr.bin/netstat/inet.c

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use netinet::ip_icmp::icmp_name;
use netinet::netinet6::icmp6::icmp6_name;
use netinet::vnet::{InetVnet, inet_of};
use sys::counter::Counter;

use super::{Options, tcp};
use crate::apps::Env;
use crate::apps::io::{Failure, Family};

/// A protocol that counts.
struct Protocol {
    name: &'static str,
    /// The family that it belongs to alone.
    family: Family,
    print: fn(&InetVnet, &mut Report),
    zero: fn(&InetVnet),
}

/// One row per protocol: name, family, printer, and which statistics start again from zero.
macro_rules! protocols {
    ($($name:literal, $family:ident, $print:path, $($stat:ident).+;)*) => {
        &[$(Protocol {
            name: $name,
            family: Family::$family,
            print: |inet, report| $print(inet, report),
            zero: |inet| inet.$($stat).+.zero(),
        }),*]
    };
}

/// The protocols, in the order of FreeBSD's table.
const PROTOCOLS: &[Protocol] = protocols! {
    "tcp", Any, tcp::statistics, tcp.stat;
    "udp", Any, udp, udpstat;
    "ip", Inet, ip, ipstat;
    "icmp", Inet, icmp, icmpstat;
    "arp", Inet, arp, arpstat;
    "ip6", Inet6, ip6, ip6stat;
    "icmp6", Inet6, icmp6, icmp6stat;
    "rip6", Inet6, rip6, rip6stat;
};

/// Whether there are statistics of protocol `name`.
pub(super) fn knows(name: &str) -> bool {
    PROTOCOLS.iter().any(|known| known.name == name)
}

/// Prints the statistics, and starts them from zero with `-z`.
pub(super) fn report(env: &Env, options: &Options) -> Result<(), Failure> {
    let Some(inet) = inet_of(&env.vnet) else {
        return Err(Failure::Other("no Internet protocols in this stack".into()));
    };
    let wanted = |protocol: &&Protocol| {
        let of_family = options.family == Family::Any
            || protocol.family == Family::Any
            || options.family == protocol.family;
        let named = options.protocol.as_deref();
        of_family && named.is_none_or(|name| name == protocol.name)
    };
    for protocol in PROTOCOLS.iter().filter(wanted) {
        let mut report = Report {
            text: format!("{}:\n", protocol.name),
            skip_zero: options.statistics > 1,
        };
        (protocol.print)(&inet, &mut report);
        env.out.write(&report.text);
        if options.zero {
            (protocol.zero)(&inet);
        }
    }
    Ok(())
}

/// The text as it grows.
pub(super) struct Report {
    pub(super) text: String,
    skip_zero: bool,
}

impl Report {
    /// Adds a line: `#` stands for the next value, `{s}`, `{es}` and `{ies}` for the plural of the word of the last
    /// value. With `-ss` a line whose first value is 0 is left out.
    pub(super) fn line(&mut self, template: &str, values: &[u64]) {
        if self.skip_zero && values.iter().all(|value| *value == 0) {
            return;
        }
        let mut values = values.iter().copied();
        let mut last = 0;
        let mut rest = template;
        while let Some(at) = rest.find(['#', '{']) {
            self.text.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix('#') {
                last = values.next().unwrap_or(0);
                self.text.push_str(&format!("{last}"));
                rest = after;
                continue;
            }
            let (one, many, len) = if rest.starts_with("{s}") {
                ("", "s", 3)
            } else if rest.starts_with("{es}") {
                ("", "es", 4)
            } else if rest.starts_with("{ies}") {
                ("y", "ies", 5)
            } else {
                ("{", "{", 1)
            };
            self.text.push_str(if last == 1 { one } else { many });
            rest = &rest[len..];
        }
        self.text.push_str(rest);
        self.text.push('\n');
    }

    pub(super) fn counters(&mut self, template: &str, counters: &[&Counter]) {
        let values: Vec<u64> = counters.iter().map(|counter| counter.fetch()).collect();
        self.line(template, &values);
    }

    /// What FreeBSD does not count, behind what it does, and only when it happened.
    fn ours<'a>(
        &mut self,
        counters: impl Iterator<Item = (&'static str, &'a str, u64)>,
        names: &[&str],
    ) {
        for (name, words, value) in counters {
            if names.contains(&name) && value > 0 {
                self.line(&format!("\t# {words}"), &[value]);
            }
        }
    }
}

/// Adds one line per row: template, counters of `$stat`.
macro_rules! lines {
    ($report:expr, $stat:expr, { $($template:literal, $($field:ident),+;)* }) => {
        $($report.counters($template, &[$(&$stat.$field),+]);)*
    };
}
pub(super) use lines;

fn ip(inet: &InetVnet, report: &mut Report) {
    let stat = &inet.ipstat;
    lines!(report, stat, {
        "\t# total packet{s} received", ips_total;
        "\t# bad header checksum{s}", ips_badsum;
        "\t# with size smaller than minimum", ips_toosmall;
        "\t# with data size < data length", ips_tooshort;
        "\t# with ip length > max ip packet size", ips_toolong;
        "\t# with header length < data size", ips_badhlen;
        "\t# with data length < header length", ips_badlen;
        "\t# with bad options", ips_badoptions;
        "\t# with incorrect version number", ips_badvers;
        "\t# fragment{s} received", ips_fragments;
        "\t# fragment{s} dropped (dup or out of space)", ips_fragdropped;
        "\t# fragment{s} dropped after timeout", ips_fragtimeout;
        "\t# packet{s} reassembled ok", ips_reassembled;
        "\t# packet{s} for this host", ips_delivered;
        "\t# packet{s} for unknown/unsupported protocol", ips_noproto;
        "\t# packet{s} forwarded (# packet{s} fast forwarded)", ips_forward, ips_fastforward;
        "\t# packet{s} not forwardable", ips_cantforward;
        "\t# packet{s} received for unknown multicast group", ips_notmember;
        "\t# redirect{s} sent", ips_redirectsent;
        "\t# packet{s} sent from this host", ips_localout;
        "\t# packet{s} sent with fabricated ip header", ips_rawout;
        "\t# output packet{s} dropped due to no bufs, etc.", ips_odropped;
        "\t# output packet{s} discarded due to no route", ips_noroute;
        "\t# output datagram{s} fragmented", ips_fragmented;
        "\t# fragment{s} created", ips_ofragments;
        "\t# datagram{s} that can't be fragmented", ips_cantfrag;
        "\t# tunneling packet{s} that can't find gif", ips_nogif;
        "\t# datagram{s} with bad address in header", ips_badaddr;
    });
    report.ours(
        stat.iter(),
        &[
            "ips_swcsum_in",
            "ips_swcsum_out",
            "ips_filtered",
            "ips_nointerface",
        ],
    );
}

fn udp(inet: &InetVnet, report: &mut Report) {
    let stat = &inet.udpstat;
    lines!(report, stat, {
        "\t# datagram{s} received", udps_ipackets;
        "\t# with incomplete header", udps_hdrops;
        "\t# with bad data length field", udps_badlen;
        "\t# with bad checksum", udps_badsum;
        "\t# with no checksum", udps_nosum;
        "\t# dropped due to no socket", udps_noport;
        "\t# broadcast/multicast datagram{s} undelivered", udps_noportbcast;
        "\t# dropped due to full socket buffers", udps_fullsock;
        "\t# not for hashed pcb", udpps_pcbhashmiss;
    });
    let dropped = [
        &stat.udps_hdrops,
        &stat.udps_badlen,
        &stat.udps_badsum,
        &stat.udps_noport,
        &stat.udps_noportbcast,
        &stat.udps_fullsock,
    ];
    let dropped: u64 = dropped.iter().map(|counter| counter.fetch()).sum();
    let delivered = stat.udps_ipackets.fetch().saturating_sub(dropped);
    report.line("\t# delivered", &[delivered]);
    lines!(report, stat, {
        "\t# datagram{s} output", udps_opackets;
        "\t# time{s} multicast source filter matched", udps_filtermcast;
    });
    report.ours(stat.iter(), &["udps_badport"]);
}

fn icmp(inet: &InetVnet, report: &mut Report) {
    let stat = &inet.icmpstat;
    lines!(report, stat, {
        "\t# call{s} to icmp_error", icps_error;
        "\t# error{s} not generated in response to an icmp message", icps_oldicmp;
    });
    histogram(report, "Output", &stat.icps_outhist, icmp_name);
    lines!(report, stat, {
        "\t# message{s} with bad code fields", icps_badcode;
        "\t# message{s} less than the minimum length", icps_tooshort;
        "\t# message{s} with bad checksum", icps_checksum;
        "\t# message{s} with bad length", icps_badlen;
        "\t# multicast echo requests ignored", icps_bmcastecho;
        "\t# multicast timestamp requests ignored", icps_bmcasttstamp;
    });
    histogram(report, "Input", &stat.icps_inhist, icmp_name);
    lines!(report, stat, {
        "\t# message response{s} generated", icps_reflect;
        "\t# invalid return address{es}", icps_badaddr;
        "\t# no return route{s}", icps_noroute;
    });
    let maskrepl = inet.sysctl.get("net.inet.icmp.maskrepl");
    let state = if maskrepl.is_some_and(|value| value != "0") {
        "enabled"
    } else {
        "disabled"
    };
    report
        .text
        .push_str(&format!("\tICMP address mask responses are {state}\n"));
}

/// The types of message that were seen.
fn histogram(
    report: &mut Report,
    direction: &str,
    counters: &[Counter],
    name_of: fn(usize) -> Option<&'static str>,
) {
    let mut first = true;
    for (kind, counter) in counters.iter().enumerate() {
        let count = counter.fetch();
        if count == 0 {
            continue;
        }
        if first {
            report.text.push_str(&format!("\t{direction} histogram:\n"));
            first = false;
        }
        match name_of(kind) {
            Some(name) => report.text.push_str(&format!("\t\t{name}: {count}\n")),
            None => report
                .text
                .push_str(&format!("\t\tunknown ICMP #{kind}: {count}\n")),
        }
    }
}

fn ip6(inet: &InetVnet, report: &mut Report) {
    let stat = &inet.ip6stat;
    lines!(report, stat, {
        "\t# total packet{s} received", ip6s_total;
        "\t# with size smaller than minimum", ip6s_toosmall;
        "\t# with data size < data length", ip6s_tooshort;
        "\t# with bad options", ip6s_badoptions;
        "\t# with incorrect version number", ip6s_badvers;
        "\t# fragment{s} received", ip6s_fragments;
        "\t# fragment{s} dropped (dup or out of space)", ip6s_fragdropped;
        "\t# fragment{s} dropped after timeout", ip6s_fragtimeout;
        "\t# fragment{s} that exceeded limit", ip6s_fragoverflow;
        "\t# atomic fragment{s}", ip6s_atomicfrags;
        "\t# packet{s} reassembled ok", ip6s_reassembled;
        "\t# packet{s} for this host", ip6s_delivered;
        "\t# packet{s} forwarded", ip6s_forward;
        "\t# packet{s} not forwardable", ip6s_cantforward;
        "\t# redirect{s} sent", ip6s_redirectsent;
        "\t# packet{s} sent from this host", ip6s_localout;
        "\t# packet{s} sent with fabricated ip header", ip6s_rawout;
        "\t# output packet{s} dropped due to no bufs, etc.", ip6s_odropped;
        "\t# output packet{s} discarded due to no route", ip6s_noroute;
        "\t# output datagram{s} fragmented", ip6s_fragmented;
        "\t# fragment{s} created", ip6s_ofragments;
        "\t# datagram{s} that can't be fragmented", ip6s_cantfrag;
        "\t# packet{s} that violated scope rules", ip6s_badscope;
        "\t# multicast packet{s} which we don't join", ip6s_notmember;
        "\t# packet{s} discarded because of too many headers", ip6s_toomanyhdr;
        "\t# tunneling packet{s} that can't find gif", ip6s_nogif;
    });
    report.ours(
        stat.iter(),
        &[
            "ip6s_swcsum_in",
            "ip6s_swcsum_out",
            "ip6s_filtered",
            "ip6s_noproto",
            "ip6s_nointerface",
            "ip6s_ifdisabled",
            "ip6s_notready",
        ],
    );
}

fn icmp6(inet: &InetVnet, report: &mut Report) {
    let stat = &inet.icmp6stat;
    lines!(report, stat, {
        "\t# call{s} to icmp6_error", icp6s_error;
        "\t# error{s} not generated in response to an icmp6 message", icp6s_canterror;
        "\t# error{s} not generated because of rate limitation", icp6s_toofreq;
    });
    histogram(report, "Output", &stat.icp6s_outhist, icmp6_name);
    lines!(report, stat, {
        "\t# message{s} with bad code fields", icp6s_badcode;
        "\t# message{s} < minimum length", icp6s_tooshort;
        "\t# bad checksum{s}", icp6s_checksum;
        "\t# message{s} with bad length", icp6s_badlen;
    });
    histogram(report, "Input", &stat.icp6s_inhist, icmp6_name);
    lines!(report, stat, {
        "\t# message response{s} generated", icp6s_reflect;
        "\t# bad neighbor solicitation message{s}", icp6s_badns;
        "\t# bad neighbor advertisement message{s}", icp6s_badna;
        "\t# bad router solicitation message{s}", icp6s_badrs;
        "\t# bad router advertisement message{s}", icp6s_badra;
        "\t# bad redirect message{s}", icp6s_badredirect;
        "\t# path MTU change{s}", icp6s_pmtuchg;
    });
    let ours = [
        ("\t# message{s} dropped (no memory)", &stat.icp6s_dropped),
        (
            "\t# packet{s} dropped because their neighbor does not answer",
            &stat.nd6_dropped,
        ),
    ];
    for (words, counter) in ours {
        if counter.fetch() > 0 {
            report.counters(words, &[counter]);
        }
    }
}

fn rip6(inet: &InetVnet, report: &mut Report) {
    let stat = &inet.rip6stat;
    lines!(report, stat, {
        "\t# message{s} received", rip6s_ipackets;
        "\t# checksum calculation{s} on inbound", rip6s_isum;
        "\t# message{s} with bad checksum", rip6s_badsum;
        "\t# message{s} dropped due to no socket", rip6s_nosock;
        "\t# multicast message{s} dropped due to no socket", rip6s_nosockmcast;
        "\t# message{s} dropped due to full socket buffers", rip6s_fullsock;
        "\t# datagram{s} output", rip6s_opackets;
    });
}

fn arp(inet: &InetVnet, report: &mut Report) {
    let stat = &inet.arpstat;
    lines!(report, stat, {
        "\t# ARP request{s} sent", txrequests;
        "\t# ARP request{s} failed to sent", txerrors;
        "\t# ARP repl{ies} sent", txreplies;
        "\t# ARP request{s} received", rxrequests;
        "\t# ARP repl{ies} received", rxreplies;
        "\t# ARP packet{s} received", received;
        "\t# total packet{s} dropped due to no ARP entry", dropped;
        "\t# ARP entry{s} timed out", timeouts;
        "\t# Duplicate IP{s} seen", dupips;
    });
    report.ours(stat.iter(), &["badpackets"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(template: &str, values: &[u64], skip_zero: bool) -> String {
        let mut report = Report {
            text: String::new(),
            skip_zero,
        };
        report.line(template, values);
        report.text
    }

    #[test]
    fn a_single_thing_is_singular() {
        assert_eq!(
            line("# data packet{s} (# byte{s})", &[1, 2], false),
            "1 data packet (2 bytes)\n"
        );
        assert_eq!(
            line("# data packet{s} (# byte{s})", &[0, 1], false),
            "0 data packets (1 byte)\n"
        );
        assert_eq!(
            line("# syncache entr{ies} added", &[1], false),
            "1 syncache entry added\n"
        );
        assert_eq!(line("# repl{ies}", &[2], false), "2 replies\n");
        assert_eq!(
            line("# invalid return address{es}", &[3], false),
            "3 invalid return addresses\n"
        );
    }

    #[test]
    fn lines_of_nothing_are_left_out_when_asked() {
        assert_eq!(line("# thing{s}", &[0], true), "");
        assert_eq!(line("# thing{s}", &[1], true), "1 thing\n");
    }
}
