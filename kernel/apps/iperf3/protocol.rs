//! The control connection of iperf3: one-byte states, and JSON behind a 32-bit length.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use sys::errno::Errno;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine;
use sys::socket::{IPPROTO_TCP, MsgFlags, TCP_NODELAY};
use sys::time::Sbintime;

use crate::apps::Env;

use super::args::{Limit, MAX_BLOCK, MAX_STREAMS, MAX_UDP_BLOCK, MIN_UDP_BLOCK};
use super::args::{TestOptions, Transport};

/// Bytes of a cookie: 36 letters and digits and a NUL.
pub(super) const COOKIE_SIZE: usize = 37;
/// The longest JSON text taken from a peer. A result of 32 streams is some 8 KiB.
const MAX_JSON: usize = 64 * 1024;
/// The deepest nesting taken from a peer; parsing recurses.
const MAX_JSON_DEPTH: usize = 8;
/// How often a wait looks whether the program should stop.
pub(super) const POLL: Sbintime = Sbintime::from_ms(100);
/// How long the peer may take for an answer.
pub(super) const PATIENCE: Sbintime = Sbintime::from_s(30);

/// Why a test ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// A socket call failed: what was being done, and the error.
    Socket(&'static str, Errno),
    /// The peer closed the control connection.
    Closed,
    /// The peer took too long.
    Silent,
    /// The peer said something the protocol has no place for.
    Protocol(&'static str),
    /// The parameters or results could not be read.
    Json(serde_json::Error),
    /// The server is busy with another test.
    Denied,
    /// The server failed, with its error numbers.
    Server(i32, i32),
    /// The other side's user ended the test.
    Terminated,
    /// Our user did.
    Interrupted,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Socket(what, errno) => write!(f, "unable to {what}: {errno}"),
            Failure::Closed => write!(f, "control socket has closed unexpectedly"),
            Failure::Silent => write!(f, "the peer does not answer"),
            Failure::Protocol(what) => write!(f, "received an unknown control message: {what}"),
            Failure::Json(error) => write!(f, "unable to read the peer's message: {error}"),
            Failure::Denied => write!(f, "the server is busy running a test. try again later"),
            Failure::Server(error, errno) => {
                write!(f, "server error {error} (errno {errno})")
            }
            Failure::Terminated => write!(f, "the other side has terminated"),
            Failure::Interrupted => write!(f, "interrupt - the test has been terminated"),
        }
    }
}

/// Wraps an error of a socket call with what was being done.
pub(super) fn doing(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| match errno {
        Errno::EINTR => Failure::Interrupted,
        errno => Failure::Socket(what, errno),
    }
}

/// The states of a test, as their bytes stand on the control connection (`iperf_api.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i8)]
pub(super) enum State {
    TestStart = 1,
    TestRunning = 2,
    TestEnd = 4,
    ParamExchange = 9,
    CreateStreams = 10,
    ServerTerminate = 11,
    ClientTerminate = 12,
    ExchangeResults = 13,
    DisplayResults = 14,
    IperfStart = 15,
    IperfDone = 16,
    AccessDenied = -1,
    ServerError = -2,
}

impl State {
    fn from_byte(byte: u8) -> Option<State> {
        use State::*;
        [
            TestStart,
            TestRunning,
            TestEnd,
            ParamExchange,
            CreateStreams,
            ServerTerminate,
            ClientTerminate,
            ExchangeResults,
            DisplayResults,
            IperfStart,
            IperfDone,
            AccessDenied,
            ServerError,
        ]
        .into_iter()
        .find(|state| *state as i8 as u8 == byte)
    }
}

/// The control connection.
pub(super) struct Control<'a> {
    env: &'a Env,
    so: SocketHandle,
}

impl<'a> Control<'a> {
    /// Takes over a connected socket.
    pub(super) fn new(env: &'a Env, so: SocketHandle) -> Result<Control<'a>, Failure> {
        so.set_rcvtimeo(Some(POLL))
            .and_then(|()| so.set_sndtimeo(Some(POLL)))
            .map_err(doing("set a timeout"))?;
        // States are single bytes that follow each other.
        so.setsockopt_int(IPPROTO_TCP, TCP_NODELAY, 1)
            .map_err(doing("set TCP no delay"))?;
        Ok(Control { env, so })
    }

    /// Says `state`.
    pub(super) fn say(&self, state: State) -> Result<(), Failure> {
        self.write(&[state as i8 as u8])
    }

    /// Waits for the next state, for at most [`PATIENCE`].
    pub(super) fn hear(&self) -> Result<State, Failure> {
        let mut byte = [0];
        self.read(&mut byte)?;
        self.understand(byte[0])
    }

    /// Waits for one of the states that may come now.
    pub(super) fn expect(&self, wanted: State) -> Result<(), Failure> {
        match self.hear()? {
            state if state == wanted => Ok(()),
            _ => Err(Failure::Protocol("state out of order")),
        }
    }

    /// The next state if one arrives within [`POLL`].
    pub(super) fn poll(&self) -> Result<Option<State>, Failure> {
        let mut byte = [0];
        match self.so.recv(&mut byte, MsgFlags::empty()) {
            Ok(0) => Err(Failure::Closed),
            Ok(_) => self.understand(byte[0]).map(Some),
            Err(Errno::EAGAIN) => Ok(None),
            Err(Errno::EINTR) => Err(Failure::Interrupted),
            Err(errno) => Err(Failure::Socket("read the control connection", errno)),
        }
    }

    /// Turns the states that end a test into failures.
    fn understand(&self, byte: u8) -> Result<State, Failure> {
        match State::from_byte(byte) {
            None => Err(Failure::Protocol("unknown state")),
            Some(State::AccessDenied) => Err(Failure::Denied),
            Some(State::ServerTerminate | State::ClientTerminate) => Err(Failure::Terminated),
            Some(State::ServerError) => {
                let mut codes = [0; 8];
                self.read(&mut codes)?;
                let [a, b, c, d, e, f, g, h] = codes;
                Err(Failure::Server(
                    i32::from_be_bytes([a, b, c, d]),
                    i32::from_be_bytes([e, f, g, h]),
                ))
            }
            Some(state) => Ok(state),
        }
    }

    /// Sends a value as JSON.
    pub(super) fn send_json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_vec(value).map_err(Failure::Json)?;
        // In one write: iperf3 gives up if the text does not come right behind its length.
        let mut message = Vec::with_capacity(4 + text.len());
        message.extend_from_slice(&(text.len() as u32).to_be_bytes());
        message.extend_from_slice(&text);
        self.write(&message)
    }

    /// Receives a value as JSON.
    pub(super) fn recv_json<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Failure> {
        let mut len = [0; 4];
        self.read(&mut len)?;
        let len = u32::from_be_bytes(len) as usize;
        if len > MAX_JSON {
            return Err(Failure::Protocol("parameters too long"));
        }
        let mut text = alloc::vec![0; len];
        self.read(&mut text)?;
        parse_json(&text)
    }

    /// Reads exactly `buf.len()` bytes.
    pub(super) fn read(&self, buf: &mut [u8]) -> Result<(), Failure> {
        read_exact(self.env, &self.so, buf)
    }

    /// Writes all of `bytes`.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        write_all(self.env, &self.so, bytes)
    }
}

/// Reads exactly `buf.len()` bytes of a stream whose receive timeout is [`POLL`], within [`PATIENCE`].
pub(super) fn read_exact(env: &Env, so: &SocketHandle, buf: &mut [u8]) -> Result<(), Failure> {
    let deadline = machine::sbinuptime() + PATIENCE;
    let mut have = 0;
    while have < buf.len() {
        match so.recv(&mut buf[have..], MsgFlags::empty()) {
            Ok(0) => return Err(Failure::Closed),
            Ok(n) => have += n,
            Err(Errno::EINTR) => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN) if env.interrupted() => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN) if machine::sbinuptime() > deadline => return Err(Failure::Silent),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(Failure::Socket("read the control connection", errno)),
        }
    }
    Ok(())
}

/// Writes all of `bytes` to a stream whose send timeout is [`POLL`], within [`PATIENCE`].
pub(super) fn write_all(env: &Env, so: &SocketHandle, mut bytes: &[u8]) -> Result<(), Failure> {
    let deadline = machine::sbinuptime() + PATIENCE;
    while !bytes.is_empty() {
        match so.send(bytes, MsgFlags::empty()) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or(&[]),
            Err(Errno::EINTR) => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN) if env.interrupted() => return Err(Failure::Interrupted),
            Err(Errno::EAGAIN) if machine::sbinuptime() > deadline => return Err(Failure::Silent),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(Failure::Socket("write to the control connection", errno)),
        }
    }
    Ok(())
}

/// Reads a value from JSON that is not nested too deeply.
pub(super) fn parse_json<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, Failure> {
    if depth(text) > MAX_JSON_DEPTH {
        return Err(Failure::Protocol("parameters nested too deeply"));
    }
    serde_json::from_slice(text).map_err(Failure::Json)
}

/// How deep the brackets of a JSON text nest, before it is parsed.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest): (usize, usize) = (0, 0);
    let mut bytes = text.iter();
    let mut in_string = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if in_string => {
                bytes.next();
            }
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A cookie: what joins the connections of one test (`make_cookie`).
pub(super) fn make_cookie() -> [u8; COOKIE_SIZE] {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut cookie = [0; COOKIE_SIZE];
    for place in &mut cookie[..COOKIE_SIZE - 1] {
        *place = ALPHABET[(machine::random_u64() % 32) as usize];
    }
    cookie
}

/// What the client asks for (`send_parameters`). Members that we do not know are passed over.
#[derive(Serialize, Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct Parameters {
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    tcp: bool,
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    udp: bool,
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    sctp: bool,
    omit: u32,
    time: u32,
    num: u64,
    blockcount: u64,
    #[serde(rename = "MSS", skip_serializing_if = "Option::is_none")]
    mss: Option<u32>,
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    nodelay: bool,
    parallel: usize,
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    reverse: bool,
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    bidirectional: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<u64>,
    pacing_timer: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    udp_counters_64bit: Option<i32>,
    #[serde(skip_deserializing)]
    client_version: &'static str,
}

/// What a server makes of a client's parameters.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) options: TestOptions,
    /// UDP packet counters have 64 bits.
    pub(super) wide_counters: bool,
    /// Seconds at the start that the client leaves out of its results.
    pub(super) omit: u32,
}

impl Parameters {
    /// Puts the client's options in iperf3's words.
    pub(super) fn from_options(options: &TestOptions) -> Parameters {
        let udp = options.transport == Transport::Udp;
        Parameters {
            tcp: !udp,
            udp,
            time: match options.limit {
                Limit::Time(time) => time.as_s() as u32,
                Limit::Bytes(_) => 0,
            },
            num: match options.limit {
                Limit::Time(_) => 0,
                Limit::Bytes(bytes) => bytes,
            },
            mss: (options.mss > 0).then_some(options.mss as u32),
            nodelay: options.no_delay,
            parallel: options.streams,
            reverse: options.reverse,
            window: (options.window > 0).then_some(options.window as u32),
            len: options.block,
            bandwidth: (options.rate > 0).then_some(options.rate),
            pacing_timer: 1000,
            udp_counters_64bit: udp.then_some(1),
            client_version: "3.12",
            ..Parameters::default()
        }
    }

    /// Checks what a client asks for; what we cannot do is refused by name.
    pub(super) fn into_request(self) -> Result<Request, &'static str> {
        if self.sctp {
            return Err("SCTP is not supported");
        }
        if self.bidirectional {
            return Err("bidirectional tests (--bidir) are not supported");
        }
        let transport = match (self.tcp, self.udp) {
            (_, true) => Transport::Udp,
            (true, false) => Transport::Tcp,
            (false, false) => return Err("neither TCP nor UDP asked for"),
        };
        if !(1..=MAX_STREAMS).contains(&self.parallel) {
            return Err("too many streams");
        }
        let blocks = match transport {
            Transport::Tcp => 1..=MAX_BLOCK,
            Transport::Udp => MIN_UDP_BLOCK..=MAX_UDP_BLOCK,
        };
        if !blocks.contains(&self.len) {
            return Err("block size out of range");
        }
        let limit = if self.num > 0 {
            Limit::Bytes(self.num)
        } else if self.blockcount > 0 {
            Limit::Bytes(self.blockcount.saturating_mul(self.len as u64))
        } else {
            Limit::Time(Sbintime::from_s(i64::from(self.time)))
        };
        Ok(Request {
            options: TestOptions {
                transport,
                limit,
                streams: self.parallel,
                reverse: self.reverse,
                block: self.len,
                rate: self.bandwidth.unwrap_or(0),
                window: self.window.unwrap_or(0) as usize,
                mss: self.mss.unwrap_or(0) as usize,
                no_delay: self.nodelay,
            },
            wide_counters: self.udp_counters_64bit.unwrap_or(0) != 0,
            omit: self.omit,
        })
    }
}

/// What one side measured (`send_results`).
#[derive(Serialize, Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct Results {
    pub(super) cpu_util_total: f64,
    pub(super) cpu_util_user: f64,
    pub(super) cpu_util_system: f64,
    /// 1 or 0 from a sender, -1 from a receiver.
    #[serde(deserialize_with = "signed")]
    pub(super) sender_has_retransmits: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) congestion_used: Option<String>,
    pub(super) streams: Vec<StreamResult>,
}

/// One stream of [`Results`].
#[derive(Serialize, Deserialize, Debug, Default, Clone)]
#[serde(default)]
pub(super) struct StreamResult {
    pub(super) id: i32,
    #[serde(deserialize_with = "counted")]
    pub(super) bytes: u64,
    #[serde(deserialize_with = "signed")]
    pub(super) retransmits: i64,
    /// Seconds.
    pub(super) jitter: f64,
    #[serde(deserialize_with = "signed")]
    pub(super) errors: i64,
    #[serde(deserialize_with = "signed")]
    pub(super) omitted_errors: i64,
    #[serde(deserialize_with = "signed")]
    pub(super) packets: i64,
    #[serde(deserialize_with = "signed")]
    pub(super) omitted_packets: i64,
    /// Seconds.
    pub(super) start_time: f64,
    /// Seconds.
    pub(super) end_time: f64,
}

/// A signed number from iperf3, whose JSON library writes -1 as 2^64 - 1.
fn signed<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    let number = serde_json::Number::deserialize(from)?;
    let unsigned = number.as_u64().map(|n| n as i64);
    let rounded = number.as_f64().map(|n| n as i64);
    Ok(number.as_i64().or(unsigned).or(rounded).unwrap_or(0))
}

/// A number of bytes from iperf3.
fn counted<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    signed(from).map(|n| n.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_iperf_3_12_is_understood() {
        let text =
            br#"{"tcp":true,"omit":0,"time":10,"num":0,"blockcount":0,"parallel":4,"reverse":true,
            "len":131072,"pacing_timer":1000,"client_version":"3.12"}"#;
        let parameters: Parameters = serde_json::from_slice(text).unwrap();
        let request = parameters.into_request().unwrap();
        assert_eq!(request.options.transport, Transport::Tcp);
        assert_eq!(request.options.limit, Limit::Time(Sbintime::from_s(10)));
        assert_eq!(
            (request.options.streams, request.options.block),
            (4, 131_072)
        );
        assert!(request.options.reverse && !request.wide_counters);
    }

    #[test]
    fn our_own_parameters_are_understood() {
        let options = TestOptions {
            transport: Transport::Udp,
            limit: Limit::Bytes(1 << 20),
            streams: 2,
            reverse: false,
            block: 1448,
            rate: 5_000_000,
            window: 65_536,
            mss: 0,
            no_delay: false,
        };
        let text = serde_json::to_vec(&Parameters::from_options(&options)).unwrap();
        let parsed: Parameters = serde_json::from_slice(&text).unwrap();
        let request = parsed.into_request().unwrap();
        assert_eq!(request.options, options);
        assert!(request.wide_counters);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let ask = |text: &str| {
            let parameters: Parameters = serde_json::from_str(text).unwrap();
            parameters.into_request().unwrap_err()
        };
        assert!(ask(r#"{"sctp":true}"#).contains("SCTP"));
        assert!(ask(r#"{"tcp":true,"bidirectional":true}"#).contains("--bidir"));
        assert!(ask(r#"{"tcp":true,"parallel":9999,"len":1}"#).contains("streams"));
        assert!(ask(r#"{"udp":true,"parallel":1,"len":4}"#).contains("block size"));
        assert!(ask("{}").contains("neither"));
    }

    #[test]
    fn results_of_iperf3_are_read_even_with_its_unsigned_minus_one() {
        let text = br#"{"cpu_util_total":1.5,"sender_has_retransmits":0,"streams":[{"id":1,"bytes":18760288,
            "retransmits":18446744073709551615,"jitter":0,"errors":0,"packets":12956,"end_time":3.00013}]}"#;
        let results: Results = serde_json::from_slice(text).unwrap();
        let stream = &results.streams[0];
        assert_eq!(
            (stream.retransmits, stream.bytes, stream.packets),
            (-1, 18_760_288, 12_956)
        );
    }

    #[test]
    fn brackets_inside_strings_do_not_nest() {
        assert_eq!(depth(br#"{"a":["[[[[\"[[",{}]}"#), 3);
    }

    #[test]
    fn states_are_the_bytes_of_iperf3() {
        assert_eq!(State::from_byte(0xff), Some(State::AccessDenied));
        assert_eq!(State::from_byte(13), Some(State::ExchangeResults));
        assert_eq!(State::from_byte(3), None);
    }
}
