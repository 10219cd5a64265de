//! Counts and limits of sockets and their buffers (`kern.ipc`).
//!
//! FreeBSD: the sysctls of sys/kern/uipc_socket.c and sys/kern/uipc_sockbuf.c

use alloc::string::ToString;
use alloc::sync::Arc;

use crate::errno::Errno;
use crate::kern::uipc_sockbuf::SbLimits;
use crate::machine::atomic::{AtomicU32, Ordering};
use crate::machine_local;
use crate::sysctl::{ReadOnly, root};
use crate::tunables;

tunables! {
    /// What can be set about sockets.
    pub struct IpcTunables {
        maxsockbuf: u32 = 2_097_152, "kern.ipc.maxsockbuf", "Maximum socket buffer size" (4608..=4_294_967_295);
        sockbuf_waste_factor: u32 = 8, "kern.ipc.sockbuf_waste_factor", "Socket buffer size waste factor" (1..=64);
        soacceptqueue: u32 = 128, "kern.ipc.soacceptqueue", "Maximum listen socket pending connection accept queue size" (1..=65_535);
        maxsockets: u32 = 65_536, "kern.ipc.maxsockets", "Maximum number of sockets available" (1..=16_777_216);
        sooverinterval: u32 = 60, "kern.ipc.sooverinterval", "Delay in seconds between warnings for listen socket overflows" (0..=86_400);
    }
}

machine_local! {
    static IPC: spin::Once<Arc<IpcTunables>> = spin::Once::new();
    static NUMOPENSOCKETS: AtomicU32 = AtomicU32::new(0);
}

/// The settings of this machine; the first call puts them into the sysctl tree.
pub fn ipc() -> &'static IpcTunables {
    IPC.get().call_once(|| {
        let ipc = Arc::new(IpcTunables::new());
        ipc.register(root());
        let alias = ipc.clone();
        root().register(
            "kern.ipc.somaxconn",
            Arc::new(ReadOnly::new(
                "Maximum listen socket pending connection accept queue size (compat)",
                move || alias.soacceptqueue.show(),
            )),
        );
        let count = NUMOPENSOCKETS.get();
        root().register(
            "kern.ipc.numopensockets",
            Arc::new(ReadOnly::new("Number of open sockets", move || {
                count.load(Ordering::Relaxed).to_string()
            })),
        );
        ipc
    })
}

/// The limits of socket buffers.
pub fn sb_limits() -> SbLimits {
    let ipc = ipc();
    SbLimits {
        sb_max: ipc.maxsockbuf.get(),
        waste_factor: ipc.sockbuf_waste_factor.get(),
    }
}

/// The buffer's greatest size (`sb_max`), for protocols that grow buffers.
pub fn sb_max() -> u32 {
    ipc().maxsockbuf.get()
}

/// A socket is being made; `ENFILE` when there are too many.
pub(crate) fn opened() -> Result<(), Errno> {
    let max = ipc().maxsockets.get();
    let count = NUMOPENSOCKETS.get();
    if count.fetch_add(1, Ordering::Relaxed) >= max {
        count.fetch_sub(1, Ordering::Relaxed);
        return Err(Errno::ENFILE);
    }
    Ok(())
}

/// A socket is gone.
pub(crate) fn closed() {
    NUMOPENSOCKETS.get().fetch_sub(1, Ordering::Relaxed);
}
