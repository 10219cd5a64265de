//! The functions that every machine supplies.

use core::ptr::NonNull;

use super::machine::machine;
use crate::errno::Errno;
use crate::machine::atomic::{AtomicU64, Ordering};
use crate::machine::{IntrState, Ipi, IrqSource, Pcpu, PhysRange, Vector, msi_address, upcall};
use crate::param::PCPU_STRIDE;
use crate::time::Sbintime;

/// Returns the number of the CPU that this code runs on.
#[inline]
pub fn curcpu() -> usize {
    machine().current()
}

/// Returns how many CPUs run.
#[inline]
pub fn ncpus() -> usize {
    machine().ncpus()
}

/// Returns this CPU's area.
#[inline]
pub fn pcpu() -> &'static Pcpu {
    &machine().vcpu().pcpu
}

/// Returns the area of `cpu`.
pub fn pcpu_find(cpu: usize) -> &'static Pcpu {
    machine().pcpu_find(cpu)
}

/// Returns the running thread.
#[inline]
pub fn curthread_raw() -> *mut () {
    pcpu().curthread.load(Ordering::Relaxed)
}

/// Keeps the thread on this CPU, not preempted, until the matching `critical_exit`.
#[inline]
pub fn critical_enter() {
    let critnest = &pcpu().critnest;
    critnest.store(critnest.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Ends the innermost critical section, and switches if that was owed.
#[inline]
pub fn critical_exit() {
    let pcpu = pcpu();
    let nest = pcpu.critnest.load(Ordering::Relaxed);
    debug_assert!(nest != 0, "critical_exit without critical_enter");
    pcpu.critnest.store(nest - 1, Ordering::Relaxed);
    if pcpu.owepreempt.load(Ordering::Relaxed) != 0 {
        upcall::critical_exit_owed();
    }
}

/// Disables interrupts, and tells whether they were enabled.
#[inline]
pub fn intr_disable() -> IntrState {
    IntrState::new(machine().vcpu().intr_enabled.replace(false))
}

/// Returns to what `intr_disable` found; pending interrupts are handled now.
#[inline]
pub fn intr_restore(state: IntrState) {
    if state.is_on() {
        let machine = machine();
        machine.vcpu().intr_enabled.set(true);
        machine.deliver_interrupts();
        machine.interleave();
    }
}

/// Tells whether interrupts are enabled.
#[inline]
pub fn intr_enabled() -> bool {
    machine().vcpu().intr_enabled.get()
}

/// One turn of a busy wait: lets the other CPUs run, or a microsecond pass.
pub fn cpu_spinwait() {
    machine().spin_wait();
}

/// Returns the time since boot.
#[inline]
pub fn sbinuptime() -> Sbintime {
    machine().now()
}

/// Returns a number that depends on the seed alone.
pub fn random_u64() -> u64 {
    machine().random()
}

/// Adds `n` to this CPU's slot of the counter whose first slot is `base`.
///
/// # Safety
/// `base` is the first of `ncpus()` slots, `PCPU_STRIDE` bytes apart.
#[inline]
pub unsafe fn counter_u64_add(base: *const AtomicU64, n: u64) {
    // SAFETY: promised by the caller.
    let slot = unsafe { &*base.byte_add(curcpu() * PCPU_STRIDE) };
    slot.store(
        slot.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// Interrupts `cpu`.
pub fn ipi_send(cpu: usize, ipi: Ipi) {
    machine().send(cpu, ipi);
}

/// Sets when this CPU's event timer fires next.
pub fn set_event_timer(deadline: Sbintime) {
    machine().set_deadline(deadline);
}

/// Enables interrupts and halts until one was handled; time passes when all CPUs do this.
pub fn cpu_idle() {
    machine().idle();
}

/// Writes to standard output, unless the machine is quiet.
pub fn console_write(bytes: &[u8]) {
    machine().console_write(bytes);
}

/// Writes output of a program; returns how many bytes there was room for, here always all.
pub fn console_write_some(bytes: &[u8]) -> usize {
    console_write(bytes);
    bytes.len()
}

/// Ends the machine as a panic of `run`'s caller.
pub fn poweroff(code: u8) -> ! {
    machine().power_off(&std::format!(
        "the machine was powered off with code {code}"
    ))
}

/// Ends the machine as a panic of `run`'s caller.
pub fn reboot() -> ! {
    machine().power_off("the machine was rebooted")
}

/// Returns the ranges of memory that the kernel may use.
pub fn phys_avail() -> &'static [PhysRange] {
    machine().phys()
}

/// Returns where physical memory is mapped.
pub fn phys_to_virt(pa: u64) -> *mut u8 {
    machine().phys_to_virt(pa)
}

/// Returns the physical address behind a pointer.
pub fn virt_to_phys(va: *const u8) -> u64 {
    va.addr() as u64
}

/// Maps device memory: `pa` is the address of a model's registers in this process.
///
/// # Panics
/// If `pa` is zero.
pub fn pmap_mapdev(pa: u64, _len: usize) -> NonNull<u8> {
    NonNull::new(core::ptr::with_exposed_provenance_mut(pa as usize))
        .expect("a device model has memory")
}

/// Connects `handler` to a new interrupt, which `hosted::interrupt(vector.irq)` raises, or the message that the vector describes.
///
/// # Errors
/// `EINVAL` if there is no such CPU.
pub fn intr_alloc(
    source: IrqSource,
    cpu: usize,
    handler: fn(usize),
    arg: usize,
) -> Result<Vector, Errno> {
    if cpu >= ncpus() {
        return Err(Errno::EINVAL);
    }
    let irq = machine().add_handler(source, handler, arg, cpu);
    Ok(Vector {
        vector: 0x30,
        cpu,
        irq: irq as u32,
        msi_addr: msi_address(cpu as u32),
        msi_data: irq as u32,
    })
}

/// Delivers the line behind `vector` to `cpu` from now on, or says where a message must go for that; what is pending elsewhere
/// already is handled there.
///
/// # Errors
/// `EINVAL` if there is no such CPU.
pub fn intr_assign_cpu(vector: Vector, cpu: usize) -> Result<Vector, Errno> {
    if cpu >= ncpus() {
        return Err(Errno::EINVAL);
    }
    machine().move_handler(vector.irq as usize, cpu);
    Ok(Vector {
        cpu,
        msi_addr: msi_address(cpu as u32),
        ..vector
    })
}

/// Disconnects the handler of `vector`.
pub fn intr_free(vector: Vector) {
    machine().remove_handler(vector.irq as usize);
}
