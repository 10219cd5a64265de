//! Says what machine this is, in the lines FreeBSD boots with.
//!
//! FreeBSD: sys/x86/x86/identcpu.c, sys/amd64/amd64/machdep.c (cpu_startup), sys/x86/x86/mp_x86.c (cpu_mp_announce)

use super::acpi::Platform;
use super::kern_malloc::heap_usage;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use sys::kprintf;
use sys::machine::amd64::clock::tsc_hz;
use sys::machine::amd64::cpufunc::{Cpuid, cpuid};
use sys::machine::amd64::intr_machdep::stray_interrupts;
use sys::machine::amd64::io_apic::ioapic_pins;
use sys::machine::amd64::local_apic::{is_x2apic, lapic_timer_hz, uses_tsc_deadline};
use sys::machine::{ncpus, phys_avail};
use sys::sysctl::{self, ReadOnly, SysctlNode};

/// The CPU's name.
pub fn model() -> String {
    let mut brand = [0u8; 48];
    for (i, chunk) in brand.chunks_exact_mut(16).enumerate() {
        chunk.copy_from_slice(&registers(&cpuid(0x8000_0002 + i as u32, 0)));
    }
    text(&brand).into()
}

/// Prints the CPU's name, its clock and identity.
#[doc(alias = "printcpuinfo")]
pub fn announce_cpu() {
    let hz = tsc_hz();
    let brand = model();
    kprintf!(
        "CPU: {brand} ({}.{:02}-MHz K8-class CPU)\n",
        hz / 1_000_000,
        hz / 10_000 % 100
    );

    let leaf0 = cpuid(0, 0);
    let mut origin = [0u8; 12];
    for (chunk, register) in origin
        .chunks_exact_mut(4)
        .zip([leaf0.ebx, leaf0.edx, leaf0.ecx])
    {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    let Cpuid {
        eax: id, ecx, edx, ..
    } = cpuid(1, 0);
    // The extended parts count only for the families that ran out of numbers.
    let (family, model) = (id >> 8 & 15, id >> 4 & 15);
    let family = if family == 15 {
        family + (id >> 20 & 0xff)
    } else {
        family
    };
    let model = if family == 6 || family >= 15 {
        model | id >> 12 & 0xf0
    } else {
        model
    };
    kprintf!(
        "  Origin=\"{}\"  Id={id:#x}  Family={family:#x}  Model={model:#x}  Stepping={}\n",
        text(&origin),
        id & 15
    );
    kprintf!("  Features={edx:#x}  Features2={ecx:#x}\n");
}

/// Prints the memory, the interrupt controllers and the CPUs.
#[doc(alias = "cpu_mp_announce")]
pub fn announce_machine(platform: &Platform, real_memory: u64) {
    let avail: u64 = phys_avail()
        .iter()
        .map(|range| range.end - range.start)
        .sum();
    kprintf!("real memory  = {real_memory} ({} MB)\n", real_memory >> 20);
    kprintf!("avail memory = {avail} ({} MB)\n", avail >> 20);
    let cpus = ncpus();
    if cpus > 1 {
        kprintf!("FreeBSD/SMP: Multiprocessor System Detected: {cpus} CPUs\n");
        kprintf!("FreeBSD/SMP: 1 package(s) x {cpus} core(s)\n");
    }
    if platform.cpus_ignored > 0 {
        kprintf!(
            "WARNING: {} CPUs are more than MAXCPU and are not used\n",
            platform.cpus_ignored
        );
    }
    if let Some(error) = platform.error {
        kprintf!("WARNING: {error}\n");
    }
    kprintf!("ioapic0: irqs 0-{}\n", ioapic_pins().saturating_sub(1));
    kprintf!(
        "Timecounter \"TSC\" frequency {} Hz quality 1000 (calibrated by {})\n",
        tsc_hz(),
        platform.reference.name()
    );
    let mode = if is_x2apic() { "x2APIC" } else { "xAPIC" };
    if uses_tsc_deadline() {
        kprintf!("Event timer \"LAPIC\" quality 600 ({mode}, TSC deadline)\n");
    } else {
        kprintf!(
            "Event timer \"LAPIC\" frequency {} Hz quality 600 ({mode})\n",
            lapic_timer_hz()
        );
    }
}

/// Shows the clocks and the heap to `sysctl`.
pub fn register_sysctls() {
    let read = |name: &str, description: &'static str, value: fn() -> String| {
        sysctl::root().register(
            name,
            Arc::new(ReadOnly::new(description, value)) as Arc<dyn SysctlNode>,
        );
    };
    read("machdep.tsc_freq", "Time Stamp Counter frequency", || {
        tsc_hz().to_string()
    });
    read("machdep.idle", "currently selected idle function", || {
        "hlt".into()
    });
    read(
        "kern.timecounter.hardware",
        "Timecounter hardware selected",
        || "TSC".into(),
    );
    read("kern.eventtimer.timer", "Chosen event timer", || {
        "LAPIC".into()
    });
    read("vm.kmem_map_size", "Current kmem allocation size", || {
        heap_usage().0.to_string()
    });
    read("vm.kmem_size", "Size of kernel memory", || {
        heap_usage().1.to_string()
    });
    read("hw.intr_stray", "Interrupts nobody asked for", || {
        stray_interrupts().to_string()
    });
}

fn registers(leaf: &Cpuid) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (chunk, register) in bytes
        .chunks_exact_mut(4)
        .zip([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
    {
        chunk.copy_from_slice(&register.to_le_bytes());
    }
    bytes
}

fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..end]).unwrap_or("?").trim()
}
