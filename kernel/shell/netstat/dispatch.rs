//! netstat -Q: what netisr does.
//!
//! FreeBSD: usr.bin/netstat/netisr.c

use alloc::format;
use alloc::string::String;

use sys::net::netisr::{self, NetisrDispatch, NetisrPolicy, ProtoRow, WorkstreamRow};
use sys::sysctl::root;

/// The report.
pub(super) fn report() -> String {
    let setting = |name: &str| root().get(name).unwrap_or_default();
    let config = Config {
        threads: setting("net.isr.numthreads"),
        max_threads: setting("net.isr.maxthreads"),
        default_limit: setting("net.isr.defaultqlimit"),
        max_limit: setting("net.isr.maxqlimit"),
        dispatch: setting("net.isr.dispatch"),
        bound: setting("net.isr.bindthreads") == "1",
    };
    render(&config, &netisr::protocols(), &netisr::workstreams())
}

struct Config {
    threads: String,
    max_threads: String,
    default_limit: String,
    max_limit: String,
    dispatch: String,
    bound: bool,
}

fn render(config: &Config, protocols: &[ProtoRow], streams: &[WorkstreamRow]) -> String {
    let mut text = String::from("Configuration:\n");
    let mut setting = |name: &str, current: &str, limit: &str| {
        text += &format!("{name:<25} {current:>12} {limit:>12}\n");
    };
    setting("Setting", "Current", "Limit");
    setting("Thread count", &config.threads, &config.max_threads);
    setting(
        "Default queue limit",
        &config.default_limit,
        &config.max_limit,
    );
    setting("Dispatch policy", &config.dispatch, "n/a");
    let bound = if config.bound { "enabled" } else { "disabled" };
    setting("Threads bound to CPUs", bound, "n/a");

    text += "\nProtocols:\n";
    text += "Name   Proto QLimit Policy Dispatch Flags\n";
    for row in protocols {
        let policy = match row.info.policy {
            NetisrPolicy::Source => "source",
            NetisrPolicy::Flow => "flow",
            NetisrPolicy::Cpu => "cpu",
        };
        let dispatch = match row.info.dispatch {
            NetisrDispatch::Default => "default",
            NetisrDispatch::Deferred => "deferred",
            NetisrDispatch::Hybrid => "hybrid",
            NetisrDispatch::Direct => "direct",
        };
        text += &format!(
            "{:<6} {:>5} {:>6} {policy:>6} {dispatch:>8}   ---\n",
            row.info.name, row.info.proto as u32, row.qlimit
        );
    }

    text += "\nWorkstreams:\n";
    text += "WSID CPU   Name     Len WMark   Disp'd  HDisp'd   QDrops   Queued  Handled\n";
    for row in streams {
        text += &format!(
            "{:>4} {:>3}   {:<6} {:>5} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8}\n",
            row.wsid,
            row.cpu,
            row.name,
            row.len,
            row.watermark,
            row.dispatched,
            row.hybrid_dispatched,
            row.qdrops,
            row.queued,
            row.handled
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::net::netisr::{NetisrInfo, NetisrProto};

    #[test]
    fn the_report_stands_in_freebsds_columns() {
        let config = Config {
            threads: "1".into(),
            max_threads: "1".into(),
            default_limit: "256".into(),
            max_limit: "10240".into(),
            dispatch: "direct".into(),
            bound: false,
        };
        let protocols = [
            ProtoRow {
                info: NetisrInfo {
                    name: "ip",
                    proto: NetisrProto::Ip,
                    policy: NetisrPolicy::Flow,
                    dispatch: NetisrDispatch::Default,
                },
                qlimit: 256,
            },
            ProtoRow {
                info: NetisrInfo {
                    name: "ether",
                    proto: NetisrProto::Ether,
                    policy: NetisrPolicy::Source,
                    dispatch: NetisrDispatch::Direct,
                },
                qlimit: 256,
            },
        ];
        let streams = [WorkstreamRow {
            wsid: 0,
            cpu: 0,
            name: "ip",
            len: 0,
            watermark: 7,
            dispatched: 91234,
            hybrid_dispatched: 0,
            qdrops: 0,
            queued: 118,
            handled: 91352,
        }];
        let expected = "\
Configuration:
Setting                        Current        Limit
Thread count                         1            1
Default queue limit                256        10240
Dispatch policy                 direct          n/a
Threads bound to CPUs         disabled          n/a

Protocols:
Name   Proto QLimit Policy Dispatch Flags
ip         1    256   flow  default   ---
ether      5    256 source   direct   ---

Workstreams:
WSID CPU   Name     Len WMark   Disp'd  HDisp'd   QDrops   Queued  Handled
   0   0   ip         0     7    91234        0        0      118    91352
";
        assert_eq!(render(&config, &protocols, &streams), expected);
    }
}
