//! Unit tests under Miri: what the kernel's unsafe code does with memory, checked access by access.
//!
//! The hosted machine runs there whole, on contexts that are threads (`sys/machine/host/context_miri.rs`), with strict
//! provenance: no pointer is made from an address alone. Left out are tests that take Miri long and show it nothing new:
//! random programs, hundreds of seeds, thousands of items; and those of whole protocols.

use crate::image;
use crate::proc;
use crate::setup::{self, Consent, Need};
use crate::suite::Suite;
use crate::ui;
use anyhow::{Result, bail};
use std::process::Command;
use std::time::Duration;

/// Checks aliasing and provenance strictly. Contexts of a machine that has ended wait for good, so that leaks are no news.
const FLAGS: &str = "-Zmiri-strict-provenance -Zmiri-ignore-leaks -Zmiri-disable-isolation";

/// Parts of the names of the tests of `sys` that run, in two lists that take about as long, for two processors.
const TESTS: [&[&str]; 2] = [
    &["kern::uipc_mbuf::tests"],
    &[
        "vm::uma_core::tests::checks",
        "a_patient_request_sleeps",
        "a_higher_limit_wakes",
        "a_freed_item_is_not_given_out_while_a_reader",
        "the_item_freed_last",
        "a_constructor_that_fails",
        "an_item_is_initialised_once",
        "flags_change_how_a_zone_behaves",
        "a_typed_item_is_dropped",
        "counter::tests",
        "kern::kern_mutex::tests::a_pair_of_locks",
        "kern::kern_timeout::tests::a_callout",
    ],
];

/// Of those, the ones that take too long.
const LEFT_OUT: &[&str] = &[
    "any_sequence_of_operations",
    "bytes_copied_out",
    "a_long_chain_is_freed_without_recursion",
    "checksums_do_not_depend",
    "every_other_item_with_a_divisor",
];

/// Limit for the tests, and for their compilation.
const LIMIT: Duration = Duration::from_secs(900);

fn cargo() -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo", "miri", "test"]);
    cargo.args(["--quiet", "--package", "sys", "--lib"]);
    cargo.current_dir(image::root());
    cargo.env("CARGO_TARGET_DIR", image::root().join("target/miri"));
    cargo.env("MIRIFLAGS", FLAGS);
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

fn tests() -> Result<String> {
    proc::run(cargo().arg("--no-run"), LIMIT)?;
    let runs = TESTS.map(|names| {
        let mut cargo = cargo();
        cargo.args(["--", "--no-capture", "--test-threads=1"]);
        cargo.args(names);
        for name in LEFT_OUT {
            cargo.args(["--skip", name]);
        }
        proc::start_piped(&mut cargo)
    });
    let mut passed = 0;
    for run in runs {
        let output = run?.output(LIMIT)?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!(
                "Miri objects:\n{said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        passed += said
            .lines()
            .filter_map(crate::test::passed_tests)
            .sum::<u64>();
    }
    Ok(format!("{passed} tests"))
}
