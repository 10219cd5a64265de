//! Intrusive lists.
//!
//! FreeBSD: sys/sys/queue.h
