//! The transmit path of a driver.
