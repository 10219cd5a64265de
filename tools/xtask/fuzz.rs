//! Coverage-guided fuzzing: builds the targets (`tools/fuzz/targets`) around libFuzzer, gives them first inputs, runs them.
//!
//! The instrumentation is the compiler's own, by flags that the stable one takes; libFuzzer comes as a crate and needs a C++
//! compiler. Only what is under test is instrumented: this program stands between cargo and the compiler (`compile`). What a target has learned is kept in `target/xtask/fuzz/TARGET/corpus` and used the next time; what it finds is
//! kept beside it, with the command that runs it again.

use crate::image;
use crate::proc;
use crate::setup::{self, Consent, Need};
use crate::ui::{self, Align};
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The host, named so that programs which run during the build are not instrumented.
const HOST: &str = "x86_64-unknown-linux-gnu";
/// A counter for each edge.
const EDGES: [&str; 4] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];
/// What is compared with what, so that libFuzzer can put it into inputs.
const COMPARES: &str = "-Cllvm-args=-sanitizer-coverage-trace-compares";
/// The parsers: all of it.
const PARSERS: [&str; 3] = ["netinet", "kernel", "packetdrill"];
/// What they stand on: edges alone. Its locks compare much that no input can change.
const BELOW: [&str; 1] = ["sys"];
/// Set for this program when it stands before the compiler.
pub const COMPILER: &str = "XTASK_FUZZ_COMPILER";
/// Names the directory of FreeBSD's TCP test suite, whose scripts are good first inputs.
const SUITE: &str = "TCP_TESTSUITE";
/// Our own scripts.
const OURS: &str = "netinet/tests/packetdrill";
/// Longest input.
const MAX_LEN: u32 = 4096;
/// Longest that one input may take, in seconds.
const INPUT_LIMIT: u32 = 30;
/// Memory that a target may use, in MiB.
const MEMORY: u32 = 4096;
/// Limit for the build.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
/// What a target may take beyond its time, to read its corpus and to end.
const GRACE: Duration = Duration::from_secs(120);
/// Limit for one run of what was found.
const REPLAY_LIMIT: Duration = Duration::from_secs(120);

/// What to fuzz, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of targets; none stands for all.
    pub targets: Vec<String>,
    /// Time for each.
    pub time: Duration,
    /// How many at once.
    pub jobs: usize,
    /// What libFuzzer's choices follow from, so that what it finds from nothing it finds again; otherwise they are new each time.
    pub seed: Option<u64>,
}

/// What came of one target.
struct Outcome {
    target: String,
    /// From libFuzzer's last words, or "".
    runs: String,
    per_second: String,
    edges: String,
    corpus: String,
    /// What was found, and how to see it again.
    finding: Option<String>,
}

/// `cargo xtask fuzz`: runs targets and prints what they did.
pub fn run(options: &Options, consent: Consent) -> Result<()> {
    setup::ensure(&[Need::Cxx], consent)?;
    let program = build()?;
    let outcomes = all(&program, options)?;
    print!("{}", table(&outcomes));
    let findings: Vec<_> = outcomes.iter().filter_map(|o| o.finding.as_ref()).collect();
    for finding in &findings {
        println!("\n{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => bail!("{count} targets found something"),
    }
}

/// The same as one of the checks: how many targets ran, and what they did.
pub fn check(options: &Options) -> Result<(u64, String)> {
    let program = build()?;
    let outcomes = all(&program, options)?;
    let findings: Vec<_> = outcomes.iter().filter_map(|o| o.finding.clone()).collect();
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    let runs: u64 = outcomes
        .iter()
        .filter_map(|o| o.runs.parse::<u64>().ok())
        .sum();
    let said = format!(
        "{} targets, {} s each, {} executions",
        outcomes.len(),
        options.time.as_secs(),
        ui::thousands(runs)
    );
    Ok((outcomes.len() as u64, said))
}

/// Runs one finding again.
pub fn replay(target: &str, file: &Path, consent: Consent) -> Result<()> {
    setup::ensure(&[Need::Cxx], consent)?;
    let program = build()?;
    let again = rerun(&program, target, file)?;
    print!("{}", again.text);
    if again.failed {
        bail!("{target} fails with {}", file.display());
    }
    println!("{target} does not fail with {}", file.display());
    Ok(())
}

/// Builds the targets with libFuzzer and the instrumentation, apart from everything else.
fn build() -> Result<PathBuf> {
    ui::step("building the fuzz targets");
    let dir = image::target_dir().join("fuzz");
    let mut cargo = image::cargo();
    cargo.env("CARGO_TARGET_DIR", &dir).env(COMPILER, "1");
    cargo.env("RUSTC_WRAPPER", std::env::current_exe()?);
    cargo.args(["build", "--quiet", "--profile", "fuzz", "--target", HOST]);
    cargo.args(["--package", "fuzz", "--bin", "fuzz-targets"]);
    cargo.args(["--no-default-features", "--features", "engine"]);
    cargo.stdin(Stdio::null());
    if !proc::Process::start(&mut cargo)?
        .wait(BUILD_LIMIT)?
        .success()
    {
        bail!("the fuzz targets do not build");
    }
    Ok(dir.join(HOST).join("fuzz").join("fuzz-targets"))
}

/// Compiles as cargo asks, with the instrumentation that the crate is to have.
pub fn compile() -> Result<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let mut compiler = Command::new(words.next().context("which compiler?")?);
    let words: Vec<_> = words.collect();
    let name = words
        .iter()
        .skip_while(|word| *word != "--crate-name")
        .nth(1)
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    compiler.args(&words);
    if PARSERS.contains(&name) {
        compiler.args(EDGES).arg(COMPARES);
    } else if BELOW.contains(&name) {
        compiler.args(EDGES);
    }
    let status = compiler.status().context("can't run the compiler")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs the targets that are asked for, so many at once.
fn all(program: &Path, options: &Options) -> Result<Vec<Outcome>> {
    let known = proc::run(Command::new(program).arg("list"), REPLAY_LIMIT)?;
    let known: Vec<&str> = known.lines().collect();
    let wanted: Vec<&str> = if options.targets.is_empty() {
        known.clone()
    } else {
        options.targets.iter().map(String::as_str).collect()
    };
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        bail!(
            "there is no target {unknown}; there are {}",
            known.join(", ")
        );
    }
    let queue = Mutex::new(VecDeque::from(wanted));
    let done = Mutex::new(Vec::new());
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let outcome = one(program, target, options);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push(outcome);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut outcomes = done.into_iter().collect::<Result<Vec<_>>>()?;
    outcomes.sort_by_key(|o| known.iter().position(|name| *name == o.target));
    Ok(outcomes)
}

/// Seeds one target and lets libFuzzer run it.
fn one(program: &Path, target: &str, options: &Options) -> Result<Outcome> {
    let time = options.time;
    let dir = image::work_dir("fuzz")?.join(target);
    let [corpus, seeds, found] = ["corpus", "seeds", "found"].map(|name| dir.join(name));
    for dir in [&corpus, &found] {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    // Of another day, when targets read their inputs in another way.
    let _ = fs::remove_dir_all(&seeds);
    write_seeds(program, target, &seeds)?;
    let log = dir.join("log");
    let out = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
    let history = found.join("history");
    let _ = fs::remove_file(&history);
    let mut command = Command::new(program);
    command.arg(target).args([&corpus, &seeds]);
    command.arg(format!("-max_total_time={}", time.as_secs()));
    if let Some(seed) = options.seed {
        command.arg(format!("-seed={seed}"));
    }
    command.arg(format!("-max_len={MAX_LEN}"));
    command.arg(format!("-timeout={INPUT_LIMIT}"));
    command.arg(format!("-rss_limit_mb={MEMORY}"));
    command.arg(format!("-artifact_prefix={}/", found.display()));
    command.args(["-print_final_stats=1", "-reload=0"]);
    command
        .env("FUZZ_HISTORY", &history)
        .env("RUST_BACKTRACE", "1");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(out);
    ui::step(format_args!("fuzzing {target} for {} s", time.as_secs()));
    let status = proc::Process::start(&mut command)?.wait(time + GRACE)?;
    let text = fs::read(&log).with_context(|| format!("can't read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let finding = match status.success() {
        true => None,
        false => Some(describe(program, target, &text, &history)?),
    };
    let stat = |name: &str| last_word_after(&text, &format!("stat::{name}:"));
    let progress = text.lines().rev().find(|line| line.contains(" cov: "));
    let field = |name| {
        progress
            .map_or("", |line| word_after(line, name))
            .to_string()
    };
    Ok(Outcome {
        target: target.into(),
        runs: stat("number_of_executed_units"),
        per_second: stat("average_exec_per_sec"),
        edges: field("cov:"),
        corpus: field("corp:").split('/').next().unwrap_or("").into(),
        finding,
    })
}

fn write_seeds(program: &Path, target: &str, dir: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.args(["seeds", target]).arg(dir);
    command.arg(image::root().join(OURS));
    let suite = std::env::var_os(SUITE).map(PathBuf::from);
    command.args(suite.filter(|dir| dir.is_dir()));
    proc::run(&mut command, REPLAY_LIMIT).map(drop)
}

/// Says what libFuzzer found: the panic, the input, and whether that input alone shows it.
fn describe(program: &Path, target: &str, log: &str, history: &Path) -> Result<String> {
    let panic = log
        .lines()
        .skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: libFuzzer"))
        .take(3)
        .collect::<Vec<_>>()
        .join("\n  ");
    let file = log
        .lines()
        .rev()
        .find_map(|line| line.split_once("Test unit written to "))
        .map(|(_, file)| PathBuf::from(file.trim()));
    let Some(file) = file else {
        return Ok(format!("{target}: ends early, see its log:\n  {panic}"));
    };
    let alone = rerun(program, target, &file)?.failed;
    let (file, how) = match alone || !history.exists() {
        true => (file, "this input"),
        false => {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let kept = file.with_file_name(format!("history-{name}"));
            fs::rename(history, &kept).context("can't keep the history")?;
            (kept, "this input after those before it")
        }
    };
    Ok(format!(
        "{target} fails with {how}:\n  {panic}\nTo run it again:\n  cargo xtask fuzz {target} --replay {}",
        file.display()
    ))
}

/// How a finding ended this time.
struct Rerun {
    failed: bool,
    text: String,
}

/// Runs one input, or a history of them.
fn rerun(program: &Path, target: &str, file: &Path) -> Result<Rerun> {
    let history = file
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("history"));
    let mut command = Command::new(program);
    match history {
        true => command.args(["history", target]).arg(file),
        false => command.arg(target).arg(file),
    };
    command.env("RUST_BACKTRACE", "1");
    let output = proc::start_piped(&mut command)?.output(REPLAY_LIMIT)?;
    Ok(Rerun {
        failed: !output.status.success(),
        text: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn word_after<'a>(line: &'a str, name: &str) -> &'a str {
    let rest = line.split_once(name).map_or("", |(_, rest)| rest);
    rest.split_whitespace().next().unwrap_or("")
}

fn last_word_after(text: &str, name: &str) -> String {
    let line = text.lines().rev().find(|line| line.contains(name));
    line.map_or("", |line| word_after(line, name)).to_string()
}

fn table(outcomes: &[Outcome]) -> String {
    let columns = [
        ("target", Align::Left),
        ("executions", Align::Right),
        ("per second", Align::Right),
        ("edges", Align::Right),
        ("corpus", Align::Right),
        ("result", Align::Left),
    ];
    let number = |text: &str| text.parse().map_or_else(|_| "-".into(), ui::thousands);
    let row = |o: &Outcome| {
        let result = if o.finding.is_some() { "FAILED" } else { "ok" };
        vec![
            o.target.clone(),
            number(&o.runs),
            number(&o.per_second),
            number(&o.edges),
            number(&o.corpus),
            result.into(),
        ]
    };
    ui::table(&columns, &outcomes.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "#2\tINITED cov: 9 ft: 10 corp: 1/1b exec/s: 0 rss: 40Mb\n\
        #65536\tpulse  cov: 317 ft: 500 corp: 20/40Kb lim: 80 exec/s: 32768 rss: 44Mb\n\
        stat::number_of_executed_units: 70000\nstat::average_exec_per_sec:     35000\n";

    #[test]
    fn figures_are_read_from_what_libfuzzer_says() {
        assert_eq!(
            last_word_after(LOG, "stat::number_of_executed_units:"),
            "70000"
        );
        assert_eq!(last_word_after(LOG, "stat::average_exec_per_sec:"), "35000");
        let progress = LOG.lines().rev().find(|line| line.contains(" cov: "));
        assert_eq!(word_after(progress.unwrap(), "cov:"), "317");
        assert_eq!(last_word_after(LOG, "stat::none:"), "");
    }
}
