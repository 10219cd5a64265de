//! Sockets for programs.
