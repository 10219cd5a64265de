//! Read sections, and freeing once no reader is left.
//!
//! FreeBSD: sys/kern/subr_epoch.c, epoch(9)
//! Differs from FreeBSD: a section counts itself in and out on per-CPU counters instead of hanging a tracker
//! on its CPU's list, so that a preempted section may end on another CPU (McKenney's SRCU). Entering costs
//! one atomic addition on a cache line of this CPU, leaving another; drivers pay it once per batch.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;

use crate::kern::kern_mutex::{Mutex, MutexGuard};
use crate::kern::kern_synch::{WChan, pause_sbt, wakeup_one};
use crate::kern::kern_thread::{Pri, curthread, kthread_add};
use crate::kern::lock_order;
use crate::kern::subr_witness as witness;
use crate::machine::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence, fence_after_rmw};
use crate::machine::{self, CachePadded, PerCpu};
use crate::machine_local;
use crate::param::MAXCPU;
use crate::time::Sbintime;

/// How long a writer sleeps before it looks again whether the readers have left.
const POLL: Sbintime = Sbintime::from_ms(1);

/// Sections entered and left on one CPU, by generation. A section may leave on another CPU than it entered.
struct Sections {
    entered: [AtomicU64; 2],
    left: [AtomicU64; 2],
}

type Callback = Box<dyn FnOnce() + Send>;

machine_local! {
    /// Parity of the generation that new sections join.
    static GENERATION: AtomicUsize = AtomicUsize::new(0);
    static SECTIONS: PerCpu<Sections> = PerCpu::from_slots([const {
        CachePadded(Sections {
            entered: [const { AtomicU64::new(0) }; 2],
            left: [const { AtomicU64::new(0) }; 2],
        })
    }; MAXCPU]);
    /// One writer at a time waits for readers.
    static WAITING: Mutex<bool, lock_order::Leaf> = Mutex::new(false);
    static DEFERRED: Mutex<Vec<Callback>, lock_order::EpochClass> = Mutex::new(Vec::new());
}

/// A read section of the network: what is found in it stays until it ends.
///
/// It may be preempted and wait for a mutex, but does not sleep, as WITNESS checks: whoever frees waits for it.
#[doc(alias = "NET_EPOCH_ENTER")]
pub struct NetEpoch {
    generation: usize,
    /// A section belongs to the thread that entered it.
    thread: PhantomData<*const ()>,
}

impl NetEpoch {
    /// Enters a section.
    #[inline]
    #[doc(alias = "epoch_enter_preempt")]
    pub fn enter() -> NetEpoch {
        witness::epoch_entered(curthread());
        let generation = GENERATION.load(Ordering::Relaxed) & 1;
        SECTIONS.get().get(machine::curcpu()).entered[generation].fetch_add(1, Ordering::Relaxed);
        // What the section reads is read after the writer can see the section.
        fence_after_rmw();
        NetEpoch {
            generation,
            thread: PhantomData,
        }
    }
}

impl Drop for NetEpoch {
    #[inline]
    #[doc(alias = "NET_EPOCH_EXIT")]
    fn drop(&mut self) {
        SECTIONS.get().get(machine::curcpu()).left[self.generation].fetch_add(1, Ordering::Release);
        witness::epoch_left(curthread());
    }
}

/// Whether all sections of `generation` have ended.
fn drained(generation: usize) -> bool {
    let sum = |count: fn(&Sections, usize) -> &AtomicU64| {
        SECTIONS.get().iter().fold(0u64, |sum, sections| {
            sum.wrapping_add(count(sections, generation).load(Ordering::Acquire))
        })
    };
    // Left before entered: a section that enters in between makes the sums differ, never agree too early.
    let left = sum(|sections, generation| &sections.left[generation]);
    fence(Ordering::SeqCst);
    let entered = sum(|sections, generation| &sections.entered[generation]);
    left == entered
}

/// Waits until every section that was open at the call has ended. Must not be called inside one.
#[doc(alias = "NET_EPOCH_WAIT")]
pub fn epoch_wait() {
    let mut waiting = WAITING.lock();
    while *waiting {
        waiting = MutexGuard::msleep(
            waiting,
            WChan::of(WAITING.get()),
            Pri::PSOCK,
            "epochw",
            None,
            false,
        )
        .0;
    }
    *waiting = true;
    drop(waiting);

    // Twice: a section may have read the generation before it changed and be counted after.
    for _ in 0..2 {
        fence(Ordering::SeqCst);
        let old = GENERATION.fetch_add(1, Ordering::SeqCst) & 1;
        while !drained(old) {
            pause_sbt("epoch", POLL);
        }
    }

    *WAITING.lock() = false;
    wakeup_one(WChan::of(WAITING.get()));
}

/// Runs `callback` after every section that is open now has ended, on the epoch thread.
#[doc(alias = "NET_EPOCH_CALL")]
pub fn epoch_call(callback: Box<dyn FnOnce() + Send>) {
    let first = {
        let mut deferred = DEFERRED.lock();
        deferred.push(callback);
        deferred.len() == 1
    };
    if first {
        wakeup_one(WChan::of(DEFERRED.get()));
    }
}

/// Waits until all callbacks that were deferred before the call have run.
#[doc(alias = "NET_EPOCH_DRAIN_CALLBACKS")]
pub fn epoch_drain_callbacks() {
    let done = Arc::new(AtomicUsize::new(0));
    let flag = done.clone();
    epoch_call(Box::new(move || flag.store(1, Ordering::Release)));
    while done.load(Ordering::Acquire) == 0 {
        pause_sbt("epochd", POLL);
    }
}

/// Starts the thread that runs deferred callbacks.
pub(super) fn start() {
    kthread_add("epoch", Pri::PSOCK, None, || {
        loop {
            let batch = {
                let mut deferred = DEFERRED.lock();
                while deferred.is_empty() {
                    let chan = WChan::of(DEFERRED.get());
                    deferred = MutexGuard::msleep(deferred, chan, Pri::PSOCK, "-", None, false).0;
                }
                core::mem::take(&mut *deferred)
            };
            epoch_wait();
            batch.into_iter().for_each(|callback| callback());
        }
    });
}

/// A pointer to a `T` that readers follow inside a section, and a writer replaces.
pub struct EpochCell<T: Send + Sync + 'static> {
    pointer: AtomicPtr<T>,
}

impl<T: Send + Sync + 'static> EpochCell<T> {
    /// Makes a cell.
    pub fn new(value: T) -> EpochCell<T> {
        EpochCell {
            pointer: AtomicPtr::new(Box::into_raw(Box::new(value))),
        }
    }

    /// The value, which stays as it is until the section ends.
    #[inline]
    pub fn load<'e>(&'e self, epoch: &'e NetEpoch) -> &'e T {
        let _ = epoch;
        // SAFETY: the pointer came from a `Box`; who replaces it frees it only after the section has ended.
        unsafe { &*self.pointer.load(Ordering::Acquire) }
    }

    /// Puts `value` in the place of the old one, which is freed after a grace period.
    pub fn replace(&self, value: Box<T>) {
        let old = self.pointer.swap(Box::into_raw(value), Ordering::AcqRel);
        // SAFETY: the pointer came from a `Box`, and after the swap nobody else finds it.
        let old = unsafe { Box::from_raw(old) };
        let old = Retired(Box::into_raw(old));
        epoch_call(Box::new(move || old.free()));
    }

    /// The value, for who needs no section because nobody replaces it meanwhile: `&mut` is the proof.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: the pointer came from a `Box`, and the exclusive borrow keeps everybody else out.
        unsafe { &mut **self.pointer.get_mut() }
    }
}

impl<T: Send + Sync + 'static> Drop for EpochCell<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a `Box`; readers borrow the cell, so there are none.
        drop(unsafe { Box::from_raw(*self.pointer.get_mut()) });
    }
}

/// A value that no new reader can find. A raw pointer, since old readers may still look at it.
struct Retired<T>(*mut T);

// SAFETY: it owns a `T`, which is `Send`.
unsafe impl<T: Send> Send for Retired<T> {}

impl<T> Retired<T> {
    fn free(self) {
        // SAFETY: made by `Box::into_raw` in `replace`, and freed once, after the grace period.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// A shared pointer, or none, that readers follow inside a section, and writers replace: the link of a list that is read
/// without a lock.
#[doc(alias = "CK_LIST")]
pub struct EpochArc<T: Send + Sync + 'static> {
    /// From `Arc::into_raw`, and one count of it is ours; or null.
    pointer: AtomicPtr<T>,
}

impl<T: Send + Sync + 'static> Default for EpochArc<T> {
    fn default() -> Self {
        Self::new(None)
    }
}

impl<T: Send + Sync + 'static> EpochArc<T> {
    /// Makes a link.
    pub fn new(value: Option<Arc<T>>) -> EpochArc<T> {
        EpochArc {
            pointer: AtomicPtr::new(Self::into_raw(value)),
        }
    }

    fn into_raw(value: Option<Arc<T>>) -> *mut T {
        value.map_or(core::ptr::null_mut(), |value| {
            Arc::into_raw(value).cast_mut()
        })
    }

    /// What the link points at, which stays until the section ends.
    #[inline]
    pub fn load<'e>(&'e self, epoch: &'e NetEpoch) -> Option<&'e T> {
        let _ = epoch;
        // SAFETY: the pointer came from an `Arc`, of which the link holds a count; who replaces it gives that count up
        // only after the section has ended.
        unsafe { self.pointer.load(Ordering::Acquire).as_ref() }
    }

    /// One more reference to what the link points at.
    pub fn get(&self, epoch: &NetEpoch) -> Option<Arc<T>> {
        let _ = epoch;
        let pointer = self.pointer.load(Ordering::Acquire);
        if pointer.is_null() {
            return None;
        }
        // SAFETY: as in `load`, the count the link holds, or held when the section began, outlives the section.
        unsafe {
            Arc::increment_strong_count(pointer);
            Some(Arc::from_raw(pointer))
        }
    }

    /// Points the link at something else; what it pointed at is let go after a grace period.
    pub fn replace(&self, value: Option<Arc<T>>) {
        Self::retire(self.pointer.swap(Self::into_raw(value), Ordering::AcqRel));
    }

    /// Puts `node` in front of the list that begins here; `link` is where `node` points on.
    pub fn push_front(&self, node: Arc<T>, link: impl Fn(&T) -> &EpochArc<T>) {
        let mut first = self.pointer.load(Ordering::Acquire);
        // The count that this link holds of the first element becomes the node's, once the exchange succeeds.
        let before = link(&node).pointer.swap(first, Ordering::Relaxed);
        let new = Arc::into_raw(node).cast_mut();
        while let Err(other) =
            self.pointer
                .compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire)
        {
            first = other;
            // SAFETY: `new` is not published yet, and its count is ours.
            link(unsafe { &*new })
                .pointer
                .store(first, Ordering::Relaxed);
        }
        Self::retire(before);
    }

    fn retire(pointer: *mut T) {
        if pointer.is_null() {
            return;
        }
        let old = RetiredArc(pointer);
        epoch_call(Box::new(move || old.free()));
    }
}

impl<T: Send + Sync + 'static> Drop for EpochArc<T> {
    fn drop(&mut self) {
        let pointer = *self.pointer.get_mut();
        if !pointer.is_null() {
            // SAFETY: the pointer came from an `Arc`; readers borrow the link, so there are none.
            drop(unsafe { Arc::from_raw(pointer) });
        }
    }
}

/// A count of an `Arc` that a link held.
struct RetiredArc<T>(*mut T);

// SAFETY: it stands for an `Arc<T>`, which is `Send` if `T` is `Send` and `Sync`.
unsafe impl<T: Send + Sync> Send for RetiredArc<T> {}

impl<T> RetiredArc<T> {
    fn free(self) {
        // SAFETY: made by `Arc::into_raw`, and freed once, after the grace period.
        drop(unsafe { Arc::from_raw(self.0) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kern::kern_synch::kern_yield;
    use crate::machine::hosted::Machine;
    /// Counts how often it was freed.
    struct Tracked(Arc<AtomicUsize>);

    impl Drop for Tracked {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets others run for `span`, without sleeping.
    fn let_pass(span: Sbintime) {
        let end = machine::sbinuptime() + span;
        while machine::sbinuptime() < end {
            kern_yield();
        }
    }

    #[test]
    #[should_panic(expected = "sleeping on \"pause\" in a network epoch")]
    fn witness_reports_a_sleep_in_a_section() {
        Machine::builder().quiet().run(|| {
            drop(NetEpoch::enter());
            pause_sbt("between", Sbintime::from_ms(1));
            let (_section, _inner) = (NetEpoch::enter(), NetEpoch::enter());
            pause_sbt("pause", Sbintime::from_ms(1));
        });
    }

    #[test]
    fn a_replaced_value_lives_until_its_readers_have_left() {
        Machine::builder().run(|| {
            let freed = Arc::new(AtomicUsize::new(0));
            let cell = EpochCell::new(Tracked(freed.clone()));
            let section = NetEpoch::enter();
            let seen = cell.load(&section);
            cell.replace(Box::new(Tracked(freed.clone())));
            let_pass(Sbintime::from_ms(100));
            assert_eq!(seen.0.load(Ordering::Relaxed), 0);
            drop(section);
            epoch_drain_callbacks();
            assert_eq!(freed.load(Ordering::Relaxed), 1);
            drop(cell);
            assert_eq!(freed.load(Ordering::Relaxed), 2);
        });
    }

    struct Link {
        value: u32,
        next: EpochArc<Link>,
    }

    fn values(list: &EpochArc<Link>) -> Vec<u32> {
        let section = NetEpoch::enter();
        let mut values = Vec::new();
        let mut at = list.load(&section);
        while let Some(link) = at {
            values.push(link.value);
            at = link.next.load(&section);
        }
        values
    }

    #[test]
    fn a_link_taken_out_of_a_list_still_leads_on_for_readers() {
        Machine::builder().run(|| {
            let list = EpochArc::default();
            for value in 0..3 {
                let link = Link {
                    value,
                    next: EpochArc::default(),
                };
                list.push_front(Arc::new(link), |link| &link.next);
            }
            assert_eq!(values(&list), [2, 1, 0]);
            let section = NetEpoch::enter();
            let middle = list.load(&section).unwrap().next.load(&section).unwrap();
            list.load(&section)
                .unwrap()
                .next
                .replace(middle.next.get(&section));
            assert_eq!(values(&list), [2, 0]);
            let_pass(Sbintime::from_ms(20));
            assert_eq!(middle.next.load(&section).unwrap().value, 0);
            drop(section);
            epoch_drain_callbacks();
            list.replace(None);
            assert!(values(&list).is_empty());
        });
    }

    #[test]
    fn waiting_ends_only_after_sections_that_were_open() {
        Machine::builder().cpus(2).run(|| {
            let entered = Arc::new(AtomicUsize::new(0));
            let left = Arc::new(AtomicUsize::new(0));
            let (there, gone) = (entered.clone(), left.clone());
            let reader = kthread_add("reader", Pri::PUSER, None, move || {
                let _section = NetEpoch::enter();
                there.store(1, Ordering::Release);
                let_pass(Sbintime::from_ms(50));
                gone.store(1, Ordering::Release);
            });
            while entered.load(Ordering::Acquire) == 0 {
                pause_sbt("test", Sbintime::from_ms(1));
            }
            epoch_wait();
            assert_eq!(left.load(Ordering::Acquire), 1);
            reader.join();
        });
    }
}
