//! What is sent when: tables of connections and what `plan` makes of them.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use sys::machine::hosted::Machine;

use super::*;
use crate::cc::cc_newreno::NewReno;
use crate::tcp_var::TcpTunables;

/// Bytes of a full segment.
const SEG: u32 = 1000;
const ISS: TcpSeq = TcpSeq(0xffff_fff0);

/// An established connection that has sent nothing, with windows of 64 KB.
fn established() -> Tcpcb {
    let mut tp = Tcpcb::new(&TcpTunables::default(), Ticks(0), Box::<NewReno>::default());
    tp.t_state = TcpState::Established;
    tp.t_maxseg = SEG;
    tp.iss = ISS;
    tp.snd_una = ISS + 1;
    tp.snd_nxt = tp.snd_una;
    tp.snd_max = tp.snd_una;
    tp.snd_up = tp.snd_una;
    tp.snd_wnd = 65535;
    tp.max_sndwnd = 65535;
    tp.snd_cwnd = 65535;
    tp.rcv_nxt = TcpSeq(1);
    tp.rcv_adv = tp.rcv_nxt + 65535;
    tp
}

/// The same with `flight` bytes on their way.
fn in_flight(flight: u32) -> Tcpcb {
    let mut tp = established();
    tp.snd_nxt += flight;
    tp.snd_max = tp.snd_nxt;
    tp.t_timers.activate(TcpTimer::Rexmt, Ticks(0), 1000);
    tp
}

fn world(tp: &Tcpcb, avail: u32) -> World {
    World {
        buffers: Buffers {
            snd_avail: avail,
            rcv_space: 65535,
            rcv_hiwat: 65535,
        },
        now: Ticks(0),
        idle: tp.snd_una == tp.snd_max,
        tso: false,
        ip_hlen: 20,
        ipoptlen: 0,
    }
}

/// The outcome in a word: why, offset, bytes; and whether FIN and more follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Does {
    Sends(Why, u32, u32),
    SendsFin(Why, u32, u32),
    Waits(Held),
    Persists,
}

use Does::{Persists, Sends, SendsFin, Waits};

fn outcome(tp: &Tcpcb, world: &World) -> Does {
    match plan(tp, world) {
        Verdict::Send(plan) if plan.flags.contains(TcpFlags::FIN) => {
            SendsFin(plan.why, plan.off, plan.len)
        }
        Verdict::Send(plan) => Sends(plan.why, plan.off, plan.len),
        Verdict::Hold(held) => Waits(held),
        Verdict::EnterPersist => Persists,
    }
}

/// A case: what it shows, the connection, the change to it, what is in the send buffer, and what comes of it.
type Case = (&'static str, Tcpcb, fn(&mut Tcpcb), u32, Does);

fn check(cases: Vec<Case>) {
    for (name, mut tp, change, avail, expected) in cases {
        change(&mut tp);
        let world = world(&tp, avail);
        assert_eq!(outcome(&tp, &world), expected, "{name}");
    }
}

#[test]
fn nagle_and_the_windows_decide_how_much_new_data_goes() {
    use Why::{FullSegment, HalfWindow, Rest};
    let same = |_: &mut Tcpcb| {};
    Machine::builder().quiet().run(|| {
        check(vec![
            (
                "nothing to send",
                established(),
                same,
                0,
                Waits(Held::Nothing),
            ),
            ("idle", established(), same, 10, Sends(Rest, 0, 10)),
            (
                "a full segment",
                established(),
                same,
                5000,
                Sends(FullSegment, 0, SEG),
            ),
            (
                "the next one",
                in_flight(1000),
                same,
                5000,
                Sends(FullSegment, 1000, SEG),
            ),
            (
                "a rest behind others",
                in_flight(1000),
                same,
                1010,
                Waits(Held::Waiting),
            ),
            (
                "a rest without Nagle",
                in_flight(1000),
                |tp| tp.t_flags |= Tf::NODELAY,
                1010,
                Sends(Rest, 1000, 10),
            ),
            (
                "a rest, with more announced",
                established(),
                |tp| tp.t_flags |= Tf::NODELAY | Tf::MORETOCOME,
                10,
                Waits(Held::StartPersist),
            ),
            (
                "a rest that is not to be pushed",
                established(),
                |tp| tp.t_flags |= Tf::NOPUSH,
                10,
                Waits(Held::StartPersist),
            ),
            (
                "the congestion window is full",
                in_flight(2000),
                |tp| tp.snd_cwnd = 2000,
                5000,
                Waits(Held::Waiting),
            ),
            (
                "the congestion window leaves part of a segment, which waits",
                in_flight(1000),
                |tp| tp.snd_cwnd = 1500,
                5000,
                Waits(Held::Waiting),
            ),
            (
                "half of the largest window there ever was",
                established(),
                |tp| {
                    tp.snd_wnd = 400;
                    tp.max_sndwnd = 800;
                },
                5000,
                Sends(HalfWindow, 0, 400),
            ),
            (
                "a window that is smaller than that",
                established(),
                |tp| {
                    tp.snd_wnd = 300;
                    tp.max_sndwnd = 800;
                },
                5000,
                Waits(Held::StartPersist),
            ),
        ]);
    });
}

#[test]
fn a_closed_window_is_probed_by_one_byte() {
    use Why::Probe;
    Machine::builder().quiet().run(|| {
        check(vec![
            (
                "it closed under data",
                established(),
                |tp| tp.snd_wnd = 0,
                10,
                Persists,
            ),
            (
                "it is being probed",
                established(),
                |tp| {
                    tp.snd_wnd = 0;
                    tp.t_timers.activate(TcpTimer::Persist, Ticks(0), 1000);
                },
                10,
                Waits(Held::Waiting),
            ),
            (
                "a probe",
                established(),
                |tp| {
                    tp.snd_wnd = 0;
                    tp.t_timers.activate(TcpTimer::Persist, Ticks(0), 1000);
                    tp.t_flags |= Tf::FORCEDATA;
                },
                10,
                Sends(Probe, 0, 1),
            ),
            (
                "it shrank behind what has been sent",
                in_flight(3000),
                |tp| tp.snd_wnd = 1000,
                5000,
                Waits(Held::Waiting),
            ),
        ]);
    });
}

#[test]
fn a_fin_goes_with_the_last_data_and_once() {
    use Why::{AckNow, Fin, FullSegment, Rest, Retransmission};
    let closed = |tp: &mut Tcpcb| tp.t_state = TcpState::FinWait1;
    let sent = |tp: &mut Tcpcb| {
        tp.t_state = TcpState::FinWait1;
        tp.t_flags |= Tf::SENTFIN;
        tp.snd_nxt += 1;
        tp.snd_max = tp.snd_nxt;
    };
    Machine::builder().quiet().run(|| {
        check(vec![
            ("alone", established(), closed, 0, SendsFin(Fin, 0, 0)),
            (
                "behind data in flight",
                in_flight(500),
                closed,
                500,
                SendsFin(Fin, 500, 0),
            ),
            (
                "with a rest",
                established(),
                closed,
                10,
                SendsFin(Rest, 0, 10),
            ),
            (
                "not before its turn",
                established(),
                closed,
                1500,
                Sends(FullSegment, 0, SEG),
            ),
            (
                "it is on its way",
                in_flight(500),
                sent,
                500,
                Waits(Held::Waiting),
            ),
            (
                "it goes again with every ACK",
                in_flight(0),
                |tp| {
                    tp.t_state = TcpState::Closing;
                    tp.t_flags |= Tf::SENTFIN | Tf::ACKNOW;
                    tp.snd_nxt += 1;
                    tp.snd_max = tp.snd_nxt;
                },
                0,
                SendsFin(AckNow, 1, 0),
            ),
            (
                "after a timeout it goes with the data again",
                in_flight(500),
                |tp| {
                    tp.t_state = TcpState::FinWait1;
                    tp.t_flags |= Tf::SENTFIN;
                    tp.snd_max += 1;
                    tp.snd_nxt = tp.snd_una;
                },
                500,
                SendsFin(Retransmission, 0, 500),
            ),
        ]);
    });
}

#[test]
fn a_syn_carries_no_data_and_begins_with_its_options() {
    Machine::builder().quiet().run(|| {
        let mut tp = established();
        tp.t_state = TcpState::SynSent;
        tp.snd_una = ISS;
        tp.snd_nxt = ISS;
        tp.snd_max = ISS;
        tp.snd_up = ISS;
        tp.request_r_scale = 6;
        let of = |tp: &Tcpcb| match plan(tp, &world(tp, 5000)) {
            Verdict::Send(plan) => (plan.why, plan.len, plan.flags, plan.optlen),
            verdict => panic!("{verdict:?}"),
        };
        assert_eq!(of(&tp), (Why::Control, 0, TcpFlags::SYN, 20));
        tp.t_flags
            .remove(Tf::REQ_TSTMP | Tf::REQ_SCALE | Tf::SACK_PERMIT);
        assert_eq!(of(&tp), (Why::Control, 0, TcpFlags::SYN, 4));
        tp.t_flags |= Tf::NOOPT;
        assert_eq!(of(&tp), (Why::Control, 0, TcpFlags::SYN, 0));
        // It has been sent: now only the answer is waited for.
        tp.snd_nxt += 1;
        tp.snd_max = tp.snd_nxt;
        tp.t_timers.activate(TcpTimer::Rexmt, Ticks(0), 1000);
        tp.snd_wnd = 0;
        assert_eq!(outcome(&tp, &world(&tp, 5000)), Waits(Held::Waiting));
    });
}

#[test]
fn holes_are_filled_within_what_recovery_allows_and_before_new_data() {
    use Why::{FullSegment, SackHole};
    // Ten segments in flight; the peer holds all but the first two and the fifth.
    let recovering = || {
        let mut tp = in_flight(10_000);
        let una = tp.snd_una;
        let mut to = TcpOpt::default();
        for (slot, (start, end)) in to.to_sacks.iter_mut().zip([(5000, 10_000), (2000, 4000)]) {
            slot.start = una + start;
            slot.end = una + end;
        }
        to.to_nsacks = 2;
        tp.sack_doack(&crate::tcp_var::TcpStat::new(), 100, &to, una);
        tp.enter_fastrecovery();
        tp.snd_recover = tp.snd_max;
        tp.snd_cwnd = 1000;
        tp
    };
    Machine::builder().quiet().run(|| {
        check(vec![
            (
                "one segment",
                recovering(),
                |_| {},
                20_000,
                Sends(FullSegment, 0, SEG),
            ),
            (
                "half of one",
                recovering(),
                |tp| tp.snd_cwnd = 500,
                20_000,
                Sends(SackHole, 0, 500),
            ),
            (
                "the window is used up by what has gone again",
                recovering(),
                |tp| tp.sack_mut().retransmitted(0, SEG),
                20_000,
                Waits(Held::Waiting),
            ),
            (
                "the next hole",
                recovering(),
                |tp| {
                    tp.sack_mut().retransmitted(0, 2 * SEG);
                    tp.snd_cwnd = 4000;
                },
                20_000,
                Sends(FullSegment, 4000, SEG),
            ),
            (
                "then new data",
                recovering(),
                |tp| {
                    tp.sack_mut().retransmitted(0, 2 * SEG);
                    tp.sack_mut().retransmitted(1, SEG);
                    tp.snd_cwnd = 4000;
                },
                20_000,
                Sends(FullSegment, 10_000, SEG),
            ),
        ]);
    });
}

#[test]
fn a_packet_for_tso_is_whole_segments_and_leaves_the_fin_behind() {
    Machine::builder().quiet().run(|| {
        let of = |avail: u32, max: u32, fin: bool| {
            let mut tp = established();
            tp.t_flags |= Tf::TSO;
            tp.t_tso.max = max;
            if fin {
                tp.t_state = TcpState::FinWait1;
            }
            let mut world = world(&tp, avail);
            world.tso = true;
            match plan(&tp, &world) {
                Verdict::Send(plan) => {
                    let fin = plan.flags.contains(TcpFlags::FIN);
                    (plan.len, plan.tso, plan.sendalot, fin)
                }
                verdict => panic!("{verdict:?}"),
            }
        };
        // Everything, with a short segment at its end.
        assert_eq!(of(4500, 0, false), (4500, true, false, false));
        // What the interface takes, cut to whole segments.
        assert_eq!(of(20_000, 8000, false), (7000, true, true, false));
        assert_eq!(of(4500, 0, true), (4500, true, true, false));
        // One segment needs no cutting, and takes the FIN.
        assert_eq!(of(1000, 0, true), (1000, false, false, true));
    });
}

#[test]
fn an_update_of_the_window_must_be_worth_a_segment() {
    Machine::builder().quiet().run(|| {
        // What the peer may send already, the room there is, the size of the buffer.
        for (open, recwin, hiwat, worth) in [
            (60_000, 65_535, 65_535, false),
            (40_000, 65_535, 65_535, true),
            (0, 1000, 65_535, false),
            (0, 2000, 65_535, true),
            (0, 2000, 4000, true),
            (0, 0, 65_535, false),
            (5000, 4000, 65_535, false),
        ] {
            let mut tp = established();
            tp.rcv_adv = tp.rcv_nxt + open;
            let what = (open, recwin, hiwat);
            assert_eq!(worth_an_update(&tp, hiwat, recwin), worth, "{what:?}");
            // Nobody sends any more; or the ACK that is held back will say it.
            tp.t_flags |= Tf::DELACK;
            assert!(!worth_an_update(&tp, hiwat, recwin), "{what:?}");
            tp.t_flags.remove(Tf::DELACK);
            tp.t_state = TcpState::CloseWait;
            assert!(!worth_an_update(&tp, hiwat, recwin), "{what:?}");
        }
    });
}
