//! What the two iperf3 say about one test, and whether they agree.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

/// Bytes that may be under way when a test ends by time, per stream: both socket buffers and QEMU's own.
const IN_FLIGHT_MAX: u64 = 24 << 20;

/// The end of one side's report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Bytes sent, 0 if this side does not know.
    pub sent: u64,
    /// Bytes received, 0 if this side does not know.
    pub received: u64,
    /// Length of the test.
    pub seconds: f64,
    /// Datagrams sent.
    pub packets: u64,
    /// Datagrams lost.
    pub lost: u64,
    /// Retransmitted segments.
    pub retransmits: u64,
}

impl Figures {
    /// Reads the JSON of `iperf3 -J`, around which a console may have put other lines.
    pub fn parse(text: &str) -> Result<Self> {
        let json = json_part(text).with_context(|| format!("no JSON in: {}", text.trim()))?;
        let value: Value = serde_json::from_str(json)
            .with_context(|| format!("iperf3's report is no JSON: {json}"))?;
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            bail!("iperf3 says: {error}");
        }
        let end = value
            .get("end")
            .ok_or_else(|| anyhow!("iperf3's report has no end"))?;
        let number = |sum: &str, key: &str| end[sum][key].as_f64().unwrap_or(0.0);
        let seconds = number("sum_received", "seconds").max(number("sum_sent", "seconds"));
        let udp = ["sum_received", "sum_sent", "sum"]
            .into_iter()
            .find(|sum| number(sum, "packets") > 0.0 || number(sum, "lost_packets") > 0.0);
        // UDP: the plain "sum" has the loss as the receiver counted it.
        let lost = number("sum", "lost_packets").max(number("sum_received", "lost_packets"));
        let packets = number("sum", "packets").max(udp.map_or(0.0, |sum| number(sum, "packets")));
        Ok(Self {
            sent: number("sum_sent", "bytes") as u64,
            received: number("sum_received", "bytes") as u64,
            seconds: if seconds > 0.0 {
                seconds
            } else {
                number("sum", "seconds")
            },
            packets: packets as u64,
            lost: lost as u64,
            retransmits: number("sum_sent", "retransmits") as u64,
        })
    }

    /// Megabits per second that arrived.
    pub fn mbits(&self) -> f64 {
        if self.seconds <= 0.0 {
            return 0.0;
        }
        self.received as f64 * 8.0 / self.seconds / 1e6
    }

    /// Percentage of datagrams lost.
    pub fn loss(&self) -> f64 {
        if self.packets == 0 {
            return 0.0;
        }
        self.lost as f64 * 100.0 / self.packets as f64
    }
}

fn json_part(text: &str) -> Option<&str> {
    let from = text.find('{')?;
    let to = text.rfind('}')?;
    text.get(from..=to)
}

/// Both sides' reports of one test.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reports {
    /// The distribution's iperf3.
    pub host: Figures,
    /// Ours.
    pub guest: Figures,
    /// Streams.
    pub streams: u64,
}

impl Reports {
    /// The agreed figures; an error says what they do not agree on.
    ///
    /// A server of iperf 3.12 knows only its own side, so what counts is: each number that both know is the same
    /// in both, and there is at least one.
    pub fn agreed(&self) -> Result<Figures> {
        let Self { host, guest, .. } = self;
        let mut compared = 0;
        for (what, ours, theirs) in [
            ("sent", guest.sent, host.sent),
            ("received", guest.received, host.received),
        ] {
            if ours > 0 && theirs > 0 {
                compared += 1;
                if ours != theirs {
                    bail!("bytes {what}: the guest says {ours}, the host's iperf3 {theirs}");
                }
            }
        }
        let known = |a: u64, b: u64| if a > 0 { a } else { b };
        let agreed = Figures {
            sent: known(host.sent, guest.sent),
            received: known(host.received, guest.received),
            packets: known(host.packets, guest.packets),
            lost: host.lost.max(guest.lost),
            retransmits: host.retransmits.max(guest.retransmits),
            seconds: host.seconds,
        };
        if agreed.received == 0 {
            bail!("nothing arrived");
        }
        if compared == 0 {
            bail!("no number that both sides know: guest {guest:?}, host {host:?}");
        }
        if agreed.received > agreed.sent {
            let Figures { sent, received, .. } = agreed;
            bail!("{received} bytes received, but only {sent} sent");
        }
        Ok(agreed)
    }

    /// As `agreed`, and what was sent over TCP has arrived but for what can be under way.
    pub fn agreed_tcp(&self) -> Result<Figures> {
        let agreed = self.agreed()?;
        let missing = agreed.sent - agreed.received;
        if missing > IN_FLIGHT_MAX * self.streams.max(1) {
            bail!("{missing} bytes sent did not arrive, more than can be under way");
        }
        Ok(agreed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(sent: u64, received: u64) -> String {
        format!(
            r#"{{"end": {{"sum_sent": {{"bytes": {sent}, "seconds": 2.0, "retransmits": 3}},
                "sum_received": {{"bytes": {received}, "seconds": 2.0}}}}}}"#
        )
    }

    fn reports(host: (u64, u64), guest: (u64, u64)) -> Reports {
        Reports {
            host: Figures::parse(&report(host.0, host.1)).unwrap(),
            guest: Figures::parse(&report(guest.0, guest.1)).unwrap(),
            streams: 1,
        }
    }

    #[test]
    fn a_report_between_other_lines_is_read() {
        let text = format!("em0: link up\n{}\ndone", report(5_000_000, 4_000_000));
        let f = Figures::parse(&text).unwrap();
        assert_eq!(
            (f.sent, f.received, f.retransmits),
            (5_000_000, 4_000_000, 3)
        );
        assert_eq!(f.mbits(), 16.0);
    }

    #[test]
    fn loss_of_datagrams_is_read_from_the_sum() {
        let text = r#"{"end": {"sum": {"packets": 200, "lost_packets": 3, "seconds": 1, "bytes": 7},
            "sum_sent": {"bytes": 200000, "packets": 200, "seconds": 1},
            "sum_received": {"bytes": 197000, "packets": 200, "lost_packets": 3, "seconds": 1}}}"#;
        let f = Figures::parse(text).unwrap();
        assert_eq!((f.packets, f.lost), (200, 3));
        assert_eq!(f.loss(), 1.5);
    }

    #[test]
    fn an_error_of_iperf3_is_the_reason() {
        let e = Figures::parse(r#"{"error": "unable to connect"}"#).unwrap_err();
        assert!(e.to_string().contains("unable to connect"));
    }

    #[test]
    fn sides_that_agree_on_all_they_both_know_pass() {
        assert!(reports((100, 90), (0, 90)).agreed_tcp().is_ok());
        assert!(reports((0, 90), (100, 90)).agreed_tcp().is_ok());
    }

    #[test]
    fn different_counts_nothing_and_too_much_fail() {
        let reason = |host, guest| reports(host, guest).agreed_tcp().unwrap_err().to_string();
        assert!(reason((100, 90), (0, 89)).contains("guest says 89"));
        assert!(reason((100, 0), (100, 0)).contains("nothing arrived"));
        assert!(reason((100, 101), (100, 101)).contains("only 100 sent"));
        assert!(reason((100_000_000, 1), (0, 1)).contains("did not arrive"));
        assert!(reason((100, 0), (0, 90)).contains("no number"));
    }
}
