use super::*;
use crate::impair::Loss;
use std::sync::atomic::{AtomicU64, Ordering};
use sys::kern::kern_mbuf::MbufStat;
use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use sys::machine::hosted::{Machine, pump};
use sys::net::if_ethersubr::{ETHERTYPE_IP, ether_output};
use sys::net::netisr::{NetisrDispatch, NetisrHandler, NetisrInfo, NetisrPolicy, NetisrProto};

/// Takes what arrives for IP and keeps it.
#[derive(Default)]
struct Sink {
    packets: Mutex<Vec<(i64, Vec<u8>)>>,
    checked: AtomicU64,
}

impl NetisrHandler for Sink {
    fn input(&self, _vnet: &Arc<Vnet>, _epoch: &NetEpoch, m: Mbuf) {
        if m.pkthdr().csum_flags.contains(CsumFlags::L4_VALID) {
            self.checked.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = m.segments().flatten().copied().collect();
        let now = sbinuptime().as_us();
        lock(&self.packets).push((now, bytes));
    }
}

struct Ends {
    wire: Wire,
    a: Arc<Ifnet>,
    b: Arc<Ifnet>,
    sink: Arc<Sink>,
}

/// Two bare instances with a wire, on a machine of their own.
fn joined(config: WireConfig, body: impl FnOnce(&Ends)) {
    let machine = Machine::builder().seed(config.seed).quiet();
    machine.run(|| {
        let start = MbufStat::snapshot().in_use();
        let (va, vb) = (Vnet::new("a"), Vnet::new("b"));
        let sink = Arc::new(Sink::default());
        let info = NetisrInfo {
            name: "ip",
            proto: NetisrProto::Ip,
            policy: NetisrPolicy::Flow,
            dispatch: NetisrDispatch::Default,
        };
        let handler: Arc<dyn NetisrHandler> = sink.clone();
        assert!(vb.netisr_register(info, handler).is_ok());
        let wire = Wire::new(config);
        let (a, b) = wire.connect(&va, &vb);
        for ifp in [&a, &b] {
            ifp.change_flags(IfFlags::UP, IfFlags::empty()).unwrap();
        }
        body(&Ends { wire, a, b, sink });
        pump(sbinuptime() + Sbintime::from_s(2));
        va.destroy();
        vb.destroy();
        assert_eq!(start, MbufStat::snapshot().in_use(), "mbufs in use");
    });
}

impl Ends {
    fn send(&self, payload: &[u8]) {
        let m = Mbuf::from_bytes(payload, How::NoWait).unwrap();
        self.send_mbuf(m);
    }

    fn send_mbuf(&self, m: Mbuf) {
        let epoch = NetEpoch::enter();
        let to = self.b.lladdr();
        ether_output(&self.a, &epoch, m, to, ETHERTYPE_IP).unwrap();
    }

    fn arrived(&self) -> Vec<(i64, Vec<u8>)> {
        pump(sbinuptime() + Sbintime::from_s(1));
        std::mem::take(&mut *lock(&self.sink.packets))
    }
}

#[test]
fn a_frame_arrives_whole_after_the_links_delay() {
    let mut config = WireConfig::default();
    config.link.delay = Duration::from_millis(10);
    joined(config, |ends| {
        let before = sbinuptime().as_us();
        let payload: Vec<u8> = (0..1200).map(|i| i as u8).collect();
        ends.send(&payload);
        let arrived = ends.arrived();
        assert_eq!(arrived.len(), 1);
        assert_eq!(arrived[0].1, payload);
        let took = arrived[0].0 - before;
        assert!((10_000..10_500).contains(&took), "{took} us");
        assert_eq!(ends.b.counters.ipackets.fetch(), 1);
    });
}

#[test]
fn short_frames_are_padded_as_ethernet_demands() {
    joined(WireConfig::default(), |ends| {
        ends.send(&[7; 10]);
        assert_eq!(ends.arrived()[0].1.len(), MIN_FRAME - ETHER_HDR_LEN);
    });
}

#[test]
fn a_hook_that_lets_other_cpus_run_is_waited_for() {
    joined(WireConfig::default(), |ends| {
        ends.wire.set_hook(Some(Box::new(|_, _, _| {
            // As a hook does that looks at the clock, or takes a lock.
            (0..3).for_each(|_| cpu_spinwait());
            Verdict::Pass
        })));
        let senders = [0, 1].map(|cpu| {
            let (a, to) = (ends.a.clone(), ends.b.lladdr());
            kthread_add("sends", Pri::PUSER, Some(cpu), move || {
                for _ in 0..50 {
                    let m = Mbuf::from_bytes(&[0; 100], How::NoWait).unwrap();
                    let epoch = NetEpoch::enter();
                    ether_output(&a, &epoch, m, to, ETHERTYPE_IP).unwrap();
                }
            })
        });
        senders.into_iter().for_each(ThreadHandle::join);
        assert_eq!(ends.arrived().len(), 100);
    });
}

#[test]
fn a_hook_sees_changes_and_drops_frames() {
    joined(WireConfig::default(), |ends| {
        ends.wire.set_hook(Some(Box::new(|dir, number, frame| {
            assert_eq!(dir, Dir::AtoB);
            frame[14] = number as u8;
            match number {
                2 => Verdict::Drop,
                _ => Verdict::Pass,
            }
        })));
        for _ in 0..3 {
            ends.send(&[0; 100]);
        }
        let marks: Vec<u8> = ends.arrived().iter().map(|(_, p)| p[0]).collect();
        assert_eq!(marks, [1, 3]);
        assert_eq!(ends.wire.stat(Dir::AtoB).hook_drops, 1);
    });
}

#[test]
fn losses_are_the_same_for_the_same_seed() {
    let run = |seed| {
        let mut config = WireConfig {
            seed,
            ..WireConfig::default()
        };
        config.link.loss = Loss::Random(0.3);
        let mut marks = Vec::new();
        joined(config, |ends| {
            for i in 0..100 {
                ends.send(&[i; 100]);
            }
            marks = ends.arrived().iter().map(|(_, p)| p[0]).collect();
        });
        marks
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn an_injected_frame_arrives_at_once_and_unspoilt() {
    let mut config = WireConfig::default();
    config.link.loss = Loss::Every(1);
    joined(config, |ends| {
        let mut frame = vec![0; 60];
        frame[..6].copy_from_slice(&ends.b.lladdr());
        frame[12] = 8;
        ends.wire.inject(Dir::AtoB, &frame);
        ends.send(&[1; 100]);
        let arrived = ends.arrived();
        assert_eq!(arrived.len(), 1);
        assert_eq!(arrived[0].1, frame[14..]);
    });
}

#[test]
fn a_pulled_plug_is_seen_by_both_interfaces_and_loses_frames() {
    joined(WireConfig::default(), |ends| {
        ends.wire.set_link_up(false);
        assert_eq!(ends.a.link_state(), LinkState::Down);
        ends.send(&[1; 100]);
        assert!(ends.arrived().is_empty());
        ends.wire.set_link_up(true);
        assert_eq!(ends.b.link_state(), LinkState::Up);
        ends.send(&[2; 100]);
        assert_eq!(ends.arrived().len(), 1);
    });
}

#[test]
fn the_link_may_change_in_the_middle_of_a_test() {
    joined(WireConfig::default(), |ends| {
        ends.wire
            .change_link(Dir::AtoB, |link| link.duplicate = 1.0);
        ends.send(&[1; 100]);
        assert_eq!(ends.arrived().len(), 2);
        ends.wire
            .change_link(Dir::AtoB, |link| link.duplicate = 0.0);
        ends.send(&[1; 100]);
        assert_eq!(ends.arrived().len(), 1);
    });
}

#[test]
fn capabilities_become_the_interfaces_hwassist() {
    joined(WireConfig::offloading(), |ends| {
        let assist = ends.a.hwassist();
        assert!(assist.contains(CsumFlags::IP_TCP | CsumFlags::IP_UDP));
        assert!(assist.intersects(CsumFlags::TSO));
    });
    joined(WireConfig::default(), |ends| {
        assert!(ends.a.hwassist().is_empty());
    });
}

#[test]
fn a_frame_longer_than_the_mtu_does_not_cross() {
    joined(WireConfig::default(), |ends| {
        let big = Mbuf::from_bytes(&[0; 1600], How::NoWait).unwrap();
        ends.send_mbuf(big);
        assert!(ends.arrived().is_empty());
        assert_eq!(ends.wire.stat(Dir::AtoB).oversized, 1);
    });
}
