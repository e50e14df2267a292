//! Which connection of each device counts now, and what is on its way to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_shared::ids::DeviceId;
use rmqtt::types::Id;

/// The connections of all devices. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Connections {
    inner: Arc<Mutex<HashMap<DeviceId, Connection>>>,
}

struct Connection {
    id: Id,
    unacknowledged_bytes: usize,
    refusals: u64,
}

/// Whether more may be sent to a device.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The bytes are counted as on their way.
    Reserved,
    /// So many bytes are on their way already.
    Full(usize),
    /// The device is not connected.
    Away,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Connection>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many devices are connected.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// From now on this is the device's connection.
    pub(super) fn begin(&self, device: DeviceId, id: Id) {
        self.lock().insert(device, Connection { id, unacknowledged_bytes: 0, refusals: 0 });
    }

    /// The connection is over. False when the device has another one already.
    pub(super) fn end(&self, device: &DeviceId, id: &Id) -> bool {
        let mut connections = self.lock();
        let current = connections.get(device).is_some_and(|connection| connection.id == *id);
        if current {
            connections.remove(device);
        }
        current
    }

    /// Whether this is the device's connection.
    pub(super) fn is_current(&self, device: &DeviceId, id: &Id) -> bool {
        self.lock().get(device).is_some_and(|connection| connection.id == *id)
    }

    /// Counts something the device was refused. Gives the count whenever it has doubled, which is worth a line in the
    /// log.
    pub(super) fn count_refusal(&self, device: &DeviceId) -> Option<u64> {
        let mut connections = self.lock();
        let connection = connections.get_mut(device)?;
        connection.refusals += 1;
        connection.refusals.is_power_of_two().then_some(connection.refusals)
    }

    /// Makes room for `bytes` on their way to the device, of which there may be `most`.
    pub(super) fn reserve(&self, device: &DeviceId, bytes: usize, most: usize) -> Room {
        let mut connections = self.lock();
        let Some(connection) = connections.get_mut(device) else { return Room::Away };
        let waiting = connection.unacknowledged_bytes;
        if waiting > 0 && waiting + bytes > most {
            return Room::Full(waiting);
        }
        connection.unacknowledged_bytes += bytes;
        Room::Reserved
    }

    /// The bytes arrived, or never will.
    pub(super) fn release(&self, client_id: &str, bytes: usize) {
        let Ok(device) = DeviceId::new(client_id) else { return };
        if let Some(connection) = self.lock().get_mut(&device) {
            connection.unacknowledged_bytes = connection.unacknowledged_bytes.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use rmqtt::types::ClientId;

    use super::*;

    #[test]
    fn only_the_connection_that_counts_can_end() {
        let connections = Connections::default();
        let device = DeviceId::new("dev-1").unwrap();
        let id = |node| Id::from(node, ClientId::from_static("dev-1"));
        connections.begin(device.clone(), id(1));
        connections.begin(device.clone(), id(2));
        assert!(!connections.end(&device, &id(1)) && !connections.is_current(&device, &id(1)));
        assert_eq!(connections.count(), 1);
        assert!(connections.end(&device, &id(2)));
        assert_eq!((connections.count(), connections.reserve(&device, 1, 10)), (0, Room::Away));
    }

    #[test]
    fn what_is_on_its_way_is_bounded() {
        let connections = Connections::default();
        let device = DeviceId::new("dev-1").unwrap();
        connections.begin(device.clone(), Id::from(1, ClientId::from_static("dev-1")));
        assert_eq!(connections.reserve(&device, 6, 10), Room::Reserved);
        assert_eq!(connections.reserve(&device, 6, 10), Room::Full(6));
        connections.release("dev-1", 6);
        // One message alone may be larger than the bound: it would never go otherwise.
        assert_eq!(connections.reserve(&device, 60, 10), Room::Reserved);
        connections.release("dev-1", 1_000);
        assert_eq!(connections.reserve(&device, 10, 10), Room::Reserved);
        let worth_a_line = (1..=20).filter_map(|_| connections.count_refusal(&device)).collect::<Vec<_>>();
        assert_eq!(worth_a_line, [1, 2, 4, 8, 16]);
    }
}
