//! The I/O APICs: device lines to vectors.
//!
//! FreeBSD: sys/x86/x86/io_apic.c, sys/dev/acpica/madt.c (interrupt source overrides)

use super::pcpu_machdep::{apic_id_of, intr_disable, intr_restore};
use super::pmap::pmap_mapdev;
use spin::mutex::SpinMutex;

const IOAPIC_VER: u32 = 1;
const IOAPIC_REDTBL: u32 = 0x10;
/// Byte offset of the data window from the register selector.
const WINDOW: usize = 0x10;

const RTE_ACTIVE_LOW: u32 = 1 << 13;
const RTE_LEVEL: u32 = 1 << 15;
const RTE_MASKED: u32 = 1 << 16;

const MAX_IOAPICS: usize = 8;
const ISA_IRQS: usize = 16;

/// How an interrupt line signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signal {
    /// Level triggered, not edge.
    pub level: bool,
    /// Active low, not high.
    pub active_low: bool,
}

/// Where the MADT says an ISA interrupt really arrives.
#[derive(Clone, Copy, Debug)]
pub struct SourceOverride {
    /// Global number of the line.
    pub gsi: u32,
    /// Its signalling; `None` in a part: as the bus has it.
    pub level: Option<bool>,
    /// As `level`.
    pub active_low: Option<bool>,
}

#[derive(Clone, Copy)]
struct IoApic {
    registers: usize,
    first: u32,
    pins: u32,
}

struct IoApics {
    units: [Option<IoApic>; MAX_IOAPICS],
    overrides: [Option<SourceOverride>; ISA_IRQS],
}

static IOAPICS: SpinMutex<IoApics> = SpinMutex::new(IoApics {
    units: [None; MAX_IOAPICS],
    overrides: [None; ISA_IRQS],
});

impl IoApic {
    fn read(&self, reg: u32) -> u32 {
        // SAFETY: `ioapic_create` mapped the registers, and `IOAPICS` is locked.
        unsafe {
            (self.registers as *mut u32).write_volatile(reg);
            ((self.registers + WINDOW) as *const u32).read_volatile()
        }
    }

    fn write(&self, reg: u32, value: u32) {
        // SAFETY: as `read`.
        unsafe {
            (self.registers as *mut u32).write_volatile(reg);
            ((self.registers + WINDOW) as *mut u32).write_volatile(value);
        }
    }
}

impl IoApics {
    fn pin(&self, gsi: u32) -> Option<(IoApic, u32)> {
        let unit = self.units.iter().flatten();
        let unit = unit
            .copied()
            .find(|u| (u.first..u.first + u.pins).contains(&gsi))?;
        Some((unit, IOAPIC_REDTBL + 2 * (gsi - unit.first)))
    }
}

fn locked<R>(f: impl FnOnce(&mut IoApics) -> R) -> R {
    let state = intr_disable();
    let result = f(&mut IOAPICS.lock());
    intr_restore(state);
    result
}

/// Adds the I/O APIC at physical address `pa`, whose first pin is line `first`; all pins are masked. Returns how
/// many it has.
pub fn ioapic_create(pa: u64, first: u32) -> u32 {
    let registers = pmap_mapdev(pa, 0x20).as_ptr() as usize;
    let mut unit = IoApic {
        registers,
        first,
        pins: 0,
    };
    locked(|ioapics| {
        unit.pins = (unit.read(IOAPIC_VER) >> 16 & 0xff) + 1;
        for pin in 0..unit.pins {
            unit.write(IOAPIC_REDTBL + 2 * pin, RTE_MASKED);
        }
        if let Some(slot) = ioapics.units.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(unit);
        }
    });
    unit.pins
}

/// Records where ISA interrupt `irq` arrives.
pub fn set_source_override(irq: u8, to: SourceOverride) {
    locked(|ioapics| {
        if let Some(slot) = ioapics.overrides.get_mut(usize::from(irq)) {
            *slot = Some(to);
        }
    });
}

/// The line and signalling of ISA interrupt `irq`: edge and active high unless the MADT says otherwise.
pub fn isa_irq(irq: u8) -> (u32, Signal) {
    let over = locked(|ioapics| ioapics.overrides.get(usize::from(irq)).copied().flatten());
    (
        over.map_or(u32::from(irq), |o| o.gsi),
        Signal {
            level: over.and_then(|o| o.level).unwrap_or(false),
            active_low: over.and_then(|o| o.active_low).unwrap_or(false),
        },
    )
}

/// The line and signalling of a PCI function whose interrupt line register says `line`: level, and of the
/// polarity that the MADT gives, or else low as PCI has it.
pub fn pci_irq(line: u8) -> (u32, Signal) {
    let over = locked(|ioapics| ioapics.overrides.get(usize::from(line)).copied().flatten());
    (
        over.map_or(u32::from(line), |o| o.gsi),
        Signal {
            level: true,
            active_low: over.and_then(|o| o.active_low).unwrap_or(true),
        },
    )
}

/// The number after the last line of any I/O APIC.
pub fn ioapic_pins() -> u32 {
    locked(|ioapics| {
        ioapics
            .units
            .iter()
            .flatten()
            .map(|unit| unit.first + unit.pins)
            .max()
            .unwrap_or(0)
    })
}

/// Sends line `gsi` as `vector` to `cpu`, unmasked.
pub fn ioapic_program(gsi: u32, signal: Signal, vector: u8, cpu: usize) {
    locked(|ioapics| {
        let Some((unit, reg)) = ioapics.pin(gsi) else {
            return;
        };
        let mut low = u32::from(vector);
        if signal.level {
            low |= RTE_LEVEL;
        }
        if signal.active_low {
            low |= RTE_ACTIVE_LOW;
        }
        unit.write(reg, RTE_MASKED);
        unit.write(reg + 1, apic_id_of(cpu) << 24);
        unit.write(reg, low);
    });
}

/// Sends line `gsi` to `cpu`, by the vector that it has.
///
/// The destination has a register of its own, which one write changes: an interrupt goes to the old CPU or to the new one. The
/// line is not masked for it, which would lose an edge, nor made an edge for a moment, which would forget that an interrupt
/// is in service (82093AA data sheet §3.2.4).
pub fn ioapic_assign_cpu(gsi: u32, cpu: usize) {
    locked(|ioapics| {
        if let Some((unit, reg)) = ioapics.pin(gsi) {
            unit.write(reg + 1, apic_id_of(cpu) << 24);
        }
    });
}

/// Masks or unmasks line `gsi`.
pub fn ioapic_set_masked(gsi: u32, masked: bool) {
    locked(|ioapics| {
        if let Some((unit, reg)) = ioapics.pin(gsi) {
            let low = unit.read(reg);
            unit.write(
                reg,
                if masked {
                    low | RTE_MASKED
                } else {
                    low & !RTE_MASKED
                },
            );
        }
    });
}
