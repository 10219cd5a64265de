//! Seeded runs: connections of all kinds over paths with all faults, each run decided by its seed alone.
//!
//! Every byte must arrive once and in order, or the connection be reported dead, and then have been so; nothing may be
//! left over at the end; and the same seed must do the same again, frame by frame.

mod end;
mod judge;
mod play;
pub mod scenario;
mod trouble;

pub use play::Outcome;
pub use trouble::segment;

use anyhow::{Result, bail};
use scenario::Scenario;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// Makes the run of `seed`; writes its frames to `capture` if given. An error says all that is wrong, and how to see it
/// again.
pub fn run(seed: u64, capture: Option<PathBuf>) -> Result<Outcome> {
    let scenario = Scenario::new(seed);
    let played = catch_unwind(AssertUnwindSafe(|| play::play(&scenario, capture)));
    let wrong = match played {
        Ok((outcome, wrong)) if wrong.is_empty() => return Ok(outcome),
        Ok((_, wrong)) => wrong,
        Err(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            vec![format!("panicked: {}", words.unwrap_or("without words"))]
        }
    };
    bail!(
        "seed {seed}: {}\n  again: cargo xtask sim run --seed {seed} --pcap run-{seed}.pcap",
        wrong.join("\n  ")
    )
}

#[cfg(test)]
mod tests;
