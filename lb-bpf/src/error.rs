//! Why the datapath of a host could not do what it was asked for.
use crate::{maps::MapError, state::plan::PlanError};
use std::{io, path::PathBuf};

/// Why the datapath could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// Only root with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN may, where no filter of system calls (seccomp) forbids it.
    #[error(
        "the kernel refuses it (root, CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed, and a seccomp profile that allows bpf): {0}"
    )]
    NotPermitted(io::Error),
    /// The directory for pins cannot be used.
    #[error("{}: {source}", path.display())]
    PinDir {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the datapath open.
    #[error("{}: another process runs this datapath", .0.display())]
    InUse(PathBuf),
    /// There is no such interface.
    #[error("interface {0}: does not exist")]
    NoInterface(String),
    /// Another XDP program has the interface.
    #[error("interface {0}: another XDP program is attached; detach it first (ip link set dev {0} xdp off)")]
    InterfaceBusy(String),
    /// The kernel is too old to pin the attachment (before 5.9).
    #[error("interface {0}: the kernel cannot keep an XDP program attached when the process ends")]
    NoLinks(String),
    /// The program cannot be attached.
    #[error("interface {interface}: cannot attach the XDP program: {reason}")]
    Attach {
        /// Name of the interface.
        interface: String,
        /// What the kernel said.
        reason: String,
    },
    /// A pinned map does not fit this program.
    #[error("map {map}: what is pinned at {} has another shape; detach that datapath first", path.display())]
    OtherShape {
        /// Name of the map.
        map: &'static str,
        /// Where it is pinned.
        path: PathBuf,
    },
    /// The object cannot be loaded.
    #[error("cannot load the kernel programs: {0}")]
    Load(aya::EbpfError),
    /// The kernel refused the program.
    #[error("cannot load the XDP program: {0}")]
    Program(aya::programs::ProgramError),
    /// The object does not have the program.
    #[error("the object has no program {0}")]
    NoProgram(&'static str),
    /// There is no plan for the desired set.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel refused an operation on a map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The events have a reader.
    #[error("the events of this datapath are being read already")]
    EventsTaken,
    /// One cannot wait for events.
    #[error("cannot wait for events: {0}")]
    Events(io::Error),
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    /// The kernel did not answer about routes, neighbours or addresses.
    #[error("netlink: {0}")]
    Netlink(#[from] rtnetlink::Error),
}

/// [`DatapathError::NotPermitted`] if that is what the system call behind `error` said, else what `other` makes of it.
pub(crate) fn permitted<E: std::error::Error + 'static>(
    error: E,
    other: fn(E) -> DatapathError,
) -> DatapathError {
    match os_error(&error) {
        // Not EACCES: that is what the verifier says.
        Some(code @ libc::EPERM) => DatapathError::NotPermitted(io::Error::from_raw_os_error(code)),
        _ => other(error),
    }
}

/// The error number of the system call behind an error.
pub(crate) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && let Some(code) = error.raw_os_error()
        {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// The error and its sources as one line.
pub(crate) fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}
