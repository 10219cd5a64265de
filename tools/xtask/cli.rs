//! The command line.

use crate::image;
use crate::qemu::{self, Forward, Guest, Netdev, Nic};
use crate::setup::{self, Consent, Need};
use crate::shell;
use anyhow::{Result, anyhow, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::process::ExitCode;

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
    /// Boot to the interactive console on this terminal
    Shell(ShellArgs),
}

/// The machine to boot
#[derive(Args, Clone)]
pub struct MachineArgs {
    /// Machine: pc or q35
    #[arg(long, default_value = "q35")]
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
    /// NICs; the second and later ones hang on a hub with each other
    #[arg(long, default_value_t = 1)]
    nics: u32,
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
pub fn run() -> Result<ExitCode> {
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
            let image = image::build()?;
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
    }
    Ok(ExitCode::SUCCESS)
}
