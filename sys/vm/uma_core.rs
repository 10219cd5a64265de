//! Kegs, slabs and buckets.
