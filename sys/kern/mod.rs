//! Locks, threads, time, mbuf and socket algorithms.

pub mod kern_intr;
pub mod kern_ipc;
#[allow(unsafe_code, reason = "makes mbufs from zone memory")]
pub mod kern_mbuf;
pub mod kern_mutex;
pub mod kern_rwlock;
pub mod kern_sx;
pub mod kern_synch;
pub mod kern_sysctl;
pub mod kern_thread;
pub mod kern_timeout;
pub mod lock_order;
pub mod sched;
pub mod socklocks;
pub mod subr_epoch;
pub mod subr_prf;
pub mod subr_sleepqueue;
pub mod subr_smp;
pub mod subr_taskqueue;
pub mod subr_turnstile;
pub mod subr_witness;
pub mod uipc_domain;
#[allow(unsafe_code, reason = "walks and links mbufs by raw pointer")]
pub mod uipc_mbuf;
pub mod uipc_sockbuf;
pub mod uipc_socket;
pub mod uipc_syscalls;
