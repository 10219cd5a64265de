//! The socket: type, state and what protocols and programs may ask of it.
//!
//! FreeBSD: sys/sys/socketvar.h

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};

use bitflags::bitflags;
use spin::Once;

use crate::errno::Errno;
use crate::kern::kern_ipc;
use crate::kern::kern_mutex::{Mutex, MutexGuard};
use crate::kern::kern_sx::Sx;
use crate::kern::lock_order::{SelInfo, SoListen, SoRcv, SoRcvSx, SoSnd, SoSndSx};
use crate::machine::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::protosw::{PrFlags, Protosw};
use crate::sockbuf::{SbState, Sockbuf, Upcall};
use crate::socket::{SoOptions, SockType};
use crate::time::Sbintime;

bitflags! {
    /// `so_state`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SoState: u32 {
        /// No program has it any more (`SS_NOFDREF`).
        const NOFDREF = 0x1;
        /// Connected to a peer (`SS_ISCONNECTED`).
        const ISCONNECTED = 0x2;
        /// Connecting to a peer (`SS_ISCONNECTING`).
        const ISCONNECTING = 0x4;
        /// Disconnecting from a peer (`SS_ISDISCONNECTING`).
        const ISDISCONNECTING = 0x8;
        /// Calls do not block (`SS_NBIO`).
        const NBIO = 0x100;
        /// Accepted by the protocol, not yet by the program (`SS_ISCONFIRMING`).
        const ISCONFIRMING = 0x400;
        /// Was connected, and is no more (`SS_ISDISCONNECTED`).
        const ISDISCONNECTED = 0x2000;
        /// The protocol keeps the socket after the program is gone (`SS_PROTOREF`).
        const PROTOREF = 0x4000;
    }
}

bitflags! {
    /// What `poll` asks and answers.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PollEvents: u16 {
        /// Reading would not block (`POLLIN`).
        const IN = 0x1;
        /// Urgent data waits, or the reader stands at its mark (`POLLPRI`).
        const PRI = 0x2;
        /// Writing would not block (`POLLOUT`).
        const OUT = 0x4;
        /// Both directions are closed (`POLLHUP`); told without being asked.
        const HUP = 0x10;
        /// The same as `IN` (`POLLRDNORM`).
        const RDNORM = 0x40;
        /// The same as `PRI` (`POLLRDBAND`).
        const RDBAND = 0x80;
        /// Does not count the end of the stream as something to read (`POLLINIGNEOF`).
        const INIGNEOF = 0x2000;
        /// The peer sends no more (`POLLRDHUP`).
        const RDHUP = 0x4000;
    }
}

/// In which of its listening socket's queues a socket is (`so_qstate`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum QState {
    /// In none.
    None = 0,
    /// Not yet connected.
    Incomp = 1,
    /// Waits to be accepted.
    Comp = 2,
}

/// What a listening socket has besides (`so_listen`).
pub struct Listen {
    /// Connections not yet established.
    pub(crate) sol_incomp: VecDeque<Arc<Socket>>,
    /// Connections to be accepted.
    pub(crate) sol_comp: VecDeque<Arc<Socket>>,
    /// The backlog.
    pub(crate) sol_qlimit: u32,
    /// Someone sleeps in accept or connect.
    pub(crate) waiting: bool,
    /// Overflows since the last message.
    pub(crate) sol_overcount: u32,
    pub(crate) sol_lastover: Option<Sbintime>,
    pub(crate) sol_upcall: Option<Upcall>,
    pub(crate) sel: alloc::vec::Vec<Arc<PollWaiter>>,
}

/// One caller of `poll`.
pub struct PollWaiter {
    pub(crate) fired: Mutex<bool, SelInfo>,
}

/// A socket. Programs hold it through [`SocketHandle`](crate::kern::uipc_syscalls::SocketHandle), protocols by
/// `Arc`.
///
/// Flags that one side sets and the other reads are atomic; a sleeper checks them under the lock it sleeps
/// with, and whoever changes them takes that lock once before waking (`so_rcv` for readers, `so_snd` for writers,
/// `so_listen` for `connect`, `accept` and `close`).
#[repr(align(64))]
pub struct Socket {
    /// `so_type`.
    pub so_type: SockType,
    /// The address family.
    pub so_domain: u8,
    /// The protocol number asked for.
    pub so_proto: i32,
    so_options: AtomicU32,
    so_state: AtomicU32,
    /// Number of the pending error, or 0.
    so_error: AtomicI32,
    so_linger: AtomicI32,
    so_fibnum: AtomicU32,
    pub(crate) so_user_cookie: AtomicU32,
    pub(crate) so_max_pacing_rate: AtomicU64,
    so_qstate: AtomicU8,
    /// `SO_TS_CLOCK`.
    pub(crate) so_ts_clock: AtomicI32,
    /// The listening socket this one came from.
    pub(crate) head: Option<Weak<Socket>>,
    pcb: Once<Arc<dyn Protosw>>,
    pub(crate) closed: AtomicBool,
    /// Serialises senders.
    pub(crate) snd_io: Sx<(), SoSndSx>,
    /// Serialises receivers.
    pub(crate) rcv_io: Sx<(), SoRcvSx>,
    /// The send buffer.
    pub snd: Mutex<Sockbuf, SoSnd>,
    /// The receive buffer.
    pub rcv: Mutex<Sockbuf, SoRcv>,
    /// The listen queues; also the lock that `connect` and `close` sleep with.
    pub(crate) listen: Mutex<Listen, SoListen>,
}

/// The locked send buffer.
pub type SndGuard<'a> = MutexGuard<'a, Sockbuf, SoSnd>;
/// The locked receive buffer.
pub type RcvGuard<'a> = MutexGuard<'a, Sockbuf, SoRcv>;
/// The locked listen queues.
pub(crate) type ListenGuard<'a> = MutexGuard<'a, Listen, SoListen>;

impl Drop for Socket {
    fn drop(&mut self) {
        kern_ipc::closed();
    }
}

impl Socket {
    /// A socket without protocol; [`Socket::set_pcb`] completes it. `ENFILE` when there are too many.
    #[doc(alias = "soalloc")]
    pub(crate) fn alloc(
        so_domain: u8,
        so_type: SockType,
        so_proto: i32,
        options: SoOptions,
        state: SoState,
        head: Option<Weak<Socket>>,
    ) -> Result<Socket, Errno> {
        kern_ipc::opened()?;
        Ok(Socket {
            so_type,
            so_domain,
            so_proto,
            so_options: AtomicU32::new(options.bits()),
            so_state: AtomicU32::new(state.bits()),
            so_error: AtomicI32::new(0),
            so_linger: AtomicI32::new(0),
            so_fibnum: AtomicU32::new(0),
            so_user_cookie: AtomicU32::new(0),
            so_max_pacing_rate: AtomicU64::new(0),
            so_qstate: AtomicU8::new(QState::None as u8),
            so_ts_clock: AtomicI32::new(0),
            head,
            pcb: Once::new(),
            closed: AtomicBool::new(false),
            snd_io: Sx::new(()),
            rcv_io: Sx::new(()),
            snd: Mutex::new(Sockbuf::new()),
            rcv: Mutex::new(Sockbuf::new()),
            listen: Mutex::new(Listen {
                sol_incomp: VecDeque::new(),
                sol_comp: VecDeque::new(),
                sol_qlimit: 0,
                waiting: false,
                sol_overcount: 0,
                sol_lastover: None,
                sol_upcall: None,
                sel: alloc::vec::Vec::new(),
            }),
        })
    }

    /// Gives the socket its protocol control block, once.
    pub fn set_pcb(&self, pcb: Arc<dyn Protosw>) {
        self.pcb.call_once(|| pcb);
    }

    /// The protocol control block; `EINVAL` while the socket is being made.
    pub fn pr(&self) -> Result<&dyn Protosw, Errno> {
        match self.pcb.get() {
            Some(pcb) => Ok(&**pcb),
            None => Err(Errno::EINVAL),
        }
    }

    /// How the protocol wants to be used.
    pub fn pr_flags(&self) -> PrFlags {
        self.pcb
            .get()
            .map_or(PrFlags::empty(), |pcb| pcb.pr_flags())
    }

    /// The state bits.
    #[inline]
    pub fn state(&self) -> SoState {
        SoState::from_bits_retain(self.so_state.load(Ordering::Acquire))
    }

    /// Whether any of `bits` is set.
    #[inline]
    pub fn state_has(&self, bits: SoState) -> bool {
        self.state().intersects(bits)
    }

    /// Sets state bits.
    pub fn set_state(&self, bits: SoState) {
        self.so_state.fetch_or(bits.bits(), Ordering::AcqRel);
    }

    /// Clears state bits.
    pub fn clear_state(&self, bits: SoState) {
        self.so_state.fetch_and(!bits.bits(), Ordering::AcqRel);
    }

    /// Clears `off` and sets `on` in one step.
    pub(crate) fn change_state(&self, off: SoState, on: SoState) {
        let _ = self
            .so_state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                Some(state & !off.bits() | on.bits())
            });
    }

    /// The boolean options.
    #[inline]
    pub fn options(&self) -> SoOptions {
        SoOptions::from_bits_retain(self.so_options.load(Ordering::Relaxed))
    }

    /// Sets or clears boolean options.
    pub fn set_options(&self, bits: SoOptions, on: bool) {
        if on {
            self.so_options.fetch_or(bits.bits(), Ordering::AcqRel);
        } else {
            self.so_options.fetch_and(!bits.bits(), Ordering::AcqRel);
        }
    }

    /// The pending error, which stays.
    pub fn error(&self) -> Option<Errno> {
        match self.so_error.load(Ordering::Acquire) {
            0 => None,
            number => Errno::from_number(number),
        }
    }

    /// Makes an error pending; the next call returns it. The caller wakes whom it concerns.
    pub fn set_error(&self, error: Errno) {
        self.so_error.store(error.number(), Ordering::Release);
    }

    /// Takes the pending error.
    pub fn take_error(&self) -> Option<Errno> {
        if self.so_error.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Errno::from_number(self.so_error.swap(0, Ordering::AcqRel))
    }

    /// For how many seconds `close` lingers, if it does. `Some(0)`: the connection is to be reset.
    pub fn linger(&self) -> Option<u32> {
        self.options()
            .contains(SoOptions::LINGER)
            .then(|| self.so_linger.load(Ordering::Relaxed).max(0) as u32)
    }

    pub(crate) fn linger_seconds(&self) -> i32 {
        self.so_linger.load(Ordering::Relaxed)
    }

    pub(crate) fn set_linger(&self, seconds: i32) {
        self.so_linger.store(seconds, Ordering::Relaxed);
    }

    /// The routing table of the socket.
    pub fn fibnum(&self) -> u32 {
        self.so_fibnum.load(Ordering::Relaxed)
    }

    pub(crate) fn set_fibnum(&self, fib: u32) {
        self.so_fibnum.store(fib, Ordering::Relaxed);
    }

    /// In which listen queue it is.
    pub fn qstate(&self) -> QState {
        match self.so_qstate.load(Ordering::Acquire) {
            1 => QState::Incomp,
            2 => QState::Comp,
            _ => QState::None,
        }
    }

    pub(crate) fn set_qstate(&self, q: QState) {
        self.so_qstate.store(q as u8, Ordering::Release);
    }

    /// Whether it listens.
    pub fn is_listening(&self) -> bool {
        self.options().contains(SoOptions::ACCEPTCONN)
    }

    /// Whether sending is over.
    pub fn cant_send_more(&self) -> bool {
        self.snd.lock().state().contains(SbState::CANTSENDMORE)
    }

    /// Whether receiving is over.
    pub fn cant_rcv_more(&self) -> bool {
        self.rcv.lock().state().contains(SbState::CANTRCVMORE)
    }

    /// Complete, incomplete connections and the limit, for `netstat -L`.
    pub fn listen_queue(&self) -> (usize, usize, u32) {
        let listen = self.listen.lock();
        (
            listen.sol_comp.len(),
            listen.sol_incomp.len(),
            listen.sol_qlimit,
        )
    }
}
