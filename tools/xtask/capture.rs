//! Reads captures with a parser that is not ours, and checks what the stack put on the wire.

use anyhow::{Context, Result, anyhow, bail};
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use pcap_file::pcap::PcapReader;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// What a capture holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Frames.
    pub frames: u64,
    /// ARP packets.
    pub arp: u64,
    /// IPv4 packets.
    pub ipv4: u64,
    /// Fragments among them.
    pub fragments: u64,
    /// TCP segments.
    pub tcp: u64,
    /// UDP datagrams.
    pub udp: u64,
    /// Bytes of the TCP stream that carried most, counted once each.
    pub largest_stream: u64,
}

/// One direction of a connection: addresses and ports.
type Flow = ([u8; 4], u16, [u8; 4], u16);

/// How far a stream has been seen.
struct Stream {
    first: u32,
    /// Sequence numbers seen without gap from the SYN on.
    next: u32,
    /// Pieces beyond a gap.
    beyond: Vec<(u32, u32)>,
    bytes: u64,
}

/// Reads a capture; an error says which frame is wrong.
pub fn check(path: &Path) -> Result<Summary> {
    let file = File::open(path).with_context(|| format!("no capture {}", path.display()))?;
    let mut reader = PcapReader::new(BufReader::new(file))?;
    let mut reading = Reading::default();
    while let Some(packet) = reader.next_packet() {
        // The file may end in the middle of a frame if QEMU was killed.
        let Ok(packet) = packet else { break };
        if packet.orig_len as usize > packet.data.len() {
            bail!(
                "frame {} is not whole in the capture",
                reading.summary.frames + 1
            );
        }
        reading.summary.frames += 1;
        let number = reading.summary.frames;
        reading
            .frame(&packet.data)
            .with_context(|| format!("frame {number}"))?;
    }
    let streams = reading.streams.values().map(|s| s.bytes);
    reading.summary.largest_stream = streams.max().unwrap_or(0);
    Ok(reading.summary)
}

#[derive(Default)]
struct Reading {
    summary: Summary,
    streams: HashMap<Flow, Stream>,
}

impl Reading {
    fn frame(&mut self, frame: &[u8]) -> Result<()> {
        let packet = PacketHeaders::from_ethernet_slice(frame).context("does not parse")?;
        let ip = match packet.net {
            Some(NetHeaders::Arp(_)) => {
                self.summary.arp += 1;
                return Ok(());
            }
            Some(NetHeaders::Ipv4(ip, _)) => ip,
            Some(_) => return Ok(()),
            None => bail!("is neither ARP nor IP"),
        };
        self.summary.ipv4 += 1;
        if ip.header_checksum != ip.calc_header_checksum() {
            bail!("wrong IP header checksum {:04x}", ip.header_checksum);
        }
        if ip.is_fragmenting_payload() {
            self.summary.fragments += 1;
            return Ok(());
        }
        let payload = packet.payload.slice();
        match packet.transport {
            Some(TransportHeader::Tcp(tcp)) => {
                self.summary.tcp += 1;
                let sum = tcp.calc_checksum_ipv4(&ip, payload)?;
                if !same_sum(sum, tcp.checksum) {
                    bail!("wrong TCP checksum {:04x}, not {sum:04x}", tcp.checksum);
                }
                tcp.options_iterator()
                    .try_for_each(|o| o.map(drop))
                    .map_err(|e| anyhow!("bad TCP options: {e:?}"))?;
                let (src, dst) = (ip.source, ip.destination);
                let flow = (src, tcp.source_port, dst, tcp.destination_port);
                self.segment(flow, tcp.syn, tcp.sequence_number, payload.len() as u32);
            }
            Some(TransportHeader::Udp(udp)) => {
                self.summary.udp += 1;
                let sum = udp.calc_checksum_ipv4(&ip, payload)?;
                if udp.checksum != 0 && !same_sum(sum, udp.checksum) {
                    bail!("wrong UDP checksum {:04x}, not {sum:04x}", udp.checksum);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn segment(&mut self, flow: Flow, syn: bool, seq: u32, len: u32) {
        if syn {
            let next = seq.wrapping_add(1);
            self.streams.insert(
                flow,
                Stream {
                    first: next,
                    next,
                    beyond: Vec::new(),
                    bytes: 0,
                },
            );
            return;
        }
        let Some(stream) = self.streams.get_mut(&flow) else {
            return;
        };
        if len > 0 {
            stream.beyond.push((seq, seq.wrapping_add(len)));
            stream.advance();
        }
    }
}

/// Whether two checksums are the same number: ones' complement has two zeros, and QEMU's e1000 writes the other one.
fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a.wrapping_add(1) <= 1 && b.wrapping_add(1) <= 1)
}

impl Stream {
    fn advance(&mut self) {
        loop {
            let next = self.next;
            let fits = |(from, to): &(u32, u32)| {
                (from.wrapping_sub(next) as i32) <= 0 && (to.wrapping_sub(next) as i32) > 0
            };
            let Some(at) = self.beyond.iter().position(fits) else {
                break;
            };
            let (_, to) = self.beyond.swap_remove(at);
            self.bytes += u64::from(to.wrapping_sub(self.next));
            self.next = to;
        }
        let next = self.next;
        self.beyond
            .retain(|(_, to)| (to.wrapping_sub(next) as i32) > 0);
        debug_assert!(self.bytes as u32 == self.next.wrapping_sub(self.first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn segment(syn: bool, seq: u32, data: &[u8]) -> Vec<u8> {
        let mut tcp = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1000, 5201, seq, 8192);
        if syn {
            tcp = tcp.syn();
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, data).unwrap();
        frame
    }

    #[test]
    fn a_stream_is_counted_once_through_loss_and_reordering() {
        let mut reading = Reading::default();
        for (syn, seq, len) in [
            (true, u32::MAX - 5, 0),
            (false, u32::MAX - 4, 10),
            (false, 25, 10),
            (false, 5, 20),
            (false, 5, 20),
            (false, 50, 10),
        ] {
            reading.frame(&segment(syn, seq, &vec![7; len])).unwrap();
        }
        let stream = reading.streams.values().next().unwrap();
        assert_eq!(stream.bytes, 40);
        assert_eq!(stream.beyond, [(50, 60)]);
    }

    #[test]
    fn a_wrong_checksum_is_an_error() {
        let mut frame = segment(false, 1, b"hello");
        let last = frame.len() - 1;
        frame[last] ^= 1;
        let e = Reading::default().frame(&frame).unwrap_err();
        assert!(e.to_string().contains("TCP checksum"), "{e}");
    }
}
