//! The receive path of a driver.
