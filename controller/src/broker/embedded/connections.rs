//! Which connection of each device counts now, and what is on its way to it and to all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_shared::ids::DeviceId;
use rmqtt::types::Id;
use tokio::sync::mpsc;

use crate::broker::Room;

/// The connections of all devices. Clones share them.
#[derive(Clone)]
pub(super) struct Connections {
    inner: Arc<Mutex<Inner>>,
    /// Told which device has taken something. One that does not listen misses it.
    room: mpsc::Sender<DeviceId>,
}

#[derive(Default)]
struct Inner {
    by_device: HashMap<DeviceId, Connection>,
    unacknowledged_bytes: usize,
}

struct Connection {
    id: Id,
    unacknowledged_bytes: usize,
    refusals: u64,
    /// It has subscribed to everything it may be told.
    listens: bool,
}

/// How much may be on its way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    /// So many bytes to the device.
    Device(usize),
    /// So many bytes to all devices together, of which each may have what the others leave free, and no more than
    /// `device`. So those who read slowly leave room for the others, however many they are (A. K. Choudhury and E. L. Hahne, "Dynamic
    /// queue length thresholds for shared-memory packet switches", 1998, with alpha 1).
    Shared {
        /// Most to one device, in bytes.
        device: usize,
        /// Most to all, in bytes, and one message more for each device.
        all: usize,
    },
}

impl Connections {
    /// None yet. `room` is told whenever a device has taken something.
    pub(super) fn new(room: mpsc::Sender<DeviceId>) -> Self {
        Self { inner: Arc::default(), room }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many devices are connected.
    pub(super) fn count(&self) -> usize {
        self.lock().by_device.len()
    }

    /// The devices that are connected.
    pub(super) fn devices(&self) -> Vec<DeviceId> {
        self.lock().by_device.keys().cloned().collect()
    }

    /// From now on this is the device's connection.
    pub(super) fn begin(&self, device: DeviceId, id: Id) {
        let mut inner = self.lock();
        let before =
            inner.by_device.insert(device, Connection { id, unacknowledged_bytes: 0, refusals: 0, listens: false });
        inner.forget(before);
    }

    /// The connection is over. False when the device has another one already.
    pub(super) fn end(&self, device: &DeviceId, id: &Id) -> bool {
        let mut inner = self.lock();
        let current = inner.by_device.get(device).is_some_and(|connection| connection.id == *id);
        if current {
            let ended = inner.by_device.remove(device);
            inner.forget(ended);
        }
        current
    }

    /// Whether this is the device's connection.
    pub(super) fn is_current(&self, device: &DeviceId, id: &Id) -> bool {
        self.lock().by_device.get(device).is_some_and(|connection| connection.id == *id)
    }

    /// This connection of the device hears everything from now on.
    pub(super) fn set_listens(&self, device: &DeviceId, id: &Id) {
        if let Some(connection) = self.lock().by_device.get_mut(device).filter(|connection| connection.id == *id) {
            connection.listens = true;
        }
    }

    /// Whether the device should hear whatever it is told.
    pub(super) fn listens(&self, device: &DeviceId) -> bool {
        self.lock().by_device.get(device).is_some_and(|connection| connection.listens)
    }

    /// Counts something the device was refused. Gives the count whenever it has doubled, which is worth a line in the
    /// log.
    pub(super) fn count_refusal(&self, device: &DeviceId) -> Option<u64> {
        let mut inner = self.lock();
        let connection = inner.by_device.get_mut(device)?;
        connection.refusals += 1;
        connection.refusals.is_power_of_two().then_some(connection.refusals)
    }

    /// Whether anything is on its way to the device.
    pub(super) fn is_sending(&self, device: &DeviceId) -> bool {
        self.lock().by_device.get(device).is_some_and(|connection| connection.unacknowledged_bytes > 0)
    }

    /// Whether there is room for `bytes` on their way to the device.
    pub(super) fn room(&self, device: &DeviceId, bytes: usize, bound: Bound) -> Room {
        self.lock().room(device, bytes, bound)
    }

    /// Makes room for `bytes` on their way to the device, where there is any: then they are counted as on their way.
    pub(super) fn reserve(&self, device: &DeviceId, bytes: usize, bound: Bound) -> Room {
        let mut inner = self.lock();
        let room = inner.room(device, bytes, bound);
        if let (Room::Free, Some(connection)) = (room, inner.by_device.get_mut(device)) {
            connection.unacknowledged_bytes += bytes;
            inner.unacknowledged_bytes += bytes;
        }
        room
    }

    /// The bytes arrived, or never will.
    pub(super) fn release(&self, client_id: &str, bytes: usize) {
        let Ok(device) = DeviceId::new(client_id) else { return };
        {
            let mut inner = self.lock();
            let Some(connection) = inner.by_device.get_mut(&device) else { return };
            let bytes = bytes.min(connection.unacknowledged_bytes);
            connection.unacknowledged_bytes -= bytes;
            inner.unacknowledged_bytes -= bytes;
        }
        // Where nobody listens in time, whoever waits for room looks again before long.
        let _ = self.room.try_send(device);
    }
}

impl Inner {
    fn room(&self, device: &DeviceId, bytes: usize, bound: Bound) -> Room {
        let most = match bound {
            Bound::Device(device) => device,
            Bound::Shared { device, all } => all.saturating_sub(self.unacknowledged_bytes).min(device),
        };
        let Some(connection) = self.by_device.get(device) else { return Room::Away };
        let waiting = connection.unacknowledged_bytes;
        if waiting > 0 && waiting + bytes > most { Room::Full(waiting) } else { Room::Free }
    }

    fn forget(&mut self, ended: Option<Connection>) {
        let bytes = ended.map_or(0, |connection| connection.unacknowledged_bytes);
        self.unacknowledged_bytes = self.unacknowledged_bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use rmqtt::types::ClientId;

    use super::*;

    #[test]
    fn only_the_connection_that_counts_can_end() {
        let connections = Connections::new(mpsc::channel(1).0);
        let device = DeviceId::new("dev-1").unwrap();
        // An id holds the time it was made, too.
        let [first, second] = [1, 2].map(|node| Id::from(node, ClientId::from_static("dev-1")));
        connections.begin(device.clone(), first.clone());
        connections.begin(device.clone(), second.clone());
        assert!(!connections.end(&device, &first) && !connections.is_current(&device, &first));
        assert_eq!(connections.count(), 1);
        assert!(connections.end(&device, &second));
        assert_eq!((connections.count(), connections.reserve(&device, 1, Bound::Device(10))), (0, Room::Away));
    }

    #[test]
    fn what_is_on_its_way_is_bounded() {
        let connections = Connections::new(mpsc::channel(1).0);
        let device = DeviceId::new("dev-1").unwrap();
        connections.begin(device.clone(), Id::from(1, ClientId::from_static("dev-1")));
        assert!(!connections.is_sending(&device));
        assert_eq!(connections.reserve(&device, 6, Bound::Device(10)), Room::Free);
        assert_eq!(connections.reserve(&device, 6, Bound::Device(10)), Room::Full(6));
        assert!(connections.is_sending(&device));
        connections.release("dev-1", 6);
        assert!(!connections.is_sending(&device));
        // One message alone may be larger than the bound: it would never go otherwise.
        assert_eq!(connections.reserve(&device, 60, Bound::Device(10)), Room::Free);
        connections.release("dev-1", 1_000);
        assert_eq!(connections.reserve(&device, 10, Bound::Device(10)), Room::Free);
        let worth_a_line = (1..=20).filter_map(|_| connections.count_refusal(&device)).collect::<Vec<_>>();
        assert_eq!(worth_a_line, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn those_who_do_not_read_leave_room_for_the_others() {
        let (sender, mut room) = mpsc::channel(9);
        let connections = Connections::new(sender);
        let devices = ["dev-1", "dev-2", "dev-3"].map(|name| DeviceId::new(name).unwrap());
        let ids = devices.each_ref().map(|device| Id::from(1, ClientId::from(device.to_string())));
        for (id, device) in ids.iter().zip(&devices) {
            connections.begin(device.clone(), id.clone());
        }
        let bound = Bound::Shared { device: 80, all: 100 };
        let fill = |device| (0..100).take_while(|_| connections.reserve(device, 1, bound) == Room::Free).count();
        // Half of all, then half of what is left, and so on.
        assert_eq!([fill(&devices[0]), fill(&devices[1]), fill(&devices[2])], [50, 25, 13]);
        connections.release("dev-2", 25);
        assert_eq!(room.try_recv(), Ok(devices[1].clone()));
        assert_eq!((fill(&devices[0]), fill(&devices[1])), (0, 19));
        // Who leaves gives back what was on its way; a connection that takes another's place begins with nothing.
        assert!(connections.end(&devices[0], &ids[0]));
        connections.begin(devices[1].clone(), Id::from(7, ClientId::from_static("dev-2")));
        assert_eq!(fill(&devices[1]), 44);
    }
}
