//! The host's side of a test: where it runs, how each end reaches the other, and the programs it runs.

use crate::iperf::{Figures, Reports};
use crate::netns::{self, Netns};
use crate::proc;
use crate::qemu::{Forward, Netdev, Nic, Qemu};
use anyhow::{Context, Result, anyhow, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Port the guest's servers listen on.
pub const GUEST_PORT: u16 = 5201;
/// What a test may take beyond its own time.
const GRACE: Duration = Duration::from_secs(30);
/// How the host looks from a guest on user networking.
const USER_HOST: &str = "10.0.2.2";

/// The host as the guest's peer.
pub struct Peer<'a> {
    netns: Option<&'a Netns>,
    /// The guest's address and port as the host sees them.
    pub guest: (String, u16),
    /// The host's address as the guest sees it.
    pub host: &'static str,
    /// Address that the host's servers bind to.
    bind: &'static str,
}

impl Peer<'_> {
    /// The peer over QEMU's user networking: all on the host's loopback.
    pub fn user() -> Result<Self> {
        Ok(Self {
            netns: None,
            guest: ("127.0.0.1".into(), free_port()?),
            host: USER_HOST,
            bind: "127.0.0.1",
        })
    }

    /// The peer at the other end of a tap, in its namespace.
    pub fn tap(netns: &Netns) -> Peer<'_> {
        Peer {
            netns: Some(netns),
            guest: (netns::GUEST.into(), GUEST_PORT),
            host: netns::HOST,
            bind: netns::HOST,
        }
    }

    /// The same by IPv6.
    pub fn tap6(netns: &Netns) -> Peer<'_> {
        Peer {
            netns: Some(netns),
            guest: (netns::GUEST6.into(), GUEST_PORT),
            host: netns::HOST6,
            bind: netns::HOST6,
        }
    }

    /// A host behind that one, by IPv6.
    pub fn beyond6(far: &Netns) -> Peer<'_> {
        Peer {
            host: netns::FAR6,
            bind: netns::FAR6,
            ..Peer::tap6(far)
        }
    }

    /// The guest's NIC for this peer.
    pub fn nic(&self) -> Nic {
        let host = self.guest.1;
        let forward = |proto| Forward {
            proto,
            host,
            guest: GUEST_PORT,
        };
        let netdev = match self.netns {
            None => Netdev::User(vec![forward("tcp"), forward("udp")]),
            Some(_) => Netdev::Tap(netns::TAP.into()),
        };
        Nic {
            netdev,
            capture: None,
        }
    }

    /// Words for the kernel's command line that give the guest its address.
    pub fn append(&self) -> String {
        match self.netns {
            // In the foreground, so that the prompt comes when the address is there.
            None => "em0=SYNCDHCP".into(),
            Some(_) => format!("em0={}/24", netns::GUEST),
        }
    }

    /// A command that runs at the host's end.
    pub fn command(&self, program: &str) -> Command {
        match self.netns {
            Some(ns) => ns.command(program),
            None => Command::new(program),
        }
    }

    /// iperf3's client at the host against a server in the guest.
    pub fn host_client(&self, qemu: &mut Qemu, test: &IperfTest) -> Result<Reports> {
        let mut last = None;
        // The server says nothing under -J, so that its being ready shows only by a connection made.
        for _ in 0..3 {
            qemu.console
                .start(&format!("iperf3 -s -1 -J -p {GUEST_PORT}"))?;
            std::thread::sleep(Duration::from_millis(150));
            let began = Instant::now();
            match self.run_host_client(test) {
                Ok(host) => {
                    let text = qemu
                        .console
                        .finish(GRACE)
                        .context("the guest's iperf3 server does not end")?;
                    let guest = Figures::parse(&text).context("the guest's iperf3 server")?;
                    return Ok(test.reports(host, guest));
                }
                Err(e) => {
                    qemu.console.check_alive()?;
                    let guest = qemu.console.interrupt();
                    let guest = guest.context("after the host's iperf3 client failed")?;
                    let e = e.context(format!("the guest says: {}", guest.trim()));
                    if began.elapsed() > Duration::from_secs(2) {
                        return Err(e);
                    }
                    last = Some(e);
                }
            }
        }
        Err(last.unwrap_or_else(|| anyhow!("no attempt")))
    }

    fn run_host_client(&self, test: &IperfTest) -> Result<Figures> {
        let (guest, port) = &self.guest;
        let mut command = self.command("iperf3");
        command.args(["-J", "-i", "0", "-c", guest, "-p", &port.to_string()]);
        command.args(test.words());
        let out = proc::start_piped(&mut command)?.output(test.limit())?;
        Figures::parse(&String::from_utf8_lossy(&out.stdout)).context("the host's iperf3 client")
    }

    /// iperf3's client in the guest against a server at the host.
    pub fn guest_client(&self, qemu: &mut Qemu, test: &IperfTest) -> Result<Reports> {
        let port = match self.netns {
            None => free_port()?,
            Some(_) => GUEST_PORT,
        };
        let mut command = self.command("iperf3");
        // Without -J first: only the plain server says when it listens.
        command.args(["-s", "-1", "-J", "-B", self.bind, "-p", &port.to_string()]);
        let server = proc::start_piped(&mut command)?;
        self.wait_for_listener(port)?;
        let words = test.words().join(" ");
        let text = qemu.console.run(
            &format!("iperf3 -J -i 0 -c {} -p {port} {words}", self.host),
            test.limit(),
        )?;
        let guest = Figures::parse(&text).context("the guest's iperf3 client")?;
        let out = server.output(GRACE)?;
        let host = Figures::parse(&String::from_utf8_lossy(&out.stdout))
            .context("the host's iperf3 server")?;
        Ok(test.reports(host, guest))
    }

    /// Waits until a server at the host listens, without connecting to it.
    fn wait_for_listener(&self, port: u16) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let wanted = format!(":{port:04X} 00000000:0000 0A");
        while Instant::now() < deadline {
            let mut tables = String::new();
            for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
                tables += &proc::run(self.command("cat").arg(table), GRACE).unwrap_or_default();
            }
            let listening = |l: &str| {
                l.contains(&wanted) || {
                    let mut words = l.split_whitespace().skip(1);
                    let local = words.next().unwrap_or_default();
                    local.ends_with(&format!(":{port:04X}")) && words.nth(1) == Some("0A")
                }
            };
            if tables.lines().any(listening) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the host's server does not listen on port {port}")
    }

    /// TCP transactions of one byte per second, the guest asking and an echo program at the host answering.
    pub fn round_trips(&self, qemu: &mut Qemu, seconds: u64) -> Result<f64> {
        let exe = std::env::current_exe()?;
        let mut command = self.command(&exe.to_string_lossy());
        command.args(["echo-once", self.bind]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut echo = proc::Process::start(&mut command)?;
        let stdout = echo.child().stdout.take();
        let mut lines = BufReader::new(stdout.ok_or_else(|| anyhow!("no pipe"))?).lines();
        let mut number = |what: &str| -> Result<u64> {
            let line = lines
                .next()
                .ok_or_else(|| anyhow!("the echo program ended"))??;
            let value = line.strip_prefix(what).map(str::trim).map(str::parse);
            value
                .and_then(Result::ok)
                .ok_or_else(|| anyhow!("the echo program says \"{line}\""))
        };
        let port = number("port")?;
        let limit = Duration::from_secs(seconds) + GRACE;
        let command = format!("rr -c {} -p {port} -t {seconds}", self.host);
        let text = qemu.console.run(&command, limit)?;
        let (count, rate) = parse_rr(&text)?;
        let echoed = number("echoed")?;
        echo.wait(GRACE)?;
        // The last answer may still be under way when the time is up.
        if echoed < count || echoed > count + 1 {
            bail!("the guest counts {count} transactions, the echo program {echoed}");
        }
        Ok(rate)
    }

    /// Sends a file to the guest, which must come to the same hash as `sha256sum` here.
    pub fn send_hashed(&self, qemu: &mut Qemu, file: &Path) -> Result<Duration> {
        let size = file.metadata()?.len();
        let expected = proc::run(
            Command::new("sha256sum").arg(file),
            Duration::from_secs(600),
        )?;
        let expected = first_word(&expected)?;
        qemu.console.start(&format!("digest recv {GUEST_PORT}"))?;
        qemu.console.expect("listening", GRACE)?;
        let began = Instant::now();
        let (guest, port) = &self.guest;
        let mut command = self.command("bash");
        let script = format!(
            "exec 3<>/dev/tcp/{guest}/{port}; cat '{}' >&3",
            file.display()
        );
        command.args(["-c", &script]);
        proc::run(&mut command, transfer_limit(size)).context("the host's sender")?;
        let text = qemu.console.finish(transfer_limit(size))?;
        let (bytes, hash) = parse_digest(&text)?;
        if bytes != size {
            bail!("{size} bytes were sent, the guest received {bytes}");
        }
        if hash != expected {
            bail!("the guest's hash {hash} is not sha256sum's {expected}");
        }
        Ok(began.elapsed())
    }

    /// Receives `size` bytes from the guest and compares its hash with `sha256sum`'s here.
    pub fn receive_hashed(&self, qemu: &mut Qemu, size: u64, seed: u64) -> Result<Duration> {
        qemu.console
            .start(&format!("digest send {GUEST_PORT} {size} {seed}"))?;
        qemu.console.expect("listening", GRACE)?;
        let began = Instant::now();
        let (guest, port) = &self.guest;
        let mut command = self.command("bash");
        let script = format!(
            "exec 3<>/dev/tcp/{guest}/{port}; \
             {{ tee /dev/fd/4 <&3 | wc -c >&2; }} 4> >(sha256sum); wait"
        );
        command.args(["-c", &script]);
        let out = proc::start_piped(&mut command)?.output(transfer_limit(size))?;
        let (hash, count) = (
            String::from_utf8_lossy(&out.stdout).into_owned(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        );
        let text = qemu.console.finish(GRACE)?;
        let (bytes, guest_hash) = parse_digest(&text)?;
        if count.trim() != size.to_string() || bytes != size {
            bail!(
                "of {size} bytes the guest sent {bytes} and {} arrived",
                count.trim()
            );
        }
        let hash = first_word(&hash)?;
        if guest_hash != hash {
            bail!("the guest's hash {guest_hash} is not sha256sum's {hash}");
        }
        Ok(began.elapsed())
    }
}

/// One test of iperf3, by its options.
#[derive(Clone, Debug, Default)]
pub struct IperfTest {
    /// Seconds.
    pub seconds: u64,
    /// The server sends.
    pub reverse: bool,
    /// Streams, if not one.
    pub streams: Option<u64>,
    /// Datagrams: size and rate in bits per second.
    pub udp: Option<(u64, u64)>,
}

impl IperfTest {
    /// Its options as words.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec!["-t".to_string(), self.seconds.to_string()];
        if self.reverse {
            words.push("-R".into());
        }
        if let Some(streams) = self.streams {
            words.extend(["-P".into(), streams.to_string()]);
        }
        if let Some((size, rate)) = self.udp {
            words.extend(["-u", "-l"].map(String::from));
            words.extend([size.to_string(), "-b".into(), rate.to_string()]);
        }
        words
    }

    /// How long it may take.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.seconds) + GRACE
    }

    fn reports(&self, host: Figures, guest: Figures) -> Reports {
        Reports {
            host,
            guest,
            streams: self.streams.unwrap_or(1),
        }
    }
}

/// A port of the loopback that is free for TCP and UDP.
pub fn free_port() -> Result<u16> {
    for _ in 0..50 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on the loopback")
}

/// The echo program: serves one connection on a port of its own choice, echoing what comes.
pub fn echo_once(bind: &str) -> Result<()> {
    let address: Ipv4Addr = bind.parse()?;
    let listener = TcpListener::bind(SocketAddr::from((address, 0)))?;
    println!("port {}", listener.local_addr()?.port());
    let (mut peer, _) = listener.accept()?;
    println!("echoed {}", echo(&mut peer)?);
    Ok(())
}

fn echo(peer: &mut TcpStream) -> Result<u64> {
    peer.set_nodelay(true)?;
    let mut bytes = [0; 4096];
    let mut echoed = 0;
    loop {
        match peer.read(&mut bytes) {
            Ok(0) | Err(_) => return Ok(echoed),
            Ok(n) => {
                if peer.write_all(&bytes[..n]).is_err() {
                    return Ok(echoed);
                }
                echoed += n as u64;
            }
        }
    }
}

/// Time for a transfer at one twentieth of the speed expected.
fn transfer_limit(bytes: u64) -> Duration {
    Duration::from_secs(60 + bytes / 500_000)
}

fn first_word(text: &str) -> Result<&str> {
    let word = text.split_whitespace().next();
    word.ok_or_else(|| anyhow!("sha256sum says nothing"))
}

/// `digest: received <bytes> sha256 <hex>` or `digest: sent …`.
pub fn parse_digest(text: &str) -> Result<(u64, String)> {
    let bad = || anyhow!("the guest's digest says: {}", text.trim());
    let mut lines = text.lines();
    let line = lines.find(|l| l.starts_with("digest: ") && l.contains(" sha256 "));
    let words: Vec<&str> = line.ok_or_else(bad)?.split_whitespace().collect();
    match words[..] {
        [_, "received" | "sent", bytes, "sha256", hash] => Ok((bytes.parse()?, hash.into())),
        _ => Err(bad()),
    }
}

/// `rr: <n> transactions in <s> s, <rate> per second`.
pub fn parse_rr(text: &str) -> Result<(u64, f64)> {
    let bad = || anyhow!("the guest's rr says: {}", text.trim());
    let mut lines = text.lines();
    let line = lines.find(|l| l.starts_with("rr: ") && l.contains("transactions"));
    let words: Vec<&str> = line.ok_or_else(bad)?.split_whitespace().collect();
    match words[..] {
        [
            "rr:",
            count,
            "transactions",
            "in",
            _,
            "s,",
            rate,
            "per",
            "second",
        ] => Ok((count.parse()?, rate.parse()?)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_programs_are_understood() {
        let (bytes, hash) = parse_digest("listening\ndigest: received 64 sha256 abc\n").unwrap();
        assert_eq!((bytes, hash.as_str()), (64, "abc"));
        let (count, rate) =
            parse_rr("rr: 12000 transactions in 3.00 s, 4000.0 per second").unwrap();
        assert_eq!((count, rate), (12000, 4000.0));
        assert!(parse_rr("rr: connect: Connection refused").is_err());
    }

    #[test]
    fn the_echo_program_counts_what_it_echoes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || {
            let mut s = TcpStream::connect(address).unwrap();
            for _ in 0..10 {
                s.write_all(b"x").unwrap();
                s.read_exact(&mut [0]).unwrap();
            }
        });
        let echoed = echo(&mut listener.accept().unwrap().0).unwrap();
        client.join().unwrap();
        assert_eq!(echoed, 10);
    }
}
