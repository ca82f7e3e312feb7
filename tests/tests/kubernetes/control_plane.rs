//! The control plane itself: several at once, with their data through a restart, and nothing left behind.
use lab::{Error, control_plane::ControlPlane, wait_until};
use std::{fs, net::TcpStream, path::Path, process::Command, thread};

/// Processes that name a directory in their arguments.
fn processes(dir: &Path) -> usize {
    let named = |pid: &str| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(&*dir.to_string_lossy())
    };
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    entries.filter(|name| named(&name.to_string_lossy())).count()
}

#[test]
fn several_at_once_do_not_know_each_other() {
    let start = || ControlPlane::start().unwrap();
    let (one, two) = thread::scope(|scope| {
        let (one, two) = (scope.spawn(start), scope.spawn(start));
        (one.join().unwrap(), two.join().unwrap())
    });
    one.kubectl(&["create", "namespace", "only-here"]).unwrap();
    assert!(one.kubectl(&["get", "namespace", "only-here"]).is_ok());
    let error = two.kubectl(&["get", "namespace", "only-here"]).unwrap_err().to_string();
    assert!(error.contains("NotFound"), "{error}");
    let dirs = [&one, &two].map(|plane| plane.kubeconfig().parent().unwrap().to_owned());
    assert!(dirs.iter().all(|dir| processes(dir) >= 2));
    drop((one, two));
    assert!(dirs.iter().all(|dir| !dir.exists() && processes(dir) == 0));
}

#[test]
fn the_api_server_may_be_away_and_comes_back_with_its_data() {
    let mut plane = ControlPlane::start().unwrap();
    plane.kubectl(&["create", "namespace", "kept"]).unwrap();
    plane.stop_api_server();
    assert!(TcpStream::connect(plane.address()).is_err());
    plane.start_api_server().unwrap();
    let api = plane.api().unwrap();
    let kept = api.get("/api/v1/namespaces/kept").unwrap().object().unwrap();
    assert_eq!(kept["metadata"]["name"], "kept");
    assert_eq!(api.get("/api/v1/namespaces/nosuch").unwrap().code, 404);
}

#[test]
fn a_service_account_has_its_rights_and_no_others() {
    let plane = ControlPlane::start().unwrap();
    plane.kubectl(&["create", "serviceaccount", "reader"]).unwrap();
    plane.kubectl(&["create", "role", "reader", "--verb=get", "--resource=pods"]).unwrap();
    plane
        .kubectl(&["create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:reader"])
        .unwrap();
    let config = plane.kubeconfig_of("default", "reader").unwrap();
    let config = config.to_str().unwrap();
    // RBAC hears of the new role by a watch.
    let mut said = String::new();
    let reads = wait_until("the account may read pods", || {
        said = plane.kubectl(&["--kubeconfig", config, "get", "pod", "a"]).unwrap_err().to_string();
        Ok(said.contains("NotFound"))
    });
    reads.map_err(|error| format!("{error}: {said}")).unwrap();
    let error = plane.kubectl(&["--kubeconfig", config, "get", "pods"]).unwrap_err().to_string();
    assert!(error.contains("Forbidden"), "{error}");
}

/// The test itself runs this binary once more, and kills it.
#[test]
fn nothing_is_left_when_a_test_is_killed() -> Result<(), Error> {
    const MARK: &str = "FAIRLEAD_PLANE_TO_KILL";
    if let Some(mark) = std::env::var_os(MARK) {
        let plane = ControlPlane::start()?;
        let dir = plane.kubeconfig().parent().unwrap().to_owned();
        fs::write(&mark, dir.to_str().unwrap())?;
        return wait_until("it is killed", || Ok(false));
    }
    let mark = std::env::temp_dir().join(format!("fairlead-plane-mark-{}", std::process::id()));
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "control_plane::nothing_is_left_when_a_test_is_killed"])
        .env(MARK, &mark)
        .spawn()?;
    let mut dir = String::new();
    let started = wait_until("the other test has started its control plane", || {
        dir = fs::read_to_string(&mark).unwrap_or_default();
        Ok(!dir.is_empty())
    });
    child.kill()?;
    child.wait()?;
    // Not there if it was not started.
    let _ = fs::remove_file(&mark);
    started?;
    let dir = Path::new(&dir);
    wait_until("all of it is gone", || Ok(!dir.exists() && processes(dir) == 0))
}
