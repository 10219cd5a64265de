//! Locks, threads, time, mbuf and socket algorithms.

pub mod kern_condvar;
#[expect(
    unsafe_code,
    reason = "an interrupt handler is handed the address of its event"
)]
pub mod kern_intr;
pub mod kern_ipc;
#[allow(unsafe_code, reason = "makes mbufs from zone memory")]
pub mod kern_mbuf;
#[expect(unsafe_code, reason = "a lock lends out what is in it")]
pub mod kern_mutex;
#[expect(
    unsafe_code,
    reason = "a lock lends out what is in it; a CPU is handed its address"
)]
pub mod kern_rmlock;
#[expect(unsafe_code, reason = "a lock lends out what is in it")]
pub mod kern_rwlock;
#[expect(unsafe_code, reason = "a lock lends out what is in it")]
pub mod kern_sx;
pub mod kern_synch;
pub mod kern_sysctl;
#[allow(
    unsafe_code,
    reason = "threads are shared by the scheduler and everything that waits"
)]
pub mod kern_thread;
#[expect(
    unsafe_code,
    reason = "callouts are linked into the wheel where they are"
)]
pub mod kern_timeout;
pub mod lock_order;
#[cfg_attr(loom, path = "sched_model.rs")]
#[cfg_attr(
    not(loom),
    expect(unsafe_code, reason = "switches stacks; run queues link threads")
)]
pub mod sched;
#[expect(unsafe_code, reason = "frees what readers have left")]
pub mod subr_epoch;
#[cfg_attr(
    feature = "lock_profiling",
    expect(
        unsafe_code,
        reason = "a thread's own list of locks, a CPU's own records"
    )
)]
pub mod subr_lock;
pub mod subr_prf;
#[expect(unsafe_code, reason = "chains link threads")]
pub mod subr_sleepqueue;
#[expect(unsafe_code, reason = "another CPU is handed a function's address")]
pub mod subr_smp;
#[expect(unsafe_code, reason = "follows pointers that readers share")]
pub mod subr_smr;
pub mod subr_taskqueue;
#[expect(unsafe_code, reason = "turnstiles link threads")]
pub mod subr_turnstile;
#[cfg_attr(
    any(debug_assertions, feature = "witness"),
    expect(unsafe_code, reason = "a thread's own list of locks")
)]
pub mod subr_witness;
pub mod uipc_domain;
#[allow(unsafe_code, reason = "walks and links mbufs by raw pointer")]
pub mod uipc_mbuf;
pub mod uipc_sockbuf;
pub mod uipc_socket;
pub mod uipc_syscalls;

/// Starts the services on the boot CPU: mbufs, its idle thread, the threads of callouts, epochs and zones. `kern_thread::init0` has been
/// called, memory and interrupts work.
pub fn start_bsp() {
    kern_mbuf::mbinit();
    sched::start_bsp();
    sched::sysctl_init();
    kern_intr::sysctl_init();
    kern_timeout::start_softclock();
    kern_timeout::sysctl_init();
    subr_epoch::start();
    crate::vm::uma::startup3();
    subr_lock::register(kern_sysctl::root());
}
