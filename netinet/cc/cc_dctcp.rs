//! DCTCP: the window is reduced by how much of it was marked, not by half for any mark.
//!
//! FreeBSD: sys/netinet/cc/cc_dctcp.c
//! RFC 8257. It wants ECN; without it is NewReno.
//! Differs from FreeBSD: when marking begins or ends, a delayed ACK goes out with the old echo before that with the new
//! (RFC 8257 §3.2, figure 1); segments without data say nothing about marks.

use crate::cc::cc_newreno::{
    NewReno, newreno_ack_received, newreno_after_idle, newreno_post_recovery,
};
use crate::cc::{CcAck, CcAlgo, CcSignal, CcVar};
use crate::tcp_seq::TcpSeq;
use crate::tcp_var::{TcpTunables, Tcpcb, Tf, Tf2};

/// Fraction bits of `alpha`.
const DCTCP_SHIFT: u32 = 10;
/// All is marked.
pub const MAX_ALPHA_VALUE: u32 = 1 << DCTCP_SHIFT;

/// The algorithm's state of a connection.
#[derive(Default)]
pub struct Dctcp {
    /// Bytes acknowledged with an echo since alpha was last computed.
    bytes_ecn: u64,
    /// Bytes acknowledged since then.
    bytes_total: u64,
    /// The share of bytes marked, smoothed, in 1024ths.
    alpha: u32,
    /// Alpha is computed when this is acknowledged.
    save_sndnxt: TcpSeq,
    /// The window before the last reduction for marks.
    snd_cwnd_prev: u32,
    /// The last segment with data was marked.
    ce_prev: bool,
    /// This ACK carries an echo.
    ece_curr: bool,
    /// Signs of congestion so far.
    num_cong_events: u32,
}

impl Dctcp {
    /// `alpha = (1 - g) * alpha + g * M`, with the share `M` of the window just acknowledged (RFC 8257 §3.3).
    #[doc(alias = "dctcp_update_alpha")]
    fn update_alpha(&mut self, tun: &TcpTunables, tp: &Tcpcb) {
        let g = tun.dctcp_shift_g.get();
        let marked = (self.bytes_ecn << (DCTCP_SHIFT - g)) / self.bytes_total.max(1);
        let alpha = self.alpha - (self.alpha >> g);
        self.alpha = alpha
            .saturating_add(marked.min(u64::from(MAX_ALPHA_VALUE)) as u32)
            .min(MAX_ALPHA_VALUE);
        self.begin(tp);
    }

    fn begin(&mut self, tp: &Tcpcb) {
        self.bytes_ecn = 0;
        self.bytes_total = 0;
        self.save_sndnxt = tp.snd_nxt;
    }

    /// RFC 8257 §3.3: `cwnd * (1 - alpha / 2)`.
    fn reduced(&self, cwnd: u32, mss: u32) -> u32 {
        let cut = (u64::from(cwnd) * u64::from(self.alpha)) >> (DCTCP_SHIFT + 1);
        (cwnd - cut as u32).max(2 * mss)
    }
}

fn halved(cwnd: u32, mss: u32) -> u32 {
    (cwnd / 2).max(2 * mss)
}

impl CcAlgo for Dctcp {
    fn name(&self) -> &'static str {
        "dctcp"
    }

    fn conn_init(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        self.alpha = ccv.tun.dctcp_alpha.get().min(MAX_ALPHA_VALUE);
        self.num_cong_events = 0;
        self.begin(tp);
    }

    fn ack_received(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>, kind: CcAck) {
        // A mark is no reason to stop growing: the reduction for it was in proportion.
        if kind == CcAck::Ack && !tp.in_fastrecovery() && ccv.cwnd_limited {
            newreno_ack_received(tp, ccv);
        }
        if !tp.t_flags2.contains(Tf2::ECN_PERMIT) {
            return;
        }
        let acked = match kind {
            CcAck::DupAck => tp.t_maxseg,
            CcAck::Ack | CcAck::PartialAck => ccv.bytes_this_ack,
        };
        self.bytes_total += u64::from(acked);
        if core::mem::take(&mut self.ece_curr) {
            self.bytes_ecn += u64::from(acked);
        }
        if !tp.in_fastrecovery() && ccv.curack.gt(self.save_sndnxt) {
            self.update_alpha(ccv.tun, tp);
        }
    }

    fn cong_signal(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>, signal: CcSignal) {
        if !tp.t_flags2.contains(Tf2::ECN_PERMIT) {
            NewReno::default().cong_signal(tp, ccv, signal);
            return;
        }
        let mss = tp.fixed_maxseg();
        match signal {
            CcSignal::NDupAck => {
                if !tp.in_fastrecovery() {
                    // A loss is answered as by NewReno: by half of what the window was before marks reduced it.
                    let cwnd = match tp.t_flags.contains(Tf::CONGRECOVERY) {
                        true => self.snd_cwnd_prev,
                        false => tp.snd_cwnd,
                    };
                    tp.snd_ssthresh = halved(cwnd, mss);
                    self.num_cong_events = self.num_cong_events.saturating_add(1);
                    tp.enter_fastrecovery();
                }
            }
            CcSignal::Ecn => {
                if !tp.t_flags.contains(Tf::CONGRECOVERY) {
                    self.snd_cwnd_prev = tp.snd_cwnd;
                    let first = self.num_cong_events == 0;
                    self.num_cong_events = self.num_cong_events.saturating_add(1);
                    tp.snd_ssthresh = if ccv.tun.dctcp_slowstart.get() && first {
                        self.alpha = MAX_ALPHA_VALUE;
                        halved(tp.snd_cwnd, mss)
                    } else {
                        self.reduced(tp.snd_cwnd, mss)
                    };
                    tp.snd_cwnd = tp.snd_ssthresh;
                    tp.t_flags |= Tf::CONGRECOVERY;
                }
                self.ece_curr = true;
            }
            CcSignal::Rto => {
                NewReno::default().cong_signal(tp, ccv, signal);
                self.update_alpha(ccv.tun, tp);
                self.save_sndnxt += tp.t_maxseg;
                self.num_cong_events = self.num_cong_events.saturating_add(1);
            }
            CcSignal::RtoErr => {}
        }
    }

    fn post_recovery(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        newreno_post_recovery(tp, ccv);
        if tp.t_flags2.contains(Tf2::ECN_PERMIT) {
            self.update_alpha(ccv.tun, tp);
        }
    }

    fn after_idle(&mut self, tp: &mut Tcpcb, ccv: &CcVar<'_>) {
        // What was measured before the pause says nothing about the path now.
        self.alpha = ccv.tun.dctcp_alpha.get().min(MAX_ALPHA_VALUE);
        self.num_cong_events = 0;
        self.begin(tp);
        newreno_after_idle(tp, ccv);
    }

    /// RFC 8257 §3.2: the echo says of each segment whether it was marked.
    #[doc(alias = "dctcp_ecnpkt_handler")]
    fn ecnpkt_handler(&mut self, ce: bool) -> Option<bool> {
        Some(core::mem::replace(&mut self.ce_prev, ce) != ce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use sys::machine::hosted::Machine;
    use sys::time::Ticks;

    const MSS: u32 = 1000;

    fn connection(tun: &TcpTunables, dctcp: &mut Dctcp) -> Tcpcb {
        let mut tp = Tcpcb::new(tun, Ticks(0), Box::new(Dctcp::default()));
        tp.t_maxseg = MSS;
        tp.snd_scale = 14;
        tp.t_flags2 |= Tf2::ECN_PERMIT;
        tp.snd_cwnd = 100 * MSS;
        tp.snd_ssthresh = 50 * MSS;
        let var = ccv(tun, 0, 0);
        dctcp.conn_init(&mut tp, &var);
        tp
    }

    fn ccv(tun: &TcpTunables, curack: u32, bytes: u32) -> CcVar<'_> {
        CcVar {
            tun,
            now: Ticks(0),
            curack: TcpSeq(curack),
            bytes_this_ack: bytes,
            nsegs: 1,
            cwnd_limited: true,
            abc_sentawnd: false,
        }
    }

    /// A window of 100 segments of which `marked` are echoed; the acknowledgement number behind it.
    fn window(tun: &TcpTunables, dctcp: &mut Dctcp, tp: &mut Tcpcb, from: u32, marked: u32) -> u32 {
        let mut ack = from;
        for segment in 0..100 {
            ack += MSS;
            tp.snd_nxt = TcpSeq(ack + 100 * MSS);
            let var = ccv(tun, ack, MSS);
            if segment < marked {
                dctcp.cong_signal(tp, &var, CcSignal::Ecn);
            }
            dctcp.ack_received(tp, &var, CcAck::Ack);
        }
        tp.exit_recovery();
        ack
    }

    #[test]
    fn alpha_comes_to_the_share_of_bytes_marked() {
        Machine::builder().run(|| {
            let tun = TcpTunables::default();
            let mut dctcp = Dctcp::default();
            let mut tp = connection(&tun, &mut dctcp);
            assert_eq!(dctcp.alpha, MAX_ALPHA_VALUE);
            let mut ack = 0;
            for _ in 0..150 {
                ack = window(&tun, &mut dctcp, &mut tp, ack, 25);
            }
            let quarter = MAX_ALPHA_VALUE / 4;
            let error = dctcp.alpha.abs_diff(quarter);
            assert!(error < quarter / 5, "alpha is {}", dctcp.alpha);
        });
    }

    #[test]
    fn marks_reduce_the_window_by_half_of_alpha_once_per_window_and_a_loss_by_half() {
        Machine::builder().run(|| {
            let tun = TcpTunables::default();
            let mut dctcp = Dctcp::default();
            let mut tp = connection(&tun, &mut dctcp);
            dctcp.alpha = MAX_ALPHA_VALUE / 4;
            let var = ccv(&tun, 0, 0);
            dctcp.cong_signal(&mut tp, &var, CcSignal::Ecn);
            dctcp.cong_signal(&mut tp, &var, CcSignal::Ecn);
            assert_eq!(tp.snd_cwnd, 100 * MSS - 100 * MSS / 8);
            dctcp.cong_signal(&mut tp, &var, CcSignal::NDupAck);
            assert_eq!(tp.snd_ssthresh, 50 * MSS);
        });
    }

    #[test]
    fn without_ecn_it_is_newreno() {
        Machine::builder().run(|| {
            let tun = TcpTunables::default();
            let mut dctcp = Dctcp::default();
            let mut tp = connection(&tun, &mut dctcp);
            tp.t_flags2.remove(Tf2::ECN_PERMIT);
            dctcp.alpha = 0;
            let var = ccv(&tun, 0, 0);
            dctcp.cong_signal(&mut tp, &var, CcSignal::NDupAck);
            assert_eq!(tp.snd_ssthresh, 50 * MSS);
        });
    }

    #[test]
    fn the_receiver_tells_when_marking_begins_and_ends() {
        let mut dctcp = Dctcp::default();
        let changed = [false, true, true, false, false].map(|ce| dctcp.ecnpkt_handler(ce));
        assert_eq!(changed, [false, true, false, true, false].map(Some));
    }
}
