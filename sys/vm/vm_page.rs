//! The page allocator.
