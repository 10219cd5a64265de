//! The console: line editor, commands, jobs.
//!
//! [`sh`] runs command lines, [`tty`] is the terminal, `commands` the table of programs; each other file is
//! one command or one subject of a large one.

pub mod getopt;
pub mod line;
pub mod sh;
pub mod syntax;
pub mod tty;

mod arp;
mod commands;
mod format;
mod ifconfig;
mod netstat;
mod route;
mod sysctl;
mod system;
mod vmstat;
