//! The socket layer: making and closing sockets, sending and receiving, options.
//!
//! FreeBSD: sys/kern/uipc_socket.c
//! Differs from FreeBSD: what is read is taken off the buffer under its lock and copied after the lock is
//! released, and never by more than `BATCH` mbufs at a time, so that input is not held up by a large reader.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::Errno;
use crate::kern::kern_ipc as ipc;
use crate::kern::kern_mutex::MutexGuard;
use crate::kern::kern_synch::{PSOCK, SleepError, WChan, wakeup};
use crate::kern::lock_order::LockClass;
use crate::kern::uipc_domain::HasDomains;
use crate::kern::uipc_sockbuf::SbLimits;
use crate::machine::atomic::Ordering;
use crate::mbuf::{How, MAX_HDR, Mbuf};
use crate::protosw::{PrFlags, Protosw, SendFlags, SockOpt};
use crate::sockbuf::{SbFlags, SbState, Sockbuf, Upcall};
use crate::socket::*;
use crate::socketvar::{
    ListenGuard, PollEvents, PollWaiter, QState, RcvGuard, SndGuard, SoState, Socket,
};
use crate::time::Sbintime;

/// mbufs taken off the receive buffer at a time.
const BATCH: usize = 32;

/// Bytes copied in for one call of the protocol, so that they are sent while they are in the cache.
const SEND_CHUNK: usize = 64 * 1024;

/// What a receive call got.
#[derive(Default)]
pub struct Received {
    /// Bytes written to the caller's buffer.
    pub len: usize,
    /// `MSG_TRUNC` if the datagram was longer.
    pub flags: MsgFlags,
    /// The sender of a datagram.
    pub from: Option<SockAddr>,
    /// Control messages of a datagram.
    pub control: Option<Mbuf>,
}

/// Whether one side of the socket sleeps in the buffer, and for how long.
fn sbwait<'a, C: LockClass>(
    mut sb: MutexGuard<'a, Sockbuf, C>,
    chan: WChan,
    wmesg: &'static str,
) -> (MutexGuard<'a, Sockbuf, C>, Result<(), Errno>) {
    sb.sb_flags |= SbFlags::WAIT;
    let timo = sb.sb_timeo;
    let catch = !sb.sb_flags.contains(SbFlags::NOINTR);
    let (sb, result) = MutexGuard::msleep(sb, chan, PSOCK, wmesg, timo, catch);
    (sb, result.map_err(sleep_errno))
}

fn sleep_errno(error: SleepError) -> Errno {
    match error {
        SleepError::TimedOut => Errno::EWOULDBLOCK,
        SleepError::Interrupted => Errno::EINTR,
    }
}

/// What a wakeup has to do once the buffer's lock is released.
struct Wake {
    sleepers: bool,
    pollers: Vec<Arc<PollWaiter>>,
    upcall: Option<Upcall>,
}

impl Wake {
    fn take(sb: &mut Sockbuf) -> Option<Wake> {
        let wanted = sb
            .sb_flags
            .intersection(SbFlags::WAIT | SbFlags::SEL | SbFlags::UPCALL);
        if wanted.is_empty() {
            return None;
        }
        sb.sb_flags.remove(SbFlags::WAIT | SbFlags::SEL);
        Some(Wake {
            sleepers: wanted.contains(SbFlags::WAIT),
            pollers: core::mem::take(&mut sb.sb_sel),
            upcall: sb.sb_upcall.clone(),
        })
    }

    fn run(self, so: &Arc<Socket>, chan: WChan) {
        if self.sleepers {
            wakeup(chan);
        }
        for poller in &self.pollers {
            poller.fire();
        }
        if let Some(upcall) = self.upcall {
            upcall(so);
        }
    }
}

impl PollWaiter {
    /// Wakes the caller of `poll`.
    pub(crate) fn fire(&self) {
        let mut fired = self.fired.lock();
        if !*fired {
            *fired = true;
            drop(fired);
            wakeup(WChan::of(&self.fired));
        }
    }
}

// Making and ending sockets.

/// Makes a socket of family `af`.
pub fn socreate(
    domains: &impl HasDomains,
    af: u8,
    ty: SockType,
    proto: i32,
) -> Result<Arc<Socket>, Errno> {
    let domain = domains.find_domain(af).ok_or(Errno::EAFNOSUPPORT)?;
    let so = Arc::new(Socket::alloc(
        af,
        ty,
        proto,
        SoOptions::empty(),
        SoState::empty(),
        None,
    )?);
    so.set_pcb(domain.attach(&so, ty, proto)?);
    Ok(so)
}

impl Socket {
    /// Sizes both buffers, for a protocol that attaches.
    pub fn soreserve(&self, sndcc: u32, rcvcc: u32) -> Result<(), Errno> {
        let limits = ipc::sb_limits();
        {
            let mut snd = self.snd.lock();
            snd.reserve(sndcc, &limits).map_err(|_| Errno::ENOBUFS)?;
            if snd.sb_lowat == 0 {
                snd.sb_lowat = crate::mbuf::MCLBYTES as u32;
            }
            snd.sb_lowat = snd.sb_lowat.min(snd.sb_hiwat);
        }
        let mut rcv = self.rcv.lock();
        if rcv.reserve(rcvcc, &limits).is_err() {
            drop(rcv);
            let _ = self.snd.lock().reserve(0, &limits);
            return Err(Errno::ENOBUFS);
        }
        if rcv.sb_lowat == 0 {
            rcv.sb_lowat = 1;
        }
        Ok(())
    }

    /// Gives the socket a local address.
    pub fn sobind(self: &Arc<Self>, nam: &SockAddr) -> Result<(), Errno> {
        self.pr()?.bind(self, nam)
    }

    /// Makes the socket accept connections.
    pub fn solisten(self: &Arc<Self>, backlog: i32) -> Result<(), Errno> {
        if self.state_has(SoState::ISCONNECTED | SoState::ISCONNECTING | SoState::ISDISCONNECTING) {
            return Err(Errno::EINVAL);
        }
        self.pr()?.listen(self, backlog)
    }

    /// What a protocol does to the socket in its `listen`: turns it into a listening one.
    pub fn solisten_proto(&self, backlog: i32) {
        let max = ipc::ipc().soacceptqueue.get();
        let qlimit = if backlog < 0 {
            max
        } else {
            (backlog as u32).min(max)
        };
        self.listen.lock().sol_qlimit = qlimit;
        self.set_options(SoOptions::ACCEPTCONN, true);
    }

    /// A socket for a connection that came in to listening socket `self`; `None` when the queues are full
    /// (more than 3/2 of the backlog). The protocol gives it a control block (`set_pcb`), and queues it with
    /// `solisten_enqueue`.
    #[doc(alias = "sonewconn")]
    pub fn solisten_clone(self: &Arc<Self>) -> Option<Arc<Socket>> {
        self.listen_queue_room()?;
        let options = self.options() - SoOptions::ACCEPTCONN - SoOptions::ACCEPTFILTER;
        let mut so = Socket::alloc(
            self.so_domain,
            self.so_type,
            self.so_proto,
            options,
            self.state() & SoState::NBIO | SoState::NOFDREF,
            Some(Arc::downgrade(self)),
        )
        .ok()?;
        so.set_linger(self.linger_seconds());
        so.set_fibnum(self.fibnum());
        inherit(&self.snd.lock(), so.snd.get_mut());
        inherit(&self.rcv.lock(), so.rcv.get_mut());
        Some(Arc::new(so))
    }

    /// Whether one more connection may be queued; counts and reports an overflow.
    fn listen_queue_room(&self) -> Option<()> {
        let mut listen = self.listen.lock();
        if listen.sol_comp.len() as u32 <= 3 * listen.sol_qlimit / 2 {
            return Some(());
        }
        listen.sol_overcount += 1;
        let now = crate::machine::sbinuptime();
        let interval = Sbintime::from_s(i64::from(ipc::ipc().sooverinterval.get()));
        let due = listen
            .sol_lastover
            .is_none_or(|last| now - last >= interval);
        if due {
            let (count, qlen, incqlen, limit) = (
                listen.sol_overcount,
                listen.sol_comp.len(),
                listen.sol_incomp.len(),
                listen.sol_qlimit,
            );
            listen.sol_lastover = Some(now);
            listen.sol_overcount = 0;
            drop(listen);
            crate::kprintf!(
                "sonewconn: pcb {:#x}: Listen queue overflow: {} already in queue awaiting acceptance ({} occurrences), {} incomplete, limit {}\n",
                core::ptr::from_ref(self) as usize,
                qlen,
                count,
                incqlen,
                limit
            );
        }
        None
    }

    /// Queues a connection on its listening socket; connected ones may be accepted at once. False if the
    /// listening socket is gone: the protocol then drops the connection.
    pub fn solisten_enqueue(self: &Arc<Self>, connected: bool) -> bool {
        let Some(head) = self.head.as_ref().and_then(|head| head.upgrade()) else {
            return false;
        };
        let mut oldest = None;
        {
            let mut listen = head.listen.lock();
            if !head.is_listening() || head.state_has(SoState::NOFDREF) {
                return false;
            }
            if connected {
                self.set_qstate(QState::Comp);
                self.change_state(SoState::ISCONNECTING, SoState::ISCONNECTED);
                listen.sol_comp.push_back(Arc::clone(self));
            } else {
                if listen.sol_incomp.len() as u32 > listen.sol_qlimit {
                    oldest = listen.sol_incomp.pop_front();
                }
                self.set_qstate(QState::Incomp);
                listen.sol_incomp.push_back(Arc::clone(self));
            }
        }
        if let Some(oldest) = oldest {
            oldest.set_qstate(QState::None);
            soabort(&oldest);
        }
        if connected {
            head.solisten_wakeup();
        }
        true
    }

    /// Wakes whoever waits for a connection or for the outcome of `connect`.
    fn solisten_wakeup(self: &Arc<Self>) {
        let mut listen = self.listen.lock();
        let waiting = core::mem::take(&mut listen.waiting);
        let pollers = core::mem::take(&mut listen.sel);
        let upcall = listen.sol_upcall.clone();
        drop(listen);
        if waiting {
            wakeup(WChan::of(&self.listen));
        }
        for poller in &pollers {
            poller.fire();
        }
        if let Some(upcall) = upcall {
            upcall(self);
        }
    }

    /// Takes the next connection off the queue, waiting for one unless non-blocking.
    #[doc(alias = "solisten_dequeue")]
    pub fn soaccept(self: &Arc<Self>, flags: MsgFlags) -> Result<(Arc<Socket>, SockAddr), Errno> {
        if !self.is_listening() {
            return Err(Errno::EINVAL);
        }
        let nonblocking = self.state_has(SoState::NBIO) || flags.contains(MsgFlags::DONTWAIT);
        let timo = self.rcv.lock().sb_timeo;
        let so = {
            let mut listen = self.listen.lock();
            loop {
                if let Some(so) = listen.sol_comp.pop_front() {
                    break so;
                }
                if let Some(error) = self.take_error() {
                    return Err(error);
                }
                if nonblocking {
                    return Err(Errno::EWOULDBLOCK);
                }
                listen = wait_for_state(self, listen, "accept", timo)?;
            }
        };
        so.set_qstate(QState::None);
        so.clear_state(SoState::NOFDREF);
        match so.pr().and_then(|pr| pr.accept(&so)) {
            Ok(peer) => Ok((so, peer)),
            Err(error) => {
                soclose(&so);
                Err(error)
            }
        }
    }

    /// Connects, and waits for the outcome unless non-blocking (`EINPROGRESS`).
    pub fn soconnect(self: &Arc<Self>, nam: &SockAddr) -> Result<(), Errno> {
        let pr = self.pr()?;
        if self.state_has(SoState::ISCONNECTING) {
            return Err(Errno::EALREADY);
        }
        if self.is_listening() {
            return Err(Errno::EOPNOTSUPP);
        }
        // Connecting a connected datagram socket elsewhere first disconnects it.
        if self.state_has(SoState::ISCONNECTED | SoState::ISCONNECTING)
            && (pr.pr_flags().contains(PrFlags::CONNREQUIRED) || self.sodisconnect().is_err())
        {
            return Err(Errno::EISCONN);
        }
        let _ = self.take_error();
        if let Err(error) = pr.connect(self, nam) {
            self.clear_state(SoState::ISCONNECTING);
            return Err(error);
        }
        if self.state_has(SoState::NBIO) && self.state_has(SoState::ISCONNECTING) {
            return Err(Errno::EINPROGRESS);
        }
        {
            let mut listen = self.listen.lock();
            while self.state_has(SoState::ISCONNECTING) && self.error().is_none() {
                // Interrupted, the connection goes on being made.
                listen = wait_for_state(self, listen, "connec", None)?;
            }
        }
        match self.take_error() {
            None => Ok(()),
            Some(error) => {
                self.clear_state(SoState::ISCONNECTING);
                Err(error)
            }
        }
    }

    /// Ends the connection in order.
    pub fn sodisconnect(self: &Arc<Self>) -> Result<(), Errno> {
        if !self.state_has(SoState::ISCONNECTED) {
            return Err(Errno::ENOTCONN);
        }
        if self.state_has(SoState::ISDISCONNECTING) {
            return Err(Errno::EALREADY);
        }
        self.pr()?.disconnect(self)
    }

    /// Closes one or both directions.
    pub fn soshutdown(self: &Arc<Self>, how: Shutdown) -> Result<(), Errno> {
        if self.is_listening() {
            if how != Shutdown::Write {
                self.set_error(Errno::ECONNABORTED);
                self.solisten_wakeup();
            }
            return Err(Errno::ENOTCONN);
        }
        let connected =
            self.state_has(SoState::ISCONNECTED | SoState::ISCONNECTING | SoState::ISDISCONNECTING);
        if !connected && self.so_type != SockType::Dgram {
            return Err(Errno::ENOTCONN);
        }
        if how != Shutdown::Write {
            self.sorflush();
        }
        if how != Shutdown::Read {
            let result = self.pr()?.shutdown(self);
            self.solisten_wakeup();
            result?;
        }
        // A datagram socket's readers and writers are woken all the same; POSIX wants the error.
        if connected {
            Ok(())
        } else {
            Err(Errno::ENOTCONN)
        }
    }

    /// Ends receiving and forgets what was not read.
    pub fn sorflush(self: &Arc<Self>) {
        // Wakes a reader, so that it lets go of the serialising lock.
        self.socantrcvmore();
        let _io = self.rcv_io.xlock();
        self.rcv.lock().flush();
    }
}

fn inherit(from: &Sockbuf, to: &mut Sockbuf) {
    to.sb_hiwat = from.sb_hiwat;
    to.sb_mbmax = from.sb_mbmax;
    to.sb_lowat = from.sb_lowat;
    to.sb_timeo = from.sb_timeo;
    to.sb_flags |= from.sb_flags & SbFlags::AUTOSIZE;
}

/// The last handle of `so` is gone: disconnects, lingers if asked to, and lets the protocol finish.
pub fn soclose(so: &Arc<Socket>) {
    if so.closed.swap(true, Ordering::AcqRel) {
        return;
    }
    if so.is_listening() {
        so.set_state(SoState::NOFDREF);
        let (incomp, comp) = {
            let mut listen = so.listen.lock();
            (
                core::mem::take(&mut listen.sol_incomp),
                core::mem::take(&mut listen.sol_comp),
            )
        };
        for child in incomp.iter().chain(comp.iter()) {
            child.set_qstate(QState::None);
            soabort(child);
        }
    } else if so.state_has(SoState::ISCONNECTED) {
        if !so.state_has(SoState::ISDISCONNECTING) {
            // An error here means that there is nothing to disconnect.
            let _ = so.sodisconnect();
        }
        if let Some(seconds) = so.linger()
            && !(so.state_has(SoState::ISDISCONNECTING) && so.state_has(SoState::NBIO))
        {
            linger(so, seconds);
        }
    }
    so.set_state(SoState::NOFDREF);
    sofree(so);
}

/// Waits until the connection has ended, at most `seconds`.
fn linger(so: &Arc<Socket>, seconds: u32) {
    let deadline = crate::machine::sbinuptime() + Sbintime::from_s(i64::from(seconds));
    let mut listen = so.listen.lock();
    while so.state_has(SoState::ISCONNECTED) {
        let left = deadline - crate::machine::sbinuptime();
        if left <= Sbintime::ZERO {
            return;
        }
        let Ok(guard) = wait_for_state(so, listen, "soclos", Some(left)) else {
            return;
        };
        listen = guard;
    }
}

/// Sleeps until the socket's state changes or a connection comes; the caller looks again which it was.
fn wait_for_state<'a>(
    so: &'a Socket,
    mut listen: ListenGuard<'a>,
    wmesg: &'static str,
    timo: Option<Sbintime>,
) -> Result<ListenGuard<'a>, Errno> {
    listen.waiting = true;
    let chan = WChan::of(&so.listen);
    let (listen, result) = MutexGuard::msleep(listen, chan, PSOCK, wmesg, timo, true);
    result.map_err(sleep_errno)?;
    Ok(listen)
}

/// Ends a connection that no program has.
pub fn soabort(so: &Arc<Socket>) {
    if so.closed.swap(true, Ordering::AcqRel) {
        return;
    }
    if let Ok(pr) = so.pr() {
        pr.abort(so);
    }
    sofree(so);
}

/// Tells the protocol that the program is gone, and ends with it unless it goes on alone.
fn sofree(so: &Arc<Socket>) {
    if let Ok(pr) = so.pr() {
        pr.close(so);
        if !so.state_has(SoState::PROTOREF) {
            pr.detach(so);
            so.snd.lock().flush();
            so.rcv.lock().flush();
        }
    }
}

// What protocols say about a connection.

impl Socket {
    /// A connection is being made.
    pub fn soisconnecting(&self) {
        self.change_state(
            SoState::ISCONNECTED | SoState::ISDISCONNECTING,
            SoState::ISCONNECTING,
        );
    }

    /// The connection is made: wakes `connect`, or moves the socket to the queue of those to be accepted.
    pub fn soisconnected(self: &Arc<Self>) {
        self.change_state(
            SoState::ISCONNECTING | SoState::ISDISCONNECTING | SoState::ISCONFIRMING,
            SoState::ISCONNECTED,
        );
        if self.qstate() == QState::Incomp
            && let Some(head) = self.head.as_ref().and_then(|head| head.upgrade())
        {
            let moved = {
                let mut listen = head.listen.lock();
                match listen
                    .sol_incomp
                    .iter()
                    .position(|so| Arc::ptr_eq(so, self))
                {
                    Some(at) => {
                        if let Some(so) = listen.sol_incomp.remove(at) {
                            so.set_qstate(QState::Comp);
                            listen.sol_comp.push_back(so);
                        }
                        true
                    }
                    None => false,
                }
            };
            if moved {
                head.solisten_wakeup();
            }
            return;
        }
        self.solisten_wakeup();
        self.sorwakeup(self.rcv.lock());
        self.sowwakeup(self.snd.lock());
    }

    /// The connection is ending: neither direction carries new data.
    pub fn soisdisconnecting(self: &Arc<Self>) {
        self.change_state(SoState::ISCONNECTING, SoState::ISDISCONNECTING);
        self.socantrcvmore();
        self.socantsendmore();
        self.solisten_wakeup();
    }

    /// The connection has ended, or could not be made; data not yet sent is forgotten.
    pub fn soisdisconnected(self: &Arc<Self>) {
        self.change_state(
            SoState::ISCONNECTING | SoState::ISCONNECTED | SoState::ISDISCONNECTING,
            SoState::ISDISCONNECTED,
        );
        self.socantrcvmore();
        let mut snd = self.snd.lock();
        snd.sb_state |= SbState::CANTSENDMORE;
        snd.flush();
        self.sowwakeup(snd);
        if self.qstate() == QState::Incomp
            && let Some(head) = self.head.as_ref().and_then(|head| head.upgrade())
        {
            let gone = {
                let mut listen = head.listen.lock();
                let at = listen
                    .sol_incomp
                    .iter()
                    .position(|so| Arc::ptr_eq(so, self));
                at.and_then(|at| listen.sol_incomp.remove(at))
            };
            drop(gone);
        }
        self.solisten_wakeup();
    }

    /// Nothing more may be sent.
    pub fn socantsendmore(self: &Arc<Self>) {
        let mut snd = self.snd.lock();
        snd.sb_state |= SbState::CANTSENDMORE;
        self.sowwakeup(snd);
    }

    /// Nothing more will be received.
    pub fn socantrcvmore(self: &Arc<Self>) {
        self.socantrcvmore_locked(self.rcv.lock());
    }

    /// As `socantrcvmore`, with the buffer locked.
    pub fn socantrcvmore_locked(self: &Arc<Self>, mut rcv: RcvGuard<'_>) {
        rcv.sb_state |= SbState::CANTRCVMORE;
        self.sorwakeup(rcv);
    }

    /// The receive buffer changed: unlocks it, and wakes readers if there are any.
    #[doc(alias = "sorwakeup_locked")]
    #[inline]
    pub fn sorwakeup(self: &Arc<Self>, mut rcv: RcvGuard<'_>) {
        if let Some(wake) = Wake::take(&mut rcv) {
            drop(rcv);
            wake.run(self, WChan::of(&self.rcv));
        }
    }

    /// The send buffer changed: unlocks it, and wakes writers if there are any.
    #[doc(alias = "sowwakeup_locked")]
    #[inline]
    pub fn sowwakeup(self: &Arc<Self>, mut snd: SndGuard<'_>) {
        if let Some(wake) = Wake::take(&mut snd) {
            drop(snd);
            wake.run(self, WChan::of(&self.snd));
        }
    }
}

// Sending.

/// A packet with the bytes of a datagram and room for headers.
fn datagram_to_mbuf(from: &[u8]) -> Option<Mbuf> {
    let mut m = Mbuf::getm2(How::Wait, from.len() + MAX_HDR, true)?;
    m.reserve_front(MAX_HDR);
    m.set_pkt_len(from.len());
    fill(&mut m, from).then_some(m)
}

/// A chain with the bytes, in page-sized clusters if there are many.
#[doc(alias = "m_uiotombuf")]
fn bytes_to_mbuf(from: &[u8]) -> Option<Mbuf> {
    let mut m = Mbuf::getm2(How::Wait, from.len(), false)?;
    fill(&mut m, from).then_some(m)
}

/// Copies `from` into the room of an empty chain; false if it does not fit.
fn fill(m: &mut Mbuf, from: &[u8]) -> bool {
    let mut from = from;
    let mut cursor = Some(m);
    while !from.is_empty() {
        let Some(m) = cursor else {
            return false;
        };
        let n = m.trailing_space().min(from.len());
        m.extend_mut(n).copy_from_slice(&from[..n]);
        from = &from[n..];
        cursor = m.next_mut();
    }
    true
}

impl Socket {
    /// Sends bytes: to the peer, or a datagram to `to`. Returns how many were sent; with part of them sent, an
    /// interruption or a timeout is no error.
    pub fn sosend(
        self: &Arc<Self>,
        from: &[u8],
        to: Option<&SockAddr>,
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let pr = self.pr()?;
        if pr.pr_flags().contains(PrFlags::ATOMIC) {
            self.sosend_dgram(pr, from, to, flags)
        } else {
            self.sosend_generic(pr, from, to, flags)
        }
    }

    /// Datagrams are never kept in the send buffer: nothing to wait for, nothing to serialise.
    fn sosend_dgram(
        self: &Arc<Self>,
        pr: &dyn Protosw,
        from: &[u8],
        to: Option<&SockAddr>,
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        {
            let snd = self.snd.lock();
            if snd.sb_state.contains(SbState::CANTSENDMORE) {
                return Err(Errno::EPIPE);
            }
            if let Some(error) = self.take_error() {
                return Err(error);
            }
            if to.is_none() && !self.state_has(SoState::ISCONNECTED) {
                return Err(if pr.pr_flags().contains(PrFlags::CONNREQUIRED) {
                    Errno::ENOTCONN
                } else {
                    Errno::EDESTADDRREQ
                });
            }
            if flags.contains(MsgFlags::OOB) {
                return Err(Errno::EOPNOTSUPP);
            }
            if from.len() > snd.space().max(0) as usize {
                return Err(Errno::EMSGSIZE);
            }
        }
        let m = datagram_to_mbuf(from).ok_or(Errno::ENOBUFS)?;
        let mut send_flags = SendFlags::empty();
        if flags.contains(MsgFlags::DONTROUTE) {
            send_flags |= SendFlags::DONTROUTE;
        }
        pr.send(self, send_flags, m, to)?;
        Ok(from.len())
    }

    fn sosend_generic(
        self: &Arc<Self>,
        pr: &dyn Protosw,
        from: &[u8],
        to: Option<&SockAddr>,
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let nonblocking =
            self.state_has(SoState::NBIO) || flags.intersects(MsgFlags::DONTWAIT | MsgFlags::NBIO);
        let _io = if flags.contains(MsgFlags::DONTWAIT) {
            self.snd_io.try_xlock().ok_or(Errno::EWOULDBLOCK)?
        } else {
            self.snd_io.xlock()
        };
        let mut sent = 0;
        loop {
            let space = match self.wait_for_space(pr, from.len() - sent, to, flags, nonblocking) {
                Ok(space) => space,
                Err(Errno::EINTR | Errno::EWOULDBLOCK) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error),
            };
            let mut space = space;
            loop {
                let n = (from.len() - sent).min(space).min(SEND_CHUNK);
                let m = bytes_to_mbuf(&from[sent..sent + n]).ok_or(Errno::ENOBUFS)?;
                space -= n;
                let left = from.len() - sent - n;
                let mut send_flags = SendFlags::empty();
                if flags.contains(MsgFlags::OOB) {
                    send_flags |= SendFlags::OOB;
                }
                if flags.contains(MsgFlags::EOF) && left == 0 {
                    send_flags |= SendFlags::EOF;
                } else if left > 0 && space > 0 {
                    send_flags |= SendFlags::MORETOCOME;
                }
                pr.send(self, send_flags, m, to)?;
                sent += n;
                if left == 0 {
                    return Ok(sent);
                }
                if space == 0 {
                    break;
                }
            }
        }
    }

    /// How many bytes the send buffer takes now, waiting until it takes enough.
    fn wait_for_space(
        self: &Arc<Self>,
        pr: &dyn Protosw,
        resid: usize,
        to: Option<&SockAddr>,
        flags: MsgFlags,
        nonblocking: bool,
    ) -> Result<usize, Errno> {
        let mut snd = self.snd.lock();
        loop {
            if snd.sb_state.contains(SbState::CANTSENDMORE) {
                return Err(Errno::EPIPE);
            }
            if let Some(error) = self.take_error() {
                return Err(error);
            }
            if !self.state_has(SoState::ISCONNECTED) {
                let implied = to.is_some() && pr.pr_flags().contains(PrFlags::IMPLOPCL);
                if !implied && (resid > 0 || !self.state_has(SoState::ISCONFIRMING)) {
                    return Err(Errno::ENOTCONN);
                }
            }
            let mut space = snd.space().max(0) as usize;
            if flags.contains(MsgFlags::OOB) {
                space += 1024;
            }
            if resid <= space || (space >= snd.sb_lowat as usize && space > 0) {
                return Ok(space);
            }
            if nonblocking {
                return Err(Errno::EWOULDBLOCK);
            }
            let (guard, result) = sbwait(snd, WChan::of(&self.snd), "sbwait");
            result?;
            snd = guard;
        }
    }
}

// Receiving.

/// What the reader of a stream finds.
enum Stream<'a> {
    /// There is something to take.
    Data(RcvGuard<'a>),
    /// The end.
    End,
}

/// How many of `len` bytes may be read before the out-of-band mark.
fn until_mark(rcv: &Sockbuf, len: usize) -> usize {
    match rcv.sb_oobmark as usize {
        0 => len,
        mark => len.min(mark),
    }
}

impl Socket {
    /// Receives bytes, or one datagram.
    pub fn soreceive(
        self: &Arc<Self>,
        into: &mut [u8],
        flags: MsgFlags,
    ) -> Result<Received, Errno> {
        let pr = self.pr()?;
        if flags.contains(MsgFlags::OOB) {
            return self.soreceive_rcvoob(pr, into, flags);
        }
        if pr.pr_flags().contains(PrFlags::ATOMIC) {
            self.soreceive_dgram(into, flags)
        } else {
            self.soreceive_stream(pr, into, flags)
        }
    }

    /// Receives the byte of urgent data.
    fn soreceive_rcvoob(
        self: &Arc<Self>,
        pr: &dyn Protosw,
        into: &mut [u8],
        flags: MsgFlags,
    ) -> Result<Received, Errno> {
        let byte = pr.rcvoob(self, flags)?;
        let len = match into.first_mut() {
            Some(first) => {
                *first = byte;
                1
            }
            None => 0,
        };
        Ok(Received {
            len,
            ..Received::default()
        })
    }

    fn soreceive_stream(
        self: &Arc<Self>,
        pr: &dyn Protosw,
        into: &mut [u8],
        flags: MsgFlags,
    ) -> Result<Received, Errno> {
        if self.is_listening() {
            return Err(Errno::ENOTCONN);
        }
        if into.is_empty() {
            return Ok(Received::default());
        }
        let _io = if flags.contains(MsgFlags::DONTWAIT) {
            self.rcv_io.try_xlock().ok_or(Errno::EWOULDBLOCK)?
        } else {
            self.rcv_io.xlock()
        };
        let mut got = 0;
        loop {
            match self.wait_for_data(pr, into.len() - got, got, flags) {
                Ok(Stream::Data(rcv)) => {
                    if flags.contains(MsgFlags::PEEK) {
                        let n = (rcv.used() as usize).min(until_mark(&rcv, into.len()));
                        rcv.copy_out(0, &mut into[..n]);
                        got = n;
                        break;
                    }
                    got += self.take_stream(rcv, &mut into[got..]);
                    if pr.pr_flags().contains(PrFlags::WANTRCVD) {
                        // Its failure concerns the window update alone.
                        let _ = pr.rcvd(self, flags);
                    }
                    let at_mark = || self.rcv.lock().sb_state.contains(SbState::RCVATMARK);
                    if got == into.len() || !flags.contains(MsgFlags::WAITALL) || at_mark() {
                        break;
                    }
                }
                Ok(Stream::End) => break,
                Err(Errno::EINTR | Errno::EWOULDBLOCK) if got > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Received {
            len: got,
            ..Received::default()
        })
    }

    /// Waits until the stream has what the call wants, or will not have it.
    fn wait_for_data(
        self: &Arc<Self>,
        pr: &dyn Protosw,
        resid: usize,
        got: usize,
        flags: MsgFlags,
    ) -> Result<Stream<'_>, Errno> {
        let mut rcv = self.rcv.lock();
        loop {
            let avail = rcv.used();
            if self.error().is_some() {
                if avail > 0 {
                    return Ok(Stream::Data(rcv));
                }
                if got > 0 {
                    return Ok(Stream::End);
                }
                if let Some(error) = self.receive_error(flags) {
                    return Err(error);
                }
            }
            if rcv.sb_state.contains(SbState::CANTRCVMORE) {
                return Ok(if avail > 0 {
                    Stream::Data(rcv)
                } else {
                    Stream::End
                });
            }
            if !self.state_has(SoState::ISCONNECTED | SoState::ISCONNECTING)
                && pr.pr_flags().contains(PrFlags::CONNREQUIRED)
            {
                return Err(Errno::ENOTCONN);
            }
            let nonblocking = self.state_has(SoState::NBIO)
                || flags.intersects(MsgFlags::DONTWAIT | MsgFlags::NBIO);
            if avail == 0 && nonblocking {
                return Err(Errno::EWOULDBLOCK);
            }
            let enough = avail as usize >= resid || avail >= rcv.sb_hiwat;
            // What waits for all takes it in parts: a buffer may never hold more than a window or two of them.
            let ready = if flags.contains(MsgFlags::WAITALL | MsgFlags::PEEK) {
                enough
            } else {
                nonblocking || enough || avail >= rcv.sb_lowat
            };
            if avail > 0 && ready {
                return Ok(Stream::Data(rcv));
            }
            let (guard, result) = sbwait(rcv, WChan::of(&self.rcv), "sbwait");
            result?;
            rcv = guard;
        }
    }

    /// The socket's error, which is told once, but stays for a call that only peeks.
    fn receive_error(&self, flags: MsgFlags) -> Option<Errno> {
        if flags.contains(MsgFlags::PEEK) {
            self.error()
        } else {
            self.take_error()
        }
    }

    /// Takes what there is, up to the size of `into` and to the out-of-band mark. The caller holds `rcv_io`: nobody else takes.
    fn take_stream(self: &Arc<Self>, rcv: RcvGuard<'_>, into: &mut [u8]) -> usize {
        let mut rcv = rcv;
        let mut got = 0;
        loop {
            let mut batch = [const { None::<Mbuf> }; BATCH];
            let mut wanted = until_mark(&rcv, into.len() - got);
            let end = got + wanted;
            let mut count = 0;
            for slot in &mut batch {
                if wanted == 0 {
                    break;
                }
                let Some(m) = rcv.pop_stream(wanted as u32) else {
                    break;
                };
                wanted -= m.len().min(wanted);
                *slot = Some(m);
                count += 1;
            }
            drop(rcv);
            for m in batch.into_iter().take(count).flatten() {
                let mut m = m;
                let n = m.len().min(end - got);
                into[got..got + n].copy_from_slice(&m.data()[..n]);
                got += n;
                if n < m.len() {
                    m.trim_front(n);
                    self.rcv.lock().unread(m);
                }
            }
            if wanted == 0 || count < BATCH {
                return got;
            }
            rcv = self.rcv.lock();
        }
    }

    fn soreceive_dgram(
        self: &Arc<Self>,
        into: &mut [u8],
        flags: MsgFlags,
    ) -> Result<Received, Errno> {
        let nonblocking =
            self.state_has(SoState::NBIO) || flags.intersects(MsgFlags::DONTWAIT | MsgFlags::NBIO);
        let mut rcv = self.rcv.lock();
        loop {
            if !rcv.sb_records.is_empty() {
                break;
            }
            if let Some(error) = self.receive_error(flags) {
                return Err(error);
            }
            if rcv.sb_state.contains(SbState::CANTRCVMORE) {
                return Ok(Received::default());
            }
            if nonblocking {
                return Err(Errno::EWOULDBLOCK);
            }
            let (guard, result) = sbwait(rcv, WChan::of(&self.rcv), "sbwait");
            result?;
            rcv = guard;
        }
        if flags.contains(MsgFlags::PEEK) {
            let Some(record) = rcv.sb_records.front() else {
                return Ok(Received::default());
            };
            return Ok(copy_datagram(&record.m, record.from, into));
        }
        let Some(record) = rcv.pop_record() else {
            return Ok(Received::default());
        };
        drop(rcv);
        let mut received = copy_datagram(&record.m, record.from, into);
        received.control = record.control;
        Ok(received)
    }
}

fn copy_datagram(m: &Mbuf, from: Option<SockAddr>, into: &mut [u8]) -> Received {
    let total = m.pkt_len();
    let n = total.min(into.len());
    m.copydata(0, &mut into[..n]);
    Received {
        len: n,
        flags: if total > n {
            MsgFlags::TRUNC
        } else {
            MsgFlags::empty()
        },
        from,
        control: None,
    }
}

// Options.

/// The boolean options a program may set.
const SETTABLE: SoOptions = SoOptions::DEBUG
    .union(SoOptions::KEEPALIVE)
    .union(SoOptions::DONTROUTE)
    .union(SoOptions::USELOOPBACK)
    .union(SoOptions::BROADCAST)
    .union(SoOptions::REUSEADDR)
    .union(SoOptions::REUSEPORT)
    .union(SoOptions::REUSEPORT_LB)
    .union(SoOptions::OOBINLINE)
    .union(SoOptions::TIMESTAMP)
    .union(SoOptions::BINTIME)
    .union(SoOptions::NOSIGPIPE)
    .union(SoOptions::NO_DDP)
    .union(SoOptions::NO_OFFLOAD);

impl Socket {
    /// Sets an option of any level.
    pub fn sosetopt(self: &Arc<Self>, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        let mut sopt = SockOpt::set(level, name, value);
        let pr = self.pr()?;
        if level != SOL_SOCKET {
            return pr.ctloutput(self, &mut sopt);
        }
        match name {
            SO_ACCEPTFILTER => return Err(Errno::EOPNOTSUPP),
            SO_LINGER => {
                let (onoff, seconds) = value.split_at_checked(4).ok_or(Errno::EINVAL)?;
                let onoff = int_value(onoff)?;
                let seconds = int_value(seconds)?;
                if !(0..=i32::from(u16::MAX)).contains(&seconds) {
                    return Err(Errno::EDOM);
                }
                self.set_linger(seconds);
                self.set_options(SoOptions::LINGER, onoff != 0);
            }
            SO_SNDBUF | SO_RCVBUF | SO_SNDLOWAT | SO_RCVLOWAT => {
                self.set_buffer_option(name, int_value(value)?)?;
            }
            SO_SNDTIMEO => self.snd.lock().sb_timeo = timeval_value(value)?,
            SO_RCVTIMEO => self.rcv.lock().sb_timeo = timeval_value(value)?,
            SO_SETFIB => {
                // There is one routing table.
                if int_value(value)? != 0 {
                    return Err(Errno::EINVAL);
                }
                self.set_fibnum(0);
            }
            SO_USER_COOKIE => self
                .so_user_cookie
                .store(int_value(value)? as u32, Ordering::Relaxed),
            SO_TS_CLOCK => {
                let clock = int_value(value)?;
                if !(0..=3).contains(&clock) {
                    return Err(Errno::EINVAL);
                }
                self.so_ts_clock.store(clock, Ordering::Relaxed);
            }
            SO_MAX_PACING_RATE => self
                .so_max_pacing_rate
                .store(int_value(value)? as u32 as u64, Ordering::Relaxed),
            SO_LABEL | SO_PEERLABEL => return Err(Errno::EOPNOTSUPP),
            _ => match SoOptions::from_bits(name as u32) {
                Some(bit) if SETTABLE.contains(bit) && bit.bits().is_power_of_two() => {
                    self.set_options(bit, int_value(value)? != 0);
                }
                _ => return Err(Errno::ENOPROTOOPT),
            },
        }
        // Protocols that care for socket options hear of them; the others do not know them.
        let _ = pr.ctloutput(self, &mut sopt);
        Ok(())
    }

    fn set_buffer_option(&self, name: i32, value: i32) -> Result<(), Errno> {
        if value < 1 {
            return Err(Errno::EINVAL);
        }
        let value = value as u32;
        let limits = ipc::sb_limits();
        match name {
            SO_SNDBUF => set_hiwat(&mut self.snd.lock(), value, &limits),
            SO_RCVBUF => set_hiwat(&mut self.rcv.lock(), value, &limits),
            SO_SNDLOWAT => {
                let mut snd = self.snd.lock();
                snd.sb_lowat = value.min(snd.sb_hiwat);
                Ok(())
            }
            _ => {
                let mut rcv = self.rcv.lock();
                rcv.sb_lowat = value.min(rcv.sb_hiwat);
                Ok(())
            }
        }
    }

    /// Reads an option of any level: the bytes FreeBSD would copy out, at most `max`.
    pub fn sogetopt(self: &Arc<Self>, level: i32, name: i32, max: usize) -> Result<Vec<u8>, Errno> {
        self.sogetopt_by(level, name, Vec::new(), max)
    }

    /// Reads at most `max` bytes of an option that is asked for by a structure, `out`.
    pub fn sogetopt_by(
        self: &Arc<Self>,
        level: i32,
        name: i32,
        mut out: Vec<u8>,
        max: usize,
    ) -> Result<Vec<u8>, Errno> {
        let mut sopt = SockOpt::get(level, name, &mut out, max);
        if level != SOL_SOCKET {
            self.pr()?.ctloutput(self, &mut sopt)?;
            return Ok(out);
        }
        match name {
            SO_LINGER => {
                let onoff = (self.options() & SoOptions::LINGER).bits() as i32;
                let mut bytes = [0; 8];
                bytes[..4].copy_from_slice(&onoff.to_ne_bytes());
                bytes[4..].copy_from_slice(&self.linger_seconds().to_ne_bytes());
                sopt.answer(&bytes)?;
            }
            SO_SNDTIMEO => sopt.answer(&timeval_bytes(self.snd.lock().sb_timeo))?,
            SO_RCVTIMEO => sopt.answer(&timeval_bytes(self.rcv.lock().sb_timeo))?,
            SO_MAX_PACING_RATE => {
                let rate = self.so_max_pacing_rate.load(Ordering::Relaxed);
                sopt.answer_int(rate.min(u64::from(u32::MAX)) as u32 as i32)?;
            }
            SO_ACCEPTFILTER | SO_LABEL | SO_PEERLABEL => return Err(Errno::EOPNOTSUPP),
            _ => sopt.answer_int(self.int_option(name)?)?,
        }
        Ok(out)
    }

    fn int_option(&self, name: i32) -> Result<i32, Errno> {
        Ok(match name {
            SO_TYPE => self.so_type as i32,
            SO_DOMAIN => i32::from(self.so_domain),
            SO_PROTOCOL => self.so_proto,
            SO_ERROR => self.take_error().map_or(0, Errno::number),
            SO_SNDBUF => self.snd.lock().sb_hiwat as i32,
            SO_RCVBUF => self.rcv.lock().sb_hiwat as i32,
            SO_SNDLOWAT => self.snd.lock().sb_lowat as i32,
            SO_RCVLOWAT => self.rcv.lock().sb_lowat as i32,
            SO_LISTENQLIMIT => self.listen_queue().2 as i32,
            SO_LISTENQLEN => self.listen_queue().0 as i32,
            SO_LISTENINCQLEN => self.listen_queue().1 as i32,
            SO_TS_CLOCK => self.so_ts_clock.load(Ordering::Relaxed),
            SO_SETFIB => self.fibnum() as i32,
            SO_USER_COOKIE => return Err(Errno::ENOPROTOOPT),
            _ => match SoOptions::from_bits(name as u32) {
                Some(bit) if bit.bits().is_power_of_two() => (self.options() & bit).bits() as i32,
                _ => return Err(Errno::ENOPROTOOPT),
            },
        })
    }

    /// Sets or clears the upcall of a direction (of the listen queue, for a listening socket's receive side).
    pub fn soupcall_set(&self, direction: Direction, upcall: Option<Upcall>) {
        let old = match direction {
            Direction::Rcv if self.is_listening() => {
                core::mem::replace(&mut self.listen.lock().sol_upcall, upcall)
            }
            Direction::Rcv => set_upcall(&mut self.rcv.lock(), upcall),
            Direction::Snd => set_upcall(&mut self.snd.lock(), upcall),
        };
        drop(old);
    }

    /// What would not block now; registers `waiter` for the rest.
    pub(crate) fn sopoll(
        &self,
        events: PollEvents,
        waiter: Option<&Arc<PollWaiter>>,
    ) -> PollEvents {
        let mut ready = PollEvents::empty();
        if self.is_listening() {
            let mut listen = self.listen.lock();
            if !listen.sol_comp.is_empty() || self.error().is_some() {
                ready |= events & PollEvents::IN;
            } else if let Some(waiter) = waiter {
                listen.sel.push(Arc::clone(waiter));
            }
            return ready;
        }
        let eof;
        {
            let mut rcv = self.rcv.lock();
            eof = rcv.sb_state.contains(SbState::CANTRCVMORE);
            let ended = eof && !events.contains(PollEvents::INIGNEOF);
            if rcv.used() >= rcv.sb_lowat.max(1) || ended || self.error().is_some() {
                ready |= events & (PollEvents::IN | PollEvents::RDNORM);
            }
            if rcv.sb_oobmark > 0 || rcv.sb_state.contains(SbState::RCVATMARK) {
                ready |= events & (PollEvents::PRI | PollEvents::RDBAND);
            }
            if eof {
                ready |= events & PollEvents::RDHUP;
            }
            if !ready.is_empty() {
                // Nothing to wait for.
            } else if let Some(waiter) = waiter {
                rcv.sb_sel.push(Arc::clone(waiter));
                rcv.sb_flags |= SbFlags::SEL;
            }
        }
        {
            let mut snd = self.snd.lock();
            let ended = snd.sb_state.contains(SbState::CANTSENDMORE);
            let connected = self.state_has(SoState::ISCONNECTED)
                || !self.pr_flags().contains(PrFlags::CONNREQUIRED);
            let room = snd.space() >= snd.sb_lowat as i32 && connected;
            if eof && ended && !events.contains(PollEvents::INIGNEOF) {
                ready |= PollEvents::HUP;
            }
            // An error is no event of its own: it makes a socket ready, and the call that follows reports it.
            if room || ended || self.error().is_some() {
                ready |= events & PollEvents::OUT;
            }
            if !ready.is_empty() {
                // Nothing to wait for.
            } else if let Some(waiter) = waiter {
                snd.sb_sel.push(Arc::clone(waiter));
                snd.sb_flags |= SbFlags::SEL;
            }
        }
        ready
    }

    /// Forgets a `poll` that ended.
    pub(crate) fn sopoll_done(&self, waiter: &Arc<PollWaiter>) {
        let others = |w: &Arc<PollWaiter>| !Arc::ptr_eq(w, waiter);
        if self.is_listening() {
            self.listen.lock().sel.retain(others);
        } else {
            self.rcv.lock().sb_sel.retain(others);
            self.snd.lock().sb_sel.retain(others);
        }
    }
}

/// A direction of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Receiving.
    Rcv,
    /// Sending.
    Snd,
}

fn set_upcall(sb: &mut Sockbuf, upcall: Option<Upcall>) -> Option<Upcall> {
    sb.sb_flags.set(SbFlags::UPCALL, upcall.is_some());
    core::mem::replace(&mut sb.sb_upcall, upcall)
}

/// A size the program asks for ends autosizing.
fn set_hiwat(sb: &mut Sockbuf, cc: u32, limits: &SbLimits) -> Result<(), Errno> {
    sb.reserve(cc, limits).map_err(|_| Errno::ENOBUFS)?;
    sb.set_autosize(false);
    Ok(())
}

fn int_value(value: &[u8]) -> Result<i32, Errno> {
    let bytes: &[u8; 4] = value.first_chunk().ok_or(Errno::EINVAL)?;
    Ok(i32::from_ne_bytes(*bytes))
}

/// A `struct timeval`; zero means for ever.
fn timeval_value(value: &[u8]) -> Result<Option<Sbintime>, Errno> {
    let (sec, usec) = value.split_at_checked(8).ok_or(Errno::EINVAL)?;
    let sec: &[u8; 8] = sec.first_chunk().ok_or(Errno::EINVAL)?;
    let usec: &[u8; 8] = usec.first_chunk().ok_or(Errno::EINVAL)?;
    let (sec, usec) = (i64::from_ne_bytes(*sec), i64::from_ne_bytes(*usec));
    if sec < 0 || !(0..1_000_000).contains(&usec) {
        return Err(Errno::EDOM);
    }
    if sec == 0 && usec == 0 {
        return Ok(None);
    }
    if sec > i64::from(i32::MAX) {
        return Ok(Some(Sbintime::from_s(i64::from(i32::MAX))));
    }
    Ok(Some(Sbintime::from_s(sec) + Sbintime::from_us(usec)))
}

fn timeval_bytes(timo: Option<Sbintime>) -> [u8; 16] {
    let us = timo.map_or(0, Sbintime::as_us);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(us / 1_000_000).to_ne_bytes());
    bytes[8..].copy_from_slice(&(us % 1_000_000).to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests;
