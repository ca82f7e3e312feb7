//! Facts about the machine: its name, its clock, its addresses, and the interface of its default route.
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv6Addr},
    time::{SystemTime, UNIX_EPOCH},
};

/// The host name that the kernel has.
pub fn name() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}

/// Seconds since the epoch; 0 while the clock says that it is before.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Addresses of all interfaces that are up, but for loopback's own and link-local ones. Addresses that were put on
/// the loopback interface (VIPs of a backend) are among them.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let up = getifaddrs()?.filter(|i| i.flags.contains(InterfaceFlags::IFF_UP));
    let addresses = up.filter_map(|i| {
        let address = i.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    Ok(addresses.filter(|a| !is_local_only(*a)).collect())
}

/// Addresses of these interfaces that others can reach, interface by interface, in the order that the kernel has them.
pub fn addresses_of(interfaces: &[String]) -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<_> = getifaddrs()?
        .filter_map(|own| {
            let place = interfaces.iter().position(|name| *name == own.interface_name)?;
            let address = own.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            Some((place, v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))?))
        })
        .filter(|(_, address)| !is_local_only(*address))
        .collect();
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, address)| address).collect())
}

/// Interface of the default route with the lowest metric, IPv4 before IPv6; none: there is no such route.
pub fn default_interface() -> io::Result<Option<String>> {
    // IPv6 may be switched off: its file is not there then.
    let v6 = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    let v4 = fs::read_to_string("/proc/thread-self/net/route")?;
    Ok(default_ipv4(&v4).or_else(|| default_ipv6(&v6)).map(str::to_owned))
}

/// Next hop of the default route with the lowest metric, IPv4 before IPv6; none: there is none, or it is link-local.
pub fn default_gateway() -> io::Result<Option<IpAddr>> {
    let v6 = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    let v4 = fs::read_to_string("/proc/thread-self/net/route")?;
    Ok(gateway_ipv4(&v4).or_else(|| gateway_ipv6(&v6)).filter(|gateway| !is_local_only(*gateway)))
}

fn is_local_only(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6 == Ipv6Addr::LOCALHOST || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// Columns of `route`: interface, destination, gateway, flags, reference count, use, metric, mask … (proc_net(5)).
fn default_ipv4(table: &str) -> Option<&str> {
    default_row_ipv4(table).map(|row| row[0])
}

fn gateway_ipv4(table: &str) -> Option<IpAddr> {
    // In the byte order of the machine.
    let gateway = u32::from_str_radix(default_row_ipv4(table)?[2], 16).ok()?;
    Some(IpAddr::from(gateway.to_ne_bytes()))
}

fn default_row_ipv4(table: &str) -> Option<Vec<&str>> {
    let rows = table.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    let defaults = rows.filter(|r| r.len() >= 8 && r[1] == "00000000" && r[7] == "00000000");
    defaults.min_by_key(|r| r[6].parse::<u64>().unwrap_or(u64::MAX))
}

/// Columns of `ipv6_route`: destination, its length, source, its length, next hop, metric (hex), reference count,
/// use, flags (hex), interface.
fn default_ipv6(table: &str) -> Option<&str> {
    default_row_ipv6(table).map(|row| row[9])
}

fn gateway_ipv6(table: &str) -> Option<IpAddr> {
    let gateway = u128::from_str_radix(default_row_ipv6(table)?[4], 16).ok()?;
    Some(IpAddr::from(gateway.to_be_bytes()))
}

fn default_row_ipv6(table: &str) -> Option<Vec<&str>> {
    /// `RTF_REJECT` of linux/route.h: the unreachable route that every namespace has.
    const REJECT: u64 = 0x0200;
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or(u64::MAX);
    let rows = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let defaults = rows.filter(|r| r.len() >= 10 && r[1] == "00" && r[9] != "lo" && hex(r[8]) & REJECT == 0);
    defaults.min_by_key(|r| hex(r[5]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                     eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_ipv4(table), Some("eth0"));
        assert_eq!(gateway_ipv4(table), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(gateway_ipv4(""), None);
        assert_eq!(default_ipv4("Iface\tDestination\n"), None);
        assert_eq!(default_ipv4(""), None);
    }

    #[test]
    fn the_ipv6_default_route_is_not_the_reject_route() {
        let zero = "0".repeat(32);
        let table = format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             {zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000005 00000000 00450003     eth0\n"
        );
        assert_eq!(default_ipv6(&table), Some("eth0"));
        assert_eq!(gateway_ipv6(&table), "fe80::1".parse().ok());
        assert_eq!(default_ipv6("garbage\n"), None);
    }

    #[test]
    fn addresses_of_loopback_and_the_link_are_nobody_elses() {
        let local = ["127.0.0.1", "169.254.1.1", "::1", "fe80::1", "0.0.0.0"];
        assert!(local.iter().all(|a| is_local_only(a.parse().unwrap())));
        let global = ["10.0.0.1", "2001:db8::1", "fd00::1"];
        assert!(global.iter().all(|a| !is_local_only(a.parse().unwrap())));
        assert!(addresses().unwrap().iter().all(|a| !is_local_only(*a)));
    }
}
