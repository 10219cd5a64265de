//! Runs the experiments at any size.

use anyhow::Result;
use clap::{Parser, Subcommand};
use sim::{cc, plot};
use std::path::PathBuf;

/// Experiments with the stack on a simulated wire, in virtual time.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Congestion control beside the formulas that say what it should do, at full size
    Cc,
    /// Draw the congestion window of every algorithm by time
    Plot {
        /// Where to write the SVG
        path: PathBuf,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Cc => congestion_control(),
        Command::Plot { path } => {
            println!("{}", plot::congestion_windows(&path)?);
            Ok(())
        }
    }
}

/// Makes all measurements, prints each, and fails at the end if one is out of its bounds.
fn congestion_control() -> Result<()> {
    let mut failed = Vec::new();
    let mut report = |outcome: Result<String>| match outcome {
        Ok(said) => println!("ok      {said}"),
        Err(e) => {
            println!("FAILED  {e:#}");
            failed.push(e);
        }
    };
    for every in [1000, 200, 100] {
        report(cc::check_mathis(every, 200));
    }
    for algorithm in ["newreno", "cubic"] {
        for every in [1000, 200, 100] {
            report(Ok(cc::report_padhye(algorithm, every, 200)));
        }
    }
    report(cc::check_curve(10));
    for algorithm in ["newreno", "cubic"] {
        for seed in 1..=3 {
            report(cc::check_share(algorithm, seed, 300));
        }
    }
    for algorithm in ["newreno", "cubic"] {
        for sack in [true, false] {
            report(cc::check_burst(algorithm, sack));
        }
    }
    anyhow::ensure!(
        failed.is_empty(),
        "{} measurements are out of bounds",
        failed.len()
    );
    Ok(())
}
