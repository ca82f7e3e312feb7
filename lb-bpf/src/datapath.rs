//! The datapath of one host: brings the kernel's maps to what is desired.
use crate::{
    bpffs::PinDir,
    error::DatapathError,
    events::{Events, Reader},
    interfaces::Interfaces,
    loader::Loaded,
    loopback,
    maps::{Maps, Op, Sizes, dump, kernel::KernelMaps},
    next_hop::Resolver,
    port_watch::PortWatch,
    ports,
    service::{Desired, ServiceKey},
    state::{
        Now, State,
        plan::{Plan, PlanError},
        tables::GRACE,
    },
    status::{Counter, Counters, DirtySlots, Installed, InterfaceStatus, SweepReport, XdpMode},
    trace::{Packet, Trace, trace},
    tunnel_source::TunnelSources,
};
use futures::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Where the datapath lives and where it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory in a BPF file system that is this datapath's own; the version of the layout is appended. For
    /// example `/sys/fs/bpf/fairlead/NODE`. Dots in it become underscores: the kernel allows none.
    pub pin_dir: PathBuf,
    /// Names of the interfaces whose packets are balanced.
    pub interfaces: Vec<String>,
    /// Further interfaces, such as those of pods: what comes in there is taken by TC. Names, or with a `*` at the end how
    /// names begin, also those of interfaces that come later.
    pub tc_interfaces: Vec<String>,
    /// Sizes of the maps when they are made. Maps that are pinned keep theirs.
    pub sizes: Sizes,
    /// Where the outer sources of IPIP are taken from.
    pub tunnel_sources: TunnelSources,
}

/// The kernel's datapath. It stays pinned and goes on forwarding when this value is dropped or its process ends.
pub struct Datapath {
    loaded: Loaded,
    resolver: Resolver,
    ports: PortWatch,
    wanted: Interfaces,
    interfaces: Vec<InterfaceStatus>,
    /// Nothing when an operation failed: what the maps hold has to be read again.
    state: Option<State>,
    installed: Arc<Installed>,
    failed_at: Option<Instant>,
    /// What the last [`Datapath::install`] put on the loopback interface.
    vips: Option<BTreeSet<IpAddr>>,
    operations: u64,
    reader: Reader,
}

impl Datapath {
    /// Loads the programs, adopts the maps that are pinned or makes them, and attaches to the interfaces of this
    /// thread's network namespace; where the program of a process before is attached, it is replaced atomically. Maps
    /// of the version before are taken over. Where a version is installed whose maps cannot be read, it goes on
    /// forwarding until the first [`Datapath::install`] has filled new ones, and is replaced then. Needs root and a
    /// tokio runtime.
    pub async fn open(options: Options) -> Result<Self, DatapathError> {
        let pins = PinDir::open(&options.pin_dir)?;
        let mut loaded = Loaded::load(pins, options.sizes)?;
        let wanted = Interfaces { balanced: options.interfaces, tc: options.tc_interfaces };
        let resolver =
            Resolver::open(wanted.clone(), options.tunnel_sources).map_err(DatapathError::Socket)?;
        let mut watch = PortWatch::open().await?;
        // What XDP goes by has to be there before it is attached.
        if let Some(wanted) = watch.look(resolver.handle(), &wanted.balanced).await? {
            for op in ports::plan(loaded.maps.config()?, &loaded.maps.ports()?, &wanted) {
                loaded.maps.apply(&op)?;
            }
            watch.keep(wanted);
        }
        let mut interfaces = Vec::new();
        if !loaded.is_behind() {
            loaded.attach(&wanted)?;
            interfaces = modes(&resolver, &loaded, &[]).await?;
        }
        let mut state = State::restore(&loaded.maps)?;
        // Nobody reads events yet.
        for op in state.plan_sampling(None) {
            loaded.maps.apply(&op)?;
        }
        let (services, filters) = (state.found(&loaded.maps)?, state.filters());
        let installed = Arc::new(Installed { services, interfaces: interfaces.clone(), filters });
        Ok(Datapath {
            loaded,
            resolver,
            ports: watch,
            wanted,
            interfaces,
            state: Some(state),
            installed,
            failed_at: None,
            vips: None,
            operations: 0,
            reader: Reader::default(),
        })
    }

    /// What the maps hold: right after [`Datapath::open`], what the process before left; then what the last
    /// [`Datapath::install`] made.
    pub fn installed(&self) -> Arc<Installed> {
        self.installed.clone()
    }

    /// Adds and changes what `desired` asks for. It never takes a frontend away: see [`Datapath::prune`].
    /// On an error that the desired set causes, nothing has changed; on one of the kernel's, the next call
    /// goes on from what the maps hold.
    pub async fn install(&mut self, desired: &Desired) -> Result<Arc<Installed>, DatapathError> {
        if let Some(failed_at) = self.failed_at.take() {
            // What was given back just then is free now, but a packet may be reading it still.
            tokio::time::sleep(Duration::from_millis(GRACE).saturating_sub(failed_at.elapsed())).await;
        }
        self.settle_ports().await?;
        // Not while another version forwards still.
        if !self.loaded.is_behind() && self.loaded.attach_again(&self.wanted)? {
            self.interfaces = modes(&self.resolver, &self.loaded, &self.interfaces).await?;
        }
        let state = match self.state.take() {
            Some(state) => state,
            None => State::restore(&self.loaded.maps)?,
        };
        let state = self.state.insert(state);
        let changes = state.compare(desired);
        let is_first = changes.is_first();
        self.resolver.heed(&desired.tunnel_protocols());
        let hops = self.resolver.resolve(state.addresses(&changes).as_ref()).await?;
        state.addresses_are_known();
        let ends = desired.decap.iter().filter(|end| !end.deliver).map(|end| end.vip);
        let vips: BTreeSet<IpAddr> = ends.chain(desired.local_vips.iter().copied()).collect();
        loopback::add(self.resolver.handle(), &vips).await?;
        self.vips = Some(vips);
        let mut state = self.take_state()?;
        let Plan { ops, touched } = match state.plan_changes(&self.loaded.maps, changes, &hops, now()) {
            Err(error @ (PlanError::FrontendTwice { .. } | PlanError::BadName(_))) => {
                self.keep_state(state);
                return Err(error.into());
            }
            result => result?,
        };
        self.apply(&ops)?;
        if !ops.is_empty() {
            tracing::info!(operations = ops.len(), services = desired.services.len(), "installed");
        }
        if self.loaded.is_behind() {
            self.loaded.attach(&self.wanted)?;
            self.interfaces = modes(&self.resolver, &self.loaded, &[]).await?;
        }
        self.report(&state, is_first, touched);
        self.keep_state(state);
        Ok(self.installed.clone())
    }

    /// Removes what the last [`Datapath::install`] did not name; does nothing before the first one.
    pub async fn prune(&mut self) -> Result<(), DatapathError> {
        let Some(vips) = self.vips.clone() else { return Ok(()) };
        let mut state = self.take_state()?;
        let ops = state.plan_prune(now());
        self.apply(&ops)?;
        self.keep_state(state);
        loopback::retain(self.resolver.handle(), &vips).await?;
        Ok(())
    }

    /// Returns when a route, neighbour or link that matters has changed: time to call [`Datapath::install`]
    /// again. May be cancelled and called again.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = self.resolver.changed() => {}
            () = self.ports.changed() => {}
        }
    }

    /// Ages flows, ends learning windows and drains, gives back what is no longer used. To be called every few
    /// seconds; the work of one call is bounded.
    pub fn sweep(&mut self) -> Result<SweepReport, DatapathError> {
        let mut state = self.take_state()?;
        let report = state.sweep(&mut self.loaded.maps, now())?;
        self.keep_state(state);
        Ok(report)
    }

    /// Has one packet in `one_in` reported, rounded up to a power of two, and every packet that is dropped or begins a
    /// flow; or none at all, as after [`Datapath::open`].
    pub fn set_sampling(&mut self, one_in: Option<NonZeroU32>) -> Result<(), DatapathError> {
        let mut state = self.take_state()?;
        let ops = state.plan_sampling(one_in);
        self.apply(&ops)?;
        self.keep_state(state);
        Ok(())
    }

    /// What is reported from now on. Fails while there are [`Events`] already. Needs a tokio runtime.
    pub fn events(&self) -> Result<Events, DatapathError> {
        self.reader.open(self.loaded.open_again()?)
    }

    /// Packets by service and backend, by verdict, and by filter.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        Ok(Counters::read(&self.loaded.maps)?)
    }

    /// Packets by filter: [`Counters::filters`] alone.
    pub fn filter_counters(&self) -> Result<BTreeMap<String, Counter>, DatapathError> {
        Ok(Counters::of_filters(&self.loaded.maps)?)
    }

    /// Of the services that have any, the slots that are dirty now.
    pub fn dirty_slots(&self) -> Result<BTreeMap<ServiceKey, DirtySlots>, DatapathError> {
        match &self.state {
            Some(state) => Ok(state.dirty_slots()),
            None => Ok(State::restore(&self.loaded.maps)?.dirty_slots()),
        }
    }

    /// All maps as sorted text, one entry a line.
    pub fn dump(&self) -> Result<String, DatapathError> {
        Ok(dump::dump(&self.loaded.maps)?)
    }

    /// What reads the maps, whatever this value is busy with.
    pub fn observer(&self) -> Result<Observer, DatapathError> {
        Ok(Observer(Arc::new(self.loaded.open_again()?)))
    }

    /// How many operations on the maps [`Datapath::install`] and [`Datapath::prune`] have done since the start.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Detaches from all interfaces and removes everything that is pinned, and the VIPs from the loopback
    /// interface. Forwarding ends.
    pub async fn detach(self) -> Result<(), DatapathError> {
        self.loaded.remove()?;
        loopback::retain(self.resolver.handle(), &BTreeSet::new()).await?;
        Ok(())
    }

    /// Brings [`Datapath::installed`] up to date. What was given out before stays as it is.
    fn report(&mut self, state: &State, is_first: bool, touched: BTreeSet<ServiceKey>) {
        let filters = state.filters();
        let before = &self.installed;
        if !is_first
            && touched.is_empty()
            && before.interfaces == self.interfaces
            && before.filters == filters
        {
            return;
        }
        let installed = Arc::make_mut(&mut self.installed);
        (installed.interfaces, installed.filters) = (self.interfaces.clone(), filters);
        if is_first {
            installed.services.clear();
        }
        for key in touched {
            match state.installed_service(&key) {
                Some(service) => installed.services.insert(key, service),
                None => installed.services.remove(&key),
            };
        }
    }

    /// Tells XDP through which interfaces it may send itself, if that has changed.
    async fn settle_ports(&mut self) -> Result<(), DatapathError> {
        let looked = self.ports.look(self.resolver.handle(), &self.wanted.balanced).await?;
        let Some(wanted) = looked else { return Ok(()) };
        let mut state = self.take_state()?;
        let ops = state.plan_ports(&self.loaded.maps.ports()?, &wanted);
        self.apply(&ops)?;
        self.keep_state(state);
        self.ports.keep(wanted);
        Ok(())
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), DatapathError> {
        for op in ops {
            self.loaded.maps.apply(op)?;
            self.operations += 1;
        }
        Ok(())
    }

    /// The state for an operation that may fail. If it does, the state is not kept.
    fn take_state(&mut self) -> Result<State, DatapathError> {
        let state = match self.state.take() {
            Some(state) => state,
            None => State::restore(&self.loaded.maps)?,
        };
        self.failed_at = Some(Instant::now());
        Ok(state)
    }

    fn keep_state(&mut self, state: State) {
        self.state = Some(state);
        self.failed_at = None;
    }
}

/// Reads the installed maps beside their [`Datapath`], like the kernel program does, and changes nothing. Cheap to
/// clone.
#[derive(Clone)]
pub struct Observer(Arc<KernelMaps>);

impl Observer {
    /// See [`Datapath::counters`].
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        Ok(Counters::read(&*self.0)?)
    }

    /// What the kernel program would do with `packet` now. It may take some milliseconds: when the packet would need
    /// an entry in a table of flows, all entries are counted.
    pub fn trace(&self, packet: &Packet) -> Result<Trace, DatapathError> {
        let name = |index| nix::net::if_::if_indextoname(index).ok()?.into_string().ok();
        Ok(trace(&*self.0, name, packet, now().seconds())?)
    }
}

/// The kernel program stamps flows with the same clock.
fn now() -> Now {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is valid for the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Now(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
}

/// How each interface is attached; says so of those that were not attached like that `before`.
async fn modes(
    resolver: &Resolver,
    loaded: &Loaded,
    before: &[InterfaceStatus],
) -> Result<Vec<InterfaceStatus>, DatapathError> {
    let mut modes = Vec::new();
    for (name, attachment) in loaded.attached() {
        let mode = if attachment.is_tc { XdpMode::TcIngress } else { mode(resolver, name).await? };
        let status = InterfaceStatus { name: name.clone(), mode };
        if !before.contains(&status) {
            tracing::info!(interface = name, ?mode, "attached");
        }
        modes.push(status);
    }
    Ok(modes)
}

async fn mode(resolver: &Resolver, interface: &str) -> Result<XdpMode, DatapathError> {
    let link = resolver.handle().link().get().match_name(interface.to_owned()).execute().try_next().await?;
    let attributes = link.map(|link| link.attributes).unwrap_or_default();
    let xdp = attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    let attached = xdp.into_iter().flatten().find_map(|xdp| match xdp {
        LinkXdp::Attached(attached) => Some(attached),
        _ => None,
    });
    match attached {
        Some(XdpAttached::Driver | XdpAttached::Hardware) => Ok(XdpMode::Native),
        Some(XdpAttached::SocketBuffer) => Ok(XdpMode::Generic),
        _ => Err(DatapathError::NoInterface(interface.to_owned())),
    }
}
