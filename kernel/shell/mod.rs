//! The console: line editor, commands, jobs.
//!
//! [`sh`] runs command lines, [`line`] edits them, `commands` is the table of programs; each other file is one
//! command or one subject of a large one.

pub mod getopt;
pub mod line;
pub mod sh;
pub mod syntax;

mod arp;
mod commands;
mod cpuset;
mod format;
mod ifconfig;
mod ndp;
mod netstat;
mod route;
mod setkey;
mod sysctl;
mod system;
mod vmstat;

#[cfg(test)]
mod tests;
