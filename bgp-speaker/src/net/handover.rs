//! The sockets and sessions of a speaker on their way to its successor: another process in the place of this one
//! (`exec`), which keeps the file descriptors. All that it needs is in an anonymous file: numbers of descriptors, and
//! [`Session`]s. No key is in there: the kernel has them in the sockets.
use super::bfd::HandedPaths;
use crate::speaker::{Session, number};
use ipnet::IpNet;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

/// The first octets; the descriptors follow in any version, so that one that does not understand the rest can close them.
const MAGIC: &[u8] = b"bgp-speaker sessions\n";
/// What follows the descriptors is of this version.
const VERSION: u64 = 2;
/// Longest text in it, octets.
const TEXT: u64 = 256;

/// What a speaker leaves to its successor.
#[derive(Debug, Default)]
pub struct HandOver {
    pub(super) listeners: Vec<(SocketAddr, OwnedFd)>,
    /// Neighbours whose keys the listeners have.
    pub(super) keys: Vec<IpNet>,
    pub(super) sessions: Vec<(OwnedFd, Session)>,
    /// Paths that are watched.
    pub(super) paths: HandedPaths,
}

impl HandOver {
    /// How many sessions go on.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Writes it down for a program that takes the place of this one by `exec` and gives the number to
    /// [`HandOver::take`]. The sockets stay open for it.
    ///
    /// # Errors
    /// The kernel's, such as no more memory; the sockets are closed then.
    pub(super) fn keep(self) -> io::Result<RawFd> {
        let (content, sockets) = self.write();
        let mut file = File::from(memfd_create("bgp-speaker", MFdFlags::empty())?);
        let mut head = MAGIC.to_vec();
        put(&mut head, sockets.len());
        sockets.iter().for_each(|socket| put(&mut head, socket.as_raw_fd() as usize));
        file.write_all(&head)?;
        file.write_all(&content)?;
        file.seek(SeekFrom::Start(0))?;
        for socket in &sockets {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // Nobody closes them before the other program has them.
        for socket in sockets {
            let _: RawFd = socket.into_raw_fd();
        }
        Ok(file.into_raw_fd())
    }

    /// What [`HandOver::keep`] wrote: to be called first of all in the program that was given the number, or in this one
    /// if that did not come to be; once.
    ///
    /// # Errors
    /// It is not readable, or of another version; the sockets are closed then.
    pub(super) fn take(number: RawFd) -> io::Result<Self> {
        let mut content = Vec::new();
        File::from(inherited(number)?).read_to_end(&mut content)?;
        let mut rest = &content[..];
        let sockets = descriptors(&mut rest)?;
        HandOver::read(rest, sockets).ok_or_else(|| wrong("not the sessions of this version"))
    }

    /// All but the sockets, and these in the order of [`HandOver::read`].
    fn write(self) -> (Vec<u8>, Vec<OwnedFd>) {
        let (mut content, mut sockets) = (Vec::new(), Vec::new());
        content.extend(VERSION.to_be_bytes());
        put(&mut content, self.listeners.len());
        for (address, socket) in self.listeners {
            put_text(&mut content, &address.to_string());
            sockets.push(socket);
        }
        put(&mut content, self.keys.len());
        self.keys.iter().for_each(|key| put_text(&mut content, &key.to_string()));
        put(&mut content, self.sessions.len());
        for (socket, session) in self.sessions {
            session.write(&mut content);
            sockets.push(socket);
        }
        self.paths.write(&mut content, &mut sockets);
        (content, sockets)
    }

    /// None: this is something else.
    fn read(mut content: &[u8], sockets: Vec<OwnedFd>) -> Option<Self> {
        let from = &mut content;
        let mut sockets = sockets.into_iter();
        let mut handed = HandOver::default();
        if number(from)? != VERSION {
            return None;
        }
        for _ in 0..number(from)? {
            handed.listeners.push((text(from)?.parse().ok()?, sockets.next()?));
        }
        for _ in 0..number(from)? {
            handed.keys.push(text(from)?.parse().ok()?);
        }
        for _ in 0..number(from)? {
            let session = Session::read(from)?;
            handed.sessions.push((sockets.next()?, session));
        }
        handed.paths = HandedPaths::read(from, &mut sockets)?;
        Some(handed)
    }
}

fn put(content: &mut Vec<u8>, number: usize) {
    content.extend((number as u64).to_be_bytes());
}

fn put_text(content: &mut Vec<u8>, text: &str) {
    put(content, text.len());
    content.extend_from_slice(text.as_bytes());
}

pub(super) fn text(from: &mut &[u8]) -> Option<String> {
    let length = number(from).filter(|length| *length <= TEXT)?;
    let (text, rest) = from.split_at_checked(usize::try_from(length).ok()?)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// The descriptors at the beginning.
fn descriptors(content: &mut &[u8]) -> io::Result<Vec<OwnedFd>> {
    let numbers = numbers(content).ok_or_else(|| wrong("no descriptors"))?;
    numbers.into_iter().map(inherited).collect()
}

/// Each is there once: two that own the same one would both close it.
fn numbers(content: &mut &[u8]) -> Option<Vec<RawFd>> {
    *content = content.strip_prefix(MAGIC)?;
    let (mut numbers, mut seen) = (Vec::new(), BTreeSet::new());
    for _ in 0..number(content)? {
        let number = RawFd::try_from(number(content)?).ok()?;
        if !seen.insert(number) {
            return None;
        }
        numbers.push(number);
    }
    Some(numbers)
}

/// A descriptor that the program before left open. Programs that this one starts do not get it.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(wrong("no descriptor of a session"));
    }
    // SAFETY: `HandOver::keep` left it open for this purpose alone, here or in the program before, so that nothing that was
    // opened since has the number; one that is not open fails in the next line, and is not closed.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    match fcntl(descriptor.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => Ok(descriptor),
        Err(error) => {
            // It is none.
            let _: RawFd = descriptor.into_raw_fd();
            Err(error.into())
        }
    }
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn handed(sockets: usize) -> HandOver {
        let listener =
            |port: u16| (SocketAddr::from(([198, 18, 0, 2], port)), UnixStream::pair().unwrap().0.into());
        let ports = (0..sockets).map(|port| u16::try_from(port).unwrap());
        let keys = vec!["198.18.0.0/24".parse().unwrap(), "fd00::/8".parse().unwrap()];
        HandOver { listeners: ports.map(listener).collect(), keys, ..HandOver::default() }
    }

    #[test]
    fn what_is_cut_off_is_refused_and_its_sockets_are_closed() {
        let (content, sockets) = handed(2).write();
        assert_eq!(sockets.len(), 2);
        let all = HandOver::read(&content, sockets).unwrap();
        let addresses: Vec<String> = all.listeners.iter().map(|(address, _)| address.to_string()).collect();
        assert_eq!(
            (addresses, all.keys.len()),
            (vec!["198.18.0.2:0".to_owned(), "198.18.0.2:1".to_owned()], 2)
        );
        for end in 0..content.len() {
            let (ours, theirs) = UnixStream::pair().unwrap();
            assert!(HandOver::read(&content[..end], vec![theirs.into()]).is_none(), "cut at {end}");
            assert_eq!((&ours).read(&mut [0]).unwrap(), 0, "closed");
        }
        // Fewer sockets than are named, and another version.
        assert!(HandOver::read(&content, Vec::new()).is_none());
        let mut other = content;
        other[7] += 1;
        assert!(HandOver::read(&other, handed(2).write().1).is_none());
    }

    #[test]
    fn a_descriptor_is_there_once() {
        let head = |all: &[usize]| {
            let mut head = MAGIC.to_vec();
            put(&mut head, all.len());
            all.iter().for_each(|number| put(&mut head, *number));
            head
        };
        assert_eq!(numbers(&mut &head(&[7, 5])[..]), Some(vec![7, 5]));
        assert_eq!(numbers(&mut &head(&[7, 5, 7])[..]), None);
        assert_eq!(numbers(&mut &head(&[usize::MAX])[..]), None);
        assert_eq!(numbers(&mut &head(&[7, 5])[..40]), None, "cut");
        assert_eq!(numbers(&mut &b"something else"[..]), None);
        // Neither what is no descriptor of ours nor what is none at all.
        assert!(inherited(2).is_err() && inherited(i32::MAX).is_err());
    }

    #[test]
    fn what_is_kept_is_taken_once() {
        let number = handed(3).keep().unwrap();
        let taken = HandOver::take(number).unwrap();
        assert_eq!((taken.listeners.len(), taken.keys.len()), (3, 2));
        assert!(HandOver::take(number).is_err());
    }
}
