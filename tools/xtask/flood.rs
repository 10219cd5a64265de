//! A flood of SYNs from sources that never answer, at a guest: what it does to a Linux host on the same wire.
//!
//! RFC 4987 §3.6 (SYN cookies). The same on the simulated wire: tools/sim/flood.rs

use crate::console::Console;
use crate::guest::{self, MbufUse, count};
use crate::image::Image;
use crate::netns::{self, Netns};
use crate::qemu::Guest;
use crate::relay::{Hook, Relay, Verdict, Way};
use crate::scenario::Flood as Flooding;
use crate::tap::Tap;
use crate::wire::{Talker, Wire};
use anyhow::{Context, Result, anyhow, bail, ensure};
use etherparse::{PacketBuilder, TcpOptionElement};
use netsim::impair::Link;
use oorandom::Rand64;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where clients connect to: it echoes.
const SERVICE: u16 = 443;
/// Where the established flow goes to: it is discarded.
const SINK: u16 = 9;
/// Connections that are made meanwhile.
const CLIENTS: u64 = 100;
/// SYNs after which the cache is full: more than 15,360, so that hardly a bucket has room.
const FULL: u64 = 20_000;
/// SYNs that come while a client's answer is under way: for each bucket half as many again as it holds.
const HELD: u64 = 25_000;
/// SYNs after the last client.
const LAST: u64 = 30_000;
/// What a client sends and gets back: some segments of full size.
const MESSAGE: usize = 8 << 10;
/// Most records there may be, and most bytes they may take.
const MOST_ENTRIES: u64 = 15_360;
const MOST_BYTES: u64 = 8 << 20;
/// How long the flow's rate is measured before the flood.
const QUIET: Duration = Duration::from_secs(2);
/// Time a full guest gets before a SYN counts as refused.
const PATIENCE: Duration = Duration::from_millis(20);
/// A flood that falls behind by more goes on from there.
const BEHIND: Duration = Duration::from_millis(20);
/// Time between two looks at the guest's cache.
const LOOK: Duration = Duration::from_millis(250);
/// Limit for a command in the guest, a connection, and what comes after the flood.
const LIMIT: Duration = Duration::from_secs(60);
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const FLOOD_MAC: [u8; 6] = [0x02, 0x53, 0, 0, 0, 2];

/// The least and the most SYNs in a second.
const PACES: std::ops::RangeInclusive<f64> = 2_000.0..=20_000.0;

/// Sends `syns` SYNs at a guest while a Linux host makes connections; an error if it suffers.
///
/// An emulated processor takes far fewer SYNs than a real one: on a host of 2 CPUs, without a pace, 20,000 in a second beside a
/// flow that then keeps little more than half of its rate; and a host that is busy leaves it less. The pace follows from what
/// the flow carries without the flood, so that whether it keeps half of that is a question to the stack, not to the emulation.
pub fn check(
    guest: &Guest,
    image: &Image,
    dir: &Path,
    syns: u64,
    pace: &Flooding,
) -> Result<String> {
    ensure!(syns > FULL + LAST, "{syns} SYNs are no flood");
    let netns = Netns::with_tap()?;
    let wire = Wire::new(dir)?;
    let guest = guest.with_nic(wire.netdev(), netns::GUEST);
    let talker = wire.talker()?;
    let tap = Tap::open(netns.name(), netns::TAP)?;
    let path = Arc::new(OnTheWay::default());
    let relay = Relay::start_with(wire, tap, &Link::default(), 0, hook(path.clone())?);
    let mut qemu = guest.boot(image, None, dir)?;
    let console = &mut qemu.console;
    let start = MbufUse::read(console)?;
    // The guest answers to everybody, and nobody comes back to it.
    console.run(&format!("route add default {}", netns::HOST), LIMIT)?;
    let server = format!("inetd echo:{SERVICE} discard:{SINK} &");
    console.run(&server, LIMIT)?;

    let reference = client(&netns, 0, || ());
    let reference = join(reference).context("a client without a flood")?;
    ensure!(
        reference.options & (TCPI_OPT_SACK | TCPI_OPT_WSCALE) == TCPI_OPT_SACK | TCPI_OPT_WSCALE
            && reference.largest > 1400
            && reference.dsacks > 0,
        "a client without a flood has {reference:?}"
    );
    let flow = Flow::start(&netns)?;
    std::thread::sleep(QUIET / 4);
    let quiet = flow.rate_during(|| {
        std::thread::sleep(QUIET);
        Ok(())
    })?;

    let per_s = quiet / f64::from(pace.kib_per_syn << 10);
    let flood = Flood::start(talker, syns, per_s.clamp(*PACES.start(), *PACES.end()));
    let (mut cache, mut clients) = (Cache::default(), Vec::new());
    let busy = flow.rate_during(|| {
        while !flood.thread.is_finished() {
            let sent = flood.sent.load(Ordering::Relaxed);
            if sent >= FULL && path.hold_us.load(Ordering::Relaxed) == 0 {
                let hold = flood.began.elapsed().as_micros() as u64 * HELD / sent;
                path.hold_us.store(hold, Ordering::Relaxed);
                clients.push(all_clients(&netns, flood.sent.clone(), syns));
            }
            cache.look(console)?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    })?;
    let flooded = flood.join()?;
    let made: Vec<_> = clients.into_iter().flat_map(join).flatten().collect();
    flow.finish()?;
    cache.look(console)?;
    let stat = console.run("netstat -s -p tcp", LIMIT)?;
    let cookies = count(&stat, " cookies received")?;
    let right = made
        .iter()
        .flatten()
        .filter(|c| c.agrees(&reference))
        .count();
    let failed = made.iter().filter_map(|c| c.as_ref().err()).next();
    let said = format!(
        "{syns} SYNs at {:.0} per second, {} refused at a full ring, {} answered; at most {} entries in {} KiB; \
         {} added, {} gave way, {} cookies sent; {} of {CLIENTS} connections made, {right} with MSS, scale and SACK as \
         without flood, {cookies} by cookie; the flow had {:.1} MB/s before, {:.1} MB/s meanwhile; answers {:.1} s late",
        syns as f64 / flooded.time.as_secs_f64(),
        flooded.refused,
        path.answers.load(Ordering::Relaxed),
        cache.entries,
        cache.bytes >> 10,
        count(&stat, " syncache entries added")?,
        count(&stat, " bucket overflow")?,
        count(&stat, " cookies sent")?,
        made.iter().flatten().count(),
        quiet / 1e6,
        busy / 1e6,
        path.hold_us.load(Ordering::Relaxed) as f64 / 1e6,
    );
    if let Some(why) = failed {
        bail!("clients suffer: {why:#}: {said}");
    }
    ensure!(
        cache.entries <= MOST_ENTRIES && cache.bytes <= MOST_BYTES,
        "too much held: {said}"
    );
    ensure!(
        cache.entries > MOST_ENTRIES / 2,
        "the cache was never full: {said}"
    );
    ensure!(flooded.refused < syns / 100, "hardly a flood: {said}");
    ensure!(
        made.len() as u64 == CLIENTS && right as u64 == CLIENTS,
        "clients suffer: {said}; without flood: {reference:?}, with it: {:?}",
        made.iter().flatten().find(|c| !c.agrees(&reference))
    );
    // A record may have survived here and there.
    ensure!(cookies >= CLIENTS * 9 / 10, "hardly a cookie: {said}");
    ensure!(busy >= quiet / 2.0, "the flow suffers: {said}");
    guest::wait_for_mbufs(console, &start, LIMIT)?;
    qemu.poweroff()?;
    relay.stop()?;
    Ok(format!("{said}; mbufs as at the start"))
}

/// What the relay does with the flood's wire, and sees of it.
#[derive(Default)]
struct OnTheWay {
    /// How much later a client's answers come than its SYN, in µs.
    hold_us: AtomicU64,
    /// Answers to sources that are not there.
    answers: AtomicU64,
}

/// The client's part of a handshake after its SYN comes when the record of the SYN has long given way to others: the
/// cookie must do. It comes twice, so that the guest has something to report if it knows of SACK (RFC 2883): whether the
/// client itself sends again in that time depends on how long it waited for the guest. Answers to sources that are not there
/// go nowhere.
fn hook(path: Arc<OnTheWay>) -> Result<Hook> {
    let host: Ipv4Addr = netns::HOST.parse()?;
    Ok(Box::new(move |way, frame| {
        let is_ip = frame.get(12..15) == Some(&[8, 0, 0x45]);
        match way {
            Way::FromGuest if is_ip && frame.get(30..34) != Some(&host.octets()) => {
                path.answers.fetch_add(1, Ordering::Relaxed);
                Verdict::Drop
            }
            Way::ToGuest if is_ip && answers_service(frame) => {
                Verdict::LateAndAgain(Duration::from_micros(path.hold_us.load(Ordering::Relaxed)))
            }
            Way::ToGuest | Way::FromGuest => Verdict::Pass,
        }
    }))
}

/// Whether a frame with an IPv4 header without options carries a segment to `SERVICE` that is no SYN.
fn answers_service(frame: &[u8]) -> bool {
    const TCP: u8 = 6;
    const SYN: u8 = 2;
    frame.get(23) == Some(&TCP)
        && frame.get(36..38) == Some(&SERVICE.to_be_bytes())
        && frame.get(47).is_some_and(|flags| flags & SYN == 0)
}

/// The flood at work.
struct Flood {
    thread: JoinHandle<Result<Flooded>>,
    began: Instant,
    sent: Arc<AtomicU64>,
}

/// What became of it.
struct Flooded {
    refused: u64,
    time: Duration,
}

impl Flood {
    fn start(talker: Talker, syns: u64, per_s: f64) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let (tell, began) = (sent.clone(), Instant::now());
        let thread = std::thread::spawn(move || {
            let (mut rng, mut refused) = (Rand64::new(u128::from(syns)), 0);
            let mut due = began;
            for _ in 0..syns {
                let frame = syn(&mut rng)?;
                let now = Instant::now();
                if due > now {
                    std::thread::sleep(due - now);
                } else if now - due > BEHIND {
                    due = now;
                }
                refused += u64::from(!talker.send_patiently(&frame, PATIENCE)?);
                tell.fetch_add(1, Ordering::Relaxed);
                due += Duration::from_secs_f64(1.0 / per_s);
            }
            let time = began.elapsed();
            Ok(Flooded { refused, time })
        });
        Self {
            thread,
            began,
            sent,
        }
    }

    fn join(self) -> Result<Flooded> {
        join(self.thread)
    }
}

fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|e| std::panic::resume_unwind(e))
}

/// A SYN with the usual options, from anywhere.
fn syn(rng: &mut Rand64) -> Result<Vec<u8>> {
    // Not from where there is no way to answer to: our own network, the loopback, groups.
    let from = loop {
        let address = (rng.rand_u64() as u32).to_be_bytes();
        if !matches!(address[0], 0 | 10 | 127 | 224..=255) {
            break address;
        }
    };
    let to: Ipv4Addr = netns::GUEST.parse()?;
    let options = [
        TcpOptionElement::MaximumSegmentSize(1460),
        TcpOptionElement::SelectiveAcknowledgementPermitted,
        TcpOptionElement::Noop,
        TcpOptionElement::WindowScale(7),
    ];
    let port = 1024 + rng.rand_range(0..60_000) as u16;
    let mut frame = Vec::with_capacity(66);
    PacketBuilder::ethernet2(FLOOD_MAC, GUEST_MAC)
        .ipv4(from, to.octets(), 60)
        .tcp(port, SERVICE, rng.rand_u64() as u32, 65_535)
        .syn()
        .options(&options)
        .map_err(|e| anyhow!("{e:?}"))?
        .write(&mut frame, &[])?;
    Ok(frame)
}

/// The most that the guest's cache has held.
#[derive(Default)]
struct Cache {
    entries: u64,
    bytes: u64,
}

impl Cache {
    fn look(&mut self, console: &mut Console) -> Result<()> {
        let text = console.run("sysctl -n net.inet.tcp.syncache.count", LIMIT)?;
        let entries = text.trim().parse().with_context(|| text.clone())?;
        self.entries = self.entries.max(entries);
        let text = console.run("vmstat -z", LIMIT)?;
        self.bytes = self.bytes.max(zone_bytes(&text, "syncache")?);
        Ok(())
    }
}

/// What a zone takes by `vmstat -z`, what is free in it included.
fn zone_bytes(text: &str, zone: &str) -> Result<u64> {
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(zone)?.strip_prefix(':'));
    let numbers = found.map(|line| {
        let numbers = line.split(',').map(|number| number.trim().parse().ok());
        numbers.collect::<Option<Vec<u64>>>().unwrap_or_default()
    });
    match numbers.as_deref() {
        Some([size, _limit, used, free, ..]) => Ok(size * (used + free)),
        _ => bail!("no zone \"{zone}\" in:\n{text}"),
    }
}

/// Starts a client again and again while the flood goes on; returns what became of each.
fn all_clients(
    netns: &Netns,
    sent: Arc<AtomicU64>,
    syns: u64,
) -> JoinHandle<Result<Vec<Result<Agreed>>>> {
    let threads: Vec<_> = (0..CLIENTS)
        .map(|i| {
            let begin = FULL + (syns - FULL - LAST) * i / CLIENTS;
            let sent = sent.clone();
            client(netns, i as u8, move || {
                while sent.load(Ordering::Relaxed) < begin {
                    std::thread::sleep(LOOK / 50);
                }
            })
        })
        .collect();
    std::thread::spawn(move || Ok(threads.into_iter().map(join).collect()))
}

/// A client that connects after `wait`, and gets back what it sends.
fn client(
    netns: &Netns,
    seed: u8,
    wait: impl FnOnce() + Send + 'static,
) -> JoinHandle<Result<Agreed>> {
    netns.spawn(move || {
        wait();
        let mut stream = TcpStream::connect((netns::GUEST, SERVICE))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let message: Vec<u8> = (0..MESSAGE).map(|i| (i as u8).wrapping_add(seed)).collect();
        stream.write_all(&message)?;
        let mut echo = vec![0; MESSAGE];
        stream.read_exact(&mut echo).context("no echo")?;
        ensure!(echo == message, "the echo of {seed} is another");
        let deadline = Instant::now() + LIMIT;
        loop {
            let agreed = TcpInfo::read(&stream)?.agreed()?;
            // What comes twice the guest reports.
            if agreed.dsacks > 0 || Instant::now() > deadline {
                return Ok(agreed);
            }
            std::thread::sleep(LOOK / 50);
        }
    })
}

const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_WSCALE: u8 = 4;

/// What both ends agreed on, as the client sees it.
#[derive(Debug)]
struct Agreed {
    options: u8,
    /// The guest's scale and ours.
    scales: u8,
    mss: u32,
    /// The largest segment that has come: what the guest knows of our MSS, of our window and of its scale.
    largest: u32,
    /// Our duplicates that the guest has reported, for which it must know that we understand SACK.
    dsacks: u32,
}

impl Agreed {
    /// Whether a cookie told the guest what the SYN did: all of it as without a flood.
    fn agrees(&self, reference: &Self) -> bool {
        let all = |a: &Self| (a.options, a.scales, a.mss, a.largest);
        all(self) == all(reference) && self.dsacks > 0
    }
}

/// Linux's `struct tcp_info`.
struct TcpInfo([u8; 256]);

impl TcpInfo {
    fn read(stream: &TcpStream) -> Result<Self> {
        let mut info = [0; 256];
        let mut len = info.len() as nix::libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `info`, and to `len` how many.
        let done = unsafe {
            nix::libc::getsockopt(
                stream.as_raw_fd(),
                nix::libc::IPPROTO_TCP,
                nix::libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        nix::errno::Errno::result(done).context("TCP_INFO")?;
        ensure!(
            len >= 220,
            "the host's kernel is too old: TCP_INFO is short"
        );
        Ok(Self(info))
    }

    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes.copied().context("TCP_INFO is short")
    }

    fn agreed(&self) -> Result<Agreed> {
        let [options, scales] = self.bytes(5)?;
        let number = |at| self.bytes(at).map(u32::from_ne_bytes);
        Ok(Agreed {
            options,
            scales,
            mss: number(16)?,
            largest: number(20)?,
            dsacks: number(216)?,
        })
    }

    fn acked(&self) -> Result<u64> {
        self.bytes(120).map(u64::from_ne_bytes)
    }
}

/// A flow to the guest, as fast as it takes it.
struct Flow {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<()>>,
}

impl Flow {
    fn start(netns: &Netns) -> Result<Self> {
        let stream = join(netns.spawn(|| Ok(TcpStream::connect((netns::GUEST, SINK))?)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (mut to, ask) = (stream.try_clone()?, stop.clone());
        to.set_write_timeout(Some(LIMIT))?;
        let writer = std::thread::spawn(move || {
            let block = [0; 64 << 10];
            while !ask.load(Ordering::Relaxed) {
                to.write_all(&block).context("the flow stands still")?;
            }
            Ok(())
        });
        Ok(Self {
            stream,
            stop,
            writer,
        })
    }

    /// Bytes per second that arrive while `f` runs.
    fn rate_during(&self, f: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (before, began) = (TcpInfo::read(&self.stream)?.acked()?, Instant::now());
        f()?;
        let after = TcpInfo::read(&self.stream)?.acked()?;
        Ok((after - before) as f64 / began.elapsed().as_secs_f64())
    }

    /// Ends it, when everything has arrived.
    fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        join(self.writer)?;
        self.stream.shutdown(Shutdown::Write)?;
        self.stream.set_read_timeout(Some(LIMIT))?;
        let rest = self.stream.read(&mut [0])?;
        ensure!(rest == 0, "the flow's sink answers");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketHeaders, TransportHeader};

    #[test]
    fn a_syn_is_whole_and_comes_from_outside() {
        let mut rng = Rand64::new(1);
        for _ in 0..1000 {
            let frame = syn(&mut rng).unwrap();
            let packet = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let (Some(etherparse::NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Tcp(tcp))) =
                (packet.net, packet.transport)
            else {
                panic!("no segment");
            };
            assert!(tcp.syn && !tcp.ack && tcp.destination_port == SERVICE);
            assert_eq!(tcp.options_iterator().count(), 4);
            assert_eq!(tcp.calc_checksum_ipv4(&ip, &[]), Ok(tcp.checksum));
            assert!(![0, 10, 127].contains(&ip.source[0]) && ip.source[0] < 224);
            assert!(!answers_service(&frame));
        }
    }

    #[test]
    fn a_zone_takes_what_is_used_and_what_is_free() {
        let text = "ITEM SIZE\ntcp_inpcb:  1416, 64000,  12,  58, 311, 0, 0, 0\nsyncache:  168, 0, 3, 2, 9, 0, 0, 0\n";
        assert_eq!(zone_bytes(text, "syncache").unwrap(), 840);
        assert!(zone_bytes(text, "sync").is_err());
    }
}
