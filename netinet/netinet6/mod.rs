//! IPv6 and what belongs to it.
//!
//! FreeBSD: sys/netinet6
//! A directory of `netinet` rather than a crate beside it: a control block serves both families, TCP and UDP call both
//! outputs, and both inputs call TCP and UDP, so that two crates would each need the other.

// The instance's addresses and where packets come from.
pub mod in6;
pub mod in6_pcb;
pub mod in6_src;

// IPv6.
pub mod frag6;
pub mod icmp6;
pub mod ip6;
pub mod ip6_ctloutput;
pub mod ip6_input;
pub mod ip6_output;
pub mod ip6_var;
pub mod mld6;
pub mod raw_ip6;

// Neighbours and routers.
pub mod nd6;
pub mod nd6_nbr;
pub mod nd6_rtr;
