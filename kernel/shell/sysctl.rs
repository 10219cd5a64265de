//! sysctl: gets or sets kernel state.
//!
//! FreeBSD: sbin/sysctl/sysctl.c

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use sys::errno::Errno;
use sys::sysctl::{SysctlTree, root};

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::shell::getopt::Getopt;

const USAGE: &str = "\
usage: sysctl [-bdehiNnoqTtWx] [ -B <bufsize> ] [-f filename] name[=value] ...
       sysctl [-bdehNnoqTtWx] [ -B <bufsize> ] -a
";

#[derive(Default)]
struct Options {
    all: bool,
    describe: bool,
    equals: bool,
    ignore: bool,
    values_only: bool,
    names_only: bool,
    quiet: bool,
}

/// Runs `sysctl`.
pub(super) fn main(env: &Env) -> i32 {
    match run(env) {
        Ok(status) => status,
        Err(failure) => io::finish(env, USAGE, Err(failure)),
    }
}

fn run(env: &Env) -> Result<i32, Failure> {
    let mut options = Options::default();
    let mut getopt = Getopt::new(&env.args, "AabdehiNnoqx");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('a' | 'A', _) => options.all = true,
            ('d', _) => options.describe = true,
            ('e', _) => options.equals = true,
            ('i', _) => options.ignore = true,
            ('N', _) => options.names_only = true,
            ('n', _) => options.values_only = true,
            ('q', _) => options.quiet = true,
            ('h' | 'o' | 'x' | 'b', _) => {}
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        }
    }
    let names = getopt.operands();
    if options.all != names.is_empty() {
        return Err(Failure::Usage(String::new()));
    }
    if options.all {
        show_all(env, &options);
        return Ok(0);
    }
    let mut status = 0;
    for word in names {
        if !one(env, &options, word) {
            status = 1;
        }
    }
    Ok(status)
}

/// The instance's tree stands before the machine's.
fn trees(env: &Env) -> [&SysctlTree; 2] {
    [&env.vnet.sysctl, root()]
}

/// All names at and below `prefix`, those of the instance in place of the machine's.
fn walk(env: &Env, prefix: &str) -> Vec<(String, String)> {
    merged(trees(env).map(|tree| tree.walk(prefix)))
}

/// What the trees list, the machine's after the instance's.
fn merged(lists: [Vec<(String, String)>; 2]) -> Vec<(String, String)> {
    let mut all = lists.concat();
    // The sort is stable, so that of two equal names the instance's stays.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.dedup_by(|later, earlier| later.0 == earlier.0);
    all
}

fn show_all(env: &Env, options: &Options) {
    // FreeBSD: names and descriptions alone are short.
    let whole = options.names_only || options.describe;
    let all = if whole {
        walk(env, "")
    } else {
        merged(trees(env).map(SysctlTree::walk_all))
    };
    for (name, value) in all {
        show(env, options, &name, &value);
    }
}

fn show(env: &Env, options: &Options, name: &str, value: &str) {
    let description;
    let value = if options.describe {
        description = trees(env)
            .into_iter()
            .find_map(|tree| tree.description(name))
            .unwrap_or_default();
        description.as_str()
    } else {
        value
    };
    let separator = if options.equals { "=" } else { ": " };
    if options.names_only {
        env.out.write(&format!("{name}\n"));
    } else if options.values_only {
        env.out.write(&format!("{value}\n"));
    } else {
        env.out.write(&format!("{name}{separator}{value}\n"));
    }
}

/// Does one word of the command line; false if it failed.
fn one(env: &Env, options: &Options, word: &str) -> bool {
    let Some((name, value)) = word.split_once('=') else {
        let found = walk(env, word.trim_end_matches('.'));
        if found.is_empty() {
            if !options.ignore {
                unknown(env, options, word);
                return false;
            }
            return true;
        }
        for (name, value) in found {
            show(env, options, &name, &value);
        }
        return true;
    };
    let (name, value) = (name.trim(), value.trim());
    let mut outcome = Err(Errno::ENOENT);
    for tree in trees(env) {
        outcome = tree.set(name, value);
        if outcome != Err(Errno::ENOENT) {
            break;
        }
    }
    match outcome {
        Ok((old, new)) => {
            if options.values_only {
                env.out.write(&format!("{new}\n"));
            } else if !options.quiet {
                env.out.write(&format!("{name}: {old} -> {new}\n"));
            }
            true
        }
        Err(Errno::ENOENT) if !walk(env, name).is_empty() => {
            env.out
                .write(&format!("sysctl: oid '{name}' isn't a leaf node\n"));
            false
        }
        Err(Errno::ENOENT) => {
            if options.ignore {
                return true;
            }
            unknown(env, options, name);
            false
        }
        Err(Errno::EPERM) => {
            env.out
                .write(&format!("sysctl: oid '{name}' is read only\n"));
            false
        }
        Err(errno) => {
            env.out.write(&format!("sysctl: {name}={value}: {errno}\n"));
            false
        }
    }
}

fn unknown(env: &Env, options: &Options, name: &str) {
    if !options.quiet {
        env.out.write(&format!("sysctl: unknown oid '{name}'\n"));
    }
}
