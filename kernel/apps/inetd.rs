//! The small services: echo (RFC 862), discard (RFC 863), chargen (RFC 864), over TCP and UDP.
//!
//! FreeBSD: usr.sbin/inetd/builtins.c

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use sys::errno::Errno;
use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use sys::kern::uipc_syscalls::SocketHandle;
use sys::socket::{MsgFlags, SockType};

use crate::apps::Env;
use crate::apps::io::{self, Failure, call};
use crate::outln;

const USAGE: &str = "usage: inetd [echo[:port]] [discard[:port]] [chargen[:port]]\n";

/// Connections served at a time by one service; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Service {
    Echo,
    Discard,
    Chargen,
}

/// Runs `inetd` until interrupted. Without words it serves everything at the usual ports.
pub fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let default = ["echo", "discard", "chargen"].map(String::from);
    let words = match env.operands() {
        [] => &default[..],
        words => words,
    };
    let mut threads = Vec::new();
    for word in words {
        let (service, port) = parse(word)?;
        let listener = io::listen(env, port)?;
        let datagrams = io::bound(env, SockType::Dgram, port)?;
        outln!(env, "listening on {port}");
        let tcp = env.clone();
        threads.push(spawn("inetd", move || accept(&tcp, service, &listener))?);
        let udp = env.clone();
        threads.push(spawn("inetd", move || answer(&udp, service, &datagrams))?);
    }
    for thread in threads {
        thread.join();
    }
    Err(Failure::Interrupted)
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<ThreadHandle, Failure> {
    Ok(kthread_add(name, Pri::PUSER, None, f))
}

fn parse(word: &str) -> Result<(Service, u16), Failure> {
    let (name, port) = match word.split_once(':') {
        Some((name, port)) => (name, Some(io::number("port", port, 1, 65535)? as u16)),
        None => (word, None),
    };
    let (service, usual) = match name {
        "echo" => (Service::Echo, 7),
        "discard" => (Service::Discard, 9),
        "chargen" => (Service::Chargen, 19),
        _ => return Err(Failure::Usage(format!("unknown service: {name}"))),
    };
    Ok((service, port.unwrap_or(usual)))
}

fn accept(env: &Env, service: Service, listener: &SocketHandle) {
    let mut connections: Vec<ThreadHandle> = Vec::new();
    while !env.interrupted() {
        let so = match io::accept(env, listener) {
            Ok((so, _)) => so,
            Err(Failure::Interrupted) => break,
            Err(failure) => {
                outln!(env, "inetd: {failure}");
                continue;
            }
        };
        loop {
            connections.retain(|thread| !thread.is_done());
            if connections.len() < MAX_CONNECTIONS || env.interrupted() {
                break;
            }
            env.sleep(io::POLL);
        }
        let env_of_thread = env.clone();
        // What ends a connection is the peer's affair.
        match spawn("inetd", move || {
            let _ = serve(&env_of_thread, service, &so);
        }) {
            Ok(thread) => connections.push(thread),
            Err(failure) => outln!(env, "inetd: {failure}"),
        }
    }
    for thread in connections {
        thread.join();
    }
}

fn serve(env: &Env, service: Service, so: &SocketHandle) -> Result<(), Failure> {
    let mut buffer = vec![0; 64 * 1024];
    match service {
        Service::Echo => loop {
            let n = io::read(env, so, &mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            io::write_all(env, so, &buffer[..n])?;
        },
        Service::Discard => {
            while io::read(env, so, &mut buffer)? > 0 {}
            Ok(())
        }
        Service::Chargen => {
            let text = chargen_lines(0, 64);
            loop {
                io::write_all(env, so, &text)?;
            }
        }
    }
}

fn answer(env: &Env, service: Service, so: &SocketHandle) {
    let mut buffer = vec![0; 65536];
    let mut line = 0;
    while !env.interrupted() {
        let (n, from) = match so.recvfrom(&mut buffer, MsgFlags::empty()) {
            Ok((n, Some(from))) => (n, from),
            Ok((_, None)) | Err(Errno::EAGAIN | Errno::ECONNREFUSED) => continue,
            Err(errno) => {
                if errno != Errno::EINTR {
                    outln!(env, "inetd: {}", call("recvfrom")(errno));
                }
                return;
            }
        };
        // Answering a service would never end (FreeBSD's check_loop).
        if [7, 9, 13, 19, 37].contains(&from.port()) {
            continue;
        }
        // A datagram that cannot be sent is a datagram lost.
        let _ = match service {
            Service::Echo => so.sendto(&buffer[..n], MsgFlags::DONTWAIT, &from),
            Service::Discard => Ok(0),
            Service::Chargen => {
                line += 1;
                so.sendto(&chargen_lines(line, 1), MsgFlags::DONTWAIT, &from)
            }
        };
    }
}

/// `count` lines of the rotating pattern, from line `first` on.
fn chargen_lines(first: usize, count: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(count * 74);
    for line in first..first + count {
        text.extend((0..72).map(|column| b' ' + ((line + column) % 95) as u8));
        text.extend_from_slice(b"\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_names_and_ports() {
        assert_eq!(parse("echo").unwrap(), (Service::Echo, 7));
        assert_eq!(parse("chargen:9999").unwrap(), (Service::Chargen, 9999));
        assert!(parse("echo:0").is_err());
        assert!(parse("time").is_err());
    }

    #[test]
    fn chargen_rotates_by_one_each_line() {
        let text = chargen_lines(94, 2);
        assert_eq!(text.len(), 148);
        assert_eq!(&text[..3], b"~ !");
        assert_eq!(&text[74..77], b" !\"");
        assert!(text.ends_with(b"\r\n"));
    }
}
