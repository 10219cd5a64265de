//! One stack, one Ethernet interface, and a program that is the network behind it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use netinet::if_ether::arp_set;
use netinet::in_control::{AddrArgs, in_aifaddr, len_mask};
use netinet::netinet6::in6::in6_update_ifa;
use netinet::netinet6::nd6::nd6_set_static;
use netinet::vnet::{InetVnet, inet_attach};
use std::sync::Arc;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::{How, Mbuf};
use sys::net::if_ethersubr::EtherAddr;
use sys::net::if_loop::loop_attach;
use sys::net::ifnet::{IfDriver, Ifnet, IfnetInit, In6Iff, LinkState};
use sys::net::route::{InAddr, RouteSpec, RtFlags};
use sys::net::vnet::Vnet;

fn address(
    inet: &Arc<InetVnet>,
    ifp: &Arc<Ifnet>,
    addr: IpAddr,
    prefix_len: u8,
) -> Result<(), Errno> {
    match addr {
        IpAddr::V4(addr) => {
            let args = AddrArgs {
                netmask: Some(len_mask(prefix_len)),
                ..AddrArgs::default()
            };
            in_aifaddr(inet, ifp, addr, &args)
        }
        // Nobody else is there, so that the address need not be checked.
        IpAddr::V6(addr) => in6_update_ifa(inet, ifp, addr, prefix_len, In6Iff::NODAD),
    }
}

/// A stack with an interface.
pub struct Station {
    /// The instance.
    pub vnet: Arc<Vnet>,
    /// Its Internet protocols.
    pub inet: Arc<InetVnet>,
    /// Its interface.
    pub ifp: Arc<Ifnet>,
}

impl Station {
    /// Makes one on the machine that runs already. The loopback has its addresses, the interface a link, and `driver` is
    /// the network behind it; `prepare` sees the instance before the interface comes.
    pub fn new(
        name: &str,
        prepare: impl FnOnce(&Vnet),
        init: IfnetInit,
        driver: Arc<dyn IfDriver>,
    ) -> Result<Station, Errno> {
        let vnet = Vnet::new(name);
        let lo = loop_attach(&vnet);
        let inet = inet_attach(&vnet)?;
        address(&inet, &lo, Ipv4Addr::LOCALHOST.into(), 8)?;
        prepare(&vnet);
        let ifp = vnet.if_attach(init, driver);
        ifp.set_link_state(LinkState::Up);
        Ok(Station { vnet, inet, ifp })
    }

    /// Gives the interface an address.
    pub fn address(&self, addr: IpAddr, prefix_len: u8) -> Result<(), Errno> {
        address(&self.inet, &self.ifp, addr, prefix_len)
    }

    /// Sends what is for everybody else to a neighbour that need not be asked for.
    pub fn gateway(&self, addr: IpAddr, lladdr: EtherAddr) -> Result<(), Errno> {
        match addr {
            IpAddr::V4(addr) => {
                arp_set(&self.inet, addr, lladdr, false)?;
                let route = default_route(&self.ifp, Ipv4Addr::UNSPECIFIED, addr);
                self.vnet.rib.add(route)
            }
            IpAddr::V6(addr) => {
                nd6_set_static(&self.ifp, addr, lladdr)?;
                let route = default_route(&self.ifp, Ipv6Addr::UNSPECIFIED, addr);
                self.vnet.rib6.add(route)
            }
        }
    }

    /// Hands the stack a frame.
    pub fn inject(&self, frame: &[u8]) {
        let Some(mut m) = Mbuf::from_bytes(frame, How::Wait) else {
            return;
        };
        m.pkthdr_mut().rcvif = self.ifp.if_index;
        let epoch = NetEpoch::enter();
        self.ifp.if_input(&epoch, m);
    }

    /// Takes the stack apart, so that its memory is free for the next.
    pub fn destroy(&self) {
        self.inet.destroy();
        self.vnet.destroy();
    }
}

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
