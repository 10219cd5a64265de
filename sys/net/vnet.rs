//! One instance of the network stack.
//!
//! FreeBSD: sys/net/vnet.c, sys/net/vnet.h
//! Differs from FreeBSD: an instance is a value; there is no current instance hidden in the thread. Every protocol
//! function is passed the instance it works for in a [`NetCx`].

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use crate::errno::Errno;
use crate::kern::subr_epoch::NetEpoch;
use crate::kern::uipc_domain::HasDomains;
use crate::net::ifnet::{IfDriver, IfEvent, Ifnet, IfnetInit};
use crate::net::netisr::{NetisrHandler, NetisrInfo, NetisrProto};
use crate::net::pfil::PfilHead;
use crate::net::route::Rib;
use crate::protosw::Domain;
use crate::sysctl::SysctlTree;
use crate::time::Ticks;

/// What every function of the stack is passed: which instance, the proof of being in the network epoch, and the time.
#[derive(Clone, Copy)]
pub struct NetCx<'a> {
    /// The stack instance.
    pub vnet: &'a Arc<Vnet>,
    /// Proof that the caller is inside the network epoch.
    pub epoch: &'a NetEpoch,
    /// The time at which this entry into the stack began.
    pub now: Ticks,
}

/// A stack instance: interfaces, routes, filters, protocols and tunables.
pub struct Vnet {
    /// The instance's name ("vnet0" is the first).
    pub name: String,
    /// Its number.
    pub id: u32,
    /// The `net.*` variables of this instance.
    pub sysctl: SysctlTree,
    /// The routing table.
    pub rib: Rib,
    /// Filters at IPv4 input and output.
    pub pfil_inet: PfilHead,
    /// Filters at Ethernet input and output.
    pub pfil_ether: PfilHead,
}

impl Vnet {
    /// Makes an empty instance; interfaces (lo0 too) and protocols are attached by the caller.
    pub fn new(_name: &str) -> Arc<Vnet> {
        todo!()
    }

    /// Detaches every interface and lets go of protocols, so that the last `Arc` can free the instance.
    pub fn destroy(self: &Arc<Self>) {
        todo!()
    }

    /// Attaches a new interface: gives it an index, links it into the list and announces it.
    #[doc(alias = "ether_ifattach")]
    pub fn if_attach(self: &Arc<Self>, _init: IfnetInit, _driver: Arc<dyn IfDriver>) -> Arc<Ifnet> {
        todo!()
    }

    /// Takes an interface away: addresses, routes and queued packets go with it.
    pub fn if_detach(self: &Arc<Self>, _ifp: &Arc<Ifnet>) {
        todo!()
    }

    /// The interface with index `index`, if it belongs to this instance.
    pub fn ifnet_byindex<'e>(&self, _index: u16, _epoch: &'e NetEpoch) -> Option<&'e Arc<Ifnet>> {
        todo!()
    }

    /// The interface called `name`.
    pub fn ifunit(&self, _name: &str) -> Option<Arc<Ifnet>> {
        todo!()
    }

    /// All interfaces, by index.
    pub fn ifnets(&self) -> Vec<Arc<Ifnet>> {
        todo!()
    }

    /// Registers a protocol family's socket constructor.
    pub fn domain_add(&self, _family: u8, _domain: Arc<dyn Domain>) {
        todo!()
    }

    /// The domain registered for `family`.
    pub fn domain(&self, _family: u8) -> Option<Arc<dyn Domain>> {
        todo!()
    }

    /// Registers the input handler of a netisr protocol in this instance.
    pub fn netisr_register(
        &self,
        _info: NetisrInfo,
        _handler: Arc<dyn NetisrHandler>,
    ) -> Result<(), Errno> {
        todo!()
    }

    /// The handler of `proto`.
    pub fn netisr_handler(&self, _proto: NetisrProto) -> Option<&dyn NetisrHandler> {
        todo!()
    }

    /// Registers someone to be told about interfaces; called at once for those that exist.
    pub fn if_event_register(self: &Arc<Self>, _handler: Arc<dyn IfEvent>) {
        todo!()
    }

    /// Stores the Internet protocols' own instance, so that programs find it again.
    pub fn set_inet(&self, _inet: Arc<dyn Any + Send + Sync>) {
        todo!()
    }

    /// What `set_inet` stored.
    pub fn inet(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        todo!()
    }
}

impl HasDomains for Vnet {
    fn find_domain(&self, af: u8) -> Option<Arc<dyn Domain>> {
        self.domain(af)
    }
}
