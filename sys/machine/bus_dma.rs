//! Memory that a device may reach.
//!
//! FreeBSD: sys/sys/bus_dma.h
//! Differs from FreeBSD: x86 only, coherent and without bounce buffers; an address for a device is a type of
//! its own which only live memory can make, so that safe driver code cannot aim a device elsewhere.

use core::marker::PhantomData;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An address as a device sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct DmaAddr(u64);

impl DmaAddr {
    pub(crate) const fn new(bus: u64) -> Self {
        Self(bus)
    }

    /// The number to write into a register or descriptor.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// A zeroed, physically contiguous piece of memory shared with a device.
pub struct DmaMem {
    addr: DmaAddr,
    len: usize,
}

impl DmaMem {
    /// Allocates `size` bytes aligned to `align` that do not cross a multiple of `boundary` (0: no such rule).
    #[doc(alias = "bus_dmamem_alloc")]
    pub fn alloc(size: usize, align: usize, boundary: usize) -> Option<Self> {
        let _ = (size, align, boundary);
        todo!()
    }

    /// Where the device finds it.
    pub fn addr(&self) -> DmaAddr {
        self.addr
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A ring of `T` descriptors shared with a device; they are moved in and out by value.
pub struct DmaRing<T> {
    mem: DmaMem,
    count: usize,
    _descriptors: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes + Immutable + Copy> DmaRing<T> {
    /// Allocates `count` zeroed descriptors aligned to `align`.
    pub fn alloc(count: usize, align: usize) -> Option<Self> {
        let _ = (count, align);
        todo!()
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

    /// Reads descriptor `i`.
    pub fn read(&self, i: usize) -> T {
        let _ = i;
        todo!()
    }

    /// Writes descriptor `i`. Only one thread may own the producer side; the ring itself does not order.
    pub fn write(&self, i: usize, descriptor: T) {
        let _ = (i, descriptor);
        todo!()
    }

    /// Reads one 32-bit little-endian word at `byte_offset` of descriptor `i` (a status word, say).
    pub fn read_u32(&self, i: usize, byte_offset: usize) -> u32 {
        let _ = (i, byte_offset);
        todo!()
    }

    /// Zeroes all descriptors.
    pub fn clear(&self) {
        todo!()
    }
}

/// Makes descriptor writes visible to the device before the register write that follows.
#[doc(alias = "bus_dmamap_sync")]
pub fn dma_wmb() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
}

/// Keeps reads of data after the read of the descriptor that announced it.
pub fn dma_rmb() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
}
