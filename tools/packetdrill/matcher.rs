//! Compares what a script expects with what the stack sent.

use crate::ast::{Body, EcnSpec, IpSpec, Md5, Packet, SeqSpec, TcpOption, TcpSpec};
use crate::connection::Connection;
use crate::executor::Rules;
use crate::wire::{Payload, Seen, Segment, TcpFlag, md5_digest, show_options};

/// A field that is not as expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Its name.
    pub field: String,
    /// What was expected.
    pub expected: String,
    /// What was seen.
    pub seen: String,
}

/// Compares a packet; `Ok` if nothing differs.
pub fn compare(
    packet: &Packet,
    seen: &Seen,
    connection: Option<&Connection>,
    md5_key: &[u8],
    rules: &Rules,
) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut differ = |field: &str, expected: String, seen: String| {
        if expected != seen {
            differences.push(Difference {
                field: field.into(),
                expected,
                seen,
            });
        }
    };
    for fault in &seen.faults {
        // The original leaves the sums of the transport to the network.
        if rules.checksum || fault.starts_with("IPv4") {
            differ(fault, "right".into(), "wrong".into());
        }
    }
    compare_ip(&packet.ip, seen, &mut differ);
    match (&packet.body, &seen.payload) {
        (Body::Tcp(spec), Payload::Tcp(segment)) => {
            let absolute = matches!(spec.seq, SeqSpec::Absolute(_));
            let shown = match connection {
                Some(connection) => connection.as_written(segment, absolute),
                None => segment.clone(),
            };
            compare_tcp(spec, &shown, rules, &mut differ);
            compare_md5(spec, seen, md5_key, &mut differ);
        }
        (Body::Udp(wanted), Payload::Udp { len, .. }) => {
            differ("length", wanted.to_string(), len.to_string());
        }
        (body, payload) => differ("protocol", name_of(body).into(), format!("{payload:?}")),
    }
    if let Body::Tcp(_) = packet.body {
        let show = |ports: Option<(u16, u16)>| match ports {
            Some((source, destination)) => format!("udp({source} > {destination})"),
            None => "none".into(),
        };
        let wanted = packet.encapsulation.map(|p| (p.source, p.destination));
        differ("encapsulation", show(wanted), show(seen.udp));
    }
    differences
}

fn name_of(body: &Body) -> &'static str {
    match body {
        Body::Tcp(_) => "TCP",
        Body::Udp(_) => "UDP",
        Body::Icmp(_) => "ICMP",
    }
}

fn compare_ip(spec: &IpSpec, seen: &Seen, differ: &mut impl FnMut(&str, String, String)) {
    let name = |bits: u8| ["noecn", "ect1", "ect0", "ce"][usize::from(bits & 3)].to_string();
    match spec.ecn {
        Some(EcnSpec::Ect01) if [1, 2].contains(&(seen.ip.tos & 3)) => {}
        Some(EcnSpec::Ect01) => differ("ECN", "ect01".into(), name(seen.ip.tos)),
        Some(ecn) => differ("ECN", name(ecn_bits(ecn)), name(seen.ip.tos)),
        None => {}
    }
    if let Some(tos) = spec.tos {
        differ(
            "TOS",
            format!("{tos:#04x}"),
            format!("{:#04x}", seen.ip.tos),
        );
    }
    if let Some(ttl) = spec.ttl {
        differ("TTL", ttl.to_string(), seen.ip.ttl.to_string());
    }
    if let Some(label) = spec.flowlabel {
        differ(
            "flow label",
            format!("{label:#x}"),
            format!("{:#x}", seen.ip.flowlabel),
        );
    }
}

/// Both bits of the ECN field.
pub fn ecn_bits(ecn: EcnSpec) -> u8 {
    match ecn {
        EcnSpec::NoEcn => 0,
        EcnSpec::Ect1 => 1,
        EcnSpec::Ect0 | EcnSpec::Ect01 => 2,
        EcnSpec::Ce => 3,
    }
}

fn compare_tcp(
    spec: &TcpSpec,
    seen: &Segment,
    rules: &Rules,
    differ: &mut impl FnMut(&str, String, String),
) {
    differ(
        "flags",
        TcpFlag::show(spec.flags),
        TcpFlag::show(seen.flags),
    );
    let reserved = seen.flags & 0xe00;
    differ("reserved bits", "0".into(), format!("{:x}", reserved >> 9));
    match spec.seq {
        SeqSpec::Any => {}
        SeqSpec::Relative(seq) | SeqSpec::Absolute(seq) => {
            differ("sequence number", seq.to_string(), seen.seq.to_string());
        }
    }
    differ("length", spec.len.to_string(), seen.len.to_string());
    differ(
        "acknowledgement",
        spec.ack.unwrap_or(0).to_string(),
        seen.ack.to_string(),
    );
    if let Some(win) = spec.win {
        differ("window", win.to_string(), seen.win.to_string());
    }
    differ(
        "urgent pointer",
        spec.urg.unwrap_or(0).to_string(),
        seen.urg.to_string(),
    );
    if let Some(wanted) = &spec.options {
        let (expected, found) = comparable(wanted, &seen.options, rules.timestamps);
        differ("options", show_options(&expected), show_options(&found));
    }
}

/// Both lists of options, without what does not matter.
fn comparable(
    wanted: &[TcpOption],
    seen: &[TcpOption],
    echo: bool,
) -> (Vec<TcpOption>, Vec<TcpOption>) {
    let mut seen = seen.to_vec();
    for (wanted, seen) in wanted.iter().zip(&mut seen) {
        match (wanted, &mut *seen) {
            (
                TcpOption::Timestamps { val, ecr },
                TcpOption::Timestamps {
                    val: seen_val,
                    ecr: seen_ecr,
                },
            ) => {
                *seen_val = *val;
                if !echo {
                    *seen_ecr = *ecr;
                }
            }
            // Whether a signature is valid is looked at elsewhere.
            (TcpOption::Md5(wanted @ Md5::Valid), TcpOption::Md5(seen)) => *seen = *wanted,
            _ => {}
        }
    }
    (wanted.to_vec(), seen)
}

/// A signature said to be valid must be.
fn compare_md5(
    spec: &TcpSpec,
    seen: &Seen,
    key: &[u8],
    differ: &mut impl FnMut(&str, String, String),
) {
    let valid = TcpOption::Md5(Md5::Valid);
    if !spec.options.iter().flatten().any(|option| *option == valid) {
        return;
    }
    let Payload::Tcp(segment) = &seen.payload else {
        return;
    };
    let found = segment.options.iter().find_map(|option| match option {
        TcpOption::Md5(Md5::Digest(digest)) => Some(*digest),
        _ => None,
    });
    let Some(found) = found else { return };
    let udp = if seen.udp.is_some() { 8 } else { 0 };
    let hlen = if seen.ip.src.is_ipv4() { 20 } else { 40 };
    let Some(tcp) = seen.bytes.get(hlen + udp..) else {
        return;
    };
    let good = md5_digest(seen.ip.src, seen.ip.dst, tcp, key) == found;
    differ("signature", "true".into(), good.to_string());
}

/// A segment as a script writes it.
pub fn show_segment(segment: &Segment, udp: Option<(u16, u16)>) -> String {
    let mut line = format!(
        "{} {}:{}({})",
        TcpFlag::show(segment.flags),
        segment.seq,
        segment.seq.wrapping_add(segment.len as u32),
        segment.len
    );
    if segment.flags & TcpFlag::ACK != 0 || segment.ack != 0 {
        line += &format!(" ack {}", segment.ack);
    }
    line += &format!(" win {}", segment.win);
    if segment.urg != 0 {
        line += &format!(" urg {}", segment.urg);
    }
    if !segment.options.is_empty() {
        line += &format!(" <{}>", show_options(&segment.options));
    }
    if let Some((source, destination)) = udp {
        line += &format!("/udp({source} > {destination})");
    }
    line
}

/// A packet as a script writes it, in the numbers of `connection`.
pub fn show_packet(seen: &Seen, connection: Option<&Connection>) -> String {
    match &seen.payload {
        Payload::Tcp(segment) => match connection {
            Some(connection) => show_segment(&connection.as_written(segment, false), seen.udp),
            None => show_segment(segment, seen.udp),
        },
        Payload::Udp { len, .. } => format!("udp ({len})"),
        Payload::Icmp { kind, code } => format!("icmp {kind} {code}"),
        Payload::Other(proto) => format!("protocol {proto}"),
    }
}
