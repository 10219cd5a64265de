//! What all of TCP needs: the locked connection, its end, resets and probes, sequence number secrets, MTU changes.
//!
//! FreeBSD: sys/netinet/tcp_subr.c

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::hash::Hasher;
use core::net::{IpAddr, Ipv6Addr};
use core::sync::atomic::{AtomicU32, Ordering};

use siphasher::sip::SipHasher24;
use sys::counter::Counter;
use sys::errno::Errno;
use sys::kern::kern_mbuf::MbufStat;
use sys::kern::kern_mutex::Mutex;
use sys::kern::lock_order::Leaf;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine;
use sys::mbuf::{CsumFlags, How, MAX_LINKHDR, MFlags, Mbuf, PktHdr};
use sys::net::ifnet::{IfCap, Ifnet};
use sys::net::vnet::Vnet;
use sys::socketvar::{SoState, Socket};
use sys::sysctl::SysctlNode;
use sys::time::Ticks;
use zerocopy::IntoBytes;

use crate::cc::{CC_AVAILABLE, CcAlgo, cc_attach};
use crate::in_pcb::{
    In6pFlags, InConninfo, InpFlags, InpHdr, InpWrite, Inpcb, Lookup, Pcbinfo, Route, hash_addr,
};
use crate::ip::{IPPROTO_TCP, IPPROTO_UDP, Ip};
use crate::ip_output::ip_output;
use crate::ip_var::{IpOutArgs, IpProto, PrcCmd, Quoted, pseudo_sum};
use crate::key::Keydb;
use crate::netinet6::in6_pcb::in6_ifp_for;
use crate::netinet6::ip6::{IPV6_MMTU, Ip6};
use crate::netinet6::ip6_output::ip6_output;
use crate::netinet6::ip6_var::Ip6OutArgs;
use crate::tcp::{TCP_HLEN, TCP_MAXOLEN, TcpFlags, TcpHeader, TcpOpt, TcpOptFlags};
use crate::tcp_ecn::tcp_ecn_output_established;
use crate::tcp_fastopen::{Ccache, FastOpenServer, TfoRole, tcp_fastopen_disable_path};
use crate::tcp_fsm::{TCP_NSTATES, TcpState};
use crate::tcp_hostcache::{Hostcache, Metrics};
use crate::tcp_input::{Segment, tcp_input};
use crate::tcp_lro::LroStat;
use crate::tcp_md5::tcp_md5_output;
use crate::tcp_offload::{
    ToeDevs, tcp_offload_detach, tcp_offload_listen_stop, tcp_offload_pmtu_update,
};
use crate::tcp_output::tcp_output;
use crate::tcp_over_udp::{Tunnel, UdpPorts};
use crate::tcp_seq::TcpSeq;
use crate::tcp_syncache::Syncache;
use crate::tcp_timer::{TCPTV_REXMTMAX, rangeset};
use crate::tcp_var::{
    TCP_RTT_SHIFT, TCP_RTTVAR_SHIFT, TcpStat, TcpTunables, Tcpcb, Tf, Tf2, TsoLimits,
};
use crate::udp::Udphdr;
use crate::vnet::{InetVnet, NetCx};

/// A control block of TCP.
pub type TcpInpcb = Inpcb<Tcpcb>;

/// TCP's part of a stack instance.
pub struct TcpVnet {
    /// `net.inet.tcp`.
    pub tun: Arc<TcpTunables>,
    /// Statistics.
    pub stat: TcpStat,
    /// Statistics of LRO.
    pub lro_stat: Arc<LroStat>,
    /// Control blocks.
    pub tcbinfo: Pcbinfo<Tcpcb>,
    /// Keys of Fast Open's servers.
    pub fastopen_server: Arc<FastOpenServer>,
    /// Servers that Fast Open has tried.
    pub fastopen: Arc<Ccache>,
    /// What was learned about hosts.
    pub hostcache: Arc<Hostcache>,
    /// Holes in all scoreboards (`net.inet.tcp.sack.globalholes`).
    pub sack_holes: Arc<AtomicU32>,
    /// Segments in all reassembly queues (`net.inet.tcp.reass.cursegments`).
    pub reass_segments: Arc<AtomicU32>,
    /// Most of them (`net.inet.tcp.reass.maxsegments`).
    pub reass_maxsegments: u32,
    /// Secrets that segments are signed with.
    pub keydb: Keydb,
    /// Segments inside UDP.
    pub tunnel: Arc<Tunnel>,
    /// Connections that are being made.
    pub syncache: Arc<Syncache>,
    /// Devices that run TCP.
    pub toe: ToeDevs,
    /// Sequence number secrets.
    pub isn: Isn,
    states: Arc<StateCounts>,
    cc_default: Arc<CcDefault>,
}

/// How many connections entered and left each state.
struct StateCounts {
    entered: [Counter; TCP_NSTATES],
    left: [Counter; TCP_NSTATES],
}

impl StateCounts {
    fn get(&self, state: TcpState) -> u64 {
        let at = state as usize;
        self.entered[at].fetch().wrapping_sub(self.left[at].fetch())
    }
}

/// `net.inet.tcp.cc.algorithm`.
struct CcDefault(AtomicU32);

impl SysctlNode for CcDefault {
    fn get(&self) -> String {
        let at = self.0.load(Ordering::Relaxed) as usize;
        CC_AVAILABLE.get(at).unwrap_or(&CC_AVAILABLE[0]).to_string()
    }

    fn set(&self, value: &str) -> Result<(), Errno> {
        let at = CC_AVAILABLE
            .iter()
            .position(|&name| name == value)
            .ok_or(Errno::ESRCH)?;
        self.0.store(at as u32, Ordering::Relaxed);
        Ok(())
    }
}

impl TcpVnet {
    /// TCP of a new instance; `inet` is the instance being made.
    #[doc(alias = "tcp_init")]
    pub fn new(vnet: &Arc<Vnet>, tcbinfo: Pcbinfo<Tcpcb>, inet: Weak<InetVnet>) -> TcpVnet {
        let tun = Arc::new(TcpTunables::new());
        tun.register(&vnet.sysctl);
        let cc_default = Arc::new(CcDefault(AtomicU32::new(0)));
        vnet.sysctl
            .register("net.inet.tcp.cc.algorithm", cc_default.clone());
        let states = Arc::new(StateCounts {
            entered: core::array::from_fn(|_| Counter::new()),
            left: core::array::from_fn(|_| Counter::new()),
        });
        TcpVnet {
            tun,
            stat: TcpStat::new(),
            lro_stat: Arc::new(LroStat::new()),
            tcbinfo,
            fastopen_server: FastOpenServer::new(vnet),
            fastopen: Ccache::new(vnet),
            toe: ToeDevs::new(),
            hostcache: Hostcache::new(vnet),
            sack_holes: Arc::default(),
            reass_segments: Arc::default(),
            // FreeBSD: nmbclusters / 16 (tcp_reass_global_init).
            reass_maxsegments: (MbufStat::snapshot().cluster.max / 16).clamp(64, 1 << 24) as u32,
            keydb: Keydb::new(),
            tunnel: Tunnel::new(vnet, inet.clone()),
            syncache: Syncache::new(vnet, inet),
            isn: Isn::new(),
            states,
            cc_default,
        }
    }

    /// Ends all connections without a word to their peers, so that the instance can be freed.
    pub fn destroy(&self) {
        self.tunnel.close();
        self.syncache.destroy();
        self.hostcache.destroy();
        for inp in self.tcbinfo.snapshot() {
            let epoch = NetEpoch::enter();
            let cx = NetCx::new(&inp.inp_vnet, &epoch);
            let mut locked = Locked::new(&cx, &inp);
            if let Some((c, tp)) = locked.split() {
                tcp_close(&c, tp);
            }
        }
    }

    /// How many connections are in `state` (`net.inet.tcp.states`).
    pub fn state_count(&self, state: TcpState) -> u64 {
        match state {
            TcpState::SynReceived => self.states.get(state) + u64::from(self.syncache.count()),
            _ => self.states.get(state),
        }
    }

    /// Counts a connection in and out of states.
    pub(crate) fn count_state(&self, from: Option<TcpState>, to: Option<TcpState>) {
        if let Some(from) = from {
            self.states.left[from as usize].inc();
        }
        if let Some(to) = to {
            self.states.entered[to as usize].inc();
        }
    }

    /// A congestion control for a new connection.
    pub(crate) fn new_cc(&self) -> Box<dyn CcAlgo> {
        cc_attach(&self.cc_default.get())
            .unwrap_or_else(|| Box::<crate::cc::cc_newreno::NewReno>::default())
    }

    /// The names for `net.inet.tcp.cc.available`.
    pub fn cc_available(&self) -> String {
        let default = self.cc_default.get();
        let mut table = format!("\n{:<16}{} {}\n", "CCmod", "D", "PCB count");
        for name in CC_AVAILABLE {
            let inps = self.tcbinfo.snapshot();
            let users = inps
                .iter()
                .filter(|inp| inp.read().ppcb.t_cc.name() == name)
                .count();
            let mark = if name == default { '*' } else { ' ' };
            table += &format!("{name:<16}{mark} {users}\n");
        }
        table
    }
}

impl IpProto for TcpVnet {
    fn input(&self, cx: &NetCx<'_>, m: Mbuf, hlen: usize) {
        tcp_input(cx, self, m, hlen);
    }

    fn ctlinput(&self, cx: &NetCx<'_>, cmd: PrcCmd, quoted: &Quoted<'_>) {
        tcp_ctlinput(cx, self, cmd, quoted);
    }
}

/// What a function on a locked connection is given besides the connection itself.
#[derive(Clone, Copy)]
pub struct Conn<'a> {
    /// Instance, epoch, time.
    pub net: &'a NetCx<'a>,
    /// TCP's part of the instance.
    pub vt: &'a TcpVnet,
    /// The control block, for references to it.
    pub inp: &'a TcpInpcb,
    /// Its general part.
    pub hdr: &'a InpHdr,
    /// Its socket.
    pub so: &'a Arc<Socket>,
}

/// A locked connection. When it goes out of scope, a connection that was closed leaves the tables, and the timers of
/// any other are armed.
pub struct Locked<'a> {
    net: &'a NetCx<'a>,
    inp: &'a TcpInpcb,
    guard: Option<InpWrite<'a, Tcpcb>>,
}

impl<'a> Locked<'a> {
    /// Locks `inp`.
    #[track_caller]
    pub fn new(net: &'a NetCx<'a>, inp: &'a TcpInpcb) -> Locked<'a> {
        Locked::from_guard(net, inp, inp.write())
    }

    /// Takes over a lock already held.
    pub fn from_guard(
        net: &'a NetCx<'a>,
        inp: &'a TcpInpcb,
        guard: InpWrite<'a, Tcpcb>,
    ) -> Locked<'a> {
        Locked {
            net,
            inp,
            guard: Some(guard),
        }
    }

    fn inner(&mut self) -> &mut InpWrite<'a, Tcpcb> {
        // Only `drop` takes the guard.
        self.guard
            .as_mut()
            .expect("a locked connection is locked until it is dropped")
    }

    /// The context it was locked in.
    pub fn net(&self) -> &'a NetCx<'a> {
        self.net
    }

    /// The connection.
    pub fn tp(&mut self) -> &mut Tcpcb {
        &mut self.inner().ppcb
    }

    /// The general part.
    pub fn hdr(&mut self) -> &mut InpHdr {
        &mut self.inner().hdr
    }

    /// Whether the connection has been closed: the block only waits for its socket.
    pub fn dropped(&mut self) -> bool {
        self.hdr().inp_flags.contains(InpFlags::DROPPED) || self.tp().t_flags.contains(Tf::CLOSED)
    }

    /// Enters the connection into the tables under `inc`, with the socket's ttl and tos; false if the place is taken.
    pub fn enter(&mut self, inc: InConninfo) -> bool {
        let (net, inp) = (self.net, self.inp);
        net.vnet
            .tcp
            .tcbinfo
            .insert_connected(inp, self.hdr(), inc, net.epoch)
            .is_ok()
    }

    /// The connection and what functions on it need; `None` if the socket is gone.
    #[inline]
    pub fn split(&mut self) -> Option<(Conn<'_>, &mut Tcpcb)> {
        let net = self.net;
        let inp = self.inp;
        let block = &mut **self.inner();
        let so = block.hdr.inp_socket.as_ref()?;
        let conn = Conn {
            net,
            vt: &net.vnet.tcp,
            inp,
            hdr: &block.hdr,
            so,
        };
        Some((conn, &mut block.ppcb))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(mut guard) = self.guard.take() else {
            return;
        };
        let block = &mut *guard;
        if !block.ppcb.t_flags.contains(Tf::CLOSED) {
            block.ppcb.t_timers.commit(self.inp, self.net.now);
            return;
        }
        // in_pcbdrop: packets no longer find it.
        let tcbinfo = &self.net.vnet.tcp.tcbinfo;
        if !block.hdr.inp_flags.contains(InpFlags::DROPPED) {
            tcbinfo.drop_pcb(self.inp, &mut block.hdr);
            block.ppcb.t_timers.shut();
        }
        if block.hdr.inp_flags.contains(InpFlags::SOCKREF) {
            // The program left before; the socket goes with the connection.
            block.hdr.inp_flags.remove(InpFlags::SOCKREF);
            let so = tcp_discardcb(self.net, self.inp, &mut block.hdr, &mut block.ppcb);
            drop(guard);
            if let Some(so) = so {
                so.clear_state(SoState::PROTOREF);
                so.snd.lock().flush();
                so.rcv.lock().flush();
            }
        }
    }
}

/// Makes the control block of a socket.
pub fn tcp_newtcpcb(inet: &Arc<InetVnet>, so: &Arc<Socket>, now: Ticks) -> Arc<TcpInpcb> {
    let vt = &inet.tcp;
    let inp = vt
        .tcbinfo
        .alloc(inet, Some(so), Tcpcb::new(&vt.tun, now, vt.new_cc()));
    vt.count_state(None, Some(TcpState::Closed));
    inp
}

/// Frees what hangs on the control block and takes it out of all tables.
pub fn tcp_discardcb(
    cx: &NetCx<'_>,
    inp: &TcpInpcb,
    hdr: &mut InpHdr,
    tp: &mut Tcpcb,
) -> Option<Arc<Socket>> {
    tcp_offload_detach(tp);
    tp.t_timers.shut();
    tp.t_segq = None;
    tp.t_sack = None;
    tp.t_own = None;
    if !hdr.inp_flags.contains(InpFlags::FREED) {
        keep_metrics(cx, hdr, tp);
    }
    if !hdr.inp_flags.contains(InpFlags::FREED) {
        cx.vnet.tcp.count_state(Some(tp.t_state), None);
    }
    cx.vnet.tcp.tcbinfo.free(inp, hdr)
}

/// Leaves what the connection has learned to those that follow, if it had enough samples to know.
fn keep_metrics(cx: &NetCx<'_>, hdr: &InpHdr, tp: &Tcpcb) {
    const ENOUGH: u32 = 4;
    if tp.t_rttupdated < ENOUGH {
        return;
    }
    // A threshold beyond the buffer says nothing about the path.
    let hiwat = hdr
        .inp_socket
        .as_ref()
        .map_or(0, |so| so.snd.lock().hiwat());
    let mut ssthresh = 0;
    if tp.snd_ssthresh < hiwat / 2 {
        let segments = (tp.snd_ssthresh + tp.t_maxseg / 2) / tp.t_maxseg.max(1);
        ssthresh = segments
            .max(2)
            .saturating_mul(tp.t_maxseg + tcp_headers(hdr.faddr()));
    }
    let metrics = Metrics {
        rmx_mtu: 0,
        rmx_ssthresh: ssthresh,
        rmx_rtt: tp.t_srtt,
        rmx_rttvar: tp.t_rttvar,
    };
    let vt = &cx.vnet.tcp;
    vt.hostcache.update(&vt.stat, hdr.faddr(), &metrics, cx.now);
}

/// Begins with what earlier connections to the host have learned (`cc_conn_init`).
pub fn tcp_use_metrics(c: &Conn<'_>, tp: &mut Tcpcb) {
    let Some(metrics) = c.vt.hostcache.get(c.hdr.faddr(), c.net.now) else {
        return;
    };
    let stat = &c.vt.stat;
    if tp.t_srtt == 0 && metrics.rmx_rtt != 0 {
        tp.t_srtt = metrics.rmx_rtt;
        stat.tcps_usedrtt.inc();
        if metrics.rmx_rttvar != 0 {
            tp.t_rttvar = metrics.rmx_rttvar;
            stat.tcps_usedrttvar.inc();
        } else {
            // Half of it, in its own fraction bits.
            tp.t_rttvar = tp.t_srtt >> (TCP_RTT_SHIFT - TCP_RTTVAR_SHIFT + 1);
        }
        tp.t_rxtcur = rangeset(&c.vt.tun, tp.rexmtval(), tp.t_rttmin, TCPTV_REXMTMAX);
    }
    if metrics.rmx_ssthresh != 0 {
        tp.snd_ssthresh = metrics.rmx_ssthresh.max(2 * tp.maxseg());
        stat.tcps_usedssthresh.inc();
    }
}

/// Moves the connection to another state.
pub fn tcp_state_change(c: &Conn<'_>, tp: &mut Tcpcb, state: TcpState) {
    c.vt.count_state(Some(tp.t_state), Some(state));
    tp.t_state = state;
}

/// Ends the connection; the socket hears of it. The block leaves the tables when it is unlocked.
pub fn tcp_close(c: &Conn<'_>, tp: &mut Tcpcb) {
    if tp.t_flags.contains(Tf::CLOSED) {
        return;
    }
    if tp.t_state == TcpState::Listen {
        tcp_offload_listen_stop(c, tp);
    }
    tp.t_flags |= Tf::CLOSED;
    c.vt.stat.tcps_closed.inc();
    tp.t_timers.shut();
    tp.t_segq = None;
    tp.t_sack = None;
    tp.t_tfo = TfoRole::None;
    if tp.t_state != TcpState::Closed {
        tcp_state_change(c, tp, TcpState::Closed);
    }
    c.so.soisdisconnected();
}

/// Ends the connection because of an error: tells the peer by RST, if it knows of the connection, and the program.
pub fn tcp_drop(c: &Conn<'_>, tp: &mut Tcpcb, error: Option<Errno>) {
    if tp.t_state.have_received_syn() {
        tcp_state_change(c, tp, TcpState::Closed);
        let _ = tcp_output(c, tp);
        c.vt.stat.tcps_drops.inc();
    } else {
        c.vt.stat.tcps_conndrops.inc();
    }
    let error = match error {
        Some(Errno::ETIMEDOUT) => tp.t_softerror.or(error),
        _ => error,
    };
    if let Some(error) = error {
        c.so.set_error(error);
    }
    tcp_close(c, tp);
}

/// An error of the network that may pass: remembered, and reported if the connection fails.
fn tcp_notify(c: &Conn<'_>, tp: &mut Tcpcb, error: Errno) {
    let transient = matches!(
        error,
        Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN
    );
    if tp.t_state == TcpState::Established && transient {
        // RFC 9293 §3.9.2.2: a soft error does not end an established connection.
        c.inp.forget_route();
    } else if tp.t_state < TcpState::Established && tp.t_rxtshift > 3 && tp.t_softerror.is_some() {
        c.inp.forget_route();
        tcp_drop(c, tp, Some(error));
    } else {
        tp.t_softerror = Some(error);
    }
}

/// A hard error of the network: ends the handshake that we have begun.
fn tcp_drop_syn_sent(c: &Conn<'_>, tp: &mut Tcpcb, error: Option<Errno>) {
    if tp.t_state != TcpState::SynSent {
        return;
    }
    if tp.t_flags.contains(Tf::FASTOPEN) {
        tcp_fastopen_disable_path(c);
    }
    tcp_drop(c, tp, error);
}

/// An ICMP error about a segment we sent.
pub fn tcp_ctlinput(cx: &NetCx<'_>, vt: &TcpVnet, cmd: PrcCmd, quoted: &Quoted<'_>) {
    tcp_ctlinput_with_port(cx, vt, cmd, quoted, 0);
}

/// The same about a segment sent inside UDP to `port` of the peer; 0 stands for one without.
pub(crate) fn tcp_ctlinput_with_port(
    cx: &NetCx<'_>,
    vt: &TcpVnet,
    cmd: PrcCmd,
    quoted: &Quoted<'_>,
    port: u16,
) {
    let (src, dst) = (quoted.src, quoted.dst);
    // Eight bytes of the segment are sure: ports and sequence number.
    let Some(first) = quoted.transport.first_chunk::<8>() else {
        return;
    };
    let inc = InConninfo {
        inc_faddr: dst,
        inc_laddr: src,
        inc_fport: u16::from_be_bytes([first[2], first[3]]),
        inc_lport: u16::from_be_bytes([first[0], first[1]]),
    };
    let seq = TcpSeq(u32::from_be_bytes([first[4], first[5], first[6], first[7]]));
    let Some((inp, guard)) = vt.tcbinfo.lookup_write(&inc, Lookup::Exact, cx.epoch) else {
        if cmd.errno().is_some() && !matches!(cmd, PrcCmd::Msgsize(_)) {
            vt.syncache.unreach(vt, &inc, seq, port);
        }
        return;
    };
    let mut locked = Locked::from_guard(cx, inp, guard);
    if locked.dropped() {
        return;
    }
    let Some((c, tp)) = locked.split() else {
        return;
    };
    // RFC 5927 §4.1: believed only if the quoted segment is in flight.
    if tp.t_port != port || seq.lt(tp.snd_una) || seq.geq(tp.snd_max) {
        return;
    }
    match cmd {
        PrcCmd::Msgsize(mtu) => {
            // RFC 1191 §3: what was too large was sent with our current segment size.
            let mtu = if mtu == 0 {
                next_lower_mtu(quoted.len)
            } else {
                mtu
            };
            let headers = tcp_headers(dst) + vt.tunnel.overhead(port);
            // No link of IPv6 is narrower than its default segments want (RFC 8201 §4).
            let minimum = match dst {
                IpAddr::V4(_) => vt.tun.minmss.get(),
                IpAddr::V6(_) => vt.tun.v6mssdflt.get(),
            };
            let mtu = mtu.max(minimum + headers);
            if mtu < tp.t_maxseg + headers {
                vt.hostcache.update_mtu(&vt.stat, dst, mtu, cx.now);
                tcp_mtudisc(&c, tp, mtu);
            } else if dst.is_ipv6()
                && tcp_maxmtu(cx, dst, c.hdr.in6p_flags).is_some_and(|path| mtu < path.mtu)
            {
                // Nothing of ours is too large yet, but what we offer may be (`icmp6_mtudisc_update`).
                vt.hostcache.update_mtu(&vt.stat, dst, mtu, cx.now);
            }
        }
        // Hard errors: they end a connection that is being made, and are nothing to one that has been (RFC 5927 §5.2).
        PrcCmd::UnreachPort
        | PrcCmd::UnreachProtocol
        | PrcCmd::UnreachAdminProhib
        | PrcCmd::TimxceedIntrans
            if vt.tun.icmp_may_rst.get() =>
        {
            tcp_drop_syn_sent(&c, tp, cmd.errno());
        }
        _ => {
            if let Some(error) = cmd.errno() {
                tcp_notify(&c, tp, error);
            }
        }
    }
}

/// RFC 1191 §7.1: the next plateau below, for routers that do not say their MTU.
#[doc(alias = "ip_next_mtu")]
fn next_lower_mtu(mtu: u32) -> u32 {
    const PLATEAUS: [u32; 10] = [65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296];
    PLATEAUS
        .into_iter()
        .find(|&plateau| plateau < mtu)
        .unwrap_or(296)
}

/// The path takes only `mtu` bytes: sends what is outstanding again in segments that fit.
pub fn tcp_mtudisc(c: &Conn<'_>, tp: &mut Tcpcb, mtu: u32) {
    if tcp_offload_pmtu_update(c, tp, mtu) {
        return;
    }
    tcp_mss_update(c, tp, None, Some(mtu));
    c.vt.stat.tcps_mturesent.inc();
    tp.t_rtttime = None;
    tp.snd_nxt = tp.snd_una;
    if let Some(sack) = &mut tp.t_sack {
        sack.free_sackholes();
    }
    tp.snd_recover = tp.snd_max;
    if tp.t_flags.contains(Tf::SACK_PERMIT) {
        tp.exit_recovery();
    }
    let _ = tcp_output(c, tp);
}

/// The interface through which packets to `faddr` leave, and the largest that the route takes.
pub(crate) fn tcp_route<'e>(cx: &NetCx<'e>, faddr: IpAddr) -> Option<(&'e Arc<Ifnet>, u32)> {
    match faddr {
        IpAddr::V4(faddr) => {
            let nhop = cx.vnet.rib.fib4_lookup(faddr, cx.epoch)?;
            Some((&nhop.nh_ifp, nhop.mtu()))
        }
        IpAddr::V6(faddr) => {
            let ifp = in6_ifp_for(cx, faddr)?;
            Some(match cx.vnet.rib6.fib6_lookup(faddr, cx.epoch) {
                Some(nhop) => (&nhop.nh_ifp, nhop.mtu()),
                None => (ifp, ifp.mtu()),
            })
        }
    }
}

/// What the path to `faddr` can take: the largest packet, and what TSO of the interface can (`tcp_maxmtu`).
pub struct Path {
    /// Largest packet.
    pub mtu: u32,
    /// TSO of the interface, if it is enabled.
    pub tso: Option<TsoLimits>,
}

/// Asks the routing table for the path; `flags` are the socket's: it may want packets that every link of IPv6 takes.
#[doc(alias = "tcp_maxmtu6")]
pub fn tcp_maxmtu(cx: &NetCx<'_>, faddr: IpAddr, flags: In6pFlags) -> Option<Path> {
    let (ifp, mtu) = tcp_route(cx, faddr)?;
    let (mtu, cap, assist) = match faddr {
        IpAddr::V4(_) => (mtu, IfCap::TSO4, CsumFlags::IP_TSO),
        IpAddr::V6(_) => {
            let minimum = flags.contains(In6pFlags::USE_MIN_MTU);
            let mtu = if minimum { IPV6_MMTU } else { mtu };
            (mtu, IfCap::TSO6, CsumFlags::IP6_TSO)
        }
    };
    let tso = ifp.capenable().contains(cap) && ifp.hwassist().contains(assist);
    let (max, segcount, segsize) = ifp.hw_tsomax();
    Some(Path {
        mtu,
        tso: tso.then_some(TsoLimits {
            max,
            segcount: segcount.min(u32::from(u16::MAX)) as u16,
            segsize,
        }),
    })
}

/// Bytes of IP and TCP header of segments to `faddr`, without options (`min_protoh`).
#[inline]
pub fn tcp_headers(faddr: IpAddr) -> u32 {
    (ip_hlen(faddr) + TCP_HLEN) as u32
}

/// Bytes of the IP header of packets to `faddr`, without options.
#[inline]
pub fn ip_hlen(faddr: IpAddr) -> usize {
    match faddr {
        IpAddr::V4(_) => Ip::LEN,
        IpAddr::V6(_) => Ip6::LEN,
    }
}

/// The segment size where nothing says another.
fn default_mss(tun: &TcpTunables, faddr: IpAddr) -> u32 {
    match faddr {
        IpAddr::V4(_) => tun.mssdflt.get(),
        IpAddr::V6(_) => tun.v6mssdflt.get(),
    }
}

/// The segment size to offer in a SYN, of a connection inside UDP if `port` is not 0 (`tcp_mssopt`).
pub fn tcp_mssopt(cx: &NetCx<'_>, faddr: IpAddr, port: u16, flags: In6pFlags) -> u16 {
    let tun = &cx.vnet.tcp.tun;
    let mss = match tcp_maxmtu(cx, faddr, flags) {
        Some(path) => {
            let learned = cx.vnet.tcp.hostcache.mtu(faddr, cx.now);
            let mtu = learned.map_or(path.mtu, |mtu| mtu.min(path.mtu));
            mtu.saturating_sub(tcp_headers(faddr))
        }
        None => default_mss(tun, faddr),
    };
    let mss = mss.saturating_sub(cx.vnet.tcp.tunnel.overhead(port));
    mss.min(u32::from(u16::MAX)) as u16
}

/// Settles the segment size from the peer's offer and the path. Without an offer the one made before stays.
pub fn tcp_mss_update(c: &Conn<'_>, tp: &mut Tcpcb, offer: Option<u16>, mtu: Option<u32>) {
    let tun = &c.vt.tun;
    let faddr = c.hdr.faddr();
    let Some(path) = tcp_maxmtu(c.net, faddr, c.hdr.in6p_flags) else {
        // No route: the default, as if there were no offer.
        tp.t_maxseg = default_mss(tun, faddr);
        return;
    };
    // RFC 9293 §3.7.1: no option means 536. Too small an offer is an attack.
    let peer = match offer {
        Some(0) => default_mss(tun, faddr),
        Some(offer) => u32::from(offer).max(tun.minmss.get()),
        None => tp.t_maxseg,
    };
    let mtu = mtu.or_else(|| c.vt.hostcache.mtu(c.hdr.faddr(), c.net.now));
    let path_mtu = mtu.map_or(path.mtu, |mtu| mtu.min(path.mtu));
    let options = c
        .hdr
        .inp_options
        .as_ref()
        .map_or(0, |options| options.len() as u32);
    let mss = path_mtu
        .saturating_sub(tcp_headers(faddr) + c.vt.tunnel.overhead(tp.t_port) + options)
        .min(peer);
    // 64 bytes of payload beside the longest options must remain.
    tp.t_maxseg = mss.max(64 + TCP_MAXOLEN as u32);
    match path.tso {
        // No interface cuts what stands inside UDP.
        Some(limits) if tun.tso.get() && tp.t_port == 0 => {
            tp.t_flags |= Tf::TSO;
            tp.t_tso = limits;
        }
        _ => tp.t_flags.remove(Tf::TSO),
    }
}

/// Settles the segment size, and rounds the socket's buffers to multiples of it (`tcp_mss`).
pub fn tcp_mss(c: &Conn<'_>, tp: &mut Tcpcb, offer: Option<u16>) {
    tcp_mss_update(c, tp, Some(offer.unwrap_or(0)), None);
    let mss = tp.t_maxseg;
    let limits = sys::kern::kern_ipc::sb_limits();
    let rounded = |hiwat: u32| (hiwat.div_ceil(mss) * mss).min(limits.sb_max);
    let mut snd = c.so.snd.lock();
    let bufsize = snd.hiwat();
    if bufsize < mss {
        // A buffer smaller than a segment bounds the segment.
        tp.t_maxseg = bufsize.max(64 + TCP_MAXOLEN as u32);
    } else if rounded(bufsize) > bufsize {
        let _ = snd.reserve(rounded(bufsize), &limits);
    }
    drop(snd);
    let mut rcv = c.so.rcv.lock();
    let bufsize = rcv.hiwat();
    if bufsize > mss && rounded(bufsize) > bufsize {
        let _ = rcv.reserve(rounded(bufsize), &limits);
    }
}

/// Sends a segment without data for connection `tp`: a keepalive probe, a challenge ACK.
pub fn tcp_respond(c: &Conn<'_>, tp: &mut Tcpcb, ack: TcpSeq, seq: TcpSeq, mut flags: TcpFlags) {
    if tp.t_flags2.contains(Tf2::ACE_PERMIT) && !flags.contains(TcpFlags::RST) {
        // The count of marks is in every acknowledgement.
        tcp_ecn_output_established(&c.vt.stat, tp, &mut flags, 0, false);
    }
    let window = if flags.contains(TcpFlags::RST) {
        0
    } else {
        let space = c.so.rcv.lock().space().max(0) as u32;
        space.min(crate::tcp::TCP_MAXWIN << tp.rcv_scale)
    };
    let mut to = TcpOpt::default();
    if tp.t_flags.contains(Tf::RCVD_TSTMP) && !tp.t_flags.contains(Tf::NOOPT) {
        to.to_flags |= TcpOptFlags::TS;
        let clock = tp.ts_clock(c.net.now);
        to.to_tsval = tp.ts_now(clock);
        to.to_tsecr = tp.ts_recent;
    }
    if tp.t_flags.contains(Tf::SIGNATURE) && !tp.t_flags.contains(Tf::NOOPT) {
        to.to_flags |= TcpOptFlags::SIGNATURE;
    }
    let header = TcpHeader {
        th_sport: c.hdr.lport(),
        th_dport: c.hdr.fport(),
        th_seq: seq,
        th_ack: ack,
        th_flags: flags,
        th_win: (window >> tp.rcv_scale).min(u32::from(u16::MAX)) as u16,
        ..TcpHeader::default()
    };
    let place = Envelope {
        src: c.hdr.laddr(),
        dst: c.hdr.faddr(),
        ttl: c.hdr.ttl(),
        tos: c.hdr.tos(),
        flow: c.hdr.inp_flow,
        options: c.hdr.inp_options.as_deref(),
        route: Some(&c.inp.inp_route),
        route6: Some(&c.inp.inp_route6),
        udp: c.vt.tunnel.ports(tp.t_port),
    };
    let sent = send_bare(c.net, &place, header, &to);
    if sent && flags.contains(TcpFlags::ACK) && !flags.contains(TcpFlags::RST) {
        tp.last_ack_sent = tp.rcv_nxt;
    }
}

/// Where a segment without data goes, and how.
pub struct Envelope<'a> {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Flow label, in IPv6.
    pub flow: u32,
    /// IP options.
    pub options: Option<&'a crate::ip_var::IpOptions>,
    /// Remembered route.
    pub route: Option<&'a Route>,
    /// The same in IPv6.
    pub route6: Option<&'a Route<Ipv6Addr>>,
    /// The UDP header around the segment, if it travels in one.
    pub udp: Option<UdpPorts>,
}

impl Envelope<'_> {
    /// Bytes before the TCP header.
    #[inline]
    pub fn hlen(&self) -> usize {
        ip_hlen(self.dst) + if self.udp.is_some() { Udphdr::LEN } else { 0 }
    }

    /// Asks the interface for the checksum of a segment whose headers take `tcplen` bytes.
    #[inline]
    pub fn ask_checksum(&self, pkthdr: &mut PktHdr, tcplen: usize) {
        pkthdr.l3hlen = ip_hlen(self.dst) as u8;
        match self.udp {
            None => {
                pkthdr.csum_flags = tcp_csum_flags(self.dst);
                pkthdr.csum_data = 16;
                pkthdr.l4hlen = tcplen as u8;
            }
            Some(_) => {
                pkthdr.csum_flags = match self.dst {
                    IpAddr::V4(_) => CsumFlags::IP_UDP,
                    IpAddr::V6(_) => CsumFlags::IP6_UDP,
                };
                pkthdr.csum_data = u32::from(Udphdr::SUM_OFFSET);
                pkthdr.l4hlen = Udphdr::LEN as u8;
            }
        }
    }
}

/// Builds and sends a segment without data; false if it could not be sent.
pub fn send_bare(cx: &NetCx<'_>, place: &Envelope<'_>, mut header: TcpHeader, to: &TcpOpt) -> bool {
    let Some(mut m) = Mbuf::gethdr(How::NoWait) else {
        return false;
    };
    let mut options = [0; TCP_MAXOLEN];
    let optlen = to.write(&mut options);
    let tcplen = TCP_HLEN + optlen;
    header.th_off = tcplen as u8;
    let hlen = place.hlen();
    m.reserve_front(MAX_LINKHDR);
    let bytes = m.extend_mut(hlen + tcplen);
    write_headers(
        bytes,
        place,
        &header,
        &options[..optlen],
        (hlen + tcplen) as u16,
        true,
    );
    m.set_pkt_len(hlen + tcplen);
    if to.to_flags.contains(TcpOptFlags::SIGNATURE) {
        let ends = (place.src, place.dst);
        if tcp_md5_output(&cx.vnet.tcp, ends, &mut m, hlen, tcplen).is_err() {
            return false;
        }
    }
    place.ask_checksum(m.pkthdr_mut(), tcplen);
    let args = IpOutArgs {
        options: place.options,
        ro: place.route,
        ..IpOutArgs::default()
    };
    cx.vnet.tcp.stat.tcps_sndtotal.inc();
    if place.udp.is_some() {
        cx.vnet.udpstat.udps_opackets.inc();
    }
    match place.dst {
        IpAddr::V4(_) => ip_output(cx, m, &args).is_ok(),
        IpAddr::V6(_) => {
            let args = Ip6OutArgs {
                ro: place.route6,
                // Of a segment without data nobody knows any more whether its hop limit was asked for.
                select_hlim: u32::from(place.ttl) == cx.vnet.ip6.hlim.get(),
                ..Ip6OutArgs::default()
            };
            ip6_output(cx, m, &args).is_ok()
        }
    }
}

/// The checksum that the interface to `dst` is asked for.
#[inline]
pub fn tcp_csum_flags(dst: IpAddr) -> CsumFlags {
    match dst {
        IpAddr::V4(_) => CsumFlags::IP_TCP,
        IpAddr::V6(_) => CsumFlags::IP6_TCP,
    }
}

/// Writes IP header, that of UDP if there is one, TCP header and options to `bytes`, which has exactly room for them. The
/// checksum is that of the pseudo header; the interface, or `ip_output`, goes on from it.
#[inline]
pub fn write_headers(
    bytes: &mut [u8],
    place: &Envelope<'_>,
    header: &TcpHeader,
    options: &[u8],
    ip_len: u16,
    df: bool,
) {
    let payload = ip_len.saturating_sub(ip_hlen(place.dst) as u16);
    let proto = match place.udp {
        Some(_) => IPPROTO_UDP,
        None => IPPROTO_TCP,
    };
    let pseudo = pseudo_sum(place.src, place.dst, proto, u32::from(payload));
    let mut rest = match (place.src, place.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ip::new();
            ip.ip_tos = place.tos;
            ip.ip_len.set(ip_len);
            ip.ip_off.set(if df { crate::ip::IP_DF } else { 0 });
            ip.ip_ttl = place.ttl;
            ip.ip_p = proto;
            ip.set_src(src);
            ip.set_dst(dst);
            let Some((front, rest)) = bytes.split_first_chunk_mut::<{ Ip::LEN }>() else {
                return;
            };
            front.copy_from_slice(ip.as_bytes());
            rest
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut ip6 = Ip6::new(place.tos, place.flow);
            ip6.ip6_plen.set(ip_len.saturating_sub(Ip6::LEN as u16));
            ip6.ip6_hlim = place.ttl;
            ip6.ip6_nxt = proto;
            ip6.set_src(src);
            ip6.set_dst(dst);
            let Some((front, rest)) = bytes.split_first_chunk_mut::<{ Ip6::LEN }>() else {
                return;
            };
            front.copy_from_slice(ip6.as_bytes());
            rest
        }
        // Both ends are of one family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return,
    };
    let mut header = *header;
    header.th_sum = pseudo;
    if let Some(ports) = place.udp {
        let Some((front, inside)) = rest.split_first_chunk_mut::<{ Udphdr::LEN }>() else {
            return;
        };
        if let Some(uh) = Udphdr::parse_mut(front) {
            uh.uh_sport.set(ports.local);
            uh.uh_dport.set(ports.remote);
            uh.uh_ulen.set(payload);
            uh.uh_sum.set(pseudo);
        }
        header.th_sum = 0;
        rest = inside;
    }
    let Some((front, rest)) = rest.split_first_chunk_mut::<TCP_HLEN>() else {
        return;
    };
    header.write(front);
    if let Some(room) = rest.get_mut(..options.len()) {
        room.copy_from_slice(options);
    }
}

/// What a socket asks of the IP header of its packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marks {
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
}

impl Marks {
    /// Those of a control block for packets of one family.
    pub fn of_family(hdr: &InpHdr, v6: bool) -> Marks {
        if v6 {
            Marks {
                ttl: hdr.in6p_hops,
                tos: hdr.in6p_tclass,
            }
        } else {
            Marks {
                ttl: hdr.inp_ip_ttl,
                tos: hdr.inp_ip_tos,
            }
        }
    }
}

/// How a socket answers a segment that it refuses.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    marks: Marks,
    options: TcpOpt,
}

impl Refusal {
    /// That of a socket to a segment of one family.
    pub fn of(hdr: &InpHdr, tp: &Tcpcb, now: Ticks, v6: bool) -> Refusal {
        let mut options = TcpOpt::default();
        if !tp.t_flags.contains(Tf::NOOPT) {
            if tp.t_flags.contains(Tf::RCVD_TSTMP) {
                options.to_flags |= TcpOptFlags::TS;
                options.to_tsval = tp.ts_now(now);
                options.to_tsecr = tp.ts_recent;
            }
            if tp.t_flags.contains(Tf::SIGNATURE) {
                options.to_flags |= TcpOptFlags::SIGNATURE;
            }
        }
        Refusal {
            marks: Marks::of_family(hdr, v6),
            options,
        }
    }
}

/// Answers a segment that belongs to no connection, or to one that is reset by it, with a RST; `refusal` is that of the
/// socket it came to.
pub fn tcp_dropwithreset(cx: &NetCx<'_>, refusal: Option<&Refusal>, seg: &Segment) {
    let (src, dst, th) = (seg.src, seg.dst, &seg.th);
    // A RST is not answered, nor what was sent to many.
    if th.th_flags.contains(TcpFlags::RST)
        || seg
            .m
            .as_ref()
            .is_some_and(|m| m.flags().intersects(MFlags::BCAST | MFlags::MCAST))
        || dst.is_multicast()
        || src.is_multicast()
        || in_broadcast(cx, src)
        || in_broadcast(cx, dst)
    {
        return;
    }
    let mut header = TcpHeader {
        th_sport: th.th_dport,
        th_dport: th.th_sport,
        ..TcpHeader::default()
    };
    if th.th_flags.contains(TcpFlags::ACK) {
        header.th_seq = th.th_ack;
        header.th_flags = TcpFlags::RST;
    } else {
        let syn_fin = u32::from(th.th_flags.contains(TcpFlags::SYN))
            + u32::from(th.th_flags.contains(TcpFlags::FIN));
        header.th_ack = th.th_seq + seg.tlen + syn_fin;
        header.th_flags = TcpFlags::RST | TcpFlags::ACK;
    }
    let default_ttl = match src {
        IpAddr::V4(_) => cx.vnet.ip.ttl.get() as u8,
        IpAddr::V6(_) => cx.vnet.ip6.hlim.get() as u8,
    };
    let place = Envelope {
        src: dst,
        dst: src,
        ttl: refusal.map_or(default_ttl, |refusal| refusal.marks.ttl),
        tos: refusal.map_or(0, |refusal| refusal.marks.tos),
        flow: 0,
        options: None,
        route: None,
        route6: None,
        udp: cx.vnet.tcp.tunnel.ports(seg.port),
    };
    let options = refusal.map_or(TcpOpt::default(), |refusal| refusal.options);
    send_bare(cx, &place, header, &options);
}

/// Whether `addr` is a broadcast address: the limited one, that of a network we are on, or 0.0.0.0.
pub fn in_broadcast(cx: &NetCx<'_>, addr: IpAddr) -> bool {
    let IpAddr::V4(addr) = addr else {
        return false;
    };
    // The old form of a broadcast address.
    if addr.is_unspecified() || addr.is_broadcast() {
        return true;
    }
    cx.vnet
        .ifaddrs
        .all(cx.epoch)
        .iter()
        .any(|ia| ia.ia_broadaddr == Some(addr))
}

/// Added to the initial sequence number for every connection, with a random part of the same size.
const ISN_STATIC_INCREMENT: u32 = 4096;
/// How fast initial sequence numbers move at least.
const ISN_BYTES_PER_SECOND: u32 = 1_048_576;

/// Secrets of initial sequence numbers and timestamps (RFC 6528).
pub struct Isn {
    /// The secret of sequence numbers, and when it was made.
    key: Mutex<([u8; 16], Ticks), Leaf>,
    ts_key: [u8; 16],
    offset: AtomicU32,
    last: AtomicU32,
}

impl Isn {
    fn new() -> Isn {
        Isn {
            key: Mutex::new((random_key(), machine::ticks())),
            ts_key: random_key(),
            offset: AtomicU32::new(machine::random_u64() as u32),
            last: AtomicU32::new(machine::ticks().0),
        }
    }

    fn hash(key: &[u8; 16], inc: &InConninfo, ports: bool) -> u32 {
        let mut hasher = SipHasher24::new_with_key(key);
        hash_addr(&mut hasher, inc.inc_faddr);
        hash_addr(&mut hasher, inc.inc_laddr);
        if ports {
            hasher.write(&inc.inc_fport.to_be_bytes());
            hasher.write(&inc.inc_lport.to_be_bytes());
        }
        let hash = hasher.finish();
        (hash ^ (hash >> 32)) as u32
    }

    /// The initial sequence number of a connection: RFC 6528 §3, `M + F(connection, secret)`, where `M` moves with
    /// time and with every connection.
    #[doc(alias = "tcp_new_isn")]
    ///
    /// `reseed` is how long a secret is good, in seconds; 0: for ever.
    pub fn new_isn(&self, now: Ticks, inc: &InConninfo, reseed: u32) -> TcpSeq {
        let key = self.secret(now, reseed);
        let step =
            ISN_STATIC_INCREMENT + (machine::random_u64() as u32 & (ISN_STATIC_INCREMENT - 1));
        let last = self.last.swap(now.0, Ordering::Relaxed);
        let elapsed = (now - Ticks(last)).clamp(0, 60_000) as u32;
        let by_time = (u64::from(elapsed) * u64::from(ISN_BYTES_PER_SECOND) / 1000) as u32;
        let offset = self.offset.fetch_add(step.max(by_time), Ordering::Relaxed);
        TcpSeq(Isn::hash(&key, inc, true).wrapping_add(offset))
    }

    fn secret(&self, now: Ticks, reseed: u32) -> [u8; 16] {
        let mut key = self.key.lock();
        let period = reseed.saturating_mul(1000).min(i32::MAX as u32) as i32;
        if period > 0 && now - key.1 > period {
            *key = (random_key(), now);
        }
        key.0
    }

    /// What is added to our clock in timestamps of a connection (RFC 7323 §5.4).
    #[doc(alias = "tcp_new_ts_offset")]
    pub fn new_ts_offset(&self, per_connection: bool, inc: &InConninfo) -> u32 {
        Isn::hash(&self.ts_key, inc, per_connection)
    }
}

/// Sixteen random bytes.
pub fn random_key() -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&machine::random_u64().to_ne_bytes());
    key[8..].copy_from_slice(&machine::random_u64().to_ne_bytes());
    key
}

/// Starts sending at `iss`.
pub fn tcp_sendseqinit(tp: &mut Tcpcb) {
    tp.snd_una = tp.iss;
    tp.snd_nxt = tp.iss;
    tp.snd_max = tp.iss;
    tp.snd_up = tp.iss;
    tp.snd_recover = tp.iss;
}

/// Starts receiving behind `irs`.
pub fn tcp_rcvseqinit(tp: &mut Tcpcb) {
    tp.rcv_adv = tp.irs + 1;
    tp.rcv_nxt = tp.irs + 1;
    tp.rcv_up = tp.irs + 1;
}

/// All connections, for `netstat`.
pub fn tcp_pcblist(inet: &InetVnet) -> Vec<Arc<TcpInpcb>> {
    inet.tcp.tcbinfo.snapshot()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use sys::machine::hosted::Machine;

    #[test]
    fn the_secret_of_sequence_numbers_is_made_anew_if_that_is_wanted() {
        Machine::builder().quiet().run(|| {
            let isn = Isn::new();
            let now = machine::ticks();
            let first = isn.secret(now, 0);
            assert_eq!(isn.secret(now + 10_000, 0), first);
            assert_eq!(isn.secret(now + 10_000, 10), first);
            let second = isn.secret(now + 10_001, 10);
            assert_ne!(second, first);
            assert_eq!(isn.secret(now + 20_001, 10), second);
        });
    }

    #[test]
    fn sequence_numbers_of_a_connection_grow_with_time_and_with_every_connection() {
        Machine::builder().quiet().run(|| {
            let isn = Isn::new();
            let inc = InConninfo {
                inc_faddr: Ipv4Addr::new(192, 0, 2, 1).into(),
                inc_laddr: Ipv4Addr::new(192, 0, 2, 2).into(),
                inc_fport: 1,
                inc_lport: 2,
            };
            let now = machine::ticks();
            let first = isn.new_isn(now, &inc, 0);
            let second = isn.new_isn(now, &inc, 0);
            assert!(
                (4096..8192).contains(&(second - first)),
                "{}",
                second - first
            );
            isn.new_isn(now + 1000, &inc, 0);
            let later = isn.new_isn(now + 1000, &inc, 0);
            assert!(later - second >= 1_048_576, "{}", later - second);
            // Of another connection it says nothing.
            let other = InConninfo {
                inc_fport: 3,
                ..inc
            };
            let apart = isn.new_isn(now, &other, 0) - later;
            assert!(apart.unsigned_abs() > 1 << 16, "{apart}");
        });
    }
}
