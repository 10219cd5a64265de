//! Locks, threads, time, mbuf and socket algorithms.

pub mod lock_order;
pub mod subr_witness;
pub mod kern_mutex;
pub mod kern_rwlock;
pub mod kern_sx;
pub mod subr_turnstile;
pub mod subr_sleepqueue;
pub mod kern_synch;
pub mod kern_thread;
pub mod sched;
pub mod kern_intr;
pub mod kern_timeout;
pub mod kern_sysctl;
pub mod subr_epoch;
pub mod subr_smp;
pub mod subr_taskqueue;
pub mod subr_prf;
#[allow(unsafe_code, reason = "makes mbufs from zone memory")]
pub mod kern_mbuf;
#[allow(unsafe_code, reason = "walks and links mbufs by raw pointer")]
pub mod uipc_mbuf;
pub mod uipc_sockbuf;
pub mod uipc_socket;
pub mod uipc_domain;
pub mod uipc_syscalls;
