//! Proofs on the simulated wire: congestion control against theory, thousands of seeded runs.

pub mod cc;
pub mod lab;
pub mod plot;
pub mod runs;
