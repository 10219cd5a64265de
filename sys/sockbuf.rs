//! The socket buffer: what is to be sent, or waits to be read.
//!
//! FreeBSD: sys/sys/sockbuf.h
//! Differs from FreeBSD: a stream's mbufs stand in a ring of single mbufs and not in a chain, so that walking
//! to an offset touches only the mbufs it ends in, and needs no raw pointers; a datagram's address stands beside
//! its packet.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bitflags::bitflags;

use crate::mbuf::Mbuf;
use crate::socket::SockAddr;
use crate::socketvar::{PollWaiter, Socket};
use crate::time::Sbintime;

bitflags! {
    /// `sb_state`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SbState: u16 {
        /// No more may be sent (`SBS_CANTSENDMORE`).
        const CANTSENDMORE = 0x10;
        /// No more will be received (`SBS_CANTRCVMORE`).
        const CANTRCVMORE = 0x20;
        /// The reader is at the out-of-band mark (`SBS_RCVATMARK`).
        const RCVATMARK = 0x40;
    }
}

bitflags! {
    /// `sb_flags`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SbFlags: u16 {
        /// Someone sleeps for data or space (`SB_WAIT`).
        const WAIT = 0x04;
        /// Someone polls (`SB_SEL`).
        const SEL = 0x08;
        /// An upcall is set (`SB_UPCALL`).
        const UPCALL = 0x20;
        /// Sleeps are not interrupted (`SB_NOINTR`).
        const NOINTR = 0x40;
        /// Small mbufs are not merged (`SB_NOCOALESCE`).
        const NOCOALESCE = 0x200;
        /// The protocol may grow the buffer (`SB_AUTOSIZE`).
        const AUTOSIZE = 0x800;
    }
}

/// Called when a buffer changed, with the protocol's locks held: it may wake or queue something, never call
/// the socket layer.
pub type Upcall = Arc<dyn Fn(&Arc<Socket>) + Send + Sync>;

/// A datagram with what came along.
pub struct Record {
    /// Where it came from.
    pub from: Option<SockAddr>,
    /// The data, with a packet header.
    pub m: Mbuf,
    /// Control messages (`MT_CONTROL`).
    pub control: Option<Mbuf>,
}

/// One direction of a socket (`struct sockbuf`). The lock is around it: `so.snd.lock()`, `so.rcv.lock()`.
pub struct Sockbuf {
    /// The byte stream; every element is a single mbuf without packet header.
    pub(crate) sb_mb: VecDeque<Mbuf>,
    /// Where `copy_range` will probably continue: an element of `sb_mb`, and the offset it begins at.
    pub(crate) sb_sndptr: usize,
    pub(crate) sb_sndptroff: u32,
    /// The datagrams.
    pub(crate) sb_records: VecDeque<Record>,
    pub(crate) sb_state: SbState,
    pub(crate) sb_flags: SbFlags,
    /// Bytes in the buffer (`sb_ccc`; without sendfile it equals `sb_acc`).
    pub(crate) sb_ccc: u32,
    /// Bytes of mbufs and clusters held.
    pub(crate) sb_mbcnt: u32,
    /// Bytes before the out-of-band mark; 0: there is none, or the reader stands at it (`so_oobmark`).
    pub(crate) sb_oobmark: u32,
    /// Limit of `sb_ccc`.
    pub(crate) sb_hiwat: u32,
    /// Limit of `sb_mbcnt`.
    pub(crate) sb_mbmax: u32,
    /// How much makes the buffer readable or writable.
    pub(crate) sb_lowat: u32,
    /// How long calls wait; `None` for ever.
    pub(crate) sb_timeo: Option<Sbintime>,
    pub(crate) sb_upcall: Option<Upcall>,
    pub(crate) sb_sel: Vec<Arc<PollWaiter>>,
}

impl Sockbuf {
    /// The state bits.
    pub fn state(&self) -> SbState {
        self.sb_state
    }

    /// Sets state bits: what `socantsendmore` does without waking anyone.
    pub fn set_state(&mut self, bits: SbState) {
        self.sb_state |= bits;
    }

    /// Bytes before the out-of-band mark; 0: there is none, or the reader stands at it.
    pub fn oobmark(&self) -> u32 {
        self.sb_oobmark
    }

    /// Sets the out-of-band mark `at` bytes from here: reading stops there.
    pub fn set_oobmark(&mut self, at: u32) {
        self.sb_oobmark = at;
        if at == 0 {
            self.sb_state |= SbState::RCVATMARK;
        }
    }

    /// The flag bits.
    pub fn flags(&self) -> SbFlags {
        self.sb_flags
    }

    /// Whether the protocol may grow the buffer.
    pub fn autosize(&self) -> bool {
        self.sb_flags.contains(SbFlags::AUTOSIZE)
    }

    /// Lets the protocol grow the buffer, or not.
    pub fn set_autosize(&mut self, on: bool) {
        self.sb_flags.set(SbFlags::AUTOSIZE, on);
    }

    /// Bytes in the buffer.
    #[doc(alias = "sbused")]
    #[doc(alias = "sbavail")]
    #[inline]
    pub fn used(&self) -> u32 {
        self.sb_ccc
    }

    /// Whether there is nothing in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.sb_ccc == 0 && self.sb_records.is_empty()
    }

    /// Bytes of mbufs and clusters held.
    pub fn mbcnt(&self) -> u32 {
        self.sb_mbcnt
    }

    /// Limit of the bytes.
    #[inline]
    pub fn hiwat(&self) -> u32 {
        self.sb_hiwat
    }

    /// Limit of mbufs and clusters.
    pub fn mbmax(&self) -> u32 {
        self.sb_mbmax
    }

    /// The low-water mark.
    pub fn lowat(&self) -> u32 {
        self.sb_lowat
    }

    /// How much more fits; negative when the buffer was shrunk below its content.
    #[doc(alias = "sbspace")]
    #[inline]
    pub fn space(&self) -> i32 {
        let bleft = self.sb_hiwat as i32 - self.sb_ccc as i32;
        let mleft = self.sb_mbmax as i32 - self.sb_mbcnt as i32;
        bleft.min(mleft)
    }
}
