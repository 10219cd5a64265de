//! The serial line COM1.
//!
//! FreeBSD: sys/dev/uart/uart_dev_ns8250.c
//! Differs from FreeBSD: one port, at the place every PC has it. The `uart_16550` crate was tried on paper: it
//! sends a byte per status read, where this fills the FIFO.
//!
//! Output is polled until interrupts work, and in a panic. Otherwise it goes through a ring that the transmit interrupt
//! empties: whoever writes never waits for the line with interrupts off, even if nobody reads at its other end.

use super::cpufunc::{inb, outb};
use super::pcpu_machdep::{intr_disable, intr_restore};
use core::sync::atomic::{AtomicBool, Ordering};
use spin::mutex::{SpinMutex, SpinMutexGuard};

const COM1: u16 = 0x3f8;
/// The ISA interrupt of COM1.
pub const COM1_IRQ: u8 = 4;

const REG_DATA: u16 = 0;
const REG_IER: u16 = 1;
/// Read: which interrupt is pending.
const REG_IIR: u16 = 2;
/// Written: control of the FIFOs.
const REG_FCR: u16 = 2;
const REG_LCR: u16 = 3;
const REG_MCR: u16 = 4;
const REG_LSR: u16 = 5;

const IER_ERXRDY: u8 = 0x01;
const IER_ETXRDY: u8 = 0x02;
const IIR_NOPEND: u8 = 0x01;
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
/// How often an unready port is asked before polled output is thrown away.
const PATIENCE: u32 = 200_000;
/// Bytes that wait to be sent.
const RING_SIZE: usize = 32 * 1024;
/// What of the ring is kept for kernel messages, which cannot wait.
const MESSAGE_ROOM: usize = 8 * 1024;
/// Put where kernel messages found the ring full.
const LOST: &[u8] = b"\r\n[messages lost here; dmesg has them]\r\n";

static OUTPUT: SpinMutex<Output> = SpinMutex::new(Output {
    ring: [0; RING_SIZE],
    next: 0,
    len: 0,
    lost: false,
    writer_waits: false,
    interrupts: 0,
});
/// A panic writes without the lock: whoever holds it is stopped.
static PANICKING: AtomicBool = AtomicBool::new(false);

/// What is to be sent.
struct Output {
    ring: [u8; RING_SIZE],
    /// Where the oldest byte is.
    next: usize,
    len: usize,
    /// A message found no room.
    lost: bool,
    /// Somebody is to be told when there is room again.
    writer_waits: bool,
    /// The interrupts that are enabled (IER); none: output is polled.
    interrupts: u8,
}

impl Output {
    /// Takes `byte`, a newline as carriage return and newline, unless less than `keep` bytes would stay free.
    fn put(&mut self, byte: u8, keep: usize) -> bool {
        let with_return: &[u8] = if byte == b'\n' { b"\r\n" } else { &[byte] };
        self.put_raw(with_return, keep)
    }

    fn put_raw(&mut self, bytes: &[u8], keep: usize) -> bool {
        if self.len + bytes.len() + keep > RING_SIZE {
            return false;
        }
        for &byte in bytes {
            self.ring[(self.next + self.len) % RING_SIZE] = byte;
            self.len += 1;
        }
        true
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.ring[self.next % RING_SIZE];
        self.len = self.len.checked_sub(1)?;
        self.next = (self.next + 1) % RING_SIZE;
        Some(byte)
    }

    /// Sends while the port takes bytes, and asks to be interrupted when it takes more.
    fn transmit(&mut self) {
        loop {
            if self.lost && self.put_raw(LOST, 0) {
                self.lost = false;
            }
            if self.len == 0 || read(REG_LSR) & LSR_THRE == 0 {
                break;
            }
            for byte in core::iter::from_fn(|| self.take()).take(FIFO_SIZE) {
                write(REG_DATA, byte);
            }
        }
        let wanted = if self.len == 0 {
            self.interrupts & !IER_ETXRDY
        } else {
            self.interrupts | IER_ETXRDY
        };
        if wanted != self.interrupts {
            self.interrupts = wanted;
            write(REG_IER, wanted);
        }
    }
}

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

/// From now on output asks for no lock and waits for no interrupt. Sends what is waiting.
pub fn uart_panic() {
    PANICKING.store(true, Ordering::Relaxed);
    write(REG_IER, 0);
    // SAFETY: the other CPUs are stopped, or this one held the lock itself and does not come back to it.
    let output = unsafe { &mut *OUTPUT.as_mut_ptr() };
    drain(output);
}

/// Sends what is waiting, before the machine is turned off.
pub(super) fn uart_drain() {
    let state = intr_disable();
    if !PANICKING.load(Ordering::Relaxed) {
        drain(&mut OUTPUT.lock());
    }
    intr_restore(state);
}

fn drain(output: &mut Output) {
    let mut room = 0;
    while let Some(byte) = output.take() {
        if !send_raw(byte, &mut room) {
            output.len = 0;
        }
    }
}

/// Writes a kernel message, a newline as carriage return and newline. Never waits for the line once interrupts work: what
/// finds no room is lost, and a note of that is sent in its place.
pub fn uart_write(bytes: &[u8]) {
    if PANICKING.load(Ordering::Relaxed) {
        return send(bytes);
    }
    with_output(|output| {
        if output.interrupts == 0 {
            return send(bytes);
        }
        let fits = !output.lost && bytes.iter().all(|&byte| output.put(byte, LOST.len()));
        output.lost |= !fits;
        output.transmit();
    });
}

/// Writes what there is room for, and returns how many bytes that was; if not all, [`uart_intr`] tells when to go on.
pub fn uart_write_some(bytes: &[u8]) -> usize {
    with_output(|output| {
        if output.interrupts == 0 {
            send(bytes);
            return bytes.len();
        }
        let mut written = 0;
        loop {
            let rest = bytes[written..].iter();
            let taken = rest
                .take_while(|&&byte| output.put(byte, MESSAGE_ROOM))
                .count();
            written += taken;
            output.transmit();
            if taken == 0 || written == bytes.len() {
                break;
            }
        }
        output.writer_waits |= written < bytes.len();
        written
    })
}

fn with_output<T>(body: impl FnOnce(&mut Output) -> T) -> T {
    let state = intr_disable();
    let mut output: SpinMutexGuard<'_, Output> = OUTPUT.lock();
    let result = body(&mut output);
    drop(output);
    intr_restore(state);
    result
}

/// Sends by polling; gives up if the port takes nothing for long.
fn send(bytes: &[u8]) {
    let mut room = 0;
    for &byte in bytes {
        let sent = (byte != b'\n' || send_raw(b'\r', &mut room)) && send_raw(byte, &mut room);
        if !sent {
            return;
        }
    }
}

/// Sends one byte when the port is ready; `room` is what its FIFO still takes. False if it does not get ready.
fn send_raw(byte: u8, room: &mut usize) -> bool {
    if *room == 0 {
        let mut patience = PATIENCE;
        while read(REG_LSR) & LSR_THRE == 0 {
            patience -= 1;
            if patience == 0 {
                return false;
            }
            core::hint::spin_loop();
        }
        *room = FIFO_SIZE;
    }
    write(REG_DATA, byte);
    *room -= 1;
    true
}

/// Lets the port interrupt when a byte has come, and when it can send more.
pub fn uart_enable_interrupts() {
    with_output(|output| {
        output.interrupts = IER_ERXRDY;
        write(REG_IER, IER_ERXRDY);
    });
}

/// What an interrupt brought.
#[derive(Clone, Copy, Default)]
pub struct UartEvents {
    /// Bytes came.
    pub received: bool,
    /// There is room again for who was refused some.
    pub writable: bool,
}

/// Answers an interrupt: hands what came to `receive`, and sends on. Called with interrupts off.
pub fn uart_intr(mut receive: impl FnMut(u8)) -> UartEvents {
    let mut events = UartEvents::default();
    loop {
        while let Some(byte) = uart_read() {
            receive(byte);
            events.received = true;
        }
        let mut output = OUTPUT.lock();
        output.transmit();
        if output.writer_waits && output.len <= RING_SIZE / 2 {
            output.writer_waits = false;
            events.writable = true;
        }
        drop(output);
        // The line is edge triggered: it must have been low for the next interrupt to be seen.
        if read(REG_IIR) & IIR_NOPEND != 0 {
            return events;
        }
    }
}

/// Takes a byte that has come.
fn uart_read() -> Option<u8> {
    let status = read(REG_LSR);
    // All ones: there is no port.
    (status != 0xff && status & LSR_RXRDY != 0).then(|| read(REG_DATA))
}
