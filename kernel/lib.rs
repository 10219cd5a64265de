//! The bootable image: console, shell and programs.

#![no_std]

extern crate alloc;
