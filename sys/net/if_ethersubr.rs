//! Ethernet input and output.
