//! Interfaces, routes and dispatch.

pub mod vnet;
pub mod ifnet;
pub mod if_ethersubr;
pub mod if_loop;
pub mod if_llatbl;
pub mod route;
pub mod radix;
pub mod nhop;
pub mod netisr;
pub mod iflib;
pub mod iflib_rx;
pub mod iflib_tx;
pub mod mp_ring;
pub mod bpf;
pub mod pfil;
pub mod rss;
