//! What the machines that run in a process of the host share: stacks, the switch between them, and memory.

mod arena;
#[cfg_attr(miri, path = "context_miri.rs")]
mod context;

pub use arena::Arena;
pub use context::{KStack, Pcb, cpu_switch};
