use super::keg::KegLayout;
use super::*;
use crate::kern::kern_synch;
use crate::kern::kern_thread::Pri;
use crate::kern::kern_thread::{ThreadHandle, kthread_add};
use crate::kern::lock_order::Leaf;
use crate::machine::hosted::{Machine, seeds};
use crate::vm::uma::TypedZone;
use alloc::sync::Arc;
use core::cell::Cell;
use proptest::prelude::*;
use std::rc::Rc;
use std::vec::Vec;

/// The zone called `name` of a machine that `test` runs on.
fn with_zone(size: usize, align: usize, test: impl FnOnce(&'static Zone)) {
    Machine::builder().run(|| {
        let zone = find_or_create("test", size, align);
        test(zone);
        assert_eq!(zone.stats().used, 0, "items leaked");
    });
}

fn take(zone: &'static Zone, n: usize) -> Vec<NonNull<u8>> {
    (0..n).map(|_| zone.alloc(How::NoWait).unwrap()).collect()
}

fn give(zone: &'static Zone, items: impl IntoIterator<Item = NonNull<u8>>) {
    for item in items {
        // SAFETY: the tests give what they took, once.
        unsafe { zone.free(item) };
    }
}

mod checks;
mod limits;
mod reclaiming;
mod smr;

#[test]
fn slabs_of_packet_memory_waste_little() {
    for (size, align) in [
        (256, 256),
        (2048, 2048),
        (4096, 4096),
        (9216, 1024),
        (16384, 16384),
    ] {
        let layout = KegLayout::new(size, align);
        let waste = layout.bytes() - layout.items * layout.rsize;
        assert!(waste <= layout.bytes() / 10, "{size}: {layout:?}");
        assert_eq!(layout.rsize, size);
    }
    assert_eq!(KegLayout::new(16384, 16384).header_at, None);
}

#[test]
fn items_are_aligned_and_do_not_overlap() {
    for (size, align) in [
        (8, 8),
        (24, 8),
        (100, 64),
        (256, 256),
        (9216, 1024),
        (16384, 4096),
    ] {
        with_zone(size, align, |zone| {
            let items = take(zone, 600);
            let mut addresses: Vec<_> = items.iter().map(|item| item.addr().get()).collect();
            addresses.sort_unstable();
            assert!(addresses.iter().all(|address| address % align == 0));
            assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= size));
            give(zone, items);
        });
    }
}

#[test]
fn the_item_freed_last_is_given_out_first() {
    with_zone(64, 8, |zone| {
        let items = take(zone, 3);
        give(zone, items.iter().copied());
        let again = take(zone, 3);
        assert!(again.iter().eq(items.iter().rev()));
        give(zone, again);
    });
}

#[test]
fn requests_and_uses_are_counted_exactly() {
    with_zone(256, 8, |zone| {
        let items = take(zone, 1000);
        let stats = zone.stats();
        assert_eq!((stats.used, stats.requests, stats.fails), (1000, 1000, 0));
        give(zone, items);
        give(zone, take(zone, 10));
        let stats = zone.stats();
        assert_eq!((stats.used, stats.requests), (0, 1010));
        assert!(stats.free >= 1000);
    });
}

#[test]
fn beyond_the_limit_an_impatient_request_fails_and_is_counted() {
    with_zone(512, 8, |zone| {
        zone.set_max(50);
        let mut items = Vec::new();
        while let Some(item) = zone.alloc(How::NoWait) {
            items.push(item);
        }
        assert_eq!(items.len(), 50);
        assert!(zone.alloc(How::NoWait).is_none());
        let stats = zone.stats();
        assert_eq!((stats.limit, stats.used, stats.fails), (50, 50, 2));
        give(zone, items.pop());
        items.push(zone.alloc(How::NoWait).unwrap());
        zone.set_max(51);
        items.push(zone.alloc(How::NoWait).unwrap());
        give(zone, items);
    });
}

#[test]
fn memory_goes_back_to_the_page_allocator_on_demand() {
    with_zone(2048, 2048, |zone| {
        // What the bucket and zone bookkeeping takes, it keeps.
        give(zone, take(zone, 2000));
        reclaim(Reclaim::DrainCpu);
        let before = vm_page::stats();
        give(zone, take(zone, 2000));
        assert!(vm_page::stats().free < before.free);
        reclaim(Reclaim::DrainCpu);
        let stats = zone.stats();
        assert_eq!((stats.used, stats.free), (0, 0));
        assert_eq!(vm_page::stats(), before);
    });
}

#[test]
fn without_memory_a_request_fails_and_works_again_after_frees() {
    Machine::builder().run(|| {
        let large = find_or_create("large", 65536, 4096);
        let mut items = Vec::new();
        while let Some(item) = large.alloc(How::NoWait) {
            items.push(item);
        }
        assert!(items.len() > 100);
        let small = find_or_create("small", 2048, 8);
        let some: Vec<_> = core::iter::from_fn(|| small.alloc(How::NoWait)).collect();
        give(large, items);
        assert!(small.stats().fails > 0);
        // The pages of the large zone are taken back for the small one.
        let more = take(small, 10_000);
        give(small, more);
        give(small, some);
    });
}

static STAMP: u64 = 0x1234_5678;

fn stamp(item: NonNull<u8>, _: How) -> bool {
    // SAFETY: an item of 64 bytes, ours.
    unsafe { item.cast::<u64>().write(STAMP) };
    true
}

fn stamped(item: NonNull<u8>) {
    // SAFETY: an item of 64 bytes, ours.
    let found = unsafe { item.cast::<u64>().read() };
    assert_eq!(found, STAMP, "kept while cached");
}

#[test]
fn what_a_secondary_zone_does_to_its_items_stays_done_while_they_are_cached() {
    machine_local! {
        static PRIMARY: Zone = Zone::new("primary", 64, 8);
    }
    machine_local! {
        static SECONDARY: Zone = Zone::new_secondary(
            "secondary",
            64,
            || PRIMARY.get(),
            Hooks { ctor: Some(|item, _| { stamped(item); true }), dtor: Some(stamped), init: Some(stamp), fini: Some(stamped) },
        );
    }
    Machine::builder().run(|| {
        let (primary, secondary) = (PRIMARY.get(), SECONDARY.get());
        for _ in 0..3 {
            let items = take(secondary, 300);
            let others = take(primary, 300);
            give(secondary, items);
            give(primary, others);
        }
        assert_eq!((secondary.stats().used, primary.stats().used), (0, 0));
        assert_eq!(secondary.stats().requests, 900);
        reclaim(Reclaim::DrainCpu);
        assert_eq!((secondary.stats().free, primary.stats().free), (0, 0));
    });
}

#[test]
fn a_typed_item_is_dropped_with_its_box() {
    Machine::builder().run(|| {
        let zone = TypedZone::<(u64, Rc<Cell<u32>>)>::new("typed");
        let dropped = Rc::new(Cell::new(0));
        let mut item = zone.alloc((7, dropped.clone()), How::NoWait).unwrap();
        item.0 += 1;
        assert_eq!((item.0, Rc::strong_count(&dropped)), (8, 2));
        drop(item);
        assert_eq!(Rc::strong_count(&dropped), 1);
        assert_eq!(zone.stats().used, 0);
        let same = TypedZone::<(u64, Rc<Cell<u32>>)>::new("typed");
        assert_eq!(same.stats().requests, 1, "one zone for a name and size");
    });
}

#[test]
fn an_item_is_initialised_once_for_all_its_allocations() {
    machine_local! {
        static INITS: AtomicU64 = AtomicU64::new(0);
        static FINIS: AtomicU64 = AtomicU64::new(0);
        static CTORS: AtomicU64 = AtomicU64::new(0);
        static DTORS: AtomicU64 = AtomicU64::new(0);
        static HOOKED: Zone = Zone::new("hooked", 128, 8).with_hooks(Hooks {
            ctor: Some(|item, _| {
                CTORS.fetch_add(1, Ordering::Relaxed);
                stamped(item);
                true
            }),
            dtor: Some(|_| { DTORS.fetch_add(1, Ordering::Relaxed); }),
            init: Some(|item, how| {
                INITS.fetch_add(1, Ordering::Relaxed);
                stamp(item, how)
            }),
            fini: Some(|item| {
                FINIS.fetch_add(1, Ordering::Relaxed);
                stamped(item);
            }),
        });
    }
    Machine::builder().run(|| {
        let zone = HOOKED.get();
        for _ in 0..50 {
            give(zone, take(zone, 10));
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((count(&CTORS), count(&DTORS)), (500, 500));
        let inits = count(&INITS);
        assert_eq!(inits, zone.keg().layout.items as u64, "those of one slab");
        reclaim(Reclaim::DrainCpu);
        assert_eq!((count(&INITS), count(&FINIS)), (inits, inits));
    });
}

#[test]
fn a_constructor_that_fails_leaves_the_item_free() {
    machine_local! {
        static REFUSING: Zone = Zone::new("refusing", 64, 8)
            .with_hooks(Hooks { ctor: Some(|_, how| how == How::Wait), ..Hooks::NONE });
    }
    Machine::builder().run(|| {
        let zone = REFUSING.get();
        assert!(zone.alloc(How::NoWait).is_none());
        assert_eq!((zone.stats().used, zone.stats().fails), (0, 1));
        give(zone, zone.alloc(How::Wait));
        assert_eq!(zone.stats().used, 0);
    });
}

#[test]
fn flags_change_how_a_zone_behaves() {
    Machine::builder().run(|| {
        let make = |name, flags| zcreate(Zone::new(name, 512, 8).with_flags(flags));
        let buckets = |zone: &Zone| zone.state.lock().bucket_size;
        let plain = make("plain", ZoneFlags::empty());
        assert_eq!(buckets(plain), bucket_select(512));
        assert_eq!(buckets(make("max", ZoneFlags::MAXBUCKET)), BUCKET_MAX);
        assert_eq!(buckets(make("min", ZoneFlags::MINBUCKET)), 2);

        let none = make("none", ZoneFlags::NOBUCKET);
        give(none, take(none, 40));
        assert_eq!(none.held.load(Ordering::Relaxed), 0, "nothing is cached");

        let kept = make("kept", ZoneFlags::NOFREE);
        give(kept, take(kept, 40));
        reclaim(Reclaim::DrainCpu);
        assert!(kept.stats().free >= 40);

        let zeroed = make("zeroed", ZoneFlags::ZINIT);
        let item = zeroed.alloc(How::NoWait).unwrap();
        // SAFETY: ours, 512 bytes.
        unsafe {
            assert!((0..512).all(|at| item.add(at).read() == 0));
            item.write(7);
            zeroed.free(item);
            assert_eq!(zeroed.alloc(How::NoWait), Some(item));
            assert_eq!(item.read(), 7, "what was written stays");
            zeroed.free(item);
        }
    });
}

#[test]
fn buckets_begin_with_a_size_by_that_of_the_item() {
    let begin = [
        (64, BUCKET_MAX),
        (65, 125),
        (256, 61),
        (2048, 8),
        (4096, 2),
        (9216, 1),
    ];
    for (size, entries) in begin {
        assert_eq!(bucket_select(size), entries, "{size}");
    }
}

#[test]
fn the_sysctl_tree_shows_zones() {
    use crate::kern::kern_sysctl::root;
    with_zone(256, 8, |zone| {
        let items = take(zone, 5);
        let value = |leaf: &str| root().get(&std::format!("vm.uma.test.{leaf}"));
        assert_eq!(value("size").as_deref(), Some("256"));
        assert_eq!(value("stats.current").as_deref(), Some("5"));
        assert_eq!(value("keg.name").as_deref(), Some("test"));
        assert_eq!(value("nonsense"), None);
        let count: usize = root().get("vm.zone_count").unwrap().parse().unwrap();
        assert_eq!(count, zones().count());
        let all = root().walk("vm.uma.test");
        assert!(
            all.iter()
                .any(|(name, _)| name == "vm.uma.test.limit.max_items")
        );
        let set = root().set("vm.uma.test.size", "1");
        assert_eq!(set, Err(crate::errno::Errno::EPERM));
        give(zone, items);
    });
}

#[test]
fn the_flags_that_are_shown_tell_what_a_zone_has() {
    use crate::kern::kern_sysctl::root;
    Machine::builder().run(|| {
        let shown = |zone: &Zone| root().get(&std::format!("vm.uma.{}.flags", zone.name()));
        let zeroed = ZoneFlags::ZINIT | ZoneFlags::NOFREE;
        let plain = zcreate(Zone::new("plain", 256, 8).with_flags(zeroed));
        assert_eq!(shown(plain).as_deref(), Some("0x22<NOFREE,ZINIT>"));
        let hooks = Hooks {
            ctor: Some(|_, _| true),
            init: Some(stamp),
            ..Hooks::NONE
        };
        let hooked = zcreate(Zone::new("hooked", 16384, 16384).with_hooks(hooks));
        hooked.set_max(7);
        let flags = "0x3200000<LIMIT,CTORDTOR,OFFPAGE>";
        assert_eq!(shown(hooked).as_deref(), Some(flags));
        let none = Hooks {
            init: Some(stamp),
            ..Hooks::NONE
        };
        let none = zcreate(Zone::new("none", 256, 8).with_hooks(none));
        assert_eq!(shown(none).as_deref(), Some("0x0"));
        let junk = zcreate(Zone::new("junk", 256, 8));
        let flags = if cfg!(debug_assertions) {
            "0x41000000<TRASH,CTORDTOR>"
        } else {
            "0x0"
        };
        assert_eq!(shown(junk).as_deref(), Some(flags));
    });
}

#[test]
fn the_memory_of_all_slabs_is_shown() {
    use crate::kern::kern_sysctl::root;
    with_zone(4096, 4096, |zone| {
        let read = |name| root().get(name).unwrap().parse::<usize>().unwrap();
        give(zone, take(zone, 1));
        let before = read("vm.uma_kmem_total");
        let free = vm_page::stats().free;
        give(zone, take(zone, 1000));
        let taken = (free - vm_page::stats().free) * crate::param::PAGE_SIZE;
        assert!(taken >= 900 * 4096);
        assert_eq!(read("vm.uma_kmem_total"), before + taken);
        assert!(read("vm.uma_kmem_total") < read("vm.uma_kmem_limit"));
    });
}

#[test]
fn a_zone_that_ends_gives_its_pages_back_and_says_what_was_not_freed() {
    Machine::builder().run(|| {
        let zone = zcreate(Zone::new("ending", 2048, 2048));
        give(zone, take(zone, 500));
        reclaim(Reclaim::DrainCpu);
        let before = vm_page::stats();
        give(zone, take(zone, 500));
        assert_eq!(zone.leak_report(), None);
        // SAFETY: nobody uses it any more.
        unsafe { zone.destroy() };
        // (The buckets' zones keep some.)
        reclaim(Reclaim::DrainCpu);
        assert_eq!(vm_page::stats(), before);
        assert!(zones().all(|zone| zone.name() != "ending"));

        let leaky = zcreate(Zone::new("leaky", 64, 8));
        let items = take(leaky, 3);
        let report = leaky.leak_report();
        assert_eq!(report.as_deref(), Some("zone leaky leaked 3 items"));
        // SAFETY: the items are not used either.
        unsafe { leaky.destroy() };
        let messages = crate::kern::subr_prf::dmesg();
        assert!(
            messages.contains("zone leaky leaked 3 items\n"),
            "{messages}"
        );
        give(leaky, items);
    });
}

#[test]
fn a_zone_that_ends_gives_back_its_reserve_too() {
    Machine::builder().run(|| {
        let zone = zcreate(Zone::new("ending", 2048, 2048));
        let before = vm_page::stats();
        assert!(zone.prealloc(64));
        zone.reserve(64);
        // SAFETY: nobody uses it.
        unsafe { zone.destroy() };
        assert_eq!(vm_page::stats(), before);
        let messages = crate::kern::subr_prf::dmesg();
        assert!(!messages.contains("was not empty"), "{messages}");
    });
}

#[test]
fn zones_are_listed_once_they_are_used() {
    with_zone(96, 8, |zone| {
        give(zone, take(zone, 1));
        assert_eq!(zones().filter(|zone| zone.name() == "test").count(), 1);
        assert!(uma_dbg::leaks().is_empty());
        let item = take(zone, 1);
        assert_eq!(uma_dbg::leaks(), [("test", 1)]);
        give(zone, item);
    });
}

#[test]
fn no_item_in_use_is_missed_while_others_go_from_cpu_to_cpu() {
    for seed in seeds(20) {
        Machine::builder().seed(seed).cpus(8).run(|| {
            let zone = find_or_create("handed", 256, 8);
            let kept = take(zone, 10);
            let handed: Arc<Mutex<Option<usize>, Leaf>> = Arc::new(Mutex::new(None));
            let stop = Arc::new(AtomicBool::new(false));
            let (givers, ended) = (handed.clone(), stop.clone());
            let giver = kthread_add("giver", Pri::PUSER, Some(0), move || {
                while !ended.load(Ordering::Relaxed) {
                    let mut hand = givers.lock();
                    if hand.is_none() {
                        let item = zone.alloc(How::NoWait).unwrap();
                        *hand = Some(item.as_ptr().expose_provenance());
                    }
                    drop(hand);
                    kern_synch::kern_yield();
                }
            });
            let (takers, ended) = (handed.clone(), stop.clone());
            let taker = kthread_add("taker", Pri::PUSER, Some(7), move || {
                while !ended.load(Ordering::Relaxed) {
                    let item = takers.lock().take();
                    give(zone, item.map(item_at));
                    kern_synch::kern_yield();
                }
            });
            for _ in 0..200 {
                assert!(zone.stats().used >= 10);
                kern_synch::kern_yield();
            }
            stop.store(true, Ordering::Relaxed);
            giver.join();
            taker.join();
            give(zone, handed.lock().take().map(item_at));
            give(zone, kept);
        });
    }
}

#[test]
fn items_that_wander_between_cpus_are_never_given_out_twice() {
    for seed in seeds(8) {
        Machine::builder().seed(seed).cpus(4).run(|| {
            let zone = find_or_create("wander", 1024, 8);
            zone.set_max(3000);
            let shared: Arc<Mutex<Vec<usize>, Leaf>> = Arc::new(Mutex::new(Vec::new()));
            let workers: Vec<_> = (0..4)
                .map(|cpu| {
                    let shared = shared.clone();
                    kthread_add("worker", Pri::PUSER, Some(cpu), move || {
                        wander(zone, &shared, 3000)
                    })
                })
                .collect();
            workers.into_iter().for_each(ThreadHandle::join);
            let left = core::mem::take(&mut *shared.lock());
            assert_eq!(zone.stats().used, left.len() as u64);
            give(zone, left.into_iter().map(item_at));
            let stats = zone.stats();
            assert_eq!(stats.used, 0);
            reclaim(Reclaim::DrainCpu);
            assert_eq!(zone.stats().free, 0, "every item came back to its slab");
        });
    }
}

fn item_at(address: usize) -> NonNull<u8> {
    NonNull::new(ptr::with_exposed_provenance_mut(address)).unwrap()
}

/// Takes items, writes to them, leaves them to others and frees what others left.
fn wander(zone: &'static Zone, shared: &Mutex<Vec<usize>, Leaf>, rounds: usize) {
    for round in 0..rounds {
        let random = machine::random_u64();
        if random.is_multiple_of(2) {
            if let Some(item) = zone.alloc(How::NoWait) {
                // SAFETY: ours; the address stands in the item until it is freed.
                unsafe {
                    item.cast::<usize>()
                        .write(item.as_ptr().expose_provenance())
                };
                shared.lock().push(item.as_ptr().addr());
            }
        } else {
            let mut list = shared.lock();
            if list.is_empty() {
                continue;
            }
            let pick = random as usize % list.len();
            let address = list.swap_remove(pick);
            drop(list);
            let item = item_at(address);
            // SAFETY: in use, by us now.
            let found = unsafe { item.cast::<usize>().read() };
            assert_eq!(found, address, "given out twice");
            give(zone, [item]);
        }
        if round % 16 == 0 {
            kern_synch::kern_yield();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_order_of_frees_gives_everything_back(
        size in 1_usize..5000,
        ops in proptest::collection::vec((any::<bool>(), 1_usize..200, any::<prop::sample::Index>()), 1..60),
    ) {
        with_zone(size, 8, |zone| {
            let mut held = Vec::new();
            for (alloc, n, pick) in ops {
                for _ in 0..n {
                    if alloc {
                        let item = zone.alloc(How::NoWait).unwrap();
                        // SAFETY: ours, of this size.
                        unsafe { item.write_bytes(0x5a, size) };
                        held.push(item);
                    } else if !held.is_empty() {
                        give(zone, [held.swap_remove(pick.index(held.len()))]);
                    }
                }
                assert_eq!(zone.stats().used, held.len() as u64);
            }
            give(zone, held);
            reclaim(Reclaim::DrainCpu);
            assert_eq!(zone.stats().free, 0);
        });
    }
}
