//! What only the bare machine keeps in the per-CPU area, and interrupts off and on.
//!
//! FreeBSD: sys/amd64/include/pcpu.h

use super::cpufunc::wrmsr;
use crate::machine::IntrState;
use crate::machine::pcpu_gs::{Area, area_init, area_of, gs_read32};
use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

pub use crate::machine::pcpu_gs::{
    counter_u64_add, critical_enter, critical_exit, curcpu, curthread_raw, ncpus, pcpu, pcpu_find,
    set_ncpus,
};

const MSR_GSBASE: u32 = 0xc000_0101;

/// This machine's part of a CPU's area.
#[doc(alias = "PCPU_MD_FIELDS")]
pub struct PcpuMd {
    apic_id: AtomicU32,
    /// Depth of interrupt handlers running here.
    intr_nesting: AtomicU32,
}

impl PcpuMd {
    /// That of a CPU that is not known yet.
    pub(in crate::machine) const fn new() -> PcpuMd {
        PcpuMd {
            apic_id: AtomicU32::new(u32::MAX),
            intr_nesting: AtomicU32::new(0),
        }
    }
}

/// Makes area `cpu` that of the CPU that executes this, before anything else of it in Rust.
pub fn pcpu_init(cpu: usize) {
    // SAFETY: the area is static; nothing else uses GS.
    unsafe { wrmsr(MSR_GSBASE, area_init(cpu) as u64) };
}

/// Records the local APIC's number of `cpu`.
pub fn set_apic_id(cpu: usize, apic_id: u32) {
    area_of(cpu).md.apic_id.store(apic_id, Ordering::Relaxed);
}

/// The local APIC's number of `cpu`.
pub fn apic_id_of(cpu: usize) -> u32 {
    area_of(cpu).md.apic_id.load(Ordering::Relaxed)
}

/// Whether an interrupt handler is running on this CPU.
#[inline]
pub fn in_interrupt() -> bool {
    gs_read32!(md.intr_nesting) != 0
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
            const offset_of!(Area, md.intr_nesting),
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
            nesting = const offset_of!(Area, md.intr_nesting),
            nest = const offset_of!(Area, pcpu.critnest),
            owe = const offset_of!(Area, pcpu.owepreempt),
            owed = out(reg) owed,
            options(nostack)
        );
    }
    owed != 0
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
    IntrState::new(on)
}

/// Puts interrupts back as they were.
#[inline]
pub fn intr_restore(state: IntrState) {
    if state.is_on() {
        super::cpufunc::enable_intr();
    }
}
