//! Stands for the lead: reads and writes the Lease as [`lease`](super::lease) says, for ever.
//!
//! Who is elected lists everything anew first: the one before may have written what our watches have not told yet. Only
//! then does [`Store::leader`](super::Store::leader) say so.
use super::{
    Shared,
    lease::{Action, Candidate, DURATION, REQUEST, RETRY, Record},
    lock,
};
use crate::trouble::{Trouble, jittered};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use nix::time::{ClockId, clock_gettime};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

/// Name of the Lease.
const NAME: &str = "fairlead-controller";

/// What is known of our lead.
#[derive(Debug, Default)]
pub(super) struct Leadership {
    candidate: Option<Candidate>,
    /// Elected; everything is being listed anew, or was.
    is_elected: bool,
    has_resigned: bool,
}

/// Reads the Lease again and again.
pub(super) async fn stand(client: Client, identity: String, shared: Arc<Shared>) {
    lock(&shared.leadership).candidate = Some(Candidate::new(identity));
    let api: Api<Lease> = Api::namespaced(client, &shared.namespace);
    let mut trouble = Trouble::default();
    loop {
        if lock(&shared.leadership).has_resigned {
            return;
        }
        match turn(&api, &shared).await {
            Ok(()) => trouble.over("the Lease is read and written again"),
            Err(error) => {
                trouble.again(RETRY, RETRY);
                trouble.say("the Lease could not be read or written; it is tried again", &error);
            }
        }
        // What was not renewed in time is lost, whatever the API server says meanwhile.
        let (left, retry) = (shared.leads_for(), jittered(RETRY));
        sleep(left.map_or(retry, |left| left.min(retry))).await;
        shared.lose_if_late();
    }
}

/// Reads the Lease once, and writes it if it is ours or free.
async fn turn(api: &Api<Lease>, shared: &Shared) -> Result<(), kube::Error> {
    let lease = in_time(api.get_opt(NAME)).await?;
    let sent = now();
    let known = lease.as_ref().map(record);
    let action = {
        let mut leadership = lock(&shared.leadership);
        leadership.candidate.as_mut().map_or(Action::Wait, |candidate| candidate.read(known, sent))
    };
    shared.lose_if_late();
    let is_new = action == Action::Create;
    let lease = match action {
        Action::Wait => return Ok(()),
        Action::Create => Lease {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            ..Lease::default()
        },
        Action::Take(_) | Action::Renew(_) => lease.unwrap_or_default(),
    };
    let lease = shared.written(lease);
    let parameters = PostParams::default();
    let written = match is_new {
        true => in_time(api.create(&parameters, &lease)).await,
        false => in_time(api.replace(NAME, &parameters, &lease)).await,
    };
    match written {
        Ok(lease) => {
            shared.elected(record(&lease), sent);
            Ok(())
        }
        // Another one was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives the Lease back.
pub(super) async fn resign(client: &Client, shared: &Shared) {
    let has_it = {
        let mut leadership = lock(&shared.leadership);
        leadership.has_resigned = true;
        leadership.candidate.as_mut().and_then(|candidate| candidate.resign(now())).is_some()
    };
    shared.lose_if_late();
    if !has_it {
        return;
    }
    let api: Api<Lease> = Api::namespaced(client.clone(), &shared.namespace);
    let release = async {
        let mut lease = api.get(NAME).await?;
        let own = lock(&shared.leadership).candidate.as_ref().map(|c| c.identity().to_owned());
        if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity == own) {
            spec.holder_identity = None;
            api.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok(())
    };
    if let Err(error) = in_time(release).await {
        tracing::warn!(%error, "the Lease could not be given back; others wait for its end");
    }
}

impl Shared {
    /// How long we lead for sure; none: we do not.
    pub(super) fn leads_for(&self) -> Option<Duration> {
        let now = now();
        let leadership = lock(&self.leadership);
        leadership.candidate.as_ref()?.leads_until(now).map(|until| until.saturating_sub(now))
    }

    /// Everything is listed: if we are elected, we lead.
    pub(super) fn lead_if_elected(&self) {
        if lock(&self.leadership).is_elected && self.leads_for().is_some() {
            self.say(true);
        }
    }

    fn elected(&self, record: Record, sent: Duration) {
        let is_new = {
            let mut leadership = lock(&self.leadership);
            let Some(candidate) = &mut leadership.candidate else { return };
            candidate.wrote(record, sent);
            let leads = candidate.leads_until(now()).is_some();
            leads && !std::mem::replace(&mut leadership.is_elected, leads)
        };
        if is_new {
            tracing::info!("elected; everything is listed anew");
            lock(&self.assembly).keep_orphans(true);
            self.begin_epoch();
        }
    }

    /// Leads no more when the time is over.
    fn lose_if_late(&self) {
        if self.leads_for().is_some() {
            return;
        }
        if std::mem::take(&mut lock(&self.leadership).is_elected) {
            self.say(false);
            lock(&self.assembly).keep_orphans(false);
        }
    }

    fn say(&self, leads: bool) {
        self.metrics.lead(leads);
        let said = self.leader.send_if_modified(|before| std::mem::replace(before, leads) != leads);
        if said {
            tracing::info!(leads, "lead");
        }
    }

    /// The Lease as we write it.
    fn written(&self, mut lease: Lease) -> Lease {
        let own = lock(&self.leadership).candidate.as_ref().map(|c| c.identity().to_owned());
        let spec = lease.spec.get_or_insert_default();
        let time = Some(MicroTime(Timestamp::now()));
        if spec.holder_identity != own {
            spec.acquire_time.clone_from(&time);
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.holder_identity = own;
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = time;
        lease
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let LeaseSpec { holder_identity, lease_duration_seconds, .. } = spec;
    let seconds = lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
    Record {
        holder: holder_identity.filter(|holder| !holder.is_empty()),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        duration: Duration::from_secs(seconds),
    }
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match timeout(REQUEST, request).await {
        Ok(done) => done,
        Err(late) => Err(kube::Error::Service(late.into())),
    }
}

/// A clock that goes on while the machine sleeps, unlike [`std::time::Instant`]: who wakes up must not believe that it
/// still leads.
pub(super) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
