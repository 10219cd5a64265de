//! The machine under test: one stack, one interface, and a network behind it that is the script.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use netinet::if_ether::arp_set;
use netinet::in_control::{AddrArgs, in_aifaddr, len_mask};
use netinet::netinet6::in6::in6_update_ifa;
use netinet::netinet6::nd6::nd6_set_static;
use netinet::vnet::{InetVnet, inet_attach};
use std::collections::VecDeque;
use std::sync::Arc;
use sys::errno::Errno;
use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_synch::{PSOCK, WChan, wakeup};
use sys::kern::lock_order::Leaf;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::sbinuptime;
use sys::mbuf::{How, Mbuf};
use sys::net::if_ethersubr::{ETHER_HDR_LEN, ETHERTYPE_IP, ETHERTYPE_IPV6, EtherHeader};
use sys::net::if_loop::loop_attach;
use sys::net::ifnet::{IfDriver, IfFlags, Ifnet, IfnetInit, In6Iff, LinkState};
use sys::net::route::{InAddr, RouteSpec, RtFlags};
use sys::net::vnet::Vnet;
use sys::time::Sbintime;

/// Link-layer address of the gateway, behind which everybody is.
const GATEWAY_MAC: [u8; 6] = [0x02, 0x50, 0x44, 0, 0, 2];
const OUR_MAC: [u8; 6] = [0x02, 0x50, 0x44, 0, 0, 1];

/// Addresses and size of the network.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Address of the stack.
    pub local: IpAddr,
    /// Prefix length of its network.
    pub prefix_len: u8,
    /// Address of the gateway.
    pub gateway: IpAddr,
    /// MTU of its interface.
    pub mtu: u32,
}

/// A stack with its interface.
pub struct Testbed {
    /// The instance.
    pub vnet: Arc<Vnet>,
    /// Its Internet protocols.
    pub inet: Arc<InetVnet>,
    ifp: Arc<Ifnet>,
    tun: Arc<Tun>,
}

/// The route to everybody, by the gateway.
fn default_route<A: InAddr>(ifp: &Arc<Ifnet>, any: A, gateway: A) -> RouteSpec<A> {
    RouteSpec {
        dst: any,
        prefix_len: 0,
        gw: Some(gateway),
        ifp: ifp.clone(),
        ifa: None,
        flags: RtFlags::GATEWAY | RtFlags::STATIC,
        mtu: 0,
    }
}

/// A frame and when it crossed the wire.
pub type Timed = (Sbintime, Vec<u8>);

#[derive(Default)]
struct Frames {
    /// Sent by the stack and not yet looked at.
    fresh: VecDeque<Timed>,
    /// How many the stack has sent.
    sent: usize,
    /// All that crossed, either way.
    history: Vec<Timed>,
}

/// The interface's driver: keeps what the stack sends.
struct Tun {
    frames: Mutex<Frames, Leaf>,
}

impl IfDriver for Tun {
    fn transmit(&self, _ifp: &Ifnet, m: Mbuf) -> Result<(), Errno> {
        let mut frame = Vec::with_capacity(m.pkt_len());
        for piece in m.segments() {
            frame.extend_from_slice(piece);
        }
        drop(m);
        let now = sbinuptime();
        let mut frames = self.frames.lock();
        frames.history.push((now, frame.clone()));
        frames.fresh.push_back((now, frame));
        frames.sent += 1;
        drop(frames);
        wakeup(WChan::of(&self.frames));
        Ok(())
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::OACTIVE);
        Ok(())
    }

    fn stop(&self, ifp: &Ifnet) {
        ifp.set_drv_flags(IfFlags::empty(), IfFlags::RUNNING | IfFlags::OACTIVE);
    }
}

impl Testbed {
    /// Makes a stack on the machine that runs already.
    pub fn new(network: &Network) -> Result<Testbed, String> {
        let failed = |what: &str| {
            let what = what.to_string();
            move |e: Errno| format!("{what}: {e}")
        };
        let vnet = Vnet::new("packetdrill");
        let lo = loop_attach(&vnet);
        let inet = inet_attach(&vnet).map_err(failed("the Internet protocols"))?;
        let tun = Arc::new(Tun {
            frames: Mutex::new(Frames::default()),
        });
        let init = IfnetInit {
            mtu: network.mtu,
            ..IfnetInit::ether("tun", 0, OUR_MAC)
        };
        let ifp = vnet.if_attach(init, tun.clone());
        ifp.set_link_state(LinkState::Up);
        let configure = |ifp: &Arc<Ifnet>, addr: Ipv4Addr, prefix_len: u8| {
            let args = AddrArgs {
                netmask: Some(len_mask(prefix_len)),
                ..AddrArgs::default()
            };
            in_aifaddr(&inet, ifp, addr, &args).map_err(failed("its address"))
        };
        configure(&lo, Ipv4Addr::LOCALHOST, 8)?;
        let host = |addr: Ipv6Addr, ifp: &Arc<Ifnet>, prefix_len: u8| {
            // Nobody else is there, so that the address need not be checked.
            match in6_update_ifa(&inet, ifp, addr, prefix_len, In6Iff::NODAD) {
                // The loopback has its own from the beginning.
                Err(Errno::EEXIST) => Ok(()),
                result => result,
            }
            .map_err(failed("its address"))
        };
        host(Ipv6Addr::LOCALHOST, &lo, 128)?;
        match (network.local, network.gateway) {
            (IpAddr::V4(local), IpAddr::V4(gateway)) => {
                configure(&ifp, local, network.prefix_len)?;
                arp_set(&inet, gateway, GATEWAY_MAC, false).map_err(failed("the gateway"))?;
                let route = default_route(&ifp, Ipv4Addr::UNSPECIFIED, gateway);
                vnet.rib.add(route).map_err(failed("the default route"))?;
            }
            (IpAddr::V6(local), IpAddr::V6(gateway)) => {
                host(local, &ifp, network.prefix_len)?;
                nd6_set_static(&ifp, gateway, GATEWAY_MAC).map_err(failed("the gateway"))?;
                let route = default_route(&ifp, Ipv6Addr::UNSPECIFIED, gateway);
                vnet.rib6.add(route).map_err(failed("the default route"))?;
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                return Err("the stack and its gateway are of different families".into());
            }
        }
        // What the stack says of its own accord when an address is new.
        let mut frames = tun.frames.lock();
        *frames = Frames::default();
        drop(frames);
        Ok(Testbed {
            vnet,
            inet,
            ifp,
            tun,
        })
    }

    /// Takes the stack apart, so that its memory is free for the next.
    pub fn destroy(self) {
        self.inet.destroy();
        self.vnet.destroy();
    }

    /// Hands an IP packet to the stack.
    pub fn inject(&self, packet: &[u8]) {
        let header = EtherHeader {
            ether_dhost: OUR_MAC,
            ether_shost: GATEWAY_MAC,
            ether_type: match packet.first() {
                Some(first) if first >> 4 == 6 => ETHERTYPE_IPV6,
                _ => ETHERTYPE_IP,
            },
        };
        let frame = [&header.to_bytes()[..], packet].concat();
        let Some(mut m) = Mbuf::from_bytes(&frame, How::Wait) else {
            return;
        };
        m.pkthdr_mut().rcvif = self.ifp.if_index;
        let now = sbinuptime();
        self.tun.frames.lock().history.push((now, frame));
        let epoch = NetEpoch::enter();
        self.ifp.if_input(&epoch, m);
    }

    /// The next IP packet that the stack sends, or has sent, until `deadline`; and when it did.
    pub fn next_packet(&self, deadline: Sbintime) -> Option<Timed> {
        let mut frames = self.tun.frames.lock();
        loop {
            while let Some((at, frame)) = frames.fresh.pop_front() {
                let header = EtherHeader::parse(&frame);
                let is_ip =
                    |h: &EtherHeader| [ETHERTYPE_IP, ETHERTYPE_IPV6].contains(&h.ether_type);
                if header.as_ref().is_some_and(is_ip) {
                    return Some((at, frame[ETHER_HDR_LEN..].to_vec()));
                }
            }
            let left = deadline - sbinuptime();
            if left <= Sbintime::ZERO {
                return None;
            }
            let chan = WChan::of(&self.tun.frames);
            let (guard, _) = MutexGuard::msleep(frames, chan, PSOCK, "tun", Some(left), false);
            frames = guard;
        }
    }

    /// How many frames the stack has sent, and how many of them `next_packet` has looked at.
    pub fn counts(&self) -> (usize, usize) {
        let frames = self.tun.frames.lock();
        (frames.sent, frames.sent - frames.fresh.len())
    }

    /// All frames that crossed the wire so far, with the time since boot.
    pub fn history(&self) -> Vec<(Duration, Vec<u8>)> {
        let frames = self.tun.frames.lock();
        let timed = frames.history.iter();
        timed
            .map(|(at, frame)| (Duration::from_nanos(at.as_ns() as u64), frame.clone()))
            .collect()
    }
}
