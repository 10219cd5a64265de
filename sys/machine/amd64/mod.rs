//! The bare machine.
