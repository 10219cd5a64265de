//! Sends malformed frames at the stack.

fn main() {}
