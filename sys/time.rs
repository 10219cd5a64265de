//! Time: `Sbintime` counts since boot in 32.32 fixed point, `Ticks` in wrapping milliseconds.
//!
//! FreeBSD: sys/sys/time.h, sys/kern/kern_clock.c
//! Differs from FreeBSD: both are types; a tick is one millisecond whatever `kern.hz` says.

use core::fmt;
use core::ops::{Add, AddAssign, Sub, SubAssign};

/// A time since boot, or a span of time: seconds in 32.32 signed fixed point.
#[doc(alias = "sbintime_t")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sbintime(pub i64);

impl Sbintime {
    /// Boot, or no time at all.
    pub const ZERO: Sbintime = Sbintime(0);
    /// Later than everything.
    pub const MAX: Sbintime = Sbintime(i64::MAX);
    /// One second.
    #[doc(alias = "SBT_1S")]
    pub const SECOND: Sbintime = Sbintime(1 << 32);
    /// One millisecond, rounded up so that `n` of them are never too short.
    #[doc(alias = "SBT_1MS")]
    pub const MILLISECOND: Sbintime = Sbintime::from_ms(1);
    /// One microsecond.
    #[doc(alias = "SBT_1US")]
    pub const MICROSECOND: Sbintime = Sbintime::from_us(1);

    /// Makes a span of whole seconds.
    pub const fn from_s(s: i64) -> Sbintime {
        Sbintime(s << 32)
    }

    /// Makes a span of milliseconds.
    #[doc(alias = "mstosbt")]
    pub const fn from_ms(ms: i64) -> Sbintime {
        Sbintime::from_parts(ms, 1_000)
    }

    /// Makes a span of microseconds.
    #[doc(alias = "ustosbt")]
    pub const fn from_us(us: i64) -> Sbintime {
        Sbintime::from_parts(us, 1_000_000)
    }

    /// Makes a span of nanoseconds.
    #[doc(alias = "nstosbt")]
    pub const fn from_ns(ns: i64) -> Sbintime {
        Sbintime::from_parts(ns, 1_000_000_000)
    }

    /// Rounds up, so that converting there and back returns the same number.
    const fn from_parts(count: i64, per_second: i64) -> Sbintime {
        let whole = count.div_euclid(per_second);
        let part = count.rem_euclid(per_second);
        Sbintime((whole << 32) + ((part << 32) + per_second - 1) / per_second)
    }

    /// Returns the whole seconds.
    #[doc(alias = "sbttos")]
    pub const fn as_s(self) -> i64 {
        self.0 >> 32
    }

    /// Returns the whole milliseconds.
    #[doc(alias = "sbttoms")]
    pub const fn as_ms(self) -> i64 {
        self.in_parts(1_000)
    }

    /// Returns the whole microseconds.
    #[doc(alias = "sbttous")]
    pub const fn as_us(self) -> i64 {
        self.in_parts(1_000_000)
    }

    /// Returns the whole nanoseconds.
    #[doc(alias = "sbttons")]
    pub const fn as_ns(self) -> i64 {
        self.in_parts(1_000_000_000)
    }

    const fn in_parts(self, per_second: i64) -> i64 {
        let fraction = self.0 & 0xffff_ffff;
        (self.0 >> 32) * per_second + ((fraction * per_second) >> 32)
    }

    /// Returns the seconds with their fraction, for reports.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 4_294_967_296.0
    }

    /// Returns the tick that this time since boot falls in.
    pub const fn ticks(self) -> Ticks {
        Ticks(self.as_ms() as u32)
    }

    /// Adds, stopping at the end of time.
    pub const fn saturating_add(self, span: Sbintime) -> Sbintime {
        Sbintime(self.0.saturating_add(span.0))
    }
}

impl Add for Sbintime {
    type Output = Sbintime;
    fn add(self, span: Sbintime) -> Sbintime {
        Sbintime(self.0.wrapping_add(span.0))
    }
}

impl AddAssign for Sbintime {
    fn add_assign(&mut self, span: Sbintime) {
        *self = *self + span;
    }
}

impl Sub for Sbintime {
    type Output = Sbintime;
    fn sub(self, other: Sbintime) -> Sbintime {
        Sbintime(self.0.wrapping_sub(other.0))
    }
}

impl SubAssign for Sbintime {
    fn sub_assign(&mut self, span: Sbintime) {
        *self = *self - span;
    }
}

impl fmt::Debug for Sbintime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06} s",
            self.as_s(),
            self.as_us().rem_euclid(1_000_000)
        )
    }
}

/// Milliseconds since boot, wrapping after 49.7 days; compare by subtracting.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Ticks(pub u32);

impl Ticks {
    /// Tells whether `self` is at or after `other`, seen over the wrap.
    pub const fn at_or_after(self, other: Ticks) -> bool {
        self.0.wrapping_sub(other.0) as i32 >= 0
    }
}

/// The signed distance, valid up to 24.8 days.
impl Sub for Ticks {
    type Output = i32;
    fn sub(self, other: Ticks) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }
}

impl Add<u32> for Ticks {
    type Output = Ticks;
    fn add(self, ms: u32) -> Ticks {
        Ticks(self.0.wrapping_add(ms))
    }
}

impl Sub<u32> for Ticks {
    type Output = Ticks;
    fn sub(self, ms: u32) -> Ticks {
        Ticks(self.0.wrapping_sub(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_there_and_back_returns_the_same_number() {
        for n in [0, 1, 2, 3, 7, 999, 1000, 1001, 123_456_789, -1, -1500] {
            assert_eq!(Sbintime::from_ms(n).as_ms(), n);
            assert_eq!(Sbintime::from_us(n).as_us(), n);
            assert_eq!(Sbintime::from_s(n).as_s(), n);
        }
        for n in [0, 1, 2, 999_999_999, 1_000_000_001] {
            assert_eq!(Sbintime::from_ns(n).as_ns(), n);
        }
    }

    #[test]
    fn ticks_subtract_over_the_wrap() {
        assert_eq!(Ticks(5) - Ticks(u32::MAX - 4), 10);
        assert_eq!(Ticks(u32::MAX - 4) - Ticks(5), -10);
        assert!(Ticks(5).at_or_after(Ticks(u32::MAX)));
        assert_eq!(Sbintime::from_s(2).ticks(), Ticks(2000));
    }
}
