//! Packets put on the wire, and packets waited for.

use super::{Due, Executor, PATIENCE, Wrong, seconds};
use crate::ast::{Body, IcmpSpec, IpSpec, Packet, Quoted, TcpSpec, UdpPorts};
use crate::matcher::{compare, ecn_bits, show_packet, show_segment};
use crate::wire::{
    IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, IpHeader, Payload, Seen, Segment,
    decode, encode_icmp, encode_ip, encode_tcp, encode_udp,
};
use sys::machine::hosted::pump;
use sys::time::Sbintime;

/// TTL of packets that do not say otherwise.
const TTL: u8 = 255;
/// Time the stack gets to run behind a packet: what it leaves to its threads is done then.
const MOMENT: i64 = 1;

impl Executor {
    /// Puts a packet on the wire.
    pub(super) fn send_packet(&mut self, packet: &Packet) -> Result<(), Wrong> {
        let bytes = match &packet.body {
            Body::Tcp(spec) => self.segment(spec, &packet.ip, packet.encapsulation)?,
            Body::Udp(len) => self.datagram(*len, &packet.ip)?,
            Body::Icmp(spec) => self.icmp(spec, &packet.ip)?,
        };
        self.testbed.inject(&bytes);
        pump(self.at(self.now() + MOMENT));
        Ok(())
    }

    fn header(&self, spec: &IpSpec) -> IpHeader {
        let ecn = spec.ecn.map_or(0, ecn_bits);
        IpHeader {
            src: self.settings.remote,
            dst: self.settings.network.local,
            ttl: spec.ttl.unwrap_or(TTL),
            tos: spec.tos.unwrap_or(0) | ecn,
            flowlabel: spec.flowlabel.unwrap_or(0),
        }
    }

    fn segment(
        &mut self,
        spec: &TcpSpec,
        ip: &IpSpec,
        encapsulation: Option<UdpPorts>,
    ) -> Result<Vec<u8>, Wrong> {
        let bind_port = self.settings.bind_port;
        let next_port = &mut self.next_port;
        let Some(connection) = &mut self.connection else {
            return Err("a packet for no socket".into());
        };
        connection.begin_inbound(spec, || {
            *next_port = next_port.wrapping_add(1);
            *next_port
        });
        if connection.local_port.is_none() {
            connection.local_port = Some(bind_port);
        }
        let segment = connection.inbound(spec)?;
        let udp = encapsulation.map(|ports| (ports.source, ports.destination));
        let shown = show_segment(
            &Segment {
                seq: match spec.seq {
                    crate::ast::SeqSpec::Relative(seq) => seq,
                    _ => segment.seq,
                },
                ack: spec.ack.unwrap_or(0),
                options: spec.options.clone().unwrap_or_default(),
                ..segment.clone()
            },
            udp,
        );
        self.note(format!("< {shown}"));
        let header = self.header(ip);
        let tcp = encode_tcp(header.src, header.dst, &segment, &self.settings.md5_key);
        Ok(match udp {
            Some(ports) => {
                let udp = encode_udp(header.src, header.dst, ports, &tcp);
                encode_ip(&header, IPPROTO_UDP, &udp)
            }
            None => encode_ip(&header, IPPROTO_TCP, &tcp),
        })
    }

    fn datagram(&mut self, len: u16, ip: &IpSpec) -> Result<Vec<u8>, Wrong> {
        let ports = self.udp_ports()?;
        self.note(format!("< udp ({len})"));
        let header = self.header(ip);
        let udp = encode_udp(header.src, header.dst, ports, &vec![0; len.into()]);
        Ok(encode_ip(&header, IPPROTO_UDP, &udp))
    }

    /// Ports of a datagram to the stack.
    fn udp_ports(&self) -> Result<(u16, u16), Wrong> {
        let connection = self.connection.as_ref().ok_or("a packet for no socket")?;
        Ok((
            connection.remote_port.unwrap_or(self.settings.connect_port),
            connection.local_port.unwrap_or(self.settings.bind_port),
        ))
    }

    /// An ICMP message about a packet that the stack sent.
    fn icmp(&mut self, spec: &IcmpSpec, ip: &IpSpec) -> Result<Vec<u8>, Wrong> {
        let v6 = self.settings.remote.is_ipv6();
        let (kind, code) = icmp_numbers(spec, v6)?;
        let mut head = [kind, code, 0, 0, 0, 0, 0, 0];
        if let Some(mtu) = spec.mtu {
            // ICMPv6 has 32 bits for it (RFC 4443 §3.2), ICMP the lower 16 (RFC 1191 §4).
            head[4..].copy_from_slice(&mtu.to_be_bytes());
        }
        let quoted = match spec.quoted {
            Some(quoted) => self.quote(quoted)?,
            None => Vec::new(),
        };
        self.note(format!(
            "< icmp {} {}",
            spec.kind,
            spec.code.as_deref().unwrap_or("")
        ));
        let header = self.header(ip);
        let proto = if v6 { IPPROTO_ICMPV6 } else { IPPROTO_ICMP };
        let message = encode_icmp(header.src, header.dst, head, &quoted);
        Ok(encode_ip(&header, proto, &message))
    }

    /// The beginning of a packet from the stack to the peer, as a router quotes it.
    fn quote(&self, quoted: Quoted) -> Result<Vec<u8>, Wrong> {
        let connection = self.connection.as_ref().ok_or("a packet of no socket")?;
        let header = IpHeader {
            src: self.settings.network.local,
            dst: self.settings.remote,
            ttl: TTL,
            tos: 0,
            flowlabel: 0,
        };
        let (src, dst) = (header.src, header.dst);
        Ok(match quoted {
            Quoted::Tcp {
                seq,
                len,
                encapsulation,
            } => {
                let segment = Segment {
                    sport: connection.local_port.unwrap_or(self.settings.bind_port),
                    dport: connection.remote_port.unwrap_or(self.settings.connect_port),
                    seq: connection.quoted_seq(seq),
                    len: len as usize,
                    ..Segment::default()
                };
                let tcp = encode_tcp(src, dst, &segment, b"");
                match encapsulation {
                    Some(ports) => {
                        let ports = (ports.source, ports.destination);
                        encode_ip(&header, IPPROTO_UDP, &encode_udp(src, dst, ports, &tcp))
                    }
                    None => encode_ip(&header, IPPROTO_TCP, &tcp),
                }
            }
            Quoted::Udp(len) => {
                let (remote, local) = self.udp_ports()?;
                let udp = encode_udp(src, dst, (local, remote), &vec![0; len.into()]);
                encode_ip(&header, IPPROTO_UDP, &udp)
            }
        })
    }

    /// Waits for a packet from the stack, which must be as `packet` says and come in time.
    pub(super) fn expect_packet(&mut self, packet: &Packet, due: Due) -> Result<(), Wrong> {
        let latest = match due.span {
            Some((_, to)) => to + due.tolerance,
            None => self.now() + PATIENCE,
        };
        let Some((at, seen)) = self.next_packet(self.at(latest))? else {
            let span = match due.span {
                Some((from, _)) => format!("expected at {} s", seconds(from)),
                None => format!("waited until {} s", seconds(self.now())),
            };
            return Err(format!("no packet comes: {span}").into());
        };
        if let (Body::Tcp(spec), Payload::Tcp(segment)) = (&packet.body, &seen.payload)
            && let Some(connection) = &mut self.connection
        {
            connection.learn(segment, spec);
        }
        let shown = show_packet(&seen, self.connection.as_ref());
        self.note_at(at, format!("> {shown}"));
        let differences = compare(
            packet,
            &seen,
            self.connection.as_ref(),
            &self.settings.md5_key,
            &self.rules,
        );
        if !differences.is_empty() {
            let fields: Vec<&str> = differences.iter().map(|d| d.field.as_str()).collect();
            return Err(Wrong {
                reason: format!("the packet differs: {}", fields.join(", ")),
                seen: Some(shown),
                differences,
            });
        }
        if let Some((from, _)) = due.span
            && at < from - due.tolerance
        {
            let early = seconds(from - at);
            return Err(Wrong {
                reason: format!("the packet comes {early} s early, at {} s", seconds(at)),
                seen: Some(shown),
                ..Wrong::default()
            });
        }
        Ok(())
    }

    /// The next packet that belongs to the connection under test, and when it came.
    fn next_packet(&mut self, deadline: Sbintime) -> Result<Option<(i64, Seen)>, Wrong> {
        while let Some((at, bytes)) = self.testbed.next_packet(deadline) {
            let at = (at - self.start).as_us();
            let seen = decode(&bytes, self.settings.encapsulated)
                .map_err(|reason| format!("the stack sends {reason}"))?;
            if self.is_ours(&seen) {
                return Ok(Some((at, seen)));
            }
            self.note_at(
                at,
                format!("> {} (of another connection)", show_packet(&seen, None)),
            );
        }
        Ok(None)
    }

    fn is_ours(&mut self, seen: &Seen) -> bool {
        let network = &self.settings.network;
        if seen.ip.src != network.local || seen.ip.dst != self.settings.remote {
            return false;
        }
        let Some(connection) = &mut self.connection else {
            return false;
        };
        match &seen.payload {
            Payload::Tcp(segment) => connection.owns(segment),
            Payload::Udp { sport, dport, .. } => {
                let to = connection.remote_port.unwrap_or(self.settings.connect_port);
                let from = *connection.local_port.get_or_insert(*sport);
                (from, to) == (*sport, *dport)
            }
            Payload::Icmp { .. } | Payload::Other(_) => false,
        }
    }

    /// Nothing of the connection may be left that no line has expected.
    pub(super) fn nothing_left(&mut self) -> Result<(), Wrong> {
        let now = self.at(self.now());
        match self.next_packet(now)? {
            None => Ok(()),
            Some(_) if self.testbed.counts().1 > self.watched => Ok(()),
            Some((at, seen)) => {
                let shown = show_packet(&seen, self.connection.as_ref());
                Err(Wrong {
                    reason: format!(
                        "a packet is left that nothing expects, from {} s",
                        seconds(at)
                    ),
                    seen: Some(shown),
                    ..Wrong::default()
                })
            }
        }
    }
}

/// Type and code of an ICMP message.
fn icmp_numbers(spec: &IcmpSpec, v6: bool) -> Result<(u8, u8), Wrong> {
    let table = if v6 { ICMPV6 } else { ICMPV4 };
    let number = |name: &str| {
        let digits = name.rsplit('_').next().unwrap_or(name);
        digits.parse::<u8>().ok()
    };
    let known = table.iter().find(|(name, _, _)| *name == spec.kind);
    let (kind, codes): (u8, &[(&str, u8)]) = match known {
        Some((_, kind, codes)) => (*kind, codes),
        None => match number(&spec.kind) {
            Some(kind) => (kind, &[]),
            None => return Err(format!("unknown type of ICMP `{}`", spec.kind).into()),
        },
    };
    let Some(name) = &spec.code else {
        return Ok((kind, 0));
    };
    let code = codes.iter().find(|(known, _)| known == name);
    let code = code.map(|(_, code)| *code).or_else(|| number(name));
    let code = code.ok_or_else(|| format!("unknown code of ICMP `{name}`"))?;
    Ok((kind, code))
}

type IcmpTable = &'static [(&'static str, u8, &'static [(&'static str, u8)])];

/// RFC 792, RFC 1122 §3.2.2.1, RFC 1812 §5.2.7.1.
const ICMPV4: IcmpTable = &[
    ("echo_reply", 0, &[]),
    (
        "unreachable",
        3,
        &[
            ("net_unreachable", 0),
            ("host_unreachable", 1),
            ("protocol_unreachable", 2),
            ("port_unreachable", 3),
            ("frag_needed", 4),
            ("source_route_failed", 5),
            ("net_unknown", 6),
            ("host_unknown", 7),
            ("source_host_isolated", 8),
            ("net_prohibited", 9),
            ("host_prohibited", 10),
            ("net_unreachable_for_tos", 11),
            ("host_unreachable_for_tos", 12),
            ("packet_filtered", 13),
            ("precedence_violation", 14),
            ("precedence_cutoff", 15),
        ],
    ),
    ("source_quench", 4, &[]),
    ("redirect", 5, &[]),
    ("echo_request", 8, &[]),
    (
        "time_exceeded",
        11,
        &[
            ("ttl_exceeded_in_transit", 0),
            ("exceeded_ttl", 0),
            ("frag_reass_exceeded", 1),
            ("exceeded_frag_time", 1),
        ],
    ),
    ("parameter_problem", 12, &[]),
];

/// RFC 4443.
const ICMPV6: IcmpTable = &[
    (
        "unreachable",
        1,
        &[
            ("no_route", 0),
            ("admin_prohibited", 1),
            ("not_neighbour", 2),
            ("address_unreachable", 3),
            ("port_unreachable", 4),
        ],
    ),
    ("packet_too_big", 2, &[]),
    (
        "time_exceeded",
        3,
        &[("exceeded_hop_limit", 0), ("exceeded_frag_time", 1)],
    ),
    (
        "parameter_problem",
        4,
        &[
            ("header_field", 0),
            ("unknown_next_header", 1),
            ("unknown_option", 2),
        ],
    ),
    ("echo_request", 128, &[]),
    ("echo_reply", 129, &[]),
];
