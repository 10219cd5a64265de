//! The one order of locks.
