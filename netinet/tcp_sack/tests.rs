//! The scoreboard beside a plain list of what was reported, and the blocks we report.

use alloc::boxed::Box;
use alloc::vec::Vec;

use sys::machine::hosted::Machine;
use sys::time::Ticks;

use super::*;
use crate::cc::cc_newreno::NewReno;
use crate::tcp_var::TcpTunables;

/// The first segment of a range, and the first behind it.
type Blk = (u32, u32);

/// Bytes of a segment in these tests.
const SEG: u32 = 100;
/// No limit on holes.
const MANY: usize = 1000;

fn seq(segment: u32) -> TcpSeq {
    // Across the wrap.
    TcpSeq(0xffff_f000) + segment * SEG
}

fn block((start, end): Blk) -> SackBlk {
    SackBlk {
        start: seq(start),
        end: seq(end),
    }
}

/// A connection that has sent `segments` segments.
fn sender(segments: u32) -> Tcpcb {
    let mut tp = Tcpcb::new(&TcpTunables::default(), Ticks(0), Box::<NewReno>::default());
    tp.t_state = crate::tcp_fsm::TcpState::Established;
    tp.t_maxseg = SEG;
    tp.snd_una = seq(0);
    tp.snd_max = seq(segments);
    tp.snd_nxt = tp.snd_max;
    tp
}

/// An ACK of everything before segment `ack`, with these blocks.
fn ack(tp: &mut Tcpcb, max: usize, ack: u32, blocks: &[Blk]) -> SackStatus {
    let mut to = TcpOpt::default();
    for (slot, range) in to.to_sacks.iter_mut().zip(blocks) {
        *slot = block(*range);
    }
    to.to_nsacks = blocks.len() as u8;
    let status = tp.sack_doack(&TcpStat::new(), max, &to, seq(ack));
    tp.snd_una = seq(ack);
    status
}

/// The holes, in segments.
fn holes(tp: &Tcpcb) -> Vec<Blk> {
    let number = |at: TcpSeq| at.since(seq(0)) / SEG;
    let sack = tp.t_sack.as_ref().expect("a scoreboard");
    let holes = sack.snd_holes.iter();
    holes
        .map(|hole| (number(hole.start), number(hole.end)))
        .collect()
}

#[test]
fn holes_appear_shrink_split_and_vanish_as_blocks_come() {
    Machine::builder().quiet().run(|| {
        let tp = &mut sender(20);
        assert_eq!(ack(tp, MANY, 0, &[]), SackStatus::NoChange);
        assert!(tp.t_sack.is_none());
        assert_eq!(ack(tp, MANY, 0, &[(8, 10)]), SackStatus::NewLoss);
        assert_eq!(holes(tp), [(0, 8)]);
        // The same again is no news.
        assert_eq!(ack(tp, MANY, 0, &[(8, 10)]), SackStatus::NoChange);
        assert_eq!(ack(tp, MANY, 0, &[(8, 11)]), SackStatus::Change);
        assert_eq!(holes(tp), [(0, 8)]);
        assert_eq!(ack(tp, MANY, 0, &[(3, 4), (8, 11)]), SackStatus::NewLoss);
        assert_eq!(holes(tp), [(0, 3), (4, 8)]);
        assert_eq!(ack(tp, MANY, 0, &[(3, 5), (7, 11)]), SackStatus::Change);
        assert_eq!(holes(tp), [(0, 3), (5, 7)]);
        assert_eq!(ack(tp, MANY, 0, &[(3, 11), (14, 15)]), SackStatus::NewLoss);
        assert_eq!(holes(tp), [(0, 3), (11, 14)]);
        // A cumulative ACK by itself moves the edge, and is no duplicate.
        assert_eq!(ack(tp, MANY, 2, &[]), SackStatus::NoChange);
        assert_eq!(holes(tp), [(2, 3), (11, 14)]);
        assert_eq!(ack(tp, MANY, 15, &[]), SackStatus::NoChange);
        assert!(holes(tp).is_empty());
    });
}

#[test]
fn blocks_of_what_was_never_sent_or_is_acknowledged_do_not_count() {
    Machine::builder().quiet().run(|| {
        let tp = &mut sender(10);
        let stat = TcpStat::new();
        // Beyond what was sent, empty, backwards.
        for range in [(9, 11), (5, 5)] {
            assert_eq!(ack(tp, MANY, 0, &[range]), SackStatus::NoChange);
        }
        let mut to = TcpOpt::default();
        to.to_sacks[0] = SackBlk {
            start: seq(6),
            end: seq(5),
        };
        to.to_nsacks = 1;
        assert_eq!(
            tp.sack_doack(&stat, MANY, &to, seq(0)),
            SackStatus::NoChange
        );
        // Below the ACK: something came twice (RFC 2883).
        to.to_sacks[0] = block((1, 3));
        assert_eq!(
            tp.sack_doack(&stat, MANY, &to, seq(4)),
            SackStatus::NoChange
        );
        assert_eq!(stat.tcps_dsack_count.fetch(), 1);
        assert_eq!(stat.tcps_dsack_bytes.fetch(), u64::from(2 * SEG));
        assert!(holes(tp).is_empty());
    });
}

#[test]
fn a_full_scoreboard_refuses_holes_but_remembers_how_far_the_peer_has_come() {
    Machine::builder().quiet().run(|| {
        let tp = &mut sender(20);
        assert_eq!(ack(tp, 1, 0, &[(8, 10)]), SackStatus::NewLoss);
        assert_eq!(ack(tp, 1, 0, &[(3, 4)]), SackStatus::Change);
        assert_eq!(holes(tp), [(0, 8)]);
        assert_eq!(ack(tp, 1, 0, &[(8, 12), (14, 15)]), SackStatus::NewLoss);
        assert_eq!(holes(tp), [(0, 8)]);
        let sack = tp.t_sack.as_ref().expect("a scoreboard");
        assert_eq!(sack.snd_fack, seq(12));
    });
}

#[test]
fn a_retransmission_is_lost_when_what_was_sent_behind_it_arrives() {
    Machine::builder().quiet().run(|| {
        let tp = &mut sender(20);
        ack(tp, MANY, 0, &[(3, 5), (8, 10)]);
        let recover = seq(15);
        let fill = |tp: &mut Tcpcb, segments: u32| {
            let sack = tp.sack_mut();
            for _ in 0..segments {
                let (at, _) = sack.next_hole().expect("a hole");
                sack.retransmitted(at, SEG);
            }
        };
        let lost = |tp: &mut Tcpcb| tp.sack_mut().retransmission_lost(recover);
        // The first hole whole, half of the second.
        fill(tp, 5);
        assert_eq!(tp.sack_bytes_rexmit(), 5 * SEG);
        ack(tp, MANY, 0, &[(8, 15)]);
        assert!(!lost(tp), "nothing of after the recovery point");
        ack(tp, MANY, 0, &[(8, 16)]);
        assert!(lost(tp));
        // What had not gone out whole does not go again, but on.
        assert_eq!(tp.sack_bytes_rexmit(), 2 * SEG);
        let next = |tp: &Tcpcb| tp.t_sack.as_ref().and_then(|sack| sack.next_hole());
        assert_eq!(next(tp).map(|(_, hole)| hole.rxmit), Some(seq(0)));
        assert!(!lost(tp), "it has not gone again yet");
        fill(tp, 3);
        assert_eq!(next(tp).map(|(_, hole)| hole.rxmit), Some(seq(7)));
        assert!(lost(tp));
    });
}

#[test]
fn the_lost_are_what_two_segments_or_three_blocks_have_overtaken() {
    Machine::builder().quiet().run(|| {
        let lost = |tp: &Tcpcb| tp.t_sack.as_ref().map_or(0, |sack| sack.lost_bytes) / SEG;
        let tp = &mut sender(20);
        ack(tp, MANY, 0, &[(2, 4)]);
        assert_eq!(lost(tp), 0, "two segments are not more than two");
        ack(tp, MANY, 0, &[(2, 5)]);
        assert_eq!(lost(tp), 2);
        ack(tp, MANY, 0, &[(2, 5), (6, 7)]);
        assert_eq!(lost(tp), 2, "only one has overtaken the second hole");
    });
}

#[test]
fn any_order_of_blocks_leaves_the_holes_between_what_was_reported() {
    const SEGMENTS: u32 = 40;
    Machine::builder().quiet().run(|| {
        let mut random = 1u32;
        let mut below = move |limit: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % limit
        };
        for _ in 0..200 {
            let tp = &mut sender(SEGMENTS);
            // Without one, a cumulative ACK is not counted.
            tp.sack_mut();
            let mut arrived = [false; SEGMENTS as usize];
            let mut reported = [false; SEGMENTS as usize];
            for _ in 0..60 {
                let newest = below(SEGMENTS);
                arrived[newest as usize] = true;
                let una = arrived.iter().take_while(|&&here| here).count() as u32;
                // What the peer would report of `segment`: the range that it is in.
                let range = |segment: u32| {
                    let (mut start, mut end) = (segment, segment + 1);
                    while start > una && arrived[start as usize - 1] {
                        start -= 1;
                    }
                    while end < SEGMENTS && arrived[end as usize] {
                        end += 1;
                    }
                    (start, end)
                };
                let mut blocks = Vec::new();
                for segment in [newest, below(SEGMENTS), below(SEGMENTS)] {
                    if segment > una && arrived[segment as usize] {
                        blocks.push(range(segment));
                    }
                }
                let before = reported;
                for (start, end) in blocks.iter().copied().chain([(0, una)]) {
                    reported[start as usize..end as usize].fill(true);
                }
                ack(tp, MANY, una, &blocks);
                check(tp, una, &before, &reported);
                if below(3) == 0
                    && let Some((at, _)) = tp.sack_mut().next_hole()
                {
                    tp.sack_mut().retransmitted(at, SEG);
                }
            }
        }
    });
}

/// Compares the scoreboard after an ACK of `una` with what was reported before and since.
fn check(tp: &mut Tcpcb, una: u32, before: &[bool], reported: &[bool]) {
    let bytes = |segments: usize| segments as u32 * SEG;
    let above = &reported[una as usize..];
    let sack = tp.sack_mut();
    let new = before
        .iter()
        .zip(reported)
        .filter(|(old, new)| old != new)
        .count();
    assert_eq!(sack.delivered_data, bytes(new));
    assert_eq!(
        sack.sacked_bytes,
        bytes(above.iter().filter(|&&is| is).count())
    );
    let filled: u32 = sack.snd_holes.iter().map(SackState::rexmitted).sum();
    assert_eq!(sack.sack_bytes_rexmit, filled);
    for hole in &sack.snd_holes {
        assert!(hole.start.leq(hole.rxmit) && hole.rxmit.leq(hole.end) && hole.start.lt(hole.end));
    }
    let Some(last) = above.iter().rposition(|&is| is) else {
        assert!(sack.snd_holes.is_empty());
        return;
    };
    let mut expected: Vec<Blk> = Vec::new();
    for segment in (una..una + last as u32).filter(|&at| !reported[at as usize]) {
        match expected.last_mut() {
            Some((_, end)) if *end == segment => *end += 1,
            _ => expected.push((segment, segment + 1)),
        }
    }
    assert_eq!(holes(tp), expected);
}

#[test]
fn the_newest_block_is_reported_first_and_what_it_touches_with_it() {
    let mut sack = SackState::default();
    let next = seq(0);
    let blocks = |sack: &SackState| {
        let mut to = TcpOpt::default();
        sack.report(&mut to);
        to.sacks().to_vec()
    };
    for segment in [2, 6, 10, 14] {
        sack.update_sack_list(next, seq(segment), seq(segment + 1));
    }
    assert_eq!(
        blocks(&sack),
        [
            block((14, 15)),
            block((10, 11)),
            block((6, 7)),
            block((2, 3))
        ]
    );
    sack.update_sack_list(next, seq(3), seq(6));
    assert_eq!(
        blocks(&sack),
        [block((2, 7)), block((14, 15)), block((10, 11))]
    );
    // A duplicate goes before all others, once (RFC 2883 §4).
    sack.update_dsack(seq(14), seq(15));
    assert_eq!(blocks(&sack)[0], block((14, 15)));
    assert_eq!(blocks(&sack).len(), 4);
    sack.clean_dsack();
    // What the stream has passed is dropped.
    sack.update_sack_list(seq(11), seq(11), seq(11));
    assert_eq!(blocks(&sack), [block((14, 15))]);
    // No more than six are remembered.
    for segment in 20..30 {
        sack.update_sack_list(seq(11), seq(2 * segment), seq(2 * segment + 1));
    }
    assert_eq!(sack.rcv_numsacks(), MAX_SACK_BLKS);
    assert_eq!(blocks(&sack)[0], block((58, 59)));
}
