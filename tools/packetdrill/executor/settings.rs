//! What the `--name=value` lines of a script say.

use crate::ast::{ScriptError, ScriptOption};
use crate::lexer::error;
use crate::testbed::Network;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The events of a script may be so much too early or too late, in microseconds.
const TOLERANCE_USECS: i64 = 4000;
/// Or by this share of the time since the event before, if that is more.
const TOLERANCE_PERCENT: f64 = 5.0;
/// Port that scripts bind to, and that they connect to.
const PORT: u16 = 8080;

/// Kinds of events.
pub const KINDS: [&str; 4] = ["packet", "syscall", "command", "code"];

/// What a script asks for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The stack's addresses.
    pub network: Network,
    /// The peer's address.
    pub remote: IpAddr,
    /// Port that `bind(…, ..., ...)` binds to.
    pub bind_port: u16,
    /// Port of the peer that `connect(…, ..., ...)` connects to.
    pub connect_port: u16,
    /// How early or late an event may be, in microseconds.
    pub tolerance_usecs: i64,
    /// The same as a share of the time since the event before.
    pub tolerance_percent: f64,
    /// Kinds of events whose failures do not matter.
    pub non_fatal: Vec<String>,
    /// TCP travels inside UDP.
    pub encapsulated: bool,
    /// Key of RFC 2385 signatures.
    pub md5_key: Vec<u8>,
}

impl Settings {
    /// Reads the options of a script.
    pub fn new(options: &[ScriptOption]) -> Result<Settings, ScriptError> {
        let v6 = options
            .iter()
            .rfind(|option| option.name == "ip_version")
            .is_some_and(|option| option.value == "ipv6");
        let mut settings = Settings::default_for(v6);
        for option in options {
            settings
                .set(option)
                .map_err(|reason| error(option.pos, reason))?;
        }
        Ok(settings)
    }

    fn default_for(v6: bool) -> Settings {
        let (local, gateway, remote): (IpAddr, IpAddr, IpAddr) = match v6 {
            false => (
                Ipv4Addr::new(192, 168, 0, 1).into(),
                Ipv4Addr::new(192, 168, 0, 2).into(),
                Ipv4Addr::new(192, 0, 2, 1).into(),
            ),
            true => (
                Ipv6Addr::new(0xfd3d, 0xfa7b, 0xd17d, 0, 0, 0, 0, 1).into(),
                Ipv6Addr::new(0xfd3d, 0xfa7b, 0xd17d, 0, 0, 0, 0, 2).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
            ),
        };
        Settings {
            network: Network {
                local,
                prefix_len: if v6 { 48 } else { 16 },
                gateway,
                mtu: 1500,
            },
            remote,
            bind_port: PORT,
            connect_port: PORT,
            tolerance_usecs: TOLERANCE_USECS,
            tolerance_percent: TOLERANCE_PERCENT,
            non_fatal: Vec::new(),
            encapsulated: false,
            md5_key: Vec::new(),
        }
    }

    fn set(&mut self, option: &ScriptOption) -> Result<(), String> {
        let value = option.value.as_str();
        let bad = |wanted: &str| format!("--{} must be {wanted}, not `{value}`", option.name);
        match option.name.as_str() {
            "ip_version" if matches!(value, "ipv4" | "ipv6") => {}
            "ip_version" => return Err(bad("ipv4 or ipv6")),
            "tolerance_usecs" => {
                self.tolerance_usecs = value.parse().map_err(|_| bad("a number"))?;
            }
            "tolerance_percent" => {
                self.tolerance_percent = value.parse().map_err(|_| bad("a number"))?;
            }
            "mtu" => self.network.mtu = value.parse().map_err(|_| bad("a number"))?,
            "bind_port" => self.bind_port = value.parse().map_err(|_| bad("a port"))?,
            "connect_port" => self.connect_port = value.parse().map_err(|_| bad("a port"))?,
            "local_ip" => self.network.local = value.parse().map_err(|_| bad("an address"))?,
            "gateway_ip" => self.network.gateway = value.parse().map_err(|_| bad("an address"))?,
            "remote_ip" => self.remote = value.parse().map_err(|_| bad("an address"))?,
            "netmask_ip" => {
                let mask: Ipv4Addr = value.parse().map_err(|_| bad("a mask"))?;
                self.network.prefix_len = mask.to_bits().leading_ones() as u8;
            }
            "non_fatal" => {
                for kind in value.split(',') {
                    if !KINDS.contains(&kind) {
                        return Err(bad("packet, syscall, command or code"));
                    }
                    self.non_fatal.push(kind.to_string());
                }
            }
            "udp_encapsulation" => match value {
                "tcp" => self.encapsulated = true,
                _ => return Err(bad("tcp")),
            },
            "tcp_md5_secret" => self.md5_key = value.as_bytes().to_vec(),
            // They say how the original talks and waits, which is nothing to us.
            "verbose" | "debug" | "persistent_tun_dev" | "use_expect" => {}
            name => return Err(format!("unknown option --{name}")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(name: &str, value: &str) -> ScriptOption {
        ScriptOption {
            pos: crate::ast::Pos::default(),
            name: name.into(),
            value: value.into(),
        }
    }

    #[test]
    fn options_change_what_is_usual_and_nonsense_is_refused() {
        let settings = Settings::new(&[option("mtu", "9000"), option("ip_version", "ipv6")]);
        let settings = settings.expect("good options");
        assert_eq!(settings.network.mtu, 9000);
        assert!(settings.remote.is_ipv6());
        assert_eq!(settings.tolerance_usecs, TOLERANCE_USECS);
        for (name, value) in [
            ("mtu", "x"),
            ("ip_version", "5"),
            ("wrong", ""),
            ("non_fatal", "all"),
        ] {
            assert!(Settings::new(&[option(name, value)]).is_err(), "{name}");
        }
    }
}
