//! Walks through a script's events on a machine of its own.

mod packets;
mod settings;

pub use settings::{KINDS, Settings};

use crate::assertion;
use crate::ast::{Action, Event, Pos, Script, ScriptError, Time};
use crate::connection::Connection;
use crate::matcher::Difference;
use crate::shell;
use crate::syscall::{Descriptors, Pending};
use crate::testbed::Testbed;
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use sys::machine::hosted::{Machine, pump};
use sys::machine::sbinuptime;
use sys::time::Sbintime;

/// First port of the peer, when it begins.
const FIRST_PORT: u16 = 49152;
/// How long a packet is waited for that may come at any time.
const PATIENCE: i64 = 3600 * 1_000_000;
/// Bytes of memory of a machine.
const MEMORY: usize = 64 << 20;

/// What is checked beyond what the language says, and what is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Checksums of TCP and UDP in packets that the stack sends.
    pub checksum: bool,
    /// The peer's timestamp in packets that the stack sends.
    pub timestamps: bool,
    /// That no packet is left that the stack sent before the script's last packet.
    pub leftover: bool,
    /// Kinds of events whose failures do not matter, beside those that a script names.
    pub non_fatal: Vec<String>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            checksum: true,
            timestamps: true,
            leftover: true,
            non_fatal: Vec::new(),
        }
    }
}

/// Why a script fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Where it stands.
    pub pos: Pos,
    /// Why, in a line.
    pub reason: String,
    /// Field by field, where a packet is not as expected.
    pub differences: Vec<Difference>,
    /// The packet that was seen, in the script's numbers.
    pub seen: Option<String>,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Happening {
    /// Microseconds since the script began.
    pub at: i64,
    /// What, in a line.
    pub what: String,
}

/// How a script went.
#[derive(Clone, Default, Debug)]
pub struct Outcome {
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// What went wrong and was not to matter.
    pub warnings: Vec<Failure>,
    /// What happened.
    pub exchange: Vec<Happening>,
    /// Frames that crossed the wire, with the time since boot.
    pub frames: Vec<(Duration, Vec<u8>)>,
}

impl Outcome {
    fn failed(failure: Failure) -> Outcome {
        Outcome {
            failure: Some(failure),
            ..Outcome::default()
        }
    }
}

/// Why an event fails; where is known to whoever runs it.
#[derive(Clone, Debug, Default)]
pub struct Wrong {
    /// Why, in a line.
    pub reason: String,
    /// Field by field.
    pub differences: Vec<Difference>,
    /// The packet that was seen.
    pub seen: Option<String>,
}

impl From<String> for Wrong {
    fn from(reason: String) -> Wrong {
        Wrong {
            reason,
            ..Wrong::default()
        }
    }
}

impl From<&str> for Wrong {
    fn from(reason: &str) -> Wrong {
        Wrong::from(reason.to_string())
    }
}

impl Wrong {
    fn at(self, pos: Pos) -> Failure {
        Failure {
            pos,
            reason: self.reason,
            differences: self.differences,
            seen: self.seen,
        }
    }
}

impl From<ScriptError> for Failure {
    fn from(e: ScriptError) -> Failure {
        Wrong::from(e.reason).at(e.pos)
    }
}

/// Runs a script on a new machine. A panic of the stack is a failure of the script.
pub fn run(script: &Script, rules: &Rules) -> Outcome {
    let settings = match Settings::new(&script.options) {
        Ok(settings) => settings,
        Err(e) => return Outcome::failed(e.into()),
    };
    let machine = Machine::builder().seed(1).cpus(1).memory(MEMORY).quiet();
    let run = || machine.run(|| run_here(script, settings, rules));
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        let reason = format!("the stack panicked: {}", message.unwrap_or("no message"));
        Outcome::failed(Wrong::from(reason).at(Pos::default()))
    })
}

/// Runs a script on the machine that runs already.
fn run_here(script: &Script, mut settings: Settings, rules: &Rules) -> Outcome {
    let testbed = match Testbed::new(&settings.network) {
        Ok(testbed) => testbed,
        Err(reason) => {
            let pos = script.events.first().map_or(Pos::default(), |e| e.pos);
            return Outcome::failed(Wrong::from(reason).at(pos));
        }
    };
    settings.non_fatal.extend_from_slice(&rules.non_fatal);
    let mut executor = Executor {
        testbed,
        settings,
        rules: rules.clone(),
        start: sbinuptime(),
        nominal: None,
        previous: 0,
        watched: 0,
        descriptors: Descriptors::default(),
        connection: None,
        pending: None,
        next_port: FIRST_PORT,
        outcome: Outcome::default(),
    };
    executor.outcome.failure = executor.run(script).err();
    executor.outcome.frames = executor.testbed.history();
    let Executor {
        testbed,
        descriptors,
        pending,
        outcome,
        ..
    } = executor;
    drop((pending, descriptors));
    testbed.destroy();
    outcome
}

/// A script on its way.
pub struct Executor {
    pub(crate) testbed: Testbed,
    pub(crate) settings: Settings,
    rules: Rules,
    start: Sbintime,
    /// When the last packet was to be sent, if a packet was the last event.
    nominal: Option<i64>,
    /// When the last event happened.
    previous: i64,
    /// How many frames the stack had sent when the script's last packet was done with: later ones are nobody's
    /// business.
    watched: usize,
    pub(crate) descriptors: Descriptors,
    /// The connection under test.
    pub(crate) connection: Option<Connection>,
    /// A call that blocks, and the line it stands on.
    pub(crate) pending: Option<(Pos, Pending)>,
    next_port: u16,
    outcome: Outcome,
}

/// When an event is due, and how late or early it may be.
#[derive(Clone, Copy, Debug)]
struct Due {
    /// The earliest and latest nominal time; none for any time.
    span: Option<(i64, i64)>,
    /// Either way.
    tolerance: i64,
}

impl Executor {
    fn run(&mut self, script: &Script) -> Result<(), Failure> {
        for event in &script.events {
            let result = self.event(event).map_err(|wrong| wrong.at(event.pos));
            if let Err(failure) = result {
                let kind = match event.action {
                    Action::Packet(_) => "packet",
                    Action::Syscall(_) => "syscall",
                    Action::Command(_) => "command",
                    Action::Code(_) => "code",
                };
                if !self.settings.non_fatal.iter().any(|k| k == kind) {
                    return Err(failure);
                }
                self.outcome.warnings.push(failure);
            }
            self.previous = self.now();
            if matches!(event.action, Action::Packet(_)) {
                self.watched = self.testbed.counts().0;
            }
        }
        let end = script.events.last().map_or(Pos::default(), |e| e.pos);
        self.finish_call().map_err(|(pos, wrong)| wrong.at(pos))?;
        if self.rules.leftover {
            self.nothing_left().map_err(|wrong| wrong.at(end))?;
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Result<(), Wrong> {
        let due = self.due(event);
        match &event.action {
            Action::Packet(packet) if packet.direction == crate::ast::Direction::Outbound => {
                self.nominal = None;
                self.expect_packet(packet, due)
            }
            Action::Packet(packet) => {
                self.wait_until(due)?;
                self.send_packet(packet)?;
                self.nominal = due.span.map(|(from, _)| from);
                Ok(())
            }
            Action::Syscall(call) => {
                self.nominal = None;
                self.finish_call().map_err(|(_, wrong)| wrong)?;
                let begun = self.now();
                self.wait_until(due)?;
                let base = match event.time {
                    Time::Absolute(_) => 0,
                    _ => begun,
                };
                let end = call.end.map(|end| (base + end, due.tolerance));
                self.syscall(event.pos, call, end, due.tolerance)
            }
            Action::Command(line) => {
                self.nominal = None;
                self.wait_until(due)?;
                self.note(format!("`{line}`"));
                shell::run(self, line).map_err(Wrong::from)
            }
            Action::Code(code) => {
                self.nominal = None;
                self.wait_until(due)?;
                let info = self.tcp_info()?;
                self.note(format!("%{{{code}}}%"));
                assertion::check(code, &info).map_err(Wrong::from)
            }
        }
    }

    fn due(&self, event: &Event) -> Due {
        // A packet behind a packet counts from when that was to be sent, anything else from now.
        let inbound = matches!(&event.action, Action::Packet(p) if p.direction == crate::ast::Direction::Inbound);
        let base = match self.nominal {
            Some(nominal) if inbound => nominal,
            _ => self.now(),
        };
        let span = match event.time {
            Time::Absolute(at) => Some((at, at)),
            Time::AbsoluteRange(from, to) => Some((from, to)),
            Time::Relative(after) => Some((base + after, base + after)),
            Time::RelativeRange(from, to) => Some((base + from, base + to)),
            Time::Any => None,
        };
        let since = span.map_or(0, |(_, to)| (to - self.previous).max(0));
        let share = (since as f64 * self.settings.tolerance_percent / 100.0) as i64;
        Due {
            span,
            tolerance: self.settings.tolerance_usecs.max(share),
        }
    }

    /// Waits until an event of ours is due; it must not be late.
    fn wait_until(&mut self, due: Due) -> Result<(), Wrong> {
        let Some((from, to)) = due.span else {
            return Ok(());
        };
        pump(self.at(from));
        let now = self.now();
        if now > to + due.tolerance {
            let late = seconds(now - to);
            return Err(format!("the event comes {late} s late").into());
        }
        Ok(())
    }

    /// Microseconds since the script began.
    pub(crate) fn now(&self) -> i64 {
        (sbinuptime() - self.start).as_us()
    }

    /// The machine's time at so many microseconds since the script began.
    pub(crate) fn at(&self, usec: i64) -> Sbintime {
        // Both ways of counting round down: a little more, so that the time has come when it is said to.
        self.start + Sbintime::from_us(usec) + Sbintime::from_ns(1)
    }

    /// Remembers what happened.
    pub(crate) fn note(&mut self, what: String) {
        let at = self.now();
        self.note_at(at, what);
    }

    fn note_at(&mut self, at: i64, what: String) {
        self.outcome.exchange.push(Happening { at, what });
    }
}

/// Microseconds as seconds.
pub fn seconds(usec: i64) -> String {
    format!("{:.6}", usec as f64 / 1e6)
}
