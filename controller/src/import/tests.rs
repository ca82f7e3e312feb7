//! Objects of others and what becomes of them: `testdata/NAME.yaml` is the input, `NAME.out` what is printed, `NAME.left` what
//! is told. `FAIRLEAD_REWRITE=1 cargo test -p controller import` rewrites what is expected.
use super::*;
use proptest::prelude::*;
use std::{env, fs, path::Path};

const CASES: [(&str, Origin); 4] = [
    ("metallb", Origin::MetalLB),
    ("metallb-rest", Origin::MetalLB),
    ("cilium", Origin::Cilium),
    ("cilium-rest", Origin::Cilium),
];

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/import/testdata").join(name)
}

fn imported(origin: Origin, text: &str) -> Result<Imported, Fault> {
    import(origin, &BTreeMap::from([(PathBuf::from("a.yaml"), text.to_owned())]))
}

#[test]
fn objects_become_what_is_written_down() {
    for (name, origin) in CASES {
        let found =
            imported(origin, &fs::read_to_string(testdata(&format!("{name}.yaml"))).unwrap()).unwrap();
        let told: String = found.left_out.iter().map(|line| format!("{line}\n")).collect();
        for (extension, text) in [("out", &found.yaml), ("left", &told)] {
            let path = testdata(&format!("{name}.{extension}"));
            if env::var_os("FAIRLEAD_REWRITE").is_some() {
                fs::write(&path, text).unwrap();
            }
            assert_eq!(*text, fs::read_to_string(&path).unwrap(), "{}", path.display());
        }
        let files = BTreeMap::from([(PathBuf::from("a.yaml"), found.yaml)]);
        assert_eq!(parse_directory(&files).is_ok(), !told.contains("this version refuses"), "{name}");
        assert_eq!(told.is_empty(), !name.ends_with("-rest"), "{name}: {told}");
    }
}

#[test]
fn what_is_no_yaml_is_refused_by_file() {
    assert_eq!(imported(Origin::Cilium, "a: [").unwrap_err().file, PathBuf::from("a.yaml"));
    assert_eq!(imported(Origin::Cilium, "- a\n---\n7\n"), Ok(Imported::default()));
}

#[test]
fn a_password_is_not_told() {
    let text = "kind: BGPPeer\nmetadata: {name: a}\nspec: {myASN: 1, peerASN: 2, peerAddress: 10.0.0.1, password: 73310}";
    let found = imported(Origin::MetalLB, text).unwrap();
    assert_eq!(found.left_out, ["BGPPeer/a: spec.password: is not a text"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any part of the objects may be something else.
    #[test]
    fn no_text_is_too_strange(case in 0..CASES.len(), at in any::<prop::sample::Index>(), other in ".{0,12}") {
        let (name, origin) = CASES[case];
        let text = fs::read_to_string(testdata(&format!("{name}.yaml"))).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let (number, mut changed) = (at.index(lines.len()), lines.clone());
        let line = match lines[number].split_once(": ") {
            Some((key, _)) => format!("{key}: {other}"),
            None => other,
        };
        changed[number] = &line;
        drop(imported(origin, &changed.join("\n")));
    }
}
