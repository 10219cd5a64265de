//! Error numbers.
//!
//! FreeBSD: sys/sys/errno.h
