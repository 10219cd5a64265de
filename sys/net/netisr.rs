//! Dispatch of packets to protocols.
