//! What only the native machine keeps in the per-CPU area, and interrupts off and on.

use core::ptr;

use super::intr_machdep::deliver;
use crate::machine::IntrState;
use crate::machine::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64};
use crate::machine::pcpu_gs::{area_init, gs_read32, gs_write32};

/// This machine's part of a CPU's area.
pub struct PcpuMd {
    /// Interrupts are off. Only the CPU itself writes it.
    pub(super) intr_off: AtomicU32,
    /// The number of the host thread, 0 until it runs.
    pub(super) tid: AtomicI32,
    /// When the event timer fires next.
    pub(super) armed: AtomicI64,
    /// The host's name of the event timer.
    pub(super) timer: AtomicPtr<core::ffi::c_void>,
    /// What others write, on a line of its own.
    pub(super) mailbox: Mailbox,
}

/// Interrupts on their way to a CPU.
#[repr(align(64))]
pub(super) struct Mailbox {
    /// Kinds of interrupts that wait to be handled.
    pub(super) pending: AtomicU32,
    /// The CPU waits by futex for `pending` to change.
    pub(super) halted: AtomicU32,
    /// Device vectors that wait to be handled.
    pub(super) vectors: AtomicU64,
}

impl PcpuMd {
    /// That of a CPU that does not run yet.
    pub(in crate::machine) const fn new() -> PcpuMd {
        PcpuMd {
            intr_off: AtomicU32::new(1),
            tid: AtomicI32::new(0),
            armed: AtomicI64::new(i64::MAX),
            timer: AtomicPtr::new(ptr::null_mut()),
            mailbox: Mailbox {
                pending: AtomicU32::new(0),
                halted: AtomicU32::new(0),
                vectors: AtomicU64::new(0),
            },
        }
    }
}

const ARCH_SET_GS: libc::c_int = 0x1001;

/// Makes the host thread that executes this CPU `cpu`, with interrupts off.
pub(super) fn pcpu_init(cpu: usize) {
    // SAFETY: the area is static; on Linux nothing in a process uses GS but we.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, area_init(cpu)) };
    assert_eq!(result, 0, "arch_prctl(ARCH_SET_GS)");
}

/// Whether interrupts are on.
#[inline]
pub fn intr_enabled() -> bool {
    gs_read32!(md.intr_off) == 0
}

/// Turns interrupts off on this CPU.
#[inline]
pub fn intr_disable() -> IntrState {
    // Who migrates between the two had interrupts on, here as there.
    let on = intr_enabled();
    gs_write32!(1, md.intr_off);
    IntrState::new(on)
}

/// Puts interrupts back as they were, and handles those that came meanwhile.
#[inline]
pub fn intr_restore(state: IntrState) {
    if state.is_on() {
        gs_write32!(0, md.intr_off);
        // One that comes from here on is handled by the signal's handler, which sees interrupts on.
        if gs_read32!(md.mailbox.pending) != 0 {
            deliver();
        }
    }
}
