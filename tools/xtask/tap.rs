//! A tap that the tool itself reads and writes, inside a network namespace.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `IFF_TAP | IFF_NO_PI`: whole frames and nothing before them.
const FLAGS: u16 = 0x0002 | 0x1000;
/// Bytes of `struct ifreq`.
const IFREQ_LEN: usize = 40;

nix::ioctl_write_ptr_bad!(
    tunsetiff,
    nix::request_code_write!(b'T', 202, size_of::<i32>()),
    [u8; IFREQ_LEN]
);

/// An open tap.
pub struct Tap(File);

impl Tap {
    /// Opens the tap `name`, which exists in the namespace `netns`.
    pub fn open(netns: &str, name: &str) -> Result<Self> {
        let (netns, name) = (netns.to_string(), name.to_string());
        // A thread of its own enters the namespace: it ends with the thread, and the tap stays open.
        let opener = std::thread::spawn(move || -> Result<File> {
            let ns = File::open(format!("/run/netns/{netns}"))?;
            setns(ns, CloneFlags::CLONE_NEWNET).context("can't enter the namespace")?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .context("can't open /dev/net/tun")?;
            let mut request = [0u8; IFREQ_LEN];
            request[..name.len()].copy_from_slice(name.as_bytes());
            request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
            // SAFETY: the request is a whole `struct ifreq`, with a name that ends within its 16 bytes.
            unsafe { tunsetiff(file.as_raw_fd(), &raw const request) }
                .with_context(|| format!("can't attach to {name}"))?;
            Ok(file)
        });
        let opened = opener
            .join()
            .unwrap_or_else(|e| std::panic::resume_unwind(e));
        Ok(Self(opened?))
    }

    /// Receives a frame into `buffer`, if one is there.
    pub fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>> {
        match self.0.read(buffer) {
            Ok(n) => Ok(Some(&buffer[..n])),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e).context("the tap"),
        }
    }

    /// Sends a frame; the kernel drops it if the interface is down.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        match self.0.write(frame) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
            // EIO: the interface is down. EINVAL: a frame too short to be one.
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EIO | nix::libc::EINVAL)) => {
                Ok(())
            }
            Err(e) => Err(e).context("the tap"),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
