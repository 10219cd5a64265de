//! Receive-side scaling: the Toeplitz hash.
