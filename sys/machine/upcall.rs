//! What a machine calls: the only place below the kernel's services that names them.
//!
//! Differs from FreeBSD: there the machine-dependent code calls the scheduler by name from everywhere.

pub use crate::kern::kern_thread::{ThreadRef, curthread};
pub use crate::kern::subr_smp::{smp_rendezvous, stop_other_cpus};

use super::Ipi;

/// The event timer of this CPU has expired. Called with interrupts disabled, from the interrupt handler.
pub fn timer_interrupt() {
    crate::kern::kern_intr::count_timer();
    crate::kern::kern_timeout::callout_process(super::sbinuptime());
}

/// Another CPU has sent `ipi`. Called with interrupts disabled, from the interrupt handler.
pub fn ipi_interrupt(ipi: Ipi) {
    crate::kern::subr_smp::ipi_interrupt(ipi);
}

/// An interrupt handler is about to return, or interrupts are enabled again, and a switch is owed.
///
/// Called with `critnest` at zero and `owepreempt` set; interrupts may be disabled, and come back as they were.
pub fn preempt() {
    crate::kern::sched::preempt_owed();
}

/// `critical_exit` found `owepreempt` set. Switches unless the section is nested or interrupts are disabled.
#[cold]
#[inline(never)]
pub fn critical_exit_owed() {
    let pcpu = super::pcpu();
    if pcpu.critnest.load(super::atomic::Ordering::Relaxed) == 0 && super::intr_enabled() {
        crate::kern::sched::preempt_owed();
    }
}

/// Starts the kernel's services on the first thread of a machine on the host; `tunables` is the kernel's command line.
#[cfg(not(any(target_os = "none", loom)))]
pub(super) fn boot(tunables: &str) {
    crate::kern::kern_thread::init0();
    let kenv = crate::kern::kern_sysctl::kenv();
    for word in tunables.split_whitespace() {
        if let Some((name, value)) = word.split_once('=') {
            kenv.set(name, value);
        }
    }
    super::backend::release_cpus();
    crate::kern::start_bsp();
}

/// Runs an application processor of a machine on the host.
#[cfg(not(any(target_os = "none", loom)))]
pub(super) fn start_application_cpu() -> ! {
    crate::kern::sched::idle_ap()
}

/// Unwinds the threads of a hosted machine that ends.
#[cfg(not(any(target_os = "none", native, loom)))]
pub(super) fn end() {
    crate::kern::kern_thread::unwind_all();
}

/// Says who sleeps where, for the report of a deadlock.
#[cfg(not(any(target_os = "none", native, loom)))]
pub(super) fn describe_sleepers() -> alloc::string::String {
    crate::kern::kern_thread::describe_sleepers()
}

/// Gives this CPU of a model its idle thread and the thread that it runs.
#[cfg(loom)]
pub(super) fn adopt_threads() {
    let idle = crate::kern::kern_thread::adopt_idle();
    let address = (&raw const *idle).cast_mut().cast();
    let idlethread = &super::pcpu().idlethread;
    idlethread.store(address, core::sync::atomic::Ordering::Relaxed);
    crate::kern::kern_thread::init0();
}
