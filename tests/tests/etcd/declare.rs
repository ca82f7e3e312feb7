//! `fairlead apply` and `fairlead delete`, as programs and as what they do to etcd.
use super::process::{Process, apply, balancer, options, pool};
use controller::store::{
    etcd::{Access, declare::wanted},
    objects::Role,
};
use lab::{Error, etcd::Etcd, fairlead};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread,
};
use tokio::runtime::Runtime;

fn run(etcd: &Etcd, arguments: &[&str]) -> Result<(Option<i32>, String, String), Error> {
    let Output { status, stdout, stderr } = Command::new(fairlead())
        .args(arguments)
        .args(["--etcd-endpoints", &etcd.endpoints().join(",")])
        .output()?;
    Ok((status.code(), String::from_utf8(stdout)?, String::from_utf8(stderr)?))
}

#[test]
fn a_directory_is_written_as_a_whole_or_not_at_all() -> Result<(), Error> {
    let etcd = Etcd::start(1)?;
    let file = etcd.file("a.yaml", &format!("{}---\n{}", pool("192.0.2.0/28"), balancer("web")))?;
    let dir = file.parent().and_then(Path::to_str).ok_or("no directory")?;
    let apply = |more: &[&str]| run(&etcd, &[&["apply", "-f", dir], more].concat());
    let lines = "AddressPool/vips written\nLoadBalancer/web written\n0 unchanged\n";
    assert_eq!(apply(&[])?, (Some(0), lines.to_owned(), String::new()));
    assert_eq!(apply(&[])?, (Some(0), "2 unchanged\n".to_owned(), String::new()));
    let agent = Process::start(&options(&etcd), Role::Agent, "n1")?;
    agent.wait("web is there", |d| d.load_balancers.contains_key("web"))?;
    // A fault in one file: nothing of the others is written.
    fs::write(file.with_file_name("b.yaml"), balancer("bad").replace("80", "0"))?;
    fs::write(&file, format!("{}---\n{}", pool("192.0.2.0/28"), balancer("other")))?;
    let (code, stdout, stderr) = apply(&["--prune"])?;
    assert_eq!((code, stdout.lines().count()), (Some(1), 1), "{stdout}");
    assert!(stdout.contains("b.yaml: document 1: LoadBalancer/bad: spec.ports[0].port: "), "{stdout}");
    assert_eq!(stderr, "fairlead: nothing was changed: the files are not valid\n");
    fs::remove_file(file.with_file_name("b.yaml"))?;
    let (code, stdout, stderr) = apply(&[])?;
    assert_eq!((code, &*stdout), (Some(0), "LoadBalancer/other written\n1 unchanged\n"));
    let left = "not in the files, and left as they are (--prune deletes them): LoadBalancer/web";
    assert_eq!(stderr, format!("fairlead: {left}\n"));
    assert_eq!(apply(&["--prune"])?.1, "LoadBalancer/web deleted\n2 unchanged\n");
    let declared = agent.wait("web is gone", |d| !d.load_balancers.contains_key("web"))?;
    assert!(declared.load_balancers.contains_key("other"));
    assert_eq!(run(&etcd, &["delete", "flb", "other"])?.1, "LoadBalancer/other deleted\n");
    agent.wait("other is gone", |d| d.load_balancers.is_empty())?;
    let (code, _, stderr) = run(&etcd, &["delete", "flb", "other"])?;
    assert_eq!((code, &*stderr), (Some(1), "fairlead: LoadBalancer/other not found\n"));
    Ok(())
}

/// More than etcd takes in one flat transaction, and by two at once.
#[test]
fn a_generation_is_one_change_for_who_watches() -> Result<(), Error> {
    const MANY: usize = 300;
    let etcd = Etcd::start(1)?;
    let options = options(&etcd);
    let agent = Process::start(&options, Role::Agent, "n1")?;
    let generation =
        |name: &str| -> Vec<String> { (0..MANY).map(|n| balancer(&format!("{name}-{n}"))).collect() };
    for name in ["a", "b"] {
        let done = apply(&options, &generation(name), true)?;
        assert_eq!(done.written.len(), MANY);
        agent.wait("all are there", |d| d.load_balancers.contains_key(&format!("{name}-0")))?;
    }
    for declared in agent.snapshots() {
        let count = |from: &str| declared.load_balancers.keys().filter(|name| name.starts_with(from)).count();
        assert!([(0, 0), (MANY, 0), (0, MANY)].contains(&(count("a"), count("b"))), "half a generation");
    }
    // Each of two that write at once either has its way as a whole, or says that it has not.
    let access = Access::new(&options)?;
    let texts = ["c", "d"].map(|name| generation(name).join("---\n"));
    let done = texts.map(|text| {
        let access = access.clone();
        thread::spawn(move || Runtime::new().unwrap().block_on(access.apply(&wanted([&*text]), true)).is_ok())
    });
    let done = done.map(|thread| thread.join().unwrap());
    assert!(done.contains(&true));
    let declared = agent.wait("the last one is there", |d| !d.load_balancers.contains_key("b-0"))?;
    assert_eq!(declared.load_balancers.len(), MANY);
    Ok(())
}

/// A little more than etcd takes, and more than it reads.
#[test]
fn what_is_too_large_says_how_large_it_is() -> Result<(), Error> {
    let etcd = Etcd::start(1)?;
    let options = options(&etcd);
    let secret = |n: usize| {
        format!("kind: Secret\nmetadata: {{name: s{n}}}\nstringData: {{password: {}}}\n", "x".repeat(600_000))
    };
    for count in [3, 6] {
        let objects: Vec<_> = (0..count).map(secret).collect();
        let said = apply(&options, &objects, false).unwrap_err().to_string();
        let (head, size) = said.split_once(&format!(": {count} operations with ")).ok_or(said.clone())?;
        assert!(head.starts_with("nothing was changed: ") && !said.contains("xxx"), "{said}");
        let (bytes, advice) = size.split_once(' ').ok_or(said.clone())?;
        assert!((count * 600_000..count * 601_000).contains(&bytes.parse::<usize>()?), "{said}");
        assert!(advice.ends_with("raise that, or begin with a part of the files"), "{said}");
    }
    assert_eq!(apply(&options, &[secret(0), secret(1)], false)?.written.len(), 2, "nothing was there");
    Ok(())
}
