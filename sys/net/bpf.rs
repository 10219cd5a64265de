//! Tap points for packet capture.
