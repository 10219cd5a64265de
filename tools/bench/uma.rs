//! Zones beside the allocators that a program would use.

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::OnceLock;

use linked_list_allocator::Heap;
use sys::machine::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use sys::vm::uma::{How, Zone, find_or_create};

use crate::rounds::{self, Case, Side};
use crate::table::{self, Bound, Goal, find};

/// An allocator for blocks of one size.
trait Allocator: Copy + Send + Sync + 'static {
    const NAME: &'static str;
    const SIDE: Side;
    fn new(size: usize) -> Self;
    fn alloc(self) -> NonNull<u8>;
    /// # Safety
    /// `block` came from `alloc` and is not used any more.
    unsafe fn free(self, block: NonNull<u8>);
}

#[derive(Clone, Copy)]
struct Uma(&'static Zone);

impl Allocator for Uma {
    const NAME: &'static str = "UMA";
    const SIDE: Side = Side::Ours;

    fn new(size: usize) -> Uma {
        let name = match size {
            256 => "bench 256",
            2048 => "bench 2048",
            _ => "bench",
        };
        Uma(find_or_create(name, size, 16))
    }

    // A call, as it is for the peers, whose code is not in Rust.
    #[inline(never)]
    fn alloc(self) -> NonNull<u8> {
        self.0.alloc(How::NoWait).expect("memory")
    }

    #[inline(never)]
    unsafe fn free(self, block: NonNull<u8>) {
        // SAFETY: promised by the caller.
        unsafe { self.0.free(block) };
    }
}

#[derive(Clone, Copy)]
struct System(usize);

impl Allocator for System {
    const NAME: &'static str = "system";
    const SIDE: Side = Side::Peer;

    fn new(size: usize) -> System {
        System(size)
    }

    #[inline(always)]
    fn alloc(self) -> NonNull<u8> {
        // SAFETY: has no conditions.
        NonNull::new(unsafe { libc::malloc(self.0) }.cast()).expect("memory")
    }

    #[inline(always)]
    unsafe fn free(self, block: NonNull<u8>) {
        // SAFETY: promised by the caller.
        unsafe { libc::free(block.as_ptr().cast()) };
    }
}

#[derive(Clone, Copy)]
struct Mimalloc(usize);

impl Allocator for Mimalloc {
    const NAME: &'static str = "mimalloc";
    const SIDE: Side = Side::Peer;

    fn new(size: usize) -> Mimalloc {
        Mimalloc(size)
    }

    #[inline(always)]
    fn alloc(self) -> NonNull<u8> {
        // SAFETY: has no conditions.
        NonNull::new(unsafe { libmimalloc_sys::mi_malloc(self.0) }.cast()).expect("memory")
    }

    #[inline(always)]
    unsafe fn free(self, block: NonNull<u8>) {
        // SAFETY: promised by the caller.
        unsafe { libmimalloc_sys::mi_free(block.as_ptr().cast()) };
    }
}

#[derive(Clone, Copy)]
struct LinkedList(usize);

static LIST: OnceLock<spin::Mutex<Heap>> = OnceLock::new();

impl LinkedList {
    fn heap() -> &'static spin::Mutex<Heap> {
        LIST.get_or_init(|| {
            const BYTES: usize = 64 << 20;
            let memory: &'static mut [std::mem::MaybeUninit<u8>] =
                Box::leak(Box::new_uninit_slice(BYTES));
            spin::Mutex::new(Heap::from_slice(memory))
        })
    }

    fn layout(self) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(self.0, 16).expect("a layout")
    }
}

impl Allocator for LinkedList {
    const NAME: &'static str = "linked list";
    const SIDE: Side = Side::Peer;

    fn new(size: usize) -> LinkedList {
        LinkedList::heap();
        LinkedList(size)
    }

    #[inline(never)]
    fn alloc(self) -> NonNull<u8> {
        let mut heap = LinkedList::heap().lock();
        heap.allocate_first_fit(self.layout()).expect("memory")
    }

    #[inline(never)]
    unsafe fn free(self, block: NonNull<u8>) {
        let mut heap = LinkedList::heap().lock();
        // SAFETY: promised by the caller.
        unsafe { heap.deallocate(block, self.layout()) };
    }
}

const SIZES: [usize; 2] = [256, 2048];
/// Blocks that are held at once.
const HELD: [usize; 2] = [1, 32];
const CROSSED: &str = "freed elsewhere";

/// Measures and prints.
pub fn measure() {
    let mut cases = Vec::new();
    for size in SIZES {
        add::<Uma>(&mut cases, size);
        add::<System>(&mut cases, size);
        add::<Mimalloc>(&mut cases, size);
        add::<LinkedList>(&mut cases, size);
    }
    for n in 1..=2 {
        cases.push(Case::threads(&alone(n), ALONE, Side::Ours, n, compute));
    }
    rounds::run(&mut cases);
    let columns = [Uma::NAME, System::NAME, Mimalloc::NAME, LinkedList::NAME];
    table::print(
        "UMA: ns to allocate, touch and free a block; of 2 threads, the time divided by the blocks of both",
        "blocks",
        &cases,
        &columns,
    );
    table::print(
        "What two CPUs of this machine do of one's: a computation that shares nothing, ns",
        "",
        &cases,
        &[ALONE],
    );
    goals(&cases);
}

const ALONE: &str = "computation";

fn alone(threads: u32) -> String {
    match threads {
        1 => "1 thread".into(),
        n => format!("{n} threads"),
    }
}

/// Loads and stores of the thread's own stack, each of which waits for the last, about as long as a block is allocated and freed.
#[inline(always)]
fn compute(_: usize, turn: u64) {
    let mut word = turn;
    for _ in 0..4 {
        word = black_box(word).wrapping_mul(5);
    }
    black_box(word);
}

fn row(size: usize, held: usize, threads: u32) -> String {
    let held = match held {
        1 => "one at a time".into(),
        n => format!("{n} at a time"),
    };
    let threads = match threads {
        1 => "1 thread".into(),
        n => format!("{n} threads"),
    };
    format!("{size} bytes, {held}, {threads}")
}

fn crossed(size: usize) -> String {
    format!("{size} bytes, {CROSSED}")
}

fn add<A: Allocator>(cases: &mut Vec<Case>, size: usize) {
    let allocator = A::new(size);
    for n in 1..=2 {
        cases.push(threads::<A, 1>(allocator, size, n));
        cases.push(threads::<A, 32>(allocator, size, n));
    }
    cases.push(cross(allocator, size));
}

/// Allocates `HELD` blocks, writes to a line of each, and frees them in the same order.
#[inline(always)]
fn work<A: Allocator, const HELD: usize>(allocator: A) {
    let mut blocks = [NonNull::<u8>::dangling(); HELD];
    for (n, block) in blocks.iter_mut().enumerate() {
        *block = allocator.alloc();
        touch(*block, n);
    }
    for block in black_box(&mut blocks) {
        // SAFETY: allocated above.
        unsafe { allocator.free(*block) };
    }
}

/// Writes to the block that is the `n`th of those held: to another line in each, since the first lines of blocks whose distance is a
/// power of two meet in a few sets of the cache, and which of them meet would decide what is measured.
#[inline(always)]
fn touch(block: NonNull<u8>, n: usize) {
    const LINE: usize = 64;
    let at = n % (SIZES[0] / LINE) * LINE;
    // SAFETY: the block is larger, aligned, and ours.
    unsafe { block.add(at).cast::<u64>().write_volatile(1) };
}

fn threads<A: Allocator, const HELD: usize>(allocator: A, size: usize, threads: u32) -> Case {
    let op = move |_, _| work::<A, HELD>(allocator);
    let row = row(size, HELD, threads);
    Case::threads(&row, A::NAME, A::SIDE, threads, op).divided_by(HELD as f64)
}

/// Blocks on their way from the thread that allocates them to the one that frees them.
struct Ring {
    slots: [AtomicPtr<u8>; 256],
    full: Padded,
    taken: Padded,
}

#[repr(align(128))]
struct Padded(AtomicUsize);

/// One thread allocates, the other frees: time per block.
fn cross<A: Allocator>(allocator: A, size: usize) -> Case {
    let ring = Arc::new(Ring {
        slots: [const { AtomicPtr::new(std::ptr::null_mut()) }; 256],
        full: Padded(AtomicUsize::new(0)),
        taken: Padded(AtomicUsize::new(0)),
    });
    // What one batch moves.
    const BLOCKS: usize = 32;
    let op = move |ring: &Ring, gone: &AtomicBool, side: usize| {
        let at = if side == 0 { &ring.full } else { &ring.taken };
        let start = at.0.load(Ordering::Relaxed);
        let room = || match side {
            0 => ring.slots.len() - (start - ring.taken.0.load(Ordering::Acquire)),
            _ => ring.full.0.load(Ordering::Acquire) - start,
        };
        while room() < BLOCKS {
            if gone.load(Ordering::Relaxed) {
                return false;
            }
            std::hint::spin_loop();
        }
        for n in start..start + BLOCKS {
            let slot = &ring.slots[n % ring.slots.len()];
            if side == 0 {
                let block = allocator.alloc();
                touch(block, n);
                slot.store(block.as_ptr(), Ordering::Relaxed);
            } else {
                let block = slot.load(Ordering::Relaxed);
                // SAFETY: the other thread allocated it and put it there.
                unsafe { allocator.free(NonNull::new_unchecked(block)) };
            }
        }
        at.0.store(start + BLOCKS, Ordering::Release);
        true
    };
    Case::new(&crossed(size), A::NAME, move || {
        let ring = Arc::clone(&ring);
        rounds::producer_and_consumer(A::SIDE, BLOCKS as f64, move |side, gone| {
            op(&ring, gone, side)
        })
    })
}

fn goals(cases: &[Case]) {
    let time = |row: &str, name| find(cases, row, name).median();
    let mut goals = Vec::new();
    for held in HELD {
        let large = row(2048, held, 1);
        let best = [System::NAME, Mimalloc::NAME, LinkedList::NAME]
            .into_iter()
            .min_by(|a, b| time(&large, a).total_cmp(&time(&large, b)))
            .expect("there are peers");
        goals.push(Goal {
            what: format!("{large}: {best} (the best), of UMA"),
            measured: find(cases, &large, best).ratio(find(cases, &large, Uma::NAME)),
            bound: Bound::AtLeast(1.5),
        });
        let small = row(256, held, 1);
        for (peer, most) in [(System::NAME, 1.0), (Mimalloc::NAME, 1.3)] {
            goals.push(Goal {
                what: format!("{small}: UMA, of {peer}"),
                measured: find(cases, &small, Uma::NAME).ratio(find(cases, &small, peer)),
                bound: Bound::AtMost(most),
            });
        }
    }
    for size in SIZES {
        for peer in [System::NAME, Mimalloc::NAME] {
            let row = crossed(size);
            goals.push(Goal {
                what: format!("{row}: UMA, of {peer}"),
                measured: find(cases, &row, Uma::NAME).ratio(find(cases, &row, peer)),
                bound: Bound::AtMost(1.0),
            });
        }
    }
    // A virtual machine's two CPUs are not always twice one: what they do of a computation says how much there was to gain.
    let gain = |one: &str, two: &str, name| find(cases, one, name).ratio(find(cases, two, name));
    let most = gain(&alone(1), &alone(2), ALONE);
    for size in SIZES {
        for held in HELD {
            let (one, two) = (row(size, held, 1), row(size, held, 2));
            let gained = gain(&one, &two, Uma::NAME);
            goals.push(Goal {
                what: format!("UMA, {two}, of 1"),
                measured: gained,
                bound: Bound::AtLeast(1.9),
            });
            goals.push(Goal {
                what: "the same, of what the computation gains".into(),
                measured: gained / most,
                bound: Bound::AtLeast(1.9 / 2.0),
            });
        }
    }
    table::print_goals(&goals);
}
