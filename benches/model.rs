//! What a host-window costs in the models, and what a host costs in memory: may tier 2 stay in process, in the engine's
//! shadow? The bounds are 2 us a window for forest and LSTM together, and 300 MB for 100,000 hosts. And what endpoints
//! keep up with: 10,000 windows a second, client and model server sharing this machine.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_sagemakerruntime::config::{Credentials, Region, SharedCredentialsProvider};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowvigil::flow::network::Network;
use flowvigil::flow::{Address, EventTime};
use flowvigil::ml::artifact::Slot;
use flowvigil::ml::forest::{Forest, Growth};
use flowvigil::ml::lstm::{INPUTS, Lstm, State};
use flowvigil::ml::model::Judge;
use flowvigil::ml::sagemaker::{self, BreakerSettings, SageMaker};
use flowvigil::ml::{FeatureVector, Scorer, artifact, features};
use flowvigil::settings::Settings;
use flowvigil::simulate::{Scenario, Simulation};
use flowvigil::statistical::{Engine, Output};
use jiff::SignedDuration;

const HOSTS: u32 = 10_000;

/// Resident memory of this process, bytes: now (`VmRSS`) or at its peak (`VmHWM`).
fn resident(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix(what)?.split_whitespace().nth(1)?.parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}

/// What a process has used of processors, in hundredths of a second.
fn processor_time(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// The windows of each host of a simulated VPC through half a day, without the first hours, in which their past is too short. What
/// a model costs depends on what it sees: the rare is explained, and noise would be rare.
fn simulated() -> Vec<Vec<FeatureVector>> {
    let simulation = Simulation::new(Scenario { duration_seconds: 12 * 3_600, ..Scenario::default() });
    let mut settings = Settings::assemble(&[]).expect("the defaults are right");
    settings.network.internal = simulation.internal();
    let mut engine = Engine::new(&settings.statistical, &Network::new(&settings.network));
    let mut out = Output::default();
    for step in simulation {
        engine.observe(&step.records);
        engine.advance(&mut out);
    }
    engine.finish(&mut out);
    let mut hosts: BTreeMap<Address, Vec<FeatureVector>> = BTreeMap::new();
    for vector in out.vectors {
        hosts.entry(vector.host).or_default().push(vector);
    }
    let series = hosts.into_values().filter(|series| series.len() > 100).map(|series| series[48..].to_vec());
    series.collect()
}

/// One window each of many hosts that are past their warm-up, which do as those of the simulation do.
fn windows(simulated: &[Vec<FeatureVector>], step: u32, hosts: std::ops::Range<u32>) -> Vec<FeatureVector> {
    let of = |host: u32| {
        let (like, later) = (host as usize % simulated.len(), host as usize / simulated.len());
        let series = &simulated[like];
        FeatureVector {
            host: Address::v4(0x0a00_0000 + host),
            window: EventTime(1_772_438_400 + step * features::WINDOW_SECONDS),
            history: 100 + step,
            ..series[(step as usize + later) % series.len()].clone()
        }
    };
    hosts.map(of).collect()
}

fn model(c: &mut Criterion) {
    let model = artifact::embedded().expect("the embedded model is sound");
    let simulated = simulated();
    let before = resident("VmRSS");
    let mut judge = Judge::new(1_000_000);
    // A thousand at a time, so that windows and answers do not count as memory of hosts.
    for from in (0..100_000).step_by(1_000) {
        judge.judge(&model, &windows(&simulated, 0, from..from + 1_000));
    }
    let (table, grown) = (judge.memory() / 1_000_000, (resident("VmHWM") - before) / 1_000_000);
    println!("{} hosts take {table} MB of model state; the process grew by {grown} MB at its peak", judge.hosts());
    drop(judge);

    let batches: Vec<Vec<FeatureVector>> = (30..46).map(|step| windows(&simulated, step, 0..HOSTS)).collect();
    let mut group = c.benchmark_group("model");
    group.throughput(Throughput::Elements(u64::from(HOSTS)));
    let mut judge = Judge::new(1_000_000);
    (0..30).for_each(|step| drop(judge.judge(&model, &windows(&simulated, step, 0..HOSTS))));
    let mut next = batches.iter().cycle();
    group.bench_function("top3_z + forest + lstm", |b| {
        b.iter(|| black_box(judge.judge(&model, black_box(next.next().expect("without end")))))
    });
    let rows: Vec<f32> = batches[0].iter().flat_map(|v| v.values.iter().copied()).collect();
    let forest = Forest::grow(&rows, features::NAMES.len(), Growth::default()).expect("there are rows enough");
    group.bench_function("forest 100 x 1024", |b| b.iter(|| black_box(forest.paths(black_box(&rows)))));

    // The embedded network; each host's state goes on from batch to batch, as it does in service.
    let folder = tempfile::tempdir().expect("there is room for the model");
    artifact::write_folder(&model, folder.path()).expect("there is room for the model");
    let lstm = std::fs::read(folder.path().join("lstm.safetensors")).expect("it was just written");
    let lstm = Lstm::from_bytes(&lstm).expect("the embedded model is sound");
    let sequences: Vec<Vec<[f32; INPUTS]>> =
        batches.iter().map(|batch| batch.iter().map(|v| std::array::from_fn(|i| v.sequence[i])).collect()).collect();
    let step = |states: &mut [State], sequence: &[[f32; INPUTS]]| -> f32 {
        let host = |(state, window): (&mut State, &[f32; INPUTS])| lstm.forecast(state, window).surprise(window)[0];
        states.iter_mut().zip(sequence).map(host).sum()
    };
    let mut states = vec![State::default(); HOSTS as usize];
    let mut next = sequences.iter().cycle();
    group.bench_function("lstm", |b| b.iter(|| black_box(step(&mut states, next.next().expect("without end")))));
    let mut next = sequences.iter().cycle();
    group.bench_function("forest + lstm", |b| {
        b.iter(|| (black_box(forest.paths(black_box(&rows))), step(&mut states, next.next().expect("without end"))))
    });
    group.finish();
}

/// Windows over two endpoints of one `flowvigil serve`, through SDK and breakers, for five seconds.
fn endpoint(_: &mut Criterion) {
    let mut server = Command::new(env!("CARGO_BIN_EXE_flowvigil"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("it is piped")).read_line(&mut line).expect("it says where it listens");
    let url = format!("http://{}", line.trim().rsplit("http://").next().unwrap_or_default());
    let seconds = SignedDuration::from_secs;
    let settings = sagemaker::Settings {
        isolation_forest_endpoint: "isolation-forest-endpoint".to_owned(),
        lstm_endpoint: "lstm-model-endpoint".to_owned(),
        deadline: seconds(5),
        request_windows: 200,
        concurrency: 8,
        paired_every: 0,
        breaker: BreakerSettings {
            window: seconds(30),
            calls_min: 10,
            failure_rate: 0.5,
            slow_call: seconds(4),
            slow_rate: 0.8,
            pause: seconds(5),
            pause_max: seconds(60),
        },
    };
    const BATCH: u32 = 2_000;
    let simulated = simulated();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let credentials = Credentials::new("test", "test", None, None, "test");
        let config = flowvigil::aws::load_at(&url)
            .await
            .into_builder()
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        let model = artifact::embedded().expect("the embedded model is sound");
        let mut judge = Judge::new(1_000_000);
        (0..40).for_each(|step| drop(judge.judge(&model, &windows(&simulated, step, 0..BATCH))));
        let client =
            SageMaker::new(&config, settings, Settings::defaults().ml.canary, Arc::new(Slot::new(model, None)));
        let batch = windows(&simulated, 40, 0..BATCH);
        let pids = ["self".to_owned(), server.id().to_string()];
        let before = pids.each_ref().map(|pid| processor_time(pid));
        let (began, mut scored, mut degraded) = (Instant::now(), 0, 0);
        while began.elapsed() < Duration::from_secs(5) {
            let scores = client.score(&mut judge, &batch).await.expect("it always answers");
            scored += scores.len();
            degraded += scores.iter().filter(|score| score.degraded).count();
        }
        let rate = scored as f64 / began.elapsed().as_secs_f64();
        let [client, served] =
            std::array::from_fn(|at| (processor_time(&pids[at]) - before[at]).as_micros() as f64 / scored as f64);
        println!("{rate:.0} windows/s over both endpoints, {degraded} of {scored} answered by the model in process");
        println!("{client:.0} us of processor time a window for the client, {served:.0} us for the server");
    });
    // It ends with the bench; nobody waits for what it says.
    let _ = server.kill();
    let _ = server.wait();
}

criterion_group!(benches, model, endpoint);
criterion_main!(benches);
