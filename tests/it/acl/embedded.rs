//! The embedded broker of a real controller, judged by what reaches the controller and the devices.
//!
//! A fence is an event that a device reports and the controller acknowledges: what the device, or anybody before it, said to that
//! controller has been dealt with by then.
//!
//! Clients stay connected until others take their place: a subscription made in the very moment in which rmqtt clears away an
//! earlier connection's can be lost with it.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use muster_shared::messages::{Ack, DeviceEvent, DeviceEventKind, Position, Sequenced};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;
use rumqttc::ConnectReturnCode;
use rustls::ClientConfig;

use super::cases::{Case, Deed, Outcome, Who};
use super::client::{Client, Door, Hello, Message, Subscription};
use super::papers::Papers;

/// The fleet's own broker.
pub(super) struct Embedded<'a> {
    fleet: &'a Fleet,
    papers: &'a Papers,
    http: reqwest::Client,
    last_sequence: u64,
    kept: Vec<Client>,
}

fn name(who: Who) -> &'static str {
    who.certificate().common_name
}

/// What every topic begins with on which `who` is told something.
fn own_down(who: Who) -> String {
    format!("muster/v1/d/{}/down/", name(who))
}

fn neighbour(who: Who) -> Who {
    if who == Who::Dev1 { Who::Dev10 } else { Who::Dev1 }
}

impl<'a> Embedded<'a> {
    pub(super) fn of(fleet: &'a Fleet, papers: &'a Papers) -> anyhow::Result<Self> {
        let ca = reqwest::Certificate::from_pem(&std::fs::read(&fleet.controller.endpoints.ca_file)?)?;
        let http = reqwest::Client::builder().tls_certs_only([ca]).timeout(PATIENCE).build()?;
        Ok(Self { fleet, papers, http, last_sequence: 0, kept: Vec::new() })
    }

    fn connect(&self, papers: &Arc<ClientConfig>, hello: &Hello<'_>) -> anyhow::Result<Door> {
        loop {
            let door = Client::connect(self.fleet.controller.endpoints.broker_port, papers, hello)?;
            // A connection of the same name may still be on its way out.
            if !matches!(door, Door::Refused(ConnectReturnCode::ServiceUnavailable)) {
                return Ok(door);
            }
        }
    }

    fn let_in(&self, who: Who) -> anyhow::Result<Client> {
        let papers = self.papers.shown_by(who).context("papers")?;
        match self.connect(papers, &Hello::of(name(who)))? {
            Door::Open(client) => Ok(client),
            Door::Refused(code) => bail!("{who:?} is refused: {code:?}"),
            Door::Closed(reason) => bail!("{who:?} is refused: {reason}"),
        }
    }

    /// A device that is connected and hears what it is told.
    fn join(&self, who: Who) -> anyhow::Result<Client> {
        let mut client = self.let_in(who)?;
        let answer = client.subscribe(&(own_down(who) + "+"))?;
        ensure!(answer == Subscription::Granted, "{who:?} may not hear what it is told: {answer:?}");
        Ok(client)
    }

    /// [`Self::join`] for a device that the broker has cut off.
    async fn join_again(&self, who: Who) -> anyhow::Result<Client> {
        wait::until("the controller has seen the end of the connection", PATIENCE, async || {
            Ok((!self.fleet.operator.device(name(who)).await?.online).then_some(()))
        })
        .await?;
        self.join(who)
    }

    /// What the device heard until the controller has dealt with everything that was said to it before.
    fn fence(&mut self, who: Who, client: &mut Client) -> anyhow::Result<Vec<Message>> {
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        let (at_ms, detail) = (sequence, format!("fence {sequence}"));
        let event = Sequenced {
            // Of an outbox that no agent had; what came before in it is given up.
            position: Position { epoch: 77, sequence, oldest: sequence },
            body: DeviceEvent {
                at_ms,
                kind: DeviceEventKind::Alarm,
                generation: 0,
                bundle: None,
                detail,
                track: Default::default(),
            },
        };
        let topic = format!("muster/v1/d/{}/up/event", name(who));
        ensure!(client.publish(&topic, &serde_json::to_string(&event)?, false)?, "{who:?} was cut off");
        client.heard_before(|message| {
            message.topic == own_down(who) + "ack"
                && serde_json::from_str::<Ack>(&message.payload).is_ok_and(|ack| ack.sequence == sequence)
        })
    }

    /// How many messages the controller has taken in, whatever it thought of them.
    async fn taken_in(&self) -> anyhow::Result<u64> {
        let url = format!("{}/metrics", self.fleet.controller.endpoints.api_url.trim_end_matches('/'));
        let page = self.http.get(url).send().await?.error_for_status()?.text().await?;
        let counts = page.lines().filter(|line| line.starts_with("muster_controller_ingest_messages_total{"));
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// Whether what the case tries came about; none where the papers for it are missing.
    ///
    /// # Errors
    /// When it cannot be told, or somebody else came to harm.
    pub(super) async fn judge(&mut self, case: &Case, words: &str) -> anyhow::Result<Option<bool>> {
        let Some(papers) = self.papers.shown_by(case.who).map(Arc::clone) else { return Ok(None) };
        if matches!(case.who, Who::Controller | Who::Stranger | Who::Nobody) {
            // They get no connection in which to do anything: the controller needs none, being inside.
            let hello = Hello::of(if let Deed::Connect { client_id } = case.deed { client_id } else { name(case.who) });
            return Ok(Some(matches!(self.connect(&papers, &hello)?, Door::Open(_))));
        }
        match case.deed {
            Deed::Connect { client_id } => self.judge_name(case, &papers, client_id).map(Some),
            Deed::Publish(topic) => self.judge_publish(case.who, topic, words, false).await.map(Some),
            Deed::PublishRetained(topic) => self.judge_publish(case.who, topic, words, true).await.map(Some),
            Deed::Will(topic) => self.judge_will(case, &papers, (topic, words, false)).await.map(Some),
            Deed::WillRetained(topic) => self.judge_will(case, &papers, (topic, words, true)).await.map(Some),
            Deed::Subscribe { filter, hears } => self.judge_subscribe(case, filter, hears).await.map(Some),
        }
    }

    fn judge_name(&mut self, case: &Case, papers: &Arc<ClientConfig>, client_id: &str) -> anyhow::Result<bool> {
        let (mut own, mut other) = (self.join(case.who)?, self.join(neighbour(case.who))?);
        let door = self.connect(papers, &Hello::of(client_id))?;
        self.fence(neighbour(case.who), &mut other)?;
        if matches!(door, Door::Open(_)) {
            return Ok(true);
        }
        // Nor was its own connection the price.
        self.fence(case.who, &mut own)?;
        self.kept.extend([own, other]);
        Ok(false)
    }

    async fn judge_publish(&mut self, who: Who, topic: &str, words: &str, retain: bool) -> anyhow::Result<bool> {
        let (mut own, mut other) = (self.join(who)?, self.join(neighbour(who))?);
        let before = self.taken_in().await?;
        if !own.publish(topic, words, retain)? {
            own = self.join_again(who).await?;
        }
        let mut heard = self.fence(who, &mut own)?;
        heard.extend(self.fence(neighbour(who), &mut other)?);
        // The two fences besides.
        let taken_in = self.taken_in().await? - before - 2;
        if retain {
            for device in [who, neighbour(who)] {
                let mut late = self.join(device)?;
                heard.extend(self.fence(device, &mut late)?);
                self.kept.push(late);
            }
        }
        self.kept.extend([own, other]);
        Ok(taken_in > 0 || heard.iter().any(|message| message.payload == words))
    }

    async fn judge_will(
        &mut self,
        case: &Case,
        papers: &Arc<ClientConfig>,
        will: (&str, &str, bool),
    ) -> anyhow::Result<bool> {
        let before = self.taken_in().await?;
        let Door::Open(client) = self.connect(papers, &Hello { will: Some(will), ..Hello::of(name(case.who)) })? else {
            return Ok(false);
        };
        if case.outcome != Outcome::Allowed {
            return Ok(true);
        }
        // Gone without a goodbye.
        drop(client);
        wait::until("the will is heard", PATIENCE, async || Ok((self.taken_in().await? > before).then_some(true))).await
    }

    async fn judge_subscribe(&mut self, case: &Case, filter: &str, hears: &str) -> anyhow::Result<bool> {
        if case.outcome == Outcome::Allowed {
            // By this filter alone, the answer to its event reaches the device. What the controller says in its own time is not waited
            // for: that the subscription is granted, and the connection stands, is what can be told.
            let (mut own, answers) = (self.let_in(case.who)?, own_down(case.who) + "ack");
            let mut granted = own.subscribe(filter)? == Subscription::Granted;
            if hears != answers {
                granted &= own.subscribe(&answers)? == Subscription::Granted;
            }
            let heard = granted && self.fence(case.who, &mut own).is_ok();
            self.kept.push(own);
            return Ok(heard);
        }
        let (mut own, mut other) = (self.join(case.who)?, self.join(neighbour(case.who))?);
        let answer = own.subscribe(filter)?;
        // Now each of them says something, and is told something.
        self.fence(neighbour(case.who), &mut other)?;
        if answer == Subscription::Closed {
            own = self.join_again(case.who).await?;
        }
        let heard = self.fence(case.who, &mut own)?;
        self.kept.extend([own, other]);
        let foreign = heard.iter().any(|message| !message.topic.starts_with(&own_down(case.who)));
        Ok(answer == Subscription::Granted || foreign)
    }

    /// Asks for a session that outlives its connection, before revocation and after it, and comes back once reinstated.
    ///
    /// # Errors
    /// When the device gets what it must not, or not what it may.
    pub(super) async fn resume(&mut self) -> anyhow::Result<()> {
        let papers = Arc::clone(self.papers.shown_by(Who::Dev1).context("papers")?);
        let refused = |this: &Self, clean_session| {
            let door = this.connect(&papers, &Hello { clean_session, ..Hello::of("dev1") })?;
            let code = if let Door::Refused(code) = door { Some(code) } else { None };
            anyhow::Ok(code == Some(ConnectReturnCode::NotAuthorized))
        };
        ensure!(refused(self, false)?, "a session was kept");
        let mut connected = self.join(Who::Dev1)?;
        self.fleet.operator.run(&["device", "revoke", "dev1"]).await?;
        while connected.message().is_ok() {}
        for clean_session in [true, false] {
            ensure!(refused(self, clean_session)?, "a revoked device was let in, clean session {clean_session}");
        }
        self.fleet.operator.run(&["device", "reinstate", "dev1"]).await?;
        let mut back = self.join(Who::Dev1)?;
        self.fence(Who::Dev1, &mut back)?;
        Ok(())
    }
}
