//! What a datagram costs: both ends in one thread, joined by a driver that only hands packets over.
//!
//! Run with `cargo test --release -p netinet --test cost -- --ignored --nocapture`.

mod common;

use common::{ADDR_B, pattern};
use netinet::in_control::{AddrArgs, in_aifaddr, len_mask};
use netinet::vnet::{InetVnet, inet_attach};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Instant;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::Machine;
use sys::mbuf::{CsumFlags, Mbuf, MbufQueue};
use sys::net::if_loop::loop_attach;
use sys::net::ifnet::{IfCap, IfDriver, IfFlags, Ifnet, IfnetInit, LinkState};
use sys::net::vnet::Vnet;
use sys::socket::{AF_INET, MsgFlags, SockAddr, SockType};

/// One end of a cable without length.
struct Cable {
    waiting: Mutex<MbufQueue>,
    far: OnceLock<Weak<Ifnet>>,
}

struct End(Arc<Cable>);

impl IfDriver for End {
    fn transmit(&self, _ifp: &Ifnet, mut m: Mbuf) -> Result<(), Errno> {
        let far = self
            .0
            .far
            .get()
            .and_then(Weak::upgrade)
            .ok_or(Errno::ENETDOWN)?;
        let hdr = m.pkthdr_mut();
        hdr.rcvif = far.if_index;
        if hdr.csum_flags.intersects(CsumFlags::DELAY_DATA) {
            hdr.csum_flags = CsumFlags::IP_CHECKED
                | CsumFlags::IP_VALID
                | CsumFlags::DATA_VALID
                | CsumFlags::PSEUDO_HDR;
            hdr.csum_data = 0xffff;
        } else {
            hdr.csum_flags = CsumFlags::empty();
        }
        self.0.waiting.lock().unwrap().push(m);
        Ok(())
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::empty());
        Ok(())
    }
}

impl Cable {
    /// Hands over what was sent.
    fn deliver(&self, epoch: &NetEpoch) {
        let mut q = std::mem::take(&mut *self.waiting.lock().unwrap());
        if let Some(far) = self.far.get().and_then(Weak::upgrade) {
            far.if_input_batch(epoch, &mut q);
        }
    }
}

fn host(caps: IfCap, last: u8) -> (Arc<InetVnet>, Arc<Ifnet>, Arc<Cable>) {
    let vnet = Vnet::new(&format!("host{last}"));
    loop_attach(&vnet);
    let inet = inet_attach(&vnet).unwrap();
    let cable = Arc::new(Cable {
        waiting: Mutex::default(),
        far: OnceLock::new(),
    });
    let init = IfnetInit {
        capabilities: caps,
        capenable: caps,
        ..IfnetInit::ether("cable", u32::from(last), [2, 0, 0, 0, 0, last])
    };
    let ifp = vnet.if_attach(init, Arc::new(End(cable.clone())));
    ifp.set_link_state(LinkState::Up);
    let args = AddrArgs {
        netmask: Some(len_mask(24)),
        ..AddrArgs::default()
    };
    (inet, ifp, cable)
        .also(|(inet, ifp, _)| in_aifaddr(inet, ifp, [10, 0, 0, last].into(), &args).unwrap())
}

trait Also: Sized {
    fn also(self, f: impl FnOnce(&Self)) -> Self {
        f(&self);
        self
    }
}

impl<T> Also for T {}

fn datagrams(caps: IfCap, len: usize, batch: usize) -> f64 {
    Machine::builder().realtime().quiet().run(|| {
        let (a, b) = (host(caps, 1), host(caps, 2));
        a.2.far.set(Arc::downgrade(&b.1)).unwrap();
        b.2.far.set(Arc::downgrade(&a.1)).unwrap();
        let socket = |inet: &Arc<InetVnet>| {
            SocketHandle::socket(&inet.vnet, AF_INET, SockType::Dgram, 0).unwrap()
        };
        let (tx, rx) = (socket(&a.0), socket(&b.0));
        rx.bind(&SockAddr::v4(ADDR_B, 7)).unwrap();
        tx.connect(&SockAddr::v4(ADDR_B, 7)).unwrap();
        let data = pattern(len);
        let mut buffer = vec![0; len];
        // Resolve first.
        tx.send(&data, MsgFlags::empty()).unwrap();
        for _ in 0..4 {
            let epoch = NetEpoch::enter();
            a.2.deliver(&epoch);
            b.2.deliver(&epoch);
        }
        rx.recv(&mut buffer, MsgFlags::DONTWAIT).unwrap();
        let mut best = f64::MAX;
        for _ in 0..7 {
            let rounds = 200_000 / batch;
            let start = Instant::now();
            for _ in 0..rounds {
                for _ in 0..batch {
                    tx.send(&data, MsgFlags::empty()).unwrap();
                }
                {
                    let epoch = NetEpoch::enter();
                    a.2.deliver(&epoch);
                }
                for _ in 0..batch {
                    assert_eq!(rx.recv(&mut buffer, MsgFlags::DONTWAIT), Ok(len));
                }
            }
            best = best.min(start.elapsed().as_nanos() as f64 / (rounds * batch) as f64);
        }
        assert_eq!(buffer, data);
        drop((tx, rx));
        for (inet, _, _) in [a, b] {
            inet.destroy();
            inet.vnet.destroy();
        }
        best
    })
}

#[test]
#[ignore = "a measurement"]
fn datagrams_of_18_bytes() {
    let offload = IfCap::TXCSUM | IfCap::RXCSUM;
    for (name, caps) in [
        ("checksums in software", IfCap::empty()),
        ("checksums offloaded", offload),
    ] {
        for batch in [1, 16, 32] {
            println!(
                "udp 18 B, {name}, batches of {batch}: {:.0} ns",
                datagrams(caps, 18, batch)
            );
        }
    }
    println!(
        "udp 1448 B, checksums in software: {:.0} ns",
        datagrams(IfCap::empty(), 1448, 16)
    );
}
