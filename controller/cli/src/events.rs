//! `muster events`: what happened in the fleet.

use std::time::{Duration, Instant};

use clap::Args;
use muster_shared::api::{EventView, Page};
use muster_shared::ids::{DeviceId, RolloutId};

use crate::api_client::ApiClient;
use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output;

const PAGE_SIZE: usize = 500;
const POLL: Duration = Duration::from_secs(1);
/// How long a controller that cannot be reached is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Wait for more; stop with Ctrl-C. With --output json each event is one line.
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only of this device.
    #[arg(long, value_name = "ID")]
    device: Option<DeviceId>,
    /// Only of this rollout.
    #[arg(long, value_name = "ID")]
    rollout: Option<RolloutId>,
    /// Only after this sequence number.
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
}

/// An entry in a line.
pub(crate) fn event_text(event: &EventView) -> String {
    let mut text = format!("{}  #{}  {}  by {}", output::time(event.at_ms), event.sequence, event.kind, event.actor);
    for subject in [
        event.device.as_ref().map(|device| format!("device {device}")),
        event.rollout.as_ref().map(|rollout| format!("rollout {rollout}")),
        event.bundle.as_ref().map(ToString::to_string),
    ]
    .into_iter()
    .flatten()
    {
        text.push_str("  ");
        text.push_str(&subject);
    }
    if !event.detail.is_empty() {
        text.push_str("  ");
        // One event, one line.
        text.push_str(&event.detail.replace(['\n', '\t'], " "));
    }
    text
}

/// Some of what came after `after`, and how far the controller has looked: that far it is all, and beyond there may be more. None at the end.
async fn page(client: &ApiClient, args: &EventsArgs, after: u64) -> Result<(Vec<EventView>, Option<u64>), Failure> {
    let mut query = vec![("after", after.to_string()), ("limit", PAGE_SIZE.to_string())];
    query.extend(args.device.as_ref().map(|device| ("device", device.to_string())));
    query.extend(args.rollout.as_ref().map(|rollout| ("rollout", rollout.to_string())));
    let page: Page<EventView> = client.get(&["events"], &query).await?;
    // Never backwards, whatever the other side sends: this is what ends the loops below.
    let events: Vec<EventView> = page.items.into_iter().filter(|event| event.sequence > after).collect();
    let last = events.iter().map(|event| event.sequence).max();
    // A page without an event is no end: it may be that none of a great many was about what is asked for.
    let looked_at = page.next_cursor.and_then(|cursor| cursor.parse().ok());
    Ok((events, last.max(looked_at).filter(|seen_up_to| *seen_up_to > after)))
}

async fn all(client: &ApiClient, args: &EventsArgs) -> Result<Vec<EventView>, Failure> {
    let mut events = Vec::new();
    let mut after = args.after.unwrap_or(0);
    loop {
        let (next, seen_up_to) = page(client, args, after).await?;
        events.extend(next);
        let Some(seen_up_to) = seen_up_to else { return Ok(events) };
        after = seen_up_to;
    }
}

async fn follow(context: &Context, client: &ApiClient, args: &EventsArgs) -> Result<(), Failure> {
    let mut after = args.after.unwrap_or(0);
    let mut reached = false;
    let mut silent_since: Option<Instant> = None;
    loop {
        match page(client, args, after).await {
            Ok((events, seen_up_to)) => {
                (reached, silent_since) = (true, None);
                for event in &events {
                    context.output.show_line(event, event_text)?;
                }
                if let Some(seen_up_to) = seen_up_to {
                    after = seen_up_to;
                    continue;
                }
            }
            // One that was never reached is a wrong address; one that went away is likely to come back.
            Err(failure) if failure.is_unavailable() && reached => {
                let since = *silent_since.get_or_insert_with(|| {
                    output::warn(&format!("{failure}; trying again"));
                    Instant::now()
                });
                if since.elapsed() > PATIENCE {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn run(context: &Context, args: &EventsArgs) -> Result<(), Failure> {
    let client = context.client()?;
    if args.follow {
        return block_on(follow(context, &client, args));
    }
    let events = block_on(all(&client, args))?;
    if events.is_empty() {
        output::note("no event");
        if !context.output.is_json() {
            return Ok(());
        }
    }
    context.output.show(&events, |events| events.iter().map(event_text).collect::<Vec<_>>().join("\n"))
}
