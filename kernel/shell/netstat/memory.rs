//! netstat -m: mbufs and clusters.
//!
//! FreeBSD: usr.bin/netstat/mbuf.c

use alloc::format;
use alloc::string::String;

use sys::kern::kern_mbuf::{MbZoneStat, MbufStat};
use sys::mbuf::{ClusterSize, MSIZE};

/// The report.
pub(super) fn report() -> String {
    render(&MbufStat::snapshot())
}

fn render(stat: &MbufStat) -> String {
    let MbufStat {
        mbuf,
        cluster,
        packet,
        jumbop,
        jumbo9,
        jumbo16,
    } = stat;
    let current_cache_total_max = |zone: &MbZoneStat, what: &str| {
        format!(
            "{}/{}/{}/{} {what} in use (current/cache/total/max)\n",
            zone.current,
            zone.cache,
            zone.current + zone.cache,
            zone.max
        )
    };
    let mut text = format!(
        "{}/{}/{} mbufs in use (current/cache/total)\n",
        mbuf.current,
        mbuf.cache,
        mbuf.current + mbuf.cache
    );
    text += &current_cache_total_max(cluster, "mbuf clusters");
    text += &format!(
        "{}/{} mbuf+clusters out of packet secondary zone in use (current/cache)\n",
        packet.current, packet.cache
    );
    text += &current_cache_total_max(jumbop, "4k (page size) jumbo clusters");
    text += &current_cache_total_max(jumbo9, "9k jumbo clusters");
    text += &current_cache_total_max(jumbo16, "16k jumbo clusters");
    let zones = [
        (mbuf, MSIZE),
        (cluster, ClusterSize::K2.bytes()),
        (jumbop, ClusterSize::K4.bytes()),
        (jumbo9, ClusterSize::K9.bytes()),
        (jumbo16, ClusterSize::K16.bytes()),
    ];
    let bytes = |count: fn(&MbZoneStat) -> u64| -> u64 {
        zones
            .iter()
            .map(|(zone, size)| count(zone) * *size as u64)
            .sum()
    };
    let (current, cache) = (bytes(|zone| zone.current), bytes(|zone| zone.cache));
    text += &format!(
        "{}K/{}K/{}K bytes allocated to network (current/cache/total)\n",
        current / 1024,
        cache / 1024,
        (current + cache) / 1024
    );
    text += &format!(
        "{}/{}/{} requests for mbufs denied (mbufs/clusters/mbuf+clusters)\n",
        mbuf.denied, cluster.denied, packet.denied
    );
    text += &format!(
        "{}/{}/{} requests for mbufs delayed (mbufs/clusters/mbuf+clusters)\n",
        mbuf.delayed, cluster.delayed, packet.delayed
    );
    text += &format!(
        "{}/{}/{} requests for jumbo clusters delayed (4k/9k/16k)\n",
        jumbop.delayed, jumbo9.delayed, jumbo16.delayed
    );
    text += &format!(
        "{}/{}/{} requests for jumbo clusters denied (4k/9k/16k)\n",
        jumbop.denied, jumbo9.denied, jumbo16.denied
    );
    // There is no sendfile here; the lines stand for readers that count them.
    for line in [
        "sendfile syscalls",
        "sendfile syscalls completed without I/O request",
        "requests for I/O initiated by sendfile",
        "pages read by sendfile as part of a request",
        "pages were valid at time of a sendfile request",
        "pages were valid and substituted to bogus page",
        "pages were requested for read ahead by applications",
        "pages were read ahead by sendfile",
        "times sendfile encountered an already busy page",
        "requests for sfbufs denied",
        "requests for sfbufs delayed",
    ] {
        text += &format!("0 {line}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_freebsds_lines() {
        let zone = |current, cache, max| MbZoneStat {
            current,
            cache,
            max,
            ..MbZoneStat::default()
        };
        let stat = MbufStat {
            mbuf: zone(1034, 3031, 0),
            cluster: zone(1023, 1515, 126_156),
            packet: zone(1023, 1009, 0),
            jumbop: zone(0, 4, 63_078),
            jumbo9: zone(0, 0, 18_689),
            jumbo16: zone(0, 0, 10_512),
        };
        let report = render(&stat);
        let expected = "\
1034/3031/4065 mbufs in use (current/cache/total)
1023/1515/2538/126156 mbuf clusters in use (current/cache/total/max)
1023/1009 mbuf+clusters out of packet secondary zone in use (current/cache)
0/4/4/63078 4k (page size) jumbo clusters in use (current/cache/total/max)
0/0/0/18689 9k jumbo clusters in use (current/cache/total/max)
0/0/0/10512 16k jumbo clusters in use (current/cache/total/max)
2304K/3803K/6108K bytes allocated to network (current/cache/total)
0/0/0 requests for mbufs denied (mbufs/clusters/mbuf+clusters)
0/0/0 requests for mbufs delayed (mbufs/clusters/mbuf+clusters)
0/0/0 requests for jumbo clusters delayed (4k/9k/16k)
0/0/0 requests for jumbo clusters denied (4k/9k/16k)
0 sendfile syscalls
";
        assert!(report.starts_with(expected), "{report}");
    }
}
