//! Locks: alone, fought over by two threads, and read far more often than written.

use std::hint::black_box;
use std::sync::Arc;

use sys::kern::kern_mutex::{Mutex, SpinMutex};
use sys::kern::kern_rmlock::RmLock;
use sys::kern::kern_rwlock::RwLock;
use sys::kern::kern_sx::Sx;
use sys::kern::lock_order::{App, Leaf};
use sys::machine::Critical;

use crate::rounds::{self, Case, Side};
use crate::table::{self, Bound, Goal, find};

const EMPTY: &str = "critical section";
const ALONE: &str = "1 thread";
const PAIR: &str = "2 threads";
/// One write in so many operations.
const MIXES: [(u64, &str); 5] = [
    (2, "1 in 2"),
    (10, "1 in 10"),
    (100, "1 in 100"),
    (1_000, "1 in 1,000"),
    (10_000, "1 in 10,000"),
];

/// Measures a lock, by the expression that acquires it, alone and from two threads.
macro_rules! both {
    ($cases:ident, $side:expr, $($name:literal: $lock:expr, |$l:ident| $guard:expr;)+) => {$({
        let lock = Arc::new($lock);
        let theirs = Arc::clone(&lock);
        $cases.push(Case::alone($name, ALONE, $side, move || {
            let $l = &*theirs;
            black_box(&*$guard);
        }));
        $cases.push(Case::pair($name, PAIR, $side, move |_, _| {
            let $l = &*lock;
            black_box(&*$guard);
        }));
    })+};
}

/// Measures a lock with each of the `MIXES`, from two threads.
macro_rules! mix {
    ($cases:ident, $side:expr, $($name:literal: $lock:expr, |$l:ident| $read:expr, $write:expr;)+) => {$(
        mix!($cases, $side, $name, $lock, |$l| $read, $write, 0 1 2 3 4);
    )+};
    ($cases:ident, $side:expr, $name:literal, $lock:expr, |$l:ident| $read:expr, $write:expr, $($mix:literal)+) => {$({
        const ONE_IN: u64 = MIXES[$mix].0;
        let lock = Arc::new($lock);
        $cases.push(Case::pair($name, MIXES[$mix].1, $side, move |side, n| {
            let $l = &*lock;
            // The two write half a period apart.
            if (n + side as u64 * (ONE_IN / 2)).is_multiple_of(ONE_IN) {
                *$write += 1;
            } else {
                black_box(*$read);
            }
        }));
    })+};
}

/// Measures and prints.
pub fn measure() {
    let mut cases = Vec::new();
    cases.push(Case::alone(EMPTY, ALONE, Side::Ours, || {
        drop(black_box(Critical::enter()));
    }));
    // What two threads that share nothing gain on this host: the measure for the others.
    cases.push(Case::pair(EMPTY, PAIR, Side::Ours, |_, _| {
        drop(black_box(Critical::enter()));
    }));
    both! { cases, Side::Ours,
        "RmLock read": RmLock::<_, Leaf>::new(0_u64), |l| l.read();
        "RmLock write": RmLock::<_, Leaf>::new(0_u64), |l| l.write();
        "RwLock read": RwLock::<_, Leaf>::new(0_u64), |l| l.read();
        "RwLock write": RwLock::<_, Leaf>::new(0_u64), |l| l.write();
        "Mutex": Mutex::<_, Leaf>::new(0_u64), |l| l.lock();
        "SpinMutex": SpinMutex::<_, Leaf>::new(0_u64), |l| l.lock();
        "Sx shared": Sx::<_, App>::new(0_u64), |l| l.slock();
        "Sx exclusive": Sx::<_, App>::new(0_u64), |l| l.xlock();
    }
    both! { cases, Side::Peer,
        "parking_lot RwLock read": parking_lot::RwLock::new(0_u64), |l| l.read();
        "parking_lot RwLock write": parking_lot::RwLock::new(0_u64), |l| l.write();
        "parking_lot Mutex": parking_lot::Mutex::new(0_u64), |l| l.lock();
        "std RwLock read": std::sync::RwLock::new(0_u64), |l| l.read().expect("not poisoned");
        "std RwLock write": std::sync::RwLock::new(0_u64), |l| l.write().expect("not poisoned");
        "std Mutex": std::sync::Mutex::new(0_u64), |l| l.lock().expect("not poisoned");
        "spin RwLock read": spin::RwLock::new(0_u64), |l| l.read();
        "spin RwLock write": spin::RwLock::new(0_u64), |l| l.write();
        "spin Mutex": spin::Mutex::new(0_u64), |l| l.lock();
    }

    mix! { cases, Side::Ours,
        "RmLock": RmLock::<_, Leaf>::new(0_u64), |l| l.read(), l.write();
        "RwLock": RwLock::<_, Leaf>::new(0_u64), |l| l.read(), l.write();
    }
    mix! { cases, Side::Peer,
        "parking_lot RwLock": parking_lot::RwLock::new(0_u64), |l| l.read(), l.write();
        "std RwLock": std::sync::RwLock::new(0_u64), |l| l.read().expect("not poisoned"), l.write().expect("not poisoned");
        "spin RwLock": spin::RwLock::new(0_u64), |l| l.read(), l.write();
    }

    rounds::run(&mut cases);
    table::print(
        "Locks: ns to acquire and release; of 2 threads, the time divided by the operations of both",
        "lock",
        &cases,
        &[ALONE, PAIR],
    );
    table::print(
        "Read-mostly: ns per operation of 2 threads, one operation in so many a write",
        "lock",
        &cases,
        &MIXES.map(|(_, column)| column),
    );
    break_even(&cases);
    goals(&cases);
}

/// Says how rare writes must be for `RmLock` to be the better choice.
fn break_even(cases: &[Case]) {
    let advantage = |column| find(cases, "RwLock", column).ratio(find(cases, "RmLock", column));
    let points = MIXES.map(|(one_in, column)| ((one_in as f64).ln(), advantage(column).ln()));
    let crossing = points.windows(2).find(|p| p[0].1 < 0.0 && p[1].1 >= 0.0);
    println!();
    match crossing {
        Some(p) => {
            let share = -p[0].1 / (p[1].1 - p[0].1);
            let one_in = (p[0].0 + share * (p[1].0 - p[0].0)).exp();
            println!("RmLock is the faster one when at most one operation in {one_in:.0} writes.");
        }
        None if points[0].1 >= 0.0 => {
            println!("RmLock is the faster one at each of these shares of writes.");
        }
        None => println!("RmLock is not the faster one at any of these shares of writes."),
    }
}

fn goals(cases: &[Case]) {
    let ratio =
        |row: &str, other: &str, column| find(cases, row, column).ratio(find(cases, other, column));
    let parking_lot = |row: &str| ratio(row, &format!("parking_lot {row}"), ALONE);
    table::print_goals(&[
        Goal {
            what: "RmLock read, of an empty critical section".into(),
            measured: ratio("RmLock read", EMPTY, ALONE),
            bound: Bound::AtMost(1.3),
        },
        Goal {
            what: "RwLock read, of parking_lot's".into(),
            measured: parking_lot("RwLock read"),
            bound: Bound::AtMost(1.0),
        },
        Goal {
            what: "Mutex, of parking_lot's".into(),
            measured: parking_lot("Mutex"),
            bound: Bound::AtMost(1.0),
        },
        Goal {
            what: "RwLock, of RmLock, one write in 10,000, 2 threads".into(),
            measured: ratio("RwLock", "RmLock", MIXES[4].1),
            bound: Bound::AtLeast(5.0),
        },
    ]);
}
