//! The kernel's address space: image, direct map, and a window for stacks, heap and devices.
//!
//! FreeBSD: sys/amd64/amd64/pmap.c, sys/amd64/include/vmparam.h
//! Differs from FreeBSD: there is only the kernel's map, and a page once entered in the window is never taken
//! out again, so no CPU ever has to be told to forget a translation.
//!
//! Nothing is both writable and executable: text is RX, rodata R, all else RW and NX, and where the direct map
//! shows text and rodata a second time it shows them read-only.

use super::cpufunc::{invlpg, load_cr3};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::mutex::SpinMutex;

/// Where the image is linked, less its load address.
pub const KERNBASE: u64 = 0xffff_ffff_8000_0000;
/// Physical memory, seen from here (DMAP_MIN_ADDRESS).
pub const DMAP_BASE: u64 = 0xffff_f800_0000_0000;
/// The window: a quarter each for the heap, stacks and devices, the last unused.
const WINDOW_BASE: u64 = 0xffff_fe00_0000_0000;
const WINDOW_PART: u64 = 1 << 36;
/// Where the heap grows.
pub const HEAP_BASE: u64 = WINDOW_BASE;
/// How far the heap may grow.
pub const HEAP_MAX: u64 = WINDOW_PART;
const STACK_BASE: u64 = WINDOW_BASE + WINDOW_PART;
const DEVICE_BASE: u64 = WINDOW_BASE + 2 * WINDOW_PART;

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;

// Page table entry bits (SDM vol. 3, §4.5).
const PG_V: u64 = 1 << 0;
const PG_RW: u64 = 1 << 1;
const PG_NC: u64 = 1 << 3 | 1 << 4;
const PG_A: u64 = 1 << 5;
const PG_M: u64 = 1 << 6;
const PG_PS: u64 = 1 << 7;
const PG_G: u64 = 1 << 8;
const PG_NX: u64 = 1 << 63;
const PG_FRAME: u64 = 0x000f_ffff_ffff_f000;

/// How a page may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Read and execute.
    ReadExecute,
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
    /// Read and write, uncached.
    Device,
}

impl Protection {
    const fn bits(self) -> u64 {
        PG_V | PG_A
            | PG_G
            | match self {
                Self::ReadExecute => 0,
                Self::Read => PG_NX,
                Self::ReadWrite => PG_NX | PG_RW | PG_M,
                Self::Device => PG_NX | PG_RW | PG_M | PG_NC,
            }
    }
}

/// A range of physical memory, `start` included, `end` not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// First byte.
    pub start: u64,
    /// First byte beyond.
    pub end: u64,
}

impl Segment {
    /// Whether the two share a byte.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Where the image's parts lie, in physical memory; page aligned.
#[derive(Clone, Copy, Debug)]
pub struct KernelImage {
    /// Executed.
    pub text: Segment,
    /// Only read.
    pub rodata: Segment,
    /// Written.
    pub data: Segment,
    /// A page of `data` that stays unmapped, below the boot stack.
    pub guard: u64,
}

/// Root of the page tables.
static KERNEL_PML4: AtomicU64 = AtomicU64::new(0);
/// Offset at which page tables can be reached: KERNBASE on the boot tables, later DMAP_BASE.
static TABLE_OFFSET: AtomicU64 = AtomicU64::new(KERNBASE);
/// End of what the direct map shows.
static DMAP_END: AtomicU64 = AtomicU64::new(0);
/// The unmapped page below the first thread's stack.
static BOOT_GUARD: AtomicU64 = AtomicU64::new(0);
static WINDOW: SpinMutex<Window> = SpinMutex::new(Window {
    next_stack: STACK_BASE,
    next_device: DEVICE_BASE,
    free_stacks: 0,
    boot_pages: Segment { start: 0, end: 0 },
    page_source: None,
});

struct Window {
    next_stack: u64,
    next_device: u64,
    /// Chain of stacks given back: each names the next in the word at its base.
    free_stacks: usize,
    /// Pages used before the page allocator runs.
    boot_pages: Segment,
    /// The page allocator.
    page_source: Option<fn() -> Option<u64>>,
}

/// Where the direct map shows `pa`.
#[inline]
pub fn phys_to_virt(pa: u64) -> *mut u8 {
    debug_assert!(
        pa < DMAP_END.load(Ordering::Relaxed),
        "physical address beyond memory"
    );
    (DMAP_BASE + pa) as *mut u8
}

/// The physical address behind a pointer into the direct map, the image or the window.
#[inline]
pub fn virt_to_phys(ptr: *const u8) -> u64 {
    let va = ptr as u64;
    if (DMAP_BASE..WINDOW_BASE).contains(&va) {
        va - DMAP_BASE
    } else {
        pmap_kextract(va).expect("address is mapped")
    }
}

/// Whether the direct map shows all of `len` bytes at `pa`.
pub fn dmap_covers(pa: u64, len: u64) -> bool {
    pa.checked_add(len)
        .is_some_and(|end| end <= DMAP_END.load(Ordering::Relaxed))
}

/// Root of the page tables, for the CPUs that come later.
pub fn kernel_pml4() -> u64 {
    KERNEL_PML4.load(Ordering::Relaxed)
}

/// Builds the kernel's own page tables and changes over to them.
///
/// `memory` is what the direct map shows; `boot_pages` lies in the first GiB and is used up from its start.
///
/// # Safety
/// Runs once, on the boot tables, with true descriptions of the image and of free memory.
pub unsafe fn pmap_bootstrap(memory: &[Segment], image: &KernelImage, boot_pages: Segment) {
    let mut window = WINDOW.lock();
    window.boot_pages = boot_pages;
    BOOT_GUARD.store(KERNBASE + image.guard, Ordering::Relaxed);
    let pml4 = window.page();
    KERNEL_PML4.store(pml4, Ordering::Relaxed);

    for (segment, protection) in [
        (image.text, Protection::ReadExecute),
        (image.rodata, Protection::Read),
        (image.data, Protection::ReadWrite),
    ] {
        for pa in (segment.start..segment.end).step_by(PAGE_SIZE as usize) {
            if pa != image.guard {
                window.enter(KERNBASE + pa, pa, protection);
            }
        }
    }

    let read_only = Segment {
        start: image.text.start,
        end: image.rodata.end,
    };
    let mut end = 0;
    for segment in memory {
        let first = segment.start & !(LARGE_PAGE - 1);
        for large in (first..segment.end).step_by(LARGE_PAGE as usize) {
            let chunk = Segment {
                start: large,
                end: large + LARGE_PAGE,
            };
            end = end.max(chunk.end);
            if !chunk.overlaps(&read_only) {
                *window.entry(DMAP_BASE + large, 2) = large | PG_PS | Protection::ReadWrite.bits();
                continue;
            }
            for pa in (chunk.start..chunk.end).step_by(PAGE_SIZE as usize) {
                let shared = (read_only.start..read_only.end).contains(&pa);
                let protection = if shared {
                    Protection::Read
                } else {
                    Protection::ReadWrite
                };
                window.enter(DMAP_BASE + pa, pa, protection);
            }
        }
    }
    // SAFETY: the new tables show the image where it is, this stack (part of it) included.
    unsafe { load_cr3(pml4) };
    DMAP_END.store(end, Ordering::Relaxed);
    TABLE_OFFSET.store(DMAP_BASE, Ordering::Relaxed);
}

/// Takes zeroed, contiguous pages that never come back, before the page allocator runs.
pub fn boot_alloc(pages: u64) -> u64 {
    let mut window = WINDOW.lock();
    let pa = window.boot_pages.start;
    for _ in 0..pages {
        window.page();
    }
    pa
}

/// Names the page allocator: when the boot pages are used up, pages come from it, by physical address.
pub fn set_page_source(source: fn() -> Option<u64>) {
    with_window(|window| window.page_source = Some(source));
}

/// The physical address that `va` maps to.
pub fn pmap_kextract(va: u64) -> Option<u64> {
    let mut table = kernel_pml4();
    for level in (1..=4u32).rev() {
        let entry = *table_entry(table, va, level);
        if entry & PG_V == 0 {
            return None;
        }
        let size = PAGE_SIZE << (9 * (level - 1));
        if level == 1 || entry & PG_PS != 0 {
            return Some((entry & PG_FRAME & !(size - 1)) | (va & (size - 1)));
        }
        table = entry & PG_FRAME;
    }
    None
}

/// Enters `len` bytes of device memory at `pa`, uncached.
pub fn pmap_mapdev(pa: u64, len: usize) -> NonNull<u8> {
    let first = pa & !(PAGE_SIZE - 1);
    let end = (pa + len as u64).next_multiple_of(PAGE_SIZE);
    let va = with_window(|window| {
        let va = window.next_device;
        // An unmapped page between two devices.
        window.next_device += end - first + PAGE_SIZE;
        for offset in (0..end - first).step_by(PAGE_SIZE as usize) {
            window.enter(va + offset, first + offset, Protection::Device);
        }
        va
    });
    NonNull::new((va + pa - first) as *mut u8).expect("the window is not at 0")
}

/// Maps `len` bytes (whole pages) of fresh zeroed memory at `va` in the heap's part of the window. False if memory is
/// out; pages entered until then stay, and are used by the next try.
pub fn kmem_back(va: u64, len: u64) -> bool {
    assert!(
        va >= HEAP_BASE && va + len <= HEAP_BASE + HEAP_MAX,
        "heap window"
    );
    with_window(|window| {
        (va..va + len)
            .step_by(PAGE_SIZE as usize)
            .all(|va| window.back(va).is_some())
    })
}

/// Bytes of a kernel stack.
pub const KSTACK_SIZE: usize = 32 * 1024;

/// A thread's stack, with an unmapped page below.
#[derive(Debug)]
pub struct KStack {
    base: usize,
}

impl KStack {
    /// Allocates a stack; `None` if `size` is more than any stack has, or if memory is out.
    pub fn alloc(size: usize) -> Option<Self> {
        if size > KSTACK_SIZE {
            return None;
        }
        with_window(|window| {
            let free = window.free_stacks;
            if free != 0 {
                // SAFETY: a stack in the chain is mapped and unused, its first word is the link.
                window.free_stacks = unsafe { (free as *const usize).read() };
                return Some(Self { base: free });
            }
            let base = window.next_stack + PAGE_SIZE;
            for offset in (0..KSTACK_SIZE as u64).step_by(PAGE_SIZE as usize) {
                window.back(base + offset)?;
            }
            window.next_stack = base + KSTACK_SIZE as u64;
            Some(Self {
                base: base as usize,
            })
        })
    }

    /// One past the highest byte.
    pub fn top(&self) -> usize {
        self.base + KSTACK_SIZE
    }

    /// The lowest usable byte.
    pub fn bottom(&self) -> usize {
        self.base
    }
}

impl Drop for KStack {
    fn drop(&mut self) {
        with_window(|window| {
            // SAFETY: the stack is mapped, and with its owner gone nothing runs on it any more.
            unsafe { (self.base as *mut usize).write(window.free_stacks) };
            window.free_stacks = self.base;
        });
    }
}

/// Whether `va` lies on the unmapped page below a kernel stack.
pub fn is_stack_guard(va: u64) -> bool {
    va & !(PAGE_SIZE - 1) == BOOT_GUARD.load(Ordering::Relaxed)
        || (STACK_BASE..DEVICE_BASE).contains(&va)
            && (va - STACK_BASE) % (KSTACK_SIZE as u64 + PAGE_SIZE) < PAGE_SIZE
}

fn with_window<R>(f: impl FnOnce(&mut Window) -> R) -> R {
    let state = super::pcpu_machdep::intr_disable();
    let result = f(&mut WINDOW.lock());
    super::pcpu_machdep::intr_restore(state);
    result
}

/// The entry for `va` in a table of `level` (4: the root).
fn table_entry<'a>(table: u64, va: u64, level: u32) -> &'a mut u64 {
    let index = va >> (12 + 9 * (level - 1)) & 0x1ff;
    let entry = table + index * 8 + TABLE_OFFSET.load(Ordering::Relaxed);
    // SAFETY: `table` is a page table of ours, which is always mapped at this offset. Entries are changed only
    // under `WINDOW`, and a mere reader looks at a translation that it relies on to exist.
    unsafe { &mut *(entry as *mut u64) }
}

impl Window {
    /// A zeroed page, or `None` if memory is out.
    fn try_page(&mut self) -> Option<u64> {
        let page = if self.boot_pages.start < self.boot_pages.end {
            self.boot_pages.start += PAGE_SIZE;
            self.boot_pages.start - PAGE_SIZE
        } else {
            self.page_source?()?
        };
        let va = page + TABLE_OFFSET.load(Ordering::Relaxed);
        // SAFETY: the page is free, and mapped at this offset.
        unsafe { core::ptr::write_bytes(va as *mut u8, 0, PAGE_SIZE as usize) };
        Some(page)
    }

    fn page(&mut self) -> u64 {
        self.try_page().expect("memory for page tables")
    }

    /// The entry for `va` at `level`, with the tables above it made as needed.
    fn entry(&mut self, va: u64, level: u32) -> &mut u64 {
        let mut table = kernel_pml4();
        for above in (level + 1..=4).rev() {
            let entry = table_entry(table, va, above);
            if *entry & PG_V == 0 {
                *entry = self.page() | PG_V | PG_RW | PG_A;
            }
            table = *entry & PG_FRAME;
        }
        table_entry(table, va, level)
    }

    /// Maps the page `pa` at `va`, which had no translation before.
    fn enter(&mut self, va: u64, pa: u64, protection: Protection) {
        let entry = self.entry(va, 1);
        debug_assert!(*entry & PG_V == 0, "page entered twice");
        *entry = pa | protection.bits();
        invlpg(va);
    }

    /// Maps a zeroed page at `va` if there is none yet.
    fn back(&mut self, va: u64) -> Option<()> {
        if pmap_kextract(va).is_none() {
            let page = self.try_page()?;
            self.enter(va, page, Protection::ReadWrite);
        }
        Some(())
    }
}
