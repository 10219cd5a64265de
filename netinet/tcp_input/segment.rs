//! A segment on its way through the steps, and their order.
//!
//! FreeBSD: tcp_do_segment (tcp_input.c)

use core::net::IpAddr;

use sys::mbuf::Mbuf;

use crate::tcp::{TcpFlags, TcpHeader, TcpOpt};
use crate::tcp_ecn::{tcp_ecn_congestion, tcp_ecn_input_segment};
use crate::tcp_fsm::TcpState;
use crate::tcp_input::ack::{self, Resume};
use crate::tcp_input::exits::{Exit, Step, finish};
use crate::tcp_input::{data, options, predict, sequence};
use crate::tcp_subr::Conn;
use crate::tcp_var::Tcpcb;

/// A segment received. The steps take from it what is duplicate or beyond the window.
pub struct Segment {
    /// The header; sequence number and flags move as the segment is trimmed.
    pub th: TcpHeader,
    /// Its options.
    pub to: TcpOpt,
    /// From.
    pub src: IpAddr,
    /// To.
    pub dst: IpAddr,
    /// Port of the UDP header that it came in, 0 without.
    pub port: u16,
    /// Time to live on arrival.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Bytes before the payload that still counts.
    pub hdrlen: u32,
    /// Bytes of payload that still count.
    pub tlen: u32,
    /// Window, scaled.
    pub tiwin: u32,
    /// Segments that LRO made this one of.
    pub nsegs: u32,
    /// The packet, until it is handed on.
    pub m: Option<Mbuf>,
}

impl Segment {
    /// The packet's flags, also after it has been handed on.
    pub(super) fn packet(&self) -> Option<&Mbuf> {
        self.m.as_ref()
    }

    /// Whether any of `flags` is set.
    #[inline]
    pub(super) fn has(&self, flags: TcpFlags) -> bool {
        self.th.th_flags.intersects(flags)
    }

    /// Cuts the last `n` bytes of payload.
    pub(super) fn trim_tail(&mut self, n: u32) {
        let n = n.min(self.tlen);
        if let Some(m) = &mut self.m {
            m.trim_back(n as usize);
        }
        self.tlen -= n;
    }

    /// Takes the payload, without what stands before it.
    pub(super) fn take_payload(&mut self) -> Option<Mbuf> {
        let mut m = self.m.take()?;
        m.trim_front(self.hdrlen as usize);
        Some(m)
    }
}

/// Takes a segment for a connection that is neither listening nor in TIME_WAIT.
#[inline]
pub(super) fn tcp_do_segment(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) {
    let exit = match steps(c, tp, seg) {
        Ok(exit) => exit,
        Err(exit) => exit,
    };
    finish(c, tp, seg, exit);
}

/// The steps, in FreeBSD's order.
#[inline]
fn steps(c: &Conn<'_>, tp: &mut Tcpcb, seg: &mut Segment) -> Step<Exit> {
    tp.t_rcvtime = c.net.now;
    seg.tiwin = u32::from(seg.th.th_win) << tp.snd_scale;
    if tcp_ecn_input_segment(c, tp, seg) {
        tcp_ecn_congestion(c, tp, seg.th.th_ack);
    }
    sequence::syn_sent_ack(tp, seg)?;
    options::check(c, tp, seg)?;
    if let Some(exit) = predict::header_prediction(c, tp, seg) {
        return Ok(exit);
    }
    sequence::receive_window(c, tp);
    let mut need_output = false;
    let resume = match tp.t_state {
        TcpState::SynSent => sequence::syn_sent(c, tp, seg)?,
        _ => {
            sequence::syn_received(tp, seg)?;
            sequence::check_rst(c, tp, seg)?;
            sequence::check_syn(c, tp, seg)?;
            options::paws(c, tp, seg)?;
            sequence::trim_to_window(c, tp, seg)?;
            options::record_timestamp(c, tp, seg);
            ack::check_ack_bit(c, tp, seg)?
        }
    };
    match resume {
        Resume::Ack => ack::ack_processing(c, tp, seg, &mut need_output)?,
        Resume::ProcessAck => ack::process_ack(c, tp, seg, &mut need_output, false)?,
        Resume::Step6 => {}
    }
    need_output |= data::update_window(c, tp, seg);
    data::urgent(c, tp, seg);
    data::dodata(c, tp, seg)?;
    Ok(Exit::Output {
        needed: need_output,
    })
}
