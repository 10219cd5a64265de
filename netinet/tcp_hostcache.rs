//! What was learned about a host from earlier connections.
//!
//! FreeBSD: sys/netinet/tcp_hostcache.c
//! Not carried over yet: the cache itself. Its users are `tcp_mss` (path MTU, round trip, thresholds of a new
//! connection), `tcp_discardcb` (what an ending one leaves) and `tcp_ctlinput` (path MTU); until it is there every
//! connection learns for itself, and no `net.inet.tcp.hostcache` variable pretends otherwise.
