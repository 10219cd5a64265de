//! Memory: pages and zones.

pub mod malloc;
pub mod uma;
pub mod uma_cache;
pub mod uma_core;
pub mod uma_dbg;
pub mod vm_page;
