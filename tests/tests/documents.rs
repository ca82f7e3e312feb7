//! What the documents show must work: the YAML of the README and of `deploy/examples` is valid.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]
use controller::{declared::Declared, validate::parse_directory};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

fn parse(files: BTreeMap<std::path::PathBuf, String>) -> Declared {
    parse_directory(&files).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn the_first_configuration_of_the_readme_is_valid_and_has_ten_lines() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let yaml = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(yaml.lines().count(), 10, "{yaml}");
    let declared = parse([("readme.yaml".into(), yaml.to_owned())].into());
    assert_eq!(declared.load_balancers.len(), 1);
    assert_eq!((declared.routers.len(), declared.peers.len(), declared.advertisements.len()), (1, 1, 1));
}

#[test]
fn every_object_of_the_readme_is_valid() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<_> =
        readme.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let files = blocks.iter().enumerate().map(|(n, yaml)| (format!("{n}.yaml").into(), (*yaml).to_owned()));
    assert_eq!(parse(files.collect()).packet_filters.len(), 1);
}

#[test]
fn the_examples_are_valid_and_the_demo_takes_all_of_them() {
    let files: BTreeMap<_, _> = fs::read_dir(root().join("deploy/examples"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|path| (path.file_name().unwrap().into(), fs::read_to_string(&path).unwrap()))
        .collect();
    let embedded = controller::demo::instance::EXAMPLES.map(|(name, text)| (name.into(), text.to_owned()));
    assert_eq!(files, embedded.into());
    let declared = parse(files);
    assert_eq!(declared.load_balancers.keys().map(String::as_str).collect::<Vec<_>>(), ["api", "web"]);
    assert_eq!(declared.nodes.len(), 5);
}

/// A unit as systemd reads it, with another program in its place, is sound and not more exposed than that: in tenths, from 0 to
/// 100, as `systemd-analyze security` counts.
fn assert_sound_and_hardened(name: &str, exposure: u8) -> String {
    let unit = fs::read_to_string(root().join("deploy/systemd").join(name)).unwrap();
    let dir = std::env::temp_dir().join(format!("fairlead-unit-{}-{exposure}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let path = dir.join(name);
    fs::write(&path, unit.replace("/usr/bin/fairlead", "/bin/true")).unwrap();
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).arg(&path).output();
        let output = output.expect("systemd-analyze is missing: apt-get install systemd");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let verified = analyze(&["verify", "--man=no"]);
    let threshold = format!("--threshold={exposure}");
    let (is_hardened, said) = analyze(&["security", "--offline=yes", "--no-pager", &threshold]);
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(verified, (true, String::new()));
    assert!(is_hardened, "{said}");
    unit
}

#[test]
fn the_unit_of_the_controller_is_sound_and_hardened() {
    assert_sound_and_hardened("fairlead-controller.service", 16);
}

#[test]
fn the_unit_is_sound_and_hardened_and_has_the_capabilities_of_the_manifest() {
    let unit = assert_sound_and_hardened("fairlead.service", 29);
    let bounding = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let of_unit: BTreeSet<_> = bounding.split(' ').map(|name| name.replace("CAP_", "")).collect();
    let manifest = fs::read_to_string(root().join("deploy/kubernetes/agent.yaml")).unwrap();
    let added = manifest.split("add:\n").nth(1).and_then(|rest| rest.split("ports:").next()).unwrap();
    let names = added.lines().filter_map(|line| line.trim().strip_prefix("- ")?.split(' ').next());
    assert_eq!(names.map(str::to_owned).collect::<BTreeSet<_>>(), of_unit);
}

#[test]
fn files_that_the_readme_names_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let code = readme.split('`').skip(1).step_by(2);
    let crates = ["lb-bpf/", "ipam/", "bgp-speaker/", "controller/", "crds/", "deploy/", "tests/"];
    let named: Vec<_> =
        code.filter(|c| crates.iter().any(|d| c.starts_with(d)) && !c.contains(' ')).collect();
    assert!(named.len() > 10, "{named:?}");
    let missing: Vec<_> = named.into_iter().filter(|path| !root().join(path).exists()).collect();
    assert_eq!(missing, [""; 0], "the README names them");
}
