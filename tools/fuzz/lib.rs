//! Makes malformed frames.
