//! Programs that run inside the kernel.
//!
//! Each has a `main(&Env) -> i32` with the exit status of its namesake in FreeBSD's base or ports.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use sys::kern::kern_synch::pause_sbt;
use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use sys::machine;
use sys::net::vnet::Vnet;
use sys::time::Sbintime;

pub mod dhclient;
pub mod digest;
pub mod inetd;
pub mod io;
pub mod iperf3;
pub mod kbench;
pub mod ktest;
pub mod netblast;
pub mod ping;
pub mod rr;

/// Where a program's output goes: the console, or a test's buffer.
pub trait Output: Send + Sync {
    /// Writes `text` as it is.
    fn write(&self, text: &str);
}

/// What a program is given: its words, its stack instance, its output, and whether it should stop.
///
/// Cheap to clone, so that the threads of one program can each have theirs.
#[derive(Clone)]
pub struct Env {
    /// The stack instance the program works in.
    pub vnet: Arc<Vnet>,
    /// The program's output.
    pub out: Arc<dyn Output>,
    /// The words of the command line; the first is the program's name.
    pub args: Vec<String>,
    /// Set when the program is asked to stop (Ctrl-C, `kill`).
    pub interrupt: Arc<AtomicBool>,
}

impl Env {
    /// Whether the program was asked to stop.
    pub fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        self.args.first().map_or("", String::as_str)
    }

    /// Sleeps for `span`, or until the program is asked to stop: true then.
    pub fn sleep(&self, span: Sbintime) -> bool {
        let end = machine::sbinuptime().saturating_add(span);
        loop {
            if self.interrupted() {
                return true;
            }
            let left = end - machine::sbinuptime();
            if left <= Sbintime::ZERO {
                return false;
            }
            pause_sbt("nanslp", left.min(io::POLL));
        }
    }

    /// The words after the program's name.
    pub fn operands(&self) -> &[String] {
        self.args.get(1..).unwrap_or(&[])
    }

    /// Writes a line of formatted text; use [`outln!`](crate::outln).
    pub fn print_line(&self, text: fmt::Arguments<'_>) {
        self.print(format_args!("{text}\n"));
    }

    /// Writes formatted text; use [`out!`](crate::out) or [`outln!`](crate::outln).
    pub fn print(&self, text: fmt::Arguments<'_>) {
        match text.as_str() {
            Some(text) => self.out.write(text),
            None => self.out.write(&alloc::format!("{text}")),
        }
    }
}

/// Goes on with a program's work on a thread of its own.
pub fn spawn(
    env: &Env,
    name: &str,
    work: impl FnOnce(&Env) -> i32 + Send + 'static,
) -> ThreadHandle {
    let env = env.clone();
    kthread_add(name, Pri::PUSER, None, move || {
        work(&env);
    })
}

/// Prints to a program's output.
#[macro_export]
macro_rules! out {
    ($env:expr, $($arg:tt)*) => { $env.print(format_args!($($arg)*)) };
}

/// Prints a line to a program's output.
#[macro_export]
macro_rules! outln {
    ($env:expr) => { $env.print(format_args!("\n")) };
    ($env:expr, $($arg:tt)*) => { $env.print_line(format_args!($($arg)*)) };
}
