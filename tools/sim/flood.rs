//! A flood of SYNs from sources that never answer, and what it does to everybody else.
//!
//! RFC 4987 §3.6 (SYN cookies). FreeBSD: sys/netinet/tcp_syncache.c

use crate::lab::{Flow, PORT, inpcb, lock, pass_ms, spawn};
use crate::runs::segment;
use anyhow::{Result, ensure};
use core::net::Ipv4Addr;
use core::time::Duration;
use netinet::ip::{IPPROTO_TCP, Ip};
use netinet::tcp::{TCP_HLEN, TCP_MAXOLEN, TcpFlags, TcpHeader, TcpOpt, TcpOptFlags};
use netinet::tcp_seq::TcpSeq;
use netinet::tcp_var::{Tcpcb, Tf};
use netsim::impair::Link;
use netsim::wire::{Dir, Verdict, WireConfig};
use netsim::world::{ADDR_A, ADDR_B, Host, World};
use oorandom::Rand64;
use std::sync::{Arc, Mutex};
use sys::errno::Errno;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::in_cksum::{in_cksum, in_cksum_partial, in_pseudo};
use sys::net::route::{RouteSpec, RtFlags};
use sys::socket::{AF_INET, SockAddr, SockType};
use zerocopy::IntoBytes;

/// SYNs in a millisecond: with it more than the cache holds come within a round trip.
const SYNS_PER_MS: u64 = 100;
/// SYNs after which no bucket has room.
const FULL: u64 = 40_000;
/// SYNs of more than a round trip.
const LAST: u64 = 35_000;
/// Connections that are made meanwhile.
const CLIENTS: u64 = 100;
/// Where clients connect to; the established flow has `PORT`.
const SERVICE: u16 = 443;
/// Most records there may be, and most bytes they may take.
const MOST_ENTRIES: u32 = 15_360;
const MOST_BYTES: usize = 8 << 20;
/// After so long a cookie is refused, in ms.
const COOKIE_MS: i64 = 30_000;

/// What both ends agreed on: segment size, the peer's window scale, SACK and timestamps.
type Agreed = (u32, u8, Tf);

fn agreed(tp: &Tcpcb) -> Agreed {
    let flags = Tf::SACK_PERMIT | Tf::RCVD_SCALE | Tf::RCVD_TSTMP;
    (tp.t_maxseg, tp.snd_scale, tp.t_flags & flags)
}

/// Sends `syns` SYNs at a server that is at work, and makes connections meanwhile; an error if the server suffers.
pub fn check(syns: u64) -> Result<String> {
    let link = |delay| Link {
        delay: Duration::from_millis(delay),
        // The flood takes a third of the line; a window of the flow waits in one piece, and there is room for it.
        rate: Some(200_000_000),
        queue_limit: 4_000,
        ..Link::default()
    };
    // The answer of a client comes when the record of its SYN has long given way to others: the cookie must do.
    let config = WireConfig {
        link: link(250),
        back: Some(link(1)),
        ..WireConfig::default()
    };
    World::run(config, |world| flood(world, syns))
}

fn flood(world: &World, syns: u64) -> Result<String> {
    let stat = &world.b.inet.tcp.stat;
    default_route(&world.b, ADDR_A);
    let answers = Arc::new(Mutex::new(0u64));
    let count = answers.clone();
    world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
        // The answers to sources that are not there go nowhere.
        let stray = dir == Dir::BtoA && frame[12..14] == [8, 0] && frame[30..34] != ADDR_A.octets();
        if stray {
            *lock(&count) += 1;
            return Verdict::Drop;
        }
        Verdict::Pass
    })));
    let flow = Flow::start(world, PORT, 1_600_000);
    let service = listen(&world.b);
    let reference = {
        let (client, server) = connect(world, &service);
        let agreed = look(&world.b, &server, agreed);
        drop((client, server));
        agreed
    };
    pass_ms(3_000);
    let measure = |ms| {
        let before = flow.look(|tp| tp.snd_una);
        pass_ms(ms);
        f64::from(flow.look(|tp| tp.snd_una) - before) / ms as f64
    };
    let quiet = measure(1_000);

    let accepted = Arc::new(Mutex::new(Vec::new()));
    let (sockets, listener) = (accepted.clone(), service.clone());
    let acceptor = spawn(move || {
        for _ in 0..CLIENTS {
            if let Ok((so, _)) = listener.accept() {
                lock(&sockets).push(so);
            }
        }
    });
    let mut rng = Rand64::new(u128::from(syns));
    let (mut most, mut most_bytes, mut sent, mut clients) = (0, 0, 0, Vec::new());
    // Clients come while the cache is full: after the first SYNs, and a round trip before the last.
    let every = syns.saturating_sub(FULL + LAST) / CLIENTS;
    ensure!(every > 0, "{syns} SYNs are no flood");
    let (una, begun) = (flow.look(|tp| tp.snd_una), crate::lab::now_ms());
    let mut progress = 0.0;
    let mut last = una;
    while sent < syns {
        for _ in 0..SYNS_PER_MS.min(syns - sent) {
            world.wire.offer(Dir::AtoB, &syn(world, &mut rng));
            sent += 1;
            if sent >= FULL && sent % every == 0 && clients.len() < CLIENTS as usize {
                let vnet = world.a.vnet.clone();
                clients.push(spawn(move || -> Result<SocketHandle, Errno> {
                    let so = SocketHandle::socket(&vnet, AF_INET, SockType::Stream, 0)?;
                    so.connect(&SockAddr::v4(ADDR_B, SERVICE))?;
                    Ok(so)
                }));
            }
        }
        pass_ms(1);
        let cache = &world.b.inet.tcp.syncache;
        most = most.max(cache.count());
        if sent % (SYNS_PER_MS * 100) == 0 {
            most_bytes = most_bytes.max(cache.memory());
            let now = flow.look(|tp| tp.snd_una);
            progress += f64::from(now - last);
            last = now;
        }
    }
    let busy = progress / (crate::lab::now_ms() - begun) as f64;
    let (cookies, added, evicted) = (
        stat.tcps_sc_recvcookie.fetch(),
        stat.tcps_sc_added.fetch(),
        stat.tcps_sc_bucketoverflow.fetch(),
    );
    let connected: Vec<Result<SocketHandle, Errno>> =
        clients.into_iter().map(|client| client.join()).collect();
    acceptor.join();
    let cookies_in_all = stat.tcps_sc_recvcookie.fetch();
    let servers = std::mem::take(&mut *lock(&accepted));
    let right = servers
        .iter()
        .filter(|so| look(&world.b, so, agreed) == reference)
        .count();
    let made = connected.iter().filter(|c| c.is_ok()).count();
    drop((connected, servers));
    flow.finish();
    world.wire.set_hook(None);
    let late = late_cookie(world)?;
    let said = format!(
        "{syns} SYNs at {} per second, {} answered; at most {most} entries in {} KiB; {added} added, {evicted} gave way; \
         {made} of {CLIENTS} connections made, {right} with MSS, scale and SACK as without flood, {cookies_in_all} by cookie \
         ({cookies} during the flood); the flow had {:.1} MB/s before, {:.1} MB/s meanwhile; {late}",
        SYNS_PER_MS * 1000,
        *lock(&answers),
        most_bytes >> 10,
        quiet / 1000.0,
        busy / 1000.0
    );
    ensure!(
        most <= MOST_ENTRIES && most_bytes <= MOST_BYTES,
        "too much held: {said}"
    );
    ensure!(
        made as u64 == CLIENTS && right as u64 == CLIENTS,
        "clients suffer: {said}"
    );
    // A record may have survived here and there.
    ensure!(
        cookies_in_all >= CLIENTS * 9 / 10,
        "hardly a cookie: {said}"
    );
    ensure!(busy >= quiet / 2.0, "the flow suffers: {said}");
    Ok(said)
}

/// A handshake whose last segment comes too late, and one whose last segment does not, without any record of them.
fn late_cookie(world: &World) -> Result<String> {
    crate::lab::set(&world.b, "net.inet.tcp.syncookies_only", "1");
    let accepts = &world.b.inet.tcp.stat.tcps_accepts;
    let mut words = Vec::new();
    for (wait_ms, good) in [(5_000, true), (COOKIE_MS + 1_000, false)] {
        // The client's last segment is held back: the wire drops it, and it is sent by hand.
        let held: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
        let slot = held.clone();
        world
            .wire
            .set_hook(Some(Box::new(move |dir, _, frame| match segment(frame) {
                Some(s) if dir == Dir::AtoB && s.dport == SERVICE => {
                    if s.flags.contains(TcpFlags::SYN) {
                        return Verdict::Pass;
                    }
                    lock(&slot).get_or_insert_with(|| frame.clone());
                    Verdict::Drop
                }
                _ => Verdict::Pass,
            })));
        let so = SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Stream, 0)?;
        so.connect(&SockAddr::v4(ADDR_B, SERVICE))?;
        let before = accepts.fetch();
        pass_ms(wait_ms);
        let Some(frame) = lock(&held).take() else {
            anyhow::bail!("the client's last segment was not seen");
        };
        world.wire.inject(Dir::AtoB, &frame);
        pass_ms(10);
        let made = accepts.fetch() - before;
        world.wire.set_hook(None);
        ensure!(
            (made == 1) == good,
            "after {wait_ms} ms a cookie made {made} connections"
        );
        let outcome = if good { "taken" } else { "refused" };
        words.push(format!("{outcome} after {} s", wait_ms / 1000));
    }
    Ok(format!("a cookie is {}", words.join(", ")))
}

fn default_route(host: &Host, gateway: Ipv4Addr) {
    let route = RouteSpec {
        dst: Ipv4Addr::UNSPECIFIED,
        prefix_len: 0,
        gw: Some(gateway),
        ifp: host.ifp.clone(),
        ifa: None,
        flags: RtFlags::GATEWAY | RtFlags::STATIC,
        mtu: 0,
    };
    host.vnet.rib.add(route).expect("no default route yet");
}

fn listen(host: &Host) -> Arc<SocketHandle> {
    let so = SocketHandle::socket(&host.vnet, AF_INET, SockType::Stream, 0).expect("a socket");
    so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, SERVICE))
        .expect("a free port");
    so.listen(128).expect("a bound socket");
    Arc::new(so)
}

fn connect(world: &World, service: &SocketHandle) -> (SocketHandle, SocketHandle) {
    let so = SocketHandle::socket(&world.a.vnet, AF_INET, SockType::Stream, 0).expect("a socket");
    so.connect(&SockAddr::v4(ADDR_B, SERVICE))
        .expect("someone listens");
    let (server, _) = service.accept().expect("a connection");
    (so, server)
}

fn look<T>(host: &Host, so: &SocketHandle, f: impl FnOnce(&Tcpcb) -> T) -> T {
    let inp = inpcb(host, so).expect("a socket of this host");
    let guard = inp.read();
    f(&guard.ppcb)
}

/// A SYN with the usual options, from anywhere.
fn syn(world: &World, rng: &mut Rand64) -> Vec<u8> {
    // Not from where there is no way to answer to: our own network, the loopback, groups.
    let src = loop {
        let addr = Ipv4Addr::from(rng.rand_u64() as u32);
        let o = addr.octets();
        if !matches!(o[0], 0 | 10 | 127 | 224..=255) {
            break addr;
        }
    };
    let to = TcpOpt {
        to_flags: TcpOptFlags::MSS | TcpOptFlags::SCALE | TcpOptFlags::SACKPERM,
        to_mss: 1460,
        to_wscale: 7,
        ..TcpOpt::default()
    };
    let mut options = [0; TCP_MAXOLEN];
    let optlen = to.write(&mut options);
    let header = TcpHeader {
        th_sport: 1024 + rng.rand_range(0..60_000) as u16,
        th_dport: SERVICE,
        th_seq: TcpSeq(rng.rand_u64() as u32),
        th_flags: TcpFlags::SYN,
        th_off: (TCP_HLEN + optlen) as u8,
        th_win: 65_535,
        ..TcpHeader::default()
    };
    let mut tcp = [0; TCP_HLEN + TCP_MAXOLEN];
    if let Some(place) = tcp.first_chunk_mut() {
        header.write(place);
    }
    tcp[TCP_HLEN..].copy_from_slice(&options);
    let segment = &mut tcp[..TCP_HLEN + optlen];
    let pseudo = in_pseudo(src, ADDR_B, u32::from(IPPROTO_TCP) + segment.len() as u32);
    let sum = in_cksum_partial(segment, false).add_u16(pseudo).finish();
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut ip = Ip::new();
    ip.set_src(src);
    ip.set_dst(ADDR_B);
    ip.ip_p = IPPROTO_TCP;
    ip.ip_ttl = 60;
    ip.ip_len.set((Ip::LEN + segment.len()) as u16);
    let sum = in_cksum(ip.as_bytes());
    ip.ip_sum.set(sum);
    let mut frame = Vec::with_capacity(80);
    frame.extend_from_slice(&world.b.ifp.lladdr());
    frame.extend_from_slice(&world.a.ifp.lladdr());
    frame.extend_from_slice(&[8, 0]);
    frame.extend_from_slice(ip.as_bytes());
    frame.extend_from_slice(segment);
    frame
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_flood_of_syns_costs_little_memory_and_hurts_nobody() {
        super::check(100_000).unwrap();
    }
}
