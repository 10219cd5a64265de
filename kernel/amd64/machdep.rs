//! From the first Rust instruction to the machine-independent start.
//!
//! FreeBSD: sys/amd64/amd64/machdep.c (hammer_time, getmemsize)

use super::pvh::{BootInfo, MEMMAP_MAX, MemoryKind};
use super::{acpi, identcpu, mp_machdep, panic, trap, uart_cons};
use alloc::boxed::Box;
use kernel::init_main::Machdep;
use kernel::{cmdline, init_main, ksyms};
use spin::mutex::SpinMutex;
use sys::kern::kern_thread;
use sys::machine::PhysRange;
use sys::machine::amd64::cpufunc::outb;
use sys::machine::amd64::pmap::{
    KERNBASE, KernelImage, PAGE_SIZE, Segment, phys_to_virt, pmap_bootstrap,
};
use sys::machine::amd64::{clock, local_apic, pcpu_machdep, pmap, random, set_phys_avail, uart};
use sys::machine::virt_to_phys;
use sys::vm::vm_page::alloc_contig;

/// Kept for page tables, interrupt stacks and the first threads' stacks.
const BOOT_PAGES: u64 = 2 << 20;
/// The boot page tables show this much.
const BOOT_MAPPED: u64 = 1 << 30;
/// Below it is firmware, and the page other CPUs start in.
const LOW_MEMORY: u64 = 1 << 20;

unsafe extern "C" {
    static kernel_start: u8;
    static kernel_etext: u8;
    static kernel_erodata: u8;
    static kernel_end: u8;
    static boot_stack_guard: u8;
}

static BOOT_INFO: SpinMutex<BootInfo> = SpinMutex::new(BootInfo::new());

fn image() -> KernelImage {
    let pa = |symbol: *const u8| symbol as u64 - KERNBASE;
    let (start, etext) = (pa(&raw const kernel_start), pa(&raw const kernel_etext));
    let (erodata, end) = (pa(&raw const kernel_erodata), pa(&raw const kernel_end));
    KernelImage {
        text: Segment { start, end: etext },
        rodata: Segment {
            start: etext,
            end: erodata,
        },
        data: Segment {
            start: erodata,
            end,
        },
        guard: pa(&raw const boot_stack_guard),
    }
}

/// Called by the boot code, on the boot page tables.
#[unsafe(no_mangle)]
extern "C" fn hammer_time(start_info: u32) -> ! {
    pcpu_machdep::pcpu_init(0);
    uart::uart_init();
    clock::clock_early();
    trap::idt_init();
    sys::machine::amd64::machdep::identify_hypervisor();

    let mut info = BOOT_INFO.lock();
    // SAFETY: the boot page tables are in use, and so far only the image's memory.
    let read = unsafe { info.read(u64::from(start_info)) };
    if let Err(why) = read {
        panic!("boot: {why}");
    }
    init_memory(&info, &image());
    trap::ist_alloc(0);
    trap::gdt_init(0);
    if info.symbols.end > info.symbols.start {
        let len = (info.symbols.end - info.symbols.start) as usize;
        // SAFETY: the module is in the direct map, and `init_memory` gave its memory to nobody.
        ksyms::ksyms_set(unsafe {
            core::slice::from_raw_parts(phys_to_virt(info.symbols.start), len)
        });
    }

    // The heap works since memory does; with a current thread so do locks and messages.
    kern_thread::init0();
    pmap::set_page_source(|| alloc_contig(1, 1).map(|page| virt_to_phys(page.as_ptr())));
    init_main::announce();
    mask_8259();
    // SAFETY: the address is the boot loader's.
    let platform = unsafe { acpi::acpi_init(info.rsdp) };
    local_apic::lapic_init();
    local_apic::lapic_calibrate_timer(&platform.reference);
    random::random_init();
    mp_machdep::number_cpus(&platform.apic_ids[..platform.cpus]);

    cmdline::set(Box::leak(Box::from(info.cmdline())));
    let ram = info
        .memory()
        .iter()
        .filter(|range| range.kind == MemoryKind::Ram);
    let physmem = ram
        .map(|range| range.segment.end - range.segment.start)
        .sum();
    drop(info);
    identcpu::announce_cpu();
    identcpu::announce_machine(&platform, physmem);

    identcpu::register_sysctls();
    local_apic::lapic_timer_start();
    sys::machine::amd64::cpufunc::enable_intr();
    init_main::mi_startup(&Machdep {
        start_all_aps: mp_machdep::start_all_aps,
        attach_console: uart_cons::uart_cons_attach,
        model: identcpu::model,
        physmem,
        crash: panic::crash,
    })
}

/// Goes over to the kernel's own page tables, and says what memory is left.
fn init_memory(info: &BootInfo, image: &KernelImage) {
    let whole_image = Segment {
        start: image.text.start,
        end: image.data.end,
    };
    let pages = |s: Segment| Segment {
        start: s.start.next_multiple_of(PAGE_SIZE),
        end: s.end & !(PAGE_SIZE - 1),
    };
    let taken = [
        Segment {
            start: 0,
            end: LOW_MEMORY,
        },
        whole_image,
        Segment {
            start: info.symbols.start & !(PAGE_SIZE - 1),
            end: info.symbols.end.next_multiple_of(PAGE_SIZE),
        },
    ];
    let mut free = Free::new();
    for range in info.memory().iter().filter(|r| r.kind == MemoryKind::Ram) {
        free.add(pages(range.segment));
    }
    taken.iter().for_each(|segment| free.remove(*segment));

    let low = |s: &&Segment| s.end.min(BOOT_MAPPED).saturating_sub(s.start) >= BOOT_PAGES;
    let Some(home) = free.segments().iter().find(low) else {
        panic!("boot: no memory");
    };
    let boot_pages = Segment {
        start: home.start,
        end: home.start + BOOT_PAGES,
    };
    free.remove(boot_pages);

    // The direct map shows RAM and what firmware keeps at its end (the ACPI tables).
    let mut shown = [Segment::default(); MEMMAP_MAX];
    let mut count = 0;
    for range in info.memory() {
        let after_ram = shown[..count]
            .last()
            .is_some_and(|ram: &Segment| ram.end == range.segment.start);
        if range.kind != MemoryKind::Reserved || after_ram {
            shown[count] = range.segment;
            count += 1;
        }
    }
    // SAFETY: once, on the boot page tables; the linker's symbols describe the image, and the boot pages are
    // free RAM in the first GiB.
    unsafe { pmap_bootstrap(&shown[..count], image, boot_pages) };
    set_phys_avail(free.segments().iter().map(|s| PhysRange {
        start: s.start,
        end: s.end,
    }));
}

/// Free memory while the map is being read: segments in any order.
struct Free {
    segments: [Segment; MEMMAP_MAX],
    count: usize,
}

impl Free {
    fn new() -> Self {
        Self {
            segments: [Segment::default(); MEMMAP_MAX],
            count: 0,
        }
    }

    fn segments(&self) -> &[Segment] {
        &self.segments[..self.count]
    }

    fn add(&mut self, segment: Segment) {
        if segment.start < segment.end && self.count < MEMMAP_MAX {
            self.segments[self.count] = segment;
            self.count += 1;
        }
    }

    fn remove(&mut self, taken: Segment) {
        let before = core::mem::replace(self, Self::new());
        for &segment in before.segments() {
            if segment.overlaps(&taken) {
                self.add(Segment {
                    end: taken.start.min(segment.end).max(segment.start),
                    ..segment
                });
                self.add(Segment {
                    start: taken.end.max(segment.start).min(segment.end),
                    ..segment
                });
            } else {
                self.add(segment);
            }
        }
    }
}

/// Silences the old interrupt controllers; the I/O APICs do their work.
fn mask_8259() {
    // SAFETY: the ports of the two 8259s, which nobody else uses: vectors out of the way, then all masked.
    unsafe {
        for (command, vectors, wiring) in [(0x20u16, 0x20u8, 4u8), (0xa0, 0x28, 2)] {
            outb(command, 0x11);
            outb(command + 1, vectors);
            outb(command + 1, wiring);
            outb(command + 1, 0x01);
            outb(command + 1, 0xff);
        }
    }
}
