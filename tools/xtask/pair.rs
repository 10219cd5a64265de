//! Two NICs in one guest, each in a stack instance of its own, joined by a hub inside QEMU: no host at all.

use crate::capture;
use crate::console::Console;
use crate::image::Image;
use crate::iperf::{Figures, Reports};
use crate::peer::IperfTest;
use crate::qemu::{Guest, Netdev, Nic};
use anyhow::{Context, Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name of the second instance.
const SECOND: &str = "b";
/// Addresses of em0 and em1.
const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
const PORT: u16 = 5201;
const GRACE: Duration = Duration::from_secs(30);

/// The guest with both NICs on a hub; frames that cross it go to the file returned.
pub fn guest(guest: &Guest, capture: Option<&Path>) -> Guest {
    let nic = |capture: Option<PathBuf>| Nic {
        netdev: Netdev::Hub(0),
        capture,
    };
    let mut pair = guest.clone();
    pair.nics = vec![nic(capture.map(Path::to_path_buf)), nic(None)];
    let [first, second] = ADDRESSES;
    let words = format!("vnet_em1={SECOND} em0={first}/24 em1={second}/24");
    pair.append = [&words, &guest.append].map(String::as_str).join(" ");
    pair
}

/// Moves `mib` MiB each way between the instances; the capture must parse and hold every byte.
pub fn check(make: &Guest, image: &Image, dir: &Path, mib: u64) -> Result<String> {
    let file = dir.join("pair.pcap");
    let mut qemu = guest(make, Some(&file)).boot(image, None, dir)?;
    ping(&mut qemu.console)?;
    let bytes = mib << 20;
    move_hashed(
        &mut qemu.console,
        bytes,
        &format!("vnet {SECOND} "),
        "",
        ADDRESSES[1],
    )?;
    move_hashed(
        &mut qemu.console,
        bytes,
        "",
        &format!("vnet {SECOND} "),
        ADDRESSES[0],
    )?;
    // Datagrams larger than a frame, so that the capture has fragments.
    let datagrams = IperfTest {
        seconds: 1,
        udp: Some((8192, 20_000_000)),
        ..IperfTest::default()
    };
    measure(&mut qemu.console, &datagrams)?
        .agreed()
        .context("datagrams of 8 KB")?;
    qemu.poweroff()?;
    let found = capture::check(&file).context("the capture")?;
    if found.largest_stream < bytes {
        bail!(
            "{bytes} bytes were moved, the capture's longest stream has {}",
            found.largest_stream
        );
    }
    if found.fragments == 0 || found.arp == 0 || found.udp + found.fragments == 0 {
        bail!("the capture lacks what was sent: {found:?}");
    }
    let _ = std::fs::remove_file(&file);
    Ok(format!(
        "{mib} MiB each way; capture of {} frames parses: {} TCP, {} fragments, {} ARP",
        found.frames, found.tcp, found.fragments, found.arp
    ))
}

fn ping(console: &mut Console) -> Result<()> {
    let text = console.run(&format!("ping -c 3 {}", ADDRESSES[1]), GRACE)?;
    if !text.contains(" 0.0% packet loss") {
        bail!("ping between the instances: {}", text.trim());
    }
    Ok(())
}

/// One side receives in the background, the other sends; both must come to the same hash.
fn move_hashed(
    console: &mut Console,
    bytes: u64,
    receiver: &str,
    sender: &str,
    to: &str,
) -> Result<()> {
    console.start(&format!("{receiver}digest recv {PORT} &"))?;
    console.expect("listening", GRACE)?;
    let limit = Duration::from_secs(60 + bytes / 500_000);
    console.start(&format!("{sender}digest send -c {to} {PORT} {bytes} 7"))?;
    let mut hashes = Vec::new();
    for _ in 0..2 {
        console.expect("digest: ", limit)?;
        let line = console.expect("\n", GRACE)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["sent" | "received", n, "sha256", hash] if n == bytes.to_string() => {
                hashes.push(hash.to_string());
            }
            _ => bail!("digest says: {line}"),
        }
    }
    if hashes[0] != hashes[1] {
        bail!(
            "different hashes at the two ends: {} and {}",
            hashes[0],
            hashes[1]
        );
    }
    wait_for_jobs(console)
}

/// Waits for what runs in the background, which else may still have its port when the next wants it.
fn wait_for_jobs(console: &mut Console) -> Result<()> {
    console.run("wait", GRACE).map(drop)
}

/// Waits until the second instance listens: a server under `-J` says nothing.
fn wait_for_listener(console: &mut Console) -> Result<()> {
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        let sockets = console.run(&format!("vnet {SECOND} netstat -an"), GRACE)?;
        let port = format!(".{PORT} ");
        if sockets
            .lines()
            .any(|l| l.contains(&port) && l.contains("LISTEN"))
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("the server of instance {SECOND} does not listen on port {PORT}")
}

/// Runs iperf3 between the instances, the server in the second.
pub fn measure(console: &mut Console, test: &IperfTest) -> Result<Reports> {
    console.start(&format!("vnet {SECOND} iperf3 -s -1 -J -p {PORT} &"))?;
    console.finish(GRACE)?;
    wait_for_listener(console)?;
    let command = format!(
        "iperf3 -J -i 0 -c {} -p {PORT} {}",
        ADDRESSES[1],
        test.words().join(" ")
    );
    // The server's report comes at any time around the client's prompt.
    let mark = console.mark();
    console.start(&command)?;
    console.finish(test.limit())?;
    let mut text = console.since(mark);
    let mut reports = objects(&text);
    for _ in 0..50 {
        if reports.len() >= 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        console.run("", GRACE)?;
        text = console.since(mark);
        reports = objects(&text);
    }
    wait_for_jobs(console)?;
    let mut figures = Vec::new();
    for report in reports {
        figures.push(Figures::parse(&report)?);
    }
    match figures[..] {
        [first, second] => Ok(Reports {
            host: first,
            guest: second,
            streams: test.streams.unwrap_or(1),
        }),
        _ => Err(anyhow!("not two reports in: {text}")),
    }
}

/// The JSON objects in a text.
fn objects(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let mut values =
            serde_json::Deserializer::from_str(&rest[at..]).into_iter::<serde_json::Value>();
        match values.next() {
            Some(Ok(_)) => {
                let end = at + values.byte_offset();
                found.push(rest[at..end].to_string());
                rest = &rest[end..];
            }
            _ => rest = &rest[at + 1..],
        }
    }
    found
}

/// Round trips per second between the instances.
pub fn round_trips(console: &mut Console, seconds: u64) -> Result<f64> {
    console.start(&format!("vnet {SECOND} rr -s -1 -p {PORT} &"))?;
    console.expect("listening", GRACE)?;
    let command = format!("rr -c {} -p {PORT} -t {seconds}", ADDRESSES[1]);
    let text = console.run(&command, Duration::from_secs(seconds) + GRACE)?;
    wait_for_jobs(console)?;
    crate::peer::parse_rr(&text).map(|(_, rate)| rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reports_among_other_lines_are_told_apart() {
        let text = "[1] 17\n{\"a\": {\"b\": 1}}\n# \nem0: {odd}\n{\"c\": 2}\n";
        assert_eq!(objects(text), ["{\"a\": {\"b\": 1}}", "{\"c\": 2}"]);
        assert!(objects("{\"a\": ").is_empty());
    }
}
