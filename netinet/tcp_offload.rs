//! The places where a device that runs TCP itself (a TOE) takes a connection over from the stack.
//!
//! FreeBSD: sys/netinet/toecore.h, tcp_offload.c
//! Differs from FreeBSD: devices are found by their interface in a list that only active opens and listeners look at, instead of by a
//! pointer in every `ifnet`; a connection that has one names it in `t_toe`: there is no `TF_TOE` to say so again.
//! Not carried over yet: the handshakes of passive opens (tod_syncache_*, tod_offload_socket), and what tells a device of new routes and
//! neighbours (tod_l2_update, tod_route_redirect).

use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::lock_order::Leaf;
use sys::mbuf::IfIndex;
use sys::net::ifnet::{IfCap, Ifnet};
use sys::protosw::SockOpt;
use sys::socket::SoOptions;

use crate::tcp_fsm::TcpState;
use crate::tcp_input::Segment;
use crate::tcp_subr::{Conn, tcp_route};
use crate::tcp_var::{Tcpcb, Tf};

/// A device that runs TCP. Its functions are called with the connection locked.
#[doc(alias = "toedev")]
pub trait ToeDev: Send + Sync {
    /// Takes over a connection that has its addresses and whose SYN is not sent yet. An error leaves it to the stack.
    fn tod_connect(&self, c: &Conn<'_>, tp: &mut Tcpcb) -> Result<(), Errno>;
    /// A listener is there whose connections the device could accept.
    fn tod_listen_start(&self, _c: &Conn<'_>, _tp: &mut Tcpcb) {}
    /// That listener closes.
    fn tod_listen_stop(&self, _c: &Conn<'_>, _tp: &mut Tcpcb) {}
    /// A segment of the connection came through the stack all the same.
    fn tod_input(&self, c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment);
    /// The program has taken bytes out of the receive buffer.
    fn tod_rcvd(&self, c: &Conn<'_>, tp: &mut Tcpcb);
    /// There may be something to send.
    fn tod_output(&self, c: &Conn<'_>, tp: &mut Tcpcb) -> Result<(), Errno>;
    /// The connection is given up: the peer is told by RST.
    fn tod_send_rst(&self, c: &Conn<'_>, tp: &mut Tcpcb) -> Result<(), Errno>;
    /// A FIN follows what is still to be sent.
    fn tod_send_fin(&self, c: &Conn<'_>, tp: &mut Tcpcb) -> Result<(), Errno>;
    /// The control block goes.
    fn tod_pcb_detach(&self, tp: &mut Tcpcb);
    /// An option of the socket was set.
    fn tod_ctloutput(&self, _c: &Conn<'_>, _tp: &mut Tcpcb, _sopt: &SockOpt<'_>) {}
    /// A router said that the path takes only `mtu` bytes.
    fn tod_pmtu_update(&self, _c: &Conn<'_>, _tp: &mut Tcpcb, _mtu: u32) {}
}

/// The devices of a stack instance.
pub struct ToeDevs(Mutex<Vec<Registered>, Leaf>);

struct Registered {
    if_index: IfIndex,
    dev: Arc<dyn ToeDev>,
}

impl ToeDevs {
    pub(crate) fn new() -> ToeDevs {
        ToeDevs(Mutex::new(Vec::new()))
    }

    /// Offers the connections over `ifp` to `dev`, as long as TOE is enabled there. EEXIST if another has them.
    #[doc(alias = "register_toedev")]
    pub fn register(&self, ifp: &Ifnet, dev: Arc<dyn ToeDev>) -> Result<(), Errno> {
        let if_index = ifp.if_index;
        let mut devs = self.0.lock();
        if devs.iter().any(|other| other.if_index == if_index) {
            return Err(Errno::EEXIST);
        }
        devs.push(Registered { if_index, dev });
        Ok(())
    }

    /// Offers no more connections to the device of `ifp`. Those that it has stay. ENODEV if there is none.
    #[doc(alias = "unregister_toedev")]
    pub fn unregister(&self, ifp: &Ifnet) -> Result<(), Errno> {
        let mut devs = self.0.lock();
        let before = devs.len();
        devs.retain(|other| other.if_index != ifp.if_index);
        if devs.len() < before {
            Ok(())
        } else {
            Err(Errno::ENODEV)
        }
    }

    fn of(&self, ifp: &Ifnet) -> Option<Arc<dyn ToeDev>> {
        let devs = self.0.lock();
        let found = devs.iter().find(|other| other.if_index == ifp.if_index);
        found.map(|found| found.dev.clone())
    }

    fn all(&self) -> Vec<Arc<dyn ToeDev>> {
        self.0.lock().iter().map(|r| r.dev.clone()).collect()
    }
}

/// Offers a connection to the device of its interface. EOPNOTSUPP if there is none, or it is switched off, or the program wants none.
pub(crate) fn tcp_offload_connect(c: &Conn<'_>, tp: &mut Tcpcb) -> Result<(), Errno> {
    if c.so.options().contains(SoOptions::NO_OFFLOAD) {
        return Err(Errno::EOPNOTSUPP);
    }
    let (ifp, _) = tcp_route(c.net, c.hdr.faddr()).ok_or(Errno::EHOSTUNREACH)?;
    let wanted = if c.hdr.is_ipv6() {
        IfCap::TOE6
    } else {
        IfCap::TOE4
    };
    if !ifp.capenable().contains(wanted) {
        return Err(Errno::EOPNOTSUPP);
    }
    let dev = c.vt.toe.of(ifp).ok_or(Errno::EOPNOTSUPP)?;
    dev.tod_connect(c, tp)?;
    tp.t_toe = Some(dev);
    Ok(())
}

/// Tells all devices of a new listener.
pub(crate) fn tcp_offload_listen_start(c: &Conn<'_>, tp: &mut Tcpcb) {
    for dev in c.vt.toe.all() {
        dev.tod_listen_start(c, tp);
    }
}

/// Tells all devices that a listener closes.
pub(crate) fn tcp_offload_listen_stop(c: &Conn<'_>, tp: &mut Tcpcb) {
    for dev in c.vt.toe.all() {
        dev.tod_listen_stop(c, tp);
    }
}

/// Lets the device do what `tcp_output` does; `None` if the stack has the connection.
#[inline]
pub(crate) fn tcp_offload_output(c: &Conn<'_>, tp: &mut Tcpcb) -> Option<Result<(), Errno>> {
    let dev = tp.t_toe.clone()?;
    Some(match tp.t_state {
        TcpState::Closed => dev.tod_send_rst(c, tp),
        TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck
            if !tp.t_flags.contains(Tf::SENTFIN) =>
        {
            let sent = dev.tod_send_fin(c, tp);
            if sent.is_ok() {
                tp.t_flags |= Tf::SENTFIN;
            }
            sent
        }
        _ => dev.tod_output(c, tp),
    })
}

/// Hands a segment to the device; false if the stack has the connection.
#[inline]
pub(crate) fn tcp_offload_input(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> bool {
    let dev = tp.t_toe.clone();
    if let Some(dev) = &dev {
        dev.tod_input(c, tp, seg);
    }
    dev.is_some()
}

/// Tells the device that the receive buffer has room; false if the stack has the connection.
pub(crate) fn tcp_offload_rcvd(c: &Conn<'_>, tp: &mut Tcpcb) -> bool {
    let dev = tp.t_toe.clone();
    if let Some(dev) = &dev {
        dev.tod_rcvd(c, tp);
    }
    dev.is_some()
}

/// Tells the device of an option that was set.
pub(crate) fn tcp_offload_ctloutput(c: &Conn<'_>, tp: &mut Tcpcb, sopt: &SockOpt<'_>) {
    if let Some(dev) = tp.t_toe.clone() {
        dev.tod_ctloutput(c, tp, sopt);
    }
}

/// Tells the device of a smaller path MTU; false if the stack has the connection.
pub(crate) fn tcp_offload_pmtu_update(c: &Conn<'_>, tp: &mut Tcpcb, mtu: u32) -> bool {
    let dev = tp.t_toe.clone();
    if let Some(dev) = &dev {
        dev.tod_pmtu_update(c, tp, mtu);
    }
    dev.is_some()
}

/// Parts the device and the connection, whose control block goes.
pub(crate) fn tcp_offload_detach(tp: &mut Tcpcb) {
    if let Some(dev) = tp.t_toe.take() {
        dev.tod_pcb_detach(tp);
    }
}
