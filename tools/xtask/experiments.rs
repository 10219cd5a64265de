//! Experiments on the simulated wire: congestion control against theory, pictures of it, seeded runs.

use crate::image;
use crate::proc;
use crate::suite::Suite;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Where the picture of the congestion windows is kept.
const CC_PICTURE: &str = "tools/doc/cwnd.svg";
/// Seeds of a soak; the tests on the host make 200 runs.
const SEEDED_RUNS: u64 = 2_000;
/// Limit for a run, compilation included.
const LIMIT: Duration = Duration::from_secs(3600);

/// The program as a command of cargo, without arguments for it. Long runs are worth its compilation for them.
fn program() -> Command {
    let mut cargo = image::cargo();
    cargo.args(["run", "--quiet", "--profile", "hosted", "--package", "sim"]);
    cargo.arg("--manifest-path");
    cargo.arg(image::root().join("Cargo.toml"));
    cargo.arg("--");
    cargo
}

/// Runs an experiment with `args`, from where the user is.
pub fn run(args: &[String]) -> Result<ExitCode> {
    start(program().args(args))
}

/// Draws the congestion windows.
pub fn plot_cc(out: Option<PathBuf>) -> Result<ExitCode> {
    let out = out.unwrap_or_else(|| image::root().join(CC_PICTURE));
    start(program().arg("plot").arg(out))
}

fn start(cargo: &mut Command) -> Result<ExitCode> {
    cargo.current_dir(std::env::current_dir().context("no current directory")?);
    let status = cargo.status().context("can't run cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Makes all experiments at full size.
pub fn check(suite: &mut Suite) {
    suite.check("congestion control against theory", || {
        let said = proc::run(program().arg("cc"), LIMIT)?;
        Ok(format!("\n{}", said.trim_end()))
    });
    suite.check("a flood of SYNs", || {
        let said = proc::run(program().arg("flood"), LIMIT)?;
        Ok(said.trim_end().to_string())
    });
    suite.check("seeded runs", || {
        let count = SEEDED_RUNS.to_string();
        let said = proc::run(program().args(["run", "--count", &count]), LIMIT)?;
        Ok(said.trim_end().to_string())
    });
}
