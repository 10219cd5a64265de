//! The socket layer's view of a protocol.
//!
//! FreeBSD: sys/sys/protosw.h
