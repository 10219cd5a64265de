//! What netstat shows of TCP.
//!
//! FreeBSD: usr.bin/netstat/inet.c

use alloc::vec::Vec;

use netinet::vnet::InetVnet;

use super::sockets::Row;
use super::statistics::Report;

/// Adds TCP's sockets.
pub(super) fn sockets(_inet: &InetVnet, _rows: &mut Vec<Row>) {}

/// Adds TCP's statistics.
pub(super) fn statistics(_inet: &InetVnet, _report: &mut Report) {}
