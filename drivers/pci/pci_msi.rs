//! Interrupts by message: MSI and MSI-X.
//!
//! FreeBSD: sys/dev/pci/pci.c (pci_alloc_msi, pci_alloc_msix, pci_remap_intr_method)
//! Not carried over: several messages by MSI, for which their data would have to be a block of vectors. Devices with several
//! queues have MSI-X.

use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::errno::Errno;
use sys::kern::kern_intr::{IrqResource, MsiDevice};
use sys::machine::Vector;
use sys::machine::bus_space::{Mmio, Reg, Rw};

use super::pci_enum::PciFunction;
use super::pcireg::*;

impl PciFunction {
    /// Prepares the function's message, which it writes from when an interrupt is set up with what is returned; it uses its
    /// line no more, until that is gone.
    ///
    /// # Errors
    /// `ENODEV`: it has no messages.
    #[doc(alias = "pci_alloc_msi")]
    pub fn alloc_msi(&self) -> Result<IrqResource, Errno> {
        let cap = self.find_cap(PCIY_MSI).ok_or(Errno::ENODEV)?;
        let msi = Msi {
            function: *self,
            cap,
        };
        msi.unmap();
        self.enable(PCIM_CMD_INTXDIS);
        Ok(IrqResource::Message(Arc::new(msi)))
    }

    /// How many messages the function has by MSI-X.
    #[doc(alias = "pci_msix_count")]
    pub fn msix_count(&self) -> usize {
        let cap = self.find_cap(PCIY_MSIX);
        cap.map_or(0, |cap| table_size(self.read_config(cap)))
    }

    /// Prepares the first `count` messages that the function has by MSI-X, each of which it writes from when an interrupt is set
    /// up with it; the function uses its line no more, until all of them are gone.
    ///
    /// # Errors
    /// `ENODEV`: it has no MSI-X. `EINVAL`: it has less than `count`. `ENXIO`: the table that the function describes cannot be
    /// reached.
    #[doc(alias = "pci_alloc_msix")]
    pub fn alloc_msix(&self, count: usize) -> Result<Vec<IrqResource>, Errno> {
        let cap = self.find_cap(PCIY_MSIX).ok_or(Errno::ENODEV)?;
        let entries = table_size(self.read_config(cap));
        if count == 0 || count > entries {
            return Err(Errno::EINVAL);
        }
        let place = self.read_config(cap + PCIR_MSIX_TABLE);
        let bar = self.map((place & PCIM_MSIX_BIR_MASK) as u8)?;
        let table = place & !PCIM_MSIX_BIR_MASK;
        if table as usize + entries * ENTRY_SIZE as usize > bar.size() {
            return Err(Errno::ENXIO);
        }
        let msix = Arc::new(Msix {
            function: *self,
            cap,
            bar,
            table,
        });
        (0..entries).for_each(|index| msix.set_masked(index, true));
        msix.control(PCIM_MSIXCTRL_MSIX_ENABLE, PCIM_MSIXCTRL_FUNCTION_MASK);
        self.enable(PCIM_CMD_INTXDIS);
        let message = |index| {
            let msix = Arc::clone(&msix);
            IrqResource::Message(Arc::new(MsixMessage { msix, index }))
        };
        Ok((0..count).map(message).collect())
    }

    /// Lets the function use its line again.
    fn enable_intx(&self) {
        let command = self.read_config(PCIR_COMMAND) & 0xffff;
        self.write_config(PCIR_COMMAND, command & !PCIM_CMD_INTXDIS);
    }
}

/// The message of a function that has one by MSI.
struct Msi {
    function: PciFunction,
    /// Where the capability stands.
    cap: u16,
}

impl Msi {
    fn control(&self) -> u32 {
        self.function.read_config(self.cap)
    }

    fn write(&self, offset: u16, value: u32) {
        self.function.write_config(self.cap + offset, value);
    }
}

impl MsiDevice for Msi {
    /// The function may write at any time, and has no mask unless it says so: all that it must not mix is changed while messages
    /// are off. A message that only goes elsewhere keeps all but the lower half of its address, which one write changes.
    #[doc(alias = "pci_enable_msi")]
    fn map(&self, vector: &Vector) {
        let control = self.control();
        let low = vector.msi_addr as u32;
        if control & PCIM_MSICTRL_MSI_ENABLE != 0 {
            self.write(PCIR_MSI_ADDR, low);
            return;
        }
        self.write(PCIR_MSI_ADDR, low);
        let data = if control & PCIM_MSICTRL_64BIT != 0 {
            self.write(PCIR_MSI_ADDR_HIGH, (vector.msi_addr >> 32) as u32);
            PCIR_MSI_DATA_64BIT
        } else {
            PCIR_MSI_DATA
        };
        self.write(data, vector.msi_data);
        if control & PCIM_MSICTRL_VECTOR != 0 {
            self.write(data + PCIR_MSI_MASK_FROM_DATA, 0);
        }
        // Of the messages that the function could have, one.
        let control = control & !PCIM_MSICTRL_MME_MASK;
        self.write(0, control | PCIM_MSICTRL_MSI_ENABLE);
    }

    #[doc(alias = "pci_disable_msi")]
    fn unmap(&self) {
        self.write(0, self.control() & !PCIM_MSICTRL_MSI_ENABLE);
    }
}

impl Drop for Msi {
    #[doc(alias = "pci_release_msi")]
    fn drop(&mut self) {
        self.unmap();
        self.function.enable_intx();
    }
}

/// Bytes of an entry of the table.
const ENTRY_SIZE: u32 = 16;
/// From the beginning of an entry.
const ENTRY_ADDR_LOW: u32 = 0;
const ENTRY_ADDR_HIGH: u32 = 4;
const ENTRY_DATA: u32 = 8;
const ENTRY_CONTROL: u32 = 12;

/// Number of entries, from the capability's first register.
fn table_size(control: u32) -> usize {
    ((control & PCIM_MSIXCTRL_TABLE_SIZE) >> 16) as usize + 1
}

/// The MSI-X capability of a function, which has messages enabled.
struct Msix {
    function: PciFunction,
    cap: u16,
    /// Where the table is, and at which offset.
    bar: Mmio,
    table: u32,
}

impl Msix {
    fn register(&self, index: usize, offset: u32) -> Reg<Rw> {
        Reg::at(self.table + index as u32 * ENTRY_SIZE + offset)
    }

    #[doc(alias = "pci_mask_msix")]
    #[doc(alias = "pci_unmask_msix")]
    fn set_masked(&self, index: usize, masked: bool) {
        let control = self.register(index, ENTRY_CONTROL);
        self.bar.modify(control, |old| match masked {
            true => old | PCIM_MSIX_VCTRL_MASK,
            false => old & !PCIM_MSIX_VCTRL_MASK,
        });
    }

    fn control(&self, set: u32, clear: u32) {
        let control = self.function.read_config(self.cap);
        self.function.write_config(self.cap, control & !clear | set);
    }
}

impl Drop for Msix {
    #[doc(alias = "pci_release_msix")]
    fn drop(&mut self) {
        self.control(0, PCIM_MSIXCTRL_MSIX_ENABLE);
        self.function.enable_intx();
    }
}

/// One of the messages of a function.
struct MsixMessage {
    msix: Arc<Msix>,
    index: usize,
}

impl MsiDevice for MsixMessage {
    /// An entry must not change while it is not masked (PCI 3.0 §6.8.2). What the function wants to say meanwhile it says after.
    #[doc(alias = "pci_enable_msix")]
    fn map(&self, vector: &Vector) {
        let Self { msix, index } = self;
        let write = |offset, value| msix.bar.write(msix.register(*index, offset), value);
        msix.set_masked(*index, true);
        write(ENTRY_ADDR_LOW, vector.msi_addr as u32);
        write(ENTRY_ADDR_HIGH, (vector.msi_addr >> 32) as u32);
        write(ENTRY_DATA, vector.msi_data);
        msix.set_masked(*index, false);
    }

    fn unmap(&self) {
        self.msix.set_masked(self.index, true);
        // The function has taken note when this comes back: reads do not pass writes.
        self.msix
            .bar
            .read(self.msix.register(self.index, ENTRY_CONTROL));
    }
}

#[cfg(test)]
mod tests;
