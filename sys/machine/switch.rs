//! Changes from one thread to another, on the bare machine and on those in a process of a host.
//!
//! FreeBSD: sys/amd64/amd64/cpu_switch.S, sys/amd64/amd64/vm_machdep.c

use super::KStack;
use core::arch::naked_asm;
use core::cell::UnsafeCell;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("stacks are switched in x86-64 assembly; other machines are not supported yet");

/// What is kept of a thread that does not run: its stack pointer; all else is on the stack.
#[derive(Debug)]
pub struct Pcb {
    rsp: UnsafeCell<u64>,
}

// SAFETY: only `prepare`, whose caller has it alone, and `cpu_switch` touch the field: of `old` on the CPU that runs it, of
// `new` on the one CPU the scheduler has given it to.
unsafe impl Sync for Pcb {}
// SAFETY: as above.
unsafe impl Send for Pcb {}

/// Callee-saved registers as `cpu_switch` pushes them.
#[repr(C)]
struct SwitchFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbx: u64,
    rbp: u64,
    rip: u64,
    /// Keeps the stack aligned at the entry, and ends a backtrace.
    end: [u64; 2],
}

impl Pcb {
    /// A state to save into.
    pub const fn new() -> Self {
        Self {
            rsp: UnsafeCell::new(0),
        }
    }

    /// Makes the thread begin with `entry(arg)` on `stack`, interrupts off, when it is first switched to.
    ///
    /// # Safety
    /// Nobody else uses the state or the stack, and the stack outlives the thread.
    pub unsafe fn prepare(&self, stack: &KStack, entry: extern "C" fn(usize) -> !, arg: usize) {
        let rsp = (stack.top() & !15) - size_of::<SwitchFrame>();
        // SAFETY: the frame is in the stack, which the caller gives.
        unsafe {
            (rsp as *mut SwitchFrame).write(SwitchFrame {
                r15: 0,
                r14: 0,
                r13: entry as usize as u64,
                r12: arg as u64,
                rbx: 0,
                rbp: 0,
                rip: fork_trampoline as *const () as u64,
                end: [0; 2],
            });
            *self.rsp.get() = rsp as u64;
        }
    }
}

impl Default for Pcb {
    fn default() -> Self {
        Self::new()
    }
}

/// Stops the running thread, whose state goes to `old`, and continues `new`.
///
/// # Safety
/// Interrupts are off, `old` is the running thread's and `new` is ready and given to this CPU alone: prepared, or saved by a switch,
/// and not continued since; its stack is alive.
#[unsafe(naked)]
pub unsafe extern "C" fn cpu_switch(old: &Pcb, new: &Pcb) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, [rsi]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    );
}

/// The first instructions of a thread: nothing called it, which ends a backtrace by frames and one by tables.
#[unsafe(naked)]
unsafe extern "C" fn fork_trampoline() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "mov rdi, r12",
        "xor ebp, ebp",
        "call r13",
        "ud2",
        ".cfi_endproc",
    );
}
