//! Interfaces, routes and dispatch.

pub mod bpf;
pub mod if_ethersubr;
pub mod if_llatbl;
pub mod if_loop;
pub mod iflib;
pub mod iflib_rx;
pub mod iflib_tx;
pub mod ifnet;
#[allow(
    unsafe_code,
    reason = "slots of the ring are moved in and out by index"
)]
pub mod mp_ring;
pub mod nd_ifinfo;
pub mod netisr;
pub mod nhop;
pub mod pfil;
pub mod radix;
pub mod route;
pub mod rss;
pub mod vnet;
