//! A console that nobody reads: the programs that write to it wait, and the network goes on.

use crate::image::Image;
use crate::peer::Peer;
use crate::qemu::Guest;
use crate::run;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Prints more than the line from the guest to us holds, when run this often.
const TALKATIVE: &str = "sysctl -a";
const TIMES: usize = 40;
/// A line that each run prints.
const LINE: &str = "\nhw.ncpu: ";
const ECHOES: usize = 200;
const LIMIT: Duration = Duration::from_secs(30);

/// Lets the guest's output pile up while it answers an echo client; then everything must have been printed.
pub fn check(guest: &Guest, image: &Image, dir: &Path) -> Result<String> {
    let peer = Peer::user()?;
    let guest = Guest {
        smp: 1,
        nics: vec![peer.nic()],
        append: peer.append(),
        ..guest.clone()
    };
    let mut qemu = guest.boot(image, None, dir)?;
    run::wait_for_address(&mut qemu)?;
    let server = format!("inetd echo:{} &", crate::peer::GUEST_PORT);
    qemu.console.run(&server, LIMIT)?;
    let mark = qemu.console.mark();
    qemu.console.pause_reading(true);
    for _ in 0..TIMES {
        qemu.console.send(&format!("{TALKATIVE}\r"))?;
    }
    std::thread::sleep(Duration::from_secs(1));

    let began = Instant::now();
    let echoed = echo(&peer);
    let took = began.elapsed();
    qemu.console.pause_reading(false);
    echoed.context("while nobody reads the console")?;

    let deadline = Instant::now() + LIMIT;
    loop {
        let text = qemu.console.since(mark);
        let lines = text.matches(LINE).count();
        if lines == TIMES {
            let rate = ECHOES as f64 / took.as_secs_f64();
            let kib = text.len() >> 10;
            qemu.poweroff()?;
            return Ok(format!("{rate:.0} round trips/s while {kib} KiB waited"));
        }
        if Instant::now() > deadline {
            bail!(
                "{TIMES} runs of `{TALKATIVE}`, but {lines} lines \"{}\"",
                LINE.trim()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn echo(peer: &Peer<'_>) -> Result<()> {
    let (host, port) = &peer.guest;
    let mut stream = TcpStream::connect((host.as_str(), *port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    let began = Instant::now();
    for i in 0..ECHOES {
        let mut byte = [i as u8];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        if byte != [i as u8] {
            bail!("the echo of {i} is {}", byte[0]);
        }
        if began.elapsed() > LIMIT {
            bail!("{i} round trips took {} s", LIMIT.as_secs());
        }
    }
    Ok(())
}
