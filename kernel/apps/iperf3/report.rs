//! What iperf3 prints.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use serde_json::{Value, json};
use sys::socket::SockAddr;
use sys::time::Sbintime;

use crate::apps::Env;
use crate::apps::io::unmapped;
use crate::{out, outln};

use super::args::{Display, Transport};
use super::protocol::StreamResult;
use super::stream::{Direction, Running, Shared, Stream, ends};

const RULE: &str = "- - - - - - - - - - - - - - - - - - - - - - - - -";

/// Prints the reports of one test, or gathers them for `-J`.
pub(super) struct Reporter<'a> {
    env: &'a Env,
    json: bool,
    before: RefCell<Vec<Snapshot>>,
    last: RefCell<Sbintime>,
    intervals: RefCell<Vec<Value>>,
    connected: Vec<Value>,
}

/// The counts of a stream when its last interval was reported.
#[derive(Clone, Copy, Default)]
struct Snapshot {
    bytes: u64,
    packets: u64,
    errors: u64,
    retransmits: u32,
}

impl Snapshot {
    fn of(stream: &Stream) -> Snapshot {
        use core::sync::atomic::Ordering::Relaxed;
        Snapshot {
            bytes: stream.bytes(),
            packets: stream.counts.packets.load(Relaxed),
            errors: stream.counts.errors.load(Relaxed),
            retransmits: stream.tcp_state().map_or(0, |(retransmits, _)| retransmits),
        }
    }
}

impl<'a> Reporter<'a> {
    /// Announces the streams of a test.
    pub(super) fn new(env: &'a Env, display: Display, running: &Running) -> Reporter<'a> {
        let mut connected = Vec::new();
        for stream in &running.streams {
            let Some((local, remote)) = ends(&stream.so) else {
                continue;
            };
            let ((lhost, lport), (rhost, rport)) = (host_port(&local), host_port(&remote));
            if display.json {
                connected.push(
                    json!({"socket": stream.label(), "local_host": lhost, "local_port": lport,
                    "remote_host": rhost, "remote_port": rport}),
                );
            } else {
                outln!(
                    env,
                    "[{:3}] local {lhost} port {lport} connected to {rhost} port {rport}",
                    stream.label()
                );
            }
        }
        let reporter = Reporter {
            env,
            json: display.json,
            before: RefCell::new(
                running
                    .streams
                    .iter()
                    .map(|_| Snapshot::default())
                    .collect(),
            ),
            last: RefCell::new(Sbintime::ZERO),
            intervals: RefCell::default(),
            connected,
        };
        if !display.json && display.interval.is_some() {
            reporter.heading(&running.shared, false);
        }
        reporter
    }

    fn heading(&self, shared: &Shared, end: bool) {
        let columns = match (shared.options.transport, shared.direction) {
            (Transport::Udp, Direction::Send) if !end => "Total Datagrams",
            (Transport::Udp, _) => "Jitter    Lost/Total Datagrams",
            (Transport::Tcp, Direction::Send) if !end => "Retr  Cwnd",
            (Transport::Tcp, _) if end => "Retr",
            (Transport::Tcp, _) => "",
        };
        let line = format!("[ ID] Interval           Transfer     Bitrate         {columns}");
        outln!(self.env, "{}", line.trim_end());
    }

    /// Reports the time since the last report.
    pub(super) fn interval(&self, running: &Running, now: Sbintime) {
        let from = self.last.replace(now);
        let mut before = self.before.borrow_mut();
        let mut rows = Vec::new();
        let mut sum = Row::new(from, now);
        for (stream, before) in running.streams.iter().zip(before.iter_mut()) {
            let state = Snapshot::of(stream);
            let row = Row {
                bytes: state.bytes - before.bytes,
                packets: state.packets.saturating_sub(before.packets) as i64,
                errors: state.errors as i64 - before.errors as i64,
                retransmits: i64::from(state.retransmits.saturating_sub(before.retransmits)),
                jitter: stream.jitter(),
                cwnd: stream.tcp_state().map(|(_, cwnd)| cwnd),
                ..Row::new(from, now)
            };
            *before = state;
            sum.add(&row);
            rows.push((stream.label(), row));
        }
        sum.jitter /= rows.len().max(1) as f64;
        if self.json {
            let shared = &running.shared;
            let sends = shared.direction == Direction::Send;
            let columns = Columns::of(shared.options.transport, sends);
            let json = |row: &Row, socket| {
                let mut value = row.json(columns, socket, sends);
                value["omitted"] = json!(false);
                value
            };
            let streams: Vec<Value> = rows.iter().map(|(id, row)| json(row, Some(*id))).collect();
            let interval = json!({"streams": streams, "sum": json(&sum, None)});
            self.intervals.borrow_mut().push(interval);
            return;
        }
        for (label, row) in &rows {
            self.row(&running.shared, &format!("{label:3}"), row, None);
        }
        if rows.len() > 1 {
            self.row(&running.shared, "SUM", &sum, None);
            outln!(self.env, "{RULE}");
        }
    }

    /// Reports the rest of the last interval, unless it is too short to say anything; of a short test that is all of it.
    pub(super) fn last_interval(&self, running: &Running, now: Sbintime) {
        let from = *self.last.borrow();
        if now - from > Sbintime::from_ms(100) || from == Sbintime::ZERO {
            self.interval(running, now);
        }
    }

    /// Prints one row; `role` is "sender" or "receiver" in the summary.
    fn row(&self, shared: &Shared, label: &str, row: &Row, role: Option<&str>) {
        let mut line = format!(
            "[{label}] {:6.2}-{:<6.2} sec  {}  {}/sec",
            row.from.as_secs_f64(),
            row.to.as_secs_f64(),
            bytes_text(row.bytes as f64),
            bits_text(row.bits_per_second())
        );
        let sends = role.map_or(shared.direction == Direction::Send, |role| role == "sender");
        line += &match (shared.options.transport, sends, role) {
            (Transport::Tcp, true, None) => format!(
                "  {:3}   {}",
                row.retransmits,
                row.cwnd
                    .map_or(String::new(), |cwnd| bytes_text(f64::from(cwnd)))
            ),
            (Transport::Tcp, true, Some(_)) => format!("  {:3}          ", row.retransmits),
            (Transport::Tcp, false, Some(_)) => String::from("               "),
            (Transport::Tcp, false, None) => String::new(),
            (Transport::Udp, true, None) => format!("  {}", row.packets),
            (Transport::Udp, ..) => format!(
                "  {:.3} ms  {}/{} ({:.2}%)",
                row.jitter * 1e3,
                row.errors,
                row.packets,
                row.loss_percent()
            ),
        };
        if let Some(role) = role {
            line += &format!("  {role}");
        }
        outln!(self.env, "{}", line.trim_end());
    }

    /// Prints the end of a test.
    pub(super) fn summary(&self, shared: &Shared, summary: &Summary) {
        if self.json {
            let text = self.summary_json(shared, summary);
            outln!(
                self.env,
                "{}",
                serde_json::to_string_pretty(&text).unwrap_or_default()
            );
            return;
        }
        outln!(self.env, "{RULE}");
        self.heading(shared, true);
        for stream in &summary.streams {
            let label = format!("{:3}", stream.label);
            self.row(shared, &label, &stream.sender, Some("sender"));
            self.row(shared, &label, &stream.receiver, Some("receiver"));
        }
        if summary.streams.len() > 1 {
            let (sender, receiver) = summary.sums();
            self.row(shared, "SUM", &sender, Some("sender"));
            self.row(shared, "SUM", &receiver, Some("receiver"));
        }
        outln!(self.env);
    }

    fn summary_json(&self, shared: &Shared, summary: &Summary) -> Value {
        let options = &shared.options;
        let sends = shared.direction == Direction::Send;
        let end = match options.transport {
            Transport::Tcp => summary.tcp_json(sends),
            Transport::Udp => summary.udp_json(sends),
        };
        json!({
            "start": {"connected": self.connected, "version": "iperf 3.12",
                "test_start": {
                    "protocol": match options.transport { Transport::Tcp => "TCP", Transport::Udp => "UDP" },
                    "num_streams": options.streams, "blksize": options.block,
                    "reverse": u8::from(options.reverse)}},
            "intervals": &*self.intervals.borrow(),
            "end": end
        })
    }

    /// Prints a line that is not part of the JSON output.
    pub(super) fn note(env: &Env, display: Display, line: &str) {
        if !display.json {
            out!(env, "{line}\n");
        }
    }
}

/// One line of a report.
#[derive(Clone, Default)]
pub(super) struct Row {
    from: Sbintime,
    to: Sbintime,
    bytes: u64,
    packets: i64,
    errors: i64,
    retransmits: i64,
    jitter: f64,
    cwnd: Option<u32>,
}

impl Row {
    fn new(from: Sbintime, to: Sbintime) -> Row {
        Row {
            from,
            to,
            ..Row::default()
        }
    }

    fn of(result: &StreamResult) -> Row {
        let ns = |seconds: f64| Sbintime::from_ns((seconds * 1e9) as i64);
        Row {
            from: ns(result.start_time),
            to: ns(result.end_time),
            bytes: result.bytes,
            packets: result.packets,
            errors: result.errors,
            retransmits: result.retransmits,
            jitter: result.jitter,
            cwnd: None,
        }
    }

    fn add(&mut self, other: &Row) {
        self.to = self.to.max(other.to);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.packets = self.packets.saturating_add(other.packets);
        self.errors = self.errors.saturating_add(other.errors);
        self.retransmits = self.retransmits.saturating_add(other.retransmits.max(0));
        self.jitter += other.jitter;
    }

    fn bits_per_second(&self) -> f64 {
        let seconds = (self.to - self.from).as_secs_f64();
        if seconds > 0.0 {
            self.bytes as f64 * 8.0 / seconds
        } else {
            0.0
        }
    }

    fn loss_percent(&self) -> f64 {
        if self.packets > 0 {
            self.errors as f64 * 100.0 / self.packets as f64
        } else {
            0.0
        }
    }

    /// A row of iperf3's report; `sends`: this side is the stream's sender.
    fn json(&self, columns: Columns, socket: Option<i32>, sends: bool) -> Value {
        let mut value = json!({
            "start": self.from.as_secs_f64(), "end": self.to.as_secs_f64(),
            "seconds": (self.to - self.from).as_secs_f64(),
            "bytes": self.bytes, "bits_per_second": self.bits_per_second(), "sender": sends
        });
        if let Some(socket) = socket {
            value["socket"] = json!(socket);
        }
        match columns {
            Columns::Amount => {}
            Columns::Retransmits => value["retransmits"] = json!(self.retransmits),
            Columns::Datagrams => value["packets"] = json!(self.packets),
            Columns::Loss => {
                value["jitter_ms"] = json!(self.jitter * 1e3);
                value["lost_packets"] = json!(self.errors);
                value["packets"] = json!(self.packets);
                value["lost_percent"] = json!(self.loss_percent());
            }
        }
        if let Some(cwnd) = self.cwnd.filter(|_| columns == Columns::Retransmits) {
            value["snd_cwnd"] = json!(cwnd);
        }
        value
    }
}

/// What a row tells besides the amount.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Columns {
    Amount,
    Retransmits,
    Datagrams,
    Loss,
}

impl Columns {
    /// What this side knows.
    fn of(transport: Transport, sends: bool) -> Columns {
        match (transport, sends) {
            (Transport::Tcp, true) => Columns::Retransmits,
            (Transport::Tcp, false) => Columns::Amount,
            (Transport::Udp, true) => Columns::Datagrams,
            (Transport::Udp, false) => Columns::Loss,
        }
    }
}

/// Both ends of each stream, at the end of a test.
#[derive(Default)]
pub(super) struct Summary {
    streams: Vec<BothEnds>,
}

struct BothEnds {
    label: i32,
    sender: Row,
    receiver: Row,
    /// Datagrams that came behind later ones, as this side saw it.
    out_of_order: u64,
}

impl BothEnds {
    /// What was sent, with what became of it.
    fn both(&self) -> Row {
        Row {
            packets: match self.sender.packets {
                0 => self.receiver.packets,
                sent => sent,
            },
            errors: self.receiver.errors,
            jitter: self.receiver.jitter,
            ..self.sender.clone()
        }
    }
}

impl Summary {
    /// Adds a stream's results, which were measured here (`ours`) and by the peer.
    pub(super) fn add(
        &mut self,
        label: i32,
        direction: Direction,
        ours: &StreamResult,
        theirs: &StreamResult,
        out_of_order: u64,
    ) {
        let (sender, receiver) = match direction {
            Direction::Send => (ours, theirs),
            Direction::Receive => (theirs, ours),
        };
        let mut sender = Row::of(sender);
        // A sender knows neither jitter nor loss.
        (sender.jitter, sender.errors) = (0.0, 0);
        self.streams.push(BothEnds {
            label,
            sender,
            receiver: Row::of(receiver),
            out_of_order,
        });
    }

    /// `end` of a TCP test.
    fn tcp_json(&self, sends: bool) -> Value {
        let (sender, receiver) = self.sums();
        let (sent, received) = (Columns::Retransmits, Columns::Amount);
        let streams: Vec<Value> = self
            .streams
            .iter()
            .map(|stream| {
                let socket = Some(stream.label);
                json!({"sender": stream.sender.json(sent, socket, sends),
                    "receiver": stream.receiver.json(received, socket, sends)})
            })
            .collect();
        json!({"streams": streams, "sum_sent": sender.json(sent, None, sends),
            "sum_received": receiver.json(received, None, sends)})
    }

    /// `end` of a UDP test. `sum` and the streams tell the sender's amounts and the receiver's losses, in iperf3's older
    /// way; `sum_sent` and `sum_received` are what either side counted.
    fn udp_json(&self, sends: bool) -> Value {
        let (sender, receiver) = self.sums();
        let mut sum = Row::default();
        let mut streams = Vec::new();
        for stream in &self.streams {
            let both = stream.both();
            sum.add(&both);
            let mut value = both.json(Columns::Loss, Some(stream.label), sends);
            value["out_of_order"] = json!(stream.out_of_order);
            streams.push(json!({"udp": value}));
        }
        sum.jitter = receiver.jitter;
        json!({"streams": streams, "sum": sum.json(Columns::Loss, None, sends),
            "sum_sent": sender.json(Columns::Loss, None, true),
            "sum_received": receiver.json(Columns::Loss, None, false)})
    }

    fn sums(&self) -> (Row, Row) {
        let mut sums = (Row::default(), Row::default());
        for stream in &self.streams {
            sums.0.add(&stream.sender);
            sums.1.add(&stream.receiver);
        }
        sums.1.jitter /= self.streams.len().max(1) as f64;
        sums
    }
}

/// Host and port of an address, for print.
pub(super) fn host_port(address: &SockAddr) -> (String, u16) {
    match &unmapped(*address) {
        SockAddr::In(sin) => (format!("{}", sin.addr), sin.port),
        SockAddr::In6(sin6) => (format!("{}", sin6.addr), sin6.port),
    }
}

/// Three significant digits, as iperf3's `unit_snprintf`.
fn digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:4.2}")
    } else if value < 99.95 {
        format!("{value:4.1}")
    } else {
        format!("{value:4.0}")
    }
}

/// A number of bytes, in units of 1,024.
fn bytes_text(bytes: f64) -> String {
    scaled_text(
        bytes,
        1024.0,
        &["Bytes", "KBytes", "MBytes", "GBytes", "TBytes"],
    )
}

/// A number of bits, in units of 1,000.
fn bits_text(bits: f64) -> String {
    scaled_text(bits, 1000.0, &["bits", "Kbits", "Mbits", "Gbits", "Tbits"])
}

fn scaled_text(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for next in units {
        if value < step {
            break;
        }
        value /= step;
        unit = next;
    }
    format!("{} {unit}", digits(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits_and_a_unit() {
        assert_eq!(bytes_text(0.0), "0.00 Bytes");
        assert_eq!(bytes_text(117_440_512.0), " 112 MBytes");
        assert_eq!(bytes_text(1_170_000_000.0), "1.09 GBytes");
        assert_eq!(bits_text(941_000_000.0), " 941 Mbits");
        assert_eq!(bits_text(1_050_000.0), "1.05 Mbits");
        assert_eq!(bits_text(10_500.0), "10.5 Kbits");
    }

    #[test]
    fn the_receiver_of_a_stream_is_where_loss_is_known() {
        let ours = StreamResult {
            id: 1,
            packets: 100,
            errors: 0,
            ..StreamResult::default()
        };
        let theirs = StreamResult {
            id: 1,
            packets: 100,
            errors: 7,
            ..StreamResult::default()
        };
        let mut summary = Summary::default();
        summary.add(5, Direction::Send, &ours, &theirs, 0);
        let (sender, receiver) = summary.sums();
        assert_eq!((sender.errors, receiver.errors), (0, 7));
        assert!((receiver.loss_percent() - 7.0).abs() < 1e-9);
    }
    /// The keys of an object, sorted.
    fn keys(value: &Value) -> Vec<&str> {
        let object = value.as_object().expect("an object");
        let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    fn result(id: i32, jitter: f64, errors: i64) -> StreamResult {
        StreamResult {
            id,
            bytes: 1000,
            packets: 10,
            errors,
            jitter,
            end_time: 1.0,
            ..StreamResult::default()
        }
    }

    #[test]
    fn a_udp_test_ends_with_the_values_that_iperf3_has() {
        let mut summary = Summary::default();
        summary.add(
            5,
            Direction::Receive,
            &result(1, 0.002, 1),
            &result(1, 0.0, 0),
            3,
        );
        summary.add(
            7,
            Direction::Receive,
            &result(3, 0.004, 4),
            &result(3, 0.0, 0),
            0,
        );
        let end = summary.udp_json(false);
        assert_eq!(keys(&end), ["streams", "sum", "sum_received", "sum_sent"]);
        let mut expected = alloc::vec![
            "bits_per_second",
            "bytes",
            "end",
            "jitter_ms",
            "lost_packets",
            "lost_percent",
            "packets",
            "seconds",
            "sender",
            "start",
        ];
        for sum in ["sum", "sum_received", "sum_sent"] {
            assert_eq!(keys(&end[sum]), expected, "{sum}");
        }
        expected.extend(["out_of_order", "socket"]);
        expected.sort_unstable();
        let udp = &end["streams"][0]["udp"];
        assert_eq!(keys(udp), expected);
        assert_eq!(udp["out_of_order"], json!(3));
        assert_eq!(udp["lost_packets"], json!(1));
        assert_eq!(udp["sender"], json!(false));
        // Of several streams the jitter is the mean.
        assert_eq!(end["sum"]["jitter_ms"], json!(3.0));
        assert_eq!(end["sum"]["lost_percent"], json!(25.0));
        assert_eq!(end["sum_sent"]["sender"], json!(true));
        assert_eq!(end["sum_sent"]["lost_packets"], json!(0));
    }

    #[test]
    fn a_tcp_test_ends_without_datagrams() {
        let mut summary = Summary::default();
        summary.add(
            5,
            Direction::Send,
            &result(1, 0.0, 0),
            &result(1, 0.0, 0),
            0,
        );
        let end = summary.tcp_json(true);
        assert_eq!(keys(&end), ["streams", "sum_received", "sum_sent"]);
        let mut expected = alloc::vec![
            "bits_per_second",
            "bytes",
            "end",
            "seconds",
            "sender",
            "start"
        ];
        assert_eq!(keys(&end["sum_received"]), expected);
        expected.insert(3, "retransmits");
        assert_eq!(keys(&end["sum_sent"]), expected);
        assert_eq!(keys(&end["streams"][0]), ["receiver", "sender"]);
    }
}
