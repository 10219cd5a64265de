//! Packetdrill scripts: ours and, where it is, FreeBSD's TCP test suite.

use crate::image;
use crate::proc;
use crate::suite::Suite;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Names the directory of FreeBSD's suite, which is not in the repository.
const SUITE: &str = "TCP_TESTSUITE";
/// Our own scripts.
const OURS: &str = "netinet/tests/packetdrill";
/// Scripts of the suite that fail for want of something.
const KNOWN_FAILURES: &str = "tools/packetdrill/known_failures.txt";
/// Limit for a run, compilation included.
const LIMIT: Duration = Duration::from_secs(900);

/// The interpreter as a command of cargo, without arguments for it.
fn interpreter() -> Command {
    let mut cargo = image::cargo();
    cargo.args(["run", "--quiet", "--package", "packetdrill"]);
    cargo.arg("--manifest-path");
    cargo.arg(image::root().join("Cargo.toml"));
    cargo.arg("--");
    cargo
}

/// Runs the interpreter with `args`, from where the user is.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let mut cargo = interpreter();
    cargo.args(args);
    cargo.current_dir(std::env::current_dir().context("no current directory")?);
    let status = cargo.status().context("can't run cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Checks our scripts and, if it can be found, the suite.
pub fn check(suite: &mut Suite) {
    suite.check("packetdrill scripts", || {
        closing_line(interpreter().arg(image::root().join(OURS)))
    });
    let name = "FreeBSD's TCP test suite";
    let Some(dir) = std::env::var_os(SUITE).map(PathBuf::from) else {
        suite.skip(name, "TCP_TESTSUITE does not name its directory");
        return;
    };
    if !dir.is_dir() {
        suite.skip(
            name,
            &format!(
                "TCP_TESTSUITE names {}, which is no directory",
                dir.display()
            ),
        );
        return;
    }
    suite.check(name, || {
        let mut cargo = interpreter();
        cargo.arg("--known-failures");
        cargo.arg(image::root().join(KNOWN_FAILURES));
        closing_line(cargo.arg(dir))
    });
}

fn closing_line(cargo: &mut Command) -> Result<String> {
    let said = proc::run(cargo, LIMIT)?;
    Ok(said.lines().last().unwrap_or_default().to_string())
}
