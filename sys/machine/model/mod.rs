//! A machine whose threads, atomics and fences are those of loom: a model checker that runs a few threads in every order,
//! and lets every load return every value that the memory model allows.
//!
//! Compiled with `--cfg loom` in the place of another backend, so that what is checked is the shipped code of the locks and
//! queues, not a copy. `cargo xtask model` runs the models; they stand in `sys/tests/model`.
//!
//! - Each kernel thread is a thread of loom's with a CPU of its own: it is never preempted by another on that CPU.
//! - `kern/sched.rs` is replaced by `kern/sched_model.rs`: a thread that blocks parks, and a wakeup unparks it. What
//!   decides who blocks and who is woken, turnstiles and sleep queues, is the shipped code.
//! - A thread that binds itself to another CPU visits it: both threads run, but for their critical sections (`visits`).
//! - Each execution has a few pages of memory, zero at first, for zones.
//! - An interrupt comes between any two steps of the CPU that it is sent to (`machine.rs`).
//! - `atomic.rs` keeps the constructors constant, and names the mutants: each place where an order of memory is asked for,
//!   each fence, wakeup and interrupt is one, in which exactly that is left out. Each model lists those it must notice.
//!
//! What loom overlooks: of the accesses to an atomic it keeps the last. A load of one thread, then a load and a store of another:
//! that the store could come first is not tried, unless the first execution already has them in the other order. In a model the
//! thread that only looks is spawned last.
//!
//! What is left out of busy waiting: two threads that wait for a third could pass the turn to and fro for ever. After `MOST_TURNS`
//! turns of an execution its rest is run in one order alone.
//!
//! What loom leaves out: a `compare_exchange_weak` does not fail without reason, loads are never moved before earlier
//! ones of a thread as if from the future, and SeqCst accesses are no stronger than acquire and release. Hence the rule that
//! where a load must not pass an earlier store the code says so by a fence.

pub(super) mod atomic;
mod contract;
mod machine;
mod mutant;

pub use atomic::Watched;
pub use contract::*;
pub use machine::{
    JoinHandle, MOST_TURNS, MachineLocal, Model, Report, call_thread_body, spawn, timer_interrupt,
};
pub(crate) use machine::{
    blocked, end_visit, interleave, leak, make_runnable, teardown_started, visit,
};
pub use mutant::{Site, SiteKind, last_steps};
