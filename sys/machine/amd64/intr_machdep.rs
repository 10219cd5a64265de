//! Vectors: who is called for which interrupt.
//!
//! FreeBSD: sys/x86/x86/intr_machdep.c, sys/x86/x86/mp_x86.c, sys/x86/x86/msi.c

use super::io_apic::{Signal, ioapic_assign_cpu, ioapic_pins, ioapic_program, ioapic_set_masked};
use super::local_apic::{
    SPURIOUS_VECTOR, TIMER_VECTOR, event_timer_fired, ipi_cpu, ipi_nmi, lapic_eoi,
};
use super::pcpu_machdep::{
    apic_id_of, curcpu, intr_disable, intr_enter, intr_exit, intr_restore, ncpus,
};
use crate::errno::Errno;
use crate::machine::{Ipi, IrqLine, IrqSource, MAXCPU, Vector, msi_address, upcall};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use spin::mutex::SpinMutex;

/// First vector of devices; below are the CPU's own exceptions.
const FIRST_DEVICE_VECTOR: u8 = 0x30;
/// First vector that no device may have.
const END_DEVICE_VECTOR: u8 = TIMER_VECTOR;
const IPI_PREEMPT: u8 = 0xf0;
const IPI_RENDEZVOUS: u8 = 0xf1;

/// A device vector's handler; `function` 0: free. It is published by storing `function` last.
struct Handler {
    function: AtomicUsize,
    arg: AtomicUsize,
    /// Line + 1 of the I/O APIC, 0 for a message.
    line: AtomicU32,
}

static HANDLERS: [Handler; 256] = [const {
    Handler {
        function: AtomicUsize::new(0),
        arg: AtomicUsize::new(0),
        line: AtomicU32::new(0),
    }
}; 256];
static ALLOCATION: SpinMutex<()> = SpinMutex::new(());
static STRAY: AtomicU64 = AtomicU64::new(0);

/// Interrupts that nobody had asked for.
pub fn stray_interrupts() -> u64 {
    STRAY.load(Ordering::Relaxed)
}

/// Runs what belongs to `vector`: called by the interrupt entry, with interrupts off, on the interrupted
/// thread's stack.
pub fn intr_execute(vector: u8) {
    intr_enter();
    match vector {
        TIMER_VECTOR => {
            lapic_eoi();
            event_timer_fired();
            upcall::timer_interrupt();
        }
        IPI_PREEMPT => {
            lapic_eoi();
            upcall::ipi_interrupt(Ipi::Preempt);
        }
        IPI_RENDEZVOUS => {
            lapic_eoi();
            upcall::ipi_interrupt(Ipi::Rendezvous);
        }
        // Nothing is in service, so nothing may be ended.
        SPURIOUS_VECTOR => {}
        _ => {
            device(vector);
            lapic_eoi();
        }
    }
    if intr_exit() {
        upcall::preempt();
    }
}

fn device(vector: u8) {
    let handler = &HANDLERS[usize::from(vector)];
    let function = handler.function.load(Ordering::Acquire);
    if function == 0 {
        STRAY.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // SAFETY: `intr_alloc` stored a `fn(usize)`.
    let function: fn(usize) = unsafe { core::mem::transmute(function) };
    function(handler.arg.load(Ordering::Relaxed));
}

/// Lets `source` call `handler(arg)` on `cpu`, with interrupts off.
///
/// `EINVAL` if there is no such CPU; `EBUSY` if the line has a handler: sharing is the caller's. A line is unmasked at once.
pub fn intr_alloc(
    source: IrqSource,
    cpu: usize,
    handler: fn(usize),
    arg: usize,
) -> Result<Vector, Errno> {
    if cpu >= ncpus() {
        return Err(Errno::EINVAL);
    }
    let pins = ioapic_pins();
    let line = match source {
        IrqSource::Line(line) if line.gsi >= pins => return Err(Errno::ENXIO),
        IrqSource::Line(line) => line.gsi + 1,
        IrqSource::Msi => 0,
    };
    let vector = vector_alloc(line, handler, arg)?;
    let mut result = Vector {
        vector,
        cpu,
        irq: pins + u32::from(vector - FIRST_DEVICE_VECTOR),
        msi_addr: 0,
        msi_data: 0,
    };
    match source {
        IrqSource::Line(IrqLine {
            gsi,
            level,
            active_low,
        }) => {
            result.irq = gsi;
            ioapic_program(gsi, Signal { level, active_low }, vector, cpu);
        }
        IrqSource::Msi => {
            result.msi_addr = msi_address(apic_id_of(cpu));
            // SDM vol. 3, §11.11.2: fixed delivery, edge.
            result.msi_data = u32::from(vector);
        }
    }
    Ok(result)
}

fn vector_alloc(line: u32, handler: fn(usize), arg: usize) -> Result<u8, Errno> {
    let state = intr_disable();
    let guard = ALLOCATION.lock();
    let all = &HANDLERS[usize::from(FIRST_DEVICE_VECTOR)..usize::from(END_DEVICE_VECTOR)];
    let taken = |h: &Handler| h.function.load(Ordering::Relaxed) != 0;
    let in_use = line != 0
        && all
            .iter()
            .any(|h| taken(h) && h.line.load(Ordering::Relaxed) == line);
    let free = all.iter().position(|h| !taken(h));
    let result = match free {
        _ if in_use => Err(Errno::EBUSY),
        None => Err(Errno::ENOSPC),
        Some(index) => {
            all[index].arg.store(arg, Ordering::Relaxed);
            all[index].line.store(line, Ordering::Relaxed);
            all[index]
                .function
                .store(handler as usize, Ordering::Release);
            Ok(FIRST_DEVICE_VECTOR + index as u8)
        }
    };
    drop(guard);
    intr_restore(state);
    result
}

/// Takes a vector back; its line is masked, or else the device must have been told to be silent.
pub fn intr_free(vector: Vector) {
    let handler = &HANDLERS[usize::from(vector.vector)];
    let line = handler.line.load(Ordering::Relaxed);
    if line != 0 {
        ioapic_set_masked(line - 1, true);
    }
    handler.function.store(0, Ordering::Release);
}

/// Sends the line behind `vector` to `cpu` from now on; of a message only says what address its device must be told.
///
/// Differs from FreeBSD: a vector has the same handler on all CPUs, so the line keeps its own, and a message its data. One that
/// was accepted by the old CPU is handled and ended there, and there is no old vector that would have to live on until then.
///
/// `EINVAL` if there is no such CPU.
pub fn intr_assign_cpu(vector: Vector, cpu: usize) -> Result<Vector, Errno> {
    if cpu >= ncpus() {
        return Err(Errno::EINVAL);
    }
    let line = HANDLERS[usize::from(vector.vector)]
        .line
        .load(Ordering::Relaxed);
    if line == 0 {
        let msi_addr = msi_address(apic_id_of(cpu));
        return Ok(Vector {
            cpu,
            msi_addr,
            ..vector
        });
    }
    ioapic_assign_cpu(line - 1, cpu);
    Ok(Vector { cpu, ..vector })
}

/// Interrupts `cpu` with `ipi`.
pub fn ipi_send(cpu: usize, ipi: Ipi) {
    match ipi {
        Ipi::Preempt => ipi_cpu(cpu, IPI_PREEMPT),
        Ipi::Rendezvous => ipi_cpu(cpu, IPI_RENDEZVOUS),
        Ipi::Stop => {
            STOPPING.store(true, Ordering::SeqCst);
            ipi_nmi(cpu);
        }
    }
}

const _: () = assert!(MAXCPU <= 32, "a CPU is a bit of a u32");
/// Set when CPUs shall stop: a non-maskable interrupt means that then.
static STOPPING: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicU32 = AtomicU32::new(0);

/// Stops all other CPUs for good, however deep in what they are. False if another CPU is doing that already.
pub fn stop_cpus_hard() -> bool {
    if STOPPING.swap(true, Ordering::SeqCst) {
        return false;
    }
    let others = ncpus() as u32 - 1;
    for cpu in (0..ncpus()).filter(|&cpu| cpu != curcpu()) {
        ipi_nmi(cpu);
    }
    // A CPU that does not answer within 100 ms never will.
    for _ in 0..1_000 {
        if STOPPED.load(Ordering::Relaxed).count_ones() >= others {
            break;
        }
        super::clock::delay_us(100);
    }
    true
}

/// What a non-maskable interrupt does: stops if that is what it means, returns if it has another cause.
pub fn nmi_stop() {
    if STOPPING.load(Ordering::SeqCst) {
        STOPPED.fetch_or(1 << curcpu(), Ordering::SeqCst);
        super::cpufunc::halt();
    }
}
