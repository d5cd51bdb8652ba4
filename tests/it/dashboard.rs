//! The dashboard in a real browser: headless Chromium runs its script against a real server.

use std::process::Command;

use flowvigil::health::Phase;

use crate::api::{Api, anomaly};

/// The browser, by the names that distributions give it.
fn browser() -> Option<&'static str> {
    let known = ["chromium", "chromium-browser", "google-chrome"];
    known.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success()))
}

fn chromium(api: &Api, arguments: &[&str]) -> Option<Vec<u8>> {
    let Some(browser) = browser() else {
        eprintln!("skipped: there is no Chromium here; tests/run dashboard installs one");
        return None;
    };
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=6000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .arg(format!("http://{}/", api.address))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

#[test]
fn the_page_shows_what_the_api_knows() {
    let api = Api::start();
    api.health.enter(Phase::Running);
    api.health.degrade("ml", "no answer; statistics alone");
    let told = anomaly(7, 1_700_000_000);
    api.record(&told);
    let Some(page) = chromium(&api, &["--dump-dom"]) else { return };
    let page = String::from_utf8(page).unwrap();
    for words in [told.summary.as_str(), "port scan", "degraded · running", "ml: no answer; statistics alone"] {
        assert!(page.contains(words), "`{words}` is not on the page:\n{page}");
    }
}

#[test]
fn the_page_follows_changes_and_says_so_where_it_cannot() {
    let api = Api::start();
    let Some(page) = chromium(&api, &["--dump-dom"]) else { return };
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains(">live</span>"), "{page}");
    let api = Api::with(|settings| settings.streams_max = 0).unwrap();
    let told = anomaly(7, 1_700_000_000);
    api.record(&told);
    let page = String::from_utf8(chromium(&api, &["--dump-dom"]).unwrap()).unwrap();
    assert!(page.contains("disconnected, asking every 2 s</span>"), "{page}");
    assert!(page.contains(&told.summary), "the list is asked for all the same:\n{page}");
}

#[test]
fn text_from_the_outside_stays_text() {
    let api = Api::start();
    let mut told = anomaly(7, 1_700_000_000);
    told.summary = "<img src=x onerror=\"document.title='taken over'\">".to_owned();
    api.record(&told);
    let Some(page) = chromium(&api, &["--dump-dom"]) else { return };
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("&lt;img src=x"), "the summary is not on the page:\n{page}");
    assert!(!page.contains("<title>taken over"), "{page}");
}
