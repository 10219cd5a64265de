//! The reassembly queue beside a plain list of bytes.

use super::*;
use sys::machine::hosted::Machine;
use sys::mbuf::How;

#[test]
fn all_queues_together_have_a_limit_that_the_missing_segment_may_pass() {
    Machine::builder().quiet().run(|| {
        let global = Arc::new(AtomicU32::new(0));
        let limits = Limits {
            ranges: 100,
            mbcnt: u32::MAX,
            global: 3,
        };
        let next = TcpSeq(0);
        let put = |queue: &mut ReassQueue, at: u32| {
            let m = Mbuf::from_bytes(&[0; 10], How::Wait).expect("an mbuf");
            queue.insert(TcpSeq(at), m, 10, next, limits)
        };
        let mut first = ReassQueue::new(&global);
        let mut second = ReassQueue::new(&global);
        assert!(matches!(put(&mut first, 20), Queued::Kept { .. }));
        assert!(matches!(put(&mut second, 20), Queued::Kept { .. }));
        assert!(matches!(put(&mut second, 40), Queued::Kept { .. }));
        assert_eq!(put(&mut first, 60), Queued::Full);
        assert!(matches!(put(&mut first, 0), Queued::Kept { .. }));
        assert_eq!(global.load(Ordering::Relaxed), 4);
        assert!(first.take_ready(next).is_some());
        assert_eq!(global.load(Ordering::Relaxed), 3);
        drop(second);
        assert_eq!(global.load(Ordering::Relaxed), 1);
        assert!(matches!(put(&mut first, 60), Queued::Kept { .. }));
    });
}

#[test]
fn whatever_the_order_and_the_overlaps_each_byte_is_delivered_once_and_in_its_place() {
    const SPACE: usize = 400;
    let limits = Limits {
        ranges: 1000,
        mbcnt: u32::MAX,
        global: u32::MAX,
    };
    Machine::builder().quiet().run(|| {
        let mut random = 7u32;
        let mut below = move |limit: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as usize % limit
        };
        let byte = |at: usize| (at % 251) as u8;
        // Across the wrap.
        let seq = |at: usize| TcpSeq(0xffff_ff00) + at as u32;
        for _ in 0..100 {
            let mut queue = ReassQueue::new(&Arc::new(AtomicU32::new(0)));
            let mut known = [false; SPACE];
            let mut delivered = Vec::new();
            while delivered.len() < SPACE {
                let next = delivered.len();
                let start = next + below(SPACE - next);
                let end = (start + 1 + below(60)).min(SPACE);
                let bytes: Vec<u8> = (start..end).map(byte).collect();
                let m = Mbuf::from_bytes(&bytes, How::Wait).expect("an mbuf");
                let repeats = known[start..end].iter().filter(|&&is| is).count();
                let queued = queue.insert(seq(start), m, (end - start) as u32, seq(next), limits);
                known[start..end].fill(true);
                let left = (next..start).rev().take_while(|&at| known[at]);
                let right = (end..SPACE).take_while(|&at| known[at]);
                let (from, to) = (seq(start - left.count()), seq(end + right.count()));
                match queued {
                    Queued::Kept {
                        start: first,
                        end: last,
                        dup,
                        repeated,
                    } => {
                        assert_eq!((first, last, dup as usize), (from, to, repeats));
                        assert_eq!(repeated.end.gt(repeated.start), repeats > 0);
                    }
                    Queued::Duplicate { within } => {
                        assert_eq!((within.start, within.end), (from, to));
                        assert_eq!(repeats, end - start);
                    }
                    Queued::Full => panic!("there is room"),
                }
                if let Some((segments, end)) = queue.take_ready(seq(next)) {
                    for m in segments.iter() {
                        let mut bytes = alloc::vec![0; m.pkt_len()];
                        assert!(m.copydata(0, &mut bytes));
                        delivered.extend(bytes);
                    }
                    assert_eq!(seq(delivered.len()), end);
                }
                let above = known[delivered.len()..].iter().filter(|&&is| is).count();
                assert_eq!(queue.bytes() as usize, above);
            }
            assert!(queue.is_empty());
            assert!(delivered.iter().copied().eq((0..SPACE).map(byte)));
        }
    });
}

#[test]
fn a_fin_waits_in_its_place_until_everything_before_it_has_come() {
    Machine::builder().quiet().run(|| {
        let limits = Limits {
            ranges: 10,
            mbcnt: u32::MAX,
            global: u32::MAX,
        };
        let mut queue = ReassQueue::new(&Arc::new(AtomicU32::new(0)));
        queue.set_fin(TcpSeq(20));
        assert!(!queue.is_empty() && !queue.fin_at(TcpSeq(0)));
        let m = Mbuf::from_bytes(&[0; 20], How::Wait).expect("an mbuf");
        queue.insert(TcpSeq(0), m, 20, TcpSeq(0), limits);
        let (_, end) = queue.take_ready(TcpSeq(0)).expect("what came");
        assert!(queue.fin_at(end));
    });
}
