//! etcd with users and roles, and with TLS.
use super::process::{Process, apply, balancer, has_address, node_state, options, pool};
use controller::store::{SharedStore, etcd::Options, objects::Role};
use lab::{Error, etcd::Etcd, wait_until};
use serde_json::json;

/// As the README has it: what the keys of a role begin with, and what it may do there.
const CONTROLLER: [(&str, &str); 4] =
    [("objects/", "READ"), ("objects/status/", "READWRITE"), ("nodes/", "READ"), ("leader/", "READWRITE")];
const AGENT: [(&str, &str); 3] =
    [("objects/", "READ"), ("objects/registered/Node/", "READWRITE"), ("nodes/", "READWRITE")];

/// Makes a role of these rights and a user of it, both of this name.
fn grant(etcd: &Etcd, name: &str, rights: &[(&str, &str)]) -> Result<(), Error> {
    etcd.post(0, "/v3/auth/role/add", &json!({"name": name}))?;
    for (folder, right) in rights {
        let key = format!("/fairlead/v1alpha1/{folder}");
        let end = format!("{}0", key.trim_end_matches('/'));
        let permission = json!({"permType": right, "key": base64(&key), "range_end": base64(&end)});
        etcd.post(0, "/v3/auth/role/grant", &json!({"name": name, "perm": permission}))?;
    }
    etcd.post(0, "/v3/auth/user/add", &json!({"name": name, "password": format!("{name}-secret")}))?;
    etcd.post(0, "/v3/auth/user/grant", &json!({"user": name, "role": name})).map(drop)
}

pub(super) fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.as_bytes().chunks(3).flat_map(|chunk| {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(*chunk.get(at).unwrap_or(&0)));
        let digit = move |at: usize| char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]);
        (0..4).map(move |at| if at <= chunk.len() { digit(at) } else { '=' })
    });
    digits.collect()
}

#[test]
fn users_may_do_what_their_roles_say() -> Result<(), Error> {
    let mut etcd = Etcd::start(1)?;
    etcd.post(0, "/v3/auth/user/add", &json!({"name": "root", "password": "root-secret"}))?;
    etcd.post(0, "/v3/auth/user/grant", &json!({"user": "root", "role": "root"})).or_else(|_| {
        etcd.post(0, "/v3/auth/role/add", &json!({"name": "root"}))?;
        etcd.post(0, "/v3/auth/user/grant", &json!({"user": "root", "role": "root"}))
    })?;
    grant(&etcd, "controller", &CONTROLLER)?;
    grant(&etcd, "agent", &AGENT)?;
    etcd.post(0, "/v3/auth/enable", &json!({}))?;
    let user = |etcd: &Etcd, name: &str, password: &str| -> Result<Options, Error> {
        let file = etcd.file(&format!("{name}.password"), &format!("{password}\n"))?;
        Ok(Options { user: Some(name.to_owned()), password_file: Some(file), ..options(etcd) })
    };
    let root = user(&etcd, "root", "root-secret")?;
    let objects = [pool("192.0.2.0/28"), balancer("web")];
    let refused = |options: &Options| apply(options, &objects, false).unwrap_err().to_string();
    assert!(refused(&options(&etcd)).contains("user name is empty"), "nobody in particular");
    let wrong = user(&etcd, "controller", "wrong")?;
    let said = refused(&wrong);
    assert!(said.contains("invalid user ID or password") && !said.contains("wrong"), "{said}");
    let agent = user(&etcd, "agent", "agent-secret")?;
    assert!(refused(&agent).contains("permission denied"), "an agent declares nothing");
    apply(&root, &objects, false)?;
    let controller =
        Process::start(&user(&etcd, "controller", "controller-secret")?, Role::Controller, "one")?;
    let agent = Process::start(&agent, Role::Agent, "n1")?;
    agent.wait("web has an address", |d| has_address(d, "web"))?;
    // The second time the lease is renewed.
    for now in [1, 31] {
        agent.block_on(agent.store.publish_node(&node_state("n1", now), None))?;
    }
    // A member that starts anew knows no tokens.
    etcd.kill(0);
    wait_until("nobody leads", || Ok(!controller.leads()))?;
    // Not `restore`: who asks whether it is ready is nobody in particular.
    etcd.start_again(0)?;
    wait_until("what is declared is taken up", || Ok(apply(&root, &[balancer("second")], false).is_ok()))?;
    agent.wait("the second has an address", |d| has_address(d, "second"))?;
    assert!(!format!("{root:?}").contains("root-secret"));
    Ok(())
}

#[test]
fn who_has_no_certificate_gets_no_answer() -> Result<(), Error> {
    let etcd = Etcd::start_tls()?;
    let (cert, key) = etcd.certificate();
    let trusting = Options { ca: Some(etcd.ca()), ..options(&etcd) };
    let good = Options { cert: Some(cert), key: Some(key), ..trusting.clone() };
    let objects = [pool("192.0.2.0/28"), balancer("web")];
    wait_until("etcd serves", || Ok(apply(&good, &objects, false).is_ok()))?;
    // Sometimes the connection ends before it is heard why.
    wait_until("it is said why", || {
        let said = apply(&trusting, &objects, false).unwrap_err().to_string();
        Ok(said.to_lowercase().contains("certificate"))
    })?;
    let strange = apply(&Options { ca: None, ..good.clone() }, &objects, false).unwrap_err().to_string();
    assert!(strange.to_lowercase().contains("issuer") || strange.contains("certificate"), "{strange}");
    let _controller = Process::start(&good, Role::Controller, "one")?;
    let agent = Process::start(&good, Role::Agent, "n1")?;
    agent.wait("web has an address", |d| has_address(d, "web"))?;
    Ok(())
}
