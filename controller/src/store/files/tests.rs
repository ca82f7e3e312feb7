//! The file store over real directories.
use super::*;
use crate::api::LoadBalancerStatus;
use crate::status::Statuses;
use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
};
use tokio::time::timeout;

/// A directory of its own that goes away with it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fairlead-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        // What a process of this number left that was killed.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file as an editor does: beside, then renamed.
    pub(crate) fn put(&self, name: &str, text: &str) {
        fs::write(self.path(".new"), text).unwrap();
        fs::rename(self.path(".new"), self.path(name)).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Of tests with the store, and of the store with files in writing: this machine may be slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store over a directory, and what it gives out.
struct Bench {
    config: Scratch,
    state: Scratch,
    store: FileStore,
    snapshots: BoxStream<'static, Arc<Declared>>,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let config = Scratch::new();
        for (name, text) in files {
            config.put(name, text);
        }
        Bench::over(config)
    }

    /// Over a directory that is there.
    fn over(config: Scratch) -> Self {
        let state = Scratch::new();
        let store = FileStore::open_with(&config.path(""), &state.path(""), PATIENCE).unwrap();
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
    assert!(
        faults[0].ends_with(
            "b.yaml: document 1: AddressPool/b: spec.blocks: invalid type: integer `7`, expected a sequence"
        ),
        "{faults:?}"
    );
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
    const FILES: [&str; 2] = ["x.yaml", "y.yaml"];
    let config = Scratch::new();
    let swap = |config: &Scratch, generation: &str, names: [&str; 2]| {
        fs::create_dir(config.path(generation)).unwrap();
        for (file, name) in FILES.into_iter().zip(names) {
            fs::write(config.path(generation).join(file), pool(name)).unwrap();
        }
        symlink(generation, config.path("..data_tmp")).unwrap();
        fs::rename(config.path("..data_tmp"), config.path("..data")).unwrap();
    };
    swap(&config, "..1", ["a", "b"]);
    for file in FILES {
        symlink(Path::new("..data").join(file), config.path(file)).unwrap();
    }
    let mut bench = Bench::over(config);
    assert_eq!(bench.pools().await, ["a", "b"]);
    swap(&bench.config, "..2", ["c", "d"]);
    assert_eq!(bench.pools().await, ["c", "d"]);
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
    StatusSet { load_balancers: Statuses::from([("web".to_owned(), status.into())]), ..Default::default() }
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
