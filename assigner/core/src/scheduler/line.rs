//! Standing in line: who comes, steps out and in again, and leaves it.
//!
//! Owns: that the queue, the lines of the GPUs and the counts of tenants agree. Does not own: the order
//! (`order`), who is taken out with a lease (`plan`).

use super::*;

impl Scheduler {
    /// Puts a client in line, with an earlier ticket of its own if it has one.
    pub(crate) fn stand_in_line(&mut self, id: ClientId, earlier: Option<Ticket>) {
        let client = self.clients.get_mut(&id).expect("the caller has looked the client up");
        let estimate = client.estimator.estimate(&self.config.estimator);
        // Who had to give way goes on where it was, unless it has done something else since.
        let quantum = self.config.quantum;
        let gave_way = client.gave_way.take();
        let gave_way = gave_way.filter(|request| self.now.since(request.at) < quantum);
        let request = gave_way.map(|request| *request).unwrap_or_else(|| {
            let ticket = earlier.unwrap_or_else(|| {
                let ticket = self.next_ticket;
                self.next_ticket = ticket.next();
                ticket
            });
            GaveWay { ticket, ..GaveWay::default() }
        });
        let GaveWay { ticket, spent, made_way, bypass, .. } = request;
        let used = self.come_back(id);
        let client = self.clients.get_mut(&id).expect("it was just there");
        client.used = used;
        client.waiting = Some(ticket);
        client.since = self.now;
        let tenant = client.tenant;
        self.tenants.of_mut(tenant).active += 1;
        let place = Place { unpromised: true, used, ticket };
        let waiter = Waiter {
            client: id,
            estimate,
            kept_since: bypass.since,
            bypassed: bypass.count,
            reservation: None,
            asks_at: None,
            place,
            spent,
            made_way,
            entitled: false,
        };
        self.queue.insert(waiter);
        self.step_in(id);
        if self.changes_nothing(id) {
            self.memory.note_turns(self.clients[&id].bound.iter().copied());
        } else {
            self.mark(id);
        }
    }

    /// Gives a waiting client its place in the lines.
    pub(crate) fn step_in(&mut self, id: ClientId) {
        let client = &self.clients[&id];
        let ticket = client.waiting.expect("the caller knows that it waits");
        let place = self.queue[&ticket].place;
        let lane = client.lane();
        for gpu in &client.bound {
            let state = &mut self.gpus[gpu.index()];
            state.waiting.insert(ticket);
            if client.let_go {
                state.line.insert(lane, place);
                if client.width > 1 {
                    state.wide.insert(ticket);
                }
            }
        }
        if client.bound.is_empty() && client.let_go {
            self.floating.insert(lane, place);
            self.ask_later(ticket);
        }
    }

    /// Takes it away.
    pub(crate) fn step_out(&mut self, id: ClientId) {
        let client = &self.clients[&id];
        let ticket = client.waiting.expect("the caller knows that it waits");
        let place = self.queue[&ticket].place;
        let lane = client.lane();
        for gpu in &client.bound {
            let state = &mut self.gpus[gpu.index()];
            state.waiting.remove(&ticket);
            state.line.remove(lane, &place);
            state.wide.remove(&ticket);
        }
        if client.bound.is_empty() {
            self.floating.remove(lane, &place);
            self.ask_no_more(ticket);
        }
    }

    /// Changes the place of a waiting client.
    pub(crate) fn replace(&mut self, id: ClientId, change: impl FnOnce(&mut Place)) {
        self.step_out(id);
        let ticket = self.clients[&id].waiting.expect("the caller knows that it waits");
        change(&mut self.queue.get_mut(&ticket).expect("a waiting client is in the queue").place);
        self.step_in(id);
    }

    /// Who has been promised a start stands before those who have not.
    pub(crate) fn place_by_promise(&mut self, id: ClientId) {
        let Some(ticket) = self.clients[&id].waiting else { return };
        let waiter = &self.queue[&ticket];
        let promised = waiter.reservation.is_some_and(|reservation| reservation.promised.is_some());
        if waiter.place.unpromised == promised {
            self.replace(id, |place| place.unpromised = !promised);
        }
    }

    /// Has everything planned again that the client may run on.
    pub(crate) fn mark(&mut self, id: ClientId) {
        let client = &self.clients[&id];
        self.dirty.all |= client.bound.is_empty();
        self.dirty.gpus.extend(&*client.bound);
    }

    pub(crate) fn cancel(&mut self, id: ClientId) {
        if self.clients.get(&id).is_some_and(|client| client.waiting.is_some()) {
            self.mark(id);
            self.unqueue(id);
        }
    }

    pub(crate) fn let_go(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.let_go {
            return;
        }
        client.let_go = true;
        if client.waiting.is_some() {
            self.step_in(id);
        }
        self.mark(id);
    }

    pub(crate) fn hold_back(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let waiting = client.waiting;
        if let Some(ticket) = waiting {
            self.step_out(id);
            let waiter = self.queue.get_mut(&ticket).expect("a waiting client is in the queue");
            waiter.reservation = None;
            waiter.kept_since = NEVER;
            waiter.place.unpromised = true;
        }
        let client = self.clients.get_mut(&id).expect("it was just there");
        client.let_go = false;
        if waiting.is_some() {
            self.step_in(id);
        }
        self.mark(id);
    }

    /// Takes a waiting client out of the queue.
    pub(crate) fn unqueue(&mut self, id: ClientId) -> Waiter {
        self.step_out(id);
        let client = self.clients.get_mut(&id).expect("the caller has looked the client up");
        let ticket = client.waiting.take().expect("the caller knows that it waits");
        if client.asks_for(Some(ticket)) {
            client.waited += self.now.since(client.since);
            client.since = self.now;
        }
        self.tenants.of_mut(client.tenant).active -= 1;
        self.queue.remove(&ticket).expect("a waiting client is in the queue")
    }
}
