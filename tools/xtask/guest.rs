//! What the guest's own commands say about its state.

use crate::console::Console;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// mbufs and clusters in use, by `netstat -m`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MbufUse(BTreeMap<String, u64>);

impl MbufUse {
    /// Asks the guest, with em0 down meanwhile: how many buffers a receive ring holds depends on what came last, so
    /// only without it is there one right number.
    pub fn read(console: &mut Console) -> Result<Self> {
        console.run("ifconfig em0 down", LIMIT)?;
        let text = console.run("netstat -m", LIMIT)?;
        console.run("ifconfig em0 up", LIMIT)?;
        Self::parse(&text)
    }

    /// Takes the lines `current/cache/total[/max] <what> in use (…)`.
    fn parse(text: &str) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let Some((numbers, rest)) = line.trim().split_once(' ') else {
                continue;
            };
            let Some((what, _)) = rest.split_once(" in use") else {
                continue;
            };
            // What is allocated to the network in bytes follows from the others.
            let counted = what.contains("mbufs") || what.contains("clusters");
            if let Some(current) = numbers.split('/').next().filter(|_| counted) {
                counts.insert(what.to_string(), current.parse()?);
            }
        }
        if counts.is_empty() {
            bail!("netstat -m says: {}", text.trim());
        }
        Ok(Self(counts))
    }

    /// What is in use beyond `start`, by kind.
    fn beyond(&self, start: &Self) -> Vec<String> {
        let more = self.0.iter().filter_map(|(what, &now)| {
            let before = start.0.get(what).copied().unwrap_or(0);
            (now > before).then(|| format!("{what}: {before} at the start, {now} now"))
        });
        more.collect()
    }
}

/// Waits until no more mbufs and clusters are in use than at the start.
pub fn wait_for_mbufs(console: &mut Console, start: &MbufUse, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let more = MbufUse::read(console)?.beyond(start);
        if more.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            diagnose(console);
            bail!("mbufs are not given back: {}", more.join("; "));
        }
        std::thread::sleep(Duration::from_secs(5));
    }
}

/// Lets the guest say what state it is in, for whoever reads the log of a check that failed.
pub fn diagnose(console: &mut Console) {
    for command in [
        "netstat -m",
        "netstat -i",
        "arp -an",
        "netstat -an",
        "vmstat -z",
        "netstat -s",
        "vmstat -i",
    ] {
        if console.run(command, LIMIT).is_err() {
            return;
        }
    }
}

/// All counters of `netstat -s`: what is counted, and how often.
pub fn statistics(console: &mut Console) -> Result<BTreeMap<String, u64>> {
    let text = console.run("netstat -s", LIMIT)?;
    let counts = parse_statistics(&text);
    if counts.is_empty() {
        bail!("netstat -s says: {}", text.trim());
    }
    Ok(counts)
}

fn parse_statistics(text: &str) -> BTreeMap<String, u64> {
    let mut section = String::new();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        if !line.starts_with(char::is_whitespace) && line.trim_end().ends_with(':') {
            section = line.trim().trim_end_matches(':').to_string();
            continue;
        }
        let Some((number, what)) = line.trim().split_once(' ') else {
            continue;
        };
        if let Ok(number) = number.parse() {
            counts.insert(format!("{section}: {}", what.trim()), number);
        }
    }
    counts
}

/// The number before `words` in a line of statistics.
pub fn count(text: &str, words: &str) -> Result<u64> {
    // One of a thing is written without the "s".
    let single = words.replacen("s ", " ", 1);
    let line = text
        .lines()
        .find(|line| line.ends_with(words) || line.ends_with(&single));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no line \"{words}\" in:\n{text}"))
}

/// Sum of the counters whose names speak of something dropped or wrong.
pub fn dropped(counts: &BTreeMap<String, u64>) -> u64 {
    const WORDS: [&str; 18] = [
        "bad",
        "drop",
        "discard",
        "short",
        "invalid",
        "malformed",
        "wrong",
        "unreachable",
        "not for",
        "no socket",
        "< minimum",
        "no room",
        "duplicate",
        "unknown",
        "incorrect",
        "unsupported",
        "out of window",
        "size smaller",
    ];
    let counted = counts
        .iter()
        .filter(|(what, _)| WORDS.iter().any(|w| what.contains(w)));
    counted.map(|(_, n)| n).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETSTAT_M: &str = "\
258/1278/1536 mbufs in use (current/cache/total)
256/500/756/7904 mbuf clusters in use (current/cache/total/max)
256/250 mbuf+clusters out of packet secondary zone in use (current/cache)
0/8/8/3951 4k (page size) jumbo clusters in use (current/cache/total/max)
576K/1351K/1928K bytes allocated to network (current/cache/total)
0/0/0 requests for mbufs denied (mbufs/clusters/mbuf+clusters)
";

    #[test]
    fn only_what_is_in_use_is_compared() {
        let start = MbufUse::parse(NETSTAT_M).unwrap();
        assert_eq!(start.0.len(), 4);
        let later = NETSTAT_M.replace("258/1278", "259/1277");
        let more = MbufUse::parse(&later).unwrap().beyond(&start);
        assert_eq!(more, ["mbufs: 258 at the start, 259 now"]);
        let cached = NETSTAT_M.replace("256/500/756", "256/400/656");
        assert!(MbufUse::parse(&cached).unwrap().beyond(&start).is_empty());
    }

    #[test]
    fn statistics_are_read_with_their_section() {
        let text = "tcp:\n\t12 packets sent\n\t\t3 discarded for bad checksums\nudp:\n\t4 dropped due to no socket\n";
        let counts = parse_statistics(text);
        assert_eq!(counts["tcp: packets sent"], 12);
        assert_eq!(dropped(&counts), 7);
    }
}
