//! vmstat: memory zones and interrupts.
//!
//! FreeBSD: usr.bin/vmstat/vmstat.c

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use sys::kern::kern_intr::intr_counts;
use sys::machine;
use sys::vm::uma::{self, ZoneStats};

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::shell::getopt::Getopt;

const USAGE: &str = "usage: vmstat -i [-a] | -z\n";

/// Runs `vmstat`.
pub(super) fn main(env: &Env) -> i32 {
    io::finish(env, USAGE, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let (mut interrupts, mut zones, mut all) = (false, false, false);
    let mut getopt = Getopt::new(&env.args, "aiz");
    for option in getopt.by_ref() {
        match option.map_err(Failure::Usage)? {
            ('a', _) => all = true,
            ('i', _) => interrupts = true,
            ('z', _) => zones = true,
            (other, _) => return Err(Failure::Usage(format!("illegal option -- {other}"))),
        }
    }
    if interrupts == zones || !getopt.operands().is_empty() {
        return Err(Failure::Usage("one of -i and -z is needed".into()));
    }
    let text = if zones {
        render_zones(uma::zones().map(|zone| zone.stats()))
    } else {
        render_interrupts(
            intr_counts(),
            machine::sbinuptime().as_s().max(1) as u64,
            all,
        )
    };
    env.out.write(&text);
    Ok(())
}

fn render_zones(zones: impl IntoIterator<Item = ZoneStats>) -> String {
    let mut text = String::from(
        "ITEM                   SIZE   LIMIT     USED     FREE      REQ FAIL SLEEP XDOM\n",
    );
    for zone in zones {
        let ZoneStats {
            name,
            size,
            limit,
            used,
            free,
            requests,
            fails,
            sleeps,
            xdomain,
        } = zone;
        // Name and size share 27 columns.
        let name = format!("{name}:");
        let width = 27usize.saturating_sub(name.len() + 1);
        text += &format!(
            "{name} {size:>width$},{limit:>7},{used:>8},{free:>8},{requests:>8},{fails:>4},{sleeps:>4},{xdomain:>4}\n"
        );
    }
    text
}

fn render_interrupts(mut counts: Vec<(String, u64)>, uptime: u64, all: bool) -> String {
    counts.retain(|(_, count)| all || *count > 0);
    let names = counts.iter().map(|(name, _)| name.len());
    let width = names.max().unwrap_or(0).max("interrupt".len());
    let mut text = format!("{:<width$} {:>20} {:>10}\n", "interrupt", "total", "rate");
    let mut total = 0;
    for (name, count) in counts {
        text += &format!("{name:<width$} {count:>20} {:>10}\n", count / uptime);
        total += count;
    }
    text += &format!("{:<width$} {total:>20} {:>10}\n", "Total", total / uptime);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_stand_in_freebsds_columns() {
        let zones = [
            ZoneStats {
                name: "mbuf_packet",
                size: 256,
                limit: 1_615_230,
                used: 1024,
                free: 506,
                requests: 88_121,
                fails: 0,
                sleeps: 0,
                xdomain: 0,
            },
            ZoneStats {
                name: "tcp_inpcb",
                size: 1416,
                limit: 64_000,
                used: 12,
                free: 58,
                requests: 311,
                fails: 0,
                sleeps: 0,
                xdomain: 0,
            },
        ];
        let expected = "\
ITEM                   SIZE   LIMIT     USED     FREE      REQ FAIL SLEEP XDOM
mbuf_packet:            256,1615230,    1024,     506,   88121,   0,   0,   0
tcp_inpcb:             1416,  64000,      12,      58,     311,   0,   0,   0
";
        assert_eq!(render_zones(zones), expected);
    }

    #[test]
    fn interrupts_stand_in_freebsds_columns() {
        let counts = [
            ("irq24: em0:rxq0", 52133),
            ("cpu0:timer", 91230),
            ("stray", 0),
        ]
        .map(|(name, count)| (String::from(name), count));
        let expected = "\
interrupt                      total       rate
irq24: em0:rxq0                52133        104
cpu0:timer                     91230        182
Total                         143363        286
";
        assert_eq!(render_interrupts(counts.to_vec(), 500, false), expected);
    }
}
