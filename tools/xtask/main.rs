//! The front door: builds, runs and tests the kernel.

mod bench;
mod cable;
mod capture;
mod cleanup;
mod cli;
mod console;
mod experiments;
mod flood;
mod fuzz;
mod fuzz_wire;
mod guest;
mod image;
mod ip6;
mod iperf;
mod layers;
mod locks;
mod miri;
mod netns;
mod pair;
mod peer;
mod proc;
mod qemu;
mod record;
mod relay;
mod run;
mod scenario;
mod scripts;
mod setup;
mod shell;
mod suite;
mod tap;
mod test;
mod ui;
mod unread;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    cleanup::install();
    let done = match std::env::var_os(fuzz::COMPILER) {
        Some(_) => fuzz::compile(),
        None => cli::main(),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            cleanup::run_all();
            ui::error(&e);
            match e.downcast_ref::<setup::Missing>() {
                Some(_) => ExitCode::from(setup::EXIT_MISSING),
                None => ExitCode::FAILURE,
            }
        }
    }
}
