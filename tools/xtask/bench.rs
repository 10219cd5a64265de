//! Benchmarks beside the peers: the program `bench` on the native machine, then the kernel's own figures under QEMU.

use crate::image::{self, Image};
use crate::proc;
use crate::qemu::Guest;
use crate::run;
use crate::ui::{self, Align};
use anyhow::{Context, Result, bail};
use std::process::Stdio;
use std::time::Duration;

/// Limit for building with the peers.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
/// Limit for what is measured.
const LIMIT: Duration = Duration::from_secs(300);

/// Builds `bench` for the native machine and lets it measure `subjects`.
pub fn native(subjects: &[&str]) -> Result<()> {
    ui::step("building for the native machine, with the peers");
    let mut build = image::native_cargo();
    build.args(["build", "--quiet", "--release", "--package", "bench"]);
    build.stdin(Stdio::null());
    if !proc::Process::start(&mut build)?
        .wait(BUILD_LIMIT)?
        .success()
    {
        bail!("the benchmarks do not build");
    }
    ui::step(format_args!("measuring {}", subjects.join(", ")));
    let program = image::target_dir().join("native/release/bench");
    let said = proc::run(std::process::Command::new(program).args(subjects), LIMIT)?;
    println!("{}", run::host_line());
    print!("{}", lay_out(&said));
    Ok(())
}

/// Boots `guest` and prints what its `kbench` measures.
pub fn guest(guest: &Guest, image: &Image) -> Result<()> {
    ui::step(format_args!("measuring in a guest with {} CPUs", guest.smp));
    let mut qemu = guest.boot(image, None, &image::work_dir("bench")?)?;
    let said = qemu.console.run("kbench", LIMIT)?;
    let machine = run::machine_line(&qemu);
    qemu.poweroff()?;
    let figures = parse(&said).context("the guest's kbench")?;
    println!("\nIn the guest: {machine}\n");
    let columns = [
        ("operation", Align::Left),
        ("value", Align::Right),
        ("unit", Align::Left),
    ];
    print!("{}", ui::table(&columns, &figures));
    Ok(())
}

/// Takes the lines `name value unit`.
fn parse(said: &str) -> Result<Vec<Vec<String>>> {
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(
            |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
                [name, value, unit] if value.parse::<f64>().is_ok() => {
                    Ok(vec![name.replace('_', " "), value.into(), unit.into()])
                }
                _ => bail!("says: {line}"),
            },
        )
        .collect()
}

/// Sets lines whose cells are separated by tabs as tables; the rest stays as it is.
fn lay_out(text: &str) -> String {
    let mut out = String::new();
    let mut table: Vec<Vec<String>> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.contains('\t') {
            table.push(line.split('\t').map(String::from).collect());
            continue;
        }
        if let Some((heading, rows)) = table.split_first() {
            let align = |i| if i == 0 { Align::Left } else { Align::Right };
            let columns = heading.iter().enumerate();
            let columns: Vec<_> = columns.map(|(i, name)| (name.as_str(), align(i))).collect();
            out.push_str(&ui::table(&columns, rows));
            table.clear();
        }
        out.push_str(line);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_become_tables_and_words_stay() {
        let text = "Words\n\nlock\tns\nMutex\t6.1\n\nEnd\n";
        let table = "lock    ns\n-----  ---\nMutex  6.1\n";
        assert_eq!(lay_out(text), format!("Words\n\n{table}\nEnd\n"));
    }

    #[test]
    fn what_is_no_figure_is_an_error() {
        let figures = parse("mutex_alone 6.1 ns\n\nipis 1.0 IPIs\n").unwrap();
        assert_eq!(figures[0], ["mutex alone", "6.1", "ns"]);
        assert_eq!(figures.len(), 2);
        assert!(parse("kbench: no subject named x").is_err());
    }
}
