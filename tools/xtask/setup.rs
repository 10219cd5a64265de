//! Finds what the tool needs and installs what is missing.
//!
//! Says each step and asks first on a terminal. Without a terminal it installs as root; otherwise it prints the
//! exact commands and the tool exits with `EXIT_MISSING`.

use crate::ui;
use anyhow::{Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Exit code when something needed is missing and was not installed.
pub const EXIT_MISSING: u8 = 3;

/// The kernel's target.
pub const TARGET: &str = "x86_64-unknown-none";

/// Something the tool needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// The compiler's library for the bare machine.
    BareTarget,
    /// `cargo clippy`.
    Clippy,
    /// `cargo fmt`.
    Rustfmt,
    /// `qemu-system-x86_64`.
    Qemu,
    /// `iperf3`, the peer.
    Iperf3,
    /// `ip`, for namespaces and taps.
    Iproute,
    /// Miri and what it needs of the nightly compiler.
    Miri,
    /// `c++`, which builds libFuzzer.
    Cxx,
}

/// How something is obtained.
enum Source {
    Rustup(&'static [&'static str]),
    Package(&'static str),
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::BareTarget => "Rust's library for x86_64-unknown-none",
            Self::Clippy => "clippy",
            Self::Rustfmt => "rustfmt",
            Self::Qemu => "qemu-system-x86_64",
            Self::Iperf3 => "iperf3",
            Self::Iproute => "ip (iproute2)",
            Self::Miri => "Miri (of the nightly compiler)",
            Self::Cxx => "c++ (for libFuzzer)",
        }
    }

    fn source(self) -> Source {
        match self {
            Self::BareTarget => Source::Rustup(&["target", "add", TARGET]),
            Self::Clippy => Source::Rustup(&["component", "add", "clippy"]),
            Self::Rustfmt => Source::Rustup(&["component", "add", "rustfmt"]),
            Self::Qemu => Source::Package("qemu-system-x86"),
            Self::Iperf3 => Source::Package("iperf3"),
            Self::Iproute => Source::Package("iproute2"),
            Self::Cxx => Source::Package("g++"),
            Self::Miri => Source::Rustup(&[
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "miri",
                "--component",
                "rust-src",
            ]),
        }
    }

    /// Whether it is there.
    pub fn found(self) -> bool {
        match self {
            Self::BareTarget => bare_target_found(),
            Self::Clippy => which("cargo-clippy").is_some() && runs("cargo", &["clippy", "-V"]),
            Self::Rustfmt => which("cargo-fmt").is_some() && runs("cargo", &["fmt", "--version"]),
            Self::Qemu => which("qemu-system-x86_64").is_some(),
            Self::Iperf3 => which("iperf3").is_some(),
            Self::Iproute => which("ip").is_some(),
            Self::Cxx => which("c++").is_some(),
            Self::Miri => {
                which("rustup").is_some()
                    && runs("rustup", &["run", "nightly", "cargo", "miri", "--version"])
            }
        }
    }
}

/// Something needed is missing; the message says what to run.
#[derive(Debug)]
pub struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// How far the tool may go to get what is missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consent {
    /// Don't ask.
    pub yes: bool,
    /// Don't install.
    pub no_install: bool,
}

/// Sees to it that all `needs` are there.
pub fn ensure(needs: &[Need], consent: Consent) -> Result<()> {
    let missing: Vec<Need> = needs.iter().copied().filter(|n| !n.found()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        ui::step(format_args!("{} is missing", need.name()));
    }
    let plan = Plan::new(&missing)?;
    let commands = plan.commands.iter().map(|c| format!("  {}", c.join(" ")));
    let commands = commands.collect::<Vec<_>>().join("\n");
    let refuse = |why: &str| -> Result<()> {
        let names: Vec<_> = missing.iter().map(|n| n.name()).collect();
        let names = names.join(", ");
        Err(Missing(format!(
            "missing: {names}; {why}. To install, run:\n{commands}"
        ))
        .into())
    };
    if consent.no_install {
        return refuse("--no-install was given");
    }
    if let Some(obstacle) = &plan.obstacle {
        return refuse(obstacle);
    }
    if !consent.yes {
        if ui::interactive() {
            eprintln!("To install what is missing, the tool would run:\n{commands}");
            if !ui::confirm("Run this now?")? {
                return refuse("not installed");
            }
        } else if !is_root() {
            return refuse("there is no terminal to ask on, and this is not root");
        }
    }
    for command in &plan.commands {
        execute(command)?;
    }
    let still: Vec<_> = missing.iter().filter(|n| !n.found()).collect();
    if let Some(need) = still.first() {
        return refuse(&format!("{} was installed but is not found", need.name()));
    }
    Ok(())
}

/// What to run to install.
struct Plan {
    commands: Vec<Vec<String>>,
    /// Why the tool can't run it itself.
    obstacle: Option<String>,
}

impl Plan {
    fn new(missing: &[Need]) -> Result<Self> {
        let mut commands: Vec<Vec<String>> = Vec::new();
        let mut packages = Vec::new();
        let mut obstacle = None;
        for need in missing {
            match need.source() {
                Source::Rustup(args) => {
                    if which("rustup").is_none() {
                        obstacle =
                            Some("rustup is not there: get it from https://rustup.rs".to_string());
                    }
                    commands.push(words("rustup", args));
                }
                Source::Package(name) => packages.push(name),
            }
        }
        if !packages.is_empty() {
            let (install, why_not) = package_commands(&packages);
            commands.extend(install);
            obstacle = obstacle.or(why_not);
        }
        Ok(Self { commands, obstacle })
    }
}

/// Commands that install packages, and why they can't be run from here, if so.
fn package_commands(packages: &[&str]) -> (Vec<Vec<String>>, Option<String>) {
    if which("apt-get").is_none() {
        let list = packages.join(" ");
        return (
            vec![words(
                "#",
                &["install these packages (Debian's names):", &list],
            )],
            Some("this system has no apt-get".into()),
        );
    }
    let mut prefix: Vec<String> = Vec::new();
    let mut obstacle = None;
    if !is_root() {
        prefix.push("sudo".into());
        if which("sudo").is_none() {
            obstacle = Some("this is not root and there is no sudo".into());
        }
    }
    let apt = |args: &[&str]| {
        let mut command = prefix.clone();
        command.extend(words("env", &["DEBIAN_FRONTEND=noninteractive", "apt-get"]));
        command.extend(args.iter().map(ToString::to_string));
        command
    };
    let mut commands = Vec::new();
    if !packages.iter().all(|p| apt_knows(p)) {
        commands.push(apt(&["update"]));
    }
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages);
    commands.push(apt(&install));
    (commands, obstacle)
}

/// Whether apt's lists are there and fresh enough to have the package.
fn apt_knows(package: &str) -> bool {
    let out = Command::new("apt-cache")
        .args(["policy", package])
        .env("LC_ALL", "C")
        .output();
    out.is_ok_and(|o| {
        let text = String::from_utf8_lossy(&o.stdout);
        text.contains("Candidate:") && !text.contains("Candidate: (none)")
    })
}

fn execute(command: &[String]) -> Result<()> {
    ui::step(format_args!("running: {}", command.join(" ")));
    if run_quietly(command)? {
        return Ok(());
    }
    // Lists may be older than the archive: fetch them and try once more.
    if command.iter().any(|w| w == "install") {
        let end = command.iter().position(|w| w == "apt-get").unwrap_or(0);
        let mut update = command[..=end].to_vec();
        update.push("update".into());
        ui::step(format_args!("running: {}", update.join(" ")));
        run_quietly(&update)?;
        if run_quietly(command)? {
            return Ok(());
        }
    }
    let text = command.join(" ");
    bail!(Missing(format!(
        "this failed; see above for why:\n  {text}"
    )))
}

fn run_quietly(command: &[String]) -> Result<bool> {
    let status = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()?;
    Ok(status.success())
}

fn words(first: &str, rest: &[&str]) -> Vec<String> {
    let all = [first].into_iter().chain(rest.iter().copied());
    all.map(str::to_string).collect()
}

/// Whether the tool may do what needs root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Finds a program on the path, or where administrators' programs are.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|d| d.join(program)).find(|p| is_program(p))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn runs(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|s| s.success())
}

fn bare_target_found() -> bool {
    let out = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .output();
    let Ok(out) = out else { return false };
    let dir = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
    let Ok(entries) = dir.read_dir() else {
        return false;
    };
    let mut names = entries.flatten().map(|e| e.file_name());
    names.any(|n| n.to_string_lossy().starts_with("libcore-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_need_has_a_command_that_installs_it() {
        for need in [Need::BareTarget, Need::Qemu, Need::Iperf3, Need::Clippy] {
            let plan = Plan::new(&[need]).unwrap();
            assert!(!plan.commands.is_empty(), "{need:?}");
        }
    }

    #[test]
    fn a_program_is_found_by_name_and_a_missing_one_is_not() {
        assert!(which("sh").is_some());
        assert!(which("no-such-program-here").is_none());
    }
}
