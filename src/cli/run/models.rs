//! The models of a running service: opened, exchanged when another one comes, and watched.

use std::sync::Arc;
use std::time::Duration;

use crate::cli::origin::{self, Origin};
use crate::flow::EventTime;
use crate::ml::Scorer;
use crate::ml::artifact::Slot;
use crate::ml::in_process::InProcess;
use crate::ml::sagemaker::SageMaker;
use crate::ml::watch::Watch;
use crate::publish::{Announcer, Notice};
use crate::settings::Settings;
use crate::telemetry::{self, Metrics};

/// The trained models.
#[derive(Default)]
pub(crate) struct Models {
    /// Whoever scores, watched.
    pub watch: Option<Arc<Watch>>,
    /// The same, where they are endpoints.
    pub sagemaker: Option<Arc<SageMaker>>,
}

/// The trained models, unless they are switched off: in process, or SageMaker endpoints before the one in process.
pub(crate) async fn open(settings: &Settings) -> anyhow::Result<Models> {
    let ml = &settings.ml;
    if !ml.model.enabled {
        anyhow::ensure!(
            ml.sagemaker.is_none(),
            "ml.sagemaker is set and ml.model.enabled is false: the model in process stands in when an endpoint is away"
        );
        return Ok(Models::default());
    }
    let (slot, origin) = origin::open(settings).await?;
    let slot = Arc::new(slot);
    tokio::spawn(follow(slot.clone(), origin, crate::wait::positive(ml.model.reload)));
    let sagemaker = match &ml.sagemaker {
        None => None,
        Some(sagemaker) => {
            let config = crate::aws::load().await;
            Some(Arc::new(SageMaker::new(&config, sagemaker.clone(), ml.canary.clone(), slot.clone())))
        }
    };
    let scorer: Arc<dyn Scorer> = match &sagemaker {
        Some(sagemaker) => sagemaker.clone(),
        None => Arc::new(InProcess::new(slot.clone())),
    };
    let watch = Watch::new(scorer, slot, &ml.drift, ml.behavior.p_value);
    Ok(Models { watch: Some(Arc::new(watch)), sagemaker })
}

/// Takes another model into use when there is one where it comes from.
async fn follow(slot: Arc<Slot>, mut origin: Origin, every: Duration) {
    let mut tick = tokio::time::interval(every.max(Duration::from_secs(1)));
    loop {
        tick.tick().await;
        match origin.look(&slot).await {
            Ok(false) => {}
            Ok(true) => tracing::info!(version = slot.model().manifest.model_version, "another model is in use"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the new model is not used"),
        }
    }
}

/// Looks now and then whether the model still fits, tells the metrics, and announces when it no longer does.
pub(super) async fn watch_drift(
    models: Arc<Watch>,
    every: Duration,
    metrics: Arc<Metrics>,
    announcer: Arc<dyn Announcer>,
) {
    let mut tick = tokio::time::interval(every.max(Duration::from_secs(1)));
    loop {
        tick.tick().await;
        let now = EventTime(u32::try_from(jiff::Timestamp::now().as_second()).unwrap_or(u32::MAX));
        let report = models.report(now);
        metrics.set(&telemetry::MODEL_RETRAIN, &[], i64::from(report.retrain.recommended));
        metrics.set(&telemetry::MODEL_AGE, &[], report.drift.age_seconds as i64);
        metrics.set(&telemetry::MODEL_FEATURES_MOVED, &[], report.drift.over as i64);
        for (feature, index) in &report.drift.features {
            metrics.set(&telemetry::MODEL_FEATURE_SHIFT, &[feature], (index * 1e3) as i64);
        }
        if let Some(canary) = &report.canary {
            metrics.set(&telemetry::MODEL_CANARY, &[], canary.verdict as i64);
        }
        let Some(drifted) = models.news(&report, now) else { continue };
        let detail = serde_json::to_value(&drifted).unwrap_or_default();
        match announcer.notify(&Notice { detail_type: "Model Drift Detected", detail }).await {
            Ok(()) => {
                let reasons = drifted.reasons.join("; ");
                tracing::warn!(model = drifted.model_version, reasons, "train the model again");
                models.announced(&drifted, now);
            }
            Err(error) => tracing::warn!(%error, "the drift of the model is not announced; trying again"),
        }
    }
}
