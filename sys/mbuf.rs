//! The mbuf: 256 bytes that carry or describe packet data.
//!
//! FreeBSD: sys/sys/mbuf.h
