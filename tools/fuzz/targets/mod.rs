//! What libFuzzer is let loose on: one target for each parser that the wire reaches, and some that drive connections.
//!
//! A target takes any bytes and panics if a property does not hold. `engine.rs` puts libFuzzer around it; the tests here
//! feed it what the scripts of the repository give. `input` cuts an input into records, `frame` makes frames of them, `stack`
//! feeds these to a stack, `pure` has the parsers that need none, `connection` and `pair` drive connections; `mutate` knows
//! how inputs are built, and `seeds` makes the first ones from packetdrill scripts.

pub mod connection;
pub mod frame;
pub mod input;
pub mod mutate;
pub mod pair;
pub mod pure;
pub mod seeds;
pub mod stack;

use frame::Layer;
use stack::Stack;

/// What an input is fed to.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A function of the bytes; it may need a machine for mbufs.
    Pure(fn(&[u8])),
    /// Frames to one stack that lives for many inputs.
    Frames(&'static [Layer]),
    /// A program for a machine of its own.
    Program(fn(&[u8])),
}

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does with its input.
    pub kind: Kind,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    frames("ether", &[Layer::Ether]),
    frames("arp", &[Layer::Arp]),
    frames("ipv4", &[Layer::Ip]),
    frames("icmp", &[Layer::Icmp]),
    frames("reassembly", &[Layer::Fragment]),
    frames("udp", &[Layer::Udp, Layer::Udp6]),
    frames("tcp", &[Layer::Tcp, Layer::Tcp6]),
    frames("ipv6", &[Layer::Ip6]),
    frames("ip6-headers", &[Layer::Ip6Ext]),
    frames("frag6", &[Layer::Fragment6]),
    frames("icmp6", &[Layer::Icmp6]),
    pure("tcp-options", pure::tcp_options),
    pure("headers", pure::headers),
    pure("checksums", pure::checksums),
    pure("lro", pure::lro),
    pure("dhcp", kernel::apps::dhclient::properties::check),
    pure("iperf3", kernel::apps::iperf3::properties::check),
    pure("packetdrill", pure::packetdrill),
    program("connection", connection::run),
    program("pair", pair::run),
];

const fn frames(name: &'static str, layers: &'static [Layer]) -> Target {
    Target {
        name,
        kind: Kind::Frames(layers),
    }
}

const fn pure(name: &'static str, run: fn(&[u8])) -> Target {
    Target {
        name,
        kind: Kind::Pure(run),
    }
}

const fn program(name: &'static str, run: fn(&[u8])) -> Target {
    Target {
        name,
        kind: Kind::Program(run),
    }
}

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Runs inputs of one target, one after the other.
pub struct Runner {
    kind: Kind,
    stack: Stack,
}

impl Target {
    /// Calls `body` with a runner, on a machine if the target shares one among its inputs.
    pub fn with_runner<T>(&self, body: impl FnOnce(Runner) -> T) -> T {
        let runner = Runner {
            kind: self.kind,
            stack: Stack::new(),
        };
        match self.kind {
            Kind::Program(_) => body(runner),
            Kind::Pure(_) | Kind::Frames(_) => stack::machine().run(|| body(runner)),
        }
    }
}

impl Runner {
    /// Whether the next input stands alone: nothing before it can have had a part in what it does.
    pub fn is_fresh(&self) -> bool {
        self.stack.is_fresh()
    }

    /// Runs one input. Panics if it shows a fault.
    pub fn run(&mut self, input: &[u8]) {
        match self.kind {
            Kind::Pure(run) | Kind::Program(run) => run(input),
            Kind::Frames(layers) => self.stack.run(layers, input),
        }
    }

    /// Ends what lives for many inputs, and checks that nothing is left of it.
    pub fn finish(&mut self) {
        self.stack.stop();
    }
}

#[cfg(test)]
mod tests;
