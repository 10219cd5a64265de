//! Raw sockets: any protocol of IP, and what `ping` uses.
//!
//! FreeBSD: sys/netinet/raw_ip.c

use crate::in_mcast::{hears_group, inp_freemoptions};
use crate::in_pcb::{InpFlags, InpHdr, InpRead, Inpcb, in_pcbladdr};
use crate::ip::{IPPROTO_ICMP, IPPROTO_IGMP, IPPROTO_RAW, Ip, in_multicast};
use crate::ip_ctloutput::{ip_ctloutput, ip_savecontrol};
use crate::ip_icmp::{ICMP_UNREACH, ICMP_UNREACH_PROTOCOL, icmp_error};
use crate::ip_output::ip_output;
use crate::ip_var::{IpOutArgs, IpOutFlags, IpProto};
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::Arc;
use core::net::Ipv4Addr;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::atomic::{AtomicU32, Ordering};
use sys::mbuf::{How, IfIndex, MFlags, Mbuf};
use sys::protosw::{PrFlags, Protosw, SendFlags, SockOpt, SoptDir};
use sys::sockbuf::SbState;
use sys::socket::{IP_HDRINCL, IPPROTO_IP, SoOptions, SockAddr, SockAddrIn};
use sys::socketvar::{SoState, Socket};
use sys::tunables;

tunables! {
    /// `net.inet.raw`.
    pub struct RawTunables {
        maxdgram: u32 = 9216, "net.inet.raw.maxdgram", "Maximum outgoing raw IP datagram size" (1..=65535);
        recvspace: u32 = 9216, "net.inet.raw.recvspace", "Maximum space for incoming raw IP datagrams" (1..=16777216);
    }
}

/// What a raw socket has of its own: the protocol it hears (0: all).
pub struct RawPcb {
    proto: u8,
}

/// A raw socket's control block.
pub type RawInpcb = Inpcb<RawPcb>;

/// Takes the packets of protocols that nobody else takes.
pub(crate) struct RawIp {
    /// Raw sockets there are, so that without any a packet costs one load.
    pub(crate) sockets: AtomicU32,
}

impl IpProto for RawIp {
    fn input(&self, cx: &NetCx<'_>, m: Mbuf, _hlen: usize) {
        let proto = Ip::parse(m.data()).map_or(0, |ip| ip.ip_p);
        let Some(m) = rip_deliver(cx, m, proto) else {
            return;
        };
        cx.vnet.ipstat.ips_noproto.inc();
        // It had been counted as delivered too early.
        cx.vnet.ipstat.ips_delivered.dec();
        if !m.flags().intersects(MFlags::BCAST | MFlags::MCAST) {
            icmp_error(cx, m, ICMP_UNREACH, ICMP_UNREACH_PROTOCOL, 0);
        }
    }
}

/// Whether a raw socket hears protocol `proto`.
pub(crate) fn rip_wants(cx: &NetCx<'_>, proto: u8) -> bool {
    if cx.vnet.raw_proto.sockets.load(Ordering::Relaxed) == 0 {
        return false;
    }
    cx.vnet
        .ripcbinfo
        .snapshot()
        .iter()
        .any(|inp| hears(&inp.read(), proto))
}

fn hears(inp: &InpRead<'_, RawPcb>, proto: u8) -> bool {
    inp.ppcb.proto == 0 || inp.ppcb.proto == proto
}

/// Gives every raw socket that would hear it a copy of a packet, IP header included; gives it back if there is none.
pub(crate) fn rip_deliver(cx: &NetCx<'_>, m: Mbuf, proto: u8) -> Option<Mbuf> {
    if cx.vnet.raw_proto.sockets.load(Ordering::Relaxed) == 0 {
        return Some(m);
    }
    let Some(&ip) = Ip::parse(m.data()) else {
        return Some(m);
    };
    let rcvif = m.pkthdr().rcvif;
    // A raw socket that has said nothing of groups hears all; IGMP is for all.
    let joined = |hdr: &InpHdr| {
        let hears = !in_multicast(ip.dst())
            || proto == IPPROTO_IGMP
            || hdr.inp_moptions.is_none()
            || hears_group(cx.vnet, cx.epoch, hdr, ip.dst(), rcvif);
        if !hears {
            cx.vnet.ipstat.ips_notmember.inc();
        }
        hears
    };
    let mut receivers = cx.vnet.ripcbinfo.snapshot();
    receivers.retain(|inp| {
        let inp = inp.read();
        hears(&inp, proto)
            && (inp.laddr() == Ipv4Addr::UNSPECIFIED || inp.laddr() == ip.dst())
            && (inp.faddr() == Ipv4Addr::UNSPECIFIED || inp.faddr() == ip.src())
            && ip.ip_ttl >= inp.inp_ip_minttl
            && joined(&inp.hdr)
    });
    let Some(last) = receivers.pop() else {
        return Some(m);
    };
    for inp in receivers {
        if let Some(copy) = m.copypacket(How::NoWait) {
            rip_append(cx, &inp.read(), copy, &ip);
        }
    }
    rip_append(cx, &last.read(), m, &ip);
    None
}

fn rip_append(cx: &NetCx<'_>, inp: &InpRead<'_, RawPcb>, m: Mbuf, ip: &Ip) {
    let Some(so) = inp.inp_socket.as_ref() else {
        return;
    };
    let control = ip_savecontrol(cx, &inp.hdr, so, &m).filter(|control| control.length() != 0);
    let from = SockAddr::v4(ip.src(), 0);
    let mut rcv = so.rcv.lock();
    if !rcv.state().contains(SbState::CANTRCVMORE)
        && rcv.appendaddr(Some(&from), m, control).is_ok()
    {
        so.sorwakeup(rcv);
    } else {
        drop(rcv);
        cx.vnet.ipstat.ips_rawfull.inc();
    }
}

/// Makes the control block of a new raw socket.
pub fn rip_attach(
    inet: &Arc<InetVnet>,
    so: &Arc<Socket>,
    proto: u8,
) -> Result<Arc<dyn Protosw>, Errno> {
    so.soreserve(inet.raw.maxdgram.get(), inet.raw.recvspace.get())?;
    let inp = inet.ripcbinfo.alloc(inet, Some(so), RawPcb { proto });
    if proto == IPPROTO_RAW {
        inp.write().inp_flags |= InpFlags::HDRINCL;
    }
    inet.raw_proto.sockets.fetch_add(1, Ordering::Relaxed);
    Ok(inp)
}

/// Sends a packet: with a header of ours before it, or with the program's own (`IP_HDRINCL`).
fn rip_output(
    inp: &RawInpcb,
    so: &Socket,
    m: Mbuf,
    dst: Ipv4Addr,
    flags: SendFlags,
) -> Result<(), Errno> {
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(&inp.inp_vnet, &epoch);
    let guard = inp.read();
    let mut out = IpOutFlags::empty();
    let options = so.options();
    if options.contains(SoOptions::BROADCAST) {
        out |= IpOutFlags::ALLOWBROADCAST;
    }
    if options.contains(SoOptions::DONTROUTE) || flags.contains(SendFlags::DONTROUTE) {
        out |= IpOutFlags::ROUTETOIF;
    }
    let (m, ip_options) = if guard.inp_flags.contains(InpFlags::HDRINCL) {
        out |= IpOutFlags::RAWOUTPUT;
        cx.vnet.ipstat.ips_rawout.inc();
        (own_header(&cx, m)?, None)
    } else {
        let len = u16::try_from(m.pkt_len() + Ip::LEN).map_err(|_| Errno::EMSGSIZE)?;
        let mut m = m
            .prepend(Ip::LEN, How::NoWait)
            .map_err(|_| Errno::ENOBUFS)?;
        let laddr = if guard.laddr4() != Ipv4Addr::UNSPECIFIED {
            guard.laddr4()
        } else {
            in_pcbladdr(&cx, dst)?
        };
        let Some(ip) = Ip::parse_mut(m.data_mut()) else {
            return Err(Errno::ENOBUFS);
        };
        *ip = Ip::new();
        ip.ip_tos = guard.inp_ip_tos;
        ip.ip_len.set(len);
        ip.ip_off
            .set(if guard.inp_flags.contains(InpFlags::DONTFRAG) {
                crate::ip::IP_DF
            } else {
                0
            });
        ip.ip_ttl = guard.inp_ip_ttl;
        ip.ip_p = guard.ppcb.proto;
        ip.set_src(laddr);
        ip.set_dst(dst);
        (m, guard.inp_options.as_deref())
    };
    let args = IpOutArgs {
        options: ip_options,
        ro: None,
        flags: out,
        imo: guard.inp_moptions.as_deref(),
        ifindex: IfIndex::NONE,
    };
    ip_output(&cx, m, &args)
}

/// Checks a header that a program has written, and fills what it left to us.
fn own_header(cx: &NetCx<'_>, m: Mbuf) -> Result<Mbuf, Errno> {
    let len = m.pkt_len();
    if len > crate::ip::IP_MAXPACKET {
        return Err(Errno::EMSGSIZE);
    }
    let mut m = m.pullup(Ip::LEN).map_err(|_| Errno::EINVAL)?;
    let hlen = Ip::parse(m.data()).map_or(0, Ip::hlen);
    if hlen < Ip::LEN || hlen > len {
        return Err(Errno::EINVAL);
    }
    if m.len() < hlen {
        m = m.pullup(hlen).map_err(|_| Errno::EINVAL)?;
    }
    let ip = Ip::parse_mut(m.data_mut()).ok_or(Errno::EINVAL)?;
    if usize::from(ip.ip_len.get()) != len {
        return Err(Errno::EINVAL);
    }
    if ip.ip_id.get() == 0 {
        crate::ip_output::ip_fillid(cx, ip);
    }
    Ok(m)
}

impl Protosw for RawInpcb {
    fn pr_flags(&self) -> PrFlags {
        PrFlags::ATOMIC | PrFlags::ADDR
    }

    fn bind(&self, _so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        let addr = nam.as_in().ok_or(Errno::EAFNOSUPPORT)?.addr;
        let epoch = NetEpoch::enter();
        if addr != Ipv4Addr::UNSPECIFIED
            && !self.inp_vnet.ifaddrs.is_local_or_broadcast(&epoch, addr)
        {
            return Err(Errno::EADDRNOTAVAIL);
        }
        self.write().set_addresses(Some(addr.into()), None);
        Ok(())
    }

    fn connect(&self, so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        let addr = nam.as_in().ok_or(Errno::EAFNOSUPPORT)?.addr;
        self.write().set_addresses(None, Some(addr.into()));
        so.soisconnected();
        Ok(())
    }

    fn disconnect(&self, so: &Arc<Socket>) -> Result<(), Errno> {
        let mut guard = self.write();
        if !guard.is_connected() {
            return Err(Errno::ENOTCONN);
        }
        guard.set_addresses(None, Some(Ipv4Addr::UNSPECIFIED.into()));
        drop(guard);
        so.clear_state(SoState::ISCONNECTED);
        Ok(())
    }

    fn send(
        &self,
        so: &Arc<Socket>,
        flags: SendFlags,
        m: Mbuf,
        to: Option<&SockAddr>,
    ) -> Result<(), Errno> {
        let connected = self.read().faddr4();
        let dst = match to {
            Some(_) if connected != Ipv4Addr::UNSPECIFIED => return Err(Errno::EISCONN),
            Some(to) => to.as_in().ok_or(Errno::EAFNOSUPPORT)?.addr,
            None if connected == Ipv4Addr::UNSPECIFIED => return Err(Errno::ENOTCONN),
            None => connected,
        };
        rip_output(self, so, m, dst, flags)
    }

    fn sockaddr(&self, _so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        Ok(SockAddr::In(SockAddrIn {
            addr: self.read().laddr4(),
            port: 0,
        }))
    }

    fn peeraddr(&self, _so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        self.read().peeraddr()
    }

    fn ctloutput(&self, so: &Arc<Socket>, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
        if sopt.level == IPPROTO_IP && sopt.name == IP_HDRINCL {
            return match sopt.dir {
                SoptDir::Set => {
                    let on = sopt.int()? != 0;
                    self.write().inp_flags.set(InpFlags::HDRINCL, on);
                    Ok(())
                }
                SoptDir::Get => {
                    let on = self.read().inp_flags.contains(InpFlags::HDRINCL);
                    sopt.answer_int(i32::from(on))
                }
            };
        }
        ip_ctloutput(self, so, sopt)
    }

    fn close(&self, so: &Arc<Socket>) {
        self.abort(so);
    }

    fn abort(&self, so: &Arc<Socket>) {
        so.soisdisconnected();
    }

    fn detach(&self, _so: &Arc<Socket>) {
        let mut guard = self.write();
        let imo = guard.inp_moptions.take();
        let so = self.inp_vnet.ripcbinfo.free(self, &mut guard.hdr);
        drop(guard);
        inp_freemoptions(&self.inp_vnet, imo);
        if so.is_some() {
            self.inp_vnet
                .raw_proto
                .sockets
                .fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The protocol `ping` speaks.
pub const PING_PROTO: u8 = IPPROTO_ICMP;
