//! Zones of equal items.
