//! `buf_ring`: each item is taken once, in the order of its producer.

use crate::runner::{Mutant, Subject};
use std::sync::Arc;
use sys::buf_ring::{BufRing, ManyConsumers};
use sys::machine::model::{Model, SiteKind, spawn};

pub const MODELS: &[Subject] = &[
    Subject {
        name: "buf_ring",
        about: "two producers, and a consumer that takes while they put: no item is lost, doubled or seen half filled",
        model: || Model::new(3),
        body: one_consumer,
        bounds: [2, 3],
        mutants: &[
            Mutant::of("buf_ring.rs", "self.tail.store(", SiteKind::Release),
            Mutant::of("buf_ring.rs", "while self.tail.load(", SiteKind::Acquire),
            Mutant::of(
                "buf_ring.rs",
                "(at != self.ring.prod.tail.load(",
                SiteKind::Acquire,
            ),
        ],
    },
    Subject {
        name: "buf_ring-many",
        about: "two consumers, and a producer that needs the room of what they take",
        model: || Model::new(3),
        body: many_consumers,
        bounds: [1, 2],
        mutants: &[Mutant::of(
            "buf_ring.rs",
            "if head == self.prod.tail.load(",
            SiteKind::Acquire,
        )],
    },
];

fn one_consumer() {
    let (ring, mut consumer) = BufRing::<u32, _>::with_consumer(4);
    let theirs = Arc::clone(&ring);
    let producer = spawn(move || assert!(theirs.enqueue(20).is_ok()));
    // Looks last in the first execution: see `machine/model` on what loom overlooks.
    let consumer = spawn(move || {
        let taken: Vec<u32> = (0..2).filter_map(|_| consumer.dequeue()).collect();
        (consumer, taken)
    });
    assert!(ring.enqueue(10).is_ok());
    producer.join();
    let (mut consumer, mut taken) = consumer.join();
    taken.extend(std::iter::from_fn(|| consumer.dequeue()));
    taken.sort_unstable();
    assert_eq!(taken, [10, 20]);
}

fn many_consumers() {
    let ring = Arc::new(BufRing::<u32, ManyConsumers>::new(2));
    assert!(ring.enqueue(1).is_ok());
    let theirs = Arc::clone(&ring);
    // One slot is always empty: the second item needs the room of the first.
    let producer = spawn(move || theirs.enqueue(2).map_or(1, |()| 2));
    let theirs = Arc::clone(&ring);
    let other = spawn(move || theirs.dequeue());
    let mine = ring.dequeue();
    let (put, other) = (producer.join(), other.join());
    let mut taken: Vec<u32> = mine.into_iter().chain(other).collect();
    taken.extend(std::iter::from_fn(|| ring.dequeue()));
    taken.sort_unstable();
    assert_eq!(taken, [1, 2][..put]);
}
