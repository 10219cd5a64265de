//! Per-CPU caches.
