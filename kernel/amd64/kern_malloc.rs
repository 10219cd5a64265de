//! The general heap: `alloc`'s boxes, vectors and strings.
//!
//! FreeBSD: sys/kern/kern_malloc.c
//! Differs from FreeBSD: pieces of more than a page, and what is wanted before there are zones or from where these may not
//! be used, come from one free list (`linked_list_allocator`); the rest from the zones of `sys::vm::malloc`.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;
use spin::mutex::SpinMutex;
use sys::machine::amd64::pmap::{HEAP_BASE, HEAP_MAX, kmem_back};
use sys::machine::{intr_disable, intr_restore};
use sys::vm::malloc;

/// The heap grows by at least this much.
const GROWTH: usize = 512 * 1024;

struct KernelHeap(SpinMutex<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(SpinMutex::new(Heap::empty()));

impl KernelHeap {
    fn with<R>(&self, f: impl FnOnce(&mut Heap) -> R) -> R {
        let state = intr_disable();
        let result = f(&mut self.0.lock());
        intr_restore(state);
        result
    }
}

/// Maps more memory at the end of the heap, enough for `layout`.
fn grow(heap: &mut Heap, layout: Layout) -> bool {
    let wanted = (layout.size() + layout.align() + 64)
        .max(GROWTH)
        .next_multiple_of(GROWTH);
    let top = HEAP_BASE as usize + heap.size();
    if heap.size() + wanted > HEAP_MAX as usize || !kmem_back(top as u64, wanted as u64) {
        return false;
    }
    // SAFETY: the memory from `top` on was just mapped and is nobody else's.
    unsafe {
        if heap.size() == 0 {
            heap.init(top as *mut u8, wanted);
        } else {
            heap.extend(wanted);
        }
    }
    true
}

// SAFETY: the heap hands out disjoint pieces that fit their layout; the lock (with interrupts off, so that a handler
// cannot come in between) makes it one at a time.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(piece) = malloc::malloc(layout) {
            return piece.as_ptr();
        }
        self.with(|heap| {
            loop {
                if let Ok(piece) = heap.allocate_first_fit(layout) {
                    return piece.as_ptr();
                }
                if !grow(heap, layout) {
                    return core::ptr::null_mut();
                }
            }
        })
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let Some(piece) = NonNull::new(ptr) else {
            return;
        };
        if !(HEAP_BASE..HEAP_BASE + HEAP_MAX).contains(&(ptr.addr() as u64)) {
            // SAFETY: the caller got it from `alloc` with this layout, and as it is not in the list's window, from a zone.
            unsafe { malloc::free(piece, layout) };
            return;
        }
        // SAFETY: the caller got it from `alloc` with this layout.
        self.with(|heap| unsafe { heap.deallocate(piece, layout) });
    }
}

/// Bytes in use and bytes mapped.
pub fn heap_usage() -> (usize, usize) {
    HEAP.with(|heap| (heap.used(), heap.size()))
}
