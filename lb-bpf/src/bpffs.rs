//! The directory where maps and links are pinned: on a BPF file system, which is mounted if it is not there, and of
//! one process at a time. In it, each version of the maps' layout has a directory of its own:
//!
//! | name | what it is |
//! |---|---|
//! | `vN` | all of a datapath of version N, complete |
//! | `new-vN` | one that is being made ready, beside the one that it will replace |
//! | `old-vN` | one that was replaced, to be removed |
//!
//! A replacement is two renames, `vM` to `old-vM` and `new-vN` to `vN`. Whoever comes after a crash finds what is old and
//! finishes, or does not find it and begins again from `vM`, which is as it was.
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
/// Begin of the name of what was replaced.
const OLD: &str = "old-";
/// Begin of the name of what is being made ready.
const NEW: &str = "new-";

/// The pins of this version, which this process has for itself.
#[derive(Debug)]
pub(crate) struct PinDir {
    /// All versions are in here.
    top: PathBuf,
    /// Those of this version: until [`PinDir::commit`] made ready under another name, if they were not there.
    own: Pins,
    before: Option<Before>,
    replaced: Option<Before>,
    /// Released by the kernel when the process ends, however it does.
    _lock: Lock,
}

/// The pins of another version, which is complete and forwards until it is replaced, or has been replaced.
#[derive(Debug)]
pub(crate) struct Before {
    /// Its version.
    pub(crate) version: u32,
    pub(crate) pins: Pins,
    /// A process of that version knows only this one.
    _lock: Lock,
}

/// Pins in one directory.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    path: PathBuf,
}

type Lock = Flock<File>;

impl PinDir {
    /// Opens the directory for this version of the maps, and makes it if it is not there.
    pub(crate) fn open(pin_dir: &Path) -> Result<Self, DatapathError> {
        mount_bpffs(pin_dir).map_err(|error| failed(pin_dir, error))?;
        let top = pinnable(pin_dir);
        fs::create_dir_all(&top).map_err(|error| failed(&top, error))?;
        let lock = lock(&top)?;
        finish(&top)?;
        let mut others = versions(&top, "")?;
        let is_there = others.contains(&ABI_VERSION);
        others.retain(|version| *version != ABI_VERSION);
        let (mut before, mut replaced) = (None, None);
        for version in others {
            let other = Before::open(&top, "", version)?;
            if is_there {
                // Only a process that does not know the order above leaves two.
                tracing::warn!(version, "removing what another version has left");
                other.pins.remove()?;
            } else {
                before = Some(other);
            }
        }
        for version in versions(&top, OLD)? {
            let old = Before::open(&top, OLD, version)?;
            if is_there {
                replaced = Some(old);
            } else {
                old.pins.remove()?;
            }
        }
        let path = top.join(format!("{}{}", if is_there { "" } else { NEW }, directory(ABI_VERSION)));
        fs::create_dir_all(&path).map_err(|error| failed(&path, error))?;
        Ok(PinDir { top, own: Pins { path }, before, replaced, _lock: lock })
    }

    /// What is pinned for this version.
    pub(crate) fn own(&self) -> &Pins {
        &self.own
    }

    /// Where the object `name` of this version is pinned.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        self.own.pin(name)
    }

    /// Whether what is pinned for this version is complete; else a process before may have left a part of it.
    pub(crate) fn is_complete(&self) -> bool {
        self.own.path == self.complete()
    }

    /// What is to be replaced.
    pub(crate) fn before(&self) -> Option<&Before> {
        self.before.as_ref()
    }

    /// What was replaced and is not removed yet.
    pub(crate) fn replaced(&self) -> Option<&Before> {
        self.replaced.as_ref()
    }

    /// Gives the object `name` of the version before, if there is one, the name `own` in this version, too.
    pub(crate) fn share(&self, name: &str, own: &str) -> Result<(), DatapathError> {
        let Some(before) = &self.before else { return Ok(()) };
        let path = self.own.pin(own);
        match fs::hard_link(before.pins.pin(name), &path) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
                Err(failed(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// Puts this version, which is complete now, in the place of the one before.
    pub(crate) fn commit(&mut self) -> Result<(), DatapathError> {
        if self.is_complete() {
            return Ok(());
        }
        if let Some(mut before) = self.before.take() {
            let old = self.top.join(format!("{OLD}{}", directory(before.version)));
            rename(&before.pins.path, &old)?;
            before.pins.path = old;
            self.replaced = Some(before);
        }
        let path = self.complete();
        rename(&self.own.path, &path)?;
        self.own.path = path;
        Ok(())
    }

    /// Removes what was replaced.
    pub(crate) fn forget_replaced(&mut self) -> Result<(), DatapathError> {
        self.replaced.take().map_or(Ok(()), |replaced| replaced.pins.remove())
    }

    /// Removes everything.
    pub(crate) fn remove(mut self) -> Result<(), DatapathError> {
        self.forget_replaced()?;
        if let Some(before) = &self.before {
            before.pins.remove()?;
        }
        // Half of it would be taken for the whole.
        let old = self.top.join(format!("{OLD}{}", directory(ABI_VERSION)));
        rename(&self.own.path, &old)?;
        Pins { path: old }.remove()?;
        // Something else may be in there.
        let _ = fs::remove_dir(&self.top);
        Ok(())
    }

    fn complete(&self) -> PathBuf {
        self.top.join(directory(ABI_VERSION))
    }
}

impl Before {
    fn open(top: &Path, prefix: &str, version: u32) -> Result<Self, DatapathError> {
        let path = top.join(format!("{prefix}{}", directory(version)));
        let lock = lock(&path)?;
        Ok(Before { version, pins: Pins { path }, _lock: lock })
    }
}

impl Pins {
    /// Where the object `name` is pinned.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        self.path.join(without_dots(name))
    }

    /// Names of all that is pinned.
    pub(crate) fn names(&self) -> Result<Vec<String>, DatapathError> {
        names(&self.path)
    }

    /// Removes one pin; it does not matter if it is not there.
    pub(crate) fn unpin(&self, name: &str) -> Result<(), DatapathError> {
        let path = self.pin(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path, error)),
            _ => Ok(()),
        }
    }

    fn remove(&self) -> Result<(), DatapathError> {
        fs::remove_dir_all(&self.path).map_err(|error| failed(&self.path, error))
    }
}

/// Finishes a replacement, but for what is old, and forgets what another version was making ready.
fn finish(top: &Path) -> Result<(), DatapathError> {
    let is_replaced = !versions(top, OLD)?.is_empty();
    for version in versions(top, NEW)? {
        let path = top.join(directory(version));
        let new = top.join(format!("{NEW}{}", directory(version)));
        if is_replaced && !path.exists() {
            rename(&new, &path)?;
        } else if version != ABI_VERSION {
            Pins { path: new }.remove()?;
        }
    }
    Ok(())
}

/// Name of the directory of a version.
fn directory(version: u32) -> String {
    format!("v{version}")
}

/// The versions whose directories have this prefix, in order.
fn versions(top: &Path, prefix: &str) -> Result<Vec<u32>, DatapathError> {
    let version = |name: &String| name.strip_prefix(prefix)?.strip_prefix('v')?.parse().ok();
    let mut versions: Vec<u32> = names(top)?.iter().filter_map(version).collect();
    versions.sort_unstable();
    Ok(versions)
}

fn names(path: &Path) -> Result<Vec<String>, DatapathError> {
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    read().map_err(|error| failed(path, error))
}

fn rename(from: &Path, to: &Path) -> Result<(), DatapathError> {
    fs::rename(from, to).map_err(|error| failed(to, error))
}

fn lock(path: &Path) -> Result<Lock, DatapathError> {
    let file = File::open(path).map_err(|error| failed(path, error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => DatapathError::InUse(path.to_owned()),
        errno => failed(path, errno.into()),
    })
}

fn failed(path: &Path, error: io::Error) -> DatapathError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => DatapathError::NotPermitted(error),
        _ => DatapathError::PinDir { path: path.to_owned(), source: error },
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
