//! The sysctl tree.
