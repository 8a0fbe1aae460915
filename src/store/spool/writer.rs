//! The thread that writes: many callers, one `fdatasync`.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::frame::{self, HEAD_BYTES, Mark};
use super::place::{Identity, Lost};
use super::segment::Segment;
use super::{AppendError, Place, Shared};

/// Callers that wait; more wait for room.
const WAITING: usize = 1024;
/// Bytes that one `fdatasync` is for at the most, beside one caller's.
const AT_ONCE_BYTES: usize = 4 * 1024 * 1024;

type Appended = oneshot::Sender<Result<u64, AppendError>>;

/// What the thread is told.
pub(super) enum Order {
    Append { payload: Vec<u8>, answer: Appended },
    Remove { read_to: Place, answer: oneshot::Sender<Result<bool, AppendError>> },
}

/// The way to the thread, which ends when this is dropped and all that was told is done.
#[derive(Default)]
pub(super) struct Writer {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(mut active: Active) -> io::Result<Self> {
        let (orders, mut told) = mpsc::channel(WAITING);
        let thread = thread::Builder::new().name("spool".to_owned()).spawn(move || {
            let mut batch = Vec::new();
            while told.blocking_recv_many(&mut batch, WAITING) > 0 {
                active.work(batch.drain(..));
            }
        })?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    pub(super) async fn send(&self, order: Order) -> Result<(), AppendError> {
        let orders = self.orders.as_ref().ok_or(AppendError::Gone)?;
        orders.send(order).await.map_err(|_| AppendError::Gone)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the spool's thread panicked");
        }
    }
}

/// The segment that is written to.
pub(super) struct Active {
    shared: Arc<Shared>,
    open: Option<Open>,
    /// How the folder was lost, as it was said last.
    lost: Option<Lost>,
}

struct Open {
    segment: Segment,
    file: File,
    identity: Identity,
    length: u64,
}

impl Open {
    fn is_there(&self) -> io::Result<bool> {
        self.identity.is_at(self.segment.path())
    }
}

impl Active {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: None, lost: None }
    }

    pub(super) fn work(&mut self, orders: impl Iterator<Item = Order>) {
        let (mut payloads, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
        for order in orders {
            match order {
                Order::Append { payload, answer } => {
                    let adds = payload.len() + HEAD_BYTES;
                    if !self.has_room(bytes + adds) {
                        say(answer, Err(AppendError::Full));
                        continue;
                    }
                    bytes += adds;
                    payloads.push(payload);
                    answers.push(answer);
                    if bytes >= AT_ONCE_BYTES {
                        self.append(&payloads, answers.drain(..));
                        payloads.clear();
                        bytes = 0;
                    }
                }
                Order::Remove { read_to, answer } => {
                    self.append(&payloads, answers.drain(..));
                    payloads.clear();
                    bytes = 0;
                    say(answer, self.remove(read_to));
                }
            }
        }
        self.append(&payloads, answers.drain(..));
    }

    fn has_room(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        self.shared.has_room(bytes)
            || (self.shared.segments.lock().aside_bytes > 0
                && self.shared.count_aside().is_ok()
                && self.shared.has_room(bytes))
    }

    fn append(&mut self, payloads: &[Vec<u8>], answers: impl Iterator<Item = Appended>) {
        if payloads.is_empty() {
            return;
        }
        let ended = self.write(payloads);
        for (place, answer) in (0..).zip(answers) {
            say(answer, ended.clone().map(|first| first + place));
        }
    }

    /// Writes entries behind each other and waits for the disk; the first one's sequence.
    fn write(&mut self, payloads: &[Vec<u8>]) -> Result<u64, AppendError> {
        self.look().map_err(refused)?;
        let adds: usize = payloads.iter().map(|payload| payload.len() + HEAD_BYTES).sum();
        let first = self.shared.segments.lock().next_sequence;
        if self.open.is_none() {
            self.open = Some(self.begin(first).map_err(refused)?);
        }
        let Some(open) = &self.open else { return Err(AppendError::Gone) };
        let mut bytes = Vec::with_capacity(adds);
        for (sequence, payload) in (first..).zip(payloads) {
            frame::write(&mut bytes, open.segment.mark(), sequence, payload);
        }
        let disk = &*self.shared.disk;
        if let Err(error) = disk.write(&open.file, &bytes, open.length) {
            // What was written of it must not come again: its callers are told that it is not kept.
            let undone = disk.cut(&open.file, open.length).and_then(|()| disk.sync(&open.file));
            return Err(match undone {
                Ok(()) => refused(error),
                Err(_) => self.give_up(&error, payloads.len()),
            });
        }
        // Whoever removed the file before this took what nobody will read.
        let synced = disk.sync(&open.file).and_then(|()| self.is_where_it_was());
        if let Err(error) = synced {
            return Err(self.give_up(&error, payloads.len()));
        }
        self.written(payloads.len(), adds as u64);
        Ok(first)
    }

    /// So many entries of so many bytes are on the disk.
    fn written(&mut self, entries: usize, adds: u64) {
        let Some(open) = &mut self.open else { return };
        open.length += adds;
        open.segment.set_bytes(open.length);
        let is_over = open.length >= self.shared.bounds.segment_bytes;
        {
            let mut segments = self.shared.segments.lock();
            segments.bytes += adds;
            segments.next_sequence += entries as u64;
        }
        if is_over {
            self.seal();
        }
        self.shared.appended.notify_one();
    }

    fn begin(&self, first: u64) -> io::Result<Open> {
        let mut mark = Mark::default();
        getrandom(&mut mark)?;
        let shared = &self.shared;
        let (segment, file) = Segment::create(&*shared.disk, shared.folder.path(), first, mark)?;
        let identity = Identity::of(&file)?;
        shared.segments.lock().all.push(segment.clone());
        Ok(Open { segment, file, identity, length: 0 })
    }

    /// Before anything is written: an error where the folder is not this process's any more, and another segment where this one's file was
    /// removed.
    fn look(&mut self) -> io::Result<()> {
        if let Some(open) = &self.open
            && !open.is_there()?
        {
            // The reader says what was lost with it.
            self.seal();
            self.shared.appended.notify_one();
        }
        let lost = self.shared.folder.lost()?;
        if self.lost != lost {
            match lost {
                Some(lost) => tracing::error!(error = %lost, "nothing is taken to disk any more"),
                None => tracing::info!("the spool's folder is where it was again"),
            }
            self.lost = lost;
        }
        lost.map_or(Ok(()), |lost| Err(lost.into()))
    }

    fn is_where_it_was(&self) -> io::Result<()> {
        if let Some(lost) = self.shared.folder.lost()? {
            return Err(lost.into());
        }
        match &self.open {
            Some(open) if !open.is_there()? => Err(io::Error::other("its file was removed")),
            _ => Ok(()),
        }
    }

    /// After a failed `fdatasync` nobody knows what is on the disk, and another one would not say: what comes goes into another segment.
    fn give_up(&mut self, error: &io::Error, entries: usize) -> AppendError {
        tracing::error!(%error, "the spool's disk failed: another segment is begun");
        if let Some(open) = &self.open {
            // What is there of it is read: it may have been promised by nobody, and each entry counts once.
            let length = open.file.metadata().map_or(open.length, |data| data.len());
            let mut segments = self.shared.segments.lock();
            segments.bytes += length.saturating_sub(open.length);
            open.segment.set_bytes(length);
            // Sequences that may have been used are not used again.
            segments.next_sequence += entries as u64;
        }
        self.seal();
        self.shared.appended.notify_one();
        AppendError::Unknown(error.to_string().into())
    }

    fn seal(&mut self) {
        if let Some(open) = self.open.take() {
            open.segment.seal();
        }
    }

    fn remove(&mut self, read_to: Place) -> Result<bool, AppendError> {
        let is_meant = |segment: &&Segment| segment.id() == read_to.segment;
        let segment = self.shared.segments.lock().all.iter().find(is_meant).cloned();
        let Some(segment) = segment.filter(|segment| segment.bytes() <= read_to.offset) else {
            return Ok(false);
        };
        if !segment.is_sealed() {
            self.seal();
        }
        let (disk, folder) = (&*self.shared.disk, self.shared.folder.path());
        let _aside = self.shared.aside.lock();
        let aside_bytes = segment.delete(disk, folder).map_err(refused)?;
        let mut segments = self.shared.segments.lock();
        segments.aside_bytes += aside_bytes;
        segments.all.retain(|one| one.id() != read_to.segment);
        segments.bytes = segments.bytes.saturating_sub(segment.bytes());
        Ok(true)
    }
}

fn refused(error: io::Error) -> AppendError {
    AppendError::Disk(error.to_string().into())
}

fn getrandom(into: &mut [u8]) -> io::Result<()> {
    aws_lc_rs::rand::fill(into).map_err(|_| io::Error::other("no random numbers"))
}

/// A caller that no longer waits is no error: its entry is kept.
fn say<T>(answer: oneshot::Sender<T>, told: T) {
    if answer.send(told).is_err() {
        tracing::trace!("a caller of the spool stopped waiting");
    }
}
