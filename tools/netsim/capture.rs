//! Writes the frames that cross a wire, for Wireshark and tcpdump.

use core::time::Duration;
use pcap_file::pcap::{PcapPacket, PcapWriter};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// A pcap file being written.
pub struct Capture(PcapWriter<BufWriter<File>>);

impl Capture {
    /// Begins a file.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let writer = PcapWriter::new(file).map_err(std::io::Error::other)?;
        Ok(Self(writer))
    }

    /// Adds a frame seen at `at` since boot. A full disk ends the capture, not the test.
    pub fn write(&mut self, at: Duration, frame: &[u8]) {
        let packet = PcapPacket::new(at, frame.len() as u32, frame);
        let _ = self.0.write_packet(&packet);
    }
}
