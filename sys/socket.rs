//! Socket addresses, options and flags.
//!
//! FreeBSD: sys/sys/socket.h
