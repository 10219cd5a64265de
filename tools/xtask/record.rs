//! The record of the last soak, `tools/doc/soak.md`: each check with the date and commit it was last made at.
//!
//! A whole soak takes hours, so that a soak of some checks (`cargo xtask soak fuzz`) renews their lines and leaves the others,
//! which keep their own date and commit. A whole one writes all lines anew.

use crate::image;
use crate::proc;
use crate::suite::Suite;
use crate::ui;
use anyhow::{Context, Result};
use std::process::Command;
use std::time::Duration;

const PATH: &str = "tools/doc/soak.md";
const FENCE: &str = "```";
const INDENT: &str = "    ";
/// Limit for `git` and `date`.
const LIMIT: Duration = Duration::from_secs(10);

/// Writes what `suite` found; keeps the lines of other checks if it was only a part.
pub fn write(suite: &Suite, part: bool) -> Result<()> {
    let path = image::root().join(PATH);
    let old = match std::fs::read_to_string(&path) {
        Ok(text) if part => text,
        _ => String::new(),
    };
    let stamp = format!("{} {}", today()?, commit());
    let text = render(&merge(&old, suite.lines(), &stamp));
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    ui::step(format_args!("the result is in {}", path.display()));
    Ok(())
}

fn today() -> Result<String> {
    let mut date = Command::new("date");
    let date = proc::run(date.args(["-u", "+%Y-%m-%d"]), LIMIT)?;
    Ok(date.trim().to_string())
}

/// The commit that was checked, with a `+` if files were changed since.
fn commit() -> String {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(image::root()).args(args);
        proc::run(&mut git, LIMIT).unwrap_or_default()
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"]);
    // The record itself may have been written by an earlier part.
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        &format!(":!{PATH}"),
    ]);
    let mark = if changed.trim().is_empty() { "" } else { "+" };
    format!("{}{mark}", commit.trim())
}

/// The entries of the record `old`, with those of `new` in place of older ones of the same checks. What a check says in further
/// lines follows indented.
fn merge(old: &str, new: &[String], stamp: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let record = old
        .lines()
        .skip_while(|line| !line.starts_with(FENCE))
        .skip(1)
        .take_while(|line| !line.starts_with(FENCE));
    for line in record {
        match lines.last_mut().filter(|_| line.starts_with(INDENT)) {
            Some(entry) => *entry = format!("{entry}\n{line}"),
            None => lines.push(line.to_string()),
        }
    }
    for line in new {
        let line = line.replace('\n', &format!("\n{INDENT}"));
        let stamped = format!("{stamp}  {line}");
        match lines.iter_mut().find(|old| name(old) == name(&stamped)) {
            Some(old) => *old = stamped,
            None => lines.push(stamped),
        }
    }
    lines
}

/// The check that a line of the record is about: `DATE COMMIT  STATUS NAME (SECONDS s): …` or `… skipped NAME: why`.
fn name(line: &str) -> &str {
    let mut rest = line;
    for _ in 0..3 {
        rest = rest
            .split_once(' ')
            .map_or("", |(_, rest)| rest.trim_start());
    }
    let end = rest.find(" (").or_else(|| rest.find(": "));
    &rest[..end.unwrap_or(rest.len())]
}

fn render(lines: &[String]) -> String {
    let failed = lines.iter().filter(|l| l.contains("  FAILED ")).count();
    let skipped = lines.iter().filter(|l| l.contains("  skipped ")).count();
    let passed = lines.len() - failed - skipped;
    let mut text = String::from(
        "# The last soak\n\n\
         What `cargo xtask soak` found, whole or in parts: each check with the date (UTC) and commit it was last made at; `+` after a commit:\n\
         with local changes. Sizes and seeds are in `qemu/scenarios.toml`.\n\n",
    );
    text.push_str(FENCE);
    text.push_str("text\n");
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(FENCE);
    text.push_str(&format!(
        "\n\n{passed} checks passed, {failed} failed, {skipped} skipped.\n"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_renews_its_own_lines_and_keeps_the_others() {
        let whole = [
            "ok      format (0.9 s)".to_string(),
            "ok      theory (3.0 s): \nnewreno: well\ncubic: well".to_string(),
            "FAILED  boot pc with 1 CPUs, 128M (27.4 s): no prompt".to_string(),
            "skipped relay, seed 1: no root".to_string(),
        ];
        let old = render(&merge("", &whole, "2026-01-01 aaaa"));
        assert!(old.ends_with("2 checks passed, 1 failed, 1 skipped.\n"));
        let part = [
            "ok      boot pc with 1 CPUs, 128M (3.0 s): prompt".to_string(),
            "ok      relay, seed 1 (9.0 s): 1 MiB".to_string(),
        ];
        let lines = merge(&old, &part, "2026-02-02 bbbb+");
        assert_eq!(
            lines,
            [
                "2026-01-01 aaaa  ok      format (0.9 s)",
                "2026-01-01 aaaa  ok      theory (3.0 s): \n    newreno: well\n    cubic: well",
                "2026-02-02 bbbb+  ok      boot pc with 1 CPUs, 128M (3.0 s): prompt",
                "2026-02-02 bbbb+  ok      relay, seed 1 (9.0 s): 1 MiB",
            ]
        );
    }
}
