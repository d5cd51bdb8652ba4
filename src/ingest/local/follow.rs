//! Files that grow, are rotated, or appear while they are read: the local source of the long-running service.
//!
//! Each path of the settings is one shard. A thread of its own reads it and hands batches over a channel of two, so that a
//! slow consumer holds the reading. A file's place is kept by inode as well as by name: a log that is renamed in its folder
//! goes on where it was, and a named file that was rotated away is read to its end through the old handle first.
//!
//! A position is the number of a batch; which file stood where after it is remembered until it is checkpointed, and the
//! checkpoint file holds the places of all files of the shard.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::flow::Interface;
use crate::ingest::local::open::{Decoder, Open, Place};
use crate::ingest::local::walk::{self, Found};
use crate::ingest::local::{ReadError, files, shown};
use crate::ingest::{Batch, FlowSource, IngestError, Position, Read, Refusal, Settings, Shard, ShardId};

/// Batches under way between the reading thread and the owner of the shard.
const AHEAD: usize = 2;

/// The paths of `[ingest.local]`, each a shard. One that was given up without being released is offered again, from its
/// last checkpoint.
pub struct Source {
    waiting: VecDeque<Offer>,
    returned: mpsc::UnboundedReceiver<Return>,
    give_back: mpsc::UnboundedSender<Return>,
    /// How many shards are being read.
    out: usize,
    settings: Settings,
}

/// A shard to be read.
struct Offer {
    path: PathBuf,
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
        let offer = |path: &PathBuf| Offer { path: path.clone(), checkpoint: None, failures: 0 };
        let waiting = settings.local.paths.iter().map(offer).collect();
        // One message a shard that is being read, so as many as there are paths at most.
        #[allow(clippy::disallowed_methods)]
        let (give_back, returned) = mpsc::unbounded_channel();
        Ok(Source { waiting, returned, give_back, out: 0, settings: settings.clone() })
    }

    /// Takes in what comes back; `false` when it is not to be offered again.
    fn take_back(&mut self, offer: Offer) -> bool {
        // What was read of standard input is gone.
        let lost = offer.path == Path::new("-") || (!self.settings.local.follow && offer.failures >= FAILURES_MAX);
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

/// A file, a folder, or standard input.
struct LocalShard {
    id: ShardId,
    poll: Duration,
    /// Where the checkpoint is kept.
    kept: Option<PathBuf>,
    checkpoint: Checkpoint,
    updates: Updates,
    waiting: Option<Box<Follower>>,
    batches: Option<mpsc::Receiver<Result<Batch, IngestError>>>,
    path: PathBuf,
    /// Where it stood when it was offered, and how often it was offered there.
    begun: (u64, u32),
    released: bool,
    give_back: mpsc::UnboundedSender<Return>,
}

impl Drop for LocalShard {
    fn drop(&mut self) {
        let failures = if self.checkpoint.batch > self.begun.0 { 1 } else { self.begun.1 + 1 };
        let (path, checkpoint) = (self.path.clone(), Some(self.checkpoint.clone()));
        // A source that is gone offers nothing any more.
        let _ = self.give_back.send((!self.released).then_some(Offer { path, checkpoint, failures }));
    }
}

/// Which file stood where after which batch, oldest first.
type Updates = Arc<Mutex<VecDeque<(u64, String, Known)>>>;

/// What the checkpoint file holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Checkpoint {
    /// Number of the last batch that is done with.
    batch: u64,
    files: BTreeMap<String, Known>,
}

/// How far a file was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    place: Place,
    inode: u64,
    /// Its size when its end was last reached; 0 before.
    size: u64,
}

impl LocalShard {
    fn new(
        offer: Offer,
        settings: &Settings,
        give_back: mpsc::UnboundedSender<Return>,
    ) -> Result<LocalShard, IngestError> {
        let Offer { path, checkpoint, failures } = offer;
        let local = &settings.local;
        let name = shown(&path);
        let kept = (!local.checkpoint.as_os_str().is_empty()).then(|| local.checkpoint.join(file_name(&name)));
        let checkpoint = match (checkpoint, &kept) {
            (Some(checkpoint), _) => checkpoint,
            (None, Some(file)) => load(file)?,
            (None, None) => Checkpoint::default(),
        };
        let updates = Updates::default();
        let follower = Follower {
            decoder: Decoder::new(settings).map_err(|error| fatal("read the settings", error))?,
            known: checkpoint.files.clone(),
            handles: BTreeMap::new(),
            batch: checkpoint.batch,
            follow: local.follow && path != Path::new("-"),
            poll: local.poll_interval.unsigned_abs(),
            updates: updates.clone(),
            path: path.clone(),
        };
        Ok(LocalShard {
            id: ShardId(name.into()),
            poll: local.poll_interval.unsigned_abs(),
            kept,
            begun: (checkpoint.batch, failures),
            checkpoint,
            path,
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

    fn adopt_interfaces(&mut self, known: &[Interface]) {
        if let Some(follower) = &mut self.waiting {
            follower.decoder.interfaces.adopt(known);
        }
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
        if batch <= self.checkpoint.batch {
            return Ok(());
        }
        {
            let mut updates = self.updates.lock().unwrap_or_else(PoisonError::into_inner);
            while updates.front().is_some_and(|(number, ..)| *number <= batch) {
                if let Some((_, name, known)) = updates.pop_front() {
                    // A renamed file has one place, under its new name.
                    self.checkpoint.files.retain(|_, other| other.inode != known.inode || known.inode == 0);
                    self.checkpoint.files.insert(name, known);
                }
            }
        }
        self.checkpoint.batch = batch;
        match &self.kept {
            Some(file) => save(file, &self.checkpoint),
            None => Ok(()),
        }
    }

    async fn release(&mut self) -> Result<(), IngestError> {
        self.released = true;
        Ok(())
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
        let mut out = fs::File::create(&beside)?;
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

/// Reads one path in a thread.
struct Follower {
    path: PathBuf,
    decoder: Decoder,
    known: BTreeMap<String, Known>,
    /// Open named files, by inode: what was written before a rotation is read through the old handle.
    handles: BTreeMap<u64, fs::File>,
    batch: u64,
    follow: bool,
    poll: Duration,
    updates: Updates,
}

/// The owner of the shard is gone.
struct Closed;

type Batches = mpsc::Sender<Result<Batch, IngestError>>;

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
        let found = match walk::find(std::slice::from_ref(&self.path)) {
            Ok(found) => found,
            // Between the two steps of a rotation the name is nobody's.
            Err(_) if self.follow => return Ok(()),
            Err(error) => return to.blocking_send(Err(fatal("look for files", error))).map_err(|_| Closed),
        };
        for file in found {
            let name = shown(&file.path);
            let inode = inode(&file.path);
            self.renamed(&name, inode, to)?;
            let known = self.known.get(&name).cloned();
            // Standard input has no inode, and never the same bytes twice.
            let from = known.filter(|known| known.inode == inode && inode != 0);
            match &from {
                // Nothing new since the end was last reached. A packed file is read again where it was cut off.
                Some(known) if known.size == file.size && known.size > 0 => continue,
                // It was cut short in place: what is in it now is new.
                Some(known) if known.size > file.size => self.read(&file, inode, None, to)?,
                from => self.read(&file, inode, from.as_ref().map(|known| &known.place), to)?,
            }
        }
        Ok(())
    }

    /// Follows a file to its new name, and reads the rest of one that was rotated away from a name of the settings.
    fn renamed(&mut self, name: &str, inode: u64, to: &Batches) -> Result<(), Closed> {
        if inode == 0 {
            return Ok(());
        }
        let before = self.known.iter().find(|(other, known)| known.inode == inode && other.as_str() != name);
        if let Some(other) = before.map(|(other, _)| other.clone())
            && let Some(known) = self.known.remove(&other)
        {
            self.known.insert(name.to_owned(), known);
        }
        let Some(old) = self.known.get(name).filter(|known| known.inode != inode).cloned() else { return Ok(()) };
        let Some(handle) = self.handles.remove(&old.inode) else { return Ok(()) };
        // Through the handle's own entry, whatever the file is called now, if it still has a name at all.
        let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle)));
        let size = handle.metadata().map_or(0, |about| about.len());
        if size > old.size {
            let file = Found { path, size, named: true };
            self.read_as(name, &file, old.inode, Some(&old.place), false, to)?;
        }
        Ok(())
    }

    fn read(&mut self, file: &Found, inode: u64, from: Option<&Place>, to: &Batches) -> Result<(), Closed> {
        self.read_as(&shown(&file.path), file, inode, from, self.follow, to)
    }

    fn read_as(
        &mut self,
        name: &str,
        file: &Found,
        inode: u64,
        from: Option<&Place>,
        tail: bool,
        to: &Batches,
    ) -> Result<(), Closed> {
        let mut open = match Open::at(file, 0, &self.decoder, from, tail) {
            Ok(open) => open,
            Err(error) => {
                // Gone again, or not ours to read: said once, and tried again when it changes.
                self.known.insert(name.into(), Known { place: Place::at_start(name), inode, size: file.size.max(1) });
                return self.refuse(name, error.to_string(), to);
            }
        };
        if file.named && self.follow && inode != 0 {
            self.handles.extend(fs::File::open(&file.path).ok().map(|handle| (inode, handle)));
        }
        loop {
            let step = open.step(&mut self.decoder);
            // What followed nothing readable is no flow log; but a file that was read before is one.
            if !open.readable && from.is_none() && (open.refused >= files::PATIENCE || step.ended && file.size > 0) {
                let waits = self.follow && open.refused == 0;
                self.decoder.decoded.clear();
                let known = Known { place: Place::at_start(name), inode, size: file.size.max(1) };
                self.known.insert(name.into(), known);
                return if waits { Ok(()) } else { self.refuse(name, open.why_unreadable(), to) };
            }
            let known = Known {
                place: Place { file: name.into(), ..open.place() },
                inode,
                size: if step.ended { file.size } else { 0 },
            };
            let mut batch = Batch::default();
            self.decoder.take(name, &mut batch);
            self.known.insert(name.into(), known.clone());
            if step.ended || !batch.records.is_empty() || !batch.blind.is_empty() || batch.refused.count > 0 {
                self.send(name, known, batch, to)?;
            }
            if step.ended {
                return Ok(());
            }
        }
    }

    fn refuse(&mut self, name: &str, reason: String, to: &Batches) -> Result<(), Closed> {
        let mut batch = Batch::default();
        let reason = format!("not a flow log: {reason}");
        batch.refused.add(Refusal { source: name.into(), line: 0, field: None, reason });
        match self.known.get(name).cloned() {
            Some(known) => self.send(name, known, batch, to),
            None => Ok(()),
        }
    }

    fn send(&mut self, name: &str, known: Known, mut batch: Batch, to: &Batches) -> Result<(), Closed> {
        self.batch += 1;
        batch.position = Some(position(self.batch));
        // Noted before it is sent: whoever checkpoints this batch finds it.
        let update = (self.batch, name.to_owned(), known);
        self.updates.lock().unwrap_or_else(PoisonError::into_inner).push_back(update);
        to.blocking_send(Ok(batch)).map_err(|_| Closed)
    }
}

/// 0 for standard input.
fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    if path == Path::new("-") { 0 } else { fs::metadata(path).map_or(0, |about| about.ino()) }
}

#[cfg(test)]
mod tests;
