//! One instance of the network stack.
