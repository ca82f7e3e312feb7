//! The shape of the repository: which crate may use which, where a library may be used, that the pure cores are
//! pure, what lies at the top level, and that every source file says what it is for.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Top of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Dependencies of every package of a workspace: names by kind (`normal`, `dev`, `build`).
fn dependencies(manifest: &str) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let text = cargo(&["metadata", "--no-deps", "--format-version", "1", "--manifest-path", manifest]);
    let metadata: Value = serde_json::from_str(&text).unwrap();
    let mut packages = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for dependency in package["dependencies"].as_array().unwrap() {
            let kind = dependency["kind"].as_str().unwrap_or("normal").to_owned();
            kinds.entry(kind).or_default().insert(dependency["name"].as_str().unwrap().to_owned());
        }
        packages.insert(package["name"].as_str().unwrap().to_owned(), kinds);
    }
    packages
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let packages = dependencies("Cargo.toml");
    let names: BTreeSet<_> = packages.keys().cloned().collect();
    let inside = |package: &str, kind: &str| -> Vec<&str> {
        let all = packages[package].get(kind).into_iter().flatten();
        all.filter(|d| names.contains(*d)).map(String::as_str).collect()
    };
    let want: [(&str, &[&str], &[&str]); 6] = [
        ("bgp-speaker", &[], &[]),
        ("controller", &["bgp-speaker", "ipam", "lb-bpf"], &[]),
        ("ipam", &[], &[]),
        ("lab", &["controller"], &["bgp-speaker", "lb-bpf"]),
        ("lb-bpf", &["lb-bpf-common"], &[]),
        ("lb-bpf-common", &[], &[]),
    ];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), want.map(|w| w.0));
    for (package, normal, dev) in want {
        assert_eq!(inside(package, "normal"), normal, "{package}");
        assert_eq!(inside(package, "dev"), dev, "{package}, for tests");
        assert_eq!(inside(package, "build"), [""; 0], "{package}, to build it");
    }
    // The kernel programs have a package of their own around the source of the ABI.
    let kernel = dependencies("lb-bpf/ebpf/Cargo.toml");
    for (package, want) in [("fairlead-ebpf", &["lb-bpf-common"][..]), ("lb-bpf-common", &[])] {
        let all = kernel[package].values().flatten();
        let ours: Vec<_> = all.filter(|d| names.contains(*d)).map(String::as_str).collect();
        assert_eq!(ours, want, "{package}");
    }
    assert_eq!(kernel.len(), 2);
}

#[test]
fn libraries_are_used_where_they_belong() {
    let packages = dependencies("Cargo.toml");
    for (library, owners) in [
        ("aya", &["lb-bpf"][..]),
        ("nom", &["bgp-speaker"]),
        ("kube", &["controller"]),
        ("k8s-openapi", &["controller"]),
        ("axum", &["controller"]),
        ("rtnetlink", &["bgp-speaker", "lb-bpf"]),
    ] {
        let users = packages.iter().filter(|(_, kinds)| kinds.values().any(|d| d.contains(library)));
        assert_eq!(users.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), owners, "{library}");
    }
}

#[test]
fn the_cores_are_pure() {
    for package in ["lb-bpf", "ipam", "bgp-speaker", "controller"] {
        let tree = cargo(&[
            "tree",
            "--locked",
            "-p",
            package,
            "--no-default-features",
            "-e",
            "normal",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ]);
        let names: BTreeSet<_> = tree.lines().filter_map(|l| l.split(' ').next()).collect();
        assert!(names.contains(package), "{tree}");
        for io in [
            "tokio",
            "aya",
            "axum",
            "hyper",
            "kube-client",
            "kube-runtime",
            "mio",
            "socket2",
            "rtnetlink",
            "clap",
        ] {
            assert!(!names.contains(io), "{package} without default features uses {io}");
        }
    }
}

#[test]
fn the_top_level_is_as_agreed() {
    let entries = fs::read_dir(root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    // What a build leaves is not part of the repository.
    let names: BTreeSet<_> = entries.filter(|n| !n.starts_with('.') && n != "target").collect();
    let want = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "bgp-speaker",
        "controller",
        "crds",
        "deploy",
        "ipam",
        "lb-bpf",
        "tests",
    ];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), want);
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let mut files = Vec::new();
    collect(&root(), &mut files);
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        // An attribute of the crate may stand before it.
        let first = text.lines().find(|l| !l.starts_with("#!") && !l.is_empty()).unwrap_or_default();
        assert!(first.starts_with("//! "), "{} opens with: {first}", file.display());
        assert!(!first.contains("Placeholder"), "{}", file.display());
    }
}

/// All Rust sources below a folder, but for what builds have made.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}
