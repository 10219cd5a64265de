//! Proofs on the simulated wire: congestion control against theory, thousands of seeded runs, floods.

pub mod cc;
pub mod flood;
pub mod lab;
pub mod plot;
pub mod runs;
