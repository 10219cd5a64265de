//! Makes malformed frames, and sends them at the stack.
//!
//! `generate` makes frames from a seed: truncated, oversized, with wrong lengths, bad options, overlapping
//! fragments, and valid frames spoilt. It knows what it saw of the target's connections, so that some of what it
//! makes falls into their windows. `hosted` sends them to a stack in this process.

pub mod generate;
#[cfg(feature = "stack")]
pub mod hosted;
