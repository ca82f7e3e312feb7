//! Directories as text, and the faults that they have: `testdata/*.txt`, one file per subject. Each holds cases:
//! a line `== NAME`, files as `-- FILE --` and their text, and after `-- faults --` one line per fault (none: the
//! directory is good). `FAIRLEAD_REWRITE=1 cargo test -p controller validate` rewrites what is expected.
use super::*;
use proptest::{prelude::*, sample::Index};
use std::{env, fs};

const FAULTS: &str = "faults";

/// A directory and its faults.
struct Case {
    name: String,
    sections: Vec<(String, String)>,
}

impl Case {
    fn parse(text: &str) -> Self {
        let (name, body) = text.split_once('\n').expect("a name");
        let mut sections: Vec<(String, String)> = Vec::new();
        for line in body.lines() {
            match line.strip_prefix("-- ").and_then(|line| line.strip_suffix(" --")) {
                Some(file) => sections.push((file.into(), String::new())),
                None => {
                    let (_, text) =
                        sections.last_mut().unwrap_or_else(|| panic!("{name}: text before the first file"));
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        let (last, _) = sections.last().unwrap_or_else(|| panic!("{name}: no files"));
        assert_eq!(last, FAULTS, "{name}: the last section");
        Case { name: name.into(), sections }
    }

    fn found(&self) -> String {
        let (_, files) = self.sections.split_last().unwrap();
        let files = files.iter().map(|(file, text)| (file.into(), text.clone())).collect();
        let faults = parse_directory(&files).err().unwrap_or_default();
        faults.iter().map(|fault| format!("{fault}\n")).collect()
    }

    fn with(&self, faults: &str) -> String {
        let (_, files) = self.sections.split_last().unwrap();
        let files: String = files.iter().map(|(file, text)| format!("-- {file} --\n{text}")).collect();
        format!("== {}\n{files}-- {FAULTS} --\n{faults}\n", self.name)
    }
}

/// All cases of all files, and the files.
fn testdata() -> Vec<(PathBuf, Vec<Case>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/validate/testdata");
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let cases =
        |text: &str| text.split("== ").skip(1).map(|case| Case::parse(case.trim_end_matches('\n'))).collect();
    paths.map(|path| (path.clone(), cases(&fs::read_to_string(&path).unwrap()))).collect()
}

#[test]
fn directories_have_the_faults_that_are_written_down() {
    let rewrite = env::var_os("FAIRLEAD_REWRITE").is_some();
    let (mut count, mut wrong) = (0, String::new());
    for (path, cases) in testdata() {
        let mut rewritten = String::new();
        for case in cases {
            let (expected, found) = (case.sections.last().unwrap().1.trim(), case.found());
            if expected != found.trim() {
                wrong += &format!("{}: {}:\n{found}", path.display(), case.name);
            }
            rewritten += &case.with(&found);
            count += 1;
        }
        if rewrite {
            fs::write(path, rewritten).unwrap();
        }
    }
    assert!(count > 40, "only {count} cases");
    assert!(rewrite || wrong.is_empty(), "found something else:\n{wrong}");
}

/// The texts of all files of all cases.
fn texts() -> Vec<String> {
    let cases = testdata().into_iter().flat_map(|(_, cases)| cases);
    cases.flat_map(|case| case.sections).map(|(_, text)| text).filter(|text| text.contains("kind:")).collect()
}

/// What is written for a user to see can be declared again.
#[test]
fn objects_come_back_as_written() {
    let mut count = 0;
    for text in texts() {
        for parsed in parse_file(Path::new("a.yaml"), &text).0 {
            let yaml = match &parsed.object {
                Object::AddressPool(object) => serde_yaml_ng::to_string(&**object),
                Object::LoadBalancer(object) => serde_yaml_ng::to_string(&**object),
                Object::BGPRouter(object) => serde_yaml_ng::to_string(&**object),
                Object::BGPPeer(object) => serde_yaml_ng::to_string(&**object),
                Object::BGPAdvertisement(object) => serde_yaml_ng::to_string(&**object),
                Object::PacketFilter(object) => serde_yaml_ng::to_string(&**object),
                Object::ClusterLink(object) => serde_yaml_ng::to_string(&**object),
                Object::ServicePolicy(object) => serde_yaml_ng::to_string(&**object),
                Object::Service(object) => serde_yaml_ng::to_string(&**object),
                Object::EndpointSlice(object) => serde_yaml_ng::to_string(&**object),
                Object::Namespace(object) => serde_yaml_ng::to_string(&**object),
                Object::Node(object) => serde_yaml_ng::to_string(&**object),
                // Its values are not shown.
                Object::Secret(_) => continue,
            };
            let (again, faults) = parse_file(Path::new("a.yaml"), &yaml.unwrap());
            assert_eq!(faults, []);
            assert_eq!((&again[0].name, &again[0].object), (&parsed.name, &parsed.object));
            count += 1;
        }
    }
    assert!(count > 50, "only {count} objects");
}

/// A change of a text, at places that are chosen relative to its length.
#[derive(Clone, Debug)]
enum Edit {
    Insert(Index, String),
    Delete(Index, Index),
    Copy(Index, Index, Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let bits = prop::sample::select(vec![
        "\n---\n",
        "\n",
        "  ",
        "- ",
        ": ",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "&a ",
        "*a",
        "!!x ",
        "|\n",
        "? ",
        "<<: ",
        "#",
        "%",
        "\t",
        "\0",
        "\u{85}",
        "~",
        "-1",
        "1e999",
        ".nan",
        "0x10",
        "18446744073709551616",
        "::/0",
        "0.0.0.0/0",
        "255.255.255.255",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "é",
    ]);
    let place = any::<Index>;
    prop_oneof![
        (place(), bits).prop_map(|(at, bit)| Edit::Insert(at, bit.into())),
        (place(), ".{0,8}").prop_map(|(at, text)| Edit::Insert(at, text)),
        (place(), place()).prop_map(|(from, to)| Edit::Delete(from, to)),
        (place(), place(), place()).prop_map(|(from, to, at)| Edit::Copy(from, to, at)),
    ]
}

impl Edit {
    fn apply(&self, text: &str) -> String {
        let chars: Vec<char> = text.chars().collect();
        let place = |index: &Index| index.index(chars.len() + 1);
        // Short pieces, so that most of the text stays what it was.
        let piece = |from: &Index, to: &Index| {
            let from = place(from);
            from..(from + 1 + place(to) % 20).min(chars.len()).max(from)
        };
        let splice = |range: std::ops::Range<usize>, new: &[char]| {
            [&chars[..range.start], new, &chars[range.end..]].concat().into_iter().collect()
        };
        match self {
            Edit::Insert(at, new) => splice(place(at)..place(at), &new.chars().collect::<Vec<_>>()),
            Edit::Delete(from, to) => splice(piece(from, to), &[]),
            Edit::Copy(from, to, at) => splice(place(at)..place(at), &chars[piece(from, to)]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is written: an answer, of one line per fault.
    #[test]
    fn no_text_is_too_strange(text in prop::sample::select(texts()), edits in prop::collection::vec(edit(), 1..6)) {
        let text = edits.iter().fold(text, |text, edit| edit.apply(&text));
        let files = BTreeMap::from([("a.yaml".into(), text)]);
        if let Err(faults) = parse_directory(&files) {
            prop_assert!(!faults.is_empty());
            prop_assert!(faults.iter().all(|fault| fault.to_string().lines().count() == 1));
        }
    }
}
