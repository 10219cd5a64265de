//! Safe memory reclamation: readers without a lock, a shared write or a wait; memory is used again when they have left.
//!
//! FreeBSD: sys/kern/subr_smr.c, sys/sys/smr.h (global unbounded sequences)
//! Differs from FreeBSD: sequences have 64 bits and never wrap, so that there is no limit on how far writers run ahead;
//! sections nest, also from an interrupt; a domain is a type, so that a pointer is only followed in a section of its own.
//! Not carried over: lazy clocks and deferred advances, as memory is given back by the bucket, which amortises the cost.
//!
//! A writer unlinks something, calls [`Smr::advance`], and keeps the goal it gets with the memory. A reader notes the
//! sequence that it sees on its own CPU before it follows a pointer. When no CPU notes an earlier sequence than the
//! goal, which [`Smr::poll`] finds out, nobody has the memory any more.
//!
//! Why that holds. The reader stores its note, then a full fence, then reads pointers; the writer unlinks, then a full
//! fence (in `poll`), then reads notes. So either the writer sees the note, or the reader sees the pointer gone. A noted
//! sequence that is at or past the goal was read after the writer's `advance` released it, so the reader sees the pointer
//! gone as well. A reader may be held up between reading the sequence and noting it, and note one that is older than what
//! `poll` has passed already: the fence still comes after the note, so it sees what was unlinked before that poll.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;

use crate::machine::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
use crate::machine::{self, CachePadded, Critical, PerCpu};
use crate::machine_local;
use crate::param::MAXCPU;

/// A point in the sequence of a domain's writers. Later is greater.
#[doc(alias = "smr_seq_t")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SmrSeq(u64);

impl SmrSeq {
    /// What a CPU notes that reads nothing. Before every goal.
    #[doc(alias = "SMR_SEQ_INVALID")]
    pub const INVALID: SmrSeq = SmrSeq(0);
    /// Where a domain begins: what was freed before it was used needs no wait.
    #[doc(alias = "SMR_SEQ_INIT")]
    pub const INIT: SmrSeq = SmrSeq(1);
}

/// What one CPU says about its readers. Written by that CPU alone.
struct SmrCpu {
    /// Sequence seen by the section that is open here, or `INVALID`.
    seq: AtomicU64,
    /// Sections open here: a section stays on its CPU.
    depth: AtomicU32,
}

/// A domain of readers and writers, and of the memory that they share.
#[doc(alias = "smr_t")]
pub struct Smr {
    name: &'static str,
    /// Moved on by each `advance`, read by each `enter`.
    #[doc(alias = "s_wr")]
    wr_seq: CachePadded<AtomicU64>,
    /// No reader has noted, or will act on, an earlier sequence.
    #[doc(alias = "s_rd_seq")]
    rd_seq: CachePadded<AtomicU64>,
    cpus: PerCpu<SmrCpu>,
}

/// A read section: the thread stays on its CPU, is not preempted and must not sleep. Short, therefore.
#[must_use = "the section ends when this is dropped"]
pub struct SmrSection<'s> {
    smr: &'s Smr,
    /// The slot of the CPU, on which the section keeps the thread.
    cpu: &'s SmrCpu,
    /// Dropped last.
    _critical: Critical,
}

impl Smr {
    /// Makes a domain; `name` is for reports.
    #[doc(alias = "smr_create")]
    pub const fn new(name: &'static str) -> Smr {
        Smr {
            name,
            wr_seq: CachePadded(AtomicU64::new(SmrSeq::INIT.0)),
            rd_seq: CachePadded(AtomicU64::new(SmrSeq::INIT.0)),
            cpus: PerCpu::from_slots(
                [const {
                    CachePadded(SmrCpu {
                        seq: AtomicU64::new(SmrSeq::INVALID.0),
                        depth: AtomicU32::new(0),
                    })
                }; MAXCPU],
            ),
        }
    }

    /// Enters a read section.
    #[inline]
    #[doc(alias = "smr_enter")]
    pub fn enter(&self) -> SmrSection<'_> {
        let critical = Critical::enter();
        let cpu = self.cpus.get(machine::curcpu());
        // An interrupt may enter and leave between any two of these lines: it leaves the depth as it found it, and a note
        // as well while the depth is not zero.
        let depth = cpu.depth.load(Ordering::Relaxed);
        cpu.depth.store(depth + 1, Ordering::Relaxed);
        if cpu.seq.load(Ordering::Relaxed) == SmrSeq::INVALID.0 {
            let seq = self.wr_seq.load(Ordering::Acquire);
            machine::interleave();
            // Released, for what this CPU read in an earlier section. What this one reads is read after a writer can see
            // the note.
            cpu.seq.store(seq, Ordering::Release);
            fence(Ordering::SeqCst);
        }
        SmrSection {
            smr: self,
            cpu,
            _critical: critical,
        }
    }

    /// Tells whether this thread is in a section of the domain.
    #[doc(alias = "SMR_ENTERED")]
    pub fn entered(&self) -> bool {
        let critical = Critical::enter();
        // Sections are not preempted: one that is open here is this thread's.
        self.cpus.get_mine(&critical).depth.load(Ordering::Relaxed) != 0
    }

    /// Moves the writers' sequence on, and returns the goal that readers must have reached before what was unlinked until
    /// now may be used again.
    #[doc(alias = "smr_advance")]
    pub fn advance(&self) -> SmrSeq {
        // Released: a reader that notes the goal sees everything that was unlinked before.
        SmrSeq(self.wr_seq.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Returns the writers' sequence as it is, without moving it.
    #[doc(alias = "smr_current")]
    pub fn current(&self) -> SmrSeq {
        SmrSeq(self.wr_seq.load(Ordering::Acquire))
    }

    /// Tells whether all readers that could have what was unlinked before `goal` have left. Costs a look at each CPU, or
    /// nothing if an earlier look went so far.
    #[doc(alias = "smr_poll")]
    pub fn poll(&self, goal: SmrSeq) -> bool {
        self.scan(goal, || false)
    }

    /// Waits, busily, until all readers that could have what was unlinked before `goal` have left.
    ///
    /// Sections are short and not preempted, so that nobody sleeps here; the caller may hold any lock that is not taken in
    /// a section, and is in none itself.
    #[doc(alias = "smr_wait")]
    pub fn wait(&self, goal: SmrSeq) {
        assert!(!self.entered(), "smr {}: waits for itself", self.name);
        self.scan(goal, || {
            machine::cpu_spinwait();
            true
        });
    }

    /// Waits until all readers that are in a section now have left.
    #[doc(alias = "smr_synchronize")]
    pub fn synchronize(&self) {
        self.wait(self.advance());
    }

    /// Looks at what the CPUs have noted, raises the readers' sequence as far as that allows, and tells whether it has
    /// reached `goal`. While a CPU has not, `again` says whether to look at it again.
    #[doc(alias = "smr_poll_scan")]
    fn scan(&self, goal: SmrSeq, again: impl Fn() -> bool) -> bool {
        let passed = self.rd_seq.load(Ordering::Acquire);
        if goal.0 <= passed {
            return true;
        }
        let mut reached = self.wr_seq.load(Ordering::Acquire);
        debug_assert!(goal.0 <= reached, "smr {}: a goal of another", self.name);
        fence(Ordering::SeqCst);
        for cpu in self.cpus.iter() {
            machine::interleave();
            let seq = loop {
                // Acquired: what was read in sections that have ended was read before.
                let seq = cpu.seq.load(Ordering::Acquire);
                if seq == SmrSeq::INVALID.0 || seq >= goal.0 || !again() {
                    break seq;
                }
            };
            if seq != SmrSeq::INVALID.0 {
                // A note of a reader that was held up is older than what it reads.
                reached = reached.min(seq.max(passed));
            }
        }
        self.rd_seq
            .fetch_max(reached, Ordering::AcqRel)
            .max(reached)
            >= goal.0
    }
}

impl fmt::Debug for Smr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smr")
            .field("name", &self.name)
            .field("wr_seq", &self.wr_seq.load(Ordering::Relaxed))
            .field("rd_seq", &self.rd_seq.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl SmrSection<'_> {
    /// The domain that this is a section of.
    pub fn smr(&self) -> &Smr {
        self.smr
    }
}

impl Drop for SmrSection<'_> {
    #[inline]
    #[doc(alias = "smr_exit")]
    fn drop(&mut self) {
        let depth = self.cpu.depth.load(Ordering::Relaxed) - 1;
        self.cpu.depth.store(depth, Ordering::Relaxed);
        if depth == 0 {
            // Released: the section's reads come before a writer's use of the memory.
            self.cpu.seq.store(SmrSeq::INVALID.0, Ordering::Release);
        }
    }
}

// Domains as types.

/// A domain that is a type: what is linked by an [`SmrPtr`] of the domain is followed only in an [`SmrGuard`] of the domain.
/// Each machine has one [`Smr`] for it, shared by all stack instances.
pub trait SmrDomain: sealed::Sealed {
    /// The domain's readers and writers.
    fn smr() -> &'static Smr;
}

mod sealed {
    pub trait Sealed: Send + Sync + 'static {}
}

/// The list of domains stands here, and nowhere else, as one type must always mean one `Smr`.
macro_rules! smr_domains {
    ($($(#[$attr:meta])* $name:ident = $words:literal in $slot:ident;)*) => { $(
        machine_local! {
            static $slot: Smr = Smr::new($words);
        }

        $(#[$attr])*
        pub struct $name;

        impl sealed::Sealed for $name {}

        impl SmrDomain for $name {
            #[inline]
            fn smr() -> &'static Smr {
                $slot.get()
            }
        }
    )* };
}

smr_domains! {
    /// Protocol control blocks: the hash chains of connections and sockets.
    InpcbSmr = "inpcb" in INPCB;
    /// What programs and tests link.
    AppSmr = "app" in APP;
}

/// A read section of the domain `D`.
pub struct SmrGuard<D: SmrDomain> {
    _section: SmrSection<'static>,
    domain: PhantomData<D>,
}

impl<D: SmrDomain> SmrGuard<D> {
    /// Enters a section.
    #[inline]
    #[doc(alias = "smr_enter")]
    pub fn enter() -> SmrGuard<D> {
        SmrGuard {
            _section: D::smr().enter(),
            domain: PhantomData,
        }
    }
}

/// A shared pointer, or none, that readers follow in a section of `D`, and writers replace: the link of a chain that is
/// read without a lock.
#[doc(alias = "SMR_POINTER")]
pub struct SmrPtr<T: Send + Sync + 'static, D: SmrDomain> {
    /// From `Arc::into_raw`, and one count of it is ours; or null.
    pointer: AtomicPtr<T>,
    domain: PhantomData<fn() -> D>,
}

impl<T: Send + Sync + 'static, D: SmrDomain> SmrPtr<T, D> {
    /// Makes a link.
    pub fn new(value: Option<Arc<T>>) -> SmrPtr<T, D> {
        SmrPtr {
            pointer: AtomicPtr::new(into_raw(value)),
            domain: PhantomData,
        }
    }

    /// What the link leads to, which stays until the section ends.
    #[inline]
    #[doc(alias = "smr_entered_load")]
    pub fn load<'g>(&'g self, section: &'g SmrGuard<D>) -> Option<&'g T> {
        let _ = section;
        // SAFETY: the pointer came from an `Arc`, of which the link holds a count; who replaces it gives that count up only
        // after this section has ended (`Retired`).
        unsafe { self.pointer.load(Ordering::Acquire).as_ref() }
    }

    /// One more reference to what the link leads to, for after the section.
    pub fn get(&self, section: &SmrGuard<D>) -> Option<Arc<T>> {
        let _ = section;
        let pointer = self.pointer.load(Ordering::Acquire);
        if pointer.is_null() {
            return None;
        }
        // SAFETY: as in `load`, a count that the link holds, or held when the section began, outlives the section.
        unsafe {
            Arc::increment_strong_count(pointer);
            Some(Arc::from_raw(pointer))
        }
    }

    /// Makes the link lead elsewhere. What it led to is let go by the value that is returned, once no reader has it.
    #[doc(alias = "smr_serialized_store")]
    pub fn replace(&self, value: Option<Arc<T>>) -> Retired<T, D> {
        let old = self.pointer.swap(into_raw(value), Ordering::AcqRel);
        Retired {
            pointer: old,
            goal: D::smr().advance(),
            domain: PhantomData,
        }
    }
}

impl<T: Send + Sync + 'static, D: SmrDomain> Default for SmrPtr<T, D> {
    fn default() -> Self {
        Self::new(None)
    }
}

impl<T: Send + Sync + 'static, D: SmrDomain> Drop for SmrPtr<T, D> {
    fn drop(&mut self) {
        // SAFETY: the pointer is ours and used once; readers borrow the link, so there are none.
        drop(unsafe { from_raw(*self.pointer.get_mut()) });
    }
}

fn into_raw<T>(value: Option<Arc<T>>) -> *mut T {
    value.map_or(core::ptr::null_mut(), |value| {
        Arc::into_raw(value).cast_mut()
    })
}

/// # Safety
/// `pointer` came from `into_raw`, and is used once.
unsafe fn from_raw<T>(pointer: *mut T) -> Option<Arc<T>> {
    // SAFETY: promised by the caller.
    (!pointer.is_null()).then(|| unsafe { Arc::from_raw(pointer) })
}

/// What a link no longer leads to, while readers may still have it.
///
/// Dropped, it waits for them, busily; a list of these, looked at now and then, need not.
#[must_use = "dropping it waits for the readers"]
pub struct Retired<T: Send + Sync + 'static, D: SmrDomain> {
    pointer: *mut T,
    goal: SmrSeq,
    domain: PhantomData<fn() -> D>,
}

// SAFETY: it stands for an `Arc<T>`, which is `Send` as `T` is `Send` and `Sync`.
unsafe impl<T: Send + Sync + 'static, D: SmrDomain> Send for Retired<T, D> {}

impl<T: Send + Sync + 'static, D: SmrDomain> Retired<T, D> {
    /// Waits until no reader has it, and returns it.
    pub fn wait(mut self) -> Option<Arc<T>> {
        D::smr().wait(self.goal);
        self.take()
    }

    /// Returns it if no reader has it any more, else itself.
    pub fn try_take(mut self) -> Result<Option<Arc<T>>, Self> {
        if D::smr().poll(self.goal) {
            Ok(self.take())
        } else {
            Err(self)
        }
    }

    /// The readers have left.
    fn take(&mut self) -> Option<Arc<T>> {
        let pointer = core::mem::replace(&mut self.pointer, core::ptr::null_mut());
        // SAFETY: the count was the link's, and has been taken out of here.
        unsafe { from_raw(pointer) }
    }
}

impl<T: Send + Sync + 'static, D: SmrDomain> Drop for Retired<T, D> {
    fn drop(&mut self) {
        if !self.pointer.is_null() {
            D::smr().wait(self.goal);
            drop(self.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_mutex::Mutex;
    use crate::kern::kern_synch::{kern_yield, pause_sbt};
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::kern::lock_order;
    use crate::machine::atomic::{AtomicBool, AtomicUsize};
    use crate::machine::hosted::Machine;
    use crate::time::Sbintime;

    #[test]
    fn a_goal_is_reached_when_the_sections_before_it_have_ended() {
        Machine::builder().run(|| {
            let smr = Smr::new("test");
            assert!(smr.poll(SmrSeq::INIT));
            let section = smr.enter();
            let goal = smr.advance();
            assert!(!smr.poll(goal));
            let nested = smr.enter();
            drop(section);
            // The inner section began before the outer ended, and is covered by its note.
            assert!(!smr.poll(goal));
            assert!(smr.entered());
            drop(nested);
            assert!(!smr.entered());
            assert!(smr.poll(goal));
        });
    }

    #[test]
    fn a_section_that_began_after_the_goal_does_not_hold_it_back() {
        Machine::builder().run(|| {
            let smr = Smr::new("test");
            let goal = smr.advance();
            let section = smr.enter();
            assert!(smr.poll(goal));
            let later = smr.advance();
            assert!(!smr.poll(later));
            drop(section);
            assert!(smr.poll(later));
        });
    }

    #[test]
    #[should_panic(expected = "smr test: waits for itself")]
    fn waiting_inside_a_section_says_so() {
        Machine::builder().quiet().run(|| {
            let smr = Smr::new("test");
            let _section = smr.enter();
            smr.synchronize();
        });
    }

    const ALIVE: usize = 0xa11e;
    const POISON: usize = 0xdead;
    const SLOTS: usize = 6;

    /// Memory that is used again and again, as a zone's items are.
    struct Slot {
        state: AtomicUsize,
        key: AtomicUsize,
    }

    struct Shared {
        smr: Smr,
        slots: [Slot; SLOTS],
        /// Index of the slot of each key, or `SLOTS`.
        table: [AtomicUsize; 3],
        free: Mutex<VecDeque<(usize, SmrSeq)>, lock_order::Leaf>,
        stop: AtomicBool,
        found: AtomicUsize,
        held_back: AtomicUsize,
    }

    impl Shared {
        /// Links a fresh slot for `key`, and gives the one back that it had.
        fn renew(&self, key: usize) {
            let Some((slot, goal)) = self.free.lock().pop_front() else {
                return;
            };
            if !self.smr.poll(goal) {
                self.held_back.fetch_add(1, Ordering::Relaxed);
                self.smr.wait(goal);
            }
            // From here on nobody may look at it: a reader that does sees the poison.
            self.slots[slot].state.store(POISON, Ordering::Relaxed);
            crate::machine::interleave();
            self.slots[slot].key.store(key, Ordering::Relaxed);
            self.slots[slot].state.store(ALIVE, Ordering::Relaxed);
            let old = self.table[key].swap(slot, Ordering::AcqRel);
            if old < SLOTS {
                let goal = self.smr.advance();
                self.free.lock().push_back((old, goal));
            }
        }

        fn look_up(&self, key: usize) {
            let section = self.smr.enter();
            let slot = self.table[key].load(Ordering::Acquire);
            if slot < SLOTS {
                for _ in 0..4 {
                    let slot = &self.slots[slot];
                    assert_eq!(slot.state.load(Ordering::Relaxed), ALIVE, "use after free");
                    assert_eq!(slot.key.load(Ordering::Relaxed), key, "another's memory");
                    crate::machine::interleave();
                }
                self.found.fetch_add(1, Ordering::Relaxed);
            }
            drop(section);
        }
    }

    #[test]
    fn what_readers_look_at_is_never_used_again_before_they_leave() {
        let mut held_back = 0;
        for seed in 0..40 {
            held_back += Machine::builder().seed(seed).cpus(4).run(|| {
                let shared = Arc::new(Shared {
                    smr: Smr::new("test"),
                    slots: [const {
                        Slot {
                            state: AtomicUsize::new(POISON),
                            key: AtomicUsize::new(0),
                        }
                    }; SLOTS],
                    table: [const { AtomicUsize::new(SLOTS) }; 3],
                    free: Mutex::new((0..SLOTS).map(|slot| (slot, SmrSeq::INIT)).collect()),
                    stop: AtomicBool::new(false),
                    found: AtomicUsize::new(0),
                    held_back: AtomicUsize::new(0),
                });
                let readers: Vec<_> = (0..4)
                    .map(|cpu| {
                        let shared = Arc::clone(&shared);
                        kthread_add("reader", Pri::PUSER, Some(cpu), move || {
                            while !shared.stop.load(Ordering::Relaxed) {
                                shared.look_up(machine::random_u64() as usize % 3);
                                kern_yield();
                            }
                        })
                    })
                    .collect();
                let writers: Vec<_> = (0..2)
                    .map(|_| {
                        let shared = Arc::clone(&shared);
                        kthread_add("writer", Pri::PUSER, None, move || {
                            for _ in 0..150 {
                                shared.renew(machine::random_u64() as usize % 3);
                                kern_yield();
                            }
                        })
                    })
                    .collect();
                writers.into_iter().for_each(|writer| writer.join());
                shared.stop.store(true, Ordering::Relaxed);
                readers.into_iter().for_each(|reader| reader.join());
                assert!(shared.found.load(Ordering::Relaxed) > 0);
                shared.held_back.load(Ordering::Relaxed)
            });
        }
        // Otherwise nothing was tried.
        assert!(held_back > 0);
    }

    /// Counts how often it was freed.
    struct Tracked(Arc<AtomicUsize>);

    impl Drop for Tracked {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_replaced_pointer_is_let_go_when_its_readers_have_left() {
        Machine::builder().cpus(2).run(|| {
            let freed = Arc::new(AtomicUsize::new(0));
            let tracked = || Some(Arc::new(Tracked(freed.clone())));
            let link = SmrPtr::<Tracked, AppSmr>::new(tracked());
            let section = SmrGuard::enter();
            let seen = link.load(&section).expect("linked");
            let retired = link.replace(tracked());
            let Err(retired) = retired.try_take() else {
                panic!("let go under a reader")
            };
            assert_eq!(seen.0.load(Ordering::Relaxed), 0);
            let kept = link.get(&section);
            drop(section);
            drop(retired);
            assert_eq!(freed.load(Ordering::Relaxed), 1);
            drop(link.replace(None));
            assert_eq!(freed.load(Ordering::Relaxed), 1);
            drop(kept);
            assert_eq!(freed.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn a_writer_waits_for_a_reader_on_another_cpu() {
        for seed in 0..20 {
            Machine::builder().seed(seed).cpus(2).run(|| {
                let link = Arc::new(SmrPtr::<u32, AppSmr>::new(Some(Arc::new(1))));
                let inside = Arc::new(AtomicUsize::new(0));
                let (theirs, there) = (Arc::clone(&link), Arc::clone(&inside));
                let reader = kthread_add("reader", Pri::PUSER, Some(1), move || {
                    let section = SmrGuard::enter();
                    let seen = theirs.load(&section);
                    there.store(1, Ordering::Release);
                    for _ in 0..500 {
                        machine::interleave();
                    }
                    assert_eq!(seen, Some(&1));
                    there.store(2, Ordering::Release);
                });
                while inside.load(Ordering::Acquire) == 0 {
                    pause_sbt("test", Sbintime::from_us(10));
                }
                let old = link.replace(None).wait();
                assert_eq!(old.as_deref(), Some(&1));
                assert_eq!(inside.load(Ordering::Acquire), 2);
                reader.join();
            });
        }
    }
}
