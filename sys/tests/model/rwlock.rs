//! `kern_rwlock`: readers beside each other, writers alone, from one to the other, and nobody left waiting.

use crate::runner::{Mutant, Subject};
use std::sync::Arc;
use sys::kern::kern_rwlock::{RwLock, RwReadGuard, RwWriteGuard};
use sys::kern::lock_order::Leaf;
use sys::machine::model::{Model, SiteKind, Watched, spawn};

pub const MODELS: &[Subject] = &[
    Subject {
        name: "rwlock",
        about: "two threads read and write: a writer is alone, and none is left waiting",
        model: || Model::new(2),
        body: read_and_write,
        bounds: [3, 6],
        mutants: &[Mutant::of(
            "kern_rwlock.rs",
            ".compare_exchange(me.as_word(), UNLOCKED",
            SiteKind::Release,
        )],
    },
    Subject {
        name: "rwlock-three",
        about: "two readers and a writer: the last reader wakes the writer, the writer both readers",
        model: || Model::new(3),
        body: two_readers,
        bounds: [2, 4],
        mutants: &[Mutant::of(
            "subr_turnstile.rs",
            "sched::wakeup(thread)",
            SiteKind::Wakeup,
        )],
    },
    Subject {
        name: "rwlock-writers",
        about: "two writers and a reader, so that readers and writers wait at once",
        model: || Model::new(3),
        body: two_writers,
        bounds: [2, 4],
        mutants: &[Mutant::of(
            "subr_turnstile.rs",
            "sched::wakeup(thread)",
            SiteKind::Wakeup,
        )],
    },
    Subject {
        name: "rwlock-upgrade",
        about: "a reader becomes a writer, and a writer a reader, without another writer in between",
        model: || Model::new(2),
        body: upgrade_and_downgrade,
        bounds: [3, 6],
        mutants: &[Mutant::of(
            "kern_rwlock.rs",
            ".compare_exchange(",
            SiteKind::Release,
        )],
    },
];

struct Data(RwLock<Watched<u32>, Leaf>);

impl Data {
    fn new() -> Arc<Data> {
        Arc::new(Data(RwLock::new(Watched::new(0))))
    }

    fn read(&self) -> u32 {
        self.0.read().get()
    }

    fn add(&self) {
        let guard = self.0.write();
        guard.set(guard.get() + 1);
    }
}

fn read_and_write() {
    let data = Data::new();
    let theirs = Arc::clone(&data);
    let other = spawn(move || {
        let before = theirs.read();
        theirs.add();
        assert!(theirs.read() > before);
    });
    data.add();
    let seen = data.read();
    other.join();
    assert!(seen <= data.read() && data.read() == 2);
}

fn two_readers() {
    let data = Data::new();
    let readers = [0, 1].map(|_| {
        let data = Arc::clone(&data);
        spawn(move || assert!(data.read() <= 1))
    });
    data.add();
    readers.into_iter().for_each(|reader| reader.join());
    assert!(data.0.try_write().is_some());
}

fn two_writers() {
    let data = Data::new();
    let theirs = Arc::clone(&data);
    let writer = spawn(move || theirs.add());
    let theirs = Arc::clone(&data);
    let reader = spawn(move || assert!(theirs.read() <= 2));
    data.add();
    writer.join();
    reader.join();
    assert_eq!(data.read(), 2);
}

fn upgrade_and_downgrade() {
    let data = Data::new();
    let theirs = Arc::clone(&data);
    let other = spawn(move || {
        let guard = theirs.0.write();
        guard.set(guard.get() + 1);
        let written = guard.get();
        let guard = RwWriteGuard::downgrade(guard);
        assert_eq!(guard.get(), written);
    });
    let guard = data.0.read();
    let read = guard.get();
    if let Ok(guard) = RwReadGuard::try_upgrade(guard) {
        assert_eq!(guard.get(), read);
        guard.set(read + 10);
    }
    other.join();
    assert!(data.0.try_write().is_some());
}
