//! The socket calls as programs make them.
//!
//! FreeBSD: sys/kern/uipc_syscalls.c, sys/kern/sys_generic.c (poll)
//! Differs from FreeBSD: a handle instead of a descriptor, slices instead of user addresses; dropping the handle
//! closes the socket.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use crate::errno::Errno;
use crate::kern::kern_mutex::{Mutex, MutexGuard};
use crate::kern::kern_synch::{PSOCK, SleepError, WChan};
use crate::kern::uipc_domain::HasDomains;
pub use crate::kern::uipc_socket::{Direction, Received};
use crate::kern::uipc_socket::{soclose, socreate};
use crate::sockbuf::{SbState, Upcall};
use crate::socket::*;
pub use crate::socketvar::PollEvents;
use crate::socketvar::{PollWaiter, SoState, Socket};
use crate::time::Sbintime;

/// A socket as a program holds it. Any number of threads may use it at a time; it is closed when dropped.
pub struct SocketHandle {
    so: Arc<Socket>,
}

impl Drop for SocketHandle {
    fn drop(&mut self) {
        soclose(&self.so);
    }
}

impl SocketHandle {
    /// Makes a socket; `proto` 0 is the usual protocol of the type.
    #[doc(alias = "socket(2)")]
    pub fn socket(
        domains: &impl HasDomains,
        af: u8,
        ty: SockType,
        proto: i32,
    ) -> Result<SocketHandle, Errno> {
        Ok(SocketHandle {
            so: socreate(domains, af, ty, proto)?,
        })
    }

    /// The socket behind the handle.
    pub fn inner(&self) -> &Arc<Socket> {
        &self.so
    }

    /// Gives the socket a local address.
    pub fn bind(&self, nam: &SockAddr) -> Result<(), Errno> {
        self.so.sobind(nam)
    }

    /// Makes the socket accept connections; a negative `backlog` is as much as is allowed.
    pub fn listen(&self, backlog: i32) -> Result<(), Errno> {
        self.so.solisten(backlog)
    }

    /// Takes the next connection, waiting for one.
    pub fn accept(&self) -> Result<(SocketHandle, SockAddr), Errno> {
        self.so
            .soaccept(MsgFlags::empty())
            .map(|(so, peer)| (SocketHandle { so }, peer))
    }

    /// Takes the next connection if there is one, otherwise `EWOULDBLOCK`.
    pub fn accept_nowait(&self) -> Result<(SocketHandle, SockAddr), Errno> {
        self.so
            .soaccept(MsgFlags::DONTWAIT)
            .map(|(so, peer)| (SocketHandle { so }, peer))
    }

    /// Connects; a non-blocking socket gets `EINPROGRESS`.
    pub fn connect(&self, nam: &SockAddr) -> Result<(), Errno> {
        self.so.soconnect(nam)
    }

    /// Sends to the peer; returns how many bytes.
    pub fn send(&self, from: &[u8], flags: MsgFlags) -> Result<usize, Errno> {
        self.so.sosend(from, None, flags)
    }

    /// Sends a datagram to `to`.
    pub fn sendto(&self, from: &[u8], flags: MsgFlags, to: &SockAddr) -> Result<usize, Errno> {
        self.so.sosend(from, Some(to), flags)
    }

    /// Receives; 0 bytes is the end of a stream.
    pub fn recv(&self, into: &mut [u8], flags: MsgFlags) -> Result<usize, Errno> {
        Ok(self.so.soreceive(into, flags)?.len)
    }

    /// Receives a datagram and who sent it.
    pub fn recvfrom(
        &self,
        into: &mut [u8],
        flags: MsgFlags,
    ) -> Result<(usize, Option<SockAddr>), Errno> {
        let received = self.so.soreceive(into, flags)?;
        Ok((received.len, received.from))
    }

    /// Receives with everything that came along.
    pub fn recvmsg(&self, into: &mut [u8], flags: MsgFlags) -> Result<Received, Errno> {
        self.so.soreceive(into, flags)
    }

    /// Closes one or both directions.
    pub fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        self.so.soshutdown(how)
    }

    /// The local address.
    pub fn getsockname(&self) -> Result<SockAddr, Errno> {
        self.so.pr()?.sockaddr(&self.so)
    }

    /// The peer's address.
    pub fn getpeername(&self) -> Result<SockAddr, Errno> {
        if !self
            .so
            .state_has(SoState::ISCONNECTED | SoState::ISCONFIRMING)
        {
            return Err(Errno::ENOTCONN);
        }
        self.so.pr()?.peeraddr(&self.so)
    }

    /// Sets an option to bytes as FreeBSD's programs give them.
    pub fn setsockopt(&self, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        self.so.sosetopt(level, name, value)
    }

    /// Sets an option whose value is an `int`.
    pub fn setsockopt_int(&self, level: i32, name: i32, value: i32) -> Result<(), Errno> {
        self.setsockopt(level, name, &value.to_ne_bytes())
    }

    /// Reads at most `max` bytes of an option.
    pub fn getsockopt(&self, level: i32, name: i32, max: usize) -> Result<Vec<u8>, Errno> {
        self.so.sogetopt(level, name, max)
    }

    /// Reads an option that is asked for by a structure, which its answer takes the place of.
    pub fn getsockopt_by(&self, level: i32, name: i32, value: &[u8]) -> Result<Vec<u8>, Errno> {
        self.so
            .sogetopt_by(level, name, value.to_vec(), value.len())
    }

    /// Reads an option whose value is an `int`.
    pub fn getsockopt_int(&self, level: i32, name: i32) -> Result<i32, Errno> {
        let value = self.getsockopt(level, name, 4)?;
        match value.first_chunk() {
            Some(bytes) => Ok(i32::from_ne_bytes(*bytes)),
            // An option of one byte, such as IP_TTL may be.
            None => value
                .first()
                .map(|byte| i32::from(*byte))
                .ok_or(Errno::EINVAL),
        }
    }

    /// How long receiving waits (`SO_RCVTIMEO`); `None` for ever.
    pub fn set_rcvtimeo(&self, timo: Option<Sbintime>) -> Result<(), Errno> {
        self.so.rcv.lock().sb_timeo = timo;
        Ok(())
    }

    /// How long sending waits (`SO_SNDTIMEO`); `None` for ever.
    pub fn set_sndtimeo(&self, timo: Option<Sbintime>) -> Result<(), Errno> {
        self.so.snd.lock().sb_timeo = timo;
        Ok(())
    }

    /// Whether `close` waits for unsent data, and for how many seconds (`SO_LINGER`).
    pub fn set_linger(&self, seconds: Option<u16>) -> Result<(), Errno> {
        let mut value = [0; 8];
        value[..4].copy_from_slice(&i32::from(seconds.is_some()).to_ne_bytes());
        value[4..].copy_from_slice(&i32::from(seconds.unwrap_or(0)).to_ne_bytes());
        self.setsockopt(SOL_SOCKET, SO_LINGER, &value)
    }

    /// Whether the reader stands at the out-of-band mark: what follows is, or came behind, urgent data.
    #[doc(alias = "SIOCATMARK")]
    pub fn sockatmark(&self) -> bool {
        let rcv = self.so.rcv.lock();
        rcv.state().contains(SbState::RCVATMARK)
    }

    /// Makes calls return `EWOULDBLOCK` instead of waiting (`O_NONBLOCK`).
    pub fn set_nonblocking(&self, on: bool) {
        if on {
            self.so.set_state(SoState::NBIO);
        } else {
            self.so.clear_state(SoState::NBIO);
        }
    }

    /// Sets or clears the function called when a direction changes.
    pub fn set_upcall(&self, direction: Direction, upcall: Option<Upcall>) {
        self.so.soupcall_set(direction, upcall);
    }

    /// What of `events` would not block now, waiting until something is so.
    pub fn poll(&self, events: PollEvents, timeout: Option<Sbintime>) -> Result<PollEvents, Errno> {
        let mut fds = [PollFd::new(self, events)];
        poll(&mut fds, timeout)?;
        let [fd] = fds;
        Ok(fd.revents)
    }
}

/// A socket that `poll` looks at.
pub struct PollFd<'a> {
    handle: &'a SocketHandle,
    /// What is asked.
    pub events: PollEvents,
    /// What is so.
    pub revents: PollEvents,
}

impl<'a> PollFd<'a> {
    /// Asks for `events` of a socket.
    pub fn new(handle: &'a SocketHandle, events: PollEvents) -> PollFd<'a> {
        PollFd {
            handle,
            events,
            revents: PollEvents::empty(),
        }
    }
}

/// Waits until something asked for is so, or the time is over; returns for how many sockets it is.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<Sbintime>) -> Result<usize, Errno> {
    let deadline = timeout.map(|timeout| crate::machine::sbinuptime().saturating_add(timeout));
    let waiter = Arc::new(PollWaiter {
        fired: Mutex::new(false),
    });
    loop {
        *waiter.fired.lock() = false;
        let mut count = 0;
        for fd in fds.iter_mut() {
            let register = (count == 0).then_some(&waiter);
            fd.revents = fd.handle.so.sopoll(fd.events, register);
            if !fd.revents.is_empty() {
                count += 1;
            }
        }
        let result = if count > 0 {
            Some(Ok(count))
        } else {
            wait(&waiter, deadline).err().map(|error| match error {
                Errno::EWOULDBLOCK => Ok(0),
                error => Err(error),
            })
        };
        for fd in fds.iter() {
            fd.handle.so.sopoll_done(&waiter);
        }
        if let Some(result) = result {
            return result;
        }
    }
}

/// Sleeps until the waiter is fired.
fn wait(waiter: &PollWaiter, deadline: Option<Sbintime>) -> Result<(), Errno> {
    let mut fired = waiter.fired.lock();
    while !*fired {
        let left = deadline.map(|deadline| deadline - crate::machine::sbinuptime());
        if left.is_some_and(|left| left <= Sbintime::ZERO) {
            return Err(Errno::EWOULDBLOCK);
        }
        let (guard, result) =
            MutexGuard::msleep(fired, WChan::of(&waiter.fired), PSOCK, "select", left, true);
        fired = guard;
        match result {
            Ok(()) => {}
            Err(SleepError::TimedOut) => return Err(Errno::EWOULDBLOCK),
            Err(SleepError::Interrupted) => return Err(Errno::EINTR),
        }
    }
    Ok(())
}

/// Any address, with this port: what servers bind to.
pub const fn any_port(port: u16) -> SockAddr {
    SockAddr::v4(Ipv4Addr::UNSPECIFIED, port)
}
