//! The zones that mbufs and clusters come from.
