//! Callouts on a per-CPU wheel.
