//! IPv6 between a guest and others: an address by router advertisement, and a Linux host as neighbour and as router.

use crate::console::Console;
use crate::guest::count;
use crate::image::Image;
use crate::netns::{self, Netns};
use crate::peer::{IperfTest, Peer};
use crate::proc;
use crate::qemu::{Guest, Qemu};
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// Limit for a command in the guest that does not take long.
const LIMIT: Duration = Duration::from_secs(15);
/// Limit for what takes the guest some exchanges with others.
const PATIENCE: Duration = Duration::from_secs(20);
/// QEMU's router on user networking, by its address and by that of the link.
const USER_ROUTER: [&str; 2] = ["fec0::2", "fe80::2%em0"];
/// Rate and size of datagrams that travel in fragments.
const LARGE: (u64, u64) = (8192, 20_000_000);
/// Largest packet on the far side of the router.
const FAR_MTU: u32 = netns::FAR_MTU;
/// Pings that are under way while the neighbour vanishes and comes back, five a second.
const PINGS: u64 = 75;
const SEED: u64 = 6;

/// A guest on user networking, which is told nothing of IPv6 but to listen to routers.
pub fn autoconf(guest: &Guest, image: &Image, dir: &Path) -> Result<String> {
    let peer = Peer::user()?;
    let guest = Guest {
        nics: vec![peer.nic()],
        append: "em0_ipv6=accept_rtadv".into(),
        ..guest.clone()
    };
    let mut qemu = guest.boot(image, None, dir)?;
    let console = &mut qemu.console;
    let began = Instant::now();
    let address = wait_for_address(console, |line| line.contains(" autoconf"))?;
    let took = began.elapsed();
    let routes = console.run("netstat -rn -f inet6", LIMIT)?;
    let default = routes.lines().find(|line| line.starts_with("default "));
    if default.is_none_or(|line| !line.contains("fe80::2%em0")) {
        bail!("no default route by the router's link-local address:\n{routes}");
    }
    for router in USER_ROUTER {
        ping(console, router)?;
    }
    qemu.poweroff()?;
    Ok(format!(
        "{address} {:.1} s after the prompt, its router answers",
        took.as_secs_f64()
    ))
}

/// A guest with a Linux host as neighbour on a tap, and another one behind that.
pub fn neighbour(guest: &Guest, image: &Image, dir: &Path, file: &Path, s: u64) -> Result<String> {
    let netns = Netns::with_tap()?;
    netns.speak_ip6()?;
    let far = netns.beyond()?;
    let peer = Peer::tap6(&netns);
    let guest = Guest {
        nics: vec![peer.nic()],
        append: format!(
            "em0={}/64 ipv6_defaultrouter={}",
            netns::GUEST6,
            netns::HOST6
        ),
        ..guest.clone()
    };
    let mut qemu = guest.boot(image, Some(&netns), dir)?;
    let is_ours = |line: &str| line.contains(&format!("inet6 {} ", netns::GUEST6));
    wait_for_address(&mut qemu.console, is_ours)?;
    ping(&mut qemu.console, netns::HOST6).context("the guest pings the host")?;
    ping_from_host(&netns).context("the host pings the guest")?;
    let size = file.metadata()?.len();
    let up = peer.send_hashed(&mut qemu, file).context("to the guest")?;
    let down = peer
        .receive_hashed(&mut qemu, size, SEED)
        .context("from the guest")?;
    let tcp = streams(&mut qemu, &peer, s)?;
    datagrams(&mut qemu, &peer, s)?;
    let gone = vanish(&mut qemu.console, &netns).context("a neighbour that vanishes")?;
    let sent = beyond(&mut qemu, &far, s).context("a path that takes less")?;
    qemu.poweroff()?;
    let mbits = |time: Duration| (size * 8) as f64 / time.as_secs_f64() / 1e6;
    Ok(format!(
        "hashed {:.0} up, {:.0} Mbit/s down; iperf3 {:.0} up, {:.0} Mbit/s down; neighbour given up after {:.1} s; \
         {sent} bytes over a path of {FAR_MTU}",
        mbits(up),
        mbits(down),
        tcp[0],
        tcp[1],
        gone.as_secs_f64()
    ))
}

/// Waits for an address that `fits` says yes to and that is checked for duplicates; returns it.
fn wait_for_address(console: &mut Console, fits: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = console.run("ifconfig em0 inet6", LIMIT)?;
        let ready = |line: &&str| fits(line) && !line.contains(" tentative");
        if let Some(line) = text.lines().find(ready) {
            let address = line.split_whitespace().nth(1);
            return address.map(String::from).context("no address in the line");
        }
        if Instant::now() > deadline {
            bail!("em0 has no such address:\n{text}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The guest pings an address; every answer must come.
fn ping(console: &mut Console, address: &str) -> Result<()> {
    let text = console.run(&format!("ping6 -c 3 -i 0.1 {address}"), LIMIT)?;
    if !text.contains(" 3 packets received") || !text.contains(" hlim=") {
        bail!("{address} does not answer:\n{text}");
    }
    Ok(())
}

fn ping_from_host(netns: &Netns) -> Result<()> {
    let exe = std::env::current_exe()?;
    let mut command = netns.command(&exe.to_string_lossy());
    command.args(["ping6-once", netns::GUEST6]);
    proc::run(&mut command, LIMIT).map(drop)
}

/// The pinging program: sends one echo request, and ends well if the answer is the same.
pub fn ping6_once(address: &str) -> Result<()> {
    let address: Ipv6Addr = address.parse()?;
    let fd = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::IcmpV6,
    )?;
    // A raw socket is written and read as one of datagrams.
    let so = UdpSocket::from(fd);
    so.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut request = vec![128, 0, 0, 0, 0x62, 0x73, 0, 1];
    request.extend((0..56).map(|i| i as u8));
    so.send_to(&request, SocketAddrV6::new(address, 0, 0, 0))?;
    let deadline = Instant::now() + PATIENCE;
    let mut answer = [0; 2048];
    while Instant::now() < deadline {
        let (len, from) = so.recv_from(&mut answer).context("no answer")?;
        if answer[0] == 129 && from.ip() == address && answer[4..len] == request[4..] {
            return Ok(());
        }
    }
    bail!("no answer from {address}")
}

/// iperf3 each way, the client at the host and in the guest; Mbit/s to the guest and from it.
fn streams(qemu: &mut Qemu, peer: &Peer<'_>, seconds: u64) -> Result<[f64; 2]> {
    let test = IperfTest {
        seconds,
        ..IperfTest::default()
    };
    let up = peer
        .host_client(qemu, &test)
        .and_then(|reports| reports.agreed_tcp());
    let up = up.context("iperf3 to the guest")?;
    let down = peer
        .guest_client(qemu, &test)
        .and_then(|reports| reports.agreed_tcp());
    let down = down.context("iperf3 from the guest")?;
    Ok([up.mbits(), down.mbits()])
}

/// Datagrams that travel in fragments, each way.
fn datagrams(qemu: &mut Qemu, peer: &Peer<'_>, seconds: u64) -> Result<()> {
    let before = Fragments::read(&mut qemu.console)?;
    let test = IperfTest {
        seconds,
        udp: Some(LARGE),
        ..IperfTest::default()
    };
    let up = peer
        .host_client(qemu, &test)
        .and_then(|reports| reports.agreed());
    up.context("large datagrams to the guest")?;
    let down = peer
        .guest_client(qemu, &test)
        .and_then(|reports| reports.agreed());
    down.context("large datagrams from the guest")?;
    let after = Fragments::read(&mut qemu.console)?;
    // Six fragments carry 8 KB.
    if after.received < before.received + 600 || after.reassembled < before.reassembled + 100 {
        bail!("the guest received no fragments: {before:?}, then {after:?}");
    }
    if after.created < before.created + 600 {
        bail!("the guest sent no fragments: {before:?}, then {after:?}");
    }
    Ok(())
}

/// What the guest counts of fragments.
#[derive(Debug)]
struct Fragments {
    received: u64,
    reassembled: u64,
    created: u64,
}

impl Fragments {
    fn read(console: &mut Console) -> Result<Self> {
        let text = console.run("netstat -s -p ip6", LIMIT)?;
        Ok(Self {
            received: count(&text, " fragments received")?,
            reassembled: count(&text, " packets reassembled ok")?,
            created: count(&text, " fragments created")?,
        })
    }
}

/// The host's address goes while the guest pings it, and comes back. Returns how long the guest believed in it.
fn vanish(console: &mut Console, netns: &Netns) -> Result<Duration> {
    console.run("sysctl net.inet6.icmp6.nd6_delay=1", LIMIT)?;
    // The guest hears of the host by its question, so that it knows its address, and not whether it is heard.
    console.run("ndp -c", LIMIT)?;
    netns.forget_neighbours()?;
    ping_from_host(netns)?;
    let (state, _) = state_of_host(console)?;
    if !matches!(state, Some('S' | 'D')) {
        bail!("a neighbour that has asked is {state:?}, not stale");
    }
    netns.remove_address()?;
    let began = Instant::now();
    console.run(
        &format!("ping6 -q -c {PINGS} -i 0.2 {} &", netns::HOST6),
        LIMIT,
    )?;
    let mut seen = Vec::new();
    let mut said = String::new();
    // Asked alone, then as if it had never been there.
    while !(seen.contains(&Some('P')) && matches!(seen.last(), Some(Some('I') | None))) {
        if began.elapsed() > PATIENCE {
            bail!("the guest goes on believing in it; its states were {seen:?}");
        }
        let (state, text) = state_of_host(console)?;
        said += &text;
        if seen.last() != Some(&state) {
            seen.push(state);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let gone = began.elapsed();
    netns.restore_address()?;
    said += &console.run("wait", PATIENCE)?;
    let line = said.lines().find(|line| line.contains(" packets received"));
    let received = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    match received {
        Some(received) if (1..PINGS).contains(&received) => {}
        _ => bail!("of the pings under way {received:?} were answered:\n{said}"),
    }
    let (state, text) = state_of_host(console)?;
    if state != Some('R') {
        bail!("the neighbour is back, and is {state:?}:\n{text}");
    }
    console.run("sysctl net.inet6.icmp6.nd6_delay=5", LIMIT)?;
    Ok(gone)
}

/// The state of the host in the guest's table, by `ndp`'s letter, and all that was printed.
fn state_of_host(console: &mut Console) -> Result<(Option<char>, String)> {
    let text = console.run(&format!("ndp -n {}", netns::HOST6), LIMIT)?;
    let entry = text
        .lines()
        .find(|line| line.starts_with(&format!("{} ", netns::HOST6)) && !line.contains("no entry"));
    let state = entry
        .and_then(|line| line.split_whitespace().nth(4))
        .and_then(|word| word.chars().next());
    Ok((state, text))
}

/// A host behind the neighbour, by a link that takes less than ours: the guest must be told, and believe it. Returns the
/// bytes that arrived.
fn beyond(qemu: &mut Qemu, far: &Netns, seconds: u64) -> Result<u64> {
    let peer = Peer::beyond6(far);
    let test = IperfTest {
        seconds,
        ..IperfTest::default()
    };
    let figures = peer
        .guest_client(qemu, &test)
        .and_then(|reports| reports.agreed_tcp())?;
    let console = &mut qemu.console;
    let too_big = |console: &mut Console| -> Result<u64> {
        let text = console.run("netstat -s -p icmp6", LIMIT)?;
        let line = text
            .lines()
            .find(|l| l.trim_start().starts_with("packet too big: "));
        let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        number.ok_or_else(|| anyhow!("no packet too big was received:\n{text}"))
    };
    let heard = too_big(console)?;
    let list = console.run("sysctl net.inet.tcp.hostcache.list", LIMIT)?;
    let entry = list.lines().find(|line| line.starts_with(netns::FAR6));
    let mtu = entry.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    if mtu != Some(FAR_MTU) {
        bail!("the host cache does not know that the path takes {FAR_MTU}:\n{list}");
    }
    // Datagrams are cut to what TCP has learnt.
    let text = console.run(&format!("ping6 -c 2 -i 0.1 -s 4000 {}", netns::FAR6), LIMIT)?;
    if !text.contains(" 2 packets received") || too_big(console)? != heard {
        bail!("datagrams are still too large for the path:\n{text}");
    }
    Ok(figures.received)
}
