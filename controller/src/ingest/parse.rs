//! What a device's bytes say. Everything here is hostile until it has passed this file.

use bytes::Bytes;
use muster_shared::feedback::FeedbackReceipt;
use muster_shared::limits::{MAX_LABEL_BYTES, MAX_LABELS, MAX_TEXT_BYTES, bounded_text};
use muster_shared::messages::{
    ChunkRequest, DeviceEvent, Position, Presence, Sequenced, StateReport, Stream, TelemetryWindow,
};
use muster_shared::selector::is_label_text;
use muster_shared::sketch::SketchWindow;
use muster_shared::topics::Up;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What a device says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    /// How it is.
    State(Box<Sequenced<StateReport>>),
    /// Counters of a window.
    Telemetry(Box<Sequenced<TelemetryWindow>>),
    /// Sketches of a window, with the bytes they came in. Whether they fit their profile is still to be seen.
    Sketch(Box<Sequenced<SketchWindow>>, Bytes),
    /// Something happened.
    Event(Sequenced<DeviceEvent>),
    /// It wants chunks.
    Chunks(ChunkRequest),
    /// What came of labels it was sent.
    Feedback(FeedbackReceipt),
    /// It is there, or its will says that it is not.
    Presence(Presence),
}

/// A message that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// What is wrong, in words.
    pub(crate) reason: String,
    /// Where it stands, where at least that can be read: it is acknowledged, or it would come for ever.
    pub(crate) position: Option<(Stream, Position)>,
}

/// Reads a message of `kind`.
///
/// # Errors
/// [`Unusable`] with what is wrong.
pub(crate) fn parse(kind: Up, payload: &Bytes) -> Result<Said, Unusable> {
    match kind {
        Up::State => {
            sequenced(Stream::State, payload).and_then(|message| check_state(message).map(Box::new).map(Said::State))
        }
        Up::Telemetry => sequenced(Stream::Telemetry, payload).map(Box::new).map(Said::Telemetry),
        Up::Sketch => Sequenced::<SketchWindow>::decode(payload)
            .map(|message| Said::Sketch(Box::new(message), payload.clone()))
            .map_err(|error| Unusable {
                reason: error.to_string(),
                position: Sequenced::<SketchWindow>::position(payload).map(|position| (Stream::Sketch, position)),
            }),
        Up::Event => sequenced::<DeviceEvent>(Stream::Event, payload).map(|mut message| {
            message.body.detail = bounded_text(&message.body.detail);
            Said::Event(message)
        }),
        Up::ChunkRequest => plain(payload).map(Said::Chunks),
        Up::Presence => plain(payload).map(Said::Presence),
        Up::Feedback => plain(payload).map(Said::Feedback),
    }
}

fn reason(error: &serde_json::Error) -> String {
    bounded_text(&error.to_string())
}

fn plain<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Unusable> {
    serde_json::from_slice(payload).map_err(|error| Unusable { reason: reason(&error), position: None })
}

/// The part of a message that is needed to acknowledge it.
#[derive(Deserialize)]
struct Positioned {
    position: Position,
}

fn sequenced<T: DeserializeOwned>(stream: Stream, payload: &[u8]) -> Result<Sequenced<T>, Unusable>
where
    Sequenced<T>: DeserializeOwned,
{
    serde_json::from_slice(payload).map_err(|error| {
        let position = serde_json::from_slice::<Positioned>(payload).ok();
        Unusable { reason: reason(&error), position: position.map(|p| (stream, p.position)) }
    })
}

fn check_state(mut message: Sequenced<StateReport>) -> Result<Sequenced<StateReport>, Unusable> {
    let position = Some((Stream::State, message.position));
    let refuse = |reason: &str| Err(Unusable { reason: reason.to_owned(), position });
    let report = &mut message.body;
    if report.attributes.len() > MAX_LABELS {
        return refuse("it has more attributes than a device may carry");
    }
    let fits = |value: &str| value.len() <= MAX_LABEL_BYTES && !value.chars().any(char::is_control);
    if let Some((key, _)) = report.attributes.iter().find(|(key, value)| !is_label_text(key) || !fits(value)) {
        let key: String = key.chars().take(40).collect();
        return refuse(&format!("its attribute {key:?} has a key or value that is too long or has wrong characters"));
    }
    if let Some(reason) = report.update.reason.as_mut()
        && reason.len() > MAX_TEXT_BYTES
    {
        *reason = bounded_text(reason);
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use muster_shared::ids::Digest;
    use muster_shared::messages::{DeviceEventKind, WindowKey};
    use muster_shared::profile::Profile;
    use proptest::prelude::*;

    use super::*;

    const POSITION: Position = Position { epoch: 1, sequence: 2, oldest: 1 };

    fn json<T: serde::Serialize>(body: T) -> Bytes {
        serde_json::to_vec(&Sequenced { position: POSITION, body }).unwrap().into()
    }

    fn event(detail: String) -> DeviceEvent {
        DeviceEvent {
            at_ms: 1,
            kind: DeviceEventKind::Started,
            generation: 0,
            bundle: None,
            detail,
            track: Default::default(),
        }
    }

    #[test]
    fn good_messages_are_read() {
        assert!(matches!(parse(Up::State, &json(StateReport::default())), Ok(Said::State(_))));
        let Ok(Said::Event(read)) = parse(Up::Event, &json(event("x".repeat(5_000)))) else { panic!() };
        assert_eq!((read.body.detail.len(), read.position), (MAX_TEXT_BYTES, POSITION));
        let presence = Bytes::from_static(br#"{"online":false}"#);
        assert_eq!(parse(Up::Presence, &presence), Ok(Said::Presence(Presence { online: false })));
    }

    #[test]
    fn what_cannot_be_used_can_still_be_acknowledged() {
        let newer =
            Bytes::from_static(br#"{"position":{"epoch":1,"sequence":2,"oldest":1},"body":{"generation":"red"}}"#);
        for (kind, stream) in
            [(Up::State, Stream::State), (Up::Telemetry, Stream::Telemetry), (Up::Event, Stream::Event)]
        {
            assert_eq!(parse(kind, &newer).unwrap_err().position, Some((stream, POSITION)), "{kind:?}");
        }
        let mut report = StateReport::default();
        report.attributes.insert("os".into(), "\u{7}".into());
        let refused = parse(Up::State, &json(&report)).unwrap_err();
        assert!(refused.reason.contains("os") && refused.position.is_some(), "{}", refused.reason);
        report.attributes = (0..=MAX_LABELS).map(|n| (format!("a{n}"), "x".to_owned())).collect();
        assert!(parse(Up::State, &json(&report)).is_err());
        assert_eq!(parse(Up::Sketch, &Bytes::from_static(b"\x09")).unwrap_err().position, None);
        let later_version = parse(Up::Sketch, &Bytes::from_static(b"\x09\x01\x02\x01whatever comes then")).unwrap_err();
        assert_eq!(later_version.position, Some((Stream::Sketch, POSITION)));
        assert!(later_version.reason.contains("version 9 is unknown"), "{}", later_version.reason);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..7) {
            let _ = parse(Up::ALL[kind], &bytes.into());
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}", kind in 0usize..7) {
            let _ = parse(Up::ALL[kind], &text.into());
        }

        /// Damage to a real message, which gets further into the parsers than noise does.
        #[test]
        fn damaged_messages_are_read_or_refused(at in 0usize..10_000, value: u8, cut in 0usize..10_000, kind in 0usize..4) {
            let key = WindowKey { manifest: Digest::of(b"m"), generation: 1, start_ms: 2, duration_ms: 3 };
            let window = SketchWindow::empty(key, &Profile::default());
            let (kind, message) = [
                (Up::State, json(StateReport::default())),
                (Up::Event, json(event("it started".into()))),
                (Up::Sketch, Sequenced { position: POSITION, body: window }.encode().into()),
                (Up::ChunkRequest, Bytes::from_static(br#"{"manifest":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","first":0,"wanted":{"length":8,"bits":"ff"}}"#)),
            ][kind].clone();
            prop_assert!(parse(kind, &message).is_ok());
            let mut damaged = message.to_vec();
            let at = at % damaged.len();
            damaged[at] = value;
            let _ = parse(kind, &Bytes::from(damaged.clone()));
            damaged.truncate(cut % damaged.len());
            let _ = parse(kind, &damaged.into());
        }
    }
}
