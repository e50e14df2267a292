//! mosquitto under the printed rules, judged by what passes through it.
//!
//! An overseer on a socket of its own hears everything and may say anything. Its messages are the fences: mosquitto deals with one
//! packet after the other, so that what it says last comes last.

use anyhow::{Context as _, bail, ensure};

use super::cases::{Case, Deed, Outcome, Who};
use super::client::{Client, Door, Hello, Message, Subscription};
use super::mosquitto::Mosquitto;
use super::papers::Papers;

/// mosquitto and who watches it.
pub(super) struct Outside<'a> {
    broker: &'a Mosquitto,
    papers: &'a Papers,
    overseer: Client,
    fences: u64,
}

fn name(who: Who) -> &'static str {
    who.certificate().common_name
}

/// A topic on which `who` may hear, and that no case is about.
fn own_fence(who: Who) -> &'static str {
    match who {
        Who::Dev1 | Who::Stranger | Who::Nobody => "muster/v1/d/dev1/down/root",
        Who::Dev10 => "muster/v1/d/dev10/down/root",
        Who::Controller => "muster/v1/d/dev1/up/telemetry",
    }
}

/// Where what is meant for the bearer of a name is said.
fn meant_for(client_id: &str) -> Option<(Who, &'static str)> {
    match client_id {
        "dev1" => Some((Who::Dev1, "muster/v1/d/dev1/down/ack")),
        "dev10" => Some((Who::Dev10, "muster/v1/d/dev10/down/ack")),
        "Muster-Controller" => Some((Who::Controller, "muster/v1/d/dev1/up/event")),
        _ => None,
    }
}

fn holds(heard: &[Message], words: &str) -> bool {
    heard.iter().any(|message| message.payload == words)
}

impl<'a> Outside<'a> {
    pub(super) fn of(broker: &'a Mosquitto, papers: &'a Papers) -> anyhow::Result<Self> {
        Ok(Self { broker, papers, overseer: broker.overseer("overseer", "#")?, fences: 0 })
    }

    fn connect(&self, who: Who, hello: &Hello<'_>) -> anyhow::Result<Door> {
        Client::connect(self.broker.port, self.papers.shown_by(who).context("papers")?, hello)
    }

    /// Connected under the own name.
    fn let_in(&self, who: Who) -> anyhow::Result<Client> {
        match self.connect(who, &Hello::of(name(who)))? {
            Door::Open(client) => Ok(client),
            Door::Refused(code) => bail!("{who:?} is refused: {code:?}"),
            Door::Closed(reason) => bail!("{who:?} is refused: {reason}"),
        }
    }

    /// Connected, and able to hear fences.
    fn join(&self, who: Who) -> anyhow::Result<Client> {
        let mut client = self.let_in(who)?;
        ensure!(client.subscribe(own_fence(who))? == Subscription::Granted, "{who:?} may not hear fences");
        Ok(client)
    }

    fn say(&mut self, topic: &str, payload: &str) -> anyhow::Result<()> {
        ensure!(self.overseer.publish(topic, payload, false)?, "the overseer was cut off");
        Ok(())
    }

    /// What `client` heard of all that was said until now.
    fn heard_by(&mut self, who: Who, client: &mut Client) -> anyhow::Result<Vec<Message>> {
        self.fences += 1;
        let fence = format!("fence {}", self.fences);
        self.say(own_fence(who), &fence)?;
        client.heard_before(|message| message.payload == fence)
    }

    /// What the overseer heard of all that was said until now.
    fn overheard(&mut self) -> anyhow::Result<Vec<Message>> {
        self.fences += 1;
        let fence = format!("fence {}", self.fences);
        self.say("fences", &fence)?;
        self.overseer.heard_before(|message| message.payload == fence)
    }

    /// Whether what the case tries came about; none where the papers for it are missing.
    ///
    /// # Errors
    /// When it cannot be told, or somebody else came to harm.
    pub(super) fn judge(&mut self, case: &Case, words: &str) -> anyhow::Result<Option<bool>> {
        if self.papers.shown_by(case.who).is_none() {
            return Ok(None);
        }
        if matches!(case.who, Who::Stranger | Who::Nobody) {
            return Ok(Some(matches!(self.connect(case.who, &Hello::of(name(case.who)))?, Door::Open(_))));
        }
        match case.deed {
            Deed::Connect { client_id } => self.judge_name(case, client_id, words).map(Some),
            Deed::Publish(topic) => self.judge_publish(case.who, topic, words, false).map(Some),
            Deed::PublishRetained(topic) => self.judge_publish(case.who, topic, words, true).map(Some),
            Deed::Will(topic) => self.judge_will(case, (topic, words, false)).map(Some),
            Deed::WillRetained(topic) => self.judge_will(case, (topic, words, true)).map(Some),
            Deed::Subscribe { filter, hears } => self.judge_subscribe(case, filter, hears, words).map(Some),
        }
    }

    /// Whoever connects under another's name neither pushes it off nor hears what is meant for it.
    fn judge_name(&mut self, case: &Case, client_id: &str, words: &str) -> anyhow::Result<bool> {
        let meant_for = meant_for(client_id).filter(|(whose, _)| self.papers.shown_by(*whose).is_some());
        let mut bearer = match meant_for {
            Some((whose, topic)) if whose != case.who => {
                let mut client = self.join(whose)?;
                ensure!(client.subscribe(topic)? == Subscription::Granted, "{whose:?} may not hear {topic}");
                Some((whose, client))
            }
            Some(_) | None => None,
        };
        let Door::Open(mut client) = self.connect(case.who, &Hello::of(client_id))? else { return Ok(false) };
        ensure!(client.subscribe(own_fence(case.who))? == Subscription::Granted, "{case:?} may not hear fences");
        if let Some((_, topic)) = meant_for {
            client.subscribe(topic)?;
            self.say(topic, words)?;
        }
        let heard = self.heard_by(case.who, &mut client)?;
        if let Some((whose, bearer)) = &mut bearer {
            ensure!(!holds(&heard, words), "{case:?} hears what is meant for {whose:?}");
            let heard = self.heard_by(*whose, bearer).with_context(|| format!("{whose:?} was pushed off"))?;
            ensure!(holds(&heard, words), "{whose:?} does not hear what is meant for it");
        }
        Ok(true)
    }

    fn judge_publish(&mut self, who: Who, topic: &str, words: &str, retain: bool) -> anyhow::Result<bool> {
        let mut client = self.let_in(who)?;
        // Acknowledged or hung up on: it is dealt with.
        client.publish(topic, words, retain)?;
        let mut came_about = holds(&self.overheard()?, words);
        if retain {
            let mut late = self.broker.overseer("late", "#")?;
            self.say("fences", "late fence")?;
            came_about |= holds(&late.heard_before(|message| message.payload == "late fence")?, words);
        }
        Ok(came_about)
    }

    fn judge_will(&mut self, case: &Case, will: (&str, &str, bool)) -> anyhow::Result<bool> {
        let hello = Hello { will: Some(will), ..Hello::of(name(case.who)) };
        let Door::Open(client) = self.connect(case.who, &hello)? else { return Ok(false) };
        // Gone without a goodbye; who connects under that name again finds the old connection dealt with.
        drop(client);
        drop(self.let_in(case.who)?);
        Ok(holds(&self.overheard()?, will.1))
    }

    fn judge_subscribe(&mut self, case: &Case, filter: &str, hears: &str, words: &str) -> anyhow::Result<bool> {
        let mut client = self.join(case.who)?;
        if client.subscribe(filter)? != Subscription::Granted {
            return Ok(false);
        }
        if hears.starts_with("$SYS/") {
            // What the broker says of itself. The first may be an old one, the second is said since this client has subscribed.
            let mut witness = self.broker.overseer("witness", hears)?;
            witness.message()?;
            witness.message()?;
        } else {
            self.say(hears, words)?;
        }
        let heard = self.heard_by(case.who, &mut client)?;
        let came_about = heard.iter().any(|message| message.topic == hears);
        ensure!(
            case.outcome != Outcome::RefusedOrHarmless || hears.contains(&format!("/{}/", name(case.who))),
            "{case:?} is about what belongs to others"
        );
        Ok(came_about)
    }
}
