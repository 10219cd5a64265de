//! A network namespace with a tap for one guest: made by the tool, removed by the tool.

use crate::cleanup::Cleanup;
use crate::setup;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// Address of the namespace's end of the tap.
pub const HOST: &str = "10.0.0.1";
/// Address of the guest's end.
pub const GUEST: &str = "10.0.0.2";
/// Name of the tap inside the namespace.
pub const TAP: &str = "tap0";

const PREFIX: &str = "bsdnet-";

/// A network namespace, removed when dropped.
pub struct Netns {
    name: String,
    _remove: Cleanup,
}

impl Netns {
    /// Why there can be no namespace here, if so.
    pub fn obstacle() -> Option<String> {
        if !setup::is_root() {
            return Some("no root: a network namespace and a tap need it".into());
        }
        if setup::which("ip").is_none() {
            return Some("no `ip` program (iproute2)".into());
        }
        if !std::path::Path::new("/dev/net/tun").exists() {
            return Some("no /dev/net/tun".into());
        }
        None
    }

    /// Makes a namespace with the loopback up and a tap at `HOST`/24.
    pub fn with_tap() -> Result<Self> {
        if let Some(why) = Self::obstacle() {
            bail!("no tap: {why}");
        }
        remove_stale();
        let name = format!("{PREFIX}{}", std::process::id());
        let _ = ip(&["netns", "del", &name]);
        ip(&["netns", "add", &name])?;
        let doomed = name.clone();
        let remove = Cleanup::new(move || {
            let _ = ip(&["netns", "del", &doomed]);
        });
        let ns = Self {
            name,
            _remove: remove,
        };
        ns.ip(&["link", "set", "lo", "up"])?;
        ns.ip(&["tuntap", "add", "dev", TAP, "mode", "tap"])?;
        // No address of its own accord, so that the first frames on the wire are ours.
        let _ = ns.run("sysctl", &["-qw", "net.ipv6.conf.tap0.disable_ipv6=1"]);
        ns.ip(&["addr", "add", &format!("{HOST}/24"), "dev", TAP])?;
        ns.ip(&["link", "set", TAP, "up"])?;
        Ok(ns)
    }

    /// Name, for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        ip(&all)
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<()> {
        let out = self.command(program).args(args).output()?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let out = Command::new("ip").args(args).output();
    let out = out.context("can't run `ip`")?;
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        bail!("`ip {}` fails: {}", args.join(" "), why.trim());
    }
    Ok(())
}

/// Removes namespaces of runs that were killed before they could.
fn remove_stale() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if pid.parse::<u32>().is_ok() && !std::path::Path::new("/proc").join(pid).exists() {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}
