//! The per-CPU areas of a machine whose CPUs find theirs through GS: the bare one and the native one.
//!
//! FreeBSD: sys/amd64/include/pcpu.h
//!
//! Each access is one instruction, so that it is right wherever the thread runs when it executes it.

use core::arch::asm;
use core::mem::offset_of;

use super::atomic::{AtomicU64, AtomicUsize, Ordering};
use super::backend::PcpuMd;
use super::{MAXCPU, Pcpu, upcall};
use crate::param::PCPU_STRIDE;

/// One CPU's area: what every machine keeps, then what only this one does.
#[repr(C, align(4096))]
pub(super) struct Area {
    pub(super) pcpu: Pcpu,
    pub(super) md: PcpuMd,
}

// A per-CPU counter is reached by adding the distance of its first slot from the first area to GS.
const _: () = assert!(size_of::<Area>() == PCPU_STRIDE);
const _: () = assert!(offset_of!(Area, pcpu) == 0);

static AREAS: [Area; MAXCPU] = {
    let mut areas = [const {
        Area {
            pcpu: Pcpu::new(0),
            md: PcpuMd::new(),
        }
    }; MAXCPU];
    let mut cpu = 0;
    while cpu < MAXCPU {
        areas[cpu].pcpu = Pcpu::new(cpu as u32);
        cpu += 1;
    }
    areas
};

/// CPUs that run, a dense range from 0.
static NCPUS: AtomicUsize = AtomicUsize::new(1);

/// Prepares the area of `cpu` and returns what its GS base must be.
pub(super) fn area_init(cpu: usize) -> usize {
    let pcpu = &AREAS[cpu].pcpu;
    let address = core::ptr::from_ref(pcpu);
    pcpu.pc_self.store(address.cast_mut(), Ordering::Relaxed);
    address as usize
}

/// The whole area of `cpu`.
#[inline]
pub(super) fn area_of(cpu: usize) -> &'static Area {
    &AREAS[cpu]
}

/// Says that CPUs 0 to `n - 1` run.
pub fn set_ncpus(n: usize) {
    NCPUS.store(n, Ordering::Release);
}

/// How many CPUs run.
#[inline]
pub fn ncpus() -> usize {
    NCPUS.load(Ordering::Relaxed)
}

/// Reads 32 bits of this CPU's area.
macro_rules! gs_read32 {
    ($($field:tt)+) => {{
        let value: u32;
        // SAFETY: GS points to this CPU's area from its first Rust instruction on.
        unsafe {
            core::arch::asm!("mov {:e}, gs:[{}]", out(reg) value,
                const core::mem::offset_of!($crate::machine::pcpu_gs::Area, $($field)+),
                options(nostack, preserves_flags, readonly));
        }
        value
    }};
}
pub(super) use gs_read32;

/// Sets 32 bits of this CPU's area to a constant.
#[cfg(native)]
macro_rules! gs_write32 {
    ($value:literal, $($field:tt)+) => {
        // SAFETY: as `gs_read32`; the caller writes a field that is this CPU's own.
        unsafe {
            core::arch::asm!("mov dword ptr gs:[{}], {}",
                const core::mem::offset_of!($crate::machine::pcpu_gs::Area, $($field)+),
                const $value,
                options(nostack, preserves_flags));
        }
    };
}
#[cfg(native)]
pub(super) use gs_write32;

/// This CPU's area; another's as soon as the thread migrates.
#[inline]
pub fn pcpu() -> &'static Pcpu {
    let area: *const Pcpu;
    // SAFETY: `gs:[0]` is `pc_self`.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) area, const offset_of!(Area, pcpu.pc_self),
            options(nostack, preserves_flags, readonly));
        &*area
    }
}

/// The area of `cpu`.
#[inline]
pub fn pcpu_find(cpu: usize) -> &'static Pcpu {
    &AREAS[cpu].pcpu
}

/// The CPU that executes this; stale as soon as the thread may migrate.
#[inline]
pub fn curcpu() -> usize {
    gs_read32!(pcpu.cpuid) as usize
}

/// Address of the running thread, null before there is one.
#[inline]
pub fn curthread_raw() -> *mut () {
    let value: *mut ();
    // SAFETY: as `pcpu`; one load, so it is right wherever the thread runs.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) value, const offset_of!(Area, pcpu.curthread),
            options(nostack, preserves_flags, readonly));
    }
    value
}

/// Enters a critical section: no preemption, no migration until its end.
#[inline]
pub fn critical_enter() {
    // SAFETY: one instruction on this CPU's own field; whoever interrupts it leaves it as found.
    unsafe {
        asm!("inc dword ptr gs:[{}]", const offset_of!(Area, pcpu.critnest), options(nostack));
    }
}

/// Leaves a critical section, and pays the preemption that came due in it.
#[inline]
pub fn critical_exit() {
    // SAFETY: as `critical_enter`.
    unsafe {
        asm!("dec dword ptr gs:[{}]", const offset_of!(Area, pcpu.critnest), options(nostack));
    }
    // A migration between the two costs a needless call or leaves the debt to an interrupt on that CPU,
    // which is what it waits for anyway.
    if gs_read32!(pcpu.owepreempt) != 0 {
        upcall::critical_exit_owed();
    }
}

/// Enters a critical section of a block, and returns for its end what the count of sections was before.
///
/// Three instructions: outside of any section, where the thread may migrate between them, the count is zero on each CPU, and
/// whoever interrupts them leaves it as found.
#[inline(always)]
pub(super) fn critical_begin() -> u32 {
    let nest = gs_read32!(pcpu.critnest);
    set_critnest(nest + 1);
    nest
}

/// Leaves the critical section before which the count was `nest`, and pays the preemption that came due in it.
///
/// It need not load what `critical_begin` stored: one store that is awaited for each section, instead of two.
#[inline(always)]
pub(super) fn critical_end(nest: u32) {
    debug_assert_eq!(
        gs_read32!(pcpu.critnest),
        nest + 1,
        "a section that began later has not ended"
    );
    set_critnest(nest);
    if gs_read32!(pcpu.owepreempt) != 0 {
        upcall::critical_exit_owed();
    }
}

#[inline(always)]
fn set_critnest(nest: u32) {
    // SAFETY: as `critical_enter`.
    unsafe {
        asm!("mov gs:[{}], {:e}", const offset_of!(Area, pcpu.critnest), in(reg) nest, options(nostack, preserves_flags));
    }
}

/// Adds `n` to this CPU's slot of a counter, whose first slot is `base`.
///
/// One instruction, so that neither an interrupt nor a migration can come between.
///
/// # Safety
/// `MAXCPU` slots stand at a distance of `PCPU_STRIDE` from `base` on.
#[inline]
pub unsafe fn counter_u64_add(base: *const AtomicU64, n: u64) {
    let offset = (base as usize).wrapping_sub(AREAS.as_ptr() as usize);
    // SAFETY: GS is the address of area `curcpu()`, so this is `base + curcpu() * PCPU_STRIDE`, which the caller says is
    // this CPU's slot.
    unsafe {
        asm!("add qword ptr gs:[{}], {}", in(reg) offset, in(reg) n, options(nostack));
    }
}
