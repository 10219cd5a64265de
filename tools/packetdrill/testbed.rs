//! The machine under test: one stack, one interface, and a network behind it that is the script.

use core::net::IpAddr;
use core::ops::Deref;
use core::time::Duration;
use netsim::station::Station;
use std::collections::VecDeque;
use std::sync::Arc;
use sys::errno::Errno;
use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_synch::{PSOCK, WChan, wakeup};
use sys::kern::lock_order::Leaf;
use sys::machine::sbinuptime;
use sys::mbuf::Mbuf;
use sys::net::if_ethersubr::{ETHER_HDR_LEN, ETHERTYPE_IP, ETHERTYPE_IPV6, EtherHeader};
use sys::net::ifnet::{IfDriver, IfFlags, Ifnet, IfnetInit};
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
    station: Station,
    tun: Arc<Tun>,
}

impl Deref for Testbed {
    type Target = Station;

    fn deref(&self) -> &Station {
        &self.station
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
        let tun = Arc::new(Tun {
            frames: Mutex::new(Frames::default()),
        });
        let init = IfnetInit {
            mtu: network.mtu,
            ..IfnetInit::ether("tun", 0, OUR_MAC)
        };
        let station = Station::new("packetdrill", |_| {}, init, tun.clone())
            .map_err(failed("the Internet protocols"))?;
        if network.local.is_ipv4() != network.gateway.is_ipv4() {
            return Err("the stack and its gateway are of different families".into());
        }
        station
            .address(network.local, network.prefix_len)
            .map_err(failed("its address"))?;
        station
            .gateway(network.gateway, GATEWAY_MAC)
            .map_err(failed("the gateway"))?;
        // What the stack says of its own accord when an address is new.
        let mut frames = tun.frames.lock();
        *frames = Frames::default();
        drop(frames);
        Ok(Testbed { station, tun })
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
        let now = sbinuptime();
        self.tun.frames.lock().history.push((now, frame.clone()));
        self.station.inject(&frame);
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
