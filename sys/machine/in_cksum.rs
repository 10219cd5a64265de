//! The Internet checksum over bytes.
//!
//! FreeBSD: sys/amd64/include/in_cksum.h, sys/libkern/in_cksum.c
//! Every 16-bit value taken or returned here is the number that stands big-endian in the header, so it goes
//! through `U16Be` like any other field.

use core::net::{Ipv4Addr, Ipv6Addr};

/// An unfolded one's-complement sum. Parts may be added in any order.
///
/// Kept as 64 bits in memory order with the carries added back in: 2^64 is 1 modulo 2^16 - 1, so folding it gives
/// the 16-bit sum, and rotating it by 8 bits is the byte swap that a part at an odd offset needs (RFC 1071 §2).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct CksumAccum(u64);

/// One's-complement addition: the carry comes back in at the bottom.
#[inline(always)]
fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(u64::from(carry))
}

impl CksumAccum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Folds to 16 bits, not complemented.
    #[inline]
    pub fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 32) + (sum & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        u16::from_be(sum as u16)
    }

    /// Folds and complements: the value for a checksum field, or 0 over bytes that include a good one.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// Adds another sum that begins on an even offset.
    #[must_use]
    #[inline]
    pub fn plus(self, other: Self) -> Self {
        Self(add_carry(self.0, other.0))
    }

    /// Adds the sum of `bytes`, which begin at an odd offset of the packet if `odd`.
    #[must_use]
    #[inline]
    pub fn add_bytes(self, bytes: &[u8], odd: bool) -> Self {
        self.plus(in_cksum_partial(bytes, odd))
    }

    /// Adds one 16-bit word.
    #[must_use]
    #[inline]
    pub fn add_u16(self, word: u16) -> Self {
        Self(add_carry(self.0, u64::from(word.to_be())))
    }

    /// Adds one 32-bit number.
    #[must_use]
    #[inline]
    pub fn add_u32(self, word: u32) -> Self {
        Self(add_carry(self.0, u64::from(word.to_be())))
    }

    /// This sum moved to an odd offset, if `odd`.
    #[inline]
    fn shifted(self, odd: bool) -> Self {
        if odd {
            Self(self.0.rotate_left(8))
        } else {
            self
        }
    }
}

/// Fewer than 8 bytes as a word, the missing ones zero.
#[inline(always)]
fn short_word(mut bytes: &[u8]) -> u64 {
    // In pieces of 4, 2 and 1: a loop over bytes costs more than the rest of a short packet.
    let (mut sum, mut shift) = (0, 0);
    if let Some((four, rest)) = bytes.split_first_chunk::<4>() {
        sum = u64::from(u32::from_le_bytes(*four));
        (bytes, shift) = (rest, 32);
    }
    if let Some((two, rest)) = bytes.split_first_chunk::<2>() {
        sum |= u64::from(u16::from_le_bytes(*two)) << shift;
        (bytes, shift) = (rest, shift + 16);
    }
    if let Some(&one) = bytes.first() {
        sum |= u64::from(one) << shift;
    }
    u64::from_le(sum)
}

/// A sum of 64-bit words.
///
/// The words are added modulo 2^64 and, apart, their upper halves: from the two the exact sum follows, and no carry has to
/// be caught on the way. So the compiler makes vectors of the loops where it may, and where it may not (in the kernel, and
/// emulated) it is flags that are slow.
#[derive(Clone, Copy, Default)]
struct Words {
    sum: u64,
    upper: u64,
}

impl Words {
    #[inline(always)]
    fn add(&mut self, word: u64) {
        self.sum = self.sum.wrapping_add(word);
        self.upper = self.upper.wrapping_add(word >> 32);
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        // What the words add up to without their upper halves, and these by their weight.
        let lower = self.sum.wrapping_sub(self.upper << 32);
        add_carry(lower, self.upper.rotate_left(32))
    }
}

/// Sums `bytes`, which begin at an odd offset of the packet if `odd`.
pub fn in_cksum_partial(bytes: &[u8], odd: bool) -> CksumAccum {
    let (words, rest) = bytes.as_chunks();
    let mut sum = Words::default();
    for word in words {
        sum.add(u64::from_ne_bytes(*word));
    }
    CksumAccum(add_carry(sum.fold(), short_word(rest))).shifted(odd)
}

/// Checksums `bytes` (complemented and folded): what an IPv4 header carries, 0 if it already carries it.
pub fn in_cksum(bytes: &[u8]) -> u16 {
    in_cksum_partial(bytes, false).finish()
}

/// Copies `src` to `dst` and returns the sum of what was copied, which begins at an odd offset if `odd`.
///
/// Panics if the lengths differ, as `copy_from_slice` does.
pub fn in_cksum_copy(dst: &mut [u8], src: &[u8], odd: bool) -> CksumAccum {
    assert_eq!(dst.len(), src.len(), "copy between different lengths");
    let (to, to_rest) = dst.as_chunks_mut();
    let (from, from_rest) = src.as_chunks();
    let mut sum = Words::default();
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
        sum.add(u64::from_ne_bytes(*from));
    }
    to_rest.copy_from_slice(from_rest);
    CksumAccum(add_carry(sum.fold(), short_word(from_rest))).shifted(odd)
}

/// Sums the IPv4 pseudo header: addresses and `proto_len`, that is protocol plus length.
///
/// Folded, not complemented: the seed of a transport checksum field that the interface will finish.
pub fn in_pseudo(src: Ipv4Addr, dst: Ipv4Addr, proto_len: u32) -> u16 {
    CksumAccum::ZERO
        .add_u32(src.to_bits())
        .add_u32(dst.to_bits())
        .add_u32(proto_len)
        .fold()
}

/// Sums the IPv6 pseudo header (RFC 8200 §8.1). Folded, not complemented.
pub fn in6_cksum_pseudo(src: &Ipv6Addr, dst: &Ipv6Addr, len: u32, next_header: u8) -> u16 {
    CksumAccum::ZERO
        .add_bytes(&src.octets(), false)
        .add_bytes(&dst.octets(), false)
        .add_u32(len)
        .add_u16(u16::from(next_header))
        .fold()
}

/// Updates a checksum field for one changed 16-bit word (RFC 1624, equation 3).
pub fn in_cksum_update(check: u16, old: u16, new: u16) -> u16 {
    CksumAccum::ZERO
        .add_u16(!check)
        .add_u16(!old)
        .add_u16(new)
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §1, word by word.
    fn naive(bytes: &[u8], odd: bool) -> u16 {
        let mut sum = 0_u64;
        for (i, &byte) in bytes.iter().enumerate() {
            let high = (i + usize::from(odd)).is_multiple_of(2);
            sum += u64::from(byte) << if high { 8 } else { 0 };
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    /// Equal as one's-complement numbers: 0 and 0xffff are the same.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a.is_multiple_of(0xffff) && b.is_multiple_of(0xffff))
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(in_cksum_partial(&bytes, false).fold(), 0xddf2);
        assert_eq!(in_cksum(&bytes), !0xddf2);
    }

    #[test]
    fn a_header_with_its_checksum_in_place_verifies_to_zero() {
        let mut header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 192, 168, 0, 1, 192, 168, 0, 199,
        ];
        let check = in_cksum(&header);
        assert_eq!(check, 0xb861);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        assert_eq!(in_cksum(&header), 0);
    }

    #[test]
    fn many_full_words_do_not_lose_carries() {
        for len in [8, 64, 1448, 9000, 65535] {
            let bytes = std::vec![0xff; len];
            assert!(
                same(in_cksum_partial(&bytes, false).fold(), naive(&bytes, false)),
                "{len}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_sum_as_in_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..400), odd: bool) {
            prop_assert!(same(in_cksum_partial(&bytes, odd).fold(), naive(&bytes, odd)));
        }

        #[test]
        fn a_copy_is_exact_and_sums_as_its_source(bytes in proptest::collection::vec(any::<u8>(), 0..400), odd: bool) {
            let mut copy = std::vec![0; bytes.len()];
            let sum = in_cksum_copy(&mut copy, &bytes, odd);
            prop_assert!(same(sum.fold(), naive(&bytes, odd)));
            prop_assert_eq!(copy, bytes);
        }

        #[test]
        fn cutting_anywhere_does_not_change_the_sum(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len() + 1);
            let (front, back) = bytes.split_at(cut);
            let sum = in_cksum_partial(front, false).add_bytes(back, cut % 2 == 1);
            prop_assert!(same(sum.fold(), naive(&bytes, false)));
        }

        #[test]
        fn an_updated_checksum_is_that_of_the_changed_words(words in proptest::collection::vec(any::<u16>(), 2..40), new: u16) {
            let sum = |words: &[u16]| {
                words.iter().fold(CksumAccum::ZERO, |sum, &word| sum.add_u16(word)).finish()
            };
            let mut changed = words.clone();
            changed[1] = new;
            prop_assert!(same(in_cksum_update(sum(&words), words[1], new), sum(&changed)));
        }

        #[test]
        fn the_pseudo_headers_sum_as_their_bytes(src: u128, dst: u128, len: u16, proto: u8) {
            let (src6, dst6) = (Ipv6Addr::from(src), Ipv6Addr::from(dst));
            let mut bytes = [src6.octets(), dst6.octets()].concat();
            bytes.extend(u32::from(len).to_be_bytes());
            bytes.extend([0, 0, 0, proto]);
            prop_assert!(same(in6_cksum_pseudo(&src6, &dst6, len.into(), proto), naive(&bytes, false)));

            let (src4, dst4) = (Ipv4Addr::from(src as u32), Ipv4Addr::from(dst as u32));
            let mut bytes = [src4.octets(), dst4.octets()].concat();
            bytes.extend([0, proto]);
            bytes.extend(len.to_be_bytes());
            let sum = in_pseudo(src4, dst4, u32::from(proto) + u32::from(len));
            prop_assert!(same(sum, naive(&bytes, false)));
        }
    }
}
