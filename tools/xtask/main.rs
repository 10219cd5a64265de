//! The front door: builds, runs and tests the kernel.

fn main() {}
