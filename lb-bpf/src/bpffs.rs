//! The directory where maps and links are pinned: on a BPF file system, which is mounted if it is not there, and of
//! one process at a time.
use crate::error::DatapathError;
use lb_bpf_common::ABI_VERSION;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
};

/// Where Linux distributions mount it.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// A directory of pins that this process has for itself.
#[derive(Debug)]
pub(crate) struct PinDir {
    path: PathBuf,
    /// Released by the kernel when the process ends, however it does.
    _lock: Flock<File>,
}

impl PinDir {
    /// Opens the directory for this version of the maps, and makes it if it is not there.
    pub(crate) fn open(pin_dir: &Path) -> Result<Self, DatapathError> {
        let failed = |path: &Path, error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => DatapathError::NotPermitted(error),
            _ => DatapathError::PinDir { path: path.to_owned(), source: error },
        };
        mount_bpffs(pin_dir).map_err(|error| failed(pin_dir, error))?;
        let path = pinnable(pin_dir).join(format!("v{ABI_VERSION}"));
        fs::create_dir_all(&path).map_err(|error| failed(&path, error))?;
        let file = File::open(&path).map_err(|error| failed(&path, error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::Error::EWOULDBLOCK => DatapathError::InUse(path.clone()),
            errno => failed(&path, errno.into()),
        })?;
        Ok(PinDir { path, _lock: lock })
    }

    /// Where the object `name` is pinned.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        self.path.join(without_dots(name))
    }

    /// Names of all that is pinned.
    pub(crate) fn names(&self) -> Result<Vec<String>, DatapathError> {
        let read = || -> io::Result<Vec<String>> {
            fs::read_dir(&self.path)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        read().map_err(|source| DatapathError::PinDir { path: self.path.clone(), source })
    }

    /// Removes one pin; it does not matter if it is not there.
    pub(crate) fn unpin(&self, name: &str) -> Result<(), DatapathError> {
        let path = self.pin(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::PinDir { path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Removes the directory, and the one above if nothing else is in it.
    pub(crate) fn remove(self) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::PinDir { path: self.path.clone(), source };
        fs::remove_dir(&self.path).map_err(failed)?;
        if let Some(above) = self.path.parent() {
            // Other versions may be in there.
            let _ = fs::remove_dir(above);
        }
        Ok(())
    }
}

/// Mounts the BPF file system where `pin_dir` expects one.
fn mount_bpffs(pin_dir: &Path) -> io::Result<()> {
    if is_on_bpffs(pin_dir)? {
        return Ok(());
    }
    if !pin_dir.starts_with(MOUNT_POINT) {
        let reason = format!("not on a BPF file system (mount one: mount -t bpf bpf {MOUNT_POINT})");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    // Two processes that start at once must not mount one over the other.
    let below = File::open(MOUNT_POINT)?;
    let _lock = Flock::lock(below, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    if !is_on_bpffs(pin_dir)? {
        tracing::info!(path = MOUNT_POINT, "mounting the BPF file system");
        mount(Some("bpf"), MOUNT_POINT, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    }
    Ok(())
}

/// Whether the part of the path that exists is on a BPF file system.
fn is_on_bpffs(path: &Path) -> io::Result<bool> {
    for path in path.ancestors() {
        match statfs(path) {
            Ok(stat) => return Ok(stat.filesystem_type() == BPF_FS_MAGIC),
            Err(nix::Error::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(false)
}

/// The path with names that the BPF file system takes.
fn pinnable(path: &Path) -> PathBuf {
    path.components()
        .map(|component| match component {
            Component::Normal(name) => PathBuf::from(without_dots(&name.to_string_lossy())),
            other => PathBuf::from(other.as_os_str()),
        })
        .collect()
}

/// The BPF file system keeps names with dots for itself.
fn without_dots(name: &str) -> String {
    name.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_become_names_of_pins() {
        let path = pinnable(Path::new("/sys/fs/bpf/fairlead/node-1.example.com"));
        assert_eq!(path, Path::new("/sys/fs/bpf/fairlead/node-1_example_com"));
    }
}
