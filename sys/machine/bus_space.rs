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
        assert!(
            offset.is_multiple_of(4),
            "a register is 32 bits wide and aligned"
        );
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
        assert!(first.is_multiple_of(4) && stride.is_multiple_of(4) && stride > 0);
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
    base: NonNull<u32>,
    size: usize,
}

// SAFETY: `new` was promised that any thread may access the registers.
unsafe impl Send for Mmio {}
// SAFETY: as above.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// A window onto `size` bytes of device memory.
    ///
    /// # Safety
    /// `base` must be 4-byte aligned and map `size` bytes of device memory, readable and writable by volatile
    /// access from any thread, for as long as the value lives.
    pub const unsafe fn new(base: NonNull<u8>, size: usize) -> Self {
        Self {
            base: base.cast(),
            size,
        }
    }

    /// A window onto `size` bytes of zeroed memory that lives for good: registers that keep what a driver under test writes.
    #[cfg(not(any(target_os = "none", loom)))]
    pub fn in_memory(size: usize) -> Self {
        let words = alloc::vec![0_u32; size.div_ceil(4)].leak();
        // SAFETY: the memory is never freed, and nothing else knows it.
        unsafe { Self::new(NonNull::from(words).cast(), size) }
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    #[inline]
    #[track_caller]
    fn register<A: rights::Rights>(&self, reg: Reg<A>) -> NonNull<u32> {
        let offset = reg.offset as usize;
        assert!(
            offset + 4 <= self.size,
            "register {offset:#x} beyond the window"
        );
        // SAFETY: just checked.
        unsafe { self.base.byte_add(offset) }
    }

    /// Reads a register.
    #[doc(alias = "bus_space_read_4")]
    #[inline]
    #[track_caller]
    pub fn read<A: Readable>(&self, reg: Reg<A>) -> u32 {
        let register = self.register(reg);
        // SAFETY: `register` checked the bounds, and `new` was promised a live mapping.
        u32::from_le(unsafe { register.read_volatile() })
    }

    /// Writes a register.
    #[doc(alias = "bus_space_write_4")]
    #[inline]
    #[track_caller]
    pub fn write<A: Writable>(&self, reg: Reg<A>, value: u32) {
        let register = self.register(reg);
        // SAFETY: as for `read`.
        unsafe { register.write_volatile(value.to_le()) }
    }

    /// Reads, changes by `f` and writes back.
    #[inline]
    #[track_caller]
    pub fn modify<A: Readable + Writable>(&self, reg: Reg<A>, f: impl FnOnce(u32) -> u32) {
        self.write(reg, f(self.read(reg)));
    }
}

/// ```compile_fail
/// use sys::machine::bus_space::{Mmio, Reg, Ro};
/// fn a_read_only_register_is_not_written(bar: &Mmio) {
///     bar.write(Reg::<Ro>::at(8), 1);
/// }
/// ```
/// ```compile_fail
/// use sys::machine::bus_space::{Mmio, Reg, Wo};
/// fn a_write_only_register_is_not_read(bar: &Mmio) -> u32 {
///     bar.read(Reg::<Wo>::at(8))
/// }
/// ```
#[cfg(doctest)]
struct Contracts;

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: Reg<Ro> = Reg::at(0x08);
    const CTRL: Reg<Rw> = Reg::at(0x00);
    const TABLE: RegArray<Rw> = RegArray::at(0x10, 8, 2);

    fn with_registers(f: impl FnOnce(&Mmio)) {
        let mut memory = [0_u32, 1, 2, 3, 4, 5, 6, 7];
        // SAFETY: the array outlives the window, and nobody else uses it meanwhile.
        f(&unsafe { Mmio::new(NonNull::from(&mut memory).cast(), 32) });
    }

    #[test]
    fn registers_are_read_and_written_at_their_offsets() {
        with_registers(|bar| {
            assert_eq!(bar.read(STATUS), 2);
            bar.modify(CTRL, |old| old | 0x40);
            assert_eq!(bar.read(CTRL), 0x40);
            assert_eq!(bar.read(TABLE.get(1)), 6);
        });
    }

    #[test]
    #[should_panic(expected = "beyond the window")]
    fn a_register_beyond_the_window_is_refused() {
        with_registers(|bar| {
            bar.read(Reg::<Ro>::at(32));
        });
    }

    #[test]
    #[should_panic(expected = "register array index")]
    fn an_index_beyond_an_array_is_refused() {
        TABLE.get(2);
    }
}
