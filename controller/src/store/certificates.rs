//! Which certificates a device's record names: the one in use, those not shown yet, and those refused by now.
//!
//! The last are remembered for the list that outside brokers are given, for as long as they would be worth something to whoever has
//! one. How many there may be is decided here; who may have one is not.

use muster_shared::ids::Digest;
use serde::{Deserialize, Serialize};

use super::records::DeviceRecord;
use crate::config::MAX_DEVICE_CERTIFICATE_MS;
use crate::pki::AuthoritiesVersion;

/// Certificates of one device that have not ended; an agent renews early enough to have two or three.
const MAX_CERTIFICATES: usize = 64;
/// Those among them that an enrolment leaves free once it has to forget any, so that not every one has to.
const LEFT_BY_ENROLMENT: usize = 16;

/// A certificate given to a device that has not shown it yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingCertificate {
    /// As [`DeviceRecord::certificate_serial`].
    pub(crate) serial: String,
    /// As [`DeviceRecord::public_key_sha256`].
    pub(crate) public_key_sha256: Digest,
    /// As [`DeviceRecord::authorities`].
    #[serde(default)]
    pub(crate) authorities: AuthoritiesVersion,
    /// As [`DeviceRecord::certificate_ends_ms`].
    #[serde(default)]
    pub(crate) ends_ms: Option<u64>,
}

impl PendingCertificate {
    fn superseded(self, now_ms: u64) -> SupersededCertificate {
        let Self { serial, public_key_sha256: _, authorities, ends_ms } = self;
        SupersededCertificate { serial, since_ms: now_ms, ends_ms, authorities: Some(authorities) }
    }
}

/// A certificate of a device that is refused although it has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SupersededCertificate {
    /// As [`DeviceRecord::certificate_serial`].
    pub(crate) serial: String,
    /// In milliseconds since the Unix epoch.
    pub(crate) since_ms: u64,
    /// As [`DeviceRecord::certificate_ends_ms`].
    #[serde(default)]
    pub(crate) ends_ms: Option<u64>,
    /// As [`DeviceRecord::authorities`]; records from before this was kept do not say.
    #[serde(default)]
    pub(crate) authorities: Option<AuthoritiesVersion>,
}

impl SupersededCertificate {
    /// Whether anybody could still accept it who does not know that it was superseded. What is not known of it counts for it.
    fn is_worth_something(&self, now_ms: u64, oldest_authority: u64) -> bool {
        let ends_ms = self.ends_ms.unwrap_or_else(|| self.since_ms.saturating_add(MAX_DEVICE_CERTIFICATE_MS));
        ends_ms > now_ms && self.authorities.is_none_or(|version| version.generation() >= oldest_authority)
    }
}

impl DeviceRecord {
    /// Serial numbers of the certificates with which it could connect, were it not shut out.
    pub(crate) fn serials(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.certificate_serial)
            .chain(self.pending.iter().map(|pending| &pending.serial))
            .map(String::as_str)
    }

    /// Has it use another certificate: every other one is refused from now on.
    pub(crate) fn take_up(&mut self, certificate: PendingCertificate, now_ms: u64) {
        let before = SupersededCertificate {
            serial: std::mem::replace(&mut self.certificate_serial, certificate.serial),
            since_ms: now_ms,
            ends_ms: self.certificate_ends_ms,
            authorities: Some(self.authorities),
        };
        self.public_key_sha256 = certificate.public_key_sha256;
        self.authorities = certificate.authorities;
        self.certificate_ends_ms = certificate.ends_ms;
        let pending = std::mem::take(&mut self.pending).into_iter().map(|pending| pending.superseded(now_ms));
        let others = std::iter::once(before).chain(pending);
        self.superseded.extend(others.filter(|other| other.serial != self.certificate_serial));
    }

    /// Adds a certificate that it has not shown. Of more than `most` that wait so, the oldest are refused from now on.
    pub(crate) fn give(&mut self, certificate: PendingCertificate, most: usize, now_ms: u64) {
        self.pending.push(certificate);
        let over = self.pending.drain(..self.pending.len().saturating_sub(most));
        self.superseded.extend(over.map(|pending| pending.superseded(now_ms)));
    }

    /// Whether it may be given one more. What is refused is remembered until it is worth nothing, so there must be an end to it.
    /// Those that have ended, or that an authority before `oldest_authority` signed, are forgotten.
    pub(crate) fn has_room_for_certificate(&mut self, now_ms: u64, oldest_authority: u64) -> bool {
        self.superseded.retain(|superseded| superseded.is_worth_something(now_ms, oldest_authority));
        self.certificates() < MAX_CERTIFICATES
    }

    /// Makes room for one that it enrols with and one after it: a device that enrols at every boot is no thief, and would be shut out
    /// for as long as they live. Gives those that were forgotten for that although they are worth something, the oldest.
    pub(crate) fn make_room_for_certificate(
        &mut self,
        now_ms: u64,
        oldest_authority: u64,
    ) -> Vec<SupersededCertificate> {
        if self.has_room_for_certificate(now_ms, oldest_authority) && self.certificates() + 1 < MAX_CERTIFICATES {
            return Vec::new();
        }
        let over = self.certificates().saturating_sub(MAX_CERTIFICATES - LEFT_BY_ENROLMENT);
        self.superseded.drain(..over.min(self.superseded.len())).collect()
    }

    fn certificates(&self) -> usize {
        1 + self.pending.len() + self.superseded.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::pki::DAY_MS;

    const NOW_MS: u64 = 1_790_000_000_000;
    const TEN_YEARS_MS: u64 = 10 * 365 * DAY_MS;

    /// A record from before anything was said of when a certificate ends.
    fn old_record() -> DeviceRecord {
        let superseded = json!([{ "serial": "0", "since_ms": NOW_MS }]);
        let key = Digest::of(b"key");
        let pending = json!([{ "serial": "2", "public_key_sha256": key }]);
        serde_json::from_value(json!({
            "id": "dev-1", "labels": {}, "enrolled_at_ms": 1, "certificate_serial": "1", "public_key_sha256": key,
            "pending": pending, "superseded": superseded, "desired": null,
        }))
        .unwrap()
    }

    fn given(serial: &str, generation: u64, ends_ms: u64) -> PendingCertificate {
        let authorities = serde_json::from_value(json!(generation * 2)).unwrap();
        PendingCertificate {
            serial: serial.into(),
            public_key_sha256: Digest::of(serial.as_bytes()),
            authorities,
            ends_ms: Some(ends_ms),
        }
    }

    fn refused(record: &DeviceRecord) -> Vec<&str> {
        record.superseded.iter().map(|certificate| certificate.serial.as_str()).collect()
    }

    #[test]
    fn what_is_refused_is_remembered_until_it_ends_and_where_that_is_not_known_for_the_longest_life() {
        let mut record = old_record();
        record.take_up(given("3", 1, NOW_MS + 20 * DAY_MS), NOW_MS);
        record.take_up(given("4", 1, NOW_MS + 10 * DAY_MS), NOW_MS + 1);
        record.take_up(given("5", 1, NOW_MS + 10 * DAY_MS), NOW_MS + 2);
        let remembered = |at_ms: u64| {
            let mut record = record.clone();
            record.has_room_for_certificate(at_ms, 1);
            refused(&record).join(" ")
        };
        assert_eq!(remembered(NOW_MS + 3), "0 1 2 3 4");
        assert_eq!(remembered(NOW_MS + 10 * DAY_MS - 1), "0 1 2 3 4");
        assert_eq!(remembered(NOW_MS + 10 * DAY_MS), "0 1 2 3");
        assert_eq!(remembered(NOW_MS + 20 * DAY_MS), "0 1 2");
        assert_eq!(remembered(NOW_MS + TEN_YEARS_MS - 1), "0 1 2");
        assert_eq!(remembered(NOW_MS + TEN_YEARS_MS), "");
    }

    #[test]
    fn what_a_retired_authority_signed_is_forgotten() {
        let mut record = old_record();
        let ends_ms = NOW_MS + DAY_MS;
        for (serial, generation) in [("3", 1), ("4", 2), ("5", 2), ("6", 3)] {
            record.take_up(given(serial, generation, ends_ms), NOW_MS);
        }
        assert!(record.has_room_for_certificate(NOW_MS, 1));
        assert_eq!(refused(&record), ["0", "1", "2", "3", "4", "5"]);
        assert!(record.has_room_for_certificate(NOW_MS, 2));
        // Nothing is known of the first, which was refused before this was kept.
        assert_eq!(refused(&record), ["0", "4", "5"]);
        assert!(record.has_room_for_certificate(NOW_MS, 3));
        assert_eq!(refused(&record), ["0"]);
    }

    proptest! {
        /// However often a device enrols and renews, enrolling works, its record stays small, and nothing is forgotten without need.
        #[test]
        fn an_enrolment_always_finds_room_and_forgets_the_oldest_only(
            steps in prop::collection::vec((0..10u8, 1..40u64), 0..300),
        ) {
            let mut record = DeviceRecord { pending: Vec::new(), superseded: Vec::new(), ..old_record() };
            let mut now_ms = NOW_MS;
            for (number, (what, hours)) in steps.into_iter().enumerate() {
                now_ms += hours * DAY_MS / 24;
                let certificate = given(&format!("{:x}", number + 16), 1, now_ms + 365 * DAY_MS);
                record.has_room_for_certificate(now_ms, 1);
                let before = record.clone();
                if what == 0 {
                    if record.has_room_for_certificate(now_ms, 1) {
                        record.give(certificate, 4, now_ms);
                    }
                    prop_assert!(refused(&record).starts_with(&refused(&before)));
                } else {
                    let forgotten = record.make_room_for_certificate(now_ms, 1);
                    prop_assert_eq!(&before.superseded[..forgotten.len()], &forgotten);
                    prop_assert!(forgotten.is_empty() || before.certificates() >= MAX_CERTIFICATES - 1);
                    record.take_up(certificate, now_ms);
                    prop_assert!(record.has_room_for_certificate(now_ms, 1), "and for a renewal after it");
                }
                prop_assert!(record.certificates() <= MAX_CERTIFICATES);
            }
        }
    }
}
