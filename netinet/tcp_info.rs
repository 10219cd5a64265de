//! The state of a connection as `TCP_INFO` shows it.
//!
//! FreeBSD: tcp_fill_info (tcp_usrreq.c), struct tcp_info (tcp.h)

use crate::tcp::TCP_MAXWIN;
use crate::tcp_ecn::ACE_INIT;
use crate::tcp_subr::Conn;
use crate::tcp_var::{TCP_RTT_SHIFT, TCP_RTTVAR_SHIFT, Tcpcb, Tf, Tf2};

/// Bytes of `struct tcp_info`.
pub const TCP_INFO_LEN: usize = 240;

/// Timestamps are in use.
pub const TCPI_OPT_TIMESTAMPS: u8 = 0x01;
/// SACK is in use.
pub const TCPI_OPT_SACK: u8 = 0x02;
/// Window scaling is in use.
pub const TCPI_OPT_WSCALE: u8 = 0x04;

/// ECN is in use.
pub const TCPI_OPT_ECN: u8 = 0x08;

/// `tcpi_options`: a device has the connection.
pub const TCPI_OPT_TOE: u8 = 0x10;
/// Fast Open is in use.
pub const TCPI_OPT_TFO: u8 = 0x20;
/// Accurate ECN is in use.
pub const TCPI_OPT_ACE: u8 = 0x40;

/// Lays out `struct tcp_info`; times in microseconds.
pub fn tcp_fill_info(c: &Conn<'_>, tp: &Tcpcb) -> [u8; TCP_INFO_LEN] {
    let mut info = [0; TCP_INFO_LEN];
    let mut options = 0;
    if tp.t_flags.contains(Tf::REQ_TSTMP | Tf::RCVD_TSTMP) {
        options |= TCPI_OPT_TIMESTAMPS;
    }
    if tp.t_flags.contains(Tf::SACK_PERMIT) {
        options |= TCPI_OPT_SACK;
    }
    if tp.t_flags.contains(Tf::REQ_SCALE | Tf::RCVD_SCALE) {
        options |= TCPI_OPT_WSCALE;
        info[6] = (tp.snd_scale & 0xf) | (tp.rcv_scale << 4);
    }
    let accurate = tp.t_flags2.contains(Tf2::ACE_PERMIT);
    if accurate {
        options |= TCPI_OPT_ACE;
    } else if tp.t_flags2.contains(Tf2::ECN_PERMIT) {
        options |= TCPI_OPT_ECN;
    }
    let marks = |count: u32| match accurate {
        true => count.wrapping_sub(ACE_INIT),
        false => 0,
    };
    if tp.t_flags.contains(Tf::FASTOPEN) {
        options |= TCPI_OPT_TFO;
    }
    if tp.t_toe.is_some() {
        options |= TCPI_OPT_TOE;
    }
    info[0] = tp.t_state as u8;
    info[5] = options;
    let rcv_space = c.so.rcv.lock().space().max(0) as u32;
    let since = (c.net.now - tp.t_rcvtime).max(0) as u32;
    let words = [
        (8, tp.t_rxtcur.saturating_mul(1000)),
        (16, tp.t_maxseg),
        (20, tp.t_maxseg),
        (52, since.saturating_mul(1000)),
        (68, ((i64::from(tp.t_srtt) * 1000) >> TCP_RTT_SHIFT) as u32),
        (
            72,
            ((i64::from(tp.t_rttvar) * 1000) >> TCP_RTTVAR_SHIFT) as u32,
        ),
        (76, tp.snd_ssthresh),
        (80, tp.snd_cwnd),
        (96, rcv_space.min(TCP_MAXWIN << tp.rcv_scale)),
        (100, tp.snd_wnd),
        (108, tp.snd_nxt.0),
        (112, tp.rcv_nxt.0),
        (120, tp.t_sndrexmitpack),
        (124, tp.t_rcvoopack),
        (128, tp.t_sndzerowin),
        (132, marks(tp.t_scep)),
        (136, marks(tp.t_rcep)),
        (176, tp.snd_una.0),
        (180, tp.snd_max.0),
        (
            184,
            tp.t_sack
                .as_ref()
                .map_or(0, |sack| sack.rcv_numsacks() as u32),
        ),
        (188, tp.rcv_adv.0),
        (192, tp.t_dupacks),
    ];
    for (at, value) in words {
        info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    info
}
