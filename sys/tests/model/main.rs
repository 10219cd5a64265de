//! Models of the kernel's locks and queues, which loom explores: `cargo xtask model`.
//!
//! Each is a few threads that use the shipped code, and what must hold whatever their order. That a model would notice is
//! shown by its mutants: see `sys/machine/model`.

#[cfg(loom)]
mod mutex;
#[cfg(loom)]
mod runner;

#[cfg(loom)]
fn main() -> std::process::ExitCode {
    runner::main(&[mutex::MODELS])
}

#[cfg(not(loom))]
fn main() {}
