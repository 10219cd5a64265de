//! The bootable image: console, shell and programs.

#![no_std]

extern crate alloc;

pub mod apps;
pub mod cmdline;
pub mod console;
pub mod init_main;
pub mod ksyms;
pub mod shell;
