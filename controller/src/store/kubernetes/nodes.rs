//! Follows what agents write: their NodeStates.
use super::{
    Cluster, lock,
    watching::{PAGE, WATCH_SECONDS, pauses},
};
use crate::{
    api::{Kind, NodeState},
    store::objects::now,
    trouble::Trouble,
};
use futures::TryStreamExt;
use kube::{
    Api, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use std::{collections::BTreeSet, pin::pin, time::Duration};

/// Follows the NodeStates for ever.
pub(super) async fn follow(cluster: Cluster) {
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let mut events = pin!(watcher(Api::<NodeState>::all(cluster.client), config).backoff(pauses()));
    let mut listed = BTreeSet::new();
    let mut trouble = Trouble::default();
    loop {
        let event = events.try_next().await;
        let now = now();
        let mut nodes = lock(&cluster.shared.nodes);
        match event {
            Ok(Some(event)) => {
                if !matches!(event, Event::Init) {
                    trouble.over("NodeState: watched again");
                    cluster.shared.metrics.watches(Kind::NodeState);
                }
                match event {
                    Event::Init => listed.clear(),
                    Event::InitApply(state) => {
                        listed.insert(state.name_any());
                        nodes.word(&state.name_any(), state.status.unwrap_or_default(), true, now);
                    }
                    Event::InitDone => nodes.listed(&listed, now),
                    Event::Apply(state) => {
                        nodes.word(&state.name_any(), state.status.unwrap_or_default(), false, now);
                    }
                    Event::Delete(state) => nodes.gone(&state.name_any()),
                }
            }
            // It ends never.
            Ok(None) => return,
            Err(error) => {
                nodes.disturbed(now);
                cluster.shared.metrics.watch_failed(Kind::NodeState);
                trouble.again(Duration::ZERO, Duration::ZERO);
                trouble.say("NodeState: watching failed; what was known of nodes stays", &error);
            }
        }
    }
}
