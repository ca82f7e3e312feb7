//! A peer in the file: the fields are those of a BGPPeer.
use super::{AnyCommunity, by_kind, from_text};
use bgp_speaker::{
    InterfaceName, Md5Key,
    config::{
        self, Asn, Bfd, ExportPolicy, Family, ImportFilter, LocalRole, PeerConfig, PeerRange, Role, Timers,
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, de};
use serde_yaml_ng::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::Read,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
};

/// One neighbour, or a range of them.
pub(super) enum Neighbour {
    One(PeerConfig),
    Range(PeerRange),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PeerSpec {
    address: Option<IpAddr>,
    /// Instead of an address: neighbours that come by themselves.
    range: Option<Range>,
    asn: PeerAsn,
    #[serde(default = "bgp_port")]
    port: u16,
    #[serde(default)]
    passive: bool,
    local_address: Option<IpAddr>,
    #[serde(default)]
    timers: TimersSpec,
    #[serde(default = "all_families")]
    families: BTreeSet<Family>,
    ebgp_multihop: Option<Multihop>,
    ttl_security: Option<TtlSecurity>,
    auth: Option<Auth>,
    max_prefixes: Option<u32>,
    #[serde(default = "restart_seconds")]
    max_prefixes_restart_seconds: u32,
    shutdown: Option<String>,
    #[serde(default)]
    import: Import,
    #[serde(default)]
    export: Export,
    bfd: Option<BfdSpec>,
    #[serde(default)]
    add_path: AddPath,
    graceful_restart: Option<GracefulRestart>,
    role: Option<RoleSpec>,
    /// Instead of an address: the neighbour at its other end.
    interface: Option<InterfaceName>,
    // Not supported yet.
    discover: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Range {
    prefix: IpNet,
    limit: u16,
}

fn bgp_port() -> u16 {
    179
}

fn restart_seconds() -> u32 {
    config::MAX_PREFIXES_RESTART_SECONDS
}

fn all_families() -> BTreeSet<Family> {
    Family::ALL.into()
}

/// A number, `external` or `internal`.
enum PeerAsn {
    Number(Asn),
    External,
    Internal,
}

impl<'de> Deserialize<'de> for PeerAsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = PeerAsn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an AS number (1 to 4294967295), `external` or `internal`")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PeerAsn, E> {
                let wrong = || E::invalid_value(de::Unexpected::Unsigned(number), &self);
                u32::try_from(number).map(|asn| PeerAsn::Number(Asn(asn))).map_err(|_| wrong())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PeerAsn, E> {
                match text {
                    "external" => Ok(PeerAsn::External),
                    "internal" => Ok(PeerAsn::Internal),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TimersSpec {
    hold_seconds: u16,
    /// None: a third of the hold time.
    keepalive_seconds: Option<u16>,
    connect_retry_seconds: u16,
}

impl Default for TimersSpec {
    fn default() -> Self {
        let Timers { hold_seconds, connect_retry_seconds, .. } = Timers::default();
        TimersSpec { hold_seconds, keepalive_seconds: None, connect_retry_seconds }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Multihop {
    ttl: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BfdSpec {
    min_tx_millis: u32,
    min_rx_millis: u32,
    multiplier: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TtlSecurity {
    hops: u8,
}

/// The key of the TCP MD5 signature: here, or alone in a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Auth {
    md5_password: Option<Secret>,
    md5_password_file: Option<PathBuf>,
}

impl Auth {
    fn key(self) -> Result<Md5Key, String> {
        let (field, octets) = match (self.md5_password, self.md5_password_file) {
            (Some(Secret(text)), None) => ("md5Password", text.into_bytes()),
            (None, Some(path)) => ("md5PasswordFile", password(&path)?),
            _ => return Err("md5Password: needs exactly one of md5Password and md5PasswordFile".to_owned()),
        };
        Md5Key::new(octets).map_err(|error| format!("{field}: {error}"))
    }
}

/// What a file holds, but for the end of its line.
fn password(path: &Path) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    // More would be too long for a key.
    let read = File::open(path).and_then(|file| file.take(128).read_to_end(&mut octets));
    read.map_err(|error| format!("md5PasswordFile: {}: {error}", path.display()))?;
    if octets.ends_with(b"\n") {
        octets.pop();
    }
    Ok(octets)
}

/// A text that no error shows.
struct Secret(String);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Secret(text)),
            _ => Err(de::Error::custom("want a text: put it in quotes")),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Import {
    accept: Vec<Accept>,
    deny: Vec<Accept>,
    communities: Vec<AnyCommunity>,
    install: bool,
}

impl Import {
    fn filter(deny: Vec<Accept>, communities: Vec<AnyCommunity>) -> ImportFilter {
        let (communities, large_communities) = by_kind(communities);
        ImportFilter { deny: prefixes(deny), communities, large_communities }
    }
}

/// What the peer is told; of a family what is said there counts before what is said for both.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Export {
    learned: bool,
    next_hop_self: Option<bool>,
    graceful_shutdown: Option<bool>,
    prepend: Option<u8>,
    med: Option<u32>,
    local_pref: Option<u32>,
    communities: Option<Vec<AnyCommunity>>,
    ipv4: Changes,
    ipv6: Changes,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Changes {
    next_hop_self: Option<bool>,
    graceful_shutdown: Option<bool>,
    prepend: Option<u8>,
    med: Option<u32>,
    local_pref: Option<u32>,
    communities: Option<Vec<AnyCommunity>>,
}

impl Export {
    fn policies(self) -> BTreeMap<Family, ExportPolicy> {
        let both = Changes {
            next_hop_self: self.next_hop_self,
            graceful_shutdown: self.graceful_shutdown,
            prepend: self.prepend,
            med: self.med,
            local_pref: self.local_pref,
            communities: self.communities,
        };
        [(Family::Ipv4Unicast, self.ipv4), (Family::Ipv6Unicast, self.ipv6)]
            .map(|(family, own)| (family, own.or(both.clone()).policy()))
            .into()
    }
}

impl Changes {
    fn or(self, other: Changes) -> Changes {
        Changes {
            next_hop_self: self.next_hop_self.or(other.next_hop_self),
            graceful_shutdown: self.graceful_shutdown.or(other.graceful_shutdown),
            prepend: self.prepend.or(other.prepend),
            med: self.med.or(other.med),
            local_pref: self.local_pref.or(other.local_pref),
            communities: self.communities.or(other.communities),
        }
    }

    fn policy(self) -> ExportPolicy {
        let (communities, large_communities) = by_kind(self.communities.unwrap_or_default());
        ExportPolicy {
            next_hop_self: self.next_hop_self.unwrap_or_default(),
            graceful_shutdown: self.graceful_shutdown.unwrap_or_default(),
            prepend: self.prepend.unwrap_or_default(),
            med: self.med,
            local_pref: self.local_pref,
            communities,
            large_communities,
        }
    }
}

fn prefixes(entries: Vec<Accept>) -> Vec<IpNet> {
    entries.into_iter().flat_map(|Accept(prefixes)| prefixes).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RoleSpec {
    local: Role,
    #[serde(default)]
    strict: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GracefulRestart {
    seconds: u16,
    #[serde(default)]
    long_lived_seconds: u32,
    #[serde(default)]
    ipv4: FamilyRestart,
    #[serde(default)]
    ipv6: FamilyRestart,
}

/// Of one family; what is not said is that of both.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct FamilyRestart {
    long_lived_seconds: Option<u32>,
}

impl GracefulRestart {
    fn long_lived_seconds(self) -> BTreeMap<Family, u32> {
        [(Family::Ipv4Unicast, self.ipv4), (Family::Ipv6Unicast, self.ipv6)]
            .map(|(family, own)| (family, own.long_lived_seconds.unwrap_or(self.long_lived_seconds)))
            .into()
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AddPath {
    send: bool,
    receive: bool,
}

/// `any`, or a prefix that contains what is accepted.
struct Accept(Vec<IpNet>);

impl<'de> Deserialize<'de> for Accept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let any = || vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        match text.as_str() {
            "any" => Ok(Accept(any())),
            text => from_text(text, "a prefix or `any`").map(|prefix| Accept(vec![prefix])),
        }
    }
}

impl PeerSpec {
    /// The error begins with the field.
    pub(super) fn neighbour(mut self, local: Asn) -> Result<Neighbour, String> {
        let Some(Range { prefix, limit }) = self.range.take() else {
            return self.config(local).map(Neighbour::One);
        };
        if self.address.is_some() {
            return Err("range: and address exclude each other".to_owned());
        }
        self.address = Some(prefix.network());
        self.config(local).map(|peer| Neighbour::Range(PeerRange { prefix, limit, peer }))
    }

    fn config(self, local: Asn) -> Result<PeerConfig, String> {
        let unsupported = [("discover", self.discover.is_some())];
        if let Some((field, _)) = unsupported.iter().find(|(_, is_there)| *is_there) {
            return Err(format!("{field}: not supported yet"));
        }
        let timers = Timers {
            hold_seconds: self.timers.hold_seconds,
            // A hold time of a second or two is refused for itself.
            keepalive_seconds: self.timers.keepalive_seconds.unwrap_or((self.timers.hold_seconds / 3).max(1)),
            connect_retry_seconds: self.timers.connect_retry_seconds,
        };
        Ok(PeerConfig {
            address: match (self.address, self.interface) {
                (Some(_), Some(_)) => return Err("interface: and address exclude each other".to_owned()),
                (None, None) => return Err("address: missing".to_owned()),
                (address, _) => address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
            },
            interface: self.interface,
            asn: match self.asn {
                PeerAsn::Number(asn) => config::PeerAsn::Is(asn),
                PeerAsn::Internal => config::PeerAsn::Is(local),
                PeerAsn::External => config::PeerAsn::External,
            },
            port: self.port,
            passive: self.passive,
            local_address: self.local_address,
            timers,
            families: self.families,
            multihop_ttl: self.ebgp_multihop.map(|multihop| multihop.ttl),
            md5: self.auth.map(Auth::key).transpose().map_err(|error| format!("auth.{error}"))?,
            ttl_security_hops: self.ttl_security.map(|security| security.hops),
            max_prefixes: self.max_prefixes,
            max_prefixes_restart_seconds: self.max_prefixes_restart_seconds,
            shutdown: self.shutdown,
            accept: prefixes(self.import.accept),
            import: Import::filter(self.import.deny, self.import.communities),
            install: self.import.install,
            export_learned: self.export.learned,
            export: self.export.policies(),
            graceful_restart: self.graceful_restart.as_ref().map(|restart| restart.seconds),
            long_lived_seconds: self
                .graceful_restart
                .map(GracefulRestart::long_lived_seconds)
                .unwrap_or_default(),
            add_path: config::AddPath { send: self.add_path.send, receive: self.add_path.receive },
            role: self.role.map(|RoleSpec { local, strict }| LocalRole { local, strict }),
            bfd: self.bfd.map(|BfdSpec { min_tx_millis, min_rx_millis, multiplier }| Bfd {
                min_tx_millis,
                min_rx_millis,
                multiplier,
            }),
        })
    }
}
