//! Access to device registers.
//!
//! FreeBSD: sys/sys/bus.h (bus_space)
//! Differs from FreeBSD: a register is a typed constant that carries its access rights, and a mapping checks
//! its bounds.

use core::marker::PhantomData;
use core::ptr::NonNull;

mod rights {
    /// Access rights of a register.
    pub trait Rights: Copy + 'static {}
}

/// A register that can be read.
pub trait Readable: rights::Rights {}
/// A register that can be written.
pub trait Writable: rights::Rights {}

/// Read only.
#[derive(Clone, Copy, Debug)]
pub enum Ro {}
/// Read and write.
#[derive(Clone, Copy, Debug)]
pub enum Rw {}
/// Write only.
#[derive(Clone, Copy, Debug)]
pub enum Wo {}

impl rights::Rights for Ro {}
impl rights::Rights for Rw {}
impl rights::Rights for Wo {}
impl Readable for Ro {}
impl Readable for Rw {}
impl Writable for Rw {}
impl Writable for Wo {}

/// A 32-bit register at a byte offset.
#[derive(Debug)]
pub struct Reg<A> {
    offset: u32,
    _rights: PhantomData<fn() -> A>,
}

impl<A> Clone for Reg<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for Reg<A> {}

impl<A: rights::Rights> Reg<A> {
    /// The register at byte `offset`.
    pub const fn at(offset: u32) -> Self {
        assert!(offset % 4 == 0, "a register is 32 bits wide and aligned");
        Self {
            offset,
            _rights: PhantomData,
        }
    }

    /// Its byte offset.
    pub const fn offset(self) -> u32 {
        self.offset
    }
}

/// `n` registers of the same kind, `stride` bytes apart.
#[derive(Debug)]
pub struct RegArray<A> {
    first: u32,
    stride: u32,
    n: u32,
    _rights: PhantomData<fn() -> A>,
}

impl<A> Clone for RegArray<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for RegArray<A> {}

impl<A: rights::Rights> RegArray<A> {
    /// `n` registers from byte offset `first` on, `stride` bytes apart.
    pub const fn at(first: u32, stride: u32, n: u32) -> Self {
        assert!(first % 4 == 0 && stride % 4 == 0 && stride > 0);
        Self {
            first,
            stride,
            n,
            _rights: PhantomData,
        }
    }

    /// Register `i`. Panics beyond the array, as any index does.
    pub const fn get(self, i: usize) -> Reg<A> {
        assert!(i < self.n as usize, "register array index");
        Reg::at(self.first + self.stride * i as u32)
    }

    /// Number of registers.
    pub const fn len(self) -> usize {
        self.n as usize
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.n == 0
    }
}

/// A window of device memory.
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u8>,
    size: usize,
}

impl Mmio {
    /// A window onto `size` bytes of device memory.
    ///
    /// # Safety
    /// `base` must be 4-byte aligned and map `size` bytes of device memory, readable and writable by volatile
    /// access from any thread, for as long as the value lives.
    pub const unsafe fn new(base: NonNull<u8>, size: usize) -> Self {
        Self { base, size }
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Reads a register.
    pub fn read<A: Readable>(&self, reg: Reg<A>) -> u32 {
        let _ = (reg, self.base);
        todo!()
    }

    /// Writes a register.
    pub fn write<A: Writable>(&self, reg: Reg<A>, value: u32) {
        let _ = (reg, value);
        todo!()
    }

    /// Reads, changes by `f` and writes back.
    pub fn modify<A: Readable + Writable>(&self, reg: Reg<A>, f: impl FnOnce(u32) -> u32) {
        self.write(reg, f(self.read(reg)));
    }
}
