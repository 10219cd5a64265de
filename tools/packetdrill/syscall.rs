//! Socket calls: what a script's program does.

mod value;

use crate::ast::{Expr, Pos, Syscall};
use crate::connection::Connection;
use crate::executor::{Executor, Wrong, seconds};
use crate::symbols::{self, F_GETFL, F_SETFL, O_NONBLOCK, O_RDWR};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::BTreeMap;
use std::sync::Arc;
use sys::errno::Errno;
use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_synch::{PSOCK, WChan, wakeup};
use sys::kern::kern_thread::{Pri, kthread_add};
use sys::kern::lock_order::Leaf;
use sys::kern::uipc_syscalls::{PollEvents, SocketHandle};
use sys::machine::sbinuptime;
use sys::socket::{
    AF_INET, AF_INET6, IPPROTO_TCP, MsgFlags, Shutdown, SockAddr, SockAddrIn6, SockType,
    TCP_CCALGOOPT, TCP_INFO,
};
use sys::time::Sbintime;
use value::{check_option, number, option_bytes};

/// Bytes of an option's value that are asked for when the script does not say.
const OPTION_MAX: usize = 512;

/// The program's descriptors, by the script's numbers.
#[derive(Default)]
pub struct Descriptors {
    open: BTreeMap<i64, Descriptor>,
}

struct Descriptor {
    so: Arc<SocketHandle>,
    nonblocking: bool,
}

impl Descriptors {
    /// The sockets that are open.
    pub fn sockets(&self) -> impl Iterator<Item = &SocketHandle> {
        self.open.values().map(|descriptor| &*descriptor.so)
    }

    fn get(&self, fd: i64) -> Result<&Descriptor, Errno> {
        self.open.get(&fd).ok_or(Errno::EBADF)
    }

    fn socket(&self, fd: i64) -> Result<Arc<SocketHandle>, Errno> {
        Ok(self.get(fd)?.so.clone())
    }
}

/// What a call returns: a number, or a new socket, or an error.
type Returned = Result<Value, Errno>;

enum Value {
    Number(i64),
    Socket(SocketHandle),
}

/// Where a call that may block leaves what it returns, and when it did.
struct Slot {
    returned: Mutex<Option<(Returned, Sbintime)>, Leaf>,
}

impl Slot {
    /// Runs `call` in a thread of its own.
    fn run(call: impl FnOnce() -> Returned + Send + 'static) -> Arc<Slot> {
        let slot = Arc::new(Slot {
            returned: Mutex::new(None),
        });
        let theirs = slot.clone();
        kthread_add("packetdril", Pri::PUSER, None, move || {
            let returned = call();
            *theirs.returned.lock() = Some((returned, sbinuptime()));
            wakeup(WChan::of(&theirs.returned));
        });
        slot
    }

    /// What the call returned, and when, if it has by `deadline`.
    fn wait(&self, deadline: Sbintime) -> Option<(Returned, Sbintime)> {
        let mut returned = self.returned.lock();
        loop {
            if returned.is_some() {
                return returned.take();
            }
            let left = deadline - sbinuptime();
            if left <= Sbintime::ZERO {
                return None;
            }
            let chan = WChan::of(&self.returned);
            let (guard, _) = MutexGuard::msleep(returned, chan, PSOCK, "call", Some(left), false);
            returned = guard;
        }
    }
}

/// A call that blocks while the script goes on.
pub struct Pending {
    slot: Arc<Slot>,
    call: Syscall,
    /// When it must end, and how early or late it may.
    end: i64,
    tolerance: i64,
}

impl Executor {
    /// Makes a call. One that says when it ends goes on while further events happen.
    pub(crate) fn syscall(
        &mut self,
        pos: Pos,
        call: &Syscall,
        end: Option<(i64, i64)>,
        tolerance: i64,
    ) -> Result<(), Wrong> {
        self.note(format!("{}(…)", call.name));
        let slot = match self.begin(call)? {
            Begun::Done(returned) => return self.check(call, returned),
            Begun::MayBlock(slot) => slot,
        };
        if let Some((end, tolerance)) = end {
            let pending = Pending {
                slot,
                call: call.clone(),
                end,
                tolerance,
            };
            self.pending = Some((pos, pending));
            return Ok(());
        }
        match slot.wait(self.at(self.now() + tolerance)) {
            Some((returned, _)) => self.check(call, returned),
            None => Err(format!("{} blocks", call.name).into()),
        }
    }

    /// Waits for a call that blocks, if there is one; it must end in time.
    pub(crate) fn finish_call(&mut self) -> Result<(), (Pos, Wrong)> {
        let Some((pos, pending)) = self.pending.take() else {
            return Ok(());
        };
        let deadline = self.at(pending.end + pending.tolerance);
        let checked = match pending.slot.wait(deadline) {
            None => {
                let end = seconds(pending.end);
                Err(format!("{} does not return at {end} s", pending.call.name).into())
            }
            Some((returned, at)) => {
                let at = (at - self.at(0)).as_us();
                let early = pending.end - pending.tolerance - at;
                if early > 0 {
                    let name = &pending.call.name;
                    Err(format!("{name} returns too early, at {} s", seconds(at)).into())
                } else {
                    self.check(&pending.call, returned)
                }
            }
        };
        checked.map_err(|wrong| (pos, wrong))
    }

    /// `struct tcp_info` of the connection under test.
    pub(crate) fn tcp_info(&self) -> Result<Vec<u8>, Wrong> {
        let fd = self.connection.as_ref().and_then(|c| c.fd);
        let fd = fd.ok_or("the connection has no descriptor to ask for TCP_INFO")?;
        let socket = self.descriptors.socket(fd);
        let info = socket.and_then(|so| so.getsockopt(IPPROTO_TCP, TCP_INFO, OPTION_MAX));
        info.map_err(|e| format!("TCP_INFO: {e}").into())
    }

    fn begin(&mut self, call: &Syscall) -> Result<Begun, Wrong> {
        let args = Args(call);
        let returned = match call.name.as_str() {
            "socket" => self.socket(&args)?,
            "bind" => {
                let port = self.settings.bind_port;
                let any: IpAddr = match self.settings.network.local {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let addr = args.address(1, any, port)?;
                let bound = self.on(args.fd()?, |so| so.bind(&addr));
                if let (Ok(_), Some(connection)) = (&bound, self.under_test(args.fd()?)) {
                    connection.local_port = Some(addr.port()).filter(|port| *port != 0);
                }
                bound
            }
            "listen" => {
                let backlog = args.int(1)? as i32;
                let listened = self.on(args.fd()?, |so| so.listen(backlog));
                if let (Ok(_), Some(connection)) = (&listened, self.under_test(args.fd()?)) {
                    connection.listen();
                }
                listened
            }
            "shutdown" => {
                let how = match args.int(1)? {
                    0 => Shutdown::Read,
                    1 => Shutdown::Write,
                    2 => Shutdown::Both,
                    how => return Err(format!("shutdown has no {how}").into()),
                };
                self.on(args.fd()?, |so| so.shutdown(how))
            }
            "fcntl" => self.fcntl(&args)?,
            "ioctl" => self.ioctl(&args)?,
            "setsockopt" => {
                let (level, name) = (args.int(1)? as i32, args.int(2)? as i32);
                let len = args.int(4)?.clamp(0, OPTION_MAX as i64) as usize;
                let bytes = option_bytes(args.get(3)?, len)?;
                self.on(args.fd()?, |so| so.setsockopt(level, name, &bytes))
            }
            "getsockopt" => return self.getsockopt(&args).map(Begun::Done),
            "poll" => return self.poll(&args).map(Begun::MayBlock),
            "accept" | "accept4" | "connect" | "close" | "read" | "readv" | "recv" | "recvfrom"
            | "write" | "writev" | "send" | "sendto" => {
                return Ok(match self.may_block(&args)? {
                    Ok(slot) => Begun::MayBlock(slot),
                    Err(errno) => Begun::Done(Err(errno)),
                });
            }
            name => return Err(format!("unknown call `{name}`").into()),
        };
        Ok(Begun::Done(returned))
    }

    /// The connection under test, if `fd` is its descriptor.
    fn under_test(&mut self, fd: i64) -> Option<&mut Connection> {
        self.connection.as_mut().filter(|c| c.fd == Some(fd))
    }

    fn on(&self, fd: i64, f: impl FnOnce(&SocketHandle) -> Result<(), Errno>) -> Returned {
        f(&self.descriptors.get(fd)?.so).map(|()| Value::Number(0))
    }

    fn socket(&mut self, args: &Args<'_>) -> Result<Returned, Wrong> {
        let family = match args.get(0)? {
            Expr::Any if self.settings.network.local.is_ipv6() => AF_INET6,
            Expr::Any => AF_INET,
            expr => number(expr)? as u8,
        };
        let ty = args.int(1)? as i32;
        let Some(ty) = SockType::from_raw(ty & 0xff) else {
            return Err(format!("no type of socket has number {ty}").into());
        };
        let proto = args.int(2)? as i32;
        let made = SocketHandle::socket(&self.testbed.vnet, family, ty, proto);
        Ok(made.map(Value::Socket))
    }

    fn fcntl(&mut self, args: &Args<'_>) -> Result<Returned, Wrong> {
        let Some(descriptor) = self.descriptors.open.get_mut(&args.fd()?) else {
            return Ok(Err(Errno::EBADF));
        };
        match args.int(1)? {
            F_GETFL => {
                let flags = if descriptor.nonblocking {
                    O_NONBLOCK
                } else {
                    0
                };
                Ok(Ok(Value::Number(O_RDWR | flags)))
            }
            F_SETFL => {
                descriptor.nonblocking = args.int(2)? & O_NONBLOCK != 0;
                descriptor.so.set_nonblocking(descriptor.nonblocking);
                Ok(Ok(Value::Number(0)))
            }
            other => Err(format!("fcntl has no {other}").into()),
        }
    }

    fn ioctl(&mut self, args: &Args<'_>) -> Result<Returned, Wrong> {
        let (fd, request) = (args.fd()?, args.int(1)?);
        if Some(request) == symbols::lookup("FIONREAD") {
            let readable = self
                .descriptors
                .get(fd)
                .map(|d| i64::from(d.so.inner().rcv.lock().used()));
            return match readable {
                Ok(readable) => {
                    value::check_number("FIONREAD", args.get(2)?, readable)?;
                    Ok(Ok(Value::Number(0)))
                }
                Err(errno) => Ok(Err(errno)),
            };
        }
        if Some(request) == symbols::lookup("FIONBIO") {
            let on = number(value::pointed_to(args.get(2)?))? != 0;
            return Ok(self.on(fd, |so| {
                so.set_nonblocking(on);
                Ok(())
            }));
        }
        if Some(request) == symbols::lookup("SIOCATMARK") {
            let marked = self.descriptors.get(fd).map(|d| d.so.sockatmark());
            return match marked {
                Ok(marked) => {
                    value::check_number("SIOCATMARK", args.get(2)?, i64::from(marked))?;
                    Ok(Ok(Value::Number(0)))
                }
                Err(errno) => Ok(Err(errno)),
            };
        }
        Err(format!("ioctl has no {request}").into())
    }

    fn getsockopt(&mut self, args: &Args<'_>) -> Result<Returned, Wrong> {
        let (level, name) = (args.int(1)? as i32, args.int(2)? as i32);
        let max = match args.get(4)? {
            Expr::Any => OPTION_MAX,
            expr => number(value::pointed_to(expr))?.clamp(0, OPTION_MAX as i64) as usize,
        };
        let socket = self.descriptors.socket(args.fd()?);
        let asked = match (level, name) {
            // It is asked for by what it is compared with.
            (IPPROTO_TCP, TCP_CCALGOOPT) => Some(option_bytes(args.get(3)?, max)?),
            _ => None,
        };
        let got = socket.and_then(|so| match &asked {
            Some(value) => so.getsockopt_by(level, name, value),
            None => so.getsockopt(level, name, max),
        });
        match got {
            Ok(bytes) => {
                check_option(args.get(3)?, (level, name), &bytes)?;
                if bytes.len() != max && *args.get(4)? != Expr::Any && max != OPTION_MAX {
                    let len = bytes.len();
                    return Err(format!("the option has {len} bytes, not {max}").into());
                }
                Ok(Ok(Value::Number(0)))
            }
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// Begins a call that may have to wait.
    fn may_block(&mut self, args: &Args<'_>) -> Result<Result<Arc<Slot>, Errno>, Wrong> {
        let fd = args.fd()?;
        let so = match self.descriptors.socket(fd) {
            Ok(so) => so,
            Err(errno) => return Ok(Err(errno)),
        };
        let sent = |len: usize| Ok(Value::Number(len as i64));
        let slot = match args.0.name.as_str() {
            "accept" | "accept4" => {
                Slot::run(move || so.accept().map(|(child, _)| Value::Socket(child)))
            }
            "connect" => {
                let addr = args.address(1, self.settings.remote, self.settings.connect_port)?;
                if let Some(connection) = self.under_test(fd) {
                    connection.connect(addr.port());
                }
                Slot::run(move || so.connect(&addr).map(|()| Value::Number(0)))
            }
            "close" => {
                self.descriptors.open.remove(&fd);
                Slot::run(move || {
                    drop(so);
                    Ok(Value::Number(0))
                })
            }
            "read" | "readv" | "recv" | "recvfrom" => {
                let (len, flags) = args.transfer()?;
                Slot::run(move || sent(so.recv(&mut vec![0; len], flags)?))
            }
            _ => {
                let (len, flags) = args.transfer()?;
                let to = match args.0.name == "sendto" && args.0.args.len() > 4 {
                    true => {
                        Some(args.address(4, self.settings.remote, self.settings.connect_port)?)
                    }
                    false => None,
                };
                if let (Some(to), Some(connection)) = (&to, self.under_test(fd)) {
                    connection.connect(to.port());
                }
                let zeros = vec![0; len];
                Slot::run(move || match to {
                    Some(to) => sent(so.sendto(&zeros, flags, &to)?),
                    None => sent(so.send(&zeros, flags)?),
                })
            }
        };
        Ok(Ok(slot))
    }

    /// `poll([{fd=3, events=POLLIN, revents=0}], 1, 0)`.
    fn poll(&mut self, args: &Args<'_>) -> Result<Arc<Slot>, Wrong> {
        let Expr::List(entries) = args.get(0)? else {
            return Err("poll wants a list of structures".into());
        };
        let timeout = args.int(2)?;
        let mut asked = Vec::new();
        for entry in entries {
            let Expr::Struct(fields) = entry else {
                return Err("poll wants a list of structures".into());
            };
            let field = |name: &str| {
                let named = fields.iter().find(|(n, _)| n.as_deref() == Some(name));
                named.map_or(Ok(0), |(_, expr)| number(expr))
            };
            let socket = self.descriptors.socket(field("fd")?);
            let socket = socket.map_err(|e| format!("poll: {e}"))?;
            asked.push((socket, field("events")? as u16, field("revents")? as u16));
        }
        let timeout = (timeout >= 0).then(|| Sbintime::from_ms(timeout));
        Ok(Slot::run(move || {
            let events = |bits: u16| PollEvents::from_bits_truncate(bits);
            let mut fds: Vec<_> = asked
                .iter()
                .map(|(so, wanted, _)| sys::kern::uipc_syscalls::PollFd::new(so, events(*wanted)))
                .collect();
            let ready = sys::kern::uipc_syscalls::poll(&mut fds, timeout)?;
            let as_said = fds
                .iter()
                .zip(&asked)
                .all(|(fd, (_, _, said))| fd.revents == events(*said));
            // A result that nobody expects shows that the events differ.
            Ok(Value::Number(if as_said { ready as i64 } else { i64::MIN }))
        }))
    }

    /// Compares what a call returned with what it should.
    fn check(&mut self, call: &Syscall, returned: Returned) -> Result<(), Wrong> {
        let returned = match returned {
            Ok(value) => value,
            Err(errno) => return check_error(call, errno),
        };
        let expected = match &call.result {
            Expr::Any => None,
            expr => Some(number(expr)?),
        };
        let seen = match returned {
            Value::Number(i64::MIN) => return Err("poll: other events".into()),
            Value::Number(seen) => seen,
            Value::Socket(so) => {
                let Some(fd) = expected.filter(|fd| *fd >= 0) else {
                    return Err(format!("{} returns a socket", call.name).into());
                };
                self.adopt(fd, so, call.name == "socket");
                return Ok(());
            }
        };
        match expected {
            Some(expected) if expected != seen => {
                Err(format!("{} returns {seen}, not {expected}", call.name).into())
            }
            _ => Ok(()),
        }
    }

    /// Gives a new socket its number.
    fn adopt(&mut self, fd: i64, so: SocketHandle, fresh: bool) {
        let descriptor = Descriptor {
            so: Arc::new(so),
            nonblocking: false,
        };
        self.descriptors.open.insert(fd, descriptor);
        if fresh {
            self.connection = Some(Connection::new(fd));
        } else if let Some(connection) = self.connection.as_mut().filter(|c| c.is_acceptable()) {
            connection.fd = Some(fd);
        }
    }
}

enum Begun {
    Done(Returned),
    MayBlock(Arc<Slot>),
}

fn check_error(call: &Syscall, errno: Errno) -> Result<(), Wrong> {
    let failed = format!("{} fails with {} ({errno})", call.name, errno.name());
    if !matches!(call.result, Expr::Any) && number(&call.result)? != -1 {
        return Err(failed.into());
    }
    match &call.errno {
        Some(name) => match symbols::errno(name) {
            Some(number) if number == errno.number() => Ok(()),
            Some(_) => Err(format!("{failed}, not {name}").into()),
            None => Err(format!("unknown error `{name}`").into()),
        },
        None => Ok(()),
    }
}

/// The arguments of a call.
struct Args<'a>(&'a Syscall);

impl Args<'_> {
    fn get(&self, at: usize) -> Result<&Expr, Wrong> {
        let missing = || format!("{} wants more than {at} arguments", self.0.name).into();
        self.0.args.get(at).ok_or_else(missing)
    }

    fn int(&self, at: usize) -> Result<i64, Wrong> {
        Ok(number(self.get(at)?)?)
    }

    fn fd(&self) -> Result<i64, Wrong> {
        self.int(0)
    }

    /// Bytes and flags of a transfer: a length, or as many as the pieces of a vector have.
    fn transfer(&self) -> Result<(usize, MsgFlags), Wrong> {
        let len = match self.get(1)? {
            Expr::List(pieces) => {
                let mut sum = 0;
                for piece in pieces {
                    match piece {
                        Expr::Struct(fields) => {
                            let len = fields.last().ok_or("a piece without length")?;
                            sum += number(&len.1)?;
                        }
                        _ => return Err("a vector is a list of structures".into()),
                    }
                }
                sum
            }
            _ => self.int(2)?,
        };
        let flags = match self.0.name.as_str() {
            "send" | "sendto" | "recv" | "recvfrom" => self.int(3)?,
            _ => 0,
        };
        let len = usize::try_from(len).map_err(|_| "a negative length")?;
        Ok((len, MsgFlags::from_bits_retain(flags as u32)))
    }

    /// An address: `...` is the usual one.
    fn address(&self, at: usize, addr: IpAddr, port: u16) -> Result<SockAddr, Wrong> {
        match self.get(at)? {
            Expr::Any => Ok(sockaddr(addr, port)),
            Expr::Struct(fields) => {
                let (mut addr, mut port) = (addr, port);
                for (name, expr) in fields {
                    match (name.as_deref(), expr) {
                        (Some("sin_port" | "sin6_port"), expr) => port = number(expr)? as u16,
                        (Some("sin_addr"), Expr::Call(_, args)) => {
                            if let [Expr::Text(text)] = &args[..] {
                                addr = text
                                    .parse()
                                    .map_err(|_| format!("`{text}` is no address"))?;
                            }
                        }
                        (Some("inet_pton"), _)
                        | (Some("sa_family" | "sin_family" | "sin6_family"), _) => {}
                        (Some("sin6_addr"), Expr::Call(_, args)) => {
                            if let Some(Expr::Text(text)) = args.get(1).or(args.first()) {
                                addr = text
                                    .parse()
                                    .map_err(|_| format!("`{text}` is no address"))?;
                            }
                        }
                        (name, _) => {
                            let name = name.unwrap_or("member");
                            return Err(format!("an address has no {name}").into());
                        }
                    }
                }
                Ok(sockaddr(addr, port))
            }
            _ => Err("an address is `...` or a structure".into()),
        }
    }
}

fn sockaddr(addr: IpAddr, port: u16) -> SockAddr {
    match addr {
        IpAddr::V4(addr) => SockAddr::v4(addr, port),
        IpAddr::V6(addr) => SockAddr::In6(SockAddrIn6 {
            addr,
            port,
            flowinfo: 0,
            scope_id: 0,
        }),
    }
}
