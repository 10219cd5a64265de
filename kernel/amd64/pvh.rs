//! What the PVH boot protocol hands over.
//!
//! FreeBSD: sys/x86/xen/pv.c, sys/contrib/xen/arch-x86/hvm/start_info.h

use sys::machine::amd64::pmap::{KERNBASE, Segment};

const START_MAGIC: u32 = 0x336e_c578;
const CMDLINE_MAX: usize = 4096;
/// Most entries of the memory map that are looked at.
pub const MEMMAP_MAX: usize = 64;
/// The boot page tables show this much.
const BOOT_MAPPED: u64 = 1 << 30;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct ModlistEntry {
    paddr: u64,
    size: u64,
    cmdline_paddr: u64,
    reserved: u64,
}

/// Kinds of memory, as E820 numbers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryKind {
    /// Usable.
    Ram,
    /// ACPI tables, or other memory that firmware keeps.
    Acpi,
    /// Anything else.
    Reserved,
}

/// A line of the memory map.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRange {
    /// Where.
    pub segment: Segment,
    /// What.
    pub kind: MemoryKind,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemmapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// All of it, copied out of memory that will be used for something else.
pub struct BootInfo {
    memory: [MemoryRange; MEMMAP_MAX],
    ranges: usize,
    /// Module 0: the symbols; empty if there is none.
    pub symbols: Segment,
    /// Root of the ACPI tables.
    pub rsdp: u64,
    cmdline: [u8; CMDLINE_MAX],
    cmdline_len: usize,
}

impl BootInfo {
    /// The memory map.
    pub fn memory(&self) -> &[MemoryRange] {
        &self.memory[..self.ranges]
    }

    /// The command line, up to a byte that is not text.
    pub fn cmdline(&self) -> &str {
        let bytes = &self.cmdline[..self.cmdline_len];
        match core::str::from_utf8(bytes) {
            Ok(line) => line,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }

    /// Copies what the boot loader left at `start_info` into `self`; the reason if it is not usable.
    ///
    /// # Safety
    /// Runs on the boot page tables, before any memory is used that is not the image's.
    pub unsafe fn read(&mut self, start_info: u64) -> Result<(), &'static str> {
        let info: StartInfo = read(start_info).ok_or("start info beyond 1 GiB")?;
        if info.magic != START_MAGIC {
            return Err("not started by the PVH protocol");
        }
        self.rsdp = info.rsdp_paddr;
        if info.cmdline_paddr != 0 {
            for (i, slot) in self.cmdline.iter_mut().enumerate() {
                let byte: u8 =
                    read(info.cmdline_paddr + i as u64).ok_or("command line beyond 1 GiB")?;
                if byte == 0 {
                    break;
                }
                *slot = byte;
                self.cmdline_len = i + 1;
            }
        }
        if info.nr_modules > 0 {
            let module: ModlistEntry =
                read(info.modlist_paddr).ok_or("module list beyond 1 GiB")?;
            self.symbols = Segment {
                start: module.paddr,
                end: module.paddr + module.size,
            };
        }
        if info.version == 0 || info.memmap_entries == 0 {
            return Err("no memory map (PVH start info version 0)");
        }
        self.ranges = MEMMAP_MAX.min(info.memmap_entries as usize);
        for (i, slot) in self.memory[..self.ranges].iter_mut().enumerate() {
            let at = info.memmap_paddr + (i * size_of::<MemmapEntry>()) as u64;
            let entry: MemmapEntry = read(at).ok_or("memory map beyond 1 GiB")?;
            *slot = MemoryRange {
                segment: Segment {
                    start: entry.addr,
                    end: entry.addr.saturating_add(entry.size),
                },
                kind: match entry.kind {
                    1 => MemoryKind::Ram,
                    3 | 4 => MemoryKind::Acpi,
                    _ => MemoryKind::Reserved,
                },
            };
        }
        Ok(())
    }

    /// Nothing.
    pub const fn new() -> Self {
        Self {
            memory: [MemoryRange {
                segment: Segment { start: 0, end: 0 },
                kind: MemoryKind::Reserved,
            }; MEMMAP_MAX],
            ranges: 0,
            symbols: Segment { start: 0, end: 0 },
            rsdp: 0,
            cmdline: [0; CMDLINE_MAX],
            cmdline_len: 0,
        }
    }
}

/// Copies a `T` from physical memory that the boot page tables show.
fn read<T>(pa: u64) -> Option<T> {
    let end = pa.checked_add(size_of::<T>() as u64)?;
    // SAFETY: the boot page tables map it, and every type read here is made of plain numbers.
    (end <= BOOT_MAPPED).then(|| unsafe { ((KERNBASE + pa) as *const T).read_unaligned() })
}
