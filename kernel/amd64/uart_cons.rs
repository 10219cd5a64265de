//! The serial line as the console.
//!
//! FreeBSD: sys/dev/uart/uart_core.c, sys/dev/uart/uart_tty.c

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use kernel::console::{cn_input, cn_writable};
use spin::Once;
use sys::errno::Errno;
use sys::kern::kern_intr::{FilterStatus, IntrCookie, bus_setup_intr};
use sys::machine::amd64::io_apic::isa_irq;
use sys::machine::amd64::uart::{COM1_IRQ, uart_enable_interrupts, uart_intr};
use sys::machine::{IrqLine, intr_disable, intr_restore};

const RING: usize = 1024;

/// From the filter, which cannot block, to the thread; each moves its own end.
static BYTES: [AtomicU8; RING] = [const { AtomicU8::new(0) }; RING];
static HEAD: AtomicUsize = AtomicUsize::new(0);
static TAIL: AtomicUsize = AtomicUsize::new(0);
/// The line takes output again from who was refused some.
static WRITABLE: AtomicBool = AtomicBool::new(false);
static COOKIE: Once<IntrCookie> = Once::new();

/// Lets what is typed on the serial line come to the console, and output leave by interrupt.
pub fn uart_cons_attach() -> Result<(), Errno> {
    let (gsi, signal) = isa_irq(COM1_IRQ);
    let line = IrqLine {
        gsi,
        level: signal.level,
        active_low: signal.active_low,
    };
    let ithread = || {
        if WRITABLE.swap(false, Ordering::Relaxed) {
            cn_writable();
        }
        cn_input(core::iter::from_fn(take));
    };
    let cookie = bus_setup_intr(line, "uart0", 0, Box::new(filter), Box::new(ithread))?;
    COOKIE.call_once(|| cookie);
    uart_enable_interrupts();
    // A byte that came before raised no edge that anyone saw.
    let state = intr_disable();
    let status = filter();
    intr_restore(state);
    if let (FilterStatus::ScheduleThread, Some(cookie)) = (status, COOKIE.get()) {
        cookie.schedule();
    }
    Ok(())
}

fn filter() -> FilterStatus {
    let events = uart_intr(|byte| {
        let head = HEAD.load(Ordering::Relaxed);
        if head.wrapping_sub(TAIL.load(Ordering::Acquire)) < RING {
            BYTES[head % RING].store(byte, Ordering::Relaxed);
            HEAD.store(head.wrapping_add(1), Ordering::Release);
        }
    });
    if events.writable {
        WRITABLE.store(true, Ordering::Relaxed);
    }
    // The line is not shared: an interrupt with nothing to do came for a byte that was already taken.
    if events.received || events.writable {
        FilterStatus::ScheduleThread
    } else {
        FilterStatus::Handled
    }
}

fn take() -> Option<u8> {
    let tail = TAIL.load(Ordering::Relaxed);
    if tail == HEAD.load(Ordering::Acquire) {
        return None;
    }
    let byte = BYTES[tail % RING].load(Ordering::Relaxed);
    TAIL.store(tail.wrapping_add(1), Ordering::Release);
    Some(byte)
}
