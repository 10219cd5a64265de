//! A list of checks: each passes, fails with a reason, or is skipped with a reason.

use anyhow::{Result, bail};
use std::time::Instant;

/// The checks made so far.
pub struct Suite {
    began: Instant,
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Names and reasons of what failed or was skipped.
    remarks: Vec<String>,
    /// One line per check, for a report.
    lines: Vec<String>,
    only: Vec<String>,
}

impl Suite {
    /// A suite that makes only the checks whose names contain one of `only`, or all.
    pub fn new(only: &[String]) -> Self {
        Self {
            began: Instant::now(),
            passed: 0,
            failed: 0,
            skipped: 0,
            remarks: Vec::new(),
            lines: Vec::new(),
            only: only.to_vec(),
        }
    }

    /// Whether a check is asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| name.contains(o.as_str()))
    }

    /// Makes one check. What it returns is said beside its name.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<String>) {
        self.check_many(name, || check().map(|said| (1, said)));
    }

    /// Makes a check that counts as several.
    pub fn check_many(&mut self, name: &str, check: impl FnOnce() -> Result<(u64, String)>) {
        if !self.wants(name) {
            return;
        }
        eprintln!("xtask: {name} ...");
        let began = Instant::now();
        let outcome = check();
        let seconds = began.elapsed().as_secs_f64();
        let line = match outcome {
            Ok((count, said)) => {
                self.passed += count;
                let said = if said.is_empty() {
                    said
                } else {
                    format!(": {said}")
                };
                format!("ok      {name} ({seconds:.1} s){said}")
            }
            Err(e) => {
                self.failed += 1;
                self.remarks.push(format!("FAILED  {name}: {e:#}"));
                format!("FAILED  {name} ({seconds:.1} s): {e:#}")
            }
        };
        println!("{line}");
        self.lines.push(line);
    }

    /// Names a check that can't be made here.
    pub fn skip(&mut self, name: &str, why: &str) {
        if !self.wants(name) {
            return;
        }
        self.skipped += 1;
        let line = format!("skipped {name}: {why}");
        println!("{line}");
        self.remarks.push(line.clone());
        self.lines.push(line);
    }

    /// One line per check so far.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The closing line.
    pub fn counts(&self) -> String {
        let Self {
            passed,
            failed,
            skipped,
            ..
        } = self;
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    /// Says again what failed and was skipped, then the counts; an error if anything failed.
    pub fn finish(self) -> Result<()> {
        println!();
        for remark in &self.remarks {
            println!("{remark}");
        }
        println!("took {:.0} s", self.began.elapsed().as_secs_f64());
        println!("{}", self.counts());
        if self.failed > 0 {
            bail!("{} checks failed", self.failed);
        }
        if self.passed == 0 {
            bail!("no check was made");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn failures_and_skips_are_counted_and_make_the_suite_fail() {
        let mut suite = Suite::new(&[]);
        suite.check("a", || Ok(String::new()));
        suite.check_many("b", || Ok((5, "five".into())));
        suite.check("c", || Err(anyhow!("no")));
        suite.skip("d", "no root");
        assert_eq!(suite.counts(), "6 passed, 1 failed, 1 skipped");
        assert!(suite.finish().is_err());
    }

    #[test]
    fn only_what_is_asked_for_is_checked() {
        let mut suite = Suite::new(&["boot".to_string()]);
        suite.check("boot pc", || Ok(String::new()));
        suite.check("format", || Err(anyhow!("not asked for")));
        assert_eq!(suite.counts(), "1 passed, 0 failed, 0 skipped");
        assert!(suite.finish().is_ok());
    }
}
