//! The header of a TCP segment and its options.
//!
//! FreeBSD: sys/netinet/tcp.h, tcp_dooptions (tcp_input.c), tcp_addoptions (tcp_output.c)

use super::tcp_seq::TcpSeq;

bitflags::bitflags! {
    /// The flags of a segment, with the reserved bits.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TcpFlags: u16 {
        /// No more data from the sender.
        const FIN = 0x001;
        /// Opens a connection.
        const SYN = 0x002;
        /// Destroys a connection.
        const RST = 0x004;
        /// Deliver without waiting for more.
        const PUSH = 0x008;
        /// The acknowledgement number means something.
        const ACK = 0x010;
        /// The urgent pointer means something.
        const URG = 0x020;
        /// ECN echo.
        const ECE = 0x040;
        /// Congestion window reduced.
        const CWR = 0x080;
        /// Accurate ECN.
        const AE = 0x100;
        /// Reserved.
        const RES3 = 0x200;
        /// Reserved.
        const RES2 = 0x400;
        /// Reserved.
        const RES1 = 0x800;
    }
}

/// Length of the header without options.
pub const TCP_HLEN: usize = 20;
/// Most bytes of options a header can carry.
pub const TCP_MAXOLEN: usize = 40;
/// Default maximum segment size for IPv4 (RFC 9293 §3.7.1).
pub const TCP_MSS: u32 = 536;
/// The same in IPv6: what fits into its smallest MTU.
pub const TCP6_MSS: u32 = 1220;
/// Largest window without scaling.
pub const TCP_MAXWIN: u32 = 65535;
/// Largest window shift (RFC 7323 §2.3).
pub const TCP_MAX_WINSHIFT: u8 = 14;
/// Most SACK blocks in one header.
pub const TCP_MAX_SACK: usize = 4;

const TCPOPT_EOL: u8 = 0;
const TCPOPT_NOP: u8 = 1;
const TCPOPT_MAXSEG: u8 = 2;
const TCPOLEN_MAXSEG: usize = 4;
const TCPOPT_WINDOW: u8 = 3;
const TCPOLEN_WINDOW: usize = 3;
const TCPOPT_SACK_PERMITTED: u8 = 4;
const TCPOLEN_SACK_PERMITTED: usize = 2;
const TCPOPT_SACK: u8 = 5;
const TCPOLEN_SACKHDR: usize = 2;
const TCPOLEN_SACK: usize = 8;
const TCPOPT_TIMESTAMP: u8 = 8;
const TCPOLEN_TIMESTAMP: usize = 10;
const TCPOPT_SIGNATURE: u8 = 19;
const TCPOLEN_SIGNATURE: usize = 2 + SIGNATURE_LEN;
/// Bytes of a signature (RFC 2385 §2).
pub const SIGNATURE_LEN: usize = 16;
/// Length of the signature option with its padding.
pub const TCPOLEN_SIGNATURE_APPA: usize = TCPOLEN_SIGNATURE + 2;
const TCPOPT_FAST_OPEN: u8 = 34;
const TCPOLEN_FAST_OPEN_EMPTY: usize = 2;
/// Longest cookie of Fast Open (RFC 7413 §2).
pub const TCP_FASTOPEN_MAX_COOKIE_LEN: usize = 16;
/// Length of the timestamp option with its padding.
pub const TCPOLEN_TSTAMP_APPA: usize = TCPOLEN_TIMESTAMP + 2;

/// Why bytes are not a TCP segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadSegment {
    /// Fewer bytes than a header has.
    Short,
    /// The data offset lies inside the header or past the end.
    Offset,
}

/// A TCP header in host byte order; whoever holds one knows that it was complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "tcphdr")]
pub struct TcpHeader {
    /// Source port.
    pub th_sport: u16,
    /// Destination port.
    pub th_dport: u16,
    /// Sequence number of the first byte.
    pub th_seq: TcpSeq,
    /// The next byte the sender of this segment expects.
    pub th_ack: TcpSeq,
    /// Flags.
    pub th_flags: TcpFlags,
    /// Length of header and options in bytes.
    pub th_off: u8,
    /// Window, not scaled.
    pub th_win: u16,
    /// Checksum as it stands in the packet.
    pub th_sum: u16,
    /// Urgent pointer.
    pub th_urp: u16,
}

impl TcpHeader {
    /// Reads the header at the start of `packet`, which must also hold the options.
    pub fn parse(packet: &[u8]) -> Result<TcpHeader, BadSegment> {
        let header = TcpHeader::parse_fixed(packet)?;
        if usize::from(header.th_off) > packet.len() {
            return Err(BadSegment::Offset);
        }
        Ok(header)
    }

    /// Reads the fixed part of a header; the options may be missing, as in an ICMP quotation.
    pub fn parse_fixed(packet: &[u8]) -> Result<TcpHeader, BadSegment> {
        let fixed: &[u8; TCP_HLEN] = packet.first_chunk().ok_or(BadSegment::Short)?;
        let th_off = (fixed[12] >> 4) * 4;
        if usize::from(th_off) < TCP_HLEN {
            return Err(BadSegment::Offset);
        }
        Ok(TcpHeader {
            th_sport: u16::from_be_bytes([fixed[0], fixed[1]]),
            th_dport: u16::from_be_bytes([fixed[2], fixed[3]]),
            th_seq: TcpSeq(u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]])),
            th_ack: TcpSeq(u32::from_be_bytes([
                fixed[8], fixed[9], fixed[10], fixed[11],
            ])),
            th_flags: TcpFlags::from_bits_retain(u16::from_be_bytes([fixed[12] & 0x0f, fixed[13]])),
            th_off,
            th_win: u16::from_be_bytes([fixed[14], fixed[15]]),
            th_sum: u16::from_be_bytes([fixed[16], fixed[17]]),
            th_urp: u16::from_be_bytes([fixed[18], fixed[19]]),
        })
    }

    /// Writes the fixed part of the header to the start of `out`.
    pub fn write(&self, out: &mut [u8; TCP_HLEN]) {
        let flags = self.th_flags.bits();
        out[0..2].copy_from_slice(&self.th_sport.to_be_bytes());
        out[2..4].copy_from_slice(&self.th_dport.to_be_bytes());
        out[4..8].copy_from_slice(&self.th_seq.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.th_ack.0.to_be_bytes());
        out[12] = (self.th_off << 2) | ((flags >> 8) as u8 & 0x0f);
        out[13] = flags as u8;
        out[14..16].copy_from_slice(&self.th_win.to_be_bytes());
        out[16..18].copy_from_slice(&self.th_sum.to_be_bytes());
        out[18..20].copy_from_slice(&self.th_urp.to_be_bytes());
    }
}

/// A block of sequence space the receiver holds, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "sackblk")]
pub struct SackBlk {
    /// First byte held.
    pub start: TcpSeq,
    /// First byte after the block.
    pub end: TcpSeq,
}

bitflags::bitflags! {
    /// Which options a `TcpOpt` carries.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TcpOptFlags: u16 {
        /// Maximum segment size.
        const MSS = 0x0001;
        /// Window scale.
        const SCALE = 0x0002;
        /// SACK permitted.
        const SACKPERM = 0x0004;
        /// Timestamps.
        const TS = 0x0010;
        /// TCP-MD5 signature.
        const SIGNATURE = 0x0040;
        /// SACK blocks.
        const SACK = 0x0080;
        /// Fast Open cookie.
        const FASTOPEN = 0x0100;
    }
}

/// A cookie of Fast Open; an empty one asks for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TfoCookie {
    len: u8,
    bytes: [u8; TCP_FASTOPEN_MAX_COOKIE_LEN],
}

impl TfoCookie {
    /// The cookie `bytes`; of a longer one than there can be only the length is kept.
    pub fn new(bytes: &[u8]) -> TfoCookie {
        let mut cookie = TfoCookie {
            len: bytes.len().min(usize::from(u8::MAX)) as u8,
            ..TfoCookie::default()
        };
        if let Some(room) = cookie.bytes.get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
        }
        cookie
    }

    /// How long it is, or was before it was cut.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether it only asks for a cookie.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it is longer than a cookie can be.
    pub fn is_cut(&self) -> bool {
        self.len() > TCP_FASTOPEN_MAX_COOKIE_LEN
    }

    /// Its bytes, if it is not too long.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len()).unwrap_or(&[])
    }
}

/// The options of a segment, read or to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(alias = "tcpopt")]
pub struct TcpOpt {
    /// Which of the following fields count.
    pub to_flags: TcpOptFlags,
    /// Timestamp of the sender.
    pub to_tsval: u32,
    /// Our timestamp, echoed.
    pub to_tsecr: u32,
    /// Maximum segment size.
    pub to_mss: u16,
    /// Window scale.
    pub to_wscale: u8,
    /// How many of `to_sacks` count.
    pub to_nsacks: u8,
    /// SACK blocks.
    pub to_sacks: [SackBlk; TCP_MAX_SACK],
    /// Cookie of Fast Open.
    pub to_tfo: TfoCookie,
    /// Signature; what is written is all zeros until the segment is complete.
    pub to_signature: [u8; SIGNATURE_LEN],
}

impl TcpOpt {
    /// Reads options; those that mean nothing in this kind of segment, and malformed ones, are skipped.
    #[doc(alias = "tcp_dooptions")]
    pub fn parse(mut options: &[u8], syn: bool) -> TcpOpt {
        let mut to = TcpOpt::default();
        // What nearly every segment of an established connection carries.
        if let Some((tsval, tsecr)) = TcpOpt::parse_timestamp_only(options) {
            to.to_flags = TcpOptFlags::TS;
            to.to_tsval = tsval;
            to.to_tsecr = tsecr;
            return to;
        }
        while let Some(&kind) = options.first() {
            if kind == TCPOPT_EOL {
                break;
            }
            if kind == TCPOPT_NOP {
                options = &options[1..];
                continue;
            }
            let Some(&length) = options.get(1) else { break };
            let length = usize::from(length);
            if length < 2 {
                break;
            }
            let Some((option, rest)) = options.split_at_checked(length) else {
                break;
            };
            options = rest;
            to.read_option(kind, &option[2..], syn);
        }
        to
    }

    /// Reads the two values of a block that is exactly NOP, NOP, timestamps.
    #[inline]
    pub fn parse_timestamp_only(options: &[u8]) -> Option<(u32, u32)> {
        let block: &[u8; TCPOLEN_TSTAMP_APPA] = options.try_into().ok()?;
        if block[..4]
            != [
                TCPOPT_NOP,
                TCPOPT_NOP,
                TCPOPT_TIMESTAMP,
                TCPOLEN_TIMESTAMP as u8,
            ]
        {
            return None;
        }
        let word = |at: usize| {
            u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        };
        Some((word(4), word(8)))
    }

    fn read_option(&mut self, kind: u8, body: &[u8], syn: bool) {
        match (kind, body) {
            (TCPOPT_MAXSEG, &[high, low]) if syn => {
                self.to_flags |= TcpOptFlags::MSS;
                self.to_mss = u16::from_be_bytes([high, low]);
            }
            (TCPOPT_WINDOW, &[shift]) if syn => {
                self.to_flags |= TcpOptFlags::SCALE;
                // RFC 7323 §2.3: a larger shift is treated as 14.
                self.to_wscale = shift.min(TCP_MAX_WINSHIFT);
            }
            (TCPOPT_FAST_OPEN, cookie) if syn => {
                self.to_flags |= TcpOptFlags::FASTOPEN;
                self.to_tfo = TfoCookie::new(cookie);
            }
            (TCPOPT_SIGNATURE, signature) => {
                if let Ok(signature) = signature.try_into() {
                    self.to_flags |= TcpOptFlags::SIGNATURE;
                    self.to_signature = signature;
                }
            }
            (TCPOPT_SACK_PERMITTED, &[]) if syn => self.to_flags |= TcpOptFlags::SACKPERM,
            (TCPOPT_TIMESTAMP, &[a, b, c, d, e, f, g, h]) => {
                self.to_flags |= TcpOptFlags::TS;
                self.to_tsval = u32::from_be_bytes([a, b, c, d]);
                self.to_tsecr = u32::from_be_bytes([e, f, g, h]);
            }
            (TCPOPT_SACK, blocks)
                if !syn && !blocks.is_empty() && blocks.len() % TCPOLEN_SACK == 0 =>
            {
                self.to_flags |= TcpOptFlags::SACK;
                self.to_nsacks = 0;
                for (slot, block) in self
                    .to_sacks
                    .iter_mut()
                    .zip(blocks.chunks_exact(TCPOLEN_SACK))
                {
                    let word = |at: usize| {
                        TcpSeq(u32::from_be_bytes([
                            block[at],
                            block[at + 1],
                            block[at + 2],
                            block[at + 3],
                        ]))
                    };
                    *slot = SackBlk {
                        start: word(0),
                        end: word(4),
                    };
                    self.to_nsacks += 1;
                }
            }
            _ => {}
        }
    }

    /// Writes a block that is exactly NOP, NOP, timestamps, to the front of `out`.
    #[inline]
    pub fn write_timestamp_only(tsval: u32, tsecr: u32, out: &mut [u8; TCP_MAXOLEN]) {
        let kind = [
            TCPOPT_NOP,
            TCPOPT_NOP,
            TCPOPT_TIMESTAMP,
            TCPOLEN_TIMESTAMP as u8,
        ];
        out[0..4].copy_from_slice(&kind);
        out[4..8].copy_from_slice(&tsval.to_be_bytes());
        out[8..12].copy_from_slice(&tsecr.to_be_bytes());
    }

    /// The signature, if there is one.
    pub fn signature(&self) -> Option<[u8; SIGNATURE_LEN]> {
        self.to_flags
            .contains(TcpOptFlags::SIGNATURE)
            .then_some(self.to_signature)
    }

    /// The SACK blocks.
    pub fn sacks(&self) -> &[SackBlk] {
        &self.to_sacks[..usize::from(self.to_nsacks).min(TCP_MAX_SACK)]
    }

    /// Writes the options in FreeBSD's order and alignment, and returns how many bytes they take.
    #[doc(alias = "tcp_addoptions")]
    pub fn write(&self, out: &mut [u8; TCP_MAXOLEN]) -> usize {
        let mut w = OptionWriter { out, len: 0 };
        if self.to_flags.contains(TcpOptFlags::MSS) {
            w.pad_until(TCPOLEN_MAXSEG, |len| len % 4 == 0);
            let [high, low] = self.to_mss.to_be_bytes();
            w.put(&[TCPOPT_MAXSEG, TCPOLEN_MAXSEG as u8, high, low]);
        }
        if self.to_flags.contains(TcpOptFlags::SCALE) {
            w.pad_until(TCPOLEN_WINDOW, |len| len % 2 == 1);
            w.put(&[TCPOPT_WINDOW, TCPOLEN_WINDOW as u8, self.to_wscale]);
        }
        if self.to_flags.contains(TcpOptFlags::SACKPERM) {
            w.pad_until(TCPOLEN_SACK_PERMITTED, |len| len % 2 == 0);
            w.put(&[TCPOPT_SACK_PERMITTED, TCPOLEN_SACK_PERMITTED as u8]);
        }
        if self.to_flags.contains(TcpOptFlags::TS) {
            w.timestamps(self.to_tsval, self.to_tsecr);
        }
        if self.to_flags.contains(TcpOptFlags::SIGNATURE) {
            w.signature(&self.to_signature);
        }
        if self.to_flags.contains(TcpOptFlags::SACK) && self.to_nsacks > 0 {
            w.sacks(self.sacks());
        }
        if self.to_flags.contains(TcpOptFlags::FASTOPEN) {
            w.fast_open(self.to_tfo.bytes());
        }
        w.finish()
    }
}

/// Where in a list of options, written by us, the bytes of the signature begin.
pub fn signature_at(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            TCPOPT_EOL => return None,
            TCPOPT_NOP => at += 1,
            TCPOPT_SIGNATURE => return Some(at + 2),
            _ => at += usize::from(*options.get(at + 1)?).max(2),
        }
    }
}

/// Appends options to a buffer that has room for 40 bytes.
struct OptionWriter<'a> {
    out: &'a mut [u8; TCP_MAXOLEN],
    len: usize,
}

impl OptionWriter<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(room) = self.out.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    /// Pads with NOPs until `aligned`, if the option of `want` bytes then still fits.
    fn pad_until(&mut self, want: usize, aligned: impl Fn(usize) -> bool) {
        while !aligned(self.len) && self.len + 1 + want <= TCP_MAXOLEN {
            self.put(&[TCPOPT_NOP]);
        }
    }

    fn timestamps(&mut self, tsval: u32, tsecr: u32) {
        self.pad_until(TCPOLEN_TIMESTAMP, |len| len % 4 == 2);
        let [a, b, c, d] = tsval.to_be_bytes();
        let [e, f, g, h] = tsecr.to_be_bytes();
        self.put(&[
            TCPOPT_TIMESTAMP,
            TCPOLEN_TIMESTAMP as u8,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
        ]);
    }

    fn signature(&mut self, signature: &[u8; SIGNATURE_LEN]) {
        self.pad_until(TCPOLEN_SIGNATURE, |len| len % 4 == 2);
        if self.len + TCPOLEN_SIGNATURE <= TCP_MAXOLEN {
            self.put(&[TCPOPT_SIGNATURE, TCPOLEN_SIGNATURE as u8]);
            self.put(signature);
        }
    }

    fn sacks(&mut self, blocks: &[SackBlk]) {
        self.pad_until(TCPOLEN_SACKHDR + TCPOLEN_SACK, |len| len % 4 == 2);
        let room = (TCP_MAXOLEN - self.len).saturating_sub(TCPOLEN_SACKHDR) / TCPOLEN_SACK;
        let blocks = &blocks[..blocks.len().min(room)];
        if blocks.is_empty() {
            return;
        }
        self.put(&[
            TCPOPT_SACK,
            (TCPOLEN_SACKHDR + blocks.len() * TCPOLEN_SACK) as u8,
        ]);
        for block in blocks {
            self.put(&block.start.0.to_be_bytes());
            self.put(&block.end.0.to_be_bytes());
        }
    }

    fn fast_open(&mut self, cookie: &[u8]) {
        let len = TCPOLEN_FAST_OPEN_EMPTY + cookie.len();
        if self.len + len <= TCP_MAXOLEN {
            self.put(&[TCPOPT_FAST_OPEN, len as u8]);
            self.put(cookie);
        }
    }

    /// Ends the list and pads it to 32-bit words.
    fn finish(mut self) -> usize {
        if !self.len.is_multiple_of(4) {
            self.put(&[TCPOPT_EOL]);
        }
        while !self.len.is_multiple_of(4) {
            self.put(&[0]);
        }
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(to: &TcpOpt) -> std::vec::Vec<u8> {
        let mut out = [0xee; TCP_MAXOLEN];
        let len = to.write(&mut out);
        out[..len].to_vec()
    }

    #[test]
    fn a_header_survives_writing_and_parsing() {
        let header = TcpHeader {
            th_sport: 1024,
            th_dport: 80,
            th_seq: TcpSeq(0xfedc_ba98),
            th_ack: TcpSeq(0x0123_4567),
            th_flags: TcpFlags::ACK | TcpFlags::PUSH | TcpFlags::AE,
            th_off: 20,
            th_win: 0xbeef,
            th_sum: 0x1234,
            th_urp: 7,
        };
        let mut bytes = [0; TCP_HLEN];
        header.write(&mut bytes);
        assert_eq!(TcpHeader::parse(&bytes), Ok(header));
    }

    #[test]
    fn a_short_or_lying_header_is_refused() {
        assert_eq!(TcpHeader::parse(&[0; 19]), Err(BadSegment::Short));
        let mut bytes = [0; 24];
        bytes[12] = 0x40;
        assert_eq!(TcpHeader::parse(&bytes), Err(BadSegment::Offset));
        bytes[12] = 0x70;
        assert_eq!(TcpHeader::parse(&bytes), Err(BadSegment::Offset));
        bytes[12] = 0x60;
        assert!(TcpHeader::parse(&bytes).is_ok());
    }

    #[test]
    fn a_default_syn_carries_its_options_in_freebsds_order() {
        let to = TcpOpt {
            to_flags: TcpOptFlags::MSS
                | TcpOptFlags::SCALE
                | TcpOptFlags::SACKPERM
                | TcpOptFlags::TS,
            to_mss: 1460,
            to_wscale: 6,
            to_tsval: 100,
            ..TcpOpt::default()
        };
        assert_eq!(
            written(&to),
            [
                2, 4, 5, 180, 1, 3, 3, 6, 4, 2, 8, 10, 0, 0, 0, 100, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn timestamps_alone_take_twelve_bytes() {
        let to = TcpOpt {
            to_flags: TcpOptFlags::TS,
            to_tsval: 1,
            to_tsecr: 2,
            ..TcpOpt::default()
        };
        let bytes = written(&to);
        assert_eq!(bytes, [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(TcpOpt::parse_timestamp_only(&bytes), Some((1, 2)));
    }

    #[test]
    fn four_sack_blocks_fit_alone_and_three_beside_timestamps() {
        let mut to = TcpOpt {
            to_flags: TcpOptFlags::SACK,
            to_nsacks: 4,
            ..TcpOpt::default()
        };
        for (i, block) in to.to_sacks.iter_mut().enumerate() {
            *block = SackBlk {
                start: TcpSeq(i as u32 * 10),
                end: TcpSeq(i as u32 * 10 + 5),
            };
        }
        let bytes = written(&to);
        assert_eq!(bytes.len(), 36);
        assert_eq!(TcpOpt::parse(&bytes, false).sacks(), to.sacks());
        to.to_flags |= TcpOptFlags::TS;
        let bytes = written(&to);
        assert_eq!(bytes.len(), 40);
        assert_eq!(TcpOpt::parse(&bytes, false).sacks(), &to.sacks()[..3]);
    }

    #[test]
    fn a_cookie_stands_behind_the_others_and_too_long_ones_are_told_apart() {
        let mut to = TcpOpt {
            to_flags: TcpOptFlags::MSS | TcpOptFlags::FASTOPEN,
            to_mss: 536,
            to_tfo: TfoCookie::new(&[7, 8]),
            ..TcpOpt::default()
        };
        assert_eq!(written(&to), [2, 4, 2, 24, 34, 4, 7, 8]);
        assert_eq!(TcpOpt::parse(&written(&to), true), to);
        assert_eq!(
            TcpOpt::parse(&written(&to), false).to_flags,
            TcpOptFlags::empty()
        );
        to.to_tfo = TfoCookie::default();
        assert_eq!(written(&to), [2, 4, 2, 24, 34, 2, 0, 0]);
        let long = TfoCookie::new(&[1; 17]);
        assert!(long.is_cut() && long.len() == 17 && long.bytes().is_empty());
    }

    #[test]
    fn a_signature_stands_behind_timestamps_and_before_sack_blocks() {
        let mut to = TcpOpt {
            to_flags: TcpOptFlags::SIGNATURE | TcpOptFlags::SACK,
            to_signature: [7; 16],
            to_nsacks: 2,
            ..TcpOpt::default()
        };
        let bytes = written(&to);
        assert_eq!(bytes[..4], [1, 1, 19, 18]);
        assert_eq!(signature_at(&bytes), Some(4));
        // Two blocks fit beside it.
        assert_eq!(bytes[20..24], [1, 1, 5, 18]);
        assert_eq!(TcpOpt::parse(&bytes, false).signature(), Some([7; 16]));
        to.to_flags = TcpOptFlags::SIGNATURE | TcpOptFlags::TS;
        let bytes = written(&to);
        assert_eq!(bytes[12..16], [1, 1, 19, 18]);
        assert_eq!(signature_at(&bytes), Some(16));
        assert_eq!(TcpOpt::parse(&[19, 17, 0], false).signature(), None);
    }

    #[test]
    fn an_odd_list_ends_with_eol_and_zeros() {
        let to = TcpOpt {
            to_flags: TcpOptFlags::MSS | TcpOptFlags::SACKPERM,
            to_mss: 536,
            ..TcpOpt::default()
        };
        assert_eq!(written(&to), [2, 4, 2, 24, 4, 2, 0, 0]);
    }

    #[test]
    fn options_of_a_syn_are_ignored_elsewhere_and_nonsense_is_skipped() {
        let bytes = [2, 4, 5, 180, 3, 3, 99, 1, 4, 2, 0, 0];
        assert_eq!(TcpOpt::parse(&bytes, false).to_flags, TcpOptFlags::empty());
        let to = TcpOpt::parse(&bytes, true);
        assert_eq!((to.to_mss, to.to_wscale), (1460, 14));
        assert!(to.to_flags.contains(TcpOptFlags::SACKPERM));
        for bad in [
            &[8u8, 0][..],
            &[8, 1],
            &[8, 40, 1, 2],
            &[8],
            &[200, 3, 1],
            &[5, 9, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(TcpOpt::parse(bad, false).to_flags, TcpOptFlags::empty());
        }
    }
}
