//! The host as a machine whose CPUs run truly in parallel, each a thread of the host. For benchmarks; `--cfg native`.
//!
//! Kernel threads are contexts that the kernel's own scheduler switches between, from one host thread to another as it sees
//! fit. What makes a CPU of a host thread:
//!
//! - GS points to its per-CPU area, so that the instructions of `pcpu_gs` are the bare machine's;
//! - an interrupt is a bit in the area's `pending` word and a signal to the thread; the handler runs on the stack of whatever
//!   kernel thread it interrupts, and may switch to another;
//! - interrupts are off by a word in the area, as masking signals is a system call: the handler then returns at once, and
//!   whoever turns interrupts on again looks at `pending`;
//! - the event timer is a POSIX timer that signals the thread, and an idle CPU waits for a change of `pending` by futex.
//!
//! Differs from `hosted`: real time, real races, nothing replays; one machine per process, which ends with it. A panic
//! ends the process.
//!
//! A kernel thread may be on another host thread after any interrupt: thread-local storage of the host must not be
//! in use then. Memory allocation, which uses it, runs with interrupts off (`malloc`); other code of the host that a
//! kernel thread calls must see to it itself, by a `hostcall`.

mod boot;
mod clock;
mod intr_machdep;
mod malloc;
mod pcpu_machdep;

pub use super::host::{KStack, Pcb, cpu_switch};
pub use super::pcpu_gs::{
    counter_u64_add, critical_enter, critical_exit, curcpu, curthread_raw, ncpus, pcpu, pcpu_find,
};
pub(super) use boot::release_cpus;
pub use boot::{
    Builder, Machine, console_write, console_write_some, hostcall, phys_avail, phys_to_virt,
    pmap_mapdev, poweroff, random_u64, reboot, virt_to_phys,
};
pub use clock::{sbinuptime, set_event_timer};
pub use intr_machdep::{
    cpu_idle, cpu_spinwait, intr_alloc, intr_assign_cpu, intr_free, ipi_send, message, raise,
};
pub use malloc::Heap;
pub use pcpu_machdep::{PcpuMd, intr_disable, intr_enabled, intr_restore};
