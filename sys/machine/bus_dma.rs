//! Memory that a device may reach.
