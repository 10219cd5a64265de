//! The end: what went wrong, where, and how we came there.
//!
//! FreeBSD: sys/kern/kern_shutdown.c (vpanic), sys/kern/subr_kdb.c (kdb_backtrace), sys/amd64/amd64/db_trace.c

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};
use kernel::init_main::Crash;
use kernel::ksyms::ksyms_lookup;
use sys::machine::amd64::clock::delay_us;
use sys::machine::amd64::cpufunc::{disable_intr, frame_pointer, halt};
use sys::machine::amd64::intr_machdep::stop_cpus_hard;
use sys::machine::amd64::pmap::{self, pmap_kextract};
use sys::machine::amd64::reset::debug_exit;
use sys::machine::amd64::uart;
use sys::machine::{curcpu, curthread, curthread_raw, reboot, sbinuptime};

/// QEMU's exit status is twice this and one.
const EXIT_PANIC: u8 = 0x11;
/// FreeBSD's PANIC_REBOOT_WAIT_TIME.
const REBOOT_WAIT_S: u64 = 15;
/// More frames than fit on a stack mean a loop.
const MAX_FRAMES: usize = 4096;
const MAX_LINES: usize = 64;

/// The CPU that panics plus one, and in the high half how often it has come here.
static PANIC_CPU: AtomicUsize = AtomicUsize::new(0);

/// Writes to the console without locks.
struct Console;

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        uart::uart_write(s.as_bytes());
        Ok(())
    }
}

#[panic_handler]
fn rust_panic(info: &core::panic::PanicInfo<'_>) -> ! {
    begin();
    let message = info.message();
    match info.location() {
        Some(at) => vpanic(
            &format_args!("panic: {message}\n  at {at}"),
            frame_pointer(),
            None,
        ),
        None => vpanic(&format_args!("panic: {message}"), frame_pointer(), None),
    }
}

/// Panics for an exception, with the frame and address of the instruction that caused it.
pub fn fatal_trap(frame: u64, rip: u64, report: &dyn fmt::Display) -> ! {
    begin();
    vpanic(report, frame, Some(rip))
}

/// Makes sure that only one CPU panics, and that one only once.
fn begin() {
    disable_intr();
    let me = curcpu() + 1;
    match PANIC_CPU.compare_exchange(0, me, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => sys::kern::subr_witness::disable(),
        Err(other) if other == me => {
            uart::uart_panic();
            let _ = writeln!(Console, "\npanic within the panic");
            die();
        }
        Err(_) => halt(),
    }
    stop_cpus_hard();
    uart::uart_panic();
}

fn vpanic(report: &dyn fmt::Display, frame: u64, rip: Option<u64>) -> ! {
    let mut out = Console;
    // The report begins a line, whatever was being written.
    let _ = writeln!(out, "\n{report}");
    let _ = writeln!(out, "cpuid = {}", curcpu());
    let _ = writeln!(out, "time = {:?} after boot", sbinuptime());
    print_thread(&mut out);
    let _ = writeln!(out, "KDB: stack backtrace:");
    print_backtrace(&mut out, frame, rip);
    let _ = writeln!(out, "Uptime: {}s", sbinuptime().as_s());
    die()
}

/// Ends QEMU with a failure, or on other machines restarts after a time to read the report.
fn die() -> ! {
    debug_exit(EXIT_PANIC);
    let _ = writeln!(Console, "Automatic reboot in {REBOOT_WAIT_S} seconds");
    delay_us(REBOOT_WAIT_S * 1_000_000);
    reboot()
}

fn print_thread(out: &mut Console) {
    if curthread_raw().is_null() {
        return;
    }
    let thread = curthread();
    let _ = writeln!(out, "current thread = {} ({})", thread.tid(), thread.name());
}

/// Makes the kernel crash, to see that it does so well.
pub fn crash(how: Crash) {
    match how {
        Crash::Trap => {
            // SAFETY: none: this is the fault that was asked for. Address 16 is never mapped.
            unsafe { core::ptr::without_provenance_mut::<u8>(16).write_volatile(0) };
        }
        Crash::WriteText => {
            let text = crash as *const () as *mut u8;
            // SAFETY: none: text is mapped read-only, so this faults, as was asked for.
            unsafe { text.write_volatile(0) };
        }
        Crash::StackOverflow => {
            overflow(1);
        }
    }
}

#[inline(never)]
fn overflow(depth: usize) -> usize {
    let mut frame = [depth; 64];
    core::hint::black_box(&mut frame);
    if depth == 0 {
        0
    } else {
        overflow(depth + 1) + frame[depth % 64]
    }
}

fn print_backtrace(out: &mut Console, frame: u64, rip: Option<u64>) {
    let mut number = 0;
    if let Some(rip) = rip {
        print_frame(out, 0, rip, 0);
        number = 1;
    }
    // A runaway recursion is one line, however deep.
    let (mut last, mut repeated) = (0, 0);
    backtrace(frame, |return_address| {
        if return_address == last {
            repeated += 1;
        } else {
            if repeated > 0 {
                let _ = writeln!(out, "   ... {repeated} more of these");
            }
            print_frame(out, number, return_address, 1);
            (last, repeated) = (return_address, 0);
        }
        number += 1;
        number - repeated < MAX_LINES
    });
    if repeated > 0 {
        let _ = writeln!(out, "   ... {repeated} more of these");
    }
}

/// Prints where `address` is. A return address is looked up `back` bytes before, in its call.
fn print_frame(out: &mut Console, number: usize, address: u64, back: u64) {
    let _ = match ksyms_lookup(address - back) {
        Some((name, offset)) => {
            writeln!(out, "#{number} {address:#x} at {name}+{:#x}", offset + back)
        }
        None => writeln!(out, "#{number} {address:#x}"),
    };
}

/// Calls `f` with each return address from `frame` on up, until it says no.
fn backtrace(mut frame: u64, mut f: impl FnMut(u64) -> bool) {
    for _ in 0..MAX_FRAMES {
        let readable =
            |va: u64| va.is_multiple_of(8) && va >= pmap::DMAP_BASE && pmap_kextract(va).is_some();
        if !readable(frame) || !readable(frame + 8) {
            return;
        }
        // SAFETY: both words are mapped.
        let (next, return_address) = unsafe {
            (
                (frame as *const u64).read(),
                ((frame + 8) as *const u64).read(),
            )
        };
        if return_address < pmap::KERNBASE {
            return;
        }
        if !f(return_address) || next == frame {
            return;
        }
        frame = next;
    }
}
