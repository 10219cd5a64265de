//! FreeBSD's numbers for the names that scripts use.

use sys::errno::Errno;
use sys::socket as so;

/// The value of a constant or of an error's name.
pub fn lookup(name: &str) -> Option<i64> {
    if let Some((_, value)) = CONSTANTS.iter().find(|(known, _)| *known == name) {
        return Some(*value);
    }
    errno(name).map(i64::from)
}

/// The number of an error.
pub fn errno(name: &str) -> Option<i32> {
    if name == "EWOULDBLOCK" {
        return Some(Errno::EWOULDBLOCK.number());
    }
    let known = Errno::ALL.iter().find(|errno| errno.name() == name);
    known.map(|errno| errno.number())
}

/// Read and write (`open(2)`).
pub const O_RDWR: i64 = 2;
/// Do not block.
pub const O_NONBLOCK: i64 = 4;
/// Get the descriptor's flags (`fcntl(2)`).
pub const F_GETFL: i64 = 3;
/// Set them.
pub const F_SETFL: i64 = 4;
/// Port of UDP that the peer is reached through; the option that sets it.
pub const TCP_REMOTE_UDP_ENCAPS_PORT: i32 = 71;

const CONSTANTS: &[(&str, i64)] = &[
    ("AF_INET", so::AF_INET as i64),
    ("AF_INET6", so::AF_INET6 as i64),
    ("PF_INET", so::AF_INET as i64),
    ("PF_INET6", so::AF_INET6 as i64),
    ("SOCK_STREAM", 1),
    ("SOCK_DGRAM", 2),
    ("SOCK_RAW", 3),
    ("SOCK_CLOEXEC", 0x1000_0000),
    ("SOCK_NONBLOCK", 0x2000_0000),
    ("SHUT_RD", 0),
    ("SHUT_WR", 1),
    ("SHUT_RDWR", 2),
    ("O_RDONLY", 0),
    ("O_WRONLY", 1),
    ("O_RDWR", O_RDWR),
    ("O_NONBLOCK", O_NONBLOCK),
    ("F_GETFL", F_GETFL),
    ("F_SETFL", F_SETFL),
    ("POLLIN", 0x1),
    ("POLLPRI", 0x2),
    ("POLLOUT", 0x4),
    ("POLLERR", 0x8),
    ("POLLHUP", 0x10),
    ("POLLNVAL", 0x20),
    ("POLLRDNORM", 0x40),
    ("POLLWRNORM", 0x4),
    ("POLLINIGNEOF", 0x2000),
    ("POLLRDHUP", 0x4000),
    ("POLLRDBAND", 0x80),
    ("FIONREAD", 0x4004_667f),
    ("FIONBIO", 0x8004_667e),
    ("SIOCATMARK", 0x4004_7307),
    ("SOMAXCONN", so::SOMAXCONN as i64),
    // Levels.
    ("SOL_SOCKET", so::SOL_SOCKET as i64),
    ("IPPROTO_IP", 0),
    ("IPPROTO_ICMP", 1),
    ("IPPROTO_TCP", 6),
    ("SOL_TCP", 6),
    ("IPPROTO_UDP", 17),
    ("IPPROTO_IPV6", 41),
    ("IPPROTO_ICMPV6", 58),
    ("IPPROTO_UDPLITE", 136),
    // Options of a socket.
    ("SO_DEBUG", 0x1),
    ("SO_ACCEPTCONN", 0x2),
    ("SO_REUSEADDR", 0x4),
    ("SO_KEEPALIVE", 0x8),
    ("SO_DONTROUTE", 0x10),
    ("SO_BROADCAST", 0x20),
    ("SO_USELOOPBACK", 0x40),
    ("SO_LINGER", 0x80),
    ("SO_OOBINLINE", 0x100),
    ("SO_REUSEPORT", 0x200),
    ("SO_TIMESTAMP", 0x400),
    ("SO_NOSIGPIPE", 0x800),
    ("SO_REUSEPORT_LB", 0x1_0000),
    ("SO_SNDBUF", 0x1001),
    ("SO_RCVBUF", 0x1002),
    ("SO_SNDLOWAT", 0x1003),
    ("SO_RCVLOWAT", 0x1004),
    ("SO_SNDTIMEO", 0x1005),
    ("SO_RCVTIMEO", 0x1006),
    ("SO_ERROR", 0x1007),
    ("SO_TYPE", 0x1008),
    ("SO_LISTENQLIMIT", 0x1011),
    ("SO_LISTENQLEN", 0x1012),
    ("SO_LISTENINCQLEN", 0x1013),
    ("SO_SETFIB", 0x1014),
    ("SO_PROTOCOL", 0x1016),
    ("SO_DOMAIN", 0x1019),
    // Options of IP.
    ("IP_OPTIONS", 1),
    ("IP_HDRINCL", 2),
    ("IP_TOS", 3),
    ("IP_TTL", 4),
    ("IP_RECVDSTADDR", 7),
    ("IP_PORTRANGE", 19),
    ("IP_RECVTTL", 65),
    ("IP_MINTTL", 66),
    ("IP_DONTFRAG", 67),
    ("IP_RECVTOS", 68),
    ("IPV6_UNICAST_HOPS", 4),
    ("IPV6_V6ONLY", 27),
    ("IPV6_RECVHOPLIMIT", 37),
    ("IPV6_USE_MIN_MTU", 42),
    ("IPV6_RECVTCLASS", 57),
    ("IPV6_TCLASS", 61),
    ("IPV6_DONTFRAG", 62),
    ("IPTOS_LOWDELAY", 0x10),
    ("IPTOS_THROUGHPUT", 0x08),
    ("IPTOS_RELIABILITY", 0x04),
    ("IPTOS_DSCP_CS0", 0x00),
    ("IPTOS_DSCP_CS1", 0x20),
    ("IPTOS_DSCP_AF11", 0x28),
    ("IPTOS_DSCP_AF12", 0x30),
    ("IPTOS_DSCP_AF13", 0x38),
    ("IPTOS_DSCP_CS2", 0x40),
    ("IPTOS_DSCP_AF21", 0x48),
    ("IPTOS_DSCP_AF22", 0x50),
    ("IPTOS_DSCP_AF23", 0x58),
    ("IPTOS_DSCP_CS3", 0x60),
    ("IPTOS_DSCP_AF31", 0x68),
    ("IPTOS_DSCP_AF32", 0x70),
    ("IPTOS_DSCP_AF33", 0x78),
    ("IPTOS_DSCP_CS4", 0x80),
    ("IPTOS_DSCP_AF41", 0x88),
    ("IPTOS_DSCP_AF42", 0x90),
    ("IPTOS_DSCP_AF43", 0x98),
    ("IPTOS_DSCP_CS5", 0xa0),
    ("IPTOS_DSCP_EF", 0xb8),
    ("IPTOS_DSCP_CS6", 0xc0),
    ("IPTOS_DSCP_CS7", 0xe0),
    ("IPTOS_ECN_NOTECT", 0),
    ("IPTOS_ECN_ECT1", 1),
    ("IPTOS_ECN_ECT0", 2),
    ("IPTOS_ECN_CE", 3),
    // Options of TCP.
    ("TCP_NODELAY", 1),
    ("TCP_MAXSEG", 2),
    ("TCP_NOPUSH", 4),
    ("TCP_NOOPT", 8),
    ("TCP_MD5SIG", 16),
    ("TCP_INFO", 32),
    ("TCP_STATS", 33),
    ("TCP_LOG", 34),
    ("TCP_CONGESTION", 64),
    ("TCP_CCALGOOPT", 65),
    ("TCP_MAXUNACKTIME", 68),
    (
        "TCP_REMOTE_UDP_ENCAPS_PORT",
        TCP_REMOTE_UDP_ENCAPS_PORT as i64,
    ),
    ("TCP_DELACK", 72),
    ("TCP_LRD", 79),
    ("TCP_KEEPINIT", 128),
    ("TCP_KEEPIDLE", 256),
    ("TCP_KEEPINTVL", 512),
    ("TCP_KEEPCNT", 1024),
    ("TCP_FASTOPEN", 1025),
    ("TCP_FUNCTION_BLK", 8192),
    ("TCP_RACK_PACE_ALWAYS", 0x442),
    ("TCP_RACK_PACE_MAX_SEG", 0x44a),
    ("TCP_RACK_PACE_RATE_SS", 0x45e),
    // Flags of one call.
    ("MSG_OOB", 0x1),
    ("MSG_PEEK", 0x2),
    ("MSG_DONTROUTE", 0x4),
    ("MSG_EOR", 0x8),
    ("MSG_TRUNC", 0x10),
    ("MSG_CTRUNC", 0x20),
    ("MSG_WAITALL", 0x40),
    ("MSG_DONTWAIT", 0x80),
    ("MSG_EOF", 0x100),
    ("MSG_NOSIGNAL", 0x2_0000),
    // TCP_INFO.
    ("TCPI_CLOSED", 0),
    ("TCPI_LISTEN", 1),
    ("TCPI_SYN_SENT", 2),
    ("TCPI_SYN_RECEIVED", 3),
    ("TCPI_ESTABLISHED", 4),
    ("TCPI_CLOSE_WAIT", 5),
    ("TCPI_FIN_WAIT_1", 6),
    ("TCPI_CLOSING", 7),
    ("TCPI_LAST_ACK", 8),
    ("TCPI_FIN_WAIT_2", 9),
    ("TCPI_TIME_WAIT", 10),
    ("TCPI_OPT_TIMESTAMPS", 0x01),
    ("TCPI_OPT_SACK", 0x02),
    ("TCPI_OPT_WSCALE", 0x04),
    ("TCPI_OPT_ECN", 0x08),
    ("TCPI_OPT_TOE", 0x10),
    ("TCPI_OPT_TFO", 0x20),
    ("TCPI_OPT_ACE", 0x40),
];

/// Members of FreeBSD's `struct tcp_info`: name, offset, bytes.
pub const TCP_INFO_FIELDS: &[(&str, usize, usize)] = &[
    ("tcpi_state", 0, 1),
    ("tcpi_options", 5, 1),
    ("tcpi_rto", 8, 4),
    ("tcpi_snd_mss", 16, 4),
    ("tcpi_rcv_mss", 20, 4),
    ("tcpi_last_data_recv", 52, 4),
    ("tcpi_rtt", 68, 4),
    ("tcpi_rttvar", 72, 4),
    ("tcpi_snd_ssthresh", 76, 4),
    ("tcpi_snd_cwnd", 80, 4),
    ("tcpi_rcv_space", 96, 4),
    ("tcpi_snd_wnd", 100, 4),
    ("tcpi_snd_bwnd", 104, 4),
    ("tcpi_snd_nxt", 108, 4),
    ("tcpi_rcv_nxt", 112, 4),
    ("tcpi_toe_tid", 116, 4),
    ("tcpi_snd_rexmitpack", 120, 4),
    ("tcpi_rcv_ooopack", 124, 4),
    ("tcpi_snd_zerowin", 128, 4),
    ("tcpi_delivered_ce", 132, 4),
    ("tcpi_received_ce", 136, 4),
    ("tcpi_snd_una", 176, 4),
    ("tcpi_snd_max", 180, 4),
    ("tcpi_rcv_numsacks", 184, 4),
    ("tcpi_rcv_adv", 188, 4),
    ("tcpi_dupacks", 192, 4),
    // Both halves of one byte.
    ("tcpi_snd_wscale", 6, 0),
    ("tcpi_rcv_wscale", 6, 0),
];

/// A member of `struct tcp_info`.
pub fn tcp_info_field(info: &[u8], name: &str) -> Option<i64> {
    let (_, at, len) = *TCP_INFO_FIELDS
        .iter()
        .find(|(known, _, _)| *known == name)?;
    let byte = *info.get(at)?;
    Some(match (len, name) {
        (0, "tcpi_snd_wscale") => i64::from(byte & 0xf),
        (0, _) => i64::from(byte >> 4),
        (1, _) => i64::from(byte),
        _ => {
            let word = info.get(at..at + 4)?.first_chunk()?;
            i64::from(u32::from_ne_bytes(*word))
        }
    })
}
