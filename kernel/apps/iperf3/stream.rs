//! The streams of a test: one thread each, moving data and counting it.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use netinet::tcp_usrreq::TCP_CONGESTION;
use sys::errno::Errno;
use sys::kern::kern_synch::pause_sbt;
use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine;
use sys::socket::{IPPROTO_TCP, MsgFlags, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, SockAddr};
use sys::socket::{Shutdown, TCP_INFO, TCP_NODELAY};
use sys::time::Sbintime;

use super::args::{Limit, TestOptions, Transport};
use super::protocol::{Failure, POLL, StreamResult, doing};

/// How long a receiver that was told to finish waits for more.
const QUIET: Sbintime = Sbintime::from_ms(50);
/// How long a receiver that was told to finish goes on at the most.
const DRAIN: Sbintime = Sbintime::from_ms(1000);
/// How long a sender waits when the interface takes no more.
const BACKOFF: Sbintime = Sbintime::from_us(200);
/// Bytes in front of each datagram: seconds, microseconds, and a 64-bit or 32-bit counter.
const UDP_HEADER_WIDE: usize = 16;
const UDP_HEADER: usize = 12;

/// Which way a stream's data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Send,
    Receive,
}

/// What all streams of a test share.
pub(super) struct Shared {
    pub(super) options: TestOptions,
    pub(super) direction: Direction,
    pub(super) wide_counters: bool,
    /// The streams should end.
    pub(super) done: AtomicBool,
    /// Bytes moved by all streams; with `-n`, bytes claimed by senders.
    total: AtomicU64,
}

impl Shared {
    pub(super) fn new(options: TestOptions, direction: Direction, wide_counters: bool) -> Shared {
        Shared {
            options,
            direction,
            wide_counters,
            done: AtomicBool::new(false),
            total: AtomicU64::new(0),
        }
    }

    fn finished(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Whether the test's number of bytes has been moved.
    pub(super) fn bytes_reached(&self) -> bool {
        match self.options.limit {
            Limit::Bytes(bytes) => self.total.load(Ordering::Relaxed) >= bytes,
            Limit::Time(_) => false,
        }
    }

    /// Takes the next `block` bytes of the test's number, or what is left of it.
    fn claim(&self, block: usize) -> usize {
        let Limit::Bytes(bytes) = self.options.limit else {
            return block;
        };
        let before = self.total.fetch_add(block as u64, Ordering::Relaxed);
        bytes.saturating_sub(before).min(block as u64) as usize
    }
}

/// Counts of one stream. The moving thread writes, the reporting thread reads.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) bytes: AtomicU64,
    /// Datagrams sent, or the highest number received.
    pub(super) packets: AtomicU64,
    /// Datagrams missing.
    pub(super) errors: AtomicU64,
    pub(super) out_of_order: AtomicU64,
    /// Nanoseconds (RFC 1889 §6.3.1's estimate).
    jitter_ns: AtomicU64,
    /// The error that ended the stream, or 0.
    failed: AtomicU32,
}

/// One stream.
pub(super) struct Stream {
    /// Its number in the results: 1, 3, 4, 5 … (iperf3 leaves out 2).
    pub(super) id: i32,
    pub(super) so: SocketHandle,
    pub(super) counts: Counts,
}

impl Stream {
    /// A stream over a connected socket, the `index`th of its test.
    pub(super) fn new(index: usize, so: SocketHandle) -> Stream {
        let id = if index == 0 { 1 } else { index as i32 + 2 };
        Stream {
            id,
            so,
            counts: Counts::default(),
        }
    }

    /// The number in brackets that reports show; iperf3 prints its file descriptor.
    pub(super) fn label(&self) -> i32 {
        self.id + 4
    }

    pub(super) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }

    /// Jitter in seconds.
    pub(super) fn jitter(&self) -> f64 {
        self.counts.jitter_ns.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Segments retransmitted and the congestion window, of a TCP stream.
    pub(super) fn tcp_state(&self) -> Option<(u32, u32)> {
        // Offsets of snd_cwnd and snd_rexmitpack in FreeBSD's struct tcp_info.
        const SND_CWND: usize = 80;
        const SND_REXMITPACK: usize = 120;
        let info = self.so.getsockopt(IPPROTO_TCP, TCP_INFO, 240).ok()?;
        let word = |at: usize| {
            let bytes = info.get(at..at + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        Some((word(SND_REXMITPACK)?, word(SND_CWND)?))
    }

    /// The congestion control algorithm of a TCP stream.
    pub(super) fn congestion(&self) -> Option<String> {
        let name = self.so.getsockopt(IPPROTO_TCP, TCP_CONGESTION, 16).ok()?;
        let end = name.iter().position(|&byte| byte == 0);
        let name = &name[..end.unwrap_or(name.len())];
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// The error that ended the stream before its time.
    pub(super) fn failure(&self) -> Option<Errno> {
        Errno::from_number(self.counts.failed.load(Ordering::Relaxed) as i32)
    }

    fn fail(&self, errno: Errno) {
        self.counts.failed.store(errno as u32, Ordering::Relaxed);
    }

    /// The results to tell the peer, for a test of `elapsed`.
    pub(super) fn result(&self, shared: &Shared, elapsed: Sbintime) -> StreamResult {
        let sends_tcp =
            shared.direction == Direction::Send && shared.options.transport == Transport::Tcp;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed) as i64;
        StreamResult {
            id: self.id,
            bytes: self.bytes(),
            retransmits: match self.tcp_state() {
                Some((retransmits, _)) if sends_tcp => i64::from(retransmits),
                _ => -1,
            },
            jitter: self.jitter(),
            errors: load(&self.counts.errors),
            packets: load(&self.counts.packets),
            end_time: elapsed.as_secs_f64(),
            ..StreamResult::default()
        }
    }
}

/// Receive buffer of a UDP stream if `-w` does not say; `net.inet.udp.recvspace` is for questions and answers.
const UDP_RCVBUF: i32 = 212_992;

/// Sets a stream's socket to the test's options.
pub(super) fn prepare(so: &SocketHandle, options: &TestOptions) -> Result<(), Failure> {
    // A sender too looks at times whether it should end: a peer that stops reading does not hold it up.
    so.set_rcvtimeo(Some(POLL))
        .and_then(|()| so.set_sndtimeo(Some(POLL)))
        .map_err(doing("set a timeout"))?;
    if options.window > 0 {
        for buffer in [SO_SNDBUF, SO_RCVBUF] {
            so.setsockopt_int(SOL_SOCKET, buffer, options.window as i32)
                .map_err(doing("set socket buffer size"))?;
        }
    } else if options.transport == Transport::Udp {
        // Room for a burst while the reader waits for its CPU: what Linux gives every socket. Less will do.
        let _ = so.setsockopt_int(SOL_SOCKET, SO_RCVBUF, UDP_RCVBUF);
    }
    if options.no_delay {
        so.setsockopt_int(IPPROTO_TCP, TCP_NODELAY, 1)
            .map_err(doing("set TCP NODELAY"))?;
    }
    Ok(())
}

/// The running threads of a test's streams.
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    pub(super) streams: Vec<Arc<Stream>>,
    threads: Vec<ThreadHandle>,
    pub(super) started: Sbintime,
}

impl Running {
    /// Starts a thread for each stream.
    pub(super) fn start(shared: Arc<Shared>, streams: Vec<Stream>) -> Running {
        let started = machine::sbinuptime();
        let streams: Vec<Arc<Stream>> = streams.into_iter().map(Arc::new).collect();
        let threads = streams
            .iter()
            .map(|stream| {
                let (shared, stream) = (shared.clone(), stream.clone());
                let name = format!("iperf3/{}", stream.label());
                kthread_add(&name, Pri::PUSER, None, move || {
                    Mover::new(&shared, &stream, started).run();
                })
            })
            .collect();
        Running {
            shared,
            streams,
            threads,
            started,
        }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Sbintime {
        machine::sbinuptime() - self.started
    }

    /// Whether the test's own limit is reached, or no stream can go on.
    pub(super) fn complete(&self) -> bool {
        let time_over = match self.shared.options.limit {
            Limit::Time(time) => self.elapsed() >= time,
            Limit::Bytes(_) => false,
        };
        time_over
            || self.shared.bytes_reached()
            || self.streams.iter().all(|stream| stream.failure().is_some())
    }

    /// Tells the streams to end and waits until they have.
    pub(super) fn stop(&mut self) {
        self.shared.done.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join();
        }
    }
}

impl Running {
    /// Ends the connections; the threads have ended before.
    pub(super) fn shutdown(&self) {
        for stream in &self.streams {
            // A connection that the peer has ended already needs no more.
            let _ = stream.so.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Moves the data of one stream, on its thread.
struct Mover<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
    started: Sbintime,
}

impl<'a> Mover<'a> {
    fn new(shared: &'a Shared, stream: &'a Stream, started: Sbintime) -> Mover<'a> {
        Mover {
            shared,
            stream,
            started,
        }
    }

    fn run(&self) {
        let result = match (self.shared.direction, self.shared.options.transport) {
            (Direction::Send, Transport::Tcp) => self.send_tcp(),
            (Direction::Send, Transport::Udp) => self.send_udp(),
            (Direction::Receive, Transport::Tcp) => self.receive_tcp(),
            (Direction::Receive, Transport::Udp) => self.receive_udp(),
        };
        if let Err(errno) = result {
            self.stream.fail(errno);
        }
    }

    /// Adds moved bytes, and remembers when.
    fn count(&self, bytes: usize) {
        let counts = &self.stream.counts;
        counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.shared.direction == Direction::Receive {
            self.shared.total.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Waits until the stream's rate allows more, in steps short enough to notice the end.
    fn pace(&self) {
        let rate = self.shared.options.rate;
        if rate == 0 {
            return;
        }
        let due_ns = u128::from(self.stream.bytes()) * 8 * 1_000_000_000 / u128::from(rate);
        let due = Sbintime::from_ns(i64::try_from(due_ns).unwrap_or(i64::MAX));
        loop {
            let ahead = due - (machine::sbinuptime() - self.started);
            if ahead <= Sbintime::ZERO || self.shared.finished() {
                return;
            }
            pause_sbt("iperfp", ahead.min(POLL));
        }
    }

    fn send_tcp(&self) -> Result<(), Errno> {
        let block = pattern(self.shared.options.block);
        while !self.shared.finished() {
            let mut left = &block[..self.shared.claim(block.len())];
            if left.is_empty() {
                return Ok(());
            }
            while !left.is_empty() && !self.shared.finished() {
                match self.stream.so.send(left, MsgFlags::empty()) {
                    Ok(n) => {
                        self.count(n);
                        left = left.get(n..).unwrap_or(&[]);
                    }
                    Err(Errno::EAGAIN) => {}
                    Err(errno) => return Err(errno),
                }
            }
            self.pace();
        }
        Ok(())
    }

    fn send_udp(&self) -> Result<(), Errno> {
        let mut block = pattern(self.shared.options.block);
        let mut number = 0u64;
        while !self.shared.finished() {
            if self.shared.claim(block.len()) == 0 {
                return Ok(());
            }
            number += 1;
            stamp(
                &mut block,
                machine::sbinuptime(),
                number,
                self.shared.wide_counters,
            );
            while !self.shared.finished() {
                match self.stream.so.send(&block, MsgFlags::empty()) {
                    Ok(n) => {
                        self.count(n);
                        self.stream.counts.packets.store(number, Ordering::Relaxed);
                        break;
                    }
                    // The ring is full; the datagram keeps its number.
                    Err(Errno::ENOBUFS) => {
                        pause_sbt("iperfb", BACKOFF);
                    }
                    // The peer's answer to the last datagrams of a stream it has closed.
                    Err(Errno::ECONNREFUSED) if self.shared.finished() => return Ok(()),
                    Err(errno) => return Err(errno),
                }
            }
            self.pace();
        }
        Ok(())
    }

    fn receive_tcp(&self) -> Result<(), Errno> {
        let mut block = alloc::vec![0; self.shared.options.block];
        let mut end = Ending::default();
        while end.goes_on(self.shared.finished(), &self.stream.so)? {
            match self.stream.so.recv(&mut block, MsgFlags::empty()) {
                Ok(0) => return Ok(()),
                Ok(n) => self.count(n),
                Err(Errno::EAGAIN) => end.quiet = true,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn receive_udp(&self) -> Result<(), Errno> {
        let mut datagram = alloc::vec![0; self.shared.options.block.max(UDP_HEADER_WIDE)];
        let mut arrivals = Arrivals::default();
        let mut end = Ending::default();
        while end.goes_on(self.shared.finished(), &self.stream.so)? {
            match self.stream.so.recv(&mut datagram, MsgFlags::empty()) {
                Ok(n) => {
                    let header = datagram
                        .get(..n)
                        .and_then(|bytes| UdpHeader::parse(bytes, self.shared.wide_counters));
                    if let Some(header) = header {
                        self.count(n);
                        arrivals.note(machine::sbinuptime(), &header);
                        arrivals.publish(&self.stream.counts);
                    }
                }
                Err(Errno::EAGAIN) => end.quiet = true,
                Err(Errno::ECONNREFUSED) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// When a receiver that was told to finish does: once nothing more comes.
///
/// Differs from iperf3: it stops where it stands, and then counts less than its peer sent.
#[derive(Default)]
struct Ending {
    /// Nothing came within the receive timeout.
    quiet: bool,
    told: Option<Sbintime>,
}

impl Ending {
    fn goes_on(&mut self, finished: bool, so: &SocketHandle) -> Result<bool, Errno> {
        if !finished {
            self.quiet = false;
            return Ok(true);
        }
        let now = machine::sbinuptime();
        let told = match self.told {
            Some(told) => told,
            None => {
                so.set_rcvtimeo(Some(QUIET))?;
                self.quiet = false;
                *self.told.insert(now)
            }
        };
        Ok(!self.quiet && now - told < DRAIN)
    }
}

/// Data that does not repeat within a frame, so that a misplaced byte shows in a capture.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// The start of a datagram.
struct UdpHeader {
    sent: Sbintime,
    number: u64,
}

impl UdpHeader {
    fn parse(bytes: &[u8], wide: bool) -> Option<UdpHeader> {
        let word = |at: usize| {
            let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes))
        };
        let sent = Sbintime::from_s(i64::from(word(0)?)) + Sbintime::from_us(i64::from(word(4)?));
        let number = if wide {
            u64::from(word(8)?) << 32 | u64::from(word(12)?)
        } else {
            u64::from(word(8)?)
        };
        Some(UdpHeader { sent, number })
    }
}

/// Writes a datagram's header.
fn stamp(datagram: &mut [u8], now: Sbintime, number: u64, wide: bool) {
    let us = now.as_us();
    let seconds = ((us / 1_000_000) as u32).to_be_bytes();
    let micros = ((us % 1_000_000) as u32).to_be_bytes();
    let mut header = [0; UDP_HEADER_WIDE];
    header[0..4].copy_from_slice(&seconds);
    header[4..8].copy_from_slice(&micros);
    let len = if wide {
        header[8..16].copy_from_slice(&number.to_be_bytes());
        UDP_HEADER_WIDE
    } else {
        header[8..12].copy_from_slice(&(number as u32).to_be_bytes());
        UDP_HEADER
    };
    if let Some(start) = datagram.get_mut(..len) {
        start.copy_from_slice(&header[..len]);
    }
}

/// What a receiver of datagrams knows: how many are missing, how many came late, how evenly they come.
#[derive(Default)]
struct Arrivals {
    highest: u64,
    missing: u64,
    out_of_order: u64,
    jitter_ns: f64,
    transit: Option<Sbintime>,
}

impl Arrivals {
    /// Counts one datagram as iperf3 does (`iperf_udp_recv`).
    fn note(&mut self, now: Sbintime, header: &UdpHeader) {
        if header.number > self.highest {
            self.missing += header.number - self.highest - 1;
            self.highest = header.number;
        } else {
            // It was counted as missing when a later one overtook it.
            self.out_of_order += 1;
            self.missing = self.missing.saturating_sub(1);
        }
        let transit = now - header.sent;
        if let Some(before) = self.transit {
            let change = (transit - before).as_ns().unsigned_abs() as f64;
            self.jitter_ns += (change - self.jitter_ns) / 16.0;
        }
        self.transit = Some(transit);
    }

    fn publish(&self, counts: &Counts) {
        counts.packets.store(self.highest, Ordering::Relaxed);
        counts.errors.store(self.missing, Ordering::Relaxed);
        counts
            .out_of_order
            .store(self.out_of_order, Ordering::Relaxed);
        counts
            .jitter_ns
            .store(self.jitter_ns as u64, Ordering::Relaxed);
    }
}

/// Addresses at both ends, for the line that announces a stream.
pub(super) fn ends(so: &SocketHandle) -> Option<(SockAddr, SockAddr)> {
    Some((so.getsockname().ok()?, so.getpeername().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(arrivals: &mut Arrivals, number: u64, at_ms: i64) {
        let header = UdpHeader {
            sent: Sbintime::from_ms(number as i64),
            number,
        };
        arrivals.note(Sbintime::from_ms(at_ms), &header);
    }

    #[test]
    fn an_overtaken_datagram_is_late_and_not_missing() {
        let mut arrivals = Arrivals::default();
        for number in [1, 2, 5, 3] {
            arrive(&mut arrivals, number, 10);
        }
        assert_eq!((arrivals.missing, arrivals.out_of_order), (1, 1));
        assert_eq!(arrivals.highest, 5);
    }

    #[test]
    fn even_arrivals_have_no_jitter() {
        let mut arrivals = Arrivals::default();
        for number in 1..100 {
            arrive(&mut arrivals, number, 1000 + number as i64);
        }
        assert!(arrivals.jitter_ns < 1.0);
        arrive(&mut arrivals, 100, 1000 + 100 + 16);
        assert!((arrivals.jitter_ns - 1_000_000.0).abs() < 10.0);
    }

    #[test]
    fn headers_are_read_as_they_were_written() {
        for wide in [false, true] {
            let mut datagram = [0; 64];
            let sent = Sbintime::from_us(5_123_456);
            stamp(&mut datagram, sent, 77, wide);
            let header = UdpHeader::parse(&datagram, wide).unwrap();
            assert_eq!(header.number, 77);
            assert_eq!(header.sent.as_us(), sent.as_us());
        }
        assert!(UdpHeader::parse(&[0; 11], false).is_none());
        assert!(UdpHeader::parse(&[0; 15], true).is_none());
    }
}
