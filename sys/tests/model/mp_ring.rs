//! `net/mp_ring`: each item is consumed once, in the order of its producer, by one consumer at a time.

use crate::runner::{Mutant, Subject};
use std::sync::Arc;
use sys::machine::model::{Model, SiteKind, Watched, spawn};
use sys::net::mp_ring::{Drained, Items, MpRing, RingConsumer};

pub const MODELS: &[Subject] = &[
    Subject {
        name: "mp_ring",
        about: "two producers, of whom one consumes: no item is lost, doubled or overtaken",
        model: || Model::new(2),
        body: || produce(1, 2, None),
        bounds: [3, 4],
        mutants: &[
            Mutant::of("mp_ring.rs", ".compare_exchange_weak(", SiteKind::Release),
            Mutant::of("mp_ring.rs", ".compare_exchange_weak(", SiteKind::Acquire),
        ],
    },
    Subject {
        name: "mp_ring-three",
        about: "three producers of one item each",
        model: || Model::new(3),
        body: || produce(2, 1, None),
        bounds: [1, 2],
        mutants: &[Mutant::of(
            "mp_ring.rs",
            ".compare_exchange_weak(",
            SiteKind::Release,
        )],
    },
    Subject {
        name: "mp_ring-stalls",
        about: "a consumer that gives up with items left, which somebody else goes on with",
        model: || Model::new(2),
        body: || produce(1, 2, Some(Drained::Abdicate)),
        bounds: [2, 3],
        mutants: &[Mutant::of(
            "mp_ring.rs",
            ".compare_exchange_weak(",
            SiteKind::Acquire,
        )],
    },
];

/// Takes all, or one at a time.
struct Sink {
    taken: [Watched<u32>; 8],
    count: usize,
    stops: Option<Drained>,
}

impl RingConsumer<u32> for Sink {
    fn drain(&mut self, items: &mut Items<'_, u32>) -> Drained {
        while let Some(item) = items.pop() {
            self.taken[self.count].set(item);
            self.count += 1;
            if let Some(stops) = self.stops {
                return stops;
            }
        }
        Drained::Progress
    }
}

fn produce(others: u32, items: u32, stops: Option<Drained>) {
    let sink = Sink {
        taken: Default::default(),
        count: 0,
        stops,
    };
    let ring = Arc::new(MpRing::new(8, sink));
    let enqueue = move |producer: u32, ring: &MpRing<u32, Sink>| {
        for item in 0..items {
            assert!(ring.enqueue(producer << 8 | item).is_ok());
        }
    };
    let threads: Vec<_> = (1..=others)
        .map(|producer| {
            let ring = Arc::clone(&ring);
            spawn(move || enqueue(producer, &ring))
        })
        .collect();
    enqueue(0, &ring);
    threads.into_iter().for_each(|thread| thread.join());
    while !ring.is_empty() {
        ring.kick();
    }
    let taken = ring.with_consumer(|sink| {
        let taken = sink.taken[..sink.count].iter();
        taken.map(Watched::get).collect::<Vec<_>>()
    });
    let taken = taken.expect("nobody consumes");
    assert_eq!(taken.len(), ((others + 1) * items) as usize, "{taken:?}");
    for producer in 0..=others {
        let own = taken.iter().filter(|&&item| item >> 8 == producer);
        let own: Vec<u32> = own.map(|item| item & 0xff).collect();
        assert_eq!(own, (0..items).collect::<Vec<_>>());
    }
}
