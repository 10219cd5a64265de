//! Zones whose items have readers when they are freed.

use super::*;
use crate::kern::subr_smr::{AppSmr, SmrDomain};
use core::sync::atomic::AtomicUsize;

machine_local! {
    static DTORS: AtomicU64 = AtomicU64::new(0);
    static READ: Zone = Zone::new("read", 256, 8)
        .with_hooks(Hooks {
            dtor: Some(|_| {
                DTORS.fetch_add(1, Ordering::Relaxed);
            }),
            ..Hooks::NONE
        })
        .with_smr(AppSmr::smr);
}

#[test]
fn a_freed_item_is_not_given_out_while_a_reader_may_have_it() {
    Machine::builder().cpus(2).run(|| {
        let zone = READ.get();
        let items = take(zone, 500);
        // SAFETY: ours, 256 bytes.
        unsafe { items[7].write(42) };
        let goal = {
            let section = AppSmr::smr().enter();
            give(zone, items.iter().copied());
            let others = take(zone, 500);
            assert!(items.iter().all(|item| !others.contains(item)));
            assert_eq!(DTORS.load(Ordering::Relaxed), 0);
            // SAFETY: still an item; its contents stay as long as there are readers.
            assert_eq!(unsafe { items[7].read() }, 42);
            drop(section);
            give(zone, others);
            AppSmr::smr().advance()
        };
        AppSmr::smr().wait(goal);
        let again = take(zone, 900);
        assert!(items.iter().any(|item| again.contains(item)), "used again");
        assert!(DTORS.load(Ordering::Relaxed) > 0);
        give(zone, again);
        reclaim(Reclaim::DrainCpu);
        assert_eq!(zone.stats().free, 0);
        assert_eq!(DTORS.load(Ordering::Relaxed), zone.stats().requests);
    });
}

#[test]
fn what_its_constructor_refused_is_not_destructed() {
    machine_local! {
        static REFUSING: Zone = Zone::new("refusing", 256, 8)
            .with_hooks(Hooks {
                ctor: Some(|_, how| how == How::Wait),
                dtor: Some(|_| {
                    DTORS.fetch_add(1, Ordering::Relaxed);
                }),
                ..Hooks::NONE
            })
            .with_smr(AppSmr::smr);
    }
    Machine::builder().run(|| {
        let zone = REFUSING.get();
        for _ in 0..100 {
            assert_eq!(zone.alloc(How::NoWait), None);
        }
        give(zone, zone.alloc(How::Wait));
        assert_eq!((zone.stats().used, zone.stats().fails), (0, 100));
        reclaim(Reclaim::DrainCpu);
        assert_eq!(DTORS.load(Ordering::Relaxed), 1);
        assert_eq!(zone.stats().free, 0);
    });
}

#[test]
fn a_reader_that_allocates_while_memory_is_short_does_not_wait_for_itself() {
    Machine::builder().memory(8 << 20).run(|| {
        let zone = zcreate(Zone::new("nodes", 4096, 4096).with_smr(AppSmr::smr));
        let hog = find_or_create("hog", 4096, 4096);
        give(zone, take(zone, 50));
        let hogged: Vec<_> = core::iter::from_fn(|| hog.alloc(How::NoWait)).collect();
        give(hog, hogged);
        let section = AppSmr::smr().enter();
        give(zone, take(zone, 50));
        let hogged: Vec<_> = core::iter::from_fn(|| hog.alloc(How::NoWait)).collect();
        assert!(zone.stats().free >= 50, "readers may have them");
        drop(section);
        assert!(
            hog.alloc(How::NoWait)
                .map(|item| give(hog, [item]))
                .is_some()
        );
        give(hog, hogged);
    });
}

const ALIVE: usize = 0xa11e;

#[test]
fn readers_never_see_an_item_that_is_somebody_elses() {
    for seed in seeds(20) {
        Machine::builder().seed(seed).cpus(4).run(|| {
            let zone = zcreate(Zone::new("nodes", 64, 8).with_smr(AppSmr::smr));
            let slot = Arc::new(AtomicUsize::new(0));
            let stop = Arc::new(AtomicBool::new(false));
            let readers: Vec<_> = (0..3)
                .map(|cpu| {
                    let (slot, stop) = (slot.clone(), stop.clone());
                    kthread_add("reader", Pri::PUSER, Some(cpu), move || {
                        while !stop.load(Ordering::Relaxed) {
                            let section = AppSmr::smr().enter();
                            let found = slot.load(Ordering::Acquire);
                            if found != 0 {
                                let words = item_at(found).cast::<AtomicUsize>();
                                for _ in 0..4 {
                                    // SAFETY: an item whose readers have not left.
                                    let state = unsafe { words.as_ref() };
                                    assert_eq!(state.load(Ordering::Relaxed), ALIVE);
                                    machine::interleave();
                                }
                            }
                            drop(section);
                            kern_synch::kern_yield();
                        }
                    })
                })
                .collect();
            for turn in 0..400 {
                let item = zone.alloc(How::NoWait).unwrap();
                let state = item.cast::<AtomicUsize>();
                // SAFETY: ours; atomics are for readers.
                unsafe {
                    state.write(AtomicUsize::new(turn));
                    state.as_ref().store(ALIVE, Ordering::Relaxed);
                }
                let address = item.as_ptr().expose_provenance();
                let old = slot.swap(address, Ordering::AcqRel);
                if old != 0 {
                    give(zone, [item_at(old)]);
                }
                if turn % 8 == 0 {
                    kern_synch::kern_yield();
                }
            }
            stop.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(ThreadHandle::join);
            give(zone, [item_at(slot.swap(0, Ordering::Relaxed))]);
            reclaim(Reclaim::DrainCpu);
            assert_eq!((zone.stats().used, zone.stats().free), (0, 0));
        });
    }
}
