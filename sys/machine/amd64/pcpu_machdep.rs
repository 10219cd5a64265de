//! The per-CPU area, found through GS.
//!
//! FreeBSD: sys/amd64/include/pcpu.h

use super::cpufunc::wrmsr;
use crate::machine::{MAXCPU, Pcpu, upcall};
use crate::param::PCPU_STRIDE;
use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

const MSR_GSBASE: u32 = 0xc000_0101;

/// One CPU's area: what every machine keeps, then what only this one does.
#[repr(C, align(4096))]
struct Area {
    pcpu: Pcpu,
    apic_id: AtomicU32,
    /// Depth of interrupt handlers running here.
    intr_nesting: AtomicU32,
}

// A per-CPU counter is reached by adding the distance of its first slot from the first area to GS.
const _: () = assert!(size_of::<Area>() == PCPU_STRIDE);
const _: () = assert!(offset_of!(Area, pcpu) == 0);

static AREAS: [Area; MAXCPU] = {
    let mut areas = [const {
        Area {
            pcpu: Pcpu::new(0),
            apic_id: AtomicU32::new(u32::MAX),
            intr_nesting: AtomicU32::new(0),
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

/// Makes area `cpu` that of the CPU that executes this, before anything else of it in Rust.
pub fn pcpu_init(cpu: usize) {
    let pcpu = &AREAS[cpu].pcpu;
    pcpu.pc_self
        .store(core::ptr::from_ref(pcpu).cast_mut(), Ordering::Relaxed);
    // SAFETY: the area is static; nothing else uses GS.
    unsafe { wrmsr(MSR_GSBASE, core::ptr::from_ref(pcpu) as u64) };
}

/// Records the local APIC's number of `cpu`.
pub fn set_apic_id(cpu: usize, apic_id: u32) {
    AREAS[cpu].apic_id.store(apic_id, Ordering::Relaxed);
}

/// The local APIC's number of `cpu`.
pub fn apic_id_of(cpu: usize) -> u32 {
    AREAS[cpu].apic_id.load(Ordering::Relaxed)
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

macro_rules! gs_read32 {
    ($($field:tt)+) => {{
        let value: u32;
        // SAFETY: GS points to this CPU's area from its first Rust instruction on.
        unsafe {
            asm!("mov {:e}, gs:[{}]", out(reg) value, const offset_of!(Area, $($field)+),
                options(nostack, preserves_flags, readonly));
        }
        value
    }};
}

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

/// Whether an interrupt handler is running on this CPU.
#[inline]
pub fn in_interrupt() -> bool {
    gs_read32!(intr_nesting) != 0
}

/// Begins an interrupt handler: a critical section, and counted.
#[inline]
pub(super) fn intr_enter() {
    // SAFETY: each is one instruction on this CPU's own field; interrupts are off.
    unsafe {
        asm!(
            "inc dword ptr gs:[{}]",
            "inc dword ptr gs:[{}]",
            const offset_of!(Area, pcpu.critnest),
            const offset_of!(Area, intr_nesting),
            options(nostack)
        );
    }
}

/// Ends an interrupt handler; true if a preemption is owed and may be paid now.
#[inline]
pub(super) fn intr_exit() -> bool {
    let owed: u32;
    // SAFETY: as `intr_enter`.
    unsafe {
        asm!(
            "dec dword ptr gs:[{nesting}]",
            "mov {owed:e}, gs:[{owe}]",
            "dec dword ptr gs:[{nest}]",
            "jz 2f",
            "xor {owed:e}, {owed:e}",
            "2:",
            nesting = const offset_of!(Area, intr_nesting),
            nest = const offset_of!(Area, pcpu.critnest),
            owe = const offset_of!(Area, pcpu.owepreempt),
            owed = out(reg) owed,
            options(nostack)
        );
    }
    owed != 0
}

/// Whether interrupts were on before they were turned off.
#[derive(Clone, Copy, Debug)]
#[must_use = "interrupts stay off until this is restored"]
pub struct IntrState(bool);

impl IntrState {
    /// The state as a number, to be kept in a word.
    pub const fn to_raw(self) -> usize {
        self.0 as usize
    }

    /// The state that `to_raw` gave.
    pub const fn from_raw(raw: usize) -> Self {
        Self(raw != 0)
    }
}

/// Whether interrupts are on.
#[inline]
pub fn intr_enabled() -> bool {
    super::cpufunc::interrupts_enabled()
}

/// Turns interrupts off on this CPU.
#[inline]
pub fn intr_disable() -> IntrState {
    let on = intr_enabled();
    super::cpufunc::disable_intr();
    IntrState(on)
}

/// Puts interrupts back as they were.
#[inline]
pub fn intr_restore(state: IntrState) {
    if state.0 {
        super::cpufunc::enable_intr();
    }
}
