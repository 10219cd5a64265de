//! The serial line COM1: polled output, input by interrupt.
//!
//! FreeBSD: sys/dev/uart/uart_dev_ns8250.c
//! Differs from FreeBSD: one port, at the place every PC has it. The `uart_16550` crate was tried on paper: it
//! sends a byte per status read, where this fills the FIFO.

use super::cpufunc::{inb, outb};
use super::pcpu_machdep::{intr_disable, intr_restore};
use core::sync::atomic::{AtomicBool, Ordering};
use spin::mutex::SpinMutex;

const COM1: u16 = 0x3f8;
/// The ISA interrupt of COM1.
pub const COM1_IRQ: u8 = 4;

const REG_DATA: u16 = 0;
const REG_IER: u16 = 1;
const REG_FCR: u16 = 2;
const REG_LCR: u16 = 3;
const REG_MCR: u16 = 4;
const REG_LSR: u16 = 5;

const IER_ERXRDY: u8 = 0x01;
const FCR_ENABLE: u8 = 0x01;
const FCR_RCV_RST: u8 = 0x02;
const FCR_XMT_RST: u8 = 0x04;
const LCR_8BITS: u8 = 0x03;
const LCR_DLAB: u8 = 0x80;
/// DTR, RTS, and OUT2, which lets the interrupt through.
const MCR_ON: u8 = 0x0b;
const LSR_RXRDY: u8 = 0x01;
const LSR_THRE: u8 = 0x20;
/// Divisor for 115200 baud.
const DIVISOR: u8 = 1;
const FIFO_SIZE: usize = 16;
/// How often an unready port is asked before output is thrown away.
const PATIENCE: u32 = 200_000;

static OUTPUT: SpinMutex<()> = SpinMutex::new(());
/// A panic writes without the lock: whoever holds it is stopped.
static PANICKING: AtomicBool = AtomicBool::new(false);

fn read(reg: u16) -> u8 {
    // SAFETY: COM1 is this file's alone, and no read of it harms.
    unsafe { inb(COM1 + reg) }
}

fn write(reg: u16, value: u8) {
    // SAFETY: COM1 is this file's alone.
    unsafe { outb(COM1 + reg, value) }
}

/// Sets the line to 115200 8N1, FIFOs on, interrupts off.
pub fn uart_init() {
    write(REG_IER, 0);
    write(REG_LCR, LCR_DLAB | LCR_8BITS);
    write(REG_DATA, DIVISOR);
    write(REG_IER, 0);
    write(REG_LCR, LCR_8BITS);
    write(REG_FCR, FCR_ENABLE | FCR_RCV_RST | FCR_XMT_RST);
    write(REG_MCR, MCR_ON);
}

/// From now on output asks for no lock.
pub fn uart_panic() {
    PANICKING.store(true, Ordering::Relaxed);
}

/// Writes `bytes`, a newline as carriage return and newline.
pub fn uart_write(bytes: &[u8]) {
    let state = intr_disable();
    let panicking = PANICKING.load(Ordering::Relaxed);
    let output = (!panicking).then(|| OUTPUT.lock());
    send(bytes);
    drop(output);
    intr_restore(state);
}

fn send(bytes: &[u8]) {
    let mut room = 0;
    let mut put_byte = |byte| {
        if room == 0 {
            let mut patience = PATIENCE;
            while read(REG_LSR) & LSR_THRE == 0 {
                patience -= 1;
                if patience == 0 {
                    return;
                }
                core::hint::spin_loop();
            }
            room = FIFO_SIZE;
        }
        write(REG_DATA, byte);
        room -= 1;
    };
    for &byte in bytes {
        if byte == b'\n' {
            put_byte(b'\r');
        }
        put_byte(byte);
    }
}

/// Lets the port interrupt when a byte has come.
pub fn uart_enable_input() {
    write(REG_IER, IER_ERXRDY);
}

/// Takes a byte that has come.
pub fn uart_read() -> Option<u8> {
    let status = read(REG_LSR);
    // All ones: there is no port.
    (status != 0xff && status & LSR_RXRDY != 0).then(|| read(REG_DATA))
}
