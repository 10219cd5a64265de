//! The bootable image: console, shell and programs.

#![no_std]

extern crate alloc;

pub mod apps;
pub mod cmdline;
pub mod shell;
pub mod ksyms;
pub mod init_main;
pub mod apps;
pub mod shell;
