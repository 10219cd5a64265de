//! The buffer against a plain vector of bytes.

use super::*;
use crate::kern::kern_mbuf::MbufStat;
use crate::machine::hosted::Machine;
use crate::mbuf::ClusterSize;
use core::net::Ipv4Addr;

const LIMITS: SbLimits = SbLimits {
    sb_max: 2 * 1024 * 1024,
    waste_factor: 8,
};

fn buffer(size: u32) -> Sockbuf {
    let mut sb = Sockbuf::new();
    sb.reserve(size, &LIMITS).unwrap();
    sb
}

/// A chain with the bytes, of mbufs and clusters as they come.
fn chain(bytes: &[u8]) -> Mbuf {
    let mut m = Mbuf::from_bytes(&bytes[..bytes.len().min(100)], How::NoWait).unwrap();
    if bytes.len() > 100 {
        let mut rest = Mbuf::getcl_nohdr(How::NoWait, ClusterSize::K4).unwrap();
        let rest_bytes = &bytes[100..];
        let n = rest_bytes.len().min(4096);
        rest.extend_mut(n).copy_from_slice(&rest_bytes[..n]);
        m.cat(rest);
        if rest_bytes.len() > n {
            m.cat(chain(&rest_bytes[n..]));
        }
    }
    m
}

fn contents(m: &Mbuf) -> Vec<u8> {
    let mut bytes = vec![0; m.length()];
    assert!(m.copydata(0, &mut bytes));
    bytes
}

use alloc::vec;

#[test]
fn a_buffer_is_no_larger_than_maxsockbuf_less_the_share_of_mbufs() {
    let mut sb = Sockbuf::new();
    assert_eq!(LIMITS.max_adj(), 1_864_135);
    assert_eq!(sb.reserve(LIMITS.max_adj() + 1, &LIMITS), Err(TooLarge));
    assert_eq!(sb.reserve(LIMITS.max_adj(), &LIMITS), Ok(()));
    assert_eq!(sb.mbmax(), LIMITS.sb_max);
    sb.sb_lowat = 2048;
    assert_eq!(sb.reserve(1000, &LIMITS), Ok(()));
    assert_eq!((sb.mbmax(), sb.lowat()), (8000, 1000));
}

#[test]
fn space_is_the_lesser_of_bytes_and_memory() {
    Machine::builder().run(|| {
        let mut sb = buffer(1000);
        sb.sb_flags |= SbFlags::NOCOALESCE;
        assert_eq!(sb.space(), 1000);
        for _ in 0..3 {
            let mut m = Mbuf::getcl(How::NoWait).unwrap();
            m.extend_mut(1);
            sb.appendstream(m);
        }
        // Three clusters for three bytes: 3 * (256 + 2048) of 8000.
        assert_eq!((sb.used(), sb.mbcnt()), (3, 6912));
        assert_eq!(sb.space(), 997);
        sb.sb_mbmax = 7000;
        assert_eq!(sb.space(), 88);
    });
}

#[test]
fn small_pieces_are_merged() {
    Machine::builder().run(|| {
        let mut sb = buffer(65536);
        let mut sent = Vec::new();
        for i in 0..100u8 {
            sent.extend_from_slice(&[i; 20]);
            sb.appendstream(chain(&[i; 20]));
        }
        assert!(sb.sb_mb.len() < 100 / 4, "{} mbufs", sb.sb_mb.len());
        let all = sb.copy_range(0, sb.used(), How::NoWait).unwrap();
        assert_eq!(contents(&all), sent);
    });
}

#[test]
fn ranges_are_the_bytes_that_went_in_whatever_is_cut_and_asked() {
    Machine::builder().run(|| {
        let before = MbufStat::snapshot().in_use();
        {
            let mut sb = buffer(1 << 20);
            let mut model: Vec<u8> = Vec::new();
            let mut state = 12345u64;
            let mut random = |below: usize| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 33) as usize % below.max(1)
            };
            let mut next = 0u8;
            for _ in 0..3000 {
                match random(4) {
                    0 | 1 if model.len() < 100_000 => {
                        let below = if random(2) == 0 { 60 } else { 6000 };
                        let n = 1 + random(below);
                        let bytes: Vec<u8> = (0..n)
                            .map(|_| {
                                next = next.wrapping_add(7);
                                next
                            })
                            .collect();
                        model.extend_from_slice(&bytes);
                        sb.appendstream(chain(&bytes));
                    }
                    2 => {
                        let n = random(model.len() + 1);
                        let n = if random(3) == 0 { n } else { n.min(3000) };
                        sb.drop_bytes(n as u32);
                        model.drain(..n);
                    }
                    _ => {
                        let off = random(model.len());
                        let len = random(model.len() - off + 1).min(65536);
                        let range = sb.copy_range(off as u32, len as u32, How::NoWait);
                        match range {
                            None => assert_eq!(len, 0),
                            Some(m) => assert_eq!(contents(&m), model[off..off + len]),
                        }
                        let mut copied = vec![0; len];
                        assert!(sb.copy_out(off as u32, &mut copied));
                        assert_eq!(copied, model[off..off + len]);
                    }
                }
                assert_eq!(sb.used() as usize, model.len());
                let cost: u32 = sb.sb_mb.iter().map(charge).sum();
                assert_eq!(sb.mbcnt(), cost);
            }
            assert!(sb.copy_range(1, sb.used(), How::NoWait).is_none());
            assert!(!sb.copy_out(sb.used(), &mut [0]));
        }
        assert_eq!(MbufStat::snapshot().in_use(), before);
    });
}

#[test]
fn a_datagram_fits_whole_or_comes_back() {
    Machine::builder().run(|| {
        let mut sb = buffer(1000);
        let from = SockAddr::v4(Ipv4Addr::new(10, 0, 0, 1), 53);
        assert!(sb.appendaddr(Some(&from), chain(&[1; 600]), None).is_ok());
        // The address is charged too.
        assert_eq!(sb.used(), 616);
        let NoSpace(back) = sb
            .appendaddr(Some(&from), chain(&[2; 400]), None)
            .err()
            .unwrap();
        assert_eq!(back.length(), 400);
        let record = sb.pop_record().unwrap();
        assert_eq!(record.from, Some(from));
        assert_eq!(contents(&record.m), [1; 600]);
        assert_eq!((sb.used(), sb.mbcnt()), (0, 0));
        assert!(sb.pop_record().is_none());
    });
}
