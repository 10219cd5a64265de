//! The stack beside smoltcp: two hosts in one thread, joined by a cable that only hands frames over.
//!
//! What is counted is the CPU time of both ends. The stack runs with its locks, as always; smoltcp needs none.

use crate::rounds::{self, Case, Side};
use crate::smoltcp::Smoltcp;
use crate::stack::Stack;
use crate::table;

/// Bytes that one turn of a bulk transfer moves.
const BLOCK: usize = 64 << 10;
/// What a full segment carries: a frame of 1,500 bytes with TCP's timestamps. (smoltcp sends none here: 1,460.)
const SEGMENT: f64 = 1448.0;
/// Datagrams that are sent before the first is received.
const BATCH: usize = 16;
/// Bytes of a datagram.
pub const DATAGRAM: usize = 18;

/// What the pair of hosts is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection.
    Tcp,
    /// UDP sockets.
    Udp,
}

/// Who computes and checks checksums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// The stack.
    Software,
    /// The cable, so to speak: nobody.
    Offloaded,
}

/// Two hosts, the first of which has a socket connected to one of the second.
pub trait Hosts: 'static {
    const NAME: &'static str;
    const SIDE: Side;
    fn new(kind: Kind, checksums: Checksums) -> Self;
    /// Sends all of `data`, and receives it on the other side by way of `buffer`; one ACK for two segments.
    fn block(&mut self, data: &[u8], buffer: &mut [u8]);
    /// Sends a byte and receives one for it.
    fn round_trip(&mut self);
    /// Sends `n` datagrams of `DATAGRAM` bytes, then receives them.
    fn datagrams(&mut self, n: usize);
}

/// Measures and prints.
pub fn measure() {
    let mut cases = Vec::new();
    add::<Stack>(&mut cases);
    add::<Smoltcp>(&mut cases);
    rounds::run(&mut cases);
    table::print(
        "Network: CPU ns, both ends together",
        "work",
        &cases,
        &[Stack::NAME, Smoltcp::NAME],
    );
}

fn add<H: Hosts>(cases: &mut Vec<Case>) {
    let mut case = |row: &str, things: f64, op: Box<dyn FnMut()>| {
        cases.push(Case::alone(row, H::NAME, H::SIDE, op).divided_by(things));
    };
    for (checksums, said) in [
        (Checksums::Software, ""),
        (Checksums::Offloaded, ", checksums offloaded"),
    ] {
        let mut hosts = H::new(Kind::Tcp, checksums);
        let (data, mut buffer) = (vec![7; BLOCK], vec![0; BLOCK]);
        let op = Box::new(move || hosts.block(&data, &mut buffer));
        case(
            &format!("1,448 bytes of a bulk transfer{said}"),
            BLOCK as f64 / SEGMENT,
            op,
        );
        let mut hosts = H::new(Kind::Udp, checksums);
        let op = Box::new(move || hosts.datagrams(BATCH));
        case(
            &format!("datagram of {DATAGRAM} bytes{said}"),
            BATCH as f64,
            op,
        );
    }
    let mut hosts = H::new(Kind::Tcp, Checksums::Software);
    case(
        "round trip of one byte",
        1.0,
        Box::new(move || hosts.round_trip()),
    );
}
