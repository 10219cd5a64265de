//! Big-endian integers as they stand in packets.
//!
//! FreeBSD: sys/sys/endian.h
