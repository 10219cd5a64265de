//! The MAC: reset, addresses, link.
//!
//! FreeBSD: sys/dev/e1000/e1000_mac.c, e1000_82540.c

use sys::kern::kern_synch::pause_sbt;
use sys::net::ifnet::Media;
use sys::time::Sbintime;

use super::e1000_hw::{E1000Hw, HwError};
use super::e1000_regs::*;

/// Entries of the exact address filter.
const RAR_ENTRIES: usize = 16;

impl E1000Hw {
    /// Silences and resets the controller.
    ///
    /// QEMU's model ignores CTRL.RST (hw/net/e1000.c:set_ctrl): rings, masks and enable bits survive, so that
    /// everything a reset would clear is cleared by hand first.
    #[doc(alias = "e1000_reset_hw_82540")]
    pub fn reset_hw(&self) {
        self.write(IMC, u32::MAX);
        self.write_rctl(0);
        self.write(TCTL, TCTL_PSP);
        self.flush();
        // 8254x SDM §14.3: transactions in progress need up to 10 ms.
        if self.read(TDH) != self.read(TDT) {
            pause_sbt("e1000rst", Sbintime::from_ms(10));
        }
        let ctrl = self.read(CTRL);
        self.write(CTRL, ctrl | CTRL_RST);
        pause_sbt("e1000rst", Sbintime::from_ms(2));
        self.write(IMC, u32::MAX);
        self.write(TCTL, TCTL_PSP);
        for reg in [RDBAL, RDBAH, RDLEN, RDH, RDT, TDBAL, TDBAH, TDLEN, TDH, TDT] {
            self.write(reg, 0);
        }
        self.read(ICR);
    }

    /// Programs what does not depend on rings: addresses, filters, link.
    #[doc(alias = "e1000_init_hw_82540")]
    pub fn init_hw(&self, mac: [u8; 6]) -> Result<(), HwError> {
        for i in 0..VFTA.len() {
            self.write(VFTA.get(i), 0);
        }
        self.rar_set(0, Some(mac));
        for i in 1..RAR_ENTRIES {
            self.rar_set(i, None);
        }
        for i in 0..MTA.len() {
            self.write(MTA.get(i), 0);
        }
        // No flow control: pausing a peer for a full ring stalls all flows for the sake of one.
        for reg in [FCAL, FCAH, FCT, FCTTV, FCRTL, FCRTH] {
            self.write(reg, 0);
        }
        let ctrl = self.read(CTRL);
        let off = CTRL_LRST
            | CTRL_ILOS
            | CTRL_FRCSPD
            | CTRL_FRCDPX
            | CTRL_RFCE
            | CTRL_TFCE
            | CTRL_PHY_RST
            | CTRL_RST;
        self.write(CTRL, ctrl & !off | CTRL_SLU | CTRL_ASDE);
        self.setup_copper_link()
    }

    /// Sets or clears an entry of the exact filter.
    #[doc(alias = "e1000_rar_set")]
    pub fn rar_set(&self, index: usize, addr: Option<[u8; 6]>) {
        let [a, b, c, d, e, f] = addr.unwrap_or_default();
        let high = u32::from_le_bytes([e, f, 0, 0]);
        let valid = if addr.is_some() { RAH_AV } else { 0 };
        self.write(RAL.get(index), u32::from_le_bytes([a, b, c, d]));
        self.write(RAH.get(index), high | valid);
    }

    /// Programs the multicast groups: exact entries as far as they go, the hash table for the rest.
    #[doc(alias = "e1000_update_mc_addr_list")]
    pub fn update_mc_addr_list(&self, groups: &[[u8; 6]]) {
        let exact = groups.len().min(RAR_ENTRIES - 1);
        for i in 1..RAR_ENTRIES {
            self.rar_set(i, groups.get(i - 1).copied());
        }
        let mut table = [0u32; 128];
        for group in &groups[exact..] {
            let hash = mta_hash(*group);
            table[usize::from(hash >> 5)] |= 1 << (hash & 0x1f);
        }
        for (i, &bits) in table.iter().enumerate() {
            if self.read(MTA.get(i)) != bits {
                self.write(MTA.get(i), bits);
            }
        }
    }

    /// What the link is now.
    #[doc(alias = "e1000_get_speed_and_duplex_copper")]
    pub fn link_status(&self) -> Media {
        let status = self.read(STATUS);
        let active = status & STATUS_LU != 0;
        let speed = match status & STATUS_SPEED_MASK {
            _ if !active => 0,
            0 => 10,
            STATUS_SPEED_100 => 100,
            _ => 1000,
        };
        Media {
            speed,
            full_duplex: status & STATUS_FD != 0,
            active,
        }
    }
}

/// Bits 47:36 of the address choose the bit (8254x SDM §13.5.1, RCTL.MO = 0).
#[doc(alias = "e1000_hash_mc_addr")]
fn mta_hash(group: [u8; 6]) -> u16 {
    (u16::from(group[4]) >> 4 | u16::from(group[5]) << 4) & 0xfff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_multicast_hash_is_the_data_sheets_example() {
        // 8254x SDM §13.5.1: 12:34:56:78:9a:bc with offset 0 hashes to 0xbc9.
        assert_eq!(mta_hash([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]), 0xbc9);
    }
}
