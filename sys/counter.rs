//! Per-CPU statistics counters.
//!
//! FreeBSD: sys/sys/counter.h
