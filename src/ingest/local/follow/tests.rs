use std::fs::OpenOptions;

use super::*;

fn line(port: u32) -> String {
    format!("2 123456789010 eni-1 172.31.16.139 172.31.16.21 {port} 22 6 20 4249 1418530010 1418530070 ACCEPT OK\n")
}

fn settings(path: &Path, checkpoint: &Path, follow: bool) -> Settings {
    let mut settings = Settings::default();
    settings.local.paths = vec![path.into()];
    settings.local.follow = follow;
    settings.local.poll_interval = "5ms".parse().unwrap();
    settings.local.checkpoint = checkpoint.into();
    settings
}

async fn shard(settings: &Settings) -> Box<dyn Shard> {
    Source::new(settings).unwrap().next_shard().await.unwrap().unwrap()
}

/// Reads until `count` records have come, or the end.
async fn ports(shard: &mut Box<dyn Shard>, count: usize) -> (Vec<u16>, Option<Position>, u64) {
    let (mut ports, mut position, mut refused) = (Vec::new(), None, 0);
    for _ in 0..2000 {
        match shard.read().await.unwrap() {
            Read::Batch(batch) => {
                ports.extend(batch.records.iter().map(|record| record.source_port));
                position = batch.position.or(position);
                refused += batch.refused.count;
            }
            Read::Idle => {}
            Read::End | Read::Lost => break,
        }
        if ports.len() >= count {
            break;
        }
    }
    (ports, position, refused)
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_growing_file_is_followed_over_half_lines_and_through_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("vpc.log");
    append(&log, &line(1));
    let mut shard = shard(&settings(&log, Path::new(""), true)).await;
    assert_eq!(ports(&mut shard, 1).await.0, [1]);
    let second = line(2);
    append(&log, &second[..30]);
    assert!(matches!(shard.read().await.unwrap(), Read::Idle | Read::Batch(Batch { .. })));
    append(&log, &second[30..]);
    assert_eq!(ports(&mut shard, 1).await.0, [2]);
    append(&log, &line(3));
    fs::rename(&log, folder.path().join("vpc.log.1")).unwrap();
    append(&log, &line(4));
    assert_eq!(ports(&mut shard, 2).await.0, [3, 4]);
    fs::write(&log, "").unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    append(&log, &line(5));
    let (read, _, refused) = ports(&mut shard, 1).await;
    assert_eq!((read, refused), (vec![5], 0));
}

#[tokio::test]
async fn a_folder_gets_new_files_and_a_renamed_one_is_not_read_twice() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.log"), line(1)).unwrap();
    let mut shard = shard(&settings(folder.path(), Path::new(""), true)).await;
    assert_eq!(ports(&mut shard, 1).await.0, [1]);
    fs::rename(folder.path().join("a.log"), folder.path().join("a.log.1")).unwrap();
    fs::write(folder.path().join("b.log"), "not of use\n").unwrap();
    let packed = zstd::encode_all((line(2) + &line(3)).as_bytes(), 1).unwrap();
    fs::write(folder.path().join("c.zst"), packed).unwrap();
    let (read, _, refused) = ports(&mut shard, 2).await;
    assert_eq!((read, refused), (vec![2, 3], 1));
}

#[tokio::test]
async fn a_restart_goes_on_after_the_last_checkpoint_and_reads_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let kept = tempfile::tempdir().unwrap();
    // More than one batch, so that a checkpoint falls into the middle of a packed file.
    let text: String = (0..8000).map(|n| line(n % 60_000)).collect();
    fs::write(folder.path().join("a.zst"), zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
    fs::write(folder.path().join("b.log"), line(60_001)).unwrap();
    let settings = settings(folder.path(), kept.path(), false);
    let mut first = shard(&settings).await;
    assert_eq!(first.resume_from(), None);
    let (mut read, position, _) = ports(&mut first, 1).await;
    assert!(read.len() < 8000);
    first.checkpoint(&position.clone().unwrap()).await.unwrap();
    drop(first);

    let mut second = shard(&settings).await;
    assert_eq!(second.resume_from(), position);
    let (rest, position, refused) = ports(&mut second, usize::MAX).await;
    read.extend(rest);
    assert_eq!((read.len(), refused), (8001, 0));
    assert!(read[..8000].iter().enumerate().all(|(n, port)| usize::from(*port) == n));
    second.checkpoint(&position.unwrap()).await.unwrap();

    let mut third = shard(&settings).await;
    assert_eq!(ports(&mut third, 1).await.0, Vec::<u16>::new());
}

#[tokio::test]
async fn a_damaged_checkpoint_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("a.log");
    fs::write(&log, line(1)).unwrap();
    let settings = settings(&log, folder.path(), false);
    let mut first = shard(&settings).await;
    let (_, position, _) = ports(&mut first, 1).await;
    first.checkpoint(&position.unwrap()).await.unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "checkpoint") {
            fs::write(path, "{").unwrap();
        }
    }
    let error = Source::new(&settings).unwrap().next_shard().await.err().unwrap();
    assert!(error.to_string().contains("delete it to read all again"), "{error}");
}

#[tokio::test]
async fn a_shard_that_was_given_up_is_offered_again_from_its_last_checkpoint_and_a_released_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("vpc.log");
    append(&log, &line(1));
    for kept in [folder.path().join("kept"), PathBuf::new()] {
        let mut source = Source::new(&settings(&log, &kept, true)).unwrap();
        let mut first = source.next_shard().await.unwrap().unwrap();
        let (read, position, _) = ports(&mut first, 1).await;
        assert!(!read.is_empty());
        first.checkpoint(&position.unwrap()).await.unwrap();
        append(&log, &line(2));
        assert_eq!(ports(&mut first, 1).await.0, [2]);
        let waits = tokio::time::timeout(Duration::from_millis(20), source.next_shard()).await;
        assert!(waits.is_err(), "it is being read");
        drop(first);
        let mut again = source.next_shard().await.unwrap().unwrap();
        assert!(again.resume_from().is_some());
        let (read, ..) = ports(&mut again, 1).await;
        assert_eq!(read, [2], "what was not checkpointed is read again");
        again.release().await.unwrap();
        drop(again);
        assert!(source.next_shard().await.unwrap().is_none());
        fs::remove_file(&log).unwrap();
        append(&log, &line(1));
    }
}

#[tokio::test]
async fn a_shard_that_is_read_once_and_comes_no_further_is_not_offered_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("vpc.log");
    append(&log, &line(1));
    let mut source = Source::new(&settings(&log, Path::new(""), false)).unwrap();
    let mut offered = 0;
    while let Some(shard) = source.next_shard().await.unwrap() {
        drop(shard);
        offered += 1;
    }
    assert_eq!(offered, FAILURES_MAX);
}

fn lines(ports: std::ops::Range<u32>) -> String {
    ports.map(line).collect()
}

/// All that comes within some looks at the folder.
async fn settled(shard: &mut Box<dyn Shard>) -> (Vec<u16>, u64) {
    let (mut all, mut refused, mut idle) = (Vec::new(), 0, 0);
    while idle < 12 {
        match shard.read().await.unwrap() {
            Read::Batch(batch) if batch.records.is_empty() && batch.refused.count == 0 => idle += 1,
            Read::Batch(batch) => {
                all.extend(batch.records.iter().map(|record| record.source_port));
                refused += batch.refused.count;
                idle = 0;
            }
            Read::Idle => idle += 1,
            Read::End | Read::Lost => break,
        }
    }
    (all, refused)
}

/// The next batch; nothing at the end.
async fn next(shard: &mut Box<dyn Shard>) -> Option<Batch> {
    loop {
        match shard.read().await.unwrap() {
            Read::Batch(batch) => return Some(batch),
            Read::Idle => {}
            Read::End | Read::Lost => return None,
        }
    }
}

fn numbers(range: std::ops::Range<u16>) -> Vec<u16> {
    range.collect()
}

#[tokio::test]
async fn however_a_log_in_a_folder_is_rotated_each_record_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut shard = shard(&settings(folder.path(), Path::new(""), true)).await;
    // More than is looked at of a file's beginning, so that its end matters too.
    append(&at("flow.log"), &lines(0..100));
    assert_eq!(settled(&mut shard).await, (numbers(0..100), 0));
    // By renaming.
    append(&at("flow.log"), &lines(100..110));
    fs::rename(at("flow.log"), at("flow.log.1")).unwrap();
    append(&at("flow.log"), &lines(200..300));
    let (mut read, _) = settled(&mut shard).await;
    read.sort_unstable();
    assert_eq!(read, [numbers(100..110), numbers(200..300)].concat());
    // By copying, with more in the new file than was in the old.
    fs::copy(at("flow.log"), at("flow.log.2")).unwrap();
    fs::write(at("flow.log"), lines(400..600)).unwrap();
    assert_eq!(settled(&mut shard).await, (numbers(400..600), 0));
    // With as much, and without a copy.
    fs::write(at("flow.log"), lines(600..800)).unwrap();
    assert_eq!(settled(&mut shard).await, (numbers(600..800), 0));
    // By packing.
    let packed = zstd::encode_all(&fs::read(at("flow.log.1")).unwrap()[..], 1).unwrap();
    fs::write(at("flow.log.1.zst"), packed).unwrap();
    assert_eq!(settled(&mut shard).await, (vec![], 0));
    fs::remove_file(at("flow.log.1")).unwrap();
    assert_eq!(settled(&mut shard).await, (vec![], 0));
    // By removing, with another file in its place that begins alike and is longer.
    let like = lines(600..800) + &lines(900..950);
    fs::remove_file(at("flow.log")).unwrap();
    fs::write(at("flow.log"), like).unwrap();
    assert_eq!(settled(&mut shard).await, (numbers(900..950), 0));
}

#[tokio::test]
async fn a_download_is_read_when_it_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut shard = shard(&settings(folder.path(), Path::new(""), true)).await;
    let whole = zstd::encode_all(lines(0..300).as_bytes(), 1).unwrap();
    for (under_way, complete) in
        [("a.log.zst.part", "a.log.zst"), ("b.log.zst.6eF5b2C1", "b.log.zst"), ("c.tmp", "c.log.zst")]
    {
        fs::write(at(under_way), &whole[..whole.len() / 2]).unwrap();
        assert_eq!(settled(&mut shard).await, (vec![], 0), "{under_way}");
        fs::write(at(under_way), &whole).unwrap();
        fs::rename(at(under_way), at(complete)).unwrap();
        let first = complete == "a.log.zst";
        let expected = if first { numbers(0..300) } else { vec![] };
        assert_eq!(settled(&mut shard).await, (expected, 0), "{complete}: the same content is read once");
    }
}

#[tokio::test]
async fn a_restart_holds_to_what_was_read_through_rotations_in_between() {
    let folder = tempfile::tempdir().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let settings = settings(folder.path(), kept.path(), true);
    append(&at("flow.log"), &lines(0..100));
    let mut first = shard(&settings).await;
    let (read, position, _) = ports(&mut first, 100).await;
    assert_eq!(read, numbers(0..100));
    first.checkpoint(&position.unwrap()).await.unwrap();
    drop(first);
    // Packed and removed, and another has its name: longer, and written over in place.
    fs::write(at("flow.log.1.zst"), zstd::encode_all(&fs::read(at("flow.log")).unwrap()[..], 1).unwrap()).unwrap();
    fs::write(at("flow.log"), lines(200..400)).unwrap();
    let mut second = shard(&settings).await;
    assert_eq!(settled(&mut second).await, (numbers(200..400), 0));
}

#[tokio::test]
async fn files_that_overlap_are_one_shard_in_the_order_of_time_and_a_checkpoint_may_lie_within_them() {
    let folder = tempfile::tempdir().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Two interfaces over the same three hours, a record a second in turn.
    let of = |interface: u32| -> String {
        let line = |n: u32| {
            let start = 1_418_530_000 + 2 * n + interface;
            format!("2 1 eni-{interface} 10.0.0.{interface} 10.0.0.9 {n} 22 6 1 40 {start} {} ACCEPT OK\n", start + 50)
        };
        (0..5_000).map(line).collect()
    };
    fs::write(at("a.log"), of(0)).unwrap();
    fs::write(at("b.log"), of(1)).unwrap();
    let mut settings = settings(&at("b.log"), kept.path(), false);
    settings.local.paths.push(at("a.log"));
    let mut source = Source::new(&settings).unwrap();
    let mut first = source.next_shard().await.unwrap().unwrap();
    let mut all = Vec::new();
    let mut newest = EventTime(0);
    for _ in 0..2 {
        let batch = next(&mut first).await.unwrap();
        for record in &batch.records {
            assert!(newest.since(record.start) <= 60, "{} s behind", newest.since(record.start));
            newest = newest.max(record.start);
        }
        all.extend(batch.records.iter().map(|record| (record.start, record.source_port)));
        first.checkpoint(&batch.position.unwrap()).await.unwrap();
    }
    drop(first);
    drop(source);
    let mut second = shard(&settings).await;
    while let Some(batch) = next(&mut second).await {
        all.extend(batch.records.iter().map(|record| (record.start, record.source_port)));
    }
    assert_eq!(all.len(), 10_000);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 10_000, "each once");
}
