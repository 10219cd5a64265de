//! A simulated wire between stacks, in virtual time.
//!
//! `wire` joins an interface of one `Vnet` to one of another; `impair` decides what happens to the frames on the
//! way, `offload` stands in for the NIC's checksum and segmentation engines, `capture` writes what crossed. `world` makes
//! two stacks with a wire between them, `station` one whose network is a program.

#[cfg(feature = "stack")]
pub mod capture;
pub mod impair;
#[cfg(feature = "stack")]
pub mod offload;
#[cfg(feature = "stack")]
pub mod station;
#[cfg(feature = "stack")]
pub mod wire;
#[cfg(feature = "stack")]
pub mod world;
