//! The server side of iperf3: one test at a time, others are told to come again.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use sys::errno::Errno;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine;
use sys::socket::{
    IPPROTO_IPV6, IPV6_V6ONLY, MsgFlags, SO_REUSEADDR, SOL_SOCKET, SockAddr, SockType,
};

use crate::apps::Env;
use crate::apps::io::{self, Family};
use crate::outln;

use super::args::{ServerOptions, TestOptions, Transport};
use super::client::{UDP_CONNECT_REPLY, address};
use super::protocol::{COOKIE_SIZE, Control, Failure, PATIENCE, POLL, Parameters, Request, State};
use super::protocol::{doing, read_exact};
use super::report::{Reporter, host_port};
use super::stream::{Direction, Running, Shared, Stream, prepare};
use super::test::{Test, receive_then_send};

const BACKLOG: i32 = 64;
/// What a client is told whose parameters cannot be: "an option you are trying to set is not implemented yet".
const IEUNIMP: i32 = 13;

/// Serves until interrupted, or for one test with `-1`.
pub(super) fn run(env: &Env, options: &ServerOptions) -> Result<(), Failure> {
    let listener = listen(env, options)?;
    loop {
        Reporter::note(
            env,
            options.display,
            &format!(
                "-----------------------------------------------------------\n\
                 Server listening on {}\n\
                 -----------------------------------------------------------",
                options.port
            ),
        );
        let (so, peer) = match accept(env, &listener) {
            Err(Failure::Interrupted) if !options.one_off => return Ok(()),
            other => other?,
        };
        let outcome = serve(env, options, &listener, so, &peer);
        match outcome {
            Err(Failure::Interrupted) => return Err(Failure::Interrupted),
            Err(failure) if options.one_off => return Err(failure),
            // A client that fails does not end the server.
            Err(failure) => outln!(env, "iperf3: error - {failure}"),
            Ok(()) => {}
        }
        if options.one_off {
            return Ok(());
        }
    }
}

fn listen(env: &Env, options: &ServerOptions) -> Result<SocketHandle, Failure> {
    let so = bound(env, SockType::Stream, options)?;
    so.listen(BACKLOG).map_err(doing("start listener"))?;
    Ok(so)
}

/// A socket bound to the server's port, whose waits end every [`POLL`]: of both families, unless one is asked for, as iperf3
/// has it.
fn bound(env: &Env, ty: SockType, options: &ServerOptions) -> Result<SocketHandle, Failure> {
    let address = match (&options.bind, options.family) {
        (Some(word), _) => address(env, word)?,
        (None, Family::Inet) => SockAddr::v4(Ipv4Addr::UNSPECIFIED, 0),
        (None, Family::Any | Family::Inet6) => SockAddr::v6(Ipv6Addr::UNSPECIFIED, 0),
    };
    let so = SocketHandle::socket(&env.vnet, address.family(), ty, 0)
        .map_err(doing("create a socket"))?;
    if let SockAddr::In6(_) = address {
        let only = i32::from(options.family == Family::Inet6);
        so.setsockopt_int(IPPROTO_IPV6, IPV6_V6ONLY, only)
            .map_err(doing("set the families"))?;
    }
    so.setsockopt_int(SOL_SOCKET, SO_REUSEADDR, 1)
        .map_err(doing("set address reuse"))?;
    so.bind(&io::with_port(address, options.port))
        .map_err(doing("bind to the port"))?;
    so.set_rcvtimeo(Some(POLL))
        .map_err(doing("set a timeout"))?;
    Ok(so)
}

/// Waits for a connection, however long.
fn accept(env: &Env, listener: &SocketHandle) -> Result<(SocketHandle, SockAddr), Failure> {
    loop {
        match listener.accept() {
            Ok(accepted) => return Ok(accepted),
            Err(Errno::EINTR) => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN) if env.interrupted() => return Err(Failure::Interrupted),
            // The connection was gone before we came to it.
            Err(Errno::EAGAIN | Errno::ECONNABORTED) => {}
            Err(errno) => return Err(Failure::Socket("accept a connection", errno)),
        }
    }
}

/// Runs the test of one client.
fn serve(
    env: &Env,
    options: &ServerOptions,
    listener: &SocketHandle,
    so: SocketHandle,
    peer: &SockAddr,
) -> Result<(), Failure> {
    let control = Control::new(env, so)?;
    let mut cookie = [0; COOKIE_SIZE];
    control.read(&mut cookie)?;
    let (host, port) = host_port(peer);
    let line = format!("Accepted connection from {host}, port {port}");
    Reporter::note(env, options.display, &line);

    control.say(State::ParamExchange)?;
    let parameters: Parameters = control.recv_json()?;
    let request = match parameters.into_request() {
        Ok(request) => request,
        Err(reason) => {
            control.say(State::ServerError)?;
            control.write(&IEUNIMP.to_be_bytes())?;
            control.write(&(Errno::EOPNOTSUPP as i32).to_be_bytes())?;
            return Err(Failure::Protocol(reason));
        }
    };
    let streams = open_streams(env, options, listener, &control, &cookie, &request.options)?;
    control.say(State::TestStart)?;
    control.say(State::TestRunning)?;
    let mut test = start(env, options, request, streams);
    let outcome = watch(env, listener, &control, &mut test);
    if let Err(Failure::Interrupted) = outcome {
        let _ = control.say(State::ServerTerminate);
    }
    outcome?;

    let elapsed = test.stop();
    let ours = test.results(elapsed);
    // A client that receives reads whole blocks, and waits for the end of a broken one until it sees this.
    test.running.shutdown();
    control.say(State::ExchangeResults)?;
    let theirs = receive_then_send(&control, &ours)?;
    control.say(State::DisplayResults)?;
    test.summarize(&ours, &theirs)?;
    // The client says that it is done, or just goes.
    match control.expect(State::IperfDone) {
        Ok(()) | Err(Failure::Closed) => Ok(()),
        Err(failure) => Err(failure),
    }
}

fn start<'a>(
    env: &'a Env,
    options: &ServerOptions,
    request: Request,
    streams: Vec<Stream>,
) -> Test<'a> {
    let direction = if request.options.reverse {
        Direction::Send
    } else {
        Direction::Receive
    };
    if request.omit > 0 {
        let line = format!(
            "The first {} s that the client omits are counted here",
            request.omit
        );
        Reporter::note(env, options.display, &line);
    }
    let mut options_of_test = request.options;
    // When the client decides on the end, the server goes on until it is told.
    if direction == Direction::Send {
        options_of_test.limit = super::args::Limit::Time(sys::time::Sbintime::MAX);
    }
    let shared = Shared::new(options_of_test, direction, request.wide_counters);
    Test::new(
        env,
        options.display,
        Running::start(Arc::new(shared), streams),
    )
}

/// Waits until the client ends the test, printing reports.
fn watch(
    env: &Env,
    listener: &SocketHandle,
    control: &Control<'_>,
    test: &mut Test<'_>,
) -> Result<(), Failure> {
    loop {
        if env.interrupted() {
            return Err(Failure::Interrupted);
        }
        match control.poll()? {
            Some(State::TestEnd) => return Ok(()),
            Some(_) => return Err(Failure::Protocol("a state in the middle of the test")),
            None => {}
        }
        turn_away(listener);
        test.tick();
    }
}

/// Tells clients that come in the middle of a test that the server is busy.
fn turn_away(listener: &SocketHandle) {
    while let Ok((so, _)) = listener.accept_nowait() {
        let _ = so.send(&[State::AccessDenied as i8 as u8], MsgFlags::DONTWAIT);
    }
}

fn open_streams(
    env: &Env,
    server: &ServerOptions,
    listener: &SocketHandle,
    control: &Control<'_>,
    cookie: &[u8; COOKIE_SIZE],
    options: &TestOptions,
) -> Result<Vec<Stream>, Failure> {
    // The socket for the first datagram stands before the client is asked to send it.
    let mut udp = match options.transport {
        Transport::Udp => Some(bound(env, SockType::Dgram, server)?),
        Transport::Tcp => None,
    };
    control.say(State::CreateStreams)?;
    let mut streams = Vec::new();
    while streams.len() < options.streams {
        let so = match udp.take() {
            None => accept_stream(env, listener, cookie, options)?,
            Some(waiting) => {
                let so = accept_udp(env, waiting)?;
                prepare(&so, options)?;
                if streams.len() + 1 < options.streams {
                    udp = Some(bound(env, SockType::Dgram, server)?);
                }
                answer(&so)?;
                so
            }
        };
        streams.push(Stream::new(streams.len(), so));
    }
    Ok(streams)
}

/// Accepts the next TCP connection that shows the test's cookie.
fn accept_stream(
    env: &Env,
    listener: &SocketHandle,
    cookie: &[u8; COOKIE_SIZE],
    options: &TestOptions,
) -> Result<SocketHandle, Failure> {
    let deadline = machine::sbinuptime() + PATIENCE;
    loop {
        let so = match listener.accept() {
            Ok((so, _)) => so,
            Err(Errno::EINTR) => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN) if env.interrupted() => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN | Errno::ECONNABORTED) => {
                if machine::sbinuptime() > deadline {
                    return Err(Failure::Silent);
                }
                continue;
            }
            Err(errno) => return Err(Failure::Socket("accept a stream", errno)),
        };
        prepare(&so, options)?;
        let mut shown = [0; COOKIE_SIZE];
        read_exact(env, &so, &mut shown)?;
        if shown == *cookie {
            return Ok(so);
        }
        let _ = so.send(&[State::AccessDenied as i8 as u8], MsgFlags::DONTWAIT);
    }
}

/// Waits for the first datagram of a stream and connects the socket to its sender.
fn accept_udp(env: &Env, so: SocketHandle) -> Result<SocketHandle, Failure> {
    let deadline = machine::sbinuptime() + PATIENCE;
    let mut first = [0; 4];
    loop {
        match so.recvfrom(&mut first, MsgFlags::empty()) {
            Ok((_, Some(from))) => {
                so.connect(&from).map_err(doing("connect a UDP stream"))?;
                return Ok(so);
            }
            Ok((_, None)) => {}
            Err(Errno::EINTR) => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN) if env.interrupted() => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN) if machine::sbinuptime() > deadline => return Err(Failure::Silent),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(Failure::Socket("accept a UDP stream", errno)),
        }
    }
}

/// Answers the first datagram, which lets the client open its next stream.
fn answer(so: &SocketHandle) -> Result<(), Failure> {
    so.send(&UDP_CONNECT_REPLY.to_ne_bytes(), MsgFlags::empty())
        .map(drop)
        .map_err(doing("answer a UDP stream"))
}
