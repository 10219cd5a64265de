//! Sizes and limits of the whole kernel.
//!
//! FreeBSD: sys/sys/param.h, sys/amd64/include/param.h, sys/sys/priority.h

/// Most CPUs that the kernel will use. (Fewer under Miri and in models, which take their time to make what each has.)
pub const MAXCPU: usize = if cfg!(any(miri, loom)) { 4 } else { 16 };

/// Bytes in a cache line.
pub const CACHE_LINE_SIZE: usize = 64;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// log2 of `PAGE_SIZE`.
pub const PAGE_SHIFT: usize = 12;

/// Frequency of `Ticks`.
pub const HZ: u32 = 1000;

/// Distance between one CPU's slot of a counter and the next CPU's.
///
/// The per-CPU areas of the machine stand at the same distance, so that a counter is one GS-relative addition.
pub const PCPU_STRIDE: usize = 4096;

/// Name of the system, as `uname -s` prints it.
pub const OSTYPE: &str = "bsdnet";

/// Rounds `n` up to a multiple of `to`, which is a power of two.
#[doc(alias = "roundup2")]
pub const fn round_up(n: usize, to: usize) -> usize {
    debug_assert!(to.is_power_of_two());
    (n + to - 1) & !(to - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_up_reaches_the_next_multiple_and_no_further() {
        assert_eq!(round_up(0, 64), 0);
        assert_eq!(round_up(1, 64), 64);
        assert_eq!(round_up(64, 64), 64);
        assert_eq!(round_up(4097, PAGE_SIZE), 8192);
    }
}
