//! Stands for the lead: reads and writes the Lease as [`lease`](super::lease) says, for ever.
use super::{
    Cluster,
    lease::{Action, Candidate, DURATION, Record},
    lock, now,
};
use crate::{store::objects::REQUEST, trouble::Trouble};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::timeout;

/// Name of the Lease.
const NAME: &str = "fairlead-controller";

/// One that stands. Clones are one.
#[derive(Clone)]
pub(super) struct Standing {
    cluster: Cluster,
    api: Api<Lease>,
    state: Arc<Mutex<State>>,
}

struct State {
    candidate: Candidate,
    has_resigned: bool,
}

impl Standing {
    pub(super) fn new(cluster: Cluster, identity: &str) -> Self {
        let api = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let state = State { candidate: Candidate::new(identity), has_resigned: false };
        Standing { cluster, api, state: Arc::new(Mutex::new(state)) }
    }

    /// Reads the Lease again and again.
    pub(super) async fn stand(self) {
        let mut trouble = Trouble::default();
        while !self.has_resigned() {
            let turn = self.turn().await;
            self.cluster.shared.rest(turn, &mut trouble).await;
        }
    }

    /// Reads the Lease once, and writes it if it is ours or free.
    async fn turn(&self) -> Result<(), kube::Error> {
        let lease = in_time(self.api.get_opt(NAME)).await?;
        let sent = now();
        let known = lease.as_ref().map(record);
        let action = self.tell(|candidate| candidate.read(known, sent));
        let is_new = action == Action::Create;
        let lease = match action {
            Action::Wait => return Ok(()),
            Action::Create => Lease {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                ..Lease::default()
            },
            Action::Take(_) | Action::Renew(_) => lease.unwrap_or_default(),
        };
        let lease = self.written(lease);
        let parameters = PostParams::default();
        let written = match is_new {
            true => in_time(self.api.create(&parameters, &lease)).await,
            false => in_time(self.api.replace(NAME, &parameters, &lease)).await,
        };
        match written {
            Ok(lease) => {
                self.tell(|candidate| candidate.wrote(record(&lease), sent));
                Ok(())
            }
            // Another one was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease back. Nothing is published afterwards.
    pub(super) async fn resign(&self) {
        lock(&self.state).has_resigned = true;
        if self.tell(|candidate| candidate.resign(now())).is_none() {
            return;
        }
        let release = async {
            let mut lease = self.api.get(NAME).await?;
            let own = self.identity();
            if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity == Some(own)) {
                spec.holder_identity = None;
                self.api.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok(())
        };
        if let Err(error) = in_time(release).await {
            tracing::warn!(%error, "the Lease could not be given back; others wait for its end");
        }
    }

    /// Tells the candidate something, and everybody whether it leads now.
    fn tell<T>(&self, what: impl FnOnce(&mut Candidate) -> T) -> T {
        let candidate = &mut lock(&self.state).candidate;
        let said = what(candidate);
        self.cluster.shared.elected_until(candidate.leads_until(now()));
        said
    }

    fn has_resigned(&self) -> bool {
        lock(&self.state).has_resigned
    }

    fn identity(&self) -> String {
        lock(&self.state).candidate.identity().to_owned()
    }

    /// The Lease as we write it.
    fn written(&self, mut lease: Lease) -> Lease {
        let own = Some(self.identity());
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
