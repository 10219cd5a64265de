//! TCP inside UDP: for paths on which only UDP gets through.
//!
//! FreeBSD: tcp_over_udp_start, tcp_over_udp_stop, tcp_recv_udp_tunneled_packet, tcp_ctlinput_viaudp (tcp_subr.c)
//! As RFC 6951 does for SCTP: all segments of a stack instance leave from and arrive at one UDP port of ours; the port of
//! the peer belongs to the connection. The checksum of UDP protects the segment, that of TCP is zero.

use alloc::string::ToString;
use alloc::sync::{Arc, Weak};
use core::net::{Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicU32, Ordering};

use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::lock_order::Leaf;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::mbuf::{How, Mbuf};
use sys::net::vnet::Vnet;
use sys::socket::{AF_INET, AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, SockAddr, SockType};
use sys::sysctl::{Procedure, Tunable};

use crate::ip::{IPVERSION, Ip};
use crate::ip_var::{PrcCmd, Quoted};
use crate::netinet6::ip6::Ip6;
use crate::tcp::TcpHeader;
use crate::tcp_input::tcp_input_with_port;
use crate::tcp_subr::tcp_ctlinput_with_port;
use crate::udp::Udphdr;
use crate::udp_usrreq::udp_set_kernel_tunneling;
use crate::vnet::{InetVnet, NetCx};

/// Ports of the UDP header around a segment that is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpPorts {
    /// Ours, from which all segments leave.
    pub local: u16,
    /// The peer's.
    pub remote: u16,
}

/// The sockets that receive segments inside UDP, by IPv4 and by IPv6.
type Sockets = [SocketHandle; 2];

/// The tunnel of a stack instance.
pub struct Tunnel {
    port: AtomicU32,
    sockets: Mutex<Option<Sockets>, Leaf>,
    overhead: Arc<Tunable<u32>>,
}

impl Tunnel {
    /// A tunnel that is closed, with its variables.
    pub fn new(vnet: &Arc<Vnet>, inet: Weak<InetVnet>) -> Arc<Tunnel> {
        let tunnel = Arc::new(Tunnel {
            port: AtomicU32::new(0),
            sockets: Mutex::new(None),
            overhead: Arc::new(Tunable::new(
                Udphdr::LEN as u32,
                Udphdr::LEN as i64,
                1024,
                "MSS reduction when using tcp over udp",
            )),
        });
        vnet.sysctl.register(
            "net.inet.tcp.udp_tunneling_overhead",
            tunnel.overhead.clone(),
        );
        let (shown, set) = (Arc::downgrade(&tunnel), Arc::downgrade(&tunnel));
        let port = Procedure::new(
            "Tunneling port for tcp over udp",
            move || {
                let tunnel = shown.upgrade();
                tunnel.map_or(0, |tunnel| tunnel.local_port()).to_string()
            },
            move |value: &str| {
                let port: u16 = value.parse().map_err(|_| Errno::EINVAL)?;
                match (set.upgrade(), inet.upgrade()) {
                    (Some(tunnel), Some(inet)) => tunnel.set_port(&inet, port),
                    _ => Err(Errno::ENXIO),
                }
            },
        );
        vnet.sysctl
            .register("net.inet.tcp.udp_tunneling_port", Arc::new(port));
        tunnel
    }

    /// Our port; 0 while the tunnel is closed.
    pub fn local_port(&self) -> u16 {
        self.port.load(Ordering::Relaxed) as u16
    }

    /// The UDP header of segments to a peer whose port is `remote`; `None` if that is 0: they travel without.
    #[inline]
    pub fn ports(&self, remote: u16) -> Option<UdpPorts> {
        (remote != 0).then(|| UdpPorts {
            local: self.local_port(),
            remote,
        })
    }

    /// What the tunnel takes from the segments of a connection whose peer has port `remote`, in bytes.
    #[inline]
    pub fn overhead(&self, remote: u16) -> u32 {
        if remote == 0 { 0 } else { self.overhead.get() }
    }

    /// Opens the tunnel at another port, or closes it (`sysctl_net_inet_tcp_udp_tunneling_port_check`).
    fn set_port(&self, inet: &Arc<InetVnet>, port: u16) -> Result<(), Errno> {
        if port == self.local_port() {
            return Ok(());
        }
        self.close();
        if port == 0 {
            return Ok(());
        }
        let sockets = [
            open(inet, SockAddr::v4(Ipv4Addr::UNSPECIFIED, port))?,
            open(inet, SockAddr::v6(Ipv6Addr::UNSPECIFIED, port))?,
        ];
        let before = {
            let mut slot = self.sockets.lock();
            self.port.store(u32::from(port), Ordering::Relaxed);
            slot.replace(sockets)
        };
        drop(before);
        Ok(())
    }

    /// Closes the tunnel (`tcp_over_udp_stop`).
    pub fn close(&self) {
        let sockets = {
            let mut slot = self.sockets.lock();
            self.port.store(0, Ordering::Relaxed);
            slot.take()
        };
        drop(sockets);
    }
}

/// A UDP socket at `addr` whose datagrams are segments (`tcp_over_udp_start`).
fn open(inet: &Arc<InetVnet>, addr: SockAddr) -> Result<SocketHandle, Errno> {
    let family = match addr {
        SockAddr::In(_) => AF_INET,
        SockAddr::In6(_) => AF_INET6,
    };
    let so = SocketHandle::socket(&inet.vnet, family, SockType::Dgram, 0)?;
    if family == AF_INET6 {
        so.setsockopt_int(IPPROTO_IPV6, IPV6_V6ONLY, 1)?;
    }
    udp_set_kernel_tunneling(inet, &so, tcp_recv_udp_tunneled_packet, tcp_ctlinput_viaudp)?;
    so.bind(&addr)?;
    Ok(so)
}

/// A datagram for the tunnel: takes the UDP header out, and hands the segment on.
fn tcp_recv_udp_tunneled_packet(cx: &NetCx<'_>, m: Mbuf, hlen: usize) {
    let vt = &cx.vnet.tcp;
    vt.stat.tcps_tunneled_pkts.inc();
    match without_udp(m, hlen) {
        Some((m, port)) => tcp_input_with_port(cx, vt, m, hlen, port),
        None => vt.stat.tcps_tunneled_errs.inc(),
    }
}

/// The packet without its UDP header, and from which port it came.
fn without_udp(m: Mbuf, hlen: usize) -> Option<(Mbuf, u16)> {
    let headers = hlen + Udphdr::LEN;
    let mut m = m.pullup(headers + crate::tcp::TCP_HLEN).ok()?;
    TcpHeader::parse_fixed(m.data().get(headers..)?).ok()?;
    if !m.writable() {
        m = m.unshare(How::NoWait)?;
    }
    let bytes = m.writable_data()?;
    let port = Udphdr::parse(bytes.get(hlen..)?)?.uh_sport.get();
    if Ip::parse(bytes)?.version() == IPVERSION {
        let ip = Ip::parse_mut(bytes)?;
        ip.ip_len
            .set(ip.ip_len.get().checked_sub(Udphdr::LEN as u16)?);
    } else {
        let ip6 = Ip6::parse_mut(bytes)?;
        ip6.ip6_plen
            .set(ip6.ip6_plen.get().checked_sub(Udphdr::LEN as u16)?);
    }
    bytes.get_mut(..headers)?.copy_within(..hlen, Udphdr::LEN);
    m.trim_front(Udphdr::LEN);
    // A port of 0 would mean that there was no tunnel.
    (port != 0).then_some((m, port))
}

/// An ICMP error about a segment that we sent inside UDP.
fn tcp_ctlinput_viaudp(cx: &NetCx<'_>, cmd: PrcCmd, quoted: &Quoted<'_>) {
    let Some((uh, segment)) = quoted.transport.split_first_chunk::<{ Udphdr::LEN }>() else {
        return;
    };
    let Some(uh) = Udphdr::parse(uh) else {
        return;
    };
    let inner = Quoted {
        transport: segment,
        len: quoted.len.saturating_sub(Udphdr::LEN as u32),
        ..*quoted
    };
    tcp_ctlinput_with_port(cx, &cx.vnet.tcp, cmd, &inner, uh.uh_dport.get());
}
