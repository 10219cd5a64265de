//! The framework over a device that is a pair of vectors.

use super::*;
use crate::kern::kern_mbuf::MbufStat;
use crate::kern::kern_synch::pause_sbt;
use crate::kern::kern_thread::threads;
use crate::kern::subr_epoch::NetEpoch;
use crate::machine::IrqLine;
use crate::machine::hosted::Machine;
use crate::machine::phys_to_virt;
use crate::mbuf::How;
use crate::net::if_ethersubr::{ETHER_HDR_LEN, ETHERTYPE_IP, EtherHeader, ether_output};
use crate::net::netisr::{NetisrDispatch, NetisrHandler, NetisrInfo, NetisrPolicy, NetisrProto};
use std::collections::VecDeque;
use std::sync::Mutex as StdMutex;
use std::vec;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NDESC: usize = 128;

#[derive(Default)]
struct Device {
    /// One entry for each descriptor of a packet: the packet at the last, nothing before.
    tx_ring: VecDeque<Option<Vec<u8>>>,
    wire: Vec<Vec<u8>>,
    tail_writes: usize,
    segments: Vec<usize>,
    last_info: Option<(CsumFlags, u16)>,
    /// Completed descriptors not yet claimed.
    credits: usize,
    /// Whether the device works off its ring.
    stuck: bool,
    rx_bufs: Vec<Option<DmaAddr>>,
    rx_done: VecDeque<(usize, usize, bool)>,
    rx_head: usize,
    rx_tail_writes: usize,
    resets: usize,
    link: bool,
}

#[derive(Clone)]
struct Fake(Arc<StdMutex<Device>>);

struct FakeTxq(Fake);
struct FakeRxq(Fake);

impl Fake {
    fn new() -> Fake {
        Fake(Arc::new(StdMutex::new(Device {
            rx_bufs: vec![None; NDESC],
            link: true,
            ..Device::default()
        })))
    }

    fn with<R>(&self, f: impl FnOnce(&mut Device) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }

    /// Puts a frame into the receive ring, over several buffers of `piece` bytes if need be.
    fn receive(&self, frame: &[u8], piece: usize) {
        self.with(|device| {
            let pieces: Vec<&[u8]> = frame.chunks(piece).collect();
            for (n, bytes) in pieces.iter().enumerate() {
                let at = device.rx_head;
                let addr = device.rx_bufs[at].take().expect("a free descriptor");
                let to = phys_to_virt(addr.as_u64());
                #[expect(unsafe_code, reason = "the device writes memory")]
                // SAFETY: the address came from an mbuf that the ring holds, with room for a piece.
                unsafe {
                    core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
                }
                device
                    .rx_done
                    .push_back((at, bytes.len(), n + 1 == pieces.len()));
                device.rx_head = (at + 1) % NDESC;
            }
        });
    }
}

#[expect(unsafe_code, reason = "the device reads memory")]
fn fetch(segs: &[(DmaAddr, usize)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(addr, len) in segs {
        let from = phys_to_virt(addr.as_u64());
        // SAFETY: the address came from a live mbuf of at least this length.
        bytes.extend_from_slice(unsafe { core::slice::from_raw_parts(from, len) });
    }
    bytes
}

impl IflibTxq for FakeTxq {
    fn txd_encap(&mut self, pi: &PktInfo<'_>) -> Result<usize, EncapErr> {
        let frame = fetch(pi.segs);
        assert_eq!(frame.len(), pi.len);
        self.0.with(|device| {
            device.segments.push(pi.segs.len());
            device.last_info = Some((pi.csum_flags, pi.tso_segsz));
            for _ in 1..pi.segs.len() {
                device.tx_ring.push_back(None);
            }
            device.tx_ring.push_back(Some(frame));
        });
        Ok((pi.pidx + pi.segs.len()) % NDESC)
    }

    fn txd_flush(&mut self, _pidx: usize) {
        self.0.with(|device| {
            device.tail_writes += 1;
            if !device.stuck {
                device.credits += device.tx_ring.len();
                let sent: Vec<Vec<u8>> = device.tx_ring.drain(..).flatten().collect();
                device.wire.extend(sent);
            }
        });
    }

    fn txd_credits_update(&mut self) -> usize {
        self.0.with(|device| core::mem::take(&mut device.credits))
    }

    fn reset(&mut self) {
        self.0.with(|device| {
            device.tx_ring.clear();
            device.credits = 0;
        });
    }

    fn head_tail(&self) -> (u32, u32) {
        (0, 0)
    }
}

impl IflibRxq for FakeRxq {
    fn rxd_pkt_get(&mut self, cidx: usize, ri: &mut RxInfo) -> RxGet {
        self.0.with(|device| {
            *ri = RxInfo::default();
            while let Some((at, len, last)) = device.rx_done.pop_front() {
                assert_eq!(at, (cidx + ri.nfrags) % NDESC);
                ri.frags[ri.nfrags] = RxFrag { idx: at, len };
                ri.nfrags += 1;
                ri.len += len;
                if last {
                    return RxGet::Frame;
                }
            }
            RxGet::Empty
        })
    }

    fn rxd_refill(&mut self, pidx: usize, bufs: &[DmaAddr]) {
        self.0.with(|device| {
            for (n, &buf) in bufs.iter().enumerate() {
                let slot = &mut device.rx_bufs[(pidx + n) % NDESC];
                assert!(
                    slot.is_none(),
                    "a descriptor the hardware owns is overwritten"
                );
                *slot = Some(buf);
            }
        });
    }

    fn rxd_flush(&mut self, _pidx: usize) {
        self.0.with(|device| device.rx_tail_writes += 1);
    }

    fn reset(&mut self) {
        self.0.with(|device| {
            device.rx_bufs = vec![None; NDESC];
            device.rx_done.clear();
            device.rx_head = 0;
        });
    }

    fn head_tail(&self) -> (u32, u32) {
        (0, 0)
    }
}

impl IfTxRx for Fake {
    fn tx_queue_alloc(&self, _q: usize, ndesc: usize) -> Result<Box<dyn IflibTxq>, Errno> {
        assert_eq!(ndesc, NDESC);
        Ok(Box::new(FakeTxq(self.clone())))
    }
    fn rx_queue_alloc(&self, _q: usize, _ndesc: usize) -> Result<Box<dyn IflibRxq>, Errno> {
        Ok(Box::new(FakeRxq(self.clone())))
    }
    fn init(&self, _ifp: &Ifnet, _rx_buf_size: usize) -> Result<(), Errno> {
        self.with(|device| device.resets += 1);
        Ok(())
    }
    fn rx_enable(&self, _ifp: &Ifnet) {}
    fn stop(&self) {}
    fn intr_enable(&self) {}
    fn intr_disable(&self) {}
    fn intr_filter(&self, _v: usize) -> Option<IntrCause> {
        None
    }
    fn update_admin_status(&self) -> Media {
        let active = self.with(|device| device.link);
        Media {
            speed: 1000,
            full_duplex: true,
            active,
        }
    }
    fn set_rxmode(&self, _ifp: &Ifnet) {}
}

/// Keeps what goes up.
#[derive(Default)]
struct Heard(StdMutex<Vec<(Vec<u8>, CsumFlags)>>);

impl NetisrHandler for Heard {
    fn input(&self, _vnet: &Arc<Vnet>, _epoch: &NetEpoch, m: Mbuf) {
        let bytes = m.segments().flat_map(<[u8]>::iter).copied().collect();
        self.0.lock().unwrap().push((bytes, m.pkthdr().csum_flags));
    }
}

struct Rig {
    vnet: Arc<Vnet>,
    ifp: Arc<Ifnet>,
    fake: Fake,
    heard: Arc<Heard>,
    iflib: Arc<Iflib>,
}

fn sctx(unit: u32) -> IflibSharedCtx {
    IflibSharedCtx {
        name: "fake",
        desc: "vectors",
        unit,
        mac: MAC,
        ntxd: (NDESC, NDESC, NDESC),
        nrxd: (NDESC, NDESC, NDESC),
        nrxqs: 1,
        ntxqs: 1,
        tx_nsegments: 8,
        tx_maxsegsize: 8192,
        tx_extra_descriptors: 2,
        tx_tso_segments_max: 8,
        tx_tso_size_max: 65535,
        tx_tso_segsize_max: 4096,
        capabilities: IfCap::TXCSUM | IfCap::TSO4,
        capenable: IfCap::TXCSUM | IfCap::TSO4,
        min_frame: 60,
        max_mtu: 9000,
    }
}

fn rig() -> Rig {
    let vnet = Vnet::new("test");
    let fake = Fake::new();
    let heard = Arc::new(Heard::default());
    let info = NetisrInfo {
        name: "ip",
        proto: NetisrProto::Ip,
        policy: NetisrPolicy::Flow,
        dispatch: NetisrDispatch::Default,
    };
    vnet.netisr_register(info, heard.clone()).unwrap();
    let sctx = sctx(0);
    let (ifp, iflib) = Iflib::attach_parts(&vnet, sctx, Arc::new(fake.clone()), &[]).unwrap();
    ifp.change_flags(IfFlags::UP, IfFlags::empty()).unwrap();
    Rig {
        vnet,
        ifp,
        fake,
        heard,
        iflib,
    }
}

fn packet(len: usize, fill: u8) -> Mbuf {
    Mbuf::from_bytes(&vec![fill; len], How::NoWait).unwrap()
}

fn frame(len: usize, fill: u8) -> Vec<u8> {
    let header = EtherHeader {
        ether_dhost: MAC,
        ether_shost: PEER,
        ether_type: ETHERTYPE_IP,
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(len, fill);
    bytes
}

fn on_a_machine(test: impl FnOnce(Rig) + Send + 'static) {
    Machine::builder().cpus(2).run(move || {
        let before = MbufStat::snapshot().in_use();
        let rig = rig();
        let (vnet, ifp) = (rig.vnet.clone(), rig.ifp.clone());
        test(rig);
        vnet.if_detach(&ifp);
        drop(ifp);
        vnet.destroy();
        assert_eq!(MbufStat::snapshot().in_use(), before, "mbufs leaked");
    });
}

#[test]
fn a_frame_goes_out_as_it_was_given_and_is_freed_when_it_is_gone() {
    on_a_machine(|rig| {
        let epoch = NetEpoch::enter();
        let before = MbufStat::snapshot().in_use();
        ether_output(&rig.ifp, &epoch, packet(1000, 7), PEER, ETHERTYPE_IP).unwrap();
        rig.fake.with(|device| {
            assert_eq!(device.wire.len(), 1);
            assert_eq!(device.wire[0].len(), ETHER_HDR_LEN + 1000);
            assert_eq!(device.wire[0][..6], PEER);
            assert_eq!(device.wire[0][6..12], MAC);
            assert!(device.wire[0][14..].iter().all(|&b| b == 7));
        });
        assert_eq!(MbufStat::snapshot().in_use(), before);
        let data = rig.ifp.data();
        assert_eq!((data.opackets, data.obytes), (1, 1014));
    });
}

#[test]
fn a_runt_is_padded_with_zeros() {
    on_a_machine(|rig| {
        let epoch = NetEpoch::enter();
        ether_output(&rig.ifp, &epoch, packet(20, 0xff), PEER, ETHERTYPE_IP).unwrap();
        rig.fake.with(|device| {
            assert_eq!(device.wire[0].len(), 60);
            assert!(device.wire[0][34..].iter().all(|&b| b == 0));
        });
    });
}

#[test]
fn a_packet_in_too_many_pieces_is_gathered_first() {
    on_a_machine(|rig| {
        let epoch = NetEpoch::enter();
        // Pieces of a size that no two fit into one mbuf.
        let mut m = packet(140, 0);
        for fill in 1..12 {
            let mut piece = Mbuf::get(How::NoWait).unwrap();
            piece.extend_mut(140).fill(fill);
            m.cat(piece);
        }
        m.set_pkt_len(12 * 140);
        ether_output(&rig.ifp, &epoch, m, PEER, ETHERTYPE_IP).unwrap();
        rig.fake.with(|device| {
            assert!(device.segments[0] <= 8);
            let payload: Vec<u8> = (0..12).flat_map(|fill| [fill; 140]).collect();
            assert_eq!(device.wire[0][14..], payload);
        });
        assert_eq!(rig.iflib.txqs[0].counter(2), 1, "mbuf_defrag");
    });
}

#[test]
fn what_is_sent_during_a_receive_batch_shares_one_tail_write() {
    on_a_machine(|rig| {
        let epoch = NetEpoch::enter();
        {
            let _gathering = rig.iflib.gather_answers();
            for _ in 0..10 {
                ether_output(&rig.ifp, &epoch, packet(60, 0), PEER, ETHERTYPE_IP).unwrap();
            }
            rig.fake.with(|device| assert_eq!(device.tail_writes, 0));
        }
        rig.fake.with(|device| {
            assert_eq!(device.tail_writes, 1);
            assert_eq!(device.wire.len(), 10);
        });
    });
}

#[test]
fn a_full_ring_stalls_and_goes_on_when_the_hardware_does() {
    on_a_machine(|rig| {
        let epoch = NetEpoch::enter();
        rig.fake.with(|device| device.stuck = true);
        for _ in 0..300 {
            ether_output(&rig.ifp, &epoch, packet(60, 0), PEER, ETHERTYPE_IP).unwrap();
        }
        assert!(rig.iflib.txqs[0].is_stalled());
        rig.fake.with(|device| {
            device.stuck = false;
            device.credits += device.tx_ring.len();
            let sent: Vec<Vec<u8>> = device.tx_ring.drain(..).flatten().collect();
            device.wire.extend(sent);
        });
        drop(epoch);
        // Nobody interrupts: the timer finds it.
        pause_sbt("test", Sbintime::from_s(3));
        rig.fake.with(|device| assert_eq!(device.wire.len(), 300));
    });
}

#[test]
fn more_than_the_ring_holds_is_dropped_and_counted() {
    on_a_machine(|rig| {
        let epoch = NetEpoch::enter();
        rig.fake.with(|device| device.stuck = true);
        let mut refused = 0;
        for _ in 0..2400 {
            let sent = ether_output(&rig.ifp, &epoch, packet(60, 0), PEER, ETHERTYPE_IP);
            refused += u64::from(sent == Err(Errno::ENOBUFS));
        }
        assert!(refused > 0);
        assert_eq!(rig.ifp.data().oqdrops, refused);
    });
}

#[test]
fn hardware_that_completes_nothing_is_reset() {
    on_a_machine(|rig| {
        rig.fake.with(|device| device.stuck = true);
        ether_output(
            &rig.ifp,
            &NetEpoch::enter(),
            packet(60, 0),
            PEER,
            ETHERTYPE_IP,
        )
        .unwrap();
        pause_sbt("test", Sbintime::from_s(5));
        rig.fake.with(|device| assert_eq!(device.resets, 2));
        assert!(rig.ifp.is_running());
    });
}

#[test]
fn a_tso_packet_starts_from_a_pseudo_header_sum_without_length() {
    on_a_machine(|rig| {
        let epoch = NetEpoch::enter();
        let mut bytes = vec![0u8; 40 + 5000];
        bytes[0] = 0x45;
        bytes[9] = 6;
        bytes[12..16].copy_from_slice(&[10, 0, 2, 15]);
        bytes[16..20].copy_from_slice(&[10, 0, 2, 2]);
        let mut m = Mbuf::getm2(How::NoWait, bytes.len(), true).unwrap();
        assert!(m.append(&bytes));
        let header = m.pkthdr_mut();
        header.l3hlen = 20;
        header.l4hlen = 20;
        header.tso_segsz = 1460;
        header.csum_flags = CsumFlags::IP_TSO | CsumFlags::IP_TCP;
        ether_output(&rig.ifp, &epoch, m, PEER, ETHERTYPE_IP).unwrap();
        rig.fake.with(|device| {
            let frame = &device.wire[0];
            let seed = in_pseudo_of(&frame[26..34]);
            assert_eq!(frame[50..52], seed.to_be_bytes());
            assert_eq!(frame[16..18], 1500u16.to_be_bytes());
            let (flags, segsz) = device.last_info.unwrap();
            assert!(flags.contains(CsumFlags::IP | CsumFlags::IP_TCP | CsumFlags::IP_TSO));
            assert_eq!(segsz, 1460);
        });
    });
}

/// The sum of two addresses and the protocol, the long way.
fn in_pseudo_of(addresses: &[u8]) -> u16 {
    let mut sum: u32 = addresses
        .chunks(2)
        .map(|b| u32::from(u16::from_be_bytes([b[0], b[1]])))
        .sum();
    sum += 6;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn received_frames_reach_their_protocol_small_ones_as_copies() {
    on_a_machine(|rig| {
        rig.fake.receive(&frame(60, 1), 2048);
        rig.fake.receive(&frame(1514, 2), 2048);
        rig.iflib.rxeof(&rig.ifp, 0);
        let heard = rig.heard.0.lock().unwrap();
        assert_eq!(heard.len(), 2);
        assert_eq!(heard[0].0, vec![1; 46]);
        assert_eq!(heard[1].0, vec![2; 1500]);
        assert_eq!(rig.iflib.rxqs[0].counter(3), 1, "copied");
        let data = rig.ifp.data();
        assert_eq!((data.ipackets, data.ibytes), (2, 60 + 1514));
    });
}

#[test]
fn a_frame_over_several_buffers_becomes_one_packet() {
    on_a_machine(|rig| {
        let mut bytes = frame(5000, 0);
        for (n, byte) in bytes.iter_mut().enumerate().skip(ETHER_HDR_LEN) {
            *byte = n as u8;
        }
        rig.fake.receive(&bytes, 2048);
        rig.iflib.rxeof(&rig.ifp, 0);
        let heard = rig.heard.0.lock().unwrap();
        assert_eq!(heard[0].0, bytes[ETHER_HDR_LEN..]);
    });
}

#[test]
fn the_ring_is_refilled_in_batches_and_never_runs_dry() {
    on_a_machine(|rig| {
        let before = rig.fake.with(|device| device.rx_tail_writes);
        for round in 0..100u8 {
            for _ in 0..16 {
                rig.fake.receive(&frame(300, round), 2048);
            }
            rig.iflib.rxeof(&rig.ifp, 0);
        }
        assert_eq!(rig.heard.0.lock().unwrap().len(), 1600);
        let writes = rig.fake.with(|device| device.rx_tail_writes) - before;
        assert!(writes <= 1600 / 32, "{writes} tail writes for 1600 frames");
    });
}

#[test]
fn frames_for_others_runts_and_unknown_protocols_are_counted_where_they_are_dropped() {
    on_a_machine(|rig| {
        let mut other = frame(60, 0);
        other[5] ^= 1;
        rig.fake.receive(&other, 2048);
        let mut unknown = frame(60, 0);
        unknown[12] = 0x77;
        rig.fake.receive(&unknown, 2048);
        rig.fake.receive(&frame(60, 0)[..9], 2048);
        rig.iflib.rxeof(&rig.ifp, 0);
        let data = rig.ifp.data();
        assert_eq!((data.iqdrops, data.noproto, data.ierrors), (1, 1, 1));
        assert!(rig.heard.0.lock().unwrap().is_empty());
    });
}

#[test]
fn the_cable_pulled_is_told_and_so_is_its_return() {
    on_a_machine(|rig| {
        pause_sbt("test", Sbintime::from_ms(100));
        assert_eq!(rig.ifp.link_state(), LinkState::Up);
        rig.fake.with(|device| device.link = false);
        pause_sbt("test", Sbintime::from_s(2));
        assert_eq!(rig.ifp.link_state(), LinkState::Down);
        assert!(!rig.ifp.flags().contains(IfFlags::LOWER_UP));
        rig.fake.with(|device| device.link = true);
        pause_sbt("test", Sbintime::from_s(2));
        assert_eq!(rig.ifp.link_state(), LinkState::Up);
    });
}

#[test]
fn what_waits_when_the_link_goes_is_dropped_and_nothing_more_is_taken_until_it_returns() {
    on_a_machine(|rig| {
        pause_sbt("test", Sbintime::from_ms(100));
        let send = |fill| {
            let epoch = NetEpoch::enter();
            ether_output(&rig.ifp, &epoch, packet(60, fill), PEER, ETHERTYPE_IP)
        };
        // More than there are descriptors.
        rig.fake.with(|device| device.stuck = true);
        for _ in 0..300 {
            send(1).unwrap();
        }
        let described = rig.fake.with(|device| device.tx_ring.len());
        rig.fake.with(|device| device.link = false);
        pause_sbt("test", Sbintime::from_s(1));
        assert_eq!(rig.ifp.link_state(), LinkState::Down);
        assert!(!rig.iflib.txqs[0].is_stalled());
        // `r_drops` counts them.
        assert_eq!(rig.iflib.txqs[0].counter(13), 300 - described as u64);
        assert_eq!(send(2), Err(Errno::ENETDOWN));
        assert_eq!(rig.ifp.data().oqdrops, 1);
        // Hours without link are no reason for the watchdog.
        pause_sbt("test", Sbintime::from_s(3600));
        rig.fake.with(|device| {
            assert_eq!(device.resets, 1);
            device.link = true;
            // What it was told of already, the device sends.
            device.stuck = false;
            device.credits += device.tx_ring.len();
            let sent: Vec<Vec<u8>> = device.tx_ring.drain(..).flatten().collect();
            device.wire.extend(sent);
        });
        pause_sbt("test", Sbintime::from_s(1));
        send(3).unwrap();
        rig.fake.with(|device| {
            assert_eq!(device.resets, 1);
            assert_eq!(device.wire.len(), described + 1);
            assert_eq!(device.wire[described][ETHER_HDR_LEN], 3);
        });
    });
}

#[test]
fn a_frame_that_claims_more_than_its_buffer_holds_is_dropped_and_the_next_one_comes_through() {
    on_a_machine(|rig| {
        rig.fake.receive(&frame(200, 1), 2048);
        rig.fake.with(|device| {
            let lie = device.rx_done.back_mut().unwrap();
            lie.1 = 2049;
        });
        rig.fake.receive(&frame(300, 2), 2048);
        rig.iflib.rxeof(&rig.ifp, 0);
        let heard = rig.heard.0.lock().unwrap();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].0.len(), 300 - ETHER_HDR_LEN);
        assert_eq!(rig.ifp.data().ierrors, 1);
    });
}

#[test]
fn there_may_be_more_interfaces_than_cpus() {
    Machine::builder().cpus(2).run(|| {
        let vnet = Vnet::new("a");
        let interfaces: Vec<_> = (0..3)
            .map(|unit| {
                let line = IrqLine {
                    gsi: 10 + unit,
                    level: true,
                    active_low: true,
                };
                let irqs = [IrqResource::from(line)];
                Iflib::attach(&vnet, sctx(unit), Arc::new(Fake::new()), &irqs).unwrap()
            })
            .collect();
        let names: Vec<_> = threads().iter().map(|td| td.name().to_string()).collect();
        for (unit, ifp) in interfaces.iter().enumerate() {
            let suffix = format!(": fake{unit}:irq0");
            assert!(names.iter().any(|name| name.ends_with(&suffix)), "{suffix}");
            vnet.if_detach(ifp);
        }
        drop(interfaces);
        vnet.destroy();
    });
}
