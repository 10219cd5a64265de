//! Socket addresses, options and message flags, with FreeBSD's numbers.
//!
//! FreeBSD: sys/sys/socket.h

use core::fmt;
pub use core::net::{Ipv4Addr, Ipv6Addr};

use bitflags::bitflags;

/// No address family.
pub const AF_UNSPEC: u8 = 0;
/// Local to the host (pipes).
pub const AF_LOCAL: u8 = 1;
/// IPv4.
pub const AF_INET: u8 = 2;
/// Routing messages.
pub const AF_ROUTE: u8 = 17;
/// Link layer.
pub const AF_LINK: u8 = 18;
/// IPv6.
pub const AF_INET6: u8 = 28;

/// The IP level of socket options.
pub const IPPROTO_IP: i32 = 0;
/// ICMP.
pub const IPPROTO_ICMP: i32 = 1;
/// ICMPv6.
pub const IPPROTO_ICMPV6: i32 = 58;
/// TCP.
pub const IPPROTO_TCP: i32 = 6;
/// UDP.
pub const IPPROTO_UDP: i32 = 17;
/// IPv6.
pub const IPPROTO_IPV6: i32 = 41;
/// Any protocol of a raw socket.
pub const IPPROTO_RAW: i32 = 255;

/// The kind of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SockType {
    /// A reliable byte stream.
    Stream = 1,
    /// Datagrams.
    Dgram = 2,
    /// The protocol below the transport.
    Raw = 3,
}

impl SockType {
    /// The type FreeBSD numbers `ty`.
    pub fn from_raw(ty: i32) -> Option<SockType> {
        match ty {
            1 => Some(SockType::Stream),
            2 => Some(SockType::Dgram),
            3 => Some(SockType::Raw),
            _ => None,
        }
    }
}

/// The option level of the socket itself.
pub const SOL_SOCKET: i32 = 0xffff;

bitflags! {
    /// The boolean options of a socket; each bit is also the option's name (`SO_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SoOptions: u32 {
        /// Record debugging information.
        const DEBUG = 0x1;
        /// `listen` was called.
        const ACCEPTCONN = 0x2;
        /// A local address may be reused.
        const REUSEADDR = 0x4;
        /// Probe idle connections.
        const KEEPALIVE = 0x8;
        /// Use interface addresses only.
        const DONTROUTE = 0x10;
        /// Broadcasts may be sent.
        const BROADCAST = 0x20;
        /// Bypass hardware when possible.
        const USELOOPBACK = 0x40;
        /// `close` waits for unsent data.
        const LINGER = 0x80;
        /// Out-of-band data stays in line.
        const OOBINLINE = 0x100;
        /// A local address and port may be shared.
        const REUSEPORT = 0x200;
        /// Datagrams are timestamped.
        const TIMESTAMP = 0x400;
        /// No SIGPIPE from EPIPE.
        const NOSIGPIPE = 0x800;
        /// An accept filter is installed.
        const ACCEPTFILTER = 0x1000;
        /// Datagrams are timestamped with `bintime`.
        const BINTIME = 0x2000;
        /// The connection may not be offloaded.
        const NO_OFFLOAD = 0x4000;
        /// Direct data placement is off.
        const NO_DDP = 0x8000;
        /// A local address and port are shared, with load balancing.
        const REUSEPORT_LB = 0x10000;
    }
}

/// Debug recording.
pub const SO_DEBUG: i32 = 0x1;
/// The socket listens (read only).
pub const SO_ACCEPTCONN: i32 = 0x2;
/// Local address reuse.
pub const SO_REUSEADDR: i32 = 0x4;
/// Keepalive probes.
pub const SO_KEEPALIVE: i32 = 0x8;
/// Interface addresses only.
pub const SO_DONTROUTE: i32 = 0x10;
/// Permission to broadcast.
pub const SO_BROADCAST: i32 = 0x20;
/// Loopback when possible.
pub const SO_USELOOPBACK: i32 = 0x40;
/// Linger on close; the value is a [`Linger`].
pub const SO_LINGER: i32 = 0x80;
/// Out-of-band data in line.
pub const SO_OOBINLINE: i32 = 0x100;
/// Port sharing.
pub const SO_REUSEPORT: i32 = 0x200;
/// Timestamps on datagrams.
pub const SO_TIMESTAMP: i32 = 0x400;
/// No SIGPIPE.
pub const SO_NOSIGPIPE: i32 = 0x800;
/// Accept filter.
pub const SO_ACCEPTFILTER: i32 = 0x1000;
/// Timestamps in `bintime`.
pub const SO_BINTIME: i32 = 0x2000;
/// No offload.
pub const SO_NO_OFFLOAD: i32 = 0x4000;
/// No direct data placement.
pub const SO_NO_DDP: i32 = 0x8000;
/// Port sharing with load balancing.
pub const SO_REUSEPORT_LB: i32 = 0x10000;
/// Send buffer size.
pub const SO_SNDBUF: i32 = 0x1001;
/// Receive buffer size.
pub const SO_RCVBUF: i32 = 0x1002;
/// Send low-water mark.
pub const SO_SNDLOWAT: i32 = 0x1003;
/// Receive low-water mark.
pub const SO_RCVLOWAT: i32 = 0x1004;
/// Send timeout.
pub const SO_SNDTIMEO: i32 = 0x1005;
/// Receive timeout.
pub const SO_RCVTIMEO: i32 = 0x1006;
/// Pending error, cleared by reading.
pub const SO_ERROR: i32 = 0x1007;
/// The socket's type.
pub const SO_TYPE: i32 = 0x1008;
/// MAC label.
pub const SO_LABEL: i32 = 0x1009;
/// MAC label of the peer.
pub const SO_PEERLABEL: i32 = 0x1010;
/// Limit of the listen queue.
pub const SO_LISTENQLIMIT: i32 = 0x1011;
/// Complete connections waiting.
pub const SO_LISTENQLEN: i32 = 0x1012;
/// Incomplete connections waiting.
pub const SO_LISTENINCQLEN: i32 = 0x1013;
/// Routing table of the socket.
pub const SO_SETFIB: i32 = 0x1014;
/// A number for packet filters.
pub const SO_USER_COOKIE: i32 = 0x1015;
/// The socket's protocol.
pub const SO_PROTOCOL: i32 = 0x1016;
/// Clock of `SO_TIMESTAMP`.
pub const SO_TS_CLOCK: i32 = 0x1017;
/// Pacing limit in bytes per second.
pub const SO_MAX_PACING_RATE: i32 = 0x1018;
/// The socket's domain.
pub const SO_DOMAIN: i32 = 0x1019;

// Options of IPPROTO_IP.

/// Options to send.
pub const IP_OPTIONS: i32 = 1;
/// The program gives the header.
pub const IP_HDRINCL: i32 = 2;
/// Type of service.
pub const IP_TOS: i32 = 3;
/// Time to live.
pub const IP_TTL: i32 = 4;
/// Receive options.
pub const IP_RECVOPTS: i32 = 5;
/// Receive options for a reply.
pub const IP_RECVRETOPTS: i32 = 6;
/// Receive the destination address.
pub const IP_RECVDSTADDR: i32 = 7;
/// Choose the source address of a datagram.
pub const IP_SENDSRCADDR: i32 = 7;
/// Interface for multicasts.
pub const IP_MULTICAST_IF: i32 = 9;
/// Time to live of multicasts.
pub const IP_MULTICAST_TTL: i32 = 10;
/// Multicasts come back.
pub const IP_MULTICAST_LOOP: i32 = 11;
/// Join a group.
pub const IP_ADD_MEMBERSHIP: i32 = 12;
/// Leave a group.
pub const IP_DROP_MEMBERSHIP: i32 = 13;
/// Range of ephemeral ports.
pub const IP_PORTRANGE: i32 = 19;
/// Receive the interface.
pub const IP_RECVIF: i32 = 20;
/// Broadcast to all ones.
pub const IP_ONESBCAST: i32 = 23;
/// Bind to any address.
pub const IP_BINDANY: i32 = 24;
/// Receive the time to live.
pub const IP_RECVTTL: i32 = 65;
/// Least time to live accepted.
pub const IP_MINTTL: i32 = 66;
/// Do not fragment.
pub const IP_DONTFRAG: i32 = 67;
/// Receive the type of service.
pub const IP_RECVTOS: i32 = 68;

// Options of IPPROTO_IPV6.

/// Hop limit of unicasts.
pub const IPV6_UNICAST_HOPS: i32 = 4;
/// Interface for multicasts.
pub const IPV6_MULTICAST_IF: i32 = 9;
/// Hop limit of multicasts.
pub const IPV6_MULTICAST_HOPS: i32 = 10;
/// Multicasts come back.
pub const IPV6_MULTICAST_LOOP: i32 = 11;
/// Join a group.
pub const IPV6_JOIN_GROUP: i32 = 12;
/// Leave a group.
pub const IPV6_LEAVE_GROUP: i32 = 13;
/// Range of ephemeral ports.
pub const IPV6_PORTRANGE: i32 = 14;
/// Which ICMPv6 types a raw socket hears.
pub const ICMP6_FILTER: i32 = 18;
/// Where the checksum of a raw socket's packets stands.
pub const IPV6_CHECKSUM: i32 = 26;
/// No IPv4 on this socket.
pub const IPV6_V6ONLY: i32 = 27;
/// Receive destination address and interface.
pub const IPV6_RECVPKTINFO: i32 = 36;
/// Receive the hop limit.
pub const IPV6_RECVHOPLIMIT: i32 = 37;
/// Send packets of 1280 bytes at most.
pub const IPV6_USE_MIN_MTU: i32 = 42;
/// Destination address and interface.
pub const IPV6_PKTINFO: i32 = 46;
/// Hop limit.
pub const IPV6_HOPLIMIT: i32 = 47;
/// Receive the traffic class.
pub const IPV6_RECVTCLASS: i32 = 57;
/// Traffic class.
pub const IPV6_TCLASS: i32 = 61;
/// Do not fragment.
pub const IPV6_DONTFRAG: i32 = 62;
/// Bind to any address.
pub const IPV6_BINDANY: i32 = 64;

// Options of IPPROTO_TCP.

/// Send small segments at once.
pub const TCP_NODELAY: i32 = 1;
/// Largest segment.
pub const TCP_MAXSEG: i32 = 2;
/// Hold back partial segments.
pub const TCP_NOPUSH: i32 = 4;
/// Use no options.
pub const TCP_NOOPT: i32 = 8;
/// RFC 2385 signatures.
pub const TCP_MD5SIG: i32 = 16;
/// `struct tcp_info`.
pub const TCP_INFO: i32 = 32;
/// Statistics.
pub const TCP_STATS: i32 = 33;
/// Name of the congestion control.
pub const TCP_CONGESTION: i32 = 64;
/// Options of the congestion control.
pub const TCP_CCALGOOPT: i32 = 65;
/// Give up after so many seconds without progress.
pub const TCP_MAXUNACKTIME: i32 = 68;
/// Delayed acknowledgements.
pub const TCP_DELACK: i32 = 72;
/// Seconds to make a connection.
pub const TCP_KEEPINIT: i32 = 128;
/// Seconds of idleness before keepalive probes.
pub const TCP_KEEPIDLE: i32 = 256;
/// Seconds between keepalive probes.
pub const TCP_KEEPINTVL: i32 = 512;
/// Keepalive probes before giving up.
pub const TCP_KEEPCNT: i32 = 1024;
/// Fast open.
pub const TCP_FASTOPEN: i32 = 1025;
/// The TCP stack of the connection.
pub const TCP_FUNCTION_BLK: i32 = 8192;

/// Default limit of a listen queue.
pub const SOMAXCONN: i32 = 128;

/// The value of `SO_LINGER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Linger {
    /// Whether `close` lingers.
    pub l_onoff: i32,
    /// For how many seconds.
    pub l_linger: i32,
}

bitflags! {
    /// Flags of one send or receive call, and what a receive reports back (`MSG_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct MsgFlags: u32 {
        /// Out-of-band data.
        const OOB = 0x1;
        /// Look, do not take.
        const PEEK = 0x2;
        /// Interface addresses only.
        const DONTROUTE = 0x4;
        /// End of record.
        const EOR = 0x8;
        /// The datagram was longer than the buffer.
        const TRUNC = 0x10;
        /// Control data was cut.
        const CTRUNC = 0x20;
        /// Wait for the full amount.
        const WAITALL = 0x40;
        /// Do not block.
        const DONTWAIT = 0x80;
        /// The stream ends with this data.
        const EOF = 0x100;
        /// Do not block (descriptor flag).
        const NBIO = 0x4000;
        /// No SIGPIPE.
        const NOSIGNAL = 0x20000;
        /// Close-on-exec for passed descriptors.
        const CMSG_CLOEXEC = 0x40000;
        /// Wait for one message only.
        const WAITFORONE = 0x80000;
    }
}

/// What `shutdown` closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// Receiving (`SHUT_RD`).
    Read = 0,
    /// Sending (`SHUT_WR`).
    Write = 1,
    /// Both (`SHUT_RDWR`).
    Both = 2,
}

/// An IPv4 address and port (`struct sockaddr_in`), in host terms.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SockAddrIn {
    /// `sin_addr`.
    pub addr: Ipv4Addr,
    /// `sin_port`, host order.
    pub port: u16,
}

/// An IPv6 address and port (`struct sockaddr_in6`), in host terms.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SockAddrIn6 {
    /// `sin6_addr`.
    pub addr: Ipv6Addr,
    /// `sin6_port`, host order.
    pub port: u16,
    /// `sin6_flowinfo`.
    pub flowinfo: u32,
    /// `sin6_scope_id`.
    pub scope_id: u32,
}

/// The address of a socket (`struct sockaddr`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SockAddr {
    /// `AF_INET`.
    In(SockAddrIn),
    /// `AF_INET6`.
    In6(SockAddrIn6),
}

impl SockAddr {
    /// An IPv4 address and port.
    pub const fn v4(addr: Ipv4Addr, port: u16) -> SockAddr {
        SockAddr::In(SockAddrIn { addr, port })
    }

    /// An IPv6 address and port, without flow and scope.
    pub const fn v6(addr: Ipv6Addr, port: u16) -> SockAddr {
        SockAddr::In6(SockAddrIn6 {
            addr,
            port,
            flowinfo: 0,
            scope_id: 0,
        })
    }

    /// The address family (`sa_family`).
    pub fn family(&self) -> u8 {
        match self {
            SockAddr::In(_) => AF_INET,
            SockAddr::In6(_) => AF_INET6,
        }
    }

    /// The length of FreeBSD's structure (`sa_len`); it counts in datagram buffers.
    pub fn sa_len(&self) -> usize {
        match self {
            SockAddr::In(_) => 16,
            SockAddr::In6(_) => 28,
        }
    }

    /// The port, in host order.
    pub fn port(&self) -> u16 {
        match self {
            SockAddr::In(sin) => sin.port,
            SockAddr::In6(sin6) => sin6.port,
        }
    }

    /// The IPv4 address and port, if this is one.
    pub fn as_in(&self) -> Option<&SockAddrIn> {
        match self {
            SockAddr::In(sin) => Some(sin),
            SockAddr::In6(_) => None,
        }
    }
}

impl From<SockAddrIn6> for SockAddr {
    fn from(sin6: SockAddrIn6) -> SockAddr {
        SockAddr::In6(sin6)
    }
}

impl From<SockAddrIn> for SockAddr {
    fn from(sin: SockAddrIn) -> SockAddr {
        SockAddr::In(sin)
    }
}

impl fmt::Display for SockAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SockAddr::In(sin) => write!(f, "{}:{}", sin.addr, sin.port),
            SockAddr::In6(sin6) => write!(f, "[{}]:{}", sin6.addr, sin6.port),
        }
    }
}
