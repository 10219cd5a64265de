//! The command line.

use crate::bench;
use crate::experiments;
use crate::fuzz;
use crate::image;
use crate::ip6;
use crate::layers;
use crate::miri;
use crate::peer;
use crate::qemu::{self, Forward, Guest, Netdev, Nic};
use crate::record;
use crate::run::{self, Net};
use crate::scenario::Machines;
use crate::scripts;
use crate::setup::{self, Consent, Need};
use crate::shell;
use crate::suite::Suite;
use crate::test;
use anyhow::{Result, anyhow, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Mbit/s that TCP reaches on user networking, or it is a failure.
const USER_FLOOR: f64 = 300.0;

/// Builds, runs and tests the kernel.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    /// Install what is missing without asking
    #[arg(long, short, global = true)]
    yes: bool,
    /// Install nothing; exit with code 3 if something needed is missing
    #[arg(long, global = true, conflicts_with = "yes")]
    no_install: bool,
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Build the kernel and its symbols
    Build,
    /// Boot, measure TCP and UDP over an emulated e1000 against the host's iperf3, print the table
    Run(RunArgs),
    /// Boot to the interactive console on this terminal
    Shell(ShellArgs),
    /// Make all checks at small size: format, lints, layers, host tests, guests under QEMU
    Test(TestArgs),
    /// Make all checks, or some, at full size and write the result to tools/doc/soak.md
    Soak(TestArgs),
    /// Measure locks and zones beside their peers, natively and under QEMU
    Bench(BenchArgs),
    /// Run packetdrill scripts against the stack, in virtual time [default: those in TCP_TESTSUITE]
    #[command(disable_help_flag = true)]
    Packetdrill {
        /// Scripts, directories, options (`--help` lists them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Draw what is measured, as SVG
    Plot {
        /// What to draw
        #[arg(value_enum)]
        what: Drawing,
        /// Where to write it [default: the picture kept in tools/doc]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Run experiments on the simulated wire, in virtual time
    #[command(disable_help_flag = true)]
    Sim {
        /// Experiment and options (`--help` lists them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Let libFuzzer make inputs for the parsers and for connections
    Fuzz(FuzzArgs),
    /// Run unit tests of the kernel's unsafe code under Miri
    Miri,
    /// Explore the models of locks and queues with loom
    Model(ModelArgs),
    /// Check who imports whom
    Layers,
    /// Serve one echo connection (the peer of `rr`)
    #[command(hide = true)]
    EchoOnce {
        /// Address to bind to
        bind: String,
    },
    /// Send one ICMPv6 echo request and wait for the answer
    #[command(hide = true)]
    Ping6Once {
        /// Whom to ask
        address: String,
    },
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// How the guest is connected
    #[arg(long, value_enum, default_value_t = NetArg::User)]
    net: NetArg,
    /// Seconds per row
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    time: u64,
    /// Mbit/s below which a TCP row fails [default: 300 on user networking, 0 otherwise]
    #[arg(long)]
    floor: Option<f64>,
}

/// How the guest is connected
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetArg {
    /// QEMU's user networking: no privileges
    User,
    /// A tap in a network namespace, made and removed: needs root
    Tap,
    /// Two NICs in one guest on a hub
    Pair,
}

#[derive(Args)]
struct BenchArgs {
    /// What to measure [default: locks uma net]
    #[arg(value_enum)]
    subjects: Vec<Subject>,
    /// Measure only natively
    #[arg(long)]
    no_qemu: bool,
}

/// What can be measured
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Mutexes, rwlocks, rmlocks and others, natively and in a guest
    Locks,
    /// Zones
    Uma,
    /// The stack beside smoltcp, natively
    Net,
}

impl Subject {
    const fn name(self) -> &'static str {
        match self {
            Self::Locks => "locks",
            Self::Uma => "uma",
            Self::Net => "net",
        }
    }
}

/// What can be drawn
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Drawing {
    /// The congestion window of every algorithm by time
    Cc,
}

#[derive(Args)]
struct ModelArgs {
    /// Explore only models whose name contains one of these
    names: Vec<String>,
    /// Leave out one order, fence, wakeup or interrupt after the other, and tell which of that the models notice
    #[arg(long)]
    mutants: bool,
    /// Most preemptions in an execution [default: what each model says]
    #[arg(long)]
    bound: Option<usize>,
}

impl ModelArgs {
    fn run(&self) -> Result<ExitCode> {
        let mut cargo = image::model_cargo("test");
        cargo.arg("--").args(&self.names);
        cargo.args(self.mutants.then_some("--mutants"));
        if let Some(bound) = self.bound {
            cargo.args(["--bound", &bound.to_string()]);
        }
        let status = cargo.status()?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

#[derive(Args)]
struct FuzzArgs {
    /// What to fuzz [default: all targets]
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    time: u64,
    /// Targets at once [default: as many as there are CPUs]
    #[arg(long)]
    jobs: Option<usize>,
    /// Run what a target has found once more
    #[arg(long, value_name = "FILE", conflicts_with_all = ["time", "jobs"])]
    replay: Option<PathBuf>,
}

impl FuzzArgs {
    fn run(self, consent: Consent) -> Result<()> {
        if let Some(file) = &self.replay {
            let [target] = self.targets.as_slice() else {
                bail!("--replay needs the name of one target");
            };
            return fuzz::replay(target, file, consent);
        }
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
        let options = fuzz::Options {
            targets: self.targets,
            time: Duration::from_secs(self.time),
            jobs: self.jobs.unwrap_or_else(cpus),
            seed: None,
        };
        fuzz::run(&options, consent)
    }
}

#[derive(Args)]
struct TestArgs {
    /// Make only checks whose name contains one of these
    only: Vec<String>,
    /// Emulate the processor, or use its virtualisation
    #[arg(long, value_enum, default_value_t = Accel::Tcg)]
    accel: Accel,
}

/// The machine to boot
#[derive(Args, Clone)]
pub struct MachineArgs {
    /// Machine: pc or q35
    #[arg(long, default_value = "q35", value_parser = parse_machine)]
    machine: String,
    /// CPUs, 1 to 16
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    smp: u32,
    /// Memory, as QEMU writes it
    #[arg(long, default_value = "256M")]
    mem: String,
    /// Emulate the processor, or use its virtualisation
    #[arg(long, value_enum, default_value_t = Accel::Tcg)]
    accel: Accel,
    /// Words for the kernel's command line
    #[arg(long, default_value = "")]
    append: String,
}

/// How the guest's processor is made
#[derive(Clone, Copy, ValueEnum)]
pub enum Accel {
    /// QEMU's emulation
    Tcg,
    /// The processor's virtualisation (Linux, /dev/kvm)
    Kvm,
    /// kvm if it can be used, else tcg
    Auto,
}

impl Accel {
    fn name(self) -> Result<&'static str> {
        match self {
            Self::Tcg => Ok("tcg"),
            Self::Kvm if !qemu::kvm_usable() => bail!("/dev/kvm can't be used here"),
            Self::Kvm => Ok("kvm"),
            Self::Auto if qemu::kvm_usable() => Ok("kvm"),
            Self::Auto => Ok("tcg"),
        }
    }
}

impl MachineArgs {
    /// A guest of this make.
    pub fn guest(&self, name: &str, nics: Vec<Nic>, append: &str) -> Result<Guest> {
        let words = [append, &self.append].join(" ");
        Ok(Guest {
            name: name.into(),
            machine: self.machine.clone(),
            smp: self.smp,
            mem: self.mem.clone(),
            accel: self.accel.name()?.into(),
            nics,
            append: words.trim().into(),
            arguments: Vec::new(),
        })
    }
}

#[derive(Args)]
struct ShellArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Forward a port of this host's loopback to the guest: tcp:HOSTPORT:GUESTPORT or udp:…
    #[arg(long, value_name = "FORWARD", value_parser = parse_forward)]
    hostfwd: Vec<Forward>,
    /// Keep a profile of all locks: sysctl debug.lock.prof
    #[arg(long)]
    lock_profiling: bool,
    /// Check the order of locks: sysctl debug.witness
    #[arg(long)]
    witness: bool,
    /// NICs; the second and later ones hang on a hub with each other
    #[arg(long, default_value_t = 1)]
    nics: u32,
}

fn parse_machine(name: &str) -> Result<String> {
    Machines::load()?.machine(name)?;
    Ok(name.to_string())
}

fn parse_forward(text: &str) -> Result<Forward> {
    let bad = || anyhow!("write tcp:HOSTPORT:GUESTPORT or udp:HOSTPORT:GUESTPORT");
    let parts: Vec<&str> = text.split(':').collect();
    let [proto, host, guest] = parts[..] else {
        return Err(bad());
    };
    let proto = match proto {
        "tcp" => "tcp",
        "udp" => "udp",
        _ => return Err(bad()),
    };
    Ok(Forward {
        proto,
        host: host.parse()?,
        guest: guest.parse()?,
    })
}

/// Reads the command line and does what it says.
pub fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let consent = Consent {
        yes: cli.yes,
        no_install: cli.no_install,
    };
    match cli.command {
        Cmd::Build => {
            setup::ensure(&[Need::BareTarget], consent)?;
            let image = image::build()?;
            println!("{}", image.kernel.display());
            println!("{}", image.symbols.display());
        }
        Cmd::Shell(args) => {
            setup::ensure(&[Need::BareTarget, Need::Qemu], consent)?;
            let mut features = Vec::new();
            features.extend(args.lock_profiling.then_some("lock_profiling"));
            features.extend(args.witness.then_some("witness"));
            let image = image::build_with(&features)?;
            let mut nics = Vec::new();
            for i in 0..args.nics {
                let netdev = match i {
                    0 => Netdev::User(args.hostfwd.clone()),
                    _ => Netdev::Hub(0),
                };
                nics.push(Nic {
                    netdev,
                    capture: None,
                });
            }
            shell::shell(&args.machine.guest("shell", nics, "")?, &image)?;
        }
        Cmd::Run(args) => {
            let mut needs = vec![Need::BareTarget, Need::Qemu, Need::Iperf3];
            if args.net == NetArg::Tap {
                needs.push(Need::Iproute);
            }
            setup::ensure(&needs, consent)?;
            let image = image::build()?;
            let net = match args.net {
                NetArg::User => Net::User,
                NetArg::Tap => Net::Tap,
                NetArg::Pair => Net::Pair,
            };
            let floor = if net == Net::User { USER_FLOOR } else { 0.0 };
            let options = run::Options {
                seconds: args.time,
                floor: args.floor.unwrap_or(floor),
            };
            let make = |nics, append: &str| args.machine.guest("run", nics, append);
            run::measure_guest(make, &image, net, &options)?;
        }
        Cmd::Test(args) => checks("test", args, consent)?.finish()?,
        Cmd::Soak(args) => {
            let part = !args.only.is_empty();
            let suite = checks("soak", args, consent)?;
            record::write(&suite, part)?;
            suite.finish()?;
        }
        Cmd::Bench(args) => benchmarks(&args, consent)?,
        Cmd::Packetdrill { args } => return scripts::run(&args),
        Cmd::Plot {
            what: Drawing::Cc,
            out,
        } => return experiments::plot_cc(out),
        Cmd::Sim { args } => return experiments::run(&args),
        Cmd::Fuzz(args) => args.run(consent)?,
        Cmd::Miri => miri::run(consent)?,
        Cmd::Model(args) => return args.run(),
        Cmd::Layers => layers::check()?,
        Cmd::EchoOnce { bind } => peer::echo_once(&bind)?,
        Cmd::Ping6Once { address } => ip6::ping6_once(&address)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn benchmarks(args: &BenchArgs, consent: Consent) -> Result<()> {
    let subjects = match args.subjects.as_slice() {
        [] => &[Subject::Locks, Subject::Uma, Subject::Net],
        named => named,
    };
    let in_guest = subjects.contains(&Subject::Locks) && !args.no_qemu;
    if in_guest {
        setup::ensure(&[Need::BareTarget, Need::Qemu], consent)?;
    }
    bench::native(&subjects.iter().map(|s| s.name()).collect::<Vec<_>>())?;
    if in_guest {
        let image = image::build()?;
        let guest = Guest {
            name: "kbench".into(),
            machine: "q35".into(),
            smp: 4,
            mem: "256M".into(),
            accel: Accel::Tcg.name()?.into(),
            nics: Vec::new(),
            append: String::new(),
            arguments: Vec::new(),
        };
        bench::guest(&guest, &image)?;
    }
    Ok(())
}

fn checks(size: &'static str, args: TestArgs, consent: Consent) -> Result<Suite> {
    let needs = [
        Need::BareTarget,
        Need::Clippy,
        Need::Rustfmt,
        Need::Qemu,
        Need::Iperf3,
        Need::Cxx,
    ];
    setup::ensure(&needs, consent)?;
    test::run_all(&test::Plan {
        size,
        only: args.only,
        accel: args.accel.name()?.into(),
    })
}
