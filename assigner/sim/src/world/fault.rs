//! What goes wrong: death, stops, restarts of assigners, memory that is not there (`outside`).
//!
//! Does not own: when (`scenario`).

use std::time::Duration;

use acb_core::{Config, Epoch, Event, Scheduler, Settle};

use super::client::{Life, end_of_kernel};
use super::{Happening, World};
use crate::scenario::FaultKind;

impl World<'_, '_> {
    pub(super) fn fault(&mut self, number: usize) {
        match self.scenario.faults[number].what {
            FaultKind::Kill(client) => self.kill(client),
            FaultKind::Stop(client, lasts) => self.stop(client, lasts),
            FaultKind::Restart(node, lasts) => self.restart(node, lasts),
            FaultKind::Controller(lasts) => self.restart_controller(lasts),
            FaultKind::Cut(node, lasts) if self.has_controller() => {
                self.excuse_gangs(lasts);
                self.cut(node, lasts);
            }
            FaultKind::Cut(..) => {}
            FaultKind::Outside { node, gpu, bytes, lasts } => {
                self.come_outside(node, gpu, bytes, lasts);
            }
            FaultKind::Crash(node, ends) => self.crash(node, ends),
        }
    }

    /// SIGKILL: the process is gone when its kernel is over and the driver has cleaned up.
    fn kill(&mut self, index: usize) {
        match self.clients[index].life {
            Life::Absent => {
                self.over(index);
            }
            Life::Here => {
                self.log(|scenario| format!("{} is killed", scenario.clients[index].name));
                self.outcome.kills += 1;
                self.excuse(self.scenario.clients[index].node, Duration::ZERO);
                let client = &mut self.clients[index];
                client.life = Life::Dying;
                let kernel = self.scenario.clients[index].kernel;
                let done = client
                    .running
                    .map_or(self.now, |running| end_of_kernel(running, self.now, kernel));
                let at = done.after(self.scenario.costs.death);
                self.plan_at(at, Happening::Gone(index));
            }
            Life::Dying | Life::Over => {}
        }
    }

    /// The process of a killed client is gone, and its assigner sees it.
    pub(super) fn gone(&mut self, index: usize) {
        if self.clients[index].life != Life::Dying {
            return; // its node went before
        }
        self.halt(index);
        self.close(index);
        self.over(index);
        let node = self.scenario.clients[index].node;
        // An assigner that is down sees it when it is back.
        self.tell(node, Event::Leave { client: super::node::number(index) });
    }

    fn stop(&mut self, index: usize, lasts: Duration) {
        if self.clients[index].life == Life::Here && !self.clients[index].stopped {
            self.log(|scenario| format!("{} is stopped", scenario.clients[index].name));
            self.excuse(self.scenario.clients[index].node, lasts);
            self.clients[index].stopped = true;
            self.stop_after_kernel(index, self.scenario.clients[index].kernel);
            self.plan(lasts, Happening::Continue(index));
        }
    }

    pub(super) fn go_on(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.stopped = false;
        if client.life != Life::Here {
            return;
        }
        if !client.connected {
            client.unsure = true;
            self.connect(index);
        }
        for action in std::mem::take(&mut self.clients[index].inbox) {
            if self.clients[index].life == Life::Here {
                self.hear(index, action);
            }
        }
        self.pump_all(index);
        self.drive(index);
    }

    /// The assigner of a node dies; what it has written down and what its clients hold remain.
    fn restart(&mut self, index: usize, lasts: Duration) {
        self.write_in_time(index);
        self.note_holders(index);
        let node = &mut self.nodes[index];
        if node.scheduler.take().is_none() {
            return;
        }
        node.life += 1;
        node.looked_after.clear();
        self.log(|scenario| format!("{} is down", scenario.nodes[index].name));
        self.excuse(index, lasts);
        self.gang_node_down(index, Duration::ZERO);
        if index == 0 {
            self.restart_controller(lasts); // it lives in that assigner
        }
        for client in 0..self.clients.len() {
            if self.scenario.clients[client].node == index {
                self.clients[client].connected = false;
                self.clients[client].asked = false;
                self.clients[client].waits = None;
                self.clients[client].inbox.clear();
            }
        }
        self.plan(lasts, Happening::Back(index));
    }

    /// It is back, and so are its clients.
    pub(super) fn back(&mut self, index: usize) {
        self.log(|scenario| format!("{} is back", scenario.nodes[index].name));
        if self.nodes[index].is_dead {
            return;
        }
        let written = &self.nodes[index].writer.written;
        let config = Config {
            first_epoch: Epoch(written.epoch_limit.max(1)),
            settle: Settle {
                until: self.now.after(self.scenario.costs.settle),
                expected: written.clients.clone(),
                departed: written.departed.clone(),
            },
            ..self.scenario.nodes[index].config.clone()
        };
        match Scheduler::new(config) {
            Ok(scheduler) => self.nodes[index].scheduler = Some(scheduler),
            Err(error) => return self.violated(format!("the assigner does not start: {error}")),
        }
        self.write_first(index);
        for client in 0..self.clients.len() {
            if self.scenario.clients[client].node != index {
                continue;
            }
            match self.clients[client].life {
                Life::Here if !self.clients[client].stopped => {
                    self.connect(client);
                    self.drive(client);
                }
                Life::Over => {
                    self.tell(index, Event::Leave { client: super::node::number(client) });
                }
                _ => {}
            }
        }
        self.tell(index, Event::Timer); // its deadline
        if self.has_controller() {
            self.gang_connect(index);
        }
    }

    /// The controller dies, and is back after a while.
    fn restart_controller(&mut self, lasts: Duration) {
        if self.gangs.controller.is_some() {
            self.excuse_gangs(lasts);
            self.stop_controller();
            self.plan(lasts, Happening::ControllerBack);
        }
    }

    /// What is under way between nodes and controller may have to begin anew.
    fn excuse_gangs(&mut self, lasts: Duration) {
        let until = self.now.after(lasts);
        self.gangs.watched.excused = self.gangs.watched.excused.max(until);
    }

    /// A node is gone with all that is on it; after a while gangs with members there are ended.
    fn crash(&mut self, node: usize, ends: Duration) {
        if self.nodes[node].is_dead {
            return;
        }
        self.log(|scenario| format!("{} is gone", scenario.nodes[node].name));
        self.nodes[node].is_dead = true;
        self.nodes[node].scheduler = None;
        self.nodes[node].life += 1;
        self.gang_node_down(node, self.scenario.costs.detect);
        self.plan(ends, Happening::EndGangs(node));
        for client in 0..self.clients.len() {
            let life = self.clients[client].life;
            if self.scenario.clients[client].node == node && life != Life::Over {
                self.outcome.kills += u64::from(life == Life::Here);
                self.halt(client);
                self.close(client);
                self.over(client);
            }
        }
    }

    /// A client ends in an error: after a while, whoever has started its gang ends the others.
    pub(super) fn fail_gang(&mut self, index: usize) {
        let spec = &self.scenario.clients[index];
        if spec.gang.is_some() {
            let after = self.scenario.nodes[spec.node].config.gangs.timing.patience;
            self.plan(after, Happening::EndGang(index));
        }
    }

    /// A member was refused, or its memory denied: those who have not heard the same by the time that the refusal is remembered end with it.
    pub(super) fn end_gang_of(&mut self, index: usize) {
        if let Some(gang) = &self.scenario.clients[index].gang {
            for client in self.gangs.members[&gang.name].clone() {
                self.kill(client);
            }
        }
    }

    pub(super) fn end_gangs(&mut self, node: usize) {
        let clients = &self.scenario.clients;
        let crippled = self
            .gangs
            .members
            .values()
            .filter(|members| members.iter().any(|client| clients[*client].node == node));
        for client in crippled.flatten().copied().collect::<Vec<usize>>() {
            self.kill(client);
        }
    }
}
