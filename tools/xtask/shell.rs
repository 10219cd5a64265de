//! Boots to the interactive console on this terminal.

use crate::image::Image;
use crate::qemu::Guest;
use crate::ui;
use anyhow::{Result, bail};
use std::os::unix::process::CommandExt;

/// Hands this terminal to the guest; does not come back.
pub fn shell(guest: &Guest, image: &Image) -> Result<()> {
    let mut command = guest.command(image, None)?;
    command.args(["-serial", "mon:stdio"]);
    ui::step("booting; Ctrl-A x ends QEMU, `poweroff` ends the guest");
    bail!("can't start QEMU: {}", command.exec())
}
