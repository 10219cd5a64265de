//! The start of everything that is not the machine's own, in order.
//!
//! FreeBSD: sys/kern/init_main.c (mi_startup), sys/kern/kern_environment.c, libexec/rc/rc.d/netif
//! Differs from FreeBSD: no linker sets: the order is this file.

use sys::errno::Errno;
use sys::kern;
use sys::kern::kern_sysctl::kenv;
use sys::kprintf;
use sys::machine::{poweroff, sbinuptime};

use crate::cmdline;

/// What the start needs of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Machdep {
    /// Starts the other CPUs; each goes to the scheduler.
    pub start_all_aps: fn(),
    /// Lets what is typed come to the console.
    pub attach_console: fn() -> Result<(), Errno>,
    /// Crashes.
    pub crash: fn(Crash),
}

/// A way to crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// A page fault.
    Trap,
    /// A write where only execution is allowed.
    WriteText,
    /// A runaway recursion.
    StackOverflow,
}

/// The first lines of the boot messages.
#[doc(alias = "copyright")]
pub fn announce() {
    kprintf!("---<<BOOT>>---\n");
    kprintf!("{} {} amd64\n", sys::param::OSTYPE, env!("CARGO_PKG_VERSION"));
}

/// Starts all services, the network and the shell. Called on the first thread with interrupts on.
pub fn mi_startup(md: &Machdep) -> ! {
    for (name, value) in cmdline::iter() {
        kenv().set(name, value);
    }
    kern::start_bsp();
    (md.start_all_aps)();
    if let Err(errno) = (md.attach_console)() {
        kprintf!("uart0: no interrupt: {errno}\n");
    }
    kprintf!("up after {} ms\n", sbinuptime().as_ms());
    selftest();
    poweroff(0)
}

fn selftest() {
    use sys::kern::kern_synch::pause_sbt;
    use sys::kern::kern_thread::*;
    use sys::time::Sbintime;
    use alloc::vec::Vec;
    let t0 = sbinuptime();
    let ths: Vec<_> = (0..8).map(|i| kthread_add(&alloc::format!("t{i}"), Pri::PUSER, None, move || {
        for k in 0..5 {
            pause_sbt("x", Sbintime::from_ms(20));
            kprintf!("t{i}.{k}@{} ", sys::machine::curcpu());
        }
    })).collect();
    for t in ths { t.join(); }
    kprintf!("\ndone in {} ms\n", (sbinuptime() - t0).as_ms());
    while let Some(c) = crate::console::cn_getc(Some(Sbintime::from_ms(500))) { kprintf!("got {c}\n"); }
}
