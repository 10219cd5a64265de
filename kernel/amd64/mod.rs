//! The PC: boot, exceptions, CPUs, console, the end.

pub mod acpi;
pub mod kern_malloc;
pub mod machdep;
pub mod mp_machdep;
pub mod panic;
pub mod pvh;
pub mod trap;

core::arch::global_asm!(include_str!("locore.S"), options(att_syntax));
