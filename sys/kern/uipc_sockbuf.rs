//! Operations on socket buffers.
