//! Power off, restart, and the exit code for QEMU.
//!
//! FreeBSD: sys/x86/x86/cpu_machdep.c (cpu_reset), sys/dev/acpica/acpi.c (acpi_shutdown_final)

use super::clock::delay_us;
use super::cpufunc::{halt, outb, outl, outw};
use super::uart::uart_drain;
use core::sync::atomic::{AtomicU32, Ordering};

/// QEMU's `isa-debug-exit,iobase=0xf4`: a write of `n` ends it with status `2 n + 1`.
const DEBUG_EXIT: u16 = 0xf4;
/// Reset control of PIIX3 and ICH9.
const RESET_CONTROL: u16 = 0xcf9;
const KEYBOARD_COMMAND: u16 = 0x64;

/// Port of PM1a_CNT in the low half and SLP_TYPa of S5 in the high; 0: unknown.
static S5: AtomicU32 = AtomicU32::new(0);
const SLP_EN: u16 = 1 << 13;

/// Tells how ACPI turns the machine off.
pub fn set_s5(pm1a_control: u16, sleep_type: u16) {
    S5.store(
        u32::from(pm1a_control) | u32::from(sleep_type) << 16,
        Ordering::Relaxed,
    );
}

/// Ends QEMU with status `2 code + 1`, if it has the device for that; otherwise returns.
pub fn debug_exit(code: u8) {
    // SAFETY: the port is that device's; elsewhere it is unused.
    unsafe { outl(DEBUG_EXIT, u32::from(code)) };
    delay_us(1_000);
}

/// Turns the machine off. A `code` other than 0 becomes QEMU's exit status, where QEMU has the device for that.
pub fn poweroff(code: u8) -> ! {
    uart_drain();
    if code != 0 {
        debug_exit(code);
    }
    let s5 = S5.load(Ordering::Relaxed);
    if s5 != 0 {
        // SAFETY: ACPI says that this turns the machine off.
        unsafe { outw(s5 as u16, (s5 >> 16) as u16 | SLP_EN) };
        delay_us(100_000);
    }
    halt()
}

/// Restarts the machine.
pub fn reboot() -> ! {
    uart_drain();
    // SAFETY: all of these reset the machine or do nothing.
    unsafe {
        outb(RESET_CONTROL, 0x02);
        outb(RESET_CONTROL, 0x06);
        delay_us(100_000);
        outb(KEYBOARD_COMMAND, 0xfe);
    }
    halt()
}
