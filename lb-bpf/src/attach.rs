//! Where the programs meet packets: XDP on the interfaces whose packets are balanced, TC for what XDP cannot take. Every
//! attachment is pinned, so that it outlives this process, and its program can be replaced atomically.
//!
//! | pin | what it is |
//! |---|---|
//! | `link-IF` | link of the XDP program |
//! | `tc-over-IF` | link of the TC program that sends on what XDP cannot send itself |
//! | `tc-in-IF`, `tc-out-IF` | link (tcx, since Linux 6.6) of a TC program |
//! | `clsact-over-IF`, `clsact-in-IF`, `clsact-out-IF` | a TC program that is attached without a link, before Linux 6.6 |
use crate::{
    bpffs::{PinDir, Pins},
    error::{DatapathError, error_chain, os_error, permitted},
    interfaces::Interfaces,
    maps::raw,
};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
        xdp::XdpLink,
    },
};
use lb_bpf_common::program;
use std::{collections::BTreeMap, io, mem, path::Path};

/// The programs of the object, loaded, and where they are attached.
pub(crate) struct Programs {
    object: Ebpf,
    attached: BTreeMap<String, Attachment>,
}

/// How one interface is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// Index of the interface.
    index: u32,
    is_balanced: bool,
    /// Whether TC takes the packets that come in, not XDP.
    pub(crate) is_tc: bool,
}

/// A place where packets of an interface meet a program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    Xdp,
    /// What comes in, behind XDP.
    Handover,
    /// What comes in, in place of XDP.
    Ingress,
    Egress,
}

/// TC filters are asked in this order; ours is the first.
const PRIORITY: u16 = 1;

impl Hook {
    const ALL: [Hook; 4] = [Hook::Xdp, Hook::Handover, Hook::Ingress, Hook::Egress];

    /// Number of a filter among those of its priority and direction.
    const fn handle(self) -> TcHandle {
        match self {
            Hook::Handover => TcHandle::new(0, 2),
            Hook::Xdp | Hook::Ingress | Hook::Egress => TcHandle::new(0, 1),
        }
    }

    /// The pin of a link is this and the interface's name.
    const fn link(self) -> &'static str {
        match self {
            Hook::Xdp => "link-",
            Hook::Handover => "tc-over-",
            Hook::Ingress => "tc-in-",
            Hook::Egress => "tc-out-",
        }
    }

    /// The pin of a program without a link is this and the interface's name.
    const fn record(self) -> Option<&'static str> {
        match self {
            Hook::Xdp => None,
            Hook::Handover => Some("clsact-over-"),
            Hook::Ingress => Some("clsact-in-"),
            Hook::Egress => Some("clsact-out-"),
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Hook::Xdp => program::DATAPATH,
            Hook::Handover => program::HANDOVER,
            Hook::Ingress => program::TC_INGRESS,
            Hook::Egress => program::TC_EGRESS,
        }
    }

    const fn direction(self) -> TcAttachType {
        match self {
            Hook::Xdp | Hook::Handover | Hook::Ingress => TcAttachType::Ingress,
            Hook::Egress => TcAttachType::Egress,
        }
    }

    /// The hook and the interface (with what a pin makes of its name) that a pin is about.
    fn of_pin(pin: &str) -> Option<(Hook, &str)> {
        Hook::ALL.into_iter().find_map(|hook| {
            let record = hook.record().and_then(|record| pin.strip_prefix(record));
            Some((hook, record.or_else(|| pin.strip_prefix(hook.link()))?))
        })
    }
}

impl Programs {
    /// Loads the programs.
    pub(crate) fn load(object: Ebpf) -> Result<Self, DatapathError> {
        let mut programs = Programs { object, attached: BTreeMap::new() };
        let failed = |error| permitted(error, DatapathError::Program);
        programs.xdp()?.load().map_err(failed)?;
        for hook in [Hook::Handover, Hook::Ingress, Hook::Egress] {
            programs.tc(hook)?.load().map_err(failed)?;
        }
        Ok(programs)
    }

    /// Attaches to exactly these interfaces: by replacing the program atomically where the process before was attached,
    /// and with the driver's mode if it has one.
    pub(crate) fn attach(&mut self, pins: &PinDir, interfaces: &Interfaces) -> Result<(), DatapathError> {
        let wanted = names_of_pins(pins.own(), interfaces);
        if let Some(before) = pins.before() {
            for name in before.pins.names()?.iter().filter(|name| is_attachment(name)) {
                pins.share(name, name)?;
            }
        }
        for name in pins.own().names()? {
            if is_attachment(&name) && !wanted.contains(&name) {
                tracing::info!(pin = name, "detaching from an interface that is no longer configured");
                detach(pins.own(), &name)?;
            }
        }
        for interface in &interfaces.balanced {
            self.attach_one(pins.own(), interface, true)?;
        }
        for interface in interfaces.named() {
            self.attach_one(pins.own(), interface, false)?;
        }
        self.attach_followed(pins.own(), interfaces);
        Ok(())
    }

    /// Attaches to interfaces that came since, or went and came back under their name, and forgets those that went for
    /// good; whether there was one.
    pub(crate) fn attach_again(
        &mut self,
        pins: &Pins,
        interfaces: &Interfaces,
    ) -> Result<bool, DatapathError> {
        let is_gone = |name: &&String| nix::net::if_::if_nametoindex(name.as_str()).is_err();
        let followed = self.attached.keys().filter(|name| interfaces.follows(name));
        let gone: Vec<String> = followed.filter(is_gone).cloned().collect();
        for interface in &gone {
            self.attached.remove(interface);
            detach_from(pins, Hook::Ingress, interface)?;
        }
        let is_new = |name: &str, old: u32| nix::net::if_::if_nametoindex(name).is_ok_and(|new| new != old);
        let new = |(name, old): (&String, &Attachment)| {
            is_new(name, old.index).then(|| (name.clone(), old.is_balanced))
        };
        let back: Vec<(String, bool)> = self.attached.iter().filter_map(new).collect();
        for (interface, is_balanced) in &back {
            tracing::warn!(interface, "the interface is another one now, attaching to it");
            self.attach_one(pins, interface, *is_balanced)?;
        }
        let has_new = self.attach_followed(pins, interfaces);
        Ok(has_new || !back.is_empty() || !gone.is_empty())
    }

    /// Attaches to the interfaces that come and go, but for those that are attached; whether there was one. They may go at
    /// any moment, so that none of them is worth an error.
    fn attach_followed(&mut self, pins: &Pins, interfaces: &Interfaces) -> bool {
        let mut has_new = false;
        for interface in interfaces.present() {
            if self.attached.contains_key(&interface) {
                continue;
            }
            match self.attach_one(pins, &interface, false) {
                Ok(()) => has_new = true,
                Err(error) => tracing::warn!(interface, %error, "not attached"),
            }
        }
        has_new
    }

    /// How each interface is attached.
    pub(crate) fn attached(&self) -> &BTreeMap<String, Attachment> {
        &self.attached
    }

    fn attach_one(&mut self, pins: &Pins, interface: &str, is_balanced: bool) -> Result<(), DatapathError> {
        let index = nix::net::if_::if_nametoindex(interface)
            .map_err(|_| DatapathError::NoInterface(interface.to_owned()))?;
        let mut is_tc = !is_balanced;
        if is_balanced {
            // First, for from then on XDP leaves packets to it.
            self.attach_to(pins, Hook::Handover, interface, index)?;
            match self.attach_to(pins, Hook::Xdp, interface, index) {
                Err(DatapathError::Attach { reason, .. }) => {
                    tracing::warn!(interface, reason, "no XDP at all, falling back to TC");
                    is_tc = true;
                }
                result => result?,
            }
            if let Err(error) = self.attach_to(pins, Hook::Egress, interface, index) {
                tracing::warn!(interface, %error, "what this host itself sends to VIPs is not balanced here");
            }
        }
        if is_tc {
            self.attach_to(pins, Hook::Ingress, interface, index)?;
            detach_from(pins, Hook::Handover, interface)?;
        } else {
            detach_from(pins, Hook::Ingress, interface)?;
        }
        self.attached.insert(interface.to_owned(), Attachment { index, is_balanced, is_tc });
        Ok(())
    }

    /// Attaches to one hook.
    fn attach_to(
        &mut self,
        pins: &Pins,
        hook: Hook,
        interface: &str,
        index: u32,
    ) -> Result<(), DatapathError> {
        let failed = |error| attach_error(interface, error);
        let pin = format!("{}{interface}", hook.link());
        let path = pins.pin(&pin);
        if let Ok(link) = PinnedLink::from_pin(&path) {
            let link = FdLink::from(link);
            // An interface that went and came again under its name is another one, and the link is dead.
            if is_on(&path, index) {
                let no_link = |_| DatapathError::NoLinks(interface.to_owned());
                match hook {
                    Hook::Xdp => {
                        let link = XdpLink::try_from(link).map_err(no_link)?;
                        self.xdp()?.attach_to_link(link).map(drop)
                    }
                    Hook::Handover | Hook::Ingress | Hook::Egress => {
                        let link = SchedClassifierLink::try_from(link).map_err(no_link)?;
                        self.tc(hook)?.attach_to_link(link).map(drop)
                    }
                }
                .map_err(failed)?;
                return Ok(());
            }
            drop(link);
            pins.unpin(&pin)?;
        }
        let link = match hook {
            Hook::Xdp => Some(self.attach_xdp(interface)?),
            Hook::Handover | Hook::Ingress | Hook::Egress => self.attach_tc(pins, hook, interface)?,
        };
        if let Some(link) = link {
            link.pin(&path)
                .map_err(|error| DatapathError::PinDir { path, source: io::Error::other(error) })?;
        }
        Ok(())
    }

    fn attach_xdp(&mut self, interface: &str) -> Result<FdLink, DatapathError> {
        let failed = |error| attach_error(interface, error);
        let program = self.xdp()?;
        let id = match program.attach(interface, XdpMode::Driver) {
            Err(error) if is_unsupported(&error) => {
                let reason = error_chain(&error);
                tracing::warn!(interface, reason, "no native XDP, falling back to generic");
                program.attach(interface, XdpMode::Skb)
            }
            result => result,
        }
        .map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        FdLink::try_from(link).map_err(|_| DatapathError::NoLinks(interface.to_owned()))
    }

    /// Attaches a TC program that is not attached by a link; nothing when it has no link now, either.
    fn attach_tc(
        &mut self,
        pins: &Pins,
        hook: Hook,
        interface: &str,
    ) -> Result<Option<FdLink>, DatapathError> {
        let failed = |error| attach_error(interface, error);
        let program = self.tc(hook)?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(interface, hook.direction(), first) {
            Err(error) if os_error(&error) == Some(libc::EINVAL) => {
                tracing::warn!(interface, "the kernel has no tcx (Linux 6.6), attaching to the qdisc clsact");
                self.attach_clsact(pins, hook, interface)?;
                Ok(None)
            }
            result => {
                let link = program.take_link(result.map_err(failed)?).map_err(failed)?;
                FdLink::try_from(link).map(Some).map_err(|_| DatapathError::NoLinks(interface.to_owned()))
            }
        }
    }

    /// Attaches a TC program to the qdisc clsact, in the place of the one that a process before has attached.
    fn attach_clsact(&mut self, pins: &Pins, hook: Hook, interface: &str) -> Result<(), DatapathError> {
        let failed = |error| attach_error(interface, error);
        match tc::qdisc_add_clsact(interface) {
            Err(error) if os_error(&error) != Some(libc::EEXIST) => return Err(failed(error.into())),
            _ => {}
        }
        let pin = format!("{}{interface}", hook.record().unwrap_or_default());
        let path = pins.pin(&pin);
        let program = self.tc(hook)?;
        let link = path.exists().then(|| {
            SchedClassifierLink::attached(interface, hook.direction(), PRIORITY, hook.handle(), None)
        });
        let id = match link.and_then(Result::ok).map(|link| program.attach_to_link(link)) {
            Some(Ok(id)) => id,
            // There is none, or it went with its interface.
            Some(Err(_)) | None => {
                let options = NlOptions { priority: PRIORITY, handle: hook.handle(), classid: None };
                let options = TcAttachOptions::Netlink(options);
                program.attach_with_options(interface, hook.direction(), options).map_err(failed)?
            }
        };
        // It stays attached when this process ends, unlike what is dropped.
        mem::forget(program.take_link(id).map_err(failed)?);
        pins.unpin(&pin)?;
        program.pin(&path).map_err(|error| DatapathError::PinDir { path, source: io::Error::other(error) })
    }

    fn xdp(&mut self) -> Result<&mut Xdp, DatapathError> {
        let name = Hook::Xdp.program();
        let program = self.object.program_mut(name).ok_or(DatapathError::NoProgram(name))?;
        program.try_into().map_err(DatapathError::Program)
    }

    fn tc(&mut self, hook: Hook) -> Result<&mut SchedClassifier, DatapathError> {
        let name = hook.program();
        let program = self.object.program_mut(name).ok_or(DatapathError::NoProgram(name))?;
        program.try_into().map_err(DatapathError::Program)
    }
}

/// Names of all pins that there may be.
fn names_of_pins(pins: &Pins, interfaces: &Interfaces) -> Vec<String> {
    let present = interfaces.present();
    let balanced = interfaces.balanced.iter().flat_map(|name| Hook::ALL.map(|hook| (hook, name)));
    let tc = interfaces.named().chain(&present).map(|name| (Hook::Ingress, name));
    let names = balanced.chain(tc).flat_map(|(hook, interface)| {
        let prefixes = [Some(hook.link()), hook.record()];
        prefixes.into_iter().flatten().map(move |prefix| format!("{prefix}{interface}"))
    });
    // As they are called there.
    names.filter_map(|name| Some(pins.pin(&name).file_name()?.to_string_lossy().into_owned())).collect()
}

/// Whether this is the name of what says where a program is attached, not of a map.
pub(crate) fn is_attachment(pin: &str) -> bool {
    Hook::of_pin(pin).is_some()
}

/// Detaches everywhere.
pub(crate) fn detach_all(pins: &Pins) -> Result<(), DatapathError> {
    for name in pins.names()? {
        if is_attachment(&name) {
            detach(pins, &name)?;
        }
    }
    Ok(())
}

/// Detaches from a hook of an interface, if it is attached there.
fn detach_from(pins: &Pins, hook: Hook, interface: &str) -> Result<(), DatapathError> {
    let mut prefixes = [hook.link()].into_iter().chain(hook.record());
    prefixes.try_for_each(|prefix| detach(pins, &format!("{prefix}{interface}")))
}

/// Detaches what is pinned under this name, if there is something.
fn detach(pins: &Pins, pin: &str) -> Result<(), DatapathError> {
    let record = Hook::of_pin(pin).filter(|(hook, _)| !pin.starts_with(hook.link()));
    if let Some((hook, interface)) = record.filter(|_| pins.pin(pin).exists())
        && let Err(error) = tc::qdisc_detach_program(interface, hook.direction(), hook.program())
    {
        tracing::warn!(interface, %error, "cannot detach the TC program");
    }
    pins.unpin(pin)
}

/// Whether the link with this pin is attached to the interface with this index. aya gives no descriptor of a link.
fn is_on(pin: &Path, index: u32) -> bool {
    raw::link_ifindex(pin).is_ok_and(|on| on == index)
}

fn is_unsupported(error: &ProgramError) -> bool {
    // Drivers say no in several ways: not at all, not with this MTU, not with these queues.
    !matches!(os_error(error), Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::ENODEV))
}

fn attach_error(interface: &str, error: ProgramError) -> DatapathError {
    match os_error(&error) {
        Some(libc::EBUSY | libc::EEXIST) => DatapathError::InterfaceBusy(interface.to_owned()),
        Some(libc::EPERM) => DatapathError::NotPermitted(io::Error::from_raw_os_error(libc::EPERM)),
        _ => DatapathError::Attach { interface: interface.to_owned(), reason: error_chain(&error) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OBJECT;
    use aya::EbpfLoader;
    use std::{fs, path::PathBuf, process, thread};

    /// Ids of the programs at the hook of `lo`.
    fn filters() -> Vec<String> {
        let output = process::Command::new("tc").args(["filter", "show", "dev", "lo", "egress"]).output();
        let output = String::from_utf8(output.unwrap().stdout).unwrap();
        let mut words = output.split_whitespace();
        std::iter::from_fn(|| words.find(|word| *word == "id").and_then(|_| words.next()).map(str::to_owned))
            .collect()
    }

    /// What kernels before 6.6 have. Needs root.
    #[test]
    fn without_tcx_a_program_is_attached_to_the_qdisc_and_replaced_there() {
        let test = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare needs root");
            let dir = PathBuf::from(format!("/sys/fs/bpf/fairlead-test-clsact-{}", process::id()));
            let pins = PinDir::open(&dir).unwrap();
            let attach = || {
                let mut programs = Programs::load(EbpfLoader::new().load(OBJECT).unwrap()).unwrap();
                programs.attach_clsact(pins.own(), Hook::Egress, "lo").unwrap();
                drop(programs);
                filters()
            };
            let (first, second) = (attach(), attach());
            assert_eq!((first.len(), second.len()), (1, 1), "it stays, and then there is one in its place");
            assert_ne!(first, second);
            detach_all(pins.own()).unwrap();
            assert!(filters().is_empty());
            assert!(pins.own().names().unwrap().is_empty());
            drop(pins);
            fs::remove_dir_all(dir).unwrap();
        };
        thread::spawn(test).join().unwrap();
    }
}
