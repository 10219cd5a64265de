//! What all experiments use: threads with results, flows, a look into a connection.

use core::net::Ipv4Addr;
use netinet::tcp_subr::TcpInpcb;
use netinet::tcp_var::Tcpcb;
use netsim::world::{Host, World};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::pump;
use sys::machine::sbinuptime;
use sys::socket::{AF_INET, MsgFlags, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, SockAddr, SockType};
use sys::time::Sbintime;

/// The port servers listen on.
pub const PORT: u16 = 8080;

/// Locks what a panic can't have spoilt.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

/// Lets virtual time pass.
pub fn pass_ms(ms: i64) {
    pump(sbinuptime() + Sbintime::from_ms(ms));
}

/// Milliseconds of virtual time so far.
pub fn now_ms() -> i64 {
    sbinuptime().as_ms()
}

/// Sets a sysctl of a host. Panics if there is none of that name, or the value is not taken.
pub fn set(host: &Host, name: &str, value: &str) {
    if let Err(e) = host.vnet.sysctl.set(name, value) {
        panic!("{name}={value}: {e}");
    }
}

/// A thread of the machine, with a result.
pub struct Task<T> {
    thread: ThreadHandle,
    result: Arc<Mutex<Option<T>>>,
}

/// Runs `f` in a thread of the machine.
pub fn spawn<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    let result = Arc::new(Mutex::new(None));
    let slot = result.clone();
    let thread = kthread_add("lab", Pri::PUSER, None, move || {
        let value = f();
        *lock(&slot) = Some(value);
    });
    Task { thread, result }
}

impl<T> Task<T> {
    /// Whether the result is there.
    pub fn is_done(&self) -> bool {
        lock(&self.result).is_some()
    }

    /// Waits for the result.
    pub fn join(self) -> T {
        self.thread.join();
        let result = lock(&self.result).take();
        result.expect("a thread that ended has a result")
    }
}

/// The control block of a socket.
pub fn inpcb(host: &Host, so: &SocketHandle) -> Option<Arc<TcpInpcb>> {
    let all = host.inet.tcp.tcbinfo.snapshot();
    all.into_iter().find(|inp| {
        let guard = inp.read();
        let socket = guard.inp_socket.as_ref();
        socket.is_some_and(|other| Arc::ptr_eq(other, so.inner()))
    })
}

/// A connection from `a` to `b` that sends for as long as it is told to.
pub struct Flow {
    /// The sender's control block.
    pub inp: Arc<TcpInpcb>,
    stop: Arc<AtomicBool>,
    sender: Task<u64>,
    reader: Task<u64>,
}

impl Flow {
    /// Connects to `port`, with socket buffers of `buffer` bytes, and begins to send.
    pub fn start(world: &World, port: u16, buffer: i32) -> Flow {
        let socket = |host: &Host| {
            let so = SocketHandle::socket(&host.vnet, AF_INET, SockType::Stream, 0)
                .expect("a TCP socket");
            for name in [SO_SNDBUF, SO_RCVBUF] {
                so.setsockopt_int(SOL_SOCKET, name, buffer)
                    .expect("a buffer within the limit");
            }
            so
        };
        let listener = socket(&world.b);
        listener
            .bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, port))
            .expect("a free port");
        listener.listen(5).expect("a bound socket");
        let a = socket(&world.a);
        a.connect(&SockAddr::v4(world.b.addr, port))
            .expect("someone listens");
        let (b, _) = listener.accept().expect("a connection");
        let inp = inpcb(&world.a, &a).expect("a socket of this host");
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let sender = spawn(move || {
            let block = vec![0x5a; 65_536];
            let mut sent = 0;
            while !asked.load(Ordering::Relaxed) {
                match a.send(&block, MsgFlags::empty()) {
                    Ok(n) => sent += n as u64,
                    Err(e) => panic!("the flow died at {} ms: {e}", now_ms()),
                }
            }
            sent
        });
        let reader = spawn(move || {
            let mut block = vec![0; 65_536];
            let mut received = 0;
            loop {
                match b.recv(&mut block, MsgFlags::empty()) {
                    Ok(0) => return received,
                    Ok(n) => received += n as u64,
                    Err(e) => panic!("the flow died at {} ms: {e}", now_ms()),
                }
            }
        });
        Flow {
            inp,
            stop,
            sender,
            reader,
        }
    }

    /// Looks at the sender's state.
    pub fn look<T>(&self, f: impl FnOnce(&Tcpcb) -> T) -> T {
        f(&self.inp.read().ppcb)
    }

    /// Ends it, and compares what was sent with what arrived.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, received) = (self.sender.join(), self.reader.join());
        assert_eq!(sent, received, "bytes sent and received");
    }
}
