//! Nodes that go: what they had rests, and then is another one's.
use super::store::{Process, apply, get, plane};
use controller::store::kubernetes::Role;
use lab::{Error, control_plane::ControlPlane, wait_until};
use serde_json::{Value, json};

/// The first block of a node.
fn block(plane: &ControlPlane, name: &str) -> Result<Value, Error> {
    let nodes = get(plane, "nodes")?;
    let node = nodes.into_iter().find(|node| node["metadata"]["name"] == name);
    Ok(node.map_or(Value::Null, |node| node["spec"]["podCIDRs"][0].clone()))
}

#[test]
fn the_blocks_of_a_node_that_was_deleted_rest() -> Result<(), Error> {
    let plane = plane()?;
    let pool = |delay: u32| {
        format!(
            "apiVersion: fairlead.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: pods}}\nspec: {{use: PodCIDR, \
             blocks: [{{cidr: 10.244.0.0/22}}], nodeMask: {{ipv4: 24}}, reuseDelaySeconds: {delay}}}\n"
        )
    };
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    apply(&plane, &[pool(3600), node("n1"), node("n2")])?;
    let _controller = Process::start(&plane.kubeconfig(), Role::Controller, "one", None)?;
    wait_until("both have a block", || {
        Ok(!block(&plane, "n1")?.is_null() && !block(&plane, "n2")?.is_null())
    })?;
    let (first, second) = (block(&plane, "n1")?, block(&plane, "n2")?);
    plane.kubectl(&["delete", "node", "n1"])?;
    wait_until("the block of the first rests", || {
        let status = get(&plane, "addresspools")?[0]["status"].clone();
        let rests = &status["releasedBlocks"][0];
        Ok(rests["cidr"] == first && rests["owner"] == "n1" && status["ipv4"]["assigned"] == json!(1))
    })?;
    apply(&plane, &[node("n3")])?;
    wait_until("the third has one", || Ok(!block(&plane, "n3")?.is_null()))?;
    assert!(![&first, &second].contains(&&block(&plane, "n3")?));
    // Without a delay it is free.
    apply(&plane, &[pool(0), node("n4")])?;
    wait_until("the fourth has it", || Ok(block(&plane, "n4")? == first))
}
