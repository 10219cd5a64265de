//! Atomics and cells that loom watches, with the interface of core's.
//!
//! loom's own register themselves with the execution when they are made, so that they cannot be constants. These are: they
//! keep only their first value, and take one of loom's from the execution's store at their first use. The store is
//! filled before a thread is started, so that what is in it happens before whatever the threads do. loom's
//! atomic keeps the distance of the value from the first value.

use core::panic::Location;
use core::sync::atomic::AtomicU64 as Word;

pub use core::sync::atomic::{Ordering, compiler_fence};

use super::machine::{Execution, curcpu, execution, poll, switching};
use super::mutant::{self, SiteKind};

/// The atomic or cell of the execution's store that something has taken: the number of the execution, and an index.
struct Slot(Word);

impl Slot {
    const fn new() -> Slot {
        Slot(Word::new(0))
    }

    fn index(&self, execution: &Execution, take: impl FnOnce() -> usize) -> usize {
        let value = self.0.load(Ordering::Relaxed);
        if value >> 32 == u64::from(execution.number()) {
            return value as u32 as usize;
        }
        let index = take();
        let value = u64::from(execution.number()) << 32 | index as u64;
        self.0.store(value, Ordering::Relaxed);
        index
    }

    fn forget(&mut self) {
        *self.0.get_mut() = 0;
    }
}

/// Adds a fence; see `core::sync::atomic::fence`.
#[track_caller]
pub fn fence(order: Ordering) {
    let site = Location::caller();
    mutant::note_step(curcpu(), site);
    if mutant::is_taken(site, SiteKind::Fence) {
        if order == Ordering::SeqCst {
            switching(|| loom::sync::atomic::fence(Ordering::AcqRel));
        }
        return;
    }
    switching(|| loom::sync::atomic::fence(order));
}

/// The order that loom is told, weaker at the site of the mutant.
fn order_at(site: &'static Location<'static>, order: Ordering) -> Ordering {
    mutant::note_step(curcpu(), site);
    let acquires = matches!(
        order,
        Ordering::Acquire | Ordering::AcqRel | Ordering::SeqCst
    );
    let releases = matches!(
        order,
        Ordering::Release | Ordering::AcqRel | Ordering::SeqCst
    );
    let acquires = acquires && !mutant::is_taken(site, SiteKind::Acquire);
    let releases = releases && !mutant::is_taken(site, SiteKind::Release);
    match (acquires, releases) {
        (false, false) => Ordering::Relaxed,
        (true, false) => Ordering::Acquire,
        (false, true) => Ordering::Release,
        (true, true) => Ordering::AcqRel,
    }
}

/// One of loom's atomics.
#[derive(Clone, Copy)]
enum Raw {
    Narrow(&'static loom::sync::atomic::AtomicU32),
    Wide(&'static loom::sync::atomic::AtomicU64),
}

/// Runs an operation of either kind.
macro_rules! on {
    ($raw:expr, $atomic:ident => $operation:expr) => {
        match $raw {
            Raw::Narrow($atomic) => switching(|| $operation as u64),
            Raw::Wide($atomic) => switching(|| $operation as u64),
        }
    };
}

impl Raw {
    fn load(self, order: Ordering) -> u64 {
        on!(self, atomic => atomic.load(order))
    }

    fn store(self, value: u64, order: Ordering) {
        on!(self, atomic => { atomic.store(value as _, order); 0u64 });
    }

    fn swap(self, value: u64, order: Ordering) -> u64 {
        on!(self, atomic => atomic.swap(value as _, order))
    }

    fn exchange(
        self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let mut failed = false;
        let old = on!(self, atomic => {
            let result = atomic.compare_exchange(current as _, new as _, success, failure);
            failed = result.is_err();
            result.unwrap_or_else(|now| now)
        });
        if failed { Err(old) } else { Ok(old) }
    }

    fn add(self, value: u64, order: Ordering) -> u64 {
        on!(self, atomic => atomic.fetch_add(value as _, order))
    }

    fn or(self, value: u64, order: Ordering) -> u64 {
        on!(self, atomic => atomic.fetch_or(value as _, order))
    }

    fn and(self, value: u64, order: Ordering) -> u64 {
        on!(self, atomic => atomic.fetch_and(value as _, order))
    }

    /// The last value; the caller is alone, which loom checks.
    fn last(self) -> u64 {
        // SAFETY: loom's atomics are safe to read at any time; what is "unsafe" is to expect a value that is not the last.
        unsafe {
            match self {
                Raw::Narrow(atomic) => u64::from(atomic.unsync_load()),
                Raw::Wide(atomic) => atomic.unsync_load(),
            }
        }
    }
}

/// What one of loom's atomics can keep.
pub trait Value: Copy {
    #[doc(hidden)]
    const WIDE: bool = size_of::<Self>() == size_of::<u64>();
    #[doc(hidden)]
    fn to_bits(self) -> u64;
    #[doc(hidden)]
    fn from_bits(bits: u64) -> Self;
}

macro_rules! value {
    ($($int:ty as $unsigned:ty,)*) => { $(
        impl Value for $int {
            fn to_bits(self) -> u64 {
                self as $unsigned as u64
            }
            fn from_bits(bits: u64) -> $int {
                bits as $int
            }
        }
    )* };
}

value!(
    u8 as u8,
    u16 as u16,
    u32 as u32,
    u64 as u64,
    usize as usize,
    i32 as u32,
    i64 as u64,
);

impl Value for bool {
    fn to_bits(self) -> u64 {
        u64::from(self)
    }
    fn from_bits(bits: u64) -> bool {
        bits != 0
    }
}

impl<T> Value for *mut T {
    fn to_bits(self) -> u64 {
        self as u64
    }
    fn from_bits(bits: u64) -> *mut T {
        bits as *mut T
    }
}

/// An atomic `T`; see `core::sync::atomic`.
pub struct Atomic<T> {
    first: T,
    slot: Slot,
}

// SAFETY: the value is only reached through loom's atomic; the first value does not change while it is shared.
unsafe impl<T> Sync for Atomic<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Atomic<T> {}

impl<T: Value> Atomic<T> {
    /// Makes an atomic with this value.
    pub const fn new(first: T) -> Atomic<T> {
        Atomic {
            first,
            slot: Slot::new(),
        }
    }

    fn raw(&self) -> Raw {
        let execution = execution();
        if T::WIDE {
            let index = self.slot.index(execution, || execution.wide.take());
            Raw::Wide(execution.wide.get(index))
        } else {
            let index = self.slot.index(execution, || execution.narrow.take());
            Raw::Narrow(execution.narrow.get(index))
        }
    }

    fn encode(&self, value: T) -> u64 {
        value.to_bits() ^ self.first.to_bits()
    }

    fn decode(&self, raw: u64) -> T {
        T::from_bits(raw ^ self.first.to_bits())
    }

    /// Reads the value.
    #[track_caller]
    pub fn load(&self, order: Ordering) -> T {
        let order = order_at(Location::caller(), order);
        poll();
        self.decode(self.raw().load(order))
    }

    /// Writes the value.
    #[track_caller]
    pub fn store(&self, value: T, order: Ordering) {
        if mutant::is_taken(Location::caller(), SiteKind::Store) {
            return;
        }
        let order = order_at(Location::caller(), order);
        poll();
        self.raw().store(self.encode(value), order);
    }

    /// Writes the value and returns the one before.
    #[track_caller]
    pub fn swap(&self, value: T, order: Ordering) -> T {
        let order = order_at(Location::caller(), order);
        poll();
        self.decode(self.raw().swap(self.encode(value), order))
    }

    /// Writes `new` if the value is `current`.
    #[track_caller]
    pub fn compare_exchange(
        &self,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<T, T> {
        let success = order_at(Location::caller(), success);
        let failure = order_at(Location::caller(), failure);
        poll();
        let (current, new) = (self.encode(current), self.encode(new));
        match self.raw().exchange(current, new, success, failure) {
            Ok(raw) => Ok(self.decode(raw)),
            Err(raw) => Err(self.decode(raw)),
        }
    }

    /// Writes `new` if the value is `current`; here it fails for no other reason.
    #[track_caller]
    pub fn compare_exchange_weak(
        &self,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<T, T> {
        self.compare_exchange(current, new, success, failure)
    }

    /// Replaces the value by what `f` makes of it.
    ///
    /// For what loom's atomic cannot do on a distance. loom has no read-modify-write with a closure: guesses until it is right.
    fn modify(&self, order: Ordering, f: impl Fn(T) -> T) -> T {
        let mut guess = 0;
        loop {
            let new = self.encode(f(self.decode(guess)));
            match self.raw().exchange(guess, new, order, Ordering::Relaxed) {
                Ok(_) => return self.decode(guess),
                Err(now) => guess = now,
            }
        }
    }

    /// Replaces the value by what `f` makes of it, if that is something.
    #[track_caller]
    pub fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        mut f: impl FnMut(T) -> Option<T>,
    ) -> Result<T, T> {
        let mut now = self.load(fetch);
        while let Some(new) = f(now) {
            match self.compare_exchange(now, new, set, fetch) {
                Ok(old) => return Ok(old),
                Err(other) => now = other,
            }
        }
        Err(now)
    }

    /// Returns the value: `&mut` proves that nobody else uses it, and loom checks that by the order of their accesses.
    pub fn get_mut(&mut self) -> &mut T {
        self.first = self.decode(self.raw().last());
        self.slot.forget();
        &mut self.first
    }

    /// Returns the value.
    pub fn into_inner(mut self) -> T {
        *self.get_mut()
    }
}

/// Operations on bits and numbers.
macro_rules! integers {
    ($($int:ty)*) => { $(
        bits!($int);

        impl Atomic<$int> {
            /// Adds, wrapping; returns the value before.
            #[track_caller]
            pub fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                let order = order_at(Location::caller(), order);
                poll();
                let full_width = size_of::<$int>() >= size_of::<u32>();
                if self.first == 0 && full_width {
                    return self.raw().add(value.to_bits(), order) as $int;
                }
                self.modify(order, |old| old.wrapping_add(value))
            }

            /// Subtracts, wrapping; returns the value before.
            #[track_caller]
            pub fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                self.fetch_add(value.wrapping_neg(), order)
            }

            /// Keeps the larger; returns the value before.
            #[track_caller]
            pub fn fetch_max(&self, value: $int, order: Ordering) -> $int {
                let order = order_at(Location::caller(), order);
                poll();
                self.modify(order, |old| old.max(value))
            }

            /// Keeps the smaller; returns the value before.
            #[track_caller]
            pub fn fetch_min(&self, value: $int, order: Ordering) -> $int {
                let order = order_at(Location::caller(), order);
                poll();
                self.modify(order, |old| old.min(value))
            }
        }
    )* };
}

macro_rules! bits {
    ($int:ty) => {
        impl Atomic<$int> {
            /// Sets bits; returns the value before.
            #[track_caller]
            pub fn fetch_or(&self, value: $int, order: Ordering) -> $int {
                let order = order_at(Location::caller(), order);
                poll();
                if self.first.to_bits() == 0 {
                    return Value::from_bits(self.raw().or(value.to_bits(), order));
                }
                self.modify(order, |old| old | value)
            }

            /// Clears all bits but these; returns the value before.
            #[track_caller]
            pub fn fetch_and(&self, value: $int, order: Ordering) -> $int {
                let order = order_at(Location::caller(), order);
                poll();
                if self.first.to_bits() == 0 {
                    return Value::from_bits(self.raw().and(value.to_bits(), order));
                }
                self.modify(order, |old| old & value)
            }

            /// Toggles bits; returns the value before.
            #[track_caller]
            pub fn fetch_xor(&self, value: $int, order: Ordering) -> $int {
                let order = order_at(Location::caller(), order);
                poll();
                self.modify(order, |old| old ^ value)
            }
        }
    };
}

integers!(u8 u16 u32 u64 usize i32 i64);
bits!(bool);

/// An atomic flag; see `core::sync::atomic`.
pub type AtomicBool = Atomic<bool>;
/// An atomic pointer; see `core::sync::atomic`.
pub type AtomicPtr<T> = Atomic<*mut T>;
/// An atomic integer; see `core::sync::atomic`.
pub type AtomicU8 = Atomic<u8>;
/// An atomic integer; see `core::sync::atomic`.
pub type AtomicU16 = Atomic<u16>;
/// An atomic integer; see `core::sync::atomic`.
pub type AtomicU32 = Atomic<u32>;
/// An atomic integer; see `core::sync::atomic`.
pub type AtomicU64 = Atomic<u64>;
/// An atomic integer; see `core::sync::atomic`.
pub type AtomicUsize = Atomic<usize>;
/// An atomic integer; see `core::sync::atomic`.
pub type AtomicI32 = Atomic<i32>;
/// An atomic integer; see `core::sync::atomic`.
pub type AtomicI64 = Atomic<i64>;

macro_rules! defaults {
    ($($int:ty)*) => { $(
        impl Default for Atomic<$int> {
            fn default() -> Atomic<$int> {
                Atomic::new(<$int>::default())
            }
        }
    )* };
}

defaults!(bool u8 u16 u32 u64 usize i32 i64);

impl<T> Default for AtomicPtr<T> {
    fn default() -> AtomicPtr<T> {
        Atomic::new(core::ptr::null_mut())
    }
}

impl<T: Value + core::fmt::Debug> core::fmt::Debug for Atomic<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Atomic(..)")
    }
}

/// Watches who uses something: two uses of which one writes must have an order.
struct Watch(Slot);

impl Watch {
    fn cell(&self) -> &'static loom::cell::UnsafeCell<()> {
        let execution = execution();
        let index = self.0.index(execution, || execution.cells.take());
        execution.cells.get(index)
    }

    fn read(&self) {
        self.cell().with(|_| ());
    }

    fn write(&self) {
        self.cell().with_mut(|_| ());
    }
}

/// A cell that is used under a lock, by one at a time; see `core::cell::UnsafeCell`.
///
/// What counts as the use is the moment at which the pointer is taken.
pub struct UnsafeCell<T: ?Sized> {
    watch: Watch,
    value: core::cell::UnsafeCell<T>,
}

impl<T> UnsafeCell<T> {
    /// Makes a cell.
    pub const fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell {
            watch: Watch(Slot::new()),
            value: core::cell::UnsafeCell::new(value),
        }
    }

    /// Returns the value.
    pub fn into_inner(self) -> T {
        self.watch.write();
        self.value.into_inner()
    }
}

impl<T: ?Sized> UnsafeCell<T> {
    /// Returns a pointer to the value, to read and to write.
    pub fn get(&self) -> *mut T {
        self.watch.write();
        self.value.get()
    }

    /// Returns the value: `&mut` proves that nobody else uses it.
    pub fn get_mut(&mut self) -> &mut T {
        self.watch.write();
        self.value.get_mut()
    }
}

/// A cell that is used under a lock, or by one thread; see `core::cell::Cell`.
pub struct Cell<T> {
    watch: Watch,
    value: core::cell::Cell<T>,
}

// SAFETY: a cell of core's is as much.
unsafe impl<T: Send> Send for Cell<T> {}

impl<T> Cell<T> {
    /// Makes a cell.
    pub const fn new(value: T) -> Cell<T> {
        Cell {
            watch: Watch(Slot::new()),
            value: core::cell::Cell::new(value),
        }
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        self.watch.write();
        self.value.set(value);
    }

    /// Replaces the value and returns the one before.
    pub fn replace(&self, value: T) -> T {
        self.watch.write();
        self.value.replace(value)
    }

    /// Exchanges the values of two cells.
    pub fn swap(&self, other: &Cell<T>) {
        self.watch.write();
        other.watch.write();
        self.value.swap(&other.value);
    }

    /// Returns the value and leaves the default one.
    pub fn take(&self) -> T
    where
        T: Default,
    {
        self.replace(T::default())
    }
}

impl<T: Copy> Cell<T> {
    /// Returns the value.
    pub fn get(&self) -> T {
        self.watch.read();
        self.value.get()
    }
}

impl<T: Default> Default for Cell<T> {
    fn default() -> Cell<T> {
        Cell::new(T::default())
    }
}

/// A value that a model's threads share with no more order than the code under test gives them: that they use it in order
/// is what loom checks.
#[derive(Default)]
pub struct Watched<T>(Cell<T>);

// SAFETY: the threads of an execution are coroutines of one host thread.
unsafe impl<T> Sync for Watched<T> {}

impl<T: Copy> Watched<T> {
    /// Makes a value.
    pub const fn new(value: T) -> Watched<T> {
        Watched(Cell::new(value))
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        poll();
        self.0.set(value);
    }

    /// Returns the value.
    pub fn get(&self) -> T {
        poll();
        self.0.get()
    }
}
