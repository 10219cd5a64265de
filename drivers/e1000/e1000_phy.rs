//! The copper PHY: management interface and autonegotiation.
//!
//! FreeBSD: sys/dev/e1000/e1000_phy.c

use sys::machine::cpu_spinwait;

use super::e1000_hw::{E1000Hw, HwError};
use super::e1000_regs::*;

const PHY_ADDRESS: u32 = 1;
const MDIC_ATTEMPTS: u32 = 100_000;

const PHY_CONTROL: u32 = 0;
const PHY_ID1: u32 = 2;
const PHY_AUTONEG_ADV: u32 = 4;
const PHY_1000T_CTRL: u32 = 9;

const MII_CR_RESTART_AUTO_NEG: u16 = 0x0200;
const MII_CR_POWER_DOWN: u16 = 0x0800;
const MII_CR_AUTO_NEG_EN: u16 = 0x1000;
/// 10 and 100 Mbit/s in both duplexes, selector 802.3.
const NWAY_AR_ALL: u16 = 0x01e1;
const CR_1000T_FD_CAPS: u16 = 0x0200;

impl E1000Hw {
    /// Reads a PHY register.
    #[doc(alias = "e1000_read_phy_reg_mdic")]
    pub fn read_phy_reg(&self, reg: u32) -> Result<u16, HwError> {
        self.write(MDIC, reg << 16 | PHY_ADDRESS << 21 | MDIC_OP_READ);
        self.mdic_wait().map(|value| value as u16)
    }

    /// Writes a PHY register.
    #[doc(alias = "e1000_write_phy_reg_mdic")]
    pub fn write_phy_reg(&self, reg: u32, value: u16) -> Result<(), HwError> {
        self.write(
            MDIC,
            u32::from(value) | reg << 16 | PHY_ADDRESS << 21 | MDIC_OP_WRITE,
        );
        self.mdic_wait().map(|_| ())
    }

    fn mdic_wait(&self) -> Result<u32, HwError> {
        for _ in 0..MDIC_ATTEMPTS {
            let value = self.read(MDIC);
            if value & MDIC_READY != 0 {
                return if value & MDIC_ERROR != 0 {
                    Err(HwError::Phy)
                } else {
                    Ok(value)
                };
            }
            cpu_spinwait();
        }
        Err(HwError::Phy)
    }

    /// Lets the PHY negotiate everything it can. One that does so of its own accord is left alone: restarting takes
    /// the link away for half a second.
    #[doc(alias = "e1000_copper_link_autoneg")]
    pub fn setup_copper_link(&self) -> Result<(), HwError> {
        self.read_phy_reg(PHY_ID1)?;
        let control = self.read_phy_reg(PHY_CONTROL)?;
        let advertised = self.read_phy_reg(PHY_AUTONEG_ADV)?;
        let gigabit = self.read_phy_reg(PHY_1000T_CTRL)?;
        let negotiates = control & (MII_CR_AUTO_NEG_EN | MII_CR_POWER_DOWN) == MII_CR_AUTO_NEG_EN;
        if negotiates && advertised & NWAY_AR_ALL == NWAY_AR_ALL && gigabit & CR_1000T_FD_CAPS != 0
        {
            return Ok(());
        }
        self.write_phy_reg(PHY_AUTONEG_ADV, advertised | NWAY_AR_ALL)?;
        self.write_phy_reg(PHY_1000T_CTRL, gigabit | CR_1000T_FD_CAPS)?;
        let control = control & !MII_CR_POWER_DOWN | MII_CR_AUTO_NEG_EN | MII_CR_RESTART_AUTO_NEG;
        self.write_phy_reg(PHY_CONTROL, control)
    }
}
