//! Pages of physical memory.
//!
//! FreeBSD: sys/vm/vm_page.c, sys/vm/vm_phys.c
//! Differs from FreeBSD: all memory is the kernel's, wired and in the direct map, so a page has no object, no queue and
//! no state besides free or not. The buddy system of `vm_phys` is all that is left.

use crate::kern::kern_mutex::SpinMutex;
use crate::kern::lock_order::VmPage;
use crate::machine;
use crate::machine::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::machine_local;
use crate::param::{PAGE_SHIFT, PAGE_SIZE, round_up};
use core::mem::size_of;
use core::ptr::{self, NonNull};

/// Block sizes: one page to `1 << (ORDERS - 1)` pages (1 GiB).
const ORDERS: usize = 19;

/// Stands in the first page of every free block.
struct FreeBlock {
    next: *mut FreeBlock,
    prev: *mut FreeBlock,
    pfn: u64,
}

/// Counts of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmPageStats {
    /// Pages managed.
    pub total: usize,
    /// Pages free.
    pub free: usize,
}

impl VmPageStats {
    /// With fewer pages free than this, zones are asked to give some back.
    #[doc(alias = "v_free_min")]
    pub fn low_water(&self) -> usize {
        self.total / 32
    }
}

/// The buddy system over the machine's memory.
///
/// Invariant: `state[pfn - base]` is `order + 1` for the first page of a free block of that order, and 0 for every
/// other page; a block of order `n` is aligned to `1 << n` pages; free blocks are linked by their order and nobody else
/// reaches their memory.
struct Buddy {
    base: u64,
    span: usize,
    state: *mut u8,
    /// For each page, the slab it belongs to.
    slabs: *mut AtomicPtr<()>,
    free: [*mut FreeBlock; ORDERS],
    stats: VmPageStats,
    /// From physical to virtual: the direct map.
    map: fn(u64) -> *mut u8,
}

// SAFETY: the pointers are to memory that the allocator owns.
unsafe impl Send for Buddy {}

impl Buddy {
    const fn new(map: fn(u64) -> *mut u8) -> Self {
        Self {
            base: 0,
            span: 0,
            state: ptr::null_mut(),
            slabs: ptr::null_mut(),
            free: [ptr::null_mut(); ORDERS],
            stats: VmPageStats { total: 0, free: 0 },
            map,
        }
    }

    /// Takes over `ranges` (start and end addresses). The table of states is put into the largest.
    ///
    /// # Safety
    /// The ranges are memory that nothing else uses, mapped by `map`.
    unsafe fn startup(&mut self, ranges: impl Iterator<Item = (u64, u64)> + Clone) {
        let pages =
            |(start, end): (u64, u64)| (start.div_ceil(PAGE_SIZE as u64), end >> PAGE_SHIFT);
        let ranges = ranges.map(pages).filter(|(start, end)| start < end);
        let (Some(first), Some(last), Some(largest)) = (
            ranges.clone().map(|(start, _)| start).min(),
            ranges.clone().map(|(_, end)| end).max(),
            ranges.clone().max_by_key(|(start, end)| end - start),
        ) else {
            return;
        };
        self.base = first;
        self.span = (last - first) as usize;
        let slabs_at = round_up(self.span, size_of::<AtomicPtr<()>>());
        let table = slabs_at + self.span * size_of::<AtomicPtr<()>>();
        let table_pages = table.div_ceil(PAGE_SIZE) as u64;
        assert!(
            table_pages < largest.1 - largest.0,
            "vm_page: no room for the page table"
        );
        self.state = (self.map)(largest.0 << PAGE_SHIFT);
        // SAFETY: the start of the largest range, which is ours and large enough.
        unsafe {
            self.slabs = self.state.add(slabs_at).cast();
            self.state.write_bytes(0, self.span);
            if cfg!(target_os = "none") {
                // (The host's pages are zero already, and those that are not touched cost nothing.)
                self.slabs.write_bytes(0, self.span);
            }
        }
        for (start, end) in ranges {
            let start = if start == largest.0 {
                start + table_pages
            } else {
                start
            };
            self.stats.total += (end - start) as usize;
            self.free_range(start, end);
        }
    }

    fn state(&mut self, pfn: u64) -> &mut u8 {
        let index = (pfn - self.base) as usize;
        assert!(index < self.span, "vm_page: no such page");
        // SAFETY: `startup` made the table `span` long.
        unsafe { &mut *self.state.add(index) }
    }

    fn block(&self, pfn: u64) -> *mut FreeBlock {
        (self.map)(pfn << PAGE_SHIFT).cast()
    }

    fn insert(&mut self, pfn: u64, order: usize) {
        *self.state(pfn) = order as u8 + 1;
        let block = self.block(pfn);
        let next = self.free[order];
        // SAFETY: `block` is the first page of a free block, thus ours, and so is `next`.
        unsafe {
            block.write(FreeBlock {
                next,
                prev: ptr::null_mut(),
                pfn,
            });
            if !next.is_null() {
                (*next).prev = block;
            }
        }
        self.free[order] = block;
    }

    fn remove(&mut self, pfn: u64, order: usize) {
        *self.state(pfn) = 0;
        let block = self.block(pfn);
        // SAFETY: `state` said that a free block of this order begins here; its neighbours are such too.
        unsafe {
            let FreeBlock { next, prev, .. } = block.read();
            if prev.is_null() {
                self.free[order] = next;
            } else {
                (*prev).next = next;
            }
            if !next.is_null() {
                (*next).prev = prev;
            }
        }
    }

    /// Takes a block of `1 << order` pages; returns its first page number.
    fn alloc(&mut self, order: usize) -> Option<u64> {
        let found = (order..ORDERS).find(|&order| !self.free[order].is_null())?;
        // SAFETY: what the lists hold are free blocks.
        let pfn = unsafe { (*self.free[found]).pfn };
        self.remove(pfn, found);
        for half in (order..found).rev() {
            self.insert(pfn + (1 << half), half);
        }
        self.stats.free -= 1 << order;
        Some(pfn)
    }

    /// Gives a block back, joining it with its buddies.
    fn free(&mut self, mut pfn: u64, mut order: usize) {
        assert!(*self.state(pfn) == 0, "vm_page: page freed twice");
        self.stats.free += 1 << order;
        while order + 1 < ORDERS {
            let buddy = pfn ^ (1 << order);
            let managed = buddy >= self.base && buddy - self.base < self.span as u64;
            if !managed || *self.state(buddy) != order as u8 + 1 {
                break;
            }
            self.remove(buddy, order);
            pfn = pfn.min(buddy);
            order += 1;
        }
        self.insert(pfn, order);
    }

    /// Frees the pages `start .. end` in the largest aligned blocks.
    fn free_range(&mut self, mut start: u64, end: u64) {
        while start < end {
            let by_alignment = start.trailing_zeros() as usize;
            let by_length = (end - start).ilog2() as usize;
            let order = by_alignment.min(by_length).min(ORDERS - 1);
            self.free(start, order);
            start += 1 << order;
        }
    }

    /// Whether so few pages are free that zones should give some back.
    #[doc(alias = "vm_page_count_min")]
    fn is_short(&self) -> bool {
        self.stats.free < self.stats.low_water()
    }

    /// Takes `pages` contiguous pages aligned to `align` pages: a block, less what is not needed at its end.
    fn alloc_contig(&mut self, pages: usize, align: usize) -> Option<u64> {
        let order = pages.max(align).next_power_of_two().ilog2() as usize;
        if order >= ORDERS {
            return None;
        }
        let pfn = self.alloc(order)?;
        self.free_range(pfn + pages as u64, pfn + (1 << order));
        Some(pfn)
    }
}

machine_local! {
    static VM: SpinMutex<Option<Buddy>, VmPage> = SpinMutex::new(None);
}

/// Runs `f` on the allocator, which takes over the machine's memory at the first call.
fn with<R>(f: impl FnOnce(&mut Buddy) -> R) -> R {
    let mut vm = VM.get().lock();
    let buddy = vm.get_or_insert_with(|| {
        let mut buddy = Buddy::new(machine::phys_to_virt);
        let ranges = machine::phys_avail()
            .iter()
            .map(|range| (range.start, range.end));
        // SAFETY: `phys_avail` lists memory that the machine gave to us and to nobody else, and this happens once.
        unsafe { buddy.startup(ranges) };
        let slabs = SLABS.get();
        slabs.base.store(buddy.base, Ordering::Relaxed);
        slabs.span.store(buddy.span, Ordering::Relaxed);
        slabs.table.store(buddy.slabs, Ordering::Release);
        buddy
    });
    f(buddy)
}

/// Which slab each page belongs to, to be read without a lock: an item keeps its slab where it is.
struct SlabTable {
    base: AtomicU64,
    span: AtomicUsize,
    table: AtomicPtr<AtomicPtr<()>>,
}

machine_local! {
    static SLABS: SlabTable = SlabTable {
        base: AtomicU64::new(0),
        span: AtomicUsize::new(0),
        table: AtomicPtr::new(ptr::null_mut()),
    };
}

fn slab_entry(page: NonNull<u8>) -> Option<&'static AtomicPtr<()>> {
    let slabs = SLABS.get();
    let table = slabs.table.load(Ordering::Acquire);
    let pfn = machine::virt_to_phys(page.as_ptr()) >> PAGE_SHIFT;
    let index = pfn.wrapping_sub(slabs.base.load(Ordering::Relaxed)) as usize;
    // SAFETY: the table has an entry for each page of the span, and lives as long as the machine.
    (index < slabs.span.load(Ordering::Relaxed)).then(|| unsafe { &*table.add(index) })
}

/// Makes pages that came from `alloc_contig` lead to `slab`, or to nothing.
#[doc(alias = "vsetzoneslab")]
pub(super) fn set_slab(first: NonNull<u8>, pages: usize, slab: *mut ()) {
    for page in 0..pages {
        // SAFETY: in the pages that the caller has.
        let page = unsafe { first.add(page * PAGE_SIZE) };
        if let Some(entry) = slab_entry(page) {
            entry.store(slab, Ordering::Release);
        }
    }
}

/// The slab that the page under `item` belongs to; null if it is none's.
#[doc(alias = "vtozoneslab")]
pub(super) fn vtoslab(item: NonNull<u8>) -> *mut () {
    slab_entry(item).map_or(ptr::null_mut(), |entry| entry.load(Ordering::Acquire))
}

/// Takes `pages` contiguous pages whose first address is a multiple of `align_pages` pages (a power of two), through the
/// direct map. Their contents are unspecified but initialised.
///
/// May be called as soon as the machine knows its memory, from anywhere but a non-maskable interrupt.
#[doc(alias = "vm_page_alloc_contig")]
pub fn alloc_contig(pages: usize, align_pages: usize) -> Option<NonNull<u8>> {
    if pages == 0 {
        return None;
    }
    let (pfn, short) = with(|vm| (vm.alloc_contig(pages, align_pages), vm.is_short()));
    if short {
        super::uma_core::lowmem();
    }
    let pfn = pfn?;
    NonNull::new(machine::phys_to_virt(pfn << PAGE_SHIFT))
}

/// Gives pages back.
///
/// # Safety
/// They came from `alloc_contig`, in one or several calls, and nothing reaches them any more.
#[doc(alias = "vm_page_free_contig")]
pub unsafe fn free_contig(first: NonNull<u8>, pages: usize) {
    let pfn = machine::virt_to_phys(first.as_ptr()) >> PAGE_SHIFT;
    with(|vm| vm.free_range(pfn, pfn + pages as u64));
}

/// Counts now.
pub fn stats() -> VmPageStats {
    with(|vm| vm.stats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::alloc::Layout;
    use std::vec::Vec;

    /// Some memory of the host to hand out, where physical is virtual.
    struct Arena {
        base: *mut u8,
        layout: Layout,
    }

    impl Arena {
        fn new(pages: usize) -> Self {
            let layout = Layout::from_size_align(pages * PAGE_SIZE, 256 * PAGE_SIZE).unwrap();
            // SAFETY: not of size 0.
            let base = unsafe { std::alloc::alloc_zeroed(layout) };
            let _ = base.expose_provenance();
            Self { base, layout }
        }

        fn buddy(&self, holes: &[(usize, usize)]) -> Buddy {
            let mut buddy = Buddy::new(|pa| ptr::with_exposed_provenance_mut(pa as usize));
            let at = |page: usize| (self.base.addr() + page * PAGE_SIZE) as u64;
            let ranges = holes.iter().map(|&(start, end)| (at(start), at(end)));
            // SAFETY: the arena is ours, and the ranges of the tests lie in it.
            unsafe { buddy.startup(ranges) };
            buddy
        }
    }

    impl Drop for Arena {
        fn drop(&mut self) {
            // SAFETY: allocated with this layout.
            unsafe { std::alloc::dealloc(self.base, self.layout) }
        }
    }

    #[test]
    fn everything_can_be_taken_page_by_page_and_given_back_as_it_was() {
        let arena = Arena::new(300);
        let mut vm = arena.buddy(&[(1, 100), (101, 300)]);
        assert_eq!(
            vm.stats,
            VmPageStats {
                total: 297,
                free: 297
            }
        );
        let mut taken: Vec<u64> = core::iter::from_fn(|| vm.alloc_contig(1, 1)).collect();
        assert_eq!(taken.len(), 297);
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), 297, "no page twice");
        for pfn in taken {
            vm.free(pfn, 0);
        }
        assert_eq!(vm.stats.free, 297);
        assert!(vm.alloc_contig(128, 128).is_some(), "pages joined again");
    }

    #[test]
    fn a_run_that_is_no_power_of_two_costs_only_its_pages() {
        let arena = Arena::new(128);
        let mut vm = arena.buddy(&[(0, 128)]);
        let before = vm.stats.free;
        let run = vm.alloc_contig(9, 4).unwrap();
        assert_eq!(run % 4, 0);
        assert_eq!(vm.stats.free, before - 9);
        vm.free_range(run, run + 9);
        assert_eq!(vm.stats.free, before);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_page_freed_twice_is_noticed() {
        let arena = Arena::new(64);
        let mut vm = arena.buddy(&[(0, 64)]);
        let pfn = vm.alloc(0).unwrap();
        vm.free(pfn, 0);
        vm.free(pfn, 0);
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_comes_back(
            ops in proptest::collection::vec((1_usize..40, 0_u32..6, any::<prop::sample::Index>()), 1..200),
        ) {
            let arena = Arena::new(512);
            let mut vm = arena.buddy(&[(3, 200), (220, 512)]);
            let all = vm.stats.free;
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (pages, align, pick) in ops {
                if pages % 3 == 0 && !held.is_empty() {
                    let (start, end) = held.swap_remove(pick.index(held.len()));
                    vm.free_range(start, end);
                } else if let Some(pfn) = vm.alloc_contig(pages, 1 << align) {
                    let end = pfn + pages as u64;
                    prop_assert_eq!(pfn % (1 << align), 0);
                    prop_assert!(held.iter().all(|&(s, e)| end <= s || e <= pfn), "overlap");
                    held.push((pfn, end));
                }
                let taken: u64 = held.iter().map(|(s, e)| e - s).sum();
                prop_assert_eq!(vm.stats.free as u64, all as u64 - taken);
            }
            for (start, end) in held {
                vm.free_range(start, end);
            }
            prop_assert_eq!(vm.stats.free, all);
        }
    }
}
