//! The one connection that a script is about: whose it is, and from where its numbers count.
//!
//! Scripts count sequence numbers from the first of a connection. The peer's first number is sent as it is written; the
//! stack's is learned from its SYN. A SYN carries the number itself, other segments what was added to it.

use crate::ast::{SeqSpec, TcpOption, TcpSpec};
use crate::wire::{Segment, TcpFlag};
use std::collections::BTreeMap;

/// How far a socket got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// It was made, perhaps bound.
    Idle,
    /// It listens.
    Listening,
    /// The peer began.
    Passive,
    /// The stack began, or is about to.
    Active,
}

/// The connection under test.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The script's number of its descriptor, once it has one.
    pub fd: Option<i64>,
    role: Role,
    /// The stack's port, once it is known.
    pub local_port: Option<u16>,
    /// The peer's port, once it is known.
    pub remote_port: Option<u16>,
    /// First number of the peer.
    remote_isn: u32,
    /// First number of the stack: as written, and as on the wire.
    local_isn: Option<(u32, u32)>,
    /// The stack has acknowledged the peer's SYN: a further one belongs to another time.
    synchronized: bool,
    /// The peer has sent a SYN since `local_isn` was learned.
    syn_came: bool,
    /// Timestamps of the stack: as written, to as on the wire.
    timestamps: BTreeMap<u32, u32>,
}

impl Connection {
    /// A new socket.
    pub fn new(fd: i64) -> Connection {
        Connection {
            fd: Some(fd),
            role: Role::Idle,
            local_port: None,
            remote_port: None,
            remote_isn: 0,
            local_isn: None,
            synchronized: false,
            syn_came: false,
            timestamps: BTreeMap::new(),
        }
    }

    /// The socket listens from now on.
    pub fn listen(&mut self) {
        self.role = Role::Listening;
    }

    /// The socket connects to `port` of the peer.
    pub fn connect(&mut self, port: u16) {
        if self.role == Role::Idle {
            self.role = Role::Active;
            self.remote_port = Some(port);
        }
    }

    /// Whether `accept` may return this connection.
    pub fn is_acceptable(&self) -> bool {
        self.role == Role::Passive && self.fd.is_none()
    }

    /// Gets ready to send `spec`: a socket that only waited becomes a connection from `port`.
    pub fn begin_inbound(&mut self, spec: &TcpSpec, port: impl FnOnce() -> u16) {
        let seq = written(spec.seq);
        match self.role {
            Role::Idle => {
                // Nothing of the stack's is known, or will be: its numbers are the script's.
                self.local_isn = Some((0, 0));
                self.become_passive(port(), seq);
                self.synchronized = true;
            }
            Role::Listening => {
                self.fd = None;
                self.become_passive(port(), seq);
            }
            Role::Passive | Role::Active => {}
        }
        if spec.flags & TcpFlag::SYN != 0 {
            self.syn_came = true;
            if !self.synchronized {
                self.remote_isn = seq;
            }
        }
    }

    fn become_passive(&mut self, port: u16, isn: u32) {
        self.role = Role::Passive;
        self.remote_port = Some(port);
        self.remote_isn = isn;
    }

    /// What to add to the stack's numbers as written to get those on the wire.
    fn local_offset(&self, syn: bool) -> u32 {
        match self.local_isn {
            Some((script, live)) if syn => live.wrapping_sub(script),
            Some((_, live)) => live,
            None => 0,
        }
    }

    /// The same for the peer's.
    fn remote_offset(&self, syn: bool) -> u32 {
        match syn {
            true => 0,
            false => self.remote_isn,
        }
    }

    /// The segment to put on the wire; the reason if there is none.
    pub fn inbound(&self, spec: &TcpSpec) -> Result<Segment, String> {
        let syn = spec.flags & TcpFlag::SYN != 0;
        let seq = match spec.seq {
            SeqSpec::Absolute(seq) => seq,
            seq => written(seq).wrapping_add(self.remote_offset(syn)),
        };
        let local = self.local_offset(syn);
        let mut options = Vec::new();
        for option in spec.options.iter().flatten() {
            options.push(match option {
                TcpOption::Sack(blocks) => TcpOption::Sack(shift(blocks, local)),
                TcpOption::Timestamps { val, ecr } => TcpOption::Timestamps {
                    val: *val,
                    ecr: match spec.flags & TcpFlag::ACK {
                        0 => *ecr,
                        _ => self.echo(*ecr)?,
                    },
                },
                other => other.clone(),
            });
        }
        Ok(Segment {
            sport: self.remote_port.unwrap_or(0),
            dport: self.local_port.unwrap_or(0),
            seq,
            ack: spec.ack.map_or(0, |ack| ack.wrapping_add(local)),
            flags: spec.flags,
            win: spec.win.unwrap_or(0),
            urg: spec.urg.unwrap_or(0),
            options,
            len: spec.len as usize,
        })
    }

    /// The timestamp on the wire for one of the stack's as written.
    fn echo(&self, written: u32) -> Result<u32, String> {
        match self.timestamps.get(&written) {
            Some(live) => Ok(*live),
            None if written == 0 => Ok(0),
            None => Err(format!("no packet had timestamp {written} to echo")),
        }
    }

    /// The number on the wire for one of the stack's as written, in a packet an ICMP message quotes.
    pub fn quoted_seq(&self, written: u32) -> u32 {
        match self.local_isn {
            // The SYN itself is number 0 in either way of counting.
            Some((_, live)) => written.wrapping_add(live),
            None => written,
        }
    }

    /// Whether the stack sent `segment` on this connection; learns the port of a first SYN.
    pub fn owns(&mut self, segment: &Segment) -> bool {
        if self.remote_port != Some(segment.dport) {
            return false;
        }
        match self.local_port {
            Some(port) => port == segment.sport,
            None => {
                let first = self.role == Role::Active && segment.flags & TcpFlag::SYN != 0;
                if first {
                    self.local_port = Some(segment.sport);
                }
                first
            }
        }
    }

    /// Takes from `segment`, which the stack sent, what `spec` names by other numbers.
    pub fn learn(&mut self, segment: &Segment, spec: &TcpSpec) {
        if segment.flags & TcpFlag::SYN != 0 {
            let may_change = self.local_isn.is_none() || self.syn_came;
            if let SeqSpec::Relative(script) = spec.seq
                && may_change
            {
                self.local_isn = Some((script, segment.seq));
                self.syn_came = false;
            }
        }
        if segment.flags & TcpFlag::ACK != 0 && segment.flags & TcpFlag::RST == 0 {
            self.synchronized = true;
        }
        let wanted = spec.options.iter().flatten().find_map(timestamp);
        if let (Some(script), Some(live)) = (wanted, segment.options.iter().find_map(timestamp)) {
            self.timestamps.insert(script, live);
        }
    }

    /// A segment that the stack sent, in the script's numbers; `absolute` leaves the sequence number as it is.
    pub fn as_written(&self, segment: &Segment, absolute: bool) -> Segment {
        let mut shown = segment.clone();
        let syn = segment.flags & TcpFlag::SYN != 0;
        let remote = self.remote_offset(syn);
        if !absolute {
            shown.seq = segment.seq.wrapping_sub(self.local_offset(syn));
        }
        if segment.flags & TcpFlag::ACK != 0 {
            shown.ack = segment.ack.wrapping_sub(remote);
        }
        for option in &mut shown.options {
            match option {
                TcpOption::Sack(blocks) => *blocks = shift(blocks, remote.wrapping_neg()),
                TcpOption::Timestamps { val, .. } => {
                    let known = self.timestamps.iter().rfind(|(_, live)| *live == val);
                    if let Some((script, _)) = known {
                        *val = *script;
                    }
                }
                _ => {}
            }
        }
        shown
    }

    /// An inbound segment in the script's numbers is as it was written.
    pub fn is_known(&self) -> bool {
        self.remote_port.is_some()
    }
}

fn written(seq: SeqSpec) -> u32 {
    match seq {
        SeqSpec::Any => 0,
        SeqSpec::Relative(seq) | SeqSpec::Absolute(seq) => seq,
    }
}

fn timestamp(option: &TcpOption) -> Option<u32> {
    match option {
        TcpOption::Timestamps { val, .. } => Some(*val),
        _ => None,
    }
}

fn shift(blocks: &[(u32, u32)], by: u32) -> Vec<(u32, u32)> {
    let shifted = blocks.iter();
    shifted
        .map(|(start, end)| (start.wrapping_add(by), end.wrapping_add(by)))
        .collect()
}
