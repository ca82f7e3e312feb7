//! The functions of a packet's numbers that user space and the kernel program must compute alike.
use crate::{Addr, FlowKey, VipKey};

/// 32-bit hash of a flow, the same on every host: the basis of "any host gives the same answer".
///
/// Source, destination and ports are mixed side by side (the multiplications of one do not wait for another), and
/// the first step of an IPv4 address is a constant.
#[inline(always)]
pub const fn flow_hash(key: &FlowKey) -> u32 {
    of_parts(key, ports(key))
}

/// The hash that gives a flow its slot: [`flow_hash`], or with `affinity` (see [`crate::Vip::AFFINITY`]) the same for all
/// flows between the two addresses.
#[inline(always)]
pub const fn slot_hash(key: &FlowKey, affinity: bool) -> u32 {
    if affinity { of_parts(key, 0) } else { flow_hash(key) }
}

/// 64-bit hash of a frontend, for `vip_index`. It has a part in common with [`flow_hash`], and is mixed once less: nobody
/// but the operator chooses VIPs.
#[inline(always)]
pub const fn vip_hash(key: &VipKey) -> u64 {
    let port = (key.scope as u64) << 24 | (key.port as u64) << 8 | key.proto as u64;
    let h = destination(&key.addr).wrapping_add(port.wrapping_mul(L));
    let h = (h ^ h >> 31).wrapping_mul(K);
    h ^ h >> 32
}

/// 64 bits that tell flows apart, whatever gives them their slots. [`flow_hash`] is made of them.
#[inline(always)]
pub const fn flow_tag(key: &FlowKey) -> u64 {
    mixed_parts(key, ports(key))
}

#[inline(always)]
const fn of_parts(key: &FlowKey, ports: u64) -> u32 {
    (mixed_parts(key, ports).wrapping_mul(K) >> 32) as u32
}

#[inline(always)]
const fn mixed_parts(key: &FlowKey, ports: u64) -> u64 {
    let source = mix::<32>(mix::<32>(high(&key.src)) ^ low(&key.src));
    mix::<32>(source.wrapping_add(destination(&key.dst)).wrapping_add(ports))
}

#[inline(always)]
const fn ports(key: &FlowKey) -> u64 {
    mix::<27>((key.src_port as u64) << 32 | (key.dst_port as u64) << 8 | key.proto as u64)
}

#[inline(always)]
const fn destination(addr: &Addr) -> u64 {
    mix::<29>(mix::<29>(high(addr)) ^ low(addr))
}

/// Odd, and its bits have no pattern: 2^64 divided by the golden ratio.
const K: u64 = 0x9e37_79b9_7f4a_7c15;
/// Likewise: the first multiplier of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
const L: u64 = 0xbf58_476d_1ce4_e5b9;

/// The shift is another one for each part, lest differences in two parts cancel out.
#[inline(always)]
const fn mix<const SHIFT: u32>(word: u64) -> u64 {
    let product = (word ^ K).wrapping_mul(K);
    product ^ product >> SHIFT
}

#[inline(always)]
const fn high(addr: &Addr) -> u64 {
    (addr.0[0] as u64) << 32 | addr.0[1] as u64
}

#[inline(always)]
const fn low(addr: &Addr) -> u64 {
    (addr.0[2] as u64) << 32 | addr.0[3] as u64
}

/// The slot, 0 to `size - 1`, of a flow hash: a multiplication in place of a division.
#[inline(always)]
pub const fn slot_of(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{net::IpAddr, string::String, vec};

    fn key(src: &str, dst: &str, src_port: u16) -> FlowKey {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        FlowKey {
            src: addr(src),
            dst: addr(dst),
            src_port: src_port.to_be(),
            dst_port: 80_u16.to_be(),
            proto: 6,
            scope: 0,
            zero: [0; 2],
        }
    }

    /// Pearson's chi-squared over 64 slots; 63 degrees of freedom: above 120 has a chance of about 1 in 60000.
    fn chi_squared(keys: impl Iterator<Item = FlowKey>) -> f64 {
        let mut slots = vec![0_u32; 64];
        let mut total = 0.0;
        for key in keys {
            slots[slot_of(flow_hash(&key), 64) as usize] += 1;
            total += 1.0;
        }
        let expected = total / 64.0;
        slots.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn neighbouring_flows_are_spread_evenly() {
        let v4 = |i: u32| std::format!("10.{}.{}.{}", i >> 16 & 255, i >> 8 & 255, i & 255);
        let v6 = |i: u32| std::format!("2001:db8:{:x}::{:x}", i >> 8, i & 255);
        let families = [(v4 as fn(u32) -> String, "203.0.113.1"), (v6, "2001:db8::1")];
        for (source, vip) in families {
            let ports = chi_squared((0..60_000).map(|i| key(&source(7), vip, i as u16)));
            let sources = chi_squared((0..60_000).map(|i| key(&source(i), vip, 40_000)));
            let vips = chi_squared((0..60_000).map(|i| key("10.0.0.1", &source(i), 40_000)));
            assert!(ports < 120.0 && sources < 120.0 && vips < 120.0, "{vip}: {ports} {sources} {vips}");
        }
    }

    #[test]
    fn every_field_counts() {
        let base = key("10.0.0.1", "203.0.113.1", 1);
        let mut hashes = vec![flow_hash(&base)];
        for word in 0..4 {
            for bit in 0..32 {
                let (mut src, mut dst) = (base, base);
                src.src.0[word] ^= 1 << bit;
                dst.dst.0[word] ^= 1 << bit;
                hashes.extend([flow_hash(&src), flow_hash(&dst)]);
            }
        }
        for bit in 0..16 {
            let (mut src, mut dst) = (base, base);
            src.src_port ^= 1 << bit;
            dst.dst_port ^= 1 << bit;
            hashes.extend([flow_hash(&src), flow_hash(&dst)]);
        }
        hashes.push(flow_hash(&FlowKey { proto: 17, ..base }));
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    #[test]
    fn affinity_has_no_ports() {
        let base = key("10.0.0.1", "203.0.113.1", 1);
        let other = FlowKey { src_port: 9, dst_port: 10, proto: 17, ..base };
        assert_eq!(slot_hash(&base, true), slot_hash(&other, true));
        assert_ne!(slot_hash(&base, true), slot_hash(&FlowKey { src: base.dst, ..base }, true));
        assert_eq!(slot_hash(&base, false), flow_hash(&base));
    }

    #[test]
    fn frontends_are_spread_over_their_index() {
        let frontend = |addr: &str, port: u16, proto| {
            let addr = addr.parse::<IpAddr>().unwrap().into();
            vip_hash(&VipKey { addr, port: port.to_be(), proto, scope: 0 })
        };
        let mut places = vec![0_u32; 4096];
        let mut tags = vec![];
        let mut all = |hash: u64| {
            places[hash as usize % 4096] += 1;
            tags.push(hash);
        };
        for low in 0..512 {
            all(frontend(&std::format!("203.0.{}.{}", low >> 8, low & 255), 80, 6));
            all(frontend(&std::format!("2001:db8::{low:x}"), 443, 17));
            all(frontend("203.0.113.1", low, 6));
            all(frontend("203.0.113.1", low, 17));
        }
        // 2048 in 4096 places: eight in one have a chance of about one in a thousand.
        assert!(*places.iter().max().unwrap() < 8, "{:?}", places.iter().max());
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), 2048);
    }

    #[test]
    fn slots_stay_within_the_table() {
        for size in [1, 2, 211, 65_537] {
            assert_eq!(slot_of(0, size), 0);
            assert_eq!(slot_of(u32::MAX, size), size - 1);
        }
    }
}
