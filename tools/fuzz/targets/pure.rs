//! Parsers that need no stack: what they must do with any bytes, and what must come back of what they wrote.

use super::frame::{self, Layer};
use super::input::{Control, Reader, Record, records};
use crate::generate::checksum;
use netinet::ip::Ip;
use netinet::ip_input::IpTunables;
use netinet::tcp::{TCP_HLEN, TCP_MAXOLEN, TcpHeader, TcpOpt, TcpOptFlags};
use netinet::tcp_lro::{LroStat, TcpLro};
use std::collections::BTreeMap;
use std::sync::Arc;
use sys::machine::in_cksum::{
    CksumAccum, in_cksum, in_cksum_copy, in_cksum_partial, in_cksum_update,
};
use sys::mbuf::{How, Mbuf, MbufQueue};
use sys::net::iflib::Lro;

/// Reads TCP options, writes what was read, and reads it again.
pub fn tcp_options(input: &[u8]) {
    let (&first, options) = input.split_first().unwrap_or((&0, &[]));
    let syn = first & 1 != 0;
    let options = &options[..options.len().min(TCP_MAXOLEN)];
    let read = TcpOpt::parse(options, syn);
    assert!(read.sacks().len() <= 4);
    let write = |to: &TcpOpt| {
        let mut out = [0xee; TCP_MAXOLEN];
        let len = to.write(&mut out);
        assert!(
            len <= TCP_MAXOLEN && len.is_multiple_of(4),
            "{len} bytes of options"
        );
        assert!(
            out[len..].iter().all(|&byte| byte == 0xee),
            "written behind the end"
        );
        out[..len].to_vec()
    };
    let written = write(&read);
    let again = TcpOpt::parse(&written, syn);
    // What does not fit in our order and alignment is left out, but nothing is added or changed.
    assert!(
        read.to_flags.contains(again.to_flags),
        "{read:?} became {again:?}"
    );
    let kept = again.to_flags;
    let same = (!kept.contains(TcpOptFlags::MSS) || read.to_mss == again.to_mss)
        && (!kept.contains(TcpOptFlags::SCALE) || read.to_wscale == again.to_wscale)
        && (!kept.contains(TcpOptFlags::TS)
            || (read.to_tsval, read.to_tsecr) == (again.to_tsval, again.to_tsecr))
        && (!kept.contains(TcpOptFlags::SACK) || read.sacks().starts_with(again.sacks()))
        && (!kept.contains(TcpOptFlags::FASTOPEN) || read.to_tfo.bytes() == again.to_tfo.bytes());
    assert!(same, "{read:?} became {again:?}");
    assert_eq!(write(&again), written, "options written a second time");
    if !kept.is_empty() && kept == TcpOptFlags::TS {
        assert_eq!(
            TcpOpt::parse_timestamp_only(&written),
            Some((again.to_tsval, again.to_tsecr))
        );
    }
}

/// Reads headers of TCP and IPv4, writes what was read, and compares bytes.
pub fn headers(input: &[u8]) {
    if let Ok(th) = TcpHeader::parse(input) {
        let mut out = [0; TCP_HLEN];
        th.write(&mut out);
        assert_eq!(out, input[..TCP_HLEN], "{th:?}");
    }
    if let Some(ip) = Ip::parse(input) {
        assert!(ip.hlen() <= 60);
    }
}

/// Sums bytes in pieces, in mbufs, while copying, and one by one: all must agree.
pub fn checksums(input: &[u8]) {
    let mut reader = Reader::new(input);
    let how = reader.u8();
    let cuts = reader.bytes(usize::from(how >> 5));
    let odd = how & 1 != 0;
    let bytes = reader.bytes(usize::MAX);
    let slow = |bytes: &[u8], odd: bool| {
        // A byte before them moves all by one.
        match odd {
            false => !checksum(0, bytes),
            true => !checksum(0, &[&[0], bytes].concat()),
        }
    };
    let sum = in_cksum_partial(bytes, odd).fold();
    assert!(
        same(sum, slow(bytes, odd)),
        "{sum:04x} and {:04x}",
        slow(bytes, odd)
    );
    let mut copy = vec![0; bytes.len()];
    assert!(same(in_cksum_copy(&mut copy, bytes, odd).fold(), sum));
    assert_eq!(copy, bytes);
    let mut accum = CksumAccum::ZERO;
    let (mut rest, mut at, mut chain) = (bytes, odd, None::<Mbuf>);
    for cut in cuts.iter().map(|&cut| usize::from(cut)).chain([usize::MAX]) {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        accum = accum.add_bytes(piece, at);
        at ^= piece.len() % 2 != 0;
        rest = after;
        let m = Mbuf::from_bytes(piece, How::Wait).expect("memory");
        match &mut chain {
            None => chain = Some(m),
            Some(chain) => chain.cat_pkt(m),
        }
    }
    assert!(same(accum.fold(), sum), "in pieces at {cuts:?}");
    let chain = chain.expect("one piece at least");
    assert_eq!(chain.pkt_len(), bytes.len());
    let skip = usize::from(how >> 1 & 15).min(bytes.len());
    let in_mbufs = chain.in_cksum_skip(bytes.len(), skip);
    assert!(
        same(!in_mbufs, slow(&bytes[skip..], false)),
        "in mbufs at {cuts:?}, from {skip}"
    );
    if let Some((&[high, low], tail)) = bytes.split_first_chunk::<2>() {
        let new = u16::from_be_bytes([cuts.first().copied().unwrap_or(how), how]);
        let changed = [&new.to_be_bytes(), tail].concat();
        let updated = in_cksum_update(in_cksum(bytes), u16::from_be_bytes([high, low]), new);
        assert!(same(updated, in_cksum(&changed)), "for one changed word");
    }
}

/// Equal as one's-complement numbers: 0 and 0xffff are the same.
fn same(a: u16, b: u16) -> bool {
    a == b || (a.is_multiple_of(0xffff) && b.is_multiple_of(0xffff))
}

/// Reads a script; what is wrong with it stands in it.
pub fn packetdrill(input: &[u8]) {
    let Ok(text) = core::str::from_utf8(input) else {
        return;
    };
    if let Err(error) = packetdrill::parser::parse(text) {
        let lines = text.lines().count().max(1);
        let place = 1..=lines + 1;
        assert!(place.contains(&error.pos.line), "{error} of {lines} lines");
        assert!(!error.reason.is_empty());
    }
}

/// Puts frames through LRO: none is lost, each connection's data keeps its order, and what was joined has right sums.
pub fn lro(input: &[u8]) {
    let mut lro = TcpLro::new(Arc::new(IpTunables::new()), Arc::new(LroStat::new()), 4);
    let (mut before, mut after) = (Streams::default(), Streams::default());
    let mut out = MbufQueue::new();
    let mut collect = |out: &mut MbufQueue| {
        while let Some(m) = out.pop() {
            let frame: Vec<u8> = m.segments().flatten().copied().collect();
            assert_eq!(frame.len(), m.pkt_len(), "length of the packet");
            after.take(frame);
        }
    };
    for record in records(input) {
        let layer = match record.control.0 >> 6 {
            3 => Layer::Ip,
            2 => Layer::Ether,
            _ => Layer::Tcp,
        };
        // Frames to a group are no matter of the parser's.
        let control = Control(record.control.0 & 0x3f);
        let frame = frame::frame(layer, &Record { control, ..record });
        if frame.is_empty() {
            continue;
        }
        let m = Mbuf::from_bytes(&frame, How::Wait).expect("memory");
        before.take(frame);
        lro.rx(m, &mut out);
        if control.pause_us() > 0 {
            lro.flush_all(&mut out);
        }
        collect(&mut out);
    }
    lro.flush_all(&mut out);
    collect(&mut out);
    assert_eq!(before.data, after.data, "data of connections");
    assert_eq!(before.others, after.others, "frames that LRO leaves alone");
}

/// What frames carry.
#[derive(Default)]
struct Streams {
    /// By addresses and ports, in order.
    data: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What is no good TCP segment.
    others: Vec<Vec<u8>>,
}

impl Streams {
    fn take(&mut self, mut frame: Vec<u8>) {
        if let Some([high, low]) = frame.get(16..18) {
            // Padding behind the datagram is nothing.
            let len = 14 + usize::from(u16::from_be_bytes([*high, *low]));
            if frame[12..14] == [8, 0] && len >= 34 {
                frame.truncate(len);
            }
        }
        let tcp = frame.get(12..14) == Some(&[8, 0])
            && frame.get(23) == Some(&6)
            && frame
                .get(20..22)
                .is_some_and(|off| off[0] & 0x3f == 0 && off[1] == 0);
        let mut ours = frame.clone();
        if let Some(source) = ours.get_mut(6..12) {
            source.copy_from_slice(&frame::OUR_MAC);
        }
        if !tcp || frame::fault(&ours).is_some() {
            self.others.push(frame);
            return;
        }
        let start = 14 + usize::from(frame[14] & 15) * 4;
        let payload = start + usize::from(frame[start + 12] >> 4) * 4;
        let flow = [&frame[26..34], &frame[start..start + 4]].concat();
        self.data.entry(flow).or_default().extend(&frame[payload..]);
    }
}
