//! Packet filter hooks.
