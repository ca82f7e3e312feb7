//! Reads a configuration directory: the files in it that hold objects, not those of directories below.
use crate::{
    fault::Fault,
    object::{MAX_FILE_BYTES, holds_objects},
};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Largest sum of the files' sizes, bytes.
pub const MAX_DIRECTORY_BYTES: usize = 256 << 20;

/// The texts of all files that hold objects, or everything that cannot be read.
pub fn read(directory: &Path) -> Result<BTreeMap<PathBuf, String>, Vec<Fault>> {
    let unreadable = |error: io::Error| vec![Fault::file(directory, format!("cannot be read: {error}"))];
    let (mut files, mut faults, mut bytes) = (BTreeMap::new(), Vec::new(), 0);
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if !holds_objects(&path) {
            continue;
        }
        match read_file(&path) {
            Ok(Some(text)) => {
                bytes += text.len();
                files.insert(path, text);
            }
            Ok(None) => {}
            Err(reason) => faults.push(Fault::file(path, reason)),
        }
        if bytes > MAX_DIRECTORY_BYTES {
            let reason = format!("the files are larger than {MAX_DIRECTORY_BYTES} bytes together");
            return Err(vec![Fault::file(directory, reason)]);
        }
    }
    faults.sort();
    if faults.is_empty() { Ok(files) } else { Err(faults) }
}

/// Nothing if the file has just been removed.
fn read_file(path: &Path) -> Result<Option<String>, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    // A FIFO without a writer would block for ever.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return match path.symlink_metadata() {
                Ok(_) => Err("is a link to a file that does not exist".into()),
                Err(_) => Ok(None),
            };
        }
        Err(error) => return Err(unreadable(error)),
    };
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("is not a file".into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => Err(format!("is not UTF-8 from byte {} on", error.utf8_error().valid_up_to())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::tests::Scratch;
    use std::os::unix::fs::symlink;

    #[test]
    fn reads_what_holds_objects() {
        let scratch = Scratch::new();
        for name in
            ["a.yaml", "b.yml", "c.json", ".d.yaml", "e.yaml~", "#f.yaml#", ".g.yaml.swp", "h.txt", "README"]
        {
            fs::write(scratch.path(name), name).unwrap();
        }
        fs::create_dir(scratch.path("below")).unwrap();
        symlink("a.yaml", scratch.path("link.yaml")).unwrap();
        let names: Vec<_> = read(&scratch.path(""))
            .unwrap()
            .into_keys()
            .map(|path| path.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["a.yaml", "b.yml", "c.json", "link.yaml"]);
    }

    #[test]
    fn says_what_cannot_be_read() {
        let scratch = Scratch::new();
        fs::write(scratch.path("good.yaml"), "").unwrap();
        fs::create_dir(scratch.path("directory.yaml")).unwrap();
        symlink("nowhere", scratch.path("dangling.yaml")).unwrap();
        symlink("loop.yaml", scratch.path("loop.yaml")).unwrap();
        fs::write(scratch.path("latin1.yaml"), b"a: \xe9").unwrap();
        fs::write(scratch.path("large.yaml"), vec![b'#'; MAX_FILE_BYTES + 1]).unwrap();
        nix::unistd::mkfifo(&scratch.path("fifo.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let faults: Vec<_> = read(&scratch.path(""))
            .unwrap_err()
            .iter()
            .map(|fault| {
                let line = fault.to_string();
                line.rsplit_once('/').unwrap().1.to_owned()
            })
            .collect();
        assert_eq!(
            faults,
            [
                "dangling.yaml: is a link to a file that does not exist",
                "directory.yaml: is not a file",
                "fifo.yaml: is not a file",
                "large.yaml: is larger than 4194304 bytes",
                "latin1.yaml: is not UTF-8 from byte 3 on",
                "loop.yaml: cannot be read: Too many levels of symbolic links (os error 40)",
            ]
        );
    }

    #[test]
    fn a_directory_that_is_not_there_is_a_fault() {
        let scratch = Scratch::new();
        let faults = read(&scratch.path("missing")).unwrap_err();
        assert!(faults[0].reason.contains("No such file"), "{}", faults[0]);
    }
}
