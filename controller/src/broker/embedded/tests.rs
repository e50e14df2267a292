//! The embedded broker with real clients over mutual TLS.

mod net;

use std::sync::atomic::Ordering;
use std::task::Poll;

use muster_shared::topics::{Down, Up};
use rumqttc::{LastWill as Will, QoS as ClientQoS, Transport};

use super::*;
use crate::broker::BrokerEvent;
use net::{Client, Everybody, Net, Seen, authority, config, device, loopback, server_files, within};

fn said(name: &str, payload: &'static str) -> BrokerEvent {
    BrokerEvent::Message { topic: Topic::up(&device(name), Up::Event), payload: Bytes::from_static(payload.as_bytes()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_speaks_and_hears_on_its_own_topics() {
    let mut net = Net::start().await;
    let mut client = net.join("dev-1").await;
    assert_eq!(net.started.broker.connected(), 1);
    client.say("dev-1", "hello").await;
    assert_eq!(net.event().await, said("dev-1", "hello"));
    net.tell("dev-1", "well done").await;
    assert_eq!(client.message().await, ("muster/v1/d/dev-1/down/ack".to_owned(), Bytes::from_static(b"well done")));
    client.client.disconnect().await.unwrap();
    assert_eq!(net.event().await, BrokerEvent::Disconnected(device("dev-1")));
    assert_eq!(net.started.broker.connected(), 0);
    // Nobody is there to hear it, and that is no fault.
    net.tell("dev-1", "too late").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_publish_reaches_nobody() {
    let mut net = Net::start().await;
    let mut victim = net.join("victim").await;
    let mut mallory = net.join("mallory").await;
    for topic in [
        "muster/v1/d/victim/up/event",
        "muster/v1/d/victim/up/state",
        "muster/v1/d/victim/down/ack",
        "muster/v1/d/mallory/down/ack",
        "muster/v1/d/mallory/up/event/more",
        "muster/v1/d/mallory/up/unknown",
        "$SYS/brokers",
        "anything",
    ] {
        mallory.publish(topic, false, "forged").await;
        let seen = mallory.next().await;
        assert!(matches!(seen, Seen::Published), "{topic}: {seen:?}");
    }
    // Its own topic, but to be retained: nobody who comes later may find it.
    mallory.publish("muster/v1/d/mallory/up/event", true, "forged").await;
    mallory.say("mallory", "genuine").await;
    net.tell("victim", "genuine").await;
    // Order is kept, so what was forged would have come first.
    assert_eq!(net.event().await, said("mallory", "genuine"));
    assert_eq!(victim.message().await.1, Bytes::from_static(b"genuine"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_subscription_is_refused() {
    let mut net = Net::start().await;
    let mut victim = net.join("victim").await;
    let mut mallory = net.join("mallory").await;
    for filter in [
        "muster/v1/d/victim/down/+",
        "muster/v1/d/victim/down/ack",
        "muster/v1/d/+/down/ack",
        "muster/v1/d/victim/up/state",
        "muster/v1/d/mallory/up/state",
        "muster/#",
        "+/v1/d/mallory/down/+",
        "#",
    ] {
        assert_eq!(mallory.subscribe(filter).await, [false], "{filter}");
    }
    net.tell("victim", "secret").await;
    assert_eq!(victim.message().await.1, Bytes::from_static(b"secret"));
    net.tell("mallory", "yours").await;
    assert_eq!(mallory.message().await.1, Bytes::from_static(b"yours"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_and_system_subscriptions_are_refused() {
    let mut net = Net::start().await;
    for filter in ["$share/g/muster/v1/d/mallory/down/+", "$share/g/#", "$share//#", "$SYS/#", "$limit/1/#", "$queue/#"]
    {
        let mut mallory = net.connect_again(|| net.options("mallory")).await;
        mallory.client.subscribe(filter, ClientQoS::AtLeastOnce).await.unwrap();
        // Either a plain no, or the broker hangs up.
        let seen = mallory.next().await;
        if let Seen::Subscribed(granted) = &seen {
            assert_eq!(granted[..], [false], "{filter}");
        } else {
            assert!(matches!(seen, Seen::Lost), "{filter}: {seen:?}");
        }
        drop(mallory);
        assert_eq!(net.event().await, BrokerEvent::Disconnected(device("mallory")), "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_will_is_refused_at_the_door() {
    let mut net = Net::start().await;
    let own = Topic::up(&device("mallory"), Up::Presence).to_string();
    for (topic, retain) in [
        ("muster/v1/d/victim/up/presence", false),
        ("muster/v1/d/victim/down/assignment", false),
        ("muster/v1/d/mallory/down/ack", false),
        ("$SYS/x", false),
        (own.as_str(), true),
    ] {
        let mut options = net.options("mallory");
        options.set_last_will(Will::new(topic, "{}", ClientQoS::AtLeastOnce, retain));
        Client::start(options).refused().await;
    }
    let mut options = net.options("mallory");
    options.set_last_will(Will::new(&own, "gone", ClientQoS::AtLeastOnce, false));
    let mut client = Client::start(options);
    client.accepted().await;
    // Dropping it cuts the connection without a goodbye.
    drop(client);
    let will = BrokerEvent::Message {
        topic: Topic::up(&device("mallory"), Up::Presence),
        payload: Bytes::from_static(b"gone"),
    };
    assert_eq!(net.event().await, will);
    assert_eq!(net.event().await, BrokerEvent::Disconnected(device("mallory")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_certificates_own_name_may_connect() {
    let net = Net::start().await;
    let connect = |client_id: &str, common_name: Option<&str>| {
        let mut options = net.options("unused");
        options.set_client_id(client_id.to_owned());
        options.set_transport(net.tls(common_name));
        Client::start(options)
    };
    connect("victim", Some("mallory")).refused().await;
    connect("mallory2", Some("mallory")).refused().await;
    connect("UPPER", Some("UPPER")).refused().await;
    net.admit.revoked.lock().unwrap().insert(device("mallory"));
    connect("mallory", Some("mallory")).refused().await;
    connect("anybody", None).lost().await;
    // A certificate of another authority with the right name.
    let (issuer, _) = authority();
    let other = Net::tls(&Net { issuer, ..net_parts(&net) }, Some("dev-1"));
    let mut options = net.options("dev-1");
    options.set_transport(other);
    Client::start(options).lost().await;
    connect("dev-1", Some("dev-1")).accepted().await;
    assert!(!net.admit.asked_without_certificate.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_out_of_its_time_is_refused() {
    let net = Net::start().await;
    let day = time::Duration::days(1);
    let now = time::OffsetDateTime::now_utc();
    for (from, to, good) in [(-day, day, true), (-day * 2, -day, false), (day, day * 2, false)] {
        let mut options = net.options("dev-1");
        options.set_transport(net.tls_with(Some("dev-1"), |params| {
            (params.not_before, params.not_after) = (now + from, now + to);
        }));
        let mut client = Client::start(options);
        if good { client.accepted().await } else { client.lost().await }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_tls_delay_nobody() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut net = Net::start().await;
    for seed in 0..40_u32 {
        let noise: Vec<u8> =
            (0..500_u32).map(|n| (n ^ seed).wrapping_mul(2_654_435_761).wrapping_add(seed).to_be_bytes()[0]).collect();
        // Every other one begins as a handshake does.
        let start: &[u8] = if seed % 2 == 0 { &[22, 3, 1, 1, 0xf0, 1, 0, 1, 0xec, 3, 3] } else { &[] };
        let mut socket = tokio::net::TcpStream::connect(net.started.local_addr).await.unwrap();
        socket.write_all(&[start, &noise].concat()).await.unwrap();
        // It may hang up at once, which is an error to a sender.
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let _ = within("the end of the connection", socket.read_to_end(&mut answer)).await;
    }
    let client = net.join("dev-1").await;
    client.say("dev-1", "still here").await;
    assert_eq!(net.event().await, said("dev-1", "still here"));
}

mod grammar {
    use muster_shared::topics::Kind;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_no_topic_unless_the_grammar_says_so(
            text in prop_oneof![".{0,80}", "(muster|[a-z#+$]{0,4})/(v1|v2)?/(d|\\+)/(dev-1|[a-z+#/]{0,5})/(up|down|#)/[a-z+#/]{0,9}"],
            device_id in "dev-[0-9]",
        ) {
            let me = Identity::Device(device(&device_id));
            let own = |up: bool| text.parse::<Topic>().is_ok_and(|topic| {
                topic.to_string() == text && topic.device == device(&device_id) && matches!(topic.kind, Kind::Up(_)) == up
            });
            prop_assert_eq!(authorize(&me, Action::Publish, &text), own(true));
            let wild = ["+", "#"].iter().any(|last| text == format!("muster/v1/d/{device_id}/down/{last}"));
            prop_assert_eq!(authorize(&me, Action::Subscribe, &text), own(false) || wild);
        }
    }
}

/// Enough of `net` to make certificates that a client trusting its server could show.
fn net_parts(net: &Net) -> Net {
    let (_, events) = mpsc::channel(1);
    let (_, room) = mpsc::channel(1);
    Net {
        started: Started {
            broker: Arc::clone(&net.started.broker),
            events,
            room,
            local_addr: net.started.local_addr,
            task: tokio::spawn(async {}),
        },
        admit: Arc::default(),
        issuer: authority().0,
        ca_pem: net.ca_pem.clone(),
        scx: net.scx.clone(),
        _folder: tempfile::tempdir().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packet_too_large_ends_its_connection_only() {
    let mut net = Net::start().await;
    let mut bystander = net.join("bystander").await;
    let mut mallory = net.join("mallory").await;
    mallory.say("mallory", &"x".repeat(MAX_PACKET_BYTES + 1)).await;
    mallory.lost().await;
    assert_eq!(net.event().await, BrokerEvent::Disconnected(device("mallory")));
    bystander.say("bystander", "still here").await;
    assert_eq!(net.event().await, said("bystander", "still here"));
    // Downwards it is refused before it is sent.
    let topic = Topic::down(&device("bystander"), Down::Chunk);
    let refused = net.started.broker.publish(&topic, vec![0; MAX_PACKET_BYTES].into()).await;
    assert!(matches!(refused, Err(BrokerError::TooLarge { .. })), "{refused:?}");
    let largest = vec![7; MAX_PACKET_BYTES - 100];
    net.started.broker.publish(&topic, largest.clone().into()).await.unwrap();
    assert_eq!(bystander.message().await.1, largest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_sockets_delay_nobody() {
    let mut net = Net::start().await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(net.started.local_addr).await.unwrap());
    }
    // Before any handshake can time out: a listener that waited for one of them would not answer in this time.
    let joined = tokio::time::timeout(HANDSHAKE_TIMEOUT / 2, net.join("dev-1")).await;
    assert!(joined.is_ok(), "a silent socket holds up others");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_connection_takes_the_place_of_the_first() {
    let mut net = Net::start().await;
    let presence = Topic::up(&device("dev-1"), Up::Presence).to_string();
    let with_will = |net: &Net| {
        let mut options = net.options("dev-1");
        options.set_last_will(Will::new(&presence, "gone", ClientQoS::AtLeastOnce, false));
        Client::start(options)
    };
    let mut first = with_will(&net);
    first.accepted().await;
    let mut second = with_will(&net);
    second.accepted().await;
    first.lost().await;
    assert_eq!(second.subscribe(&Topic::down_filter(&device("dev-1"))).await, [true]);
    // The first one's end and will may come before the second is there, never after.
    while net.event().await != BrokerEvent::Subscribed(device("dev-1")) {}
    second.say("dev-1", "here").await;
    assert_eq!(net.event().await, said("dev-1", "here"));
    assert_eq!(net.started.broker.connected(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_subscription_is_lost_is_made_to_subscribe_again() {
    let mut net = Net::start().await;
    let mut client = net.join("dev-1").await;
    let filter = Topic::down_filter(&device("dev-1"));
    let router = net.scx.extends.router().await;
    let id = router.relations().get(filter.as_str()).unwrap().values().next().unwrap().0.clone();
    assert!(router.remove(&filter, id).await.unwrap());
    drop(router);
    net.tell("dev-1", "lost").await;
    client.lost().await;
    assert_eq!(net.event().await, BrokerEvent::Disconnected(device("dev-1")));
    let mut client = net.connect_again(|| net.options("dev-1")).await;
    assert_eq!(client.subscribe(&filter).await, [true]);
    net.tell("dev-1", "heard").await;
    assert_eq!(client.message().await.1, Bytes::from_static(b"heard"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_would_outlive_its_connection_is_refused() {
    let mut net = Net::start().await;
    let lasting = |net: &Net| {
        let mut options = net.options("dev-1");
        options.set_clean_session(false);
        options
    };
    Client::start(lasting(&net)).refused().await;
    // Neither does it take the place of a connection that is there, nor what is on its way to it.
    let mut client = net.join("dev-1").await;
    Client::start(lasting(&net)).refused().await;
    net.tell("dev-1", "yours").await;
    assert_eq!(client.message().await.1, Bytes::from_static(b"yours"));
    client.say("dev-1", "still here").await;
    assert_eq!(net.event().await, said("dev-1", "still here"));
    assert_eq!(net.started.broker.connected(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protocol_5_has_no_other_way_to_keep_a_session() {
    use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet};
    use rumqttc::v5::{ConnectionError, Event, EventLoop, MqttOptions};
    let net = Net::start().await;
    for (clean_start, expiry_s, good) in [
        (true, None, true),
        (true, Some(0), true),
        (false, None, false),
        (true, Some(60), false),
        (false, Some(60), false),
    ] {
        let mut options = MqttOptions::new("dev-1", "127.0.0.1", net.started.local_addr.port());
        options.set_transport(net.tls(Some("dev-1"))).set_clean_start(clean_start);
        options.set_session_expiry_interval(expiry_s);
        let answer = loop {
            let answer = within("an answer", EventLoop::new(options.clone(), 1).poll()).await;
            // The connection before it may still be on its way out.
            if !matches!(answer, Err(ConnectionError::ConnectionRefused(ConnectReturnCode::ServerUnavailable))) {
                break answer;
            }
        };
        let case = format!("{clean_start} {expiry_s:?}: {answer:?}");
        match answer {
            Ok(Event::Incoming(Packet::ConnAck(_))) => assert!(good, "{case}"),
            Err(ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized)) => assert!(!good, "{case}"),
            Ok(_) | Err(_) => panic!("{case}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_device_is_cut_off_and_stays_out() {
    let mut net = Net::start().await;
    let mut client = net.join("dev-1").await;
    net.admit.revoked.lock().unwrap().insert(device("dev-1"));
    within("the cut", net.started.broker.disconnect(&device("dev-1"))).await;
    client.lost().await;
    assert_eq!(net.event().await, BrokerEvent::Disconnected(device("dev-1")));
    net.connect("dev-1").refused().await;
    // Somebody who is not there cannot be cut off, and that is no fault.
    within("nothing", net.started.broker.disconnect(&device("nobody"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_cut_off_also_who_has_said_nothing() {
    let mut net = Net::start().await;
    let mut client = net.join("dev-1").await;
    let mut silent = net.connect("dev-2");
    silent.accepted().await;
    within("the cut", net.started.broker.disconnect_all()).await;
    client.lost().await;
    silent.lost().await;
    let ended = [net.event().await, net.event().await];
    for name in ["dev-1", "dev-2"] {
        assert!(ended.contains(&BrokerEvent::Disconnected(device(name))), "{name}: {ended:?}");
    }
    net.connect_again(|| net.options("dev-1")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_takes_its_time_leaves_the_next_connection_alone() {
    let mut net = Net::start().await;
    let mut client = net.join("dev-1").await;
    let (name, broker) = (device("dev-1"), Arc::clone(&net.started.broker));
    let mut cut = broker.disconnect(&name);
    // It has said its word and is not let on before the device is back.
    let begun = std::future::poll_fn(|context| Poll::Ready(cut.as_mut().poll(context))).await;
    client.lost().await;
    assert_eq!(net.event().await, BrokerEvent::Disconnected(device("dev-1")));
    let mut client = net.connect_again(|| net.options("dev-1")).await;
    assert_eq!(client.subscribe(&Topic::down_filter(&name)).await, [true]);
    if begun.is_pending() {
        within("the cut", cut).await;
    }
    net.tell("dev-1", "heard").await;
    assert_eq!(client.message().await.1, Bytes::from_static(b"heard"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_session_is_too_busy_to_hear_of_the_cut_is_cut_off_all_the_same() {
    let mut net = Net::start().await;
    let mut client = net.join("dev-1").await;
    let sender = client.client.clone();
    tokio::spawn(async move {
        let topic = Topic::up(&device("dev-1"), Up::Event).to_string();
        while sender.publish(&topic, ClientQoS::AtLeastOnce, false, "more").await.is_ok() {}
    });
    // The session waits for room for its next event, and there is none for as long as rmqtt waits for the session.
    within("a full queue", async {
        while net.started.events.len() < EVENT_QUEUE {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("the kick", net.started.broker.disconnect(&device("dev-1"))).await;
    let over = BrokerEvent::Disconnected(device("dev-1"));
    within("the end of its session", async { while net.event().await != over {} }).await;
    client.lost().await;
    assert_eq!(net.started.broker.connected(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_controller_slows_devices_down_and_loses_nothing() {
    let mut net = Net::start().await;
    let client = net.join("dev-1").await;
    let count = EVENT_QUEUE * 3;
    let sender = client.client.clone();
    tokio::spawn(async move {
        let topic = Topic::up(&device("dev-1"), Up::Event).to_string();
        for n in 0..count {
            sender.publish(&topic, ClientQoS::AtLeastOnce, false, n.to_string()).await.unwrap();
        }
    });
    // Let the queue fill before anything is read from it.
    within("a full queue", async {
        while net.started.events.len() < EVENT_QUEUE {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for n in 0..count {
        let BrokerEvent::Message { payload, .. } = net.event().await else { panic!("message {n}") };
        assert_eq!(payload, n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_does_not_read_is_not_sent_more() {
    let mut net = Net::start().await;
    let client = net.join("dev-1").await;
    // It stays connected and reads nothing any more.
    client.task.abort();
    let topic = Topic::down(&device("dev-1"), Down::Chunk);
    let chunk = Bytes::from(vec![0; CHUNK_BYTES]);
    let mut taken = 0;
    let refused = loop {
        match net.started.broker.publish(&topic, chunk.clone()).await {
            Ok(()) => taken += chunk.len(),
            // Its socket is closed, which may be found before the bound is reached, as below.
            Err(BrokerError::Publish { .. }) => return,
            Err(error) => break error,
        }
        // The aborted client's connection may be found dead before the bound is reached: then there is nothing to
        // bound.
        if net.started.broker.connected() == 0 {
            return;
        }
        assert!(taken <= 2 * DEVICE_UNACKNOWLEDGED_BYTES, "{taken} bytes and no end");
    };
    assert!(matches!(refused, BrokerError::Congested { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_makes_room() {
    let mut net = Net::start().await;
    let mut client = net.join("dev-1").await;
    let topic = Topic::down(&device("dev-1"), Down::Chunk);
    for n in 0..4 * DEVICE_UNACKNOWLEDGED_BYTES / CHUNK_BYTES {
        let chunk = Bytes::from(vec![u8::try_from(n % 251).unwrap(); CHUNK_BYTES]);
        within("room", async {
            while let Err(error) = net.started.broker.publish(&topic, chunk.clone()).await {
                assert!(matches!(error, BrokerError::Congested { .. }), "{error}");
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(client.message().await.1, chunk);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_certificates_only_where_that_is_wished() {
    let mut net = Net::start_with(|config| config.insecure_dev = true).await;
    let mut options = net.options("dev-1");
    options.set_transport(Transport::Tcp);
    let mut client = Client::start(options);
    client.accepted().await;
    client.say("dev-1", "hello").await;
    assert_eq!(net.event().await, said("dev-1", "hello"));
    client.say("dev-2", "forged").await;
    client.say("dev-1", "again").await;
    assert_eq!(net.event().await, said("dev-1", "again"));
    assert!(net.admit.asked_without_certificate.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_and_missing_files_are_named() {
    let net = Net::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (issuer, ca_pem) = authority();
    let files = server_files(&folder, &issuer, &ca_pem);
    let taken = start_embedded(&config(net.started.local_addr), files.clone(), Arc::new(Everybody::default())).await;
    let error = taken.err().expect("the port is taken");
    assert!(matches!(error, BrokerError::Bind { .. }), "{error}");
    assert!(error.to_string().contains(&net.started.local_addr.to_string()), "{error}");
    for damaged in [&files.certificate, &files.key, &files.client_ca] {
        let whole = std::fs::read(damaged).unwrap();
        std::fs::write(damaged, "not PEM").unwrap();
        let failed = start_embedded(&config(loopback(0)), files.clone(), Arc::new(Everybody::default())).await;
        let error = failed.err().expect("a file is damaged").to_string();
        assert!(error.contains(&damaged.display().to_string()), "{error}");
        std::fs::write(damaged, whole).unwrap();
    }
}
