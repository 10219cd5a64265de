//! The face a protocol shows to the socket layer.
//!
//! FreeBSD: sys/sys/protosw.h
//! Differs from FreeBSD: the switch is a trait, and its object is the protocol control block itself, so
//! that `so->so_proto->pr_send(so, …)` and the walk from socket to control block are one call.

use alloc::sync::Arc;
use alloc::vec::Vec;

use bitflags::bitflags;

use crate::errno::Errno;
use crate::mbuf::Mbuf;
use crate::socket::{MsgFlags, SockAddr, SockType};
use crate::socketvar::Socket;

bitflags! {
    /// How a protocol wants to be used (`PR_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PrFlags: u16 {
        /// Messages are atomic: one send is one datagram.
        const ATOMIC = 0x01;
        /// Addresses are given with messages.
        const ADDR = 0x02;
        /// A connection is needed before data.
        const CONNREQUIRED = 0x04;
        /// `rcvd` is to be called when the program has taken data.
        const WANTRCVD = 0x08;
        /// Sending to an address connects.
        const IMPLOPCL = 0x20;
    }
}

bitflags! {
    /// Flags of [`Protosw::send`] (`PRUS_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct SendFlags: u32 {
        /// Out-of-band data.
        const OOB = 0x1;
        /// The sender is done after this data.
        const EOF = 0x2;
        /// More data follows at once.
        const MORETOCOME = 0x4;
        /// The caller does not want to wait.
        const NOTREADY = 0x8;
        /// The route may not be used (`MSG_DONTROUTE`).
        const DONTROUTE = 0x10;
    }
}

/// Which way a socket option goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SoptDir {
    /// `getsockopt`.
    Get,
    /// `setsockopt`.
    Set,
}

/// One socket option on its way to or from a protocol (`struct sockopt`).
///
/// Values are the bytes FreeBSD programs use: `int` in host order, structures in C layout.
pub struct SockOpt<'a> {
    /// Get or set.
    pub dir: SoptDir,
    /// The level: `SOL_SOCKET` or a protocol number.
    pub level: i32,
    /// The option.
    pub name: i32,
    value: SoptValue<'a>,
}

enum SoptValue<'a> {
    Set(&'a [u8]),
    Get { out: &'a mut Vec<u8>, max: usize },
}

impl<'a> SockOpt<'a> {
    /// An option to be set to `value`.
    pub fn set(level: i32, name: i32, value: &'a [u8]) -> SockOpt<'a> {
        SockOpt {
            dir: SoptDir::Set,
            level,
            name,
            value: SoptValue::Set(value),
        }
    }

    /// An option to be read into `out`, of which the caller takes at most `max` bytes. What `out` holds before is the
    /// caller's: a few options are asked for by a structure.
    pub fn get(level: i32, name: i32, out: &'a mut Vec<u8>, max: usize) -> SockOpt<'a> {
        SockOpt {
            dir: SoptDir::Get,
            level,
            name,
            value: SoptValue::Get { out, max },
        }
    }

    /// The bytes to set; on a get what the caller asks by, mostly nothing.
    pub fn bytes(&self) -> &[u8] {
        match &self.value {
            SoptValue::Set(value) => value,
            SoptValue::Get { out, .. } => out,
        }
    }

    /// The `int` to set (`sooptcopyin`).
    pub fn int(&self) -> Result<i32, Errno> {
        let bytes: &[u8; 4] = self.bytes().first_chunk().ok_or(Errno::EINVAL)?;
        Ok(i32::from_ne_bytes(*bytes))
    }

    /// Answers a get with bytes, cut to what the caller takes (`sooptcopyout`).
    pub fn answer(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        match &mut self.value {
            SoptValue::Set(_) => Err(Errno::EINVAL),
            SoptValue::Get { out, max } => {
                out.clear();
                out.extend_from_slice(&bytes[..bytes.len().min(*max)]);
                Ok(())
            }
        }
    }

    /// Answers a get with an `int`.
    pub fn answer_int(&mut self, value: i32) -> Result<(), Errno> {
        self.answer(&value.to_ne_bytes())
    }
}

/// What the socket layer asks of a protocol (`pr_*`). One object serves one socket: its control block.
///
/// Life of a control block: [`Domain::attach`] makes it; the socket layer then calls the methods below
/// from program threads, without holding any socket lock. At the end, when the last handle of the socket
/// is gone, `close` is called once. A protocol that must outlive the program (TCP with unsent data, or in
/// TIME_WAIT) sets `SS_PROTOREF` on the socket in `close`, keeps its `Arc<Socket>`, and cleans up alone
/// later. If `close` returned without `SS_PROTOREF`, `detach` follows at once, and is the last call:
/// the protocol then drops its `Arc<Socket>`.
pub trait Protosw: Send + Sync {
    /// How the protocol wants to be used.
    fn pr_flags(&self) -> PrFlags;

    /// Gives the socket a local address.
    fn bind(&self, so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        let _ = (so, nam);
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes the socket accept connections; the protocol checks its state and then calls
    /// `so.solisten_proto(backlog)` with its own lock held.
    fn listen(&self, so: &Arc<Socket>, backlog: i32) -> Result<(), Errno> {
        let _ = (so, backlog);
        Err(Errno::EOPNOTSUPP)
    }

    /// Starts a connection and returns at once; `soisconnected` or `soisdisconnected` tells the outcome.
    fn connect(&self, so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        let _ = (so, nam);
        Err(Errno::EOPNOTSUPP)
    }

    /// Ends the connection in order.
    fn disconnect(&self, so: &Arc<Socket>) -> Result<(), Errno> {
        let _ = so;
        Err(Errno::EOPNOTSUPP)
    }

    /// The peer's address of a connection just taken from the listen queue.
    fn accept(&self, so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        let _ = so;
        Err(Errno::EOPNOTSUPP)
    }

    /// Takes data to send; `m` has a packet header with the length. A stream protocol appends it to
    /// `so.snd` and sends what it may; a datagram protocol sends it at once.
    fn send(
        &self,
        so: &Arc<Socket>,
        flags: SendFlags,
        m: Mbuf,
        to: Option<&SockAddr>,
    ) -> Result<(), Errno>;

    /// The program has taken data from `so.rcv` (only with `PrFlags::WANTRCVD`).
    fn rcvd(&self, so: &Arc<Socket>, flags: MsgFlags) -> Result<(), Errno> {
        let _ = (so, flags);
        Ok(())
    }

    /// The byte of urgent data that was taken out of the stream; with `MSG_PEEK` it stays (`pr_rcvoob`).
    fn rcvoob(&self, so: &Arc<Socket>, flags: MsgFlags) -> Result<u8, Errno> {
        let _ = (so, flags);
        Err(Errno::EOPNOTSUPP)
    }

    /// Sending is over: marks the send side, which is all where there is no peer to be told.
    fn shutdown(&self, so: &Arc<Socket>) -> Result<(), Errno> {
        so.socantsendmore();
        Ok(())
    }

    /// The local address.
    fn sockaddr(&self, so: &Arc<Socket>) -> Result<SockAddr, Errno>;

    /// The peer's address.
    fn peeraddr(&self, so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        let _ = so;
        Err(Errno::ENOTCONN)
    }

    /// Gets or sets an option of a level other than `SOL_SOCKET`, and hears of `SOL_SOCKET` options set
    /// that protocols care for (the result of those is ignored unless it is an error other than
    /// `ENOPROTOOPT`).
    fn ctloutput(&self, so: &Arc<Socket>, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
        let _ = (so, sopt);
        Err(Errno::ENOPROTOOPT)
    }

    /// The last handle is gone; see the life of a control block above.
    fn close(&self, so: &Arc<Socket>) {
        let _ = so;
    }

    /// Ends the connection at once: a connection nobody accepted, or an error.
    fn abort(&self, so: &Arc<Socket>) {
        let _ = so;
    }

    /// Forgets the socket.
    fn detach(&self, so: &Arc<Socket>);
}

/// A protocol family, which makes control blocks for new sockets (`struct domain`).
pub trait Domain: Send + Sync {
    /// Makes the control block of a new socket, reserving its buffers with `so.soreserve`.
    ///
    /// `proto` 0 means the usual protocol of the type. `EPROTONOSUPPORT` or `EPROTOTYPE` if there is none.
    fn attach(&self, so: &Arc<Socket>, ty: SockType, proto: i32)
    -> Result<Arc<dyn Protosw>, Errno>;
}
