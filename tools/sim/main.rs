//! Runs the experiments at any size.

use anyhow::Result;
use clap::{Parser, Subcommand};
use sim::runs::scenario::Scenario;
use sim::{cc, flood, plot, runs};
use std::collections::BTreeMap;
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
    /// Make seeded runs: connections of all kinds over paths with all faults
    Run {
        /// The first seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds, one after the other
        #[arg(long, default_value_t = 1)]
        count: u64,
        /// Write the frames that cross to this file
        #[arg(long)]
        pcap: Option<PathBuf>,
        /// Say what each run is, and what came of it
        #[arg(long, short)]
        verbose: bool,
    },
    /// Flood a server with SYNs from sources that never answer
    Flood {
        /// How many SYNs
        #[arg(long, default_value_t = 1_000_000)]
        syns: u64,
    },
    /// Draw the congestion window of every algorithm by time
    Plot {
        /// Where to write the SVG
        path: PathBuf,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Cc => congestion_control(),
        Command::Run {
            seed,
            count,
            pcap,
            verbose,
        } => run(seed, count, pcap, verbose),
        Command::Flood { syns } => {
            println!("{}", flood::check(syns)?);
            Ok(())
        }
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

/// Makes `count` runs from `seed` on, and says what they did together; fails if one is wrong.
fn run(seed: u64, count: u64, pcap: Option<PathBuf>, verbose: bool) -> Result<()> {
    let began = std::time::Instant::now();
    let mut failed = 0;
    let mut sum = runs::Outcome::default();
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seed..seed + count {
        if verbose {
            println!("{:#?}", Scenario::new(seed));
        }
        let outcome = match runs::run(seed, pcap.clone()) {
            Ok(outcome) => outcome,
            Err(e) => {
                println!("{e:#}");
                failed += 1;
                continue;
            }
        };
        if verbose || count == 1 {
            println!("seed {seed}: {outcome:?}");
        }
        sum.frames += outcome.frames;
        sum.bytes += outcome.bytes;
        sum.again += outcome.again;
        sum.timeouts += outcome.timeouts;
        sum.took_ms += outcome.took_ms;
        for (total, some) in sum.ends.iter_mut().zip(outcome.ends) {
            *total += some;
        }
        for (name, some) in outcome.errors {
            *errors.entry(name).or_default() += some;
        }
    }
    let errors: Vec<String> = errors
        .iter()
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    println!(
        "{count} runs, seeds {seed} to {}: {failed} wrong; {} ends as meant, {} told of errors ({}); {} bytes, {} frames, \
         {} segments again, {} timeouts; {:.1} h of virtual time in {:.1} s",
        seed + count - 1,
        sum.ends[0],
        sum.ends[1],
        errors.join(", "),
        sum.bytes,
        sum.frames,
        sum.again,
        sum.timeouts,
        sum.took_ms as f64 / 3_600_000.0,
        began.elapsed().as_secs_f64()
    );
    anyhow::ensure!(failed == 0, "{failed} of {count} runs are wrong");
    Ok(())
}
