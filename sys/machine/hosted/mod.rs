//! The host as a machine: virtual CPUs and virtual time inside one thread of a process.
//!
//! A kernel thread is a stack of its own inside the host thread that called `run`; the kernel's own scheduler switches
//! between them as it does on bare metal. Of the virtual CPUs one at a time holds the baton. It passes it on where another
//! CPU could interfere (locks, interrupts, spinning), chosen by the machine's seed, so that the same seed
//! replays the same interleaving. When every CPU is idle the virtual clock jumps to the next event timer.
//!
//! Differs from the plan's std threads: a switch costs nanoseconds instead of two trips through the host's scheduler,
//! and it is the shipped scheduler that is tested, not a second one.

mod contract;
mod machine;

pub use super::host::{KStack, Pcb, cpu_switch};
pub use contract::*;
#[cfg(miri)]
pub(in crate::machine) use machine::MachineRef;
pub use machine::{
    Builder, InterruptLine, Machine, MachineLocal, call_thread_body, interrupt, message, pump,
};
pub(crate) use machine::{interleave, leak, release_cpus, teardown_started, unwind_thread};
#[cfg(test)]
pub(crate) use machine::{seeds, turns};
