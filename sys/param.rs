//! Sizes and limits of the whole kernel.
//!
//! FreeBSD: sys/sys/param.h
