//! Answers to hot questions, kept for a moment: dashboards of many people ask the same page again and again.
//!
//! An answer may be as old as the settings allow, and no older; there is nothing to invalidate, so tasks need not know of
//! each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::publish::Page;

/// Pages that are kept; the oldest goes first.
const PAGES_MAX: usize = 256;

/// Pages by the question that they answer.
#[derive(Debug)]
pub(super) struct Cache {
    keep: Duration,
    pages: Mutex<HashMap<String, (Instant, Arc<Page>)>>,
}

impl Cache {
    /// Keeps pages for so long; for no time at all, none.
    pub(super) fn new(keep: Duration) -> Cache {
        Cache { keep, pages: Mutex::new(HashMap::new()) }
    }

    /// The page that answers a question, if it is young enough.
    pub(super) fn get(&self, question: &str, now: Instant) -> Option<Arc<Page>> {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, page) = pages.get(question)?;
        (now.duration_since(*at) < self.keep).then(|| page.clone())
    }

    /// Keeps a page that was asked for at a moment.
    pub(super) fn put(&self, question: String, at: Instant, page: Arc<Page>) {
        if self.keep.is_zero() {
            return;
        }
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.len() >= PAGES_MAX
            && let Some(oldest) = pages.iter().min_by_key(|(_, (at, _))| *at).map(|(question, _)| question.clone())
        {
            pages.remove(&oldest);
        }
        pages.insert(question, (at, page));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_kept_for_a_moment_and_the_number_of_pages_is_bounded() {
        let (cache, began) = (Cache::new(Duration::from_secs(1)), Instant::now());
        let page = Arc::new(Page::default());
        for n in 0..PAGES_MAX + 10 {
            cache.put(n.to_string(), began + Duration::from_micros(n as u64), page.clone());
        }
        let last = (PAGES_MAX + 9).to_string();
        assert!(cache.get(&last, began + Duration::from_millis(900)).is_some());
        assert!(cache.get(&last, began + Duration::from_millis(1100)).is_none());
        assert!(cache.get("0", began).is_none());
        assert_eq!(cache.pages.lock().unwrap().len(), PAGES_MAX);
    }
}
