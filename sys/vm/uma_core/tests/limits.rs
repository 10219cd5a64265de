//! Limits, and who sleeps at them.

use super::*;
use crate::machine::sbinuptime;
use crate::time::Sbintime;

#[test]
fn a_patient_request_sleeps_until_an_item_is_freed_and_no_longer() {
    for seed in seeds(10) {
        Machine::builder().seed(seed).cpus(2).run(|| {
            let zone = find_or_create("limited", 512, 8);
            zone.set_max(4);
            let mut items = take(zone, 4);
            let waiter = kthread_add("waiter", Pri::PUSER, None, move || {
                let item = zone.alloc(How::Wait);
                let woken = sbinuptime();
                give(zone, item);
                assert_eq!(woken, Sbintime::from_ms(100), "woken at once");
            });
            kern_synch::pause_sbt("test", Sbintime::from_ms(100) - sbinuptime());
            assert!(!waiter.is_done());
            assert_eq!((zone.stats().sleeps, zone.stats().fails), (1, 0));
            give(zone, items.pop());
            waiter.join();
            give(zone, items);
            let stats = zone.stats();
            assert_eq!((stats.used, stats.requests), (0, 5));
        });
    }
}

#[test]
fn a_sleeper_finds_what_lies_in_the_caches_of_other_cpus() {
    for seed in seeds(10) {
        Machine::builder().seed(seed).cpus(4).run(|| {
            let zone = find_or_create("limited", 512, 8);
            zone.set_max(60);
            for cpu in 1..4 {
                kthread_add("hoarder", Pri::PUSER, Some(cpu), move || {
                    give(zone, take(zone, 20));
                })
                .join();
            }
            let begun = sbinuptime();
            let items: Vec<_> = (0..60).map(|_| zone.alloc(How::Wait).unwrap()).collect();
            // (Going to another CPU takes some microseconds.)
            assert!(sbinuptime() - begun < Sbintime::from_ms(1));
            give(zone, items);
        });
    }
}

#[test]
fn a_higher_limit_wakes_who_sleeps_at_the_lower() {
    Machine::builder().run(|| {
        let zone = find_or_create("limited", 512, 8);
        zone.set_max(2);
        let items = take(zone, 2);
        let waiter = kthread_add("waiter", Pri::PUSER, None, move || {
            give(zone, zone.alloc(How::Wait));
        });
        kern_synch::pause("test", 10);
        assert!(!waiter.is_done());
        zone.set_max(3);
        waiter.join();
        give(zone, items);
    });
}

#[test]
fn what_is_freed_for_a_sleeper_is_not_for_who_comes_later() {
    for seed in seeds(10) {
        Machine::builder().seed(seed).cpus(2).run(|| {
            let zone = find_or_create("limited", 512, 8);
            zone.set_max(4);
            let mut items = take(zone, 4);
            let waiter = kthread_add("waiter", Pri::PUSER, Some(1), move || {
                let item = zone.alloc(How::Wait);
                kern_synch::pause("hold", 10);
                give(zone, item);
            });
            kern_synch::pause("test", 5);
            give(zone, items.pop());
            assert_eq!(zone.alloc(How::NoWait), None, "it is the sleeper's");
            waiter.join();
            give(zone, items);
        });
    }
}

#[test]
fn buckets_are_as_large_as_the_limit_allows_also_after_it_was_lower() {
    Machine::builder().cpus(4).run(|| {
        let make = |name, flags| zcreate(Zone::new(name, 256, 8).with_flags(flags));
        let sizes = |zone: &Zone| {
            let state = zone.state.lock();
            (state.bucket_size, state.bucket_size_max)
        };
        let zone = make("plain", ZoneFlags::empty());
        let (begun, _) = sizes(zone);
        zone.set_max(64);
        assert_eq!(sizes(zone), (4, 4), "half the items at most on idle CPUs");
        zone.set_max(1000);
        assert_eq!(sizes(zone), (begun, 62));
        zone.set_max(0);
        assert_eq!(sizes(zone), (begun, BUCKET_MAX));

        let min = make("min", ZoneFlags::MINBUCKET);
        min.set_max(1000);
        assert_eq!(sizes(min), (2, 2));
        let max = make("max", ZoneFlags::MAXBUCKET);
        max.set_max(64);
        max.set_max(0);
        assert_eq!(sizes(max), (BUCKET_MAX, BUCKET_MAX));
    });
}

fn put_inner(item: NonNull<u8>, how: How) -> bool {
    let Some(inner) = INNER.get().alloc(how) else {
        return false;
    };
    // SAFETY: an item of 64 bytes, ours.
    unsafe { item.cast::<NonNull<u8>>().write(inner) };
    true
}

fn free_inner(item: NonNull<u8>) {
    // SAFETY: as `put_inner` left it.
    unsafe { INNER.get().free(item.cast::<NonNull<u8>>().read()) }
}

machine_local! {
    static INNER: Zone = Zone::new("inner", 512, 8);
    static SHELL: Zone = Zone::new("shell", 64, 8);
    static PAIR: Zone = Zone::new_secondary(
        "pair",
        64,
        || SHELL.get(),
        Hooks { init: Some(put_inner), fini: Some(free_inner), ..Hooks::NONE },
    )
    .holding(|| INNER.get());
}

#[test]
fn a_sleeper_gets_what_is_bound_in_cached_items_of_another_zone() {
    Machine::builder().cpus(2).run(|| {
        let (inner, pair) = (INNER.get(), PAIR.get());
        inner.set_max(8);
        // Waiting reaches also what another CPU has cached.
        let eight = |zone: &'static Zone| -> Vec<_> {
            (0..8).map(|_| zone.alloc(How::Wait).unwrap()).collect()
        };
        give(pair, eight(pair));
        assert_eq!((inner.stats().used, pair.stats().used), (8, 0));
        give(inner, eight(inner));
        // Also when the other zone's items are freed later.
        let pairs = eight(pair);
        let waiter = kthread_add("waiter", Pri::PUSER, None, move || {
            give(inner, inner.alloc(How::Wait));
        });
        kern_synch::pause("test", 5);
        assert!(!waiter.is_done());
        give(pair, pairs);
        waiter.join();
        assert_eq!(
            (inner.stats().used, pair.stats().used),
            (pair.stats().free, 0)
        );
    });
}

#[test]
fn cached_items_of_another_zone_leave_some_for_each_cpu() {
    Machine::builder().cpus(4).run(|| {
        let (inner, pair) = (INNER.get(), PAIR.get());
        inner.set_max(64);
        for cpu in 0..4 {
            let user = kthread_add("user", Pri::PUSER, Some(cpu), move || {
                give(pair, take(pair, 8));
            });
            user.join();
        }
        assert_eq!((inner.stats().fails, pair.stats().fails), (0, 0));
    });
}

#[test]
fn many_sleepers_at_a_low_limit_all_get_their_turn() {
    for seed in seeds(30) {
        Machine::builder().seed(seed).cpus(4).run(|| {
            let zone = find_or_create("limited", 256, 8);
            zone.set_max(3);
            let workers: Vec<_> = (0..6)
                .map(|_| {
                    kthread_add("worker", Pri::PUSER, None, move || {
                        for turn in 0..60 {
                            let first = zone.alloc(How::Wait);
                            let second = zone.alloc(How::NoWait);
                            if turn % 7 == 0 {
                                kern_synch::pause_sbt("hold", Sbintime::from_us(turn));
                            }
                            give(zone, first.into_iter().chain(second));
                        }
                    })
                })
                .collect();
            workers.into_iter().for_each(ThreadHandle::join);
            let stats = zone.stats();
            assert_eq!(stats.used, 0);
            assert!(stats.sleeps > 0);
            assert_eq!(zone.keg().counts().sleepers, 0);
            assert!(!zone.is_waited_for());
        });
    }
}

#[test]
fn at_its_limit_a_zone_warns_now_and_then_and_has_something_done() {
    machine_local! {
        static ACTIONS: AtomicU64 = AtomicU64::new(0);
        static WARNING: Zone = Zone::new("warning", 512, 8).with_warning(
            "kern.test limit reached",
            Some(|| {
                ACTIONS.fetch_add(1, Ordering::Relaxed);
            }),
        );
    }
    Machine::builder().run(|| {
        let zone = WARNING.get();
        zone.set_max(1);
        let items = take(zone, 1);
        let warnings = || {
            let text = crate::kern::subr_prf::dmesg();
            text.matches("[zone: warning] kern.test limit reached\n")
                .count()
        };
        for _ in 0..10 {
            assert!(zone.alloc(How::NoWait).is_none());
        }
        kern_synch::pause("test", 1);
        assert_eq!(warnings(), 1);
        assert!((1..=10).contains(&ACTIONS.load(Ordering::Relaxed)));
        kern_synch::pause("test", 300_000);
        assert!(zone.alloc(How::NoWait).is_none());
        assert_eq!(warnings(), 2);
        give(zone, items);
    });
}

#[test]
fn what_is_reserved_is_for_who_says_so() {
    Machine::builder().memory(8 << 20).run(|| {
        let zone = zcreate(Zone::new("reserved", 1024, 1024).with_flags(ZoneFlags::NOBUCKET));
        assert!(zone.prealloc(64));
        zone.reserve(16);
        let hog = find_or_create("hog", 4096, 4096);
        let mut hogged = Vec::new();
        hogged.extend(core::iter::from_fn(|| hog.alloc(How::NoWait)));
        let mut items: Vec<_> = core::iter::from_fn(|| zone.alloc(How::NoWait)).collect();
        assert!(!items.is_empty() && zone.stats().free >= 16);
        let fails = zone.stats().fails;
        let reserved: Vec<_> = core::iter::from_fn(|| zone.alloc_reserved()).collect();
        assert_eq!(reserved.len(), 16);
        assert_eq!(
            zone.stats().fails,
            fails + 1,
            "only the last request failed"
        );
        items.extend(reserved);
        give(zone, items);
        give(hog, hogged);
    });
}
