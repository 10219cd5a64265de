//! Counts and limits of sockets and their buffers (`kern.ipc`).
//!
//! FreeBSD: the sysctls of sys/kern/uipc_socket.c and sys/kern/uipc_sockbuf.c

use crate::errno::Errno;
use crate::kern::uipc_sockbuf::SbLimits;

/// Seconds between messages about overflows of one listen queue.
pub const OVERFLOW_INTERVAL_S: i64 = 60;

pub fn sb_limits() -> SbLimits {
    SbLimits {
        sb_max: 2 * 1024 * 1024,
        waste_factor: 8,
    }
}
pub fn soacceptqueue() -> u32 {
    128
}
pub fn opened() -> Result<(), Errno> {
    Ok(())
}
pub fn closed() {}
