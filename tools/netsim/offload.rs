//! What a NIC does to a frame before it reaches the wire: checksums and segmentation.
//!
//! Like a NIC it believes the header lengths of the packet header and parses nothing else, so that a stack that
//! fills them wrongly is found out at the other end.

use sys::machine::in_cksum::{CksumAccum, in_cksum, in_pseudo};
use sys::mbuf::CsumFlags;

/// What the packet header asks of the NIC.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Work asked for.
    pub flags: CsumFlags,
    /// Link header bytes.
    pub l2: usize,
    /// Network header bytes.
    pub l3: usize,
    /// Transport header bytes.
    pub l4: usize,
    /// Payload bytes per segment.
    pub segment: usize,
    /// Offset of the checksum field in the transport header.
    pub csum_offset: usize,
}

/// The header lengths do not fit the frame, or there is no segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRequest;

/// Turns what the stack handed down into the frames that go on the wire.
pub fn apply(mut frame: Vec<u8>, req: &Request) -> Result<Vec<Vec<u8>>, BadRequest> {
    if req.flags.intersects(CsumFlags::TSO) {
        return cut(&frame, req);
    }
    if req.flags.intersects(CsumFlags::IP) {
        ip_checksum(&mut frame, req)?;
    }
    if req.flags.intersects(CsumFlags::DELAY_DATA) {
        // The field already holds the sum of the pseudo header.
        let start = req.l2 + req.l3;
        let end = ip_end(&frame, req)?;
        let sum = in_cksum(frame.get(start..end).ok_or(BadRequest)?);
        put_sum(&mut frame, start + req.csum_offset, sum, req.flags)?;
    }
    Ok(vec![frame])
}

/// Where the IP packet ends: frames may be padded.
fn ip_end(frame: &[u8], req: &Request) -> Result<usize, BadRequest> {
    let len = frame.get(req.l2 + 2..req.l2 + 4).ok_or(BadRequest)?;
    let end = req.l2 + usize::from(u16::from_be_bytes([len[0], len[1]]));
    if req.l3 < 20 || end > frame.len() || end < req.l2 + req.l3 {
        return Err(BadRequest);
    }
    Ok(end)
}

fn ip_checksum(frame: &mut [u8], req: &Request) -> Result<(), BadRequest> {
    let header = frame
        .get_mut(req.l2..req.l2 + req.l3)
        .filter(|h| h.len() >= 20)
        .ok_or(BadRequest)?;
    header[10..12].fill(0);
    let sum = in_cksum(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

fn put_sum(frame: &mut [u8], at: usize, sum: u16, flags: CsumFlags) -> Result<(), BadRequest> {
    // RFC 768: a computed 0 is sent as all ones, since 0 says "no checksum".
    let sum = if sum == 0 && flags.contains(CsumFlags::IP_UDP) {
        0xffff
    } else {
        sum
    };
    let field = frame.get_mut(at..at + 2).ok_or(BadRequest)?;
    field.copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// TSO over IPv4: one frame per `segment` bytes of payload.
fn cut(frame: &[u8], req: &Request) -> Result<Vec<Vec<u8>>, BadRequest> {
    const FIN: u8 = 0x01;
    const PSH: u8 = 0x08;
    const CWR: u8 = 0x80;
    let tcp = req.l2 + req.l3;
    let headers = tcp + req.l4;
    if req.segment == 0 || req.l3 < 20 || req.l4 < 20 || frame.len() < headers {
        return Err(BadRequest);
    }
    let payload = &frame[headers..];
    let id = u16::from_be_bytes([frame[req.l2 + 4], frame[req.l2 + 5]]);
    let seq = u32::from_be_bytes([
        frame[tcp + 4],
        frame[tcp + 5],
        frame[tcp + 6],
        frame[tcp + 7],
    ]);
    let octets = |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
    let (src, dst) = (octets(req.l2 + 12), octets(req.l2 + 16));
    let count = payload.len().div_ceil(req.segment).max(1);
    let mut out = Vec::with_capacity(count);
    for i in 0..count {
        let from = i * req.segment;
        let piece = &payload[from..payload.len().min(from + req.segment)];
        let mut f = Vec::with_capacity(headers + piece.len());
        f.extend_from_slice(&frame[..headers]);
        f.extend_from_slice(piece);
        let ip_len = (req.l3 + req.l4 + piece.len()) as u16;
        f[req.l2 + 2..req.l2 + 4].copy_from_slice(&ip_len.to_be_bytes());
        f[req.l2 + 4..req.l2 + 6].copy_from_slice(&id.wrapping_add(i as u16).to_be_bytes());
        ip_checksum(&mut f, req)?;
        f[tcp + 4..tcp + 8].copy_from_slice(&seq.wrapping_add(from as u32).to_be_bytes());
        if i + 1 < count {
            f[tcp + 13] &= !(FIN | PSH);
        }
        if i > 0 {
            f[tcp + 13] &= !CWR;
        }
        f[tcp + 16..tcp + 18].fill(0);
        let pseudo = in_pseudo(src.into(), dst.into(), 6 + (req.l4 + piece.len()) as u32);
        let sum = CksumAccum::default()
            .add_u16(pseudo)
            .add_bytes(&f[tcp..], false)
            .finish();
        f[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        out.push(f);
    }
    Ok(out)
}

/// What a receiving NIC says about the checksums of an IPv4 frame.
pub fn verify(frame: &[u8]) -> CsumFlags {
    const IP: usize = 14;
    let mut found = CsumFlags::empty();
    let Some(ip) = frame.get(IP..).filter(|ip| ip.len() >= 20) else {
        return found;
    };
    let header = usize::from(ip[0] & 0xf) * 4;
    let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let is_ip = frame[12..14] == [8, 0] && ip[0] >> 4 == 4;
    if !is_ip || header < 20 || len < header || len > ip.len() {
        return found;
    }
    found |= CsumFlags::L3_CALC;
    if in_cksum(&ip[..header]) != 0 {
        return found;
    }
    found |= CsumFlags::L3_VALID;
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    let (proto, segment) = (ip[9], &ip[header..len]);
    let unsummed = proto == 17 && segment.get(6..8) == Some(&[0, 0]);
    if fragment || unsummed || !matches!(proto, 6 | 17) {
        return found;
    }
    let octets = |at: usize| [ip[at], ip[at + 1], ip[at + 2], ip[at + 3]];
    let proto_len = u32::from(proto) + segment.len() as u32;
    let pseudo = in_pseudo(octets(12).into(), octets(16).into(), proto_len);
    let sum = CksumAccum::ZERO.add_u16(pseudo).add_bytes(segment, false);
    if sum.finish() == 0 {
        found |= CsumFlags::L4_CALC | CsumFlags::L4_VALID;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet, IPv4 and TCP headers with `payload`, checksum fields as the stack leaves them.
    fn tcp_frame(payload: usize, flags: u8) -> Vec<u8> {
        let mut f = vec![0; 14 + 20 + 20];
        f[12] = 8;
        f[14] = 0x45;
        f[16..18].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
        f[18..20].copy_from_slice(&0xfffeu16.to_be_bytes());
        f[22] = 64;
        f[23] = 6;
        f[26..30].copy_from_slice(&[10, 0, 0, 1]);
        f[30..34].copy_from_slice(&[10, 0, 0, 2]);
        f[38..42].copy_from_slice(&0xffff_ff00u32.to_be_bytes());
        f[46] = 0x50;
        f[47] = flags;
        let pseudo = in_pseudo(
            [10, 0, 0, 1].into(),
            [10, 0, 0, 2].into(),
            (6 + 20 + payload) as u32,
        );
        f[50..52].copy_from_slice(&pseudo.to_be_bytes());
        f.extend((0..payload).map(|i| i as u8));
        f
    }

    fn request(flags: CsumFlags, segment: usize) -> Request {
        Request {
            flags,
            l2: 14,
            l3: 20,
            l4: 20,
            segment,
            csum_offset: 16,
        }
    }

    fn assert_sums_right(f: &[u8]) {
        assert_eq!(in_cksum(&f[14..34]), 0, "IP header checksum");
        let tcp = &f[34..];
        let pseudo = in_pseudo(
            [10, 0, 0, 1].into(),
            [10, 0, 0, 2].into(),
            6 + tcp.len() as u32,
        );
        let sum = CksumAccum::ZERO.add_u16(pseudo).add_bytes(tcp, false);
        assert_eq!(sum.finish(), 0, "TCP checksum");
    }

    #[test]
    fn checksums_left_to_the_nic_are_right_on_the_wire() {
        let frames = apply(
            tcp_frame(101, 0x18),
            &request(CsumFlags::IP | CsumFlags::IP_TCP, 0),
        );
        assert_sums_right(&frames.unwrap()[0]);
    }

    #[test]
    fn a_large_frame_is_cut_into_segments_whose_sequence_ids_and_flags_follow_on() {
        let frames = apply(
            tcp_frame(2500, 0x19),
            &request(CsumFlags::IP_TSO | CsumFlags::IP_TCP, 1000),
        )
        .unwrap();
        assert_eq!(frames.len(), 3);
        let mut bytes = Vec::new();
        for (i, f) in frames.iter().enumerate() {
            assert_sums_right(f);
            let id = u16::from_be_bytes([f[18], f[19]]);
            assert_eq!(id, 0xfffeu16.wrapping_add(i as u16));
            let seq = u32::from_be_bytes([f[38], f[39], f[40], f[41]]);
            assert_eq!(seq, 0xffff_ff00u32.wrapping_add(1000 * i as u32));
            assert_eq!(f[47], if i == 2 { 0x19 } else { 0x10 });
            bytes.extend_from_slice(&f[54..]);
        }
        assert_eq!(bytes, tcp_frame(2500, 0x19)[54..]);
    }

    #[test]
    fn a_receiving_nic_vouches_for_good_sums_only() {
        let req = request(CsumFlags::IP | CsumFlags::IP_TCP, 0);
        let mut f = apply(tcp_frame(101, 0x18), &req).unwrap().remove(0);
        let good = verify(&f);
        assert!(good.contains(CsumFlags::L3_VALID | CsumFlags::L4_VALID));
        f[60] ^= 1;
        assert!(!verify(&f).contains(CsumFlags::L4_VALID));
        f[20] ^= 1;
        assert!(!verify(&f).contains(CsumFlags::L3_VALID));
    }

    #[test]
    fn header_lengths_that_do_not_fit_the_frame_are_refused() {
        let mut req = request(CsumFlags::IP_TSO, 1000);
        req.l4 = 4000;
        assert_eq!(apply(tcp_frame(10, 0), &req), Err(BadRequest));
        let mut req = request(CsumFlags::IP_TCP, 0);
        req.l2 = 500;
        assert_eq!(apply(tcp_frame(10, 0), &req), Err(BadRequest));
    }
}
