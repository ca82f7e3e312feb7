//! The file that keeps the statuses across restarts: which addresses were given, and when. It is replaced
//! atomically and durably, and never overwritten when it could not be read.
use super::StoreError;
use crate::{api::API_VERSION, status::StatusSet};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Name of the file in the state directory.
const NAME: &str = "status.json";
/// It becomes the file when it is complete.
const TEMPORARY: &str = "status.json.new";
/// Locked for as long as a process has the state directory in its hands.
const LOCK: &str = "lock";
/// How long a process that was killed may take to let go of the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The status file of one state directory, which no other process uses.
pub(super) struct StatusFile {
    directory: PathBuf,
    _lock: Flock<File>,
}

/// What the file says, and that it is one of ours.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content<S> {
    api_version: String,
    kind: String,
    statuses: S,
}

const KIND: &str = "StatusSet";

impl StatusFile {
    /// Takes the state directory, which is made if it is not there, and reads the statuses; none at first.
    pub(super) fn open(directory: &Path) -> Result<(Self, StatusSet), StoreError> {
        fs::create_dir_all(directory).map_err(io_error(directory, "creating the directory"))?;
        let this = StatusFile { directory: directory.into(), _lock: lock(directory)? };
        let statuses = this.read()?;
        Ok((this, statuses))
    }

    fn read(&self) -> Result<StatusSet, StoreError> {
        let path = self.directory.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(StatusSet::default()),
            Err(error) => return Err(io_error(&path, "reading")(error)),
        };
        let not_status = |reason| StoreError::NotStatus { path: path.clone(), reason };
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let content: Content<StatusSet> =
            serde_path_to_error::deserialize(&mut json).map_err(|error| not_status(error.to_string()))?;
        json.end().map_err(|error| not_status(error.to_string()))?;
        if content.api_version != API_VERSION || content.kind != KIND {
            return Err(not_status(format!("it is of {} {}", content.api_version, content.kind)));
        }
        Ok(content.statuses)
    }

    /// Replaces the statuses; they are on the disk when this returns.
    pub(super) fn write(&self, statuses: &StatusSet) -> Result<(), StoreError> {
        let (path, temporary) = (self.directory.join(NAME), self.directory.join(TEMPORARY));
        let content = Content { api_version: API_VERSION.into(), kind: KIND.into(), statuses };
        let mut bytes =
            serde_json::to_vec_pretty(&content).map_err(|error| io_error(&path, "writing")(error.into()))?;
        bytes.push(b'\n');
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        write().map_err(io_error(&temporary, "writing"))?;
        fs::rename(&temporary, &path).map_err(io_error(&path, "replacing"))?;
        // The rename itself is durable only when the directory is.
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io_error(&self.directory, "syncing"))
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    let path = directory.join(LOCK);
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error(&path, "opening"))?;
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::Error::EWOULDBLOCK)) if start.elapsed() < LOCK_PATIENCE => file = back,
            Err((_, nix::Error::EWOULDBLOCK)) => return Err(StoreError::InUse { path: directory.into() }),
            Err((_, error)) => return Err(io_error(&path, "locking")(error.into())),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { path, action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Statuses;
    use crate::{api::LoadBalancerStatus, store::files::tests::Scratch};

    fn statuses(backends: i64) -> StatusSet {
        let status = LoadBalancerStatus { backends, ..Default::default() };
        StatusSet {
            load_balancers: Statuses::from([("web".to_owned(), status.into())]),
            ..Default::default()
        }
    }

    #[test]
    fn comes_back_after_a_restart() {
        let scratch = Scratch::new();
        let directory = scratch.path("made/on/the/way");
        let (file, read) = StatusFile::open(&directory).unwrap();
        assert_eq!(read, StatusSet::default());
        file.write(&statuses(1)).unwrap();
        file.write(&statuses(2)).unwrap();
        drop(file);
        // A crash before the rename leaves this behind.
        fs::write(directory.join(TEMPORARY), "{").unwrap();
        assert_eq!(StatusFile::open(&directory).unwrap().1, statuses(2));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_left_alone() {
        let scratch = Scratch::new();
        let whole = {
            let (file, _) = StatusFile::open(&scratch.path("")).unwrap();
            file.write(&statuses(1)).unwrap();
            fs::read_to_string(scratch.path(NAME)).unwrap()
        };
        let foreign = [
            "",
            "{}",
            "null",
            "\u{0}\u{0}\u{0}",
            &whole[..whole.len() / 2],
            &format!("{whole}{whole}"),
            &whole.replace("v1alpha1", "v9"),
            &whole.replace("loadBalancers", "somethingElse"),
            &whole.replace("\"backends\": 1", "\"backends\": \"one\""),
        ];
        for text in foreign {
            fs::write(scratch.path(NAME), text).unwrap();
            let error = StatusFile::open(&scratch.path("")).err().expect("refused");
            assert!(matches!(error, StoreError::NotStatus { .. }), "{text}: {error}");
            assert_eq!(fs::read_to_string(scratch.path(NAME)).unwrap(), text);
        }
        fs::write(scratch.path(NAME), &whole).unwrap();
        assert_eq!(StatusFile::open(&scratch.path("")).unwrap().1, statuses(1));
    }

    #[test]
    fn only_one_process_at_a_time() {
        let scratch = Scratch::new();
        let first = StatusFile::open(&scratch.path("")).unwrap();
        assert!(matches!(StatusFile::open(&scratch.path("")), Err(StoreError::InUse { .. })));
        drop(first);
        StatusFile::open(&scratch.path("")).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let scratch = Scratch::new();
        let (file, _) = StatusFile::open(&scratch.path("")).unwrap();
        fs::create_dir(scratch.path(TEMPORARY)).unwrap();
        assert!(matches!(file.write(&statuses(1)), Err(StoreError::Io { .. })));
    }
}
