//! One generator thread: its connections, its epoll set, its counts.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{Timespec, epoll};
use rustix::time::{ClockId, clock_gettime};

use super::Plan;
use super::endpoint::Socket;
use super::pace::{Pace, Window};
use super::request::PreparedRequest;
use super::tally::Tally;
use super::wire::{header_value, parse_reply};

const SCRATCH_BYTES: usize = 64 * 1024;
const EVENTS: usize = 256;
const MAX_LOST: u64 = 100;
/// Once the timetable of an open loop is over, so long are late answers waited for.
const DRAIN: Duration = Duration::from_secs(5);
/// One reply in so many has its `Outrigger-Cache` header looked at.
const SAMPLE_EVERY: u64 = 64;

struct Connection {
    socket: Socket,
    /// When the outstanding call was (or was meant to be) started.
    started: Option<Instant>,
    /// The beginning of a reply that came in pieces.
    partial: Vec<u8>,
}

pub(super) struct Worker<'p> {
    plan: &'p Plan,
    index: usize,
    request: PreparedRequest,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    free: VecDeque<usize>,
    pace: Pace,
    tally: Tally,
    replies: u64,
    lost: u64,
    scratch: Box<[u8]>,
}

impl<'p> Worker<'p> {
    /// Opens this thread's connections.
    pub(super) fn connect(plan: &'p Plan, index: usize, connections: usize) -> Result<Self> {
        let mut request = plan.request.prepare(&plan.endpoint.host());
        request.start_at(plan.request.keys / plan.threads as u64 * index as u64);
        let mut worker = Self {
            plan,
            index,
            request,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: Vec::with_capacity(connections),
            free: (0..connections).collect(),
            pace: Pace::Always,
            tally: Tally::default(),
            replies: 0,
            lost: 0,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        };
        for place in 0..connections {
            let socket = worker.open(place)?;
            worker.connections.push(Connection { socket, started: None, partial: Vec::new() });
        }
        Ok(worker)
    }

    fn open(&self, place: usize) -> Result<Socket> {
        let socket = self.plan.endpoint.connect().context("cannot connect")?;
        socket.set_nonblocking(true)?;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(place as u64), epoll::EventFlags::IN)?;
        Ok(socket)
    }

    /// Generates the load and counts what happens inside `window`.
    pub(super) fn run(mut self, window: Window) -> Result<Tally> {
        self.pace = Pace::new(self.plan, self.index, window);
        let mut events = Vec::with_capacity(EVENTS);
        let mut cpu_at = [None, None];
        loop {
            let now = Instant::now();
            if now >= window.from {
                cpu_at[0].get_or_insert_with(thread_cpu);
            }
            if now >= window.until {
                cpu_at[1].get_or_insert_with(thread_cpu);
            }
            while let Some(place) = self.free.front().copied() {
                let Some(start) = self.pace.claim(now) else { break };
                self.free.pop_front();
                self.issue(place, start)?;
            }
            if self.is_finished(now, window) {
                break;
            }
            let wait = self.next_wake(now, window).saturating_duration_since(now);
            let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                self.on_readable(event.data.u64() as usize, window)?;
            }
        }
        self.close(window, cpu_at);
        Ok(self.tally)
    }

    fn is_finished(&self, now: Instant, window: Window) -> bool {
        let quiet = self.free.len() == self.connections.len();
        match &self.pace {
            Pace::Always => now >= window.until,
            Pace::Timetable(arrivals) => {
                let over = now >= window.until && arrivals.next_start().is_none();
                (over && quiet) || now >= window.until + DRAIN
            }
            Pace::Left(left) => (*left == 0 && quiet) || now >= window.until,
        }
    }

    /// The next moment at which something happens without a reply.
    fn next_wake(&self, now: Instant, window: Window) -> Instant {
        let edge = [window.from, window.until].into_iter().find(|edge| *edge > now).unwrap_or(now + DRAIN);
        match &self.pace {
            Pace::Timetable(arrivals) if !self.free.is_empty() => {
                arrivals.next_start().map_or(edge, |start| start.min(edge))
            }
            _ => edge,
        }
    }

    fn issue(&mut self, place: usize, start: Instant) -> Result<()> {
        let bytes = self.request.next();
        let connection = &mut self.connections[place];
        connection.started = Some(start);
        match connection.socket.write(bytes) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(written) => {
                bail!("a request of {} bytes does not fit the socket ({written} went)", bytes.len())
            }
            Err(error) => self.lose(place, &error),
        }
    }

    fn on_readable(&mut self, place: usize, window: Window) -> Result<()> {
        let connection = &mut self.connections[place];
        let read = match connection.socket.read(&mut self.scratch) {
            Ok(0) => return self.lose(place, &io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return self.lose(place, &error),
        };
        let whole = connection.partial.is_empty();
        if !whole {
            connection.partial.extend_from_slice(&self.scratch[..read]);
        }
        let bytes = if whole { &self.scratch[..read] } else { connection.partial.as_slice() };
        let reply = parse_reply(bytes).with_context(|| String::from_utf8_lossy(bytes).into_owned())?;
        let Some(reply) = reply.filter(|reply| reply.total_bytes() <= bytes.len()) else {
            if whole {
                connection.partial.extend_from_slice(&self.scratch[..read]);
            }
            return Ok(());
        };
        if reply.status != self.plan.expected_status || reply.total_bytes() < bytes.len() {
            bail!(
                "expected one reply with status {}, got:\n{}",
                self.plan.expected_status,
                String::from_utf8_lossy(bytes)
            );
        }
        if self.replies.is_multiple_of(SAMPLE_EVERY)
            && let Some(from) = header_value(&bytes[..reply.head_bytes], "outrigger-cache")
        {
            self.tally.cache_samples.0 += 1;
            self.tally.cache_samples.1 += u64::from(from == "l1");
        }
        self.replies += 1;
        self.tally.reply = Some(reply);
        connection.partial.clear();
        self.complete(place, window)
    }

    fn complete(&mut self, place: usize, window: Window) -> Result<()> {
        let now = Instant::now();
        let Some(start) = self.connections[place].started.take() else {
            bail!("a reply came that nobody asked for");
        };
        if window.holds(now) {
            self.tally.completed += 1;
        }
        if window.holds(start) {
            self.tally.record(now - start);
        }
        match self.pace.claim(now) {
            Some(start) => self.issue(place, start),
            None => {
                self.free.push_back(place);
                Ok(())
            }
        }
    }

    /// A connection broke: its call, if any, is an error, and a new connection takes its place.
    fn lose(&mut self, place: usize, why: &io::Error) -> Result<()> {
        self.lost += 1;
        if self.connections[place].started.take().is_some() {
            self.tally.errors += 1;
            self.tally.first_error.get_or_insert_with(|| why.to_string());
            self.free.push_back(place);
        }
        if self.lost > MAX_LOST {
            bail!(
                "{} connections broke, {} with a call outstanding; the last: {why}",
                self.lost,
                self.tally.errors
            );
        }
        self.connections[place].socket = self.open(place)?;
        self.connections[place].partial.clear();
        Ok(())
    }

    fn close(&mut self, window: Window, cpu_at: [Option<Duration>; 2]) {
        self.tally.measured = window.until - window.from;
        if let [Some(from), until] = cpu_at {
            self.tally.generator_cpu = until.unwrap_or_else(thread_cpu).saturating_sub(from);
        }
        if !matches!(self.pace, Pace::Timetable(_)) {
            return;
        }
        let now = Instant::now();
        let mut waiting: Vec<Instant> =
            self.connections.iter().filter_map(|connection| connection.started).collect();
        while let Some(start) = self.pace.claim(now) {
            waiting.push(start);
        }
        for start in waiting.into_iter().filter(|start| window.holds(*start)) {
            self.tally.unfinished += 1;
            self.tally.record(now - start);
        }
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
