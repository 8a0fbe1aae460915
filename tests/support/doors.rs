//! Where sidecars are reached, while they come and go.

use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;

use super::client::{Client, Reply};
use super::random::Random;
use super::sidecar::{ACME, Sidecar};

/// How long a caller waits for an answer: longer than the time it asks for.
const PATIENCE: Duration = Duration::from_millis(4500);
/// The time that a caller asks for.
pub const CALL_MS: &str = "4000";
pub const JSON: (&str, &str) = ("Content-Type", "application/json");

/// A sidecar's address, and a token that is good at it.
#[derive(Clone)]
struct Door {
    api: SocketAddr,
    bearer: String,
}

/// The doors of one tenant to the same events.
pub struct Doors(Vec<Mutex<Door>>);

impl Doors {
    pub fn of(sidecars: &[&Sidecar]) -> Self {
        Self::of_tenant(ACME, sidecars)
    }

    pub fn of_tenant(tenant: &str, sidecars: &[&Sidecar]) -> Self {
        let door = |sidecar: &&Sidecar| {
            let token = sidecar.token_with(&["--tenant", tenant, "--subject", "faults", "--ttl", "12h"]);
            Mutex::new(Door { api: sidecar.api, bearer: format!("Bearer {token}") })
        };
        Self(sidecars.iter().map(door).collect())
    }

    /// The sidecar has started again, with the same keys.
    pub fn moved(&self, at: usize, sidecar: &Sidecar) {
        self.0[at].lock().api = sidecar.api;
    }

    fn pick(&self, random: &mut Random) -> Door {
        self.0[random.below(self.0.len() as u64) as usize].lock().clone()
    }
}

/// What became of a call.
pub enum Heard {
    Reply(Reply),
    /// Nobody listened: it was not sent.
    NotSent,
    /// It was sent, in part at least, and no answer came.
    Cut,
}

/// A caller that takes another connection, to any of the doors, where one is lost.
pub struct Caller<'d> {
    doors: &'d Doors,
    call_ms: &'static str,
    pub random: Random,
    open: Option<(Client, String)>,
}

impl<'d> Caller<'d> {
    pub fn new(doors: &'d Doors, seed: u64) -> Self {
        Self { doors, call_ms: CALL_MS, random: Random::new(seed), open: None }
    }

    /// One whose calls may take as long as a call may: for the whole of a long log at once.
    pub fn patient(self) -> Self {
        Self { call_ms: "60000", ..self }
    }

    /// A connection of its own, and the token that is good there.
    pub fn open(&mut self) -> Option<(Client, String)> {
        let door = self.doors.pick(&mut self.random);
        Client::within(door.api, PATIENCE).ok().map(|client| (client, door.bearer))
    }

    pub fn call(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Heard {
        let Some((mut client, bearer)) = self.open.take().or_else(|| self.open()) else {
            return Heard::NotSent;
        };
        let mut all = vec![("Authorization", bearer.as_str()), ("Outrigger-Timeout-Ms", self.call_ms)];
        all.extend(headers);
        let sent = client.write_request(method, target, &all, body.as_bytes());
        match sent.and_then(|()| client.read_reply(false)) {
            Ok(reply) => {
                // After a failure another sidecar may do better.
                if reply.status < 500 && reply.header("connection") != Some("close") {
                    self.open = Some((client, bearer));
                }
                Heard::Reply(reply)
            }
            Err(_) => Heard::Cut,
        }
    }

    /// Until the next try, so that a sidecar that is away does not take the machine's time.
    pub fn rest(&mut self) {
        std::thread::park_timeout(Duration::from_millis(5 + self.random.below(20)));
    }
}
