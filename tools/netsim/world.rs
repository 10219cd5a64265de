//! Two stacks on a simulated wire, ready to talk.

use crate::wire::{Wire, WireConfig};
use core::net::Ipv4Addr;
use netinet::in_control::{AddrArgs, in_aifaddr, len_mask};
use netinet::vnet::{InetVnet, inet_attach};
use std::sync::Arc;
use sys::kern::kern_mbuf::MbufStat;
use sys::machine::hosted::Machine;
use sys::net::if_loop::loop_attach;
use sys::net::ifnet::Ifnet;
use sys::net::vnet::Vnet;
use sys::time::Sbintime;

/// Address of the first stack.
pub const ADDR_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Address of the second.
pub const ADDR_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Longest that a connection lingers: 2 MSL, with some to spare.
const LINGER: Sbintime = Sbintime::from_s(1300);

/// One stack with its end of the wire.
pub struct Host {
    /// The instance.
    pub vnet: Arc<Vnet>,
    /// Its Internet protocols.
    pub inet: Arc<InetVnet>,
    /// Its end of the wire.
    pub ifp: Arc<Ifnet>,
    /// Its loopback.
    pub lo: Arc<Ifnet>,
    /// Its address.
    pub addr: Ipv4Addr,
}

/// Two stacks, 10.0.0.1/24 and 10.0.0.2/24, and the wire between them.
pub struct World {
    /// 10.0.0.1.
    pub a: Host,
    /// 10.0.0.2.
    pub b: Host,
    /// The wire; the first way is from `a` to `b`.
    pub wire: Wire,
}

impl World {
    /// Makes a machine of two CPUs and a world on it, runs `body`, and checks that all mbufs come back.
    ///
    /// The machine's seed is the wire's, so that a test that fails replays.
    pub fn run<T>(config: WireConfig, body: impl FnOnce(&World) -> T) -> T {
        let machine = Machine::builder().seed(config.seed).cpus(2).quiet();
        machine.run(move || {
            let start = MbufStat::snapshot().in_use();
            let world = World::new(config);
            let result = body(&world);
            world.destroy();
            let end = MbufStat::snapshot().in_use();
            assert_eq!(start, end, "mbufs and clusters in use before and after");
            result
        })
    }

    /// A world on the machine that runs already.
    pub fn new(config: WireConfig) -> World {
        let wire = Wire::new(config);
        let (a, b) = (Vnet::new("a"), Vnet::new("b"));
        let lo = (loop_attach(&a), loop_attach(&b));
        let inet = |v: &Arc<Vnet>| inet_attach(v).expect("the first attachment");
        let inets = (inet(&a), inet(&b));
        let ends = wire.connect(&a, &b);
        let host = |vnet, inet, ifp, lo, addr| {
            let host = Host {
                vnet,
                inet,
                ifp,
                lo,
                addr,
            };
            host.configure(&host.lo, Ipv4Addr::LOCALHOST, 8);
            host.configure(&host.ifp, addr, 24);
            host
        };
        World {
            a: host(a, inets.0, ends.0, lo.0, ADDR_A),
            b: host(b, inets.1, ends.1, lo.1, ADDR_B),
            wire,
        }
    }

    /// Lets what lingers expire, then takes both stacks apart.
    pub fn destroy(self) {
        sys::machine::hosted::pump(sys::machine::sbinuptime() + LINGER);
        self.wire.set_hook(None);
        for host in [&self.a, &self.b] {
            host.inet.destroy();
            host.vnet.destroy();
        }
    }
}

impl Host {
    /// Gives an interface an address.
    pub fn configure(&self, ifp: &Arc<Ifnet>, addr: Ipv4Addr, mask_len: u8) {
        let args = AddrArgs {
            netmask: Some(len_mask(mask_len)),
            ..AddrArgs::default()
        };
        in_aifaddr(&self.inet, ifp, addr, &args)
            .unwrap_or_else(|e| panic!("{addr} on {}: {e}", ifp.if_xname));
    }
}
