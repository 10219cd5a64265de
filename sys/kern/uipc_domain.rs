//! Protocol families.
