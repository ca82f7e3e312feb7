//! What the documents show must work: the YAML of the README and of `deploy/examples` is valid.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]
use controller::{declared::Declared, validate::parse_directory};
use std::{collections::BTreeMap, fs, path::Path};

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
