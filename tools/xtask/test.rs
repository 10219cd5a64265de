//! All checks: what CI runs, and the same at full size.

use crate::cable;
use crate::experiments;
use crate::flood;
use crate::fuzz;
use crate::fuzz_wire;
use crate::guest::{self, MbufUse};
use crate::image::{self, Image};
use crate::ip6;
use crate::layers;
use crate::locks;
use crate::miri;
use crate::netns::{self, Netns};
use crate::pair;
use crate::peer::Peer;
use crate::proc;
use crate::qemu::Guest;
use crate::relay::Relay;
use crate::run;
use crate::scenario::{Boot, Relay as RelayScenario, Scenarios, Size};
use crate::scripts;
use crate::setup::TARGET;
use crate::suite::Suite;
use crate::tap::Tap;
use crate::unread;
use crate::wire::Wire;
use anyhow::{Context, Result, bail};
use netsim::impair::{Link, Loss};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Limit for one run of cargo.
const CARGO_LIMIT: Duration = Duration::from_secs(1200);
/// Limit for the models with more preemptions.
const MODEL_SOAK_LIMIT: Duration = Duration::from_secs(3600);
/// Fuzz targets at once: twice as many as the processors a check can count on, so that each has its time and all have an end.
const FUZZ_JOBS: usize = 4;
/// The first seed; others follow.
const SEED: u64 = 1;
/// Time the guest gets to give back what held the last transfer: 2 MSL.
const SETTLE: Duration = Duration::from_secs(90);

const KERNEL_BUILDS: &str = "kernel builds";
const UNREAD: &str = "console that nobody reads";
const LOCK_PATHS: &str = "instructions of the locks";
const LOCK_TORTURE: &str = "locks on 4 CPUs";
const CABLE: &str = "cable pulled and plugged in";
const PAIR: &str = "pair";
const WITNESS: &str = "order of locks in a guest";
const IP6_AUTOCONF: &str = "IPv6 address by router advertisement";
const IP6_NEIGHBOUR: &str = "IPv6 with a Linux host as neighbour";
const RELAY: &str = "relay with loss, reordering, duplication";
const FLOOD: &str = "a flood of SYNs at a guest";
const WIRE_FUZZ: &str = "malformed frames on the wire";

/// Which checks, and how large.
pub struct Plan {
    /// "test" or "soak", as in `qemu/scenarios.toml`.
    pub size: &'static str,
    /// Only those whose name contains one of these.
    pub only: Vec<String>,
    /// Accelerator.
    pub accel: String,
}

/// Makes all checks of `plan`.
pub fn run_all(plan: &Plan) -> Result<Suite> {
    let scenarios = Scenarios::load()?;
    let size = scenarios.size(plan.size)?.clone();
    let soak = plan.size == "soak";
    let mut suite = Suite::new(&plan.only);
    source(&mut suite);
    hosted(&mut suite, &size, soak);
    let boots: Vec<_> = scenarios
        .boot
        .iter()
        .filter(|b| soak || !b.soak_only)
        .collect();
    if !any_guest_wanted(&suite, &boots, &size) {
        return Ok(suite);
    }
    let mut image = None;
    suite.check(KERNEL_BUILDS, || {
        image = Some(image::build()?);
        Ok(String::new())
    });
    let image = match image {
        Some(image) => image,
        None if suite.wants(KERNEL_BUILDS) => return Ok(suite),
        None => image::build()?,
    };
    let dir = image::work_dir(plan.size)?;
    for boot in boots {
        suite.check(&boot_name(boot), || {
            boot_and_move(plan, boot, &image, &dir, &size)
        });
    }
    suite.check(LOCK_PATHS, || locks::check_paths(&image));
    suite.check(LOCK_TORTURE, || {
        let guest = Guest {
            smp: 4,
            ..guest_of(plan, "locks")
        };
        locks::torture(&guest, &image, &dir, size.locks_s)
    });
    for smp in LENDING_SMP {
        suite.check(&lending_name(smp), || {
            let guest = Guest {
                smp,
                ..guest_of(plan, &format!("lending-{smp}"))
            };
            locks::lending(&guest, &image, &dir)
        });
    }
    suite.check(UNREAD, || {
        unread::check(&guest_of(plan, "unread"), &image, &dir)
    });
    suite.check(CABLE, || {
        cable::check(&guest_of(plan, "cable"), &image, &dir)
    });
    suite.check(PAIR, || {
        pair::check(&guest_of(plan, "pair"), &image, &dir, size.pair_mib)
    });
    suite.check(IP6_AUTOCONF, || {
        ip6::autoconf(&guest_of(plan, "ip6-autoconf"), &image, &dir)
    });
    match Netns::obstacle6() {
        Some(why) => suite.skip(IP6_NEIGHBOUR, &why),
        None => suite.check(IP6_NEIGHBOUR, || {
            let file = random_file(&dir, size.ip6_mib)?;
            let guest = guest_of(plan, "ip6-neighbour");
            ip6::neighbour(&guest, &image, &dir, &file, size.ip6_s)
        }),
    }
    for seed in SEED..SEED + size.relay_seeds {
        let name = with_seed(RELAY, seed);
        match Netns::obstacle() {
            Some(why) => suite.skip(&name, &why),
            None => suite.check(&name, || {
                relayed(plan, &scenarios.relay, &image, &dir, size.relay_mib, seed)
            }),
        }
    }
    match Netns::obstacle() {
        Some(why) => suite.skip(FLOOD, &why),
        None => suite.check(FLOOD, || {
            let guest = guest_of(plan, "flood");
            flood::check(&guest, &image, &dir, size.flood_syns, &scenarios.flood)
        }),
    }
    for seed in SEED..SEED + size.seeds {
        suite.check(&with_seed(WIRE_FUZZ, seed), || {
            let time = Duration::from_secs(size.fuzz_s);
            let guest = guest_of(plan, "fuzz");
            let o = fuzz_wire::run(&guest, &image, &dir, time, seed)?;
            Ok(format!(
                "{} frames, {} refused at a full ring, {} answers, {} drops counted",
                o.sent, o.refused, o.answers, o.dropped
            ))
        });
    }
    // At the end: this kernel takes the other's place in the build directory.
    if soak {
        suite.check(WITNESS, || witness(plan, &dir, size.pair_mib));
    }
    Ok(suite)
}

/// Lets a kernel that checks the order of locks, and profiles them, do what `pair` does: everything between two stacks.
fn witness(plan: &Plan, dir: &Path, mib: u64) -> Result<String> {
    const REPORT: &str = "lock order reversal";
    let image = image::build_with(&["witness", "lock_profiling"])?;
    let said = pair::check(&guest_of(plan, "witness"), &image, dir, mib)?;
    let log = dir.join("witness.console");
    let text = std::fs::read_to_string(&log)?;
    if text.contains(REPORT) {
        bail!("{REPORT}: see {}", log.display());
    }
    Ok(said)
}

fn any_guest_wanted(suite: &Suite, boots: &[&Boot], size: &Size) -> bool {
    let once = [
        KERNEL_BUILDS,
        LOCK_PATHS,
        LOCK_TORTURE,
        UNREAD,
        CABLE,
        PAIR,
        IP6_AUTOCONF,
        IP6_NEIGHBOUR,
        FLOOD,
        WITNESS,
    ]
    .map(String::from);
    let lending = LENDING_SMP.map(lending_name);
    let boots = boots.iter().map(|boot| boot_name(boot));
    let relays = (SEED..SEED + size.relay_seeds).map(|seed| with_seed(RELAY, seed));
    let fuzz = (SEED..SEED + size.seeds).map(|seed| with_seed(WIRE_FUZZ, seed));
    once.into_iter()
        .chain(lending)
        .chain(boots)
        .chain(relays)
        .chain(fuzz)
        .any(|name| suite.wants(&name))
}

fn with_seed(name: &str, seed: u64) -> String {
    format!("{name}, seed {seed}")
}

/// CPUs of the guests in which priority is lent.
const LENDING_SMP: [u32; 2] = [1, 2];

fn lending_name(smp: u32) -> String {
    format!("priority lending, {smp} CPUs")
}

fn boot_name(boot: &Boot) -> String {
    format!("boot {} with {} CPUs, {}", boot.machine, boot.smp, boot.mem)
}

/// Format, lints, layers.
fn source(suite: &mut Suite) {
    suite.check("format", || cargo(&["fmt", "--all", "--check"]));
    suite.check("lints, host", || {
        cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-Dwarnings",
        ])
    });
    suite.check("lints, kernel", || {
        cargo(&[
            "clippy",
            "--quiet",
            "--package",
            "kernel",
            "--target",
            TARGET,
            "--",
            "-Dwarnings",
        ])
    });
    suite.check("lints, libFuzzer", || {
        cargo(&[
            "clippy",
            "--quiet",
            "--package",
            "fuzz",
            "--bin",
            "fuzz-targets",
            "--features",
            "engine",
            "--",
            "-Dwarnings",
        ])
    });
    suite.check("lints, models", || {
        let mut clippy = image::model_cargo("clippy");
        clippy.args(["--", "-Dwarnings"]);
        proc::run(&mut clippy, CARGO_LIMIT).map(|_| String::new())
    });
    suite.check("lints, native", || {
        let mut clippy = image::native_cargo();
        clippy.args(["clippy", "--quiet", "--package", "sys", "--test", "native"]);
        clippy.args(["--package", "bench", "--bin", "bench", "--", "-Dwarnings"]);
        run_cargo(clippy)
    });
    suite.check("layers", || layers::check().map(|()| String::new()));
}

/// Tests and fuzzing on the host.
fn hosted(suite: &mut Suite, size: &Size, soak: bool) {
    suite.check_many("tests on the host", || {
        let tests = host_tests()?;
        Ok((tests, format!("{tests} tests")))
    });
    suite.check("lock profile", || {
        let mut cargo = image::cargo();
        cargo.args(["test", "--quiet", "--package", "sys", "--lib"]);
        cargo.args(["--features", "lock_profiling", "subr_lock::profile"]);
        let said = proc::run(&mut cargo, CARGO_LIMIT)?;
        match said.lines().filter_map(passed_tests).sum::<u64>() {
            0 => bail!("there is no test of it"),
            tests => Ok(format!("{tests} tests")),
        }
    });
    suite.check("native machine", || {
        let mut cargo = image::native_cargo();
        cargo.args(["test", "--quiet", "--package", "sys", "--test", "native"]);
        let said = proc::run(&mut cargo, CARGO_LIMIT)?;
        let result = said.lines().last().unwrap_or_default();
        Ok(result.trim_start_matches("test result: ").to_string())
    });
    suite.check("models of locks and queues", || {
        let mut cargo = image::model_cargo("test");
        cargo.arg("--").args(soak.then_some("--large"));
        let limit = if soak { MODEL_SOAK_LIMIT } else { CARGO_LIMIT };
        let said = proc::run(&mut cargo, limit)?;
        Ok(said.lines().last().unwrap_or_default().to_string())
    });
    scripts::check(suite);
    if soak {
        experiments::check(suite);
    }
    // Minutes of an interpreter are for the long run; `cargo xtask miri` runs them at any time.
    if soak {
        miri::check(suite);
    }
    suite.check_many("inputs that libFuzzer makes", || {
        fuzz::check(&fuzz::Options {
            targets: Vec::new(),
            time: Duration::from_secs(size.fuzz_target_s),
            jobs: FUZZ_JOBS,
            // The checks say of one tree the same each time; a soak looks elsewhere each time.
            seed: (!soak).then_some(SEED),
        })
    });
    for seed in SEED..SEED + size.seeds {
        suite.check(
            &format!("malformed frames at the hosted stack, seed {seed}"),
            || {
                let frames = size.hosted_fuzz_frames.to_string();
                let mut cargo = image::cargo();
                // A long run is worth compiling again for.
                let profile = if soak { "hosted" } else { "dev" };
                cargo.args(["run", "--quiet", "--profile", profile]);
                cargo.args(["--package", "fuzz", "--"]);
                cargo.args(["--seed", &seed.to_string(), "--frames", &frames]);
                let said = proc::run(&mut cargo, CARGO_LIMIT)?;
                Ok(said.lines().last().unwrap_or_default().to_string())
            },
        );
    }
}

fn cargo(args: &[&str]) -> Result<String> {
    let mut cargo = image::cargo();
    cargo.args(args);
    run_cargo(cargo)
}

fn run_cargo(mut cargo: Command) -> Result<String> {
    cargo.stdin(Stdio::null());
    let status = proc::Process::start(&mut cargo)?.wait(CARGO_LIMIT)?;
    if !status.success() {
        let args = cargo.get_args().map(|arg| arg.to_string_lossy());
        bail!(
            "`cargo {}` fails; see above",
            args.collect::<Vec<_>>().join(" ")
        );
    }
    Ok(String::new())
}

/// Runs all tests of the host crates and counts them.
fn host_tests() -> Result<u64> {
    let mut cargo = image::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]);
    cargo.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = proc::Process::start(&mut cargo)?;
    let Some(stdout) = process.child().stdout.take() else {
        bail!("no pipe from cargo");
    };
    let mut counts = (0, 0);
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        match parse_result(&line) {
            Some((passed, failed)) => counts = (counts.0 + passed, counts.1 + failed),
            // Passing tests are many; what fails is said in full.
            None if line.ends_with("... ok") || line.is_empty() => {}
            None if line.starts_with("running ") => {}
            None => println!("{line}"),
        }
    }
    let status = process.wait(CARGO_LIMIT)?;
    if !status.success() || counts.1 > 0 {
        bail!("{} tests pass, {} fail; see above", counts.0, counts.1);
    }
    Ok(counts.0)
}

/// How many tests have passed, if this line says so.
pub fn passed_tests(line: &str) -> Option<u64> {
    parse_result(line).map(|(passed, _)| passed)
}

/// `test result: ok. 30 passed; 0 failed; …`
fn parse_result(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| -> Option<u64> {
        let before = rest.split(word).next()?.trim_end();
        before.rsplit([' ', '.', ';']).next()?.parse().ok()
    };
    Some((number("passed")?, number("failed")?))
}

fn guest_of(plan: &Plan, name: &str) -> Guest {
    Guest {
        name: name.into(),
        machine: "q35".into(),
        smp: 2,
        mem: "256M".into(),
        accel: plan.accel.clone(),
        nics: Vec::new(),
        append: String::new(),
        arguments: Vec::new(),
    }
}

/// A file of random bytes, made once per size.
fn random_file(dir: &Path, mib: u64) -> Result<PathBuf> {
    let path = dir.join(format!("random-{mib}"));
    if path.metadata().is_ok_and(|m| m.len() == mib << 20) {
        return Ok(path);
    }
    let mut file = std::fs::File::create(&path)?;
    let mut rng = oorandom::Rand64::new(u128::from(mib));
    let mut block = vec![0; 1 << 20];
    for _ in 0..mib {
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&rng.rand_u64().to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(path)
}

fn rate(mib: u64, time: Duration) -> String {
    let mbits = (mib << 20) as f64 * 8.0 / time.as_secs_f64() / 1e6;
    format!("{mbits:.0} Mbit/s")
}

/// Boots one combination and moves hashed bytes each way, on user networking.
fn boot_and_move(
    plan: &Plan,
    boot: &Boot,
    image: &Image,
    dir: &Path,
    size: &Size,
) -> Result<String> {
    let peer = Peer::user()?;
    let guest = Guest {
        name: format!("boot-{}-{}", boot.machine, boot.smp),
        machine: boot.machine.clone(),
        smp: boot.smp,
        mem: boot.mem.clone(),
        nics: vec![peer.nic()],
        append: peer.append(),
        ..guest_of(plan, "")
    };
    let file = random_file(dir, size.hashed_mib)?;
    let mut qemu = guest.boot(image, None, dir)?;
    let boot_time = qemu.boot_time;
    run::wait_for_address(&mut qemu)?;
    check_cpus(&mut qemu.console, boot.smp)?;
    let up = peer.send_hashed(&mut qemu, &file).context("to the guest")?;
    let down = peer
        .receive_hashed(&mut qemu, size.hashed_mib << 20, SEED)
        .context("from the guest")?;
    qemu.poweroff()?;
    let mib = size.hashed_mib;
    Ok(format!(
        "prompt after {:.2} s, {mib} MiB up at {}, down at {}",
        boot_time.as_secs_f64(),
        rate(mib, up),
        rate(mib, down)
    ))
}

/// The guest must run on as many CPUs as it was given.
fn check_cpus(console: &mut crate::console::Console, wanted: u32) -> Result<()> {
    let text = console.run("sysctl hw.ncpu", Duration::from_secs(10))?;
    let found = text.trim().rsplit(' ').next().unwrap_or_default();
    if found != wanted.to_string() {
        bail!("{wanted} CPUs, but the guest says \"{}\"", text.trim());
    }
    Ok(())
}

/// Moves hashed bytes each way between a tap and the guest through a relay that spoils the path.
fn relayed(
    plan: &Plan,
    scenario: &RelayScenario,
    image: &Image,
    dir: &Path,
    mib: u64,
    seed: u64,
) -> Result<String> {
    let netns = Netns::with_tap()?;
    let wire = Wire::new(dir)?;
    let guest = guest_of(plan, "relay").with_nic(wire.netdev(), netns::GUEST);
    let link = Link {
        delay: Duration::from_micros(scenario.delay_us),
        loss: Loss::Random(scenario.loss),
        reorder: scenario.reorder,
        reorder_by: Duration::from_millis(scenario.reorder_ms),
        duplicate: scenario.duplicate,
        ..Link::default()
    };
    let tap = Tap::open(netns.name(), netns::TAP)?;
    let relay = Relay::start(wire, tap, &link, seed);
    let mut qemu = guest.boot(image, None, dir)?;
    let start = MbufUse::read(&mut qemu.console)?;
    let peer = Peer::tap(&netns);
    let file = random_file(dir, mib)?;
    let up = peer.send_hashed(&mut qemu, &file).context("to the guest")?;
    let down = peer
        .receive_hashed(&mut qemu, mib << 20, seed)
        .context("from the guest")?;
    guest::wait_for_mbufs(&mut qemu.console, &start, SETTLE)?;
    qemu.poweroff()?;
    let stat = relay.stop()?;
    for (way, s) in [("to", stat.to_guest), ("from", stat.from_guest)] {
        if s.lost == 0 || s.reordered == 0 || s.duplicated == 0 {
            bail!("the relay did not spoil the path {way} the guest: {s:?}");
        }
    }
    Ok(format!(
        "{mib} MiB up at {}, down at {}; {} frames, {} lost, {} reordered, {} duplicated, {} refused; mbufs as at the start",
        rate(mib, up),
        rate(mib, down),
        stat.to_guest.offered + stat.from_guest.offered,
        stat.to_guest.lost + stat.from_guest.lost,
        stat.to_guest.reordered + stat.from_guest.reordered,
        stat.to_guest.duplicated + stat.from_guest.duplicated,
        stat.refused,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_counted() {
        let line = "test result: ok. 30 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_result(line), Some((30, 2)));
        assert_eq!(
            parse_result("test result: FAILED. 1 passed; 7 failed;"),
            Some((1, 7))
        );
        assert_eq!(parse_result("test a::b ... ok"), None);
    }
}
