//! Back-quoted lines: a small shell whose programs look into the stack.
//!
//! It knows `;`, `&&`, `||`, `|` and quotes, and the programs `sysctl`, `sockstat`, `tcpdrop`, `setkey`,
//! `grep`, `echo`, `true`, `false`.

use crate::executor::Executor;
use netinet::tcp_fsm::TcpState;
use netinet::tcp_subr::{Locked, tcp_drop};
use netinet::vnet::NetCx;
use std::sync::Arc;
use sys::errno::Errno;
use sys::kern::kern_sysctl::root;
use sys::kern::subr_epoch::NetEpoch;
use sys::socketvar::Socket;

/// What a program printed, and whether it succeeded; the reason if it could not run.
type Ran = Result<(String, bool), String>;

/// Runs a line; its last program must succeed.
pub fn run(executor: &Executor, line: &str) -> Result<(), String> {
    let mut reason = String::new();
    let mut succeeded = true;
    for (joint, pipeline) in lists(&words(line)?) {
        let wanted = match joint {
            Joint::Always => true,
            Joint::And => succeeded,
            Joint::Or => !succeeded,
        };
        if !wanted || pipeline.is_empty() {
            continue;
        }
        (succeeded, reason) = match pipe(executor, pipeline) {
            Ok((_, true)) => (true, String::new()),
            Ok((_, false)) => (false, format!("`{}` fails", show(pipeline))),
            Err(reason) => (false, reason),
        };
    }
    match succeeded {
        true => Ok(()),
        false => Err(reason),
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Word {
    Text(String),
    Operator(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Joint {
    Always,
    And,
    Or,
}

const OPERATORS: [&str; 5] = ["&&", "||", ";", "|", "\n"];

/// Cuts a line into words and operators.
fn words(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line;
    'next: while let Some(c) = rest.chars().next() {
        for operator in OPERATORS {
            if let Some(after) = rest.strip_prefix(operator) {
                words.push(Word::Operator(operator));
                rest = after;
                continue 'next;
            }
        }
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let mut word = String::new();
        while let Some(c) = rest.chars().next() {
            if c.is_whitespace() || OPERATORS.iter().any(|o| rest.starts_with(o)) {
                break;
            }
            rest = &rest[c.len_utf8()..];
            if c == '\'' || c == '"' {
                let end = rest.find(c).ok_or("a quote without end")?;
                word.push_str(&rest[..end]);
                rest = &rest[end + 1..];
            } else {
                word.push(c);
            }
        }
        words.push(Word::Text(word));
    }
    Ok(words)
}

/// The pipelines of a line, and what joins each to those before.
fn lists(words: &[Word]) -> Vec<(Joint, &[Word])> {
    let mut lists = Vec::new();
    let mut joint = Joint::Always;
    let mut rest = words;
    loop {
        let ends = |word: &Word| matches!(word, Word::Operator(o) if *o != "|");
        let end = rest.iter().position(ends).unwrap_or(rest.len());
        lists.push((joint, &rest[..end]));
        let Some(Word::Operator(operator)) = rest.get(end) else {
            return lists;
        };
        joint = match *operator {
            "&&" => Joint::And,
            "||" => Joint::Or,
            _ => Joint::Always,
        };
        rest = &rest[end + 1..];
    }
}

fn show(words: &[Word]) -> String {
    let shown = words.iter().map(|word| match word {
        Word::Text(text) => text.as_str(),
        Word::Operator(operator) => operator,
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Runs programs, each with the output of the one before.
fn pipe(executor: &Executor, pipeline: &[Word]) -> Ran {
    let mut ran = (String::new(), true);
    for stage in pipeline.split(|word| *word == Word::Operator("|")) {
        let args = stage.iter().map(|word| match word {
            Word::Text(text) => text.as_str(),
            Word::Operator(operator) => operator,
        });
        let args: Vec<&str> = args.collect();
        let Some((program, args)) = args.split_first() else {
            return Err("a pipe from or to nothing".into());
        };
        ran = match *program {
            "sysctl" => sysctl(executor, args)?,
            "sockstat" => sockstat(executor, args)?,
            "tcpdrop" => tcpdrop(executor, args)?,
            "grep" => grep(args, &ran.0)?,
            "echo" => (args.join(" ") + "\n", true),
            "true" => (String::new(), true),
            "false" => (String::new(), false),
            // The stack is one piece: what it has is loaded, and nothing else can be.
            "kldstat" => (String::new(), args.contains(&"tcpmd5")),
            "setkey" => setkey(executor, args, &ran.0)?,
            "kldload" => return Err(format!("kldload {}: there are no modules", args.join(" "))),
            _ => return Err(format!("unknown program {program}")),
        };
    }
    Ok(ran)
}

/// `sysctl [-n] name`, `sysctl [-w] name=value`, any number.
fn sysctl(executor: &Executor, args: &[&str]) -> Ran {
    let tree = &executor.testbed.vnet.sysctl;
    let mut out = String::new();
    let bare = args.contains(&"-n");
    for arg in args.iter().filter(|arg| !arg.starts_with('-')) {
        let failed = |name: &str, e: Errno| match e {
            Errno::ENOENT => format!("sysctl: unknown oid '{name}'"),
            e => format!("sysctl: {name}: {e}"),
        };
        match arg.split_once('=') {
            Some((name, value)) => {
                let set = tree.set(name, value);
                let set = match set {
                    Err(Errno::ENOENT) => root().set(name, value),
                    set => set,
                };
                let (old, new) = set.map_err(|e| failed(name, e))?;
                out += &format!("{name}: {old} -> {new}\n");
            }
            None => {
                let value = tree.get(arg).or_else(|| root().get(arg));
                let value = value.ok_or_else(|| failed(arg, Errno::ENOENT))?;
                match bare {
                    true => out += &format!("{value}\n"),
                    false => out += &format!("{arg}: {value}\n"),
                }
            }
        }
    }
    Ok((out, true))
}

/// A row of `sockstat`.
struct Row {
    /// Whether a descriptor of the script's program is open on it.
    ours: bool,
    /// 4 or 6.
    family: u8,
    local: (String, u16),
    foreign: (String, u16),
    state: TcpState,
}

/// `sockstat -4 -P tcp -s -p 8080`: connections, those half made too.
fn sockstat(executor: &Executor, args: &[&str]) -> Ran {
    let mut port = None;
    let mut with_state = false;
    let mut family = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "-4" => family = Some(4),
            "-6" => family = Some(6),
            "-s" => with_state = true,
            "-n" | "-q" | "-c" | "-l" => {}
            "-P" => match args.next() {
                Some(&"tcp") => {}
                other => return Err(format!("sockstat: no protocol {other:?}")),
            },
            "-p" => {
                let number = args.next().and_then(|port| port.parse::<u16>().ok());
                port = Some(number.ok_or("sockstat: -p wants a port")?);
            }
            other => return Err(format!("sockstat: unknown option {other}")),
        }
    }
    let mut out = String::from(
        "USER     COMMAND    PID   FD  PROTO  LOCAL ADDRESS         FOREIGN ADDRESS       STATE\n",
    );
    for row in rows(executor) {
        if family.is_some_and(|family| family != row.family) {
            continue;
        }
        if port.is_some_and(|port| row.local.1 != port && row.foreign.1 != port) {
            continue;
        }
        let (user, command, pid) = match row.ours {
            true => ("root", "packetdril", "100"),
            false => ("?", "?", "?"),
        };
        let show = |(addr, port): &(String, u16)| match port {
            0 => format!("{addr}:*"),
            port => format!("{addr}:{port}"),
        };
        let state = if with_state { row.state.name() } else { "" };
        out += &format!(
            "{user:<8} {command:<10} {pid:<5} {:<3} tcp{}   {:<21} {:<21} {state}\n",
            if row.ours { "3" } else { "?" },
            row.family,
            show(&row.local),
            show(&row.foreign),
        );
    }
    Ok((out, true))
}

fn rows(executor: &Executor) -> Vec<Row> {
    let tcp = &executor.testbed.inet.tcp;
    let mut rows = Vec::new();
    let end = |addr: core::net::IpAddr, port: u16| match addr.is_unspecified() {
        true => ("*".to_string(), port),
        false => (addr.to_string(), port),
    };
    for half in tcp.syncache.pcblist() {
        rows.push(Row {
            ours: false,
            family: if half.is_ipv6() { 6 } else { 4 },
            local: end(half.inc_laddr, half.inc_lport),
            foreign: end(half.inc_faddr, half.inc_fport),
            state: TcpState::SynReceived,
        });
    }
    for inp in tcp.tcbinfo.snapshot() {
        let block = inp.read();
        let ours = |so: &Arc<Socket>| {
            let mut open = executor.descriptors.sockets();
            open.any(|handle| Arc::ptr_eq(handle.inner(), so))
        };
        rows.push(Row {
            ours: block.inp_socket.as_ref().is_some_and(ours),
            family: if block.is_ipv6() { 6 } else { 4 },
            local: end(block.laddr(), block.lport()),
            foreign: end(block.faddr(), block.fport()),
            state: block.ppcb.t_state,
        });
    }
    rows
}

/// `tcpdrop -a`, `tcpdrop -s STATE`: drops connections.
fn tcpdrop(executor: &Executor, args: &[&str]) -> Ran {
    let state = match args {
        ["-a"] => None,
        ["-s", state] => Some(*state),
        _ => return Err("tcpdrop: wants -a or -s STATE".into()),
    };
    let inet = &executor.testbed.inet;
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(inet, &epoch);
    for inp in inet.tcp.tcbinfo.snapshot() {
        let mut locked = Locked::new(&cx, &inp);
        let now = locked.tp().t_state;
        if locked.dropped() || now == TcpState::Listen || state.is_some_and(|s| s != now.name()) {
            continue;
        }
        if let Some((c, tp)) = locked.split() {
            tcp_drop(&c, tp, Some(Errno::ECONNABORTED));
        }
    }
    Ok((String::new(), true))
}

/// `setkey -c` with operations as its input, `setkey -D`, `setkey -F`.
fn setkey(executor: &Executor, args: &[&str], input: &str) -> Ran {
    let keydb = &executor.testbed.inet.tcp.keydb;
    match args {
        ["-c"] => {
            let out = keydb.setkey(input).map_err(|e| format!("setkey: {e}"))?;
            Ok((out, true))
        }
        ["-D"] => Ok((keydb.dump(), true)),
        ["-F"] => {
            keydb.flush();
            Ok((String::new(), true))
        }
        _ => Err("setkey: wants -c, -D or -F".into()),
    }
}

/// `grep [-c] [-v] [-q] pattern`, where the pattern is plain text.
fn grep(args: &[&str], input: &str) -> Ran {
    let (options, patterns): (Vec<&str>, Vec<&str>) = args.iter().partition(|a| a.starts_with('-'));
    let [pattern] = patterns[..] else {
        return Err("grep: wants one pattern".into());
    };
    let mut invert = false;
    let mut count = false;
    let mut quiet = false;
    for option in options {
        match option {
            "-v" => invert = true,
            "-c" => count = true,
            "-q" => quiet = true,
            other => return Err(format!("grep: unknown option {other}")),
        }
    }
    let found = input
        .lines()
        .filter(|line| line.contains(pattern) != invert);
    let found: Vec<&str> = found.collect();
    let out = match (quiet, count) {
        (true, _) => String::new(),
        (false, true) => format!("{}\n", found.len()),
        (false, false) => found.iter().map(|line| format!("{line}\n")).collect(),
    };
    Ok((out, !found.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_operators_and_quotes_keep_together() {
        let cut = words("a -b 'c d; e' || f | g").expect("a line");
        assert_eq!(cut.len(), 7);
        assert_eq!(cut[2], Word::Text("c d; e".into()));
        let lists = lists(&cut);
        assert_eq!(lists.len(), 2);
        assert!(lists[1].0 == Joint::Or && show(lists[1].1) == "f | g");
        assert!(words("echo 'a").is_err());
    }

    #[test]
    fn grep_counts_and_fails_without_a_match() {
        let input = "one\ntwo\none two\n";
        assert_eq!(grep(&["-c", "one"], input), Ok(("2\n".into(), true)));
        assert_eq!(grep(&["-c", "six"], input), Ok(("0\n".into(), false)));
        assert_eq!(grep(&["-v", "one"], input), Ok(("two\n".into(), true)));
        assert!(grep(&["-x", "one"], input).is_err());
    }
}
