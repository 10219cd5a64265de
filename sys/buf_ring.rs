//! A ring with many producers that lock nothing, and one consumer or many.
//!
//! FreeBSD: sys/sys/buf_ring.h, sys/kern/subr_bufring.c
//! Differs from FreeBSD: whether one consumes or many is a type: the one consumer is a value (`BufRingConsumer`), which
//! the transmit lock protects that FreeBSD asks for; indices run freely and are masked when used, so that a producer
//! that was held up for a whole turn of the ring cannot mistake it for none. `peek` and `putback` are one step, `take`.
//! iflib's transmit rings are `mp_ring`s, as in FreeBSD; this one is for a driver with an `if_transmit` of its own, of which
//! there is none yet: only the tests and `ktest` use it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::marker::PhantomData;
use core::mem::MaybeUninit;

use crate::counter::Counter;
use crate::machine::atomic::{AtomicU32, Ordering, UnsafeCell};
use crate::machine::{self, CachePadded, Critical};

/// How far one side has come: slots below `tail` are done, those up to `head` are being worked on.
struct Side {
    head: AtomicU32,
    tail: AtomicU32,
}

impl Side {
    const fn new() -> CachePadded<Side> {
        CachePadded(Side {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
        })
    }

    /// Waits for those that reserved before `at`, and passes the turn on.
    fn publish(&self, at: u32) {
        // Acquired: who sees the store below sees what those before have done as well.
        while self.tail.load(Ordering::Acquire) != at {
            machine::cpu_spinwait();
        }
        self.tail.store(at.wrapping_add(1), Ordering::Release);
    }
}

/// Any number of threads consume.
pub enum ManyConsumers {}
/// Only the holder of the [`BufRingConsumer`] consumes.
pub enum OneConsumer {}

/// The ring. `size - 1` items fit.
#[doc(alias = "buf_ring")]
pub struct BufRing<T, M> {
    prod: CachePadded<Side>,
    cons: CachePadded<Side>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// Items refused for a full ring (`br_drops`).
    pub drops: Counter,
    consumers: PhantomData<fn(M)>,
}

// SAFETY: an item moves from the producer that reserved its slot to the consumer that did.
unsafe impl<T: Send, M> Sync for BufRing<T, M> {}
// SAFETY: the ring owns its items.
unsafe impl<T: Send, M> Send for BufRing<T, M> {}

/// The ring had no room; the item comes back. `ENOBUFS`
#[derive(Debug)]
pub struct RingFull<T>(pub T);

impl<T, M> BufRing<T, M> {
    fn make(size: usize) -> BufRing<T, M> {
        assert!(
            size.is_power_of_two() && (2..=1 << 31).contains(&size),
            "ring size"
        );
        BufRing {
            prod: Side::new(),
            cons: Side::new(),
            slots: (0..size)
                .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
                .collect(),
            drops: Counter::new(),
            consumers: PhantomData,
        }
    }

    fn mask(&self) -> u32 {
        (self.slots.len() - 1) as u32
    }

    fn slot(&self, at: u32) -> *mut MaybeUninit<T> {
        self.slots[(at & self.mask()) as usize].get()
    }

    /// Puts `item` in.
    ///
    /// # Errors
    /// `RingFull` with the item, counted as a drop.
    #[doc(alias = "buf_ring_enqueue")]
    pub fn enqueue(&self, item: T) -> Result<(), RingFull<T>> {
        // Between reserving and publishing a producer holds up all that come after it: not to be preempted.
        let _critical = Critical::enter();
        let at = loop {
            let head = self.prod.head.load(Ordering::Acquire);
            machine::interleave();
            let done = self.cons.tail.load(Ordering::Acquire);
            if head.wrapping_sub(done) >= self.mask() {
                // Unless another producer and a consumer were in between.
                if self.prod.head.load(Ordering::Acquire) == head {
                    self.drops.inc();
                    return Err(RingFull(item));
                }
                continue;
            }
            let next = head.wrapping_add(1);
            if self
                .prod
                .head
                .compare_exchange_weak(head, next, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                break head;
            }
        };
        machine::interleave();
        // SAFETY: moving the head on reserved the slot for us alone; `cons.tail` says that it was emptied.
        unsafe { (*self.slot(at)).write(item) };
        machine::interleave();
        self.prod.publish(at);
        Ok(())
    }

    /// Tells how many items wait. Others may change that at once.
    #[doc(alias = "buf_ring_count")]
    pub fn len(&self) -> usize {
        let done = self.cons.tail.load(Ordering::Acquire);
        self.prod.tail.load(Ordering::Acquire).wrapping_sub(done) as usize
    }

    /// Tells whether no item waits.
    #[doc(alias = "buf_ring_empty")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether no item fits.
    #[doc(alias = "buf_ring_full")]
    pub fn is_full(&self) -> bool {
        self.len() >= self.mask() as usize
    }
}

impl<T> BufRing<T, ManyConsumers> {
    /// Makes a ring of `size` slots, a power of two.
    #[doc(alias = "buf_ring_alloc")]
    pub fn new(size: usize) -> BufRing<T, ManyConsumers> {
        BufRing::make(size)
    }

    /// Takes the oldest item out.
    #[doc(alias = "buf_ring_dequeue_mc")]
    pub fn dequeue(&self) -> Option<T> {
        let _critical = Critical::enter();
        let at = loop {
            let head = self.cons.head.load(Ordering::Acquire);
            machine::interleave();
            if head == self.prod.tail.load(Ordering::Acquire) {
                return None;
            }
            let next = head.wrapping_add(1);
            if self
                .cons
                .head
                .compare_exchange_weak(head, next, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                break head;
            }
        };
        machine::interleave();
        // SAFETY: moving the head on made this the only reader; `prod.tail`, acquired, says that the slot was filled.
        let item = unsafe { (*self.slot(at)).assume_init_read() };
        machine::interleave();
        self.cons.publish(at);
        Some(item)
    }
}

impl<T> BufRing<T, OneConsumer> {
    /// Makes a ring of `size` slots, a power of two, and its consumer.
    #[doc(alias = "buf_ring_alloc")]
    pub fn with_consumer(size: usize) -> (Arc<BufRing<T, OneConsumer>>, BufRingConsumer<T>) {
        let ring = Arc::new(BufRing::make(size));
        let consumer = BufRingConsumer { ring: ring.clone() };
        (ring, consumer)
    }
}

impl<T, M> Drop for BufRing<T, M> {
    fn drop(&mut self) {
        let end = self.prod.tail.load(Ordering::Acquire);
        let mut at = self.cons.tail.load(Ordering::Acquire);
        while at != end {
            // SAFETY: nobody else is left, and slots between the tails are filled.
            unsafe { (*self.slot(at)).assume_init_drop() };
            at = at.wrapping_add(1);
        }
    }
}

/// The one consumer of a ring. Stands where FreeBSD's callers hold the transmit queue's lock.
pub struct BufRingConsumer<T> {
    ring: Arc<BufRing<T, OneConsumer>>,
}

impl<T> BufRingConsumer<T> {
    /// Takes the oldest item out.
    #[doc(alias = "buf_ring_dequeue_sc")]
    pub fn dequeue(&mut self) -> Option<T> {
        self.take().map(|(item, taken)| {
            taken.advance();
            item
        })
    }

    /// Looks at the oldest item.
    #[doc(alias = "buf_ring_peek")]
    pub fn peek(&mut self) -> Option<&mut T> {
        let at = self.front()?;
        // SAFETY: the slot is filled, and this borrow of the one consumer keeps everybody off it.
        Some(unsafe { (*self.ring.slot(at)).assume_init_mut() })
    }

    /// Takes the oldest item out of its slot, which it keeps until the caller knows whether it could be sent.
    #[doc(alias = "buf_ring_peek_clear_sc")]
    pub fn take(&mut self) -> Option<(T, Taken<'_, T>)> {
        let at = self.front()?;
        // SAFETY: the slot is filled; `Taken` either fills it again or gives it up.
        let item = unsafe { (*self.ring.slot(at)).assume_init_read() };
        Some((item, Taken { consumer: self, at }))
    }

    /// The producers' side of the ring.
    pub fn ring(&self) -> &Arc<BufRing<T, OneConsumer>> {
        &self.ring
    }

    fn front(&self) -> Option<u32> {
        // Only this consumer moves it.
        let at = self.ring.cons.tail.load(Ordering::Relaxed);
        machine::interleave();
        (at != self.ring.prod.tail.load(Ordering::Acquire)).then_some(at)
    }
}

/// The slot of an item that was taken. Dropped, the item is gone from the ring.
#[must_use = "put the item back, or advance"]
pub struct Taken<'c, T> {
    consumer: &'c mut BufRingConsumer<T>,
    at: u32,
}

impl<T> Taken<'_, T> {
    /// Puts the item, or what became of it, back as the oldest.
    #[doc(alias = "buf_ring_putback_sc")]
    pub fn putback(self, item: T) {
        // SAFETY: the slot was emptied by `take` and is still the consumer's.
        unsafe { (*self.consumer.ring.slot(self.at)).write(item) };
        core::mem::forget(self);
    }

    /// Gives the slot to the producers.
    #[doc(alias = "buf_ring_advance_sc")]
    pub fn advance(self) {}
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let next = self.at.wrapping_add(1);
        self.consumer.ring.cons.tail.store(next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_synch::kern_yield;
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::machine::atomic::AtomicUsize;
    use crate::machine::hosted::{Machine, seeds, turns};

    #[test]
    fn one_slot_always_stays_empty_and_refusals_are_counted() {
        Machine::builder().run(|| {
            let (ring, mut consumer) = BufRing::with_consumer(8);
            for round in 0..20u32 {
                for n in 0..7 {
                    assert!(!ring.is_full());
                    ring.enqueue(round * 100 + n).expect("room for seven");
                }
                assert!(ring.is_full());
                assert_eq!(ring.enqueue(99).map_err(|full| full.0), Err(99));
                assert_eq!(ring.len(), 7);
                for n in 0..7 {
                    assert_eq!(consumer.dequeue(), Some(round * 100 + n));
                }
                assert_eq!(consumer.dequeue(), None);
            }
            assert_eq!(ring.drops.fetch(), 20);
        });
    }

    #[test]
    fn an_item_that_could_not_be_sent_goes_back_in_front() {
        Machine::builder().run(|| {
            let (ring, mut consumer) = BufRing::with_consumer(4);
            ring.enqueue(1).expect("room");
            ring.enqueue(2).expect("room");
            assert_eq!(consumer.peek(), Some(&mut 1));
            let (item, taken) = consumer.take().expect("an item");
            assert_eq!(item, 1);
            // It came back changed, as a packet does that was copied into fewer pieces.
            taken.putback(10);
            assert_eq!(ring.len(), 2);
            assert_eq!(consumer.dequeue(), Some(10));
            let (_, taken) = consumer.take().expect("an item");
            taken.advance();
            assert!(ring.is_empty());
        });
    }

    #[test]
    fn items_left_in_a_ring_are_dropped_with_it() {
        Machine::builder().run(|| {
            let item = Arc::new(());
            let ring = BufRing::<_, ManyConsumers>::new(8);
            for _ in 0..5 {
                assert!(ring.enqueue(item.clone()).is_ok());
            }
            drop(ring.dequeue());
            drop(ring);
            assert_eq!(Arc::strong_count(&item), 1);
        });
    }

    /// Items of each producer.
    const ITEMS: u64 = turns(150) as u64;

    /// Lets `producers` threads put `ITEMS` items each in, and takes them by `dequeue` until all have come.
    fn torture(producers: u64, ring_full: impl Fn(u64) -> bool + Clone + Send + 'static) -> u64 {
        let threads: Vec<_> = (0..producers)
            .map(|p| {
                let enqueue = ring_full.clone();
                kthread_add("producer", Pri::PUSER, None, move || {
                    for n in 0..ITEMS {
                        while enqueue(p << 32 | n) {
                            kern_yield();
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join());
        producers * ITEMS
    }

    /// Fails unless `taken` has each item once, and the items of each producer in order.
    fn check(taken: &[u64], producers: u64, in_order: bool) {
        for p in 0..producers {
            let mut own: Vec<_> = taken
                .iter()
                .filter(|&&item| item >> 32 == p)
                .map(|item| item & 0xffff_ffff)
                .collect();
            if !in_order {
                own.sort_unstable();
            }
            assert!(own.into_iter().eq(0..ITEMS), "producer {p}");
        }
    }

    #[test]
    fn nothing_is_lost_or_doubled_and_each_producers_items_stay_in_order() {
        for seed in seeds(40) {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let (ring, mut consumer) = BufRing::with_consumer(8);
                let reader = kthread_add("consumer", Pri::PUSER, None, move || {
                    let mut taken = Vec::new();
                    while taken.len() < 3 * ITEMS as usize {
                        match consumer.take() {
                            // Now and then there is no room downstream.
                            Some((item, slot)) if machine::random_u64() & 7 == 0 => {
                                slot.putback(item);
                            }
                            Some((item, slot)) => {
                                slot.advance();
                                taken.push(item);
                            }
                            None => kern_yield(),
                        }
                    }
                    check(&taken, 3, true);
                });
                torture(3, move |item| ring.enqueue(item).is_err());
                reader.join();
            });
        }
    }

    #[test]
    fn several_consumers_share_out_what_there_is() {
        for seed in seeds(40) {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let ring = Arc::new(BufRing::<u64, ManyConsumers>::new(8));
                let left = Arc::new(AtomicUsize::new(2 * ITEMS as usize));
                let all = Arc::new(std::sync::Mutex::new(Vec::new()));
                let readers: Vec<_> = (0..2)
                    .map(|_| {
                        let (ring, left, all) = (ring.clone(), left.clone(), all.clone());
                        kthread_add("consumer", Pri::PUSER, None, move || {
                            let mut taken = Vec::new();
                            while left.load(Ordering::Relaxed) > 0 {
                                match ring.dequeue() {
                                    Some(item) => {
                                        left.fetch_sub(1, Ordering::Relaxed);
                                        taken.push(item);
                                    }
                                    None => kern_yield(),
                                }
                            }
                            // What one consumer took it took in order.
                            for p in 0..2 {
                                let own = taken.iter().filter(|&&item| item >> 32 == p);
                                assert!(own.is_sorted());
                            }
                            all.lock().unwrap().extend(taken);
                        })
                    })
                    .collect();
                let producers = ring.clone();
                torture(2, move |item| producers.enqueue(item).is_err());
                readers.into_iter().for_each(|reader| reader.join());
                check(&all.lock().unwrap(), 2, false);
            });
        }
    }
}
