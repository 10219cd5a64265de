//! Moves bytes over one TCP connection and prints their SHA-256, for the other end to compare.

use alloc::string::String;
use alloc::vec;

use sha2::{Digest, Sha256};
use sys::kern::uipc_syscalls::SocketHandle;
use sys::socket::{Shutdown, SockAddr};

use crate::apps::Env;
use crate::apps::io::{self, Failure, Family, call};
use crate::outln;
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: digest recv [-c host] port
       digest send [-c host] port bytes [seed]
";

/// Bytes handled at a time.
const BLOCK: usize = 128 * 1024;

/// Runs `digest`.
pub fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    // The direction comes first; options follow it.
    let words = env.operands();
    let mut client = None;
    let mut getopt = Getopt::new(words, "c:");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('c', host) => client = Some(io::host_of(&env.vnet, host, Family::Any)?),
            (other, _) => return Err(Failure::Usage(alloc::format!("illegal option -- {other}"))),
        }
    }
    let port = |word: &String| Ok(io::number("port", word, 1, 65535)? as u16);
    match (words.first().map(String::as_str), getopt.operands()) {
        (Some("recv"), [port_word]) => {
            let so = open(env, client, port(port_word)?)?;
            receive(env, &so)
        }
        (Some("send"), [port_word, bytes, seed @ ..]) if seed.len() <= 1 => {
            let total = io::bytes("count of bytes", bytes)?;
            let seed = match seed {
                [seed] => io::number("seed", seed, 0, u64::MAX)?,
                _ => 1,
            };
            let so = open(env, client, port(port_word)?)?;
            send(env, &so, total, seed)
        }
        _ => Err(Failure::Usage(String::new())),
    }
}

/// Connects, or waits for one connection.
fn open(env: &Env, client: Option<SockAddr>, port: u16) -> Result<SocketHandle, Failure> {
    match client {
        Some(host) => io::connect(env, host, port),
        None => {
            let listener = io::listen(env, port)?;
            outln!(env, "listening on {port}");
            Ok(io::accept(env, &listener)?.0)
        }
    }
}

fn receive(env: &Env, so: &SocketHandle) -> Result<(), Failure> {
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut total = 0u64;
    loop {
        let n = io::read(env, so, &mut block)?;
        if n == 0 {
            break;
        }
        hash.update(&block[..n]);
        total += n as u64;
    }
    outln!(
        env,
        "digest: received {total} sha256 {}",
        hex(&hash.finalize())
    );
    Ok(())
}

fn send(env: &Env, so: &SocketHandle, total: u64, seed: u64) -> Result<(), Failure> {
    let mut hash = Sha256::new();
    let mut noise = Noise(seed);
    let mut block = vec![0; BLOCK];
    let mut left = total;
    while left > 0 {
        let n = left.min(BLOCK as u64) as usize;
        noise.fill(&mut block[..n]);
        hash.update(&block[..n]);
        io::write_all(env, so, &block[..n])?;
        left -= n as u64;
    }
    so.shutdown(Shutdown::Write).map_err(call("shutdown"))?;
    // The peer closes when it has everything.
    while io::read(env, so, &mut block)? > 0 {}
    outln!(env, "digest: sent {total} sha256 {}", hex(&hash.finalize()));
    Ok(())
}

/// Bytes that do not compress and do not repeat (SplitMix64).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, into: &mut [u8]) {
        for word in into.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let len = word.len();
            word.copy_from_slice(&z.to_le_bytes()[..len]);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use core::fmt::Write;
    let mut text = String::new();
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_printed_as_sha256sum_prints_it() {
        assert_eq!(
            hex(&Sha256::digest(b"abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn noise_depends_on_its_seed_alone() {
        let (mut a, mut b, mut c) = ([0; 24], [0; 24], [0; 24]);
        Noise(7).fill(&mut a);
        Noise(7).fill(&mut b);
        Noise(8).fill(&mut c);
        assert_eq!(a, b);
        assert_ne!(a, c);
    }
}
