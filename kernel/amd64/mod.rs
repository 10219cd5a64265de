//! The PC: boot, exceptions, CPUs, console, the end.

pub mod acpi;
pub mod identcpu;
pub mod kern_malloc;
pub mod machdep;
pub mod mp_machdep;
pub mod panic;
pub mod pvh;
pub mod support;
pub mod trap;
pub mod uart_cons;

core::arch::global_asm!(include_str!("locore.S"), options(att_syntax));
