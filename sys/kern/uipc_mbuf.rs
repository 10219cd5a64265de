//! Operations on mbuf chains.
