//! The machine: its CPUs, its memory, its start and its end.

use alloc::string::{String, ToString};
use core::ptr::NonNull;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::pcpu_machdep::{intr_disable, intr_restore, pcpu_init};
use super::{clock, intr_machdep, malloc};
use crate::machine::atomic::{AtomicBool, Ordering};
use crate::machine::host::Arena;
use crate::machine::pcpu_gs::{area_of, set_ncpus};
use crate::machine::{MAXCPU, PhysRange, upcall};

/// The machine of this process.
pub struct Machine;

impl Machine {
    /// Begins to build it.
    pub fn builder() -> Builder {
        Builder {
            cpus: 2,
            memory: 256 << 20,
            quiet: false,
            tunables: String::new(),
        }
    }
}

/// Builds the machine: `Machine::builder().cpus(2).run(|| { … })`.
pub struct Builder {
    cpus: usize,
    memory: usize,
    quiet: bool,
    tunables: String,
}

static PHYS_AVAIL: spin::Once<[PhysRange; 1]> = spin::Once::new();
static STARTED: AtomicBool = AtomicBool::new(false);
static QUIET: AtomicBool = AtomicBool::new(false);
/// The boot CPU has come so far that the others may run.
static RELEASED: AtomicBool = AtomicBool::new(false);

impl Builder {
    /// Sets the number of CPUs; otherwise 2. More than the host has make sense only for tests.
    pub fn cpus(mut self, cpus: usize) -> Builder {
        assert!((1..=MAXCPU).contains(&cpus), "1 to {MAXCPU} CPUs");
        self.cpus = cpus;
        self
    }

    /// Sets the bytes of physical memory; otherwise 256 MiB. Pages that are not touched cost the host nothing.
    pub fn memory(mut self, bytes: usize) -> Builder {
        self.memory = bytes.next_multiple_of(2 << 20);
        self
    }

    /// Keeps kernel messages from the host's standard output; `dmesg` still has them.
    pub fn quiet(mut self) -> Builder {
        self.quiet = true;
        self
    }

    /// Sets the kernel's command line: `name=value` tunables.
    pub fn tunables(mut self, line: &str) -> Builder {
        self.tunables = line.to_string();
        self
    }

    /// Runs `body` as the first thread of the machine and returns what it returns; the CPUs stand still from then on, and
    /// what is left in the machine is never dropped.
    ///
    /// # Panics
    /// If there has been a machine in this process already, or if the host refuses what it needs.
    pub fn run<T: Send + 'static>(self, body: impl FnOnce() -> T + Send + 'static) -> T {
        let again = STARTED.swap(true, Ordering::Relaxed);
        assert!(!again, "one native machine in a process");
        let arena = Arena::map(self.memory);
        let start = arena.base() as u64;
        let end = start + arena.len() as u64;
        PHYS_AVAIL.call_once(|| [PhysRange { start, end }]);
        core::mem::forget(arena);
        QUIET.store(self.quiet, Ordering::Relaxed);
        set_ncpus(self.cpus);
        clock::start();
        intr_machdep::install_handlers();
        end_with_a_panic();

        for cpu in 1..self.cpus {
            spawn(cpu, move || {
                while !RELEASED.load(Ordering::Acquire) {
                    thread::park_timeout(Duration::from_micros(100));
                }
                upcall::start_application_cpu()
            });
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let tunables = self.tunables;
        spawn(0, move || {
            upcall::boot(&tunables);
            let result = body();
            let _ = intr_disable();
            intr_machdep::halt_others();
            // There is room for it: this does not wait.
            let _ = sender.send(result);
            intr_machdep::halt()
        });
        receiver.recv().expect("the first thread sends or panics")
    }
}

/// Starts a host thread as CPU `cpu`, with interrupts off.
fn spawn(cpu: usize, run: impl FnOnce() + Send + 'static) {
    const BOOT_STACK: usize = 8 << 20;
    let thread = thread::Builder::new()
        .name(alloc::format!("cpu{cpu}"))
        .stack_size(BOOT_STACK);
    let started = thread.spawn(move || {
        pcpu_init(cpu);
        malloc::this_thread_is_a_cpu();
        // SAFETY: has no conditions.
        let tid = unsafe { libc::gettid() };
        clock::timer_init(tid);
        area_of(cpu).md.tid.store(tid, Ordering::Release);
        run();
    });
    started.expect("a thread of the host for each CPU");
}

/// Lets the application CPUs run, and turns interrupts on.
pub(in crate::machine) fn release_cpus() {
    RELEASED.store(true, Ordering::Release);
    intr_restore(crate::machine::INTR_ENABLED);
}

/// Makes a panic of a kernel thread end the process, after its message: a host thread that unwinds and finds itself in the
/// middle of another kernel thread would not end well.
fn end_with_a_panic() {
    const EXIT_PANIC: i32 = 101;
    let print = std::panic::take_hook();
    std::panic::set_hook(std::boxed::Box::new(move |info| {
        if !malloc::is_cpu() {
            return print(info);
        }
        let _ = intr_disable();
        print(info);
        // SAFETY: ends the process, whatever its threads do.
        unsafe { libc::_exit(EXIT_PANIC) }
    }));
}

/// Runs `f`, which uses the host's libraries, with interrupts off, so that it stays on this host thread.
pub fn hostcall<R>(f: impl FnOnce() -> R) -> R {
    let state = intr_disable();
    let result = f();
    intr_restore(state);
    result
}

/// Writes to standard output, unless the machine is quiet.
pub fn console_write(bytes: &[u8]) {
    if !QUIET.load(Ordering::Relaxed) {
        // SAFETY: the bytes are readable. What the host does not take is lost, as on a serial line.
        unsafe { libc::write(libc::STDOUT_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    }
}

/// Writes to standard output and says how much it took: the host takes all.
pub fn console_write_some(bytes: &[u8]) -> usize {
    console_write(bytes);
    bytes.len()
}

/// Ends the process with `code`.
pub fn poweroff(code: u8) -> ! {
    // SAFETY: ends the process, whatever its threads do.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Ends the process.
pub fn reboot() -> ! {
    poweroff(1)
}

/// Returns a number from the host's generator.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the buffer has that length. So few bytes come whole.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, 8, "the host has no random numbers");
    u64::from_ne_bytes(bytes)
}

/// Returns the ranges of memory that the kernel may use.
pub fn phys_avail() -> &'static [PhysRange] {
    PHYS_AVAIL.get().map_or(&[], |ranges| &ranges[..])
}

/// Returns where physical memory is mapped: physical and virtual addresses are the same here.
#[inline]
pub fn phys_to_virt(pa: u64) -> *mut u8 {
    pa as *mut u8
}

/// Returns the physical address behind a pointer.
#[inline]
pub fn virt_to_phys(va: *const u8) -> u64 {
    va as u64
}

/// Maps device memory: `pa` is the address of a model's registers in this process.
///
/// # Panics
/// If `pa` is zero.
pub fn pmap_mapdev(pa: u64, _len: usize) -> NonNull<u8> {
    NonNull::new(pa as *mut u8).expect("a device model has memory")
}
