//! The sockets and sessions of a speaker on their way to its successor: another process in the place of this one
//! (`exec`), which keeps the file descriptors. All that it needs is in an anonymous file: numbers of descriptors, and
//! [`Session`]s. No key is in there: the kernel has them in the sockets.
use crate::speaker::{Session, number};
use ipnet::IpNet;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
};

/// The first octets: another version is not understood.
const MAGIC: &[u8] = b"bgp-speaker sessions 1\n";
/// Longest text in it, octets.
const TEXT: u64 = 256;

/// What a speaker leaves to its successor.
#[derive(Debug, Default)]
pub struct HandOver {
    pub(super) listeners: Vec<(SocketAddr, OwnedFd)>,
    /// Neighbours whose keys the listeners have.
    pub(super) keys: Vec<IpNet>,
    pub(super) sessions: Vec<(OwnedFd, Session)>,
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
    pub fn keep(self) -> io::Result<RawFd> {
        let mut content = MAGIC.to_vec();
        let put = |content: &mut Vec<u8>, number: usize| content.extend((number as u64).to_be_bytes());
        let text = |content: &mut Vec<u8>, text: String| {
            put(content, text.len());
            content.extend_from_slice(text.as_bytes());
        };
        let mut kept = Vec::new();
        put(&mut content, self.listeners.len());
        for (address, socket) in self.listeners {
            text(&mut content, address.to_string());
            put(&mut content, socket.as_raw_fd() as usize);
            kept.push(socket);
        }
        put(&mut content, self.keys.len());
        self.keys.iter().for_each(|key| text(&mut content, key.to_string()));
        put(&mut content, self.sessions.len());
        for (socket, session) in self.sessions {
            put(&mut content, socket.as_raw_fd() as usize);
            session.write(&mut content);
            kept.push(socket);
        }
        let file = memfd_create("bgp-speaker", MFdFlags::empty())?;
        let mut file = File::from(file);
        file.write_all(&content)?;
        file.seek(SeekFrom::Start(0))?;
        for socket in &kept {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // Nobody closes them before the other program has them.
        for socket in kept {
            let _: RawFd = socket.into_raw_fd();
        }
        Ok(file.into_raw_fd())
    }

    /// What [`HandOver::keep`] wrote: to be called first of all in the program that was given the number, or in this one
    /// if that did not come to be; once.
    ///
    /// # Errors
    /// It is not readable, or of another version.
    pub fn take(number: RawFd) -> io::Result<Self> {
        let mut content = Vec::new();
        File::from(inherited(number)?).read_to_end(&mut content)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not the sessions of this version");
        parse(&content).ok_or_else(wrong)?
    }
}

/// None: this is something else.
fn parse(content: &[u8]) -> Option<io::Result<HandOver>> {
    let mut rest = content.strip_prefix(MAGIC)?;
    let from = &mut rest;
    let (mut listeners, mut keys, mut sessions) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..number(from)? {
        listeners.push((text(from)?.parse().ok()?, RawFd::try_from(number(from)?).ok()?));
    }
    for _ in 0..number(from)? {
        keys.push(text(from)?.parse().ok()?);
    }
    for _ in 0..number(from)? {
        sessions.push((RawFd::try_from(number(from)?).ok()?, Session::read(from)?));
    }
    let open = || {
        let listeners = listeners.into_iter().map(|(address, socket)| Ok((address, inherited(socket)?)));
        let listeners: io::Result<Vec<_>> = listeners.collect();
        let sessions = sessions.into_iter().map(|(socket, session)| Ok((inherited(socket)?, session)));
        let sessions: io::Result<Vec<_>> = sessions.collect();
        Ok(HandOver { listeners: listeners?, keys, sessions: sessions? })
    };
    Some(open())
}

fn text(from: &mut &[u8]) -> Option<String> {
    let length = number(from).filter(|length| *length <= TEXT)?;
    let (text, rest) = from.split_at_checked(usize::try_from(length).ok()?)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// A descriptor that the program before left open. Programs that this one starts do not get it.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor of a session"));
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
