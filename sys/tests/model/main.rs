//! Models of the kernel's locks and queues, which loom explores: `cargo xtask model`.
//!
//! Each is a few threads that use the shipped code, and what must hold whatever their order. That a model would notice is
//! shown by its mutants: see `sys/machine/model`.

#[cfg(loom)]
mod buf_ring;
#[cfg(loom)]
mod mp_ring;
#[cfg(loom)]
mod mutex;
#[cfg(loom)]
mod rmlock;
#[cfg(loom)]
mod runner;
#[cfg(loom)]
mod rwlock;
#[cfg(loom)]
mod sleepqueue;
#[cfg(loom)]
mod smr;
#[cfg(loom)]
mod uma;

#[cfg(loom)]
fn main() -> std::process::ExitCode {
    runner::main(&[
        mutex::MODELS,
        rwlock::MODELS,
        rmlock::MODELS,
        sleepqueue::MODELS,
        smr::MODELS,
        mp_ring::MODELS,
        buf_ring::MODELS,
        uma::MODELS,
    ])
}

#[cfg(not(loom))]
fn main() {}
