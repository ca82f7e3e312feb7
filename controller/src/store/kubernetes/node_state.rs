//! Writes the NodeState of a node: who asks the API server sees how each node is.
use crate::{
    api::{API_VERSION, NodeState, NodeStateSpec},
    store::{StoreError, objects::REQUEST},
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::timeout;

/// Who owns the fields.
const MANAGER: &str = "fairlead-agent";

/// Writes the status; makes the object first if it is not there. It goes with its Node (`ownerReferences`), if the cluster has
/// one of its name.
pub(super) async fn publish(
    client: &Client,
    state: &NodeState,
    node: Option<&Node>,
) -> Result<(), StoreError> {
    let api: Api<NodeState> = Api::all(client.clone());
    let name = state.name_any();
    let failed = |source| StoreError::Api { object: format!("NodeState/{name}"), source: Box::new(source) };
    let body = json!({
        "apiVersion": API_VERSION,
        "kind": "NodeState",
        "metadata": {"name": name},
        "status": state.status,
    });
    let parameters = PatchParams::apply(MANAGER).force();
    let status = Patch::Apply(&body);
    let write = async {
        match api.patch_status(&name, &parameters, &status).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                let mut empty = NodeState::new(&name, NodeStateSpec {});
                empty.metadata.owner_references =
                    node.and_then(|node| node.owner_ref(&())).map(|own| vec![own]);
                api.create(&PostParams::default(), &empty).await?;
                api.patch_status(&name, &parameters, &status).await
            }
            done => done,
        }
    };
    let late = |late: tokio::time::error::Elapsed| failed(kube::Error::Service(late.into()));
    timeout(REQUEST, write).await.map_err(late)?.map_err(failed).map(drop)
}
