//! Puts the object of the kernel programs where `object.rs` includes it. The environment variable `FAIRLEAD_BPF`
//! says which: unset, the committed one in `prebuilt/`; `build`, made from `ebpf/` by `ebpf/build.sh`; else the
//! path of an object.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FAIRLEAD_BPF");
    match place_object() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error={reason}");
            ExitCode::FAILURE
        }
    }
}

fn place_object() -> Result<(), String> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"));
    let (root, out) = (variable("CARGO_MANIFEST_DIR")?, variable("OUT_DIR")?);
    let object = match env::var("FAIRLEAD_BPF").unwrap_or_default().as_str() {
        "" => root.join("prebuilt/fairlead.bpf.o"),
        "build" => build(&root.join("ebpf"), &out)?,
        path => PathBuf::from(path),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    fs::copy(&object, out.join("fairlead.bpf.o"))
        .map(drop)
        .map_err(|error| format!("FAIRLEAD_BPF: {}: {error}", object.display()))
}

/// Runs `build.sh`; its own messages are cargo's to show.
fn build(source: &Path, out: &Path) -> Result<PathBuf, String> {
    for part in ["src", "Cargo.toml", "Cargo.lock", "build.sh", "../common/src"] {
        println!("cargo::rerun-if-changed={}", source.join(part).display());
    }
    let fresh = out.join("bpf");
    let script = source.join("build.sh");
    let status = Command::new(&script)
        .arg("--out")
        .arg(&fresh)
        .status()
        .map_err(|error| format!("{}: {error}", script.display()))?;
    if !status.success() {
        return Err(format!("{}: {status}", script.display()));
    }
    Ok(fresh.join("fairlead.bpf.o"))
}
