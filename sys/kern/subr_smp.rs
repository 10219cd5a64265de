//! Rendezvous of CPUs.
//!
//! FreeBSD: sys/kern/subr_smp.c, sys/x86/x86/mp_x86.c

use super::kern_intr;
use super::kern_mutex::SpinMutex;
use super::kern_timeout;
use super::lock_order::SmpIpi;
use super::sched;
use crate::machine::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use crate::machine::{self, CpuSet, Ipi};
use crate::machine_local;

/// What the CPUs of a rendezvous shall do.
struct Rendezvous {
    function: AtomicPtr<()>,
    arg: AtomicUsize,
    /// CPUs that have not done it yet.
    left: AtomicU32,
}

machine_local! {
    static RENDEZVOUS: Rendezvous = Rendezvous {
        function: AtomicPtr::new(core::ptr::null_mut()),
        arg: AtomicUsize::new(0),
        left: AtomicU32::new(0),
    };
    static SMP_IPI_MTX: SpinMutex<(), SmpIpi> = SpinMutex::new(());
    static STOPPING: AtomicBool = AtomicBool::new(false);
    static STOPPED: AtomicU32 = AtomicU32::new(0);
}

/// Runs `f(arg)` on every CPU of `cpus`, on the others in an interrupt, and returns when all have.
///
/// The caller holds no spin mutex, as another CPU might wait for it with interrupts disabled.
pub fn smp_rendezvous(cpus: CpuSet, f: fn(usize), arg: usize) {
    let rendezvous = RENDEZVOUS.get();
    let critical = machine::Critical::enter();
    // Waiting here must let this CPU take part in the rendezvous of another.
    let guard = loop {
        match SMP_IPI_MTX.get().try_lock() {
            Some(guard) => break guard,
            None => machine::cpu_spinwait(),
        }
    };
    let others = cpus.without(machine::curcpu());
    rendezvous.function.store(f as *mut (), Ordering::Relaxed);
    rendezvous.arg.store(arg, Ordering::Relaxed);
    rendezvous.left.store(others.0, Ordering::Release);
    for cpu in others.iter() {
        machine::ipi_send(cpu, Ipi::Rendezvous);
    }
    if cpus.contains(machine::curcpu()) {
        f(arg);
    }
    while rendezvous.left.load(Ordering::Acquire) != 0 {
        machine::cpu_spinwait();
    }
    drop(guard);
    drop(critical);
}

/// Another CPU has interrupted this one. Interrupts are disabled.
pub(crate) fn ipi_interrupt(ipi: Ipi) {
    kern_intr::count_ipi();
    match ipi {
        Ipi::Preempt => {
            kern_timeout::timer_check();
            sched::ipi_preempt();
        }
        Ipi::Rendezvous => {
            let rendezvous = RENDEZVOUS.get();
            let me = CpuSet::single(machine::curcpu());
            if rendezvous.left.load(Ordering::Acquire) & me.0 != 0 {
                let function = rendezvous.function.load(Ordering::Relaxed);
                // SAFETY: `smp_rendezvous` stored a function of this type before it named this CPU.
                let function = unsafe { core::mem::transmute::<*mut (), fn(usize)>(function) };
                function(rendezvous.arg.load(Ordering::Relaxed));
                rendezvous.left.fetch_and(!me.0, Ordering::Release);
            }
        }
        Ipi::Stop => {
            STOPPED
                .get()
                .fetch_or(1 << machine::curcpu(), Ordering::Release);
            loop {
                machine::cpu_spinwait();
            }
        }
    }
}

/// Halts every other CPU, because the kernel panics or is turned off; gives up on those that do not answer.
#[doc(alias = "stop_cpus")]
pub fn stop_other_cpus() {
    if STOPPING.get().swap(true, Ordering::Relaxed) {
        return;
    }
    let others = CpuSet::others();
    for cpu in others.iter() {
        machine::ipi_send(cpu, Ipi::Stop);
    }
    let give_up = machine::sbinuptime() + crate::time::Sbintime::from_ms(500);
    while STOPPED.get().load(Ordering::Acquire) & others.0 != others.0
        && machine::sbinuptime() < give_up
    {
        machine::cpu_spinwait();
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::machine::hosted::Machine;
    use crate::machine::words::{from_word, to_word};

    fn mark(seen: usize) {
        // SAFETY: the tests pass the address of an atomic that outlives the rendezvous.
        let seen: &AtomicU32 = unsafe { &*from_word(seen) };
        seen.fetch_add(1 << (8 * machine::curcpu()), Ordering::Relaxed);
    }

    #[test]
    fn a_rendezvous_runs_once_on_every_cpu_that_is_asked() {
        Machine::builder().cpus(4).run(|| {
            let seen = AtomicU32::new(0);
            smp_rendezvous(CpuSet::all(), mark, to_word(&raw const seen));
            assert_eq!(seen.load(Ordering::Relaxed), 0x0101_0101);
            smp_rendezvous(CpuSet::single(2), mark, to_word(&raw const seen));
            assert_eq!(seen.load(Ordering::Relaxed), 0x0102_0101);
        });
    }

    #[test]
    fn rendezvous_of_several_cpus_at_once_do_not_block_each_other() {
        for seed in 0..20 {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let seen = Arc::new(AtomicU32::new(0));
                let threads: Vec<_> = (0..4)
                    .map(|cpu| {
                        let seen = Arc::clone(&seen);
                        kthread_add("caller", Pri::PUSER, Some(cpu), move || {
                            for _ in 0..10 {
                                smp_rendezvous(CpuSet::all(), mark, to_word(Arc::as_ptr(&seen)));
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                assert_eq!(seen.load(Ordering::Relaxed), 0x2828_2828);
            });
        }
    }
}
