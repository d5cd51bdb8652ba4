//! Files that grow, are rotated, or appear while they are read: the local source of the long-running service.
//!
//! All files and folders of the settings are one shard, in the order of event time ([`merge`](super::merge)), for a conversation may
//! be in several of them; standard input is another. A thread of its own reads a shard and hands batches over a channel of two, so
//! that a slow consumer holds the reading.
//!
//! A file is known by its [content](super::content), whatever its name and inode are:
//!
//! | what happens to a log that was read | what is read then |
//! | --- | --- |
//! | it is renamed, or copied | nothing of it again; both go on where it was |
//! | it is packed, and the plain file removed | nothing |
//! | it is cut to nothing, or its name or inode is given to another file, of whatever length | what is in it now, from the beginning |
//! | a named file is rotated to where nobody looks | its rest, through the old handle |
//! | it cannot be opened | all of it as soon as it can be; until then the service is degraded |
//! | it has the name of a download under way (`x.part`, `x.gz.6eF5b2C1`) | nothing until it is renamed |
//!
//! A position is the number of a batch; which file stood where after it is remembered until it is checkpointed, and the
//! checkpoint file holds the places of all files of the shard.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::flow::{EventTime, Interface};
use crate::ingest::local::content::{Content, Head, Likeness};
use crate::ingest::local::merge::{Event, Mark, Merge, Part};
use crate::ingest::local::open::{Decoder, Place};
use crate::ingest::local::walk::{self, Found};
use crate::ingest::local::{ReadError, shown};
use crate::ingest::{Batch, FlowSource, IngestError, Position, Read, Refusal, Settings, Shard, ShardId};

/// Batches under way between the reading thread and the owner of the shard.
const AHEAD: usize = 2;

/// The paths of `[ingest.local]`, one shard, and standard input another. One that was given up without being released is offered again, from its
/// last checkpoint.
pub struct Source {
    waiting: VecDeque<Offer>,
    returned: mpsc::Receiver<Return>,
    give_back: mpsc::Sender<Return>,
    /// How many shards are being read.
    out: usize,
    settings: Settings,
}

/// A shard to be read.
struct Offer {
    /// In the order of their names.
    paths: Vec<PathBuf>,
    /// Where it stands, when it was read in this process before.
    checkpoint: Option<Checkpoint>,
    /// How often in a row it was given up without having come further.
    failures: u32,
}

/// What comes back when a shard is dropped: nothing when it was released.
type Return = Option<Offer>;

/// How often a shard that is read to an end is offered again without coming further; what grows is offered for ever.
const FAILURES_MAX: u32 = 5;

impl Source {
    /// Every path must exist.
    pub fn new(settings: &Settings) -> Result<Source, ReadError> {
        settings.format()?;
        for path in &settings.local.paths {
            if path != Path::new("-") {
                fs::metadata(path).map_err(|cause| ReadError::Open { path: shown(path), cause })?;
            }
        }
        let (stdin, mut files): (Vec<PathBuf>, Vec<PathBuf>) =
            settings.local.paths.iter().cloned().partition(|path| path == Path::new("-"));
        files.sort();
        files.dedup();
        let offer = |paths: Vec<PathBuf>| Offer { paths, checkpoint: None, failures: 0 };
        let waiting = [files, stdin.into_iter().take(1).collect()];
        let waiting: VecDeque<Offer> = waiting.into_iter().filter(|paths| !paths.is_empty()).map(offer).collect();
        // A shard comes back once for each time it is offered, so there is room for all.
        let (give_back, returned) = mpsc::channel(waiting.len().max(1));
        Ok(Source { waiting, returned, give_back, out: 0, settings: settings.clone() })
    }

    /// Takes in what comes back; `false` when it is not to be offered again.
    fn take_back(&mut self, offer: Offer) -> bool {
        // What was read of standard input is gone.
        let lost = is_stdin(&offer.paths) || (!self.settings.local.follow && offer.failures >= FAILURES_MAX);
        if !lost {
            self.waiting.push_back(offer);
        }
        !lost
    }
}

#[async_trait]
impl FlowSource for Source {
    async fn next_shard(&mut self) -> Result<Option<Box<dyn Shard>>, IngestError> {
        loop {
            if let Some(offer) = self.waiting.pop_front() {
                let shard = LocalShard::new(offer, &self.settings, self.give_back.clone())?;
                self.out += 1;
                return Ok(Some(Box::new(shard)));
            }
            if self.out == 0 {
                return Ok(None);
            }
            // We hold a sender ourselves, so there is always an answer.
            let back = self.returned.recv().await.flatten();
            self.out -= 1;
            if let Some(offer) = back {
                self.take_back(offer);
            }
        }
    }
}

/// Files and folders, or standard input.
struct LocalShard {
    id: ShardId,
    poll: Duration,
    /// Where the checkpoint is kept.
    kept: Option<PathBuf>,
    checkpoint: Checkpoint,
    /// Whether the file has not got it yet.
    unsaved: bool,
    updates: Updates,
    waiting: Option<Box<Follower>>,
    batches: Option<mpsc::Receiver<Result<Batch, IngestError>>>,
    paths: Vec<PathBuf>,
    troubles: Troubles,
    /// Where it stood when it was offered, and how often it was offered there.
    begun: (u64, u32),
    released: bool,
    give_back: mpsc::Sender<Return>,
}

impl Drop for LocalShard {
    fn drop(&mut self) {
        let failures = if self.checkpoint.batch > self.begun.0 { 1 } else { self.begun.1 + 1 };
        let (paths, checkpoint) = (self.paths.clone(), Some(self.checkpoint.clone()));
        // There is room for each shard; a source that is gone offers nothing any more.
        let _ = self.give_back.try_send((!self.released).then_some(Offer { paths, checkpoint, failures }));
    }
}

/// Which file stood where after which batch, or is forgotten with it, oldest first.
type Updates = Arc<Mutex<VecDeque<(u64, String, Option<Known>)>>>;

/// What keeps files from being read.
type Troubles = Arc<Mutex<Vec<String>>>;

/// What the checkpoint file holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Checkpoint {
    /// Number of the last batch that is done with.
    batch: u64,
    files: BTreeMap<String, Known>,
}

impl Checkpoint {
    /// A file stands somewhere else now, or is forgotten.
    fn apply(&mut self, name: String, known: Option<Known>) {
        match known {
            Some(known) => self.files.insert(name, known),
            None => self.files.remove(&name),
        };
    }
}

/// How far a file was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    place: Place,
    inode: u64,
    /// Its size when its end was last reached; 0 before.
    size: u64,
    /// When it was last written by then, ns since 1970; 0 before.
    #[serde(default)]
    modified: i64,
    /// What was read of it; nothing in a checkpoint of an earlier version, or where it was no flow log.
    #[serde(default)]
    content: Option<Content>,
    /// The batch in which it was last read.
    #[serde(default)]
    batch: u64,
}

impl Known {
    /// A file of which nothing was read.
    fn new(job: &Job) -> Known {
        let place = Place::at_start(&job.name);
        Known { place, inode: job.inode, size: 0, modified: 0, content: None, batch: 0 }
    }

    /// Whether anything of it is done with.
    fn has_begun(&self) -> bool {
        self.place.offset > 0 || self.place.line > 0 || self.place.skip > 0
    }

    /// Whether its end was reached, and nobody has written to it since.
    fn is_as_it_was(&self, file: &Found) -> bool {
        self.size > 0 && (self.inode, self.size, self.modified) == (file.inode, file.size, file.modified)
    }
}

impl LocalShard {
    fn new(offer: Offer, settings: &Settings, give_back: mpsc::Sender<Return>) -> Result<LocalShard, IngestError> {
        let Offer { paths, checkpoint, failures } = offer;
        let local = &settings.local;
        let name = name_of(&paths);
        let kept = (!local.checkpoint.as_os_str().is_empty()).then(|| local.checkpoint.join(file_name(&name)));
        let checkpoint = match (checkpoint, &kept) {
            (Some(checkpoint), _) => checkpoint,
            (None, Some(file)) => load(file)?,
            (None, None) => Checkpoint::default(),
        };
        let (updates, troubles) = (Updates::default(), Troubles::default());
        let follower = Follower {
            decoder: Decoder::new(settings).map_err(|error| fatal("read the settings", error))?,
            known: checkpoint.files.clone(),
            handles: BTreeMap::new(),
            batch: checkpoint.batch,
            follow: local.follow && !is_stdin(&paths),
            poll: local.poll_interval.unsigned_abs(),
            updates: updates.clone(),
            troubles: troubles.clone(),
            forgotten: Vec::new(),
            period: None,
            paths: paths.clone(),
        };
        Ok(LocalShard {
            id: ShardId(name.into()),
            poll: local.poll_interval.unsigned_abs(),
            kept,
            begun: (checkpoint.batch, failures),
            checkpoint,
            unsaved: false,
            paths,
            troubles,
            released: false,
            give_back,
            updates,
            waiting: Some(Box::new(follower)),
            batches: None,
        })
    }

    fn start(&mut self) -> Result<(), IngestError> {
        let Some(mut follower) = self.waiting.take() else { return Ok(()) };
        let (to, batches) = mpsc::channel(AHEAD);
        let body = move || follower.run(&to);
        let spawned = thread::Builder::new().name("flowvigil-follow".into()).spawn(body);
        spawned.map_err(|error| fatal("start a thread to read in", error))?;
        self.batches = Some(batches);
        Ok(())
    }
}

#[async_trait]
impl Shard for LocalShard {
    fn id(&self) -> &ShardId {
        &self.id
    }

    fn parents(&self) -> Vec<ShardId> {
        Vec::new()
    }

    fn resume_from(&self) -> Option<Position> {
        (self.checkpoint.batch > 0).then(|| position(self.checkpoint.batch))
    }

    fn bookmark(&self, position: &Position) -> Position {
        let Ok(batch) = position.0.parse() else { return position.clone() };
        let mut checkpoint = self.checkpoint.clone();
        let updates = self.updates.lock().unwrap_or_else(PoisonError::into_inner);
        let until = updates.iter().take_while(|(number, ..)| *number <= batch);
        until.for_each(|(_, name, known)| checkpoint.apply(name.clone(), known.clone()));
        checkpoint.batch = checkpoint.batch.max(batch);
        serde_json::to_string(&checkpoint).map_or_else(|_| position.clone(), Position)
    }

    /// Snapshots of earlier versions have no places with them, and can be used only at the checkpoint. Where there is none, all is to
    /// be read again.
    fn resume_at(&mut self, position: &Position) -> bool {
        let (Some(follower), true) = (&mut self.waiting, self.checkpoint.batch > 0) else { return false };
        let Ok(checkpoint) = serde_json::from_str::<Checkpoint>(&position.0) else { return false };
        follower.known.clone_from(&checkpoint.files);
        follower.batch = checkpoint.batch;
        self.checkpoint = checkpoint;
        true
    }

    fn adopt_interfaces(&mut self, known: &[Interface]) {
        if let Some(follower) = &mut self.waiting {
            follower.decoder.interfaces.adopt(known);
        }
    }

    fn trouble(&self) -> Option<String> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let first = troubles.first()?;
        Some(match troubles.len() {
            1 => first.clone(),
            many => format!("{first} (and {} more files)", many - 1),
        })
    }

    async fn read(&mut self) -> Result<Read, IngestError> {
        self.start()?;
        let Some(batches) = &mut self.batches else { return Ok(Read::End) };
        match tokio::time::timeout(self.poll, batches.recv()).await {
            Err(_) => Ok(Read::Idle),
            Ok(None) => Ok(Read::End),
            Ok(Some(batch)) => batch.map(Read::Batch),
        }
    }

    async fn checkpoint(&mut self, position: &Position) -> Result<(), IngestError> {
        let batch: u64 = position.0.parse().map_err(|error| fatal("read a position of a local shard", error))?;
        if batch > self.checkpoint.batch {
            let mut updates = self.updates.lock().unwrap_or_else(PoisonError::into_inner);
            while updates.front().is_some_and(|(number, ..)| *number <= batch) {
                if let Some((_, name, known)) = updates.pop_front() {
                    self.checkpoint.apply(name, known);
                }
            }
            self.checkpoint.batch = batch;
            self.unsaved = true;
        }
        if let (Some(file), true) = (&self.kept, self.unsaved) {
            save(file, &self.checkpoint)?;
        }
        self.unsaved = false;
        Ok(())
    }

    async fn release(&mut self) -> Result<(), IngestError> {
        self.released = true;
        Ok(())
    }
}

fn is_stdin(paths: &[PathBuf]) -> bool {
    paths == [Path::new("-")]
}

/// What a shard is called: its path, or of several the first and a short hash of all.
fn name_of(paths: &[PathBuf]) -> String {
    match paths {
        [path] => shown(path),
        paths => {
            let all: Vec<String> = paths.iter().map(|path| shown(path)).collect();
            let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, all.join("\n").as_bytes()).simple().to_string();
            format!("{} and {} more, {}", all[0], all.len() - 1, &id[..8])
        }
    }
}

fn position(batch: u64) -> Position {
    Position(batch.to_string())
}

fn fatal(context: &str, cause: impl std::fmt::Display) -> IngestError {
    IngestError::Fatal { context: context.into(), cause: cause.to_string() }
}

/// A checkpoint's file name: what of the shard's name may stand in one, and a hash that tells apart what may not.
fn file_name(shard: &str) -> String {
    let plain: String = shard.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
    let tail = &plain[plain.len().saturating_sub(80)..];
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, shard.as_bytes()).simple().to_string();
    format!("{tail}-{}.checkpoint", &id[..12])
}

fn load(file: &Path) -> Result<Checkpoint, IngestError> {
    match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            fatal(&format!("read the checkpoint {} (delete it to read all again)", file.display()), error)
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Checkpoint::default()),
        Err(error) => Err(fatal(&format!("read the checkpoint {}", file.display()), error)),
    }
}

/// Beside the old one, made durable, then in its place: a crash leaves one or the other, whole.
fn save(file: &Path, checkpoint: &Checkpoint) -> Result<(), IngestError> {
    let write = || -> std::io::Result<()> {
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let beside = file.with_extension("checkpoint.new");
        let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        out.write_all(&serde_json::to_vec(checkpoint)?)?;
        out.sync_all()?;
        fs::rename(&beside, file)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|error| IngestError::Retry {
        context: format!("write the checkpoint {}", file.display()),
        cause: error.to_string(),
    })
}

/// Reads the paths of a shard in a thread.
struct Follower {
    paths: Vec<PathBuf>,
    decoder: Decoder,
    known: BTreeMap<String, Known>,
    /// Open named files, by inode: what was written before a rotation is read through the old handle.
    handles: BTreeMap<u64, fs::File>,
    batch: u64,
    follow: bool,
    poll: Duration,
    updates: Updates,
    troubles: Troubles,
    /// What was forgotten since the last batch.
    forgotten: Vec<String>,
    /// The newest period that a name of a file that was read tells, and a record of about that time.
    period: Option<(EventTime, EventTime)>,
}

/// The owner of the shard is gone.
struct Closed;

type Batches = mpsc::Sender<Result<Batch, IngestError>>;

/// What of a file is to be read.
struct Job {
    name: String,
    file: Found,
    head: Head,
    from: Option<Place>,
    tail: bool,
    inode: u64,
}

/// Named files of which a handle is kept.
const HANDLES_MAX: usize = 64;

/// Files that are gone and remembered all the same: they may come back under another name, or packed.
const GONE_MAX: usize = 4_096;

/// A folder of S3 objects gets the next ones five or ten minutes later, and some later than others: so far behind the period of
/// the newest are windows kept open, s.
const PERIODS_AWAITED: u32 = 600;

/// A file that has the name of one that is still being written, and was not for so long, is read, s.
const ABANDONED_AFTER: i64 = 600;

impl Follower {
    fn run(&mut self, to: &Batches) {
        loop {
            match self.round(to) {
                Err(Closed) => return,
                Ok(()) if !self.follow => return,
                Ok(()) => {}
            }
            if to.is_closed() {
                return;
            }
            thread::sleep(self.poll);
        }
    }

    /// Reads what is new in every file.
    fn round(&mut self, to: &Batches) -> Result<(), Closed> {
        let mut troubles = Vec::new();
        let mut found = Vec::new();
        for path in &self.paths {
            match walk::find(std::slice::from_ref(path)) {
                Ok(files) => found.extend(files),
                // Between the two steps of a rotation the name is nobody's.
                Err(ReadError::Open { cause, .. }) if self.follow && cause.kind() == ErrorKind::NotFound => {}
                Err(error) if self.follow => troubles.push(error.to_string()),
                Err(error) => return to.blocking_send(Err(fatal("look for files", error))).map_err(|_| Closed),
            }
        }
        let mut seen = BTreeSet::new();
        found.retain(|file| seen.insert(file.path.clone()));
        let (jobs, rotated) = self.plan(found, &mut troubles);
        self.read(jobs, &mut troubles, to)?;
        drop(rotated);
        *self.troubles.lock().unwrap_or_else(PoisonError::into_inner) = troubles;
        Ok(())
    }

    /// Finds out what of which file was read before, and what is left. The handles that come with it are to be kept until that
    /// is read.
    fn plan(&mut self, found: Vec<Found>, troubles: &mut Vec<String>) -> (Vec<Job>, Vec<fs::File>) {
        let mut jobs = Vec::new();
        let mut present = BTreeSet::new();
        let mut claimed = BTreeSet::new();
        let mut learned = Vec::new();
        let mut index = None;
        for file in found {
            let name = shown(&file.path);
            present.insert(name.clone());
            if self.follow && !file.named && is_being_written(&file) {
                continue;
            }
            let known = self.known.get(&name);
            if known.is_some_and(|known| known.is_as_it_was(&file)) {
                claimed.insert(name);
                continue;
            }
            if file.inode == 0 {
                let head = Head::default();
                jobs.push(Job { name, inode: 0, file, head, from: None, tail: false });
                continue;
            }
            let head = match Head::read(&file) {
                Ok(head) => head,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    troubles.push(format!("open {name}: {error}; tried again until it can be read"));
                    continue;
                }
            };
            let index = index.get_or_insert_with(|| Index::new(&self.known));
            let before = index.find(&self.known, &name, &file, &head);
            let from = match before {
                Some((_, Likeness::Shorter)) if known.is_none_or(|known| known.inode != file.inode) => {
                    // A copy that is not finished.
                    continue;
                }
                Some((other, likeness)) => {
                    let mut known = self.known[&other].clone();
                    claimed.insert(other);
                    let grown = known.size != file.size || known.modified != file.modified;
                    if likeness == Likeness::Shorter {
                        known.place.offset = file.size;
                        if let Some(content) = &mut known.content {
                            content.cut();
                        }
                    }
                    (known.place.file, known.inode) = (name.clone(), file.inode);
                    let place = known.place.clone();
                    learned.push((name.clone(), known));
                    if !grown || likeness == Likeness::Shorter {
                        continue;
                    }
                    Some(place)
                }
                None => None,
            };
            let (inode, tail) = (file.inode, self.follow);
            jobs.push(Job { name, file, head, from, tail, inode });
        }
        let rotated = self.plan_rotated(&mut jobs, &claimed);
        self.known.extend(learned);
        self.forget(&present);
        (jobs, rotated)
    }

    /// The rest of named files that were rotated away to where nobody looks: it is read through the old handles.
    fn plan_rotated(&mut self, jobs: &mut Vec<Job>, claimed: &BTreeSet<String>) -> Vec<fs::File> {
        let mut rotated = Vec::new();
        for at in 0..jobs.len() {
            let name = jobs[at].name.clone();
            let Some(old) = self.known.get(&name).filter(|_| jobs[at].file.named && !claimed.contains(&name)) else {
                continue;
            };
            if old.inode == jobs[at].inode {
                continue;
            }
            let Some(handle) = self.handles.remove(&old.inode) else { continue };
            // Through the handle's own entry, whatever the file is called now, if it still has a name at all.
            let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle)));
            let Ok(about) = handle.metadata() else { continue };
            if about.len() > old.size {
                let file = Found { inode: 0, ..Found::new(path, &about, true) };
                let head = Head::read(&file).unwrap_or_default();
                let from = Some(old.place.clone());
                jobs.push(Job { name, file, head, from, tail: false, inode: old.inode });
            }
            rotated.push(handle);
        }
        rotated
    }

    /// Forgets files that are gone, when there are too many of them.
    fn forget(&mut self, present: &BTreeSet<String>) {
        let mut gone: Vec<(u64, String)> = Vec::new();
        for (name, known) in self.known.iter().filter(|(name, _)| !present.contains(*name)) {
            gone.push((known.batch, name.clone()));
        }
        if gone.len() > GONE_MAX {
            gone.sort_unstable();
            for (_, name) in gone.drain(..gone.len() - GONE_MAX) {
                self.known.remove(&name);
                self.forgotten.push(name);
            }
        }
    }

    fn read(&mut self, jobs: Vec<Job>, troubles: &mut Vec<String>, to: &Batches) -> Result<(), Closed> {
        if jobs.is_empty() {
            return Ok(());
        }
        let newest = jobs.iter().filter_map(|job| walk::stamp(&job.file.path)).max();
        if let Some(newest) = newest {
            let (period, near) = self.period.unwrap_or((newest, newest));
            self.period = Some((period.max(newest), near));
        }
        let parts = jobs.iter().enumerate().map(Job::part).collect();
        let mut merge = Merge::new(parts, &mut self.decoder, true, Arc::default());
        loop {
            let mut batch = Batch::default();
            let Some(event) = merge.next(&mut self.decoder, &mut batch) else { return Ok(()) };
            match event {
                Event::Batch(marks) => {
                    self.await_periods(&mut batch);
                    self.deliver(&jobs, marks, batch, to)?;
                }
                Event::Unopened { id, cause } => self.unopened(&jobs[id], &cause, troubles, to)?,
                Event::Unreadable { id, reason, empty } => {
                    let job = &jobs[id];
                    let known = Known { modified: job.file.modified, size: job.file.size.max(1), ..Known::new(job) };
                    self.known.insert(job.name.clone(), known.clone());
                    if job.file.size > 0 && !(self.follow && empty) {
                        self.refuse(&job.name, known, reason, to)?;
                    }
                }
            }
        }
    }

    /// Files of a period come one after another: what is known to come later is waited for.
    fn await_periods(&mut self, batch: &mut Batch) {
        let Some((period, near)) = &mut self.period else { return };
        if !self.follow {
            return;
        }
        if let Some(record) = batch.records.get(batch.records.len() / 2) {
            *near = record.end;
        }
        let awaited = period.minus(PERIODS_AWAITED);
        // A name that has nothing to do with its records says nothing.
        if near.since(awaited) <= 6 * PERIODS_AWAITED {
            batch.reached = Some(batch.reached.map_or(awaited, |reached| reached.min(awaited)));
        }
    }

    /// Sends a batch, with where its files stand after it.
    fn deliver(&mut self, jobs: &[Job], marks: Vec<Mark>, batch: Batch, to: &Batches) -> Result<(), Closed> {
        // Of several places of one file the last counts.
        let last: BTreeMap<usize, Mark> = marks.into_iter().map(|mark| (mark.id, mark)).collect();
        let mut updates = Vec::with_capacity(last.len());
        for (id, mark) in last {
            let job = &jobs[id];
            let content = Some(job.head.content(&job.file, &mark.place, mark.ended));
            // Something may have been written since it was listed, and is then looked for again.
            let (size, modified) = if mark.ended { (job.file.size, job.file.modified) } else { (0, 0) };
            let known = Known { place: mark.place, inode: job.inode, size, modified, content, batch: self.batch + 1 };
            let keeps = job.file.named && self.follow && job.file.inode != 0 && self.handles.len() < HANDLES_MAX;
            if keeps && !self.handles.contains_key(&job.inode) {
                self.handles.extend(fs::File::open(&job.file.path).ok().map(|handle| (job.inode, handle)));
            }
            // What is left of a file that was rotated away stands no more under the name that is another's.
            if job.file.inode != 0 || job.inode == 0 {
                self.known.insert(job.name.clone(), known.clone());
            }
            updates.push((job.name.clone(), known));
        }
        self.send(updates, batch, to)
    }

    fn unopened(
        &mut self,
        job: &Job,
        cause: &std::io::Error,
        troubles: &mut Vec<String>,
        to: &Batches,
    ) -> Result<(), Closed> {
        match cause.kind() {
            // Renamed or replaced since it was listed, or a packed copy that is not finished: the next look finds what it is.
            ErrorKind::NotFound | ErrorKind::UnexpectedEof if self.follow => Ok(()),
            _ if self.follow => {
                troubles.push(format!("open {}: {cause}; tried again until it can be read", job.name));
                Ok(())
            }
            _ => {
                troubles.push(format!("open {}: {cause}", job.name));
                self.refuse(&job.name, Known::new(job), cause.to_string(), to)
            }
        }
    }

    fn refuse(&mut self, name: &str, known: Known, reason: String, to: &Batches) -> Result<(), Closed> {
        let mut batch = Batch::default();
        let reason = format!("not a flow log: {reason}");
        batch.refused.add(Refusal { source: name.into(), line: 0, field: None, reason });
        self.await_periods(&mut batch);
        self.send(vec![(name.to_owned(), known)], batch, to)
    }

    fn send(&mut self, known: Vec<(String, Known)>, mut batch: Batch, to: &Batches) -> Result<(), Closed> {
        self.batch += 1;
        batch.position = Some(position(self.batch));
        // Noted before it is sent: whoever checkpoints this batch finds it.
        let forgotten = self.forgotten.drain(..).map(|name| (name, None));
        let known = known.into_iter().map(|(name, known)| (name, Some(known)));
        let updates = forgotten.chain(known).map(|(name, known)| (self.batch, name, known));
        self.updates.lock().unwrap_or_else(PoisonError::into_inner).extend(updates);
        to.blocking_send(Ok(batch)).map_err(|_| Closed)
    }
}

impl Job {
    fn part((id, job): (usize, &Job)) -> Part {
        let (found, name, from) = (job.file.clone(), job.name.clone(), job.from.clone());
        Part { id, found, name, from, tail: job.tail }
    }
}

/// Which files are known by what they begin with.
struct Index {
    /// Numbers of first bytes that were hashed, and the names of those who begin so.
    heads: BTreeMap<u64, BTreeMap<u64, Vec<String>>>,
}

impl Index {
    fn new(known: &BTreeMap<String, Known>) -> Index {
        let mut heads: BTreeMap<u64, BTreeMap<u64, Vec<String>>> = BTreeMap::new();
        for (name, known) in known {
            if let Some((length, head)) = known.content.as_ref().and_then(Content::head) {
                heads.entry(length).or_default().entry(head).or_default().push(name.clone());
            }
        }
        Index { heads }
    }

    /// Under which name a file was read before, if it was.
    fn find(
        &self,
        known: &BTreeMap<String, Known>,
        name: &str,
        file: &Found,
        head: &Head,
    ) -> Option<(String, Likeness)> {
        let own = known.get(name).map(|known| (name, known));
        if let Some((name, known)) = own.filter(|(_, known)| known.content.is_none() && known.has_begun()) {
            // A checkpoint of an earlier version knows no content.
            let same = known.inode == file.inode && known.size <= file.size;
            return same.then(|| (name.to_owned(), Likeness::Same));
        }
        let compare = |(name, known): (&str, &Known)| {
            let likeness = head.compare(file, known.content.as_ref()?, known.place.offset);
            (likeness != Likeness::Other)
                .then(|| (name.to_owned(), likeness, known.inode == file.inode, known.place.offset))
        };
        if let Some((name, likeness, ..)) = own.and_then(compare) {
            return Some((name, likeness));
        }
        let hashes = head.hashes();
        let mut likely = Vec::new();
        for (&length, names) in &self.heads {
            let Some(hash) = usize::try_from(length).ok().and_then(|length| hashes.get(length - 1)) else { break };
            likely.extend(names.get(hash).into_iter().flatten());
        }
        let likely = likely.into_iter().filter_map(|name| known.get(name).map(|known| (name.as_str(), known)));
        // The file itself under another name before one like it, and of these the one of which most was read.
        let best = likely
            .filter_map(compare)
            .max_by_key(|(_, likeness, same_inode, offset)| (*likeness == Likeness::Same, *same_inode, *offset));
        best.map(|(name, likeness, ..)| (name, likeness))
    }
}

/// Whether a file has the name of one that is still being written: downloads are renamed when they are complete. One that
/// nobody has touched for long is taken for what it is.
fn is_being_written(file: &Found) -> bool {
    let name = file.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = name.rsplit_once('.').map(|(_, ending)| ending).unwrap_or_default();
    let known = ["part", "partial", "tmp", "temp", "download", "crdownload", "filepart", "incomplete", "swp"];
    // The AWS CLI adds eight hexadecimal digits. A date is none of its.
    let of_aws = ending.len() == 8
        && ending.bytes().all(|byte| byte.is_ascii_hexdigit())
        && ending.bytes().any(|byte| byte.is_ascii_alphabetic());
    let temporary = known.contains(&ending) || of_aws || name.ends_with('~');
    let age = jiff::Timestamp::now().as_second() - file.modified / 1_000_000_000;
    temporary && age < ABANDONED_AFTER
}

#[cfg(test)]
mod tests;
