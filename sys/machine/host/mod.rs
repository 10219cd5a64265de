//! What the machines that run in a process of the host share: stacks, and memory.

mod arena;
#[cfg(miri)]
mod context_miri;
#[cfg(not(miri))]
mod kstack;

#[cfg(not(miri))]
pub use super::switch::{Pcb, cpu_switch};
pub use arena::Arena;
#[cfg(miri)]
pub use context_miri::{KStack, Pcb, cpu_switch};
#[cfg(not(miri))]
pub use kstack::KStack;
