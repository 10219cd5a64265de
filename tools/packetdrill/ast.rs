//! A script as the parser understood it.

use std::fmt;

/// A place in a script, both counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pos {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// What is wrong with a script, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScriptError {
    /// Where.
    pub pos: Pos,
    /// What.
    pub reason: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.pos.line, self.pos.column, self.reason)
    }
}

/// A whole script.
#[derive(Clone, PartialEq, Debug)]
pub struct Script {
    /// `--name=value` lines.
    pub options: Vec<ScriptOption>,
    /// What happens, in order.
    pub events: Vec<Event>,
}

/// A `--name=value` line; without `=` the value is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScriptOption {
    /// Where it stands.
    pub pos: Pos,
    /// Name, without the dashes.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Something that happens at a time.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Where it stands.
    pub pos: Pos,
    /// When.
    pub time: Time,
    /// What.
    pub action: Action,
}

/// When an event happens. Times are in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Time {
    /// So long after the start of the script.
    Absolute(i64),
    /// So long after the event before.
    Relative(i64),
    /// Whenever (`*`).
    Any,
    /// Between two times after the start (`1.0~2.0`).
    AbsoluteRange(i64, i64),
    /// Between two times after the event before (`+1.0~+2.0`).
    RelativeRange(i64, i64),
}

/// What happens.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// A packet is put on the wire, or expected there.
    Packet(Packet),
    /// A socket call.
    Syscall(Syscall),
    /// A back-quoted line for a shell.
    Command(String),
    /// An assertion about `TCP_INFO` (`%{ … }%`).
    Code(String),
}

/// Which way a packet goes, seen from the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// To the stack (`<`).
    Inbound,
    /// From the stack (`>`).
    Outbound,
}

/// A packet put on the wire, or expected there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Which way.
    pub direction: Direction,
    /// What is said of the IP header.
    pub ip: IpSpec,
    /// What it carries.
    pub body: Body,
    /// Ports of the UDP header around it (`/udp(1 > 9811)`).
    pub encapsulation: Option<UdpPorts>,
}

/// Source and destination port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpPorts {
    /// Source.
    pub source: u16,
    /// Destination.
    pub destination: u16,
}

/// What is said of an IP header; what is not said is not checked, and sent with usual values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IpSpec {
    /// ECN field.
    pub ecn: Option<EcnSpec>,
    /// TOS or traffic class, all eight bits.
    pub tos: Option<u8>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// Flow label.
    pub flowlabel: Option<u32>,
}

/// ECN field of an IP header (RFC 3168 §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EcnSpec {
    /// Not ECN-capable.
    NoEcn,
    /// ECT(0).
    Ect0,
    /// ECT(1).
    Ect1,
    /// Either (only expected, never sent).
    Ect01,
    /// Congestion experienced.
    Ce,
}

/// What a packet carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// A TCP segment.
    Tcp(TcpSpec),
    /// A UDP datagram with so many bytes.
    Udp(u16),
    /// An ICMP message.
    Icmp(IcmpSpec),
}

/// A TCP segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpSpec {
    /// Flags, as in the header (AE is bit 8).
    pub flags: u16,
    /// Sequence number.
    pub seq: SeqSpec,
    /// Bytes of payload.
    pub len: u32,
    /// Acknowledgement number; absent stands for 0.
    pub ack: Option<u32>,
    /// Window, unscaled; absent is not checked.
    pub win: Option<u16>,
    /// Urgent pointer.
    pub urg: Option<u16>,
    /// Options; `None` is not checked (`<...>`).
    pub options: Option<Vec<TcpOption>>,
}

/// Where a segment begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeqSpec {
    /// Anywhere (`...`).
    Any,
    /// At a number relative to the first of the connection.
    Relative(u32),
    /// At a number as on the wire (`!`).
    Absolute(u32),
}

/// A TCP option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TcpOption {
    /// End of list, or padding behind it.
    Eol,
    /// Nothing.
    Nop,
    /// Maximum segment size.
    Mss(u16),
    /// Window scale.
    WindowScale(u8),
    /// SACK permitted.
    SackPermitted,
    /// SACK blocks.
    Sack(Vec<(u32, u32)>),
    /// Timestamps.
    Timestamps {
        /// Of the sender.
        val: u32,
        /// Echoed.
        ecr: u32,
    },
    /// RFC 2385 signature.
    Md5(Md5),
    /// RFC 7413 cookie; empty asks for one.
    FastOpen(Vec<u8>),
    /// The same as an experimental option.
    FastOpenExperimental(Vec<u8>),
    /// Any other.
    Other {
        /// Kind.
        kind: u8,
        /// What follows the length.
        data: Vec<u8>,
    },
}

/// An RFC 2385 signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Md5 {
    /// The right one.
    Valid,
    /// A wrong one.
    Invalid,
    /// As on the wire.
    Digest([u8; 16]),
}

/// An ICMP message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IcmpSpec {
    /// Type, by name or number.
    pub kind: String,
    /// Code, by name or number; absent is 0.
    pub code: Option<String>,
    /// MTU of the next hop.
    pub mtu: Option<u32>,
    /// The packet it is about.
    pub quoted: Option<Quoted>,
    /// Where the names stand.
    pub pos: Pos,
}

/// The packet an ICMP message is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quoted {
    /// A segment we saw before.
    Tcp {
        /// Sequence number, relative to the first of the connection.
        seq: u32,
        /// Bytes of payload.
        len: u32,
        /// Ports of the UDP header around it.
        encapsulation: Option<UdpPorts>,
    },
    /// A datagram of so many bytes.
    Udp(u16),
}

/// A socket call and what it must return.
#[derive(Clone, PartialEq, Debug)]
pub struct Syscall {
    /// Name.
    pub name: String,
    /// Arguments.
    pub args: Vec<Expr>,
    /// Result.
    pub result: Expr,
    /// Name of the error, where one is expected.
    pub errno: Option<String>,
    /// When a call that blocks must return, counted as the event's time is.
    pub end: Option<i64>,
}

/// An argument or a result.
#[derive(Clone, PartialEq, Debug)]
pub enum Expr {
    /// Anything (`...`).
    Any,
    /// A number.
    Int(i64),
    /// A name: a constant, a flag, an error.
    Word(String),
    /// A string.
    Text(String),
    /// `a | b`.
    Or(Vec<Expr>),
    /// `[a, b]`: what a pointer points to.
    List(Vec<Expr>),
    /// `{a=1, 2}`: a structure.
    Struct(Vec<(Option<String>, Expr)>),
    /// `htons(80)`.
    Call(String, Vec<Expr>),
}
