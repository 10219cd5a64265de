//! The loopback interface.
//!
//! FreeBSD: sys/net/if_loop.c

use alloc::sync::Arc;

use crate::errno::Errno;
use crate::mbuf::Mbuf;
use crate::net::ifnet::Ifnet;
use crate::net::netisr::NetisrProto;
use crate::net::vnet::Vnet;

/// MTU of lo0.
pub const LOMTU: u32 = 16384;

/// Attaches lo0 to an instance.
pub fn loop_attach(_vnet: &Arc<Vnet>) -> Arc<Ifnet> {
    todo!()
}

/// Sends `m` (an IP packet without link header) back to ourselves through netisr.
pub fn looutput(_ifp: &Ifnet, _m: Mbuf, _proto: NetisrProto) -> Result<(), Errno> {
    todo!()
}
