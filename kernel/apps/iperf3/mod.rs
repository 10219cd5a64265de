//! iperf3: measures what the stack carries, against the unmodified iperf3 of any system.
//!
//! Speaks the wire protocol of iperf 3.x, which has no specification but its source: a TCP control
//! connection carries one-byte states ([`protocol::State`]) and length-prefixed JSON; each stream is a TCP
//! connection or a UDP flow beside it. One thread per stream moves data, the program's own thread keeps
//! the control connection and prints.

mod args;
mod client;
#[cfg(not(target_os = "none"))]
pub mod properties;
mod protocol;
mod report;
mod server;
mod stream;
mod test;

use crate::apps::{Env, spawn};
use crate::outln;

/// Runs `iperf3` with the words of `env`; returns its exit status.
pub fn main(env: &Env) -> i32 {
    let command = match args::parse(env.operands()) {
        Ok(command) => command,
        Err(args::Stop::Help) => {
            env.out.write(args::USAGE);
            return 0;
        }
        Err(args::Stop::Bad(reason)) => {
            outln!(env, "iperf3: parameter error - {reason}");
            env.out.write(args::USAGE);
            return 1;
        }
    };
    let (args::Command::Client(args::ClientOptions { display, .. })
    | args::Command::Server(args::ServerOptions { display, .. })) = &command;
    if display.verbose && !display.json {
        outln!(env, "iperf 3.12");
        outln!(
            env,
            "{} {} amd64",
            sys::param::OSTYPE,
            env!("CARGO_PKG_VERSION")
        );
    }
    match command {
        args::Command::Client(options) => status(env, client::run(env, &options)),
        args::Command::Server(options) if options.daemon => {
            spawn(env, "iperf3", move |env| {
                status(env, server::run(env, &options))
            });
            0
        }
        args::Command::Server(options) => status(env, server::run(env, &options)),
    }
}

/// Prints why a test failed; returns the exit status.
fn status(env: &Env, result: Result<(), protocol::Failure>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            outln!(env, "iperf3: error - {error}");
            1
        }
    }
}
