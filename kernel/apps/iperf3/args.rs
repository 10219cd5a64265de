//! The command line of iperf3.

use alloc::format;
use alloc::string::{String, ToString};
use core::net::{Ipv4Addr, Ipv6Addr};

use sys::time::Sbintime;

use crate::apps::io::Family;

/// What `-h` prints.
pub(super) const USAGE: &str = "\
Usage: iperf3 [-s|-c host] [options]
Server or client:
  -p n           server port to listen on/connect to (5201)
  -i n           seconds between periodic reports, 0 for none (1)
  -J             output in JSON format
  -V             more detailed output
  -B host        bind to the interface with the address <host>
Server:
  -s             run in server mode
  -D             run the server in the background
  -1             handle one client connection, then exit
Client:
  -c host        run in client mode, connecting to <host> (an address)
  -u             use UDP rather than TCP
  -b n[KMG]      target bitrate in bits/sec, 0 for unlimited (1 Mbit/s for UDP, unlimited for TCP)
  -t n           time in seconds to transmit for (10)
  -n n[KMG]      number of bytes to transmit (instead of -t)
  -k n[KMG]      number of blocks (packets) to transmit (instead of -t or -n)
  -l n[KMG]      length of buffer to read or write (128 KB for TCP, 1448 for UDP)
  -P n           number of parallel client streams to run (1, at most 32)
  -R             run in reverse mode (server sends, client receives)
  -w n[KMG]      send/receive socket buffer sizes
  -M n           set TCP maximum segment size
  -N             set TCP no delay, disabling Nagle's algorithm
  -4             only use IPv4
  -6             only use IPv6
  -h             show this message
";

/// The port iperf3 uses if none is named.
const DEFAULT_PORT: u16 = 5201;
/// Bytes handed to one TCP send call if `-l` does not say (iperf3's own default).
const DEFAULT_TCP_BLOCK: usize = 128 * 1024;
/// Bytes of one UDP datagram if `-l` does not say: what fits one Ethernet frame beside a timestamped TCP.
const DEFAULT_UDP_BLOCK: usize = 1448;
/// The rate of a UDP test if `-b` does not say, in bits per second.
const DEFAULT_UDP_RATE: u64 = 1_000_000;
/// The most bytes of one block (iperf3's `MAX_BLOCKSIZE`).
pub(super) const MAX_BLOCK: usize = 1024 * 1024;
/// The most payload of one UDP datagram.
pub(super) const MAX_UDP_BLOCK: usize = 65_507;
/// The least payload of a UDP datagram: its header of seconds, microseconds and a 64-bit counter.
pub(super) const MIN_UDP_BLOCK: usize = 16;
/// The most streams of a test; iperf3 allows 128, each is a thread here.
pub(super) const MAX_STREAMS: usize = 32;

/// Which protocol the streams use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// When a test ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    Time(Sbintime),
    Bytes(u64),
}

/// What the parameters of a test are, on either side.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct TestOptions {
    pub(super) transport: Transport,
    pub(super) limit: Limit,
    pub(super) streams: usize,
    /// The server sends.
    pub(super) reverse: bool,
    /// Bytes of one send, or of one datagram.
    pub(super) block: usize,
    /// Bits per second of each stream; 0 is unlimited.
    pub(super) rate: u64,
    /// Socket buffer size; 0 leaves it to the stack.
    pub(super) window: usize,
    /// TCP maximum segment size; 0 leaves it to the stack.
    pub(super) mss: usize,
    pub(super) no_delay: bool,
}

/// How results are shown.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Display {
    /// Time between reports.
    pub(super) interval: Option<Sbintime>,
    pub(super) json: bool,
    pub(super) verbose: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct ClientOptions {
    pub(super) host: String,
    pub(super) bind: Option<String>,
    pub(super) port: u16,
    pub(super) test: TestOptions,
    pub(super) display: Display,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct ServerOptions {
    pub(super) port: u16,
    pub(super) bind: Option<String>,
    pub(super) family: Family,
    pub(super) one_off: bool,
    /// Runs in the background.
    pub(super) daemon: bool,
    pub(super) display: Display,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Command {
    Client(ClientOptions),
    Server(ServerOptions),
}

/// Why the command line led to no test.
#[derive(PartialEq, Debug)]
pub(super) enum Stop {
    Help,
    Bad(String),
}

fn bad(reason: impl Into<String>) -> Stop {
    Stop::Bad(reason.into())
}

/// Reads the words after `iperf3`.
pub(super) fn parse(words: &[String]) -> Result<Command, Stop> {
    let mut server = false;
    let mut host = None;
    let mut bind = None;
    let mut family = Family::Any;
    let mut one_off = false;
    let mut daemon = false;
    let mut port = DEFAULT_PORT;
    let mut display = Display {
        interval: Some(Sbintime::from_s(1)),
        json: false,
        verbose: false,
    };
    let mut blocks = None;
    let mut udp = false;
    let mut time = None;
    let mut bytes = None;
    let mut block = None;
    let mut rate = None;
    let mut client_only = None;
    let mut test = TestOptions {
        transport: Transport::Tcp,
        limit: Limit::Time(Sbintime::from_s(10)),
        streams: 1,
        reverse: false,
        block: 0,
        rate: 0,
        window: 0,
        mss: 0,
        no_delay: false,
    };

    for option in options(words) {
        let Opt { letter, value } = option?;
        let value = value.as_str();
        if "ubtnklPRwMN".contains(letter) {
            client_only = Some(letter);
        }
        match letter {
            's' => server = true,
            'c' => host = Some(value.to_string()),
            'B' => bind = Some(value.to_string()),
            '4' => family = Family::Inet,
            '6' => family = Family::Inet6,
            '1' => one_off = true,
            'D' => daemon = true,
            'p' => port = number(letter, value, 1, 65_535)? as u16,
            'i' => {
                let seconds = decimal(letter, value, 60)?;
                display.interval = (seconds > Sbintime::ZERO).then_some(seconds);
            }
            'J' => display.json = true,
            'V' => display.verbose = true,
            'k' => blocks = Some(scaled(letter, value, 1024)?),
            'u' => udp = true,
            'b' => rate = Some(scaled(letter, value, 1000)?),
            't' => time = Some(number(letter, value, 1, 86_400)?),
            'n' => bytes = Some(scaled(letter, value, 1024)?),
            'l' => block = Some(scaled(letter, value, 1024)? as usize),
            'P' => test.streams = number(letter, value, 1, MAX_STREAMS as u64)? as usize,
            'R' => test.reverse = true,
            'w' => test.window = scaled(letter, value, 1024)? as usize,
            'M' => test.mss = number(letter, value, 64, 9216)? as usize,
            'N' => test.no_delay = true,
            'h' => return Err(Stop::Help),
            // What other iperf3 have.
            'A' | 'C' | 'F' | 'I' | 'L' | 'O' | 'S' | 'T' | 'X' | 'Z' | 'd' | 'f' | 'v' => {
                return Err(bad(format!("option '-{letter}' is not supported")));
            }
            _ => return Err(bad(format!("unrecognized option '-{letter}'"))),
        }
    }

    for word in host.iter().chain(&bind) {
        check_address(word, family)?;
    }
    if udp {
        test.transport = Transport::Udp;
    }
    (test.block, test.rate) = match test.transport {
        Transport::Tcp => (block.unwrap_or(DEFAULT_TCP_BLOCK), rate.unwrap_or(0)),
        Transport::Udp => (
            block.unwrap_or(DEFAULT_UDP_BLOCK),
            rate.unwrap_or(DEFAULT_UDP_RATE),
        ),
    };
    check_block(&test)?;
    if let Some(blocks) = blocks {
        if bytes.is_some() {
            return Err(bad("only one of -t, -n and -k may be given"));
        }
        bytes = Some(blocks.saturating_mul(test.block as u64));
    }
    test.limit = match (time, bytes) {
        (Some(_), Some(_)) => return Err(bad("only one of -t, -n and -k may be given")),
        (_, Some(0)) => return Err(bad("-n needs at least one byte")),
        (_, Some(bytes)) => Limit::Bytes(bytes),
        (time, None) => Limit::Time(Sbintime::from_s(time.unwrap_or(10) as i64)),
    };
    match (server, host) {
        (true, Some(_)) => Err(bad("cannot be both server and client")),
        (false, None) => Err(bad("must either be a client (-c) or server (-s)")),
        (true, None) => match client_only {
            Some(letter) => Err(bad(format!("-{letter} is client only"))),
            None => Ok(Command::Server(ServerOptions {
                port,
                bind,
                family,
                one_off,
                daemon,
                display,
            })),
        },
        (false, Some(_)) if one_off => Err(bad("-1 is server only")),
        (false, Some(_)) if daemon => Err(bad("-D is server only")),
        (false, Some(host)) => Ok(Command::Client(ClientOptions {
            host,
            bind,
            port,
            test,
            display,
        })),
    }
}

fn check_block(test: &TestOptions) -> Result<(), Stop> {
    let (low, high) = match test.transport {
        Transport::Tcp => (1, MAX_BLOCK),
        Transport::Udp => (MIN_UDP_BLOCK, MAX_UDP_BLOCK),
    };
    if (low..=high).contains(&test.block) {
        Ok(())
    } else {
        Err(bad(format!(
            "block size {} is not between {low} and {high}",
            test.block
        )))
    }
}

struct Opt {
    letter: char,
    value: String,
}

/// The letters that take a value.
const WITH_VALUE: &str = "cpibtnklPwMB";

/// Long names and their letters.
const LONG: &[(&str, char)] = &[
    ("server", 's'),
    ("client", 'c'),
    ("one-off", '1'),
    ("daemon", 'D'),
    ("port", 'p'),
    ("interval", 'i'),
    ("json", 'J'),
    ("udp", 'u'),
    ("bitrate", 'b'),
    ("bandwidth", 'b'),
    ("time", 't'),
    ("bytes", 'n'),
    ("blockcount", 'k'),
    ("verbose", 'V'),
    ("zerocopy", 'Z'),
    ("omit", 'O'),
    ("bind", 'B'),
    ("version6", '6'),
    ("tos", 'S'),
    ("congestion", 'C'),
    ("length", 'l'),
    ("parallel", 'P'),
    ("reverse", 'R'),
    ("window", 'w'),
    ("set-mss", 'M'),
    ("no-delay", 'N'),
    ("version4", '4'),
    ("help", 'h'),
];

/// Splits words into options the way getopt_long does: `-R -t 5`, `-Rt5`, `--time=5`, `--time 5`.
fn options(words: &[String]) -> impl Iterator<Item = Result<Opt, Stop>> + '_ {
    let mut words = words.iter();
    let mut cluster: &str = "";
    core::iter::from_fn(move || {
        let (letter, inline) = if cluster.is_empty() {
            let word = words.next()?;
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (long, None),
                };
                let Some(&(_, letter)) = LONG.iter().find(|(long, _)| *long == name) else {
                    return Some(Err(bad(format!("unrecognized option '--{name}'"))));
                };
                (letter, value)
            } else if let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                cluster = letters;
                take_letter(&mut cluster)?
            } else {
                return Some(Err(bad(format!("unexpected word '{word}'"))));
            }
        } else {
            take_letter(&mut cluster)?
        };
        if !WITH_VALUE.contains(letter) {
            return Some(match inline {
                Some(_) => Err(bad(format!("option '-{letter}' takes no value"))),
                None => Ok(Opt {
                    letter,
                    value: String::new(),
                }),
            });
        }
        let value = match inline {
            Some(value) => value,
            None if !cluster.is_empty() => core::mem::take(&mut cluster),
            None => match words.next() {
                Some(word) => word,
                None => {
                    return Some(Err(bad(format!("option '-{letter}' requires an argument"))));
                }
            },
        };
        Some(Ok(Opt {
            letter,
            value: value.to_string(),
        }))
    })
}

fn take_letter<'a>(cluster: &mut &'a str) -> Option<(char, Option<&'a str>)> {
    let letter = cluster.chars().next()?;
    *cluster = &cluster[letter.len_utf8()..];
    Some((letter, None))
}

/// Whether `value` is an address of the family; it may name its interface (`fe80::1%em0`).
fn check_address(value: &str, family: Family) -> Result<(), Stop> {
    let four = value.parse::<Ipv4Addr>().is_ok();
    let without_zone = value.split_once('%').map_or(value, |(addr, _)| addr);
    let six = without_zone.parse::<Ipv6Addr>().is_ok();
    let (fits, what) = match family {
        Family::Any => (four || six, "an address"),
        Family::Inet => (four, "an IPv4 address"),
        Family::Inet6 => (six, "an IPv6 address"),
    };
    if fits {
        Ok(())
    } else {
        Err(bad(format!("'{value}' is not {what}")))
    }
}

fn number(letter: char, value: &str, low: u64, high: u64) -> Result<u64, Stop> {
    match value.parse() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(bad(format!(
            "-{letter} takes a number from {low} to {high}, not '{value}'"
        ))),
    }
}

/// Seconds with up to three decimals.
fn decimal(letter: char, value: &str, high: i64) -> Result<Sbintime, Stop> {
    let refuse = || {
        bad(format!(
            "-{letter} takes seconds from 0 to {high}, not '{value}'"
        ))
    };
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let seconds: i64 = whole.parse().map_err(|_| refuse())?;
    let ms: i64 = format!("{fraction:0<3}").parse().map_err(|_| refuse())?;
    if !(0..=high).contains(&seconds) {
        return Err(refuse());
    }
    Ok(Sbintime::from_ms(seconds * 1000 + ms))
}

/// A number with an optional suffix K, M or G; `kilo` is 1000 for rates and 1024 for sizes, as in iperf3.
fn scaled(letter: char, value: &str, kilo: u64) -> Result<u64, Stop> {
    let refuse = || {
        bad(format!(
            "-{letter} takes a number with an optional K, M or G, not '{value}'"
        ))
    };
    let (digits, factor) = match value.as_bytes().last() {
        Some(b'k' | b'K') => (&value[..value.len() - 1], kilo),
        Some(b'm' | b'M') => (&value[..value.len() - 1], kilo * kilo),
        Some(b'g' | b'G') => (&value[..value.len() - 1], kilo * kilo * kilo),
        _ => (value, 1),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let whole: u64 = whole.parse().map_err(|_| refuse())?;
    let millionths: u64 = format!("{fraction:0<6}").parse().map_err(|_| refuse())?;
    whole
        .checked_mul(factor)
        .and_then(|bytes| bytes.checked_add(millionths * factor / 1_000_000))
        .ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    fn client(line: &str) -> ClientOptions {
        match parse(&words(line)) {
            Ok(Command::Client(options)) => options,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        match parse(&words(line)) {
            Err(Stop::Bad(reason)) => reason,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn letters_may_be_joined_and_values_attached() {
        let joined = client("-c 10.0.2.2 -uRt5 -b10M");
        assert_eq!(
            joined,
            client("--client=10.0.2.2 --udp --reverse --time 5 --bitrate 10M")
        );
        assert_eq!(joined.test.rate, 10_000_000);
        assert_eq!(joined.test.limit, Limit::Time(Sbintime::from_s(5)));
    }

    #[test]
    fn sizes_count_in_1024_and_rates_in_1000() {
        let options = client("-c 10.0.2.2 -l 8K -w 1M -n 1.5G -b 1.5K");
        assert_eq!(options.test.block, 8192);
        assert_eq!(options.test.window, 1 << 20);
        assert_eq!(options.test.limit, Limit::Bytes(3 << 29));
        assert_eq!(options.test.rate, 1500);
    }

    #[test]
    fn blocks_count_as_bytes() {
        assert_eq!(
            client("-c 10.0.0.1 -k 10 -l 2K").test.limit,
            Limit::Bytes(20480)
        );
        assert!(refused("-c 10.0.0.1 -k 10 -n 5").contains("only one of"));
        assert!(refused("-c 10.0.0.1 -Z").contains("option '-Z' is not supported"));
        assert!(refused("-c 10.0.0.1 -D").contains("-D is server only"));
    }

    #[test]
    fn udp_has_a_rate_and_a_datagram_size_of_its_own() {
        let options = client("-c 10.0.2.2 -u");
        assert_eq!((options.test.block, options.test.rate), (1448, 1_000_000));
    }

    #[test]
    fn mistakes_are_refused_with_the_reason() {
        assert!(refused("").contains("client (-c) or server (-s)"));
        assert!(refused("-s -c 1.2.3.4").contains("both"));
        assert!(refused("-s -R").contains("-R is client only"));
        assert!(refused("-c 1.2.3.4 -t").contains("requires an argument"));
        assert!(refused("-c 1.2.3.4 -t x").contains("'x'"));
        assert!(refused("-c nowhere").contains("'nowhere' is not an address"));
        assert!(refused("-c 1.2.3.4 -6").contains("not an IPv6 address"));
        assert!(refused("-4 -c ::1").contains("not an IPv4 address"));
        assert_eq!(client("-6 -c fe80::1%em0").host, "fe80::1%em0");
        assert!(refused("-c 1.2.3.4 -u -l 70000").contains("block size"));
        assert!(refused("-c 1.2.3.4 --frobnicate").contains("--frobnicate"));
        assert!(refused("-c 1.2.3.4 -t 1 -n 1").contains("only one"));
    }
}
