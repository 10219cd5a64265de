//! The rules of TCP, against a peer played by hand.

mod tcp_common;

use std::vec::Vec;

use core::net::{Ipv4Addr, Ipv6Addr};
use netinet::tcp::{SackBlk, TcpFlags, TcpOpt, TcpOptFlags, TfoCookie};
use netinet::tcp_fsm::TcpState;
use netinet::tcp_seq::TcpSeq;
use netinet::tcp_usrreq::{TCP_FASTOPEN, TCP_NODELAY};
use netsim::world::{ADDR_B, World};
use sys::errno::Errno;
use sys::kern::kern_mbuf::MbufStat;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::socket::{
    AF_INET6, IPPROTO_IPV6, IPPROTO_TCP, IPV6_UNICAST_HOPS, IPV6_V6ONLY, MsgFlags, SO_ERROR,
    SO_RCVBUF, SOL_SOCKET, SockAddr, SockType,
};
use sys::vm::uma::{Zone, zones};
use tcp_common::*;

const ACK: TcpFlags = TcpFlags::ACK;

/// Options of a peer that offers only a segment size.
fn mss_only() -> TcpOpt {
    TcpOpt {
        to_flags: TcpOptFlags::MSS,
        to_mss: 1000,
        ..TcpOpt::default()
    }
}

/// Options of a peer that also knows SACK.
fn with_sack() -> TcpOpt {
    let mut to = mss_only();
    to.to_flags |= TcpOptFlags::SACKPERM;
    to
}

/// Options of a peer that also has a clock.
fn with_clock(tsval: u32, tsecr: u32) -> TcpOpt {
    TcpOpt {
        to_flags: TcpOptFlags::TS,
        to_tsval: tsval,
        to_tsecr: tsecr,
        ..TcpOpt::default()
    }
}

fn in_world(body: impl FnOnce(&World)) {
    World::run(WireConfig::default(), |world| {
        settle(world);
        body(world);
    });
}

/// Everything that comes at once: where it begins, and how long it is.
fn burst(peer: &Peer<'_>, base: TcpSeq) -> Vec<(i32, usize)> {
    let mut segments = Vec::new();
    while let Some(segment) = peer.next() {
        segments.push((segment.th.th_seq - base, segment.data.len()));
    }
    segments
}

/// An ACK with SACK blocks, counted from `base`.
fn sack(peer: &Peer<'_>, base: TcpSeq, ack: u32, blocks: &[(u32, u32)]) {
    let mut to = TcpOpt {
        to_flags: TcpOptFlags::SACK,
        ..TcpOpt::default()
    };
    for (slot, &(start, end)) in to.to_sacks.iter_mut().zip(blocks) {
        *slot = SackBlk {
            start: base + start,
            end: base + end,
        };
        to.to_nsacks += 1;
    }
    peer.inject(peer.seq, base + ack, ACK, &to, &[]);
}

#[test]
fn a_segment_to_everybody_begins_no_connection_and_is_not_answered() {
    World::run(WireConfig::default(), |world| {
        let _listener = listener(&world.a, 5);
        let mut peer = Peer::new(world);
        let of_network = Ipv4Addr::new(10, 0, 0, 255);
        for everybody in [Ipv4Addr::BROADCAST, of_network] {
            // In a frame to us alone, so that only the address tells.
            peer.a_addr = everybody;
            peer.inject(peer.seq, peer.ack, TcpFlags::SYN, &mss_only(), &[]);
            peer.expect_nothing(100);
            peer.inject(peer.seq, peer.ack, ACK, &TcpOpt::default(), &[]);
            peer.expect_nothing(100);
        }
        assert_eq!(world.a.inet.tcp.stat.tcps_sc_added.fetch(), 0);
    });
}

#[test]
fn only_an_exact_reset_resets_and_others_in_the_window_earn_a_challenge() {
    in_world(|world| {
        let so = tcp(&world.a);
        let peer = Peer::accept(world, &so, mss_only());
        let stat = &world.a.inet.tcp.stat;
        peer.send_at(peer.seq + 100, TcpFlags::RST, &[]);
        let challenge = peer.expect();
        assert_eq!(
            (challenge.th.th_flags, challenge.th.th_ack),
            (ACK, peer.seq)
        );
        assert_eq!(stat.tcps_badrst.fetch(), 1);
        peer.send_at(peer.seq - 1, TcpFlags::RST, &[]);
        peer.send_at(peer.seq + 70_000, TcpFlags::RST, &[]);
        peer.expect_nothing(100);
        assert_eq!(state(&world.a, &so), TcpState::Established);
        peer.send_at(peer.seq, TcpFlags::RST, &[]);
        assert_eq!(
            so.getsockopt_int(SOL_SOCKET, SO_ERROR),
            Ok(Errno::ECONNRESET.number())
        );
        peer.expect_nothing(100);
    });
}

#[test]
fn a_syn_on_a_connection_earns_a_challenge_at_most_five_times_a_second() {
    in_world(|world| {
        let so = tcp(&world.a);
        let peer = Peer::accept(world, &so, mss_only());
        for _ in 0..5 {
            peer.send_at(peer.seq, TcpFlags::SYN, &[]);
            assert_eq!(peer.expect().th.th_flags, ACK);
        }
        peer.send_at(peer.seq, TcpFlags::SYN, &[]);
        peer.expect_nothing(100);
        pass_ms(1000);
        peer.send_at(peer.seq, TcpFlags::SYN, &[]);
        assert_eq!(peer.expect().th.th_flags, ACK);
        assert_eq!(world.a.inet.tcp.stat.tcps_badsyn.fetch(), 7);
        assert_eq!(state(&world.a, &so), TcpState::Established);
    });
}

#[test]
fn acknowledgements_of_what_was_never_sent_are_refused() {
    in_world(|world| {
        let so = tcp(&world.a);
        let mut peer = Peer::accept(world, &so, mss_only());
        let stat = &world.a.inet.tcp.stat;
        let ack = peer.ack;
        // Beyond what was sent: told where we are.
        peer.inject(peer.seq, ack + 1, ACK, &TcpOpt::default(), b"data");
        assert_eq!(peer.expect().th.th_ack, peer.seq);
        assert_eq!(stat.tcps_rcvacktoomuch.fetch(), 1);
        // Before the connection began.
        peer.inject(peer.seq, ack - 100, ACK, &TcpOpt::default(), b"data");
        peer.expect();
        assert_eq!(stat.tcps_rcvghostack.fetch(), 1);
        // Neither delivered anything.
        so.set_nonblocking(true);
        assert_eq!(
            so.recv(&mut [0; 8], MsgFlags::empty()),
            Err(Errno::EWOULDBLOCK)
        );
        peer.send(ACK, b"data");
        assert_eq!(so.recv(&mut [0; 8], MsgFlags::empty()), Ok(4));
        pass_ms(50);
    });
}

#[test]
fn nagle_holds_small_segments_back_unless_told_otherwise() {
    in_world(|world| {
        let so = tcp(&world.a);
        let mut peer = Peer::accept(world, &so, mss_only());
        let base = peer.ack;
        send_all(&so, b"a");
        send_all(&so, b"b");
        send_all(&so, b"c");
        assert_eq!(burst(&peer, base), [(0, 1)]);
        peer.ack += 1;
        peer.send(ACK, &[]);
        assert_eq!(burst(&peer, base), [(1, 2)]);
        so.setsockopt_int(IPPROTO_TCP, TCP_NODELAY, 1).unwrap();
        send_all(&so, b"d");
        send_all(&so, b"e");
        assert_eq!(burst(&peer, base), [(3, 1), (4, 1)]);
    });
}

#[test]
fn three_duplicates_bring_one_segment_again_and_recovery_goes_as_newreno() {
    in_world(|world| {
        world
            .a
            .vnet
            .sysctl
            .set("net.inet.tcp.cc.algorithm", "newreno")
            .unwrap();
        let so = tcp(&world.a);
        let mut peer = Peer::accept(world, &so, mss_only());
        let base = peer.ack;
        send_all(&so, &pattern(1, 30_000));
        // The initial window: ten segments.
        assert_eq!(
            burst(&peer, base),
            (0..10).map(|i| (i * 1000, 1000)).collect::<Vec<_>>()
        );
        // The first is lost: each later one brings a duplicate. Limited transmit answers the first two.
        peer.send(ACK, &[]);
        assert_eq!(burst(&peer, base), [(10_000, 1000)]);
        peer.send(ACK, &[]);
        assert_eq!(burst(&peer, base), [(11_000, 1000)]);
        peer.send(ACK, &[]);
        assert_eq!(burst(&peer, base), [(0, 1000)]);
        look(&world.a, &so, |tp| {
            assert!(tp.in_fastrecovery());
            assert_eq!(tp.snd_ssthresh, 5000);
            assert_eq!(tp.snd_recover, base + 12_000);
        });
        // A partial ACK: the next hole is at 5000.
        peer.ack = base + 5000;
        peer.send(ACK, &[]);
        let segments = burst(&peer, base);
        assert_eq!(segments[0], (5000, 1000));
        assert!(look(&world.a, &so, |tp| tp.in_fastrecovery()));
        // All of it.
        peer.ack = base + 12_000;
        peer.send(ACK, &[]);
        assert!(!look(&world.a, &so, |tp| tp.in_fastrecovery()));
        let stat = &world.a.inet.tcp.stat;
        assert_eq!(
            (
                stat.tcps_rexmttimeo.fetch(),
                stat.tcps_sndrexmitpack.fetch()
            ),
            (0, 2)
        );
    });
}

#[test]
fn sack_retransmits_the_holes_and_nothing_else() {
    in_world(|world| {
        let so = tcp(&world.a);
        let peer = Peer::accept(world, &so, with_sack());
        let base = peer.ack;
        send_all(&so, &pattern(1, 10_000));
        assert_eq!(burst(&peer, base).len(), 10);
        // 1000..2000 and 5000..7000 are lost.
        sack(&peer, base, 1000, &[]);
        sack(&peer, base, 1000, &[(2000, 3000)]);
        sack(&peer, base, 1000, &[(2000, 4000)]);
        assert_eq!(burst(&peer, base), []);
        sack(&peer, base, 1000, &[(2000, 5000)]);
        assert_eq!(burst(&peer, base), [(1000, 1000)]);
        assert!(look(&world.a, &so, |tp| tp.in_fastrecovery()));
        sack(&peer, base, 1000, &[(7000, 8000), (2000, 5000)]);
        sack(&peer, base, 1000, &[(7000, 9000), (2000, 5000)]);
        sack(&peer, base, 1000, &[(7000, 10_000), (2000, 5000)]);
        sack(&peer, base, 5000, &[(7000, 10_000)]);
        let mut again = burst(&peer, base);
        again.sort();
        assert_eq!(again, [(5000, 1000), (6000, 1000)]);
        sack(&peer, base, 10_000, &[]);
        assert!(!look(&world.a, &so, |tp| tp.in_fastrecovery()));
        let stat = &world.a.inet.tcp.stat;
        assert_eq!(stat.tcps_sack_recovery_episode.fetch(), 1);
        assert_eq!(
            (
                stat.tcps_sack_rexmits.fetch(),
                stat.tcps_sndrexmitpack.fetch()
            ),
            (3, 3)
        );
        peer.expect_nothing(3000);
    });
}

#[test]
fn a_timeout_retransmits_one_segment_and_skips_what_the_peer_holds() {
    in_world(|world| {
        let so = tcp(&world.a);
        let peer = Peer::accept(world, &so, with_sack());
        let base = peer.ack;
        send_all(&so, &pattern(1, 4000));
        assert_eq!(burst(&peer, base).len(), 4);
        sack(&peer, base, 0, &[(1000, 2000)]);
        let again = peer.expect_within(2000);
        assert_eq!((again.th.th_seq - base, again.data.len()), (0, 1000));
        assert_eq!(look(&world.a, &so, |tp| tp.snd_cwnd), 1000);
        sack(&peer, base, 2000, &[]);
        assert_eq!(burst(&peer, base), [(2000, 1000), (3000, 1000)]);
        sack(&peer, base, 4000, &[]);
        peer.expect_nothing(3000);
    });
}

#[test]
fn a_spurious_timeout_is_undone_when_the_echo_is_older_than_the_retransmission() {
    in_world(|world| {
        let so = tcp(&world.a);
        let mut options = with_clock(7, 0);
        options.to_flags |= TcpOptFlags::MSS;
        options.to_mss = 1012;
        let peer = Peer::accept(world, &so, options);
        let base = peer.ack;
        send_all(&so, &pattern(1, 4000));
        let first = peer.expect();
        let echo = first.to.to_tsval;
        assert_eq!(burst(&peer, base + 1000).len(), 3);
        let cwnd = look(&world.a, &so, |tp| tp.snd_cwnd);
        let again = peer.expect_within(2000);
        assert_eq!(again.th.th_seq, base);
        assert_eq!(look(&world.a, &so, |tp| tp.snd_cwnd), 1000);
        // The ACK answers the original.
        peer.inject(peer.seq, base + 4000, ACK, &with_clock(8, echo), &[]);
        let after = look(&world.a, &so, |tp| tp.snd_cwnd);
        assert!(after >= cwnd, "{after} {cwnd}");
        peer.expect_nothing(100);
    });
}

#[test]
fn a_segment_with_an_older_timestamp_is_acknowledged_and_dropped() {
    in_world(|world| {
        let so = tcp(&world.a);
        let mut options = with_clock(1000, 0);
        options.to_flags |= TcpOptFlags::MSS;
        options.to_mss = 1000;
        let peer = Peer::accept(world, &so, options);
        peer.inject(peer.seq, peer.ack, ACK, &with_clock(999, 0), b"old");
        assert_eq!(peer.expect().th.th_ack, peer.seq);
        assert_eq!(world.a.inet.tcp.stat.tcps_pawsdrop.fetch(), 1);
        peer.inject(peer.seq, peer.ack, ACK, &with_clock(1000, 0), b"new");
        assert_eq!(so.recv(&mut [0; 8], MsgFlags::empty()), Ok(3));
        let ack = peer.expect_within(60);
        assert_eq!((ack.th.th_ack, ack.to.to_tsecr), (peer.seq + 3, 1000));
    });
}

#[test]
fn what_arrives_out_of_order_is_reported_and_delivered_in_order() {
    in_world(|world| {
        let so = tcp(&world.a);
        let mut peer = Peer::accept(world, &so, with_sack());
        let base = peer.seq;
        let data = pattern(1, 4000);
        peer.send_at(base + 2000, ACK, &data[2000..3000]);
        let ack = peer.expect();
        assert_eq!(ack.th.th_ack, base);
        assert_eq!(
            ack.to.sacks(),
            [SackBlk {
                start: base + 2000,
                end: base + 3000
            }]
        );
        peer.send_at(base + 3000, ACK, &data[3000..]);
        assert_eq!(
            peer.expect().to.sacks(),
            [SackBlk {
                start: base + 2000,
                end: base + 4000
            }]
        );
        // The same again is reported as a duplicate (RFC 2883).
        peer.send_at(base + 2000, ACK, &data[2000..3000]);
        let twice = SackBlk {
            start: base + 2000,
            end: base + 3000,
        };
        let held = SackBlk {
            start: base + 2000,
            end: base + 4000,
        };
        assert_eq!(peer.expect().to.sacks(), [twice, held]);
        peer.send(ACK, &data[..2000]);
        let ack = peer.expect();
        assert_eq!((ack.th.th_ack, ack.to.sacks().len()), (base + 4000, 0));
        let mut buffer = std::vec![0; 8000];
        assert_eq!(so.recv(&mut buffer, MsgFlags::empty()), Ok(4000));
        assert!(buffer[..4000] == data);
    });
}

#[test]
fn a_fin_out_of_order_waits_for_the_data_before_it() {
    in_world(|world| {
        let so = tcp(&world.a);
        let mut peer = Peer::accept(world, &so, mss_only());
        peer.send_at(peer.seq + 3, TcpFlags::FIN | ACK, b"def");
        peer.expect();
        assert_eq!(state(&world.a, &so), TcpState::Established);
        peer.send(ACK, b"abc");
        assert_eq!(peer.expect().th.th_ack, peer.seq + 4);
        assert_eq!(state(&world.a, &so), TcpState::CloseWait);
        assert_eq!(receive_all(&so).unwrap(), b"abcdef");
    });
}

#[test]
fn a_reader_that_reads_moves_the_window_by_an_update() {
    in_world(|world| {
        let so = tcp(&world.a);
        so.setsockopt_int(SOL_SOCKET, SO_RCVBUF, 8000).unwrap();
        let mut peer = Peer::accept(world, &so, mss_only());
        for i in 0..8 {
            peer.send(ACK, &pattern(i, 1000));
        }
        let last = std::iter::from_fn(|| peer.next()).last().unwrap();
        assert_eq!((last.th.th_ack, last.th.th_win), (peer.seq, 0));
        // A probe of the closed window is answered and not taken.
        peer.send_at(peer.seq, ACK, b"x");
        assert_eq!(peer.expect().th.th_ack, peer.seq);
        assert_eq!(world.a.inet.tcp.stat.tcps_rcvwinprobe.fetch(), 1);
        let mut buffer = [0; 4000];
        assert_eq!(so.recv(&mut buffer, MsgFlags::empty()), Ok(4000));
        let update = peer.expect();
        assert_eq!((update.th.th_flags, update.th.th_win), (ACK, 4000));
    });
}

#[test]
fn a_window_that_cannot_be_scaled_opens_at_once_however_large_the_buffer() {
    in_world(|world| {
        let so = tcp(&world.a);
        so.setsockopt_int(SOL_SOCKET, SO_RCVBUF, 300_500).unwrap();
        let mut peer = Peer::accept(world, &so, mss_only());
        for i in 0..300 {
            peer.send(ACK, &pattern(i, 1000));
            while peer.expect_within(200).th.th_ack != peer.seq {}
        }
        let left = look(&world.a, &so, |tp| tp.rcv_adv - tp.rcv_nxt);
        assert!((1..=1000).contains(&left), "{left} bytes of window left");
        let mut buffer = std::vec![0; 300_000];
        so.recv(&mut buffer, MsgFlags::empty()).unwrap();
        let update = peer.expect();
        assert_eq!((update.th.th_flags, update.th.th_win), (ACK, 65535));
    });
}

#[test]
fn a_router_that_needs_smaller_packets_gets_them_at_once() {
    in_world(|world| {
        let so = tcp(&world.a);
        let mut options = mss_only();
        options.to_mss = 1460;
        let peer = Peer::accept(world, &so, options);
        let base = peer.ack;
        send_all(&so, &pattern(1, 2920));
        let first = peer.expect();
        assert_eq!(first.data.len(), 1460);
        peer.expect();
        // ICMP: fragmentation needed, next hop takes 1000.
        let mut quoted = Vec::new();
        let mut ip = netinet::ip::Ip::new();
        ip.set_src(netsim::world::ADDR_A);
        ip.set_dst(ADDR_B);
        ip.ip_p = 6;
        ip.ip_len.set(1500);
        quoted.extend_from_slice(zerocopy::IntoBytes::as_bytes(&ip));
        quoted.extend_from_slice(&first.th.th_sport.to_be_bytes());
        quoted.extend_from_slice(&first.th.th_dport.to_be_bytes());
        quoted.extend_from_slice(&first.th.th_seq.0.to_be_bytes());
        let mut icmp = std::vec![3, 4, 0, 0, 0, 0, 3, 232];
        icmp.extend(quoted);
        let sum = sys::machine::in_cksum::in_cksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        peer.inject_ip(1, &icmp);
        assert_eq!(
            burst(&peer, base),
            [(0, 960), (960, 960), (1920, 960), (2880, 40)]
        );
        assert_eq!(world.a.inet.tcp.stat.tcps_mturesent.fetch(), 1);
    });
}

#[test]
fn a_syn_flood_is_bounded_and_the_oldest_give_way() {
    in_world(|world| {
        let listen = listener(&world.a, 128);
        let mut peer = Peer::new(world);
        for i in 0..20_000u32 {
            peer.port = 1024 + (i % 60_000) as u16;
            peer.send_at(TcpSeq(i), TcpFlags::SYN, &[]);
        }
        let stat = &world.a.inet.tcp.stat;
        assert!(world.a.inet.tcp.syncache.count() <= 15_360);
        assert_eq!(
            stat.tcps_sc_added.fetch(),
            u64::from(world.a.inet.tcp.syncache.count())
                + stat.tcps_sc_bucketoverflow.fetch()
                + stat.tcps_sc_stale.fetch()
        );
        assert!(listen.accept_nowait().is_err());
    });
}

/// The zone of half-made connections.
fn syncache_zone() -> &'static Zone {
    zones()
        .find(|zone| zone.name() == "syncache")
        .expect("a stack that speaks TCP")
}

#[test]
fn half_made_connections_are_items_of_a_zone_and_go_back_to_it() {
    in_world(|world| {
        let _listen = listener(&world.a, 5);
        let mut peer = Peer::new(world);
        let first = peer.seq;
        for i in 0..100 {
            peer.port = 2000 + i;
            peer.send_at(first, TcpFlags::SYN, &[]);
        }
        let cache = &world.a.inet.tcp.syncache;
        assert_eq!(cache.count(), 100);
        assert_eq!(syncache_zone().stats().used, 100);
        assert!(cache.memory() >= 100 * syncache_zone().stats().size);
        for i in 0..100 {
            peer.port = 2000 + i;
            peer.send_at(first + 1, TcpFlags::RST, &[]);
        }
        assert_eq!(cache.count(), 0);
        assert_eq!(syncache_zone().stats().used, 0);
    });
}

#[test]
fn a_syn_for_which_there_is_no_memory_is_known_by_its_cookie() {
    in_world(|world| {
        let listen = listener(&world.a, 128);
        let mut peer = Peer::new(world);
        syncache_zone().set_max(10);
        let mut answers = Vec::new();
        for i in 0..100 {
            peer.port = 2000 + i;
            peer.send(TcpFlags::SYN, &[]);
            answers.push((peer.port, peer.seq, peer.expect().th.th_seq));
        }
        let stat = &world.a.inet.tcp.stat;
        let cache = &world.a.inet.tcp.syncache;
        assert!(cache.count() <= 10);
        assert!(stat.tcps_sc_zonefail.fetch() >= 90);
        assert_eq!(syncache_zone().stats().used, u64::from(cache.count()));
        for (port, seq, iss) in answers {
            peer.port = port;
            peer.ack = iss + 1;
            peer.send_at(seq, ACK, &[]);
            listen.accept_nowait().expect("a connection");
        }
        assert!(stat.tcps_sc_recvcookie.fetch() >= 90);
        assert_eq!(cache.count(), 0);
    });
}

#[test]
fn a_new_syn_recycles_time_wait() {
    in_world(|world| {
        let listen = listener(&world.a, 5);
        let mut peer = Peer::new(world);
        let open = |peer: &mut Peer<'_>| -> SocketHandle {
            peer.send(TcpFlags::SYN, &[]);
            let answer = peer.expect();
            assert_eq!(answer.th.th_flags, TcpFlags::SYN | ACK);
            peer.ack = answer.th.th_seq + 1;
            peer.send(ACK, &[]);
            listen.accept_nowait().expect("a connection").0
        };
        let so = open(&mut peer);
        drop(so);
        peer.expect();
        peer.ack += 1;
        peer.send(TcpFlags::FIN | ACK, &[]);
        peer.expect();
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 1);
        // An older SYN does not; a newer one does.
        let seq = peer.seq;
        peer.send_at(seq - 100, TcpFlags::SYN, &[]);
        peer.expect_nothing(20);
        peer.seq += 1000;
        let so = open(&mut peer);
        assert_eq!(state(&world.a, &so), TcpState::Established);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 0);
        assert_eq!(world.a.inet.tcp.stat.tcps_tw_recycles.fetch(), 1);
    });
}

#[test]
fn resets_from_a_closed_port_are_limited() {
    in_world(|world| {
        world
            .a
            .vnet
            .sysctl
            .set("net.inet.icmp.icmplim_jitter", "0")
            .unwrap();
        pass_ms(2000);
        let peer = Peer::new(world);
        let mut resets = 0;
        // inject() lets 1 ms pass: all within one second.
        for i in 0..400 {
            peer.send_at(TcpSeq(i), TcpFlags::SYN, &[]);
        }
        while let Some(segment) = peer.next() {
            assert_eq!(segment.th.th_flags, TcpFlags::RST | ACK);
            resets += 1;
        }
        assert_eq!(resets, 200);
        world
            .a
            .vnet
            .sysctl
            .set("net.inet.tcp.blackhole", "2")
            .unwrap();
        pass_ms(2000);
        peer.send_at(TcpSeq(0), TcpFlags::SYN, &[]);
        peer.expect_nothing(100);
    });
}

#[test]
fn an_unreachable_port_refuses_a_connection_being_made() {
    in_world(|world| {
        let so = tcp(&world.a);
        so.set_nonblocking(true);
        let peer = Peer::new(world);
        assert_eq!(
            so.connect(&SockAddr::v4(ADDR_B, peer.port)),
            Err(Errno::EINPROGRESS)
        );
        let syn = peer.expect();
        let quote = |seq: TcpSeq| {
            let mut ip = netinet::ip::Ip::new();
            ip.set_src(netsim::world::ADDR_A);
            ip.set_dst(ADDR_B);
            ip.ip_p = 6;
            ip.ip_len.set(40);
            let mut icmp = std::vec![3, 3, 0, 0, 0, 0, 0, 0];
            icmp.extend_from_slice(zerocopy::IntoBytes::as_bytes(&ip));
            icmp.extend_from_slice(&syn.th.th_sport.to_be_bytes());
            icmp.extend_from_slice(&syn.th.th_dport.to_be_bytes());
            icmp.extend_from_slice(&seq.0.to_be_bytes());
            let sum = sys::machine::in_cksum::in_cksum(&icmp);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            icmp
        };
        // Not about what we sent: not believed.
        peer.inject_ip(1, &quote(syn.th.th_seq - 1));
        assert_eq!(state(&world.a, &so), TcpState::SynSent);
        peer.inject_ip(1, &quote(syn.th.th_seq));
        assert_eq!(
            so.getsockopt_int(SOL_SOCKET, SO_ERROR),
            Ok(Errno::ECONNREFUSED.number())
        );
    });
}

#[test]
fn two_ends_that_miss_data_before_the_others_fin_do_not_answer_each_other_without_end() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        pass_ms(100);
        // The data of both are lost once, and their FINs cross.
        let mut lost = [false; 2];
        let tap = Tap::dropping(world, move |seen| {
            let lost = &mut lost[usize::from(seen.dir == netsim::wire::Dir::BtoA)];
            !seen.data.is_empty() && !core::mem::replace(lost, true)
        });
        for so in [&a, &b] {
            send_all(so, b"lost");
        }
        for so in [&a, &b] {
            shut(so);
        }
        assert_eq!(receive_all(&a).unwrap(), b"lost");
        assert_eq!(receive_all(&b).unwrap(), b"lost");
        let crossed = tap.all().len();
        assert!(crossed < 20, "{crossed} segments");
    });
}

#[test]
fn data_behind_the_peers_fin_does_not_break_a_connection_that_is_closing() {
    in_world(|world| {
        let so = tcp(&world.a);
        let mut peer = Peer::accept(world, &so, mss_only());
        send_all(&so, b"last words");
        assert_eq!(peer.expect().data, b"last words");
        drop(so);
        assert!(peer.expect().th.th_flags.contains(TcpFlags::FIN));
        peer.send(TcpFlags::FIN | ACK, &[]);
        assert_eq!(peer.expect().th.th_ack, peer.seq);
        assert_eq!(in_state(&world.a, TcpState::Closing), 1);
        // Forged: neither in the window nor acknowledging anything.
        peer.inject(
            peer.seq + 0x4000_0000,
            peer.ack,
            ACK,
            &TcpOpt::default(),
            b"forged",
        );
        let answer = peer.expect();
        assert!(!answer.th.th_flags.contains(TcpFlags::RST));
        assert_eq!(answer.th.th_ack, peer.seq);
        assert_eq!(in_state(&world.a, TcpState::Closing), 1);
        assert_eq!(world.a.inet.tcp.stat.tcps_rcvafterclose.fetch(), 0);
        // What the peer has not acknowledged is still sent again.
        assert_eq!(peer.expect_within(2000).data, b"last words");
        peer.ack += 11;
        peer.send(ACK, &[]);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 1);
    });
}

#[test]
fn a_closed_socket_keeps_nothing_that_came_out_of_order() {
    in_world(|world| {
        let so = tcp(&world.a);
        let peer = Peer::accept(world, &so, mss_only());
        let start = MbufStat::snapshot().in_use();
        peer.send_at(peer.seq + 500, ACK, &[7; 500]);
        assert_eq!(peer.expect().th.th_ack, peer.seq);
        assert_ne!(MbufStat::snapshot().in_use(), start);
        drop(so);
        // The peer does not answer the FIN; nobody could read what it sent.
        assert!(peer.expect().th.th_flags.contains(TcpFlags::FIN));
        assert_eq!(in_state(&world.a, TcpState::FinWait1), 1);
        assert_eq!(MbufStat::snapshot().in_use(), start);
        peer.send_at(peer.seq, TcpFlags::RST, &[]);
    });
}

#[test]
fn no_more_than_half_the_queue_opens_fast_without_a_word_from_its_peers() {
    in_world(|world| {
        let set = |leaf: &str| {
            let name = std::format!("net.inet.tcp.fastopen.{leaf}");
            world.a.vnet.sysctl.set(&name, "1").unwrap();
        };
        set("server_enable");
        set("acceptany");
        let so = listener(&world.a, 2);
        so.setsockopt_int(IPPROTO_TCP, TCP_FASTOPEN, 1).unwrap();
        let mut to = mss_only();
        to.to_flags |= TcpOptFlags::FASTOPEN;
        to.to_tfo = TfoCookie::new(&[1; 8]);
        let mut peer = Peer::new(world);
        let mut open = |port: u16| {
            peer.port = port;
            peer.inject(TcpSeq(1000), TcpSeq(0), TcpFlags::SYN, &to, &[7; 10]);
            peer.expect_within(50).th
        };
        // More than one of two may not wait.
        let first = open(2001);
        assert_eq!(first.th_ack, TcpSeq(1011));
        assert_eq!(open(2002).th_ack, TcpSeq(1011));
        assert_eq!(open(2003).th_ack, TcpSeq(1001));
        let accepted: Vec<_> = (0..3).map(|_| so.accept_nowait().is_ok()).collect();
        assert_eq!(accepted, [true, true, false]);
        // A word from one of them makes room.
        peer.port = 2001;
        let mss = TcpOpt::default();
        peer.inject(TcpSeq(1011), first.th_seq + 1, ACK, &mss, &[]);
        pass_ms(1);
        peer.port = 2004;
        peer.inject(TcpSeq(1000), TcpSeq(0), TcpFlags::SYN, &to, &[7; 10]);
        let fourth = core::iter::from_fn(|| peer.next()).find(|seen| seen.th.th_dport == 2004);
        let fourth = fourth.unwrap_or_else(|| peer.expect_within(50));
        assert_eq!(fourth.th.th_ack, TcpSeq(1011));
    });
}

#[test]
fn black_holes_are_for_ourselves_only_if_wanted() {
    in_world(|world| {
        let set = |leaf: &str, value: &str| {
            let name = std::format!("net.inet.tcp.{leaf}");
            world.a.vnet.sysctl.set(&name, value).unwrap();
        };
        set("blackhole", "2");
        let refused = |error| {
            let so = tcp(&world.a);
            so.set_nonblocking(true);
            let to = SockAddr::v4(netsim::world::ADDR_A, 99);
            // The answer may come before the call returns.
            let told = match so.connect(&to) {
                Err(Errno::EINPROGRESS) => {
                    pass_ms(10);
                    so.getsockopt_int(SOL_SOCKET, SO_ERROR).unwrap()
                }
                result => result.expect_err("nobody listens").number(),
            };
            assert_eq!(told, error);
        };
        refused(Errno::ECONNREFUSED.number());
        set("blackhole_local", "1");
        refused(0);
    });
}

#[test]
fn a_listener_of_both_families_refuses_by_ipv4_with_the_ttl_of_ipv4() {
    in_world(|world| {
        let so = SocketHandle::socket(&world.a.vnet, AF_INET6, SockType::Stream, 0).unwrap();
        so.setsockopt_int(IPPROTO_IPV6, IPV6_V6ONLY, 0).unwrap();
        so.setsockopt_int(IPPROTO_IPV6, IPV6_UNICAST_HOPS, 7)
            .unwrap();
        so.bind(&SockAddr::v6(Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
        so.listen(5).unwrap();
        let peer = Peer::new(world);
        peer.send_at(TcpSeq(1), ACK, &[]);
        let reset = peer.expect();
        assert_eq!((reset.th.th_flags, reset.ttl), (TcpFlags::RST, 64));
    });
}
