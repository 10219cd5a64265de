use crate::kern::kern_mbuf::MbufStat;
use crate::machine::hosted::Machine;
use crate::mbuf::*;
use alloc::boxed::Box;
use alloc::sync::Arc;
use proptest::prelude::*;
use proptest::sample::Index;
use std::vec;
use std::vec::Vec;

/// Runs `test` on a machine of its own and checks that it leaks nothing.
fn on_a_machine(test: impl FnOnce()) {
    Machine::builder().run(|| {
        let before = MbufStat::snapshot().in_use();
        test();
        assert_eq!(MbufStat::snapshot().in_use(), before, "mbufs leaked");
    });
}

fn bytes(m: &Mbuf) -> Vec<u8> {
    m.segments().collect::<Vec<_>>().concat()
}

/// `len` bytes that differ from their neighbours.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

/// A packet of single mbufs of these lengths.
fn chain_of(lens: &[usize]) -> Mbuf {
    let all = pattern(lens.iter().sum());
    let mut rest = &all[..];
    let mut packet = Mbuf::gethdr(How::NoWait).unwrap();
    for &len in lens {
        let (now, later) = rest.split_at(len);
        rest = later;
        let mut piece = Mbuf::getm2(How::NoWait, len, false).unwrap();
        piece.extend_mut(len).copy_from_slice(now);
        packet.last_mut().set_next(Some(piece));
    }
    packet.fixhdr();
    packet
}

#[test]
fn a_fresh_packet_is_empty_and_has_the_room_of_its_kind() {
    on_a_machine(|| {
        for (m, room) in [
            (Mbuf::gethdr(How::NoWait), MHLEN),
            (Mbuf::getcl(How::NoWait), MCLBYTES),
            (Mbuf::getjcl(How::NoWait, ClusterSize::K4), MJUMPAGESIZE),
            (Mbuf::getjcl(How::NoWait, ClusterSize::K9), MJUM9BYTES),
            (Mbuf::getjcl(How::NoWait, ClusterSize::K16), MJUM16BYTES),
        ] {
            let m = m.unwrap();
            assert!(m.is_empty() && m.next().is_none() && m.has_pkthdr() && m.writable());
            assert_eq!((m.trailing_space(), m.leading_space()), (room, 0));
            assert_eq!(m.pkt_len(), 0);
            assert_eq!(m.pkthdr().csum_flags, CsumFlags::empty());
            assert!(m.pkthdr().tags.is_empty());
            assert_eq!(m.mtype(), MbufType::Data);
        }
        let m = Mbuf::get(How::NoWait).unwrap();
        assert_eq!(m.trailing_space(), MLEN);
        assert!(!m.has_pkthdr());
    });
}

#[test]
fn a_packet_header_from_a_reused_mbuf_remembers_nothing() {
    on_a_machine(|| {
        for _ in 0..3 {
            let mut m = Mbuf::getcl(How::NoWait).unwrap();
            assert_eq!(m.pkthdr().flowid, 0);
            assert_eq!(m.flags(), MFlags::PKTHDR | MFlags::EXT);
            m.pkthdr_mut().flowid = 77;
            m.pkthdr_mut().tags.attach(1, 2, Box::new([3]));
            m.add_flags(MFlags::BCAST | MFlags::PROTO3);
        }
    });
}

#[test]
fn prepending_uses_the_room_there_is_before_it_takes_another_mbuf() {
    on_a_machine(|| {
        let mut m = Mbuf::gethdr(How::NoWait).unwrap();
        m.align_end(40);
        m.extend_mut(40).fill(1);
        m.set_pkt_len(40);
        let m = m.prepend(20, How::NoWait).unwrap();
        assert_eq!((m.len(), m.pkt_len()), (60, 60));
        assert!(m.next().is_none());
        let room = m.leading_space();
        let m = m.prepend(room + 1, How::NoWait).unwrap();
        assert_eq!((m.len(), m.next().unwrap().len()), (room + 1, 60));
        assert_eq!(m.pkt_len(), room + 61);
        assert!(m.has_pkthdr() && !m.next().unwrap().has_pkthdr());
    });
}

#[test]
fn prepending_to_shared_storage_leaves_it_alone() {
    on_a_machine(|| {
        let mut m = Mbuf::getcl(How::NoWait).unwrap();
        m.reserve_front(100);
        m.extend_mut(200).copy_from_slice(&pattern(200));
        m.set_pkt_len(200);
        let copy = m.copypacket(How::NoWait).unwrap();
        let mut copy = copy.prepend(14, How::NoWait).unwrap();
        copy.data_mut().fill(0xee);
        assert_eq!(copy.nsegs(), 2);
        assert_eq!(bytes(&m), pattern(200));
        drop(copy);
        assert_eq!(m.leading_space(), 100, "alone again, it is writable again");
    });
}

#[test]
fn a_header_scattered_over_mbufs_is_pulled_together() {
    on_a_machine(|| {
        let m = chain_of(&[1, 1, 3, 10, 100, 500]);
        let m = m.pullup(60).unwrap();
        assert!(m.len() >= 60);
        assert_eq!(bytes(&m), pattern(615));
        assert_eq!(m.pkt_len(), 615);
        let m = m.pullup(615).unwrap();
        assert_eq!(m.data(), pattern(615));
        assert_eq!(m.pullup(616).unwrap_err(), Short);
    });
}

#[test]
fn trimming_more_than_there_is_empties_the_chain() {
    on_a_machine(|| {
        let mut m = chain_of(&[10, 20, 30]);
        m.trim_front(15);
        assert_eq!((bytes(&m), m.pkt_len()), (pattern(60)[15..].to_vec(), 45));
        m.trim_back(40);
        assert_eq!((bytes(&m), m.pkt_len()), (pattern(60)[15..20].to_vec(), 5));
        m.trim_back(100);
        assert_eq!((m.length(), m.pkt_len()), (0, 0));
        m.trim_front(100);
        assert_eq!((m.length(), m.pkt_len()), (0, 0));
    });
}

#[test]
fn a_copy_shares_clusters_and_copies_small_mbufs() {
    on_a_machine(|| {
        let mut m = chain_of(&[100, 2000]);
        m.pkthdr_mut().tags.attach(7, 8, Box::new([9]));
        m.pkthdr_mut().csum_flags = CsumFlags::IP_TCP;
        m.add_flags(MFlags::MCAST);
        let copy = m.copym(0, 1500, How::NoWait).unwrap();
        assert_eq!(bytes(&copy), pattern(2100)[..1500]);
        assert_eq!(copy.pkt_len(), 1500);
        assert_eq!(copy.pkthdr().csum_flags, CsumFlags::IP_TCP);
        assert_eq!(&*copy.pkthdr().tags.find(7, 8).unwrap().payload, [9]);
        assert!(copy.flags().contains(MFlags::MCAST));
        let shared = |m: &Mbuf| m.iter().filter(|m| !m.writable()).count();
        assert_eq!((shared(&m), shared(&copy)), (1, 1));
        drop(m);
        assert_eq!(shared(&copy), 0, "the last holder may write");
        let inner = copy.copym(700, M_COPYALL, How::NoWait).unwrap();
        assert!(!inner.has_pkthdr());
        assert_eq!(bytes(&inner), pattern(2100)[700..1500]);
        assert!(copy.copym(700, 801, How::NoWait).is_none());
    });
}

#[test]
fn the_owner_of_a_cluster_may_go_before_its_sharers() {
    on_a_machine(|| {
        let mut m = Mbuf::getcl(How::NoWait).unwrap();
        m.extend_mut(2048).copy_from_slice(&pattern(2048));
        m.set_pkt_len(2048);
        let copies: Vec<_> = (0..10)
            .map(|i| m.copym(i * 200, 200, How::NoWait).unwrap())
            .collect();
        drop(m);
        // Others take mbufs meanwhile, to write where a freed one would be.
        let _others: Vec<_> = (0..100)
            .map(|_| Mbuf::getcl(How::NoWait).unwrap())
            .collect();
        for (i, copy) in copies.into_iter().enumerate() {
            assert_eq!(copy.data(), &pattern(2048)[i * 200..][..200]);
        }
    });
}

#[test]
fn writing_to_shared_bytes_is_refused_and_unsharing_allows_it() {
    on_a_machine(|| {
        let m = chain_of(&[2000, 50]);
        let mut copy = m.copypacket(How::NoWait).unwrap();
        assert!(!copy.copyback(10, &[1, 2, 3], How::NoWait));
        assert!(
            copy.copyback(2020, &[1, 2, 3], How::NoWait),
            "the small mbuf is a copy"
        );
        let mut copy = copy.unshare(How::NoWait).unwrap();
        assert!(copy.copyback(10, &[1, 2, 3], How::NoWait));
        assert_eq!(bytes(&m), pattern(2050));
        assert_eq!(bytes(&copy)[10..13], [1, 2, 3]);
        assert_eq!(copy.pkt_len(), 2050);
    });
}

#[test]
#[should_panic(expected = "shared or read-only")]
fn taking_shared_bytes_to_write_them_panics() {
    Machine::builder().run(|| {
        let mut m = Mbuf::getcl(How::NoWait).unwrap();
        m.extend_mut(10);
        let _copy = m.copypacket(How::NoWait);
        m.data_mut();
    });
}

#[test]
fn external_storage_is_read_in_place_and_dropped_with_the_last_packet() {
    struct Page {
        _alive: Arc<()>,
        bytes: Vec<u8>,
    }
    impl ExtStorage for Page {
        fn bytes(&self) -> &[u8] {
            &self.bytes
        }
    }
    on_a_machine(|| {
        let alive = Arc::new(());
        let page = Page {
            _alive: alive.clone(),
            bytes: pattern(5000),
        };
        let address = page.bytes.as_ptr();
        let mut m = Mbuf::from_storage(Box::new(page), How::NoWait).unwrap();
        assert_eq!((m.data().as_ptr(), m.pkt_len()), (address, 5000));
        m.clear_flags(MFlags::RDONLY);
        assert!(!m.writable(), "it stays read-only, whatever the flag says");
        let mut expected = address.addr();
        for (addr, len) in m.dma_segments() {
            assert_eq!(addr.as_u64() as usize, expected);
            assert_eq!(
                expected / 4096,
                (expected + len - 1) / 4096,
                "pages lie anywhere"
            );
            expected += len;
        }
        assert_eq!(expected, address.addr() + 5000);
        let copy = m.copym(4000, 1000, How::NoWait).unwrap();
        drop(m);
        assert_eq!(copy.data(), &pattern(5000)[4000..]);
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(copy);
        assert_eq!(Arc::strong_count(&alive), 1);
    });
}

#[test]
fn storage_larger_than_any_cluster_is_unshared_in_pieces() {
    struct Large(Vec<u8>);
    impl ExtStorage for Large {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
    }
    on_a_machine(|| {
        let all = pattern(40_000);
        let storage = Box::new(Large(all.clone()));
        let mut m = Mbuf::from_storage(storage, How::NoWait).unwrap();
        m.pkthdr_mut().flowid = 7;
        m.set_next(Some(chain_of(&[100])));
        m.next_mut().unwrap().demote();
        let m = m.unshare(How::NoWait).unwrap();
        assert!(m.iter().all(Mbuf::writable));
        assert_eq!(bytes(&m), [all, pattern(100)].concat());
        assert_eq!((m.pkthdr().flowid, m.pkt_len()), (7, 40_000));
    });
}

#[test]
fn an_empty_shared_mbuf_among_others_does_not_keep_their_bytes_from_being_written() {
    on_a_machine(|| {
        let mut m = chain_of(&[100, 300, 100]);
        let shared = m.copypacket(How::NoWait).unwrap();
        m.next_mut().unwrap().next_mut().unwrap().set_len(0);
        m.fixhdr();
        assert!(m.copyback(90, &[1; 20], How::NoWait));
        assert_eq!(bytes(&m)[90..110], [1; 20]);
        assert_eq!(bytes(&shared), pattern(500));
    });
}

#[test]
fn a_split_packet_is_two_packets_and_joins_again() {
    on_a_machine(|| {
        for at in [0, 1, 100, 101, 1000, 2099] {
            let mut m = chain_of(&[100, 2000]);
            m.pkthdr_mut().rcvif = IfIndex(3);
            let tail = m.split(at, How::NoWait).unwrap();
            assert_eq!((m.pkt_len(), tail.pkt_len()), (at, 2100 - at));
            assert_eq!((m.length(), tail.length()), (at, 2100 - at));
            assert_eq!(tail.pkthdr().rcvif, IfIndex(3));
            m.cat_pkt(tail);
            assert_eq!((bytes(&m), m.pkt_len()), (pattern(2100), 2100));
            assert_eq!(m.iter().filter(|m| m.has_pkthdr()).count(), 1);
        }
        let mut m = chain_of(&[100]);
        assert!(m.split(100, How::NoWait).is_none());
    });
}

#[test]
fn defragmenting_leaves_few_mbufs_and_keeps_the_header() {
    on_a_machine(|| {
        let mut m = chain_of(&[9; 200]);
        m.pkthdr_mut().flowid = 5;
        let m = m.defrag(How::NoWait).unwrap();
        assert_eq!((m.nsegs(), m.pkthdr().flowid, m.pkt_len()), (1, 5, 1800));
        assert_eq!(bytes(&m), pattern(1800));
    });
}

#[test]
fn a_long_chain_is_freed_without_recursion() {
    on_a_machine(|| {
        let mut chain = Mbuf::gethdr(How::NoWait).unwrap();
        for _ in 0..20_000 {
            let mut m = Mbuf::get(How::NoWait).unwrap();
            m.set_next(chain.take_next());
            chain.set_next(Some(m));
        }
        drop(chain);
    });
}

#[test]
fn a_queue_gives_packets_back_in_order_and_frees_what_is_left() {
    on_a_machine(|| {
        let packet = |n| {
            let mut m = Mbuf::gethdr(How::NoWait).unwrap();
            m.pkthdr_mut().flowid = n;
            m
        };
        let mut queue: MbufQueue = MbufQueue::new();
        let mut other = MbufQueue::new();
        (1..4).for_each(|n| queue.push(packet(n)));
        (4..6).for_each(|n| other.push(packet(n)));
        queue.append(&mut other);
        queue.push_front(packet(0));
        queue.append(&mut other);
        queue.push(packet(6));
        assert_eq!((queue.len(), other.len()), (7, 0));
        let ids: Vec<_> = queue.iter().map(|m| m.pkthdr().flowid).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(queue.pop().unwrap().pkthdr().flowid, 0);
        other.push(packet(9));
        assert_eq!(other.pop().unwrap().pkthdr().flowid, 9);
        assert!(other.pop().is_none());
        other.push(packet(10));
        assert_eq!(other.len(), 1);
    });
}

#[test]
fn tags_are_found_copied_and_removed_one_by_one() {
    let mut tags = TagList::new();
    for id in 0..4 {
        tags.attach(9, id, Box::new([id as u8]));
    }
    tags.attach(8, 2, Box::new([]));
    let copy = tags.clone();
    assert_eq!(*tags.remove(9, 2).unwrap().payload, [2]);
    assert!(tags.find(9, 2).is_none() && tags.find(8, 2).is_some());
    assert_eq!(
        tags.iter().map(|tag| tag.id).collect::<Vec<_>>(),
        [2, 3, 1, 0]
    );
    assert_eq!(
        copy.iter().map(|tag| tag.id).collect::<Vec<_>>(),
        [2, 3, 2, 1, 0]
    );
    assert!(tags.remove(1, 1).is_none());
}

#[test]
fn devices_are_told_where_the_pieces_are() {
    on_a_machine(|| {
        let m = chain_of(&[10, 3000]);
        let segments: Vec<_> = m.dma_segments().collect();
        assert_eq!(segments.iter().map(|(_, len)| len).sum::<usize>(), 3010);
        let first = m.next().unwrap().data().as_ptr() as u64;
        assert_eq!(segments[0].0.as_u64(), first);
        let mut m = Mbuf::getcl(How::NoWait).unwrap();
        m.reserve_front(2);
        let (addr, room) = m.dma_receive();
        assert_eq!((addr.as_u64() % 2048, room), (2, 2046));
    });
}

#[test]
fn checksums_do_not_depend_on_how_the_bytes_are_cut() {
    on_a_machine(|| {
        let whole = chain_of(&[700]);
        let cut = chain_of(&[1, 3, 300, 0, 15, 381]);
        for (end, skip) in [(700, 0), (700, 20), (699, 33), (21, 20), (20, 20), (10, 20)] {
            assert_eq!(cut.in_cksum_skip(end, skip), whole.in_cksum_skip(end, skip));
        }
    });
}

#[test]
fn netstat_m_counts_what_is_in_use() {
    on_a_machine(|| {
        let before = MbufStat::snapshot();
        let held = [Mbuf::getcl(How::NoWait), Mbuf::get(How::NoWait)];
        let big = Mbuf::getjcl(How::NoWait, ClusterSize::K9);
        let now = MbufStat::snapshot();
        assert_eq!(now.mbuf.current, before.mbuf.current + 3);
        assert_eq!(now.packet.current, before.packet.current + 1);
        assert_eq!(now.cluster.current, before.cluster.current + 1);
        assert_eq!(now.jumbo9.current, before.jumbo9.current + 1);
        drop((held, big));
    });
}

/// What may be done to a packet.
#[derive(Clone, Debug)]
enum Op {
    New(usize),
    Prepend(usize),
    Pullup(usize),
    TrimFront(usize),
    TrimBack(usize),
    Append(usize),
    Copyback(usize, usize),
    Copym(usize, usize),
    Dup,
    Split(usize),
    Join(Index),
    Defrag,
    Unshare,
    Write(usize),
    Drop,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![
        0_usize..300,
        0_usize..5000,
        Just(0),
        Just(MHLEN),
        Just(MCLBYTES)
    ];
    let small = 0_usize..100;
    prop_oneof![
        len.clone().prop_map(Op::New),
        small.clone().prop_map(Op::Prepend),
        (0_usize..400).prop_map(Op::Pullup),
        len.clone().prop_map(Op::TrimFront),
        len.clone().prop_map(Op::TrimBack),
        len.clone().prop_map(Op::Append),
        (len.clone(), small.clone()).prop_map(|(at, n)| Op::Copyback(at, n)),
        (len.clone(), len.clone()).prop_map(|(at, n)| Op::Copym(at, n)),
        Just(Op::Dup),
        len.prop_map(Op::Split),
        any::<Index>().prop_map(Op::Join),
        Just(Op::Defrag),
        Just(Op::Unshare),
        small.prop_map(Op::Write),
        Just(Op::Drop),
    ]
}

/// Packets beside what their bytes should be.
#[derive(Default)]
struct Model {
    packets: Vec<(Mbuf, Vec<u8>)>,
    fill: u8,
}

impl Model {
    fn some_bytes(&mut self, n: usize) -> Vec<u8> {
        self.fill = self.fill.wrapping_add(1);
        let fill = self.fill;
        (0..n).map(|i| fill.wrapping_add(i as u8)).collect()
    }

    fn apply(&mut self, op: Op, pick: &Index) {
        if let Op::New(n) = op {
            let bytes = self.some_bytes(n);
            let m = Mbuf::from_bytes(&bytes, How::NoWait).unwrap();
            self.packets.push((m, bytes));
            return;
        }
        if self.packets.is_empty() {
            return;
        }
        let (mut m, mut model) = self.packets.swap_remove(pick.index(self.packets.len()));
        match op {
            Op::New(_) => unreachable!("handled above"),
            Op::Prepend(n) => {
                let head = self.some_bytes(n);
                m = m.prepend(n, How::NoWait).unwrap();
                assert!(m.len() >= n);
                // Room before the data was ours to write, or is a fresh mbuf.
                if n > 0 {
                    m.data_mut()[..n].copy_from_slice(&head);
                }
                model.splice(..0, head);
            }
            Op::Pullup(n) => match m.pullup(n) {
                Ok(pulled) => {
                    assert!(pulled.len() >= n);
                    m = pulled;
                }
                Err(Short) => {
                    assert!(n > model.len());
                    return;
                }
            },
            Op::TrimFront(n) => {
                m.trim_front(n);
                model.drain(..n.min(model.len()));
            }
            Op::TrimBack(n) => {
                m.trim_back(n);
                model.truncate(model.len().saturating_sub(n));
            }
            Op::Append(n) => {
                let more = self.some_bytes(n);
                assert!(m.append(&more));
                model.extend(more);
            }
            Op::Copyback(at, n) => {
                let new = self.some_bytes(n);
                if m.copyback(at, &new, How::NoWait) {
                    if model.len() < at + n {
                        model.resize(at + n, 0);
                    }
                    model[at..at + n].copy_from_slice(&new);
                }
            }
            Op::Copym(at, n) => {
                let at = at.min(model.len());
                let n = n.min(model.len() - at);
                let mut copy = m.copym(at, n, How::NoWait).unwrap();
                if !copy.has_pkthdr() {
                    let mut packet = Mbuf::gethdr(How::NoWait).unwrap();
                    packet.set_next(Some(copy));
                    packet.fixhdr();
                    copy = packet;
                }
                self.packets.push((copy, model[at..at + n].to_vec()));
            }
            Op::Dup => self
                .packets
                .push((m.dup(How::NoWait).unwrap(), model.clone())),
            Op::Split(at) => match m.split(at, How::NoWait) {
                Some(tail) => self.packets.push((tail, model.split_off(at))),
                None => assert!(at >= model.len()),
            },
            Op::Join(other) => {
                if !self.packets.is_empty() {
                    let other = other.index(self.packets.len());
                    let (other, bytes) = self.packets.swap_remove(other);
                    m.cat_pkt(other);
                    model.extend(bytes);
                }
            }
            Op::Defrag => m = m.defrag(How::NoWait).unwrap(),
            Op::Unshare => {
                m = m.unshare(How::NoWait).unwrap();
                assert!(m.iter().all(Mbuf::writable));
            }
            Op::Write(at) => {
                if at < m.len() && m.writable() {
                    m.data_mut()[at] ^= 0x55;
                    model[at] ^= 0x55;
                }
            }
            Op::Drop => return,
        }
        self.packets.push((m, model));
    }

    fn check(&self) {
        for (m, model) in &self.packets {
            assert_eq!(bytes(m), *model);
            assert_eq!(m.pkt_len(), model.len());
            assert_eq!(m.iter().filter(|m| m.has_pkthdr()).count(), 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 150 }))]

    #[test]
    fn any_sequence_of_operations_does_to_packets_what_it_does_to_their_bytes(
        ops in proptest::collection::vec((op(), any::<Index>()), 1..60),
    ) {
        on_a_machine(|| {
            let mut model = Model::default();
            for (op, pick) in ops {
                model.apply(op, &pick);
                model.check();
            }
        });
    }

    #[test]
    fn bytes_copied_out_are_those_at_the_offset(
        lens in proptest::collection::vec(0_usize..600, 1..8),
        at in 0_usize..3000,
        n in 0_usize..2000,
    ) {
        on_a_machine(|| {
            let m = chain_of(&lens);
            let all = pattern(lens.iter().sum());
            let mut out = vec![0; n];
            let fits = at + n <= all.len();
            assert_eq!(m.copydata(at, &mut out), fits || n == 0);
            if fits {
                assert_eq!(out, all[at..at + n]);
            }
        });
    }
}
