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
        let deadline = Instant::now() + PATIENCE;
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
pub(super) mod tests {
    use super::*;
    use crate::api::LoadBalancerStatus;
    use std::{
        process,
        sync::atomic::{AtomicU32, Ordering},
    };
    use tokio::time::timeout;

    /// A directory of its own that goes away with it.
    pub(in crate::store) struct Scratch(PathBuf);

    impl Scratch {
        pub(in crate::store) fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("fairlead-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }

        pub(in crate::store) fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        /// Writes a file as an editor does: beside, then renamed.
        fn put(&self, name: &str, text: &str) {
            fs::write(self.path(".new"), text).unwrap();
            fs::rename(self.path(".new"), self.path(name)).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A store over a directory, and what it gives out.
    struct Bench {
        config: Scratch,
        state: Scratch,
        store: FileStore,
        snapshots: BoxStream<'static, Arc<Declared>>,
    }

    impl Bench {
        fn new(files: &[(&str, &str)]) -> Self {
            let (config, state) = (Scratch::new(), Scratch::new());
            for (name, text) in files {
                config.put(name, text);
            }
            let store = FileStore::open(&config.path(""), &state.path("")).unwrap();
            let snapshots = store.watch();
            Bench { config, state, store, snapshots }
        }

        async fn next(&mut self) -> Arc<Declared> {
            timeout(PATIENCE, self.snapshots.next()).await.expect("a snapshot").expect("no end")
        }

        /// The next snapshot's pools.
        async fn pools(&mut self) -> Vec<String> {
            self.next().await.pools.keys().cloned().collect()
        }

        /// Waits until there are faults, or none.
        async fn faults(&self, some: bool) -> Vec<String> {
            let mut faults = self.store.faults();
            let found = timeout(PATIENCE, faults.wait_for(|faults| faults.is_empty() != some)).await;
            found.expect("in time").unwrap().iter().map(Fault::to_string).collect()
        }

        fn is_idle(&mut self) -> bool {
            self.snapshots.next().now_or_never().is_none()
        }
    }

    fn pool(name: &str) -> String {
        let octet = name.as_bytes()[0];
        format!(
            "kind: AddressPool\nmetadata: {{name: {name}}}\nspec: {{blocks: [{{cidr: 10.0.{octet}.0/24}}]}}\n---\n"
        )
    }

    #[tokio::test]
    async fn a_change_of_a_file_is_a_new_generation() {
        let mut bench = Bench::new(&[("a.yaml", &pool("a")), ("b.yaml", &pool("b"))]);
        let first = bench.next().await;
        assert_eq!((first.generation, first.pools.len()), (1, 2));
        bench.config.put("b.yaml", &(pool("b") + &pool("c")));
        let second = bench.next().await;
        assert_eq!((second.generation, second.pools.len()), (2, 3));
        fs::remove_file(bench.config.path("a.yaml")).unwrap();
        assert_eq!(bench.pools().await, ["b", "c"]);
        fs::rename(bench.config.path("b.yaml"), bench.config.path("d.yml")).unwrap();
        // The same objects from another file are a generation, too: a fault would name the new one.
        assert_eq!(bench.pools().await, ["b", "c"]);
    }

    #[tokio::test]
    async fn on_a_fault_the_last_good_generation_stays() {
        let mut bench = Bench::new(&[("a.yaml", &pool("a"))]);
        assert_eq!(bench.pools().await, ["a"]);
        bench.config.put("b.yaml", "kind: AddressPool\nmetadata: {name: b}\nspec: {blocks: 7}\n");
        let faults = bench.faults(true).await;
        assert_eq!(faults.len(), 1);
        assert!(faults[0].ends_with("b.yaml: document 1: AddressPool/b: spec.blocks: invalid type: integer `7`, expected a sequence"), "{faults:?}");
        assert!(bench.is_idle());
        bench.config.put("b.yaml", &pool("b"));
        assert_eq!(bench.pools().await, ["a", "b"]);
        assert!(bench.faults(false).await.is_empty());
    }

    #[tokio::test]
    async fn a_fault_at_the_start_gives_nothing_out() {
        let mut bench = Bench::new(&[("a.yaml", &pool("a")), ("b.yaml", ": [")]);
        assert_eq!(bench.faults(true).await.len(), 1);
        assert!(bench.is_idle());
        bench.config.put("b.yaml", "");
        assert_eq!(bench.pools().await, ["a"]);
    }

    #[tokio::test]
    async fn a_file_in_writing_is_not_read() {
        use std::io::Write;
        let mut bench = Bench::new(&[("a.yaml", &(pool("a") + &pool("b")))]);
        assert_eq!(bench.pools().await, ["a", "b"]);
        let mut file = fs::File::create(bench.config.path("a.yaml")).unwrap();
        for name in ["a", "b", "c"] {
            file.write_all(pool(name).as_bytes()).unwrap();
            tokio::time::sleep(QUIET * 5).await;
        }
        drop(file);
        assert_eq!(bench.pools().await, ["a", "b", "c"], "never the first half");
    }

    /// How a kubelet updates a ConfigMap: files are links through `..data`, which is swapped.
    #[tokio::test]
    async fn a_swapped_link_is_one_change() {
        use std::os::unix::fs::symlink;
        let mut bench = Bench::new(&[]);
        assert_eq!(bench.next().await.pools.len(), 0);
        for (generation, names) in [("..1", ["a", "b"]), ("..2", ["c", "d"])] {
            fs::create_dir(bench.config.path(generation)).unwrap();
            for (file, name) in ["x.yaml", "y.yaml"].into_iter().zip(names) {
                fs::write(bench.config.path(generation).join(file), pool(name)).unwrap();
            }
            symlink(generation, bench.config.path("..data_tmp")).unwrap();
            fs::rename(bench.config.path("..data_tmp"), bench.config.path("..data")).unwrap();
            for file in ["x.yaml", "y.yaml"] {
                let link = bench.config.path(file);
                if link.symlink_metadata().is_err() {
                    symlink(Path::new("..data").join(file), link).unwrap();
                }
            }
            assert_eq!(bench.pools().await, names);
        }
    }

    #[tokio::test]
    async fn the_directory_may_go_and_come_back() {
        let mut bench = Bench::new(&[("a.yaml", &pool("a"))]);
        assert_eq!(bench.pools().await, ["a"]);
        let aside = Scratch::new();
        fs::rename(bench.config.path(""), aside.path("moved")).unwrap();
        let faults = bench.faults(true).await;
        assert!(faults[0].contains("cannot be read"), "{faults:?}");
        assert!(bench.is_idle(), "the last good generation stays");
        fs::create_dir(bench.config.path("")).unwrap();
        bench.config.put("b.yaml", &pool("b"));
        let pools = bench.pools().await;
        // The empty directory may have been seen first.
        let pools = if pools.is_empty() { bench.pools().await } else { pools };
        assert_eq!(pools, ["b"]);
        bench.config.put("c.yaml", &pool("c"));
        assert_eq!(bench.pools().await, ["b", "c"], "the new directory is watched");
    }

    fn statuses(backends: i64) -> StatusSet {
        let status = LoadBalancerStatus { backends, ..Default::default() };
        StatusSet { load_balancers: BTreeMap::from([("web".to_owned(), status)]), ..Default::default() }
    }

    #[tokio::test]
    async fn statuses_come_back_and_outlive_the_store() {
        let mut bench = Bench::new(&[("a.yaml", &pool("a"))]);
        assert_eq!(bench.next().await.statuses, StatusSet::default());
        bench.store.publish(&statuses(1)).await.unwrap();
        let snapshot = bench.next().await;
        assert_eq!((&snapshot.statuses, snapshot.pools.len()), (&statuses(1), 1));
        let file = fs::metadata(bench.state.path("status.json")).unwrap().ino();
        bench.store.publish(&statuses(1)).await.unwrap();
        assert_eq!(fs::metadata(bench.state.path("status.json")).unwrap().ino(), file, "not written again");
        assert!(bench.is_idle());
        let Bench { config, state, store, snapshots } = bench;
        drop((store, snapshots));
        let store = FileStore::open(&config.path(""), &state.path("")).unwrap();
        let mut snapshots = store.watch();
        let first = timeout(PATIENCE, snapshots.next()).await.unwrap().unwrap();
        assert_eq!((&first.statuses, first.pools.len()), (&statuses(1), 1), "in the first snapshot already");
    }

    #[tokio::test]
    async fn nothing_happens_when_nothing_changes() {
        let mut bench = Bench::new(&[("a.yaml", &pool("a"))]);
        bench.next().await;
        bench.config.put("a.yaml", &pool("a"));
        fs::write(bench.config.path("notes.txt"), "x").unwrap();
        // The rewrites have been dealt with when a later change has.
        bench.config.put("b.yaml", &pool("b"));
        let snapshot = bench.next().await;
        assert_eq!((snapshot.generation, snapshot.pools.len()), (2, 2));
    }

    #[tokio::test]
    async fn a_state_that_cannot_be_kept_is_an_error_and_not_in_force() {
        let mut bench = Bench::new(&[("a.yaml", &pool("a"))]);
        bench.next().await;
        fs::create_dir(bench.state.path("status.json.new")).unwrap();
        assert!(bench.store.publish(&statuses(1)).await.is_err());
        assert!(bench.is_idle());
        fs::remove_dir(bench.state.path("status.json.new")).unwrap();
        bench.store.publish(&statuses(1)).await.unwrap();
        assert_eq!(bench.next().await.statuses, statuses(1));
    }
}
