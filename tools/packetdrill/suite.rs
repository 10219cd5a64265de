//! Runs many scripts, each on its own machine, on worker threads.

use crate::executor::{Outcome, Rules, run};
use crate::parser::parse;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A script and how it went.
#[derive(Debug)]
pub struct Finished {
    /// Its path below where it was found, or as it was given.
    pub name: String,
    /// Its text.
    pub text: String,
    /// How it went.
    pub outcome: Outcome,
}

/// A script to run.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// Its path below where it was found, or as it was given.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// The scripts at and below `paths`, in order of name; names begin below a directory that was given.
pub fn find(paths: &[PathBuf]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for path in paths {
        if path.is_dir() {
            search(path, path, &mut entries)?;
        } else if path.is_file() {
            entries.push(Entry {
                name: path.display().to_string(),
                path: path.clone(),
            });
        } else {
            bail!("there is no {}", path.display());
        }
    }
    entries.sort();
    Ok(entries)
}

fn search(base: &Path, dir: &Path, entries: &mut Vec<Entry>) -> Result<()> {
    let listed = dir.read_dir();
    for entry in listed.with_context(|| format!("can't read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            search(base, &path, entries)?;
        } else if path.extension().is_some_and(|e| e == "pkt") {
            let name = path.strip_prefix(base).unwrap_or(&path);
            entries.push(Entry {
                name: name.display().to_string(),
                path,
            });
        }
    }
    Ok(())
}

/// Runs all scripts on so many threads. What comes out does not depend on how many.
pub fn run_all(entries: &[Entry], rules: &Rules, threads: usize) -> Result<Vec<Finished>> {
    let next = AtomicUsize::new(0);
    let finished = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, entries.len().max(1)) {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = run_one(entry, rules);
                    let mut finished = finished.lock().unwrap_or_else(|e| e.into_inner());
                    finished.push((entry, done));
                }
            });
        }
    });
    let mut finished = finished.into_inner().unwrap_or_else(|e| e.into_inner());
    finished.sort_by_key(|(entry, _)| *entry);
    finished.into_iter().map(|(_, done)| done).collect()
}

/// Runs one script.
pub fn run_one(entry: &Entry, rules: &Rules) -> Result<Finished> {
    let text = std::fs::read_to_string(&entry.path)
        .with_context(|| format!("can't read {}", entry.path.display()))?;
    let outcome = match parse(&text) {
        Ok(script) => run(&script, rules),
        Err(e) => Outcome {
            failure: Some(e.into()),
            ..Outcome::default()
        },
    };
    Ok(Finished {
        name: entry.name.clone(),
        text,
        outcome,
    })
}
