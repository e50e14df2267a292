//! The same rules for brokers outside the controller, in their own words.
//!
//! Which topics there are and who may use them comes from `GRANTS` in [`super`] and from [`crate::topics`]; here is only how
//! mosquitto and EMQX are told. Both know a client by the common name of its certificate, and by nothing else.

use super::{CONTROLLER_NAME, GRANTS, Grant, Holder, Use};
use crate::limits::MAX_PACKET_BYTES;

/// The file that mosquitto's `acl_file` names.
#[must_use]
pub fn mosquitto_acl() -> String {
    let lines = |holder, keyword: &str, device: &str| -> String {
        granted_to(holder)
            .flat_map(|grant| {
                let access = match grant.allows {
                    Use::Publish => "write",
                    Use::Subscribe => "read",
                };
                grant.topics(device).map(move |topic| format!("{access} {topic}"))
            })
            .map(|rule| format!("{keyword} {rule}\n"))
            .collect()
    };
    format!(
        "# Made by `muster broker acl --format mosquitto`: what is changed here is lost with the next one.\n\
         # Good only together with the listener of `muster broker acl --format mosquitto-conf`.\n\
         \n\
         user {CONTROLLER_NAME}\n{}\n\
         # %u is the common name of the client's certificate.\n{}",
        lines(Holder::Controller, "topic", "+"),
        lines(Holder::EachDevice, "pattern", "%u"),
    )
}

/// The settings that mosquitto (2.0 or later) needs besides, with places of files to be adapted.
#[must_use]
pub fn mosquitto_conf() -> String {
    format!(
        "# Made by `muster broker acl --format mosquitto-conf`: adapt the paths and the port.\n\
         \n\
         # Rules of access hold for the listener that they follow: another one, added below, opens nothing here.\n\
         per_listener_settings true\n\
         # Nobody may leave messages for those who come later. No rule of an acl_file can say so.\n\
         retain_available false\n\
         # Nothing that a broker remembers is needed: what a device should have is said again when it connects. A device that asks\n\
         # for its session to be kept, which agents never do, keeps it for an hour, and not over a restart.\n\
         persistence false\n\
         persistent_client_expiration 1h\n\
         max_packet_size {MAX_PACKET_BYTES}\n\
         max_inflight_messages 32\n\
         max_queued_messages 1000\n\
         max_queued_bytes {}\n\
         \n\
         listener 8883\n\
         tls_version tlsv1.2\n\
         # cafile: pki/ca.pem in the controller's data folder. certfile, keyfile: for this broker's own name, of that same CA.\n\
         cafile /etc/mosquitto/muster/ca.pem\n\
         certfile /etc/mosquitto/muster/server.pem\n\
         keyfile /etc/mosquitto/muster/server.key\n\
         # From `muster broker crl`. SIGHUP has a new one read, for connections made from then on; a restart ends those there are.\n\
         # Once it is out of date, nobody gets in.\n\
         crlfile /etc/mosquitto/muster/crl.pem\n\
         require_certificate true\n\
         allow_anonymous false\n\
         # Clients are who their certificates say, and have no other client id: one cannot push another off.\n\
         use_identity_as_username true\n\
         use_username_as_clientid true\n\
         # From `muster broker acl --format mosquitto`.\n\
         acl_file /etc/mosquitto/muster/acl\n",
        16 * MAX_PACKET_BYTES,
    )
}

/// EMQX's `acl.conf` (5.1 or later).
#[must_use]
pub fn emqx_acl() -> String {
    let rules = |holder, who: &str, device: &str| -> String {
        granted_to(holder)
            .map(|grant| {
                let (action, topics) = match grant.allows {
                    // The wish to have a message retained is part of the action.
                    Use::Publish => ("{publish, [{retain, false}]}", grant.topics(device).collect()),
                    // What is asked for is held against this level by level, wildcards as any other text.
                    Use::Subscribe => ("subscribe", vec![grant.topic(device, "+")]),
                };
                let topics: Vec<String> = topics.iter().map(|topic| format!("    \"{topic}\"")).collect();
                format!("{{allow, {who}, {action}, [\n{}\n]}}.\n", topics.join(",\n"))
            })
            .collect()
    };
    format!(
        "%% Made by `muster broker acl --format emqx`: what is changed here is lost with the next one.\n\
         %% Good only where certificates name the clients, in emqx.conf:\n\
         %%   listeners.ssl.default.ssl_options {{ verify = verify_peer, fail_if_no_peer_cert = true }}\n\
         %%   mqtt {{ peer_cert_as_username = cn, peer_cert_as_clientid = cn, retain_available = false, shared_subscription = false }}\n\
         %%   authorization {{ no_match = deny }}, with this file as its one source\n\
         \n{}\n{}\n{{deny, all}}.\n",
        rules(Holder::Controller, &format!("{{username, \"{CONTROLLER_NAME}\"}}"), "+"),
        rules(Holder::EachDevice, "all", "${username}"),
    )
}

fn granted_to(holder: Holder) -> impl Iterator<Item = Grant> {
    GRANTS.into_iter().filter(move |grant| grant.holder == holder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::{Action, Identity, authorize};

    /// What mosquitto makes of the rules, for a client `name` that wants to write or read `topic`.
    fn mosquitto_allows(name: &str, access: &str, topic: &str) -> bool {
        let mut user = "";
        mosquitto_acl().lines().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["user", who] => {
                    user = who;
                    false
                }
                ["topic", how, filter] => user == name && how == access && matches(filter, topic),
                ["pattern", how, filter] => how == access && matches(&filter.replace("%u", name), topic),
                _ => false,
            }
        })
    }

    fn matches(filter: &str, topic: &str) -> bool {
        let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
        filter.len() == topic.len() && filter.iter().zip(&topic).all(|(f, t)| *f == "+" || f == t)
    }

    #[test]
    fn the_rules_printed_say_what_the_function_says() {
        for name in ["dev1", "dev10", CONTROLLER_NAME] {
            let identity = Identity::named(name).unwrap();
            for device in ["dev1", "dev10"] {
                for grant in GRANTS {
                    for topic in grant.topics(device).chain([grant.topic(device, "unknown"), grant.topic(device, "")]) {
                        for (access, action) in [("write", Action::Publish), ("read", Action::Subscribe)] {
                            let printed = mosquitto_allows(name, access, &topic);
                            assert_eq!(printed, authorize(&identity, action, &topic), "{name} {access} {topic}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn each_form_is_as_it_was() {
        let acl = mosquitto_acl();
        for line in [
            "user Muster-Controller",
            "topic write muster/v1/d/+/down/assignment",
            "topic read muster/v1/d/+/up/chunk-request",
            "pattern write muster/v1/d/%u/up/state",
            "pattern read muster/v1/d/%u/down/root",
            "topic write muster/v1/d/+/down/samples",
            "pattern read muster/v1/d/%u/down/samples",
        ] {
            assert!(acl.lines().any(|there| there == line), "{line} in\n{acl}");
        }
        assert_eq!(acl.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count(), 29, "{acl}");
        let emqx = emqx_acl();
        for part in [
            "{allow, {username, \"Muster-Controller\"}, subscribe, [\n    \"muster/v1/d/+/up/+\"\n]}.\n",
            "{allow, all, subscribe, [\n    \"muster/v1/d/${username}/down/+\"\n]}.\n",
            "{allow, all, {publish, [{retain, false}]}, [\n    \"muster/v1/d/${username}/up/state\",\n",
        ] {
            assert!(emqx.contains(part), "{part} in\n{emqx}");
        }
        assert!(emqx.ends_with("\n{deny, all}.\n"), "{emqx}");
        assert!(mosquitto_conf().contains("\nmax_packet_size 1048576\n"), "{}", mosquitto_conf());
    }
}
