//! setkey: shows and changes the secrets that TCP-MD5 signs with.
//!
//! FreeBSD: sbin/setkey
//! Differs from FreeBSD: the operations behind `-c` are words of the command line, since the shell has no pipes.

use alloc::format;

use netinet::vnet::inet_of;
use sys::errno::Errno;

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: setkey -c 'operation ... ;'
       setkey -D
       setkey -F
";

/// Runs `setkey`.
pub(super) fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let mut mode = None;
    let mut getopt = Getopt::new(&env.args, "cDF");
    for option in getopt.by_ref() {
        let (letter, _) = option.map_err(Failure::Usage)?;
        if mode.replace(letter).is_some() {
            return Err(Failure::Usage("one of -c, -D and -F".into()));
        }
    }
    let Some(inet) = inet_of(&env.vnet) else {
        return Err(Failure::Other(format!("socket: {}", Errno::EAFNOSUPPORT)));
    };
    let keydb = &inet.tcp.keydb;
    match (mode, getopt.operands()) {
        (Some('c'), words) if !words.is_empty() => {
            let out = keydb.setkey(&words.join(" ")).map_err(Failure::Other)?;
            env.out.write(&out);
        }
        (Some('D'), []) => env.out.write(&keydb.dump()),
        (Some('F'), []) => keydb.flush(),
        _ => return Err(Failure::Usage("one of -c, -D and -F".into())),
    }
    Ok(())
}
