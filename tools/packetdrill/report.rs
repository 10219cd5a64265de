//! Says how scripts went.

use crate::executor::{Failure, seconds};
use crate::suite::Finished;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// Scripts that are known to fail, and why: what the stack does not have yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KnownFailures {
    /// Patterns with at most one `*`, each with its reason.
    patterns: Vec<(String, String)>,
}

impl KnownFailures {
    /// Reads lines `pattern: reason`; `#` begins a comment, and the reason `-` says that what fits does not fail.
    pub fn parse(text: &str) -> Result<KnownFailures, String> {
        let mut patterns = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let Some((pattern, reason)) = line.split_once(": ") else {
                return Err(format!("line {}: expected `pattern: reason`", number + 1));
            };
            patterns.push((pattern.trim().to_string(), reason.trim().to_string()));
        }
        Ok(KnownFailures { patterns })
    }

    /// Why a script is known to fail.
    pub fn reason(&self, name: &str) -> Option<&str> {
        let mut fit = self.patterns.iter().filter(|(p, _)| matches(p, name));
        let (_, reason) = fit.next()?;
        (reason != "-").then_some(reason)
    }
}

/// Whether `name` is `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(rest) = name.strip_prefix(head) else {
        return false;
    };
    rest.char_indices()
        .map(|(at, _)| at)
        .chain([rest.len()])
        .any(|at| matches(tail, &rest[at..]))
}

/// What to print.
#[derive(Clone, Copy, Default, Debug)]
pub struct Options {
    /// The whole exchange of each script.
    pub verbose: bool,
    /// No warnings.
    pub quiet: bool,
}

/// How a run went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// What to print.
    pub text: String,
    /// Scripts that passed.
    pub passed: usize,
    /// Scripts that failed.
    pub failed: usize,
    /// Scripts that failed and were not known to.
    pub unexpected: usize,
    /// Scripts that were known to fail, and passed.
    pub better: usize,
}

/// Reports on scripts: those that failed, directories, counts.
pub fn report(finished: &[Finished], known: Option<&KnownFailures>, options: Options) -> Summary {
    let mut summary = Summary::default();
    let mut directories: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    let mut better = BTreeSet::new();
    for script in finished {
        let dir = Path::new(&script.name).parent().and_then(Path::to_str);
        let counts = directories.entry(dir.unwrap_or("")).or_default();
        let reason = known.and_then(|known| known.reason(&script.name));
        let failure = script.outcome.failure.as_ref();
        match failure {
            None => {
                counts.0 += 1;
                summary.passed += 1;
                if reason.is_some() {
                    better.insert(script.name.as_str());
                }
            }
            Some(_) => {
                counts.1 += 1;
                summary.failed += 1;
                match reason {
                    Some(reason) => *reasons.entry(reason).or_default() += 1,
                    None => summary.unexpected += 1,
                }
            }
        }
        let text = &mut summary.text;
        if options.verbose {
            let verdict = if failure.is_none() { "PASS" } else { "FAIL" };
            push(text, format_args!("{verdict} {}", script.name));
            for happening in &script.outcome.exchange {
                push(
                    text,
                    format_args!("  {:>12} {}", seconds(happening.at), happening.what),
                );
            }
        }
        if !options.quiet {
            for warning in &script.outcome.warnings {
                tell(text, "warning", script, warning);
            }
        }
        if let Some(failure) = failure
            && (reason.is_none() || options.verbose)
        {
            tell(text, "FAIL", script, failure);
        }
    }
    let text = &mut summary.text;
    if directories.len() > 1 {
        push(text, format_args!("\n passed  failed  directory"));
        for (dir, (passed, failed)) in &directories {
            push(text, format_args!("{passed:>7} {failed:>7}  {dir}"));
        }
        push(text, format_args!(""));
    }
    for (reason, count) in &reasons {
        push(text, format_args!("{count} known to fail: {reason}"));
    }
    for name in &better {
        push(text, format_args!("known to fail, but passes: {name}"));
    }
    summary.better = better.len();
    push(
        text,
        format_args!("{} passed, {} failed", summary.passed, summary.failed),
    );
    summary
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

fn tell(text: &mut String, verdict: &str, script: &Finished, failure: &Failure) {
    let pos = failure.pos;
    push(
        text,
        format_args!(
            "{verdict} {}:{}:{}: {}",
            script.name, pos.line, pos.column, failure.reason
        ),
    );
    let line = pos
        .line
        .checked_sub(1)
        .and_then(|at| script.text.lines().nth(at));
    if let Some(line) = line {
        push(text, format_args!("    script    {}", line.trim()));
    }
    if let Some(seen) = &failure.seen {
        push(text, format_args!("    seen      > {seen}"));
    }
    for difference in &failure.differences {
        let (field, expected, seen) = (&difference.field, &difference.expected, &difference.seen);
        push(
            text,
            format_args!("    {field}: expected {expected}, seen {seen}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ast::Pos;
    use crate::executor::Outcome;

    fn script(name: &str, passes: bool) -> Finished {
        let failure = (!passes).then(|| Failure {
            pos: Pos { line: 2, column: 1 },
            reason: "the packet differs: window".into(),
            differences: Vec::new(),
            seen: None,
        });
        Finished {
            name: name.into(),
            text: "first\nsecond\n".into(),
            outcome: Outcome {
                failure,
                ..Outcome::default()
            },
        }
    }

    #[test]
    fn known_failures_are_counted_by_reason_and_told_when_they_pass() {
        let known =
            KnownFailures::parse("a/six-ipv6.pkt: -\n# what lacks\na/*-ipv6.pkt: no IPv6\n")
                .expect("a list");
        let scripts = [
            script("a/one-ipv4.pkt", true),
            script("a/one-ipv6.pkt", false),
            script("a/six-ipv6.pkt", true),
            script("a/two-ipv6.pkt", true),
            script("b/three.pkt", false),
        ];
        let summary = report(&scripts, Some(&known), Options::default());
        assert_eq!((summary.passed, summary.failed), (3, 2));
        assert_eq!((summary.unexpected, summary.better), (1, 1));
        assert!(
            summary
                .text
                .contains("FAIL b/three.pkt:2:1: the packet differs")
        );
        assert!(summary.text.contains("    script    second\n"));
        assert!(summary.text.contains("1 known to fail: no IPv6"));
        assert!(summary.text.contains("but passes: a/two-ipv6.pkt"));
        assert!(summary.text.ends_with("3 passed, 2 failed\n"));
        assert!(KnownFailures::parse("nonsense").is_err());
    }

    #[test]
    fn stars_stand_for_anything() {
        assert!(matches("a*", "a") && matches("*/x-*.pkt", "d/e/x-1.pkt"));
        assert!(!matches("a", "ab") && !matches("a*b", "ac"));
    }
}
