//! `kern_rmlock`: the reader's plain store and the writer's interrupt.

use crate::runner::{Mutant, Subject};
use std::sync::Arc;
use sys::kern::kern_rmlock::RmLock;
use sys::kern::lock_order::Leaf;
use sys::machine::model::{Model, SiteKind, Watched, spawn};

pub const MODELS: &[Subject] = &[
    Subject {
        name: "rmlock",
        about: "a reader with a token against a writer, whose interrupt comes between any two of the reader's steps",
        model: || Model::new(2).interrupts(),
        body: || read_against_write(1),
        bounds: [3, 5],
        mutants: &[
            Mutant::of(
                "kern_rmlock.rs",
                "tracker.rmlock.store(self.address()",
                SiteKind::Store,
            ),
            Mutant::of(
                "kern_rmlock.rs",
                "self.rm_writecpus.store(u32::MAX",
                SiteKind::Store,
            ),
        ],
    },
    Subject {
        name: "rmlock-again",
        about: "a reader takes the token again that a writer has taken away",
        model: || Model::new(2).interrupts(),
        body: || read_against_write(2),
        bounds: [2, 4],
        mutants: &[Mutant::of(
            "subr_smp.rs",
            "machine::ipi_send(cpu, Ipi::Rendezvous)",
            SiteKind::Interrupt,
        )],
    },
];

fn read_against_write(times: u32) {
    let lock = Arc::new(RmLock::<Watched<u32>, Leaf>::new(Watched::new(0)));
    // Takes a token for this CPU.
    assert_eq!(lock.read().get(), 0);
    let theirs = Arc::clone(&lock);
    let writer = spawn(move || {
        let guard = theirs.write();
        guard.set(guard.get() + 1);
    });
    for _ in 0..times {
        assert!(lock.read().get() <= 1);
    }
    writer.join();
    assert_eq!(lock.read().get(), 1);
}
