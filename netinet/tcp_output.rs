//! Sends what a TCP connection may send now.
//!
//! FreeBSD: sys/netinet/tcp_output.c
//! Differs from FreeBSD: the decision what to send (`plan`) is separate from building it, so that it can be tested
//! without packets.

mod account;
mod build;
mod plan;

pub use plan::{Buffers, Held, Plan, Verdict, Why, World, plan, worth_an_update};

use sys::errno::Errno;
use sys::socketvar::SndGuard;

use crate::in_pcb::In6pFlags;
use crate::ip_output::ip_output;
use crate::ip_var::IpOutArgs;
use crate::netinet6::ip6_output::ip6_output;
use crate::netinet6::ip6_var::Ip6OutArgs;
use crate::tcp_offload::tcp_offload_output;
use crate::tcp_subr::{Conn, tcp_maxmtu, tcp_mss_update};
use crate::tcp_timer::{TcpTimer, tcp_setpersist};
use crate::tcp_var::{Tcpcb, Tf};

/// Whether the round of `tcp_output` is done.
enum Round {
    /// Another segment may follow.
    Again,
    /// Nothing more to send now.
    Done,
}

/// Sends everything the connection may send now: data, a FIN, an ACK, a window update. Errors that retransmission
/// will take care of are not returned.
pub fn tcp_output(c: &Conn<'_>, tp: &mut Tcpcb) -> Result<(), Errno> {
    if let Some(done) = tcp_offload_output(c, tp) {
        return done;
    }
    // After a pause longer than the timeout the window may no longer fit the path.
    let mut idle = tp.t_flags.contains(Tf::LASTIDLE) || tp.snd_max == tp.snd_una;
    if idle && c.net.now - tp.t_rcvtime >= tp.t_rxtcur as i32 && tp.t_state.have_established() {
        tp.cc_after_idle(&c.vt.tun, c.net.now);
    }
    tp.t_flags.remove(Tf::LASTIDLE);
    if idle && tp.t_flags.contains(Tf::MORETOCOME) {
        tp.t_flags |= Tf::LASTIDLE;
        idle = false;
    }
    let (rcv_space, rcv_hiwat) = {
        let rcv = c.so.rcv.lock();
        (rcv.space().max(0) as u32, rcv.hiwat())
    };
    let tun = &c.vt.tun;
    let mut world = World {
        buffers: Buffers {
            snd_avail: 0,
            rcv_space,
            rcv_hiwat,
        },
        now: tp.ts_clock(c.net.now),
        idle,
        tso: tun.tso.get(),
        ip_hlen: crate::tcp_subr::ip_hlen(c.hdr.faddr()) as u32,
        ipoptlen: c
            .hdr
            .inp_options
            .as_ref()
            .map_or(0, |options| options.len() as u32),
    };
    loop {
        match send_one(c, tp, &mut world)? {
            Round::Again => {}
            Round::Done => return Ok(()),
        }
    }
}

/// Plans, builds and sends one packet.
fn send_one(c: &Conn<'_>, tp: &mut Tcpcb, world: &mut World) -> Result<Round, Errno> {
    if tp.t_flags.contains(Tf::SACK_PERMIT) && tp.snd_nxt.lt(tp.snd_max) {
        tp.sack_adjust();
    }
    let mut snd = c.so.snd.lock();
    world.buffers.snd_avail = snd.used();
    let verdict = match plan(tp, world) {
        Verdict::EnterPersist => {
            tp.t_timers.stop(TcpTimer::Rexmt);
            tp.t_rxtshift = 0;
            tp.snd_nxt = tp.snd_una;
            tcp_setpersist(c, tp);
            plan(tp, world)
        }
        verdict => verdict,
    };
    let mut plan = match verdict {
        Verdict::Send(plan) => plan,
        Verdict::Hold(held) => {
            drop(snd);
            match held {
                Held::Nothing | Held::Waiting => {}
                Held::StartRexmt => tp
                    .t_timers
                    .activate(TcpTimer::Rexmt, c.net.now, tp.t_rxtcur),
                Held::StartPersist => {
                    tp.t_rxtshift = 0;
                    tcp_setpersist(c, tp);
                }
            }
            return Ok(Round::Done);
        }
        // Persist runs now, so the plan cannot ask for it a second time.
        Verdict::EnterPersist => return Ok(Round::Done),
    };
    if plan.sendwin_open && tp.t_flags.contains(Tf::FORCEDATA) {
        tp.t_timers.stop(TcpTimer::Persist);
        tp.t_rxtshift = 0;
    }
    if plan.len > 0 {
        tcp_sndbuf_autoscale(c, tp, &mut snd);
    }
    let built = build::build(c, tp, world, &mut plan, &mut snd);
    drop(snd);
    let m = match built {
        Ok(m) => m,
        // What could not be built is sent when the retransmission timer expires.
        Err(Errno::ENOBUFS) => return account::no_buffers(c, tp).map(|()| Round::Done),
        Err(error) => {
            // The same without a secret: somebody may add it meanwhile.
            account::advance(c, tp, &plan, world.buffers.snd_avail);
            account::take_back(tp, &plan);
            return Err(error);
        }
    };
    let args = IpOutArgs {
        options: c.hdr.inp_options.as_deref(),
        ro: Some(&c.inp.inp_route),
        ..IpOutArgs::default()
    };
    let sent = if c.hdr.is_ipv6() {
        let args = Ip6OutArgs {
            ro: Some(&c.inp.inp_route6),
            select_hlim: !c.hdr.in6p_flags.contains(In6pFlags::HOPS_SET),
            ..Ip6OutArgs::default()
        };
        ip6_output(c.net, m, &args)
    } else {
        ip_output(c.net, m, &args)
    };
    account::advance(c, tp, &plan, world.buffers.snd_avail);
    match sent {
        Ok(()) => {
            account::sent(c, tp, &plan);
            Ok(if plan.sendalot {
                Round::Again
            } else {
                Round::Done
            })
        }
        Err(error) => {
            account::take_back(tp, &plan);
            output_failed(c, tp, &plan, error)
        }
    }
}

/// Grows the send buffer when it is what limits sending: nearly full, with room in both windows.
fn tcp_sndbuf_autoscale(c: &Conn<'_>, tp: &Tcpcb, snd: &mut SndGuard<'_>) {
    let tun = &c.vt.tun;
    if !snd.autosize() || !tun.sendbuf_auto.get() {
        return;
    }
    let lowat = if tun.sendbuf_auto_lowat.get() {
        snd.lowat()
    } else {
        0
    };
    let hiwat = snd.hiwat();
    let used = snd.used();
    let max = tun.sendbuf_max.get();
    let sendwin = tp.snd_wnd.min(tp.snd_cwnd);
    let unsent = used.saturating_sub(tp.snd_max.since(tp.snd_una));
    if tp.snd_wnd / 4 * 5 >= hiwat.saturating_sub(lowat)
        && used >= (hiwat / 8 * 7).saturating_sub(lowat)
        && used < max
        && sendwin >= unsent
    {
        let size = (hiwat + tun.sendbuf_inc.get()).min(max);
        if snd
            .reserve(size, &sys::kern::kern_ipc::sb_limits())
            .is_err()
        {
            snd.set_autosize(false);
        }
    }
}

/// What a failure of `ip_output` means (`tcp_output`: "switch (error)").
fn output_failed(c: &Conn<'_>, tp: &mut Tcpcb, plan: &Plan, error: Errno) -> Result<Round, Errno> {
    match error {
        Errno::EACCES | Errno::EPERM => {
            // A packet filter may let it through later.
            tp.t_softerror = Some(error);
            Err(error)
        }
        Errno::ENOBUFS => account::no_buffers(c, tp).map(|()| Round::Done),
        Errno::EMSGSIZE => {
            // Most likely the route has changed, or its interface has stopped doing TSO.
            let before = tp.t_maxseg;
            let mtu = tcp_maxmtu(c.net, c.hdr.faddr(), c.hdr.in6p_flags).map(|path| path.mtu);
            tcp_mss_update(c, tp, None, mtu);
            if plan.tso {
                tp.t_flags.remove(Tf::TSO);
            }
            if plan.tso || tp.t_maxseg < before {
                c.vt.stat.tcps_mturesent.inc();
                return Ok(Round::Again);
            }
            Err(error)
        }
        Errno::EHOSTDOWN | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::ENETUNREACH
            if tp.t_state.have_received_syn() =>
        {
            tp.t_softerror = Some(error);
            Ok(Round::Done)
        }
        _ => Err(error),
    }
}
