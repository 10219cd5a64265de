//! Signatures of segments with a secret that both ends share (RFC 2385).
//!
//! FreeBSD: sys/netipsec/xform_tcp.c

use core::net::IpAddr;

use md5::{Digest, Md5};
use sys::errno::Errno;
use sys::mbuf::Mbuf;

use crate::ip::IPPROTO_TCP;
use crate::netinet6::in6_src::in6_clearscope;
use crate::tcp::{SIGNATURE_LEN, TCP_HLEN, signature_at};
use crate::tcp_input::Segment;
use crate::tcp_subr::TcpVnet;

/// RFC 2385 §2: over pseudo header, header without options and with a checksum of zero, data, and secret; `tcp` is where
/// the header begins, `data` where the data does.
#[doc(alias = "tcp_signature_compute")]
fn digest(
    key: &[u8],
    (src, dst): (IpAddr, IpAddr),
    m: &Mbuf,
    tcp: usize,
    data: usize,
) -> Option<[u8; SIGNATURE_LEN]> {
    let len = m.pkt_len().checked_sub(tcp)?;
    let header: &[u8; TCP_HLEN] = m.data().get(tcp..)?.first_chunk()?;
    let mut md5 = Md5::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            md5.update(src.octets());
            md5.update(dst.octets());
            md5.update([0, IPPROTO_TCP]);
            md5.update((len as u16).to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            md5.update(in6_clearscope(src).octets());
            md5.update(in6_clearscope(dst).octets());
            md5.update((len as u32).to_be_bytes());
            md5.update([0, 0, 0, IPPROTO_TCP]);
        }
        // Both ends are of one family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    md5.update(&header[..16]);
    md5.update([0, 0]);
    md5.update(&header[18..]);
    let mut skip = data;
    for piece in m.segments() {
        let from = skip.min(piece.len());
        skip -= from;
        md5.update(&piece[from..]);
    }
    md5.update(key);
    Some(md5.finalize().into())
}

/// Whether the signatures are equal; takes as long for any two.
fn same(a: &[u8; SIGNATURE_LEN], b: &[u8; SIGNATURE_LEN]) -> bool {
    let differ = a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b));
    core::hint::black_box(differ) == 0
}

/// Signs a segment from `src` to `dst`, whose TCP header of `tcplen` bytes begins at `tcp` of `m` and has room for the
/// option. `ENOENT` if the two share no secret.
#[doc(alias = "tcp_ipsec_output")]
pub(crate) fn tcp_md5_output(
    vt: &TcpVnet,
    (src, dst): (IpAddr, IpAddr),
    m: &mut Mbuf,
    tcp: usize,
    tcplen: usize,
) -> Result<(), Errno> {
    let signature = vt
        .keydb
        .lookup(src, dst)
        .and_then(|key| digest(&key, (src, dst), m, tcp, tcp + tcplen));
    let Some(signature) = signature else {
        vt.stat.tcps_sig_err_buildsig.inc();
        return Err(Errno::ENOENT);
    };
    let options = m.data_mut().get_mut(tcp + TCP_HLEN..tcp + tcplen);
    if let Some(options) = options
        && let Some(at) = signature_at(options)
        && let Some(room) = options.get_mut(at..at + SIGNATURE_LEN)
    {
        room.copy_from_slice(&signature);
    }
    Ok(())
}

/// Checks a segment whose headers stand at the front of its packet: `ENOENT` if its ends share no secret, `EACCES` if
/// they do and the signature is missing or wrong.
#[doc(alias = "tcp_ipsec_input")]
pub(crate) fn tcp_md5_input(vt: &TcpVnet, seg: &Segment) -> Result<(), Errno> {
    let stat = &vt.stat;
    let Some(key) = vt.keydb.lookup(seg.src, seg.dst) else {
        stat.tcps_sig_err_buildsig.inc();
        return Err(Errno::ENOENT);
    };
    let Some(signature) = &seg.to.signature() else {
        stat.tcps_sig_err_nosigopt.inc();
        return Err(Errno::EACCES);
    };
    let data = seg.hdrlen as usize;
    let tcp = data.saturating_sub(usize::from(seg.th.th_off));
    let right = seg
        .m
        .as_ref()
        .and_then(|m| digest(&key, (seg.src, seg.dst), m, tcp, data));
    match right {
        Some(right) if same(&right, signature) => {
            stat.tcps_sig_rcvgoodsig.inc();
            Ok(())
        }
        _ => {
            stat.tcps_sig_rcvbadsig.inc();
            Err(Errno::EACCES)
        }
    }
}
