//! Small commands about the machine.
//!
//! FreeBSD: sbin/dmesg, sbin/reboot, usr.bin/uname, bin/sleep, bin/ps, bin/kenv, usr.bin/w

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use sys::kern::kern_thread::{ThreadState, threads};
use sys::kern::subr_prf;
use sys::machine;
use sys::param::OSTYPE;
use sys::sysctl;

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::outln;
use crate::shell::getopt::Getopt;

/// Refuses words and options.
fn alone(env: &Env) -> Result<(), Failure> {
    match env.operands().first() {
        None => Ok(()),
        Some(_) => Err(Failure::Usage(String::new())),
    }
}

pub(super) fn dmesg(env: &Env) -> i32 {
    let result = alone(env).map(|()| env.out.write(&subr_prf::dmesg()));
    io::finish(env, "usage: dmesg\n", result)
}

pub(super) fn poweroff(env: &Env) -> i32 {
    match alone(env) {
        Ok(()) => machine::poweroff(0),
        Err(failure) => io::finish(env, "usage: poweroff\n", Err(failure)),
    }
}

pub(super) fn reboot(env: &Env) -> i32 {
    match alone(env) {
        Ok(()) => machine::reboot(),
        Err(failure) => io::finish(env, "usage: reboot\n", Err(failure)),
    }
}

pub(super) fn sleep(env: &Env) -> i32 {
    let result = match env.operands() {
        [word] => io::seconds("time interval", word).and_then(|time| {
            if env.sleep(time) {
                Err(Failure::Interrupted)
            } else {
                Ok(())
            }
        }),
        _ => Err(Failure::Usage(String::new())),
    };
    io::finish(env, "usage: sleep seconds\n", result)
}

pub(super) fn uptime(env: &Env) -> i32 {
    let result = alone(env).map(|()| {
        let up = machine::sbinuptime().as_s();
        let (days, hours, minutes, seconds) = (up / 86400, up / 3600 % 24, up / 60 % 60, up % 60);
        let mut text = String::from("up ");
        if days > 0 {
            text += &format!("{days} day{}, ", if days == 1 { "" } else { "s" });
        }
        if hours > 0 {
            text += &format!("{hours}:{minutes:02}");
        } else if minutes > 0 {
            text += &format!("{minutes} min{}", if minutes == 1 { "" } else { "s" });
        } else {
            text += &format!("{seconds} sec{}", if seconds == 1 { "" } else { "s" });
        }
        outln!(env, "{text}, {} CPUs", machine::ncpus());
    });
    io::finish(env, "usage: uptime\n", result)
}

pub(super) fn uname(env: &Env) -> i32 {
    const RELEASE: &str = env!("CARGO_PKG_VERSION");
    const MACHINE: &str = "amd64";
    let mut parts = Vec::new();
    let mut getopt = Getopt::new(&env.args, "amnrsv");
    for option in getopt.by_ref() {
        match option {
            Ok(('a', _)) => parts.extend([OSTYPE, RELEASE, MACHINE]),
            Ok(('m', _)) => parts.push(MACHINE),
            Ok(('n', _)) => parts.push("localhost"),
            Ok(('r' | 'v', _)) => parts.push(RELEASE),
            Ok((_, _)) => parts.push(OSTYPE),
            Err(reason) => {
                return io::finish(env, "usage: uname [-amnrsv]\n", Err(Failure::Usage(reason)));
            }
        }
    }
    if parts.is_empty() {
        parts.push(OSTYPE);
    }
    outln!(env, "{}", parts.join(" "));
    0
}

pub(super) fn kenv(env: &Env) -> i32 {
    match env.operands() {
        [] => {
            for (name, value) in sysctl::kenv().all() {
                outln!(env, "{name}=\"{value}\"");
            }
            0
        }
        [name] => match sysctl::kenv().get(name) {
            Some(value) => {
                outln!(env, "{value}");
                0
            }
            None => {
                outln!(env, "kenv: unable to get {name}");
                1
            }
        },
        _ => io::finish(
            env,
            "usage: kenv [variable]\n",
            Err(Failure::Usage(String::new())),
        ),
    }
}

pub(super) fn ps(env: &Env) -> i32 {
    let result = alone(env).map(|()| {
        outln!(env, "  TID CPU PRI STATE  WMESG       SWITCHES COMMAND");
        for thread in threads() {
            let state = match thread.state() {
                ThreadState::Inactive => continue,
                ThreadState::Running => "run",
                ThreadState::RunQueue => "runq",
                ThreadState::Sleeping => "sleep",
                ThreadState::Blocked => "lock",
            };
            outln!(
                env,
                "{:>6} {:>2} {:>3} {state:<6} {:<10} {:>9} {}",
                thread.tid(),
                thread.cpu(),
                thread.priority().0,
                thread.wmesg(),
                thread.switches(),
                thread.name()
            );
        }
    });
    io::finish(env, "usage: ps\n", result)
}
