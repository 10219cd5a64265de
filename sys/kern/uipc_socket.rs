//! The socket layer.
