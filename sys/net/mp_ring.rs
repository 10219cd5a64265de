//! A ring with many producers and one consumer, elected among the producers.
//!
//! FreeBSD: sys/net/mp_ring.c
//! Differs from FreeBSD: what the consumer works on lives in the ring, so that being elected is what gives `&mut` to it;
//! no lock stands beside the election.
//!
//! One 64-bit word holds four 16-bit fields: `pidx_head` (slots reserved), `pidx_tail` (slots filled), `cidx` (slots
//! consumed) and who consumes. A producer reserves by moving the head, fills its slots, waits for producers before
//! it, and moves the tail; whoever finds nobody consuming when it moves the tail becomes the consumer.

use alloc::boxed::Box;
use core::mem::MaybeUninit;

use crate::counter::Counter;
use crate::machine::atomic::{AtomicU64, Ordering, UnsafeCell};
use crate::machine::{cpu_spinwait, critical_enter, critical_exit, interleave};

/// Whether somebody consumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum RingFlags {
    /// Nobody, and nothing to consume.
    Idle = 0,
    /// Somebody does.
    Busy = 1,
    /// The consumer gave up for lack of room downstream; items wait.
    Stalled = 2,
    /// The consumer had enough; items wait for another one.
    Abdicated = 3,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    pidx_head: u16,
    pidx_tail: u16,
    cidx: u16,
    flags: RingFlags,
}

impl State {
    const fn unpack(word: u64) -> State {
        State {
            pidx_head: word as u16,
            pidx_tail: (word >> 16) as u16,
            cidx: (word >> 32) as u16,
            flags: match (word >> 48) as u16 {
                0 => RingFlags::Idle,
                1 => RingFlags::Busy,
                2 => RingFlags::Stalled,
                _ => RingFlags::Abdicated,
            },
        }
    }

    const fn pack(self) -> u64 {
        self.pidx_head as u64
            | (self.pidx_tail as u64) << 16
            | (self.cidx as u64) << 32
            | (self.flags as u64) << 48
    }
}

/// What a consumer did with the items it was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Took what it could; goes on if there is more.
    Progress,
    /// Had no room for the next item: somebody must kick the ring later.
    Stalled,
    /// Wants another thread to go on.
    Abdicate,
}

/// The consumer's side.
pub trait RingConsumer<T> {
    /// Takes items in order, as many as there is room for.
    fn drain(&mut self, items: &mut Items<'_, T>) -> Drained;
}

/// Counters of a ring (`r_*` in iflib's sysctls).
#[derive(Default)]
pub struct RingCounters {
    /// Items put in.
    pub enqueues: Counter,
    /// Items refused for a full ring.
    pub drops: Counter,
    /// Times a consumer began.
    pub starts: Counter,
    /// Times it stalled.
    pub stalls: Counter,
    /// Times it began again after a stall.
    pub restarts: Counter,
    /// Times it handed over.
    pub abdications: Counter,
}

/// The ring.
pub struct MpRing<T, C> {
    state: CacheLine<AtomicU64>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    consumer: UnsafeCell<C>,
    /// What happened to it.
    pub counters: RingCounters,
}

#[repr(align(64))]
struct CacheLine<X>(X);

// SAFETY: an item moves from its producer to the one consumer; slots between `cidx` and `pidx_tail` are touched only by
// the elected consumer, slots between `pidx_tail` and `pidx_head` only by the producer that reserved them.
unsafe impl<T: Send, C: Send> Sync for MpRing<T, C> {}
// SAFETY: the ring owns its items and its consumer.
unsafe impl<T: Send, C: Send> Send for MpRing<T, C> {}

/// The ring had no room; the item comes back.
pub struct RingFull<T>(pub T);

impl<T, C: RingConsumer<T>> MpRing<T, C> {
    /// A ring of `size` slots (a power of two, at most 32768; one always stays empty) drained by `consumer`.
    pub fn new(size: usize, consumer: C) -> Self {
        assert!(size.is_power_of_two() && size <= 1 << 15, "ring size");
        Self {
            state: CacheLine(AtomicU64::new(0)),
            slots: (0..size)
                .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
                .collect(),
            consumer: UnsafeCell::new(consumer),
            counters: RingCounters::default(),
        }
    }

    fn mask(&self) -> u16 {
        (self.slots.len() - 1) as u16
    }

    fn load(&self) -> State {
        State::unpack(self.state.0.load(Ordering::Acquire))
    }

    fn replace(&self, old: State, new: State) -> Result<(), State> {
        self.state
            .0
            .compare_exchange_weak(old.pack(), new.pack(), Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
            .map_err(State::unpack)
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        let s = self.load();
        usize::from(s.pidx_tail.wrapping_sub(s.cidx) & self.mask())
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the consumer waits for room.
    pub fn is_stalled(&self) -> bool {
        self.load().flags == RingFlags::Stalled
    }

    /// The four fields, for `ring_state`: producer head, producer tail, consumer, flags.
    pub fn describe(&self) -> (u16, u16, u16, RingFlags) {
        let s = self.load();
        (s.pidx_head, s.pidx_tail, s.cidx, s.flags)
    }

    /// Puts one item in; consumes if nobody does.
    #[doc(alias = "ifmp_ring_enqueue")]
    pub fn enqueue(&self, item: T) -> Result<(), RingFull<T>> {
        let mask = self.mask();
        // Between reserving and publishing a producer holds up all that come after it: not to be preempted.
        critical_enter();
        let mut os = self.load();
        let start = loop {
            let next = os.pidx_head.wrapping_add(1) & mask;
            if next == os.cidx {
                critical_exit();
                self.counters.drops.inc();
                // A ring that nobody drains is given another chance.
                self.kick();
                return Err(RingFull(item));
            }
            match self.replace(
                os,
                State {
                    pidx_head: next,
                    ..os
                },
            ) {
                Ok(()) => break os.pidx_head,
                Err(now) => os = now,
            }
        };
        interleave();
        // SAFETY: moving the head from `start` on reserved this slot for us alone; it was consumed or never filled.
        unsafe { (*self.slots[usize::from(start)].get()).write(item) };
        self.counters.enqueues.inc();
        let stop = start.wrapping_add(1) & mask;
        let mut os = self.load();
        loop {
            if os.pidx_tail != start {
                cpu_spinwait();
                os = self.load();
                continue;
            }
            let flags = match os.flags {
                RingFlags::Idle | RingFlags::Abdicated | RingFlags::Busy => RingFlags::Busy,
                // Items before ours wait for room: whoever makes room kicks the ring.
                RingFlags::Stalled => RingFlags::Stalled,
            };
            let ns = State {
                pidx_tail: stop,
                flags,
                ..os
            };
            match self.replace(os, ns) {
                Ok(()) => {
                    critical_exit();
                    if ns.flags == RingFlags::Busy && os.flags != RingFlags::Busy {
                        self.consume(ns);
                    }
                    return Ok(());
                }
                Err(now) => os = now,
            }
        }
    }

    /// Consumes what waits, if nobody does: after room was made, or from a timer.
    #[doc(alias = "ifmp_ring_check_drainage")]
    pub fn kick(&self) {
        let mut os = self.load();
        while os.cidx != os.pidx_tail && os.flags != RingFlags::Busy {
            let ns = State {
                flags: RingFlags::Busy,
                ..os
            };
            match self.replace(os, ns) {
                Ok(()) => {
                    if os.flags == RingFlags::Stalled {
                        self.counters.restarts.inc();
                    }
                    return self.consume(ns);
                }
                Err(now) => os = now,
            }
        }
    }

    /// Runs `f` as the consumer, then consumes what waits. `None` if somebody consumes right now.
    pub fn with_consumer<R>(&self, f: impl FnOnce(&mut C) -> R) -> Option<R> {
        let mut os = self.load();
        loop {
            if os.flags == RingFlags::Busy {
                return None;
            }
            let ns = State {
                flags: RingFlags::Busy,
                ..os
            };
            match self.replace(os, ns) {
                Ok(()) => {
                    // SAFETY: we moved the flags to Busy and are the one consumer until we move them away.
                    let result = f(unsafe { &mut *self.consumer.get() });
                    self.consume(ns);
                    return Some(result);
                }
                Err(now) => os = now,
            }
        }
    }

    /// Consumes until nothing is left or the consumer stops; the caller was elected.
    fn consume(&self, elected: State) {
        self.counters.starts.inc();
        let mut os = elected;
        loop {
            let mut drained = Drained::Progress;
            let mut cidx = os.cidx;
            if cidx != os.pidx_tail {
                let mut items = Items {
                    slots: &self.slots,
                    at: cidx,
                    end: os.pidx_tail,
                };
                // SAFETY: flags are Busy by our doing: nobody else is consumer.
                drained = unsafe { &mut *self.consumer.get() }.drain(&mut items);
                cidx = items.at;
                if cidx == os.cidx && drained == Drained::Progress {
                    // Took nothing of something and does not say why: as good as no room.
                    drained = Drained::Stalled;
                }
            }
            os = self.load();
            let flags = loop {
                let flags = if cidx == os.pidx_tail {
                    RingFlags::Idle
                } else {
                    match drained {
                        Drained::Progress => RingFlags::Busy,
                        Drained::Stalled => RingFlags::Stalled,
                        Drained::Abdicate => RingFlags::Abdicated,
                    }
                };
                let ns = State { cidx, flags, ..os };
                match self.replace(os, ns) {
                    Ok(()) => {
                        os = ns;
                        break flags;
                    }
                    Err(now) => os = now,
                }
            };
            match flags {
                RingFlags::Busy => continue,
                RingFlags::Idle => return,
                RingFlags::Stalled => return self.counters.stalls.inc(),
                RingFlags::Abdicated => return self.counters.abdications.inc(),
            }
        }
    }
}

impl<T, C> Drop for MpRing<T, C> {
    fn drop(&mut self) {
        let state = State::unpack(self.state.0.load(Ordering::Acquire));
        let mut left = Items {
            slots: &self.slots,
            at: state.cidx,
            end: state.pidx_tail,
        };
        while left.pop().is_some() {}
    }
}

/// The items offered to the consumer, first in first out.
pub struct Items<'a, T> {
    slots: &'a [UnsafeCell<MaybeUninit<T>>],
    at: u16,
    end: u16,
}

impl<T> Items<'_, T> {
    fn mask(&self) -> u16 {
        (self.slots.len() - 1) as u16
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(self.end.wrapping_sub(self.at) & self.mask())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// The next item, which stays in the ring.
    pub fn front(&mut self) -> Option<&mut T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: slots from `at` to `end` were filled by producers that published them, and belong to the consumer.
        Some(unsafe { (*self.slots[usize::from(self.at)].get()).assume_init_mut() })
    }

    /// Takes the next item.
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: as in `front`; moving `at` on makes this the only read.
        let item = unsafe { (*self.slots[usize::from(self.at)].get()).assume_init_read() };
        self.at = self.at.wrapping_add(1) & self.mask();
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::kern::sched::kern_yield;
    use crate::machine::hosted::{Machine, seeds, turns};
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use core::sync::atomic::AtomicUsize;
    use std::sync::Mutex as StdMutex;

    struct Sink {
        taken: Arc<StdMutex<Vec<u64>>>,
        room: Arc<AtomicUsize>,
    }

    impl RingConsumer<u64> for Sink {
        fn drain(&mut self, items: &mut Items<'_, u64>) -> Drained {
            while !items.is_empty() {
                if self.room.load(Ordering::SeqCst) == 0 {
                    return Drained::Stalled;
                }
                self.room.fetch_sub(1, Ordering::SeqCst);
                self.taken.lock().unwrap().extend(items.pop());
            }
            Drained::Progress
        }
    }

    struct Rig {
        ring: MpRing<u64, Sink>,
        taken: Arc<StdMutex<Vec<u64>>>,
        room: Arc<AtomicUsize>,
    }

    fn rig(size: usize, room: usize) -> Rig {
        let taken = Arc::new(StdMutex::new(Vec::new()));
        let room = Arc::new(AtomicUsize::new(room));
        let sink = Sink {
            taken: taken.clone(),
            room: room.clone(),
        };
        Rig {
            ring: MpRing::new(size, sink),
            taken,
            room,
        }
    }

    #[test]
    fn a_lone_producer_consumes_what_it_produced_in_order() {
        Machine::builder().run(|| {
            let rig = rig(8, 1000);
            for n in 0..100 {
                assert!(rig.ring.enqueue(n).is_ok());
            }
            assert_eq!(*rig.taken.lock().unwrap(), (0..100).collect::<Vec<_>>());
            assert_eq!(rig.ring.describe().3, RingFlags::Idle);
        });
    }

    #[test]
    fn a_consumer_without_room_stalls_until_kicked() {
        Machine::builder().run(|| {
            let rig = rig(8, 2);
            let accepted = (0..20).filter(|&n| rig.ring.enqueue(n).is_ok()).count();
            assert_eq!(accepted, 2 + 7);
            assert!(rig.ring.is_stalled());
            assert_eq!(rig.ring.counters.drops.fetch(), 20 - 9);
            rig.room.store(100, Ordering::SeqCst);
            rig.ring.kick();
            assert!(rig.ring.is_empty());
            assert_eq!(*rig.taken.lock().unwrap(), (0..9).collect::<Vec<_>>());
            // Each refusal is a kick too.
            assert_eq!(rig.ring.counters.restarts.fetch(), 11 + 1);
        });
    }

    #[test]
    fn each_producers_items_stay_in_order_among_many() {
        const ITEMS: u64 = turns(200) as u64;
        for seed in seeds(20) {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let rig = Arc::new(rig(16, usize::MAX));
                let producers: Vec<_> = (0..4u64)
                    .map(|p| {
                        let rig = rig.clone();
                        kthread_add("producer", Pri::PUSER, None, move || {
                            for n in 0..ITEMS {
                                while rig.ring.enqueue(p << 32 | n).is_err() {
                                    kern_yield();
                                }
                                if n % 7 == p {
                                    kern_yield();
                                }
                            }
                        })
                    })
                    .collect();
                producers.into_iter().for_each(|producer| producer.join());
                let taken = rig.taken.lock().unwrap();
                assert_eq!(taken.len() as u64, 4 * ITEMS);
                for p in 0..4 {
                    let own: Vec<u64> = taken
                        .iter()
                        .filter(|&&x| x >> 32 == p)
                        .map(|&x| x & 0xffff_ffff)
                        .collect();
                    assert_eq!(own, (0..ITEMS).collect::<Vec<_>>());
                }
            });
        }
    }
}
