//! Access to PCI configuration space.
