//! Large receive offload: joins the segments of a flow before the stack sees them.
//!
//! FreeBSD: sys/netinet/tcp_lro.c
//! Differs from FreeBSD: a segment whose checksum the hardware did not look at is checked here instead of being
//! passed over. It has to be checked anyway, and QEMU's 82540EM looks at none.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use sys::counters;
use sys::machine::in_cksum::{CksumAccum, in_cksum, in_cksum_partial, in_pseudo};
use sys::mbuf::{CsumFlags, Mbuf, MbufQueue};
use sys::net::iflib::Lro;

use crate::ip_input::IpTunables;
use crate::tcp::{TCP_HLEN, TCPOLEN_TSTAMP_APPA, TcpFlags, TcpHeader};
use crate::tcp_seq::TcpSeq;

/// The longest datagram made: an `ip_len` has 16 bits, and headers must still fit before it.
const TCP_LRO_LENGTH_MAX: usize = 65_535 - 255;
/// The most segments joined: what a datagram of full-sized segments holds.
const TCP_LRO_SEGMENTS_MAX: usize = 64;

const ETHER_HDR_LEN: usize = 14;
const ETHERTYPE_IP: [u8; 2] = [0x08, 0x00];
const IP_HLEN: usize = 20;
/// Version 4 and a header without options.
const IP_VHL: u8 = 0x45;
/// More fragments, and the fragment's offset.
const IP_FRAGMENT_BITS: u16 = 0x3fff;
const IPPROTO_TCP: u8 = 6;
/// Where the TCP header begins in a frame.
const TH: usize = ETHER_HDR_LEN + IP_HLEN;
/// NOP NOP TIMESTAMP 10: the one form in which options are joined.
const TIMESTAMP_FORM: [u8; 4] = [1, 1, 8, 10];

counters! {
    /// What LRO has done (`lro_queued`, `lro_flushed`, `lro_bad_csum`).
    pub struct LroStat {
        lro_queued: "segments joined or held",
        lro_flushed: "packets handed to the stack",
        lro_bad_csum: "segments with a bad checksum, left to TCP to count",
    }
}

/// The flows of one receive queue (`struct lro_ctrl`).
pub struct TcpLro {
    tunables: Arc<IpTunables>,
    stat: Arc<LroStat>,
    /// Flows joined at a time (`net.inet.tcp.lro.entries`).
    most: usize,
    entries: Vec<LroEntry>,
}

/// A flow whose segments are held (`struct lro_entry`). The first segment's headers become those of the whole.
struct LroEntry {
    flow: Flow,
    /// What the next segment must begin with.
    next_seq: TcpSeq,
    ack: TcpSeq,
    window: u16,
    timestamp: Option<Timestamp>,
    /// Bytes of IP datagram.
    len: usize,
    payload: usize,
    payload_sum: CksumAccum,
    head: Mbuf,
    /// The payloads of the other segments, in order.
    rest: Vec<Mbuf>,
    segments: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Flow {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    /// Both ports as they stand in the header.
    ports: [u8; 4],
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Timestamp {
    val: u32,
    ecr: u32,
}

/// A segment that may be joined to others.
struct Segment {
    flow: Flow,
    th: TcpHeader,
    timestamp: Option<Timestamp>,
    /// Bytes of IP datagram.
    len: usize,
    payload: usize,
    payload_sum: CksumAccum,
}

/// What a frame is to LRO.
enum Kind {
    /// It may be joined.
    Joinable(Segment),
    /// It must go up as it is, after what its flow holds.
    InOrder(Flow),
    /// LRO has nothing to do with it.
    Other,
}

impl TcpLro {
    /// The state of one receive queue, which joins up to `most` flows at a time.
    #[doc(alias = "tcp_lro_init")]
    pub fn new(tunables: Arc<IpTunables>, stat: Arc<LroStat>, most: usize) -> TcpLro {
        TcpLro {
            tunables,
            stat,
            most: most.max(1),
            entries: Vec::with_capacity(most),
        }
    }

    fn flush_flow(&mut self, flow: &Flow, out: &mut MbufQueue) {
        if let Some(at) = self.entries.iter().position(|entry| entry.flow == *flow) {
            let entry = self.entries.remove(at);
            self.flush(entry, out);
        }
    }

    #[doc(alias = "tcp_lro_flush")]
    fn flush(&self, entry: LroEntry, out: &mut MbufQueue) {
        self.stat.lro_flushed.inc();
        out.push(entry.into_packet());
    }

    fn join(&mut self, m: Mbuf, segment: Segment, out: &mut MbufQueue) {
        let Some(at) = self
            .entries
            .iter()
            .position(|entry| entry.flow == segment.flow)
        else {
            return self.hold(m, segment, out);
        };
        match self.entries[at].relation(&segment) {
            Relation::Extends => {
                self.stat.lro_queued.inc();
                self.entries[at].extend(m, &segment);
                if self.entries[at].rest.len() >= TCP_LRO_SEGMENTS_MAX {
                    let entry = self.entries.remove(at);
                    self.flush(entry, out);
                }
            }
            // An acknowledgement overtaken by a newer one says nothing.
            Relation::Stale => self.stat.lro_queued.inc(),
            Relation::Conflicts => {
                let entry = self.entries.remove(at);
                self.flush(entry, out);
                self.hold(m, segment, out);
            }
            Relation::Duplicate => {
                let entry = self.entries.remove(at);
                self.flush(entry, out);
                out.push(m);
            }
        }
    }

    /// Begins to join a flow; if too many are held, the oldest goes up.
    fn hold(&mut self, m: Mbuf, segment: Segment, out: &mut MbufQueue) {
        if self.entries.len() == self.most {
            let oldest = self.entries.remove(0);
            self.flush(oldest, out);
        }
        self.stat.lro_queued.inc();
        self.entries.push(LroEntry::new(m, segment));
    }
}

impl Lro for TcpLro {
    #[doc(alias = "tcp_lro_rx")]
    fn rx(&mut self, mut m: Mbuf, out: &mut MbufQueue) {
        // A router must pass on what it received.
        if self.tunables.forwarding.get() {
            self.flush_all(out);
            out.push(m);
            return;
        }
        match classify(&mut m, &self.stat) {
            Kind::Joinable(segment) => self.join(m, segment, out),
            Kind::InOrder(flow) => {
                self.flush_flow(&flow, out);
                out.push(m);
            }
            Kind::Other => out.push(m),
        }
    }

    #[doc(alias = "tcp_lro_flush_all")]
    fn flush_all(&mut self, out: &mut MbufQueue) {
        while !self.entries.is_empty() {
            let oldest = self.entries.remove(0);
            self.flush(oldest, out);
        }
    }
}

/// Looks at a frame, and trims the padding behind its datagram.
#[doc(alias = "tcp_lro_rx_common")]
fn classify(m: &mut Mbuf, stat: &LroStat) -> Kind {
    let Some((flow, ip_len)) = parse_ip(m) else {
        return Kind::Other;
    };
    let padding = m.pkt_len() - ETHER_HDR_LEN - ip_len;
    if padding > 0 {
        m.trim_back(padding);
    }
    let Some(segment) = parse_tcp(m, flow, ip_len, stat) else {
        return Kind::InOrder(flow);
    };
    Kind::Joinable(segment)
}

/// The flow and the length of a datagram that is a whole TCP segment with nothing unusual about its IP header.
fn parse_ip(m: &Mbuf) -> Option<(Flow, usize)> {
    let frame = m.data();
    let ip = frame.get(ETHER_HDR_LEN..TH)?;
    let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    let ip_len = usize::from(word(2));
    let plain = frame[12..14] == ETHERTYPE_IP
        && ip[0] == IP_VHL
        && ip[9] == IPPROTO_TCP
        && word(6) & IP_FRAGMENT_BITS == 0
        && ip_len >= IP_HLEN + TCP_HLEN
        && m.pkt_len() >= ETHER_HDR_LEN + ip_len
        && frame.len() >= TH + TCP_HLEN;
    if !plain {
        return None;
    }
    let flags = m.pkthdr().csum_flags;
    let good = match flags.contains(CsumFlags::L3_CALC) {
        true => flags.contains(CsumFlags::L3_VALID),
        false => in_cksum(ip) == 0,
    };
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let ports = *frame[TH..].first_chunk::<4>()?;
    let flow = Flow {
        src: address(12),
        dst: address(16),
        ports,
    };
    good.then_some((flow, ip_len))
}

/// The segment, if it may be joined: data or an acknowledgement in the usual form with a good checksum.
fn parse_tcp(m: &Mbuf, flow: Flow, ip_len: usize, stat: &LroStat) -> Option<Segment> {
    let header = m.data().get(TH..)?;
    let th = TcpHeader::parse(header).ok()?;
    if th.th_flags.difference(TcpFlags::PUSH) != TcpFlags::ACK {
        return None;
    }
    let th_len = usize::from(th.th_off);
    let options = header.get(TCP_HLEN..th_len)?;
    let timestamp = match options.len() {
        0 => None,
        TCPOLEN_TSTAMP_APPA if options.starts_with(&TIMESTAMP_FORM) => Some(Timestamp {
            val: u32::from_be_bytes(*options[4..].first_chunk()?),
            ecr: u32::from_be_bytes(*options[8..].first_chunk()?),
        }),
        _ => return None,
    };
    let tcp_len = ip_len - IP_HLEN;
    let payload = tcp_len.checked_sub(th_len)?;
    let pseudo = in_pseudo(flow.src, flow.dst, u32::from(IPPROTO_TCP) + tcp_len as u32);
    let flags = m.pkthdr().csum_flags;
    let verified = flags.contains(CsumFlags::DATA_VALID | CsumFlags::PSEUDO_HDR)
        && m.pkthdr().csum_data == 0xffff;
    if !verified && !segment_sum_is_good(m, pseudo) {
        stat.lro_bad_csum.inc();
        return None;
    }
    // The whole sums to all ones; what the headers do not contribute is the payload's.
    let headers = in_cksum_partial(&header[..th_len], false).add_u16(pseudo);
    Some(Segment {
        flow,
        th,
        timestamp,
        len: ip_len,
        payload,
        payload_sum: CksumAccum::ZERO.add_u16(headers.finish()),
    })
}

fn segment_sum_is_good(m: &Mbuf, pseudo: u16) -> bool {
    // `in_cksum_skip` complements; complementing again gives the sum itself.
    let sum = !m.in_cksum_skip(m.pkt_len(), TH);
    CksumAccum::ZERO.add_u16(sum).add_u16(pseudo).fold() == 0xffff
}

/// How a segment stands to what its flow holds.
enum Relation {
    Extends,
    Stale,
    /// It begins a new packet.
    Conflicts,
    /// A duplicate acknowledgement, which TCP must see as one.
    Duplicate,
}

impl LroEntry {
    fn new(m: Mbuf, segment: Segment) -> LroEntry {
        LroEntry {
            flow: segment.flow,
            next_seq: segment.th.th_seq + segment.payload as u32,
            ack: segment.th.th_ack,
            window: segment.th.th_win,
            timestamp: segment.timestamp,
            len: segment.len,
            payload: segment.payload,
            payload_sum: segment.payload_sum,
            head: m,
            rest: Vec::new(),
            segments: 1,
        }
    }

    fn relation(&self, segment: &Segment) -> Relation {
        let th = &segment.th;
        let older = |new: u32, old: u32| (new.wrapping_sub(old) as i32) < 0;
        let in_order = match (self.timestamp, segment.timestamp) {
            (None, None) => true,
            (Some(held), Some(new)) => !older(new.val, held.val),
            _ => false,
        };
        if !in_order || th.th_seq != self.next_seq {
            return Relation::Conflicts;
        }
        if segment.payload == 0 {
            if th.th_ack.lt(self.ack) {
                return Relation::Stale;
            }
            if th.th_ack == self.ack && th.th_win == self.window {
                return Relation::Duplicate;
            }
            return Relation::Extends;
        }
        // A held ACK without news may be a duplicate, which data behind it must not hide.
        if self.payload == 0 && th.th_ack == self.ack {
            return Relation::Conflicts;
        }
        if self.len + segment.payload > TCP_LRO_LENGTH_MAX {
            return Relation::Conflicts;
        }
        Relation::Extends
    }

    fn extend(&mut self, mut m: Mbuf, segment: &Segment) {
        let th = &segment.th;
        if !th.th_ack.lt(self.ack) {
            self.ack = th.th_ack;
            self.window = th.th_win;
        }
        self.timestamp = segment.timestamp;
        self.segments = self.segments.saturating_add(1);
        if segment.payload == 0 {
            return;
        }
        let sum = segment.payload_sum.fold();
        let odd = self.payload % 2 == 1;
        let sum = if odd { sum.swap_bytes() } else { sum };
        self.payload_sum = self.payload_sum.add_u16(sum);
        self.next_seq = th.th_seq + segment.payload as u32;
        self.payload += segment.payload;
        self.len += segment.payload;
        m.trim_front(TH + usize::from(th.th_off));
        m.demote();
        self.rest.push(m);
    }

    /// One packet with the headers of the first segment, brought up to date from the last.
    fn into_packet(self) -> Mbuf {
        let mut head = self.head;
        if self.segments > 1 {
            // From the back, so that no chain is walked twice.
            let mut tail: Option<Mbuf> = None;
            for mut m in self.rest.into_iter().rev() {
                m.last_mut().set_next(tail);
                tail = Some(m);
            }
            head.last_mut().set_next(tail);
            head.set_pkt_len(ETHER_HDR_LEN + self.len);
            // A header in memory that is shared cannot be brought up to date; receive buffers never are.
            if let Some(frame) = head.writable_data() {
                let update = Update {
                    flow: self.flow,
                    len: self.len,
                    ack: self.ack,
                    window: self.window,
                    timestamp: self.timestamp,
                    payload_sum: self.payload_sum,
                };
                update.write(frame);
            }
        }
        let pkthdr = head.pkthdr_mut();
        pkthdr.csum_flags |= CsumFlags::DATA_VALID
            | CsumFlags::PSEUDO_HDR
            | CsumFlags::IP_CHECKED
            | CsumFlags::IP_VALID;
        pkthdr.csum_data = 0xffff;
        pkthdr.set_lro_nsegs(self.segments);
        head
    }
}

/// What joined headers say.
struct Update {
    flow: Flow,
    len: usize,
    ack: TcpSeq,
    window: u16,
    timestamp: Option<Timestamp>,
    payload_sum: CksumAccum,
}

impl Update {
    fn write(&self, frame: &mut [u8]) {
        let Some((ip, tcp)) = frame
            .get_mut(ETHER_HDR_LEN..)
            .and_then(|packet| packet.split_at_mut_checked(IP_HLEN))
        else {
            return;
        };
        ip[2..4].copy_from_slice(&(self.len as u16).to_be_bytes());
        ip[10..12].fill(0);
        let sum = in_cksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());

        let th_len = match self.timestamp {
            Some(_) => TCP_HLEN + TCPOLEN_TSTAMP_APPA,
            None => TCP_HLEN,
        };
        let Some(tcp) = tcp.get_mut(..th_len) else {
            return;
        };
        tcp[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        if let Some(timestamp) = self.timestamp {
            tcp[TCP_HLEN + 4..TCP_HLEN + 8].copy_from_slice(&timestamp.val.to_be_bytes());
            tcp[TCP_HLEN + 8..TCP_HLEN + 12].copy_from_slice(&timestamp.ecr.to_be_bytes());
        }
        tcp[16..18].fill(0);
        let tcp_len = (self.len - IP_HLEN) as u32;
        let pseudo = in_pseudo(
            self.flow.src,
            self.flow.dst,
            u32::from(IPPROTO_TCP) + tcp_len,
        );
        let sum = in_cksum_partial(tcp, false)
            .add_u16(pseudo)
            .plus(self.payload_sum)
            .finish();
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::machine::hosted::Machine;
    use sys::mbuf::How;

    /// A frame of a flow, with good checksums.
    struct Frame {
        seq: u32,
        ack: u32,
        window: u16,
        flags: TcpFlags,
        port: u16,
        timestamp: Option<(u32, u32)>,
        payload: Vec<u8>,
    }

    fn data(seq: u32, payload: &[u8]) -> Frame {
        Frame {
            seq,
            ack: 1000,
            window: 500,
            flags: TcpFlags::ACK,
            port: 80,
            timestamp: Some((seq, 7)),
            payload: payload.to_vec(),
        }
    }

    impl Frame {
        fn build(&self) -> Vec<u8> {
            let mut tcp = alloc::vec![0; TCP_HLEN];
            if let Some((val, ecr)) = self.timestamp {
                tcp.extend_from_slice(&TIMESTAMP_FORM);
                tcp.extend_from_slice(&val.to_be_bytes());
                tcp.extend_from_slice(&ecr.to_be_bytes());
            }
            let th = TcpHeader {
                th_sport: self.port,
                th_dport: 5201,
                th_seq: TcpSeq(self.seq),
                th_ack: TcpSeq(self.ack),
                th_flags: self.flags,
                th_off: tcp.len() as u8,
                th_win: self.window,
                ..TcpHeader::default()
            };
            th.write(tcp.first_chunk_mut().unwrap());
            tcp.extend_from_slice(&self.payload);
            let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
            let pseudo = in_pseudo(src, dst, 6 + tcp.len() as u32);
            let sum = in_cksum_partial(&tcp, false).add_u16(pseudo).finish();
            tcp[16..18].copy_from_slice(&sum.to_be_bytes());
            let mut ip = alloc::vec![IP_VHL, 0, 0, 0, 0, 0, 0x40, 0, 64, IPPROTO_TCP, 0, 0];
            ip[2..4].copy_from_slice(&((IP_HLEN + tcp.len()) as u16).to_be_bytes());
            ip.extend_from_slice(&src.octets());
            ip.extend_from_slice(&dst.octets());
            let sum = in_cksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            let mut frame = alloc::vec![0; 12];
            frame.extend_from_slice(&ETHERTYPE_IP);
            frame.extend_from_slice(&ip);
            frame.extend_from_slice(&tcp);
            frame.resize(frame.len().max(60), 0);
            frame
        }

        fn mbuf(&self) -> Mbuf {
            let mut m = Mbuf::getcl(How::NoWait).unwrap();
            assert!(m.append(&self.build()));
            m
        }
    }

    /// Runs frames through LRO as one batch; returns the packets that come out.
    fn batch(frames: &[Frame]) -> Vec<Mbuf> {
        let mut lro = TcpLro::new(Arc::new(IpTunables::new()), Arc::new(LroStat::new()), 8);
        let mut out = MbufQueue::new();
        for frame in frames {
            lro.rx(frame.mbuf(), &mut out);
        }
        lro.flush_all(&mut out);
        core::iter::from_fn(|| out.pop()).collect()
    }

    fn bytes(m: &Mbuf) -> Vec<u8> {
        m.segments().flatten().copied().collect()
    }

    /// The payload, after both checksums were found good.
    fn checked_payload(m: &Mbuf) -> Vec<u8> {
        let frame = bytes(m);
        assert_eq!(frame.len(), m.pkt_len());
        assert_eq!(in_cksum(&frame[ETHER_HDR_LEN..TH]), 0, "IP checksum");
        let tcp = &frame[TH..];
        let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let pseudo = in_pseudo(src, dst, 6 + tcp.len() as u32);
        assert_eq!(
            in_cksum_partial(tcp, false).add_u16(pseudo).finish(),
            0,
            "TCP checksum"
        );
        tcp[usize::from(tcp[12] >> 4) * 4..].to_vec()
    }

    fn on_a_machine(test: impl FnOnce() + Send + 'static) {
        Machine::builder().run(test);
    }

    #[test]
    fn segments_in_order_become_one_with_good_checksums_even_at_odd_lengths() {
        on_a_machine(|| {
            let parts: [&[u8]; 4] = [b"odd", b"even", b"oddly", b"and the rest of it"];
            let mut seq = 1;
            let mut frames = Vec::new();
            for part in parts {
                frames.push(data(seq, part));
                seq += part.len() as u32;
            }
            let out = batch(&frames);
            assert_eq!(out.len(), 1);
            assert_eq!(checked_payload(&out[0]), parts.concat());
            assert_eq!(out[0].pkthdr().lro_nsegs(), 4);
        });
    }

    #[test]
    fn the_last_acknowledgement_window_and_timestamp_count() {
        on_a_machine(|| {
            let mut last = data(5, b"more");
            (last.ack, last.window, last.timestamp) = (2000, 900, Some((99, 98)));
            let mut ack = data(9, b"");
            (ack.ack, ack.window, ack.timestamp) = (3000, 800, Some((100, 99)));
            let out = batch(&[data(1, b"some"), last, ack]);
            assert_eq!(out.len(), 1);
            assert_eq!(checked_payload(&out[0]), b"somemore");
            let frame = bytes(&out[0]);
            let th = TcpHeader::parse(&frame[TH..]).unwrap();
            assert_eq!((th.th_ack, th.th_win), (TcpSeq(3000), 800));
            assert_eq!(frame[TH + 24..TH + 32], [0, 0, 0, 100, 0, 0, 0, 99]);
        });
    }

    #[test]
    fn a_gap_a_flag_or_a_duplicate_acknowledgement_is_never_joined_and_keeps_its_place() {
        on_a_machine(|| {
            let mut fin = data(5, b"last");
            fin.flags |= TcpFlags::FIN;
            assert_eq!(batch(&[data(1, b"some"), fin]).len(), 2);
            assert_eq!(batch(&[data(1, b"some"), data(6, b"gap")]).len(), 2);
            let out = batch(&[data(1, b"some"), data(5, b""), data(5, b""), data(5, b"x")]);
            let lengths: Vec<usize> = out.iter().map(|m| checked_payload(m).len()).collect();
            assert_eq!(lengths, [4, 0, 0, 1]);
        });
    }

    #[test]
    fn an_older_timestamp_is_never_joined() {
        on_a_machine(|| {
            let mut old = data(5, b"more");
            old.timestamp = Some((0, 7));
            assert_eq!(batch(&[data(1, b"some"), old]).len(), 2);
        });
    }

    #[test]
    fn a_bad_checksum_goes_up_alone_and_unmarked() {
        on_a_machine(|| {
            let mut lro = TcpLro::new(Arc::new(IpTunables::new()), Arc::new(LroStat::new()), 8);
            let mut out = MbufQueue::new();
            lro.rx(data(1, b"some").mbuf(), &mut out);
            let mut bad = data(5, b"more").build();
            bad[TH + 33] ^= 1;
            let mut m = Mbuf::getcl(How::NoWait).unwrap();
            assert!(m.append(&bad));
            lro.rx(m, &mut out);
            assert_eq!(out.len(), 2);
            out.pop();
            let m = out.pop().unwrap();
            assert!(!m.pkthdr().csum_flags.contains(CsumFlags::DATA_VALID));
            assert_eq!(lro.stat.lro_bad_csum.fetch(), 1);
        });
    }

    #[test]
    fn more_flows_than_entries_push_the_oldest_out() {
        on_a_machine(|| {
            let frames: Vec<Frame> = (0..9)
                .map(|i| Frame {
                    port: 80 + i,
                    ..data(1, b"some")
                })
                .collect();
            let out = batch(&frames);
            assert_eq!(out.len(), frames.len());
            let ports: Vec<u8> = out.iter().map(|m| m.data()[TH + 1]).collect();
            assert_eq!(ports, (80..=88).collect::<Vec<u8>>());
        });
    }

    #[test]
    fn a_joined_packet_stays_below_the_longest_datagram() {
        on_a_machine(|| {
            let payload = [7; 1448];
            let frames: Vec<Frame> = (0..100).map(|i| data(1 + i * 1448, &payload)).collect();
            let out = batch(&frames);
            assert!(out.len() >= 3);
            let total: usize = out.iter().map(|m| checked_payload(m).len()).sum();
            assert_eq!(total, 100 * 1448);
            assert!(
                out.iter()
                    .all(|m| m.pkt_len() <= ETHER_HDR_LEN + TCP_LRO_LENGTH_MAX)
            );
        });
    }

    #[test]
    fn frames_cut_anywhere_pass_through() {
        on_a_machine(|| {
            let whole = data(1, b"some").build();
            for len in 0..whole.len() {
                let mut lro = TcpLro::new(Arc::new(IpTunables::new()), Arc::new(LroStat::new()), 8);
                let mut out = MbufQueue::new();
                let mut m = Mbuf::getcl(How::NoWait).unwrap();
                assert!(m.append(&whole[..len]));
                lro.rx(m, &mut out);
                lro.flush_all(&mut out);
                assert_eq!(out.len(), 1);
            }
        });
    }
}
