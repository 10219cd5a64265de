//! The contract with the machine; exactly one backend is compiled.
//!
//! `amd64` is the bare machine, `hosted` the host with virtual CPUs and virtual time, `native` (`--cfg native`) the host
//! with a thread of its own for each CPU, `model` (`--cfg loom`) a model checker. The scheduler, the run queues, sleep
//! queues, turnstiles, the callout wheel and epochs are the kernel's own and the same on all, but that a model has another
//! scheduler; a backend supplies what stands in the list of
//! re-exports below, with the signatures that `hosted` shows:
//!
//! - `curcpu() -> usize`, `ncpus() -> usize`, `pcpu() -> &'static Pcpu` (only meaningful while the thread cannot
//!   migrate), `pcpu_find(cpu) -> &'static Pcpu`, `curthread_raw() -> *mut ()` (one load: safe against migration).
//! - `critical_enter()`, `critical_exit()`: increment and decrement `critnest` of this CPU in one instruction;
//!   `critical_exit` calls `upcall::critical_exit_owed()` if `owepreempt` is set afterwards.
//! - `intr_disable() -> IntrState`, `intr_restore(IntrState)`, `intr_enabled() -> bool`; `IntrState` is `Copy` and turns to
//!   and from `usize` (`to_raw`, `from_raw`).
//! - `cpu_spinwait()`, `sbinuptime()`, `random_u64()`, `counter_u64_add(base, n)`: adds to this CPU's slot, which is
//!   `base + curcpu() * PCPU_STRIDE`, in a way that neither interrupts nor migration can split.
//! - `ipi_send(cpu, Ipi)`: the target's handler calls `upcall::ipi_interrupt(ipi)`.
//! - `set_event_timer(deadline)`: this CPU's one-shot (`Sbintime::MAX`: none); a deadline in the past fires at once.
//!   Its handler calls `upcall::timer_interrupt()`.
//! - `cpu_idle()`: entered with interrupts disabled and nothing to run; enables them and halts in one step, returns with
//!   interrupts enabled after one was handled.
//! - `Pcb`: `const fn new()`, `unsafe fn prepare(&self, stack: &KStack, entry: extern "C" fn(usize) -> !, arg: usize)`;
//!   `unsafe fn cpu_switch(old: &Pcb, new: &Pcb)`: saves the registers of the caller in `old` and continues `new`;
//!   always called with interrupts disabled, returns so. `KStack::alloc(size) -> Option<KStack>`, with a guard page.
//! - `console_write(&[u8])`: a kernel message, never waits; `console_write_some(&[u8]) -> usize`: what there is room for;
//!   `poweroff(code: u8) -> !`, `reboot() -> !`.
//! - `phys_avail() -> &'static [PhysRange]`, `phys_to_virt(pa: u64) -> *mut u8`, `virt_to_phys(*const u8) -> u64`,
//!   `pmap_mapdev(pa, len) -> NonNull<u8>`.
//! - `intr_alloc(IrqSource, cpu, handler: fn(usize), arg) -> Result<Vector, Errno>`, `intr_free(Vector)`: the handler runs with
//!   interrupts disabled; end of interrupt is the machine's, after it. A CPU that is in it stays in it when it is freed.
//! - `intr_assign_cpu(Vector, cpu) -> Result<Vector, Errno>`: delivers a line to `cpu` from now on, and a message from when its
//!   device has been told the address that is returned; the data stay. None is lost, and one that is on its way already runs
//!   the handler where it was sent to.
//!
//! Every interrupt handler of a backend runs between `critnest += 1` and `critnest -= 1`, and on its way out, with
//! `critnest == 0` and `owepreempt` set, calls `upcall::preempt()` on the interrupted thread's stack.
//!
//! Order of start: each CPU sets up its `Pcpu`; the boot CPU calls `kern::kern_thread::init0()` (after that there is a
//! current thread, locks work), sets up memory and interrupts, then `kern::start_bsp()` (idle, clock and epoch
//! threads). Each other CPU calls `kern::sched::idle_ap()` with interrupts disabled, which never returns.

pub mod atomic;
#[allow(
    unsafe_code,
    reason = "memory shared with devices, reached by volatile access"
)]
pub mod bus_dma;
#[allow(unsafe_code, reason = "device registers, reached by volatile access")]
pub mod bus_space;
pub mod in_cksum;
mod local;
#[allow(unsafe_code, reason = "port input and output")]
pub mod pci_cfg;
mod pcpu;
pub mod upcall;
pub(crate) mod words;

#[cfg(target_os = "none")]
#[allow(unsafe_code, reason = "the machine itself")]
pub mod amd64;
#[cfg(target_os = "none")]
use amd64 as backend;

#[cfg(not(any(target_os = "none", loom)))]
#[expect(unsafe_code, reason = "maps memory")]
mod host;

#[cfg(not(any(target_os = "none", native, loom)))]
#[expect(unsafe_code, reason = "keeps one value of a static per machine")]
pub mod hosted;
#[cfg(not(any(target_os = "none", native, loom)))]
use hosted as backend;

#[cfg(native)]
#[expect(
    unsafe_code,
    reason = "the machine itself, made of threads and signals"
)]
pub mod native;
#[cfg(native)]
use native as backend;

#[cfg(any(target_os = "none", native))]
#[expect(unsafe_code, reason = "GS-relative instructions")]
mod pcpu_gs;

#[cfg(not(any(loom, miri)))]
#[expect(unsafe_code, reason = "registers and stacks, in assembly")]
mod switch;

#[cfg(loom)]
#[expect(
    unsafe_code,
    reason = "stands in for atomics and cells; keeps one value of a static per execution"
)]
pub mod model;
#[cfg(loom)]
use model as backend;

pub use crate::param::MAXCPU;
pub use backend::{
    KStack, Pcb, console_write, console_write_some, counter_u64_add, cpu_idle, cpu_spinwait,
    cpu_switch, critical_enter, critical_exit, curcpu, curthread_raw, intr_alloc, intr_assign_cpu,
    intr_disable, intr_enabled, intr_restore, ipi_send, ncpus, pcpu, pcpu_find, phys_avail,
    phys_to_virt, pmap_mapdev, poweroff, random_u64, reboot, sbinuptime, set_event_timer,
    virt_to_phys,
};
pub use local::MachineLocal;
pub use local::call_thread_body;
#[cfg(not(loom))]
pub(crate) use local::unwind_thread;
pub(crate) use local::{interleave, leak, teardown_started};
pub use pcpu::{CachePadded, Critical, CriticalBlock, IntrState, Pcpu, PerCpu};
pub use upcall::{ThreadRef, curthread, smp_rendezvous, stop_other_cpus};

use crate::time::Ticks;

/// The state to restore in order to have interrupts enabled.
pub(crate) const INTR_ENABLED: IntrState = IntrState::from_raw(1);

/// Milliseconds since boot.
pub fn ticks() -> Ticks {
    sbinuptime().ticks()
}

/// Makes `cpu` look at its run queue.
pub fn ipi_preempt(cpu: usize) {
    ipi_send(cpu, Ipi::Preempt);
}

/// Disconnects the handler of `vector`; when this returns, no CPU is in it. The device must have been told to be silent.
///
/// The caller holds no spin mutex.
#[doc(alias = "intr_event_barrier")]
pub fn intr_free(vector: Vector) {
    backend::intr_free(vector);
    // A CPU that has found the handler before answers when it has left it. When a machine on the host ends, its other CPUs
    // have stopped, in no interrupt.
    if !teardown_started() {
        smp_rendezvous(CpuSet::all(), |_| {}, 0);
    }
}

/// Why one CPU interrupts another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ipi {
    /// Look at the run queue.
    Preempt,
    /// Run the function of `smp_rendezvous`.
    Rendezvous,
    /// Halt for good: the kernel has panicked.
    Stop,
}

/// A range of physical memory, `end` excluded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Where an interrupt comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqSource {
    /// A line.
    Line(IrqLine),
    /// A message: its device must be told the address and data found in the `Vector`.
    Msi,
}

/// A pin of an I/O APIC, and how the line at it signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IrqLine {
    /// Global system interrupt.
    pub gsi: u32,
    /// Level triggered rather than edge.
    pub level: bool,
    /// Active low rather than high.
    pub active_low: bool,
}

/// Where a message must be written to interrupt a CPU; the number of its local APIC stands from bit `MSI_INTEL_DEST_SHIFT` on.
const MSI_INTEL_ADDR_BASE: u64 = 0xfee0_0000;
const MSI_INTEL_DEST_SHIFT: u32 = 12;

/// The address of messages to a local APIC: physical destination, no redirection (SDM vol. 3, §11.11.1).
#[doc(alias = "INTEL_ADDR")]
#[cfg(not(loom))]
const fn msi_address(apic_id: u32) -> u64 {
    MSI_INTEL_ADDR_BASE | (apic_id as u64) << MSI_INTEL_DEST_SHIFT
}

/// The CPU that a message to `address` interrupts on a machine of the host, where CPUs and local APICs have the same numbers.
#[cfg(not(any(target_os = "none", loom)))]
fn msi_cpu(address: u64) -> Option<usize> {
    let apic_id = address.checked_sub(MSI_INTEL_ADDR_BASE)? >> MSI_INTEL_DEST_SHIFT;
    let cpu = usize::try_from(apic_id).ok()?;
    (cpu < ncpus()).then_some(cpu)
}

/// An interrupt vector that a source was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vector {
    /// Number on its CPU.
    pub vector: u8,
    /// Index of the CPU it is delivered to.
    pub cpu: usize,
    /// `N` of `irqN`: the pin, or for messages a number after the last pin.
    pub irq: u32,
    /// Address that the device writes to (messages only).
    pub msi_addr: u64,
    /// Data that the device writes (messages only).
    pub msi_data: u32,
}

/// A set of CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuSet(pub u32);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: CpuSet = CpuSet(0);

    /// All CPUs that run.
    pub fn all() -> CpuSet {
        CpuSet((1u32 << ncpus()) - 1)
    }

    /// Only `cpu`.
    pub const fn single(cpu: usize) -> CpuSet {
        CpuSet(1 << cpu)
    }

    /// All that run but this one.
    pub fn others() -> CpuSet {
        CpuSet::all().without(curcpu())
    }

    /// The set and `cpu`.
    #[must_use]
    pub const fn with(self, cpu: usize) -> CpuSet {
        CpuSet(self.0 | 1 << cpu)
    }

    /// The set without `cpu`.
    #[must_use]
    pub const fn without(self, cpu: usize) -> CpuSet {
        CpuSet(self.0 & !(1 << cpu))
    }

    /// Tells whether `cpu` is in it.
    pub const fn contains(self, cpu: usize) -> bool {
        self.0 & (1 << cpu) != 0
    }

    /// Returns how many are in it.
    pub const fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Returns the numbers of those in it.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAXCPU).filter(move |&cpu| self.contains(cpu))
    }
}
