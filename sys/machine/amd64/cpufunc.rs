//! The privileged instructions, one function each.
//!
//! FreeBSD: sys/amd64/include/cpufunc.h

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};

/// Reads a byte from an I/O port.
///
/// # Safety
/// Reading the port must not disturb a device another owner relies on.
pub unsafe fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the caller answers for the port.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Writes a byte to an I/O port.
///
/// # Safety
/// The write must be one the device behind the port expects.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller answers for the port.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

/// Reads 16 bits from an I/O port.
///
/// # Safety
/// As [`inb`].
pub unsafe fn inw(port: u16) -> u16 {
    let value: u16;
    // SAFETY: the caller answers for the port.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Writes 16 bits to an I/O port.
///
/// # Safety
/// As [`outb`].
pub unsafe fn outw(port: u16, value: u16) {
    // SAFETY: the caller answers for the port.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags));
    }
}

/// Reads 32 bits from an I/O port.
///
/// # Safety
/// As [`inb`].
pub unsafe fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: the caller answers for the port.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Writes 32 bits to an I/O port.
///
/// # Safety
/// As [`outb`].
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: the caller answers for the port.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags));
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The register must exist on this CPU.
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller knows that the register exists.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register must exist and the value must be right for the rest of the kernel.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller answers for the value. It may order or publish memory (APIC), so no `nomem`.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// The time stamp counter.
#[inline]
pub fn rdtsc() -> u64 {
    // SAFETY: every CPU in long mode has it, and CR4.TSD is off.
    unsafe { _rdtsc() }
}

/// Four registers of CPUID.
#[derive(Clone, Copy, Debug)]
pub struct Cpuid {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// CPUID of `leaf` and `subleaf`.
pub fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let r = __cpuid_count(leaf, subleaf);
    Cpuid {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing runs here any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Whether interrupts are on.
#[inline]
pub fn interrupts_enabled() -> bool {
    let flags: u64;
    // SAFETY: reads the flags by way of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & 0x200 != 0
}

/// Turns interrupts off.
#[inline]
pub fn disable_intr() {
    // SAFETY: an interrupt less harms no memory; memory accesses are not moved across.
    unsafe { asm!("cli", options(nostack, preserves_flags)) };
}

/// Turns interrupts on.
#[inline]
pub fn enable_intr() {
    // SAFETY: handlers are prepared to come at any time; memory accesses are not moved across.
    unsafe { asm!("sti", options(nostack, preserves_flags)) };
}

/// Enables interrupts and waits for one, without a gap in which it could be missed.
#[inline]
pub fn sti_hlt() {
    // SAFETY: STI holds interrupts off until HLT has begun.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// Forgets the translation of the page at `va` on this CPU.
pub fn invlpg(va: u64) {
    // SAFETY: dropping a TLB entry only costs time.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// The faulting address of the last page fault.
pub fn rcr2() -> u64 {
    let value: u64;
    // SAFETY: reads a control register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Loads the page table root.
///
/// # Safety
/// The tables must map everything in use, and stay.
pub unsafe fn load_cr3(pa: u64) {
    // SAFETY: the caller answers for the tables.
    unsafe { asm!("mov cr3, {}", in(reg) pa, options(nostack, preserves_flags)) };
}

/// The frame pointer of the caller.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
