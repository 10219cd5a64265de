//! `subr_smr` and `subr_epoch`: what was unlinked is not used again while a reader has it.

use crate::runner::{Mutant, Subject};
use std::sync::Arc;
use sys::kern::subr_epoch::{NetEpoch, epoch_wait};
use sys::kern::subr_smr::Smr;
use sys::machine::atomic::{AtomicUsize, Ordering};
use sys::machine::model::{Model, SiteKind, Watched, spawn};

pub const MODELS: &[Subject] = &[
    Subject {
        name: "smr",
        about: "a writer that waits for the readers, twice, so that they may have noted an old sequence",
        model: || Model::new(2),
        body: || smr(1, 2),
        bounds: [3, 6],
        mutants: &[Mutant::of(
            "subr_smr.rs",
            "fence(Ordering::SeqCst)",
            SiteKind::Fence,
        )],
    },
    Subject {
        name: "smr-sections",
        about: "a second section against the use of what the first has read",
        model: || Model::new(2),
        body: || smr(2, 1),
        bounds: [3, 6],
        mutants: &[
            Mutant::of(
                "subr_smr.rs",
                "self.cpu.seq.store(SmrSeq::INVALID",
                SiteKind::Release,
            ),
            Mutant::of("subr_smr.rs", "cpu.seq.store(seq", SiteKind::Release),
        ],
    },
    Subject {
        name: "smr-poll",
        about: "a writer that relies on what another writer's look has found",
        model: || Model::new(3),
        body: smr_poll,
        bounds: [2, 5],
        mutants: &[Mutant::of(
            "subr_smr.rs",
            "let seq = cpu.seq.load(",
            SiteKind::Acquire,
        )],
    },
    Subject {
        name: "epoch",
        about: "a writer that waits until every section has ended",
        model: || Model::new(2).time_passes(),
        body: epoch,
        bounds: [2, 5],
        mutants: &[
            Mutant::of("subr_epoch.rs", "fence_after_rmw()", SiteKind::Fence),
            Mutant::of(
                "subr_epoch.rs",
                "left[self.generation].fetch_add(1",
                SiteKind::Release,
            ),
        ],
    },
];

/// Things of which one at a time is linked. A use after the grace period is a write.
#[derive(Default)]
struct Link {
    first: AtomicUsize,
    things: [Thing; 3],
}

struct Thing(Watched<bool>);

impl Default for Thing {
    fn default() -> Thing {
        Thing(Watched::new(true))
    }
}

impl Link {
    fn read(&self) {
        let first = self.first.load(Ordering::Acquire);
        assert!(self.things[first].0.get(), "a reader found what was freed");
    }

    fn unlink(&self) -> usize {
        let first = self.first.load(Ordering::Relaxed);
        self.first.store(first + 1, Ordering::Release);
        first
    }

    fn free(&self, thing: usize) {
        self.things[thing].0.set(false);
    }
}

fn smr(sections: usize, rounds: usize) {
    let shared = Arc::new((Smr::new("model"), Link::default()));
    let theirs = Arc::clone(&shared);
    let reader = spawn(move || {
        for _ in 0..sections {
            let section = theirs.0.enter();
            theirs.1.read();
            drop(section);
        }
    });
    let (smr, link) = &*shared;
    for _ in 0..rounds {
        let old = link.unlink();
        smr.synchronize();
        link.free(old);
    }
    reader.join();
}

fn smr_poll() {
    let shared = Arc::new((Smr::new("model"), Link::default()));
    let theirs = Arc::clone(&shared);
    spawn(move || {
        let section = theirs.0.enter();
        theirs.1.read();
        drop(section);
    });
    let theirs = Arc::clone(&shared);
    // Looks at the readers on behalf of all.
    spawn(move || {
        let _ = theirs.0.poll(theirs.0.current());
    });
    let (smr, link) = &*shared;
    let old = link.unlink();
    let goal = smr.advance();
    if smr.poll(goal) {
        link.free(old);
    }
}

fn epoch() {
    let link = Arc::new(Link::default());
    let theirs = Arc::clone(&link);
    let reader = spawn(move || {
        let section = NetEpoch::enter();
        theirs.read();
        drop(section);
    });
    let old = link.unlink();
    epoch_wait();
    link.free(old);
    reader.join();
}
