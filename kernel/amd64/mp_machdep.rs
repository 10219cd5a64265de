//! Starts the other CPUs.
//!
//! FreeBSD: sys/amd64/amd64/mp_machdep.c, sys/x86/x86/mp_x86.c

use super::trap;
use core::sync::atomic::{AtomicU32, Ordering};
use sys::kern::sched;
use sys::kprintf;
use sys::machine::MAXCPU;
use sys::machine::amd64::clock::delay_us;
use sys::machine::amd64::local_apic::{
    ipi_init, ipi_startup, lapic_id, lapic_init_cpu, lapic_timer_start,
};
use sys::machine::amd64::pcpu_machdep::{apic_id_of, pcpu_init, set_apic_id, set_ncpus};
use sys::machine::amd64::pmap::{KSTACK_SIZE, KStack, kernel_pml4, phys_to_virt};
use sys::machine::{ncpus, sbinuptime};
use sys::time::Sbintime;

/// The page below 1 MiB that the others begin in.
const TRAMPOLINE: u64 = 0x8000;
/// How long a CPU may take to come; an emulator's host may be busy.
const PATIENCE: Sbintime = Sbintime::from_s(10);

unsafe extern "C" {
    static mptramp_start: u8;
    static mptramp_end: u8;
    static mptramp_stack: u8;
    static mptramp_cpu: u8;
    static mptramp_pml4: u8;
    static mptramp_base: u8;
    static mptramp_far: u8;
}

/// Bit n: CPU n has come to Rust.
static ALIVE: AtomicU32 = AtomicU32::new(0);

/// Chooses who is which CPU: this one is 0, the others follow in the table's order. Returns how many there are.
pub fn number_cpus(apic_ids: &[u32]) -> usize {
    let boot_id = lapic_id();
    set_apic_id(0, boot_id);
    let mut cpus = 1;
    for &apic_id in apic_ids
        .iter()
        .filter(|&&id| id != boot_id)
        .take(MAXCPU - 1)
    {
        set_apic_id(cpus, apic_id);
        trap::ist_alloc(cpus);
        cpus += 1;
    }
    set_ncpus(cpus);
    cpus
}

/// Starts the other CPUs: each goes to the scheduler at once.
pub fn start_all_aps() {
    if ncpus() == 1 {
        return;
    }
    kprintf!("Launching APs:");
    copy_trampoline();
    for cpu in 1..ncpus() {
        ipi_init(apic_id_of(cpu));
    }
    delay_us(200);
    for cpu in 1..ncpus() {
        start_ap(cpu);
        kprintf!(" {cpu}");
    }
    kprintf!("\n");
}

fn start_ap(cpu: usize) {
    let stack = KStack::alloc(KSTACK_SIZE).expect("a stack for each CPU");
    // SAFETY: all lie in the copy, and the CPU that reads them has not been started.
    unsafe {
        field(&raw const mptramp_stack)
            .cast::<u64>()
            .write_volatile(stack.top() as u64);
        field(&raw const mptramp_pml4)
            .cast::<u64>()
            .write_volatile(kernel_pml4());
        field(&raw const mptramp_cpu)
            .cast::<u32>()
            .write_volatile(cpu as u32);
    }
    // It becomes the stack of that CPU's idle thread.
    core::mem::forget(stack);
    let end = sbinuptime() + PATIENCE;
    while sbinuptime() < end {
        ipi_startup(apic_id_of(cpu), (TRAMPOLINE >> 12) as u8);
        // On a CPU that runs a second STARTUP is lost.
        for _ in 0..1_000 {
            if ALIVE.load(Ordering::Acquire) & 1 << cpu != 0 {
                return;
            }
            delay_us(10);
        }
    }
    panic!("AP #{cpu} (apic id {}) failed to start", apic_id_of(cpu));
}

fn copy_trampoline() {
    let start = &raw const mptramp_start;
    let len = (&raw const mptramp_end) as usize - start as usize;
    // SAFETY: the page is RAM below 1 MiB, of which nothing else is used.
    unsafe {
        core::ptr::copy_nonoverlapping(start, phys_to_virt(TRAMPOLINE), len);
        for address in [&raw const mptramp_base, &raw const mptramp_far] {
            let linear = field(address).cast::<u32>();
            linear.write_unaligned(linear.read_unaligned() + TRAMPOLINE as u32);
        }
    }
}

/// Where the copy has what the image has at `address`.
fn field(address: *const u8) -> *mut u8 {
    let offset = address as usize - (&raw const mptramp_start) as usize;
    phys_to_virt(TRAMPOLINE + offset as u64)
}

/// An application processor's first Rust, on its own stack.
#[unsafe(no_mangle)]
extern "C" fn init_secondary(cpu: u32) -> ! {
    let cpu = cpu as usize;
    pcpu_init(cpu);
    trap::gdt_init(cpu);
    trap::idt_init();
    lapic_init_cpu();
    ALIVE.fetch_or(1 << cpu, Ordering::Release);
    lapic_timer_start();
    sched::idle_ap()
}
