//! Operations on memory of VMMs that others start: fault sockets, and captures.

use super::Routes;
use crate::audit::Removed;
use crate::operations::{
    CAPTURE_MEMORY, CLOSE_FAULT_SOCKET, LIST_FAULT_SOCKETS, OPEN_FAULT_SOCKET, SHOW_FAULT_SOCKET,
};

pub(super) fn fault_sockets() -> Routes {
    Routes::default()
        .changes(&OPEN_FAULT_SOCKET, |control, asked, (), wanted| control.open_fault_socket(asked, wanted))
        .reads(&LIST_FAULT_SOCKETS, |control, (), ()| control.fault_sockets())
        .reads(&SHOW_FAULT_SOCKET, |control, id, ()| control.fault_socket(id))
        .changes(&CLOSE_FAULT_SOCKET, |control, _, id, ()| {
            control.close_fault_socket(id).map(|()| Removed::FaultSocket(id))
        })
}

pub(super) fn captures() -> Routes {
    Routes::default()
        .changes(&CAPTURE_MEMORY, |control, asked, (), wanted| control.capture_memory(asked, wanted))
}
