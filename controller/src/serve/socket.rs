//! The unix socket of the API: made so that only root can use it, a stale one is replaced, a live one is not.
use axum::serve::Listener;
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, UnixListener, UnixSocket, UnixStream, unix::SocketAddr};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;
/// How long a process that was killed may take to let go of its sockets.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves there.
    #[error("another instance serves at {}; stop it, or choose another path with --api-socket", .0.display())]
    InUse(PathBuf),
    /// There is a file of another sort.
    #[error("{} is there already and is no socket; choose another path with --api-socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("making the API socket {}: {source}", .path.display())]
    Io {
        /// The socket, or the directory that should hold it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening unix socket of mode 0600; its file is removed on drop.
#[derive(Debug)]
pub struct ApiSocket {
    path: PathBuf,
    /// Device and inode of our file: another instance may have replaced it since.
    file: (u64, u64),
    listener: UnixListener,
}

impl ApiSocket {
    /// Makes the socket, and the directory for it.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let io_error = |source| SocketError::Io { path: path.to_owned(), source };
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent)
                .map_err(|source| SocketError::Io { path: parent.to_owned(), source })?;
        }
        patiently(async || remove_stale(path).await, |error| matches!(error, SocketError::InUse(_))).await?;
        let socket = UnixSocket::new_stream().map_err(io_error)?;
        socket.bind(path).map_err(io_error)?;
        // Before listen(2), so that nobody connects while the mode is still that of the umask.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io_error)?;
        let listener = socket.listen(BACKLOG).map_err(io_error)?;
        let file = identity(path).map_err(io_error)?;
        Ok(ApiSocket { path: path.to_owned(), file, listener })
    }
}

impl Listener for ApiSocket {
    type Io = UnixStream;
    type Addr = SocketAddr;

    fn accept(&mut self) -> impl Future<Output = (Self::Io, Self::Addr)> + Send {
        Listener::accept(&mut self.listener)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "removing the API socket");
        }
    }
}

/// Listens for TCP connections.
pub async fn bind_tcp(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    patiently(async || TcpListener::bind(address).await, |error| error.kind() == io::ErrorKind::AddrInUse)
        .await
}

/// Tries again for a while when the place is taken: its owner may be dying.
async fn patiently<T, E>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
    is_taken: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let start = Instant::now();
    loop {
        match attempt().await {
            Err(error) if is_taken(&error) && start.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Removes the socket of a process that is gone. Only a refused connection proves that it is.
async fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let io_error = |source| SocketError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error(e)),
        Ok(file) if !file.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io_error),
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        // A full backlog, or a listener that goes away just now: somebody is there, or was.
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset) => {
            Err(SocketError::InUse(path.to_owned()))
        }
        Err(e) => Err(io_error(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory of this test alone, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static COUNTER: AtomicU32 = AtomicU32::new(0);
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("fairlead-socket-{}-{number}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[tokio::test]
    async fn makes_the_directory_and_lets_only_the_owner_in() {
        let scratch = Scratch::new();
        let path = scratch.0.join("a/b/api.sock");
        let socket = ApiSocket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).await.unwrap();
        drop(socket);
        assert!(!path.exists(), "removed at the end");
    }

    #[tokio::test]
    async fn replaces_a_stale_socket() {
        let scratch = Scratch::new();
        let path = scratch.0.join("api.sock");
        // A listener of std leaves its file behind, as a killed process does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = ApiSocket::bind(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_live_socket_and_other_files_stay() {
        let scratch = Scratch::new();
        let path = scratch.0.join("api.sock");
        let _first = ApiSocket::bind(&path).await.unwrap();
        assert!(matches!(ApiSocket::bind(&path).await, Err(SocketError::InUse(_))));
        UnixStream::connect(&path).await.unwrap();

        let file = scratch.0.join("precious");
        fs::write(&file, "text").unwrap();
        assert!(matches!(ApiSocket::bind(&file).await, Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    }

    #[tokio::test]
    async fn a_dying_owner_is_waited_for() {
        let scratch = Scratch::new();
        let path = scratch.0.join("api.sock");
        let dying = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        // Neither can be had while the owner lives, so both wait before the owner goes.
        let owner = async {
            tokio::task::yield_now().await;
            drop((dying, tcp));
        };
        let (socket, listener, ()) = tokio::join!(ApiSocket::bind(&path), bind_tcp(address), owner);
        socket.unwrap();
        listener.unwrap();
    }

    #[tokio::test]
    async fn a_successor_keeps_its_socket() {
        let scratch = Scratch::new();
        let path = scratch.0.join("api.sock");
        let first = ApiSocket::bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _second = ApiSocket::bind(&path).await.unwrap();
        drop(first);
        UnixStream::connect(&path).await.unwrap();
    }
}
