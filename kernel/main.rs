//! The bootable image. On the host there is nothing to boot: the same crates run in tests and tools.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
#[allow(
    unsafe_code,
    reason = "the machine itself: entry, descriptor tables, page tables, boot data"
)]
mod amd64;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("kernel: boots under QEMU only: cargo xtask shell");
    std::process::exit(1);
}
