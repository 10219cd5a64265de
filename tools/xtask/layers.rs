//! Who imports whom: the arrows and floors of ARCHITECTURE.md §2, checked on the source text.

use crate::image;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Crates of the kernel and the crates of the workspace each may name.
const CRATES: [(&str, &[&str]); 4] = [
    ("sys", &[]),
    ("netinet", &["sys"]),
    ("drivers", &["sys"]),
    ("kernel", &["sys", "netinet", "drivers"]),
];

/// Crates whose root must forbid unsafe code.
const SAFE_CRATES: [&str; 2] = ["netinet", "drivers"];

/// The floors of `sys`, lowest first: paths below the crate's root. The longest match counts.
const FLOORS: [(&str, &[&str]); 6] = [
    ("vocabulary", &["endian", "errno", "param", "time"]),
    ("machine", &["machine"]),
    (
        "locks, threads, callouts",
        &["buf_ring", "counter", "kern", "sysctl"],
    ),
    // DMA memory and configuration space stand in `machine` as in FreeBSD, but on pages and locks.
    ("vm", &["vm", "machine::bus_dma", "machine::pci_cfg"]),
    (
        "mbufs and sockets",
        &[
            "mbuf",
            "protosw",
            "sockbuf",
            "socket",
            "socketvar",
            "kern::kern_ipc",
            "kern::kern_mbuf",
            "kern::uipc_mbuf",
            "kern::uipc_sockbuf",
            "kern::uipc_socket",
            "kern::uipc_domain",
            "kern::uipc_syscalls",
        ],
    ),
    ("net", &["net"]),
];

/// Imports of `sys` that go up a floor, and why they may.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "machine::upcall",
        "kern",
        "interrupts and start-up come from below: the one file in which the machine calls up",
    ),
    (
        "machine::hosted",
        "kern::kern_synch",
        "a test lets time pass by sleeping",
    ),
];

/// Lock code, which takes its atomics from `machine::atomic` so that the model checker can watch them.
const LOCK_CODE: [&str; 19] = [
    "buf_ring",
    "kern::kern_mutex",
    "kern::kern_rmlock",
    "kern::kern_rwlock",
    "kern::kern_sx",
    "kern::kern_thread",
    "kern::kern_timeout",
    "kern::subr_epoch",
    "kern::subr_sleepqueue",
    "kern::subr_smp",
    "kern::subr_smr",
    "kern::subr_turnstile",
    "net::mp_ring",
    "vm::uma_cache",
    "vm::uma_core",
    "vm::uma_core::keg",
    "vm::uma_core::limit",
    "vm::uma_core::reclaim",
    "vm::uma_core::stats",
];

/// An import that is not allowed.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    line: usize,
    why: String,
}

/// Checks the whole tree.
pub fn check() -> Result<()> {
    let root = image::root();
    let mut violations = Vec::new();
    for (name, may) in CRATES {
        let dir = root.join(name);
        for file in rust_files(&dir)? {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("can't read {}", file.display()))?;
            let path = file.strip_prefix(root).unwrap_or(&file);
            check_crates(name, may, path, &text, &mut violations);
            if name == "kernel" && !path.starts_with("kernel/amd64") {
                check_safe(path, &text, &mut violations);
            }
            if name == "sys" {
                check_floors(path, &text, &mut violations);
                check_atomics(path, &text, &mut violations);
            }
        }
    }
    for name in SAFE_CRATES {
        let lib = std::fs::read_to_string(root.join(name).join("lib.rs"))?;
        if !lib.contains("#![forbid(unsafe_code)]") {
            violations.push(Violation {
                file: format!("{name}/lib.rs"),
                line: 1,
                why: "must have #![forbid(unsafe_code)]".into(),
            });
        }
    }
    if violations.is_empty() {
        return Ok(());
    }
    let lines = violations
        .iter()
        .map(|v| format!("  {}:{}: {}", v.file, v.line, v.why));
    let lines: Vec<_> = lines.collect();
    bail!(
        "{} imports against the plan:\n{}",
        lines.len(),
        lines.join("\n")
    )
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let entries = dir.read_dir();
        for entry in entries.with_context(|| format!("can't read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                // Integration tests stand outside: they may see the tools as well.
                if path.file_name().is_some_and(|n| n != "tests") || path.join("mod.rs").exists() {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn check_crates(name: &str, may: &[&str], path: &Path, text: &str, found: &mut Vec<Violation>) {
    let others = CRATES.iter().map(|(n, _)| *n);
    let forbidden: Vec<&str> = others.filter(|n| *n != name && !may.contains(n)).collect();
    for (number, line) in code_lines(text) {
        for other in &forbidden {
            if names_crate(line, other) {
                found.push(Violation {
                    file: path.display().to_string(),
                    line: number,
                    why: format!("{name} must not see {other}"),
                });
            }
        }
    }
}

/// In the kernel only `amd64/` has unsafe code.
fn check_safe(path: &Path, text: &str, found: &mut Vec<Violation>) {
    for (number, line) in code_lines(text) {
        let mut words = line.split(|c: char| !(c == '_' || c.is_alphanumeric()));
        if words.any(|w| w == "unsafe") {
            found.push(Violation {
                file: path.display().to_string(),
                line: number,
                why: "unsafe code outside kernel/amd64".into(),
            });
        }
    }
}

/// Whether a line names the crate `other`: `other::` that is no part of a longer path or word.
fn names_crate(line: &str, other: &str) -> bool {
    let needle = format!("{other}::");
    line.match_indices(&needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c == ':' || c == '_' || c.is_alphanumeric())
    })
}

/// The floor of a module path of `sys`, such as `kern::uipc_mbuf::x`.
fn floor(path: &str) -> Option<usize> {
    let mut best: Option<(usize, usize)> = None;
    for (i, (_, modules)) in FLOORS.iter().enumerate() {
        for module in *modules {
            let rest = path.strip_prefix(module);
            let whole = rest.is_some_and(|r| r.is_empty() || r.starts_with("::"));
            if whole && best.is_none_or(|(len, _)| module.len() > len) {
                best = Some((module.len(), i));
            }
        }
    }
    best.map(|(_, i)| i)
}

fn check_floors(path: &Path, text: &str, found: &mut Vec<Violation>) {
    let module = module_of(path);
    let Some(own) = floor(&module) else { return };
    let tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    for (number, import) in imports(&text[..tests]) {
        let Some(theirs) = floor(&import) else {
            continue;
        };
        if theirs > own && !excepted(&module, &import) {
            let (from, to) = (FLOORS[own].0, FLOORS[theirs].0);
            found.push(Violation {
                file: path.display().to_string(),
                line: number,
                why: format!("{import}: \"{from}\" must not see \"{to}\" above it"),
            });
        }
    }
}

fn check_atomics(path: &Path, text: &str, found: &mut Vec<Violation>) {
    if !LOCK_CODE.contains(&module_of(path).as_str()) {
        return;
    }
    let tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    for (number, line) in code_lines(&text[..tests]) {
        if line.contains("sync::atomic") {
            found.push(Violation {
                file: path.display().to_string(),
                line: number,
                why: "lock code takes its atomics from crate::machine::atomic".into(),
            });
        }
    }
}

fn excepted(module: &str, import: &str) -> bool {
    let covers = |rule: &str, path: &str| {
        path.strip_prefix(rule)
            .is_some_and(|r| r.is_empty() || r.starts_with("::"))
    };
    // The start of all services calls each of them, whatever its floor.
    if module == "kern" && (import == "vm" || import.starts_with("vm::")) {
        return true;
    }
    EXCEPTIONS
        .iter()
        .any(|(from, to, _)| covers(from, module) && covers(to, import))
}

/// `sys/kern/uipc_mbuf.rs` is `kern::uipc_mbuf`, `sys/vm/mod.rs` is `vm`.
fn module_of(path: &Path) -> String {
    let text = path.with_extension("");
    let text = text.to_string_lossy();
    let text = text.strip_prefix("sys/").unwrap_or(&text);
    let text = text.strip_suffix("/mod").unwrap_or(text);
    text.replace('/', "::")
}

/// The lines of code: comments left out.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(i, line)| {
        let code = line.split("//").next().unwrap_or("");
        (!code.trim().is_empty()).then_some((i + 1, code))
    })
}

/// Paths below `crate::` that a `use` or an expression names, with their lines; braces are opened.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut pending: Option<(usize, String)> = None;
    for (number, line) in code_lines(text) {
        if let Some((start, mut statement)) = pending.take() {
            statement.push_str(line.trim());
            if line.contains(';') {
                open_braces(&statement, start, &mut found);
            } else {
                pending = Some((start, statement));
            }
            continue;
        }
        let trimmed = line.trim();
        let is_use = trimmed.starts_with("use crate::") || trimmed.contains(" use crate::");
        if is_use {
            if trimmed.ends_with(';') {
                open_braces(trimmed, number, &mut found);
            } else {
                pending = Some((number, trimmed.to_string()));
            }
            continue;
        }
        for (at, _) in line.match_indices("crate::") {
            let path = line[at + 7..].trim_start_matches('$');
            let end = path.find(|c: char| !(c == ':' || c == '_' || c.is_alphanumeric()));
            found.push((number, path[..end.unwrap_or(path.len())].to_string()));
        }
    }
    found
}

fn open_braces(statement: &str, line: usize, found: &mut Vec<(usize, String)>) {
    let Some(at) = statement.find("crate::") else {
        return;
    };
    let tree = statement[at + 7..].trim_end_matches(';').trim();
    let mut paths = Vec::new();
    expand("", tree, &mut paths);
    found.extend(paths.into_iter().map(|p| (line, p)));
}

/// Opens `a::{b, c::{d}}` into `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, out: &mut Vec<String>) {
    let mut depth = 0;
    let mut start = 0;
    let mut parts = Vec::new();
    for (i, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().map(str::trim).filter(|p| !p.is_empty()) {
        match part.split_once('{') {
            Some((head, rest)) => {
                let inner = rest.strip_suffix('}').unwrap_or(rest);
                expand(&format!("{prefix}{}", head.trim()), inner, out);
            }
            None => {
                let name = part.split(" as ").next().unwrap_or(part).trim();
                out.push(format!("{prefix}{name}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floors(path: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check_floors(Path::new(path), text, &mut found);
        found
            .into_iter()
            .map(|v| format!("{}: {}", v.line, v.why))
            .collect()
    }

    #[test]
    fn a_lower_floor_must_not_see_a_higher_one() {
        let found = floors(
            "sys/vm/uma_core.rs",
            "use crate::{\n  time::Ticks,\n  mbuf::Mbuf,\n};\n",
        );
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("mbuf::Mbuf"), "{found:?}");
        assert!(floors("sys/net/route.rs", "use crate::mbuf::Mbuf;").is_empty());
        assert!(floors("sys/kern/uipc_mbuf.rs", "use crate::vm::uma::Zone;").is_empty());
        assert_eq!(
            floors("sys/kern/kern_mutex.rs", "fn f() { crate::net::vnet::x() }").len(),
            1
        );
    }

    #[test]
    fn lock_code_names_no_atomics_but_the_machines() {
        let atomics = |path, text| {
            let mut found = Vec::new();
            check_atomics(Path::new(path), text, &mut found);
            found.len()
        };
        let import = "use core::sync::atomic::AtomicU32;\n";
        assert_eq!(atomics("sys/kern/kern_mutex.rs", import), 1);
        assert_eq!(atomics("sys/kern/kern_intr.rs", import), 0);
        let test = format!("#[cfg(test)]\nmod tests {{\n {import}}}\n");
        assert_eq!(atomics("sys/buf_ring.rs", &test), 0);
    }

    #[test]
    fn comments_and_tests_may_name_anything() {
        assert!(floors("sys/time.rs", "// crate::net::vnet\n").is_empty());
        let test = "#[cfg(test)]\nmod tests {\n use crate::net::vnet::Vnet;\n}\n";
        assert!(floors("sys/vm/uma.rs", test).is_empty());
    }

    #[test]
    fn protocols_and_drivers_do_not_see_each_other() {
        let mut found = Vec::new();
        let path = Path::new("netinet/tcp_input.rs");
        check_crates(
            "netinet",
            &["sys"],
            path,
            "use drivers::pci;\nuse sys::mbuf;",
            &mut found,
        );
        assert_eq!(found.len(), 1);
        assert!(!names_crate("let x = self::kernel_drivers::y;", "drivers"));
    }

    #[test]
    fn braces_are_opened() {
        let mut out = Vec::new();
        expand("", "a::{b, c::{d, e as f}, self}", &mut out);
        assert_eq!(out, ["a::b", "a::c::d", "a::c::e", "a::self"]);
    }
}
