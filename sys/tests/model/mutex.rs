//! `kern_mutex`: exclusion, the contended path, and the hand-over by turnstile.

use crate::runner::{Mutant, Subject};
use std::sync::Arc;
use sys::kern::kern_mutex::Mutex;
use sys::kern::lock_order::Leaf;
use sys::machine::model::{Model, SiteKind, Watched, spawn};

pub const MODELS: &[Subject] = &[
    Subject {
        name: "mutex",
        about: "two threads add under a mutex: alone each time, and none is forgotten",
        model: || Model::new(2),
        body: || add(1, 2),
        bounds: [3, 6],
        mutants: &[
            Mutant::of(
                "kern_mutex.rs",
                ".compare_exchange(me.as_word(), UNOWNED",
                SiteKind::Release,
            ),
            Mutant::of(
                "subr_turnstile.rs",
                "sched::wakeup(thread)",
                SiteKind::Wakeup,
            ),
        ],
    },
    Subject {
        name: "mutex-three",
        about: "three threads, so that a release finds several waiters",
        model: || Model::new(3),
        body: || add(2, 1),
        bounds: [2, 4],
        mutants: &[
            Mutant::of("kern_mutex.rs", "word.store(if more", SiteKind::Release),
            Mutant::of(
                "subr_turnstile.rs",
                "sched::wakeup(thread)",
                SiteKind::Wakeup,
            ),
        ],
    },
];

struct Sum(Mutex<Watched<u32>, Leaf>);

impl Sum {
    fn add(&self) {
        let guard = self.0.lock();
        guard.set(guard.get() + 1);
    }
}

fn add(others: u32, times: u32) {
    let sum = Arc::new(Sum(Mutex::new(Watched::new(0))));
    let threads: Vec<_> = (0..others)
        .map(|_| {
            let sum = Arc::clone(&sum);
            spawn(move || (0..times).for_each(|_| sum.add()))
        })
        .collect();
    (0..times).for_each(|_| sum.add());
    threads.into_iter().for_each(|thread| thread.join());
    assert_eq!(sum.0.lock().get(), (others + 1) * times);
}
