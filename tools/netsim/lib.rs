//! A simulated wire between stacks, in virtual time.
