//! Sends packets of made-up clients out of an interface, as many as one CPU can make: TCP SYNs (a SYN flood) or small
//! UDP packets. Tests and benches use it; root, kernel 5.18.
//!
//! usage: load INTERFACE SECONDS tcp|udp SOURCE DESTINATION:PORT SOURCE_MAC DESTINATION_MAC [FLOWS [CPU]]
//!
//! The last 16 bits of SOURCE and its port vary: FLOWS different pairs, a power of two up to 2^32 (the default), drawn
//! at random. At the end it prints `PACKETS SECONDS`: what was handed to the interface, which may not have taken all.
//!
//! XDP sends the frames (`BPF_F_TEST_XDP_LIVE_FRAMES`). A veth takes them only if its other end has an XDP program.
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunAttrs,
    maps::Array,
    programs::{TestRunOptions, Xdp},
};
use lb_bpf::abi::proto;
use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

/// Bytes of a frame, all of them given by [`Load`].
const LENGTH: usize = 80;
const ETHERNET: usize = 14;
/// Packets in one system call: so often the clock is looked at.
const REPEAT: u32 = 1 << 15;
/// Packets that are made before they are sent together.
const BATCH: u32 = 64;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(Arguments { interface, duration, load, proto, family, cpu }) = Arguments::parse(&arguments)
    else {
        return Err(
            "usage: load INTERFACE SECONDS tcp|udp SOURCE DESTINATION:PORT SOURCE_MAC DESTINATION_MAC \
                    [FLOWS [CPU]]"
                .into(),
        );
    };
    pin_to(cpu)?;
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("prebuilt/fairlead_load.bpf.o");
    let mut ebpf = EbpfLoader::new().load_file(object)?;
    let map = ebpf.map_mut("load").ok_or("no map")?;
    Array::<_, Load>::try_from(map)?.set(0, load, 0)?;
    let name = if proto == proto::TCP { format!("tcp_{family}") } else { format!("udp_{family}") };
    let ifindex = nix::net::if_::if_nametoindex(interface.as_str())?;
    let started = Instant::now();
    let packets = send(&mut ebpf, &name, ifindex, duration)?;
    println!("{packets} {:.3}", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs the program until the time is over; gives the number of packets.
fn send(ebpf: &mut Ebpf, name: &str, ifindex: u32, duration: Duration) -> Outcome<u64> {
    let program: &mut Xdp = ebpf.program_mut(name).ok_or("no program")?.try_into()?;
    program.load()?;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, LENGTH as u32, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat();
    let (mut packets, started) = (0, Instant::now());
    while started.elapsed() < duration {
        program.test_run(TestRunOptions {
            data_in: Some(&[0; LENGTH]),
            ctx_in: Some(&context),
            repeat: REPEAT,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
        packets += u64::from(REPEAT);
    }
    Ok(packets)
}

/// What is sent: the one value of the map `load`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Load {
    head: [u8; LENGTH],
    /// Number of flows less one.
    mask: u32,
    zero: u32,
}

// SAFETY: no padding, and any bytes are a valid value.
unsafe impl aya::Pod for Load {}

struct Arguments {
    interface: String,
    duration: Duration,
    load: Load,
    proto: u8,
    family: &'static str,
    cpu: usize,
}

impl Arguments {
    fn parse(words: &[String]) -> Option<Self> {
        let [interface, seconds, proto, source, destination, source_mac, destination_mac, rest @ ..] = words
        else {
            return None;
        };
        let number = |index: usize, default: u64| rest.get(index).map_or(Some(default), |w| w.parse().ok());
        let (flows, cpu) = (number(0, 1 << 32)?, number(1, 0)?);
        let mask = u32::try_from(flows.checked_sub(1)?).ok().filter(|_| flows.is_power_of_two())?;
        let proto = match proto.as_str() {
            "tcp" => proto::TCP,
            "udp" => proto::UDP,
            _ => return None,
        };
        let destination: SocketAddr = destination.parse().ok()?;
        let macs = [mac(destination_mac)?, mac(source_mac)?].concat();
        let head = frame(&macs, source.parse().ok()?, destination, proto)?;
        Some(Arguments {
            interface: interface.clone(),
            duration: Duration::try_from_secs_f64(seconds.parse().ok()?).ok()?,
            load: Load { head, mask, zero: 0 },
            proto,
            family: if destination.is_ipv4() { "v4" } else { "v6" },
            cpu: cpu as usize,
        })
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// The frame with the source's last 16 bits and its port 0. `None`: two families.
fn frame(macs: &[u8], source: IpAddr, destination: SocketAddr, proto: u8) -> Option<[u8; LENGTH]> {
    let mut frame = macs.to_vec();
    let (addresses, header) = match (source, destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [a, b, ..] = source.octets();
            ([&[a, b, 0, 0][..], &destination.octets()].concat(), 20)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ([&source.octets()[..14], &[0, 0], &destination.octets()].concat(), 40)
        }
        _ => return None,
    };
    // A SYN carries no data: what is behind it is padding.
    let size = if proto == proto::TCP { 20 } else { LENGTH - ETHERNET - header };
    if header == 20 {
        frame.extend([0x08, 0x00, 0x45, 0, 0, (header + size) as u8, 0, 0, 0x40, 0, 64, proto, 0, 0]);
        frame.extend(&addresses);
        let sum = checksum(&frame[ETHERNET..]);
        frame[ETHERNET + 10..][..2].copy_from_slice(&sum);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, size as u8, proto, 64]);
        frame.extend(&addresses);
    }
    let mut segment = [0, destination.port()].map(u16::to_be_bytes).concat();
    let checksum_at = if proto == proto::TCP {
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
        16
    } else {
        segment.extend([0, size as u8, 0, 0]);
        6
    };
    segment.resize(size, 0);
    let sum = checksum(&[&addresses[..], &[0, proto, 0, size as u8], &segment].concat());
    segment[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    frame.extend(segment);
    frame.resize(LENGTH, 0);
    frame.try_into().ok()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = pairs.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

fn pin_to(cpu: usize) -> Outcome<()> {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)?;
    Ok(())
}
