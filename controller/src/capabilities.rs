//! What the kernel has to let a node do (capabilities(7)). Root in a container or under systemd has only what it was given, and
//! the error of a system call does not say what is missing: it is looked at before.
use std::{fmt, fs, io};

/// Number, name, and what for. `deploy/kubernetes/agent.yaml` and `deploy/systemd/fairlead.service` give these. CAP_SYS_NICE
/// is not among them: without it BFD runs, and a warning says that it may be late.
const NEEDED: [(u8, &str, &str); 5] = [
    (39, "CAP_BPF", "maps and programs in the kernel"),
    (38, "CAP_PERFMON", "what the verifier lets such programs do"),
    (12, "CAP_NET_ADMIN", "attaching them, routes and addresses, TCP MD5 signatures"),
    (13, "CAP_NET_RAW", "errors about tunnel packets, router advertisements"),
    (10, "CAP_NET_BIND_SERVICE", "port 179"),
];

/// CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, too (linux/capability.h: `bpf_capable`, `perfmon_capable`).
const SYS_ADMIN: u8 = 21;

/// Capabilities that this process lacks: what they are called, and what they are for.
#[derive(Debug)]
pub struct Missing(Vec<&'static (u8, &'static str, &'static str)>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|(_, name, purpose)| format!("{name} ({purpose})")).collect();
        f.write_str(&all.join(", "))
    }
}

/// What this process would need and has not; none: it has all.
///
/// # Errors
/// `/proc` does not say what it has.
pub fn missing() -> io::Result<Option<Missing>> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    effective(&status)
        .map(missing_of)
        .ok_or_else(|| io::Error::other("/proc/thread-self/status has no CapEff"))
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing_of(effective: u64) -> Option<Missing> {
    let has = |number: u8| effective & (1 << number) != 0;
    let is_met = |number: u8| has(number) || (matches!(number, 38 | 39) && has(SYS_ADMIN));
    let lacking: Vec<_> = NEEDED.iter().filter(|(number, ..)| !is_met(*number)).collect();
    (!lacking.is_empty()).then_some(Missing(lacking))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(numbers: &[u8]) -> String {
        let bits = numbers.iter().fold(0, |bits, number| bits | 1 << number);
        missing_of(bits).map_or_else(String::new, |missing| missing.to_string())
    }

    #[test]
    fn what_is_missing_is_named_with_its_purpose() {
        assert_eq!(said(&[10, 12, 13, 38, 39]), "");
        assert_eq!(said(&[10, 12, 13, 21]), "");
        assert_eq!(said(&[10, 12, 13, 38]), "CAP_BPF (maps and programs in the kernel)");
        assert_eq!(said(&[12, 13, 38, 39]), "CAP_NET_BIND_SERVICE (port 179)");
        assert_eq!(said(&[]).matches("CAP_").count(), NEEDED.len());
    }

    #[test]
    fn the_kernel_says_what_a_process_has() {
        assert_eq!(effective("CapPrm:\t1\nCapEff:\t000001fffeffffff\n"), Some(0x1ff_feff_ffff));
        assert_eq!(effective("CapPrm:\t1\n"), None);
        assert!(missing().is_ok());
    }
}
