//! Time: `Sbintime` and `Ticks`.
//!
//! FreeBSD: sys/sys/time.h
