//! The client side of an iperf3 test.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::errno::Errno;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::socket::{MsgFlags, SockAddr, SockType};

use crate::apps::{Env, io};

use super::args::{ClientOptions, Transport};
use super::protocol::{Control, Failure, Parameters, State, doing, make_cookie};
use super::report::Reporter;
use super::stream::{Direction, Running, Shared, Stream, prepare};
use super::test::{Test, send_then_receive};

/// What a client's first datagram says, and what the server answers (`iperf.h`), in host order.
const UDP_CONNECT_MSG: u32 = 0x3637_3839;
pub(super) const UDP_CONNECT_REPLY: u32 = 0x3938_3736;
const LEGACY_UDP_CONNECT_REPLY: u32 = 987_654_321;
/// How often the first datagram is sent; each waits [`super::protocol::POLL`] for its answer.
const UDP_CONNECT_TRIES: u32 = 50;

/// Runs one test against a server.
pub(super) fn run(env: &Env, options: &ClientOptions) -> Result<(), Failure> {
    let server = io::with_port(address(env, &options.host)?, options.port);
    let bind = match &options.bind {
        Some(word) => Some(address(env, word)?),
        None => None,
    };
    let host = &options.host;
    let note = |line: &str| Reporter::note(env, options.display, line);
    note(&format!("Connecting to host {host}, port {}", options.port));

    let cookie = make_cookie();
    let so = connect(env, &server, bind.as_ref(), SockType::Stream)?;
    let control = Control::new(env, so)?;
    control.write(&cookie)?;

    control.expect(State::ParamExchange)?;
    control.send_json(&Parameters::from_options(&options.test))?;
    control.expect(State::CreateStreams)?;
    let mut streams = Vec::new();
    for index in 0..options.test.streams {
        let so = match options.test.transport {
            Transport::Tcp => open_tcp(env, &server, bind.as_ref(), options, &cookie)?,
            Transport::Udp => open_udp(env, &server, bind.as_ref(), options)?,
        };
        streams.push(Stream::new(index, so));
    }
    control.expect(State::TestStart)?;
    control.expect(State::TestRunning)?;

    let direction = if options.test.reverse {
        note(&format!("Reverse mode, remote host {host} is sending"));
        Direction::Receive
    } else {
        Direction::Send
    };
    let shared = Shared::new(options.test.clone(), direction, true);
    let running = Running::start(Arc::new(shared), streams);
    let mut test = Test::new(env, options.display, running);
    let outcome = watch(env, &control, &mut test);
    if let Err(Failure::Interrupted) = outcome {
        let _ = control.say(State::ClientTerminate);
    }
    outcome?;

    // A sender ends before it says so, for the server to get all that was sent; a receiver goes on until
    // the server has stopped.
    let elapsed = match direction {
        Direction::Send => {
            let elapsed = test.stop();
            control.say(State::TestEnd)?;
            control.expect(State::ExchangeResults)?;
            elapsed
        }
        Direction::Receive => {
            control.say(State::TestEnd)?;
            control.expect(State::ExchangeResults)?;
            test.stop()
        }
    };
    let ours = test.results(elapsed);
    let theirs = send_then_receive(&control, &ours)?;
    control.expect(State::DisplayResults)?;
    test.summarize(&ours, &theirs)?;
    control.say(State::IperfDone)?;
    note("iperf Done.");
    Ok(())
}

/// Waits for the end of the test, printing reports.
fn watch(env: &Env, control: &Control<'_>, test: &mut Test<'_>) -> Result<(), Failure> {
    while !test.running.complete() {
        if env.interrupted() {
            return Err(Failure::Interrupted);
        }
        if control.poll()?.is_some() {
            return Err(Failure::Protocol("a state in the middle of the test"));
        }
        test.tick();
    }
    let failure = test
        .running
        .streams
        .iter()
        .find_map(|stream| stream.failure());
    match failure {
        Some(errno) => Err(Failure::Socket("move a stream's data", errno)),
        None => Ok(()),
    }
}

/// An address of the command line; `ENXIO` if the interface that it names is not there.
pub(super) fn address(env: &Env, word: &str) -> Result<SockAddr, Failure> {
    let unknown = Failure::Socket("find the interface of an address", Errno::ENXIO);
    io::address(&env.vnet, word).ok_or(unknown)
}

fn open(
    env: &Env,
    server: &SockAddr,
    bind: Option<&SockAddr>,
    ty: SockType,
) -> Result<SocketHandle, Failure> {
    let so = SocketHandle::socket(&env.vnet, server.family(), ty, 0)
        .map_err(doing("create a socket"))?;
    if let Some(bind) = bind {
        so.bind(bind).map_err(doing("bind to the address"))?;
    }
    Ok(so)
}

fn connect(
    env: &Env,
    server: &SockAddr,
    bind: Option<&SockAddr>,
    ty: SockType,
) -> Result<SocketHandle, Failure> {
    let so = open(env, server, bind, ty)?;
    so.connect(server).map_err(doing("connect to server"))?;
    Ok(so)
}

fn open_tcp(
    env: &Env,
    server: &SockAddr,
    bind: Option<&SockAddr>,
    options: &ClientOptions,
    cookie: &[u8],
) -> Result<SocketHandle, Failure> {
    let so = open(env, server, bind, SockType::Stream)?;
    prepare(&so, &options.test)?;
    if options.test.mss > 0 {
        so.setsockopt_int(
            sys::socket::IPPROTO_TCP,
            sys::socket::TCP_MAXSEG,
            options.test.mss as i32,
        )
        .map_err(doing("set TCP maximum segment size"))?;
    }
    so.connect(server).map_err(doing("connect a stream"))?;
    super::protocol::write_all(env, &so, cookie)?;
    Ok(so)
}

/// Opens a UDP stream: the server learns our port from a first datagram, and answers it.
fn open_udp(
    env: &Env,
    server: &SockAddr,
    bind: Option<&SockAddr>,
    options: &ClientOptions,
) -> Result<SocketHandle, Failure> {
    let so = connect(env, server, bind, SockType::Dgram)?;
    prepare(&so, &options.test)?;
    for _ in 0..UDP_CONNECT_TRIES {
        if env.interrupted() {
            return Err(Failure::Interrupted);
        }
        so.send(&UDP_CONNECT_MSG.to_ne_bytes(), MsgFlags::empty())
            .map_err(doing("send a stream's first datagram"))?;
        let mut reply = [0; 4];
        match so.recv(&mut reply, MsgFlags::empty()) {
            Ok(4)
                if [UDP_CONNECT_REPLY, LEGACY_UDP_CONNECT_REPLY]
                    .contains(&u32::from_ne_bytes(reply)) =>
            {
                return Ok(so);
            }
            Ok(_) | Err(Errno::EAGAIN | Errno::ECONNREFUSED) => {}
            Err(errno) => return Err(Failure::Socket("open a UDP stream", errno)),
        }
    }
    Err(Failure::Silent)
}
