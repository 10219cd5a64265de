//! The receive half of iflib.
//!
//! FreeBSD: sys/net/iflib.c (iflib_rxeof, iflib_fl_refill)
