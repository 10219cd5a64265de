//! The per-CPU area that both machines keep, and slots with one value per CPU.
//!
//! FreeBSD: sys/sys/pcpu.h

use core::ops::Deref;

use super::atomic::plain::{AtomicPtr, AtomicU32, AtomicUsize};
#[cfg(any(target_os = "none", native))]
use super::pcpu_gs::{critical_begin, critical_end};
use super::{critical_enter, critical_exit};
use crate::param::MAXCPU;

/// What the kernel keeps for a CPU; the first part of the machine's own per-CPU area.
///
/// On bare metal GS points here, and the hot fields are reached in one GS-relative instruction: the order of the
/// fields is known to nobody, the machine uses `offset_of!`. Only the CPU itself writes, but for `owepreempt`.
#[repr(C, align(64))]
pub struct Pcpu {
    /// Address of this area, so that `gs:[0]` is a pointer to it.
    pub pc_self: AtomicPtr<Pcpu>,
    /// The running `Thread`.
    pub curthread: AtomicPtr<()>,
    /// Depth of critical sections; the thread is not preempted unless zero.
    pub critnest: AtomicU32,
    /// A more urgent thread is waiting: switch at the end of the interrupt or critical section.
    pub owepreempt: AtomicU32,
    /// Number of this CPU, from 0 without holes.
    pub cpuid: AtomicU32,
    /// Depth of spin mutexes held; interrupts are off unless zero.
    pub spinlock_count: AtomicU32,
    /// Interrupt state to go back to when `spinlock_count` returns to zero.
    pub spinlock_saved: AtomicUsize,
    /// CPUs that are to look at their run queues or timers: sent for when the last spin mutex is released.
    pub ipi_owed: AtomicU32,
    /// The thread that runs when no other does.
    pub idlethread: AtomicPtr<()>,
    /// The thread that the last switch left, until its state is known to be saved.
    pub prevthread: AtomicPtr<()>,
}

impl Pcpu {
    /// Makes the area of CPU `cpuid`, with no thread yet.
    pub const fn new(cpuid: u32) -> Pcpu {
        Pcpu {
            pc_self: AtomicPtr::new(core::ptr::null_mut()),
            curthread: AtomicPtr::new(core::ptr::null_mut()),
            critnest: AtomicU32::new(0),
            owepreempt: AtomicU32::new(0),
            cpuid: AtomicU32::new(cpuid),
            spinlock_count: AtomicU32::new(0),
            spinlock_saved: AtomicUsize::new(0),
            ipi_owed: AtomicU32::new(0),
            idlethread: AtomicPtr::new(core::ptr::null_mut()),
            prevthread: AtomicPtr::new(core::ptr::null_mut()),
        }
    }
}

/// Whether interrupts were on before they were turned off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "interrupts stay off until this is restored"]
pub struct IntrState(bool);

impl IntrState {
    pub(super) const fn new(on: bool) -> IntrState {
        IntrState(on)
    }

    #[inline(always)]
    pub(super) const fn is_on(self) -> bool {
        self.0
    }

    /// The state as a number, to be kept in a word.
    pub const fn to_raw(self) -> usize {
        self.0 as usize
    }

    /// The state that `to_raw` gave.
    pub const fn from_raw(raw: usize) -> IntrState {
        IntrState(raw != 0)
    }
}

/// A critical section: the thread stays on this CPU and is not preempted until the guard is dropped.
///
/// Interrupts stay enabled.
#[doc(alias = "critical_enter")]
pub struct Critical(core::marker::PhantomData<*const ()>);

impl Critical {
    /// Enters a critical section.
    #[inline]
    pub fn enter() -> Critical {
        critical_enter();
        Critical(core::marker::PhantomData)
    }
}

impl Drop for Critical {
    #[inline]
    fn drop(&mut self) {
        critical_exit();
    }
}

/// A critical section of a block: every section that begins later ends before this one does, which debug builds check.
///
/// Cheaper than a `Critical`, whose sections may end in any order.
#[doc(alias = "critical_enter")]
pub struct CriticalBlock {
    /// The count of sections before this one.
    nest: u32,
    _here: core::marker::PhantomData<*const ()>,
}

impl CriticalBlock {
    /// Enters a critical section.
    #[inline(always)]
    pub(crate) fn enter() -> CriticalBlock {
        CriticalBlock {
            nest: critical_begin(),
            _here: core::marker::PhantomData,
        }
    }
}

impl Drop for CriticalBlock {
    #[inline(always)]
    fn drop(&mut self) {
        critical_end(self.nest);
    }
}

/// Enters a critical section of a block, and returns for its end what the count of sections was before.
#[cfg(not(any(target_os = "none", native)))]
fn critical_begin() -> u32 {
    let nest = critnest();
    critical_enter();
    nest
}

/// Leaves the critical section before which the count was `nest`.
#[cfg(not(any(target_os = "none", native)))]
fn critical_end(nest: u32) {
    let now = critnest();
    debug_assert_eq!(now, nest + 1, "a section that began later has not ended");
    critical_exit();
}

#[cfg(not(any(target_os = "none", native)))]
fn critnest() -> u32 {
    let relaxed = super::atomic::Ordering::Relaxed;
    super::pcpu().critnest.load(relaxed)
}

/// A value on cache lines of its own.
#[derive(Default)]
#[repr(align(64))]
pub struct CachePadded<T>(pub T);

impl<T> Deref for CachePadded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// One `T` for each CPU, on separate cache lines.
#[doc(alias = "DPCPU_DEFINE")]
pub struct PerCpu<T> {
    slots: [CachePadded<T>; MAXCPU],
}

impl<T> PerCpu<T> {
    /// Makes the slots by calling `make` with each CPU's number.
    pub fn new(mut make: impl FnMut(usize) -> T) -> PerCpu<T> {
        PerCpu {
            slots: core::array::from_fn(|cpu| CachePadded(make(cpu))),
        }
    }

    /// Makes it from its slots: `PerCpu::from_slots([const { CachePadded(…) }; MAXCPU])` is constant.
    pub const fn from_slots(slots: [CachePadded<T>; MAXCPU]) -> PerCpu<T> {
        PerCpu { slots }
    }

    /// Returns this CPU's slot; the critical section is the proof that it stays this CPU's.
    #[inline]
    pub fn get_mine<'c>(&'c self, _: &'c Critical) -> &'c T {
        self.get(super::curcpu())
    }

    /// Returns the slot of `cpu`.
    #[inline]
    pub fn get(&self, cpu: usize) -> &T {
        &self.slots[cpu].0
    }

    /// Returns the slots of the CPUs that exist.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots[..super::ncpus()].iter().map(|slot| &slot.0)
    }
}
