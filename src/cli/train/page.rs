//! The page of a training: what the model is, and how its scores and p-values are distributed. Self-contained.

use std::fmt::Write as _;

use crate::ml::model::Model;
use crate::ml::train::Evaluation;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem;\
text-align:right;border-bottom:1px solid #dde3ea}th:first-child,td:first-child{text-align:left}svg{background:#f6f8fa;\
border-radius:4px}figure{display:inline-block;margin:.5rem 1rem .5rem 0}figcaption{font-size:.85rem;color:#57606a}";

/// Renders the page. All text comes from the model's own constants and numbers; nothing needs escaping.
pub(super) fn render(model: &Model, evaluation: &Evaluation) -> String {
    let manifest = &model.manifest;
    let data = &manifest.data;
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>model {version}</title><style>{STYLE}</style>\
         <h1>Model {version}</h1><p>Features {schema}, windows of {window} s, {from} to {to}, {hosts} hosts. \
         {fit} windows fitted the models, {calibrate} later ones calibrated the scores, {test} still later ones are \
         measured below.</p>",
        version = manifest.model_version,
        schema = manifest.feature_schema.id,
        window = manifest.window_seconds,
        from = data.from,
        to = data.to,
        hosts = data.hosts,
        fit = data.training_windows,
        calibrate = data.calibration_windows,
        test = data.test_windows,
    );
    rates(&mut page, evaluation);
    page.push_str("<h2>Scores</h2>");
    for (name, histogram) in &evaluation.scores {
        let caption = format!("{name}: {:.2} to {:.2}, share of windows on a root scale", histogram.from, histogram.to);
        let shares: Vec<f64> = histogram.shares.iter().map(|s| s.sqrt()).collect();
        bars(&mut page, &caption, &shares);
    }
    page.push_str("<h2>p-values</h2><p>Flat when they are what they say; joined ones lean to 1.</p>");
    for (name, shares) in &evaluation.p_values {
        bars(&mut page, &format!("{name}: 0 to 1"), shares);
    }
    page.push_str("<h2>Windows by class of host</h2><table>");
    for (class, windows) in &evaluation.classes {
        let _ = write!(page, "<tr><td>{class}<td>{windows}");
    }
    page.push_str("</table></html>\n");
    page
}

fn rates(page: &mut String, evaluation: &Evaluation) {
    page.push_str("<h2>Realised share of windows with a p-value up to</h2><table><tr><th>scorer");
    for target in crate::ml::train::TARGETS {
        let _ = write!(page, "<th>{target:e}");
    }
    for (name, rates) in &evaluation.realised {
        let _ = write!(page, "<tr><td>{name}");
        for rate in rates {
            let _ = write!(page, "<td>{:.1e} ({})", rate.share, rate.windows);
        }
    }
    page.push_str("</table>");
}

fn bars(page: &mut String, caption: &str, shares: &[f64]) {
    const WIDTH: f64 = 400.0;
    const HEIGHT: f64 = 120.0;
    let most = shares.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let step = WIDTH / shares.len().max(1) as f64;
    let _ = write!(page, "<figure><svg width={WIDTH} height={HEIGHT} role=img aria-label=\"{caption}\">");
    for (at, share) in shares.iter().enumerate() {
        let height = share / most * (HEIGHT - 4.0);
        let _ = write!(
            page,
            "<rect x={:.1} y={:.1} width={:.1} height={height:.1} fill=#2f6fb2 />",
            at as f64 * step + 0.5,
            HEIGHT - height,
            (step - 1.0).max(0.5),
        );
    }
    let _ = write!(page, "</svg><figcaption>{caption}</figcaption></figure>");
}
