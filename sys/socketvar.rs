//! The socket.
//!
//! FreeBSD: sys/sys/socketvar.h
