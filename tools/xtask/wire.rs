//! The guest's wire in the tool's own hands: frames as datagrams from QEMU, one frame per datagram.

use crate::qemu::Netdev;
use anyhow::{Context, Result};
use std::cell::Cell;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest frame QEMU hands over.
pub const FRAME_MAX: usize = 65_536 + 64;

/// A path for a socket in `dir`, or elsewhere: a socket's name is at most 108 bytes long, and a deep directory's is longer.
pub fn socket_path(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    if path.as_os_str().len() <= 100 {
        return path;
    }
    std::env::temp_dir().join(format!("bsdnet-{}.{name}", std::process::id()))
}

/// The other end of a guest's NIC.
pub struct Wire {
    talker: Talker,
    local: PathBuf,
}

impl Wire {
    /// Makes the sockets' names below `dir`; must be there before QEMU starts.
    pub fn new(dir: &Path) -> Result<Self> {
        let (local, remote) = (
            socket_path(dir, "wire.host"),
            socket_path(dir, "wire.guest"),
        );
        for path in [&local, &remote] {
            let _ = std::fs::remove_file(path);
        }
        let socket = UnixDatagram::bind(&local)
            .with_context(|| format!("can't bind {}", local.display()))?;
        let talker = Talker::new(socket, remote)?;
        Ok(Self { talker, local })
    }

    /// What the guest's NIC is plugged into.
    pub fn netdev(&self) -> Netdev {
        Netdev::Dgram {
            local: self.talker.remote.clone(),
            remote: self.local.clone(),
        }
    }

    /// One more that sends to the guest, and hears nothing from it.
    pub fn talker(&self) -> Result<Talker> {
        Talker::new(UnixDatagram::unbound()?, self.talker.remote.clone())
    }

    /// Receives a frame into `buffer`, if one is there.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>> {
        match self.talker.socket.recv(buffer) {
            Ok(n) => Ok(Some(&buffer[..n])),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e).context("the wire to the guest"),
        }
    }

    /// Sends a frame; false if the guest's side is full (the frame is not sent) or not there.
    pub fn send(&self, frame: &[u8]) -> Result<bool> {
        self.talker.send(frame)
    }

    /// Sends a frame, waiting while the guest's side is full, at most for `within`.
    pub fn send_patiently(&self, frame: &[u8], within: Duration) -> Result<bool> {
        self.talker.send_patiently(frame, within)
    }
}

/// The way to a guest's NIC.
pub struct Talker {
    socket: UnixDatagram,
    remote: PathBuf,
    connected: Cell<bool>,
}

impl Talker {
    fn new(socket: UnixDatagram, remote: PathBuf) -> Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            remote,
            connected: Cell::new(false),
        })
    }

    /// Sends a frame; false if the guest's side is full (the frame is not sent) or not there.
    pub fn send(&self, frame: &[u8]) -> Result<bool> {
        // No wire carries an empty frame, and QEMU takes an empty datagram for the end of the connection.
        if frame.is_empty() {
            return Ok(true);
        }
        // Connected, so that polling for output waits for room at the guest's side.
        if !self.connected.get() {
            if self.socket.connect(&self.remote).is_err() {
                return Ok(false);
            }
            self.connected.set(true);
        }
        match self.socket.send(frame) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                self.connected.set(false);
                Ok(false)
            }
            // Longer than the socket takes: no wire carries that.
            Err(e) if e.raw_os_error() == Some(nix::libc::EMSGSIZE) => Ok(true),
            Err(e) => Err(e).context("the wire to the guest"),
        }
    }

    /// Sends a frame, waiting while the guest's side is full, at most for `within`.
    pub fn send_patiently(&self, frame: &[u8], within: Duration) -> Result<bool> {
        let deadline = std::time::Instant::now() + within;
        while !self.send(frame)? {
            if std::time::Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(true)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.talker.socket.as_fd()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for path in [&self.local, &self.talker.remote] {
            let _ = std::fs::remove_file(path);
        }
    }
}
