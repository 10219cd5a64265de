//! Stacks and the switch between them.
//!
//! FreeBSD: sys/amd64/amd64/cpu_switch.S

use core::cell::UnsafeCell;
use std::ptr;

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "machines on a host switch stacks in x86-64 assembly; other hosts are not supported yet"
);

/// The saved stack pointer of a context that does not run; the registers are on its stack.
pub struct Pcb {
    rsp: UnsafeCell<usize>,
}

// SAFETY: only `prepare` and `cpu_switch` touch it, whose callers promise that nobody else uses the context.
unsafe impl Sync for Pcb {}
// SAFETY: as above.
unsafe impl Send for Pcb {}

impl Pcb {
    /// Makes a context to save into.
    pub const fn new() -> Pcb {
        Pcb {
            rsp: UnsafeCell::new(0),
        }
    }

    /// Makes the context call `entry(arg)` on `stack` when first switched to.
    ///
    /// # Safety
    /// Nobody else uses the context or the stack, and the stack outlives the use of the context.
    pub unsafe fn prepare(&self, stack: &KStack, entry: extern "C" fn(usize) -> !, arg: usize) {
        let top = stack.top() & !15;
        // What `cpu_switch` pops: r15 r14 r13 r12 rbx rbp, return address; then a zero that ends backtraces.
        let frame: [usize; 8] = [
            0,
            0,
            entry as usize,
            arg,
            0,
            0,
            trampoline as *const () as usize,
            0,
        ];
        let rsp = top - size_of_val(&frame) - 8;
        // SAFETY: `rsp` is inside the stack, which the caller says is ours.
        unsafe {
            (rsp as *mut [usize; 8]).write(frame);
            *self.rsp.get() = rsp;
        }
    }
}

impl Default for Pcb {
    fn default() -> Self {
        Pcb::new()
    }
}

#[unsafe(naked)]
extern "C" fn trampoline() {
    core::arch::naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "mov rdi, r12",
        "and rsp, -16",
        "call r13",
        "ud2",
        ".cfi_endproc",
    )
}

/// Saves the caller's context in `old` and continues `new`.
///
/// # Safety
/// `new` was prepared, or saved by a switch, and has not been continued since; its stack is alive.
#[unsafe(naked)]
pub unsafe extern "C" fn cpu_switch(old: &Pcb, new: &Pcb) {
    core::arch::naked_asm!(
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
    )
}

/// A thread's stack, with a guard page below.
pub struct KStack {
    base: *mut u8,
    len: usize,
}

// SAFETY: it is memory of its own.
unsafe impl Send for KStack {}
// SAFETY: shared access reads only the two numbers.
unsafe impl Sync for KStack {}

const GUARD: usize = 4096;

/// Unoptimised test code needs far more than the kernel's 16 KB; pages that are not touched cost nothing.
const MINIMUM: usize = 256 * 1024;

impl KStack {
    /// Allocates a stack of at least `size` bytes.
    pub fn alloc(size: usize) -> Option<KStack> {
        let len = size.max(MINIMUM).next_multiple_of(4096);
        // SAFETY: an anonymous mapping at an address of the host's choice disturbs nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len + GUARD,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the first page of the mapping just made.
        unsafe { libc::mprotect(base, GUARD, libc::PROT_NONE) };
        Some(KStack {
            base: base.cast(),
            len,
        })
    }

    /// One past the highest byte.
    pub fn top(&self) -> usize {
        self.base as usize + GUARD + self.len
    }

    /// The lowest usable byte.
    pub fn bottom(&self) -> usize {
        self.base as usize + GUARD
    }
}

impl Drop for KStack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no context uses it any more.
        unsafe { libc::munmap(self.base.cast(), self.len + GUARD) };
    }
}
