//! netstat without -i, -r, -s: sockets.
//!
//! FreeBSD: usr.bin/netstat/inet.c

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use netinet::in_pcb::{InpHdr, InpVflag, Inpcb, Pcbinfo};
use netinet::tcp_fsm::TcpState;
use netinet::vnet::inet_of;
use sys::net::vnet::Vnet;
use sys::socketvar::Socket;

use super::{Options, tcp};
use crate::apps::Env;
use crate::apps::io::Family;
use crate::shell::format;

/// A socket as the table shows it.
#[derive(Clone)]
pub(super) struct Row {
    proto: String,
    family: Family,
    address: u64,
    /// Address and port; no address is shown as `*`.
    local: (Option<String>, u16),
    foreign: (Option<String>, u16),
    recv: Buffer,
    send: Buffer,
    flowid: u32,
    flowtype: u8,
    /// qlen, incqlen, maxqlen of a listening socket.
    queue: Option<(usize, usize, u32)>,
    tcp: Option<Tcp>,
}

/// Figures of a socket buffer.
#[derive(Clone, Copy, Default)]
struct Buffer {
    cc: u32,
    hiwat: u32,
    lowat: u32,
    mbcnt: u32,
    mbmax: u32,
}

/// Figures of a TCP connection.
#[derive(Clone)]
pub(super) struct Tcp {
    pub(super) state: TcpState,
    pub(super) retransmitted: u32,
    pub(super) out_of_order: u32,
    pub(super) zero_windows: u32,
    pub(super) cc: String,
    pub(super) cwnd: u32,
    pub(super) ssthresh: u32,
    pub(super) maxseg: u32,
    pub(super) ecn: &'static str,
    /// A device runs the connection.
    pub(super) offloaded: bool,
    /// Timers in ms until they expire: rexmt, persist, keep, 2msl, delack; then ms since the last segment.
    pub(super) times: [u32; 6],
}

/// The table.
pub(super) fn table(env: &Env, options: &Options) -> String {
    let mut rows = Vec::new();
    if let Some(inet) = inet_of(&env.vnet) {
        let wanted = |proto: &str| options.protocol.as_deref().is_none_or(|name| name == proto);
        if wanted("tcp") {
            tcp::sockets(&env.vnet, &inet, &mut rows);
        }
        if wanted("udp") && !options.listen {
            collect(&env.vnet, &inet.udbinfo, "udp", &mut rows, |_| None);
        }
        if (wanted("icmp") || wanted("ip")) && !options.listen {
            collect(&env.vnet, &inet.ripcbinfo, "ip", &mut rows, |_| None);
        }
        if (wanted("icmp6") || wanted("ip6")) && !options.listen {
            collect(&env.vnet, &inet.rip6cbinfo, "ip", &mut rows, |_| None);
        }
    }
    render(rows, options)
}

/// Adds the sockets of a protocol.
pub(super) fn collect<P: Send + Sync + 'static>(
    vnet: &Vnet,
    pcbinfo: &Pcbinfo<P>,
    proto: &'static str,
    rows: &mut Vec<Row>,
    figures: impl Fn(&P) -> Option<Tcp>,
) {
    let mut pcbs: Vec<Arc<Inpcb<P>>> = pcbinfo.snapshot();
    pcbs.sort_by_key(|inp| core::cmp::Reverse(inp.inp_gencnt));
    for inp in pcbs {
        // The socket's locks come after the block's: first look, then let go of the block.
        let (row, so) = {
            let locked = inp.read();
            let row = row_of(
                vnet,
                &locked.hdr,
                proto,
                Arc::as_ptr(&inp) as *const u8 as u64,
                figures(&locked.ppcb),
            );
            (row, locked.hdr.inp_socket.clone())
        };
        rows.push(with_socket(row, so));
    }
}

fn row_of(vnet: &Vnet, hdr: &InpHdr, proto: &'static str, address: u64, tcp: Option<Tcp>) -> Row {
    let text = |addr: IpAddr| match addr {
        IpAddr::V6(addr) if !addr.is_unspecified() => Some(format::in6(vnet, addr)),
        IpAddr::V4(addr) if !addr.is_unspecified() => Some(addr.to_string()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    };
    let six = hdr.inp_vflag.contains(InpVflag::IPV6);
    let four = hdr.inp_vflag.contains(InpVflag::IPV4);
    let proto = match &tcp {
        Some(tcp) if tcp.offloaded => "toe",
        _ => proto,
    };
    Row {
        proto: match (six, four) {
            (true, true) => format!("{proto}46"),
            (true, false) => format!("{proto}6"),
            (false, _) => format!("{proto}4"),
        },
        family: match (four, six) {
            (true, true) => Family::Any,
            (true, false) | (false, false) => Family::Inet,
            (false, true) => Family::Inet6,
        },
        address,
        local: (text(hdr.laddr()), hdr.lport()),
        foreign: (text(hdr.faddr()), hdr.fport()),
        recv: Buffer::default(),
        send: Buffer::default(),
        flowid: hdr.inp_flowid,
        flowtype: hdr.inp_flowtype.0,
        queue: None,
        tcp,
    }
}

fn with_socket(mut row: Row, so: Option<Arc<Socket>>) -> Row {
    let Some(so) = so else { return row };
    if so.is_listening() {
        row.queue = Some(so.listen_queue());
        return row;
    }
    let figures = |sb: &sys::sockbuf::Sockbuf| Buffer {
        cc: sb.used(),
        hiwat: sb.hiwat(),
        lowat: sb.lowat(),
        mbcnt: sb.mbcnt(),
        mbmax: sb.mbmax(),
    };
    row.recv = figures(&so.rcv.lock());
    row.send = figures(&so.snd.lock());
    row
}

/// `a.b.c.d.port`, with `*` for what is open.
fn endpoint((addr, port): &(Option<String>, u16), options: &Options) -> String {
    // FreeBSD cuts long addresses so that the port can be seen.
    let room = if options.wide { 39 } else { 16 };
    let addr = addr.as_deref().map_or("*", |addr| addr);
    let addr: String = addr.chars().take(room).collect();
    match *port {
        0 => format!("{addr}.*"),
        port => format!("{addr}.{port}"),
    }
}

fn render(mut rows: Vec<Row>, options: &Options) -> String {
    let is_listening = |row: &Row| {
        row.tcp
            .as_ref()
            .is_some_and(|tcp| tcp.state == TcpState::Listen)
    };
    if options.listen {
        rows.retain(|row| row.queue.is_some());
    } else if !options.all {
        rows.retain(|row| !is_listening(row) && row.foreign.0.is_some());
    }
    let family = options.family;
    if family != Family::Any {
        rows.retain(|row| row.family == family || row.family == Family::Any);
    }
    if options.tcp_info || options.congestion || options.stack {
        rows.retain(|row| row.tcp.is_some());
    }
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::new();
    text += if options.listen {
        "Current listen queue sizes (qlen/incqlen/maxqlen)\n"
    } else if options.all {
        "Active Internet connections (including servers)\n"
    } else {
        "Active Internet connections\n"
    };
    text += &heading(options);
    for row in &rows {
        text += &line(row, options);
    }
    text
}

/// Columns of an address: narrower beside control block addresses.
fn address_width(options: &Options) -> usize {
    match (options.wide, options.addresses) {
        (true, _) => 45,
        (false, true) => 18,
        (false, false) => 22,
    }
}

fn heading(options: &Options) -> String {
    let width = address_width(options);
    let mut text = String::new();
    if options.addresses {
        text += &format!("{:<16.16} ", "Tcpcb");
    }
    if options.listen {
        return text
            + &format!(
                "{:<5.5} {:<32.32} {:<width$.width$}\n",
                "Proto", "Listen", "Local Address"
            );
    }
    if options.tcp_info {
        return text
            + &format!(
                "{:<5.5} {:<6.6} {:<6.6} {:<6.6} {:<width$.width$} {}\n",
                "Proto", "Rexmit", "OOORcv", "0-win", "Local Address", "Foreign Address"
            );
    }
    text += &format!(
        "{:<5.5} {:<6.6} {:<6.6} {:<width$.width$} {:<width$.width$}",
        "Proto", "Recv-Q", "Send-Q", "Local Address", "Foreign Address"
    );
    if options.buffers {
        for name in [
            "R-HIWA", "S-HIWA", "R-LOWA", "S-LOWA", "R-BCNT", "S-BCNT", "R-BMAX", "S-BMAX",
        ] {
            text += &format!(" {name:<6.6}");
        }
        for name in ["rexmt", "persist", "keep", "2msl", "delack", "rcvtime"] {
            text += &format!(" {name:>7.7}");
        }
    }
    if options.congestion {
        text += &format!(
            " {:<8.8} {:>10.10} {:>10.10} {:>6.6} {:<5.5}",
            "CC", "cwin", "ssthresh", "MSS", "ECN"
        );
    }
    if options.stack {
        text += &format!(" {:<32.32}", "Stack");
    }
    if options.flows {
        text += &format!(" {:>8.8} {:>5.5}", "flowid", "ftype");
    }
    text += " (state)\n";
    text
}

fn line(row: &Row, options: &Options) -> String {
    let endpoint = |end| endpoint(end, options);
    let width = address_width(options);
    let mut text = String::new();
    if options.addresses {
        text += &format!("{:16x} ", row.address);
    }
    let proto = row.proto.as_str();
    if let (true, Some((qlen, incqlen, maxqlen))) = (options.listen, row.queue) {
        let queue = format!("{qlen}/{incqlen}/{maxqlen}");
        return text
            + &format!(
                "{proto:<5} {queue:<32} {:<width$.width$}\n",
                endpoint(&row.local)
            );
    }
    if let (true, Some(tcp)) = (options.tcp_info, &row.tcp) {
        return text
            + &format!(
                "{proto:<5} {:>6} {:>6} {:>6} {:<width$.width$} {:.width$}\n",
                tcp.retransmitted,
                tcp.out_of_order,
                tcp.zero_windows,
                endpoint(&row.local),
                endpoint(&row.foreign)
            );
    }
    text += &format!(
        "{proto:<5} {:>6} {:>6} {:<width$.width$} {:<width$.width$}",
        row.recv.cc,
        row.send.cc,
        endpoint(&row.local),
        endpoint(&row.foreign)
    );
    if options.buffers {
        let (r, s) = (&row.recv, &row.send);
        for value in [
            r.hiwat, s.hiwat, r.lowat, s.lowat, r.mbcnt, s.mbcnt, r.mbmax, s.mbmax,
        ] {
            text += &format!(" {value:>6}");
        }
        let times = row.tcp.as_ref().map_or([0; 6], |tcp| tcp.times);
        for ms in times {
            text += &format!(" {:>4}.{:02}", ms / 1000, ms % 1000 / 10);
        }
    }
    if let (true, Some(tcp)) = (options.congestion, &row.tcp) {
        text += &format!(
            " {:<8.8} {:>10} {:>10} {:>6} {:<5}",
            tcp.cc, tcp.cwnd, tcp.ssthresh, tcp.maxseg, tcp.ecn
        );
    }
    if options.stack && row.tcp.is_some() {
        text += &format!(" {:<32.32}", "freebsd");
    }
    if options.flows {
        text += &format!(" {:08x} {:>5}", row.flowid, row.flowtype);
    }
    if let Some(tcp) = &row.tcp {
        text += &format!(" {}", tcp.state.name());
    }
    // FreeBSD pads, and so ends lines in blanks; nobody misses them.
    let trimmed = text.trim_end().len();
    text.truncate(trimmed);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(
        proto: &'static str,
        local: (&str, u16),
        foreign: (&str, u16),
        state: Option<TcpState>,
    ) -> Row {
        let addr = |(addr, port): (&str, u16)| ((addr != "*").then(|| addr.into()), port);
        Row {
            proto: proto.into(),
            family: Family::Inet,
            address: 0xfffff800012345,
            local: addr(local),
            foreign: addr(foreign),
            recv: Buffer::default(),
            send: Buffer {
                cc: 52,
                hiwat: 32768,
                lowat: 2048,
                mbcnt: 256,
                mbmax: 262_144,
            },
            flowid: 0xabcd,
            flowtype: 0x82,
            queue: (state == Some(TcpState::Listen)).then_some((0, 0, 128)),
            tcp: state.map(|state| Tcp {
                state,
                retransmitted: 3,
                out_of_order: 0,
                zero_windows: 1,
                cc: "newreno".into(),
                cwnd: 14600,
                ssthresh: 1_073_725_440,
                maxseg: 1460,
                ecn: "off",
                offloaded: false,
                times: [230, 0, 7_199_990, 0, 0, 10],
            }),
        }
    }

    fn rows() -> Vec<Row> {
        let any = "*";
        alloc::vec![
            row(
                "tcp4",
                ("10.0.2.15", 22),
                ("10.0.2.2", 51514),
                Some(TcpState::Established)
            ),
            Row {
                send: Buffer::default(),
                ..row("tcp4", (any, 22), (any, 0), Some(TcpState::Listen))
            },
            Row {
                send: Buffer::default(),
                ..row("udp4", (any, 514), (any, 0), None)
            },
        ]
    }

    #[test]
    fn connections_stand_in_freebsds_columns() {
        let options = Options {
            all: true,
            ..Options::default()
        };
        let expected = "\
Active Internet connections (including servers)
Proto Recv-Q Send-Q Local Address          Foreign Address        (state)
tcp4       0     52 10.0.2.15.22           10.0.2.2.51514         ESTABLISHED
tcp4       0      0 *.22                   *.*                    LISTEN
udp4       0      0 *.514                  *.*
";
        assert_eq!(render(rows(), &options), expected);
    }

    #[test]
    fn servers_are_shown_only_when_asked() {
        let text = render(rows(), &Options::default());
        assert_eq!(text.lines().count(), 3);
        assert!(text.starts_with("Active Internet connections\n"));
    }

    #[test]
    fn listen_queues_are_shown_alone() {
        let options = Options {
            listen: true,
            ..Options::default()
        };
        let expected = "\
Current listen queue sizes (qlen/incqlen/maxqlen)
Proto Listen                           Local Address         
tcp4  0/0/128                          *.22                  
";
        assert_eq!(render(rows(), &options), expected);
    }

    #[test]
    fn buffers_and_timers_are_appended() {
        let options = Options {
            buffers: true,
            ..Options::default()
        };
        let text = render(rows(), &options);
        let line = text.lines().nth(2).unwrap();
        assert!(
            line.ends_with("    0.23    0.00 7199.99    0.00    0.00    0.01 ESTABLISHED"),
            "{line}"
        );
    }
}
