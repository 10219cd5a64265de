//! Rendezvous of CPUs.
