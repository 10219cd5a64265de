//! The states of a connection.
//!
//! FreeBSD: sys/netinet/tcp_fsm.h

use super::tcp::TcpFlags;

/// The state of a connection (RFC 9293 §3.3.2), with FreeBSD's numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum TcpState {
    /// No connection.
    #[default]
    Closed = 0,
    /// Waits for connections.
    Listen = 1,
    /// Active open: a SYN has been sent.
    SynSent = 2,
    /// A SYN has been received and answered.
    SynReceived = 3,
    /// Data flows.
    Established = 4,
    /// The peer has closed; we have not.
    CloseWait = 5,
    /// We have closed and sent a FIN.
    FinWait1 = 6,
    /// Both have closed; our FIN is not acknowledged.
    Closing = 7,
    /// The peer closed first, then we; our FIN is not acknowledged.
    LastAck = 8,
    /// Our FIN is acknowledged; the peer has not closed.
    FinWait2 = 9,
    /// Both have closed; old segments die out.
    TimeWait = 10,
}

/// The number of states.
pub const TCP_NSTATES: usize = 11;

impl TcpState {
    /// All states in the order of their numbers.
    pub const ALL: [TcpState; TCP_NSTATES] = [
        TcpState::Closed,
        TcpState::Listen,
        TcpState::SynSent,
        TcpState::SynReceived,
        TcpState::Established,
        TcpState::CloseWait,
        TcpState::FinWait1,
        TcpState::Closing,
        TcpState::LastAck,
        TcpState::FinWait2,
        TcpState::TimeWait,
    ];

    /// Returns the name `netstat` prints.
    #[doc(alias = "tcpstates")]
    pub const fn name(self) -> &'static str {
        match self {
            TcpState::Closed => "CLOSED",
            TcpState::Listen => "LISTEN",
            TcpState::SynSent => "SYN_SENT",
            TcpState::SynReceived => "SYN_RCVD",
            TcpState::Established => "ESTABLISHED",
            TcpState::CloseWait => "CLOSE_WAIT",
            TcpState::FinWait1 => "FIN_WAIT_1",
            TcpState::Closing => "CLOSING",
            TcpState::LastAck => "LAST_ACK",
            TcpState::FinWait2 => "FIN_WAIT_2",
            TcpState::TimeWait => "TIME_WAIT",
        }
    }

    /// Says whether a SYN of the peer has been seen.
    #[doc(alias = "TCPS_HAVERCVDSYN")]
    #[inline]
    pub const fn have_received_syn(self) -> bool {
        self as u8 >= TcpState::SynReceived as u8
    }

    /// Says whether the handshake is complete.
    #[doc(alias = "TCPS_HAVEESTABLISHED")]
    #[inline]
    pub const fn have_established(self) -> bool {
        self as u8 >= TcpState::Established as u8
    }

    /// Says whether a FIN of the peer has been accepted.
    #[doc(alias = "TCPS_HAVERCVDFIN")]
    #[inline]
    pub const fn have_received_fin(self) -> bool {
        matches!(
            self,
            TcpState::CloseWait | TcpState::Closing | TcpState::LastAck | TcpState::TimeWait
        )
    }

    /// Returns the flags a segment carries in this state, FIN if everything queued is sent with it.
    #[doc(alias = "tcp_outflags")]
    pub const fn outflags(self) -> TcpFlags {
        match self {
            TcpState::Closed => TcpFlags::RST.union(TcpFlags::ACK),
            TcpState::Listen => TcpFlags::empty(),
            TcpState::SynSent => TcpFlags::SYN,
            TcpState::SynReceived => TcpFlags::SYN.union(TcpFlags::ACK),
            TcpState::Established
            | TcpState::CloseWait
            | TcpState::FinWait2
            | TcpState::TimeWait => TcpFlags::ACK,
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck => {
                TcpFlags::FIN.union(TcpFlags::ACK)
            }
        }
    }
}
