//! Debugging aids of the allocator.
