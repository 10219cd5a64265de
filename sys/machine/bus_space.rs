//! Typed access to device registers.
