//! Packets that are lost: between the sites, and between a node and its API server.
use super::{Site, Sites};
use crate::Error;
use controller::demo::netns::Namespace;
use std::process::Command;

/// What is lost between the sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All between the API servers, and between each and the other's controller.
    Planes,
    /// All that the west sends, except what the routers tell each other.
    FromWest,
    /// At random, so many of a hundred packets, whatever they carry: of those that the east sends, and of those that the west sends.
    Part([u8; 2]),
}

impl Sites {
    /// Begins to lose packets.
    pub fn lose(&self, loss: Loss) -> Result<(), Error> {
        let in_west = |lost: &str| lose(&self.sites[1].router.namespace, "forward", lost);
        match loss {
            Loss::Planes => in_west("ip saddr { 10.1.0.9, 10.2.0.9 } ip daddr { 10.1.0.9, 10.2.0.9 }"),
            Loss::FromWest => in_west("oifname wan"),
            // Who receives them loses them: so the sender does not notice.
            Loss::Part(percents) => {
                for (percent, receiver) in percents.into_iter().zip(self.sites.iter().rev()) {
                    let lost = format!("iifname wan numgen random mod 100 < {percent}");
                    if percent > 0 {
                        lose(&receiver.router.namespace, "prerouting", &lost)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Nothing is lost any more between the sites.
    pub fn lose_nothing(&self) -> Result<(), Error> {
        self.sites.iter().try_for_each(|site| lose_nothing(&site.router.namespace))
    }
}

impl Site {
    /// A node loses its API server, and nothing else: what a watch says on a connection that there is would come in still.
    pub fn cut_off(&self, node: usize) -> Result<(), Error> {
        let (namespace, plane) = (&self.nodes[node].host.namespace, format!("10.{}.0.9", self.number + 1));
        lose(namespace, "output", &format!("ip daddr {plane}"))?;
        lose(namespace, "input", &format!("ip saddr {plane}"))
    }

    /// The node has its API server again.
    pub fn reconnect(&self, node: usize) -> Result<(), Error> {
        lose_nothing(&self.nodes[node].host.namespace)
    }
}

/// Begins to lose packets at a hook of a namespace's netfilter.
fn lose(namespace: &Namespace, hook: &str, lost: &str) -> Result<(), Error> {
    nft(
        namespace,
        &format!(
            "add table inet loss
             add chain inet loss {hook} {{ type filter hook {hook} priority 0 ; }}
             add rule inet loss {hook} {lost} drop"
        ),
    )
}

fn lose_nothing(namespace: &Namespace) -> Result<(), Error> {
    // To delete what is not there would be an error.
    nft(namespace, "add table inet loss\ndelete table inet loss")
}

fn nft(namespace: &Namespace, rules: &str) -> Result<(), Error> {
    let mut nft = Command::new("nft");
    nft.arg(rules);
    namespace.output(nft)?;
    Ok(())
}
