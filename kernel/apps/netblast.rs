//! Sends UDP datagrams as fast as it can, or at a rate.
//!
//! FreeBSD: tools/tools/netrate/netblast, netsend

use alloc::vec;

use sys::errno::Errno;
use sys::kern::kern_synch::pause_sbt;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine;
use sys::socket::{MsgFlags, SockType};
use sys::time::Sbintime;

use crate::apps::Env;
use crate::apps::io::{self, Failure, Family, call};
use crate::outln;
use crate::shell::getopt::Getopt;

const USAGE: &str = "usage: netblast [-r packets_per_second] ip port payloadsize duration\n";

/// Send calls between looks at the clock.
const BURST: u64 = 32;

/// Runs `netblast`.
pub fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let mut rate = None;
    let mut getopt = Getopt::new(&env.args, "r:");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('r', word) => rate = Some(io::number("rate", word, 1, 100_000_000)?),
            (other, _) => return Err(Failure::Usage(alloc::format!("illegal option -- {other}"))),
        }
    }
    let [ip, port, size, duration] = getopt.operands() else {
        return Err(Failure::Usage("".into()));
    };
    let host = io::host_of(&env.vnet, ip, Family::Any)?;
    let to = io::with_port(host, io::number("port", port, 1, 65535)? as u16);
    let payload = vec![0xa5; io::number("payload size", size, 0, 65507)? as usize];
    let duration = io::seconds("duration", duration)?;
    let so =
        SocketHandle::socket(&env.vnet, to.family(), SockType::Dgram, 0).map_err(call("socket"))?;
    so.connect(&to).map_err(call("connect"))?;

    let start = machine::sbinuptime();
    let end = start + duration;
    let (mut calls, mut errors) = (0u64, 0u64);
    let mut now = start;
    while now < end && !env.interrupted() {
        for _ in 0..BURST {
            calls += 1;
            match so.send(&payload, MsgFlags::empty()) {
                Ok(_) => {}
                Err(
                    Errno::ENOBUFS | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::EHOSTDOWN,
                ) => errors += 1,
                Err(errno) => return Err(call("send")(errno)),
            }
        }
        now = machine::sbinuptime();
        if let Some(rate) = rate {
            let due = Sbintime::from_us((calls as u128 * 1_000_000 / u128::from(rate)) as i64);
            let ahead = start + due - now;
            if ahead > Sbintime::ZERO {
                pause_sbt("nblast", ahead);
                now = machine::sbinuptime();
            }
        }
    }
    let elapsed = (now - start).as_us().max(1) as u64;
    let per_second = |n: u64| (u128::from(n) * 1_000_000 / u128::from(elapsed)) as u64;
    let print_time = |name: &str, at: Sbintime| {
        outln!(
            env,
            "{name:<19}{}.{:09}",
            at.as_s(),
            at.as_ns() % 1_000_000_000
        );
    };
    outln!(env);
    print_time("start:", start);
    print_time("finish:", now);
    outln!(env, "send calls:        {calls}");
    outln!(env, "send errors:       {errors}");
    outln!(env, "approx send rate:  {} pps", per_second(calls - errors));
    outln!(
        env,
        "approx error rate: {}",
        if calls > errors {
            errors / (calls - errors)
        } else {
            0
        }
    );
    outln!(
        env,
        "approx throughput: {} bit/s",
        per_second((calls - errors) * payload.len() as u64) * 8
    );
    Ok(())
}
