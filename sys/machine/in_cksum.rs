//! The Internet checksum over bytes.
//!
//! FreeBSD: sys/amd64/include/in_cksum.h, sys/libkern/in_cksum.c
//! Sums are kept in memory order (as FreeBSD does on a little-endian machine): `fold` gives the number whose
//! big-endian bytes go into the header.

use core::net::{Ipv4Addr, Ipv6Addr};

/// An unfolded one's-complement sum. Add parts in any order, then `fold`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct CksumAccum(u64);

impl CksumAccum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Folds to 16 bits, not complemented.
    pub fn fold(self) -> u16 {
        todo!()
    }

    /// Folds and complements: the value for a checksum field, or 0 when verifying a good packet.
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// Adds another sum that begins on an even offset.
    #[must_use]
    pub fn plus(self, _other: Self) -> Self {
        todo!()
    }

    /// Adds the sum of `bytes`, which begin at an odd offset of the packet if `odd`.
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8], odd: bool) -> Self {
        let _ = (bytes, odd);
        todo!()
    }

    /// Adds one 16-bit word.
    #[must_use]
    pub fn add_u16(self, _word: u16) -> Self {
        todo!()
    }
}

/// Sums `bytes`, which begin at an odd offset of the packet if `odd`.
pub fn in_cksum_partial(bytes: &[u8], odd: bool) -> CksumAccum {
    CksumAccum::ZERO.add_bytes(bytes, odd)
}

/// Checksums `bytes` (complemented and folded): what an IPv4 header carries, 0 if it already carries it.
pub fn in_cksum(bytes: &[u8]) -> u16 {
    in_cksum_partial(bytes, false).finish()
}

/// Copies `src` to `dst` (of equal length) and returns the sum of what was copied.
pub fn in_cksum_copy(dst: &mut [u8], src: &[u8], odd: bool) -> CksumAccum {
    let _ = (dst, src, odd);
    todo!()
}

/// Sums the IPv4 pseudo header: addresses and `proto_len`, that is protocol plus length.
///
/// Folded, not complemented: the seed of a transport checksum field that the interface will finish.
pub fn in_pseudo(src: Ipv4Addr, dst: Ipv4Addr, proto_len: u32) -> u16 {
    let _ = (src, dst, proto_len);
    todo!()
}

/// Sums the IPv6 pseudo header (RFC 8200 §8.1). Folded, not complemented.
pub fn in6_cksum_pseudo(src: &Ipv6Addr, dst: &Ipv6Addr, len: u32, next_header: u8) -> u16 {
    let _ = (src, dst, len, next_header);
    todo!()
}

/// Updates a checksum field for one changed 16-bit word (RFC 1624, equation 3).
pub fn in_cksum_update(check: u16, old: u16, new: u16) -> u16 {
    let _ = (check, old, new);
    todo!()
}
