//! Whether what the ends of a connection tell can be true: every byte once and in order, or an error with a cause.

use crate::runs::end::{Failed, Told};
use crate::runs::scenario::{Connection, End, Event, Finale, Meet, Scenario, Side};
use crate::runs::trouble::Arrivals;
use netinet::tcp_usrreq::TCP_NOPUSH;
use sys::errno::Errno;

/// What is known of a connection afterwards.
pub struct Accepted<'a> {
    /// The client's tale.
    pub client: &'a Told,
    /// The server's: none if nobody was accepted.
    pub servers: &'a [Told],
    /// What last arrived at client and server.
    pub arrivals: [Arrivals; 2],
}

/// Everything that is wrong with a connection, in words.
pub fn connection(s: &Scenario, c: &Connection, seen: &Accepted<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut say = |words: String| wrong.push(words);
    if seen.servers.len() > 1 && !keeps_nothing(s, c) {
        say(format!("accepted {} times", seen.servers.len()));
    }
    let server = seen.servers.first();
    let client = seen.client;
    if c.meet == Meet::Simultaneous && crossed_too_late(seen) {
        return wrong;
    }
    if c.meet == Meet::Nobody {
        let (error, _) = match client.connect_error {
            Some(error) => error,
            None => return vec!["connected to a port where nobody listens".into()],
        };
        if error != Errno::ECONNREFUSED && !may_fail(s, error) {
            say(format!("refused with {}", error.name()));
        }
        return wrong;
    }
    let ends = [Some(client), server];
    for (i, end) in ends.iter().enumerate() {
        let Some(told) = end else { continue };
        let who = ["client", "server"][i];
        let peer = ends[1 - i];
        if let Some(what) = &told.wrong {
            say(format!("{who}: {what}"));
        }
        for error in told.errors() {
            if let Err(why) = has_cause(s, c, seen, i, error) {
                say(format!(
                    "{who} told of {} at {} ms, but {why}",
                    error.0.name(),
                    error.1
                ));
            }
        }
        if told.errors().next().is_some() || told.wrong.is_some() {
            continue;
        }
        let meant = c.ends[i].total();
        if told.sent != meant {
            say(format!(
                "{who} sent {} of {meant} bytes, without error",
                told.sent
            ));
        }
        if told.eof {
            match peer {
                None => say(format!("{who} heard the end of a peer that never was")),
                Some(peer) => {
                    if matches!(c.ends[1 - i].finale, Finale::Abort(_)) {
                        say(format!("{who} heard the end from a peer that aborts"));
                    }
                    // A send that fails may have taken a part before.
                    let exact = peer.send_error.is_none();
                    if exact && told.received != peer.sent {
                        say(format!(
                            "{who} received {} bytes and the end, of {} that the peer sent",
                            told.received, peer.sent
                        ));
                    }
                }
            }
        }
    }
    wrong
}

/// Whether both ends that connect to each other were refused: one's SYN came before the other connected.
fn crossed_too_late(seen: &Accepted<'_>) -> bool {
    let refused = |told: &Told| {
        told.connect_error
            .is_some_and(|(e, _)| e == Errno::ECONNREFUSED)
    };
    refused(seen.client) && seen.servers.iter().all(refused)
}

/// Whether the server keeps nothing of a handshake. The price: a duplicate of its last segment opens the connection
/// again, and where data arrives first nothing tells that it belongs to a handshake, so that it is answered with RST.
fn keeps_nothing(s: &Scenario, c: &Connection) -> bool {
    let server = c.to();
    c.meet != Meet::Simultaneous
        && s.setting(server, "net.inet.tcp.syncookies_only", 0) == 1
        && s.setting(server, "net.inet.tcp.syncookies", 1) == 1
}

/// Says why an error that an end told of has no cause.
fn has_cause(
    s: &Scenario,
    c: &Connection,
    seen: &Accepted<'_>,
    i: usize,
    (error, at): Failed,
) -> Result<(), String> {
    let peer = [Some(seen.client), seen.servers.first()][1 - i];
    let peer_died = peer.is_some_and(|p| p.errors().any(|(e, _)| is_silence(e)));
    match error {
        Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED | Errno::ENOTCONN => {
            let never = seen.servers.is_empty() && !s.is_lossless();
            let reordered = !s.is_lossless() || s.links.iter().any(|l| l.reorder > 0.0);
            // Of a connection that was given up, writers hear only that.
            let given_up = may_fail(s, Errno::ETIMEDOUT);
            let by_cookie = keeps_nothing(s, c) && reordered;
            let own_death = [seen.client]
                .into_iter()
                .chain(seen.servers)
                .nth(i)
                .is_some_and(|t| t.errors().any(|(e, _)| is_silence(e)));
            if c.ends.iter().any(End::is_rude)
                || peer_died
                || own_death
                || never
                || by_cookie
                || given_up
            {
                return Ok(());
            }
            Err("nobody reset it".into())
        }
        e if is_silence(e) => {
            if !may_fail(s, e) {
                return Err("the path was never that bad".into());
            }
            if e == Errno::ETIMEDOUT {
                return was_silent(s, c, seen, i, at);
            }
            Ok(())
        }
        // In FIN_WAIT_2 without an answer.
        Errno::EWOULDBLOCK => {
            let waits = c.ends[i].finale == Finale::Shutdown;
            let gone = c.ends[1 - i].is_rude() || peer.is_none() || peer_died;
            // Closed in good order, but then nobody heard its FIN, and there was nobody to be told.
            let gone = gone || may_fail(s, Errno::ETIMEDOUT);
            if waits && gone && !s.is_lossless() {
                return Ok(());
            }
            Err("the peer is there".into())
        }
        _ => Err("there is no reason for that".into()),
    }
}

/// Errors that say that nobody answered.
fn is_silence(error: Errno) -> bool {
    matches!(
        error,
        Errno::ETIMEDOUT
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
    )
}

/// Whether the path was such that nobody may have answered for long enough.
fn may_fail(s: &Scenario, error: Errno) -> bool {
    let strangers = !s.acquainted
        || s.events
            .iter()
            .any(|(_, e)| matches!(e, Event::FlushNeighbours(_) | Event::Unplug(_)));
    if error != Errno::ETIMEDOUT && strangers && !s.is_lossless() {
        return true;
    }
    // The shortest time after which one gives up.
    let mut least = 15_000;
    for side in Side::BOTH {
        least = least.min(silence_ms(s, side));
    }
    s.outage_ms() >= least as u64 || s.worst_loss() > 0.15
}

/// Time in ms without an answer after which a host gives up, at least.
fn silence_ms(s: &Scenario, side: Side) -> i64 {
    let keepalive = s.setting(side, "net.inet.tcp.keepidle", 7_200_000)
        + 8 * s.setting(side, "net.inet.tcp.keepintvl", 75_000);
    keepalive.min(retransmissions_ms(s, side)) as i64
}

/// Time in ms that twelve retransmissions take, at least.
fn retransmissions_ms(s: &Scenario, side: Side) -> u64 {
    let min = s.setting(side, "net.inet.tcp.rexmit_min", 30);
    let slop = s.setting(side, "net.inet.tcp.rexmit_slop", 200);
    // The first may have been under way when something was last acknowledged.
    (1..=12u32)
        .map(|i| ((min << i.min(9)) + slop).min(64_000))
        .sum()
}

/// Says why an end that was told of silence can't have met with it.
fn was_silent(
    s: &Scenario,
    c: &Connection,
    seen: &Accepted<'_>,
    i: usize,
    at: i64,
) -> Result<(), String> {
    let side = if i == 0 { c.from } else { c.to() };
    let arrivals = seen.arrivals[i];
    let since = |when: Option<i64>| when.map_or(i64::MAX / 2, |ms| at - ms);
    let keepalive = s.setting(side, "net.inet.tcp.keepidle", 7_200_000)
        + 8 * s.setting(side, "net.inet.tcp.keepintvl", 75_000);
    let connecting = seen.client.connect_error.is_some();
    // The clock of the stack counts whole ms.
    let slack = 20;
    if connecting
        || since(arrivals.progress_ms) + slack >= retransmissions_ms(s, side) as i64
        || since(arrivals.any_ms) + slack >= keepalive as i64
    {
        return Ok(());
    }
    Err(format!(
        "something arrived {} ms before, and something new was acknowledged {} ms before",
        since(arrivals.any_ms),
        since(arrivals.progress_ms)
    ))
}

/// What is wrong with the time that a run took.
pub fn time(s: &Scenario, took_ms: i64) -> Option<String> {
    let bytes: usize = s
        .connections
        .iter()
        .flat_map(|c| &c.ends)
        .map(End::total)
        .sum();
    // On a path without faults only windows, the timers of small segments and the programs' own pauses take time. Not so
    // where a receiver makes its buffer smaller than it was: windows that are small beside the largest so far are filled
    // only when the persist timer expires.
    // And a sender that wants only full segments waits for it when its buffer does not hold one.
    let shrunk = s.connections.iter().any(|c| {
        let nopush = |end: &End| end.options.iter().any(|(name, _)| *name == TCP_NOPUSH);
        c.ends[1].rcvbuf.is_some() || c.ends.iter().any(nopush)
    });
    if !s.is_lossless() || s.forge_ms > 0 || shrunk {
        return None;
    }
    let most = s.planned_ms() as i64 + 30_000 + bytes as i64 / 10;
    (took_ms > most).then(|| {
        format!(
            "took {took_ms} ms on a path without faults, of which {} were planned",
            s.planned_ms()
        )
    })
}
