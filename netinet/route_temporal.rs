//! Routes that redirects make, which end after a time.
//!
//! FreeBSD: sys/net/route/route_temporal.c (tmproutes_update), route_ctl.c (rib_add_redirect)
//! Differs from FreeBSD: there are never more than [`MAX_REDIRECTS`], as FreeBSD has it for IPv6.

use crate::vnet::InetVnet;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::TmpRoutesClass;
use sys::machine::sbinuptime;
use sys::net::ifnet::Ifaddr;
use sys::net::route::{RouteSpec, RtFlags};
use sys::time::Sbintime;

/// Routes that redirects may make.
pub const MAX_REDIRECTS: usize = 4096;

struct TmpRoute {
    dst: Ipv4Addr,
    gw: Ipv4Addr,
    expire: Sbintime,
}

/// The routes of an instance that will end.
pub struct TmpRoutes {
    inet: Weak<InetVnet>,
    routes: Mutex<Vec<TmpRoute>, TmpRoutesClass>,
    callout: Callout,
}

impl TmpRoutes {
    pub(crate) fn new(inet: Weak<InetVnet>) -> Arc<Self> {
        Arc::new(Self {
            inet,
            routes: Mutex::new(Vec::new()),
            callout: Callout::new(),
        })
    }

    pub(crate) fn destroy(&self) {
        self.callout.drain();
        self.routes.lock().clear();
    }

    /// Sends packets for `dst` through `gw` from now on, for `lifetime`, from `ifa` and its interface. `EEXIST` if there is
    /// a route to that host, `ENOBUFS` if there are too many.
    #[doc(alias = "rib_add_redirect")]
    pub(crate) fn add_redirect(
        self: &Arc<Self>,
        inet: &InetVnet,
        dst: Ipv4Addr,
        gw: Ipv4Addr,
        ifa: &Arc<Ifaddr>,
        lifetime: Sbintime,
    ) -> Result<(), Errno> {
        if self.routes.lock().len() >= MAX_REDIRECTS {
            return Err(Errno::ENOBUFS);
        }
        inet.rib.add(RouteSpec {
            dst,
            prefix_len: 32,
            gw: Some(gw),
            ifp: ifa.ia_ifp.clone(),
            ifa: Some(ifa.clone()),
            flags: RtFlags::GATEWAY | RtFlags::HOST | RtFlags::DYNAMIC,
            mtu: 0,
        })?;
        let expire = sbinuptime().saturating_add(lifetime);
        self.routes.lock().push(TmpRoute { dst, gw, expire });
        self.schedule();
        Ok(())
    }

    /// Has the callout run when the first route ends.
    fn schedule(self: &Arc<Self>) {
        let next = self.routes.lock().iter().map(|route| route.expire).min();
        if let Some(next) = next {
            let wait = (next - sbinuptime()).max(Sbintime::MILLISECOND);
            self.callout.reset(wait, self);
        }
    }
}

impl CalloutTarget for TmpRoutes {
    fn callout(self: Arc<Self>, now: Sbintime) {
        let Some(inet) = self.inet.upgrade() else {
            return;
        };
        let over: Vec<TmpRoute> = self
            .routes
            .lock()
            .extract_if(.., |route| route.expire <= now)
            .collect();
        for route in over {
            // Unless somebody has set another since.
            let ours = inet.rib.get(route.dst, 32).is_some_and(|entry| {
                entry.nhop.nh_flags.contains(RtFlags::DYNAMIC) && entry.nhop.gw == Some(route.gw)
            });
            if ours {
                let _ = inet.rib.delete(route.dst, 32);
            }
        }
        self.schedule();
    }
}
