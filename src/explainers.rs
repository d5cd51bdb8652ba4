//! Who can be asked what is known of an address, and of the log: the engines of this task's shards.
//!
//! An engine has one owner, so a question is work for its thread like any other, and is answered between two batches. An
//! engine that is held up does not answer, which is said and not waited for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::flow::Address;
use crate::statistical::Engine;
use crate::statistical::explain::Explained;
use crate::statistical::profile::{Coverage, Profile};

/// A question, and where the answer goes.
#[derive(Debug)]
pub enum Question {
    /// Why an address did or did not alert.
    Explain(Address, oneshot::Sender<Explained>),
    /// What is held of an address.
    Profile(Address, oneshot::Sender<Profile>),
    /// How much of the log could be judged.
    Coverage(oneshot::Sender<Coverage>),
}

impl Question {
    /// Answers it. An asker that does not wait any more needs no answer.
    pub fn answer(self, engine: &Engine) {
        match self {
            Question::Explain(address, answer) => drop(answer.send(engine.explained(address))),
            Question::Profile(address, answer) => drop(answer.send(engine.profile(address))),
            Question::Coverage(answer) => drop(answer.send(engine.coverage())),
        }
    }
}

/// Questions that wait for one engine at most; more are not answered.
const WAITING_MAX: usize = 16;

/// The engines that can be asked, by the names of their shards.
#[derive(Debug, Default)]
pub struct Explainers {
    shards: Mutex<BTreeMap<String, mpsc::Sender<Question>>>,
}

/// What the engines answered.
#[derive(Debug)]
pub struct Answers<T> {
    /// By the names of their shards.
    pub answers: Vec<(String, T)>,
    /// The shards whose engines did not answer in time.
    pub silent: Vec<String>,
}

impl Explainers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, mpsc::Sender<Question>>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine can be asked from now on; gives the questions.
    pub fn enter(&self, shard: &str) -> mpsc::Receiver<Question> {
        let (ask, questions) = mpsc::channel(WAITING_MAX);
        self.lock().insert(shard.to_owned(), ask);
        questions
    }

    /// Engines whose questions nobody takes any more are forgotten.
    fn present(&self) -> Vec<(String, mpsc::Sender<Question>)> {
        let mut shards = self.lock();
        shards.retain(|_, ask| !ask.is_closed());
        shards.iter().map(|(shard, ask)| (shard.clone(), ask.clone())).collect()
    }

    /// Asks all of them at once, and waits no longer than `patience`.
    pub async fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>) -> Question, patience: Duration) -> Answers<T> {
        let until = tokio::time::Instant::now() + patience;
        let mut asked = Vec::new();
        for (shard, ask) in self.present() {
            let (answer, told) = oneshot::channel();
            let sent = ask.try_send(question(answer)).is_ok();
            asked.push((shard, sent.then_some(told)));
        }
        let mut all = Answers { answers: Vec::new(), silent: Vec::new() };
        for (shard, told) in asked {
            let answer = match told {
                Some(told) => tokio::time::timeout_at(until, told).await.ok().and_then(Result::ok),
                None => None,
            };
            match answer {
                Some(answer) => all.answers.push((shard, answer)),
                None => all.silent.push(shard),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_is_held_up_is_named_and_whoever_has_left_is_not_asked() {
        let explainers = Explainers::default();
        let address: Address = "10.0.0.5".parse().unwrap();
        let mut awake = explainers.enter("awake");
        let _held_up = explainers.enter("held up");
        drop(explainers.enter("gone"));
        let answering = async {
            let Question::Explain(address, answer) = awake.recv().await.unwrap() else { panic!("another question") };
            answer.send(Explained { address, seen: None, approaches: Vec::new() }).unwrap();
        };
        let (answers, ()) = tokio::join!(
            explainers.ask(|answer| Question::Explain(address, answer), Duration::from_millis(50)),
            answering
        );
        let answered: Vec<_> = answers.answers.iter().map(|(shard, told)| (shard.as_str(), told.address)).collect();
        assert_eq!(answered, [("awake", address)]);
        assert_eq!(answers.silent, ["held up"]);
    }
}
