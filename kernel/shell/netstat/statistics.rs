//! netstat -s: what the protocols have counted.
//!
//! FreeBSD: usr.bin/netstat/inet.c

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use netinet::if_ether::ArpStat;
use netinet::ip_icmp::{IcmpStat, icmp_name};
use netinet::ip_var::IpStat;
use netinet::tcp_fsm::{TCP_NSTATES, TcpState};
use netinet::tcp_var::TcpStat;
use netinet::udp::UdpStat;
use netinet::vnet::{InetVnet, inet_of};
use sys::counter::Counter;

use super::Options;
use crate::apps::Env;
use crate::apps::io::Failure;

/// The protocols, in the order of FreeBSD's table.
const PROTOCOLS: &[(&str, fn(&InetVnet, &mut Report))] = &[
    ("tcp", |inet, report| tcp(inet, report)),
    ("udp", |inet, report| udp(&inet.udpstat, report)),
    ("ip", |inet, report| ip(&inet.ipstat, report)),
    ("icmp", |inet, report| icmp(inet, report)),
    ("arp", |inet, report| arp(&inet.arpstat, report)),
];

/// Whether there are statistics of protocol `name`.
pub(super) fn knows(name: &str) -> bool {
    PROTOCOLS.iter().any(|(known, _)| *known == name)
}

/// Prints the statistics, and starts them from zero with `-z`.
pub(super) fn report(env: &Env, options: &Options) -> Result<(), Failure> {
    let Some(inet) = inet_of(&env.vnet) else {
        return Err(Failure::Other("no Internet protocols in this stack".into()));
    };
    for (name, print) in PROTOCOLS {
        if options.protocol.as_deref().is_some_and(|wanted| wanted != *name) {
            continue;
        }
        let mut report = Report {
            text: format!("{name}:\n"),
            skip_zero: options.statistics > 1,
            zero: options.zero,
        };
        print(&inet, &mut report);
        env.out.write(&report.text);
    }
    Ok(())
}

/// The text as it grows.
struct Report {
    text: String,
    skip_zero: bool,
    zero: bool,
}

impl Report {
    /// Adds a line: `#` stands for the next value, `{s}`, `{es}` and `{ies}` for the plural of the word of the last
    /// value. With `-ss` a line whose first value is 0 is left out.
    fn line(&mut self, template: &str, values: &[u64]) {
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

    fn counters(&mut self, template: &str, counters: &[&Counter]) {
        let values: Vec<u64> = counters.iter().map(|counter| counter.fetch()).collect();
        self.line(template, &values);
    }

    /// What FreeBSD does not count, behind what it does, and only when it happened.
    fn ours<'a>(&mut self, counters: impl Iterator<Item = (&'static str, &'a str, u64)>, names: &[&str]) {
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

fn tcp(inet: &InetVnet, report: &mut Report) {
    let stat: &TcpStat = &inet.tcp.tcpstat;
    lines!(report, stat, {
        "\t# packet{s} sent", tcps_sndtotal;
        "\t\t# data packet{s} (# byte{s})", tcps_sndpack, tcps_sndbyte;
        "\t\t# data packet{s} (# byte{s}) retransmitted", tcps_sndrexmitpack, tcps_sndrexmitbyte;
        "\t\t# data packet{s} unnecessarily retransmitted", tcps_sndrexmitbad;
        "\t\t# resend{s} initiated by MTU discovery", tcps_mturesent;
        "\t\t# ack-only packet{s} (# delayed)", tcps_sndacks, tcps_delack;
        "\t\t# URG only packet{s}", tcps_sndurg;
        "\t\t# window probe packet{s}", tcps_sndprobe;
        "\t\t# window update packet{s}", tcps_sndwinup;
        "\t\t# control packet{s}", tcps_sndctrl;
        "\t# packet{s} received", tcps_rcvtotal;
        "\t\t# ack{s} (for # byte{s})", tcps_rcvackpack, tcps_rcvackbyte;
        "\t\t# duplicate ack{s}", tcps_rcvdupack;
        "\t\t# UDP tunneled pkt{s}", tcps_tunneled_pkts;
        "\t\t# UDP tunneled pkt cnt with error{s}", tcps_tunneled_errs;
        "\t\t# ack{s} for data not yet sent", tcps_rcvacktoomuch;
        "\t\t# ack{s} for data never been sent (ghost acks)", tcps_rcvghostack;
        "\t\t# ack{s} for data being too old", tcps_rcvacktooold;
        "\t\t# packet{s} (# byte{s}) received in-sequence", tcps_rcvpack, tcps_rcvbyte;
        "\t\t# completely duplicate packet{s} (# byte{s})", tcps_rcvduppack, tcps_rcvdupbyte;
        "\t\t# old duplicate packet{s}", tcps_pawsdrop;
        "\t\t# packet{s} with some dup. data (# byte{s} duped)", tcps_rcvpartduppack, tcps_rcvpartdupbyte;
        "\t\t# out-of-order packet{s} (# byte{s})", tcps_rcvoopack, tcps_rcvoobyte;
        "\t\t# packet{s} (# byte{s}) of data after window", tcps_rcvpackafterwin, tcps_rcvbyteafterwin;
        "\t\t# window probe{s}", tcps_rcvwinprobe;
        "\t\t# window update packet{s}", tcps_rcvwinupd;
        "\t\t# packet{s} received with dsack", tcps_dsack_count;
        "\t\t# dsack byte{s} received (no TLP involved)", tcps_dsack_bytes;
        "\t\t# dsack byte{s} received (TLP responsible)", tcps_dsack_tlp_bytes;
        "\t\t# packet{s} received after close", tcps_rcvafterclose;
        "\t\t# discarded for bad checksum{s}", tcps_rcvbadsum;
        "\t\t# discarded for bad header offset field{s}", tcps_rcvbadoff;
        "\t\t# discarded because packet too short", tcps_rcvshort;
        "\t\t# discarded due to full reassembly queue", tcps_rcvreassfull;
        "\t# connection request{s}", tcps_connattempt;
        "\t# connection accept{s}", tcps_accepts;
        "\t# bad connection attempt{s}", tcps_badsyn;
        "\t# listen queue overflow{s}", tcps_listendrop;
        "\t# ignored RSTs in the window{s}", tcps_badrst;
        "\t# connection{s} established (including accepts)", tcps_connects;
        "\t\t# time{s} used RTT from hostcache", tcps_usedrtt;
        "\t\t# time{s} used RTT variance from hostcache", tcps_usedrttvar;
        "\t\t# time{s} used slow-start threshold from hostcache", tcps_usedssthresh;
        "\t# connection{s} closed (including # drop{s})", tcps_closed, tcps_drops;
        "\t\t# connection{s} updated cached RTT on close", tcps_cachedrtt;
        "\t\t# connection{s} updated cached RTT variance on close", tcps_cachedrttvar;
        "\t\t# connection{s} updated cached ssthresh on close", tcps_cachedssthresh;
        "\t# embryonic connection{s} dropped", tcps_conndrops;
        "\t# segment{s} updated rtt (of # attempt{s})", tcps_rttupdated, tcps_segstimed;
        "\t# retransmit timeout{s}", tcps_rexmttimeo;
        "\t\t# connection{s} dropped by rexmit timeout", tcps_timeoutdrop;
        "\t# persist timeout{s}", tcps_persisttimeo;
        "\t\t# connection{s} dropped by persist timeout", tcps_persistdrop;
        "\t# Connection{s} (fin_wait_2) dropped because of timeout", tcps_finwait2_drops;
        "\t# keepalive timeout{s}", tcps_keeptimeo;
        "\t\t# keepalive probe{s} sent", tcps_keepprobe;
        "\t\t# connection{s} dropped by keepalive", tcps_keepdrops;
        "\t# connection{s} dropped due to exceeding progress time", tcps_progdrops;
        "\t# correct ACK header prediction{s}", tcps_predack;
        "\t# correct data packet header prediction{s}", tcps_preddat;
        "\t# syncache entr{ies} added", tcps_sc_added;
        "\t\t# retransmitted", tcps_sc_retransmitted;
        "\t\t# dupsyn", tcps_sc_dupsyn;
        "\t\t# dropped", tcps_sc_dropped;
        "\t\t# completed", tcps_sc_completed;
        "\t\t# bucket overflow", tcps_sc_bucketoverflow;
        "\t\t# cache overflow", tcps_sc_cacheoverflow;
        "\t\t# reset", tcps_sc_reset;
        "\t\t# stale", tcps_sc_stale;
        "\t\t# aborted", tcps_sc_aborted;
        "\t\t# badack", tcps_sc_badack;
        "\t\t# unreach", tcps_sc_unreach;
        "\t\t# zone failure{s}", tcps_sc_zonefail;
        "\t# cookie{s} sent", tcps_sc_sendcookie;
        "\t# cookie{s} received", tcps_sc_recvcookie;
        "\t# hostcache entr{ies} added", tcps_hc_added;
        "\t\t# bucket overflow", tcps_hc_bucketoverflow;
        "\t# SACK recovery episode{s}", tcps_sack_recovery_episode;
        "\t# segment rexmit{s} in SACK recovery episodes", tcps_sack_rexmits;
        "\t# byte rexmit{s} in SACK recovery episodes", tcps_sack_rexmit_bytes;
        "\t# SACK option{s} (SACK blocks) received", tcps_sack_rcv_blocks;
        "\t# SACK option{s} (SACK blocks) sent", tcps_sack_send_blocks;
        "\t# SACK retransmission{s} lost", tcps_sack_lostrexmt;
        "\t# SACK scoreboard overflow", tcps_sack_sboverflow;
        "\t# packet{s} received with ECN CE bit set", tcps_ecn_rcvce;
        "\t# packet{s} received with ECN ECT(0) bit set", tcps_ecn_rcvect0;
        "\t# packet{s} received with ECN ECT(1) bit set", tcps_ecn_rcvect1;
        "\t# packet{s} sent with ECN ECT(0) bit set", tcps_ecn_sndect0;
        "\t# packet{s} sent with ECN ECT(1) bit set", tcps_ecn_sndect1;
        "\t# successful ECN handshake{s}", tcps_ecn_shs;
        "\t# time{s} ECN reduced the congestion window", tcps_ecn_rcwnd;
        "\t# ACE SYN packet{s} with Non-ECT", tcps_ace_nect;
        "\t# ACE SYN packet{s} with ECT0", tcps_ace_ect0;
        "\t# ACE SYN packet{s} with ECT1", tcps_ace_ect1;
        "\t# ACE SYN packet{s} with CE", tcps_ace_ce;
        "\t# packet{s} with matching signature received", tcps_sig_rcvgoodsig;
        "\t# packet{s} with bad signature received", tcps_sig_rcvbadsig;
        "\t# time{s} failed to make signature due to no SA", tcps_sig_err_buildsig;
        "\t# time{s} unexpected signature received", tcps_sig_err_sigopt;
        "\t# time{s} no signature provided by segment", tcps_sig_err_nosigopt;
        "\t# Path MTU discovery black hole detection activation{s}", tcps_pmtud_blackhole_activated;
        "\t# Path MTU discovery black hole detection min MSS activation{s}", tcps_pmtud_blackhole_activated_min_mss;
        "\t# Path MTU discovery black hole detection failure{s}", tcps_pmtud_blackhole_failed;
        "\t# time{s} connection in TIME-WAIT responded with ACK", tcps_tw_responds;
        "\t# time{s} connection in TIME-WAIT was actively recycled", tcps_tw_recycles;
        "\t# time{s} connection in TIME-WAIT responded with RST", tcps_tw_resets;
    });
    let states = tcp_states(inet);
    report.text.push_str("TCP connection count by state:\n");
    for state in TcpState::ALL {
        let count = states[state as usize];
        report.line(&format!("\t# connection{{s}} in {} state", state.name()), &[count]);
    }
    if report.zero {
        stat.zero();
    }
}

/// How many connections are in each state.
fn tcp_states(inet: &InetVnet) -> [u64; TCP_NSTATES] {
    let mut states = [0; TCP_NSTATES];
    for inp in inet.tcp.tcbinfo.snapshot() {
        states[inp.read().ppcb.t_state as usize] += 1;
    }
    states
}

fn ip(stat: &IpStat, report: &mut Report) {
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
        &["ips_swcsum_in", "ips_swcsum_out", "ips_filtered", "ips_nointerface"],
    );
    if report.zero {
        stat.zero();
    }
}

fn udp(stat: &UdpStat, report: &mut Report) {
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
    if report.zero {
        stat.zero();
    }
}

fn icmp(inet: &InetVnet, report: &mut Report) {
    let stat: &IcmpStat = &inet.icmpstat;
    lines!(report, stat, {
        "\t# call{s} to icmp_error", icps_error;
        "\t# error{s} not generated in response to an icmp message", icps_oldicmp;
    });
    histogram(report, "Output", &stat.icps_outhist);
    lines!(report, stat, {
        "\t# message{s} with bad code fields", icps_badcode;
        "\t# message{s} less than the minimum length", icps_tooshort;
        "\t# message{s} with bad checksum", icps_checksum;
        "\t# message{s} with bad length", icps_badlen;
        "\t# multicast echo requests ignored", icps_bmcastecho;
        "\t# multicast timestamp requests ignored", icps_bmcasttstamp;
    });
    histogram(report, "Input", &stat.icps_inhist);
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
    report.text.push_str(&format!("\tICMP address mask responses are {state}\n"));
    if report.zero {
        stat.zero();
    }
}

/// The types of message that were seen.
fn histogram(report: &mut Report, direction: &str, counters: &[Counter]) {
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
        match icmp_name(kind) {
            Some(name) => report.text.push_str(&format!("\t\t{name}: {count}\n")),
            None => report.text.push_str(&format!("\t\tunknown ICMP #{kind}: {count}\n")),
        }
    }
}

fn arp(stat: &ArpStat, report: &mut Report) {
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
    if report.zero {
        stat.zero();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(template: &str, values: &[u64], skip_zero: bool) -> String {
        let mut report = Report {
            text: String::new(),
            skip_zero,
            zero: false,
        };
        report.line(template, values);
        report.text
    }

    #[test]
    fn a_single_thing_is_singular() {
        assert_eq!(line("# data packet{s} (# byte{s})", &[1, 2], false), "1 data packet (2 bytes)\n");
        assert_eq!(line("# data packet{s} (# byte{s})", &[0, 1], false), "0 data packets (1 byte)\n");
        assert_eq!(line("# syncache entr{ies} added", &[1], false), "1 syncache entry added\n");
        assert_eq!(line("# repl{ies}", &[2], false), "2 replies\n");
        assert_eq!(line("# invalid return address{es}", &[3], false), "3 invalid return addresses\n");
    }

    #[test]
    fn lines_of_nothing_are_left_out_when_asked() {
        assert_eq!(line("# thing{s}", &[0], true), "");
        assert_eq!(line("# thing{s}", &[1], true), "1 thing\n");
    }
}
