//! Malformed frames on a guest's wire, and the questions whether it still lives, leaks, and counted them.

use crate::guest::{self, MbufUse};
use crate::image::Image;
use crate::qemu::Guest;
use crate::wire::{FRAME_MAX, Wire};
use anyhow::{Context, Result, bail};
use etherparse::{NetHeaders, PacketBuilder, PacketHeaders};
use fuzz::generate::{Ends, Generator};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The guest's address during the test.
pub const TARGET: &str = "10.0.0.2";
const ENDS: Ends = Ends {
    our_mac: [0x02, 0x53, 0, 0, 0, 1],
    target_mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
    our_ip: [10, 0, 0, 1],
    target_ip: [10, 0, 0, 2],
};
/// Time a full guest gets before a frame counts as refused.
const PATIENCE: Duration = Duration::from_millis(20);
/// The guest holds fragments, half-open and closing connections for a while; FreeBSD's longest is 60 s (2 MSL).
const SETTLE: Duration = Duration::from_secs(100);
/// Tells our pings from the fuzzer's.
const PING_ID: u16 = 0x5853;
/// Ports the guest listens on meanwhile.
const PORTS: [u16; 2] = [5201, 5202];

/// What a fuzz run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Frames sent.
    pub sent: u64,
    /// Frames the guest had no room for.
    pub refused: u64,
    /// Frames the guest sent meanwhile.
    pub answers: u64,
    /// Drops that `netstat -s` shows more than before.
    pub dropped: u64,
}

/// Boots `guest` on a wire of ours and sends it malformed frames for `time`.
pub fn run(guest: &Guest, image: &Image, dir: &Path, time: Duration, seed: u64) -> Result<Outcome> {
    let wire = Wire::new(dir)?;
    let guest = guest.with_nic(wire.netdev(), TARGET);
    let mut qemu = guest.boot(image, None, dir)?;
    let mut fuzzer = Fuzzer::new(wire, seed);
    fuzzer.ping().context("before the malformed frames")?;
    let start = MbufUse::read(&mut qemu.console)?;
    let before = guest::dropped(&guest::statistics(&mut qemu.console)?);

    // A server to find and to talk to.
    qemu.console.start(&format!("iperf3 -s -p {}", PORTS[0]))?;
    let stop = Arc::new(AtomicBool::new(false));
    let deadline = Instant::now() + time;
    let ask = Arc::clone(&stop);
    let worker = std::thread::spawn(move || {
        let done = fuzzer.fuzz(deadline, &ask);
        (fuzzer, done)
    });
    while Instant::now() < deadline && !worker.is_finished() {
        std::thread::sleep(Duration::from_millis(100));
        if let Err(e) = qemu.console.check_alive() {
            stop.store(true, Ordering::Relaxed);
            return Err(e.context(format!("after frames of seed {seed}")));
        }
    }
    let (mut fuzzer, done) = worker
        .join()
        .unwrap_or_else(|e| std::panic::resume_unwind(e));
    let mut outcome = done?;
    qemu.console
        .interrupt()
        .context("after the malformed frames")?;
    if let Err(e) = fuzzer.ping() {
        guest::diagnose(&mut qemu.console);
        return Err(e.context("after the malformed frames"));
    }
    let after = guest::dropped(&guest::statistics(&mut qemu.console)?);
    outcome.dropped = after.saturating_sub(before);
    if outcome.dropped == 0 {
        bail!(
            "{} malformed frames, and netstat -s counts no drop",
            outcome.sent
        );
    }
    guest::wait_for_mbufs(&mut qemu.console, &start, SETTLE)
        .with_context(|| format!("after frames of seed {seed}"))?;
    qemu.poweroff()?;
    Ok(outcome)
}

struct Fuzzer {
    wire: Wire,
    generator: Generator,
    buffer: Vec<u8>,
}

impl Fuzzer {
    fn new(wire: Wire, seed: u64) -> Self {
        Self {
            wire,
            generator: Generator::new(seed, ENDS, &PORTS),
            buffer: vec![0; FRAME_MAX],
        }
    }

    fn fuzz(&mut self, deadline: Instant, stop: &AtomicBool) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
            while let Some(frame) = self.wire.receive(&mut self.buffer)? {
                outcome.answers += 1;
                self.generator.observe(frame);
            }
            for _ in 0..8 {
                let frame = self.generator.frame();
                match self.wire.send_patiently(&frame, PATIENCE)? {
                    true => outcome.sent += 1,
                    false => outcome.refused += 1,
                }
            }
        }
        Ok(outcome)
    }

    /// Fails if the guest does not answer a ping in time.
    fn ping(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(20);
        let mut sequence = 0;
        while Instant::now() < limit {
            sequence += 1;
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(ENDS.our_mac, ENDS.target_mac)
                .ipv4(ENDS.our_ip, ENDS.target_ip, 64)
                .icmpv4_echo_request(PING_ID, sequence)
                .write(&mut frame, b"is anybody there")?;
            self.wire.send_patiently(&frame, PATIENCE)?;
            let again = Instant::now() + Duration::from_millis(500);
            while Instant::now() < again {
                let Some(answer) = self.wire.receive(&mut self.buffer)? else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                match reply(answer) {
                    Reply::Arp(frame) => {
                        self.wire.send_patiently(&frame, PATIENCE)?;
                    }
                    Reply::Echo(PING_ID) => return Ok(()),
                    Reply::Echo(_) | Reply::Other => {}
                }
            }
        }
        bail!("the guest does not answer a ping")
    }
}

enum Reply {
    /// It asks who we are; this is the answer.
    Arp(Vec<u8>),
    /// It answers an echo request with this identifier.
    Echo(u16),
    Other,
}

fn reply(frame: &[u8]) -> Reply {
    let Ok(packet) = PacketHeaders::from_ethernet_slice(frame) else {
        return Reply::Other;
    };
    match (packet.net, packet.transport) {
        (Some(NetHeaders::Arp(arp)), _)
            if arp.operation.0 == 1 && arp.target_protocol_addr() == ENDS.our_ip =>
        {
            Reply::Arp(ENDS.arp_answer())
        }
        (_, Some(etherparse::TransportHeader::Icmpv4(icmp))) => match icmp.icmp_type {
            etherparse::Icmpv4Type::EchoReply(echo) => Reply::Echo(echo.id),
            _ => Reply::Other,
        },
        _ => Reply::Other,
    }
}
