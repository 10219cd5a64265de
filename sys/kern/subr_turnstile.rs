//! Where threads wait for a lock, and lend their priority.
