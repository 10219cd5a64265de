//! What netstat shows of TCP.
//!
//! FreeBSD: usr.bin/netstat/inet.c

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use netinet::tcp_fsm::{TCP_NSTATES, TcpState};
use netinet::tcp_timer::TcpTimer;
use netinet::tcp_var::{TcpStat, Tcpcb, Tf2};
use netinet::vnet::InetVnet;
use sys::machine;
use sys::net::vnet::Vnet;
use sys::time::Ticks;

use super::sockets::{Row, Tcp, collect};
use super::statistics::{Report, lines};

/// The timers in the order of their columns.
const TIMERS: [TcpTimer; 5] = [
    TcpTimer::Rexmt,
    TcpTimer::Persist,
    TcpTimer::Keep,
    TcpTimer::Msl2,
    TcpTimer::Delack,
];

/// Adds TCP's sockets.
pub(super) fn sockets(vnet: &Vnet, inet: &InetVnet, rows: &mut Vec<Row>) {
    let now = machine::ticks();
    collect(vnet, &inet.tcp.tcbinfo, "tcp", rows, |tp: &Tcpcb| {
        Some(figures(tp, now))
    });
}

fn figures(tp: &Tcpcb, now: Ticks) -> Tcp {
    let mut times = [0; 6];
    for (time, timer) in times.iter_mut().zip(TIMERS) {
        if let Some(deadline) = tp.t_timers.deadline(timer) {
            *time = (deadline - now).max(0) as u32;
        }
    }
    times[5] = (now - tp.t_rcvtime).max(0) as u32;
    Tcp {
        state: tp.t_state,
        retransmitted: tp.t_sndrexmitpack,
        out_of_order: tp.t_rcvoopack,
        zero_windows: tp.t_sndzerowin,
        cc: tp.t_cc.name().to_string(),
        cwnd: tp.snd_cwnd,
        ssthresh: tp.snd_ssthresh,
        maxseg: tp.t_maxseg,
        ecn: if tp.t_flags2.contains(Tf2::ECN_PERMIT) {
            "ecn"
        } else {
            "off"
        },
        offloaded: tp.t_toe.is_some(),
        times,
    }
}

/// Adds TCP's statistics.
pub(super) fn statistics(inet: &InetVnet, report: &mut Report) {
    let stat: &TcpStat = &inet.tcp.stat;
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
        report.line(
            &format!("\t# connection{{s}} in {} state", state.name()),
            &[count],
        );
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

#[cfg(test)]
mod tests {
    use super::*;
    use netinet::cc::cc_attach;
    use netinet::tcp_var::TcpTunables;
    use sys::machine::hosted::Machine;

    #[test]
    fn what_was_agreed_on_with_the_peer_is_shown() {
        Machine::builder().run(|| {
            let now = machine::ticks();
            let cc = cc_attach("cubic").unwrap();
            let mut tp = Tcpcb::new(&TcpTunables::new(), now, cc);
            let plain = figures(&tp, now);
            assert_eq!((plain.ecn, plain.offloaded), ("off", false));
            tp.t_flags2 |= Tf2::ECN_PERMIT;
            assert_eq!(figures(&tp, now).ecn, "ecn");
        });
    }
}
