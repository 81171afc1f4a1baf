//! Liveness: all is done in the end.

use std::time::Duration;

use crate::world::World;
use crate::world::client::Life;

impl World<'_, '_> {
    /// All should have been done by now.
    pub(in crate::world) fn overdue(&mut self, due: Duration) {
        let mut clients = self.clients.iter().zip(&self.scenario.clients);
        let late =
            clients.position(|(client, spec)| client.life != Life::Over && spec.arrival <= due);
        if let Some(client) = late {
            let name = self.name(client).to_owned();
            self.violated(format!("{name} is not done after {} s", due.as_secs_f64()));
        }
    }

    /// Nothing will happen any more.
    pub(in crate::world) fn stuck(&mut self) {
        let waiting = self.clients.iter().position(|client| client.life == Life::Here);
        if let Some(client) = waiting {
            let name = self.name(client).to_owned();
            self.violated(format!("nothing happens any more, but {name} is not done"));
        }
    }
}
