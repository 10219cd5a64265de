//! `vm/uma`: an item is one user's at a time, none is lost, and who sleeps at a limit is woken.

use crate::runner::{Mutant, Subject};
use core::ptr::NonNull;
use std::sync::Arc;
use sys::machine::model::{Model, SiteKind, Watched, spawn};
use sys::vm::uma::{How, Reclaim, Zone, ZoneFlags, reclaim, zcreate};
use sys::vm::vm_page;

/// The zone's lock, and the keg's.
const LOCKED: Mutant = Mutant::of(
    "kern_mutex.rs",
    ".compare_exchange(0, 1, Ordering::Acquire",
    SiteKind::Acquire,
);
const UNLOCKED: Mutant = Mutant::of(
    "kern_mutex.rs",
    "self.0.store(0, Ordering::Release)",
    SiteKind::Release,
);

pub const MODELS: &[Subject] = &[
    Subject {
        name: "uma-exchange",
        about: "a full bucket goes through the zone's list to a CPU that has run out of items",
        model: || Model::new(2).visits(),
        body: exchange,
        bounds: [4, 8],
        mutants: &[LOCKED, UNLOCKED],
    },
    Subject {
        name: "uma-fetch",
        about: "two CPUs run out of items, and the zone has one full bucket",
        model: || Model::new(2).visits(),
        body: fetch,
        bounds: [4, 8],
        mutants: &[LOCKED, UNLOCKED],
    },
    Subject {
        name: "uma-drain",
        about: "a visitor takes a CPU's buckets while that allocates and frees",
        model: || Model::new(2).visits(),
        body: drain,
        bounds: [3, 4],
        mutants: &[UNLOCKED],
    },
    Subject {
        name: "uma-limit",
        about: "a thread that sleeps at a limit is woken and gets the item that another frees",
        model: || Model::new(2).visits(),
        body: limit,
        bounds: [4, 6],
        mutants: &[
            UNLOCKED,
            Mutant::of(
                "subr_sleepqueue.rs",
                "sched::wakeup(thread)",
                SiteKind::Wakeup,
            ),
        ],
    },
    Subject {
        name: "uma-sleepers",
        about: "two threads sleep at a limit, and each gets the one item in its turn",
        model: || Model::new(3).visits(),
        body: sleepers,
        bounds: [1, 2],
        mutants: &[Mutant::of(
            "subr_sleepqueue.rs",
            "sched::wakeup(thread)",
            SiteKind::Wakeup,
        )],
    },
];

/// Bytes of an item; one page holds all of a model's.
const SIZE: usize = 256;
const SLAB: usize = 4096;

/// A zone with the smallest buckets, and what its users write to each item.
struct Items {
    zone: &'static Zone,
    users: [Watched<u32>; SLAB / SIZE],
    pages: usize,
}

/// An item that its user has.
struct Item(NonNull<u8>);

// SAFETY: an item is its owner's alone.
unsafe impl Send for Item {}

impl Items {
    fn new() -> Arc<Items> {
        let pages = vm_page::stats().free;
        let zone = Zone::new("model", SIZE, 8).with_flags(ZoneFlags::MINBUCKET);
        Arc::new(Items {
            zone: zcreate(zone),
            users: [const { Watched::new(0) }; SLAB / SIZE],
            pages,
        })
    }

    fn user(&self, item: &Item) -> &Watched<u32> {
        &self.users[item.0.addr().get() % SLAB / SIZE]
    }

    /// Allocates an item, and makes it `user`'s.
    fn alloc(&self, user: u32, how: How) -> Item {
        let item = Item(self.zone.alloc(how).expect("there are items"));
        assert_eq!(self.user(&item).get(), 0, "an item is given out twice");
        self.user(&item).set(user);
        item
    }

    fn free(&self, user: u32, item: Item) {
        assert_eq!(self.user(&item).get(), user, "somebody else has our item");
        self.user(&item).set(0);
        // SAFETY: of this zone, and nobody uses it any more.
        unsafe { self.zone.free(item.0) };
    }

    /// When all is freed, every page comes back: no item and no bucket is lost.
    fn check_all_back(&self) {
        let stats = self.zone.stats();
        assert_eq!((stats.used, stats.fails), (0, 0));
        reclaim(Reclaim::DrainCpu);
        assert_eq!(vm_page::stats().free, self.pages, "an item is lost");
    }
}

/// One CPU's second full bucket goes to the zone while another CPU wants one.
fn exchange() {
    let items = Items::new();
    let [a, b, c, d, e] = [(); 5].map(|()| items.alloc(1, How::NoWait));
    // With the one that the last allocation left both buckets are full.
    [a, b, c].into_iter().for_each(|item| items.free(1, item));
    let theirs = Arc::clone(&items);
    let other = spawn(move || {
        let item = theirs.alloc(2, How::NoWait);
        theirs.free(2, item);
    });
    items.free(1, d);
    other.join();
    items.free(1, e);
    items.check_all_back();
}

/// Two CPUs run out of items; the zone has one full bucket.
fn fetch() {
    let items = Items::new();
    let [a, b, c, d, e] = [(); 5].map(|()| items.alloc(1, How::NoWait));
    let freed = [a, b, c, d];
    freed.into_iter().for_each(|item| items.free(1, item));
    // What this CPU has left.
    let held = [(); 3].map(|()| items.alloc(1, How::NoWait));
    let theirs = Arc::clone(&items);
    let other = spawn(move || theirs.alloc(2, How::NoWait));
    let mine = items.alloc(1, How::NoWait);
    let item = other.join();
    items.free(2, item);
    let rest = held.into_iter().chain([mine, e]);
    rest.for_each(|item| items.free(1, item));
    items.check_all_back();
}

fn drain() {
    let items = Items::new();
    let item = items.alloc(1, How::NoWait);
    items.free(1, item);
    let other = spawn(|| reclaim(Reclaim::DrainCpu));
    let item = items.alloc(1, How::NoWait);
    items.free(1, item);
    other.join();
    items.check_all_back();
}

fn limit() {
    let items = Items::new();
    items.zone.set_max(1);
    let item = items.alloc(1, How::NoWait);
    let theirs = Arc::clone(&items);
    let other = spawn(move || {
        let item = theirs.alloc(2, How::Wait);
        theirs.free(2, item);
    });
    items.free(1, item);
    other.join();
    items.check_all_back();
}

fn sleepers() {
    let items = Items::new();
    items.zone.set_max(1);
    let item = items.alloc(1, How::NoWait);
    let others = [2, 3].map(|user| {
        let theirs = Arc::clone(&items);
        spawn(move || {
            let item = theirs.alloc(user, How::Wait);
            theirs.free(user, item);
        })
    });
    items.free(1, item);
    for other in others {
        other.join();
    }
    items.check_all_back();
}
