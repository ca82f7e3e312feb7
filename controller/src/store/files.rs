//! The store of a host without Kubernetes: objects are the files of a directory, statuses are a file in the
//! state directory.
//!
//! The directory as a whole is one generation. A thread watches it (inotify), waits until changes come to
//! rest, reads everything, and gives out a snapshot if there is no fault and something is different. On a fault
//! the last good generation stays in force. What inotify cannot see (the directory replaced by another, links to
//! files elsewhere) is found by looking from time to time.
use super::{Store, StoreError, directory, status_file::StatusFile};
use crate::{
    declared::Declared,
    fault::Fault,
    object::holds_objects,
    status::StatusSet,
    validate::{self, CheckedFile},
};
use futures::{
    StreamExt,
    future::{self, BoxFuture, FutureExt},
    stream::BoxStream,
};
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, mem,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// Changes are at rest when nothing happens for so long.
const QUIET: Duration = Duration::from_millis(5);
/// Changes that never rest, or a file that a writer never closes, are read as they are after so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is checked that the watched directory is still the one of that name.
const RECHECK: Duration = Duration::from_secs(1);
/// How often everything is read without any event.
const RESCAN: Duration = Duration::from_secs(30);

/// Most faults that are logged at a time; all are in [`Store::faults`].
const LOGGED: usize = 20;

/// Objects in a directory.
pub struct FileStore {
    shared: Arc<Shared>,
    leader: watch::Sender<bool>,
    thread: mpsc::Sender<Message>,
}

/// What the thread is told.
enum Message {
    /// Something happened in the directory.
    Change(Change),
    /// The store is gone.
    Stop,
}

impl FileStore {
    /// Takes the state directory and starts to watch the configuration directory, which may come later. Fails if
    /// the statuses of an earlier run are there but cannot be read.
    pub fn open(config_dir: &Path, state_dir: &Path) -> Result<FileStore, StoreError> {
        FileStore::open_with(config_dir, state_dir, PATIENCE)
    }

    /// The same with another patience than [`PATIENCE`].
    fn open_with(config_dir: &Path, state_dir: &Path, patience: Duration) -> Result<FileStore, StoreError> {
        let (status_file, statuses) = StatusFile::open(state_dir)?;
        let (thread, messages) = mpsc::channel();
        let shared = Arc::new(Shared {
            status_file: Mutex::new(status_file),
            state: Mutex::new(State { statuses, ..State::default() }),
            snapshots: watch::Sender::new(None),
            faults: watch::Sender::new(Vec::new()),
        });
        let watching = Watching {
            directory: config_dir.into(),
            patience,
            shared: Arc::clone(&shared),
            sender: thread.clone(),
            messages,
            watched: None,
            known: Files::new(),
        };
        thread::Builder::new().name("store".into()).spawn(move || watching.run()).map_err(|source| {
            StoreError::Io { path: config_dir.into(), action: "starting to watch", source }
        })?;
        Ok(FileStore { shared, leader: watch::Sender::new(true), thread })
    }
}

impl Store for FileStore {
    fn watch(&self) -> BoxStream<'static, Arc<Declared>> {
        WatchStream::new(self.shared.snapshots.subscribe()).filter_map(future::ready).boxed()
    }

    fn publish<'a>(&'a self, status: &'a StatusSet) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            if lock(&self.shared.state).statuses == *status {
                return Ok(());
            }
            let (shared, status) = (Arc::clone(&self.shared), status.clone());
            let task = tokio::task::spawn_blocking(move || shared.publish(status));
            match task.await {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        .boxed()
    }

    fn leader(&self) -> watch::Receiver<bool> {
        self.leader.subscribe()
    }

    fn faults(&self) -> watch::Receiver<Vec<Fault>> {
        self.shared.faults.subscribe()
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        // A thread that has ended already is fine, too.
        let _ = self.thread.send(Message::Stop);
    }
}

/// What the store and its thread share.
struct Shared {
    /// Locked before `state`, and for as long as the file is written.
    status_file: Mutex<StatusFile>,
    state: Mutex<State>,
    snapshots: watch::Sender<Option<Arc<Declared>>>,
    faults: watch::Sender<Vec<Fault>>,
}

/// The files of the directory. Those that did not change are the same values as before.
type Files = BTreeMap<PathBuf, Arc<KnownFile>>;

/// A file as it was read, and what it says.
struct KnownFile {
    text: String,
    checked: CheckedFile,
}

fn same(before: &Files, files: &Files) -> bool {
    let pairs = || before.iter().zip(files);
    before.len() == files.len()
        && pairs().all(|((path, file), (other, now))| path == other && Arc::ptr_eq(file, now))
}

/// What is in force.
#[derive(Default)]
struct State {
    /// What the last snapshot was made of.
    files: Option<Files>,
    /// As they are on the disk.
    statuses: StatusSet,
}

impl Shared {
    /// Puts a generation in force, or keeps the one that is.
    fn offer(&self, read: Result<&Files, Vec<Fault>>) {
        let unchanged =
            |files: &Files| lock(&self.state).files.as_ref().is_some_and(|before| same(before, files));
        let faults = match read {
            Ok(files) if unchanged(files) => Vec::new(),
            Ok(files) => {
                let checked = files.iter().map(|(path, file)| (path.as_path(), &file.checked));
                match validate::check_directory(checked) {
                    Ok(declared) => {
                        let mut state = lock(&self.state);
                        state.files = Some(files.clone());
                        let statuses = state.statuses.clone();
                        self.give_out(Declared { statuses, ..declared });
                        Vec::new()
                    }
                    Err(faults) => faults,
                }
            }
            Err(faults) => faults,
        };
        self.faults.send_if_modified(|before| {
            let changed = *before != faults;
            if changed {
                for fault in faults.iter().take(LOGGED) {
                    tracing::error!(%fault, "declared objects refused");
                }
                tracing::info!(faults = faults.len(), "declared objects checked");
                *before = faults;
            }
            changed
        });
    }

    fn publish(&self, statuses: StatusSet) -> Result<(), StoreError> {
        let file = lock(&self.status_file);
        file.write(&statuses)?;
        let mut state = lock(&self.state);
        state.statuses = statuses.clone();
        let before = self.snapshots.borrow().clone();
        if let Some(before) = before {
            self.give_out(Declared { statuses, ..(*before).clone() });
        }
        Ok(())
    }

    /// Numbers the snapshot and gives it out. The caller holds the lock of `state`.
    fn give_out(&self, declared: Declared) {
        self.snapshots.send_modify(|snapshot| {
            let generation = snapshot.as_ref().map_or(0, |before| before.generation) + 1;
            *snapshot = Some(Arc::new(Declared { generation, ..declared }));
        });
    }
}

/// A panic while a lock is held leaves nothing half-done behind it here: what is locked is replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that watches the directory.
struct Watching {
    directory: PathBuf,
    /// See [`PATIENCE`].
    patience: Duration,
    shared: Arc<Shared>,
    sender: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    watched: Option<Watched>,
    known: Files,
}

/// A directory that inotify watches.
struct Watched {
    /// Device and inode: the name may come to mean another directory.
    identity: (u64, u64),
    _watcher: RecommendedWatcher,
}

/// The store is gone.
struct Stopped;

impl Watching {
    /// Ends when the store is gone.
    fn run(mut self) -> Stopped {
        loop {
            let read = match self.read() {
                Ok(read) => read,
                Err(Stopped) => return Stopped,
            };
            match read {
                Ok(texts) => {
                    self.learn(texts);
                    self.shared.offer(Ok(&self.known));
                }
                Err(faults) => self.shared.offer(Err(faults)),
            }
            if let Err(Stopped) = self.wait() {
                return Stopped;
            }
        }
    }

    /// Parses the files that are not known with the same text.
    fn learn(&mut self, texts: BTreeMap<PathBuf, String>) {
        let mut before = mem::take(&mut self.known);
        let learned = texts.into_iter().map(|(path, text)| {
            let known = before.remove(&path).filter(|known| known.text == text);
            let known = known.unwrap_or_else(|| {
                let checked = CheckedFile::new(&path, &text);
                Arc::new(KnownFile { text, checked })
            });
            (path, known)
        });
        self.known = learned.collect();
    }

    /// Reads the directory, again if it changed meanwhile: what was read may be part old and part new.
    fn read(&mut self) -> Result<Result<BTreeMap<PathBuf, String>, Vec<Fault>>, Stopped> {
        const ATTEMPTS: usize = 5;
        for _ in 1..ATTEMPTS {
            self.follow();
            let read = directory::read(&self.directory);
            match self.messages.try_recv() {
                Ok(Message::Stop) => return Err(Stopped),
                Ok(Message::Change(change)) => self.settle(change)?,
                Err(_) => return Ok(read),
            }
        }
        Ok(directory::read(&self.directory))
    }

    /// Watches the directory that the name means now. Called before it is read, so that no change falls between.
    fn follow(&mut self) {
        let Ok(metadata) = fs::metadata(&self.directory) else {
            self.watched = None;
            return;
        };
        let identity = (metadata.dev(), metadata.ino());
        if self.watched.as_ref().is_some_and(|watched| watched.identity == identity) {
            return;
        }
        let sender = self.sender.clone();
        let watch = || {
            let mut watcher = notify::recommended_watcher(move |event| {
                for change in changes(event) {
                    // Nobody listens any more: the store is gone.
                    let _ = sender.send(Message::Change(change));
                }
            })?;
            watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        };
        self.watched = match watch() {
            Ok(watcher) => Some(Watched { identity, _watcher: watcher }),
            Err(error) => {
                let error: notify::Error = error;
                tracing::warn!(directory = %self.directory.display(), %error, "not watched, read every second");
                None
            }
        };
    }

    /// Waits until the directory wants to be read, for a reason or because it is time.
    fn wait(&mut self) -> Result<(), Stopped> {
        let start = Instant::now();
        loop {
            match self.messages.recv_timeout(RECHECK) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
                Ok(Message::Change(change)) => return self.settle(change),
                Err(RecvTimeoutError::Timeout) => {
                    let metadata = fs::metadata(&self.directory).ok();
                    let identity = metadata.map(|metadata| (metadata.dev(), metadata.ino()));
                    let watched = self.watched.as_ref().map(|watched| watched.identity);
                    if watched.is_none() || watched != identity || start.elapsed() >= RESCAN {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits until changes are at rest: nothing happened for a moment, and nobody is writing a file. A file that is
    /// half written may be good YAML with half of the objects.
    fn settle(&mut self, first: Change) -> Result<(), Stopped> {
        let deadline = Instant::now() + self.patience;
        let mut writing = BTreeSet::new();
        if let Change::Writing(path) = first {
            writing.insert(path);
        }
        while Instant::now() < deadline {
            match self.messages.recv_timeout(QUIET) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
                Ok(Message::Change(Change::Writing(path))) => drop(writing.insert(path)),
                Ok(Message::Change(Change::Written(path))) => drop(writing.remove(&path)),
                Ok(Message::Change(Change::Other)) => {}
                Err(RecvTimeoutError::Timeout) if writing.is_empty() => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        Ok(())
    }
}

/// What happened in the directory.
enum Change {
    /// A file was written to, and is not closed yet.
    Writing(PathBuf),
    /// A file was closed after writing, removed or renamed.
    Written(PathBuf),
    /// Something else.
    Other,
}

/// What an event means; nothing for reads, of which there are as many as we read.
fn changes(event: notify::Result<Event>) -> Vec<Change> {
    let Ok(event) = event else {
        return vec![Change::Other];
    };
    let change = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => Change::Written,
        EventKind::Access(_) => return Vec::new(),
        EventKind::Modify(ModifyKind::Data(_)) => Change::Writing,
        EventKind::Modify(ModifyKind::Name(_)) => Change::Written,
        _ => return vec![Change::Other],
    };
    event.paths.into_iter().filter(|path| holds_objects(path)).map(change).chain([Change::Other]).collect()
}

#[cfg(test)]
pub(crate) mod tests;
