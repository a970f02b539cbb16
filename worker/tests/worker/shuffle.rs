//! The shuffle service without a daemon around it: what it serves, what it refuses, what it takes for itself.

use firesteel_common::shuffle::{INDEX_BYTES_MAX, OutputId, OutputIndex};
use firesteel_common::{ApplicationId, Secret};
use firesteel_proto::v1;
use firesteel_proto::v1::shuffle_server::Shuffle;
use firesteel_worker::shuffle::Tenants;
use firesteel_worker::shuffle::service::{Bounds, ShuffleService};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

const LIMIT: Duration = Duration::from_secs(30);
const TOKEN: &str = "token-of-app-1";
const CHUNK: usize = 256 << 10;

type Stream = ReceiverStream<Result<v1::FetchedBytes, Status>>;

struct Bench {
    dir: tempfile::TempDir,
    tenants: watch::Sender<Tenants>,
    service: ShuffleService,
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"))
}

/// Lets others run until `condition` holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn output(task: u32) -> OutputId {
    OutputId { query: 7, stage: 1, task, attempt: 0 }
}

/// Two applications; the second has another token.
impl Bench {
    fn new(bounds: Bounds) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for app in ["app-1", "app-2"] {
            std::fs::create_dir(dir.path().join(app)).unwrap();
        }
        let tenants = [("app-1", TOKEN), ("app-2", "token-of-app-2")];
        let tenants = tenants.map(|(id, token)| (id.parse::<ApplicationId>().unwrap(), Secret::new(token)));
        let tenants = watch::Sender::new(Some(Arc::new(tenants.into())));
        let service = ShuffleService::new(dir.path().into(), tenants.subscribe(), bounds);
        Self { dir, tenants, service }
    }

    fn path(&self, id: &OutputId) -> PathBuf {
        self.dir.path().join("app-1").join(id.relative_path())
    }

    /// An output of `app-1`: groups of partitions.
    fn write(&self, id: &OutputId, groups: &[&[&[u8]]]) -> PathBuf {
        let path = self.path(id);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, encode(groups)).unwrap();
        path
    }

    async fn start(&self, id: &OutputId, partition: u32) -> Result<Stream, Status> {
        soon("an answer", fetch(&self.service, Some(TOKEN), "app-1", &id.to_string(), partition)).await
    }

    async fn read(&self, id: &OutputId, partition: u32) -> Result<Vec<u8>, Status> {
        read(self.start(id, partition).await?).await
    }

    async fn refused(&self, id: &OutputId, code: Code, words: &str) {
        let status = self.read(id, 0).await.expect_err("it should be refused");
        assert_eq!(status.code(), code, "{status:?}");
        let message = status.message();
        assert!(message.contains(words) && message.contains("app-1"), "{message}");
        assert!(message.contains(&id.to_string()) && !message.contains(TOKEN), "{message}");
    }
}

fn encode(groups: &[&[&[u8]]]) -> Vec<u8> {
    let mut index = OutputIndex::new(groups.first().map_or(0, |group| group.len()));
    let mut bytes = Vec::new();
    for group in groups {
        index.push_group(bytes.len() as u64, group.iter().map(|part| part.len() as u64));
        bytes.extend(group.concat());
    }
    bytes.extend(index.encode());
    bytes
}

fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

async fn fetch(
    service: &ShuffleService,
    token: Option<&str>,
    application: &str,
    output: &str,
    partition: u32,
) -> Result<Stream, Status> {
    let request = v1::FetchRequest {
        application_id: application.into(),
        output: output.into(),
        partition,
        offset: 0,
        max_bytes: u64::MAX,
    };
    Ok(service.fetch(with_token(request, token)).await?.into_inner())
}

/// All that there is; a stream of nothing says so.
async fn read(mut stream: Stream) -> Result<Vec<u8>, Status> {
    let mut all = Vec::new();
    let mut total = None;
    while let Some(chunk) = soon("a chunk", stream.next()).await {
        let v1::FetchedBytes { bytes, partition_bytes } = chunk?;
        assert!(bytes.len() <= CHUNK, "{}", bytes.len());
        assert_eq!(bytes.is_empty(), partition_bytes == 0);
        assert!(total.is_none_or(|total| total == partition_bytes));
        total = Some(partition_bytes);
        all.extend(bytes);
    }
    assert_eq!(total, Some(all.len() as u64));
    Ok(all)
}

fn noise(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed).collect()
}

#[tokio::test]
async fn a_partition_is_its_pieces_of_all_groups_in_order() {
    let bench = Bench::new(Bounds::default());
    let large = noise(3 * CHUNK + 17, 5);
    bench.write(
        &output(0),
        &[&[b"ab", b"", b"cd"], &[b"", b"", b"ef"], &[b"gh", b"", &large], &[b"i", b"", b"j"]],
    );
    assert_eq!(bench.read(&output(0), 0).await.unwrap(), b"abghi");
    assert_eq!(bench.read(&output(0), 1).await.unwrap(), b"");
    assert_eq!(bench.read(&output(0), 2).await.unwrap(), [b"cdef".as_slice(), &large, b"j"].concat());
    let status = bench.read(&output(0), 3).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().ends_with("it has no partition 3, only 3"), "{}", status.message());
    let counters = bench.service.counters();
    assert_eq!((counters.fetches(), counters.failures()), (4, 1));
    assert_eq!(counters.read_bytes(), 5 + 5 + large.len() as u64);
    eventually("all files closed", || bench.service.slots().used() == 0 && counters.streams() == 0).await;
}

#[tokio::test]
async fn a_reader_asks_again_from_where_it_is() {
    let bench = Bench::new(Bounds::default());
    let bytes = noise(2 * CHUNK + 100, 8);
    let (first, second) = bytes.split_at(1000);
    bench.write(&output(0), &[&[b"x", first], &[b"y", b""], &[b"z", second]]);
    let ask = |offset, max_bytes| {
        let request = v1::FetchRequest {
            application_id: "app-1".into(),
            output: output(0).to_string(),
            partition: 1,
            offset,
            max_bytes,
        };
        let answer = bench.service.fetch(with_token(request, Some(TOKEN)));
        async {
            let chunks: Vec<_> = soon("all chunks", answer.await.unwrap().into_inner().collect()).await;
            let chunks: Vec<v1::FetchedBytes> = chunks.into_iter().map(Result::unwrap).collect();
            assert!(chunks.iter().all(|chunk| chunk.partition_bytes == bytes.len() as u64));
            assert!(chunks.len() == 1 || chunks.iter().all(|chunk| !chunk.bytes.is_empty()));
            chunks.into_iter().flat_map(|chunk| chunk.bytes).collect::<Vec<_>>()
        }
    };
    assert_eq!(ask(0, 0).await, b"", "only how much there is");
    for (offset, max_bytes) in [(0, 1), (999, 2), (1, 300_000), (5000, 50), (0, u64::MAX), (u64::MAX, 1)] {
        let start = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let end = bytes.len().min(start.saturating_add(usize::try_from(max_bytes).unwrap()));
        assert!(ask(offset, max_bytes).await == bytes[start..end], "{offset} {max_bytes}");
    }
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        got.extend(ask(got.len() as u64, 70_001).await);
    }
    assert!(got == bytes);
}

#[tokio::test]
async fn an_output_without_rows_has_empty_partitions() {
    let bench = Bench::new(Bounds::default());
    let path = bench.write(&output(0), &[]);
    std::fs::write(path, OutputIndex::new(4).encode()).unwrap();
    assert_eq!(bench.read(&output(0), 3).await.unwrap(), b"");
}

#[tokio::test]
async fn only_the_tokens_owner_is_served() {
    let bench = Bench::new(Bounds::default());
    bench.write(&output(0), &[&[b"secret"]]);
    let id = output(0).to_string();
    for (token, app) in [
        (None, "app-1"),
        (Some(""), "app-1"),
        (Some("token-of-app-2"), "app-1"),
        (Some("token-of-app-1x"), "app-1"),
        (Some(TOKEN), "app-2"),
        (Some(TOKEN), "app-3"),
    ] {
        let status = fetch(&bench.service, token, app, &id, 0).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{token:?} {app}");
        assert!(status.message().contains(app) && !status.message().contains("token-of"), "{status:?}");
        let request = v1::DiscardRequest {
            application_id: app.into(),
            outputs: vec![id.clone()],
            ..Default::default()
        };
        let status = bench.service.discard(with_token(request, token)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{token:?} {app}");
    }
    assert_eq!(bench.read(&output(0), 0).await.unwrap(), b"secret", "nothing was discarded");

    // The application has ended.
    bench.tenants.send_replace(Some(Arc::default()));
    assert_eq!(bench.start(&output(0), 0).await.unwrap_err().code(), Code::Unauthenticated);
    // A worker that has just started does not know yet.
    bench.tenants.send_replace(None);
    let status = bench.start(&output(0), 0).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("hint: "), "{}", status.message());
}

#[tokio::test]
async fn no_name_leads_out_of_the_directory() {
    let bench = Bench::new(Bounds::default());
    let root = bench.dir.path();
    std::fs::create_dir_all(root.join("app-2").join(format!("{:032x}", 7))).unwrap();
    let foreign = root.join("app-2").join(output(0).relative_path());
    std::fs::write(&foreign, encode(&[&[b"another's"]])).unwrap();
    for name in [
        "../app-2/1-0-0",
        "00000000000000000000000000000007/../1-0-0",
        "/etc/passwd",
        "00000000000000000000000000000007/1-0-0.shuffle",
        "00000000000000000000000000000007/01-0-0",
        "",
    ] {
        let status = fetch(&bench.service, Some(TOKEN), "app-1", name, 0).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}");
        let request = v1::DiscardRequest {
            application_id: "app-1".into(),
            outputs: vec![name.into()],
            ..Default::default()
        };
        let status = bench.service.discard(with_token(request, Some(TOKEN))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}");
    }
    for app in ["", "..", "app-1/../app-2", "app-./x"] {
        let status = fetch(&bench.service, Some(TOKEN), app, &output(0).to_string(), 0).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{app}");
    }
    for query in ["..", "7", "0000000000000000000000000000000A", "+0000000000000000000000000000007"] {
        let request = v1::DiscardRequest {
            application_id: "app-1".into(),
            queries: vec![query.into()],
            ..Default::default()
        };
        let status = bench.service.discard(with_token(request, Some(TOKEN))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{query}");
    }
    assert!(foreign.exists());
}

#[tokio::test]
async fn what_is_planted_in_the_directory_is_not_followed() {
    let bench = Bench::new(Bounds::default());
    let root = bench.dir.path();
    let outside = root.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("1-0-0.shuffle"), encode(&[&[b"another's"]])).unwrap();
    const WORDS: &str = "no regular file";

    // The query's directory is a link, then a file.
    let query = bench.path(&output(0)).parent().unwrap().to_owned();
    symlink(&outside, &query).unwrap();
    bench.refused(&output(0), Code::DataLoss, WORDS).await;
    std::fs::remove_file(&query).unwrap();
    std::fs::write(&query, "").unwrap();
    bench.refused(&output(0), Code::DataLoss, WORDS).await;
    std::fs::remove_file(&query).unwrap();
    // The output is a link, a pipe, a directory.
    std::fs::create_dir(&query).unwrap();
    symlink(outside.join("1-0-0.shuffle"), bench.path(&output(0))).unwrap();
    bench.refused(&output(0), Code::DataLoss, WORDS).await;
    rustix::fs::mkfifoat(rustix::fs::CWD, bench.path(&output(1)), rustix::fs::Mode::RWXU).unwrap();
    bench.refused(&output(1), Code::DataLoss, WORDS).await;
    std::fs::create_dir(bench.path(&output(2))).unwrap();
    bench.refused(&output(2), Code::DataLoss, WORDS).await;
    // The application's directory is a link.
    std::fs::rename(root.join("app-1"), root.join("aside")).unwrap();
    symlink(&outside, root.join("app-1")).unwrap();
    bench.refused(&output(0), Code::DataLoss, WORDS).await;

    // Nor does a discard follow: with everything to discard that there could be, it leaves the outside alone.
    let request = v1::DiscardRequest {
        application_id: "app-1".into(),
        outputs: vec![output(0).to_string()],
        queries: vec![format!("{:032x}", 7)],
    };
    bench.service.discard(with_token(request.clone(), Some(TOKEN))).await.unwrap();
    std::fs::remove_file(root.join("app-1")).unwrap();
    std::fs::create_dir(root.join("app-1")).unwrap();
    symlink(&outside, &query).unwrap();
    bench.service.discard(with_token(request, Some(TOKEN))).await.unwrap();
    assert!(outside.join("1-0-0.shuffle").exists());
}

#[tokio::test]
async fn missing_and_damaged_outputs_are_told_apart() {
    let bench = Bench::new(Bounds::default());
    bench.refused(&output(0), Code::NotFound, "does not have it").await;
    let good = encode(&[&[b"some bytes", b"more"]]);
    let path = bench.write(&output(0), &[]);
    bench.refused(&output(1), Code::NotFound, "does not have it").await;
    let put = |bytes: &[u8]| std::fs::write(&path, bytes).unwrap();

    put(&[]);
    bench.refused(&output(0), Code::DataLoss, "too short").await;
    put(&good[..good.len() - 1]);
    bench.refused(&output(0), Code::DataLoss, "trailer").await;
    put(&good[good.len() - 16..]);
    bench.refused(&output(0), Code::DataLoss, "too short").await;
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    put(&flipped);
    bench.refused(&output(0), Code::DataLoss, "checksum").await;
    // Data is missing before the index: its offsets lead into itself.
    put(&good[10..]);
    bench.refused(&output(0), Code::DataLoss, "ascend").await;
    // An index of a terabyte, by its trailer, in a file that is as large (and has holes).
    let file = std::fs::File::create(&path).unwrap();
    file.set_len((1 << 40) + 16).unwrap();
    let mut trailer = *good.last_chunk::<16>().unwrap();
    for length in [1 << 40, INDEX_BYTES_MAX + 1] {
        trailer[..8].copy_from_slice(&u64::to_le_bytes(length));
        std::os::unix::fs::FileExt::write_all_at(&file, &trailer, 1 << 40).unwrap();
        bench.refused(&output(0), Code::DataLoss, "longer than any").await;
    }
    put(&good);
    assert_eq!(bench.read(&output(0), 1).await.unwrap(), b"more", "what comes in its place is read anew");
}

#[tokio::test]
async fn an_output_that_shrinks_while_it_is_read_is_damaged() {
    let bench = Bench::new(Bounds::default());
    let bytes = noise(8 * CHUNK, 1);
    let path = bench.write(&output(0), &[&[&bytes]]);
    let mut stream = bench.start(&output(0), 0).await.unwrap();
    eventually("a reader that is waited for", || bench.service.counters().stalled() == 1).await;
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let mut got = Vec::new();
    let status = loop {
        match soon("a chunk", stream.next()).await.expect("an error at the end") {
            Ok(chunk) => got.extend(chunk.bytes),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().contains("shorter"), "{}", status.message());
    assert_eq!(got, bytes[..got.len()]);
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_two_chunks() {
    let bench = Bench::new(Bounds::default());
    let bytes = noise(64 * CHUNK, 2);
    bench.write(&output(0), &[&[&bytes]]);
    let mut stream = bench.start(&output(0), 0).await.unwrap();
    let counters = bench.service.counters();
    for taken in 0..4 {
        // It is stalled: it reads nothing until a chunk is taken.
        let most = (taken + 1) * CHUNK as u64;
        eventually("a reader that is waited for", || {
            counters.stalled() == 1 && counters.read_bytes() == most
        })
        .await;
        soon("a chunk", stream.next()).await.unwrap().unwrap();
    }
    assert_eq!(bench.service.slots().used(), 1, "nobody else wants the slot");
    drop(stream);
    eventually("the end of the stream", || counters.streams() == 0 && bench.service.slots().used() == 0)
        .await;
    assert!(counters.read_bytes() <= 6 * CHUNK as u64);
}

#[tokio::test]
async fn very_many_fetches_keep_to_the_bound_of_open_files_and_none_fails() {
    let bench = Bench::new(Bounds { open_files: 3, chunks_per_turn: 1, ..Bounds::default() });
    let outputs: Vec<Vec<u8>> = (0..40).map(|task| noise(2 * CHUNK + 1000 * task as usize, task)).collect();
    for (task, bytes) in outputs.iter().enumerate() {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        bench.write(&output(task as u32), &[&[first, b"x"], &[second, b"y"]]);
    }
    let fetches = (0..400u32).map(|n| {
        let (bench, expected) = (&bench, &outputs[n as usize % 40]);
        async move {
            match n % 3 {
                0 => assert_eq!(bench.read(&output(n % 40), 1).await.unwrap(), b"xy"),
                _ => assert!(bench.read(&output(n % 40), 0).await.unwrap() == *expected),
            }
        }
    });
    futures::future::join_all(fetches).await;
    assert_eq!(bench.service.slots().peak(), 3);
    assert_eq!(bench.service.counters().failures(), 0);
}

#[tokio::test]
async fn a_consumer_that_needs_the_first_bytes_of_all_gets_them() {
    let bench = Bench::new(Bounds { open_files: 2, ..Bounds::default() });
    let bytes = noise(6 * CHUNK, 3);
    for task in 0..20 {
        bench.write(&output(task), &[&[&bytes]]);
    }
    // A merge: it opens all of them, and reads none on before it has something of each.
    let mut streams = Vec::new();
    for task in 0..20 {
        streams.push((bench.start(&output(task), 0).await.unwrap(), Vec::new()));
    }
    for _ in 0..24 {
        for (stream, got) in &mut streams {
            if let Some(chunk) = soon("a chunk of each", stream.next()).await {
                got.extend(chunk.unwrap().bytes);
            }
        }
    }
    assert!(streams.iter().all(|(_, got)| *got == bytes));
    assert_eq!(bench.service.slots().peak(), 2);
}

#[tokio::test]
async fn what_is_removed_while_it_is_read_is_read_to_its_end_or_not_found() {
    let bench = Bench::new(Bounds { open_files: 1, ..Bounds::default() });
    let bytes = noise(8 * CHUNK, 4);
    for task in 0..2 {
        bench.write(&output(task), &[&[&bytes]]);
    }
    // Its file is open and stays so.
    let stream = bench.start(&output(0), 0).await.unwrap();
    std::fs::remove_file(bench.path(&output(0))).unwrap();
    assert!(read(stream).await.unwrap() == bytes);

    // Its file had to be closed for another reader's.
    let mut stream = bench.start(&output(1), 0).await.unwrap();
    eventually("a reader that is waited for", || bench.service.counters().stalled() == 1).await;
    bench.write(&output(2), &[&[b"small"]]);
    assert_eq!(bench.read(&output(2), 0).await.unwrap(), b"small");
    let app = bench.dir.path().join("app-1");
    std::fs::rename(&app, bench.dir.path().join(".removed-app-1-1")).unwrap();
    let first = soon("a chunk", stream.next()).await.unwrap().unwrap();
    assert_eq!(first.bytes, bytes[..CHUNK]);
    let status = soon("an error", stream.next()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(soon("the end", stream.next()).await.is_none());

    // Another has come in its place.
    std::fs::create_dir(&app).unwrap();
    bench.write(&output(1), &[&[&bytes]]);
    let mut stream = bench.start(&output(1), 0).await.unwrap();
    eventually("a reader that is waited for", || bench.service.counters().stalled() == 1).await;
    bench.write(&output(2), &[&[b"small"]]);
    assert_eq!(bench.read(&output(2), 0).await.unwrap(), b"small");
    let (path, other) = (bench.path(&output(1)), bench.dir.path().join("other"));
    std::fs::write(&other, encode(&[&[&noise(8 * CHUNK, 9)]])).unwrap();
    std::fs::rename(&other, &path).unwrap();
    soon("a chunk", stream.next()).await.unwrap().unwrap();
    let status = soon("an error", stream.next()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("replaced"), "{}", status.message());
}

#[tokio::test]
async fn callers_beyond_the_bound_of_streams_wait_for_one_to_end() {
    let bench = Bench::new(Bounds { streams: 2, ..Bounds::default() });
    bench.write(&output(0), &[&[&noise(4 * CHUNK, 6)]]);
    let one = bench.start(&output(0), 0).await.unwrap();
    let _two = bench.start(&output(0), 0).await.unwrap();
    let id = output(0).to_string();
    let mut third = spawn_fetch(&bench.service, id);
    eventually("a third caller", || bench.service.counters().fetches() == 3).await;
    assert!(!third.is_finished());
    drop(one);
    let stream = soon("its turn", &mut third).await.unwrap().unwrap();
    assert_eq!(read(stream).await.unwrap().len(), 4 * CHUNK);
}

fn spawn_fetch(service: &ShuffleService, id: String) -> tokio::task::JoinHandle<Result<Stream, Status>> {
    let service = service.clone();
    tokio::spawn(async move { fetch(&service, Some(TOKEN), "app-1", &id, 0).await })
}

#[tokio::test]
async fn with_many_streams_the_chunks_are_smaller() {
    // What one stream of full chunks takes.
    let bench = Bench::new(Bounds { buffer_bytes: 2 * CHUNK, ..Bounds::default() });
    bench.write(&output(0), &[&[&noise(64 * CHUNK, 7)]]);
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(bench.start(&output(0), 0).await.unwrap());
    }
    let counters = bench.service.counters();
    eventually("16 readers that are waited for", || counters.stalled() == 16).await;
    let before = counters.read_bytes();
    for stream in &mut streams {
        soon("a chunk", stream.next()).await.unwrap().unwrap();
    }
    eventually("their next chunks", || {
        counters.stalled() == 16 && counters.read_bytes() >= before + 16 * (16 << 10)
    })
    .await;
    assert_eq!(counters.read_bytes() - before, 16 * (16 << 10), "an equal share each");
}

#[tokio::test]
async fn the_cache_of_indexes_is_bounded_and_notices_another_output() {
    let bench = Bench::new(Bounds { index_cache_bytes: 4 << 10, ..Bounds::default() });
    for task in 0..50 {
        bench.write(&output(task), &[&[b"some", b"bytes"]]);
    }
    for round in 0..2 {
        for task in 0..50 {
            assert_eq!(bench.read(&output(task), 1).await.unwrap(), b"bytes", "{round}");
            assert!((1..=4 << 10).contains(&bench.service.index_cache_bytes()));
        }
    }
    bench.write(&output(49), &[&[b"other", b"content"]]);
    assert_eq!(bench.read(&output(49), 1).await.unwrap(), b"content");
    // One that is larger than the whole cache is not kept, and pushes none out.
    let kept = bench.service.index_cache_bytes();
    let wide: Vec<&[u8]> = vec![b"w"; 1000];
    bench.write(&output(50), &[&wide]);
    assert_eq!(bench.read(&output(50), 999).await.unwrap(), b"w");
    assert_eq!(bench.service.index_cache_bytes(), kept);
}

#[tokio::test]
async fn a_discard_removes_what_it_names_and_nothing_else() {
    let bench = Bench::new(Bounds::default());
    let other = OutputId { query: 8, ..output(0) };
    for id in [output(0), output(1), other.clone()] {
        bench.write(&id, &[&[b"x"]]);
    }
    let unfinished = bench.path(&output(0)).with_file_name(".tmp-3-1");
    std::fs::write(&unfinished, "x").unwrap();
    let discard = |outputs: &[&OutputId], queries: &[u128]| {
        let request = v1::DiscardRequest {
            application_id: "app-1".into(),
            outputs: outputs.iter().map(|id| id.to_string()).collect(),
            queries: queries.iter().map(|query| format!("{query:032x}")).collect(),
        };
        bench.service.discard(with_token(request, Some(TOKEN)))
    };
    discard(&[&output(0), &output(9)], &[99]).await.unwrap();
    bench.refused(&output(0), Code::NotFound, "does not have it").await;
    assert_eq!(bench.read(&output(1), 0).await.unwrap(), b"x");
    assert!(unfinished.exists());
    discard(&[&output(0)], &[7]).await.unwrap();
    assert!(!unfinished.parent().unwrap().exists());
    bench.refused(&output(1), Code::NotFound, "does not have it").await;
    assert_eq!(bench.read(&other, 0).await.unwrap(), b"x");
    std::fs::remove_dir_all(bench.dir.path().join("app-1")).unwrap();
    discard(&[&other], &[8]).await.unwrap();
}
