//! The socket layer above a protocol that hands everything to its peer at once.

use super::*;
use crate::kern::kern_ipc;
use crate::kern::kern_mbuf::MbufStat;
use crate::kern::kern_synch::pause_sbt;
use crate::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use crate::kern::uipc_syscalls::{PollFd, SocketHandle, poll};
use crate::machine::hosted::Machine;
use crate::machine::sbinuptime;
use crate::protosw::Domain;
use alloc::sync::Weak;
use alloc::vec;
use core::net::Ipv4Addr;

use crate::kern::kern_mutex::Mutex;
use crate::kern::lock_order::{InpClass, Syncache};

/// One end of a pipe; a stream, or datagrams.
struct Pipe {
    datagrams: bool,
    net: Arc<Net>,
    peer: Mutex<Option<Weak<Socket>>, InpClass>,
}

/// The world the pipes are in: at most one listener.
struct Net {
    listener: Mutex<Option<Weak<Socket>>, InpClass>,
    /// Held from buffer to buffer: sender and receiver may both push, and the bytes keep their order.
    pushing: Mutex<(), Syncache>,
}

fn net() -> Arc<Net> {
    Arc::new(Net {
        listener: Mutex::new(None),
        pushing: Mutex::new(()),
    })
}

impl HasDomains for Net {
    fn find_domain(&self, _af: u8) -> Option<Arc<dyn Domain>> {
        None
    }
}

/// `Net` behind an `Arc` is a domain, for the tests' sake.
struct PipeDomain(Arc<Net>);

impl HasDomains for PipeDomain {
    fn find_domain(&self, af: u8) -> Option<Arc<dyn Domain>> {
        (af == AF_INET).then(|| Arc::new(PipeDomain(self.0.clone())) as Arc<dyn Domain>)
    }
}

impl Domain for PipeDomain {
    fn attach(&self, so: &Arc<Socket>, ty: SockType, _: i32) -> Result<Arc<dyn Protosw>, Errno> {
        so.soreserve(8192, 8192)?;
        Ok(Arc::new(Pipe {
            datagrams: ty == SockType::Dgram,
            net: self.0.clone(),
            peer: Mutex::new(None),
        }))
    }
}

const ADDRESS: SockAddr = SockAddr::v4(Ipv4Addr::LOCALHOST, 7);

impl Pipe {
    fn peer(&self) -> Option<Arc<Socket>> {
        self.peer.lock().as_ref()?.upgrade()
    }

    /// Moves what fits from our send buffer to the peer's receive buffer.
    fn push(&self, so: &Arc<Socket>) {
        let Some(peer) = self.peer() else { return };
        let _pushing = self.net.pushing.lock();
        let mut snd = so.snd.lock();
        let room = peer.rcv.lock().space().max(0) as u32;
        let n = room.min(snd.used());
        if n == 0 {
            return;
        }
        let m = snd.copy_range(0, n, How::NoWait).unwrap();
        snd.drop_bytes(n);
        // Writer and reader may both push: what leaves one buffer first must reach the other first.
        let mut rcv = peer.rcv.lock_under(&snd);
        rcv.appendstream(m);
        peer.sorwakeup(rcv);
        so.sowwakeup(snd);
    }
}

impl Protosw for Pipe {
    fn pr_flags(&self) -> PrFlags {
        if self.datagrams {
            PrFlags::ATOMIC | PrFlags::ADDR
        } else {
            PrFlags::CONNREQUIRED | PrFlags::WANTRCVD
        }
    }

    fn listen(&self, so: &Arc<Socket>, backlog: i32) -> Result<(), Errno> {
        so.solisten_proto(backlog);
        *self.net.listener.lock() = Some(Arc::downgrade(so));
        Ok(())
    }

    fn connect(&self, so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        so.soisconnecting();
        if nam.port() == 1 {
            // Nobody will ever answer.
            return Ok(());
        }
        let listener = self.net.listener.lock().as_ref().and_then(Weak::upgrade);
        let Some(listener) = listener else {
            return Err(Errno::ECONNREFUSED);
        };
        let Some(child) = listener.solisten_clone() else {
            return Err(Errno::ECONNREFUSED);
        };
        child.set_pcb(Arc::new(Pipe {
            datagrams: false,
            net: self.net.clone(),
            peer: Mutex::new(Some(Arc::downgrade(so))),
        }));
        *self.peer.lock() = Some(Arc::downgrade(&child));
        so.soisconnected();
        // In two steps, as an embryonic connection would come.
        child.solisten_enqueue(false);
        child.soisconnected();
        Ok(())
    }

    fn accept(&self, _: &Arc<Socket>) -> Result<SockAddr, Errno> {
        Ok(ADDRESS)
    }

    fn disconnect(&self, so: &Arc<Socket>) -> Result<(), Errno> {
        if let Some(peer) = self.peer() {
            peer.socantrcvmore();
        }
        so.soisdisconnected();
        Ok(())
    }

    fn send(
        &self,
        so: &Arc<Socket>,
        _: SendFlags,
        m: Mbuf,
        to: Option<&SockAddr>,
    ) -> Result<(), Errno> {
        if self.datagrams {
            // To oneself.
            let mut rcv = so.rcv.lock();
            if rcv.appendaddr(to, m, None).is_ok() {
                so.sorwakeup(rcv);
            }
            return Ok(());
        }
        so.snd.lock().appendstream(m);
        self.push(so);
        Ok(())
    }

    fn rcvd(&self, _: &Arc<Socket>, _: MsgFlags) -> Result<(), Errno> {
        if let Some(peer) = self.peer()
            && let Some(pipe) = peer.pr().ok()
        {
            // The peer may go on: an empty send pushes.
            let _ = pipe.shutdown(&peer);
        }
        Ok(())
    }

    /// Pushes; and is the end once the program says so.
    fn shutdown(&self, so: &Arc<Socket>) -> Result<(), Errno> {
        self.push(so);
        Ok(())
    }

    fn sockaddr(&self, _: &Arc<Socket>) -> Result<SockAddr, Errno> {
        Ok(ADDRESS)
    }

    fn abort(&self, so: &Arc<Socket>) {
        if let Some(peer) = self.peer() {
            peer.set_error(Errno::ECONNRESET);
            peer.soisdisconnected();
        }
        so.soisdisconnected();
    }

    fn detach(&self, _: &Arc<Socket>) {}
}

fn on_a_machine(test: impl FnOnce() + Send + 'static) {
    Machine::builder().run(|| {
        let before = MbufStat::snapshot().in_use();
        test();
        assert_eq!(MbufStat::snapshot().in_use(), before, "mbufs leaked");
        assert_eq!(
            crate::sysctl::root()
                .get("kern.ipc.numopensockets")
                .as_deref()
                .unwrap_or("0"),
            "0"
        );
    });
}

fn spawn(f: impl FnOnce() + Send + 'static) -> ThreadHandle {
    kthread_add("test", Pri::PUSER, None, f)
}

fn stream(net: &Arc<Net>) -> SocketHandle {
    SocketHandle::socket(&PipeDomain(net.clone()), AF_INET, SockType::Stream, 0).unwrap()
}

fn listener(net: &Arc<Net>, backlog: i32) -> SocketHandle {
    let so = stream(net);
    so.listen(backlog).unwrap();
    so
}

fn pair() -> (SocketHandle, SocketHandle) {
    let net = net();
    let listener = listener(&net, 5);
    let client = stream(&net);
    client.connect(&ADDRESS).unwrap();
    let (server, peer) = listener.accept().unwrap();
    assert_eq!(peer, ADDRESS);
    (client, server)
}

const NONE: MsgFlags = MsgFlags::empty();
const MS: fn(i64) -> Sbintime = Sbintime::from_ms;

#[test]
fn more_than_both_buffers_hold_arrives_whole() {
    on_a_machine(|| {
        let (client, server) = pair();
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let expected = sent.clone();
        let sender = spawn(move || {
            assert_eq!(client.send(&sent, NONE), Ok(sent.len()));
            // The pipe does not linger.
            while client.inner().snd.lock().used() > 0 {
                pause_sbt("drain", MS(1));
            }
        });
        let mut got = Vec::new();
        let mut block = vec![0; 5000];
        loop {
            match server.recv(&mut block, NONE).unwrap() {
                0 => break,
                n => got.extend_from_slice(&block[..n]),
            }
        }
        sender.join();
        assert!(got == expected);
    });
}

#[test]
fn waitall_waits_for_all_and_peek_takes_nothing() {
    on_a_machine(|| {
        let (client, server) = pair();
        client.send(b"half", NONE).unwrap();
        let mut word = [0; 8];
        assert_eq!(server.recv(&mut word, MsgFlags::PEEK), Ok(4));
        let late = spawn(move || {
            pause_sbt("late", MS(50));
            client.send(b"rest", NONE).unwrap();
        });
        let before = sbinuptime();
        assert_eq!(server.recv(&mut word, MsgFlags::WAITALL), Ok(8));
        assert_eq!(&word, b"halfrest");
        assert!(sbinuptime() - before >= MS(50));
        late.join();
        // The client is gone: what there is, and then the end.
        assert_eq!(server.recv(&mut word, MsgFlags::WAITALL), Ok(0));
    });
}

/// Each small cluster costs the buffer more than it holds: the window closes before `sb_hiwat` bytes are there.
#[test]
fn waitall_empties_a_buffer_that_takes_no_more() {
    on_a_machine(|| {
        let (client, server) = pair();
        let sender = spawn(move || {
            for _ in 0..100 {
                // More than is copied into the mbuf before it.
                client.send(&[7; 600], NONE).unwrap();
            }
            while client.inner().snd.lock().used() > 0 {
                pause_sbt("drain", MS(1));
            }
        });
        server.inner().rcv.lock().sb_mbmax = 8192;
        server.set_rcvtimeo(Some(MS(1000))).unwrap();
        let mut block = vec![0; 60_000];
        assert_eq!(server.recv(&mut block, MsgFlags::WAITALL), Ok(60_000));
        sender.join();
    });
}

#[test]
fn shutdown_of_a_listening_socket_wakes_accept() {
    on_a_machine(|| {
        let listener = Arc::new(listener(&net(), 4));
        let theirs = listener.clone();
        let accepting = spawn(move || {
            assert_eq!(theirs.accept().err(), Some(Errno::ECONNABORTED));
        });
        pause_sbt("wait", MS(10));
        assert_eq!(listener.shutdown(Shutdown::Write), Err(Errno::ENOTCONN));
        pause_sbt("wait", MS(10));
        assert_eq!(listener.shutdown(Shutdown::Both), Err(Errno::ENOTCONN));
        accepting.join();
    });
}

#[test]
fn peeking_at_datagrams_leaves_the_error() {
    on_a_machine(|| {
        let so = SocketHandle::socket(&PipeDomain(net()), AF_INET, SockType::Dgram, 0).unwrap();
        so.inner().set_error(Errno::ECONNREFUSED);
        let peek = || so.recv(&mut [0; 8], MsgFlags::PEEK);
        assert_eq!(
            (peek(), peek()),
            (Err(Errno::ECONNREFUSED), Err(Errno::ECONNREFUSED))
        );
        assert_eq!(so.recv(&mut [0; 8], NONE), Err(Errno::ECONNREFUSED));
        assert_eq!(so.recv(&mut [0; 8], MsgFlags::DONTWAIT), Err(Errno::EAGAIN));
    });
}

#[test]
fn calls_that_may_not_wait_say_so() {
    on_a_machine(|| {
        let (client, server) = pair();
        let mut word = [0; 8];
        assert_eq!(
            server.recv(&mut word, MsgFlags::DONTWAIT),
            Err(Errno::EAGAIN)
        );
        server.set_nonblocking(true);
        assert_eq!(server.recv(&mut word, NONE), Err(Errno::EAGAIN));
        client.set_nonblocking(true);
        // Both buffers fill; part of a send is no error.
        let sent = client.send(&[1; 100_000], NONE).unwrap();
        assert!((8192..100_000).contains(&sent), "{sent}");
        assert_eq!(client.send(&[1; 100_000], NONE), Err(Errno::EAGAIN));
        assert_eq!(
            server.recv(&mut word, MsgFlags::OOB),
            Err(Errno::EOPNOTSUPP)
        );
    });
}

#[test]
fn timeouts_are_kept() {
    on_a_machine(|| {
        let (client, server) = pair();
        server.set_rcvtimeo(Some(MS(30))).unwrap();
        client
            .setsockopt(SOL_SOCKET, SO_SNDTIMEO, &timeval_bytes(Some(MS(40))))
            .unwrap();
        let begin = sbinuptime();
        assert_eq!(server.recv(&mut [0; 8], NONE), Err(Errno::EAGAIN));
        let took = (sbinuptime() - begin).as_ms();
        assert!((30..35).contains(&took), "{took}");
        let begin = sbinuptime();
        let sent = client.send(&[1; 100_000], NONE).unwrap();
        assert!(sent < 100_000);
        assert!((sbinuptime() - begin).as_ms() >= 40);
        assert_eq!(client.send(&[1; 100_000], NONE), Err(Errno::EAGAIN));
    });
}

#[test]
fn the_low_water_mark_holds_a_reader_back() {
    on_a_machine(|| {
        let (client, server) = pair();
        server.setsockopt_int(SOL_SOCKET, SO_RCVLOWAT, 100).unwrap();
        let sender = spawn(move || {
            for _ in 0..10 {
                client.send(&[9; 20], NONE).unwrap();
                pause_sbt("drip", MS(10));
            }
            pause_sbt("drip", MS(100));
        });
        let mut block = [0; 4096];
        assert_eq!(server.recv(&mut block, NONE), Ok(100));
        // Less is enough if less is asked.
        assert_eq!(server.recv(&mut block[..10], NONE), Ok(10));
        sender.join();
    });
}

#[test]
fn shutdown_ends_both_ways() {
    on_a_machine(|| {
        let (client, server) = pair();
        let reader = spawn(move || {
            assert_eq!(server.recv(&mut [0; 8], NONE), Ok(0));
        });
        pause_sbt("wait", MS(10));
        drop(client);
        reader.join();

        let (client, server) = pair();
        server.send(b"unread", NONE).unwrap();
        client.shutdown(Shutdown::Read).unwrap();
        assert_eq!(client.recv(&mut [0; 8], NONE), Ok(0));
        client.inner().socantsendmore();
        assert_eq!(client.send(b"x", NONE), Err(Errno::EPIPE));
        let unconnected = stream(&net());
        assert_eq!(unconnected.shutdown(Shutdown::Both), Err(Errno::ENOTCONN));
        assert_eq!(unconnected.send(b"x", NONE), Err(Errno::ENOTCONN));
        assert_eq!(unconnected.recv(&mut [0; 8], NONE), Err(Errno::ENOTCONN));
    });
}

#[test]
fn an_error_is_told_once() {
    on_a_machine(|| {
        let (client, _server) = pair();
        client.inner().set_error(Errno::ETIMEDOUT);
        client.inner().soisdisconnected();
        assert_eq!(
            client.recv(&mut [0; 8], MsgFlags::PEEK),
            Err(Errno::ETIMEDOUT)
        );
        assert_eq!(client.recv(&mut [0; 8], NONE), Err(Errno::ETIMEDOUT));
        assert_eq!(client.recv(&mut [0; 8], NONE), Ok(0));
        client.inner().set_error(Errno::ECONNRESET);
        let read = || client.getsockopt_int(SOL_SOCKET, SO_ERROR);
        assert_eq!((read(), read()), (Ok(54), Ok(0)));
    });
}

#[test]
fn three_halves_of_the_backlog_may_wait() {
    on_a_machine(|| {
        let net = net();
        let listener = listener(&net, 4);
        let mut clients = Vec::new();
        let refused = loop {
            let client = stream(&net);
            match client.connect(&ADDRESS) {
                Ok(()) => clients.push(client),
                Err(error) => break error,
            }
        };
        assert_eq!(refused, Errno::ECONNREFUSED);
        // More than 3/2 of the limit: seven are not more than six by one.
        assert_eq!(clients.len(), 7);
        assert_eq!(listener.getsockopt_int(SOL_SOCKET, SO_LISTENQLEN), Ok(7));
        assert_eq!(listener.getsockopt_int(SOL_SOCKET, SO_LISTENQLIMIT), Ok(4));
        assert!(listener.accept().is_ok());
        assert!(stream(&net).connect(&ADDRESS).is_ok());
        drop(listener);
        // Who was not accepted is reset.
        let last = clients.pop().unwrap();
        assert_eq!(last.recv(&mut [0; 8], NONE), Err(Errno::ECONNRESET));
    });
}

#[test]
fn accept_waits_for_a_connection() {
    on_a_machine(|| {
        let net = net();
        let listener = listener(&net, 4);
        assert_eq!(listener.accept_nowait().err(), Some(Errno::EAGAIN));
        let client = stream(&net);
        let connecting = spawn(move || {
            pause_sbt("late", MS(20));
            client.connect(&ADDRESS).unwrap();
            client.send(b"hi", NONE).unwrap();
        });
        let (server, _) = listener.accept().unwrap();
        let mut word = [0; 8];
        assert_eq!(server.recv(&mut word, NONE), Ok(2));
        connecting.join();
        assert_eq!(server.inner().qstate(), QState::None);
        assert_eq!(server.accept().err(), Some(Errno::EINVAL));
    });
}

#[test]
fn a_connection_may_be_waited_for_or_not() {
    on_a_machine(|| {
        let silent = SockAddr::v4(Ipv4Addr::LOCALHOST, 1);
        let net = net();
        let client = stream(&net);
        client.set_nonblocking(true);
        assert_eq!(client.connect(&silent), Err(Errno::EINPROGRESS));
        assert_eq!(client.connect(&silent), Err(Errno::EALREADY));
        let ready = client.poll(PollEvents::OUT, Some(MS(10))).unwrap();
        assert!(ready.is_empty());
        client.inner().set_error(Errno::ETIMEDOUT);
        client.inner().soisdisconnected();
        let ready = client.poll(PollEvents::OUT, None).unwrap();
        // What the error is, the next call says.
        assert_eq!(ready, PollEvents::OUT | PollEvents::HUP);

        let client = Arc::new(stream(&net));
        let theirs = client.clone();
        let failing = spawn(move || {
            pause_sbt("late", MS(20));
            theirs.inner().set_error(Errno::EHOSTUNREACH);
            theirs.inner().soisdisconnected();
        });
        assert_eq!(client.connect(&silent), Err(Errno::EHOSTUNREACH));
        failing.join();
    });
}

#[test]
fn an_interrupted_thread_leaves_its_wait() {
    on_a_machine(|| {
        let (_client, server) = pair();
        let reader = spawn(move || {
            assert_eq!(server.recv(&mut [0; 8], NONE), Err(Errno::EINTR));
        });
        pause_sbt("wait", MS(10));
        reader.interrupt();
        reader.join();
    });
}

#[test]
fn poll_sees_the_first_of_several_sockets() {
    on_a_machine(|| {
        let (client, server) = pair();
        let (_other_client, other) = pair();
        let mut fds = [
            PollFd::new(&server, PollEvents::IN),
            PollFd::new(&other, PollEvents::IN),
        ];
        let begin = sbinuptime();
        assert_eq!(poll(&mut fds, Some(MS(25))), Ok(0));
        assert!((sbinuptime() - begin).as_ms() >= 25);
        let late = spawn(move || {
            pause_sbt("late", MS(10));
            client.send(b"x", NONE).unwrap();
            pause_sbt("late", MS(10));
        });
        assert_eq!(poll(&mut fds, None), Ok(1));
        assert_eq!(fds[0].revents, PollEvents::IN);
        assert!(fds[1].revents.is_empty());
        late.join();
        // Waiters are forgotten.
        assert!(other.inner().rcv.lock().sb_sel.is_empty());
    });
}

#[test]
fn an_upcall_hears_of_data() {
    on_a_machine(|| {
        use crate::machine::atomic::AtomicU32;
        let (client, server) = pair();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let upcall: Upcall = Arc::new(move |_: &Arc<Socket>| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        server.set_upcall(Direction::Rcv, Some(upcall));
        client.send(b"x", NONE).unwrap();
        client.send(b"y", NONE).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        server.set_upcall(Direction::Rcv, None);
        client.send(b"z", NONE).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        assert_eq!(Arc::strong_count(&calls), 1);
    });
}

#[test]
fn datagrams_keep_their_bounds() {
    on_a_machine(|| {
        let net = net();
        let so = SocketHandle::socket(&PipeDomain(net), AF_INET, SockType::Dgram, 0).unwrap();
        assert_eq!(so.send(b"x", NONE), Err(Errno::EDESTADDRREQ));
        assert_eq!(so.sendto(&[0; 9000], NONE, &ADDRESS), Err(Errno::EMSGSIZE));
        so.sendto(b"first", NONE, &ADDRESS).unwrap();
        so.sendto(b"", NONE, &ADDRESS).unwrap();
        so.sendto(b"third", NONE, &ADDRESS).unwrap();
        let mut word = [0; 3];
        let peeked = so.recvmsg(&mut word, MsgFlags::PEEK).unwrap();
        assert!(peeked.flags.contains(MsgFlags::TRUNC));
        assert_eq!(so.recvfrom(&mut word, NONE), Ok((3, Some(ADDRESS))));
        assert_eq!(&word, b"fir");
        assert_eq!(so.recv(&mut word, NONE), Ok(0));
        assert_eq!(so.recv(&mut word, NONE), Ok(3));
        assert_eq!(&word, b"thi");
        assert_eq!(so.recv(&mut word, MsgFlags::DONTWAIT), Err(Errno::EAGAIN));
    });
}

#[test]
fn options_are_kept_or_refused() {
    on_a_machine(|| {
        let so = stream(&net());
        let set = |name, value| so.setsockopt_int(SOL_SOCKET, name, value);
        let get = |name| so.getsockopt_int(SOL_SOCKET, name);
        assert_eq!(get(SO_TYPE), Ok(1));
        assert_eq!(get(SO_DOMAIN), Ok(2));
        set(SO_KEEPALIVE, 1).unwrap();
        assert_eq!(get(SO_KEEPALIVE), Ok(SO_KEEPALIVE));
        set(SO_KEEPALIVE, 0).unwrap();
        assert_eq!(get(SO_KEEPALIVE), Ok(0));
        so.inner().rcv.lock().set_autosize(true);
        set(SO_RCVBUF, 65536).unwrap();
        assert_eq!(get(SO_RCVBUF), Ok(65536));
        assert!(!so.inner().rcv.lock().autosize());
        assert_eq!(set(SO_SNDBUF, 3 << 20), Err(Errno::ENOBUFS));
        kern_ipc::ipc().maxsockbuf.set(4 << 20);
        assert_eq!(set(SO_SNDBUF, 3 << 20), Ok(()));
        assert_eq!(set(SO_SNDBUF, 0), Err(Errno::EINVAL));
        assert_eq!(set(SO_ACCEPTCONN, 1), Err(Errno::ENOPROTOOPT));
        assert_eq!(set(0x4242, 1), Err(Errno::ENOPROTOOPT));
        assert_eq!(
            so.setsockopt(SOL_SOCKET, SO_RCVBUF, &[1]),
            Err(Errno::EINVAL)
        );
        so.set_linger(Some(5)).unwrap();
        assert_eq!(so.inner().linger(), Some(5));
        let bad = timeval_bytes(None).map(|_| 0xff);
        assert_eq!(
            so.setsockopt(SOL_SOCKET, SO_RCVTIMEO, &bad),
            Err(Errno::EDOM)
        );
        assert_eq!(get(SO_SNDLOWAT), Ok(2048));
    });
}
