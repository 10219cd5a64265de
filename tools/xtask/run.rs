//! Boots the kernel with an emulated e1000 and measures it against the distribution's iperf3.

use crate::image::{self, Image};
use crate::iperf::Figures;
use crate::netns::Netns;
use crate::pair;
use crate::peer::{IperfTest, Peer};
use crate::qemu::{Guest, Nic, Qemu};
use crate::ui::{self, Align};
use anyhow::{Context, Result, anyhow, bail};

/// Payload that fills a frame of 1500 bytes, with the timestamps TCP would carry.
const UDP_SIZE: u64 = 1448;
/// Datagrams that travel as fragments.
const UDP_LARGE: u64 = 8192;
/// Loss that still counts as carrying the rate, in percent.
const LOSS_MAX: f64 = 1.0;
/// Where the search for the UDP rate begins.
const UDP_START: u64 = 50_000_000;
/// Trials of the search: doubling, then halving the gap.
const UDP_TRIALS: u32 = 9;

/// How `run` measures.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seconds per row.
    pub seconds: u64,
    /// Mbit/s below which a TCP row fails.
    pub floor: f64,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    name: String,
    figures: Figures,
    /// For rows that count something else.
    rate: Option<f64>,
    udp: bool,
    /// Why it is a failure.
    failure: Option<String>,
}

/// Whom the guest is measured against.
pub enum Against<'a> {
    /// The host's iperf3.
    Host(&'a Peer<'a>),
    /// The second stack instance in the same guest.
    Itself,
}

/// Measures all rows. A row that fails says so; an error means that the guest is lost.
pub fn run(qemu: &mut Qemu, peer: &Against<'_>, options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let tcp = |reverse, streams| IperfTest {
        seconds: options.seconds,
        reverse,
        streams,
        udp: None,
    };
    for (name, client, test) in [
        ("TCP up, host's client", Client::Host, tcp(false, None)),
        ("TCP down, host's client", Client::Host, tcp(true, None)),
        ("TCP up, guest's client", Client::Guest, tcp(true, None)),
        ("TCP down, guest's client", Client::Guest, tcp(false, None)),
        ("TCP up, 4 streams", Client::Host, tcp(false, Some(4))),
        ("TCP down, 4 streams", Client::Host, tcp(true, Some(4))),
    ] {
        // Between two instances there is no host whose client could start.
        if matches!((peer, client), (Against::Itself, Client::Guest)) {
            continue;
        }
        rows.push(tcp_row(qemu, peer, name, client, &test, options)?);
    }
    for (name, size, reverse) in [
        ("UDP up", UDP_SIZE, false),
        ("UDP down", UDP_SIZE, true),
        ("UDP up, 8 KB", UDP_LARGE, false),
        ("UDP down, 8 KB", UDP_LARGE, true),
    ] {
        rows.push(udp_row(qemu, peer, name, size, reverse, options)?);
    }
    rows.push(rr_row(qemu, peer, options)?);
    Ok(rows)
}

/// Who starts the test.
#[derive(Clone, Copy)]
enum Client {
    Host,
    Guest,
}

fn measure(
    qemu: &mut Qemu,
    peer: &Against<'_>,
    client: Client,
    test: &IperfTest,
) -> Result<Result<Figures>> {
    let reports = match (peer, client) {
        (Against::Host(peer), Client::Host) => peer.host_client(qemu, test),
        (Against::Host(peer), Client::Guest) => peer.guest_client(qemu, test),
        (Against::Itself, _) => pair::measure(&mut qemu.console, test),
    };
    qemu.console.check_alive()?;
    Ok(reports.and_then(|r| match test.udp {
        Some(_) => r.agreed(),
        None => r.agreed_tcp(),
    }))
}

fn tcp_row(
    qemu: &mut Qemu,
    peer: &Against<'_>,
    name: &str,
    client: Client,
    test: &IperfTest,
    options: &Options,
) -> Result<Row> {
    ui::step(name);
    let mut row = Row::new(name, false);
    match measure(qemu, peer, client, test)? {
        Ok(figures) => {
            row.figures = figures;
            let mbits = figures.mbits();
            if mbits < options.floor {
                row.failure = Some(format!("{mbits:.0} Mbit/s, below {:.0}", options.floor));
            }
        }
        Err(e) => row.failure = Some(format!("{e:#}")),
    }
    Ok(row)
}

/// The highest rate with less than `LOSS_MAX` lost: doubles the rate while it is carried, then halves the gap.
fn udp_row(
    qemu: &mut Qemu,
    peer: &Against<'_>,
    name: &str,
    size: u64,
    reverse: bool,
    options: &Options,
) -> Result<Row> {
    ui::step(format_args!(
        "{name} (searching the highest rate under {LOSS_MAX} % loss)"
    ));
    let mut row = Row::new(name, true);
    let mut search = Search::new(UDP_START);
    for _ in 0..UDP_TRIALS {
        let Some(rate) = search.next() else { break };
        let test = IperfTest {
            seconds: options.seconds.min(2),
            reverse,
            streams: None,
            udp: Some((size, rate)),
        };
        match measure(qemu, peer, Client::Host, &test)? {
            Ok(figures) => {
                let carried = figures.loss() < LOSS_MAX;
                let reached = figures.mbits() * 1e6 > 0.9 * rate as f64;
                search.result(carried, reached);
                if carried && figures.mbits() > row.figures.mbits() {
                    row.figures = figures;
                }
            }
            Err(e) => {
                row.failure = Some(format!("at {} Mbit/s: {e:#}", rate / 1_000_000));
                return Ok(row);
            }
        }
    }
    if row.figures.received == 0 {
        row.failure = Some(format!(
            "loss of {LOSS_MAX} % or more even at the lowest rate"
        ));
    }
    Ok(row)
}

/// Searches the highest rate that is carried.
struct Search {
    carried: u64,
    lost: Option<u64>,
    trial: u64,
    done: bool,
}

impl Search {
    const LOWEST: u64 = 1_000_000;

    fn new(start: u64) -> Self {
        Self {
            carried: 0,
            lost: None,
            trial: start,
            done: false,
        }
    }

    fn next(&self) -> Option<u64> {
        (!self.done).then_some(self.trial)
    }

    /// Takes the outcome of the last trial: whether loss was low, and whether the sender reached the rate.
    fn result(&mut self, carried: bool, reached: bool) {
        if carried {
            self.carried = self.trial;
            // A sender that is the limit itself won't do more when asked for more.
            self.done = !reached;
        } else {
            self.lost = Some(self.trial);
        }
        self.trial = match self.lost {
            None => self.trial * 2,
            Some(lost) if self.carried == 0 => lost / 4,
            Some(lost) => self.carried.midpoint(lost),
        };
        let narrow = self.lost.is_some_and(|l| l - self.carried < l / 20);
        self.done |= narrow || self.trial < Self::LOWEST;
    }
}

fn rr_row(qemu: &mut Qemu, peer: &Against<'_>, options: &Options) -> Result<Row> {
    let name = "TCP round trips, 1 byte";
    ui::step(name);
    let mut row = Row::new(name, false);
    let rate = match peer {
        Against::Host(peer) => peer.round_trips(qemu, options.seconds),
        Against::Itself => pair::round_trips(&mut qemu.console, options.seconds),
    };
    match rate {
        Ok(rate) if rate > 0.0 => row.rate = Some(rate),
        Ok(_) => row.failure = Some("no round trips".into()),
        Err(e) => row.failure = Some(format!("{e:#}")),
    }
    qemu.console.check_alive()?;
    Ok(row)
}

impl Row {
    fn new(name: &str, udp: bool) -> Self {
        Self {
            name: name.into(),
            figures: Figures::default(),
            rate: None,
            udp,
            failure: None,
        }
    }

    fn cells(&self) -> Vec<String> {
        let f = &self.figures;
        let none = || "-".to_string();
        let count = |n: u64| if n == 0 { none() } else { ui::thousands(n) };
        let rate = match self.rate {
            Some(rate) => format!("{}/s", ui::thousands(rate as u64)),
            None if f.received == 0 => none(),
            None => format!("{} Mbit/s", ui::thousands(f.mbits() as u64)),
        };
        let loss = match self.udp && f.packets > 0 {
            true => format!("{:.2} %", f.loss()),
            false => none(),
        };
        let result = self.failure.as_ref().map_or("ok", |_| "FAILED");
        vec![
            self.name.clone(),
            rate,
            loss,
            count(f.sent),
            count(f.received),
            result.into(),
        ]
    }
}

/// Prints the table; an error names the rows that failed.
pub fn report(rows: &[Row]) -> Result<()> {
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    let columns = [
        ("test", Align::Left),
        ("rate", Align::Right),
        ("loss", Align::Right),
        ("bytes sent", Align::Right),
        ("bytes received", Align::Right),
        ("", Align::Left),
    ];
    print!("{}", ui::table(&columns, &cells));
    let failed: Vec<String> = rows
        .iter()
        .filter_map(|r| Some(format!("{}: {}", r.name, r.failure.as_ref()?)))
        .collect();
    if !failed.is_empty() {
        bail!(
            "{} of {} rows failed\n  {}",
            failed.len(),
            rows.len(),
            failed.join("\n  ")
        );
    }
    Ok(())
}

/// Says on what machine figures were taken.
pub fn machine_line(qemu: &Qemu) -> String {
    let version = std::process::Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .ok()
        .and_then(|o| String::from_utf8(o.stdout).ok())
        .and_then(|t| Some(t.lines().next()?.to_string()))
        .unwrap_or_default();
    format!(
        "{}; {version}; boot to prompt {:.2} s",
        host_line(),
        qemu.boot_time.as_secs_f64()
    )
}

/// The host's processor and kernel.
pub fn host_line() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|l| {
            l.strip_prefix("model name")?
                .split_once(": ")
                .map(|(_, m)| m)
        })
        .unwrap_or("unknown processor");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cpus} CPUs; Linux {}", kernel.trim())
}

/// Waits until the guest has its address.
pub fn wait_for_address(qemu: &mut Qemu) -> Result<()> {
    for _ in 0..50 {
        let text = qemu
            .console
            .run("ifconfig em0", std::time::Duration::from_secs(10))?;
        if text.lines().any(|l| l.trim_start().starts_with("inet ")) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Err(anyhow!("em0 gets no address")).context("DHCP")
}

/// How the guest is connected for `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// QEMU's user networking: no privileges.
    User,
    /// A tap in a network namespace that is made and removed: needs root.
    Tap,
    /// Two NICs in one guest on a hub.
    Pair,
}

/// Boots a guest that `make` makes from its NICs and command line, measures it, and powers it off.
pub fn measure_guest(
    make: impl Fn(Vec<Nic>, &str) -> Result<Guest>,
    image: &Image,
    net: Net,
    options: &Options,
) -> Result<()> {
    let dir = image::work_dir("run")?;
    let netns = match net {
        Net::Tap => Some(Netns::with_tap()?),
        Net::User | Net::Pair => None,
    };
    let peer = match (&netns, net) {
        (Some(ns), _) => Some(Peer::tap(ns)),
        (None, Net::Pair) => None,
        (None, _) => Some(Peer::user()?),
    };
    let guest = match &peer {
        Some(peer) => make(vec![peer.nic()], &peer.append())?,
        None => pair::guest(&make(Vec::new(), "")?, None),
    };
    ui::step(format_args!(
        "booting {} with {} CPUs, {} of memory, under {}",
        guest.machine, guest.smp, guest.mem, guest.accel
    ));
    let mut qemu = guest.boot(image, netns.as_ref(), &dir)?;
    ui::step(format_args!(
        "prompt after {:.2} s",
        qemu.boot_time.as_secs_f64()
    ));
    wait_for_address(&mut qemu)?;
    let against = match &peer {
        Some(peer) => Against::Host(peer),
        None => Against::Itself,
    };
    let rows = run(&mut qemu, &against, options)?;
    let machine = machine_line(&qemu);
    let ended = qemu.poweroff();
    println!("{machine}");
    report(&rows)?;
    ended.context("the guest does not power off as it should")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the search against a path that carries `limit`, with a sender that can do `sender`.
    fn find(limit: u64, sender: u64) -> (u64, u32) {
        let mut search = Search::new(UDP_START);
        let mut trials = 0;
        while let Some(rate) = search.next() {
            trials += 1;
            let sent = rate.min(sender);
            search.result(sent <= limit, sent as f64 > 0.9 * rate as f64);
            assert!(trials < 40);
        }
        (search.carried, trials)
    }

    #[test]
    fn the_search_ends_near_the_highest_rate_that_is_carried() {
        for limit in [
            7_000_000,
            50_000_000,
            90_000_000,
            333_000_000,
            2_000_000_000,
        ] {
            let (found, _) = find(limit, u64::MAX);
            assert!(
                found <= limit && found as f64 > limit as f64 * 0.9,
                "{found} of {limit}"
            );
        }
    }

    #[test]
    fn a_sender_that_is_the_limit_ends_the_search() {
        let (found, trials) = find(1_000_000_000, 150_000_000);
        assert!(found >= 150_000_000 && trials < 5);
    }

    #[test]
    fn a_row_that_failed_fails_the_table() {
        let mut row = Row::new("TCP up", false);
        assert!(report(&[row.clone()]).is_ok());
        row.failure = Some("nothing arrived".into());
        let e = report(&[row]).unwrap_err().to_string();
        assert!(e.contains("TCP up: nothing arrived"));
    }
}
