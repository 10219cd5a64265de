//! Stacks of threads, in memory of the host.

use std::ptr;

/// A thread's stack, with a guard page below.
pub struct KStack {
    base: *mut u8,
    len: usize,
}

// SAFETY: it is memory of its own.
unsafe impl Send for KStack {}
// SAFETY: shared access reads only the two numbers.
unsafe impl Sync for KStack {}

const GUARD: usize = 4096;

/// Unoptimised test code needs far more than the kernel's 16 KB; pages that are not touched cost nothing.
const MINIMUM: usize = 256 * 1024;

impl KStack {
    /// Allocates a stack of at least `size` bytes.
    pub fn alloc(size: usize) -> Option<KStack> {
        let len = size.max(MINIMUM).next_multiple_of(4096);
        // SAFETY: an anonymous mapping at an address of the host's choice disturbs nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len + GUARD,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the first page of the mapping just made.
        unsafe { libc::mprotect(base, GUARD, libc::PROT_NONE) };
        Some(KStack {
            base: base.cast(),
            len,
        })
    }

    /// One past the highest byte.
    pub fn top(&self) -> usize {
        self.base as usize + GUARD + self.len
    }

    /// The lowest usable byte.
    pub fn bottom(&self) -> usize {
        self.base as usize + GUARD
    }
}

impl Drop for KStack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no context uses it any more.
        unsafe { libc::munmap(self.base.cast(), self.len + GUARD) };
    }
}
