//! The protocols: IPv4, ICMP, UDP, TCP.
//!
//! FreeBSD: sys/netinet

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod tcp;
pub mod tcp_fsm;
pub mod tcp_seq;
