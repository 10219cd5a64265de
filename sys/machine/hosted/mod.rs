//! The host as a machine: virtual time, one thread at a time.
