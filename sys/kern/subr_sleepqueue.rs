//! Where threads wait for an event.
