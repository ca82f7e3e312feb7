//! Nanoseconds per packet on every path of the datapath, over floors in the same run. Needs root.
//!
//! The programs of `fairlead_bench.bpf.o` run the datapath inlined under a wrapper that draws one of N flows at random
//! and restores the packet (BPF_PROG_TEST_RUN feeds a changed packet back). All paths are run in turn, many times; the
//! kernel times each run. *own* = T - (floor + floor of head adjustment) / 2; *over* = T - floor of head adjustment,
//! that is, over a program that only moves the head, as the datapath must, too. Without a tunnel both are T - floor.
//! `cargo bench -p lb-bpf --bench packet -- dirty NAT` measures the paths whose names have one of the words.
use aya::{
    Ebpf, EbpfLoader, TestRun,
    maps::{Array, MapData, PerCpuArray},
    programs::{TestRunOptions, Xdp},
};
use lb_bpf::abi::{
    Addr, Backend, Config, Counter, Filter, Frontend, Mode, Slot, Vip, VipKey, VipWord, map,
    outer_header_sum, proto, recent_lines, vip_hash,
};
use std::{error::Error, net::IpAddr, path::PathBuf};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// Slots of a table, backends of a service, VIPs in the map.
const SLOTS: u32 = 65_537;
const BACKENDS: u32 = 100;
const VIPS: u32 = 1000;
/// Words of their index.
const VIP_WORDS: u32 = (4 * VIPS * 2).next_power_of_two();
/// Room for tracked flows: the largest row's, beside the others.
const FLOWS: u32 = 1 << 21;
/// Lines of memos, as with room for just the flows of the largest row.
const RECENT: u32 = recent_lines(1 << 20);
/// Filters in the map.
const FILTERS: u32 = 16;
/// Runs of a path at a time, and how often its turn comes.
const REPEAT: u32 = 100_000;
const ROUNDS: usize = 25;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    // `cargo test` runs benches, too, to see that they work.
    let rounds = if std::env::args().any(|argument| argument == "--bench") { ROUNDS } else { 1 };
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |path: &&Path| {
        path.lookups.is_empty() || wanted.is_empty() || wanted.iter().any(|part| path.name.contains(part))
    };
    let paths: Vec<&Path> = PATHS.iter().filter(is_wanted).collect();
    pin_to_one_cpu()?;
    let mut bench = Bench::load()?;
    let mut times = vec![Vec::new(); paths.len()];
    for round in 0..=rounds {
        for (path, times) in paths.iter().zip(&mut times) {
            let nanos = bench.run(path).map_err(|error| format!("{}: {error}", path.name))?;
            if round > 0 {
                times.push(nanos); // the first round fills tables and caches
            }
        }
    }
    print(&paths, &times);
    Ok(())
}

/// One line of the table.
struct Path {
    name: &'static str,
    program: &'static str,
    /// Number of flows, a power of two.
    flows: u64,
    packet: Packet,
    /// Number of the service, below.
    service: u32,
    /// XDP action of every run.
    action: u32,
    /// What a packet looks up; empty: it is a floor.
    lookups: &'static str,
    /// What is on beside the services.
    extra: Extra,
}

/// What may be asked of the datapath beyond services.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extra {
    None,
    /// So many filters that look at every packet and match none.
    Filters(u32),
    /// One packet in so many is reported.
    Sampling(u32),
    /// There is room for four memos only, so that next to nothing is remembered.
    Forgetful,
}

/// What is sent to a service's VIP.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packet {
    Tcp(u8),
    Udp,
    /// TCP to a port where no service is.
    Miss,
}

const ACK: Packet = Packet::Tcp(0x10);
const SYN: Packet = Packet::Tcp(0x02);

/// The services, by number; the even ones are IPv4, the odd ones IPv6.
const CLEAN: u32 = 0;
const SETTLED: u32 = 2;
const NAT: u32 = 4;
const GUE: u32 = 6;
const L2: u32 = 8;
const DNAT: u32 = 10;
const SERVICES: u32 = 12;

const FLOOR_V4: &str = "floor_v4";
const FLOOR_V6: &str = "floor_v6";
const TABLE: &str = "array: config twice, vip_index, vips, slots, backends, counters";
const REMEMBERED: &str = "array: config twice, vip_index, vips, slots, recent, backends, counters";
const TRACKED: &str =
    "hash: flows; array: config twice, vip_index, vips, slots, backends, scratch, counters; clock";

#[rustfmt::skip]
const PATHS: &[Path] = &[
    floor("floor v4", FLOOR_V4, CLEAN),
    floor("floor v4, head adjusted", "floor_head_v4", CLEAN),
    floor("floor v4, headers written", "floor_headers_v4", CLEAN),
    floor("floor v6", FLOOR_V6, CLEAN + 1),
    floor("floor v6, head adjusted", "floor_head_v6", CLEAN + 1),
    floor("floor v6, headers written", "floor_headers_v6", CLEAN + 1),
    Path { name: "not ours", program: "pass_v4", flows: 1 << 20, packet: Packet::Miss, service: CLEAN, action: XDP_PASS, lookups: "array: config, vip_index", extra: Extra::None },
    tunnel("IPIP v4 TCP established, 1 flow", "ipip_v4", 1, ACK, CLEAN),
    tunnel("IPIP v4 TCP established, 16k flows", "ipip_v4", 1 << 14, ACK, CLEAN),
    tunnel("IPIP v4 TCP established, 1M flows", "ipip_v4", 1 << 20, ACK, CLEAN),
    tunnel("IPIP v4 TCP SYN, 1 flow", "ipip_v4", 1, SYN, CLEAN),
    tunnel("IPIP v4 TCP SYN, 1M flows", "ipip_v4", 1 << 20, SYN, CLEAN),
    tunnel("IPIP v4 UDP, 1 flow", "ipip_v4", 1, Packet::Udp, CLEAN),
    tunnel("IPIP v4 UDP, 1M flows", "ipip_v4", 1 << 20, Packet::Udp, CLEAN),
    tunnel("IPIP v6 TCP established, 1 flow", "ipip_v6", 1, ACK, CLEAN + 1),
    tunnel("IPIP v6 TCP established, 1M flows", "ipip_v6", 1 << 20, ACK, CLEAN + 1),
    tunnel("IPIP v6 TCP SYN, 1M flows", "ipip_v6", 1 << 20, SYN, CLEAN + 1),
    tunnel("IPIP v6 UDP, 1M flows", "ipip_v6", 1 << 20, Packet::Udp, CLEAN + 1),
    tunnel("IPIP v4, 1 flow, no filter or report code", "bare_v4", 1, ACK, CLEAN),
    tunnel("IPIP v4, 1M flows, no filter or report code", "bare_v4", 1 << 20, ACK, CLEAN),
    with("the same as 1M flows v4, 1 filter", 1 << 20, Extra::Filters(1)),
    with("the same, 16 filters", 1 << 20, Extra::Filters(16)),
    with("the same, one in 4096 reported", 1 << 20, Extra::Sampling(4096)),
    tunnel("GUE v4 TCP established, 1 flow", "gue_v4", 1, ACK, GUE),
    tunnel("GUE v4 TCP established, 1M flows", "gue_v4", 1 << 20, ACK, GUE),
    tunnel("GUE v4 UDP, 1M flows", "gue_v4", 1 << 20, Packet::Udp, GUE),
    tunnel("GUE v6 TCP established, 1 flow", "gue_v6", 1, ACK, GUE + 1),
    tunnel("GUE v6 TCP established, 1M flows", "gue_v6", 1 << 20, ACK, GUE + 1),
    tunnel("GUE v6 UDP, 1M flows", "gue_v6", 1 << 20, Packet::Udp, GUE + 1),
    tunnel("L2 v4 TCP established, 1 flow", "in_place_v4", 1, ACK, L2),
    tunnel("L2 v4 TCP established, 1M flows", "in_place_v4", 1 << 20, ACK, L2),
    tunnel("L2 v6 TCP established, 1M flows", "in_place_v6", 1 << 20, ACK, L2 + 1),
    remembered("dirty slots v4 TCP established, 1 flow", "ipip_v4", 1, SETTLED),
    remembered("dirty slots v4 TCP established, 16k flows", "ipip_v4", 1 << 14, SETTLED),
    remembered("dirty slots v4 TCP established, 1M flows", "ipip_v4", 1 << 20, SETTLED),
    forgetful("dirty slots v4, first packet for seconds, 16k", 1 << 14),
    forgetful("dirty slots v4, first packet for seconds, 1M", 1 << 20),
    remembered("dirty slots v6 TCP established, 16k flows", "ipip_v6", 1 << 14, SETTLED + 1),
    tracked("NAT v4 TCP established, 1 flow", "in_place_v4", 1, NAT),
    tracked("NAT v4 TCP established, 16k flows", "in_place_v4", 1 << 14, NAT),
    tracked("NAT v4 TCP established, 256k flows", "in_place_v4", 1 << 18, NAT),
    tracked("NAT v6 TCP established, 16k flows", "in_place_v6", 1 << 14, NAT + 1),
    tracked("DNAT v4 TCP established, 1 flow", "in_place_v4", 1, DNAT),
    tracked("DNAT v4 TCP established, 16k flows", "in_place_v4", 1 << 14, DNAT),
    tracked("DNAT v6 TCP established, 16k flows", "in_place_v6", 1 << 14, DNAT + 1),
];

const fn floor(name: &'static str, program: &'static str, service: u32) -> Path {
    Path { lookups: "", ..tunnel(name, program, 1 << 20, ACK, service) }
}

const fn tunnel(name: &'static str, program: &'static str, flows: u64, packet: Packet, service: u32) -> Path {
    Path { name, program, flows, packet, service, action: XDP_TX, lookups: TABLE, extra: Extra::None }
}

const fn with(name: &'static str, flows: u64, extra: Extra) -> Path {
    Path { extra, ..tunnel(name, "ipip_v4", flows, ACK, CLEAN) }
}

/// Packets of flows that are tracked and remembered.
const fn remembered(name: &'static str, program: &'static str, flows: u64, service: u32) -> Path {
    Path { lookups: REMEMBERED, ..tunnel(name, program, flows, ACK, service) }
}

/// The same flows, of which nothing is remembered.
const fn forgetful(name: &'static str, flows: u64) -> Path {
    Path { extra: Extra::Forgetful, ..tracked(name, "ipip_v4", flows, SETTLED) }
}

const fn tracked(name: &'static str, program: &'static str, flows: u64, service: u32) -> Path {
    Path { lookups: TRACKED, ..tunnel(name, program, flows, ACK, service) }
}

fn print(paths: &[&Path], times: &[Vec<f64>]) {
    let median = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        (sorted[0], sorted[sorted.len() / 2])
    };
    let of = |program: &str| {
        let index = paths.iter().position(|path| path.program == program);
        median(&times[index.expect("every floor is a path")])
    };
    println!(
        "ns per packet, min/median of {} rounds of {REPEAT} packets; {VIPS} VIPs, {SLOTS} slots,",
        times[0].len()
    );
    println!("{BACKENDS} backends a service; flows drawn at random; every packet was seen to be forwarded");
    println!("{:42} {:>9} {:>9} {:>9}  lookups", "path", "T", "own", "over");
    for (path, times) in paths.iter().zip(times) {
        let (min, mid) = median(times);
        let family = if is_v4(path.service) { "v4" } else { "v6" };
        let is_in_place = path.program.starts_with("in_place");
        let head = if is_in_place { "floor_headers" } else { "floor_head" };
        let (plain, head) = match path.program {
            "pass_v4" => (of(FLOOR_V4), of(FLOOR_V4)),
            _ if is_in_place => (of(&format!("{head}_{family}")), of(&format!("{head}_{family}"))),
            _ => (of(&format!("floor_{family}")), of(&format!("{head}_{family}"))),
        };
        let pair = |min: f64, mid: f64| format!("{min:.0}/{mid:.0}");
        let (own, over) = if path.lookups.is_empty() {
            (String::new(), String::new())
        } else {
            let own = pair(min - (plain.0 + head.0) / 2.0, mid - (plain.1 + head.1) / 2.0);
            (own, pair(min - head.0, mid - head.1))
        };
        println!("{:42} {:>9} {own:>9} {over:>9}  {}", path.name, pair(min, mid), path.lookups);
    }
}

struct Bench {
    ebpf: Ebpf,
    /// The map `vip_index`, and how many entries of `vips` are in use.
    words: Vec<VipWord>,
    vips: u32,
}

/// A value of a map: the types of the ABI have no padding, and any bytes are a valid value of each.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

// SAFETY: see above; used with the types of the ABI only.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}

impl Bench {
    fn load() -> Outcome<Self> {
        let object = std::env::var_os("FAIRLEAD_BPF_BENCH").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/prebuilt/fairlead_bench.bpf.o")),
            PathBuf::from,
        );
        let backends = 1 + SERVICES * BACKENDS;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(map::VIPS, 1 + VIPS * 2)
            .map_max_entries(map::VIP_INDEX, VIP_WORDS)
            .map_max_entries(map::SLOTS, SERVICES * SLOTS)
            .map_max_entries(map::BACKENDS, backends)
            .map_max_entries(map::BACKEND_COUNTERS, backends)
            .map_max_entries(map::FLOWS, FLOWS)
            .map_max_entries(map::RECENT, RECENT)
            .map_max_entries(map::REVERSE, 1 << 20)
            .map_max_entries(map::FILTERS, FILTERS)
            .map_max_entries(map::FILTER_COUNTERS, FILTERS)
            .load_file(object)?;
        for path in PATHS {
            let program: &mut Xdp = ebpf.program_mut(path.program).ok_or(path.program)?.try_into()?;
            if program.fd().is_err() {
                program.load()?;
            }
        }
        let mut bench = Bench { ebpf, words: vec![VipWord::FREE; VIP_WORDS as usize], vips: 0 };
        let mut filters = bench.array::<Filter>(map::FILTERS)?;
        for index in 0..FILTERS {
            filters.set(index, Plain(never()), 0)?;
        }
        for number in 0..SERVICES {
            bench.fill_service(number)?;
        }
        for number in SERVICES..VIPS {
            let key = VipKey { addr: vip(number).into(), port: 80_u16.to_be(), proto: proto::TCP, scope: 0 };
            let value = Vip { service: number, base: 0, size: SLOTS, flags: 0 };
            bench.add_vip(key, value)?;
        }
        Ok(bench)
    }

    fn add_vip(&mut self, key: VipKey, vip: Vip) -> Outcome<()> {
        self.vips += 1;
        let (hash, index) = (vip_hash(&key), self.vips);
        let mut place = VipWord::place(hash, VIP_WORDS - 1);
        while self.words[place as usize] != VipWord::FREE {
            place = (place + 1) % VIP_WORDS;
        }
        self.words[place as usize] = VipWord::new(hash, index);
        let frontend = Frontend { key, zero: 0, vip, edition: 0, learns_until: 0, rest: [0; 4] };
        self.array::<Frontend>(map::VIPS)?.set(index, Plain(frontend), 0)?;
        self.array::<VipWord>(map::VIP_INDEX)?.set(place, Plain(VipWord::new(hash, index)), 0)?;
        Ok(())
    }

    fn fill_service(&mut self, number: u32) -> Outcome<()> {
        let (base, first) = (number * SLOTS, 1 + number * BACKENDS);
        for proto in [proto::TCP, proto::UDP] {
            let key = VipKey { addr: vip(number).into(), port: 80_u16.to_be(), proto, scope: 0 };
            let value = Vip { service: number, base, size: SLOTS, flags: 0 };
            self.add_vip(key, value)?;
        }
        for index in first..first + BACKENDS {
            self.array::<Backend>(map::BACKENDS)?.set(index, Plain(backend(number, index)), 0)?;
        }
        let mut slots = self.array::<Slot>(map::SLOTS)?;
        for slot in 0..SLOTS {
            let current = first + slot.wrapping_mul(0x9e37_79b1) % BACKENDS;
            let dirty = number & !1 == SETTLED;
            let previous = if dirty { (first + slot % BACKENDS) | Slot::SETTLED } else { 0 };
            slots.set(base + slot, Plain(Slot { current, previous }), 0)?;
        }
        Ok(())
    }

    /// Nanoseconds a packet; an error if one was not forwarded.
    fn run(&mut self, path: &Path) -> Outcome<f64> {
        let packet = packet(path);
        let mut head = [0; 8];
        for (word, bytes) in head.iter_mut().zip(packet.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        let [a, b, c, d, e, f, g, h] = head;
        let state = [0x1234_5678_9abc_def1, path.flows - 1, a, b, c, d, e, f, g, h];
        self.array::<Config>(map::CONFIG)?.set(0, Plain(config(path.extra)), 0)?;
        self.array::<[u64; 10]>("bench")?.set(0, Plain(state), 0)?;
        let before = self.forwarded()?;
        let program: &Xdp = self.ebpf.program(path.program).ok_or(path.program)?.try_into()?;
        // Flows are made before the clock runs: as many draws as it takes to meet nearly all.
        let warm_up = if [TRACKED, REMEMBERED].contains(&path.lookups) {
            (path.flows * 4).clamp(1000, 1 << 22) as u32
        } else {
            1000
        };
        let mut nanos = 0.0;
        for repeat in [warm_up, REPEAT] {
            let options = TestRunOptions { data_in: Some(&packet), repeat, ..TestRunOptions::new() };
            let result = program.test_run(options)?;
            if result.return_value != path.action {
                return Err(format!("XDP action {} in place of {}", result.return_value, path.action).into());
            }
            nanos = result.duration.as_nanos() as f64;
        }
        let sent = self.forwarded()? - before;
        let balanced = !path.lookups.is_empty() && path.action == XDP_TX;
        let expected = if balanced { u64::from(warm_up) + u64::from(REPEAT) } else { 0 };
        if sent != expected {
            return Err(format!("{sent} packets forwarded, not {expected}").into());
        }
        Ok(nanos)
    }

    /// Packets sent to any backend so far.
    fn forwarded(&self) -> Outcome<u64> {
        let counters: PerCpuArray<&MapData, Plain<Counter>> =
            self.ebpf.map(map::BACKEND_COUNTERS).ok_or(map::BACKEND_COUNTERS)?.try_into()?;
        let mut packets = 0;
        for counter in counters.iter() {
            packets += counter?.iter().map(|Plain(counter)| counter.packets).sum::<u64>();
        }
        Ok(packets)
    }

    fn array<V: Copy + 'static>(&mut self, name: &'static str) -> Outcome<Array<&mut MapData, Plain<V>>> {
        Ok(self.ebpf.map_mut(name).ok_or(name)?.try_into()?)
    }
}

const fn config(extra: Extra) -> Config {
    let (events, filters, sample_mask) = match extra {
        Extra::None | Extra::Forgetful => (0, 0, 0),
        Extra::Filters(filters) => (0, filters, 0),
        Extra::Sampling(one_in) => (Config::EVENTS, 0, one_in - 1),
    };
    let flags = Config::NAT | events;
    let (nat_port_first, nat_port_last) = (1024, 65_535);
    let recent_mask = if matches!(extra, Extra::Forgetful) { 0 } else { RECENT - 1 };
    let vip_mask = VIP_WORDS - 1;
    Config { flags, nat_port_first, nat_port_last, filters, sample_mask, vip_mask, recent_mask }
}

/// Looks at the source of every packet, and matches none.
fn never() -> Filter {
    Filter {
        src: Addr::v4(0x0100_007f),
        src_mask: Addr([u32::MAX; 4]),
        length: [0, u16::MAX],
        kind: Filter::IN_USE | Filter::DROP,
        ..Filter::default()
    }
}

const fn is_v4(service: u32) -> bool {
    service & 1 == 0
}

fn vip(service: u32) -> IpAddr {
    let (high, low) = (service / 250, service % 250 + 1);
    let text =
        if is_v4(service) { format!("203.0.{high}.{low}") } else { format!("2001:db8:1:{high}::{low}") };
    text.parse().expect("an address")
}

fn backend(service: u32, index: u32) -> Backend {
    let v4 = is_v4(service);
    let address = |low: u32| -> Addr {
        let (a, b) = (low / 250, low % 250 + 1);
        let text = if v4 { format!("10.200.{a}.{b}") } else { format!("fd00:1::{a}:{b}") };
        text.parse::<IpAddr>().expect("an address").into()
    };
    let (addr, source) = (address(1 + index), address(0));
    let mode = match service & !1 {
        NAT => Mode::Nat,
        GUE => Mode::Gue,
        L2 => Mode::L2,
        DNAT => Mode::Dnat,
        _ => Mode::Ipip,
    };
    Backend {
        addr,
        source,
        next_hop: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 2],
        ifindex: 1, // the loopback interface, where the test's packets seem to come from
        port: 80_u16.to_be(),
        mode: mode as u8,
        flags: 0,
        header_sum: if v4 && mode.is_tunnel() { outer_header_sum(&source, &addr) } else { 0 },
        service,
        mtu: 1500,
        vlan: 0,
    }
}

/// A packet to the service, 64 bytes or a little more. Its checksums are not right, and nobody looks at them.
fn packet(path: &Path) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 4];
    let proto = if path.packet == Packet::Udp { proto::UDP } else { proto::TCP };
    let payload = 30_u16;
    match vip(path.service) {
        IpAddr::V4(vip) => {
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend((20 + payload).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, 1]);
            bytes.extend(vip.octets());
        }
        IpAddr::V6(vip) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(payload.to_be_bytes());
            bytes.extend([proto, 64, 0x20, 1, 0x0d, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            bytes.extend(vip.octets());
        }
    }
    let port = if path.packet == Packet::Miss { 81_u16 } else { 80 };
    bytes.extend(40_000_u16.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    let flags = if let Packet::Tcp(flags) = path.packet { flags } else { 0x10 };
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0]);
    bytes.extend([0; 10]);
    bytes
}

fn pin_to_one_cpu() -> Outcome<()> {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(0)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)?;
    Ok(())
}
