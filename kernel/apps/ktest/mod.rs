//! A torture of the kernel's own machinery on all CPUs.
//!
//! FreeBSD: sys/tests/ (callout_test, epoch_test), tools/regression
//!
//! Everything checks itself: a value that two threads changed at once, a thread that moved while it was pinned, a sleep
//! that ended early, or a callout that ran too often is an error with its words. What the operations cost is
//! [`kbench`](super::kbench)'s.

use alloc::format;
use alloc::string::String;

use sys::time::Sbintime;

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::outln;
use crate::shell::getopt::Getopt;

mod lending;
mod locks;
mod mixed;
mod sync;

/// One subject: its name on the command line, and what it does for a span of time; the report, or what went wrong.
type Subject = (&'static str, fn(Sbintime) -> Result<String, String>);

const SUBJECTS: &[Subject] = &[
    ("mixed", mixed::torture),
    ("locks", locks::torture),
    ("lending", lending::torture),
    ("sync", sync::torture),
];

/// Runs `ktest`.
pub fn main(env: &Env) -> i32 {
    let names = SUBJECTS.iter().map(|(name, _)| format!(" [{name}]"));
    let usage = format!("usage: ktest [-t seconds]{}\n", names.collect::<String>());
    io::finish(env, &usage, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let mut time = Sbintime::from_s(5);
    let mut options = Getopt::new(&env.args, "t:");
    for option in options.by_ref() {
        let ('t', value) = option.map_err(Failure::Usage)? else {
            continue;
        };
        time = io::seconds("time", value)?;
    }
    let wanted = options.operands();
    if let Some(unknown) = wanted
        .iter()
        .find(|word| !SUBJECTS.iter().any(|(name, _)| name == word))
    {
        return Err(Failure::Usage(format!("no subject named {unknown}")));
    }
    for (name, torture) in SUBJECTS {
        if env.interrupted() {
            return Err(Failure::Interrupted);
        }
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            let report =
                torture(time).map_err(|trouble| Failure::Other(format!("{name}: {trouble}")))?;
            outln!(env, "ktest: {name}: {report}");
        }
    }
    outln!(env, "ktest: ok");
    Ok(())
}

#[cfg(test)]
mod tests {
    use sys::machine::hosted::Machine;

    use super::*;

    #[test]
    fn nothing_goes_wrong_under_torture_on_any_number_of_cpus() {
        for seed in 0..12 {
            for (name, torture) in SUBJECTS {
                Machine::builder()
                    .seed(seed)
                    .cpus(1 + seed as usize % 4)
                    .run(|| {
                        let report = torture(Sbintime::from_ms(20));
                        assert!(report.is_ok(), "{name}, seed {seed}: {report:?}");
                    });
            }
        }
    }
}
