//! The EEPROM: station address and checksum.
//!
//! FreeBSD: sys/dev/e1000/e1000_nvm.c

use sys::machine::cpu_spinwait;

use super::e1000_hw::{E1000Hw, HwError, MacType};
use super::e1000_regs::*;

/// The 16-bit words 0 to 0x3f add up to this (8254x SDM §5.6.35).
const NVM_SUM: u16 = 0xbaba;
const NVM_CHECKSUM_REG: u32 = 0x3f;
const EERD_ATTEMPTS: u32 = 100_000;

impl E1000Hw {
    /// Reads one word.
    #[doc(alias = "e1000_read_nvm_eerd")]
    pub fn read_nvm(&self, word: u32) -> Result<u16, HwError> {
        self.write(EERD, word << EERD_ADDR_SHIFT | EERD_START);
        for _ in 0..EERD_ATTEMPTS {
            let value = self.read(EERD);
            if value & EERD_DONE != 0 {
                return Ok((value >> EERD_DATA_SHIFT) as u16);
            }
            cpu_spinwait();
        }
        Err(HwError::Nvm)
    }

    /// Adds up the words that the checksum covers.
    #[doc(alias = "e1000_validate_nvm_checksum")]
    pub fn validate_nvm_checksum(&self) -> Result<(), HwError> {
        let mut sum = 0u16;
        for word in 0..=NVM_CHECKSUM_REG {
            sum = sum.wrapping_add(self.read_nvm(word)?);
        }
        if sum == NVM_SUM {
            Ok(())
        } else {
            Err(HwError::Nvm)
        }
    }

    /// The station address: from the EEPROM, or, where it has no read register that works, from the receive
    /// address register into which the controller loaded it.
    #[doc(alias = "e1000_read_mac_addr")]
    pub fn read_mac_addr(&self) -> Result<[u8; 6], HwError> {
        let mut addr = [0u8; 6];
        if self.mac_type == MacType::E82544 || self.validate_nvm_checksum().is_err() {
            let low = self.read(RAL.get(0)).to_le_bytes();
            let high = self.read(RAH.get(0)).to_le_bytes();
            addr[..4].copy_from_slice(&low);
            addr[4..].copy_from_slice(&high[..2]);
        } else {
            for word in 0..3 {
                let bytes = self.read_nvm(word)?.to_le_bytes();
                let at = word as usize * 2;
                addr[at..at + 2].copy_from_slice(&bytes);
            }
        }
        let multicast = addr[0] & 1 != 0;
        if multicast || addr == [0; 6] {
            return Err(HwError::MacAddress);
        }
        Ok(addr)
    }
}
