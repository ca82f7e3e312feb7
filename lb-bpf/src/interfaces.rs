//! Which interfaces packets are taken from.
use nix::net::if_::if_nameindex;

/// The interfaces that packets are taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interfaces {
    /// Those whose packets are balanced, and those of this host that leave through them.
    pub(crate) balanced: Vec<String>,
    /// Those of pods and the like: TC takes what comes in. A name, or with a `*` at its end the begin of names: of those
    /// that there are and those that come later.
    pub(crate) tc: Vec<String>,
}

impl Interfaces {
    /// The names in `tc`, without those that are balanced anyway.
    pub(crate) fn named(&self) -> impl Iterator<Item = &String> {
        self.tc.iter().filter(|name| !name.ends_with('*') && !self.balanced.contains(name))
    }

    /// Whether an interface is one of those that come and go: `tc` does not name it, but how its name begins.
    pub(crate) fn follows(&self, name: &str) -> bool {
        let is_named = |names: &[String]| names.iter().any(|other| other == name);
        let begins =
            |pattern: &String| pattern.strip_suffix('*').is_some_and(|begin| name.starts_with(begin));
        self.tc.iter().any(begins) && !is_named(&self.balanced) && !is_named(&self.tc)
    }

    /// Those that come and go, as far as they are there now.
    pub(crate) fn present(&self) -> Vec<String> {
        let all = if_nameindex().map_or_else(
            |error| {
                tracing::warn!(%error, "cannot list the interfaces");
                Vec::new()
            },
            |all| all.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect(),
        );
        all.into_iter().filter(|name| self.follows(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_not_followed() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let interfaces =
            Interfaces { balanced: names(&["eth0", "podx"]), tc: names(&["pod*", "pod7", "eth0"]) };
        let followed = |name: &&str| interfaces.follows(name);
        assert_eq!(
            ["pod1", "pod7", "podx", "pod", "eth0", "po"]
                .iter()
                .copied()
                .filter(|n| followed(n))
                .collect::<Vec<_>>(),
            ["pod1", "pod"]
        );
        assert_eq!(interfaces.named().collect::<Vec<_>>(), ["pod7"]);
    }
}
