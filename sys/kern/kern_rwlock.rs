//! Reader/writer locks.
