//! The rings, with registers that keep what is written and a test in the place of the hardware.

use super::*;
use crate::e1000::e1000_hw::MacType;
use std::vec::Vec;
use sys::machine::bus_dma::DmaMem;
use sys::machine::bus_space::Mmio;
use sys::machine::hosted::Machine;

const NDESC: usize = 32;
/// The 8254x's window.
const WINDOW: usize = 0x2_0000;

struct Rig {
    hw: Arc<E1000Hw>,
    tx: EmTxq,
    rx: EmRxq,
    /// What packets to be sent consist of.
    mem: DmaMem,
}

fn on_a_machine(test: impl FnOnce(Rig) + Send + 'static) {
    Machine::builder().run(move || {
        let hw = Arc::new(E1000Hw::new(Mmio::in_memory(WINDOW), MacType::E82540));
        let mut tx = EmTxq::new(Arc::clone(&hw), DmaRing::alloc(NDESC, 128).unwrap());
        let mut rx = EmRxq::new(Arc::clone(&hw), DmaRing::alloc(NDESC, 128).unwrap());
        tx.reset();
        rx.reset();
        let mem = DmaMem::alloc(4096, 4096, 0).unwrap();
        test(Rig { hw, tx, rx, mem });
    });
}

fn packet<'a>(segs: &'a [(DmaAddr, usize)], csum_flags: CsumFlags, pidx: usize) -> PktInfo<'a> {
    PktInfo {
        segs,
        len: segs.iter().map(|seg| seg.1).sum(),
        csum_flags,
        l2hlen: 14,
        l3hlen: 20,
        l4hlen: 32,
        tso_segsz: 0,
        vtag: None,
        pidx,
    }
}

impl Rig {
    /// Descriptor `i` as the hardware reads it.
    fn sent(&self, i: usize) -> TxDesc {
        self.tx.ring.read(i)
    }

    /// The hardware has sent all up to descriptor `i`.
    fn complete(&self, i: usize) {
        let mut desc = self.sent(i);
        assert_ne!(desc.lower & TXD_CMD_RS, 0, "nobody asked for a report");
        desc.upper |= TXD_STAT_DD;
        self.tx.ring.write(i, desc);
    }

    /// The hardware has written a frame into descriptors from `at` on, so many bytes into each.
    fn received(&self, at: usize, lens: &[u16], errors: u8) {
        for (n, &length) in lens.iter().enumerate() {
            let end = n + 1 == lens.len();
            let desc = RxDesc {
                addr: 0,
                length: length.to_le(),
                csum: 0,
                status: RXD_STAT_DD | if end { RXD_STAT_EOP } else { 0 },
                errors: if end { errors } else { 0 },
                special: 0,
            };
            self.rx.ring.write((at + n) % NDESC, desc);
        }
    }
}

#[test]
fn a_packet_without_work_for_the_hardware_is_one_descriptor_for_each_piece() {
    on_a_machine(|mut rig| {
        let segs = [(rig.mem.addr(), 54), (rig.mem.addr(), 1000)];
        let pidx = rig
            .tx
            .txd_encap(&packet(&segs, CsumFlags::empty(), 0))
            .unwrap();
        assert_eq!(pidx, 2);
        let data = TXD_CMD_DEXT | TXD_DTYP_D | TXD_CMD_IFCS;
        assert_eq!(rig.sent(0).lower, data | 54);
        assert_eq!(rig.sent(1).lower, data | TXD_CMD_EOP | 1000);
        assert_eq!(rig.sent(0).addr, rig.mem.addr().as_u64());
        assert_eq!(rig.sent(1).upper, 0);
        assert_eq!(
            rig.hw.read(TDT),
            0,
            "the hardware knows before it is told to"
        );
        rig.tx.txd_flush(pidx);
        assert_eq!(rig.hw.read(TDT), 2);
    });
}

#[test]
fn only_the_last_packet_before_a_tail_write_is_reported_and_stands_for_all() {
    on_a_machine(|mut rig| {
        let segs = [(rig.mem.addr(), 60)];
        let mut pidx = 0;
        for _ in 0..3 {
            pidx = rig
                .tx
                .txd_encap(&packet(&segs, CsumFlags::empty(), pidx))
                .unwrap();
        }
        rig.tx.txd_flush(pidx);
        assert_eq!(rig.sent(0).lower & TXD_CMD_RS, 0);
        assert_eq!(rig.sent(1).lower & TXD_CMD_RS, 0);
        assert_eq!(rig.tx.txd_credits_update(), 0);
        rig.complete(2);
        assert_eq!(rig.tx.txd_credits_update(), 3);
        assert_eq!(rig.tx.txd_credits_update(), 0);
    });
}

#[test]
fn a_checksum_context_is_written_once_for_packets_of_a_kind() {
    on_a_machine(|mut rig| {
        let segs = [(rig.mem.addr(), 200)];
        let tcp = CsumFlags::IP | CsumFlags::IP_TCP;
        let udp = CsumFlags::IP | CsumFlags::IP_UDP;
        let mut pidx = 0;
        let mut used = Vec::new();
        for flags in [tcp, tcp, udp, tcp] {
            let next = rig.tx.txd_encap(&packet(&segs, flags, pidx)).unwrap();
            used.push(next - pidx);
            pidx = next;
        }
        assert_eq!(used, [2, 1, 2, 2]);
        // 8254x SDM §3.3.6: the IP sum stands at 14 + 10 and covers 14 to 33, TCP's at 34 + 16 and covers 34 to the end.
        let context = rig.sent(0);
        assert_eq!(context.addr, 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40);
        assert_eq!(context.lower, TXD_CMD_DEXT | TXD_CMD_IP | TXD_CMD_TCP);
        assert_eq!(rig.sent(1).upper, TXD_POPTS_IXSM | TXD_POPTS_TXSM);
        let context = rig.sent(3);
        assert_eq!(context.addr >> 40, 40, "UDP's sum stands at 34 + 6");
        assert_eq!(context.lower & TXD_CMD_TCP, 0);
    });
}

#[test]
fn a_tso_packet_has_its_own_context_and_ends_in_a_small_descriptor() {
    on_a_machine(|mut rig| {
        let segs = [(rig.mem.addr(), 66), (rig.mem.addr(), 4000)];
        let mut tso = packet(&segs, CsumFlags::IP_TSO | CsumFlags::IP_TCP, 0);
        tso.tso_segsz = 1448;
        let pidx = rig.tx.txd_encap(&tso).unwrap();
        assert_eq!(pidx, 4);
        let context = rig.sent(0);
        assert_eq!(
            context.lower,
            TXD_CMD_DEXT | TXD_CMD_IP | TXD_CMD_TCP | TXD_CMD_TSE | 4000
        );
        assert_eq!(context.upper, 66 << 8 | 1448 << 16);
        let lens: Vec<u32> = (1..4).map(|i| rig.sent(i).lower & 0xf_ffff).collect();
        assert_eq!(lens, [66, 3996, 4]);
        assert_eq!(rig.sent(3).addr, rig.mem.addr().as_u64() + 3996);
        for i in 1..4 {
            assert_ne!(rig.sent(i).lower & TXD_CMD_TSE, 0);
            assert_eq!(rig.sent(i).upper, TXD_POPTS_IXSM | TXD_POPTS_TXSM);
        }
        tso.tso_segsz = 0;
        assert_eq!(rig.tx.txd_encap(&tso), Err(EncapErr::Unsupported));
    });
}

#[test]
fn a_vlan_tag_is_left_to_the_hardware() {
    on_a_machine(|mut rig| {
        let segs = [(rig.mem.addr(), 60)];
        let mut tagged = packet(&segs, CsumFlags::empty(), 0);
        tagged.vtag = Some(0x2005);
        rig.tx.txd_encap(&tagged).unwrap();
        assert_ne!(rig.sent(0).lower & TXD_CMD_VLE, 0);
        assert_eq!(rig.sent(0).upper, 0x2005 << 16);
    });
}

#[test]
fn a_frame_is_taken_when_its_last_buffer_is_filled() {
    on_a_machine(|mut rig| {
        let mut info = RxInfo::default();
        assert_eq!(rig.rx.rxd_pkt_get(30, &mut info), RxGet::Empty);
        // It wraps round the end of the ring.
        rig.received(30, &[2048, 2048, 100], 0);
        let last = rig.rx.ring.read(0);
        rig.rx.ring.write(0, RxDesc { status: 0, ..last });
        assert_eq!(rig.rx.rxd_pkt_get(30, &mut info), RxGet::Empty);
        rig.rx.ring.write(0, last);
        assert_eq!(rig.rx.rxd_pkt_get(30, &mut info), RxGet::Frame);
        let frags: Vec<_> = info.frags[..info.nfrags]
            .iter()
            .map(|f| (f.idx, f.len))
            .collect();
        assert_eq!(frags, [(30, 2048), (31, 2048), (0, 100)]);
        assert_eq!(info.len, 4196);
    });
}

#[test]
fn a_frame_with_an_error_is_bad_and_one_with_a_wrong_checksum_is_left_to_software() {
    on_a_machine(|mut rig| {
        let mut info = RxInfo::default();
        rig.received(0, &[60], RXD_ERR_CE);
        assert_eq!(rig.rx.rxd_pkt_get(0, &mut info), RxGet::Bad);
        assert_eq!(info.nfrags, 1, "its buffer goes back to the ring");
        rig.received(1, &[60], RXD_ERR_TCPE);
        assert_eq!(rig.rx.rxd_pkt_get(1, &mut info), RxGet::Frame);
        assert!(info.csum_flags.is_empty());
    });
}

#[test]
fn a_frame_of_more_buffers_than_there_can_be_is_dropped_to_its_end() {
    on_a_machine(|mut rig| {
        let mut info = RxInfo::default();
        rig.received(0, &[256; 20], 0);
        rig.received(20, &[60], 0);
        assert_eq!(rig.rx.rxd_pkt_get(0, &mut info), RxGet::Bad);
        let head = info.nfrags;
        assert_eq!(rig.rx.rxd_pkt_get(head, &mut info), RxGet::Bad);
        assert_eq!(head + info.nfrags, 20);
        assert_eq!(rig.rx.rxd_pkt_get(20, &mut info), RxGet::Frame);
        assert_eq!((info.nfrags, info.len), (1, 60));
    });
}

#[test]
fn what_the_hardware_says_of_checksums_is_believed_as_far_as_it_goes() {
    let good = CsumFlags::IP_CHECKED | CsumFlags::IP_VALID;
    let data = CsumFlags::DATA_VALID | CsumFlags::PSEUDO_HDR;
    for (status, errors, flags, sum) in [
        (0, 0, CsumFlags::empty(), 0),
        (RXD_STAT_IPCS, 0, good, 0),
        (RXD_STAT_IPCS | RXD_STAT_TCPCS, 0, good | data, 0xffff),
        (RXD_STAT_IPCS | RXD_STAT_UDPCS, 0, good | data, 0xffff),
        (
            RXD_STAT_IPCS | RXD_STAT_TCPCS,
            RXD_ERR_TCPE,
            CsumFlags::empty(),
            0,
        ),
        (
            RXD_STAT_IPCS | RXD_STAT_TCPCS | RXD_STAT_IXSM,
            0,
            CsumFlags::empty(),
            0,
        ),
    ] {
        assert_eq!(
            receive_checksum(status, errors),
            (flags, sum),
            "{status:#x}, {errors:#x}"
        );
    }
}

#[test]
fn a_reset_ring_is_where_the_registers_say() {
    on_a_machine(|rig| {
        let tx = rig.tx.ring.addr().as_u64();
        assert_eq!(u64::from(rig.hw.read(TDBAL)), tx & 0xffff_ffff);
        assert_eq!(u64::from(rig.hw.read(TDBAH)), tx >> 32);
        assert_eq!(rig.hw.read(TDLEN), (NDESC * 16) as u32);
        assert_eq!(rig.hw.read(RDLEN), (NDESC * 16) as u32);
        assert_eq!(rig.tx.head_tail(), (0, 0));
        assert_eq!(rig.rx.head_tail(), (0, 0));
    });
}
