//! cpuset: the CPUs of interrupts and threads.
//!
//! FreeBSD: usr.bin/cpuset/cpuset.c
//! Differs from FreeBSD: there are no sets with numbers, processes or memory domains.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sys::errno::Errno;
use sys::kern::kern_intr::{IntrPart, intr_getaffinity, intr_setaffinity};
use sys::kern::kern_thread::threads;
use sys::machine::{CpuSet, MAXCPU};

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::outln;
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: cpuset -g -t tid | -x irq
       cpuset -l cpu-list -x irq
";

/// Runs `cpuset`.
pub(super) fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

/// Whose CPUs.
#[derive(Clone, Copy)]
enum Which {
    Tid(u32),
    Irq(u32),
}

fn run(env: &Env) -> Result<(), Failure> {
    let (mut get, mut list, mut which) = (false, None, None);
    let mut getopt = Getopt::new(&env.args, "gl:t:x:");
    for option in getopt.by_ref() {
        let chosen = match option.map_err(Failure::Usage)? {
            ('g', _) => {
                get = true;
                continue;
            }
            ('l', value) => {
                list = Some(value);
                continue;
            }
            ('t', value) => Which::Tid(id("tid", value)?),
            ('x', value) => Which::Irq(id("irq", value)?),
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        };
        if which.replace(chosen).is_some() {
            return Err(Failure::Usage("only one of -t and -x can be given".into()));
        }
    }
    if !getopt.operands().is_empty() {
        return Err(Failure::Usage("there are no commands to start".into()));
    }
    let Some(which) = which else {
        return Err(Failure::Usage("one of -t and -x is needed".into()));
    };
    match (get, list, which) {
        (true, None, which) => show(env, which),
        (false, Some(list), Which::Irq(irq)) => {
            let cpus = parse_list(list).map_err(Failure::Other)?;
            intr_setaffinity(irq, IntrPart::Both, cpus).map_err(io::call("setaffinity"))
        }
        (false, Some(_), Which::Tid(_)) => Err(Failure::Usage(
            "a thread chooses its CPUs itself: -l takes an irq".into(),
        )),
        _ => Err(Failure::Usage("one of -g and -l is needed".into())),
    }
}

fn id(what: &str, word: &str) -> Result<u32, Failure> {
    let number = io::number(what, word, 0, u64::from(u32::MAX))?;
    Ok(number as u32)
}

#[doc(alias = "printaffinity")]
fn show(env: &Env, which: Which) -> Result<(), Failure> {
    let (what, id, cpus) = match which {
        Which::Irq(irq) => ("irq", irq, intr_getaffinity(irq, IntrPart::Both)),
        Which::Tid(tid) => {
            let thread = threads().into_iter().find(|thread| thread.tid() == tid);
            let cpus = thread.map(|thread| thread.affinity());
            ("tid", tid, cpus.ok_or(Errno::ESRCH))
        }
    };
    let cpus = cpus.map_err(io::call("getaffinity"))?;
    outln!(env, "{what} {id} mask: {}", render(cpus));
    Ok(())
}

fn render(cpus: CpuSet) -> String {
    let words: Vec<String> = cpus.iter().map(|cpu| cpu.to_string()).collect();
    words.join(", ")
}

/// Reads `0,2-3`, or `all`.
#[doc(alias = "parsecpulist")]
fn parse_list(list: &str) -> Result<CpuSet, String> {
    if list.eq_ignore_ascii_case("all") {
        return Ok(CpuSet::all());
    }
    let malformed = || format!("Malformed list {list}");
    let number = |word: &str| {
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        match word.parse::<usize>() {
            Ok(cpu) if cpu < MAXCPU => Ok(cpu),
            _ => {
                let last = MAXCPU - 1;
                Err(format!("List entry {word} exceeds maximum of {last}"))
            }
        }
    };
    let mut cpus = CpuSet::EMPTY;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(malformed());
        }
        cpus = (first..=last).fold(cpus, CpuSet::with);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_numbers_and_ranges() {
        for (list, cpus) in [("0", 0b1), ("1", 0b10), ("0,1", 0b11), ("2-4,0", 0b11101)] {
            assert_eq!(parse_list(list), Ok(CpuSet(cpus)), "{list}");
        }
        assert_eq!(render(CpuSet(0b1101)), "0, 2, 3");
    }

    #[test]
    fn bad_lists_are_told() {
        for list in ["", ",", "0,", "1-", "-1", "x", "0 1", "3-2", "1-2-3", "+1"] {
            assert_eq!(parse_list(list), Err(format!("Malformed list {list}")));
        }
        for list in [MAXCPU.to_string(), "99999999999999999999999".to_string()] {
            let error = format!("List entry {list} exceeds maximum of {}", MAXCPU - 1);
            assert_eq!(parse_list(&list), Err(error));
        }
    }
}
