//! Which certificates may connect to the broker, after TLS has found them genuine.

use async_trait::async_trait;
use muster_shared::ids::DeviceId;

use crate::broker::Admit;
use crate::store::records::DeviceRecord;
use crate::store::{Records, Table};

/// Admits devices that enrolled, are not revoked, and show the certificate they were given last.
pub(crate) struct EnrolledDevices {
    records: Records,
}

impl EnrolledDevices {
    /// Over these records.
    pub(crate) fn new(records: Records) -> Self {
        Self { records }
    }
}

#[async_trait]
impl Admit for EnrolledDevices {
    async fn device_allowed(&self, device: &DeviceId, certificate_serial: Option<&str>) -> bool {
        match self.records.get::<DeviceRecord>(Table::Devices, device.as_str()).await {
            Ok(Some(record)) => {
                let record = record.value;
                let same = certificate_serial.is_none_or(|serial| record.certificate_serial == serial);
                let admitted = !record.is_revoked() && same;
                if !admitted {
                    tracing::warn!(%device, revoked = record.is_revoked(), certificate_serial, "a certificate is refused");
                }
                admitted
            }
            Ok(None) => {
                tracing::warn!(%device, certificate_serial, "an unknown device is refused");
                false
            }
            Err(error) => {
                tracing::error!(%device, %error, "a device is refused because its record cannot be read");
                false
            }
        }
    }
}
