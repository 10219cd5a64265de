//! Read-mostly locks: a reader touches only memory of its own thread, a writer interrupts the CPUs that have read.
//!
//! FreeBSD: sys/kern/kern_rmlock.c, sys/sys/rmlock.h, sys/sys/_rmlock.h
//! Differs from FreeBSD: a tracker stands in its thread, and a CPU lists the pinned threads that have been switched away, instead of
//! one list per CPU of trackers on stacks. Only the thread itself changes its trackers, so that one plain store publishes one,
//! without the critical section that a list shared by the threads of a CPU would need.
//!
//! A CPU holds a token of the lock while its bit in `rm_writecpus` is clear. A reader pins itself to its CPU, publishes its tracker,
//! then looks at the bit. A writer sets all bits, then interrupts the CPUs whose bits were clear. On such a CPU the interrupt comes
//! either before the reader publishes, and the reader sees the bit; or after, and the interrupt sees the tracker. Both are on
//! one CPU, which sees its own stores in order: no fence is needed. A second write in a row finds all bits set and interrupts nobody.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;

use alloc::boxed::Box;

use intrusive_collections::{LinkedList, LinkedListLink, intrusive_adapter};

use super::kern_mutex::{Mutex, RawSpin};
use super::kern_sx::Sx;
use super::kern_thread::{Thread, ThreadRef, curthread};
use super::lock_order::{Held, LockClass, assert_under};
use super::sched::{pin, unpin};
use super::subr_lock::{self as lock, Waited};
use super::subr_turnstile::{self as turnstile, TurnstileQueue};
use super::subr_witness::{self as witness, LockKind};
use crate::machine::atomic::{
    AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Cell, Ordering, UnsafeCell, compiler_fence, fence,
};
use crate::machine::words::{from_word, to_word};
use crate::machine::{self, CachePadded, CpuSet, MAXCPU, PerCpu};
use crate::machine_local;

intrusive_adapter!(ActiveAdapter = &'static RmTracker: RmTracker { link => LinkedListLink });
intrusive_adapter!(PinnedAdapter = ThreadRef: Thread { td_rmlink => LinkedListLink });

/// The tracker is on the list of its lock: a writer waits for it, or is about to.
#[doc(alias = "RMPF_ONQUEUE")]
const ONQUEUE: u32 = 1;
/// The writer sleeps until this tracker is gone.
#[doc(alias = "RMPF_SIGNAL")]
const SIGNAL: u32 = 2;

/// One read lock that a thread holds.
#[doc(alias = "rm_priotracker")]
pub(crate) struct RmTracker {
    /// Address of the `RmCore`, or zero. Written by the thread, read by interrupts of the CPU it is pinned to.
    rmlock: AtomicUsize,
    /// Changed under `RM_SPINLOCK`; read by the thread when no interrupt can find the tracker any more.
    flags: AtomicU32,
    /// The thread, while on the list of the lock. Under `RM_SPINLOCK`, as is `link`.
    thread: Cell<Option<ThreadRef>>,
    link: LinkedListLink,
}

impl RmTracker {
    const fn new() -> RmTracker {
        RmTracker {
            rmlock: AtomicUsize::new(0),
            flags: AtomicU32::new(0),
            thread: Cell::new(None),
            link: LinkedListLink::new(),
        }
    }
}

/// Trackers of a thread in one piece; more are made when they do not suffice.
const TRACKERS: usize = 4;

/// The trackers of a thread.
pub(crate) struct RmTrackers {
    trackers: [RmTracker; TRACKERS],
    more: AtomicPtr<RmTrackers>,
}

impl RmTrackers {
    pub(super) const fn new() -> RmTrackers {
        RmTrackers {
            trackers: [const { RmTracker::new() }; TRACKERS],
            more: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    fn iter(&'static self) -> impl Iterator<Item = &'static RmTracker> {
        let pieces = core::iter::successors(Some(self), |piece| {
            // SAFETY: what `free_hard` has put there lasts as long as the machine.
            unsafe { piece.more.load(Ordering::Acquire).as_ref() }
        });
        pieces.flat_map(|piece| &piece.trackers)
    }

    /// Returns one that is not in use.
    #[inline]
    fn free(&'static self) -> &'static RmTracker {
        let first = &self.trackers[0];
        if first.rmlock.load(Ordering::Relaxed) == 0 {
            first
        } else {
            self.free_hard()
        }
    }

    #[cold]
    #[inline(never)]
    fn free_hard(&'static self) -> &'static RmTracker {
        let mut unused = self
            .iter()
            .filter(|tracker| tracker.rmlock.load(Ordering::Relaxed) == 0);
        if let Some(tracker) = unused.next() {
            return tracker;
        }
        let piece = machine::leak(Box::new(RmTrackers::new()));
        piece
            .more
            .store(self.more.load(Ordering::Relaxed), Ordering::Relaxed);
        let pointer = (&raw const *piece).cast_mut();
        self.more.store(pointer, Ordering::Release);
        &piece.trackers[0]
    }

    fn of_lock(&'static self, lock: usize) -> impl Iterator<Item = &'static RmTracker> {
        self.iter()
            .filter(move |tracker| tracker.rmlock.load(Ordering::Relaxed) == lock)
    }
}

/// Pinned threads that have been switched away from a CPU. Used only by that CPU, with interrupts off.
struct Pinned(UnsafeCell<LinkedList<PinnedAdapter>>);

// SAFETY: one CPU uses it, with interrupts off.
unsafe impl Sync for Pinned {}
// SAFETY: as above; threads live as long as the machine.
unsafe impl Send for Pinned {}

machine_local! {
    /// Protects what trackers and locks say of readers that a writer waits for.
    static RM_SPINLOCK: RawSpin = RawSpin::new();
    #[doc(alias = "pc_rm_queue")]
    static PINNED: PerCpu<Pinned> = PerCpu::from_slots(
        [const { CachePadded(Pinned(UnsafeCell::new(LinkedList::new(PinnedAdapter::NEW)))) }; MAXCPU]
    );
    static IPIS: AtomicU64 = AtomicU64::new(0);
}

/// Returns how many interrupts writers have sent.
pub fn rm_ipis() -> u64 {
    IPIS.load(Ordering::Relaxed)
}

/// `thread`, which is pinned, is being switched away from this CPU. Interrupts are off.
#[cold]
pub(super) fn switched_out(thread: ThreadRef) {
    let pinned = PINNED.get().get(machine::curcpu());
    // SAFETY: this CPU, with interrupts off, has the list for itself.
    unsafe { (*pinned.0.get()).push_back(thread) };
}

/// `thread`, which is pinned, is about to run on this CPU again. Interrupts are off.
#[cold]
pub(super) fn switched_in(thread: ThreadRef) {
    let pinned = PINNED.get().get(machine::curcpu());
    // SAFETY: as above; `switched_out` put it on this CPU's list, as it is pinned.
    unsafe { (*pinned.0.get()).cursor_mut_from_ptr(thread).remove() };
}

/// # Panics
/// If `thread`, which ends, holds a read lock: nobody would find its tracker any more.
pub(super) fn check_thread_end(thread: ThreadRef) {
    let held = thread
        .td_rm
        .iter()
        .any(|tracker| tracker.rmlock.load(Ordering::Relaxed) != 0);
    assert!(
        !held,
        "thread {} ended with a read lock held",
        thread.name()
    );
}

/// What does not depend on the lock's data and class.
struct RmCore {
    /// CPUs without a token. Set by writers, cleared by readers, both under the writers' lock.
    rm_writecpus: AtomicU32,
    /// Trackers that a writer waits for. Under `RM_SPINLOCK`.
    active: UnsafeCell<LinkedList<ActiveAdapter>>,
}

impl RmCore {
    const fn new() -> RmCore {
        RmCore {
            rm_writecpus: AtomicU32::new(u32::MAX),
            active: UnsafeCell::new(LinkedList::new(ActiveAdapter::NEW)),
        }
    }

    fn address(&self) -> usize {
        to_word(self)
    }

    /// # Safety
    /// `RM_SPINLOCK` is held, and the reference is the only one.
    #[expect(clippy::mut_from_ref, reason = "the cell stands under the lock")]
    unsafe fn active(&self) -> &mut LinkedList<ActiveAdapter> {
        // SAFETY: promised by the caller.
        unsafe { &mut *self.active.get() }
    }

    /// Puts `tracker` of `thread` on the list. `RM_SPINLOCK` is held.
    fn activate(&self, tracker: &'static RmTracker, thread: ThreadRef) {
        tracker.thread.set(Some(thread));
        tracker.flags.store(ONQUEUE, Ordering::Relaxed);
        // SAFETY: the lock is held.
        unsafe { self.active() }.push_back(tracker);
    }

    /// The read lock in one piece of straight code: pin, publish, look.
    #[inline]
    fn rlock(&self, me: ThreadRef) -> (&'static RmTracker, bool) {
        pin(me);
        compiler_fence(Ordering::SeqCst);
        let tracker = me.td_rm.free();
        tracker.rmlock.store(self.address(), Ordering::Relaxed);
        machine::interleave();
        // An interrupt comes before the store or after it, and either way the load sees what it has to.
        compiler_fence(Ordering::SeqCst);
        let has_token = self.rm_writecpus.load(Ordering::Acquire) & 1 << machine::curcpu() == 0;
        (tracker, has_token)
    }

    /// Tells whether the reader, who has found no token, has the lock all the same: a writer has seen its tracker and will wait for it,
    /// or waits already for another of the same thread. Otherwise the tracker is withdrawn and the thread free to move.
    fn reads_already(&self, me: ThreadRef, tracker: &'static RmTracker) -> bool {
        RM_SPINLOCK.lock();
        let mut seen = tracker.flags.load(Ordering::Relaxed) != 0;
        if !seen && me.td_rm.of_lock(self.address()).count() > 1 {
            self.activate(tracker, me);
            seen = true;
        }
        if !seen {
            tracker.rmlock.store(0, Ordering::Relaxed);
        }
        RM_SPINLOCK.unlock();
        if !seen {
            unpin(me);
        }
        seen
    }

    /// Takes a token for this CPU, and the read lock with it. The writers' lock is held.
    fn take_token(&self, me: ThreadRef, tracker: &'static RmTracker) {
        pin(me);
        compiler_fence(Ordering::SeqCst);
        let cpus = self.rm_writecpus.load(Ordering::Relaxed) & !(1 << machine::curcpu());
        self.rm_writecpus.store(cpus, Ordering::Relaxed);
        tracker.rmlock.store(self.address(), Ordering::Relaxed);
    }

    #[inline]
    fn runlock(&self, me: ThreadRef, tracker: &'static RmTracker) {
        compiler_fence(Ordering::SeqCst);
        // Release: the writer's interrupt on this CPU, and through it the writer, sees all that was read before.
        tracker.rmlock.store(0, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        // From here on no interrupt finds the tracker; one that has found it has left a mark.
        if tracker.flags.load(Ordering::Relaxed) != 0 {
            self.runlock_hard(me, tracker);
        }
        unpin(me);
        machine::interleave();
    }

    /// Tells the writer that waits, if it sleeps for this tracker.
    #[doc(alias = "_rm_unlock_hard")]
    #[cold]
    #[inline(never)]
    fn runlock_hard(&self, me: ThreadRef, tracker: &'static RmTracker) {
        RM_SPINLOCK.lock();
        // SAFETY: the lock is held, and the tracker's flags say that it is on the list.
        unsafe { self.active().cursor_mut_from_ptr(tracker).remove() };
        let signal = tracker.flags.load(Ordering::Relaxed) & SIGNAL != 0;
        tracker.flags.store(0, Ordering::Relaxed);
        tracker.thread.set(None);
        if !signal {
            RM_SPINLOCK.unlock();
            return;
        }
        let mut chain = turnstile::trywait(self.address());
        RM_SPINLOCK.unlock();
        chain.signal(TurnstileQueue::Exclusive);
        chain.unpend(me);
    }

    /// Takes the tokens back and waits for those who read. The writers' lock is held.
    #[inline]
    fn wlock(&self, me: ThreadRef, name: &'static str, waited: &mut Waited) {
        let readers = CpuSet(CpuSet::all().0 & !self.rm_writecpus.load(Ordering::Relaxed));
        if readers != CpuSet::EMPTY {
            self.wlock_hard(me, readers, name, waited);
        }
    }

    #[cold]
    #[inline(never)]
    fn wlock_hard(&self, me: ThreadRef, readers: CpuSet, name: &'static str, waited: &mut Waited) {
        self.rm_writecpus.store(u32::MAX, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let sent = readers.without(machine::curcpu()).count() as u64;
        IPIS.fetch_add(sent, Ordering::Relaxed);
        machine::smp_rendezvous(readers, clean_ipi, self.address());
        loop {
            RM_SPINLOCK.lock();
            // SAFETY: the lock is held.
            let first = unsafe { self.active() }.front().clone_pointer();
            let Some((tracker, reader)) =
                first.and_then(|first| Some((first, first.thread.get()?)))
            else {
                RM_SPINLOCK.unlock();
                return;
            };
            assert!(
                reader.as_word() != me.as_word(),
                "write lock of {name}, held for reading by the same thread"
            );
            let chain = turnstile::trywait(self.address());
            tracker.flags.store(ONQUEUE | SIGNAL, Ordering::Relaxed);
            RM_SPINLOCK.unlock();
            lock::obtain_failed(waited, self.address());
            chain.wait(me, Some(reader), TurnstileQueue::Exclusive, name);
        }
    }
}

/// On a CPU whose token was taken back: tells the writer of those who read there. Interrupts are off.
#[doc(alias = "rm_cleanIPI")]
fn clean_ipi(lock: usize) {
    // SAFETY: the writer passes its lock, and waits until this has run.
    let core: &RmCore = unsafe { &*from_word(lock) };
    RM_SPINLOCK.lock();
    let collect = |thread: ThreadRef| {
        for tracker in thread.td_rm.of_lock(lock) {
            if tracker.flags.load(Ordering::Relaxed) == 0 {
                core.activate(tracker, thread);
            }
        }
    };
    collect(curthread());
    let pinned = PINNED.get().get(machine::curcpu());
    // SAFETY: this CPU, with interrupts off, has the list for itself.
    let pinned = unsafe { &*pinned.0.get() };
    for thread in pinned {
        // SAFETY: threads live as long as the machine; the list gives out shorter references.
        collect(unsafe { Thread::from_word(thread.as_word()) });
    }
    RM_SPINLOCK.unlock();
}

/// The lock that writers take among each other, and readers to get a token.
pub trait WriterLock: sealed::RawLock {
    /// What WITNESS calls a read lock.
    const READ: LockKind;
    /// What WITNESS calls the write lock.
    const WRITE: LockKind;
}

pub(super) mod sealed {
    /// A lock that is taken and released without a guard.
    pub trait RawLock {
        #[doc(hidden)]
        fn acquire(&self);
        #[doc(hidden)]
        fn try_acquire(&self) -> bool;
        #[doc(hidden)]
        fn release(&self);
    }
}

impl<C: LockClass> WriterLock for Mutex<(), C> {
    const READ: LockKind = LockKind::RmRead;
    const WRITE: LockKind = LockKind::RmWrite;
}

impl<C: LockClass> WriterLock for Sx<(), C> {
    const READ: LockKind = LockKind::RmSleepRead;
    const WRITE: LockKind = LockKind::RmSleepWrite;
}

/// A lock that is read often and on all CPUs, and written rarely.
///
/// A reader executes no atomic instruction and writes to no memory that another CPU uses; it may be preempted and may take locks,
/// also the same one for reading again, but stays on its CPU. A writer interrupts each CPU that has read since the last write,
/// and lends its priority to the readers it waits for. Nobody sleeps with it, unless it is an `RmSleepable`.
#[doc(alias = "rmlock")]
pub struct RmLock<T: ?Sized, C: LockClass, W: WriterLock = Mutex<(), C>> {
    core: RmCore,
    writer: W,
    class: PhantomData<fn() -> C>,
    /// Readers share it.
    data: core::cell::UnsafeCell<T>,
}

/// An `RmLock` whose holders may sleep.
#[doc(alias = "RM_SLEEPABLE")]
pub type RmSleepable<T, C> = RmLock<T, C, Sx<(), C>>;

// SAFETY: readers get only `&T`, a writer is alone.
unsafe impl<T: ?Sized + Send + Sync, C: LockClass, W: WriterLock + Sync> Sync for RmLock<T, C, W> {}
// SAFETY: an unlocked lock is only its data.
unsafe impl<T: ?Sized + Send, C: LockClass, W: WriterLock + Send> Send for RmLock<T, C, W> {}

impl<T, C: LockClass> RmLock<T, C> {
    /// Makes an unlocked lock.
    #[doc(alias = "rm_init")]
    pub const fn new(data: T) -> RmLock<T, C> {
        RmLock {
            core: RmCore::new(),
            writer: Mutex::new(()),
            class: PhantomData,
            data: core::cell::UnsafeCell::new(data),
        }
    }
}

impl<T, C: LockClass> RmSleepable<T, C> {
    /// Makes an unlocked lock whose holders may sleep.
    pub const fn new_sleepable(data: T) -> RmSleepable<T, C> {
        RmLock {
            core: RmCore::new(),
            writer: Sx::new(()),
            class: PhantomData,
            data: core::cell::UnsafeCell::new(data),
        }
    }
}

impl<T, C: LockClass, W: WriterLock> RmLock<T, C, W> {
    /// Returns the data; nobody can hold the lock any more.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized, C: LockClass, W: WriterLock> RmLock<T, C, W> {
    /// Locks for reading, beside other readers.
    #[doc(alias = "rm_rlock")]
    #[track_caller]
    #[inline]
    pub fn read(&self) -> RmReadGuard<'_, T, C, W> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), W::READ, Location::caller());
        let (tracker, has_token) = self.core.rlock(me);
        let waited = if has_token {
            Waited::NOT
        } else {
            self.rlock_hard(me, tracker)
        };
        self.read_locked(me, tracker, waited)
    }

    /// Locks for reading while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn read_under<H: Held>(&self, held: &H) -> RmReadGuard<'_, T, C, W> {
        const { assert_under::<H, C>() };
        let _ = held;
        self.read()
    }

    /// Locks for reading if that needs no waiting.
    #[doc(alias = "rm_try_rlock")]
    #[track_caller]
    #[inline]
    pub fn try_read(&self) -> Option<RmReadGuard<'_, T, C, W>> {
        let me = curthread();
        let (tracker, has_token) = self.core.rlock(me);
        if !has_token && !self.core.reads_already(me, tracker) {
            if !self.writer.try_acquire() {
                return None;
            }
            self.core.take_token(me, tracker);
            self.writer.release();
        }
        Some(self.read_locked(me, tracker, Waited::NOT))
    }

    /// Locks for writing, alone.
    #[doc(alias = "rm_wlock")]
    #[track_caller]
    pub fn write(&self) -> RmWriteGuard<'_, T, C, W> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), W::WRITE, Location::caller());
        let mut waited = self.acquire_writer();
        self.core.wlock(me, C::NAME, &mut waited);
        lock::obtained::<C>(me, self.address(), W::WRITE, Location::caller(), waited);
        RmWriteGuard {
            lock: self,
            not_send: PhantomData,
        }
    }

    /// Locks for writing while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    pub fn write_under<H: Held>(&self, held: &H) -> RmWriteGuard<'_, T, C, W> {
        const { assert_under::<H, C>() };
        let _ = held;
        self.write()
    }

    /// Returns the data without locking: `&mut` proves that nobody else has the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    fn address(&self) -> usize {
        self.core.address()
    }

    #[doc(alias = "_rm_rlock_hard")]
    #[cold]
    #[inline(never)]
    fn rlock_hard(&self, me: ThreadRef, tracker: &'static RmTracker) -> Waited {
        if self.core.reads_already(me, tracker) {
            return Waited::NOT;
        }
        let waited = self.acquire_writer();
        self.core.take_token(me, tracker);
        self.writer.release();
        waited
    }

    /// Takes the writers' lock.
    fn acquire_writer(&self) -> Waited {
        let mut waited = Waited::NOT;
        if !self.writer.try_acquire() {
            lock::obtain_failed(&mut waited, self.address());
            self.writer.acquire();
        }
        waited
    }

    #[track_caller]
    #[inline]
    fn read_locked(
        &self,
        me: ThreadRef,
        tracker: &'static RmTracker,
        waited: Waited,
    ) -> RmReadGuard<'_, T, C, W> {
        compiler_fence(Ordering::SeqCst);
        lock::obtained::<C>(me, self.address(), W::READ, Location::caller(), waited);
        RmReadGuard {
            lock: self,
            tracker,
            not_send: PhantomData,
        }
    }
}

/// A read lock; unlocks when dropped.
pub struct RmReadGuard<'a, T: ?Sized, C: LockClass, W: WriterLock = Mutex<(), C>> {
    lock: &'a RmLock<T, C, W>,
    tracker: &'static RmTracker,
    not_send: PhantomData<*const ()>,
}

impl<T: ?Sized, C: LockClass, W: WriterLock> Held for RmReadGuard<'_, T, C, W> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass, W: WriterLock> Deref for RmReadGuard<'_, T, C, W> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: there is no writer while this thread reads.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized, C: LockClass, W: WriterLock> Drop for RmReadGuard<'_, T, C, W> {
    #[doc(alias = "rm_runlock")]
    #[inline]
    fn drop(&mut self) {
        let me = curthread();
        lock::released(me, self.lock.address());
        self.lock.core.runlock(me, self.tracker);
    }
}

/// A write lock; unlocks when dropped.
pub struct RmWriteGuard<'a, T: ?Sized, C: LockClass, W: WriterLock = Mutex<(), C>> {
    lock: &'a RmLock<T, C, W>,
    not_send: PhantomData<*const ()>,
}

impl<T: ?Sized, C: LockClass, W: WriterLock> Held for RmWriteGuard<'_, T, C, W> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass, W: WriterLock> Deref for RmWriteGuard<'_, T, C, W> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock alone.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized, C: LockClass, W: WriterLock> DerefMut for RmWriteGuard<'_, T, C, W> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread holds the lock alone, and this is the only guard.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T: ?Sized, C: LockClass, W: WriterLock> Drop for RmWriteGuard<'_, T, C, W> {
    #[doc(alias = "rm_wunlock")]
    fn drop(&mut self) {
        lock::released(curthread(), self.lock.address());
        self.lock.writer.release();
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_synch::{kern_yield, pause, sched_bind, sched_prio, sched_unbind};
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::kern::lock_order::{App, Leaf};
    use crate::machine::hosted::{Machine, seeds, turns};

    #[test]
    fn writers_and_readers_never_meet() {
        for seed in seeds(60) {
            Machine::builder().seed(seed).cpus(4).run(|| {
                // Both halves are equal whenever nobody writes.
                let lock = Arc::new(RmLock::<(u64, u64), Leaf>::new((0, 0)));
                let threads: Vec<_> = (0..6)
                    .map(|number| {
                        let lock = Arc::clone(&lock);
                        kthread_add("user", Pri(100 + 5 * number), None, move || {
                            for turn in 0..turns(100) as u8 {
                                if (turn + number) % 8 == 0 {
                                    let mut guard = lock.write();
                                    guard.0 += 1;
                                    machine::interleave();
                                    if turn % 5 == 0 {
                                        kern_yield();
                                    }
                                    guard.1 += 1;
                                } else {
                                    let guard = lock.read();
                                    assert_eq!(guard.0, guard.1);
                                    let again = (turn % 3 == 0).then(|| lock.read());
                                    // Not in the order in which they were taken.
                                    drop(guard);
                                    if turn % 5 == 0 {
                                        kern_yield();
                                    }
                                    machine::interleave();
                                    if let Some(guard) = again {
                                        let before = *guard;
                                        machine::interleave();
                                        assert_eq!(guard.0, guard.1);
                                        assert_eq!(before, *guard);
                                    }
                                }
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                let guard = lock.read();
                assert_eq!(guard.0, guard.1);
            });
        }
    }

    #[test]
    fn a_write_interrupts_the_cpus_that_have_read_since_the_last_and_no_others() {
        Machine::builder().cpus(4).run(|| {
            let lock = RmLock::<u32, Leaf>::new(0);
            let write = || {
                let before = rm_ipis();
                *lock.write() += 1;
                rm_ipis() - before
            };
            assert_eq!(write(), 0);
            for readers in [0, 1, 2, 3] {
                for cpu in (0..readers).chain([3]) {
                    sched_bind(cpu);
                    for _ in 0..3 {
                        assert_ne!(*lock.read(), 0);
                    }
                }
                // The writer's own CPU needs no interrupt.
                assert_eq!(write(), readers as u64);
                assert_eq!(write(), 0);
            }
            sched_unbind();
        });
    }

    #[test]
    fn a_writer_waits_for_a_preempted_reader_and_lends_it_its_priority() {
        Machine::builder().cpus(1).run(|| {
            sched_prio(Pri(130));
            let lock = Arc::new(RmLock::<u32, Leaf>::new(0));
            // Takes this CPU's token, so that the next one is found by interrupt alone.
            drop(lock.read());
            let reader = lock.read();
            let theirs = Arc::clone(&lock);
            let writer = kthread_add("writer", Pri(60), None, move || *theirs.write() += 1);
            kern_yield();
            assert_eq!((*reader, curthread().priority()), (0, Pri(60)));
            // Waits behind the writer, through whom its priority comes here.
            let theirs = Arc::clone(&lock);
            let urgent = kthread_add("urgent", Pri(20), None, move || {
                assert_eq!(*theirs.read(), 1)
            });
            kern_yield();
            assert_eq!(writer.thread().priority(), Pri(20));
            assert_eq!((*reader, curthread().priority()), (0, Pri(20)));
            drop(reader);
            assert_eq!(curthread().priority(), Pri(130));
            writer.join();
            urgent.join();
            assert_eq!(*lock.read(), 1);
        });
    }

    #[test]
    fn a_reader_reads_again_while_a_writer_waits_for_it() {
        Machine::builder().cpus(1).run(|| {
            let lock = Arc::new(RmLock::<u32, Leaf>::new(0));
            let first = lock.read();
            let theirs = Arc::clone(&lock);
            let writer = kthread_add("writer", Pri(60), None, move || *theirs.write() += 1);
            kern_yield();
            assert!(!writer.is_done());
            let second = lock.read();
            let third = lock.try_read();
            drop(first);
            kern_yield();
            assert!(!writer.is_done());
            drop(second);
            assert_eq!(third.as_deref(), Some(&0));
            drop(third);
            writer.join();
            assert_eq!(*lock.read(), 1);
        });
    }

    #[test]
    fn a_thread_reads_more_locks_than_a_piece_of_trackers_has() {
        Machine::builder().cpus(2).run(|| {
            let lock = Arc::new(RmSleepable::<u32, Leaf>::new_sleepable(0));
            let mut guards: Vec<_> = (0..3 * TRACKERS).map(|_| lock.read()).collect();
            let theirs = Arc::clone(&lock);
            let writer = kthread_add("writer", Pri::PUSER, None, move || *theirs.write() += 1);
            while let Some(guard) = guards.pop() {
                pause("wait", 1);
                assert_eq!(*guard, 0);
                assert!(!writer.is_done());
            }
            writer.join();
            assert_eq!(*lock.read(), 1);
        });
    }

    #[test]
    fn a_lock_that_is_written_cannot_be_tried() {
        Machine::builder().run(|| {
            let mut lock = RmLock::<_, Leaf>::new(1);
            let writer = lock.write();
            assert!(lock.try_read().is_none());
            drop(writer);
            assert_eq!(lock.try_read().as_deref(), Some(&1));
            *lock.get_mut() = 2;
            assert_eq!(lock.into_inner(), 2);
        });
    }

    #[test]
    fn holders_of_the_sleepable_kind_may_sleep() {
        for seed in seeds(20) {
            Machine::builder().seed(seed).cpus(3).run(|| {
                let lock = Arc::new(RmSleepable::<(u64, u64), App>::new_sleepable((0, 0)));
                let threads: Vec<_> = (0..5)
                    .map(|number| {
                        let lock = Arc::clone(&lock);
                        kthread_add("holder", Pri::PUSER, None, move || {
                            for turn in 0..20 {
                                if (turn + number) % 4 == 0 {
                                    let mut guard = lock.write();
                                    guard.0 += 1;
                                    pause("write", 1);
                                    guard.1 += 1;
                                } else {
                                    let guard = lock.read();
                                    let before = *guard;
                                    pause("read", 1);
                                    assert_eq!(before.0, guard.1);
                                }
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                assert_eq!(*lock.read(), (25, 25));
            });
        }
    }

    #[test]
    #[should_panic(expected = "sleeping on \"pause\" with a non-sleepable lock held")]
    fn witness_reports_a_sleep_of_a_reader_of_the_other_kind() {
        Machine::builder().quiet().run(|| {
            let lock = RmLock::<_, App>::new(());
            let _guard = lock.read();
            pause("pause", 1);
        });
    }

    #[test]
    #[should_panic(expected = "while share locked from")]
    fn witness_reports_a_reader_that_writes() {
        Machine::builder().quiet().run(|| {
            let lock = RmLock::<_, App>::new(());
            let _reader = lock.read();
            let _writer = lock.write();
        });
    }
}
