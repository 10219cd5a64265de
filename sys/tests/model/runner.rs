//! Explores the models, each and each of its mutants in a process of its own.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use sys::machine::model::{MOST_TURNS, Model, Site, SiteKind, last_steps};

/// Steps that the report of a failure lists.
const STEPS: usize = 60;

/// A model.
pub struct Subject {
    /// Name, for the command line.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// The machine.
    pub model: fn() -> Model,
    /// What its first thread does.
    pub body: fn(),
    /// Preemptions in an execution: in the small run and in the large one.
    pub bounds: [usize; 2],
    /// Mutants that it must notice.
    pub mutants: &'static [Mutant],
}

/// A place in the source, and what is left out there.
pub struct Mutant {
    /// The file.
    file: &'static str,
    /// What stands in its line.
    text: &'static str,
    kind: SiteKind,
}

impl Mutant {
    pub const fn of(file: &'static str, text: &'static str, kind: SiteKind) -> Mutant {
        Mutant { file, text, kind }
    }

    fn covers(&self, site: &Site) -> bool {
        site.kind == self.kind
            && site.file.ends_with(self.file)
            && source_of(site).contains(self.text)
    }
}

/// Names that the arguments choose, and how they are explored.
struct Options {
    names: Vec<String>,
    mutants: bool,
    large: bool,
    bound: Option<usize>,
    jobs: usize,
}

pub fn main(groups: &[&[Subject]]) -> ExitCode {
    let subjects: Vec<&Subject> = groups.iter().copied().flatten().collect();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--explore") {
        explore(&subjects, &arguments[1..]);
        return ExitCode::SUCCESS;
    }
    let options = parse(&arguments);
    let chosen: Vec<&Subject> = subjects
        .into_iter()
        .filter(|subject| {
            options.names.is_empty() || options.names.iter().any(|name| subject.name.contains(name))
        })
        .collect();
    if chosen.is_empty() {
        eprintln!("no model of that name");
        return ExitCode::FAILURE;
    }
    run_all(&chosen, &options)
}

fn parse(arguments: &[String]) -> Options {
    let mut options = Options {
        names: Vec::new(),
        mutants: false,
        large: false,
        bound: None,
        jobs: std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--mutants" => options.mutants = true,
            "--large" => options.large = true,
            "--bound" => options.bound = rest.next().and_then(|n| n.parse().ok()),
            name => options.names.push(name.into()),
        }
    }
    options
}

// The process that explores.

/// Explores one model, or the mutant of it that the arguments name, and says what it met.
fn explore(subjects: &[&Subject], arguments: &[String]) {
    let [name, bound, mutant @ ..] = arguments else {
        panic!("--explore NAME BOUND [MUTANT]");
    };
    let subject = subjects.iter().find(|subject| subject.name == name);
    let subject = subject.expect("a known model");
    let bound = bound.parse().expect("a number");
    let mutant = mutant
        .first()
        .map(|site| Site::parse(site).expect("a site"));
    // loom's other threads are in the middle of things: nothing of them is unwound.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}\nThe last steps:\n{}", last_steps(STEPS));
        std::process::exit(101);
    }));
    let model = (subject.model)().preemptions(bound).mutant(mutant);
    let report = model.check(subject.body);
    println!("executions {}", report.executions);
    for site in report.sites {
        println!("site {site}");
    }
}

/// What an exploring process said.
struct Outcome {
    executions: u64,
    sites: BTreeSet<Site>,
    time: Duration,
    /// What was wrong in the execution that failed.
    failure: Option<String>,
}

fn explored(subject: &Subject, bound: usize, mutant: Option<&Site>) -> Outcome {
    let start = Instant::now();
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.args(["--explore", subject.name, &bound.to_string()]);
    command.args(mutant.map(|site| site.to_string()));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.output().expect("this program can be started");
    let mut outcome = Outcome {
        executions: 0,
        sites: BTreeSet::new(),
        time: start.elapsed(),
        failure: None,
    };
    for line in BufReader::new(&output.stdout[..]).lines() {
        let line = line.expect("text");
        match line.split_once(' ') {
            Some(("executions", n)) => outcome.executions = n.parse().expect("a number"),
            Some(("site", site)) => outcome.sites.extend(Site::parse(site)),
            _ => println!("{line}"),
        }
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        outcome.failure = Some(said.trim().into());
    }
    outcome
}

// The process that reports.

fn run_all(chosen: &[&Subject], options: &Options) -> ExitCode {
    let bound = |subject: &Subject| {
        options
            .bound
            .unwrap_or(subject.bounds[usize::from(options.large)])
    };
    let start = Instant::now();
    let mut failed = 0;
    let models = in_parallel(chosen, options.jobs, |subject| {
        explored(subject, bound(subject), None)
    });
    for (subject, outcome) in chosen.iter().zip(&models) {
        let verdict = match outcome.failure {
            None => "ok",
            Some(_) => "FAILS",
        };
        let (name, bound, executions) = (subject.name, bound(subject), outcome.executions);
        let time = outcome.time.as_secs_f64();
        println!(
            "{name}: {verdict}, {executions} executions with at most {bound} preemptions, {time:.1} s"
        );
        println!("    {}", subject.about);
        if let Some(failure) = &outcome.failure {
            println!("{failure}");
            failed += 1;
        }
    }
    if failed == 0 {
        failed += run_mutants(chosen, &models, options, bound);
    }
    let executions: u64 = models.iter().map(|outcome| outcome.executions).sum();
    let (count, time) = (chosen.len(), start.elapsed().as_secs_f64());
    println!("In each execution all orders are tried as far as turn {MOST_TURNS} of busy waiting.");
    println!("{count} models, {executions} executions, {failed} failures, {time:.1} s");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Explores the mutants that a model must notice, or all that it meets; returns how many of the former it does not.
fn run_mutants(
    chosen: &[&Subject],
    models: &[Outcome],
    options: &Options,
    bound: impl Fn(&Subject) -> usize + Sync,
) -> usize {
    let mut failed = 0;
    let mut mutants = Vec::new();
    for (subject, outcome) in chosen.iter().zip(models) {
        for site in &outcome.sites {
            let listed = subject.mutants.iter().any(|mutant| mutant.covers(site));
            if listed || (options.mutants && site.kind != SiteKind::Store) {
                mutants.push((*subject, site));
            }
        }
    }
    let caught = in_parallel(&mutants, options.jobs, |(subject, site)| {
        explored(subject, bound(subject), Some(site)).failure
    });
    for ((subject, site), failure) in mutants.iter().zip(&caught) {
        let verdict = match failure {
            Some(failure) => format!("caught: {}", failure_line(failure)),
            None => "not noticed".into(),
        };
        let file = site.file.rsplit('/').next().unwrap_or_default();
        let (name, line, kind) = (subject.name, site.line, site.kind);
        println!("{name} without the {kind} of {file}:{line}: {verdict}");
    }
    for subject in chosen {
        for mutant in subject.mutants {
            let noticed = mutants.iter().zip(&caught).any(|((of, site), failure)| {
                of.name == subject.name && mutant.covers(site) && failure.is_some()
            });
            if !noticed {
                println!(
                    "{}: does not notice `{}` without its {}",
                    subject.name, mutant.text, mutant.kind
                );
                failed += 1;
            }
        }
    }
    let count = caught.iter().flatten().count();
    println!("{count} of {} mutants noticed", mutants.len());
    failed
}

/// What went wrong, without where.
fn failure_line(text: &str) -> &str {
    let lines = text.lines().filter(|line| !line.starts_with("panicked at"));
    lines
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("it failed")
}

/// The line of `site`.
fn source_of(site: &Site) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let text = std::fs::read_to_string(format!("{root}/{}", site.file)).unwrap_or_default();
    let line = text.lines().nth(site.line as usize - 1);
    line.unwrap_or_default().into()
}

/// Calls `f` for each of `items`, some at a time; returns the results in order.
fn in_parallel<T: Sync, R: Send>(items: &[T], jobs: usize, f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    let result = f(item);
                    results.lock().expect("no panics").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no panics");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
