//! A cable that is pulled and plugged in again: the guest notices, and a connection over it goes on where it was.

use crate::console::Console;
use crate::image::Image;
use crate::peer::{self, Peer};
use crate::qemu::{Guest, Qemu};
use crate::run;
use anyhow::{Context, Result, anyhow, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of the transfer that the cable is pulled out of.
const SIZE: u64 = 64 << 20;
const SEED: u64 = 7;
/// A pause of the receiver, so that the transfer is not over before the cable is out: 48 MiB in pieces of 64 KiB take 1.5 s.
const PAUSE: Duration = Duration::from_millis(2);
/// How long the cable is out.
const OUT: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(60);

/// Pulls the cable in the middle of a transfer from the guest and while nothing happens.
pub fn check(guest: &Guest, image: &Image, dir: &Path) -> Result<String> {
    let peer = Peer::user()?;
    let monitor = Listener::new(dir)?;
    let guest = Guest {
        nics: vec![peer.nic()],
        append: peer.append(),
        arguments: monitor.arguments(),
        ..guest.clone()
    };
    let mut qemu = guest.boot(image, None, dir)?;
    let mut cable = monitor.accept()?;
    run::wait_for_address(&mut qemu)?;
    let resumed = in_a_transfer(&mut qemu, &peer, &mut cable)?;
    at_rest(&mut qemu.console, &peer, &mut cable)?;
    qemu.poweroff()?;
    Ok(format!(
        "{} MiB arrived intact; bytes came {:.1} s after the cable was back",
        SIZE >> 20,
        resumed.as_secs_f64()
    ))
}

/// Returns how long after the cable's return the transfer went on.
fn in_a_transfer(qemu: &mut Qemu, peer: &Peer<'_>, cable: &mut Cable) -> Result<Duration> {
    let console = &mut qemu.console;
    let port = peer::GUEST_PORT;
    console.start(&format!("digest send {port} {SIZE} {SEED}"))?;
    console.expect("listening", LIMIT)?;
    let (host, port) = peer.guest.clone();
    let (at, arrivals) = mpsc::channel();
    let pulled = Arc::new(AtomicBool::new(false));
    let hurry = Arc::clone(&pulled);
    let receiver = thread::spawn(move || receive(&host, port, &at, &hurry));
    wait_for(&arrivals, |a| a.bytes > SIZE / 4).context("before the cable is pulled")?;
    cable.pull()?;
    pulled.store(true, Ordering::Relaxed);
    console.expect("em0: link state changed to DOWN", LIMIT)?;
    thread::sleep(OUT);
    let back = Instant::now();
    cable.plug()?;
    console.expect("em0: link state changed to UP", LIMIT)?;
    let resumed = wait_for(&arrivals, |a| a.when > back).context("after the cable is back")?;
    // More comes, so that the receiver must not wait for somebody who listens.
    drop(arrivals);
    let (bytes, hash) = receiver
        .join()
        .map_err(|_| anyhow!("the receiver panicked"))??;
    let text = console.finish(LIMIT)?;
    let (sent, sent_hash) = peer::parse_digest(&text)?;
    if (bytes, sent) != (SIZE, SIZE) || hash != sent_hash {
        bail!("of {SIZE} bytes {sent} were sent ({sent_hash}) and {bytes} arrived ({hash})");
    }
    Ok(resumed.when - back)
}

fn at_rest(console: &mut Console, peer: &Peer<'_>, cable: &mut Cable) -> Result<()> {
    let ping = format!("ping -c 1 -W 1000 {}", peer.host);
    for (plugged, status, answers) in [(false, "no carrier", "0"), (true, "active", "1")] {
        let turn = if plugged { Cable::plug } else { Cable::pull };
        let news = if plugged { "UP" } else { "DOWN" };
        let mark = console.mark();
        turn(cable)?;
        let deadline = Instant::now() + LIMIT;
        while !console
            .since(mark)
            .contains(&format!("link state changed to {news}"))
        {
            if Instant::now() > deadline {
                bail!("the guest does not notice that its link is {news}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        let text = console.run("ifconfig em0", LIMIT)?;
        if !text.contains(&format!("status: {status}")) {
            bail!("the link is {news}, but ifconfig says: {}", text.trim());
        }
        let text = console.run(&ping, LIMIT)?;
        if !text.contains(&format!(" {answers} packets received")) {
            bail!("the link is {news}, but ping says: {}", text.trim());
        }
    }
    Ok(())
}

/// So many bytes have arrived by then.
struct Arrival {
    when: Instant,
    bytes: u64,
}

fn wait_for(
    arrivals: &mpsc::Receiver<Arrival>,
    mut wanted: impl FnMut(&Arrival) -> bool,
) -> Result<Arrival> {
    loop {
        let arrival = arrivals
            .recv_timeout(LIMIT)
            .context("no more bytes arrive")?;
        if wanted(&arrival) {
            return Ok(arrival);
        }
    }
}

/// Reads until the end, at leisure until it is told to hurry; returns how much came, and its SHA-256.
fn receive(
    host: &str,
    port: u16,
    at: &Sender<Arrival>,
    hurry: &AtomicBool,
) -> Result<(u64, String)> {
    let mut hasher = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut to_hash = hasher.stdin.take().ok_or_else(|| anyhow!("no pipe"))?;
    let mut stream = TcpStream::connect((host, port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        to_hash.write_all(&buffer[..n])?;
        bytes += n as u64;
        let when = Instant::now();
        // Nobody may listen any more.
        let _ = at.send(Arrival { when, bytes });
        if !hurry.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
        }
    }
    drop(to_hash);
    let said = hasher.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let hash = said.split_whitespace().next().unwrap_or_default();
    Ok((bytes, hash.to_string()))
}

/// Where QEMU's monitor calls.
struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    fn new(dir: &Path) -> Result<Self> {
        let path = crate::wire::socket_path(dir, "monitor");
        let _ = std::fs::remove_file(&path);
        let socket =
            UnixListener::bind(&path).with_context(|| format!("can't bind {}", path.display()))?;
        Ok(Self { socket, path })
    }

    fn arguments(&self) -> Vec<String> {
        let chardev = format!("socket,id=mon,path={}", self.path.display());
        ["-chardev", &chardev, "-mon", "chardev=mon,mode=control"]
            .map(String::from)
            .to_vec()
    }

    fn accept(self) -> Result<Cable> {
        let (socket, _) = self.socket.accept()?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut cable = Cable(BufReader::new(socket));
        cable.run(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(cable)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The cable of em0, by QEMU's machine protocol.
struct Cable(BufReader<UnixStream>);

impl Cable {
    fn pull(&mut self) -> Result<()> {
        self.run(r#"{"execute":"set_link","arguments":{"name":"n0","up":false}}"#)
    }

    fn plug(&mut self) -> Result<()> {
        self.run(r#"{"execute":"set_link","arguments":{"name":"n0","up":true}}"#)
    }

    fn run(&mut self, command: &str) -> Result<()> {
        writeln!(self.0.get_mut(), "{command}")?;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                bail!("QEMU's monitor has hung up");
            }
            let said: serde_json::Value = serde_json::from_str(&line)?;
            if said.get("return").is_some() {
                return Ok(());
            }
            // A greeting and events come in between.
            if let Some(error) = said.get("error") {
                bail!("QEMU's monitor says to {command}: {error}");
            }
        }
    }
}
