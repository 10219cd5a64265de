//! Memory that goes back.

use super::*;

#[test]
fn what_was_not_used_for_long_is_trimmed() {
    with_zone(2048, 2048, |zone| {
        let items = take(zone, 2000);
        let taken = vm_page::stats().free;
        give(zone, items);
        assert!(zone.state.lock().nitems > 1500, "in the zone's buckets");
        kern_synch::pause("test", 150_000);
        assert_eq!(zone.state.lock().nitems, 0);
        let stats = zone.stats();
        assert!(stats.free < 100, "only what the CPU holds: {stats:?}");
        assert!(vm_page::stats().free > taken + 900);
    });
}

#[test]
fn what_is_used_again_and_again_is_not_trimmed() {
    with_zone(2048, 2048, |zone| {
        let mut fewest = usize::MAX;
        give(zone, take(zone, 3000));
        for second in 0..200 {
            kern_synch::pause("test", 1000);
            give(zone, take(zone, 1000));
            if second > 100 {
                fewest = fewest.min(zone.stats().free as usize);
            }
        }
        assert!(fewest >= 1000, "{fewest}");
        assert!(zone.stats().free < 2000, "what was used only once is gone");
    });
}

#[test]
fn zones_give_memory_back_when_pages_run_low() {
    Machine::builder().memory(16 << 20).cpus(2).run(|| {
        let cached = find_or_create("cached", 2048, 2048);
        give(cached, take(cached, 5000));
        let hog = find_or_create("hog", 4096, 4096);
        let mut items = Vec::new();
        // Until pages are low, but not gone.
        while vm_page::stats().free >= vm_page::stats().low_water() {
            items.extend(take(hog, 1));
        }
        kern_synch::pause("test", 10);
        let stats = vm_page::stats();
        assert!(stats.free > stats.low_water() * 4, "{stats:?}");
        assert!(cached.stats().free < 1000);
        give(hog, items);
    });
}

#[test]
fn a_drain_of_the_cpus_reaches_what_each_holds() {
    for seed in seeds(10) {
        Machine::builder().seed(seed).cpus(4).run(|| {
            let zone = find_or_create("test", 256, 8);
            for cpu in 0..4 {
                kthread_add("user", Pri::PUSER, Some(cpu), move || {
                    give(zone, take(zone, 10))
                })
                .join();
            }
            reclaim(Reclaim::Drain);
            assert!(zone.stats().free >= 40);
            reclaim(Reclaim::DrainCpu);
            assert_eq!(zone.stats().free, 0);
        });
    }
}

#[test]
fn items_move_while_memory_is_taken_back_on_all_cpus() {
    for seed in seeds(10) {
        Machine::builder().seed(seed).cpus(4).run(|| {
            let zone = find_or_create("moving", 512, 8);
            let shared: Arc<Mutex<Vec<usize>, Leaf>> = Arc::new(Mutex::new(Vec::new()));
            let workers: Vec<_> = (0..4)
                .map(|cpu| {
                    let shared = shared.clone();
                    kthread_add("worker", Pri::PUSER, Some(cpu), move || {
                        wander(zone, &shared, 400)
                    })
                })
                .collect();
            for turn in 0..30 {
                reclaim([Reclaim::Trim, Reclaim::Drain, Reclaim::DrainCpu][turn % 3]);
            }
            workers.into_iter().for_each(ThreadHandle::join);
            give(zone, shared.lock().drain(..).map(item_at));
            reclaim(Reclaim::DrainCpu);
            let stats = zone.stats();
            assert_eq!((stats.used, stats.free), (0, 0));
        });
    }
}

#[test]
fn what_was_asked_for_before_there_was_a_thread_is_done_once_there_is() {
    machine_local! {
        static ACTIONS: AtomicU64 = AtomicU64::new(0);
        static EARLY: Zone = Zone::new("early", 512, 8).with_warning(
            "kern.test limit reached",
            Some(|| {
                ACTIONS.fetch_add(1, Ordering::Relaxed);
            }),
        );
    }
    Machine::builder().run(|| {
        let zone = EARLY.get();
        give(zone, take(zone, 1));
        zone.action_due.store(true, Ordering::Relaxed);
        reclaim::ask_early();
        kern_synch::pause("test", 1);
        assert_eq!(ACTIONS.load(Ordering::Relaxed), 0);
        startup3();
        kern_synch::pause("test", 1);
        assert_eq!(ACTIONS.load(Ordering::Relaxed), 1);
    });
}
