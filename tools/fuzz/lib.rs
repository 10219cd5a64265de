//! Makes malformed frames and other inputs, and feeds them to the stack.
//!
//! `generate` makes frames from a seed: truncated, oversized, with wrong lengths, bad options, overlapping
//! fragments, and valid frames spoilt. It knows what it saw of the target's connections, so that some of what it
//! makes falls into their windows. `hosted` sends them to a stack in this process. `targets` are for libFuzzer, which makes
//! inputs of its own and keeps those that reach something new.

pub mod generate;
#[cfg(feature = "stack")]
pub mod hosted;
#[cfg(feature = "targets")]
pub mod targets;
