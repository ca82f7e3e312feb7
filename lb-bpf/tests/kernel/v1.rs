//! What a process of version 1 leaves behind: its own object (`v1.bpf.o`, as it was published), loaded, attached and pinned
//! as it did that, with maps that hold what it would have installed. The layouts are written down here once more, as
//! bytes.
use super::{SIZES, install_resolved, options};
use crate::network::Network;
use aya::{
    EbpfLoader,
    maps::{Array, HashMap, Map, MapData},
    programs::{Xdp, XdpMode, links::FdLink},
};
use lb_bpf::{Datapath, Options, abi, abi::ABI_VERSION, service::Desired};
use std::{fs, path::Path};

static OBJECT: &[u8] = include_bytes!("v1.bpf.o");
/// Its maps, and how many entries they had.
const MAPS: [(&str, u32); 9] = [
    ("vips", SIZES.vips),
    ("slots", SIZES.slots),
    ("backends", SIZES.backends),
    ("flows", SIZES.flows),
    ("reverse", SIZES.flows),
    ("decap", SIZES.decap),
    ("config", 1),
    ("backend_counters", SIZES.backends),
    ("verdict_counters", 19),
];
const BPF_F_NO_PREALLOC: u32 = 1;

/// Runs version 1 on `lb0` with these services. The maps' contents are found out by this version, which installs them
/// elsewhere without being attached.
pub(crate) async fn run(network: &Network, desired: &Desired) {
    let elsewhere = network.pin_dir.join("elsewhere");
    let options = Options { pin_dir: elsewhere.clone(), interfaces: vec![], ..options(network) };
    let mut datapath = Datapath::open(options).await.unwrap();
    install_resolved(&mut datapath, desired).await;
    drop(datapath);
    let pins = network.pin_dir.join("v1");
    fs::create_dir_all(&pins).unwrap();
    let paths = MAPS.map(|(name, _)| pins.join(name));
    let mut loader = EbpfLoader::new();
    for ((name, entries), path) in MAPS.into_iter().zip(&paths) {
        loader.map_max_entries(name, entries).map_pin_path(name, path.as_path());
    }
    let mut object = loader.load(OBJECT).unwrap();
    let names = HashMap::<_, u32, [u8; 512]>::create(SIZES.vips, BPF_F_NO_PREALLOC).unwrap();
    aya::maps::IterableMap::<u32, [u8; 512]>::map(&names).pin(pins.join("names")).unwrap();
    fill(&elsewhere.join(format!("v{ABI_VERSION}")), &pins);
    fs::remove_dir_all(elsewhere).unwrap();
    let program: &mut Xdp = object.program_mut("fairlead_xdp").unwrap().try_into().unwrap();
    program.load().unwrap();
    let link = program.attach("lb0", XdpMode::Driver).unwrap();
    let link = FdLink::try_from(program.take_link(link).unwrap()).unwrap();
    link.pin(pins.join("link-lb0")).unwrap();
}

/// Turns entries of this version into entries of version 1.
fn fill(from: &Path, to: &Path) {
    copy::<8>(from, to, "slots", |slot| slot);
    copy::<64>(from, to, "backends", |mut backend| {
        let (is_ipip, sum) = (backend[50] == 2, u32::from_ne_bytes(backend[52..56].try_into().unwrap()));
        let sum = if is_ipip { u64::from(sum) + u64::from(abi::protocol_sum(4)) } else { 0 };
        backend[52..56].copy_from_slice(&u32::from(abi::fold(sum)).to_ne_bytes());
        assert_eq!(backend[62..], [0, 0], "no VLAN, and the MTU of a veth");
        backend
    });
    let old: Array<_, [u8; 24]> = Array::try_from(Map::Array(open(from, "config"))).unwrap();
    let mut new: Array<_, [u8; 8]> = Array::try_from(Map::Array(open(to, "config"))).unwrap();
    let config: [u8; 8] = old.get(&0, 0).unwrap()[..8].try_into().unwrap();
    new.set(0, config, 0).unwrap();
    let names = |path| HashMap::<_, u32, [u8; 512]>::try_from(Map::HashMap(open(path, "names"))).unwrap();
    let (old, mut new) = (names(from), names(to));
    for entry in old.iter() {
        let (id, name) = entry.unwrap();
        new.insert(id, name, 0).unwrap();
    }
    let frontends: Array<_, [u8; 64]> = Array::try_from(Map::Array(open(from, "vips"))).unwrap();
    let mut vips: HashMap<_, [u8; 20], [u8; 16]> = HashMap::try_from(Map::HashMap(open(to, "vips"))).unwrap();
    for frontend in frontends.iter().map(Result::unwrap).filter(|frontend| frontend[..20] != [0; 20]) {
        let [service, flags, base, size] = [24, 28, 32, 36].map(|at| &frontend[at..at + 4]);
        assert_eq!(flags, [0; 4], "version 1 knew none");
        let value: [u8; 16] = [service, base, size, flags].concat().try_into().unwrap();
        let key: [u8; 20] = frontend[..20].try_into().unwrap();
        vips.insert(key, value, 0).unwrap();
    }
}

fn copy<const SIZE: usize>(from: &Path, to: &Path, map: &str, change: fn([u8; SIZE]) -> [u8; SIZE]) {
    let array = |path| {
        Array::<_, [u8; SIZE]>::try_from(Map::Array(open(path, map))).unwrap_or_else(|e| panic!("{e}"))
    };
    let (old, mut new) = (array(from), array(to));
    for (index, value) in (0..).zip(old.iter()) {
        let value = value.unwrap();
        if value != [0; SIZE] {
            new.set(index, change(value), 0).unwrap();
        }
    }
}

fn open(pins: &Path, map: &str) -> MapData {
    MapData::from_pin(pins.join(map)).unwrap()
}
