//! NewReno: slow start, congestion avoidance by bytes, window halved on loss.
//!
//! FreeBSD: sys/netinet/cc/cc_newreno.c
//! RFC 5681, RFC 6582, RFC 3465.

use sys::errno::Errno;
use sys::protosw::{SockOpt, SoptDir};

use crate::cc::{CcAck, CcAlgo, CcSignal, CcVar, tcp_compute_initwnd};
use crate::tcp::TCP_MAXWIN;
use crate::tcp_var::{TcpTunables, Tcpcb, Tf};

/// Option: percent of the window that a loss leaves (`struct cc_newreno_opts`).
const CC_NEWRENO_BETA: i32 = 1;
/// Option: percent of the window that a mark leaves; setting it turns that on for the connection (RFC 8511).
const CC_NEWRENO_BETA_ECN: i32 = 2;

/// NewReno keeps nothing but what every connection has, and what the program has set.
#[derive(Default)]
pub struct NewReno {
    beta: Option<u32>,
    beta_ecn: Option<u32>,
}

impl CcAlgo for NewReno {
    fn name(&self) -> &'static str {
        "newreno"
    }

    fn ack_received(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>, kind: CcAck) {
        if kind == CcAck::Ack && !tp.in_recovery() && ccv.cwnd_limited {
            newreno_ack_received(tp, ccv);
        }
    }

    fn cong_signal(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>, signal: CcSignal) {
        let mss = tp.fixed_maxseg();
        let tun = ccv.tun;
        let beta = self.beta(tun);
        let beta_ecn = self.beta_ecn(tun);
        let abe = tun.cc_abe.get() || self.beta_ecn.is_some();
        // RFC 8511: a mark comes from a short queue, where a smaller reduction is enough.
        let percent = match signal {
            CcSignal::Ecn if abe => beta_ecn,
            CcSignal::Ecn | CcSignal::Rto | CcSignal::RtoErr | CcSignal::NDupAck => beta,
        };
        let window = (u64::from(tp.snd_cwnd) * u64::from(percent) / 100) as u32;
        let reduced = window.max(2 * mss);
        match signal {
            CcSignal::NDupAck => {
                if !tp.in_fastrecovery() {
                    if !tp.t_flags.contains(Tf::CONGRECOVERY) {
                        tp.snd_ssthresh = reduced;
                    } else if abe && tun.cc_abe_frlossreduce.get() {
                        // The rest of what a loss would have taken.
                        let whole = u64::from(tp.snd_ssthresh) * u64::from(beta);
                        tp.snd_ssthresh = (whole / u64::from(beta_ecn.max(1))) as u32;
                    }
                    tp.enter_fastrecovery();
                }
            }
            CcSignal::Ecn => {
                if !tp.t_flags.contains(Tf::CONGRECOVERY) {
                    tp.snd_ssthresh = reduced;
                    tp.snd_cwnd = reduced;
                    tp.t_flags |= Tf::CONGRECOVERY;
                }
            }
            CcSignal::Rto => {
                // RFC 5681 §3.1 equation 4, once for each segment lost.
                if tp.t_rxtshift <= 1 {
                    let flight = tp.snd_max.since(tp.snd_una).min(tp.snd_wnd);
                    tp.snd_ssthresh = (flight / 2 / mss).max(2).saturating_mul(mss);
                }
                tp.snd_cwnd = mss;
            }
            CcSignal::RtoErr => {}
        }
    }

    fn post_recovery(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        newreno_post_recovery(tp, ccv);
    }

    fn after_idle(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        newreno_after_idle(tp, ccv);
    }

    #[doc(alias = "newreno_ctl_output")]
    fn ctl_output(&mut self, tun: &TcpTunables, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
        let opts: [u8; 8] = sopt.bytes().try_into().map_err(|_| Errno::EMSGSIZE)?;
        let [a, b, c, d, val @ ..] = opts;
        let name = i32::from_ne_bytes([a, b, c, d]);
        let val = u32::from_ne_bytes(val);
        let is = match (name, sopt.dir) {
            (CC_NEWRENO_BETA, SoptDir::Set) => *self.beta.insert(val),
            (CC_NEWRENO_BETA_ECN, SoptDir::Set) => *self.beta_ecn.insert(val),
            (CC_NEWRENO_BETA, SoptDir::Get) => self.beta(tun),
            (CC_NEWRENO_BETA_ECN, SoptDir::Get) => self.beta_ecn(tun),
            _ => return Err(Errno::ENOPROTOOPT),
        };
        if sopt.dir == SoptDir::Set {
            return Ok(());
        }
        let mut answer = [0; 8];
        answer[..4].copy_from_slice(&name.to_ne_bytes());
        answer[4..].copy_from_slice(&is.to_ne_bytes());
        sopt.answer(&answer)
    }
}

impl NewReno {
    /// Percent of the window that a loss leaves.
    fn beta(&self, tun: &TcpTunables) -> u32 {
        self.beta
            .unwrap_or_else(|| tun.newreno_beta.get().clamp(1, 100))
    }

    /// Percent of the window that a mark leaves, where it leaves another.
    fn beta_ecn(&self, tun: &TcpTunables) -> u32 {
        self.beta_ecn.unwrap_or_else(|| tun.newreno_beta_ecn.get())
    }
}

/// Grows the window for an ACK of new data, which the window limited.
#[doc(alias = "newreno_cc_ack_received")]
pub(super) fn newreno_ack_received(tp: &mut Tcpcb, ccv: &CcVar<'_>) {
    let cw = tp.snd_cwnd;
    let mut incr = tp.fixed_maxseg();
    if cw > tp.snd_ssthresh {
        // Congestion avoidance: about one segment per round trip.
        if ccv.tun.rfc3465.get() {
            if !ccv.abc_sentawnd {
                return;
            }
        } else {
            incr = (u64::from(incr) * u64::from(incr) / u64::from(cw.max(1))).max(1) as u32;
        }
    } else if ccv.tun.rfc3465.get() {
        // RFC 3465 §2.3: after a timeout grow by at most one segment per ACK, as the ACK may cover
        // what had arrived before.
        let most = if tp.snd_nxt == tp.snd_max {
            ccv.nsegs
                .saturating_mul(ccv.tun.abc_l_var.get())
                .saturating_mul(incr)
        } else {
            incr
        };
        incr = ccv.bytes_this_ack.min(most);
    }
    if incr > 0 {
        tp.snd_cwnd = cw.saturating_add(incr).min(TCP_MAXWIN << tp.snd_scale);
    }
}

/// Sets the window after recovery.
#[doc(alias = "newreno_cc_post_recovery")]
pub(super) fn newreno_post_recovery(tp: &mut Tcpcb, ccv: &CcVar<'_>) {
    if !tp.in_fastrecovery() {
        return;
    }
    let mss = tp.fixed_maxseg();
    // RFC 6582 §3.2 step 3: no more than is in flight and a segment, so that no burst follows.
    let pipe = if tp.t_flags.contains(Tf::SACK_PERMIT) {
        tp.compute_pipe()
    } else {
        tp.snd_max.since(ccv.curack)
    };
    tp.snd_cwnd = if pipe < tp.snd_ssthresh {
        pipe.max(mss) + mss
    } else {
        tp.snd_ssthresh
    };
}

/// Sets the window after an idle time.
#[doc(alias = "newreno_cc_after_idle")]
pub(super) fn newreno_after_idle(tp: &mut Tcpcb, ccv: &CcVar<'_>) {
    // RFC 5681 §4.1: begin again with the initial window, and remember where slow start should end.
    let three_quarters = tp.snd_cwnd - (tp.snd_cwnd >> 2);
    tp.snd_ssthresh = tp.snd_ssthresh.max(three_quarters);
    tp.snd_cwnd = tp
        .snd_cwnd
        .min(tcp_compute_initwnd(ccv.tun, tp.fixed_maxseg()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp_seq::TcpSeq;
    use crate::tcp_var::TcpTunables;
    use alloc::boxed::Box;
    use sys::machine::hosted::Machine;
    use sys::time::Ticks;

    /// The threshold after marks, and after a loss among them.
    fn after(tun: &TcpTunables) -> (u32, u32) {
        let mut tp = Tcpcb::new(tun, Ticks(0), Box::<NewReno>::default());
        tp.t_maxseg = 1000;
        tp.snd_cwnd = 100_000;
        let ccv = CcVar {
            tun,
            now: Ticks(0),
            curack: TcpSeq(0),
            bytes_this_ack: 0,
            nsegs: 1,
            cwnd_limited: true,
            abc_sentawnd: false,
        };
        NewReno::default().cong_signal(&mut tp, &ccv, CcSignal::Ecn);
        let marked = tp.snd_ssthresh;
        NewReno::default().cong_signal(&mut tp, &ccv, CcSignal::NDupAck);
        (marked, tp.snd_ssthresh)
    }

    #[test]
    fn with_abe_a_mark_takes_a_fifth_and_a_loss_the_rest_of_the_half() {
        Machine::builder().run(|| {
            let tun = TcpTunables::default();
            assert_eq!(after(&tun), (50_000, 50_000));
            tun.cc_abe.set(true);
            assert_eq!(after(&tun), (80_000, 80_000));
            tun.cc_abe_frlossreduce.set(true);
            assert_eq!(after(&tun), (80_000, 50_000));
        });
    }
}
