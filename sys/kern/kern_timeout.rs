//! Callouts: functions that run at a later time, on a wheel per CPU.
//!
//! FreeBSD: sys/kern/kern_timeout.c, sys/sys/callout.h
//! Differs from FreeBSD: the wheel is hierarchical (seven levels of 64 buckets, 1/1024 s at the finest), so that the next
//! event is found from seven bit maps and the event timer is set for it alone; there is no clock tick. A callout
//! that is set back, as TCP does with each segment, is not moved: its bucket sends it on when its time comes.
//! What runs is an object (`CalloutTarget`) that the wheel keeps alive, not a function with an untyped argument.
//! A precision rounds the deadline up, so that callouts that may be late fall together, instead of a window for each.
//! Not carried over: `callout_schedule`, as a callout that has fired has let its target go.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;

use intrusive_collections::{LinkedList, LinkedListLink, UnsafeRef, intrusive_adapter};

use super::kern_intr::SoftInterrupt;
use super::kern_mutex::{RawSpin, owe_ipi, spinlock_enter, spinlock_exit};
use super::kern_synch::{WChan, wakeup};
use super::kern_thread::{NOCPU, Pri};
use super::subr_sleepqueue as sleepq;
use crate::machine::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering,
};
use crate::machine::{self, CachePadded, MAXCPU, PerCpu};
use crate::machine_local;
use crate::sysctl::{self, ReadOnly};
use crate::time::Sbintime;

/// Something that a callout runs.
pub trait CalloutTarget: Send + Sync + 'static {
    /// Called on the thread "clock (N)" when the time has come. May take blocking locks, but should not sleep.
    fn callout(self: Arc<Self>, now: Sbintime);
}

/// A timer. While it is armed the wheel holds a reference to its target; stopping and firing let it go.
#[doc(alias = "callout")]
pub struct Callout {
    node: Box<CalloutNode>,
}

impl Callout {
    /// Makes a timer that is not armed.
    #[doc(alias = "callout_init")]
    pub fn new() -> Callout {
        Callout {
            node: Box::new(CalloutNode::new(None)),
        }
    }

    /// Arms it to run `target` after `after`; tells whether it was armed already, and now is only for the new time.
    ///
    /// Differs from FreeBSD: it runs on the CPU of the caller, not on that of the last time, unless it is only set back.
    #[doc(alias = "callout_reset_sbt")]
    pub fn reset<T: CalloutTarget>(&self, after: Sbintime, target: &Arc<T>) -> bool {
        self.arm(after, None, target)
    }

    /// Arms it to run on `cpu`.
    ///
    /// A target that is running now is not run a second time beside itself: the callout moves when it has ended.
    #[doc(alias = "callout_reset_on")]
    pub fn reset_on<T: CalloutTarget>(&self, after: Sbintime, cpu: usize, target: &Arc<T>) -> bool {
        self.arm(after, Some(cpu), target)
    }

    /// Arms it to run after `after`, or up to `precision` later if it can then run together with others.
    #[doc(alias = "callout_reset_sbt_on")]
    pub fn reset_sbt_on<T: CalloutTarget>(
        &self,
        after: Sbintime,
        precision: Sbintime,
        cpu: Option<usize>,
        target: &Arc<T>,
    ) -> bool {
        let deadline = machine::sbinuptime().saturating_add(after);
        self.arm_at(coalesce(deadline, precision), cpu, target)
    }

    fn arm<T: Fire>(&self, after: Sbintime, cpu: Option<usize>, target: &Arc<T>) -> bool {
        let deadline = machine::sbinuptime().saturating_add(after);
        self.arm_at(deadline, cpu, target)
    }

    fn arm_at<T: Fire>(&self, deadline: Sbintime, cpu: Option<usize>, target: &Arc<T>) -> bool {
        let address = Arc::as_ptr(target).cast::<()>().cast_mut();
        if cpu.is_none() && self.node.set_back(deadline, address) {
            return true;
        }
        let (cancelled, old) = self.node.reset(deadline, cpu, |armed| {
            if self.node.armed_for.load(Ordering::Relaxed) == address {
                return None;
            }
            self.node.armed_for.store(address, Ordering::Relaxed);
            armed.replace(Arc::clone(target) as Arc<dyn Fire>)
        });
        drop(old);
        cancelled
    }

    /// Disarms it; tells what it was doing.
    #[doc(alias = "callout_stop")]
    pub fn stop(&self) -> CalloutStop {
        self.node.stop()
    }

    /// Disarms it and waits until its target does not run; tells what it was doing. A target that arms it again
    /// meanwhile does so in vain.
    ///
    /// The caller holds no lock that the target takes, and is not the target.
    #[doc(alias = "callout_drain")]
    pub fn drain(&self) -> CalloutStop {
        self.node.drain()
    }

    /// Tells whether it is armed.
    #[doc(alias = "callout_pending")]
    pub fn pending(&self) -> bool {
        self.node.is_pending()
    }

    /// Returns when it will fire, while it is armed.
    pub fn deadline(&self) -> Option<Sbintime> {
        self.pending().then(|| self.node.deadline())
    }
}

/// What a callout was doing when it was stopped. In FreeBSD a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CalloutStop {
    /// It was armed, and will not run: 1.
    Cancelled,
    /// Its target is running and could not be stopped; armed as well, it no longer is: 0.
    Running,
    /// It was not armed: -1.
    Idle,
}

/// The last moment at or before `deadline + precision` that callouts of such a precision agree on.
fn coalesce(deadline: Sbintime, precision: Sbintime) -> Sbintime {
    if precision.0 <= 1 {
        return deadline;
    }
    let grain = 1i64 << precision.0.ilog2();
    Sbintime(deadline.0.saturating_add(grain - 1) & !(grain - 1))
}

impl Default for Callout {
    fn default() -> Callout {
        Callout::new()
    }
}

impl Drop for Callout {
    fn drop(&mut self) {
        self.node.retire();
    }
}

/// Something that a callout runs with a lock of its own held.
#[doc(alias = "callout_init_mtx")]
#[doc(alias = "callout_init_rw")]
pub trait LockedTarget: Send + Sync + 'static {
    /// Proof that the lock is held.
    type Guard<'a>
    where
        Self: 'a;

    /// Takes the lock: a mutex, or a rwlock for reading or writing.
    fn lock(&self) -> Self::Guard<'_>;

    /// Called on the thread "clock (N)" when the time has come, with the lock that `lock` took.
    fn callout(self: &Arc<Self>, held: Self::Guard<'_>, now: Sbintime);
}

/// A timer that is armed and stopped under the lock of its target: once stopped or set to another time it does not run
/// for the old one, not even if its time has come and it waits for the lock.
pub struct LockedCallout<T: LockedTarget> {
    callout: Callout,
    target: PhantomData<fn(T)>,
}

impl<T: LockedTarget> LockedCallout<T> {
    /// Makes a timer that is not armed.
    pub fn new() -> LockedCallout<T> {
        LockedCallout {
            callout: Callout::new(),
            target: PhantomData,
        }
    }

    /// Arms it; tells whether it was armed already, and now is only for the new time. `held` is the lock of `target`.
    pub fn reset(&self, held: &T::Guard<'_>, after: Sbintime, target: &Arc<T>) -> bool {
        let _ = held;
        self.callout.arm(after, None, &Locked::of(target))
    }

    /// Arms it to run on `cpu`.
    pub fn reset_on(
        &self,
        held: &T::Guard<'_>,
        after: Sbintime,
        cpu: usize,
        target: &Arc<T>,
    ) -> bool {
        let _ = held;
        self.callout.arm(after, Some(cpu), &Locked::of(target))
    }

    /// Disarms it. Unless called by the target itself, which is `Running`, it does not run after this.
    pub fn stop(&self, held: &T::Guard<'_>) -> CalloutStop {
        let _ = held;
        self.callout.stop()
    }

    /// Disarms it and waits until its target does not run. The caller does not hold the lock.
    pub fn drain(&self) -> CalloutStop {
        self.callout.drain()
    }

    /// Tells whether it is armed.
    pub fn pending(&self) -> bool {
        self.callout.pending()
    }
}

impl<T: LockedTarget> Default for LockedCallout<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// What a wheel runs.
trait Fire: Send + Sync + 'static {
    /// Whether `fire` waits for a lock first, and can be cancelled until it has it.
    fn is_locked(&self) -> bool;
    /// Runs it; `begin` tells, once the lock is held, whether to go on.
    fn fire(self: Arc<Self>, now: Sbintime, begin: &dyn Fn() -> bool);
}

impl<T: CalloutTarget> Fire for T {
    fn is_locked(&self) -> bool {
        false
    }

    fn fire(self: Arc<Self>, now: Sbintime, _: &dyn Fn() -> bool) {
        self.callout(now);
    }
}

/// A target that is run under its lock.
#[repr(transparent)]
struct Locked<T>(T);

impl<T: LockedTarget> Locked<T> {
    fn of(target: &Arc<T>) -> Arc<Locked<T>> {
        // SAFETY: the wrapper has the layout of what it wraps, and the count was just made.
        unsafe { Arc::from_raw(Arc::into_raw(Arc::clone(target)).cast::<Locked<T>>()) }
    }
}

impl<T: LockedTarget> Fire for Locked<T> {
    fn is_locked(&self) -> bool {
        true
    }

    fn fire(self: Arc<Self>, now: Sbintime, begin: &dyn Fn() -> bool) {
        // SAFETY: as in `of`.
        let target = unsafe { Arc::from_raw(Arc::into_raw(self).cast::<T>()) };
        let held = target.lock();
        if begin() {
            target.callout(held, now);
        }
    }
}

/// Runs in the timer interrupt.
type Direct = fn(usize, Sbintime);

/// A place on a wheel. Stays where it is in memory while it is pending.
pub(crate) struct CalloutNode {
    link: LinkedListLink,
    /// When it is due. Written under the lock of the wheel.
    time: AtomicI64,
    /// CPU whose wheel it is on, or was on last; changes only with that wheel locked. Or `CPUBLOCK`.
    cpu: AtomicU32,
    /// Bucket, `EXPIRED`, `MOVING`, `MIGRATING` or `NOWHERE`. Written under the lock of the wheel.
    place: AtomicU32,
    direct: Option<Direct>,
    /// Under the lock of the wheel, as is `target`.
    arg: Cell<usize>,
    target: UnsafeCell<Option<Arc<dyn Fire>>>,
    /// Address of `target`, null if there is none; written under the lock of the wheel.
    armed_for: AtomicPtr<()>,
    /// Threads in `drain`: while there are any, a target that is running does not arm it.
    drainers: AtomicU32,
}

// SAFETY: the cells stand under the lock of the wheel that `cpu` names.
unsafe impl Sync for CalloutNode {}
// SAFETY: as above; a node that moves in memory is on no wheel.
unsafe impl Send for CalloutNode {}

intrusive_adapter!(WheelAdapter = UnsafeRef<CalloutNode>: CalloutNode { link => LinkedListLink });

const NOWHERE: u32 = u32::MAX;
/// On the list of those that "clock (N)" shall run.
const EXPIRED: u32 = u32::MAX - 1;
/// On its way from one bucket to another, or to `EXPIRED`.
const MOVING: u32 = u32::MAX - 2;
/// Armed for another CPU, where it goes when its target has ended here.
const MIGRATING: u32 = u32::MAX - 3;

/// It is on its way from one wheel to another: whoever wants to lock its wheel waits.
const CPUBLOCK: u32 = NOCPU;

/// Enough for every `Sbintime`.
const LEVELS: usize = 7;
const SLOTS: usize = 64;
const SLOT_BITS: u32 = 6;
/// log2 of the width of the finest bucket, as a part of `Sbintime`: 1/1024 s.
const TICK_SHIFT: u32 = 32 - 10;
const _: () = assert!(LEVELS as u32 * SLOT_BITS + TICK_SHIFT >= i64::BITS - 1);

struct Buckets {
    slots: [[LinkedList<WheelAdapter>; SLOTS]; LEVELS],
    /// Bit `n` is set while slot `n` of the level is not empty.
    occupied: [u64; LEVELS],
    /// Tick up to which everything has been taken off.
    elapsed: u64,
    /// For "clock (N)" to run.
    expired: LinkedList<WheelAdapter>,
}

/// The callouts of one CPU.
struct Wheel {
    lock: RawSpin,
    buckets: UnsafeCell<Buckets>,
    /// What the CPU's event timer is set to, or will be after the interrupt it was sent.
    next_event: AtomicI64,
    /// Another CPU has put something earlier on the wheel, and sends an interrupt.
    kicked: AtomicBool,
    /// The callout whose target is running, or null.
    running: AtomicPtr<CalloutNode>,
    /// How far `running` is: `BEGUN`, `WAITING` or `CANCELLED`.
    phase: AtomicU8,
    /// CPU that `running` goes to when it has ended, or `NOCPU`. Under the lock.
    migrate_to: Cell<u32>,
    /// Threads that wait for `running` to end.
    draining: AtomicU32,
    /// Callouts that have run, for how long after their time they had to wait together, and for how long at most. Written by
    /// the thread that runs them.
    fired: AtomicU64,
    late: AtomicI64,
    latest: AtomicI64,
    softclock: SoftInterrupt,
}

/// The target has begun: nothing holds it back any more.
const BEGUN: u8 = 0;
/// The target waits for its lock.
const WAITING: u8 = 1;
/// The target was cancelled while it waited.
const CANCELLED: u8 = 2;

// SAFETY: the cells are used only with the lock held.
unsafe impl Sync for Wheel {}
// SAFETY: as above.
unsafe impl Send for Wheel {}

machine_local! {
    static WHEEL: PerCpu<Wheel> = PerCpu::from_slots([const { CachePadded(Wheel::new()) }; MAXCPU]);
}

impl CalloutNode {
    const fn new(direct: Option<Direct>) -> CalloutNode {
        CalloutNode {
            link: LinkedListLink::new(),
            time: AtomicI64::new(i64::MAX),
            cpu: AtomicU32::new(0),
            place: AtomicU32::new(NOWHERE),
            direct,
            arg: Cell::new(0),
            target: UnsafeCell::new(None),
            armed_for: AtomicPtr::new(core::ptr::null_mut()),
            drainers: AtomicU32::new(0),
        }
    }

    /// Makes a timer whose function runs in the timer interrupt and must not block. It must never move or be dropped.
    #[doc(alias = "C_DIRECT_EXEC")]
    pub(crate) const fn new_direct(direct: Direct) -> CalloutNode {
        CalloutNode::new(Some(direct))
    }

    pub(crate) fn deadline(&self) -> Sbintime {
        Sbintime(self.time.load(Ordering::Relaxed))
    }

    fn is_pending(&self) -> bool {
        self.place.load(Ordering::Acquire) != NOWHERE
    }

    /// Sets the callout back without a lock, if it is armed for the same target and not for later.
    ///
    /// Its place on the wheel stays: that of an earlier time. Whoever takes it off there says so first, and then looks at
    /// the time again; here the time is changed first, and then the place looked at. One of the two sees the other.
    fn set_back(&self, deadline: Sbintime, target: *mut ()) -> bool {
        let on_wheel = || self.place.load(Ordering::SeqCst) < MIGRATING;
        let time = self.time.load(Ordering::Relaxed);
        self.armed_for.load(Ordering::Relaxed) == target
            && on_wheel()
            && time <= deadline.0
            && self
                .time
                .compare_exchange(time, deadline.0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
            && on_wheel()
    }

    /// Arms a direct timer on this CPU.
    pub(crate) fn reset_here(&'static self, deadline: Sbintime, arg: usize) {
        let wheel = self.lock();
        self.arg.set(arg);
        self.set(wheel, deadline, None);
    }

    /// Arms the callout; tells whether a run that was to come will not, and returns the target that `update` replaced.
    fn reset(
        &self,
        deadline: Sbintime,
        cpu: Option<usize>,
        update: impl FnOnce(&mut Option<Arc<dyn Fire>>) -> Option<Arc<dyn Fire>>,
    ) -> (bool, Option<Arc<dyn Fire>>) {
        let wheel = self.lock();
        let running = wheel.runs(self);
        if running && self.drainers.load(Ordering::SeqCst) != 0 {
            wheel.lock.unlock();
            return (false, None);
        }
        let cancelled = running && wheel.cancel();
        // SAFETY: the wheel is locked.
        let old = update(unsafe { &mut *self.target.get() });
        let was_pending = self.is_pending();
        self.set(wheel, deadline, cpu);
        (was_pending || cancelled, old)
    }

    /// Locks the wheel that the callout belongs to.
    #[doc(alias = "callout_lock")]
    fn lock(&self) -> &'static Wheel {
        loop {
            let cpu = self.cpu.load(Ordering::Acquire);
            if cpu == CPUBLOCK {
                machine::cpu_spinwait();
                continue;
            }
            let wheel = WHEEL.get().get(cpu as usize);
            wheel.lock.lock();
            if self.cpu.load(Ordering::Relaxed) == cpu {
                return wheel;
            }
            wheel.lock.unlock();
        }
    }

    /// Puts the callout on a wheel for `deadline`, and unlocks `wheel`, where it is now.
    fn set(&self, wheel: &'static Wheel, deadline: Sbintime, cpu: Option<usize>) {
        let here = machine::curcpu();
        let old_cpu = self.cpu.load(Ordering::Relaxed) as usize;
        let place = self.place.load(Ordering::Relaxed);
        let on_wheel = place < MIGRATING;
        let set_back = deadline.0 >= self.time.load(Ordering::Relaxed);
        if on_wheel && set_back && cpu.is_none_or(|cpu| cpu == old_cpu) {
            self.time.store(deadline.0, Ordering::Relaxed);
            wheel.lock.unlock();
            return;
        }
        wheel.take_off(self);
        self.time.store(deadline.0, Ordering::Relaxed);
        let new_cpu = cpu.unwrap_or(here);
        if new_cpu != old_cpu && wheel.runs(self) {
            // It must not run beside itself: it moves when it has ended here.
            self.place.store(MIGRATING, Ordering::Relaxed);
            wheel.migrate_to.set(new_cpu as u32);
            wheel.lock.unlock();
            return;
        }
        if new_cpu == old_cpu {
            wheel.insert(self, new_cpu, here);
            wheel.lock.unlock();
            return;
        }
        self.switch_cpu(wheel, new_cpu);
    }

    /// Moves the callout, which is in no bucket, to the wheel of `cpu`, and unlocks `wheel`, where it was.
    ///
    /// In between it is on neither, and whoever looks for it waits: with interrupts off here, as it could be one of these.
    #[doc(alias = "callout_cpu_switch")]
    fn switch_cpu(&self, wheel: &Wheel, cpu: usize) {
        spinlock_enter();
        self.cpu.store(CPUBLOCK, Ordering::Release);
        wheel.lock.unlock();
        let new = WHEEL.get().get(cpu);
        new.lock.lock();
        self.cpu.store(cpu as u32, Ordering::Release);
        new.insert(self, cpu, machine::curcpu());
        new.lock.unlock();
        spinlock_exit();
    }

    /// Takes the callout off its wheel; tells what it was doing.
    pub(crate) fn stop(&self) -> CalloutStop {
        if !self.is_pending() && self.direct.is_none() {
            // What runs is marked as running before it is no longer armed.
            let cpu = self.cpu.load(Ordering::Acquire);
            if cpu != CPUBLOCK && !WHEEL.get().get(cpu as usize).runs(self) {
                return CalloutStop::Idle;
            }
        }
        self.stop_locked().0
    }

    /// The same, and returns the wheel where its target runs if it does.
    fn stop_locked(&self) -> (CalloutStop, &'static Wheel) {
        let wheel = self.lock();
        let (stopped, target) = self.disarm(wheel);
        wheel.lock.unlock();
        drop(target);
        (stopped, wheel)
    }

    /// Disarms the callout, whose wheel is locked.
    fn disarm(&self, wheel: &Wheel) -> (CalloutStop, Option<Arc<dyn Fire>>) {
        let was_pending = wheel.take_off(self);
        self.time.store(i64::MAX, Ordering::Relaxed);
        // SAFETY: the wheel is locked.
        let target = unsafe { (*self.target.get()).take() };
        self.armed_for
            .store(core::ptr::null_mut(), Ordering::Relaxed);
        let runs = wheel.runs(self);
        let stopped = if runs && !wheel.cancel() {
            CalloutStop::Running
        } else if was_pending || runs {
            CalloutStop::Cancelled
        } else {
            CalloutStop::Idle
        };
        (stopped, target)
    }

    /// Disarms the callout, after which its memory may go. Always takes the lock: who takes it off looks at it until then.
    fn retire(&self) {
        let wheel = self.lock();
        let (_, target) = self.disarm(wheel);
        if wheel.runs(self) {
            // Another callout at this address is not the one that runs.
            wheel.running.store(GONE, Ordering::SeqCst);
        }
        wheel.lock.unlock();
        drop(target);
    }

    fn drain(&self) -> CalloutStop {
        self.drainers.fetch_add(1, Ordering::SeqCst);
        // A target that arms it now has done so before this takes the lock, or finds that it is being drained.
        let (stopped, wheel) = self.stop_locked();
        wheel.draining.fetch_add(1, Ordering::SeqCst);
        while wheel.runs(self) {
            let ended = || !wheel.runs(self);
            sleepq::wait_unless(WChan::of(&wheel.running), "codrain", None, ended);
        }
        wheel.draining.fetch_sub(1, Ordering::Relaxed);
        self.drainers.fetch_sub(1, Ordering::SeqCst);
        stopped
    }
}

/// Stands in `running` for a callout that was dropped while its target runs.
const GONE: *mut CalloutNode = core::ptr::dangling_mut();

fn tick_of(time: Sbintime) -> u64 {
    (time.0.max(0) as u64) >> TICK_SHIFT
}

impl Buckets {
    /// Puts `node` in the bucket of its time.
    fn insert(&mut self, node: &CalloutNode) {
        let tick = tick_of(node.deadline()).max(self.elapsed);
        // The level is given by the highest bit in which the time differs from now.
        let differs = (self.elapsed ^ tick) | (SLOTS as u64 - 1);
        let level = ((63 - differs.leading_zeros()) / SLOT_BITS) as usize;
        let slot = (tick >> (level as u32 * SLOT_BITS)) as usize % SLOTS;
        node.place
            .store((level * SLOTS + slot) as u32, Ordering::Relaxed);
        self.occupied[level] |= 1 << slot;
        // SAFETY: the node stays where it is until it is removed: `Callout` keeps it in a box and removes it when dropped,
        // and direct nodes never move.
        self.slots[level][slot].push_back(unsafe { UnsafeRef::from_raw(node) });
    }

    /// Takes `node` off; tells whether it was on.
    fn remove(&mut self, node: &CalloutNode) -> bool {
        let place = node.place.load(Ordering::Relaxed);
        if place == NOWHERE {
            return false;
        }
        let list = if place == EXPIRED {
            &mut self.expired
        } else {
            &mut self.slots[place as usize / SLOTS][place as usize % SLOTS]
        };
        // SAFETY: `place` says which list it is on.
        unsafe { list.cursor_mut_from_ptr(node).remove() };
        if place != EXPIRED && list.is_empty() {
            self.occupied[place as usize / SLOTS] &= !(1 << (place as usize % SLOTS));
        }
        node.place.store(NOWHERE, Ordering::Relaxed);
        true
    }

    /// Returns level, slot and first tick of the bucket that comes next.
    fn next(&self) -> Option<(usize, usize, u64)> {
        // A bucket of a lower level lies before all of the higher ones.
        let level = self.occupied.iter().position(|&occupied| occupied != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = level as u32 * SLOT_BITS;
        let above = self.elapsed >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
        Some((level, slot, above + ((slot as u64) << shift)))
    }

    /// Takes off the next callout that is due at `now`; it is `MOVING` then.
    fn pop_due(&mut self, now: Sbintime) -> Option<UnsafeRef<CalloutNode>> {
        let now_tick = tick_of(now);
        while let Some((level, slot, start)) = self.next() {
            if start > now_tick {
                break;
            }
            self.elapsed = self.elapsed.max(start);
            if level == 0 {
                let list = &mut self.slots[0][slot];
                let due = list
                    .iter()
                    .find(|node| node.deadline() <= now || tick_of(node.deadline()) > start);
                let Some(due) = due.map(|node| &raw const *node) else {
                    // The rest of this tick's are due a little later.
                    return None;
                };
                // SAFETY: it is on this list.
                let node = unsafe { list.cursor_mut_from_ptr(due) }
                    .remove()
                    .expect("found on the list");
                if list.is_empty() {
                    self.occupied[0] &= !(1 << slot);
                }
                // In this order: see `set_back`. Still armed for whoever stops it without the lock.
                node.place.store(MOVING, Ordering::SeqCst);
                if node.time.load(Ordering::SeqCst) <= now.0 {
                    return Some(node);
                }
                self.insert(&node);
            } else {
                let mut list = self.slots[level][slot].take();
                self.occupied[level] &= !(1 << slot);
                while let Some(node) = list.pop_front() {
                    self.insert(&node);
                }
            }
        }
        self.elapsed = self.elapsed.max(now_tick);
        None
    }

    /// Returns when the event timer must fire next.
    fn next_event(&self) -> Sbintime {
        let Some((level, slot, start)) = self.next() else {
            return Sbintime::MAX;
        };
        let start = Sbintime((start << TICK_SHIFT) as i64);
        if level != 0 {
            return start;
        }
        // One that was set back is sent on at the end of its bucket's tick.
        let end = start.saturating_add(Sbintime(1 << TICK_SHIFT));
        let first = self.slots[0][slot]
            .iter()
            .map(|node| node.deadline().min(end))
            .min();
        first.unwrap_or(start).max(start)
    }
}

impl Wheel {
    const fn new() -> Wheel {
        Wheel {
            lock: RawSpin::new(),
            buckets: UnsafeCell::new(Buckets {
                slots: [const { [const { LinkedList::new(WheelAdapter::NEW) }; SLOTS] }; LEVELS],
                occupied: [0; LEVELS],
                elapsed: 0,
                expired: LinkedList::new(WheelAdapter::NEW),
            }),
            next_event: AtomicI64::new(i64::MAX),
            kicked: AtomicBool::new(false),
            running: AtomicPtr::new(core::ptr::null_mut()),
            phase: AtomicU8::new(BEGUN),
            migrate_to: Cell::new(NOCPU),
            draining: AtomicU32::new(0),
            fired: AtomicU64::new(0),
            late: AtomicI64::new(0),
            latest: AtomicI64::new(0),
            softclock: SoftInterrupt::new(),
        }
    }

    /// # Safety
    /// The lock is held, and the reference is the only one.
    #[expect(clippy::mut_from_ref, reason = "the cell stands under the lock")]
    unsafe fn buckets(&self) -> &mut Buckets {
        // SAFETY: promised by the caller.
        unsafe { &mut *self.buckets.get() }
    }

    /// Tells whether the target of `node` is running here.
    #[doc(alias = "cc_exec_curr")]
    fn runs(&self, node: &CalloutNode) -> bool {
        self.running.load(Ordering::SeqCst) == (&raw const *node).cast_mut()
    }

    /// Keeps the target that is running from beginning, if it still waits for its lock.
    #[doc(alias = "cc_exec_cancel")]
    fn cancel(&self) -> bool {
        self.phase
            .compare_exchange(WAITING, CANCELLED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Disarms `node`, wherever it is; tells whether it was armed. The lock is held.
    fn take_off(&self, node: &CalloutNode) -> bool {
        if node.place.load(Ordering::Relaxed) == MIGRATING {
            self.migrate_to.set(NOCPU);
            node.place.store(NOWHERE, Ordering::Relaxed);
            return true;
        }
        // SAFETY: the wheel is locked.
        unsafe { self.buckets() }.remove(node)
    }

    /// Puts `node` on this wheel, which is that of `cpu`, and sees that its event timer fires in time. The lock is held.
    fn insert(&self, node: &CalloutNode, cpu: usize, here: usize) {
        // SAFETY: the wheel is locked.
        unsafe { self.buckets() }.insert(node);
        let deadline = node.deadline();
        if deadline.0 < self.next_event.load(Ordering::Relaxed) {
            self.next_event.store(deadline.0, Ordering::Relaxed);
            if cpu == here {
                machine::set_event_timer(deadline);
            } else if !self.kicked.swap(true, Ordering::Release) {
                owe_ipi(cpu);
            }
        }
    }
}

/// Runs what is due on this CPU and sets its event timer. Called from the timer interrupt.
pub(crate) fn callout_process(now: Sbintime) {
    let wheel = WHEEL.get().get(machine::curcpu());
    let mut soft = false;
    wheel.lock.lock();
    // SAFETY: the wheel is locked.
    while let Some(node) = unsafe { wheel.buckets() }.pop_due(now) {
        if let Some(direct) = node.direct {
            let arg = node.arg.get();
            node.place.store(NOWHERE, Ordering::Relaxed);
            wheel.lock.unlock();
            direct(arg, now);
            wheel.lock.lock();
        } else {
            node.place.store(EXPIRED, Ordering::Relaxed);
            // SAFETY: the wheel is locked.
            unsafe { wheel.buckets() }.expired.push_back(node);
            soft = true;
        }
    }
    // SAFETY: the wheel is locked.
    let next = unsafe { wheel.buckets() }.next_event();
    wheel.next_event.store(next.0, Ordering::Relaxed);
    machine::set_event_timer(next);
    wheel.lock.unlock();
    if soft {
        wheel.softclock.schedule();
    }
}

/// Sets the event timer if another CPU has put something earlier on our wheel. Called from the interrupt it sends then.
pub(crate) fn timer_check() {
    let wheel = WHEEL.get().get(machine::curcpu());
    if !wheel.kicked.swap(false, Ordering::Acquire) {
        return;
    }
    wheel.lock.lock();
    machine::set_event_timer(Sbintime(wheel.next_event.load(Ordering::Relaxed)));
    wheel.lock.unlock();
}

/// Runs the targets of the callouts that have expired on this CPU, one after the other.
fn softclock(wheel: &'static Wheel) {
    loop {
        wheel.lock.lock();
        // SAFETY: the wheel is locked.
        let Some(node) = unsafe { wheel.buckets() }.expired.pop_front() else {
            wheel.lock.unlock();
            return;
        };
        // SAFETY: the wheel is locked.
        let target = unsafe { (*node.target.get()).take() };
        node.armed_for
            .store(core::ptr::null_mut(), Ordering::Relaxed);
        let deadline = node.deadline();
        let locked = target.as_ref().is_some_and(|target| target.is_locked());
        wheel
            .phase
            .store(if locked { WAITING } else { BEGUN }, Ordering::Relaxed);
        let address = (&raw const *node).cast_mut();
        // In this order: see `stop`.
        wheel.running.store(address, Ordering::SeqCst);
        node.place.store(NOWHERE, Ordering::Release);
        wheel.lock.unlock();
        // From here on the node may be gone.
        if let Some(target) = target {
            let now = machine::sbinuptime();
            wheel.count(now - deadline);
            let begin = || wheel.phase.swap(BEGUN, Ordering::AcqRel) == WAITING;
            target.fire(now, &begin);
        }
        wheel.finish(address);
        if wheel.draining.load(Ordering::SeqCst) != 0 {
            wakeup(WChan::of(&wheel.running));
        }
    }
}

impl Wheel {
    /// A callout runs, this long after its time.
    fn count(&self, late: Sbintime) {
        let fired = self.fired.load(Ordering::Relaxed);
        self.fired.store(fired + 1, Ordering::Relaxed);
        let sum = self.late.load(Ordering::Relaxed);
        self.late
            .store(sum.saturating_add(late.0), Ordering::Relaxed);
        if late.0 > self.latest.load(Ordering::Relaxed) {
            self.latest.store(late.0, Ordering::Relaxed);
        }
    }

    /// The target of `ended` has run; sends the callout to the CPU that it was armed for meanwhile.
    fn finish(&self, ended: *const CalloutNode) {
        self.lock.lock();
        self.running.store(core::ptr::null_mut(), Ordering::SeqCst);
        match self.migrate_to.replace(NOCPU) {
            NOCPU => self.lock.unlock(),
            // SAFETY: as long as `migrate_to` is set the callout is `MIGRATING`, and its owner must lock the wheel to take it
            // back before its memory goes: this one until now, the other one when it is there.
            cpu => unsafe { &*ended }.switch_cpu(self, cpu as usize),
        }
    }
}

/// Starts the threads that run callouts.
pub(crate) fn start_softclock() {
    for cpu in 0..machine::ncpus() {
        let wheel = WHEEL.get().get(cpu);
        let name = alloc::format!("clock ({cpu})");
        wheel
            .softclock
            .start(&name, Pri::PI_SOFTCLOCK, Some(cpu), move || {
                softclock(wheel)
            });
    }
}

/// What the callouts of one CPU did since boot.
#[derive(Clone, Copy, Debug, Default)]
pub struct CalloutStats {
    /// Callouts that have run, those in the timer interrupt itself left out.
    pub fired: u64,
    /// How long after its time one began on average: because something more urgent had the CPU, interrupts were off, or the
    /// target of another took long.
    pub late: Sbintime,
    /// The same, at most.
    pub latest: Sbintime,
}

/// Returns what the callouts of each CPU did.
pub fn callout_stats() -> impl Iterator<Item = CalloutStats> {
    WHEEL.get().iter().map(|wheel| {
        let fired = wheel.fired.load(Ordering::Relaxed);
        let late = wheel.late.load(Ordering::Relaxed);
        CalloutStats {
            fired,
            late: Sbintime(late / (fired.max(1) as i64)),
            latest: Sbintime(wheel.latest.load(Ordering::Relaxed)),
        }
    })
}

/// One figure of a CPU.
type Figure = fn(CalloutStats) -> u64;

/// Puts the figures into the sysctl tree.
pub(crate) fn sysctl_init() {
    let figures: [(&str, &'static str, Figure); 3] = [
        ("fired", "Callouts that have run", |cpu| cpu.fired),
        (
            "late",
            "Microseconds after its time that a callout ran, on average",
            |cpu| cpu.late.as_us().max(0) as u64,
        ),
        (
            "latest",
            "Microseconds after its time that a callout ran, at most",
            |cpu| cpu.latest.as_us().max(0) as u64,
        ),
    ];
    for (name, description, figure) in figures {
        // One number for each CPU.
        let read = move || sysctl::spaced(callout_stats().map(figure));
        let name = alloc::format!("kern.callout.stats.{name}");
        sysctl::root().register(&name, Arc::new(ReadOnly::new(description, read)));
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_mutex::Mutex;
    use crate::kern::kern_synch::{pause, pause_sbt, sched_bind};
    use crate::kern::kern_thread::kthread_add;
    use crate::kern::lock_order::Leaf;
    use crate::machine::hosted::Machine;
    use crate::machine::sbinuptime;

    /// Writes down when it ran.
    #[derive(Default)]
    struct Diary(Mutex<Vec<Sbintime>, Leaf>);

    impl Default for Mutex<Vec<Sbintime>, Leaf> {
        fn default() -> Self {
            Mutex::new(Vec::new())
        }
    }

    impl Diary {
        fn entries(&self) -> Vec<Sbintime> {
            self.0.lock().clone()
        }
    }

    impl CalloutTarget for Diary {
        fn callout(self: Arc<Self>, now: Sbintime) {
            self.0.lock().push(now);
        }
    }

    #[test]
    fn callouts_of_any_span_run_at_their_time() {
        Machine::builder().run(|| {
            pause("offset", 12_345);
            let start = sbinuptime();
            let spans: Vec<Sbintime> = [0, 1, 999, 1_000, 63_999, 64_001, 4_000_000, 4_100_000]
                .into_iter()
                .map(Sbintime::from_us)
                .chain([300, 17_000, 2_000_000].into_iter().map(Sbintime::from_s))
                .collect();
            let armed: Vec<_> = spans
                .iter()
                .map(|&span| {
                    let (callout, diary) = (Callout::new(), Arc::new(Diary::default()));
                    callout.reset(span, &diary);
                    (callout, diary, start + span)
                })
                .collect();
            pause_sbt("wait", Sbintime::from_s(2_000_001));
            for (callout, diary, due) in armed {
                assert_eq!(diary.entries(), [due]);
                assert!(!callout.pending());
                assert_eq!(Arc::strong_count(&diary), 1);
            }
        });
    }

    #[test]
    fn a_callout_that_is_set_back_runs_once_at_the_later_time() {
        Machine::builder().run(|| {
            let (callout, diary) = (Callout::new(), Arc::new(Diary::default()));
            assert!(!callout.reset(Sbintime::from_ms(200), &diary));
            for _ in 0..50 {
                pause("segment", 10);
                assert!(callout.reset(Sbintime::from_ms(200), &diary));
                assert_eq!(Arc::strong_count(&diary), 2);
            }
            let last = sbinuptime();
            pause("wait", 1_000);
            assert_eq!(diary.entries(), [last + Sbintime::from_ms(200)]);
        });
    }

    #[test]
    fn a_callout_that_is_set_forward_runs_at_the_earlier_time() {
        Machine::builder().run(|| {
            let (callout, diary) = (Callout::new(), Arc::new(Diary::default()));
            callout.reset(Sbintime::from_s(60), &diary);
            callout.reset(Sbintime::from_ms(3), &diary);
            pause("wait", 100_000);
            assert_eq!(diary.entries(), [Sbintime::from_ms(3)]);
        });
    }

    #[test]
    fn a_stopped_callout_lets_its_target_go() {
        Machine::builder().run(|| {
            let (callout, diary) = (Callout::new(), Arc::new(Diary::default()));
            callout.reset(Sbintime::from_ms(3), &diary);
            assert!(callout.pending());
            assert_eq!(callout.stop(), CalloutStop::Cancelled);
            assert_eq!(callout.stop(), CalloutStop::Idle);
            callout.reset(Sbintime::from_ms(3), &diary);
            drop(callout);
            pause("wait", 100);
            assert!(diary.entries().is_empty());
            assert_eq!(Arc::strong_count(&diary), 1);
        });
    }

    /// Takes its time, and arms itself again.
    struct Slow {
        callout: Callout,
        running: Mutex<bool, Leaf>,
        runs: AtomicU32,
    }

    impl CalloutTarget for Slow {
        fn callout(self: Arc<Self>, _: Sbintime) {
            *self.running.lock() = true;
            pause("slow", 10);
            self.runs.fetch_add(1, Ordering::Relaxed);
            *self.running.lock() = false;
            self.callout.reset(Sbintime::from_ms(5), &self);
        }
    }

    #[test]
    fn draining_waits_for_the_target_that_is_running() {
        Machine::builder().run(|| {
            let slow = Arc::new(Slow {
                callout: Callout::new(),
                running: Mutex::new(false),
                runs: AtomicU32::new(0),
            });
            slow.callout.reset(Sbintime::from_ms(5), &slow);
            pause("until it runs", 8);
            assert!(*slow.running.lock());
            assert_eq!(slow.callout.stop(), CalloutStop::Running);
            assert_eq!(slow.callout.drain(), CalloutStop::Running);
            assert!(!*slow.running.lock());
            assert_eq!(slow.runs.load(Ordering::Relaxed), 1);
            // It armed itself in vain while it was being drained.
            assert_eq!(slow.callout.stop(), CalloutStop::Idle);
            pause("wait", 100);
            assert_eq!(slow.runs.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn a_periodic_callout_may_stop_itself_by_not_arming_again() {
        Machine::builder().run(|| {
            let slow = Arc::new(Slow {
                callout: Callout::new(),
                running: Mutex::new(false),
                runs: AtomicU32::new(0),
            });
            slow.callout.reset_on(Sbintime::from_ms(5), 1, &slow);
            pause("wait", 152);
            assert_eq!(slow.runs.load(Ordering::Relaxed), 10);
            slow.callout.drain();
        });
    }

    #[test]
    fn callouts_armed_and_stopped_by_all_cpus_run_at_most_as_often_as_armed() {
        for seed in 0..40 {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let callouts: Arc<Vec<(Callout, Arc<Diary>)>> = Arc::new(
                    (0..8)
                        .map(|_| (Callout::new(), Arc::new(Diary::default())))
                        .collect(),
                );
                let threads: Vec<_> = (0..4)
                    .map(|_| {
                        let callouts = Arc::clone(&callouts);
                        kthread_add("armer", Pri::PUSER, None, move || {
                            for _ in 0..100 {
                                let random = machine::random_u64();
                                let (callout, diary) = &callouts[random as usize % 8];
                                let span = Sbintime::from_us((random >> 8) as i64 % 3000);
                                match random >> 32 & 3 {
                                    0 => _ = callout.stop(),
                                    1 => drop(callout.reset_on(
                                        span,
                                        (random >> 40) as usize % 4,
                                        diary,
                                    )),
                                    _ => drop(callout.reset(span, diary)),
                                }
                                if random >> 50 & 7 == 0 {
                                    pause_sbt("armer", Sbintime::from_us(700));
                                }
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                pause("rest", 10);
                for (callout, diary) in callouts.iter() {
                    assert!(!callout.pending());
                    assert_eq!(Arc::strong_count(diary), 1);
                }
            });
        }
    }

    #[test]
    fn a_target_never_runs_beside_itself_wherever_it_is_armed() {
        /// Notices that it is entered twice.
        struct Alone {
            inside: AtomicU32,
            runs: AtomicU32,
            cpus: AtomicU32,
        }
        impl CalloutTarget for Alone {
            fn callout(self: Arc<Self>, _: Sbintime) {
                assert_eq!(self.inside.fetch_add(1, Ordering::Relaxed), 0);
                self.cpus
                    .fetch_or(1 << machine::curcpu(), Ordering::Relaxed);
                pause_sbt("inside", Sbintime::from_us(300));
                self.inside.fetch_sub(1, Ordering::Relaxed);
                self.runs.fetch_add(1, Ordering::Relaxed);
            }
        }
        for seed in 0..30 {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let alone = Arc::new(Alone {
                    inside: AtomicU32::new(0),
                    runs: AtomicU32::new(0),
                    cpus: AtomicU32::new(0),
                });
                let callout = Callout::new();
                for _ in 0..200 {
                    let random = machine::random_u64();
                    let span = Sbintime::from_us(random as i64 & 0xff);
                    callout.reset_on(span, (random >> 20) as usize % 4, &alone);
                    pause_sbt("armer", Sbintime::from_us((random >> 8) as i64 & 0x1ff));
                }
                pause("rest", 5);
                assert!(!callout.pending());
                assert!(alone.runs.load(Ordering::Relaxed) > 50);
                assert_eq!(alone.cpus.load(Ordering::Relaxed), 0b1111);
                // While it runs here it is armed for elsewhere, and stopped before it gets there.
                callout.reset_on(Sbintime::ZERO, 1, &alone);
                pause_sbt("until it runs", Sbintime::from_us(100));
                let runs = alone.runs.load(Ordering::Relaxed);
                assert!(!callout.reset_on(Sbintime::ZERO, 2, &alone));
                assert!(callout.pending());
                assert_eq!(callout.stop(), CalloutStop::Running);
                pause("rest", 5);
                assert_eq!(alone.runs.load(Ordering::Relaxed), runs + 1);
            });
        }
    }

    #[test]
    fn a_target_that_arms_itself_is_not_armed_when_it_has_been_drained() {
        struct Again(Callout);
        impl CalloutTarget for Again {
            fn callout(self: Arc<Self>, _: Sbintime) {
                self.0.reset(Sbintime::from_us(30), &self);
            }
        }
        for seed in 0..300 {
            Machine::builder().seed(seed).cpus(2).run(|| {
                let again = Arc::new(Again(Callout::new()));
                let span = Sbintime::from_us(20);
                let due = sbinuptime() + span;
                again.0.reset_on(span, 1, &again);
                while sbinuptime() < due {
                    machine::cpu_spinwait();
                }
                for _ in 0..machine::random_u64() % 32 {
                    machine::interleave();
                }
                again.0.drain();
                assert!(!again.0.pending(), "seed {seed}");
                pause("after", 1);
                assert_eq!(Arc::strong_count(&again), 1, "seed {seed}");
            });
        }
    }

    #[test]
    fn how_late_callouts_run_is_counted() {
        Machine::builder().cpus(2).run(|| {
            sched_bind(1);
            let diary = Arc::new(Diary::default());
            let before: Vec<_> = callout_stats().map(|cpu| cpu.fired).collect();
            let armed = [1, 2].map(|ms| {
                let callout = Callout::new();
                callout.reset(Sbintime::from_ms(ms), &diary);
                callout
            });
            pause_sbt("until the first has run", Sbintime::from_us(1_500));
            // Of the second the time comes, but not the CPU.
            let critical = machine::Critical::enter();
            let end = sbinuptime() + Sbintime::from_us(3_500);
            while sbinuptime() < end {
                machine::cpu_spinwait();
            }
            drop(critical);
            assert_eq!(diary.entries().len(), 2);
            drop(armed);
            let after: Vec<_> = callout_stats().collect();
            assert_eq!(after[0].fired, before[0]);
            assert_eq!(after[1].fired, before[1] + 2);
            let about_3_ms = |span: Sbintime| (2_999..=3_000).contains(&span.as_us());
            assert!(about_3_ms(after[1].latest));
            // Nothing else was late.
            assert!(about_3_ms(Sbintime(
                after[1].late.0 * after[1].fired as i64
            )));
            let shown = sysctl::root().get("kern.callout.stats.latest");
            assert_eq!(
                shown.unwrap_or_default(),
                format!("0 {}", after[1].latest.as_us())
            );
        });
    }

    #[test]
    fn the_wheel_reaches_to_the_end_of_time() {
        let year = Sbintime::from_s(365 * 24 * 3600).0;
        for due in [year, 2 * year, 3 * year, 30 * year, i64::MAX - 1] {
            let mut wheel = Wheel::new();
            let buckets = wheel.buckets.get_mut();
            let node = CalloutNode::new(None);
            node.time.store(due, Ordering::Relaxed);
            buckets.insert(&node);
            let mut now = Sbintime::ZERO;
            let fired = core::iter::from_fn(|| {
                let next = buckets.next_event();
                assert!(next > now, "{due:#x}: {next:?} comes after {now:?}");
                now = next;
                Some(buckets.pop_due(now).is_some())
            });
            // Once for each level.
            assert!(fired.take(LEVELS).any(|fired| fired), "{due:#x}");
            assert_eq!(now.0, due);
        }
    }

    /// Counts under its lock how often it ran.
    struct Counting(Mutex<u32, Leaf>);

    impl LockedTarget for Counting {
        type Guard<'a> = crate::kern::kern_mutex::MutexGuard<'a, u32, Leaf>;

        fn lock(&self) -> Self::Guard<'_> {
            self.0.lock()
        }

        fn callout(self: &Arc<Self>, mut held: Self::Guard<'_>, _: Sbintime) {
            *held += 1;
        }
    }

    #[test]
    fn a_callout_stopped_under_its_lock_never_runs() {
        Machine::builder().run(|| {
            let (callout, target) = (LockedCallout::new(), Arc::new(Counting(Mutex::new(0))));
            // Its time comes while the lock is held: it waits for the lock, and is cancelled there.
            let mut cancelled_waiting = 0;
            for _ in 0..20 {
                let held = target.lock();
                callout.reset_on(&held, Sbintime::from_us(10), 1, &target);
                let end = sbinuptime() + Sbintime::from_us(50);
                while sbinuptime() < end {
                    machine::cpu_spinwait();
                }
                cancelled_waiting += u32::from(!callout.pending());
                assert_eq!(callout.stop(&held), CalloutStop::Cancelled);
                drop(held);
                pause("rest", 1);
                assert_eq!(*target.lock(), 0);
            }
            assert!(cancelled_waiting > 0);
            let held = target.lock();
            assert!(!callout.reset(&held, Sbintime::from_us(10), &target));
            assert!(callout.reset(&held, Sbintime::from_us(20), &target));
            drop(held);
            pause("rest", 1);
            assert_eq!(*target.lock(), 1);
            assert_eq!(callout.drain(), CalloutStop::Idle);
            assert_eq!(Arc::strong_count(&target), 1);
        });
    }

    #[test]
    fn callouts_that_may_be_late_run_together() {
        Machine::builder().run(|| {
            let precision = Sbintime::from_ms(50);
            let armed: Vec<_> = (1..=10)
                .map(|ms| {
                    let (callout, diary) = (Callout::new(), Arc::new(Diary::default()));
                    let span = Sbintime::from_ms(100 + ms);
                    callout.reset_sbt_on(span, precision, Some(0), &diary);
                    (callout, diary, sbinuptime() + span)
                })
                .collect();
            pause("wait", 1_000);
            let mut times: Vec<_> = armed
                .iter()
                .map(|(_, diary, due)| {
                    let [ran] = diary.entries()[..] else {
                        panic!("runs once")
                    };
                    assert!(ran >= *due && ran <= *due + precision);
                    ran
                })
                .collect();
            times.dedup();
            assert!(times.len() <= 2);
        });
    }

    #[test]
    fn a_callout_can_be_dropped_at_any_moment() {
        for seed in 0..60 {
            Machine::builder().seed(seed).cpus(3).run(|| {
                let diary = Arc::new(Diary::default());
                for _ in 0..100 {
                    let random = machine::random_u64();
                    let callout = Callout::new();
                    let span = Sbintime::from_us(random as i64 & 0x3f);
                    callout.reset_on(span, (random >> 8) as usize % 3, &diary);
                    pause_sbt("armer", Sbintime::from_us((random >> 16) as i64 & 0x3f));
                    drop(callout);
                }
                pause("rest", 1);
                assert_eq!(Arc::strong_count(&diary), 1);
            });
        }
    }
}
