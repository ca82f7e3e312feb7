//! What `fairlead import` makes of others' objects, an API server takes as it is.
use controller::import::{Origin, import};
use lab::control_plane::ControlPlane;
use std::{collections::BTreeMap, fs, path::Path};

#[test]
fn what_is_imported_is_taken() {
    let plane = ControlPlane::start().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    plane.kubectl(&["create", "-f", root.join("crds").to_str().unwrap()]).unwrap();
    plane.kubectl(&["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"]).unwrap();
    for (origin, name) in [(Origin::MetalLB, "metallb"), (Origin::Cilium, "cilium")] {
        let path = root.join(format!("controller/src/import/testdata/{name}.yaml"));
        let text = fs::read_to_string(&path).unwrap();
        let imported = import(origin, &BTreeMap::from([(path, text)])).unwrap();
        assert_eq!(imported.left_out, [""; 0]);
        let objects = imported.yaml.matches("\nkind: ").count();
        let taken = ["apply", "--server-side", "--validate=strict", "-f", "-"];
        let said = plane.kubectl_with(&taken, &imported.yaml).unwrap();
        assert_eq!(
            said.lines().filter(|line| line.ends_with(" serverside-applied")).count(),
            objects,
            "{said}"
        );
        plane.kubectl(&["delete", "addresspools,bgprouters,bgppeers,bgpadvertisements", "--all"]).unwrap();
    }
}
