//! The types of the sysctl tree.
//!
//! FreeBSD: sys/sys/sysctl.h
