//! The framework under every driver.
