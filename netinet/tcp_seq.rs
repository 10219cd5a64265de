//! Sequence numbers: a circle of 2^32, on which only distance has a meaning.
//!
//! FreeBSD: sys/netinet/tcp_seq.h
//! Differs from FreeBSD: a type of its own instead of macros over `u_int32_t`, so that `<` on sequence
//! numbers does not compile.

use core::fmt;
use core::ops::{Add, AddAssign, Sub, SubAssign};

/// A TCP sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct TcpSeq(pub u32);

impl TcpSeq {
    /// Says whether `self` stands before `other`.
    #[doc(alias = "SEQ_LT")]
    #[inline]
    pub const fn lt(self, other: TcpSeq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Says whether `self` stands before or at `other`.
    #[doc(alias = "SEQ_LEQ")]
    #[inline]
    pub const fn leq(self, other: TcpSeq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) <= 0
    }

    /// Says whether `self` stands after `other`.
    #[doc(alias = "SEQ_GT")]
    #[inline]
    pub const fn gt(self, other: TcpSeq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) > 0
    }

    /// Says whether `self` stands after or at `other`.
    #[doc(alias = "SEQ_GEQ")]
    #[inline]
    pub const fn geq(self, other: TcpSeq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) >= 0
    }

    /// Returns the earlier of the two.
    #[doc(alias = "SEQ_MIN")]
    #[inline]
    pub const fn min(self, other: TcpSeq) -> TcpSeq {
        if self.lt(other) { self } else { other }
    }

    /// Returns the later of the two.
    #[doc(alias = "SEQ_MAX")]
    #[inline]
    pub const fn max(self, other: TcpSeq) -> TcpSeq {
        if self.gt(other) { self } else { other }
    }

    /// Returns the distance from `earlier` to `self`, zero if `self` stands before it.
    #[inline]
    pub const fn since(self, earlier: TcpSeq) -> u32 {
        let distance = self.0.wrapping_sub(earlier.0) as i32;
        if distance > 0 { distance as u32 } else { 0 }
    }
}

/// Moves forward on the circle.
impl Add<u32> for TcpSeq {
    type Output = TcpSeq;
    #[inline]
    fn add(self, bytes: u32) -> TcpSeq {
        TcpSeq(self.0.wrapping_add(bytes))
    }
}

impl AddAssign<u32> for TcpSeq {
    #[inline]
    fn add_assign(&mut self, bytes: u32) {
        self.0 = self.0.wrapping_add(bytes);
    }
}

/// Moves backward on the circle.
impl Sub<u32> for TcpSeq {
    type Output = TcpSeq;
    #[inline]
    fn sub(self, bytes: u32) -> TcpSeq {
        TcpSeq(self.0.wrapping_sub(bytes))
    }
}

impl SubAssign<u32> for TcpSeq {
    #[inline]
    fn sub_assign(&mut self, bytes: u32) {
        self.0 = self.0.wrapping_sub(bytes);
    }
}

/// The signed distance between two sequence numbers.
impl Sub for TcpSeq {
    type Output = i32;
    #[inline]
    fn sub(self, other: TcpSeq) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }
}

impl fmt::Debug for TcpSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let before = TcpSeq(u32::MAX - 5);
        let after = before + 10;
        assert_eq!(after, TcpSeq(4));
        assert!(before.lt(after) && after.gt(before));
        assert!(before.leq(before) && before.geq(before));
        assert_eq!(after - before, 10);
        assert_eq!(before - after, -10);
        assert_eq!(before.max(after), after);
        assert_eq!(before.min(after), before);
        assert_eq!(before.since(after), 0);
        assert_eq!(after.since(before), 10);
    }
}
