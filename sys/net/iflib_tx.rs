//! The transmit half of iflib.
//!
//! FreeBSD: sys/net/iflib.c (iflib_encap, iflib_txq_drain)
