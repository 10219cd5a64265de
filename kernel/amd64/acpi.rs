//! What ACPI's tables tell: CPUs, I/O APICs, clocks, and how to turn the machine off.
//!
//! FreeBSD: sys/dev/acpica/acpi.c, sys/x86/acpica/madt.c, sys/dev/acpica/acpi_hpet.c
//! Differs from FreeBSD: no interpreter of AML; the one value needed from it, `_S5`, is searched for in its bytes.

use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, HpetInfo, PhysicalMapping};
use core::ptr::NonNull;
use sys::machine::MAXCPU;
use sys::machine::amd64::clock::Reference;
use sys::machine::amd64::io_apic::{SourceOverride, ioapic_create, set_source_override};
use sys::machine::amd64::pmap::{dmap_covers, phys_to_virt, pmap_mapdev};
use sys::machine::amd64::reset::set_s5;

/// Registers of the HPET.
const HPET_PERIOD: usize = 0x04;
const HPET_CONFIG: usize = 0x10;
const HPET_CONFIG_ENABLE: u32 = 1;
const HPET_MAIN_COUNTER: usize = 0xf0;
/// The longest period there may be: 100 ns. A register that is not there reads as all ones.
const HPET_PERIOD_MAX_FS: u32 = 100_000_000;

/// A MADT entry describes a CPU that can be started.
const CPU_ENABLED: u32 = 1;

/// What was found.
#[derive(Debug)]
pub struct Platform {
    /// Local APIC numbers of the CPUs that can be started.
    pub apic_ids: [u32; MAXCPU],
    /// How many.
    pub cpus: usize,
    /// CPUs beyond `MAXCPU`.
    pub cpus_ignored: usize,
    /// The best clock to calibrate with.
    pub reference: Reference,
    /// Why there is nothing else here, if ACPI failed.
    pub error: Option<&'static str>,
}

#[derive(Clone, Copy)]
struct Handler;

impl AcpiHandler for Handler {
    unsafe fn map_physical_region<T>(&self, pa: usize, size: usize) -> PhysicalMapping<Self, T> {
        let va = if dmap_covers(pa as u64, size as u64) {
            NonNull::new(phys_to_virt(pa as u64)).expect("the direct map is not at 0")
        } else {
            pmap_mapdev(pa as u64, size)
        };
        // SAFETY: `size` bytes are mapped at `va` and stay so.
        unsafe { PhysicalMapping::new(pa, va.cast(), size, size, *self) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// Reads the tables, and makes the I/O APICs known.
///
/// # Safety
/// `rsdp` is what the boot loader gave as the tables' root.
pub unsafe fn acpi_init(rsdp: u64) -> Platform {
    let mut platform = Platform {
        apic_ids: [0; MAXCPU],
        cpus: 0,
        cpus_ignored: 0,
        reference: Reference::Pit,
        error: None,
    };
    // SAFETY: the caller answers for the address.
    let Ok(tables) = (unsafe { AcpiTables::from_rsdp(Handler, rsdp as usize) }) else {
        platform.error = Some("no ACPI tables");
        return platform;
    };
    match tables.find_table::<Madt>() {
        Ok(madt) => parse_madt(&madt, &mut platform),
        Err(_) => platform.error = Some("ACPI has no MADT"),
    }
    if let Ok(fadt) = tables.find_table::<Fadt>() {
        if let Ok(Some(timer)) = fadt.pm_timer_block() {
            platform.reference = Reference::AcpiPm {
                port: timer.address as u16,
            };
        }
        if let (Ok(control), Ok(dsdt)) = (fadt.pm1a_control_block(), tables.dsdt())
            && let Some(sleep_type) = find_s5(dsdt.address as u64, dsdt.length as u64)
        {
            set_s5(control.address as u16, sleep_type << 10);
        }
    }
    if let Ok(hpet) = HpetInfo::new(&tables)
        && let Some(reference) = hpet_start(hpet.base_address as u64)
    {
        platform.reference = reference;
    }
    platform
}

fn parse_madt(madt: &PhysicalMapping<Handler, Madt>, platform: &mut Platform) {
    let mut cpu = |apic_id: u32, flags: u32| {
        if flags & CPU_ENABLED == 0 {
            return;
        }
        match platform.apic_ids.get_mut(platform.cpus) {
            Some(slot) => {
                *slot = apic_id;
                platform.cpus += 1;
            }
            None => platform.cpus_ignored += 1,
        }
    };
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(entry) => cpu(u32::from(entry.apic_id), entry.flags),
            MadtEntry::LocalX2Apic(entry) => cpu(entry.x2apic_id, entry.flags),
            MadtEntry::IoApic(entry) => {
                ioapic_create(
                    u64::from(entry.io_apic_address),
                    entry.global_system_interrupt_base,
                );
            }
            MadtEntry::InterruptSourceOverride(entry) => {
                // MPS INTI flags: 0 as the bus, 1 high or edge, 3 low or level.
                let choice = |bits: u16| match bits & 3 {
                    1 => Some(false),
                    3 => Some(true),
                    _ => None,
                };
                set_source_override(
                    entry.irq,
                    SourceOverride {
                        gsi: entry.global_system_interrupt,
                        active_low: choice(entry.flags),
                        level: choice(entry.flags >> 2),
                    },
                );
            }
            _ => {}
        }
    }
}

/// Starts the HPET; `None` if it does not say how fast it counts, as it must (IA-PC HPET 1.0a §2.3.4).
fn hpet_start(pa: u64) -> Option<Reference> {
    let registers = pmap_mapdev(pa, 0x400).as_ptr() as usize;
    // SAFETY: `registers` maps the HPET, which nobody else uses; 32-bit accesses are allowed.
    unsafe {
        let period_fs = ((registers + HPET_PERIOD) as *const u32).read_volatile();
        if !(1..=HPET_PERIOD_MAX_FS).contains(&period_fs) {
            return None;
        }
        let config = (registers + HPET_CONFIG) as *mut u32;
        config.write_volatile(config.read_volatile() | HPET_CONFIG_ENABLE);
        Some(Reference::Hpet {
            counter: registers + HPET_MAIN_COUNTER,
            period_fs,
        })
    }
}

/// Finds SLP_TYPa of `Name (_S5, Package () { a, b, … })` in AML.
fn find_s5(pa: u64, len: u64) -> Option<u16> {
    if !dmap_covers(pa, len) {
        return None;
    }
    // SAFETY: the direct map covers the table, which nobody writes.
    let aml = unsafe { core::slice::from_raw_parts(phys_to_virt(pa), len as usize) };
    let at = aml.windows(4).position(|name| name == b"_S5_")? + 4;
    let [0x12, lead, rest @ ..] = aml.get(at..)? else {
        return None;
    };
    // PkgLength: the two high bits say how many bytes follow; then comes the number of elements.
    match rest.get(usize::from(lead >> 6) + 1..)? {
        [0x0a, value, ..] => Some(u16::from(*value)),
        [value @ 0..=1, ..] => Some(u16::from(*value)),
        _ => None,
    }
}
