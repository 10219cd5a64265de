//! A running test as both sides see it: reports at intervals, the exchange of results, the summary.

use core::sync::atomic::Ordering;

use sys::time::Sbintime;

use crate::apps::Env;

use super::args::{Display, Transport};
use super::protocol::{Control, Failure, Results, StreamResult};
use super::report::{Reporter, Summary};
use super::stream::{Direction, Running};

/// A test whose streams are running.
pub(super) struct Test<'a> {
    pub(super) running: Running,
    reporter: Reporter<'a>,
    display: Display,
    next_report: Option<Sbintime>,
}

impl<'a> Test<'a> {
    /// Wraps running streams.
    pub(super) fn new(env: &'a Env, display: Display, running: Running) -> Test<'a> {
        let reporter = Reporter::new(env, display, &running);
        Test {
            running,
            reporter,
            display,
            next_report: display.interval,
        }
    }

    /// Prints the interval reports that are due.
    pub(super) fn tick(&mut self) {
        let Some(interval) = self.display.interval else {
            return;
        };
        let elapsed = self.running.elapsed();
        if self.next_report.is_some_and(|due| elapsed >= due) {
            self.reporter.interval(&self.running, elapsed);
            self.next_report = Some(elapsed + interval);
        }
    }

    /// Ends the streams; `elapsed` is the length of the test from here on.
    pub(super) fn stop(&mut self) -> Sbintime {
        let elapsed = self.running.elapsed();
        self.running.stop();
        if self.display.interval.is_some() {
            self.reporter.last_interval(&self.running, elapsed);
        }
        elapsed
    }

    /// What this side measured.
    pub(super) fn results(&self, elapsed: Sbintime) -> Results {
        let shared = &self.running.shared;
        Results {
            sender_has_retransmits: match (shared.direction, shared.options.transport) {
                (Direction::Send, Transport::Tcp) => 1,
                (Direction::Send, Transport::Udp) => 0,
                (Direction::Receive, _) => -1,
            },
            congestion_used: self
                .running
                .streams
                .first()
                .and_then(|stream| stream.congestion()),
            streams: self
                .running
                .streams
                .iter()
                .map(|stream| stream.result(shared, elapsed))
                .collect(),
            ..Results::default()
        }
    }

    /// Prints the end of the test from both sides' results.
    pub(super) fn summarize(&self, ours: &Results, theirs: &Results) -> Result<(), Failure> {
        let mut summary = Summary::default();
        for (stream, own) in self.running.streams.iter().zip(&ours.streams) {
            let peer: &StreamResult = theirs
                .streams
                .iter()
                .find(|result| result.id == own.id)
                .ok_or(Failure::Protocol("results without one of the streams"))?;
            let direction = self.running.shared.direction;
            let out_of_order = stream.counts.out_of_order.load(Ordering::Relaxed);
            summary.add(stream.label(), direction, own, peer, out_of_order);
        }
        self.reporter.summary(&self.running.shared, &summary);
        Ok(())
    }
}

/// Tells the results and hears the peer's, as the client does it.
pub(super) fn send_then_receive(control: &Control<'_>, ours: &Results) -> Result<Results, Failure> {
    control.send_json(ours)?;
    control.recv_json()
}

/// Hears the client's results and tells ours, as the server does it.
pub(super) fn receive_then_send(control: &Control<'_>, ours: &Results) -> Result<Results, Failure> {
    let theirs = control.recv_json()?;
    control.send_json(ours)?;
    Ok(theirs)
}
