//! pveproxy's workers, which retire.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many there are at a time.
const WORKERS: usize = 3;
/// The requests that one answers before it retires.
const MAX_REQUESTS: usize = 1000;

/// The requests that each worker's place has answered so far.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    answered: [AtomicUsize; WORKERS],
    connections: AtomicUsize,
}

/// The worker of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    place: usize,
    /// How many workers had this place before it.
    generation: usize,
}

impl Proxies {
    /// Gives a new connection to the next worker in turn.
    pub(crate) fn seat(&self) -> Seat {
        let place = self.connections.fetch_add(1, Ordering::Relaxed) % WORKERS;
        Seat { place, generation: self.answered[place].load(Ordering::Relaxed) / MAX_REQUESTS }
    }

    /// Counts a request; whether its worker stays after it, and with it the connection.
    pub(crate) fn stays(&self, seat: Seat) -> bool {
        let answered = self.answered[seat.place].fetch_add(1, Ordering::Relaxed) + 1;
        answered / MAX_REQUESTS == seat.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_retires_with_all_its_connections_and_another_takes_its_place() {
        let proxies = Proxies::default();
        let seats = [(); WORKERS].map(|()| proxies.seat());
        let other = proxies.seat();
        assert!((1..MAX_REQUESTS).all(|_| proxies.stays(seats[0])));
        assert!(!proxies.stays(seats[0]), "its thousandth request is its last");
        assert!(!proxies.stays(other), "it was the same worker's");
        assert!(proxies.stays(seats[1]));
        let next = [(); WORKERS].map(|()| proxies.seat());
        assert!(next.iter().all(|seat| proxies.stays(*seat)));
    }
}
