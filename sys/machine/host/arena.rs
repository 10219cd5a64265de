//! Memory that stands for a machine's own.

#[cfg(not(miri))]
use core::ptr;

/// A machine's physical memory: unmapped when dropped.
pub struct Arena {
    base: *mut u8,
    len: usize,
}

impl Arena {
    /// Maps `len` bytes, a multiple of 2 MiB, zeroed and aligned to 2 MiB. Pages that are not touched cost nothing.
    ///
    /// # Panics
    /// If there is no address space left.
    #[cfg(not(miri))]
    pub fn map(len: usize) -> Arena {
        const ALIGN: usize = 2 << 20;
        // SAFETY: an anonymous mapping at an address of the host's choice disturbs nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len + ALIGN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(
            base != libc::MAP_FAILED,
            "no address space for {len} bytes of memory"
        );
        let start = base as usize;
        let aligned = start.next_multiple_of(ALIGN);
        // SAFETY: both ranges are parts of the mapping just made, outside the aligned middle.
        unsafe {
            if aligned > start {
                libc::munmap(base, aligned - start);
            }
            if start + ALIGN > aligned {
                libc::munmap((aligned + len) as *mut _, start + ALIGN - aligned);
            }
        }
        Arena {
            base: aligned as *mut u8,
            len,
        }
    }

    /// Allocates `len` bytes, zeroed and aligned to 2 MiB: Miri maps nothing.
    #[cfg(miri)]
    pub fn map(len: usize) -> Arena {
        let layout = std::alloc::Layout::from_size_align(len, 2 << 20).expect("a power of two");
        // SAFETY: not of size 0.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        Arena { base, len }
    }

    /// Returns the first byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Arena {
    #[cfg(miri)]
    fn drop(&mut self) {
        let layout =
            std::alloc::Layout::from_size_align(self.len, 2 << 20).expect("a power of two");
        // SAFETY: allocated with this layout, and the machine has ended.
        unsafe { std::alloc::dealloc(self.base, layout) };
    }

    #[cfg(not(miri))]
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the machine has ended.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
