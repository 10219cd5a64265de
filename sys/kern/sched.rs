//! The per-CPU scheduler.
