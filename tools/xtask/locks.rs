//! The locks of the built kernel: what instructions their fast paths are made of, and how they stand under torture.

use crate::image::Image;
use crate::qemu::{Guest, Qemu};
use anyhow::{Context, Result, bail};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use object::{Object, ObjectSection, ObjectSymbol};
use std::path::Path;
use std::time::Duration;

/// The module of `kbench` whose functions are fast paths.
const PROBES: &str = "kernel::apps::kbench::probe::";

/// A function of the kernel's image.
struct Function {
    instructions: Vec<Instruction>,
    /// Names of what it calls or jumps to elsewhere.
    callees: Vec<String>,
}

/// Checks that a read lock of an rmlock and its release execute no atomic instruction, and that the kernel as it is built has nothing of
/// WITNESS and of the lock profile.
pub fn check_paths(image: &Image) -> Result<String> {
    let elf = std::fs::read(&image.kernel)?;
    let file = object::File::parse(&*elf)?;
    // What finds nothing must be able to find something.
    for taken in ["mutex", "rwlock_read"] {
        let path = function(&file, &format!("{PROBES}{taken}"))?;
        if !path.instructions.iter().any(is_atomic) {
            bail!("no atomic instruction is seen in {taken}, which must have one");
        }
    }
    let path = function(&file, &format!("{PROBES}rmlock_read"))?;
    if let Some(found) = path.instructions.iter().find(|i| is_atomic(i)) {
        bail!("an rmlock's read path has `{found}` at {:#x}", found.ip());
    }
    for callee in &path.callees {
        if !callee.ends_with("_hard") {
            bail!("an rmlock's read path calls {callee}, which is not a cold path");
        }
    }
    let mutex = function(&file, &format!("{PROBES}mutex"))?;
    let cold = ["lock_sleep", "unlock_sleep"];
    for callee in &mutex.callees {
        if !cold.iter().any(|cold| callee.ends_with(cold)) {
            bail!("a mutex's path calls {callee}, which is not a cold path");
        }
    }
    let instruments = [
        "subr_witness::enabled",
        "subr_lock::profile",
        "lock_profile",
    ];
    for symbol in file.symbols() {
        let name = demangled(symbol.name().unwrap_or_default());
        if instruments.iter().any(|part| name.contains(part)) {
            bail!("an instrument is compiled in: {name}");
        }
    }
    Ok(format!(
        "rmlock read and release: {} instructions, none atomic; mutex: {}",
        path.instructions.len(),
        mutex.instructions.len()
    ))
}

/// Whether other CPUs are kept out while it executes: a `lock` prefix, or an exchange with memory, which has one without saying so.
fn is_atomic(instruction: &Instruction) -> bool {
    let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let exchange = matches!(
        instruction.mnemonic(),
        Mnemonic::Xchg | Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b
    );
    instruction.has_lock_prefix() || (memory && exchange)
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// Takes the function called `name` apart.
fn function(file: &object::File<'_>, name: &str) -> Result<Function> {
    let symbols: Vec<_> = file.symbols().collect();
    let named = |symbol: &&object::Symbol<'_, '_>| {
        symbol.size() > 0 && symbol.name().is_ok_and(|raw| demangled(raw) == name)
    };
    let symbol = symbols
        .iter()
        .find(named)
        .with_context(|| format!("no function {name}"))?;
    let index = symbol
        .section_index()
        .context("a function without section")?;
    let section = file.section_by_index(index)?;
    let code = section
        .data_range(symbol.address(), symbol.size())?
        .context("a function outside its section")?;
    let range = symbol.address()..symbol.address() + symbol.size();
    let decoder = Decoder::with_ip(64, code, symbol.address(), DecoderOptions::NONE);
    let instructions: Vec<Instruction> = decoder.into_iter().collect();
    let mut callees = Vec::new();
    for instruction in &instructions {
        if instruction.is_invalid() {
            bail!("{name}: no instruction at {:#x}", instruction.ip());
        }
        let branches = matches!(instruction.mnemonic(), Mnemonic::Call | Mnemonic::Jmp);
        if branches && instruction.op0_kind() != OpKind::NearBranch64 {
            bail!("{name}: an indirect branch at {:#x}", instruction.ip());
        }
        let target = instruction.near_branch_target();
        if target == 0 || range.contains(&target) {
            continue;
        }
        let callee = symbols.iter().find(|symbol| symbol.address() == target);
        let callee = callee.with_context(|| format!("{name}: a branch to {target:#x}"))?;
        callees.push(demangled(callee.name()?));
    }
    Ok(Function {
        instructions,
        callees,
    })
}

/// Lets all kinds of locks be used on all CPUs of `guest` for `seconds`.
pub fn torture(guest: &Guest, image: &Image, dir: &Path, seconds: u64) -> Result<String> {
    let mut qemu = guest.boot(image, None, dir)?;
    let limit = Duration::from_secs(60 + 4 * seconds);
    let said = ktest(&mut qemu, &format!("ktest -t {seconds} locks"), limit)?;
    let Some(report) = said.strip_prefix("locks: ") else {
        bail!("{said}");
    };
    let report = report.to_string();
    qemu.poweroff()?;
    Ok(report)
}

/// Lets an urgent thread wait for a chain of owners past hogs: without lending it must wait for those, with lending not.
pub fn lending(guest: &Guest, image: &Image, dir: &Path) -> Result<String> {
    let limit = Duration::from_secs(60);
    let mut qemu = guest.boot(image, None, dir)?;
    qemu.console
        .run("sysctl debug.turnstile.lending=0", limit)?;
    let said = ktest(&mut qemu, "ktest lending", limit)?;
    if !said.contains("priority inversion") {
        bail!("without lending there is no inversion: {said}");
    }
    qemu.console
        .run("sysctl debug.turnstile.lending=1", limit)?;
    let said = ktest(&mut qemu, "ktest lending", limit)?;
    let Some(report) = said.strip_prefix("lending: ") else {
        bail!("{said}");
    };
    let report = report.to_string();
    if !report.starts_with("an urgent thread waited") {
        bail!("{report}");
    }
    qemu.poweroff()?;
    Ok(format!("{report}; without lending it did not come through"))
}

/// Runs a command of `ktest` and returns what it said first.
fn ktest(qemu: &mut Qemu, command: &str, limit: Duration) -> Result<String> {
    let text = qemu.console.run(command, limit)?;
    let mut lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ktest: "));
    let said = lines
        .next()
        .with_context(|| format!("`{command}` says: {text}"))?;
    Ok(said.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn atomic(code: &[u8]) -> bool {
        let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
        is_atomic(&decoder.decode())
    }

    #[test]
    fn instructions_that_keep_other_cpus_out_are_told_from_others() {
        // lock inc dword [rax]; lock cmpxchg [rdi], rsi; xchg [rdi], rax; cmpxchg [rdi], rsi
        for code in [
            &[0xf0, 0xff, 0x00][..],
            &[0xf0, 0x48, 0x0f, 0xb1, 0x37],
            &[0x48, 0x87, 0x07],
            &[0x48, 0x0f, 0xb1, 0x37],
        ] {
            assert!(atomic(code), "{code:x?}");
        }
        // inc dword [rax]; mov [rdi], rax; xchg rax, rcx
        for code in [&[0xff, 0x00][..], &[0x48, 0x89, 0x07], &[0x48, 0x91]] {
            assert!(!atomic(code), "{code:x?}");
        }
    }
}
