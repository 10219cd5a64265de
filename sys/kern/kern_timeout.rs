//! Callouts: functions that run at a time, on a wheel for each CPU.
//!
//! FreeBSD: sys/kern/kern_timeout.c, callout(9)
//! Differs from FreeBSD: an armed callout owns a reference to what it will call, so that nothing it needs can be
//! freed under it; every callout runs on the clock thread of its CPU, where it may take blocking locks
//! (`C_DIRECT_EXEC` has no equivalent).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::{self, NonNull};

use crate::kern::kern_mutex::{Mutex, SpinMutex};
use crate::kern::kern_synch::{WChan, iwait, iwakeup, wakeup};
use crate::kern::kern_thread::{Pri, ThreadRef, kthread_add};
use crate::kern::lock_order;
use crate::machine::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use crate::machine::{self, CachePadded, PerCpu};
use crate::machine_local;
use crate::param::MAXCPU;
use crate::time::Sbintime;

/// Buckets of a wheel. One turn is a second.
const BUCKETS: usize = 1024;
/// A bucket spans 2^22 / 2^32 s, a little less than a millisecond; within it, times are exact.
const BUCKET_SHIFT: u32 = 22;
/// Time of one turn of the wheel.
const TURN: i64 = (BUCKETS as i64) << BUCKET_SHIFT;

/// What a callout calls.
pub trait CalloutTarget: Send + Sync + 'static {
    /// The time has come. Runs on a clock thread, with no lock held.
    fn callout(self: Arc<Self>, now: Sbintime);
}

/// A function that can be armed to run at a time.
pub struct Callout {
    /// On the heap, since the wheel links it; made when first armed.
    node: AtomicPtr<Node>,
}

/// A callout as the wheel sees it. Everything but `cpu` is protected by the lock of that CPU's wheel.
struct Node {
    cpu: AtomicUsize,
    links: core::cell::UnsafeCell<Links>,
}

struct Links {
    prev: *mut Node,
    next: *mut Node,
    place: Place,
    when: Sbintime,
    /// Held while armed.
    target: Option<Arc<dyn CalloutTarget>>,
}

/// Which list a node stands on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Bucket(usize),
    Due,
}

// SAFETY: `links` is only touched under the wheel's lock, and what it owns is `Send`.
unsafe impl Send for Node {}
// SAFETY: as above.
unsafe impl Sync for Node {}

/// A list of nodes, first in first out.
#[derive(Clone, Copy)]
struct List {
    head: *mut Node,
    tail: *mut Node,
}

/// The callouts of one CPU.
struct Wheel {
    buckets: [List; BUCKETS],
    /// No node of a bucket is due before this; exact after the bucket was looked through.
    earliest: [Sbintime; BUCKETS],
    occupied: [u64; BUCKETS / 64],
    /// Expired, waiting for the clock thread.
    due: List,
    /// Everything up to here has been moved to `due`.
    processed: Sbintime,
    /// What the event timer of this CPU is set to.
    programmed: Sbintime,
    /// The node whose target is running.
    running: *const Node,
    /// Somebody waits for `running`.
    draining: bool,
}

// SAFETY: the nodes it points to are `Send`, and reached only through the wheel's lock.
unsafe impl Send for Wheel {}

/// The clock thread of a CPU.
struct ClockThread {
    thread: spin::Once<ThreadRef>,
    need: AtomicBool,
}

machine_local! {
    static WHEELS: PerCpu<SpinMutex<Wheel, lock_order::CalloutClass>> =
        PerCpu::from_slots([const { CachePadded(SpinMutex::new(Wheel::NEW)) }; MAXCPU]);
    static CLOCKS: PerCpu<ClockThread> = PerCpu::from_slots([const {
        CachePadded(ClockThread { thread: spin::Once::new(), need: AtomicBool::new(false) })
    }; MAXCPU]);
    /// Held by who waits for a running callout, so that its end cannot slip by.
    static DRAIN: Mutex<(), lock_order::Leaf> = Mutex::new(());
}

impl List {
    const EMPTY: List = List {
        head: ptr::null_mut(),
        tail: ptr::null_mut(),
    };

    /// # Safety
    /// `node` is on no list, and the lock of its wheel, which owns this list, is held.
    unsafe fn push(&mut self, node: *mut Node, place: Place) {
        // SAFETY: the caller holds the wheel's lock.
        unsafe {
            let links = &mut *(*node).links.get();
            links.place = place;
            links.next = ptr::null_mut();
            links.prev = self.tail;
            match NonNull::new(self.tail) {
                Some(tail) => (*tail.as_ref().links.get()).next = node,
                None => self.head = node,
            }
        }
        self.tail = node;
    }

    /// # Safety
    /// `node` is on this list, and the lock of its wheel is held.
    unsafe fn remove(&mut self, node: *mut Node) {
        // SAFETY: the caller holds the wheel's lock, under which neighbours are nodes of this list.
        unsafe {
            let links = &mut *(*node).links.get();
            match NonNull::new(links.prev) {
                Some(prev) => (*prev.as_ref().links.get()).next = links.next,
                None => self.head = links.next,
            }
            match NonNull::new(links.next) {
                Some(next) => (*next.as_ref().links.get()).prev = links.prev,
                None => self.tail = links.prev,
            }
            links.prev = ptr::null_mut();
            links.next = ptr::null_mut();
            links.place = Place::Nowhere;
        }
    }
}

impl Wheel {
    const NEW: Wheel = Wheel {
        buckets: [List::EMPTY; BUCKETS],
        earliest: [Sbintime::MAX; BUCKETS],
        occupied: [0; BUCKETS / 64],
        due: List::EMPTY,
        processed: Sbintime::ZERO,
        programmed: Sbintime::MAX,
        running: ptr::null(),
        draining: false,
    };

    fn bucket_of(when: Sbintime) -> usize {
        (when.0 >> BUCKET_SHIFT) as usize % BUCKETS
    }

    /// # Safety
    /// `node` is on no list of any wheel, and lives until it is removed.
    unsafe fn insert(&mut self, node: *mut Node, when: Sbintime) {
        // A time that has been looked through already goes where it is looked at next.
        let bucket = Wheel::bucket_of(when.max(self.processed));
        // SAFETY: `&mut self` is the wheel's lock, and the caller vouches for the node.
        unsafe {
            (*(*node).links.get()).when = when;
            self.buckets[bucket].push(node, Place::Bucket(bucket));
        }
        self.earliest[bucket] = self.earliest[bucket].min(when);
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
    }

    /// Takes `node` off its list; returns whether it was on one.
    ///
    /// # Safety
    /// `node` belongs to this wheel.
    unsafe fn remove(&mut self, node: *mut Node) -> bool {
        // SAFETY: `&mut self` is the wheel's lock, and the node is one of its own.
        unsafe {
            match (*(*node).links.get()).place {
                Place::Nowhere => return false,
                Place::Due => self.due.remove(node),
                Place::Bucket(bucket) => {
                    self.buckets[bucket].remove(node);
                    self.note_emptied(bucket);
                }
            }
        }
        true
    }

    fn note_emptied(&mut self, bucket: usize) {
        if self.buckets[bucket].head.is_null() {
            self.earliest[bucket] = Sbintime::MAX;
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        }
    }

    /// Moves what is due at `now` to the due list.
    fn expire(&mut self, now: Sbintime) {
        let first = self.processed.0 >> BUCKET_SHIFT;
        let last = (now.0 >> BUCKET_SHIFT).max(first);
        for slot in first..=last.min(first + BUCKETS as i64 - 1) {
            let bucket = slot as usize % BUCKETS;
            if self.earliest[bucket] <= now {
                self.expire_bucket(bucket, now);
            }
        }
        self.processed = self.processed.max(now);
    }

    fn expire_bucket(&mut self, bucket: usize, now: Sbintime) {
        let mut earliest = Sbintime::MAX;
        let mut node = self.buckets[bucket].head;
        while !node.is_null() {
            // SAFETY: nodes on the wheel's lists are alive, and `&mut self` is the wheel's lock.
            unsafe {
                let next = (*(*node).links.get()).next;
                let when = (*(*node).links.get()).when;
                if when <= now {
                    self.buckets[bucket].remove(node);
                    self.due.push(node, Place::Due);
                } else {
                    earliest = earliest.min(when);
                }
                node = next;
            }
        }
        self.earliest[bucket] = earliest;
        self.note_emptied(bucket);
    }

    /// When this CPU must look at the wheel next.
    fn next_event(&self) -> Sbintime {
        let start = Wheel::bucket_of(self.processed);
        let turn_ends = Sbintime(self.processed.0.saturating_add(TURN));
        let mut far = Sbintime::MAX;
        let mut bucket = start;
        let mut left = BUCKETS;
        while left > 0 {
            // Skips the empty rest of a word at once.
            let word = self.occupied[bucket / 64] >> (bucket % 64);
            if word == 0 {
                let skip = (64 - bucket % 64).min(left);
                bucket = (bucket + skip) % BUCKETS;
                left -= skip;
                continue;
            }
            let skip = (word.trailing_zeros() as usize).min(left);
            if skip > 0 {
                bucket = (bucket + skip) % BUCKETS;
                left -= skip;
                continue;
            }
            let earliest = self.earliest[bucket];
            if earliest < turn_ends {
                return earliest;
            }
            far = far.min(earliest);
            bucket = (bucket + 1) % BUCKETS;
            left -= 1;
        }
        far
    }
}

impl Callout {
    /// A callout that is not armed.
    #[doc(alias = "callout_init")]
    pub const fn new() -> Callout {
        Callout {
            node: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Arms the callout to run `target` after `after`, instead of what it was armed for. Returns whether it
    /// was armed.
    ///
    /// Stays on the CPU it was armed on first, where its connection's packets arrive.
    #[doc(alias = "callout_reset_sbt")]
    pub fn reset<T: CalloutTarget>(&self, after: Sbintime, target: &Arc<T>) -> bool {
        self.arm(after, target, None)
    }

    /// Arms the callout to run on `cpu`.
    #[doc(alias = "callout_reset_sbt_on")]
    pub fn reset_on<T: CalloutTarget>(&self, after: Sbintime, cpu: usize, target: &Arc<T>) -> bool {
        self.arm(after, target, Some(cpu % machine::ncpus()))
    }

    fn arm<T: CalloutTarget>(&self, after: Sbintime, target: &Arc<T>, cpu: Option<usize>) -> bool {
        let node = self.node_or_new();
        let when = machine::sbinuptime().saturating_add(after.max(Sbintime::ZERO));
        if let Some(cpu) = cpu
            && cpu != node_cpu(node)
        {
            let moved = self.stop();
            self.migrate(node, cpu);
            self.arm_here(node, when, target);
            return moved;
        }
        self.arm_here(node, when, target)
    }

    fn arm_here<T: CalloutTarget>(&self, node: NonNull<Node>, when: Sbintime, target: &Arc<T>) -> bool {
        let mut old = None;
        let (pending, kick) = with_wheel(node, |wheel, cpu| {
            // SAFETY: the node is this wheel's, whose lock is held; it lives as long as the callout, which
            // takes it off the wheel when dropped.
            unsafe {
                let pending = wheel.remove(node.as_ptr());
                let links = &mut *node.as_ref().links.get();
                let same = links.target.as_ref().is_some_and(|armed| {
                    ptr::addr_eq(Arc::as_ptr(armed), Arc::as_ptr(target))
                });
                if !same {
                    old = links.target.replace(target.clone());
                }
                wheel.insert(node.as_ptr(), when);
                let kick = when < wheel.programmed;
                if kick {
                    wheel.programmed = when;
                    if cpu == machine::curcpu() {
                        machine::set_event_timer(when);
                        return (pending, None);
                    }
                }
                (pending, kick.then_some(cpu))
            }
        });
        // Another CPU's timer can only be set by itself.
        if let Some(cpu) = kick {
            machine::ipi_preempt(cpu);
        }
        drop(old);
        pending
    }

    /// Disarms the callout. Returns whether it was armed; if not, its target may be running.
    #[doc(alias = "callout_stop")]
    pub fn stop(&self) -> bool {
        let Some(node) = self.node() else {
            return false;
        };
        let (pending, target) = with_wheel(node, |wheel, _| {
            // SAFETY: the node is this wheel's, whose lock is held.
            unsafe {
                let pending = wheel.remove(node.as_ptr());
                (pending, (*node.as_ref().links.get()).target.take())
            }
        });
        drop(target);
        pending
    }

    /// Disarms the callout and waits until its target is not running. Must not be called by the target
    /// itself, nor with a lock held that the target takes.
    #[doc(alias = "callout_drain")]
    pub fn drain(&self) {
        let Some(node) = self.node() else {
            return;
        };
        self.stop();
        let mut waiting = DRAIN.lock();
        loop {
            let busy = with_wheel(node, |wheel, _| {
                let busy = ptr::eq(wheel.running, node.as_ptr());
                wheel.draining |= busy;
                busy
            });
            if !busy {
                return;
            }
            waiting = waiting.msleep(WChan::of(DRAIN.get()), Pri::PSOCK, "codrain", None, false).0;
        }
    }

    /// Whether it is armed.
    #[doc(alias = "callout_pending")]
    pub fn pending(&self) -> bool {
        let Some(node) = self.node() else {
            return false;
        };
        with_wheel(node, |_, _| {
            // SAFETY: the lock of the node's wheel is held.
            unsafe { (*node.as_ref().links.get()).place != Place::Nowhere }
        })
    }

    fn node(&self) -> Option<NonNull<Node>> {
        NonNull::new(self.node.load(Ordering::Acquire))
    }

    fn node_or_new(&self) -> NonNull<Node> {
        if let Some(node) = self.node() {
            return node;
        }
        let fresh = Box::into_raw(Box::new(Node {
            cpu: AtomicUsize::new(machine::curcpu()),
            links: core::cell::UnsafeCell::new(Links {
                prev: ptr::null_mut(),
                next: ptr::null_mut(),
                place: Place::Nowhere,
                when: Sbintime::ZERO,
                target: None,
            }),
        }));
        let swapped = self.node.compare_exchange(
            ptr::null_mut(),
            fresh,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        match swapped {
            // SAFETY: a box is never null.
            Ok(_) => unsafe { NonNull::new_unchecked(fresh) },
            Err(first) => {
                // SAFETY: another thread was faster; ours was never shown to anyone.
                drop(unsafe { Box::from_raw(fresh) });
                // SAFETY: the exchange failed because it was not null.
                unsafe { NonNull::new_unchecked(first) }
            }
        }
    }

    /// Moves a disarmed node to another CPU's wheel.
    fn migrate(&self, node: NonNull<Node>, cpu: usize) {
        with_wheel(node, |_, _| {
            // SAFETY: the node lives as long as the callout.
            unsafe { node.as_ref() }.cpu.store(cpu, Ordering::Release);
        });
    }
}

impl Default for Callout {
    fn default() -> Callout {
        Callout::new()
    }
}

impl Drop for Callout {
    fn drop(&mut self) {
        if let Some(node) = self.node() {
            self.stop();
            // SAFETY: made by `Box::into_raw`, off every list, and the clock thread touches no node after it
            // has taken its target.
            drop(unsafe { Box::from_raw(node.as_ptr()) });
        }
    }
}

fn node_cpu(node: NonNull<Node>) -> usize {
    // SAFETY: a node lives as long as the callout that the caller borrows.
    unsafe { node.as_ref() }.cpu.load(Ordering::Acquire)
}

/// Runs `work` with the lock of the wheel that `node` belongs to.
fn with_wheel<R>(node: NonNull<Node>, work: impl FnOnce(&mut Wheel, usize) -> R) -> R {
    loop {
        let cpu = node_cpu(node);
        let mut wheel = WHEELS.get().get(cpu).lock();
        // It may have moved before the lock was ours.
        if node_cpu(node) == cpu {
            return work(&mut wheel, cpu);
        }
    }
}

/// Looks at this CPU's wheel. Called with interrupts disabled, when the event timer has expired or another
/// CPU has put something on the wheel that is due sooner than the timer.
pub fn callout_process(now: Sbintime) {
    let cpu = machine::curcpu();
    let due = {
        let mut wheel = WHEELS.get().get(cpu).lock();
        wheel.expire(now);
        let next = wheel.next_event();
        wheel.programmed = next;
        machine::set_event_timer(next);
        !wheel.due.head.is_null()
    };
    if due {
        let clock = CLOCKS.get().get(cpu);
        if let Some(thread) = clock.thread.get() {
            iwakeup(*thread, &clock.need);
        }
    }
}

/// Sets the event timer for what other CPUs have put on this one's wheel; part of every preemption interrupt.
pub fn callout_kick() {
    let wheel = WHEELS.get().get(machine::curcpu()).lock();
    if wheel.programmed != Sbintime::MAX {
        machine::set_event_timer(wheel.programmed);
    }
}

/// Starts the clock threads.
pub(super) fn start() {
    for cpu in 0..machine::ncpus() {
        let name = alloc::format!("clock ({cpu})");
        let handle = kthread_add(&name, Pri::PI_SOFTCLOCK, Some(cpu), move || softclock_thread(cpu));
        CLOCKS.get().get(cpu).thread.call_once(|| handle.thread());
    }
}

/// Runs what is due on `cpu`, for ever.
fn softclock_thread(cpu: usize) {
    let clock = CLOCKS.get().get(cpu);
    loop {
        while let Some(target) = next_due(cpu) {
            target.callout(machine::sbinuptime());
            finish(cpu);
        }
        iwait(&clock.need, "-");
    }
}

/// Takes the next expired callout off the wheel, and marks it as running.
fn next_due(cpu: usize) -> Option<Arc<dyn CalloutTarget>> {
    let mut wheel = WHEELS.get().get(cpu).lock();
    let node = NonNull::new(wheel.due.head)?;
    // SAFETY: the node is on this wheel's list, whose lock is held.
    unsafe {
        wheel.due.remove(node.as_ptr());
        wheel.running = node.as_ptr();
        (*node.as_ref().links.get()).target.take()
    }
}

/// Ends the mark, and wakes who waited for it. The callout itself may be gone by now.
fn finish(cpu: usize) {
    let drained = {
        let mut wheel = WHEELS.get().get(cpu).lock();
        wheel.running = ptr::null();
        core::mem::take(&mut wheel.draining)
    };
    if drained {
        // Whoever waits holds this lock from his look at the wheel until he sleeps.
        drop(DRAIN.lock());
        wakeup(WChan::of(DRAIN.get()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kern::kern_synch::pause_sbt;
    use crate::machine::hosted::Machine;
    use alloc::vec::Vec;

    /// Remembers when it was called.
    struct Record {
        callout: Callout,
        times: Mutex<Vec<Sbintime>, lock_order::Leaf>,
    }

    impl Record {
        fn new() -> Arc<Record> {
            Arc::new(Record {
                callout: Callout::new(),
                times: Mutex::new(Vec::new()),
            })
        }

        fn fired(&self) -> usize {
            self.times.lock().len()
        }
    }

    impl CalloutTarget for Record {
        fn callout(self: Arc<Self>, now: Sbintime) {
            self.times.lock().push(now);
        }
    }

    fn wait_ms(ms: i64) {
        let _ = pause_sbt("test", Sbintime::from_ms(ms));
    }

    #[test]
    fn callouts_of_any_span_run_at_their_time_and_not_before() {
        Machine::builder().run(|| {
            for us in [0, 1, 700, 999, 1000, 40_000, 999_000, 1_000_000, 75_000_000, 7_200_000_000] {
                let record = Record::new();
                let start = machine::sbinuptime();
                let after = Sbintime::from_us(us);
                record.callout.reset(after, &record);
                let _ = pause_sbt("test", after + Sbintime::from_ms(5));
                let times = record.times.lock();
                assert_eq!(times.len(), 1, "{us} us");
                assert!(times[0] >= start + after, "{us} us ran early");
                assert!(times[0] - start - after < Sbintime::from_ms(1), "{us} us ran late");
            }
        });
    }

    #[test]
    fn a_stopped_callout_does_not_run_and_lets_its_target_go() {
        Machine::builder().run(|| {
            let record = Record::new();
            assert!(!record.callout.reset(Sbintime::from_ms(10), &record));
            assert!(record.callout.pending());
            assert_eq!(Arc::strong_count(&record), 2);
            assert!(record.callout.stop());
            assert!(!record.callout.stop());
            assert_eq!(Arc::strong_count(&record), 1);
            wait_ms(30);
            assert_eq!(record.fired(), 0);
        });
    }

    #[test]
    fn a_callout_that_is_reset_runs_once_at_the_later_time() {
        Machine::builder().run(|| {
            let record = Record::new();
            record.callout.reset(Sbintime::from_ms(10), &record);
            wait_ms(5);
            assert!(record.callout.reset(Sbintime::from_ms(10), &record));
            wait_ms(8);
            assert_eq!(record.fired(), 0);
            wait_ms(5);
            assert_eq!(record.fired(), 1);
        });
    }

    #[test]
    fn a_callout_runs_on_the_cpu_it_was_given() {
        struct Where(Callout, AtomicUsize);
        impl CalloutTarget for Where {
            fn callout(self: Arc<Self>, _: Sbintime) {
                self.1.store(machine::curcpu(), Ordering::Relaxed);
            }
        }
        Machine::builder().cpus(4).run(|| {
            for cpu in [3, 1, 2, 0] {
                let place = Arc::new(Where(Callout::new(), AtomicUsize::new(99)));
                place.0.reset_on(Sbintime::from_ms(1), cpu, &place);
                wait_ms(4);
                assert_eq!(place.1.load(Ordering::Relaxed), cpu);
            }
        });
    }

    #[test]
    fn drain_waits_for_a_target_that_is_running() {
        struct Slow(Callout, AtomicBool);
        impl CalloutTarget for Slow {
            fn callout(self: Arc<Self>, _: Sbintime) {
                wait_ms(50);
                self.1.store(true, Ordering::Relaxed);
            }
        }
        Machine::builder().run(|| {
            let slow = Arc::new(Slow(Callout::new(), AtomicBool::new(false)));
            slow.0.reset(Sbintime::ZERO, &slow);
            wait_ms(10);
            slow.0.drain();
            assert!(slow.1.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn many_callouts_run_in_the_order_of_their_times() {
        struct Ordered {
            callout: Callout,
            number: usize,
            log: Arc<Mutex<Vec<usize>, lock_order::Leaf>>,
        }
        impl CalloutTarget for Ordered {
            fn callout(self: Arc<Self>, _: Sbintime) {
                self.log.lock().push(self.number);
            }
        }
        Machine::builder().run(|| {
            let log = Arc::new(Mutex::new(Vec::new()));
            let armed: Vec<_> = (0..500)
                .map(|i| {
                    let number = i * 7919 % 500;
                    let ordered = Arc::new(Ordered { callout: Callout::new(), number, log: log.clone() });
                    ordered.callout.reset(Sbintime::from_ms(10 + 5 * number as i64), &ordered);
                    ordered
                })
                .collect();
            wait_ms(3000);
            assert_eq!(*log.lock(), (0..500).collect::<Vec<_>>());
            drop(armed);
        });
    }
}
