//! Stands between a guest's NIC and a tap, and loses, reorders and duplicates frames on the way.

use crate::tap::Tap;
use crate::wire::{FRAME_MAX, Wire};
use anyhow::Result;
use netsim::impair::{InFlight, Lane, Link, LinkStat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames moved each way before looking at the clock again.
const BATCH: usize = 64;
/// Frames that wait for room at the guest's side; more are dropped, as at a tap's queue.
const QUEUE: usize = 1000;

/// What the relay did, each way.
#[derive(Clone, Copy, Debug, Default)]
pub struct RelayStat {
    /// From the tap to the guest.
    pub to_guest: LinkStat,
    /// From the guest to the tap.
    pub from_guest: LinkStat,
    /// Frames the guest's side had no room for.
    pub refused: u64,
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the tap to the guest.
    ToGuest,
    /// From the guest to the tap.
    FromGuest,
}

/// What a hook has decided about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It goes on after this time more, and once again at once.
    LateAndAgain(Duration),
    /// It ends here.
    Drop,
}

/// Looks at every frame that comes to the relay.
pub type Hook = Box<dyn FnMut(Way, &[u8]) -> Verdict + Send>;

/// A relay at work, in a thread of its own.
pub struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<RelayStat>>>,
}

impl Relay {
    /// Starts to relay between `wire` and `tap`.
    pub fn start(wire: Wire, tap: Tap, link: &Link, seed: u64) -> Self {
        Self::start_with(wire, tap, link, seed, Box::new(|_, _| Verdict::Pass))
    }

    /// Starts to relay what `hook` lets pass.
    pub fn start_with(wire: Wire, tap: Tap, link: &Link, seed: u64, hook: Hook) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work {
            wire,
            tap,
            hook,
            began: Instant::now(),
            lanes: [
                Lane::new(link.clone(), seed.wrapping_mul(2)),
                Lane::new(link.clone(), seed.wrapping_mul(2) + 1),
            ],
            flying: InFlight::default(),
            waiting: VecDeque::new(),
            refused: 0,
            buffer: vec![0; FRAME_MAX],
        };
        let ask = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !ask.load(Ordering::Relaxed) {
                work.step()?;
            }
            Ok(RelayStat {
                to_guest: work.lanes[0].stat(),
                from_guest: work.lanes[1].stat(),
                refused: work.refused,
            })
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends the relay and says what it did.
    pub fn stop(mut self) -> Result<RelayStat> {
        self.end().unwrap_or(Ok(RelayStat::default()))
    }

    fn end(&mut self) -> Option<Result<RelayStat>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take()?;
        Some(
            thread
                .join()
                .unwrap_or_else(|e| std::panic::resume_unwind(e)),
        )
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

struct Work {
    wire: Wire,
    tap: Tap,
    hook: Hook,
    began: Instant,
    lanes: [Lane; 2],
    flying: InFlight<(Way, Vec<u8>)>,
    /// Arrived, but the guest's side is full.
    waiting: VecDeque<Vec<u8>>,
    refused: u64,
    buffer: Vec<u8>,
}

impl Work {
    fn step(&mut self) -> Result<()> {
        self.wait()?;
        for _ in 0..BATCH {
            let Some(frame) = self.tap.receive(&mut self.buffer)? else {
                break;
            };
            let frame = frame.to_vec();
            self.offer(Way::ToGuest, frame);
        }
        for _ in 0..BATCH {
            let Some(frame) = self.wire.receive(&mut self.buffer)? else {
                break;
            };
            let frame = frame.to_vec();
            self.offer(Way::FromGuest, frame);
        }
        self.deliver()
    }

    /// Sleeps until a frame comes or one has to be delivered.
    fn wait(&self) -> Result<()> {
        let left = self
            .flying
            .next_at()
            .map_or(Duration::from_millis(50), |at| {
                at.saturating_sub(self.began.elapsed())
            });
        // Poll counts in milliseconds: wait a whole one only for what is further off.
        let timeout = PollTimeout::from(left.as_millis().min(50) as u8);
        let mut guest = PollFlags::POLLIN;
        guest.set(PollFlags::POLLOUT, !self.waiting.is_empty());
        let mut fds = [
            PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wire.as_fd(), guest),
        ];
        match poll(&mut fds, timeout) {
            Ok(0) if !left.is_zero() && left < Duration::from_millis(1) => {
                std::thread::sleep(left.min(Duration::from_micros(100)));
                Ok(())
            }
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn offer(&mut self, way: Way, frame: Vec<u8>) {
        let (late, again) = match (self.hook)(way, &frame) {
            Verdict::Pass => (Duration::ZERO, None),
            Verdict::LateAndAgain(time) => (time, Some(frame.clone())),
            Verdict::Drop => return,
        };
        let now = self.began.elapsed();
        let flying = &mut self.flying;
        for frame in std::iter::once(frame).chain(again) {
            self.lanes[way as usize].offer(now, frame, |at, frame| {
                flying.push(at + late, (way, frame));
            });
        }
    }

    fn deliver(&mut self) -> Result<()> {
        let now = self.began.elapsed();
        while let Some((way, frame)) = self.flying.pop_due(now) {
            match way {
                Way::FromGuest => self.tap.send(&frame)?,
                Way::ToGuest if self.waiting.len() < QUEUE => self.waiting.push_back(frame),
                Way::ToGuest => self.refused += 1,
            }
        }
        while let Some(frame) = self.waiting.front() {
            if !self.wire.send(frame)? {
                break;
            }
            self.waiting.pop_front();
        }
        Ok(())
    }
}
