//! Stands where TCP will be, until `tcp_subr` and `tcp_usrreq` are here.

use crate::in_pcb::Pcbinfo;
use crate::ip_var::IpProto;
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::{Arc, Weak};
use sys::errno::Errno;
use sys::mbuf::Mbuf;
use sys::net::vnet::Vnet;
use sys::protosw::Protosw;
use sys::socketvar::Socket;

/// TCP's part of a stack instance.
pub struct TcpVnet {
    /// Control blocks.
    pub tcbinfo: Pcbinfo<()>,
}

impl TcpVnet {
    pub(crate) fn new(_vnet: &Arc<Vnet>, tcbinfo: Pcbinfo<()>, _inet: Weak<InetVnet>) -> Self {
        Self { tcbinfo }
    }

    pub(crate) fn destroy(&self) {}
}

impl IpProto for TcpVnet {
    fn input(&self, _cx: &NetCx<'_>, m: Mbuf, _hlen: usize) {
        drop(m);
    }
}

pub(crate) fn tcp_usr_attach(
    _inet: &Arc<InetVnet>,
    _so: &Arc<Socket>,
) -> Result<Arc<dyn Protosw>, Errno> {
    Err(Errno::EPROTONOSUPPORT)
}
