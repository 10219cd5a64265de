//! What the socket layer asks of TCP.
//!
//! FreeBSD: sys/netinet/tcp_usrreq.c

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::net::Ipv4Addr;

use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::Mbuf;
use sys::protosw::{PrFlags, Protosw, SendFlags, SockOpt, SoptDir};
use sys::sockbuf::SbState;
use sys::socket::{IPPROTO_TCP, MsgFlags, SoOptions, SockAddr};
use sys::socketvar::{SoState, Socket};

use crate::cc::cc_attach;
use crate::in_pcb::InpFlags;
use crate::ip_ctloutput::ip_ctloutput;
use crate::tcp::{TCP_MAXWIN, TfoCookie};
use crate::tcp_fastopen::{TCP_FASTOPEN_PSK_LEN, TfoRole, tcp_fastopen_connect};
use crate::tcp_fsm::TcpState;
use crate::tcp_info::tcp_fill_info;
use crate::tcp_offload::{
    tcp_offload_connect, tcp_offload_ctloutput, tcp_offload_listen_start, tcp_offload_rcvd,
};
use crate::tcp_output::{tcp_output, worth_an_update};
use crate::tcp_subr::{
    Conn, Locked, TcpInpcb, tcp_close, tcp_discardcb, tcp_drop, tcp_newtcpcb, tcp_sendseqinit,
    tcp_state_change,
};
use crate::tcp_syncache::receive_scale;
use crate::tcp_timer::TcpTimer;
use crate::tcp_var::{Oob, Tcpcb, Tf};
use crate::vnet::{InetVnet, NetCx};

/// Small segments are not held back.
pub const TCP_NODELAY: i32 = 1;
/// Largest segment.
pub const TCP_MAXSEG: i32 = 2;
/// Only full segments are sent.
pub const TCP_NOPUSH: i32 = 4;
/// No options are sent.
pub const TCP_NOOPT: i32 = 8;
/// Segments are signed (RFC 2385).
pub const TCP_MD5SIG: i32 = 16;
/// The state of the connection (`struct tcp_info`).
pub const TCP_INFO: i32 = 32;
/// Name of the congestion control algorithm.
pub const TCP_CONGESTION: i32 = 64;
/// An option of the congestion control algorithm, in a structure of its own.
pub const TCP_CCALGOOPT: i32 = 65;
/// Most bytes of that.
const CC_ALGOOPT_LIMIT: usize = 2048;
/// How long the peer may acknowledge nothing, in s.
pub const TCP_MAXUNACKTIME: i32 = 68;
/// UDP port through which the peer is reached; 0 without UDP.
pub const TCP_REMOTE_UDP_ENCAPS_PORT: i32 = 71;
/// Retransmissions that were lost are detected.
pub const TCP_LRD: i32 = 79;
/// How long the handshake may take, in s.
pub const TCP_KEEPINIT: i32 = 128;
/// Idle time before keepalive probes, in s.
pub const TCP_KEEPIDLE: i32 = 256;
/// Time between keepalive probes, in s.
pub const TCP_KEEPINTVL: i32 = 512;
/// How many keepalive probes.
pub const TCP_KEEPCNT: i32 = 1024;
/// Data in the SYN (RFC 7413).
pub const TCP_FASTOPEN: i32 = 1025;
/// Which TCP stack: there is one.
pub const TCP_FUNCTION_BLK: i32 = 8192;

/// Longest name of a congestion control algorithm, with its end.
const TCP_CA_NAME_MAX: usize = 16;

/// Name of our stack in `TCP_FUNCTION_BLK`.
const STACK_NAME: &[u8] = b"freebsd";

/// Gives a new socket a control block and buffers.
pub fn tcp_usr_attach(inet: &Arc<InetVnet>, so: &Arc<Socket>) -> Result<Arc<dyn Protosw>, Errno> {
    let tun = &inet.tcp.tun;
    so.soreserve(tun.sendspace.get(), tun.recvspace.get())?;
    so.snd.lock().set_autosize(true);
    so.rcv.lock().set_autosize(true);
    Ok(tcp_newtcpcb(inet, so, sys::machine::ticks()))
}

/// Runs `f` on the locked connection, which has not been closed; `closed` is what a closed one answers.
fn with<R>(
    inp: &TcpInpcb,
    closed: Errno,
    f: impl FnOnce(&NetCx<'_>, &mut Locked<'_>) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(&inp.inp_vnet, &epoch);
    let mut locked = Locked::new(&cx, inp);
    if locked.dropped() {
        return Err(closed);
    }
    f(&cx, &mut locked)
}

/// TCP can use any address but a group's.
fn check_addr(nam: &SockAddr) -> Result<(), Errno> {
    let group = match nam {
        SockAddr::In(sin) => sin.addr.is_multicast(),
        SockAddr::In6(sin6) => {
            let mapped = sin6.addr.to_ipv4_mapped();
            sin6.addr.is_multicast() || mapped.is_some_and(|addr| addr.is_multicast())
        }
    };
    if group {
        Err(Errno::EAFNOSUPPORT)
    } else {
        Ok(())
    }
}

/// TCP can connect to any but the broadcast address.
fn check_peer(nam: &SockAddr) -> Result<(), Errno> {
    check_addr(nam)?;
    match nam {
        SockAddr::In(sin) if sin.addr == Ipv4Addr::BROADCAST => Err(Errno::EACCES),
        SockAddr::In(_) | SockAddr::In6(_) => Ok(()),
    }
}

/// Gives the connection its peer and begins the handshake; the SYN is sent by whoever calls.
fn begin(
    cx: &NetCx<'_>,
    inp: &TcpInpcb,
    locked: &mut Locked<'_>,
    nam: &SockAddr,
) -> Result<(), Errno> {
    match locked.tp().t_state {
        TcpState::Closed => {}
        TcpState::Listen => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EISCONN),
    }
    cx.vnet.tcp.tcbinfo.connect(cx, inp, locked.hdr(), nam)?;
    let Some((c, tp)) = locked.split() else {
        return Err(Errno::EINVAL);
    };
    tcp_connect(&c, tp);
    Ok(())
}

impl Protosw for TcpInpcb {
    fn pr_flags(&self) -> PrFlags {
        PrFlags::CONNREQUIRED | PrFlags::IMPLOPCL | PrFlags::WANTRCVD
    }

    fn bind(&self, _so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        check_addr(nam)?;
        with(self, Errno::EINVAL, |cx, locked| {
            cx.vnet.tcp.tcbinfo.bind(cx, self, locked.hdr(), Some(nam))
        })
    }

    fn listen(&self, so: &Arc<Socket>, backlog: i32) -> Result<(), Errno> {
        with(self, Errno::EINVAL, |cx, locked| {
            match locked.tp().t_state {
                TcpState::Closed => {}
                TcpState::Listen => {
                    so.solisten_proto(backlog);
                    return Ok(());
                }
                _ => return Err(Errno::EINVAL),
            }
            if locked.hdr().lport() == 0 {
                cx.vnet.tcp.tcbinfo.bind(cx, self, locked.hdr(), None)?;
            }
            so.solisten_proto(backlog);
            self.join_lbgroup();
            if let Some((c, tp)) = locked.split() {
                tcp_state_change(&c, tp, TcpState::Listen);
                if tp.t_flags.contains(Tf::FASTOPEN) {
                    tp.t_tfo = TfoRole::Listener(Arc::default());
                }
                tcp_offload_listen_start(&c, tp);
            }
            Ok(())
        })
    }

    fn connect(&self, _so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        check_peer(nam)?;
        with(self, Errno::ECONNREFUSED, |cx, locked| {
            begin(cx, self, locked, nam)?;
            match locked.split() {
                Some((c, tp)) => match tcp_offload_connect(&c, tp) {
                    Ok(()) => Ok(()),
                    Err(_) => tcp_output(&c, tp),
                },
                None => Err(Errno::EINVAL),
            }
        })
    }

    fn disconnect(&self, _so: &Arc<Socket>) -> Result<(), Errno> {
        with(self, Errno::ECONNRESET, |_, locked| {
            if let Some((c, tp)) = locked.split() {
                tcp_disconnect(&c, tp);
            }
            Ok(())
        })
    }

    fn accept(&self, so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        if so.state_has(SoState::ISDISCONNECTED) {
            return Err(Errno::ECONNABORTED);
        }
        with(self, Errno::ECONNABORTED, |_, locked| {
            locked.hdr().peeraddr()
        })
    }

    fn send(
        &self,
        _so: &Arc<Socket>,
        flags: SendFlags,
        m: Mbuf,
        to: Option<&SockAddr>,
    ) -> Result<(), Errno> {
        to.map(check_peer).transpose()?;
        with(self, Errno::ECONNRESET, |cx, locked| {
            let state = locked.tp().t_state;
            let begins = to.filter(|_| state < TcpState::SynSent);
            if let Some(nam) = begins {
                begin(cx, self, locked, nam)?;
            } else if to.is_some() && state.have_established() {
                return Err(Errno::EISCONN);
            }
            let Some((c, tp)) = locked.split() else {
                return Err(Errno::ECONNRESET);
            };
            if begins.is_some() && tp.t_flags.contains(Tf::FASTOPEN) {
                tcp_fastopen_connect(&c, tp);
            }
            let oob = flags.contains(SendFlags::OOB);
            let mut snd = c.so.snd.lock();
            if oob && snd.space() < -512 {
                return Err(Errno::ENOBUFS);
            }
            if tp.t_acktime.is_none() {
                tp.t_acktime = Some(c.net.now);
            }
            snd.appendstream(m);
            let avail = snd.used();
            drop(snd);
            if oob {
                // RFC 6093: the urgent pointer points behind the last urgent byte.
                tp.snd_up = tp.snd_una + avail;
                tp.t_flags |= Tf::FORCEDATA;
                let result = tcp_output(&c, tp);
                tp.t_flags.remove(Tf::FORCEDATA);
                return result;
            }
            if flags.contains(SendFlags::EOF) {
                c.so.socantsendmore();
                tcp_usrclosed(&c, tp);
            }
            tp.t_flags
                .set(Tf::MORETOCOME, flags.contains(SendFlags::MORETOCOME));
            let result = tcp_output(&c, tp);
            tp.t_flags.remove(Tf::MORETOCOME);
            result
        })
    }

    fn rcvd(&self, _so: &Arc<Socket>, _flags: MsgFlags) -> Result<(), Errno> {
        with(self, Errno::ECONNRESET, |_, locked| {
            let Some((c, tp)) = locked.split() else {
                return Ok(());
            };
            if tcp_offload_rcvd(&c, tp) {
                return Ok(());
            }
            let (space, hiwat) = {
                let rcv = c.so.rcv.lock();
                (rcv.space().max(0) as u32, rcv.hiwat())
            };
            // The only thing reading can bring about is a window update.
            let recwin = space.min(TCP_MAXWIN << tp.rcv_scale);
            if worth_an_update(tp, hiwat, recwin) {
                tcp_output(&c, tp)?;
            }
            Ok(())
        })
    }

    fn rcvoob(&self, so: &Arc<Socket>, flags: MsgFlags) -> Result<u8, Errno> {
        with(self, Errno::ECONNRESET, |_, locked| {
            let marked = {
                let rcv = so.rcv.lock();
                rcv.oobmark() > 0 || rcv.state().contains(SbState::RCVATMARK)
            };
            let inline = so.options().contains(SoOptions::OOBINLINE);
            let oob = &mut locked.tp().t_oob;
            match *oob {
                _ if !marked || inline => Err(Errno::EINVAL),
                Oob::Had => Err(Errno::EINVAL),
                // The mark has come, the byte has not.
                Oob::None => Err(Errno::EWOULDBLOCK),
                Oob::Have(byte) => {
                    if !flags.contains(MsgFlags::PEEK) {
                        *oob = Oob::Had;
                    }
                    Ok(byte)
                }
            }
        })
    }

    fn shutdown(&self, _so: &Arc<Socket>) -> Result<(), Errno> {
        with(self, Errno::ECONNRESET, |_, locked| {
            let Some((c, tp)) = locked.split() else {
                return Ok(());
            };
            c.so.socantsendmore();
            tcp_usrclosed(&c, tp);
            if tp.t_flags.contains(Tf::CLOSED) {
                Ok(())
            } else {
                tcp_output(&c, tp)
            }
        })
    }

    fn sockaddr(&self, _so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        Ok(self.read().sockaddr())
    }

    fn peeraddr(&self, so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        let inp = self.read();
        let connected = so.state_has(SoState::ISCONNECTED | SoState::ISDISCONNECTING);
        if inp.inp_flags.contains(InpFlags::DROPPED) || !connected {
            return Err(Errno::ENOTCONN);
        }
        inp.peeraddr()
    }

    fn ctloutput(&self, so: &Arc<Socket>, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
        if sopt.level != IPPROTO_TCP {
            return ip_ctloutput(self, so, sopt);
        }
        with(self, Errno::ECONNRESET, |_, locked| {
            let Some((c, tp)) = locked.split() else {
                return Err(Errno::ECONNRESET);
            };
            if sopt.name == TCP_CCALGOOPT {
                if sopt.bytes().len() > CC_ALGOOPT_LIMIT {
                    return Err(Errno::EINVAL);
                }
                return tp.t_cc.ctl_output(&c.vt.tun, sopt);
            }
            match sopt.dir {
                SoptDir::Set => {
                    tcp_setopt(&c, tp, sopt)?;
                    tcp_offload_ctloutput(&c, tp, sopt);
                    Ok(())
                }
                SoptDir::Get => tcp_getopt(&c, tp, sopt),
            }
        })
    }

    fn close(&self, so: &Arc<Socket>) {
        let _ = with(self, Errno::ECONNRESET, |_, locked| {
            if let Some((c, tp)) = locked.split()
                && tp.t_state != TcpState::TimeWait
            {
                tcp_disconnect(&c, tp);
            }
            if !locked.dropped() {
                // The connection goes on alone, and the socket with it.
                so.set_state(SoState::PROTOREF);
                locked.hdr().inp_flags |= InpFlags::SOCKREF;
            }
            Ok(())
        });
    }

    fn abort(&self, _so: &Arc<Socket>) {
        let _ = with(self, Errno::ECONNRESET, |_, locked| {
            if let Some((c, tp)) = locked.split() {
                tcp_drop(&c, tp, Some(Errno::ECONNABORTED));
            }
            Ok(())
        });
    }

    fn detach(&self, _so: &Arc<Socket>) {
        let epoch = NetEpoch::enter();
        let cx = NetCx::new(&self.inp_vnet, &epoch);
        let so = {
            let mut guard = self.write();
            let block = &mut *guard;
            block.ppcb.t_flags |= Tf::CLOSED;
            tcp_discardcb(&cx, self, &mut block.hdr, &mut block.ppcb)
        };
        drop(so);
    }
}

/// Begins the handshake; the block has its addresses.
fn tcp_connect(c: &Conn<'_>, tp: &mut Tcpcb) {
    let tun = &c.vt.tun;
    tp.request_r_scale = receive_scale();
    c.so.soisconnecting();
    c.vt.stat.tcps_connattempt.inc();
    tcp_state_change(c, tp, TcpState::SynSent);
    tp.iss =
        c.vt.isn
            .new_isn(c.net.now, &c.hdr.inp_inc, tun.isn_reseed_interval.get());
    if tp.t_flags.contains(Tf::REQ_TSTMP) {
        tp.ts_offset =
            c.vt.isn
                .new_ts_offset(tun.ts_offset_per_conn.get(), &c.hdr.inp_inc);
    }
    tcp_sendseqinit(tp);
    tp.t_timers
        .activate(TcpTimer::Keep, c.net.now, tp.keepinit(tun));
}

/// Ends the connection as the program wants it: at once if it never was, by RST if it lingers for no time, else in order.
fn tcp_disconnect(c: &Conn<'_>, tp: &mut Tcpcb) {
    // One of Fast Open may have sent data already, and ends in order.
    let fast_open = tp.t_state > TcpState::Listen && tp.t_flags.contains(Tf::FASTOPEN);
    if !tp.t_state.have_established() && !fast_open {
        tcp_close(c, tp);
    } else if c.so.linger() == Some(0) {
        tcp_drop(c, tp, None);
    } else {
        c.so.soisdisconnecting();
        c.so.rcv.lock().flush();
        // What is missing before these would be refused now; the peer may not answer for minutes.
        tp.t_segq = None;
        tcp_usrclosed(c, tp);
        if !tp.t_flags.contains(Tf::CLOSED) {
            let _ = tcp_output(c, tp);
        }
    }
}

/// The program sends no more: the state moves on, and a FIN follows the data.
fn tcp_usrclosed(c: &Conn<'_>, tp: &mut Tcpcb) {
    match tp.t_state {
        TcpState::Closed | TcpState::Listen => {
            tcp_close(c, tp);
            return;
        }
        TcpState::SynSent | TcpState::SynReceived => tp.t_flags |= Tf::NEEDFIN,
        TcpState::Established => tcp_state_change(c, tp, TcpState::FinWait1),
        TcpState::CloseWait => tcp_state_change(c, tp, TcpState::LastAck),
        TcpState::FinWait1
        | TcpState::Closing
        | TcpState::LastAck
        | TcpState::FinWait2
        | TcpState::TimeWait => {}
    }
    if tp.t_acktime.is_none() {
        tp.t_acktime = Some(c.net.now);
    }
    if matches!(tp.t_state, TcpState::FinWait2 | TcpState::TimeWait) {
        c.so.soisdisconnected();
        if tp.t_state == TcpState::FinWait2 {
            // The peer may never close.
            let tun = &c.vt.tun;
            let timeout = if tun.fast_finwait2_recycle.get() {
                tun.finwait2_timeout.get()
            } else {
                tp.maxidle(tun)
            };
            tp.t_timers.activate(TcpTimer::Msl2, c.net.now, timeout);
        }
    }
}

/// Sets an option (`tcp_default_ctloutput`).
fn tcp_setopt(c: &Conn<'_>, tp: &mut Tcpcb, sopt: &SockOpt<'_>) -> Result<(), Errno> {
    let tun = &c.vt.tun;
    match sopt.name {
        TCP_NODELAY => tp.t_flags.set(Tf::NODELAY, sopt.int()? != 0),
        TCP_NOOPT => tp.t_flags.set(Tf::NOOPT, sopt.int()? != 0),
        TCP_LRD => tp.t_flags.set(Tf::LRD, sopt.int()? != 0),
        TCP_MD5SIG => tp.t_flags.set(Tf::SIGNATURE, sopt.int()? != 0),
        TCP_NOPUSH => {
            let on = sopt.int()? != 0;
            tp.t_flags.set(Tf::NOPUSH, on);
            if !on && tp.t_state.have_established() {
                return tcp_output(c, tp);
            }
        }
        TCP_MAXSEG => {
            let value = u32::try_from(sopt.int()?).map_err(|_| Errno::EINVAL)?;
            if value == 0 || value > tp.t_maxseg || value + 40 < tun.minmss.get() {
                return Err(Errno::EINVAL);
            }
            tp.t_maxseg = value;
        }
        TCP_CONGESTION => {
            let bytes = sopt.bytes();
            let end = bytes
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(bytes.len());
            let name = core::str::from_utf8(&bytes[..end]).map_err(|_| Errno::EINVAL)?;
            tp.t_cc = cc_attach(name).ok_or(Errno::ESRCH)?;
        }
        TCP_KEEPINIT | TCP_KEEPIDLE | TCP_KEEPINTVL | TCP_MAXUNACKTIME => {
            let seconds = u32::try_from(sopt.int()?).map_err(|_| Errno::EINVAL)?;
            let ms = seconds.checked_mul(1000).ok_or(Errno::EINVAL)?;
            set_time(c, tp, sopt.name, ms);
        }
        TCP_KEEPCNT => {
            let count = u32::try_from(sopt.int()?).map_err(|_| Errno::EINVAL)?;
            own(tp).keepcnt = count;
            restart_finwait2(c, tp);
        }
        TCP_FUNCTION_BLK => {
            let name = sopt.bytes().get(..32).ok_or(Errno::EINVAL)?;
            let end = name
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(name.len());
            if &name[..end] != STACK_NAME {
                return Err(Errno::ENOENT);
            }
        }
        TCP_FASTOPEN => {
            let (client, server) = (
                c.vt.fastopen.client_enabled(),
                c.vt.fastopen_server.enabled(),
            );
            if !client && !server {
                return Err(Errno::EPERM);
            }
            let on = sopt.int()? != 0;
            match tp.t_state {
                TcpState::Listen if on && !server => return Err(Errno::EPERM),
                TcpState::Listen if on => {
                    if !matches!(tp.t_tfo, TfoRole::Listener(_)) {
                        tp.t_tfo = TfoRole::Listener(Arc::default());
                    }
                }
                TcpState::Closed if on => {
                    // `struct tcp_fastopen`: a secret shared with the server may follow.
                    let psk = sopt.bytes().get(size_of::<i32>()..);
                    if let Some(psk) = psk.filter(|psk| psk.len() == TCP_FASTOPEN_PSK_LEN) {
                        tp.t_tfo_client_cookie = TfoCookie::new(psk);
                    }
                }
                TcpState::Listen | TcpState::Closed => {}
                _ => return Err(Errno::EINVAL),
            }
            tp.t_flags.set(Tf::FASTOPEN, on);
        }
        TCP_REMOTE_UDP_ENCAPS_PORT => {
            let port = u16::try_from(sopt.int()?).map_err(|_| Errno::EINVAL)?;
            let open = c.vt.tunnel.local_port() != 0;
            // Neither without a tunnel, nor once the handshake has begun.
            if (port != 0 && !open) || tp.t_state != TcpState::Closed {
                return Err(Errno::EINVAL);
            }
            tp.t_port = port;
        }
        TCP_INFO => return Err(Errno::EINVAL),
        _ => return Err(Errno::ENOPROTOOPT),
    }
    Ok(())
}

fn own(tp: &mut Tcpcb) -> &mut crate::tcp_var::OwnTimes {
    tp.t_own.get_or_insert_with(Box::default)
}

fn set_time(c: &Conn<'_>, tp: &mut Tcpcb, name: i32, ms: u32) {
    match name {
        TCP_KEEPINIT => {
            own(tp).keepinit = ms;
            if matches!(tp.t_state, TcpState::SynSent | TcpState::SynReceived) {
                let after = tp.keepinit(&c.vt.tun);
                tp.t_timers.activate(TcpTimer::Keep, c.net.now, after);
            }
        }
        TCP_MAXUNACKTIME => own(tp).maxunacktime = ms,
        TCP_KEEPIDLE => {
            own(tp).keepidle = ms;
            if tp.t_state > TcpState::Listen && tp.t_state <= TcpState::Closing {
                let after = tp.keepidle(&c.vt.tun);
                tp.t_timers.activate(TcpTimer::Keep, c.net.now, after);
            }
        }
        _ => {
            own(tp).keepintvl = ms;
            restart_finwait2(c, tp);
        }
    }
}

fn restart_finwait2(c: &Conn<'_>, tp: &mut Tcpcb) {
    if tp.t_state == TcpState::FinWait2 && tp.maxidle(&c.vt.tun) > 0 {
        let after = tp.maxidle(&c.vt.tun);
        tp.t_timers.activate(TcpTimer::Msl2, c.net.now, after);
    }
}

/// Reads an option.
fn tcp_getopt(c: &Conn<'_>, tp: &Tcpcb, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
    let tun = &c.vt.tun;
    let flag = |bit: Tf, value: i32| if tp.t_flags.contains(bit) { value } else { 0 };
    let seconds = |ms: u32| (ms / 1000) as i32;
    match sopt.name {
        TCP_NODELAY => sopt.answer_int(flag(Tf::NODELAY, Tf::NODELAY.bits() as i32)),
        TCP_NOOPT => sopt.answer_int(flag(Tf::NOOPT, Tf::NOOPT.bits() as i32)),
        TCP_LRD => sopt.answer_int(flag(Tf::LRD, Tf::LRD.bits() as i32)),
        TCP_MD5SIG => sopt.answer_int(flag(Tf::SIGNATURE, 1)),
        TCP_NOPUSH => sopt.answer_int(flag(Tf::NOPUSH, Tf::NOPUSH.bits() as i32)),
        TCP_MAXSEG => sopt.answer_int(tp.t_maxseg as i32),
        TCP_CONGESTION => {
            let mut name = [0; TCP_CA_NAME_MAX];
            let bytes = tp.t_cc.name().as_bytes();
            let len = bytes.len().min(TCP_CA_NAME_MAX - 1);
            name[..len].copy_from_slice(&bytes[..len]);
            sopt.answer(&name[..len + 1])
        }
        TCP_KEEPINIT => sopt.answer_int(seconds(tp.keepinit(tun))),
        TCP_KEEPIDLE => sopt.answer_int(seconds(tp.keepidle(tun))),
        TCP_KEEPINTVL => sopt.answer_int(seconds(tp.keepintvl(tun))),
        TCP_KEEPCNT => sopt.answer_int(tp.keepcnt(tun) as i32),
        TCP_MAXUNACKTIME => sopt.answer_int(seconds(tp.maxunacktime(tun))),
        TCP_FASTOPEN => sopt.answer_int(flag(Tf::FASTOPEN, Tf::FASTOPEN.bits() as i32)),
        TCP_REMOTE_UDP_ENCAPS_PORT => sopt.answer_int(i32::from(tp.t_port)),
        TCP_INFO => sopt.answer(&tcp_fill_info(c, tp)),
        TCP_FUNCTION_BLK => {
            let mut block = [0; 36];
            block[..STACK_NAME.len()].copy_from_slice(STACK_NAME);
            let count = c.vt.tcbinfo.count() as u32;
            block[32..].copy_from_slice(&count.to_ne_bytes());
            sopt.answer(&block)
        }
        _ => Err(Errno::ENOPROTOOPT),
    }
}
