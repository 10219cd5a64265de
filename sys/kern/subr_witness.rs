//! Checks the order of locks at run time.
