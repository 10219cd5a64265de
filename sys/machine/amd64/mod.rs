//! The bare machine: an amd64 PC.
//!
//! The contract is in `machine/mod.rs`; what only the boot code and the drivers' buses need is reached through the modules.

pub mod clock;

pub mod cpufunc;
pub mod intr_machdep;
pub mod io_apic;
pub mod local_apic;
pub mod machdep;
pub mod pcpu_machdep;
pub mod pmap;
pub mod random;
pub mod reset;
pub mod uart;

pub use super::switch::{Pcb, cpu_switch};
pub use clock::sbinuptime;
pub use intr_machdep::{intr_alloc, intr_assign_cpu, intr_free, ipi_send};
pub use local_apic::set_event_timer;
pub use machdep::{cpu_idle, cpu_spinwait, phys_avail, set_phys_avail};
pub use pcpu_machdep::{
    PcpuMd, counter_u64_add, critical_enter, critical_exit, curcpu, curthread_raw, intr_disable,
    intr_enabled, intr_restore, ncpus, pcpu, pcpu_find,
};
pub use pmap::{KStack, phys_to_virt, pmap_mapdev, virt_to_phys};
pub use random::random_u64;
pub use reset::{poweroff, reboot};
pub use uart::{uart_write as console_write, uart_write_some as console_write_some};
