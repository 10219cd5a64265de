//! Sleepable shared/exclusive locks.
