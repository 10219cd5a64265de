//! Unit tests under Miri: what the kernel's unsafe code does with memory, checked access by access.
//!
//! The hosted machine runs there whole, on contexts that are threads (`sys/machine/host/context_miri.rs`), with strict
//! provenance: no pointer is made from an address alone. To boot it takes Miri some three seconds, for each test. Left out are tests
//! that take long and show it nothing new: random programs, hundreds of seeds, thousands of items, panics; and those of whole protocols.

use crate::image;
use crate::proc;
use crate::setup::{self, Consent, Need};
use crate::suite::Suite;
use crate::test::passed_tests;
use crate::ui;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Checks aliasing and provenance strictly. Contexts of a machine that has ended wait for good, so that leaks are no news. They run
/// one at a time, so that there are no races to look for either, which would take longer with each context.
const FLAGS: &str = "-Zmiri-strict-provenance -Zmiri-ignore-leaks -Zmiri-disable-isolation -Zmiri-disable-data-race-detector";

/// Parts of the names of the tests of `sys` that run, in two lists that take about as long, for two processors.
// Not `items_are_aligned_and_do_not_overlap`: the memory of the machine is too small for it there.
const TESTS: [&[&str]; 2] = [
    &[
        "kern::uipc_mbuf::tests",
        "buf_ring::tests",
        "net::mp_ring::tests",
        "counter::tests",
        "a_patient_request_sleeps",
        "a_higher_limit_wakes",
        "a_freed_item_is_not_given_out_while_a_reader",
    ],
    &[
        "kern::kern_mutex::tests",
        "kern::kern_rwlock::tests",
        "kern::kern_rmlock::tests",
        "kern::kern_sx::tests",
        "the_item_freed_last",
        "a_constructor_that_fails",
        "an_item_is_initialised_once",
        "flags_change_how_a_zone_behaves",
        "a_typed_item_is_dropped",
        "kern::kern_timeout::tests::a_callout_that_is_set",
    ],
];

/// Of those, the ones that take too long.
const LEFT_OUT: &[&str] = &[
    "any_sequence_of_operations",
    "bytes_copied_out",
    "a_long_chain_is_freed_without_recursion",
    "checksums_do_not_depend",
    "lines_that_are_given_back_start_at_zero",
    "a_thread_that_makes_itself_less_urgent",
    "holders_of_the_sleepable_kind_may_sleep",
    "a_holder_may_sleep_and_the_others",
    "witness_reports",
];

/// Limit for the compilation.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// Limit for the tests: some minutes on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(1200);
/// How often it is said how far they are.
const PROGRESS: Duration = Duration::from_secs(30);

fn cargo() -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo", "miri", "test"]);
    cargo.args(["--package", "sys", "--lib"]);
    cargo.current_dir(image::root());
    cargo.env("CARGO_TARGET_DIR", image::root().join("target/miri"));
    cargo.env("MIRIFLAGS", FLAGS);
    // A backtrace takes Miri longer than a test.
    cargo.env("RUST_BACKTRACE", "0");
    // What the compiler that built this tool says of itself is not true of the other.
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTFLAGS"] {
        cargo.env_remove(name);
    }
    cargo
}

/// Installs what is missing and runs the tests.
pub fn run(consent: Consent) -> Result<()> {
    setup::ensure(&[Need::Miri], consent)?;
    ui::step(format_args!("{}", tests()?));
    Ok(())
}

/// Runs the tests, as one of the checks, where Miri is there.
pub fn check(suite: &mut Suite) {
    let name = "tests under Miri";
    if Need::Miri.found() {
        suite.check(name, tests);
    } else {
        suite.skip(
            name,
            "Miri is not installed; `cargo xtask miri` installs it",
        );
    }
}

/// One of the processes that interpret tests.
struct Run {
    process: proc::Process,
    stderr: JoinHandle<String>,
    passed: u64,
    /// All that it has said.
    said: String,
}

impl Run {
    /// Starts the tests called `names`; their lines go to `lines`, with `number` before them, and then nothing.
    fn start(
        number: usize,
        names: &[&str],
        lines: mpsc::Sender<(usize, Option<String>)>,
    ) -> Result<Run> {
        let mut cargo = cargo();
        cargo.args(["--", "--no-capture", "--test-threads=1"]);
        cargo.args(names);
        for name in LEFT_OUT {
            cargo.args(["--skip", name]);
        }
        let mut process = proc::start_piped(&mut cargo)?;
        let stdout = process.child().stdout.take().context("no pipe")?;
        let mut stderr = process.child().stderr.take().context("no pipe")?;
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if lines.send((number, Some(line))).is_err() {
                    return;
                }
            }
            let _ = lines.send((number, None));
        });
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Ok(Run {
            process,
            stderr,
            passed: 0,
            said: String::new(),
        })
    }
}

fn tests() -> Result<String> {
    let began = Instant::now();
    proc::run(cargo().arg("--no-run"), BUILD_LIMIT)?;
    let seconds = began.elapsed().as_secs();
    ui::step(format_args!(
        "compiled for Miri in {seconds} s; the tests take some minutes"
    ));
    let began = Instant::now();
    let (sender, lines) = mpsc::channel();
    let runs = TESTS.iter().enumerate();
    let runs: Result<Vec<Run>> = runs
        .map(|(number, names)| Run::start(number, names, sender.clone()))
        .collect();
    let mut runs = runs?;
    let mut running = runs.len();
    let mut told = began;
    while running > 0 {
        let elapsed = began.elapsed();
        let passed: u64 = runs.iter().map(|run| run.passed).sum();
        if elapsed > LIMIT {
            let last = runs.iter().filter_map(|run| run.said.lines().last());
            bail!(
                "the tests do not end within {} s: {passed} have passed, the last lines are: {}",
                LIMIT.as_secs(),
                last.collect::<Vec<_>>().join("; ")
            );
        }
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            ui::step(format_args!(
                "{passed} tests pass after {} s of at most {} s",
                elapsed.as_secs(),
                LIMIT.as_secs()
            ));
        }
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok((number, Some(line))) => {
                let run = &mut runs[number];
                run.passed += u64::from(is_passed(&line));
                run.said += &line;
                run.said.push('\n');
            }
            Ok((_, None)) => running -= 1,
            Err(_) => {}
        }
    }
    let mut passed = 0;
    for mut run in runs {
        let status = run.process.wait(LIMIT)?;
        let complaint = run.stderr.join().unwrap_or_default();
        if !status.success() {
            bail!("Miri objects:\n{}{complaint}", run.said);
        }
        passed += run.said.lines().filter_map(passed_tests).sum::<u64>();
    }
    Ok(format!("{passed} tests"))
}

/// `test name ... ok`, or `ok` alone where the kernel's own messages came between.
fn is_passed(line: &str) -> bool {
    line == "ok" || line.ends_with(" ... ok")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_tests_are_counted_as_they_come() {
        assert!(is_passed(
            "test kern::kern_sx::tests::a_holder_may_sleep ... ok"
        ));
        assert!(is_passed("ok"));
        assert!(!is_passed("test result: ok. 3 passed; 0 failed"));
        assert!(!is_passed("test a ... FAILED"));
    }
}
