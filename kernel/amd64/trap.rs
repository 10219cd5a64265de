//! Descriptor tables, and what becomes of exceptions.
//!
//! FreeBSD: sys/amd64/amd64/trap.c, sys/amd64/amd64/machdep.c (gdt, idt), sys/amd64/include/frame.h

use super::panic;
use core::arch::asm;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;
use sys::machine::MAXCPU;
use sys::machine::amd64::cpufunc::rcr2;
use sys::machine::amd64::intr_machdep::{intr_execute, nmi_stop};
use sys::machine::amd64::pcpu_machdep::apic_id_of;
use sys::machine::amd64::pmap::{self, phys_to_virt};
use sys::machine::curcpu;
use x86_64::VirtAddr;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

core::arch::global_asm!(include_str!("exception.S"), options(att_syntax));

/// The code segment that the boot code loads and every table keeps.
const KERNEL_CS: u16 = 0x08;
const TRAP_NMI: u64 = 2;
const TRAP_DOUBLE_FAULT: u64 = 8;
const TRAP_PAGE_FAULT: u64 = 14;
const TRAP_MACHINE_CHECK: u64 = 18;
/// Exceptions on stacks of their own, because the current one may be the trouble.
const IST_VECTORS: [u64; 3] = [TRAP_NMI, TRAP_DOUBLE_FAULT, TRAP_MACHINE_CHECK];
const IST_PAGES: u64 = 4;

/// Registers as `alltraps` pushes them.
#[repr(C)]
#[derive(Debug)]
pub struct TrapFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    /// With `_rip` the stack frame that a backtrace finds.
    rbp: u64,
    _rip: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// A gate of the interrupt table (SDM vol. 3, §7.14.1).
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Gate>() == 16);
/// Present, 64-bit interrupt gate: interrupts are off inside.
const INTERRUPT_GATE: u8 = 0x8e;

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

static IDT: Once<[Gate; 256]> = Once::new();
static TSS: [Once<TaskStateSegment>; MAXCPU] = [const { Once::new() }; MAXCPU];
static GDT: [Once<GlobalDescriptorTable>; MAXCPU] = [const { Once::new() }; MAXCPU];
/// Physical addresses of the interrupt stacks of each CPU, one after another.
static IST_STACKS: [AtomicU64; MAXCPU] = [const { AtomicU64::new(0) }; MAXCPU];

unsafe extern "C" {
    static idt_stubs: [u8; 256 * 16];
}

/// Loads the interrupt table; exceptions come on the current stack until `gdt_init`.
pub fn idt_init() {
    let idt = IDT.call_once(|| {
        core::array::from_fn(|vector| {
            let handler = (&raw const idt_stubs) as u64 + 16 * vector as u64;
            let ist = IST_VECTORS.iter().position(|&v| v == vector as u64);
            Gate {
                offset_low: handler as u16,
                selector: KERNEL_CS,
                ist: ist.map_or(0, |i| i as u8 + 1),
                kind: INTERRUPT_GATE,
                offset_middle: (handler >> 16) as u16,
                offset_high: (handler >> 32) as u32,
                reserved: 0,
            }
        })
    });
    let pointer = TablePointer {
        limit: (size_of_val(idt) - 1) as u16,
        base: idt.as_ptr() as u64,
    };
    // SAFETY: the table is static, its gates lead to the stubs.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags))
    };
}

/// Reserves the interrupt stacks of `cpu`. Runs on the first CPU while boot pages last.
pub fn ist_alloc(cpu: usize) {
    let pa = pmap::boot_alloc(IST_PAGES * IST_VECTORS.len() as u64);
    IST_STACKS[cpu].store(pa, Ordering::Relaxed);
}

/// Gives this CPU a segment table with a task state that names its interrupt stacks.
pub fn gdt_init(cpu: usize) {
    let stacks = IST_STACKS[cpu].load(Ordering::Relaxed);
    let tss = TSS[cpu].call_once(|| {
        let mut tss = TaskStateSegment::new();
        for i in 0..IST_VECTORS.len() {
            let top = stacks + (i as u64 + 1) * IST_PAGES * pmap::PAGE_SIZE;
            tss.interrupt_stack_table[i] = VirtAddr::from_ptr(phys_to_virt(top));
        }
        tss
    });
    let mut selector = None;
    let gdt = GDT[cpu].call_once(|| {
        let mut gdt = GlobalDescriptorTable::new();
        let code = gdt.append(Descriptor::kernel_code_segment());
        debug_assert_eq!(code.0, KERNEL_CS);
        selector = Some(gdt.append(Descriptor::tss_segment(tss)));
        gdt
    });
    gdt.load();
    if let Some(selector) = selector {
        // SAFETY: the selector is that of the task state just entered in the table just loaded.
        unsafe { x86_64::instructions::tables::load_tss(selector) };
    }
}

/// Entry of interrupts from devices, the timer and other CPUs.
#[unsafe(no_mangle)]
extern "C" fn interrupt_entry(vector: u32) {
    intr_execute(vector as u8);
}

/// Entry of exceptions: all are fatal but the NMI that stops a CPU.
#[unsafe(no_mangle)]
extern "C" fn trap_entry(frame: &TrapFrame) {
    if frame.vector == TRAP_NMI {
        nmi_stop();
    }
    let fault_address = rcr2();
    panic::fatal_trap(
        frame.rbp,
        frame.rip,
        &FatalTrap {
            frame,
            fault_address,
        },
    );
}

/// The report of a fatal exception.
struct FatalTrap<'a> {
    frame: &'a TrapFrame,
    fault_address: u64,
}

impl FatalTrap<'_> {
    fn name(&self) -> &'static str {
        match self.frame.vector {
            0 => "integer divide fault",
            1 => "trace trap",
            TRAP_NMI => "non-maskable interrupt trap",
            3 => "breakpoint instruction fault",
            4 => "integer overflow fault",
            5 => "FPU bounds check fault",
            6 => "privileged instruction fault",
            7 => "FPU device not available",
            TRAP_DOUBLE_FAULT if self.is_stack_overflow() => "double fault: kernel stack overflow",
            TRAP_DOUBLE_FAULT => "double fault",
            10 => "invalid TSS fault",
            11 => "segment not present fault",
            12 => "stack fault",
            13 => "general protection fault",
            TRAP_PAGE_FAULT => "page fault",
            16 => "arithmetic trap",
            17 => "alignment fault",
            TRAP_MACHINE_CHECK => "machine check trap",
            19 => "SIMD floating-point exception",
            _ => "unknown/reserved trap",
        }
    }

    /// The fault that could not be delivered was on the unmapped page below a stack.
    fn is_stack_overflow(&self) -> bool {
        pmap::is_stack_guard(self.fault_address) || pmap::is_stack_guard(self.frame.rsp - 8)
    }
}

impl fmt::Display for FatalTrap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = self.frame;
        let cpu = curcpu();
        let name = self.name();
        writeln!(
            f,
            "\nFatal trap {}: {name} while in kernel mode",
            frame.vector
        )?;
        writeln!(f, "cpuid = {cpu}; apic id = {:02x}", apic_id_of(cpu))?;
        if frame.vector == TRAP_PAGE_FAULT || frame.vector == TRAP_DOUBLE_FAULT {
            writeln!(f, "fault virtual address\t= {:#x}", self.fault_address)?;
        }
        if frame.vector == TRAP_PAGE_FAULT {
            let what = match frame.error {
                e if e & 1 << 4 != 0 => "instruction",
                e if e & 1 << 1 != 0 => "write data",
                _ => "read data",
            };
            let why = if frame.error & 1 == 0 {
                "page not present"
            } else {
                "protection violation"
            };
            writeln!(f, "fault code\t\t= supervisor {what}, {why}")?;
        } else {
            writeln!(f, "error code\t\t= {:#x}", frame.error)?;
        }
        writeln!(f, "instruction pointer\t= {:#x}:{:#x}", frame.cs, frame.rip)?;
        writeln!(
            f,
            "stack pointer\t        = {:#x}:{:#x}",
            frame.ss, frame.rsp
        )?;
        writeln!(
            f,
            "frame pointer\t        = {:#x}:{:#x}",
            frame.ss, frame.rbp
        )?;
        writeln!(f, "processor eflags\t= {:#x}", frame.rflags)?;
        let registers = [
            ("rdi", frame.rdi),
            ("rsi", frame.rsi),
            ("rdx", frame.rdx),
            ("rcx", frame.rcx),
            ("r8", frame.r8),
            ("r9", frame.r9),
            ("rax", frame.rax),
            ("rbx", frame.rbx),
            ("rbp", frame.rbp),
            ("r10", frame.r10),
            ("r11", frame.r11),
            ("r12", frame.r12),
            ("r13", frame.r13),
            ("r14", frame.r14),
            ("r15", frame.r15),
        ];
        for row in registers.chunks(3) {
            for (register, value) in row {
                write!(f, "{register:>3}: {value:016x} ")?;
            }
            writeln!(f)?;
        }
        write!(f, "panic: {name}")
    }
}
