//! A network namespace with a tap for one guest: made by the tool, removed by the tool.

use crate::cleanup::Cleanup;
use crate::setup;
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::process::Command;
use std::thread::JoinHandle;

/// Address of the namespace's end of the tap.
pub const HOST: &str = "10.0.0.1";
/// Address of the guest's end.
pub const GUEST: &str = "10.0.0.2";
/// The same in IPv6.
pub const HOST6: &str = "fd00:1::1";
/// The same in IPv6.
pub const GUEST6: &str = "fd00:1::2";
/// Address of a host behind the namespace.
pub const FAR6: &str = "fd00:2::2";
/// The namespace's end of the link to it.
const NEAR6: &str = "fd00:2::1";
/// Largest packet that the namespace passes on to it.
pub const FAR_MTU: u32 = 1300;
/// The link to it, at either end.
const VETH: [&str; 2] = ["near0", "far0"];
/// Name of the tap inside the namespace.
pub const TAP: &str = "tap0";

const PREFIX: &str = "bsdnet-";
/// Behind the name of a namespace in that of the host behind it.
const FAR: &str = "-far";

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
        let ns = Self::make(format!("{PREFIX}{}", std::process::id()))?;
        ns.ip(&["tuntap", "add", "dev", TAP, "mode", "tap"])?;
        // No address of its own accord, so that the first frames on the wire are ours.
        let _ = ns.run("sysctl", &["-qw", "net.ipv6.conf.tap0.disable_ipv6=1"]);
        ns.ip(&["addr", "add", &format!("{HOST}/24"), "dev", TAP])?;
        ns.ip(&["link", "set", TAP, "up"])?;
        Ok(ns)
    }

    /// Makes a namespace with the loopback up.
    fn make(name: String) -> Result<Self> {
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
        Ok(ns)
    }

    /// Why there can be no IPv6 in a namespace here, if so.
    pub fn obstacle6() -> Option<String> {
        let missing = || !std::path::Path::new("/proc/sys/net/ipv6").exists();
        Self::obstacle().or_else(|| missing().then(|| "no IPv6 in the host's kernel".into()))
    }

    /// Gives the tap its IPv6 address, `HOST6`/64, and makes the namespace a router.
    pub fn speak_ip6(&self) -> Result<()> {
        self.set("conf/tap0/disable_ipv6", "0")?;
        self.set("conf/all/forwarding", "1")?;
        self.restore_address()
    }

    /// Makes a host behind the namespace, `FAR6`, to which packets of `FAR_MTU` bytes are passed on.
    pub fn beyond(&self) -> Result<Netns> {
        let far = Self::make(format!("{}{FAR}", self.name))?;
        let [near0, far0] = VETH;
        self.ip(&[
            "link", "add", near0, "type", "veth", "peer", "name", far0, "netns", &far.name,
        ])?;
        self.ip(&["link", "set", near0, "up"])?;
        far.ip(&["link", "set", far0, "up"])?;
        let at = |addr| format!("{addr}/64");
        self.ip(&["addr", "add", &at(NEAR6), "dev", near0, "nodad"])?;
        far.ip(&["addr", "add", &at(FAR6), "dev", far0, "nodad"])?;
        far.ip(&["-6", "route", "add", "default", "via", NEAR6])?;
        let mtu = FAR_MTU.to_string();
        self.ip(&["-6", "route", "add", FAR6, "dev", near0, "mtu", &mtu])?;
        Ok(far)
    }

    /// Takes the tap's IPv6 address away.
    pub fn remove_address(&self) -> Result<()> {
        self.ip(&["addr", "del", &format!("{HOST6}/64"), "dev", TAP])
    }

    /// Gives the tap its IPv6 address.
    pub fn restore_address(&self) -> Result<()> {
        self.ip(&["addr", "add", &format!("{HOST6}/64"), "dev", TAP, "nodad"])
    }

    /// Forgets who the neighbours on the tap are.
    pub fn forget_neighbours(&self) -> Result<()> {
        self.ip(&["-6", "neigh", "flush", "dev", TAP])
    }

    /// Sets a variable below `net.ipv6`.
    fn set(&self, name: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > /proc/sys/net/ipv6/{name}");
        self.run("sh", &["-c", &script])
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

    /// Runs `f` in a thread of its own inside; what it opens there stays there.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = format!("/run/netns/{}", self.name);
        std::thread::spawn(move || {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)
                .context("can't enter the namespace")?;
            f()
        })
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
        let pid = pid.strip_suffix(FAR).unwrap_or(pid);
        if pid.parse::<u32>().is_ok() && !std::path::Path::new("/proc").join(pid).exists() {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}
