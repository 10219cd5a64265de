//! The kernel's image and its symbols.

use crate::setup::TARGET;
use crate::ui;
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSymbol, SymbolKind};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A built kernel.
#[derive(Clone, Debug)]
pub struct Image {
    /// The ELF file.
    pub kernel: PathBuf,
    /// Function names by address, handed to the kernel as its boot module.
    pub symbols: PathBuf,
}

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Where cargo builds, which is where this program was built.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    // <target>/debug/xtask, or <target>/debug/deps/xtask-… in its own tests.
    let mut profile = exe.parent();
    if profile.is_some_and(|d| d.ends_with("deps")) {
        profile = profile.and_then(Path::parent);
    }
    let dir = profile.and_then(Path::parent);
    dir.map_or_else(|| root().join("target"), Path::to_path_buf)
}

/// Where logs, captures and sockets of guests go.
pub fn work_dir(name: &str) -> Result<PathBuf> {
    let dir = target_dir().join("xtask").join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    Ok(dir)
}

/// A cargo command that does not hand down what belongs to this run of cargo.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // Flags for the kernel stand in .cargo/config.toml, which these would override.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_TARGET_DIR", target_dir());
    cargo
}

/// A cargo command that builds for the native machine (`sys/machine/native`), apart from everything else.
pub fn native_cargo() -> Command {
    let mut cargo = cargo();
    cargo.env("RUSTFLAGS", "--cfg native");
    cargo.env("CARGO_TARGET_DIR", target_dir().join("native"));
    cargo
}

/// A cargo command for the model checker's machine (`sys/machine/model`), apart from everything else.
pub fn model_cargo(command: &str) -> Command {
    let mut cargo = cargo();
    cargo.env("RUSTFLAGS", "--cfg loom");
    cargo.env("CARGO_TARGET_DIR", target_dir().join("model"));
    cargo.args([command, "--quiet", "--package", "sys", "--test", "model"]);
    cargo.args(["--profile", "model"]);
    cargo
}

/// Builds the kernel for release, and its symbols.
pub fn build() -> Result<Image> {
    build_with(&[])
}

/// Builds it with features: instruments that it otherwise has nothing of.
pub fn build_with(features: &[&str]) -> Result<Image> {
    ui::step("building the kernel");
    let status = cargo()
        .args(["build", "--release", "--package", "kernel", "--target"])
        .arg(TARGET)
        .args(["--features", &features.join(",")])
        .status()
        .context("can't run cargo")?;
    if !status.success() {
        bail!("the kernel does not build");
    }
    let kernel = target_dir().join(TARGET).join("release").join("kernel");
    let symbols = kernel.with_file_name("kernel.ksyms");
    if is_newer(&kernel, &symbols) {
        write_symbols(&kernel, &symbols)
            .with_context(|| format!("can't read the symbols of {}", kernel.display()))?;
    }
    Ok(Image { kernel, symbols })
}

fn is_newer(a: &Path, b: &Path) -> bool {
    let time = |p: &Path| p.metadata().and_then(|m| m.modified());
    match (time(a), time(b)) {
        (Ok(a), Ok(b)) => a >= b,
        _ => true,
    }
}

fn write_symbols(kernel: &Path, to: &Path) -> Result<()> {
    let elf = std::fs::read(kernel)?;
    let file = object::File::parse(&*elf)?;
    std::fs::write(to, symbol_lines(&file))?;
    Ok(())
}

/// One line `address name` per function, by address, the address in hex without prefix.
fn symbol_lines(file: &object::File<'_>) -> String {
    let functions = file.symbols().filter(|s| s.kind() == SymbolKind::Text);
    let mut all: Vec<(u64, String)> = functions
        .filter_map(|s| Some((s.address(), s.name().ok()?.to_string())))
        .filter(|(address, name)| *address != 0 && !name.is_empty() && !name.starts_with(".L"))
        .collect();
    all.sort();
    all.dedup_by_key(|(address, _)| *address);
    let mut text = String::new();
    for (address, name) in all {
        let name = rustc_demangle::demangle(&name);
        let _ = writeln!(text, "{address:016x} {name:#}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_demangled_and_sorted_by_address() {
        let exe = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let text = symbol_lines(&object::File::parse(&*exe).unwrap());
        let addresses: Vec<u64> = text
            .lines()
            .map(|l| u64::from_str_radix(l.split_once(' ').unwrap().0, 16).unwrap())
            .collect();
        assert!(addresses.is_sorted());
        let own = "xtask::image::tests::symbols_are_demangled_and_sorted_by_address";
        assert!(text.lines().any(|l| l.contains(own)), "{own} is not there");
    }
}
