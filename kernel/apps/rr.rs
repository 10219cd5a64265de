//! Request and response over TCP: how many round trips a second, and how long one takes.
//!
//! The client sends a request and waits for as many bytes to come back; any echo service will do as server.

use alloc::vec;

use sys::machine;
use sys::socket::{IPPROTO_TCP, SockAddr, TCP_NODELAY};
use sys::time::Sbintime;

use crate::apps::Env;
use crate::apps::io::{self, Failure, Family, call};
use crate::outln;
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: rr -s [-1] [-p port]
       rr -c host [-p port] [-t seconds] [-n count] [-l bytes]
";

const DEFAULT_PORT: u16 = 5203;
const MAX_REQUEST: u64 = 65536;

struct Options {
    client: Option<SockAddr>,
    port: u16,
    once: bool,
    time: Sbintime,
    count: u64,
    size: usize,
}

/// Runs `rr`.
pub fn main(env: &Env) -> i32 {
    let result = parse(env).and_then(|options| match options.client {
        None => serve(env, &options),
        Some(host) => ask(env, host, &options),
    });
    io::finish(env, USAGE, result)
}

fn parse(env: &Env) -> Result<Options, Failure> {
    let mut server = false;
    let mut options = Options {
        client: None,
        port: DEFAULT_PORT,
        once: false,
        time: Sbintime::from_s(10),
        count: u64::MAX,
        size: 1,
    };
    let mut getopt = Getopt::new(&env.args, "sc:p:1t:n:l:");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('s', _) => server = true,
            ('c', host) => options.client = Some(io::host_of(&env.vnet, host, Family::Any)?),
            ('p', port) => options.port = io::number("port", port, 1, 65535)? as u16,
            ('1', _) => options.once = true,
            ('t', time) => options.time = io::seconds("time", time)?,
            ('n', count) => options.count = io::number("count", count, 1, u64::MAX)?,
            ('l', size) => options.size = io::number("length", size, 1, MAX_REQUEST)? as usize,
            (other, _) => return Err(Failure::Usage(alloc::format!("illegal option -- {other}"))),
        }
    }
    if server == options.client.is_some() || !getopt.operands().is_empty() {
        return Err(Failure::Usage("one of -s and -c host is needed".into()));
    }
    Ok(options)
}

fn serve(env: &Env, options: &Options) -> Result<(), Failure> {
    let listener = io::listen(env, options.port)?;
    outln!(env, "listening on {}", options.port);
    loop {
        let (so, peer) = io::accept(env, &listener)?;
        so.setsockopt_int(IPPROTO_TCP, TCP_NODELAY, 1)
            .map_err(call("setsockopt"))?;
        let mut buffer = vec![0; MAX_REQUEST as usize];
        let mut bytes = 0u64;
        let outcome = loop {
            match io::read(env, &so, &mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    bytes += n as u64;
                    if let Err(failure) = io::write_all(env, &so, &buffer[..n]) {
                        break Err(failure);
                    }
                }
                Err(failure) => break Err(failure),
            }
        };
        match outcome {
            Ok(()) => outln!(env, "rr: {peer}: {bytes} bytes"),
            Err(Failure::Interrupted) => return Err(Failure::Interrupted),
            Err(failure) if options.once => return Err(failure),
            Err(failure) => outln!(env, "rr: {peer}: {failure}"),
        }
        if options.once {
            return Ok(());
        }
    }
}

fn ask(env: &Env, host: SockAddr, options: &Options) -> Result<(), Failure> {
    let so = io::connect(env, host, options.port)?;
    so.setsockopt_int(IPPROTO_TCP, TCP_NODELAY, 1)
        .map_err(call("setsockopt"))?;
    let request = vec![b'r'; options.size];
    let mut response = vec![0; options.size];
    let start = machine::sbinuptime();
    let end = start + options.time;
    let mut now = start;
    let mut transactions = 0u64;
    let (mut shortest, mut longest) = (Sbintime::MAX, Sbintime::ZERO);
    while now < end && transactions < options.count && !env.interrupted() {
        io::write_all(env, &so, &request)?;
        if !io::read_exact(env, &so, &mut response)? {
            return Err(Failure::Other("the server closed the connection".into()));
        }
        let answered = machine::sbinuptime();
        let took = answered - now;
        shortest = shortest.min(took);
        longest = longest.max(took);
        now = answered;
        transactions += 1;
    }
    let elapsed = (now - start).as_us().max(1) as u64;
    outln!(
        env,
        "rr: {transactions} transactions in {}.{:02} s, {} per second",
        elapsed / 1_000_000,
        elapsed % 1_000_000 / 10_000,
        (u128::from(transactions) * 1_000_000 / u128::from(elapsed)) as u64
    );
    if let Some(mean) = elapsed.checked_div(transactions) {
        outln!(
            env,
            "rr: latency min/avg/max = {}/{}/{} us",
            shortest.as_us(),
            mean,
            longest.as_us()
        );
    }
    Ok(())
}
