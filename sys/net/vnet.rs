//! One instance of the network stack.
//!
//! FreeBSD: sys/net/vnet.c, sys/net/vnet.h
//! Differs from FreeBSD: an instance is a value; there is no current instance hidden in the thread. Every protocol
//! function is passed the instance it works for in a [`NetCx`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::net::Ipv6Addr;

use spin::Once;

use crate::errno::Errno;
use crate::kern::kern_ipc::ipc;
use crate::kern::kern_mutex::Mutex;
use crate::kern::lock_order::{IfnetList, VnetLock};
use crate::kern::subr_epoch::{EpochCell, NetEpoch, epoch_drain_callbacks, epoch_wait};
use crate::kern::uipc_domain::HasDomains;
use crate::machine::atomic::{AtomicU32, Ordering};
use crate::machine_local;
use crate::mbuf::IfIndex;
use crate::net::iflib::LroFactory;
use crate::net::ifnet::{IfDriver, IfEvent, Ifnet, IfnetInit};
use crate::net::netisr::{self, NETISR_MAXPROT, NetisrHandler, NetisrInfo, NetisrProto};
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

type IfTable = Vec<Option<Arc<Ifnet>>>;

machine_local! {
    /// Interfaces of all instances by index: a packet names its interface by number (`rcvif`).
    static IFINDEX_TABLE: Once<EpochCell<IfTable>> = Once::new();
    static IFINDEX_LOCK: Mutex<(), IfnetList> = Mutex::new(());
    static VNET_COUNT: AtomicU32 = AtomicU32::new(0);
}

/// The interface with index `index`, whichever instance it belongs to.
#[inline]
pub fn ifnet_byindex(index: IfIndex, epoch: &NetEpoch) -> Option<&Arc<Ifnet>> {
    let table = IFINDEX_TABLE.get().get()?;
    table.load(epoch).get(usize::from(index.0))?.as_ref()
}

fn ifindex_table() -> &'static EpochCell<IfTable> {
    // Index 0 is no interface.
    IFINDEX_TABLE.get().call_once(|| EpochCell::new(vec![None]))
}

fn copy_of_table() -> IfTable {
    let epoch = NetEpoch::enter();
    ifindex_table().load(&epoch).clone()
}

/// A stack instance: interfaces, routes, filters, protocols and tunables.
pub struct Vnet {
    /// The instance's name ("vnet0" is the first).
    pub name: String,
    /// Its number.
    pub id: u32,
    /// The `net.*` variables of this instance.
    pub sysctl: SysctlTree,
    /// The routing table of IPv4.
    pub rib: Rib,
    /// The routing table of IPv6.
    pub rib6: Rib<Ipv6Addr>,
    /// Filters at IPv4 input and output.
    pub pfil_inet: PfilHead,
    /// Filters at IPv6 input and output.
    pub pfil_inet6: PfilHead,
    /// Filters at Ethernet input and output.
    pub pfil_ether: PfilHead,
    handlers: [EpochCell<Option<Arc<dyn NetisrHandler>>>; NETISR_MAXPROT],
    registered: Mutex<Registered, VnetLock>,
    /// Weak, because interfaces hold their instance.
    loop_if: Once<Weak<Ifnet>>,
    lro: Once<LroFactory>,
}

#[derive(Default)]
struct Registered {
    domains: Vec<(u8, Arc<dyn Domain>)>,
    events: Vec<Arc<dyn IfEvent>>,
    inet: Option<Arc<dyn Any + Send + Sync>>,
    /// Dropped with the instance: what `destroy` must break.
    keep: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Vnet {
    /// Makes an empty instance; interfaces (lo0 too) and protocols are attached by the caller.
    #[doc(alias = "vnet_alloc")]
    pub fn new(name: &str) -> Arc<Vnet> {
        netisr::init();
        // Its variables are there before the first socket is.
        ipc();
        Arc::new(Vnet {
            name: String::from(name),
            id: VNET_COUNT.fetch_add(1, Ordering::Relaxed),
            sysctl: SysctlTree::new(),
            rib: Rib::new(),
            rib6: Rib::new(),
            pfil_inet: PfilHead::new("inet"),
            pfil_inet6: PfilHead::new("inet6"),
            pfil_ether: PfilHead::new("ethernet"),
            handlers: core::array::from_fn(|_| EpochCell::new(None)),
            registered: Mutex::new(Registered::default()),
            loop_if: Once::new(),
            lro: Once::new(),
        })
    }

    /// Detaches every interface and lets go of protocols, so that the last `Arc` can free the instance.
    ///
    /// Packets on their way keep running into an instance without interfaces or routes.
    #[doc(alias = "vnet_destroy")]
    pub fn destroy(self: &Arc<Self>) {
        for ifp in self.ifnets() {
            self.if_detach(&ifp);
        }
        let registered = core::mem::take(&mut *self.registered.lock());
        for slot in &self.handlers {
            slot.replace(Box::new(None));
        }
        epoch_drain_callbacks();
        drop(registered);
    }

    /// Attaches a new interface: gives it an index, links it into the list and announces it.
    #[doc(alias = "ether_ifattach")]
    pub fn if_attach(self: &Arc<Self>, init: IfnetInit, driver: Arc<dyn IfDriver>) -> Arc<Ifnet> {
        let ifp = {
            let _lock = IFINDEX_LOCK.lock();
            let mut table = copy_of_table();
            // The lowest free index, as FreeBSD; 0 stays free.
            let free = table
                .iter()
                .skip(1)
                .position(Option::is_none)
                .map(|at| at + 1);
            let at = free.unwrap_or_else(|| {
                table.push(None);
                table.len() - 1
            });
            let ifp = Arc::new(Ifnet::new(IfIndex(at as u16), self, init, driver));
            table[at] = Some(ifp.clone());
            ifindex_table().replace(Box::new(table));
            ifp
        };
        if ifp.is_loopback() {
            self.loop_if.call_once(|| Arc::downgrade(&ifp));
        }
        self.announce(|handler| handler.attached(&ifp));
        ifp
    }

    /// Takes an interface away: addresses, routes and queued packets go with it.
    pub fn if_detach(self: &Arc<Self>, ifp: &Arc<Ifnet>) {
        self.announce(|handler| handler.departing(ifp));
        ifp.driver().stop(ifp);
        ifp.driver().detach(ifp);
        self.rib.purge_ifp(ifp);
        self.rib6.purge_ifp(ifp);
        ifp.purge();
        {
            let _lock = IFINDEX_LOCK.lock();
            let mut table = copy_of_table();
            let slot = table.get_mut(usize::from(ifp.if_index.0));
            if let Some(slot) =
                slot.filter(|slot| slot.as_ref().is_some_and(|there| Arc::ptr_eq(there, ifp)))
            {
                *slot = None;
            }
            ifindex_table().replace(Box::new(table));
        }
        epoch_wait();
    }

    /// The interface with index `index`, if it belongs to this instance.
    #[inline]
    pub fn ifnet_byindex<'e>(&self, index: IfIndex, epoch: &'e NetEpoch) -> Option<&'e Arc<Ifnet>> {
        ifnet_byindex(index, epoch).filter(|ifp| core::ptr::eq(&raw const **ifp.vnet(), self))
    }

    /// The interface called `name`.
    pub fn ifunit(&self, name: &str) -> Option<Arc<Ifnet>> {
        self.ifnets().into_iter().find(|ifp| ifp.if_xname == name)
    }

    /// All interfaces of this instance, by index.
    pub fn ifnets(&self) -> Vec<Arc<Ifnet>> {
        let epoch = NetEpoch::enter();
        let table = ifindex_table().load(&epoch);
        let ours = |ifp: &&Arc<Ifnet>| core::ptr::eq(&raw const **ifp.vnet(), self);
        table.iter().flatten().filter(ours).cloned().collect()
    }

    /// The loopback interface, once attached.
    #[doc(alias = "V_loif")]
    #[inline]
    pub fn loif(&self) -> Option<Arc<Ifnet>> {
        self.loop_if.get()?.upgrade()
    }

    /// Registers a protocol family's socket constructor.
    pub fn domain_add(&self, family: u8, domain: Arc<dyn Domain>) {
        let mut registered = self.registered.lock();
        registered.domains.retain(|(af, _)| *af != family);
        registered.domains.push((family, domain));
    }

    /// The domain registered for `family`.
    pub fn domain(&self, family: u8) -> Option<Arc<dyn Domain>> {
        let registered = self.registered.lock();
        let found = registered.domains.iter().find(|(af, _)| *af == family);
        found.map(|(_, domain)| domain.clone())
    }

    /// Registers the input handler of a netisr protocol in this instance; EEXIST if there is one.
    pub fn netisr_register(
        &self,
        info: NetisrInfo,
        handler: Arc<dyn NetisrHandler>,
    ) -> Result<(), Errno> {
        {
            let _registered = self.registered.lock();
            let slot = &self.handlers[info.proto as usize];
            if slot.load(&NetEpoch::enter()).is_some() {
                return Err(Errno::EEXIST);
            }
            slot.replace(Box::new(Some(handler)));
        }
        netisr::register(info);
        Ok(())
    }

    /// The handler of `proto`.
    #[inline]
    pub fn netisr_handler<'e>(
        &'e self,
        proto: NetisrProto,
        epoch: &'e NetEpoch,
    ) -> Option<&'e dyn NetisrHandler> {
        self.handlers[proto as usize].load(epoch).as_deref()
    }

    /// Registers someone to be told about interfaces; called at once for those that exist.
    #[doc(alias = "EVENTHANDLER_REGISTER")]
    pub fn if_event_register(self: &Arc<Self>, handler: Arc<dyn IfEvent>) {
        self.registered.lock().events.push(handler.clone());
        for ifp in self.ifnets() {
            handler.attached(&ifp);
        }
    }

    /// Tells the registered handlers; no lock is held meanwhile.
    pub(super) fn announce(&self, tell: impl Fn(&dyn IfEvent)) {
        let events = self.registered.lock().events.clone();
        for handler in &events {
            tell(&**handler);
        }
    }

    /// Stores the Internet protocols' own instance, so that programs find it again.
    pub fn set_inet(&self, inet: Arc<dyn Any + Send + Sync>) {
        self.registered.lock().inet = Some(inet);
    }

    /// What `set_inet` stored.
    pub fn inet(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.registered.lock().inet.clone()
    }

    /// Keeps `thing` alive until the instance is destroyed.
    pub fn keep(&self, thing: Arc<dyn Any + Send + Sync>) {
        self.registered.lock().keep.push(thing);
    }

    /// Sets how receive queues make their coalescers; queues made before have none.
    pub fn set_lro(&self, factory: LroFactory) {
        self.lro.call_once(|| factory);
    }

    /// How receive queues make their coalescers.
    pub fn lro(&self) -> Option<&LroFactory> {
        self.lro.get()
    }
}

impl HasDomains for Vnet {
    fn find_domain(&self, af: u8) -> Option<Arc<dyn Domain>> {
        self.domain(af)
    }
}

impl fmt::Debug for Vnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vnet({})", self.name)
    }
}
