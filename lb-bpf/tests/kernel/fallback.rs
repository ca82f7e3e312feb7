//! An interface that takes no XDP program. Every device that there is here takes one in generic mode at least, so the kernel
//! is made to refuse: it asks before it makes a link of a BPF program, and the answer depends on where it is to be attached.
use super::{install_resolved, options};
use crate::{
    network::run,
    stream::{self, Tunnel},
};
use lb_bpf::{Datapath, XdpMode};
use std::{
    fs::File,
    io::{self, Read},
    mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::Arc,
    thread,
};

#[test]
fn where_no_xdp_is_to_be_had_tc_balances_and_that_is_said() {
    crate::network::test(async |network| {
        network.in_peer("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.1"]);
        let (mut reader, writer) = io::pipe().unwrap();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::new(writer)).finish();
        let log = tracing::subscriber::set_default(log);
        refuse_xdp().unwrap();

        let mut datapath = Datapath::open(options(network)).await.unwrap();
        let installed = install_resolved(&mut datapath, &stream::desired()).await;
        assert_eq!(installed.interfaces[0].mode, XdpMode::TcIngress);
        assert!(!run("ip", &["-d", "link", "show", "lb0"]).contains("xdp"));
        let mut tunnel = Tunnel::new(network, "203.0.113.20:9001");
        tunnel.send().unwrap();

        drop(log);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        for fallback in ["no native XDP, falling back to generic", "no XDP at all, falling back to TC"] {
            let line = said.lines().find(|line| line.contains(fallback));
            let line = line.unwrap_or_else(|| panic!("nobody said {fallback}: {said}"));
            assert!(line.contains("WARN") && line.contains("interface=\"lb0\""), "{line}");
            assert!(line.contains("Operation not supported"), "the reason: {line}");
        }

        drop(datapath);
        tunnel.send().expect("TC goes on without the process");
        let datapath = Datapath::open(options(network)).await.unwrap();
        assert_eq!(datapath.installed().interfaces[0].mode, XdpMode::TcIngress);
        tunnel.send().expect("and with the next one");
        datapath.detach().await.unwrap();
        assert!(!network.pin_dir.exists());
    });
}

/// From now on this thread, and what it starts, cannot attach to XDP by a link: bpf(BPF_LINK_CREATE) fails with EOPNOTSUPP
/// then.
fn refuse_xdp() -> io::Result<()> {
    const BPF_LINK_CREATE: u32 = 28;
    const NUMBER: u32 = mem::offset_of!(libc::seccomp_data, nr) as u32;
    /// The low half of the first argument, on a little-endian machine.
    const COMMAND: u32 = mem::offset_of!(libc::seccomp_data, args) as u32;
    let instruction = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0);
    let unless = |value, skip| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, skip);
    let answer = |answer| instruction(libc::BPF_RET | libc::BPF_K, answer, 0);
    // A filter sees numbers only, and what is to be attached is in memory: a supervisor looks there.
    let mut filter = [
        load(NUMBER),
        unless(libc::SYS_bpf as u32, 3),
        load(COMMAND),
        unless(BPF_LINK_CREATE, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the kernel copies the filter during the call, and it is valid as long.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &program) };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    let listener = unsafe { OwnedFd::from_raw_fd(listener as i32) };
    thread::spawn(move || while supervise(&listener).is_ok() {});
    Ok(())
}

/// Waits until somebody wants to make a link, and answers.
fn supervise(listener: &OwnedFd) -> io::Result<()> {
    /// Where `struct bpf_attr` has the kind of attachment, and which one XDP is (linux/bpf.h).
    const ATTACH_TYPE: u64 = 8;
    const BPF_XDP: u32 = 37;
    let done = |result| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: a struct of numbers, of which all zeros is a value.
    let mut asked: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes to the struct that this request has, and it is valid for the call.
    done(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut asked) })?;
    let mut attach_type = [0; 4];
    let memory = File::open(format!("/proc/{}/mem", asked.pid))?;
    memory.read_exact_at(&mut attach_type, asked.data.args[1] + ATTACH_TYPE)?;
    let (error, flags) = match u32::from_ne_bytes(attach_type) {
        BPF_XDP => (-libc::EOPNOTSUPP, 0),
        _ => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags };
    // SAFETY: the kernel reads the struct that this request has, and it is valid for the call.
    done(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &answer) })
}
