//! The machines and test runs that `qemu/` describes.

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use std::collections::BTreeMap;

const MACHINES: &str = include_str!("../../qemu/machines.toml");
const SCENARIOS: &str = include_str!("../../qemu/scenarios.toml");

/// Command-line words for QEMU.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The words.
    pub args: Vec<String>,
}

/// `qemu/machines.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machines {
    machine: BTreeMap<String, Args>,
    /// What every machine gets.
    pub common: Args,
    accel: BTreeMap<String, Args>,
}

impl Machines {
    /// Reads the file.
    pub fn load() -> Result<Self> {
        toml::from_str(MACHINES).context("qemu/machines.toml")
    }

    /// A machine by name.
    pub fn machine(&self, name: &str) -> Result<&Args> {
        let known: Vec<_> = self.machine.keys().map(String::as_str).collect();
        let found = self.machine.get(name);
        found.ok_or_else(|| anyhow!("no machine \"{name}\"; there are: {}", known.join(", ")))
    }

    /// An accelerator by name.
    pub fn accel(&self, name: &str) -> Result<&Args> {
        self.accel
            .get(name)
            .ok_or_else(|| anyhow!("no accelerator \"{name}\""))
    }
}

/// One combination that is booted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Machine, by its name in `machines.toml`.
    pub machine: String,
    /// CPUs.
    pub smp: u32,
    /// Memory, as QEMU writes it.
    pub mem: String,
    /// Left out of `test`.
    #[serde(default)]
    pub soak_only: bool,
}

/// What the relay does to frames, each way.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// Probability of loss.
    pub loss: f64,
    /// Probability of being overtaken.
    pub reorder: f64,
    /// How long an overtaken frame is held back.
    pub reorder_ms: u64,
    /// Probability of arriving twice.
    pub duplicate: f64,
    /// Delay of every frame.
    pub delay_us: u64,
}

/// A flood of SYNs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flood {
    /// KiB that a flow carries without the flood in the time in which one SYN comes.
    pub kib_per_syn: u32,
}

/// How much of everything.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// MiB each way on every booted combination.
    pub hashed_mib: u64,
    /// MiB each way through the relay.
    pub relay_mib: u64,
    /// Seconds of torture of the locks.
    pub locks_s: u64,
    /// MiB between the two NICs of the pair.
    pub pair_mib: u64,
    /// MiB each way by IPv6.
    pub ip6_mib: u64,
    /// Seconds of each run of iperf3 by IPv6.
    pub ip6_s: u64,
    /// SYNs of a flood.
    pub flood_syns: u64,
    /// Seconds of malformed frames on the wire.
    pub fuzz_s: u64,
    /// Malformed frames for the hosted stack.
    pub hosted_fuzz_frames: u64,
    /// Seconds of libFuzzer for each target.
    pub fuzz_target_s: u64,
    /// Seeds for the fuzzers.
    pub seeds: u64,
    /// Seeds for the relay.
    pub relay_seeds: u64,
}

/// `qemu/scenarios.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenarios {
    /// Combinations booted.
    pub boot: Vec<Boot>,
    /// The relay.
    pub relay: Relay,
    /// The flood.
    pub flood: Flood,
    size: BTreeMap<String, Size>,
}

impl Scenarios {
    /// Reads the file.
    pub fn load() -> Result<Self> {
        toml::from_str(SCENARIOS).context("qemu/scenarios.toml")
    }

    /// A size by name.
    pub fn size(&self, name: &str) -> Result<&Size> {
        self.size
            .get(name)
            .ok_or_else(|| anyhow!("no size \"{name}\" in qemu/scenarios.toml"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_that_is_booted_is_described() {
        let machines = Machines::load().unwrap();
        let scenarios = Scenarios::load().unwrap();
        for boot in &scenarios.boot {
            machines.machine(&boot.machine).unwrap();
        }
        assert!(scenarios.size("test").unwrap().hashed_mib >= 64);
        assert!(scenarios.size("soak").unwrap().relay_mib >= 1024);
    }

    #[test]
    fn test_boots_one_two_and_four_cpus_on_both_machines() {
        let boots = Scenarios::load().unwrap().boot;
        for machine in ["pc", "q35"] {
            for smp in [1, 2, 4] {
                let there = |b: &Boot| b.machine == machine && b.smp == smp && !b.soak_only;
                assert!(boots.iter().any(there), "{machine} with {smp}");
            }
        }
    }
}
