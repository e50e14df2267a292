//! The status in words, for somebody who stands at the device.

use std::fmt::Write as _;

use jiff::Timestamp;
use muster_shared::messages::{
    FreezeProtection, InstalledBundle, RequestCounts, TrackReport, UpdateReport, UpdateState,
};

use super::{BrokerStatus, Status};

/// A time with how far away it is, such as `2026-11-22T19:00:00Z (5 min ago)`.
pub(crate) fn moment(at_ms: u64, now_ms: u64) -> String {
    let at = i64::try_from(at_ms / 1_000 * 1_000).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let at = at.map_or_else(|| format!("{at_ms} ms"), |at| at.to_string());
    if at_ms <= now_ms {
        format!("{at} ({} ago)", span(now_ms - at_ms))
    } else {
        format!("{at} (in {})", span(at_ms - now_ms))
    }
}

/// A length of time in the unit that fits.
fn span(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..10_240 => format!("{count} bytes"),
        10_240..10_485_760 => format!("{} KiB", count >> 10),
        10_485_760..10_737_418_240 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

fn bundle(installed: &InstalledBundle) -> String {
    format!("{}, manifest {}, generation {}", installed.bundle, installed.manifest.short(), installed.generation)
}

fn requests(counts: &RequestCounts) -> String {
    let RequestCounts { served, failed, rejected, overloaded, non_finite, .. } = counts;
    format!(
        "{served} served, {failed} failed, {non_finite} answered no number, {rejected} malformed, {overloaded} turned away for want of room"
    )
}

/// What the update is at, in words.
fn update(report: &UpdateReport) -> String {
    let UpdateReport { state, generation, chunks_done, chunks_total, reason, .. } = report;
    let mut text = match state {
        UpdateState::Idle => "nothing to do".to_owned(),
        UpdateState::Fetching => format!("fetching, {chunks_done} of {chunks_total} chunks are here"),
        UpdateState::Verified => "all files are here; the model is tested, or waits to take its part".to_owned(),
        UpdateState::Beside => "runs beside the one that answers".to_owned(),
        UpdateState::Trial => "on trial: it answers under watch".to_owned(),
        UpdateState::Committed => "committed".to_owned(),
        UpdateState::Reverted => "reverted: the bundle before it answers again".to_owned(),
        UpdateState::Failed => "failed".to_owned(),
        UpdateState::Other => "unknown".to_owned(),
    };
    if let Some(reason) = reason {
        // Writing to a string cannot fail.
        let _ = write!(text, ", because: {reason}");
    }
    if *generation > 0 {
        let _ = write!(text, " (generation {generation})");
    }
    text
}

/// Which program the agent is, and what became of the last one it was to be.
fn program(report: &TrackReport) -> String {
    let TrackReport { update, running, package_version, .. } = report;
    let mut text = running.as_ref().map_or_else(|| format!("of the package, {package_version}"), bundle);
    if update.state == UpdateState::Trial {
        text.push_str(", on trial or about to be");
    } else if update.state != UpdateState::Idle && update.state != UpdateState::Committed {
        let state = serde_json::to_value(update.state).unwrap_or_default();
        let _ = write!(text, "; last update {}", state.as_str().unwrap_or_default());
    }
    if let Some(reason) = &update.reason {
        let _ = write!(text, ", because: {reason}");
    }
    if update.generation > 0 {
        let _ = write!(text, " (generation {})", update.generation);
    }
    text
}

fn broker(broker: &BrokerStatus, now_ms: u64) -> String {
    let BrokerStatus { address, link } = broker;
    let lost = match (&link.last_error, link.last_error_at_ms) {
        (Some(error), Some(at_ms)) => format!("{error}, {}", moment(at_ms, now_ms)),
        _ => "nothing went wrong so far".to_owned(),
    };
    match (link.connected_since_ms, link.next_try_at_ms) {
        (Some(since_ms), _) => format!("{address}, connected since {}", moment(since_ms, now_ms)),
        (None, Some(next_ms)) => format!("{address}, not connected: {lost}; next try {}", moment(next_ms, now_ms)),
        (None, None) => format!("{address}, not connected, being tried: {lost}"),
    }
}

/// All of it, one thing a line.
pub(crate) fn text(status: &Status) -> String {
    let now_ms = status.clock_ms;
    let mut lines: Vec<(&str, String)> = Vec::new();
    lines.push(("device", status.device.as_ref().map_or_else(|| "not enrolled".to_owned(), ToString::to_string)));
    lines.push((
        "agent",
        match status.started_at_ms {
            Some(at_ms) => {
                format!("{}, started {}, start {}", status.agent_version, moment(at_ms, now_ms), status.starts)
            }
            None => format!("does not run; it has started {} times", status.starts),
        },
    ));
    if let Some(report) = &status.program {
        lines.push(("program", program(report)));
    }
    if status.crashed {
        lines.push(("crash", "the run before did not end in order: see muster-agent logs".to_owned()));
    }
    if let Some(stuck) = &status.stuck {
        lines.push(("stuck", stuck.clone()));
    }
    if status.started_at_ms.is_some() {
        lines.push(("running", status.running.as_ref().map_or_else(|| "nothing".to_owned(), bundle)));
        if let Some(since_ms) = status.running_since_ms {
            lines.push(("since", moment(since_ms, now_ms)));
            lines.push(("requests", requests(&status.requests)));
        }
    }
    if let Some(beside) = &status.beside {
        lines.push(("beside", format!("{}, {}", bundle(&beside.bundle), beside.stage)));
        lines.push(("beside's requests", requests(&beside.requests)));
    }
    lines.push(("committed", status.committed.as_ref().map_or_else(|| "nothing".to_owned(), bundle)));
    lines.extend(status.update.as_ref().map(|report| ("update", update(report))));
    lines.extend(status.broker.as_ref().map(|link| ("broker", broker(link, now_ms))));
    lines.extend(status.certificate_expires_ms.map(|at_ms| ("certificate ends", moment(at_ms, now_ms))));
    lines.extend(status.root_version.map(|version| ("root document", format!("version {version}"))));
    if status.freeze_protection == Some(FreezeProtection::Degraded) {
        lines.push(("clock", "stands before the latest time the device has verified: set it".to_owned()));
    }
    lines.extend(status.stale_since_ms.map(|at_ms| {
        ("assignment ended", format!("{}: the controller has not been heard since", moment(at_ms, now_ms)))
    }));
    if let Some(outbox) = &status.outbox {
        let given_up =
            if outbox.given_up > 0 { format!(", {} given up so far", outbox.given_up) } else { String::new() };
        lines.push(("outbox", format!("{} messages wait, {}{given_up}", outbox.messages, bytes(outbox.bytes))));
        lines.extend(outbox.trouble.clone().map(|trouble| ("outbox's trouble", trouble)));
    }
    lines.push(("disk", format!("{} free at {}", bytes(status.disk_free_bytes), status.data_dir.display())));
    if let Some(configuration) = &status.configuration {
        let file = configuration
            .file
            .as_ref()
            .map_or_else(|| "none: all as it comes".to_owned(), |file| file.display().to_string());
        lines.push(("configuration", format!("{file}, taken {}", moment(configuration.loaded_at_ms, now_ms))));
        if !configuration.restart_needed.is_empty() {
            lines.push(("needs a restart", configuration.restart_needed.join(", ")));
        }
        lines.extend(configuration.refused.clone().map(|why| ("file refused", why)));
    }
    for event in &status.events {
        let about = event.bundle.as_ref().map_or_else(String::new, |bundle| format!(" {bundle}"));
        let kind = format!("{:?}", event.kind).to_lowercase();
        lines.push(("event", format!("{} {kind}{about}: {}", moment(event.at_ms, now_ms), event.detail)));
    }
    for trouble in &status.troubles {
        let times = if trouble.times > 1 { format!(", {} times", trouble.times) } else { String::new() };
        lines.push((trouble.level, format!("{}{times}: {}", moment(trouble.at_ms, now_ms), trouble.text)));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 2;
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        // A value is one line: what others wrote must not look like something of ours.
        let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(text, "{:width$}{value}", format!("{name}:"));
        text
    })
}

#[cfg(test)]
mod tests {
    use muster_shared::messages::{DeviceEvent, DeviceEventKind};

    use super::*;
    use crate::mqtt::LinkNews;
    use crate::status::OutboxStatus;

    const NOW_MS: u64 = 1_800_000_000_000;

    #[test]
    fn a_time_says_how_far_away_it_is() {
        for (at_ms, expected) in [
            (NOW_MS, "2027-01-15T08:00:00Z (0 s ago)"),
            (NOW_MS - 119_000, "2027-01-15T07:58:01Z (119 s ago)"),
            (NOW_MS - 3_600_000, "2027-01-15T07:00:00Z (60 min ago)"),
            (NOW_MS + 3 * 86_400_000, "2027-01-18T08:00:00Z (in 3 days)"),
            (0, "1970-01-01T00:00:00Z (20833 days ago)"),
        ] {
            assert_eq!(moment(at_ms, NOW_MS), expected);
        }
        assert!(moment(u64::MAX, NOW_MS).contains("18446744073709551615 ms"));
    }

    #[test]
    fn each_thing_that_is_known_is_a_line() {
        let event = DeviceEvent {
            at_ms: NOW_MS - 1_000,
            kind: DeviceEventKind::Reverted,
            generation: 4,
            bundle: Some("digits@1.1.0".parse().unwrap()),
            detail: "errors\nbroker: forged".to_owned(),
            track: Default::default(),
        };
        let status = Status {
            agent_version: "1.2.3",
            clock_ms: NOW_MS,
            started_at_ms: Some(NOW_MS - 60_000),
            starts: 7,
            device: Some("press-7".parse().unwrap()),
            update: Some(UpdateReport {
                state: UpdateState::Fetching,
                generation: 4,
                chunks_done: 3,
                chunks_total: 9,
                reason: Some("waiting: metered link".to_owned()),
                ..UpdateReport::default()
            }),
            broker: Some(BrokerStatus {
                address: "hub:8883".to_owned(),
                link: LinkNews {
                    last_error: Some("connection refused".to_owned()),
                    last_error_at_ms: Some(NOW_MS - 5_000),
                    next_try_at_ms: Some(NOW_MS + 7_000),
                    connected_since_ms: None,
                },
            }),
            outbox: Some(OutboxStatus { messages: 12, bytes: 20_480, ..OutboxStatus::default() }),
            events: vec![event],
            stuck: Some("the updater has not turned for 290 s".to_owned()),
            ..Status::default()
        };
        let text = text(&status);
        for part in [
            "press-7\n",
            "1.2.3, started 2027-01-15T07:59:00Z (60 s ago), start 7",
            "the updater has not turned",
            "fetching, 3 of 9 chunks are here, because: waiting: metered link (generation 4)",
            "hub:8883, not connected: connection refused, 2027-01-15T07:59:55Z (5 s ago); next try 2027-01-15T08:00:07Z (in 7 s)",
            "12 messages wait, 20 KiB",
            "reverted digits@1.1.0: errors broker: forged",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.lines().any(|line| line.starts_with("broker: forged")), "{text}");
    }
}
