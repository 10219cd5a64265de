//! Socket buffers.
//!
//! FreeBSD: sys/sys/sockbuf.h
