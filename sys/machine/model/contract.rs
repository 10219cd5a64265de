//! The functions that every machine supplies.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::machine::{self, execution};
use crate::errno::Errno;
use crate::machine::atomic::plain;
use crate::machine::{IntrState, Ipi, IrqSource, Pcpu, PhysRange, Vector};
use crate::param::PCPU_STRIDE;
use crate::time::Sbintime;

pub use machine::Pcb;

/// Returns the number of the CPU that this code runs on.
pub fn curcpu() -> usize {
    machine::curcpu()
}

/// Returns how many CPUs run.
pub fn ncpus() -> usize {
    execution().ncpus()
}

/// Returns this CPU's area.
pub fn pcpu() -> &'static Pcpu {
    machine::pcpu()
}

/// Returns the area of `cpu`.
pub fn pcpu_find(cpu: usize) -> &'static Pcpu {
    execution().pcpu(cpu)
}

/// Returns the running thread.
pub fn curthread_raw() -> *mut () {
    pcpu().curthread.load(Ordering::Relaxed)
}

/// Begins a critical section. A thread of a model is alone on its CPU but for visitors, who wait, and for interrupts, and
/// those come all the same.
pub fn critical_enter() {
    if pcpu().critnest.fetch_add(1, Ordering::Relaxed) == 0 {
        machine::occupy();
    }
}

/// Ends the innermost critical section.
pub fn critical_exit() {
    let nest = pcpu().critnest.fetch_sub(1, Ordering::Relaxed);
    assert!(nest != 0, "critical_exit without critical_enter");
    if nest == 1 {
        machine::vacate();
    }
}

/// Disables interrupts, and tells whether they were enabled.
pub fn intr_disable() -> IntrState {
    IntrState::new(machine::intr_enabled().replace(false))
}

/// Returns to what `intr_disable` found; those that have come are handled at the next step.
pub fn intr_restore(state: IntrState) {
    machine::intr_enabled().set(state.is_on());
}

/// Tells whether interrupts are enabled.
pub fn intr_enabled() -> bool {
    machine::intr_enabled().get()
}

/// One turn of a busy wait.
pub fn cpu_spinwait() {
    machine::spin_wait();
}

/// Returns the time since the execution began. It stands still but for `timer_interrupt`.
pub fn sbinuptime() -> Sbintime {
    execution().now()
}

/// Returns a number, the same ones in every execution.
pub fn random_u64() -> u64 {
    execution().random()
}

/// Adds `n` to this CPU's slot of the counter whose first slot is `base`.
///
/// # Safety
/// `base` is the first of `ncpus()` slots, `PCPU_STRIDE` bytes apart.
pub unsafe fn counter_u64_add(base: *const plain::AtomicU64, n: u64) {
    // SAFETY: promised by the caller.
    let slot = unsafe { &*base.byte_add(curcpu() * PCPU_STRIDE) };
    slot.fetch_add(n, Ordering::Relaxed);
}

/// Interrupts `cpu`.
#[track_caller]
pub fn ipi_send(cpu: usize, ipi: Ipi) {
    machine::send(cpu, ipi);
}

/// Sets when this CPU's event timer expires next.
pub fn set_event_timer(deadline: Sbintime) {
    machine::set_deadline(deadline);
}

/// A model's CPU is idle while its thread waits.
pub fn cpu_idle() {
    unreachable!("a model has no idle threads")
}

/// A stack; loom has its own.
pub struct KStack(());

impl KStack {
    /// Returns none: threads are started by `model::spawn`.
    pub fn alloc(_size: usize) -> Option<KStack> {
        None
    }
}

impl Pcb {
    /// Not called: no thread has a stack.
    ///
    /// # Safety
    /// None.
    pub unsafe fn prepare(&self, _: &KStack, _: extern "C" fn(usize) -> !, _: usize) {
        unreachable!("the threads of a model are started by `spawn`")
    }
}

/// Not called: threads block in `sched_model`.
///
/// # Safety
/// None.
pub unsafe fn cpu_switch(_old: &Pcb, _new: &Pcb) {
    unreachable!("the threads of a model are switched by loom")
}

/// Writes to standard output.
pub fn console_write(bytes: &[u8]) {
    std::print!("{}", alloc::string::String::from_utf8_lossy(bytes));
}

/// Writes all of `bytes`.
pub fn console_write_some(bytes: &[u8]) -> usize {
    console_write(bytes);
    bytes.len()
}

/// Ends the model as a failure.
pub fn poweroff(code: u8) -> ! {
    panic!("the machine was powered off with code {code}")
}

/// Ends the model as a failure.
pub fn reboot() -> ! {
    panic!("the machine was rebooted")
}

/// Returns the memory of the execution, a few pages.
pub fn phys_avail() -> &'static [PhysRange] {
    machine::phys_avail()
}

/// Returns where physical memory is mapped: physical and virtual addresses are the same here.
pub fn phys_to_virt(pa: u64) -> *mut u8 {
    pa as *mut u8
}

/// Returns the physical address behind a pointer.
pub fn virt_to_phys(va: *const u8) -> u64 {
    va as u64
}

/// A model has no devices.
pub fn pmap_mapdev(_pa: u64, _len: usize) -> NonNull<u8> {
    unreachable!("a model has no devices")
}

/// A model has no devices.
///
/// # Errors
/// Always `ENXIO`.
pub fn intr_alloc(
    _source: IrqSource,
    _cpu: usize,
    _handler: fn(usize),
    _arg: usize,
) -> Result<Vector, Errno> {
    Err(Errno::ENXIO)
}

/// A model has no devices.
pub fn intr_free(_vector: Vector) {}

/// A model has no devices.
///
/// # Errors
/// Always `ENXIO`.
pub fn intr_assign_cpu(_vector: Vector, _cpu: usize) -> Result<Vector, Errno> {
    Err(Errno::ENXIO)
}
