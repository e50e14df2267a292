//! Which certificates of devices are accepted, after TLS has found them genuine.
//!
//! A device has one certificate in use. Those it was given since and has not shown yet are accepted beside it, since nobody knows
//! which of them reached it; the first one it shows becomes the one in use, and every other is refused from then on.

use async_trait::async_trait;
use muster_shared::ids::DeviceId;

use crate::broker::Admit;
use crate::clock;
use crate::fleet::FleetIndex;
use crate::store::records::DeviceRecord;
use crate::store::{Expect, Records, StoreError, Stored, Table};

/// Times a change is tried again because somebody else changed the device at the same moment.
const ATTEMPTS: usize = 16;

/// Why a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// No such device.
    #[error("there is no device of the certificate's name")]
    Unknown,
    /// The device is shut out.
    #[error("the device is revoked")]
    Revoked,
    /// It was superseded, or never given out by this store.
    #[error("the device has another certificate by now")]
    Superseded,
    /// It cannot be told.
    #[error("the device's record cannot be read")]
    Store(#[from] StoreError),
}

/// How the device stands once it has shown the certificate `serial`: none when it is to be refused, the same when nothing
/// changes.
fn shown(record: &DeviceRecord, serial: &str, now_ms: u64) -> Option<DeviceRecord> {
    if record.certificate_serial == serial {
        return Some(record.clone());
    }
    let taken_up = record.pending.iter().find(|pending| pending.serial == serial)?;
    let mut after = record.clone();
    after.take_up(taken_up.clone(), now_ms);
    Some(after)
}

/// The device's record, if the certificate `serial` is accepted; there is none where devices have no certificates. What
/// showing it changes is stored.
///
/// # Errors
/// [`Refusal`].
pub(crate) async fn accept(
    records: &Records,
    fleet: &FleetIndex,
    device: &DeviceId,
    serial: Option<&str>,
) -> Result<Stored<DeviceRecord>, Refusal> {
    for _ in 0..ATTEMPTS {
        let stored = records.get::<DeviceRecord>(Table::Devices, device.as_str()).await?.ok_or(Refusal::Unknown)?;
        if stored.value.is_revoked() {
            return Err(Refusal::Revoked);
        }
        let Some(serial) = serial else { return Ok(stored) };
        let record = shown(&stored.value, serial, clock::now_ms()).ok_or(Refusal::Superseded)?;
        if record == stored.value {
            return Ok(stored);
        }
        let change = Records::put(Table::Devices, device.as_str(), Expect::Version(stored.version), &record)?;
        match records.commit(vec![change]).await {
            Ok(()) => {
                let version = stored.version + 1;
                fleet.update_record(&record, version);
                tracing::info!(%device, certificate = serial, "a renewed certificate is in use");
                return Ok(Stored { version, value: record });
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => {
                // The certificate is as good as the one before it; that goes on being accepted, too.
                tracing::error!(%device, %error, "that a renewed certificate is in use was not stored");
                return Ok(stored);
            }
        }
    }
    Err(Refusal::Store(StoreError::Conflict { table: Table::Devices, key: device.to_string() }))
}

/// Admits devices that enrolled, are not revoked, and show a certificate that is accepted.
pub(crate) struct EnrolledDevices {
    records: Records,
    fleet: FleetIndex,
}

impl EnrolledDevices {
    /// Over these records, and the view of them that is to follow.
    pub(crate) fn new(records: Records, fleet: FleetIndex) -> Self {
        Self { records, fleet }
    }
}

#[async_trait]
impl Admit for EnrolledDevices {
    async fn device_allowed(&self, device: &DeviceId, certificate_serial: Option<&str>) -> bool {
        match accept(&self.records, &self.fleet, device, certificate_serial).await {
            Ok(_) => true,
            Err(Refusal::Store(error)) => {
                tracing::error!(%device, %error, "a device is refused because its record cannot be read");
                false
            }
            Err(refusal) => {
                tracing::warn!(%device, certificate_serial, %refusal, "a certificate is refused");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::ids::Digest;
    use proptest::prelude::*;

    use super::*;
    use crate::pki::AuthoritiesVersion;
    use crate::store::records::{PendingCertificate, SupersededCertificate};
    use crate::testing::device_record;

    const NOW_MS: u64 = 1_790_000_000_000;

    fn ends_ms(serial: &str) -> Option<u64> {
        serial.bytes().next().map(u64::from)
    }

    fn record(current: &str, pending: &[String]) -> DeviceRecord {
        let key = |serial: &str| Digest::of(serial.as_bytes());
        DeviceRecord {
            certificate_serial: current.into(),
            public_key_sha256: key(current),
            certificate_ends_ms: ends_ms(current),
            pending: pending
                .iter()
                .map(|serial| PendingCertificate {
                    serial: serial.clone(),
                    public_key_sha256: key(serial),
                    authorities: AuthoritiesVersion::default(),
                    ends_ms: ends_ms(serial),
                })
                .collect(),
            renewed_at_ms: Some(2),
            ..device_record("dev-1")
        }
    }

    proptest! {
        #[test]
        fn one_certificate_is_left_once_a_new_one_is_shown(
            current in "[a-f]", pending in prop::collection::vec("[a-f]", 0..4), serial in "[a-f]",
        ) {
            let before = record(&current, &pending);
            match shown(&before, &serial, NOW_MS) {
                Some(after) if serial == current => prop_assert_eq!(after, before),
                Some(after) => {
                    prop_assert!(pending.contains(&serial));
                    let others: Vec<_> = [&current].into_iter().chain(&pending).filter(|other| **other != serial).collect();
                    for other in &others {
                        prop_assert_eq!(shown(&after, other, NOW_MS), None);
                    }
                    let superseded = others.into_iter().map(|other| SupersededCertificate {
                        serial: other.clone(),
                        since_ms: NOW_MS,
                        ends_ms: ends_ms(other),
                        authorities: Some(AuthoritiesVersion::default()),
                    });
                    prop_assert_eq!(after, DeviceRecord { superseded: superseded.collect(), ..record(&serial, &[]) });
                }
                None => prop_assert!(serial != current && !pending.contains(&serial)),
            }
        }
    }
}
