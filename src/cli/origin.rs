//! Where the model in use comes from, and how another one is noticed there: the binary, a path, S3, or the version in charge.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::ml::artifact::{self, Slot};
use crate::ml::model::Model;
use crate::ml::registry::dynamodb::DynamoRegistry;
use crate::ml::registry::local::SqliteRegistry;
use crate::ml::registry::{self, Registry};
use crate::ml::s3::{self, Artifacts};
use crate::settings::Settings;

/// A place that is looked at again and again.
pub(super) struct Origin {
    place: String,
    path_style: bool,
    registry: Option<Arc<dyn Registry>>,
    artifacts: Option<Artifacts>,
    /// Of the artifact in S3 that is in use.
    mark: Option<String>,
}

/// The model that the settings name, and where to look for another.
pub(super) async fn open(settings: &Settings) -> anyhow::Result<(Slot, Origin)> {
    let model = &settings.ml.model;
    let place = model.path.display().to_string();
    let registry = if place == registry::PLACE { Some(registry(settings).await?) } else { None };
    let mut origin = Origin { place, path_style: model.path_style, registry, artifacts: None, mark: None };
    if let Some(registry) = &origin.registry {
        let Some(primary) = registry.primary().await? else {
            tracing::warn!("no version is in charge; the embedded model is in use until one is");
            return Ok((Slot::new(artifact::embedded()?, None), origin));
        };
        let read = origin.read(&primary.place, None).await?;
        let (model, _) = read.context("the model in charge cannot be read")?;
        return Ok((Slot::new(model, None), origin));
    }
    if s3::address(&origin.place).is_some() {
        let (place, read) = (origin.place.clone(), origin.read(&origin.place.clone(), None).await?);
        let (model, mark) = read.with_context(|| format!("read model {place}"))?;
        origin.mark = mark;
        return Ok((Slot::new(model, None), origin));
    }
    Ok((super::slot(model)?, origin))
}

/// The registry of the settings: the DynamoDB table, else the SQLite file.
pub(super) async fn registry(settings: &Settings) -> anyhow::Result<Arc<dyn Registry>> {
    if let Some(dynamodb) = &settings.publish.dynamodb {
        let aws = crate::aws::load().await;
        return Ok(Arc::new(DynamoRegistry::new(&aws, &dynamodb.models_table, dynamodb.timeout)));
    }
    let path = &settings.publish.sqlite.path;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("make folder {}", folder.display()))?;
    }
    Ok(Arc::new(SqliteRegistry::open(path)?))
}

impl Origin {
    /// Reads a path or an address in S3; nothing where S3 still has what is known.
    async fn read(&mut self, place: &str, known: Option<&str>) -> anyhow::Result<Option<(Model, Option<String>)>> {
        if s3::address(place).is_none() {
            return Ok(Some((artifact::read(Path::new(place))?, None)));
        }
        let artifacts = match &self.artifacts {
            Some(artifacts) => artifacts.clone(),
            None => self.artifacts.insert(Artifacts::new(&crate::aws::load().await, self.path_style)).clone(),
        };
        Ok(artifacts.read(place, known).await?.map(|(model, mark)| (model, Some(mark))))
    }

    /// Puts another model into use when there is one; whether there was. What is refused leaves the one in use.
    pub(super) async fn look(&mut self, slot: &Slot) -> anyhow::Result<bool> {
        let found = if let Some(registry) = &self.registry {
            let Some(primary) = registry.primary().await? else { return Ok(false) };
            if primary.version == slot.model().manifest.model_version {
                return Ok(false);
            }
            let read = self.read(&primary.place, None).await?;
            if let Some((model, _)) = &read {
                let (found, wanted) = (&model.manifest.model_version, &primary.version);
                anyhow::ensure!(
                    found == wanted,
                    "{} holds model {found}, not {wanted} that is in charge",
                    primary.place
                );
            }
            read
        } else if s3::address(&self.place).is_some() {
            let (place, mark) = (self.place.clone(), self.mark.clone());
            self.read(&place, mark.as_deref()).await?
        } else {
            return Ok(slot.reload()?);
        };
        let Some((model, mark)) = found else { return Ok(false) };
        self.mark = mark;
        let changed = model.manifest.model_version != slot.model().manifest.model_version;
        if changed {
            slot.swap(model);
        }
        Ok(changed)
    }
}
