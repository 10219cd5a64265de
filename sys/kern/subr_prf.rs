//! Kernel messages.
