//! Time: when TCP sends again, probes, gives up. The times are FreeBSD's.

mod tcp_common;

use std::vec::Vec;

use netinet::tcp::{TcpFlags, TcpOpt, TcpOptFlags};
use netinet::tcp_fsm::TcpState;
use netinet::tcp_usrreq::*;
use netsim::wire::Dir;
use netsim::world::{ADDR_B, World};
use sys::errno::Errno;
use sys::socket::{IPPROTO_TCP, MsgFlags, SO_ERROR, SOL_SOCKET, SockAddr};
use tcp_common::*;

/// Options of a peer that offers only a segment size.
fn mss_only() -> TcpOpt {
    TcpOpt {
        to_flags: TcpOptFlags::MSS,
        to_mss: 1460,
        ..TcpOpt::default()
    }
}

/// Time between neighbours, in ms.
fn gaps(times: &[i64]) -> Vec<i64> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Equal but for the few ms that scheduling may take.
#[track_caller]
fn about(times: &[i64], expected: &[i64]) {
    assert_eq!(times.len(), expected.len(), "{times:?}");
    for (time, expected) in times.iter().zip(expected) {
        assert!(
            (time - expected).abs() <= 2,
            "{times:?} instead of {expected:?}"
        );
    }
}

#[test]
fn a_syn_without_answer_is_repeated_until_the_handshake_times_out() {
    World::run(WireConfig::default(), |world| {
        settle(world);
        let tap = Tap::dropping(world, |_| true);
        let a = tcp(&world.a);
        let begun = now_ms();
        assert_eq!(
            a.connect(&SockAddr::v4(ADDR_B, PORT)),
            Err(Errno::ETIMEDOUT)
        );
        about(&[now_ms() - begun], &[75_000]);
        let syns: Vec<i64> = tap
            .seen(Dir::AtoB)
            .iter()
            .map(|syn| syn.at - begun)
            .collect();
        // 1 s, then 2^n s with 200 ms of slop, at most 64 s.
        about(&gaps(&syns), &[1000, 2200, 4200, 8200, 16200, 32200]);
        assert_eq!(world.a.inet.tcp.stat.tcps_keepdrops.fetch(), 1);
    });
}

#[test]
fn data_without_answer_backs_off_and_the_connection_dies_after_twelve() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        send_all(&a, b"x");
        assert_eq!(b.recv(&mut [0; 1], MsgFlags::empty()), Ok(1));
        pass_ms(100);
        let rto = look(&world.a, &a, |tp| i64::from(tp.rexmtval()));
        assert!(rto >= 30, "at least rexmit_min");
        let tap = Tap::dropping(world, |_| true);
        send_all(&a, b"lost");
        pass_ms(700_000);
        assert_eq!(
            a.getsockopt_int(SOL_SOCKET, SO_ERROR),
            Ok(Errno::ETIMEDOUT.number())
        );
        let mut seen = tap.seen(Dir::AtoB);
        let reset = seen.pop().unwrap();
        assert!(reset.th.th_flags.contains(TcpFlags::RST));
        let sent: Vec<i64> = seen.iter().map(|segment| segment.at).collect();
        assert_eq!(sent.len(), 13);
        let backoff = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512];
        let at_shift = |factor: i64| (rto * factor + 200).min(64_000);
        // From the 4th on the round trip is not believed any more, but the timeout goes on growing.
        let gaps = gaps(&sent);
        about(&gaps[..3], &[at_shift(1), at_shift(2), at_shift(4)]);
        assert!(
            gaps.windows(2).all(|pair| pair[0] <= pair[1]),
            "{gaps:?} {backoff:?}"
        );
        let stat = &world.a.inet.tcp.stat;
        assert_eq!(
            (stat.tcps_rexmttimeo.fetch(), stat.tcps_timeoutdrop.fetch()),
            (12, 1)
        );
    });
}

#[test]
fn the_first_retransmission_after_an_idle_link_comes_after_230_ms() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        // Many round trips of less than a tick: srtt and rttvar shrink until the minimum decides.
        for _ in 0..100 {
            send_all(&a, b"x");
            b.recv(&mut [0; 1], MsgFlags::empty()).unwrap();
            send_all(&b, b"y");
            a.recv(&mut [0; 1], MsgFlags::empty()).unwrap();
        }
        pass_ms(100);
        let tap = Tap::dropping(world, |_| true);
        send_all(&a, b"lost");
        pass_ms(1000);
        let sent: Vec<i64> = tap
            .seen(Dir::AtoB)
            .iter()
            .map(|segment| segment.at)
            .collect();
        about(&gaps(&sent)[..2], &[230, 260]);
    });
}

#[test]
fn an_acknowledgement_waits_40_ms_or_for_the_second_segment() {
    World::run(WireConfig::default(), |world| {
        let so = tcp(&world.a);
        settle(world);
        let mut peer = Peer::accept(world, &so, mss_only());
        peer.send(TcpFlags::ACK | TcpFlags::PUSH, &pattern(1, 100));
        let sent = now_ms();
        let ack = peer.expect_within(60);
        about(&[ack.at - sent], &[40]);
        assert_eq!(ack.th.th_ack, peer.seq);
        assert_eq!(world.a.inet.tcp.stat.tcps_delack.fetch(), 1);
        peer.send(TcpFlags::ACK, &pattern(1, 1460));
        peer.expect_nothing(10);
        peer.send(TcpFlags::ACK, &pattern(1, 1460));
        assert_eq!(peer.expect().th.th_ack, peer.seq);
        assert_eq!(world.a.inet.tcp.stat.tcps_delack.fetch(), 1);
    });
}

#[test]
fn a_closed_window_is_probed_by_a_byte_from_five_seconds_up_to_a_minute() {
    World::run(WireConfig::default(), |world| {
        let so = tcp(&world.a);
        settle(world);
        let mut peer = Peer::accept(world, &so, mss_only());
        peer.send(TcpFlags::ACK, b"?");
        // Only a newer segment may shrink the window.
        peer.win = 0;
        peer.send(TcpFlags::ACK, b"!");
        peer.expect_within(60);
        send_all(&so, &pattern(1, 5000));
        let begun = now_ms();
        let mut times = std::vec![begun];
        for _ in 0..7 {
            let probe = peer.expect_within(61_000);
            assert_eq!((probe.data.len(), probe.th.th_seq), (1, peer.ack));
            times.push(probe.at);
            // Still closed.
            peer.send(TcpFlags::ACK, &[]);
        }
        let gaps = gaps(&times);
        about(&gaps[..1], &[5000]);
        assert!(
            gaps.windows(2).all(|pair| pair[0] <= pair[1] + 2),
            "{gaps:?}"
        );
        assert!(gaps.iter().all(|&gap| gap <= 60_002), "{gaps:?}");
        let stat = &world.a.inet.tcp.stat;
        assert_eq!(
            (stat.tcps_sndprobe.fetch(), stat.tcps_persisttimeo.fetch()),
            (7, 7)
        );
        // It opens: full segments go out at once, the rest when they are acknowledged (Nagle).
        peer.win = 32767;
        peer.send(TcpFlags::ACK, &[]);
        let mut data = Vec::new();
        while let Some(segment) = peer.next() {
            assert_eq!(segment.th.th_seq, peer.ack + data.len() as u32);
            data.extend(segment.data);
        }
        assert_eq!(data.len(), 3 * 1460);
        peer.ack += data.len() as u32;
        peer.send(TcpFlags::ACK, &[]);
        data.extend(peer.expect().data);
        assert!(data == pattern(1, 5000));
    });
}

#[test]
fn an_idle_peer_is_probed_and_dropped_when_it_does_not_answer() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        for (name, value) in [(TCP_KEEPIDLE, 10), (TCP_KEEPINTVL, 2), (TCP_KEEPCNT, 3)] {
            a.setsockopt_int(IPPROTO_TCP, name, value).unwrap();
            assert_eq!(a.getsockopt_int(IPPROTO_TCP, name), Ok(value));
        }
        let tap = Tap::on(world);
        pass_ms(25_000);
        // The peer lives, and answers each probe.
        let probes = tap.seen(Dir::AtoB);
        let answers = tap.seen(Dir::BtoA);
        assert_eq!((probes.len(), answers.len()), (2, 2));
        assert_eq!(probes[0].th.th_seq + 1, answers[0].th.th_ack);
        about(&[probes[1].at - probes[0].at], &[10_000]);
        // It dies: probes every 2 s, and the end after three.
        let tap = Tap::dropping(world, |_| true);
        pass_ms(30_000);
        let times: Vec<i64> = tap.seen(Dir::AtoB).iter().map(|probe| probe.at).collect();
        about(&gaps(&times[..3]), &[2000, 2000]);
        assert_eq!(
            a.getsockopt_int(SOL_SOCKET, SO_ERROR),
            Ok(Errno::ETIMEDOUT.number())
        );
        let stat = &world.a.inet.tcp.stat;
        assert_eq!(stat.tcps_keepdrops.fetch(), 1);
        drop(b);
    });
}

#[test]
fn fin_wait_2_ends_if_the_peer_never_closes() {
    World::run(WireConfig::default(), |world| {
        let (a, b) = connected(world);
        let tun = &world.a.inet.tcp.tun;
        tun.keepintvl.set(1000);
        tun.keepcnt.set(4);
        drop(a);
        pass_ms(100);
        assert_eq!(in_state(&world.a, TcpState::FinWait2), 1);
        pass_ms(3_000);
        assert_eq!(in_state(&world.a, TcpState::FinWait2), 1);
        pass_ms(3_000);
        assert_eq!(in_state(&world.a, TcpState::FinWait2), 0);
        assert_eq!(world.a.inet.tcp.stat.tcps_finwait2_drops.fetch(), 1);
        drop(b);
    });
}

#[test]
fn a_peer_that_acknowledges_nothing_is_dropped_after_maxunacktime() {
    World::run(WireConfig::default(), |world| {
        let (a, _b) = connected(world);
        a.setsockopt_int(IPPROTO_TCP, TCP_MAXUNACKTIME, 3).unwrap();
        let _tap = Tap::dropping(world, |_| true);
        send_all(&a, b"lost");
        pass_ms(15_000);
        assert_eq!(
            a.getsockopt_int(SOL_SOCKET, SO_ERROR),
            Ok(Errno::ETIMEDOUT.number())
        );
        assert_eq!(world.a.inet.tcp.stat.tcps_progdrops.fetch(), 1);
    });
}

#[test]
fn a_syn_ack_without_answer_is_repeated_three_times() {
    World::run(WireConfig::default(), |world| {
        let listen = listener(&world.a, 5);
        settle(world);
        let mut peer = Peer::new(world);
        peer.send(TcpFlags::SYN, &[]);
        let first = peer.expect();
        let mut times = std::vec![first.at];
        for _ in 0..3 {
            let again = peer.expect_within(9000);
            assert_eq!(again.th, first.th);
            times.push(again.at);
        }
        about(&gaps(&times), &[1000, 2000, 4000]);
        assert_eq!(world.a.inet.tcp.syncache.count(), 1);
        peer.expect_nothing(20_000);
        assert_eq!(world.a.inet.tcp.syncache.count(), 0);
        assert_eq!(world.a.inet.tcp.stat.tcps_sc_stale.fetch(), 1);
        assert!(listen.accept_nowait().is_err());
    });
}

#[test]
fn time_wait_answers_a_repeated_fin_and_begins_anew() {
    World::run(WireConfig::default(), |world| {
        let so = tcp(&world.a);
        settle(world);
        let before = in_state(&world.a, TcpState::TimeWait);
        let mut peer = Peer::accept(world, &so, mss_only());
        drop(so);
        let fin = peer.expect();
        assert!(fin.th.th_flags.contains(TcpFlags::FIN));
        peer.ack += 1;
        peer.send(TcpFlags::ACK, &[]);
        let fin_seq = peer.seq;
        peer.send(TcpFlags::FIN | TcpFlags::ACK, &[]);
        assert_eq!(peer.expect().th.th_ack, peer.seq);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), before + 1);
        pass_ms(50_000);
        peer.send_at(fin_seq, TcpFlags::FIN | TcpFlags::ACK, &[]);
        assert_eq!(peer.expect().th.th_ack, peer.seq);
        pass_ms(50_000);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 1);
        // RFC 1337: no RST cuts it short.
        peer.send(TcpFlags::RST, &[]);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 1);
        pass_ms(11_000);
        assert_eq!(in_state(&world.a, TcpState::TimeWait), 0);
    });
}
