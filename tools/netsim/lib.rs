//! A simulated wire between stacks, in virtual time.
//!
//! `Wire` joins an interface of one `Vnet` to one of another; `impair` decides what happens to the frames on the
//! way, `offload` stands in for the NIC's checksum and segmentation engines, `pcap` writes what crossed.

pub mod impair;
#[cfg(feature = "stack")]
pub mod offload;
