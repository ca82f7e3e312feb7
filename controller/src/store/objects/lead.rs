//! Whether this process leads. Who elects it says until when it does for sure.
//!
//! Who is elected lists everything anew first: the one before may have written what our watches have not told yet. Only
//! then does [`Store::leader`](crate::store::Store::leader) say so.
use super::{Shared, lock};
use crate::trouble::{Trouble, jittered};
use nix::time::{ClockId, clock_gettime};
use std::{fmt::Display, mem, time::Duration};
use tokio::time::sleep;

/// Time from one turn of who stands for the lead to the next.
const RETRY: Duration = Duration::from_secs(2);

/// What is known of our lead.
#[derive(Debug, Default)]
pub(super) struct Lead {
    until: Option<Duration>,
    /// Elected; everything is being listed anew, or was.
    is_elected: bool,
}

impl Lead {
    fn left(&self) -> Option<Duration> {
        self.until?.checked_sub(now()).filter(|left| !left.is_zero())
    }
}

impl Shared {
    /// How long we lead for sure; none: we do not.
    pub(in crate::store) fn leads_for(&self) -> Option<Duration> {
        lock(&self.lead).left()
    }

    /// Takes in that we are elected until then, by [`now`]; none: we are not, or no more.
    pub(in crate::store) fn elected_until(&self, until: Option<Duration>) {
        let is_new = {
            let mut lead = lock(&self.lead);
            lead.until = until;
            lead.left().is_some() && !mem::replace(&mut lead.is_elected, true)
        };
        if is_new {
            tracing::info!("elected; everything is listed anew");
            lock(&self.assembly).keep_orphans(true);
            self.begin_epoch();
        }
        self.lose_if_late();
    }

    /// Waits after a turn, in which the lease was read and written, until the next one is due.
    pub(in crate::store) async fn rest(&self, turn: Result<(), impl Display>, trouble: &mut Trouble) {
        match turn {
            Ok(()) => trouble.over("the lease of the lead is read and written again"),
            Err(error) => {
                trouble.again(RETRY, RETRY);
                trouble.say("the lease of the lead could not be read or written; it is tried again", &error);
            }
        }
        // What was not renewed in time is lost, whatever anybody says meanwhile.
        let (left, retry) = (self.leads_for(), jittered(RETRY));
        sleep(left.map_or(retry, |left| left.min(retry))).await;
        self.lose_if_late();
    }

    /// Leads no more when the time is over.
    fn lose_if_late(&self) {
        let is_lost = {
            let mut lead = lock(&self.lead);
            lead.left().is_none() && mem::take(&mut lead.is_elected)
        };
        if is_lost {
            self.say(false);
            lock(&self.assembly).keep_orphans(false);
        }
    }

    /// Everything is listed: if we are elected, we lead.
    pub(super) fn lead_if_elected(&self) {
        let leads = {
            let lead = lock(&self.lead);
            lead.is_elected && lead.left().is_some()
        };
        if leads {
            self.say(true);
        }
    }

    fn say(&self, leads: bool) {
        self.metrics.lead(leads);
        let said = self.leader.send_if_modified(|before| mem::replace(before, leads) != leads);
        if said {
            tracing::info!(leads, "lead");
        }
    }
}

/// A clock that goes on while the machine sleeps, unlike [`std::time::Instant`]: who wakes up must not believe that it
/// still leads.
pub(in crate::store) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
