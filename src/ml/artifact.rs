//! The artifact: `model.tar.gz`, as SageMaker keeps it and as the binary embeds one.
//!
//! | file | content |
//! |---|---|
//! | `manifest.json` | version, feature schema, training window, metrics, and the checksum of every other file |
//! | `forest.bin` | the forest ([`super::forest`]) |
//! | `lstm.safetensors` | the sequence model, with PyTorch's names |
//! | `calibration.json` | per scorer and class: body and tail; per feature: deciles |
//!
//! The same model gives the same bytes (times and owners in the archive are zero). Whatever is read is bounded before it
//! is unpacked and checked before it is used: an artifact that was damaged, belongs to other features, or is larger than
//! allowed is refused with its reason, and the model in use stays.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use super::features::{NAMES, SCHEMA, SEQUENCE_NAMES, WINDOW_SECONDS};
use super::forest::Forest;
use super::lstm::Lstm;
use super::model::{Calibrations, FileDigest, Manifest, Model, Schema};

/// Version of the layout, and of what the sequence model makes of its inputs.
pub const FORMAT: u32 = 2;
/// Most bytes of the archive, and of each file in it.
pub const BYTES_MAX: u64 = 64 << 20;

const MANIFEST: &str = "manifest.json";
const FOREST: &str = "forest.bin";
const LSTM: &str = "lstm.safetensors";
const CALIBRATION: &str = "calibration.json";
const FILES: [&str; 4] = [MANIFEST, CALIBRATION, FOREST, LSTM];

/// The artifact that ships in the binary: trained on simulated traffic, with a job on most hosts, since what a period is can only be
/// learned from many. Remade by `flowvigil train --simulated --hosts 200 --jobs 0.9 --out src/ml/default.tar.gz`.
static EMBEDDED: &[u8] = include_bytes!("default.tar.gz");

/// Why an artifact is refused.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// It cannot be read at all.
    #[error("read model {place}: {cause}")]
    Unreadable {
        /// Path or address.
        place: String,
        /// What the system said.
        cause: String,
    },
    /// It cannot be written.
    #[error("write model {place}: {cause}")]
    Unwritable {
        /// Path or address.
        place: String,
        /// What the system said.
        cause: String,
    },
    /// A file of it, or the archive, is larger than allowed.
    #[error("model refused: {file} has more than {BYTES_MAX} bytes")]
    TooLarge {
        /// Which.
        file: String,
    },
    /// It is not what it should be, or was damaged.
    #[error("model refused: {file}: {cause}")]
    Damaged {
        /// Which file.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
    /// It belongs to other features.
    #[error("model refused: it was trained on features {found}, this version computes {SCHEMA}; train it again")]
    Schema {
        /// What it was trained on.
        found: String,
    },
}

impl ArtifactError {
    /// Whether it was read and is not to be used; what cannot be read may come back.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Damaged { .. } | Self::Schema { .. })
    }
}

fn damaged(file: &str, cause: impl std::fmt::Display) -> ArtifactError {
    ArtifactError::Damaged { file: file.to_owned(), cause: cause.to_string() }
}

/// The features of this version.
pub fn schema() -> Schema {
    let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    Schema { id: SCHEMA.to_owned(), names: owned(&NAMES), sequence_names: owned(&SEQUENCE_NAMES) }
}

/// Packs a model. The manifest's version and checksums are filled in; the same model gives the same bytes.
pub fn pack(model: &Model) -> Vec<u8> {
    let files = files(model);
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    for (name, bytes) in &files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, name, bytes.as_slice()).expect("a vector takes any number of bytes");
    }
    archive.into_inner().and_then(GzEncoder::finish).expect("a vector takes any number of bytes")
}

/// Writes the files of a model into a folder, as SageMaker expects of a training container.
pub fn write_folder(model: &Model, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    files(model).iter().try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes))
}

/// The files of a model by name.
fn files(model: &Model) -> BTreeMap<&'static str, Vec<u8>> {
    let mut files = BTreeMap::from([
        (FOREST, model.forest.to_bytes()),
        (LSTM, model.lstm.to_bytes()),
        (CALIBRATION, json(&model.calibrations)),
    ]);
    let mut manifest = model.manifest.clone();
    (manifest.model_version, manifest.files) = identify(&manifest, &files);
    files.insert(MANIFEST, json(&manifest));
    files
}

/// Version and checksums that belong to a model's files.
fn identify(manifest: &Manifest, files: &BTreeMap<&'static str, Vec<u8>>) -> (String, BTreeMap<String, FileDigest>) {
    let mut whole = Sha256::new();
    let mut digests = BTreeMap::new();
    for (name, bytes) in files {
        let sha256 = hex(&Sha256::digest(bytes));
        whole.update(sha256.as_bytes());
        digests.insert((*name).to_owned(), FileDigest { sha256, bytes: bytes.len() as u64 });
    }
    let day = manifest.data.to.to_string();
    (format!("{}-{}", day.get(..10).unwrap_or(&day), &hex(&whole.finalize())[..8]), digests)
}

/// Fills in version and checksums of a freshly trained model.
pub(super) fn seal(mut model: Model) -> Model {
    let mut files = files(&model);
    files.remove(MANIFEST);
    (model.manifest.model_version, model.manifest.files) = identify(&model.manifest, &files);
    model
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("maps with names and finite numbers");
    bytes.push(b'\n');
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Unpacks a model.
pub fn unpack(bytes: &[u8]) -> Result<Model, ArtifactError> {
    const ARCHIVE: &str = "the archive";
    if bytes.len() as u64 > BYTES_MAX {
        return Err(ArtifactError::TooLarge { file: ARCHIVE.to_owned() });
    }
    let mut files = BTreeMap::new();
    // Four files of the allowed size and their headers; an archive that unpacks to more is cut off.
    let mut archive = tar::Archive::new(GzDecoder::new(bytes).take(FILES.len() as u64 * (BYTES_MAX + 4096)));
    for entry in archive.entries().map_err(|e| damaged(ARCHIVE, e))? {
        let mut entry = entry.map_err(|e| damaged(ARCHIVE, e))?;
        let path = entry.path_bytes().into_owned();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        let Some(name) = FILES.into_iter().find(|name| name.as_bytes() == path) else {
            if entry.header().entry_type().is_dir() {
                continue;
            }
            let shown: String = String::from_utf8_lossy(path).chars().take(100).collect();
            return Err(damaged(ARCHIVE, format!("a file `{shown}` does not belong to a model")));
        };
        if files.insert(name, bounded(name, &mut entry)?).is_some() {
            return Err(damaged(ARCHIVE, format!("{name} is there twice")));
        }
    }
    assemble(&files)
}

/// Reads a model from an unpacked folder, or from the `model.tar.gz` in it, or from an archive.
pub fn read(path: &Path) -> Result<Model, ArtifactError> {
    let place = path.display().to_string();
    let open = |path: &Path| {
        std::fs::File::open(path).map_err(|e| ArtifactError::Unreadable { place: place.clone(), cause: e.to_string() })
    };
    if !path.is_dir() {
        return unpack(&bounded(&place, &mut open(path)?)?);
    }
    let archive = path.join("model.tar.gz");
    if !path.join(MANIFEST).exists() && archive.exists() {
        return unpack(&bounded(&place, &mut open(&archive)?)?);
    }
    let mut files = BTreeMap::new();
    for name in FILES {
        files.insert(name, bounded(name, &mut open(&path.join(name))?)?);
    }
    assemble(&files)
}

/// The model that ships in the binary.
pub fn embedded() -> Result<Model, ArtifactError> {
    unpack(EMBEDDED)
}

fn bounded(file: &str, reader: &mut impl Read) -> Result<Vec<u8>, ArtifactError> {
    let mut bytes = Vec::new();
    reader.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| damaged(file, e))?;
    if bytes.len() as u64 > BYTES_MAX { Err(ArtifactError::TooLarge { file: file.to_owned() }) } else { Ok(bytes) }
}

/// Checks everything and puts the model together.
fn assemble(files: &BTreeMap<&'static str, Vec<u8>>) -> Result<Model, ArtifactError> {
    let file = |name: &str| files.get(name).map(Vec::as_slice).ok_or_else(|| damaged(name, "it is missing"));
    let format: serde_json::Value = serde_json::from_slice(file(MANIFEST)?).map_err(|e| damaged(MANIFEST, e))?;
    match format.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(FORMAT) => {}
        found => return Err(damaged(MANIFEST, format!("format {found:?}, this version reads {FORMAT}"))),
    }
    if format.pointer("/feature_schema/id").and_then(serde_json::Value::as_str) != Some(SCHEMA) {
        let found = format.pointer("/feature_schema/id").map_or("without a name".to_owned(), ToString::to_string);
        return Err(ArtifactError::Schema { found });
    }
    let manifest: Manifest = serde_json::from_value(format).map_err(|e| damaged(MANIFEST, e))?;
    if manifest.feature_schema != schema() {
        return Err(ArtifactError::Schema { found: format!("{SCHEMA} in another order") });
    }
    if manifest.window_seconds != WINDOW_SECONDS {
        return Err(damaged(MANIFEST, format!("windows of {} s, not {WINDOW_SECONDS} s", manifest.window_seconds)));
    }
    for name in [FOREST, LSTM, CALIBRATION] {
        let bytes = file(name)?;
        let told = manifest.files.get(name).ok_or_else(|| damaged(name, "the manifest does not name it"))?;
        if told.bytes != bytes.len() as u64 || told.sha256 != hex(&Sha256::digest(bytes)) {
            return Err(damaged(name, "its checksum is not the one in the manifest"));
        }
    }
    let forest = Forest::from_bytes(file(FOREST)?).map_err(|e| damaged(FOREST, e))?;
    if forest.width() != NAMES.len() {
        return Err(damaged(FOREST, format!("{} features, not {}", forest.width(), NAMES.len())));
    }
    let lstm = Lstm::from_bytes(file(LSTM)?).map_err(|e| damaged(LSTM, e))?;
    let calibrations: Calibrations = serde_json::from_slice(file(CALIBRATION)?).map_err(|e| damaged(CALIBRATION, e))?;
    for calibration in [&calibrations.top3_z, &calibrations.forest, &calibrations.lstm] {
        calibration.check().map_err(|e| damaged(CALIBRATION, e))?;
    }
    if calibrations.bins.len() != NAMES.len() || !calibrations.bins.iter().all(super::drift::Bins::is_sound) {
        return Err(damaged(CALIBRATION, "the deciles of the features are not sound"));
    }
    Ok(Model { manifest, forest, lstm, calibrations })
}

/// The model in use, exchanged while it is read: who has begun a batch ends it with the model that it began with.
#[derive(Debug)]
pub struct Slot {
    model: ArcSwap<Model>,
    place: Option<PathBuf>,
}

impl Slot {
    /// Holds a model that came from a path, or from the binary.
    pub fn new(model: Model, place: Option<PathBuf>) -> Slot {
        Slot { model: ArcSwap::from_pointee(model), place }
    }

    /// The model in use now.
    pub fn model(&self) -> Arc<Model> {
        self.model.load_full()
    }

    /// Where the model came from; nothing for the one in the binary.
    pub fn place(&self) -> Option<String> {
        self.place.as_ref().map(|place| place.display().to_string())
    }

    /// Puts another model into use.
    pub fn swap(&self, model: Model) {
        self.model.store(Arc::new(model));
    }

    /// Reads the path again; whether another model is in use now. A model that is refused leaves the one in use.
    pub fn reload(&self) -> Result<bool, ArtifactError> {
        let Some(place) = &self.place else { return Ok(false) };
        let model = read(place)?;
        let changed = model.manifest.model_version != self.model.load().manifest.model_version;
        if changed {
            self.swap(model);
        }
        Ok(changed)
    }
}

/// Writes bytes beside a file and then in its place, so that a reader sees the old or the new one.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("partial");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(beside, path)
}

#[cfg(test)]
mod tests;
