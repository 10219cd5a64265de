//! The atomics, cells and fences that lock code may use.
