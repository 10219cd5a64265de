//! Runs packetdrill scripts against the stack in this process.

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use netsim::capture::Capture;
use packetdrill::executor::{KINDS, Rules};
use packetdrill::report::{KnownFailures, Options, report};
use packetdrill::suite::{Finished, find, run_all};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs packetdrill scripts against the stack in this process, in virtual time
#[derive(Parser)]
#[command(name = "packetdrill")]
struct Args {
    /// Scripts, or directories with scripts [default: the directory that TCP_TESTSUITE names]
    paths: Vec<PathBuf>,
    /// Print the whole exchange
    #[arg(long, short)]
    verbose: bool,
    /// Write what crossed the wire to a file for Wireshark and tcpdump; for one script
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// A list of scripts that are known to fail: the exit code tells of others, and of those that pass
    #[arg(long, value_name = "FILE")]
    known_failures: Option<PathBuf>,
    /// Leave out a check that the original does not make
    #[arg(long, value_enum)]
    without: Vec<Extra>,
    /// Go on after a failure of this kind of event: packet, syscall, command or code
    #[arg(long, value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(KINDS))]
    non_fatal: Vec<String>,
    /// Print no warnings
    #[arg(long, short)]
    quiet: bool,
    /// Worker threads [default: as many as there are CPUs]
    #[arg(long)]
    threads: Option<usize>,
}

/// A check that the original does not make
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Extra {
    /// Checksums of TCP and UDP
    Checksum,
    /// Echoed timestamps
    Timestamps,
    /// No packet is left at the end
    Leftover,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("packetdrill: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what the command line asks for.
fn run(args: &Args) -> Result<ExitCode> {
    let mut paths = args.paths.clone();
    if paths.is_empty() {
        match std::env::var_os("TCP_TESTSUITE") {
            Some(suite) => paths.push(suite.into()),
            None => bail!("name scripts or directories, or set TCP_TESTSUITE"),
        }
    }
    let entries = find(&paths)?;
    if entries.is_empty() {
        bail!("no scripts (*.pkt) there");
    }
    if args.pcap.is_some() && entries.len() > 1 {
        bail!("--pcap takes one script, not {}", entries.len());
    }
    let known = match &args.known_failures {
        Some(path) => Some(known_failures(path)?),
        None => None,
    };
    let rules = Rules {
        checksum: !args.without.contains(&Extra::Checksum),
        timestamps: !args.without.contains(&Extra::Timestamps),
        leftover: !args.without.contains(&Extra::Leftover),
        non_fatal: args.non_fatal.clone(),
    };
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    // A panic of the stack is told with its script, not by the thread that ran it.
    std::panic::set_hook(Box::new(|_| {}));
    let finished = run_all(&entries, &rules, threads)?;
    let _ = std::panic::take_hook();
    if let (Some(path), [script]) = (&args.pcap, &finished[..]) {
        capture(path, script)?;
    }
    let options = Options {
        verbose: args.verbose,
        quiet: args.quiet,
    };
    let summary = report(&finished, known.as_ref(), options);
    print!("{}", summary.text);
    let good = match known {
        Some(_) => summary.unexpected == 0 && summary.better == 0,
        None => summary.failed == 0,
    };
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn known_failures(path: &Path) -> Result<KnownFailures> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    KnownFailures::parse(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}

fn capture(path: &Path, script: &Finished) -> Result<()> {
    let mut capture =
        Capture::create(path).with_context(|| format!("can't write {}", path.display()))?;
    for (at, frame) in &script.outcome.frames {
        capture.write(*at, frame);
    }
    Ok(())
}
