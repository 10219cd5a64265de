//! The protocols: IPv4, IPv6, ICMP, UDP, TCP.
//!
//! FreeBSD: sys/netinet, sys/netinet6

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

// The instance, its addresses and control blocks.
pub mod in_control;
pub mod in_mcast;
pub mod in_pcb;
pub mod key;
pub mod route_temporal;
pub mod vnet;

// IPv4 and what belongs to it.
pub mod if_ether;
pub mod ip;
pub mod ip_ctloutput;
pub mod ip_icmp;
pub mod ip_input;
pub mod ip_output;
pub mod ip_reass;
pub mod ip_var;
pub mod raw_ip;

// IPv6.
pub mod netinet6;

// UDP.
pub mod udp;
pub mod udp_usrreq;

// TCP.
pub mod cc;
pub mod tcp;
pub mod tcp_ecn;
pub mod tcp_fastopen;
pub mod tcp_fsm;
pub mod tcp_hostcache;
pub mod tcp_info;
pub mod tcp_input;
pub mod tcp_lro;
pub mod tcp_md5;
pub mod tcp_offload;
pub mod tcp_output;
pub mod tcp_over_udp;
pub mod tcp_reass;
pub mod tcp_sack;
pub mod tcp_seq;
pub mod tcp_subr;
pub mod tcp_syncache;
pub mod tcp_timer;
pub mod tcp_timewait;
pub mod tcp_usrreq;
pub mod tcp_var;
