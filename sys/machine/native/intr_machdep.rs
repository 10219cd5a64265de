//! Interrupts: from another CPU, the event timer or a device model to the CPU that handles them.

use core::ptr;

use crate::errno::Errno;
use crate::machine::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::machine::pcpu_gs::{area_of, gs_read32, gs_write32};
use crate::machine::{Ipi, IrqSource, Vector, curcpu, msi_address, msi_cpu, ncpus, pcpu, upcall};
use crate::time::Sbintime;

const PENDING_TIMER: u32 = 1;
const PENDING_PREEMPT: u32 = 2;
const PENDING_RENDEZVOUS: u32 = 4;
const PENDING_STOP: u32 = 8;
const PENDING_VECTOR: u32 = 16;
/// The machine has ended.
const PENDING_HALT: u32 = 32;

/// Says "look at `pending`".
fn sig_interrupt() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Says that the event timer of this CPU has expired.
pub(super) fn sig_timer() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// Lets signals interrupt the CPUs.
pub(super) fn install_handlers() {
    for signal in [sig_interrupt(), sig_timer()] {
        // SAFETY: all zero is a valid `sigaction`; the handler is prepared to interrupt anything that a CPU does.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            // The handler may switch to another context and return from a later signal's first: nothing is masked.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_RESTART;
            let result = libc::sigaction(signal, &action, ptr::null_mut());
            assert_eq!(result, 0, "sigaction");
        }
    }
}

extern "C" fn handler(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: errno is the host thread's; afterwards it belongs to the interrupted thread, wherever that runs then.
    let errno = unsafe { *libc::__errno_location() };
    if signal == sig_timer() {
        let pending = &area_of(curcpu()).md.mailbox.pending;
        pending.fetch_or(PENDING_TIMER, Ordering::Relaxed);
    }
    if gs_read32!(md.intr_off) == 0 {
        deliver();
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Handles what is pending; called, and returns, with interrupts on.
#[cold]
#[inline(never)]
pub(super) fn deliver() {
    loop {
        gs_write32!(1, md.intr_off);
        let pcpu = pcpu();
        let nest = pcpu.critnest.load(Ordering::Relaxed);
        pcpu.critnest.store(nest + 1, Ordering::Relaxed);
        handle_pending(curcpu());
        pcpu.critnest.store(nest, Ordering::Relaxed);
        if nest == 0 && pcpu.owepreempt.load(Ordering::Relaxed) != 0 {
            upcall::preempt();
        }
        // Perhaps on another CPU than before.
        gs_write32!(0, md.intr_off);
        if gs_read32!(md.mailbox.pending) == 0 {
            return;
        }
    }
}

fn handle_pending(cpu: usize) {
    let md = &area_of(cpu).md;
    loop {
        let pending = md.mailbox.pending.swap(0, Ordering::AcqRel);
        if pending == 0 {
            return;
        }
        if pending & PENDING_HALT != 0 {
            halt();
        }
        if pending & PENDING_STOP != 0 {
            upcall::ipi_interrupt(Ipi::Stop);
        }
        if pending & PENDING_RENDEZVOUS != 0 {
            upcall::ipi_interrupt(Ipi::Rendezvous);
        }
        if pending & PENDING_VECTOR != 0 {
            let mut vectors = md.mailbox.vectors.swap(0, Ordering::AcqRel);
            while vectors != 0 {
                device(vectors.trailing_zeros() as usize);
                vectors &= vectors - 1;
            }
        }
        if pending & PENDING_TIMER != 0 {
            md.armed.store(Sbintime::MAX.0, Ordering::Relaxed);
            upcall::timer_interrupt();
        }
        if pending & PENDING_PREEMPT != 0 {
            upcall::ipi_interrupt(Ipi::Preempt);
        }
    }
}

/// Leaves `bits` to `cpu`, and calls it if nobody has done that since it last looked. May be called by any host thread.
fn post(cpu: usize, bits: u32) {
    let md = &area_of(cpu).md;
    if md.mailbox.pending.fetch_or(bits, Ordering::SeqCst) != 0 {
        return;
    }
    // A CPU that goes to halt now sees the bits when it has said so.
    if md.mailbox.halted.load(Ordering::SeqCst) != 0 {
        futex(
            &md.mailbox.pending,
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        );
        return;
    }
    let tid = md.tid.load(Ordering::Acquire);
    // One that has not started looks when it does.
    if tid != 0 {
        // SAFETY: the thread has the handler, and lives as long as the process.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, sig_interrupt()) };
    }
}

fn futex(
    word: &crate::machine::atomic::AtomicU32,
    operation: libc::c_int,
    value: u32,
) -> libc::c_long {
    let none: *const libc::timespec = ptr::null();
    // SAFETY: the word is static, and these operations use no other address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, none) }
}

/// Interrupts `cpu` with `ipi`.
pub fn ipi_send(cpu: usize, ipi: Ipi) {
    post(
        cpu,
        match ipi {
            Ipi::Preempt => PENDING_PREEMPT,
            Ipi::Rendezvous => PENDING_RENDEZVOUS,
            Ipi::Stop => PENDING_STOP,
        },
    );
}

/// Ends all CPUs but this one for good, with interrupts off on this one.
pub(super) fn halt_others() {
    for cpu in (0..ncpus()).filter(|&cpu| cpu != curcpu()) {
        post(cpu, PENDING_HALT);
    }
}

/// Ends this CPU for good.
pub(super) fn halt() -> ! {
    loop {
        // SAFETY: waits for a signal, all of which now do nothing.
        unsafe { libc::pause() };
    }
}

/// Waits for an interrupt. Entered with interrupts off and nothing to run; returns with interrupts on.
pub fn cpu_idle() {
    let md = &area_of(curcpu()).md;
    md.mailbox.halted.store(1, Ordering::SeqCst);
    // Returns at once if something is pending; otherwise by the change, or by a signal, whose handler does nothing but
    // note the timer.
    while md.mailbox.pending.load(Ordering::SeqCst) == 0 {
        futex(
            &md.mailbox.pending,
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0,
        );
    }
    md.mailbox.halted.store(0, Ordering::SeqCst);
    gs_write32!(0, md.intr_off);
    deliver();
}

/// One turn of a busy wait.
#[inline]
pub fn cpu_spinwait() {
    core::hint::spin_loop();
}

/// Most vectors: a bit each.
const VECTORS: usize = u64::BITS as usize;

/// A vector's handler; `function` 0: free.
struct Handler {
    function: AtomicUsize,
    arg: AtomicUsize,
    cpu: AtomicUsize,
    message: AtomicBool,
}

/// `function` of a vector that is being given out.
const RESERVED: usize = 1;

static HANDLERS: [Handler; VECTORS] = [const {
    Handler {
        function: AtomicUsize::new(0),
        arg: AtomicUsize::new(0),
        cpu: AtomicUsize::new(0),
        message: AtomicBool::new(false),
    }
}; VECTORS];

fn device(irq: usize) {
    let function = HANDLERS[irq].function.load(Ordering::Acquire);
    if function > RESERVED {
        // SAFETY: `intr_alloc` stored a `fn(usize)`.
        let function = unsafe { core::mem::transmute::<usize, fn(usize)>(function) };
        function(HANDLERS[irq].arg.load(Ordering::Relaxed));
    }
}

/// Connects `handler` to a new interrupt of `cpu`, which `raise(vector.irq)` raises, or the message that the vector describes.
///
/// # Errors
/// `EINVAL` if there is no such CPU, `ENOSPC` if all vectors are taken.
pub fn intr_alloc(
    source: IrqSource,
    cpu: usize,
    handler: fn(usize),
    arg: usize,
) -> Result<Vector, Errno> {
    if cpu >= ncpus() {
        return Err(Errno::EINVAL);
    }
    let reserve = |handler: &Handler| {
        handler
            .function
            .compare_exchange(0, RESERVED, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    };
    let irq = HANDLERS.iter().position(reserve).ok_or(Errno::ENOSPC)?;
    HANDLERS[irq].arg.store(arg, Ordering::Relaxed);
    HANDLERS[irq].cpu.store(cpu, Ordering::Relaxed);
    let message = source == IrqSource::Msi;
    HANDLERS[irq].message.store(message, Ordering::Relaxed);
    HANDLERS[irq]
        .function
        .store(handler as *const () as usize, Ordering::Release);
    Ok(Vector {
        vector: 0x30 + irq as u8,
        cpu,
        irq: irq as u32,
        msi_addr: msi_address(cpu as u32),
        msi_data: irq as u32,
    })
}

/// Delivers the line behind `vector` to `cpu` from now on, or says where a message must go for that; what was raised before is
/// handled where it was raised.
///
/// # Errors
/// `EINVAL` if there is no such CPU.
pub fn intr_assign_cpu(vector: Vector, cpu: usize) -> Result<Vector, Errno> {
    if cpu >= ncpus() {
        return Err(Errno::EINVAL);
    }
    let handler = &HANDLERS[vector.irq as usize];
    if !handler.message.load(Ordering::Relaxed) {
        handler.cpu.store(cpu, Ordering::Relaxed);
    }
    Ok(Vector {
        cpu,
        msi_addr: msi_address(cpu as u32),
        ..vector
    })
}

/// Disconnects the handler of `vector`.
pub fn intr_free(vector: Vector) {
    HANDLERS[vector.irq as usize]
        .function
        .store(0, Ordering::Release);
}

/// Raises the interrupt `irq` of a `Vector`, as a device would; from any thread of the host.
pub fn raise(irq: u32) {
    raise_on(HANDLERS[irq as usize].cpu.load(Ordering::Relaxed), irq);
}

/// Writes `data` to `addr`, as a device does that interrupts by messages; from any thread of the host.
pub fn message(addr: u64, data: u32) {
    if let Some(cpu) = msi_cpu(addr) {
        raise_on(cpu, data);
    }
}

fn raise_on(cpu: usize, irq: u32) {
    let vectors = &area_of(cpu).md.mailbox.vectors;
    vectors.fetch_or(1 << irq, Ordering::SeqCst);
    post(cpu, PENDING_VECTOR);
}
