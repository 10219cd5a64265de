//! What scripts mean, and how wrong ones are refused.

use super::*;
use crate::ast::{Body, Expr, Md5, Packet, Quoted, SeqSpec, TcpOption, TcpSpec, UdpPorts};
use crate::wire::TcpFlag;

fn event(text: &str) -> Event {
    let mut script = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(script.events.len(), 1, "{text}");
    script.events.remove(0)
}

fn packet(text: &str) -> Packet {
    match event(text).action {
        Action::Packet(packet) => packet,
        other => panic!("{text}: {other:?}"),
    }
}

fn tcp(text: &str) -> TcpSpec {
    match packet(text).body {
        Body::Tcp(tcp) => tcp,
        other => panic!("{text}: {other:?}"),
    }
}

/// Line, column and a part of the reason.
fn refused(text: &str, line: usize, column: usize, part: &str) {
    let e = parse(text).expect_err(text);
    assert_eq!((e.pos.line, e.pos.column), (line, column), "{e}");
    assert!(e.reason.contains(part), "{e}");
}

#[test]
fn times_are_absolute_relative_any_or_a_range() {
    assert_eq!(event("1.5 `x`").time, Time::Absolute(1_500_000));
    assert_eq!(event("+ 0.000001 `x`").time, Time::Relative(1));
    assert_eq!(event("* > . 1:1(0) ack 1").time, Time::Any);
    assert_eq!(
        event("1~2.5 `x`").time,
        Time::AbsoluteRange(1_000_000, 2_500_000)
    );
    assert_eq!(
        event("+0.5~+1 `x`").time,
        Time::RelativeRange(500_000, 1_000_000)
    );
}

#[test]
fn a_blocking_call_says_when_it_ends() {
    let blocking = event(" 1.00...6.00 connect(3, ..., ...) = -1 ETIMEDOUT (Can't (now))");
    assert_eq!(blocking.time, Time::Absolute(1_000_000));
    let Action::Syscall(call) = blocking.action else {
        panic!("a call")
    };
    assert_eq!(call.end, Some(6_000_000));
    assert_eq!(call.errno.as_deref(), Some("ETIMEDOUT"));
    assert_eq!(call.args, [Expr::Int(3), Expr::Any, Expr::Any]);
}

#[test]
fn a_segment_has_flags_numbers_and_options() {
    let syn = tcp("+0 > SEW 0:0(0) win 65535 <mss 1460,nop,wscale 6,sackOK,TS val 100 ecr 0>");
    assert_eq!(syn.flags, TcpFlag::SYN | TcpFlag::ECE | TcpFlag::CWR);
    assert_eq!(
        syn.options,
        Some(vec![
            TcpOption::Mss(1460),
            TcpOption::Nop,
            TcpOption::WindowScale(6),
            TcpOption::SackPermitted,
            TcpOption::Timestamps { val: 100, ecr: 0 },
        ])
    );
    let fin = tcp("+0 < F . 1:11(10) ack 5 win 7");
    assert_eq!(fin.flags, TcpFlag::FIN | TcpFlag::ACK);
    assert_eq!(
        (fin.seq, fin.len, fin.ack, fin.win),
        (SeqSpec::Relative(1), 10, Some(5), Some(7))
    );
    assert_eq!(fin.options, Some(vec![]));
    assert_eq!(tcp("+0 > S. ...(0) ack 1").seq, SeqSpec::Any);
    assert_eq!(tcp("+0 > R. 0:0(0)! ack 1 win 0").seq, SeqSpec::Absolute(0));
    assert_eq!(tcp("* > S 0:0(0) win 1 <...>").options, None);
    assert_eq!(tcp("+0 < - 0:0(0) win 1").flags, 0);
    let signed = tcp("+0 < . 1:1(0) ack 1 win 1 <nop,nop,md5 valid,sack 1:2 5:6,nop, nop>");
    let Some(options) = signed.options else {
        panic!("options")
    };
    assert_eq!(options[2], TcpOption::Md5(Md5::Valid));
    assert_eq!(options[3], TcpOption::Sack(vec![(1, 2), (5, 6)]));
}

#[test]
fn cookies_are_bytes_in_hexadecimal() {
    let syn = tcp("+0 > S 0:0(0) <FO,eol,eol>");
    assert_eq!(
        syn.options.map(|o| o[0].clone()),
        Some(TcpOption::FastOpen(vec![]))
    );
    let syn = tcp("+0 > S 0:0(0) <FO 00ff>");
    assert_eq!(syn.options, Some(vec![TcpOption::FastOpen(vec![0, 0xff])]));
}

#[test]
fn packets_may_say_what_is_around_them() {
    let inside = packet("+0 < [ect0] (ttl 6) . 1:1(0) ack 1 win 1/udp(1 > 9811)");
    assert_eq!(inside.ip.ttl, Some(6));
    let ports = UdpPorts {
        source: 1,
        destination: 9811,
    };
    assert_eq!(inside.encapsulation, Some(ports));
    let Body::Icmp(icmp) =
        packet("+0 < icmp unreachable frag_needed mtu 600 [1:1(0)/udp(1 > 9811)]").body
    else {
        panic!("ICMP")
    };
    assert_eq!(
        (icmp.kind.as_str(), icmp.code.as_deref(), icmp.mtu),
        ("unreachable", Some("frag_needed"), Some(600))
    );
    let quoted = Quoted::Tcp {
        seq: 1,
        len: 0,
        encapsulation: Some(ports),
    };
    assert_eq!(icmp.quoted, Some(quoted));
    assert_eq!(packet("+0 > udp (1000)").body, Body::Udp(1000));
}

#[test]
fn calls_take_numbers_names_lists_and_structures() {
    let Action::Syscall(call) =
        event("+0 setsockopt(3, L, O, {name=\"x\", 2}, [A | B, -1]) = 0x02 (flags O_RDWR)").action
    else {
        panic!("a call")
    };
    let fields = vec![
        (Some("name".to_string()), Expr::Text("x".into())),
        (None, Expr::Int(2)),
    ];
    assert_eq!(call.args[3], Expr::Struct(fields));
    let or = Expr::Or(vec![Expr::Word("A".into()), Expr::Word("B".into())]);
    assert_eq!(call.args[4], Expr::List(vec![or, Expr::Int(-1)]));
    assert_eq!((call.result, call.errno), (Expr::Int(2), None));
}

#[test]
fn a_malformed_script_says_where_and_why() {
    refused("+0 < S 0:5(4) win 1", 1, 8, "do not end at 5");
    refused("\n+0 < S 0:0(0)", 2, 14, "`win`");
    refused("+0 < S 0:0(0) win 70000", 1, 19, "too large");
    refused("+0 > SQ 0:0(0)", 1, 6, "`Q`");
    refused("+0 > S 0:0(0) <mss 1460,nop>", 1, 15, "32-bit words");
    refused("+0 > S 0:0(0) <mss>", 1, 19, "segment size");
    refused("+0 > S 0:0(0) <sackPlease>", 1, 16, "unknown TCP option");
    refused("+0 socket(3", 1, 12, "`,` or `)`");
    refused("socket() = 3", 1, 1, "a time");
    refused("s// comment", 1, 1, "a time");
    refused("+0 `x`\n--mtu=3", 2, 1, "before the first event");
    refused("2...1 close(3) = 0", 1, 5, "before it begins");
}
