//! A guest under QEMU: its command line, its life and its end.

use crate::console::Console;
use crate::image::Image;
use crate::netns::Netns;
use crate::proc::Process;
use crate::scenario::Machines;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Time for boot to the prompt; under TCG on a busy machine most of it is waiting for the processor.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// Exit status of `isa-debug-exit` for an orderly power-off: (0x10 << 1) | 1.
const POWEROFF_STATUS: i32 = 33;

/// What a NIC is plugged into.
#[derive(Clone, Debug)]
pub enum Netdev {
    /// User networking, with host ports forwarded to the guest.
    User(Vec<Forward>),
    /// A tap that exists already.
    Tap(String),
    /// A hub inside QEMU.
    Hub(u32),
    /// Frames as datagrams between two socket files.
    Dgram {
        /// QEMU's own.
        local: PathBuf,
        /// The other side's.
        remote: PathBuf,
    },
}

/// A host port on the loopback forwarded to a guest's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// "tcp" or "udp".
    pub proto: &'static str,
    /// Port at the host.
    pub host: u16,
    /// Port in the guest.
    pub guest: u16,
}

/// A NIC of the guest.
#[derive(Clone, Debug)]
pub struct Nic {
    /// What it is plugged into.
    pub netdev: Netdev,
    /// Where to write what crosses it.
    pub capture: Option<PathBuf>,
}

/// A guest to be started.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Names its log.
    pub name: String,
    /// Machine, by its name in `qemu/machines.toml`.
    pub machine: String,
    /// CPUs.
    pub smp: u32,
    /// Memory.
    pub mem: String,
    /// Accelerator: "tcg" or "kvm".
    pub accel: String,
    /// NICs, in order: em0, em1, …
    pub nics: Vec<Nic>,
    /// Kernel command line.
    pub append: String,
    /// Further arguments of QEMU.
    pub arguments: Vec<String>,
}

/// A running guest. Killed when dropped.
pub struct Qemu {
    process: Process,
    /// Its console.
    pub console: Console,
    /// Time from start to prompt.
    pub boot_time: Duration,
    stderr: PathBuf,
}

impl Guest {
    /// The same guest with one NIC, at `netdev`, which has `address`.
    pub fn with_nic(&self, netdev: Netdev, address: &str) -> Guest {
        let nic = Nic {
            netdev,
            capture: None,
        };
        Guest {
            nics: vec![nic],
            append: format!("em0={address}/24 {}", self.append),
            ..self.clone()
        }
    }

    /// QEMU's command line, all but the console.
    pub fn command(&self, image: &Image, netns: Option<&Netns>) -> Result<Command> {
        let machines = Machines::load()?;
        let mut command = match netns {
            Some(ns) => ns.command("qemu-system-x86_64"),
            None => Command::new("qemu-system-x86_64"),
        };
        command.args(&machines.machine(&self.machine)?.args);
        command.args(&machines.accel(&self.accel)?.args);
        command.args(&machines.common.args);
        command.args(["-smp", &self.smp.to_string(), "-m", &self.mem]);
        for (i, nic) in self.nics.iter().enumerate() {
            command.args(["-netdev", &nic.netdev.argument(i)?]);
            let device = format!(
                "e1000,netdev=n{i},mac=52:54:00:12:34:{:02x},romfile=",
                0x56 + i
            );
            command.args(["-device", &device]);
            if let Some(file) = &nic.capture {
                let file = file.display();
                command.args([
                    "-object",
                    &format!("filter-dump,id=d{i},netdev=n{i},file={file}"),
                ]);
            }
        }
        command.arg("-kernel").arg(&image.kernel);
        command.arg("-initrd").arg(&image.symbols);
        command.args(["-append", &self.append]);
        command.args(&self.arguments);
        Ok(command)
    }

    /// Starts the guest and waits for its shell. Logs go to `dir`.
    pub fn boot(&self, image: &Image, netns: Option<&Netns>, dir: &Path) -> Result<Qemu> {
        let mut command = self.command(image, netns)?;
        command.args(["-monitor", "none", "-chardev", "stdio,id=con,signal=off"]);
        command.args(["-serial", "chardev:con"]);
        let stderr = dir.join(format!("{}.qemu", self.name));
        let errors = std::fs::File::create(&stderr)
            .with_context(|| format!("can't write {}", stderr.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(errors);
        let began = Instant::now();
        let mut process = Process::start(&mut command)?;
        let child = process.child();
        let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
            bail!("no pipes to QEMU");
        };
        let log = dir.join(format!("{}.console", self.name));
        let mut qemu = Qemu {
            process,
            console: Console::new(output, input, log)?,
            boot_time: Duration::ZERO,
            stderr,
        };
        if let Err(e) = qemu.console.wait_for_prompt(BOOT_LIMIT) {
            let words = std::fs::read_to_string(&qemu.stderr).unwrap_or_default();
            return Err(match words.trim() {
                "" => e,
                words => e.context(format!("QEMU says: {words}")),
            });
        }
        qemu.boot_time = began.elapsed();
        Ok(qemu)
    }
}

impl Netdev {
    fn argument(&self, i: usize) -> Result<String> {
        Ok(match self {
            Self::User(forwards) => {
                let mut text = format!("user,id=n{i}");
                for f in forwards {
                    let Forward { proto, host, guest } = f;
                    text.push_str(&format!(",hostfwd={proto}:127.0.0.1:{host}-:{guest}"));
                }
                text
            }
            Self::Tap(name) => format!("tap,id=n{i},ifname={name},script=no,downscript=no"),
            Self::Hub(id) => format!("hubport,id=n{i},hubid={id}"),
            Self::Dgram { local, remote } => format!(
                "dgram,id=n{i},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                local.display(),
                remote.display()
            ),
        })
    }
}

impl Qemu {
    /// Powers the guest off by its shell, and checks that it ended as it should.
    pub fn poweroff(mut self) -> Result<()> {
        self.console.check_alive()?;
        self.console.start("poweroff")?;
        let status = self.wait(Duration::from_secs(15))?;
        self.console.check_alive()?;
        match status.code() {
            Some(0 | POWEROFF_STATUS) => Ok(()),
            _ => bail!("QEMU ended with {status} after `poweroff`"),
        }
    }

    /// Waits for QEMU's end.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        self.process.wait(within)
    }
}

/// Whether the processor's own virtualisation can be used.
pub fn kvm_usable() -> bool {
    use nix::unistd::{AccessFlags, access};
    access("/dev/kvm", AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
}
