//! Per-CPU statistics counters.
//!
//! FreeBSD: sys/sys/counter.h, sys/kern/subr_counter.c (counter(9))
//!
//! Counting is one addition to a slot that only this CPU writes. Slots of one counter stand `PCPU_STRIDE`
//! bytes apart, so that the counters of one CPU share cache lines with each other and with no other CPU.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::machine;
use crate::machine::atomic::Ordering;
use crate::machine::atomic::plain::AtomicU64;
use crate::param::{MAXCPU, PCPU_STRIDE};

/// Bytes of a cache line, the unit in which counters are given out.
const LINE: usize = 64;
/// Counters on one line.
const PER_LINE: usize = LINE / size_of::<u64>();
/// Lines in one CPU's part of a page set.
const LINES: usize = PCPU_STRIDE / LINE;
/// The most counters one set can have.
const MAX_COUNTERS: usize = LINES * PER_LINE;

/// A number of events, counted by all CPUs without sharing a cache line.
pub struct Counter {
    slot: NonNull<AtomicU64>,
    /// What was counted before the last `zero`.
    before: AtomicU64,
    /// The lines to give back, of a counter that stands alone. Boxed, because structures hold hundreds of counters.
    own: Option<Box<CounterSet>>,
}

// SAFETY: the slot is only reached by atomic operations, and lives as long as the set that owns it.
unsafe impl Send for Counter {}
// SAFETY: as above.
unsafe impl Sync for Counter {}

impl Counter {
    /// Makes a counter that stands alone. Counters that belong together are better made by [`counters!`].
    ///
    /// [`counters!`]: crate::counters
    #[doc(alias = "counter_u64_alloc")]
    pub fn new() -> Counter {
        let mut set = CounterSet::new(1);
        let mut counter = set.take();
        counter.own = Some(Box::new(set));
        counter
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    #[doc(alias = "counter_u64_add")]
    pub fn add(&self, n: u64) {
        // SAFETY: `CounterSet::new` made a slot for each CPU, `PCPU_STRIDE` apart, that lives as long as this.
        unsafe { machine::counter_u64_add(self.slot.as_ptr(), n) }
    }

    /// Takes one back that was counted before.
    #[inline]
    pub fn dec(&self) {
        self.add(1u64.wrapping_neg());
    }

    /// Returns the sum over all CPUs. Additions that happen meanwhile may or may not be in it.
    #[doc(alias = "counter_u64_fetch")]
    pub fn fetch(&self) -> u64 {
        self.sum().wrapping_sub(self.before.load(Ordering::Relaxed))
    }

    fn sum(&self) -> u64 {
        self.slots().fold(0, |sum, slot| {
            sum.wrapping_add(slot.load(Ordering::Relaxed))
        })
    }

    /// Starts again from zero.
    ///
    /// Remembers what has been counted. To write into the slots of other CPUs would be lost to an addition that is under
    /// way there; FreeBSD interrupts them instead.
    #[doc(alias = "counter_u64_zero")]
    pub fn zero(&self) {
        self.before.store(self.sum(), Ordering::Relaxed);
    }

    fn slots(&self) -> impl Iterator<Item = &AtomicU64> {
        (0..MAXCPU).map(|cpu| {
            // SAFETY: a slot for each CPU stands `PCPU_STRIDE` apart (`CounterSet::new`).
            unsafe { self.slot.byte_add(cpu * PCPU_STRIDE).as_ref() }
        })
    }
}

impl Default for Counter {
    fn default() -> Counter {
        Counter::new()
    }
}

/// The memory of counters that were made together.
pub struct CounterSet {
    base: NonNull<AtomicU64>,
    lines: usize,
    taken: usize,
    count: usize,
}

// SAFETY: it only owns memory that is reached by atomic operations.
unsafe impl Send for CounterSet {}
// SAFETY: as above.
unsafe impl Sync for CounterSet {}

impl CounterSet {
    /// Makes room for `count` counters, at zero.
    pub fn new(count: usize) -> CounterSet {
        assert!(count <= MAX_COUNTERS, "too many counters in one set");
        let lines = count.div_ceil(PER_LINE).max(1);
        let base = pool(|pool| pool.alloc(lines));
        CounterSet {
            base,
            lines,
            taken: 0,
            count,
        }
    }

    /// Hands out the next counter; the set must outlive it, which [`counters!`](crate::counters) sees to.
    #[doc(hidden)]
    pub fn take(&mut self) -> Counter {
        assert!(self.taken < self.count, "counter set exhausted");
        // SAFETY: less than `count` slots are taken, and the lines have room for `count`.
        let slot = unsafe { self.base.add(self.taken) };
        self.taken += 1;
        Counter {
            slot,
            before: AtomicU64::new(0),
            own: None,
        }
    }
}

impl Drop for CounterSet {
    fn drop(&mut self) {
        pool(|pool| pool.free(self.base, self.lines));
    }
}

/// Counters that are told apart by a number, such as the type of a message.
#[doc(alias = "COUNTER_ARRAY_ALLOC")]
pub struct CounterArray {
    counters: Box<[Counter]>,
    _set: CounterSet,
}

impl CounterArray {
    /// Makes `count` counters, at zero.
    pub fn new(count: usize) -> CounterArray {
        let mut set = CounterSet::new(count);
        CounterArray {
            counters: (0..count).map(|_| set.take()).collect(),
            _set: set,
        }
    }

    /// Adds one to counter `index`, if there is one.
    pub fn inc(&self, index: usize) {
        if let Some(counter) = self.counters.get(index) {
            counter.inc();
        }
    }
}

impl Deref for CounterArray {
    type Target = [Counter];

    fn deref(&self) -> &[Counter] {
        &self.counters
    }
}

/// Page sets with the slots of all counters.
struct Pool {
    chunks: Vec<Chunk>,
}

/// `MAXCPU` parts of `PCPU_STRIDE` bytes, and which lines are taken (the same in each part).
struct Chunk {
    base: NonNull<u8>,
    taken: u64,
}

// SAFETY: the chunk owns its memory.
unsafe impl Send for Chunk {}

const CHUNK: Layout = match Layout::from_size_align(MAXCPU * PCPU_STRIDE, PCPU_STRIDE) {
    Ok(layout) => layout,
    Err(_) => panic!("page set of counters"),
};

static POOL: spin::Mutex<Pool> = spin::Mutex::new(Pool { chunks: Vec::new() });

/// Runs `work` on the pool, with interrupts off so that its spin lock is never held by a preempted thread.
///
/// The pool is the process's and not the machine's: counters of several machines may share a page set.
fn pool<R>(work: impl FnOnce(&mut Pool) -> R) -> R {
    let state = machine::intr_disable();
    let result = work(&mut POOL.lock());
    machine::intr_restore(state);
    result
}

impl Pool {
    fn alloc(&mut self, lines: usize) -> NonNull<AtomicU64> {
        let mask = |at: usize| (u64::MAX >> (LINES - lines)) << at;
        // What was made last has most room: to look through it first keeps this short while many counters live.
        for chunk in self.chunks.iter_mut().rev() {
            let place = (0..=LINES - lines).find(|&at| chunk.taken & mask(at) == 0);
            if let Some(at) = place {
                chunk.taken |= mask(at);
                return chunk.line(at);
            }
        }
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(CHUNK) };
        let Some(base) = NonNull::new(memory) else {
            handle_alloc_error(CHUNK)
        };
        let chunk = Chunk {
            base,
            taken: mask(0),
        };
        let slot = chunk.line(0);
        self.chunks.push(chunk);
        slot
    }

    fn free(&mut self, slot: NonNull<AtomicU64>, lines: usize) {
        let address = slot.addr().get();
        let Some(chunk) = self.chunks.iter_mut().find(|chunk| {
            let base = chunk.base.addr().get();
            (base..base + PCPU_STRIDE).contains(&address)
        }) else {
            return;
        };
        let at = (address - chunk.base.addr().get()) / LINE;
        chunk.taken &= !((u64::MAX >> (LINES - lines)) << at);
        for cpu in 0..MAXCPU {
            // SAFETY: the lines were given out by `alloc` and their owner is gone.
            unsafe {
                let line = chunk.base.add(at * LINE + cpu * PCPU_STRIDE);
                line.write_bytes(0, lines * LINE);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            // SAFETY: allocated with this layout, and no counter is left to use it.
            unsafe { dealloc(chunk.base.as_ptr(), CHUNK) }
        }
    }
}

impl Chunk {
    fn line(&self, at: usize) -> NonNull<AtomicU64> {
        // SAFETY: `at` is less than `LINES`, so the line is inside the chunk.
        unsafe { self.base.add(at * LINE).cast() }
    }
}

/// Declares a structure of [`Counter`]s with the words `netstat -s` has for them.
///
/// ```ignore
/// counters! {
///     /// What TCP has seen.
///     pub struct TcpStat {
///         tcps_connattempt: "connection requests",
///     }
/// }
/// stat.tcps_connattempt.inc();
/// ```
///
/// `new()` makes it, `iter()` yields (name, words, value), `zero()` starts again.
#[macro_export]
macro_rules! counters {
    ($(#[$attr:meta])* $vis:vis struct $name:ident {
        $($(#[$field_attr:meta])* $field:ident : $words:literal),* $(,)?
    }) => {
        $(#[$attr])*
        $vis struct $name {
            $($(#[$field_attr])* #[doc = $words] pub $field: $crate::counter::Counter,)*
            _set: $crate::counter::CounterSet,
        }

        impl $name {
            /// Makes the counters, at zero.
            pub fn new() -> Self {
                let mut set = $crate::counter::CounterSet::new([$(stringify!($field)),*].len());
                Self {
                    $($field: set.take(),)*
                    _set: set,
                }
            }

            /// Yields name, words and value of each counter, in the order of declaration.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
                [$((stringify!($field), $words, &self.$field)),*]
                    .into_iter()
                    .map(|(name, words, counter)| (name, words, counter.fetch()))
            }

            /// Starts again from zero.
            pub fn zero(&self) {
                $(self.$field.zero();)*
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    counters! {
        /// Two things to count.
        struct Pair {
            left: "things on the left",
            right: "things on the right",
        }
    }

    fn on_a_machine(test: impl FnOnce() + Send + 'static) {
        crate::machine::hosted::Machine::builder().run(test);
    }

    #[test]
    fn counters_of_an_array_count_apart_and_there_are_no_more() {
        on_a_machine(|| {
            let types = CounterArray::new(256);
            for index in [0, 255, 255, 256] {
                types.inc(index);
            }
            assert_eq!((types[0].fetch(), types[255].fetch()), (1, 2));
            assert_eq!(types.iter().map(Counter::fetch).sum::<u64>(), 3);
        });
    }

    #[test]
    fn counters_of_a_set_count_apart() {
        on_a_machine(|| {
            let pair = Pair::new();
            pair.left.inc();
            pair.right.add(41);
            let seen: Vec<_> = pair.iter().collect();
            assert_eq!(
                seen,
                [
                    ("left", "things on the left", 1),
                    ("right", "things on the right", 41)
                ]
            );
            pair.zero();
            assert_eq!(pair.right.fetch(), 0);
            pair.right.add(2);
            assert_eq!(pair.right.fetch(), 2);
        });
    }

    #[test]
    fn lines_that_are_given_back_start_at_zero() {
        on_a_machine(|| {
            for _ in 0..1000 {
                let counter = Counter::new();
                assert_eq!(counter.fetch(), 0);
                counter.add(7);
                assert_eq!(counter.fetch(), 7);
            }
        });
    }
}
