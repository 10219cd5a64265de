//! One end of a connection at work: says what it has to say, compares what it hears, and tells what happened.

use crate::lab::{now_ms, pass_ms, spawn};
use crate::runs::scenario::{End, Finale, Write};
use std::sync::Arc;
use sys::errno::Errno;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::socket::{IPPROTO_TCP, MsgFlags, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, Shutdown};
use sys::socketvar::PollEvents;
use sys::time::Sbintime;

/// An error and when it came, in ms of virtual time.
pub type Failed = (Errno, i64);

/// What one end tells afterwards.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The connection could not be made.
    pub connect_error: Option<Failed>,
    /// Bytes the socket took.
    pub sent: usize,
    /// Sending, or saying that all is said, failed.
    pub send_error: Option<Failed>,
    /// Bytes received, all as the peer meant them.
    pub received: usize,
    /// The peer said that it has said all.
    pub eof: bool,
    /// Receiving failed.
    pub recv_error: Option<Failed>,
    /// A byte that is not what the peer meant, in words.
    pub wrong: Option<String>,
}

impl Told {
    /// All errors.
    pub fn errors(&self) -> impl Iterator<Item = Failed> {
        [self.connect_error, self.send_error, self.recv_error]
            .into_iter()
            .flatten()
    }
}

/// How long a reader waits: longer than keepalive takes to find a peer dead.
const READ_PATIENCE_S: i64 = 3 * 3600;

/// Gives a socket the options of an end.
pub fn prepare(so: &SocketHandle, end: &End) {
    for (name, value) in [(SO_SNDBUF, end.sndbuf), (SO_RCVBUF, end.rcvbuf)] {
        if let Some(value) = value {
            let _ = so.setsockopt_int(SOL_SOCKET, name, value);
        }
    }
    for (name, value) in &end.options {
        // On a connection that is dead already there is nothing to set.
        let _ = so.setsockopt_int(IPPROTO_TCP, *name, *value);
    }
}

/// Lives the life of an end on a connected socket, and closes it: says `mine`, expects `theirs`.
pub fn live(so: SocketHandle, end: &End, mine: Arc<Vec<u8>>, theirs: Arc<Vec<u8>>) -> Told {
    // FreeBSD sends no keepalive probes in FIN_WAIT_2: who waits there for a peer that is gone waits for ever.
    let _ = so.set_rcvtimeo(Some(Sbintime::from_s(READ_PATIENCE_S)));
    so.set_nonblocking(end.polls);
    if let Some(seconds) = end.linger {
        // On a dead connection there is nothing to wait for.
        let _ = so.set_linger(Some(seconds));
    }
    let so = Arc::new(so);
    let writer = {
        let (so, end) = (so.clone(), end.clone());
        spawn(move || say(&so, &end, &mine))
    };
    let (received, eof, recv_error, wrong) = hear(&so, end, &theirs);
    let (sent, send_error) = writer.join();
    if matches!(end.finale, Finale::Abort(_)) {
        // On a dead connection there is nothing to abort.
        let _ = so.set_linger(Some(0));
    }
    drop(so);
    Told {
        connect_error: None,
        sent,
        send_error,
        received,
        eof,
        recv_error,
        wrong,
    }
}

fn say(so: &SocketHandle, end: &End, mine: &[u8]) -> (usize, Option<Failed>) {
    let mut at = 0;
    for write in &end.writes {
        match *write {
            Write::Pause(ms) => pass_ms(ms as i64),
            Write::Bytes { total, piece } => {
                let stop = at + total;
                while at < stop {
                    let upto = (at + piece).min(stop);
                    match so.send(&mine[at..upto], MsgFlags::empty()) {
                        Ok(n) => at += n,
                        Err(Errno::EWOULDBLOCK) if end.polls => {
                            if let Err(e) = wait_for(so, PollEvents::OUT) {
                                return (at, Some((e, now_ms())));
                            }
                        }
                        Err(e) => return (at, Some((e, now_ms()))),
                    }
                }
            }
        }
    }
    if end.finale == Finale::Shutdown
        && let Err(e) = so.shutdown(Shutdown::Write)
    {
        return (at, Some((e, now_ms())));
    }
    (at, None)
}

type Heard = (usize, bool, Option<Failed>, Option<String>);

/// Waits until a call would not block, as long as a call that blocks would.
fn wait_for(so: &SocketHandle, what: PollEvents) -> Result<(), Errno> {
    match so.poll(what, Some(Sbintime::from_s(READ_PATIENCE_S)))? {
        ready if ready.is_empty() => Err(Errno::EWOULDBLOCK),
        _ => Ok(()),
    }
}

fn hear(so: &SocketHandle, end: &End, theirs: &[u8]) -> Heard {
    let enough = match end.finale {
        Finale::CloseEarly(n) | Finale::Abort(n) => Some(n),
        Finale::Shutdown | Finale::CloseAfterPeer => None,
    };
    let mut buffer = vec![0; end.read_piece];
    let mut received = 0;
    let mut since_pause = 0;
    let mut short = false;
    loop {
        let most = match enough {
            Some(n) if received >= n => {
                if end.turns_deaf {
                    // On a dead connection there is nobody to be deaf to.
                    let _ = so.shutdown(Shutdown::Read);
                }
                return (received, false, None, None);
            }
            Some(n) => (n - received).min(buffer.len()),
            None => buffer.len(),
        };
        if end.polls
            && let Err(e) = wait_for(so, PollEvents::IN)
        {
            return (received, false, Some((e, now_ms())), None);
        }
        if end.peeks {
            match so.recv(&mut buffer[..most], MsgFlags::PEEK) {
                Ok(n) => {
                    if let Err(wrong) = compare(&buffer[..n], theirs, received) {
                        return (received, false, None, Some(format!("peeked: {wrong}")));
                    }
                }
                Err(e) => return (received, false, Some((e, now_ms())), None),
            }
        }
        let flags = if end.waits_for_all {
            MsgFlags::WAITALL
        } else {
            MsgFlags::empty()
        };
        match so.recv(&mut buffer[..most], flags) {
            Ok(0) => return (received, true, None, None),
            Err(Errno::EWOULDBLOCK) if end.polls => {
                let wrong = "poll said that there is something, but there is not";
                return (received, false, None, Some(wrong.into()));
            }
            Ok(n) => {
                if short && n > 0 {
                    let wrong = "a read of all came back with less, though more came";
                    return (received, false, None, Some(wrong.into()));
                }
                short = end.waits_for_all && !end.polls && n < most;
                if let Err(wrong) = compare(&buffer[..n], theirs, received) {
                    return (received, false, None, Some(wrong));
                }
                received += n;
                since_pause += n;
            }
            Err(e) => return (received, false, Some((e, now_ms())), None),
        }
        if let Some((every, ms)) = end.read_pause
            && since_pause >= every
        {
            since_pause = 0;
            pass_ms(ms as i64);
        }
    }
}

fn compare(got: &[u8], theirs: &[u8], at: usize) -> Result<(), String> {
    let Some(meant) = theirs.get(at..at + got.len()) else {
        return Err(format!(
            "{} bytes from {at} on, but the peer means to say only {}",
            got.len(),
            theirs.len()
        ));
    };
    match got.iter().zip(meant).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(i) => Err(format!(
            "byte {} is {:#04x} instead of {:#04x}",
            at + i,
            got[i],
            meant[i]
        )),
    }
}
