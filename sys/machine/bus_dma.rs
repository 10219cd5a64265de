//! Memory that a device may reach.
//!
//! FreeBSD: sys/sys/bus_dma.h
//! Differs from FreeBSD: x86 only, coherent and without bounce buffers; an address for a device is a type of
//! its own which only live memory can make, so that safe driver code cannot aim a device elsewhere.

use super::atomic::{AtomicU64, Ordering, fence};
use crate::param::PAGE_SIZE;
use crate::vm::vm_page;
use core::marker::PhantomData;
use core::mem::size_of;
use core::ptr::NonNull;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An address as a device sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct DmaAddr(u64);

impl DmaAddr {
    pub(crate) const fn new(bus: u64) -> Self {
        Self(bus)
    }

    /// The address `bytes` further on in the same piece of memory.
    pub(crate) const fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    /// The number to write into a register or descriptor.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// A physically contiguous piece of memory shared with a device.
///
/// It is read and written in words of 64 bits, each at once: what the device or another CPU writes meanwhile is seen
/// before or after, never in part.
pub struct DmaMem {
    base: NonNull<AtomicU64>,
    len: usize,
    pages: usize,
}

// SAFETY: owns its memory, which is reached by atomic operations only.
unsafe impl Send for DmaMem {}
// SAFETY: as above.
unsafe impl Sync for DmaMem {}

impl DmaMem {
    /// Allocates `size` zeroed bytes aligned to `align` that do not cross a multiple of `boundary` (0: no such rule). Both are
    /// powers of two.
    #[doc(alias = "bus_dmamem_alloc")]
    pub fn alloc(size: usize, align: usize, boundary: usize) -> Option<Self> {
        if size == 0 || (boundary != 0 && size > boundary) || !align.max(1).is_power_of_two() {
            return None;
        }
        let pages = size.div_ceil(PAGE_SIZE);
        // Aligned to its size rounded up, it crosses no boundary that it could avoid.
        let align_pages = align.div_ceil(PAGE_SIZE).max(pages.next_power_of_two());
        let base = vm_page::alloc_contig(pages, align_pages)?;
        // SAFETY: ours, and this long.
        unsafe { base.write_bytes(0, pages * PAGE_SIZE) };
        Some(Self {
            base: base.cast(),
            len: size,
            pages,
        })
    }

    /// Where the device finds it.
    pub fn addr(&self) -> DmaAddr {
        DmaAddr(super::virt_to_phys(self.base.as_ptr().cast()))
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    #[track_caller]
    fn word(&self, i: usize) -> &AtomicU64 {
        assert!(i < self.len / 8, "beyond the memory shared with the device");
        // SAFETY: just checked; `alloc` made it, aligned, and it is ours.
        unsafe { self.base.add(i).as_ref() }
    }

    /// Reads word `i` of 64 bits. What is read afterwards is read later.
    #[inline]
    #[track_caller]
    pub fn read_u64(&self, i: usize) -> u64 {
        self.word(i).load(Ordering::Acquire)
    }

    /// Writes word `i` of 64 bits. What was written before is visible earlier.
    #[inline]
    #[track_caller]
    pub fn write_u64(&self, i: usize, value: u64) {
        self.word(i).store(value, Ordering::Release);
    }

    /// Zeroes it.
    pub fn clear(&self) {
        for i in 0..self.len / 8 {
            self.write_u64(i, 0);
        }
    }
}

impl Drop for DmaMem {
    fn drop(&mut self) {
        // SAFETY: allocated so. That the device has stopped using it is the driver's part, as it is on any machine; what it
        // can damage is the memory of an address that it was given.
        unsafe { vm_page::free_contig(self.base.cast(), self.pages) };
    }
}

/// A ring of `T` descriptors shared with a device; they are moved in and out by value.
pub struct DmaRing<T> {
    mem: DmaMem,
    count: usize,
    _descriptors: PhantomData<fn() -> T>,
}

impl<T: FromBytes + IntoBytes + Immutable + Copy> DmaRing<T> {
    const WORDS: usize = {
        assert!(
            size_of::<T>().is_multiple_of(8) && size_of::<T>() > 0,
            "descriptors are words of 64 bits"
        );
        size_of::<T>() / 8
    };

    /// Allocates `count` zeroed descriptors aligned to `align`.
    pub fn alloc(count: usize, align: usize) -> Option<Self> {
        Some(Self {
            mem: DmaMem::alloc(count * size_of::<T>(), align, 0)?,
            count,
            _descriptors: PhantomData,
        })
    }

    /// Where the device finds the first descriptor.
    pub fn addr(&self) -> DmaAddr {
        self.mem.addr()
    }

    /// Number of descriptors.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Size in bytes, as a length register wants it.
    pub fn len_bytes(&self) -> usize {
        self.mem.len()
    }

    /// Reads descriptor `i`, from its first word to its last.
    #[inline]
    #[track_caller]
    pub fn read(&self, i: usize) -> T {
        let mut descriptor = T::new_zeroed();
        for (word, bytes) in descriptor.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.mem.read_u64(i * Self::WORDS + word).to_ne_bytes());
        }
        descriptor
    }

    /// Writes descriptor `i`, from its first word to its last.
    #[inline]
    #[track_caller]
    pub fn write(&self, i: usize, descriptor: T) {
        for (word, bytes) in descriptor.as_bytes().chunks_exact(8).enumerate() {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            self.mem
                .write_u64(i * Self::WORDS + word, u64::from_ne_bytes(value));
        }
    }

    /// Reads the 32-bit word at `byte_offset` (a multiple of 4) of descriptor `i`: a status, say.
    #[inline]
    #[track_caller]
    pub fn read_u32(&self, i: usize, byte_offset: usize) -> u32 {
        debug_assert!(byte_offset < size_of::<T>() && byte_offset.is_multiple_of(4));
        let word = self.mem.read_u64(i * Self::WORDS + byte_offset / 8);
        if byte_offset % 8 == 4 {
            (word >> 32) as u32
        } else {
            word as u32
        }
    }

    /// Zeroes all descriptors.
    pub fn clear(&self) {
        self.mem.clear();
    }
}

/// Makes descriptor writes visible to the device before the register write that follows.
///
/// x86 keeps stores in order, so that only the compiler has to be told.
#[doc(alias = "bus_dmamap_sync")]
#[inline]
pub fn dma_wmb() {
    fence(Ordering::Release);
}

/// Keeps reads of data after the read of the descriptor that announced it.
#[inline]
pub fn dma_rmb() {
    fence(Ordering::Acquire);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endian::{U32Le, U64Le};
    use crate::machine::hosted::Machine;

    #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, PartialEq, Debug)]
    #[repr(C)]
    struct Descriptor {
        addr: U64Le,
        len: U32Le,
        status: U32Le,
    }

    #[test]
    fn descriptors_come_back_as_they_went_in() {
        Machine::builder().run(|| {
            let ring = DmaRing::<Descriptor>::alloc(256, 128).unwrap();
            assert_eq!(ring.len_bytes(), 4096);
            assert_eq!(ring.addr().as_u64() % 128, 0);
            assert_eq!(ring.read_u32(255, 12), 0);
            let descriptor = Descriptor {
                addr: U64Le::new(0x1234_5678_9abc_def0),
                len: U32Le::new(1514),
                status: U32Le::new(0x8000_0001),
            };
            ring.write(255, descriptor);
            assert_eq!(ring.read(255), descriptor);
            assert_eq!(ring.read_u32(255, 12), 0x8000_0001);
            assert_eq!(ring.read_u32(255, 8), 1514);
            ring.clear();
            assert_eq!(ring.read_u32(255, 12), 0);
        });
    }

    #[test]
    fn memory_for_devices_keeps_alignment_and_boundary_and_comes_back() {
        Machine::builder().run(|| {
            let before = vm_page::stats();
            let pieces: std::vec::Vec<_> = (1..20)
                .map(|n| DmaMem::alloc(n * 1000, 256, 32768).unwrap())
                .collect();
            for piece in &pieces {
                let (start, end) = (
                    piece.addr().as_u64(),
                    piece.addr().as_u64() + piece.len() as u64,
                );
                assert_eq!(start % 256, 0);
                assert_eq!(start / 32768, (end - 1) / 32768);
            }
            assert!(DmaMem::alloc(65536, 256, 32768).is_none());
            drop(pieces);
            assert_eq!(vm_page::stats(), before);
        });
    }
}
