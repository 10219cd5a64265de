//! A ring with many producers and one consumer at a time.
