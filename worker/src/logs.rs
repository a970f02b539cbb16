//! `WorkerLogs`: reading and following what processes have written.

use crate::node::Snapshot;
use firesteel_common::ProcessId;
use firesteel_proto::channel::CHUNK_BYTES;
use firesteel_proto::convert;
use firesteel_proto::v1;
use firesteel_proto::v1::worker_logs_server::WorkerLogs;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Where the kernel has no watch to give (they are limited per user), a follower looks so often.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The service.
#[derive(Debug, Clone)]
pub struct LogService {
    /// [`crate::workdir::WorkDir::logs_root`].
    pub root: PathBuf,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

type Sender = mpsc::Sender<Result<v1::LogChunk, Status>>;

#[tonic::async_trait]
impl WorkerLogs for LogService {
    type ReadLogStream = ReceiverStream<Result<v1::LogChunk, Status>>;

    async fn read_log(
        &self,
        request: Request<v1::ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        let request = request.into_inner();
        let name = match v1::LogStream::try_from(request.stream) {
            Ok(v1::LogStream::Stdout) => "stdout",
            Ok(v1::LogStream::Stderr) => "stderr",
            _ => return Err(Status::invalid_argument("stream is neither stdout nor stderr")),
        };
        let id = convert::process_id(request.process.clone())?;
        let live = self.snapshots.borrow().is_live(&id);
        let file = self.open(&id, name)?;
        if file.is_none() && !live {
            return Err(Status::not_found(format!(
                "this worker has no log of {id}: it never ran here, or its log has been cleaned up"
            )));
        }
        let (sender, receiver) = mpsc::channel(4);
        let reader = Reader { service: self.clone(), id, name, sender, request };
        tokio::spawn(reader.run(file));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl LogService {
    /// `None` when there is no such file. Component by component, following no link; `id` has no separators in it.
    fn open(&self, id: &ProcessId, name: &str) -> Result<Option<File>, Status> {
        let directory = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || {
            let root = rustix::fs::open(&self.root, directory, Mode::empty())?;
            let app = rustix::fs::openat(&root, id.application().as_str(), directory, Mode::empty())?;
            let process = rustix::fs::openat(&app, id.name(), directory, Mode::empty())?;
            // NONBLOCK: a pipe put there must not hang the worker.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            rustix::fs::openat(&process, name, flags, Mode::empty())
        };
        let failed =
            |error: &dyn std::fmt::Display| Status::internal(format!("cannot read the log of {id}: {error}"));
        match open() {
            Ok(fd) => {
                let file = File::from(fd);
                match file.metadata() {
                    Ok(metadata) if metadata.is_file() => Ok(Some(file)),
                    Ok(_) => Err(failed(&"it is not a regular file")),
                    Err(error) => Err(failed(&error)),
                }
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }
}

struct Reader {
    service: LogService,
    id: ProcessId,
    name: &'static str,
    sender: Sender,
    request: v1::ReadLogRequest,
}

impl Reader {
    async fn run(mut self, mut file: Option<File>) {
        let mut offset = None;
        let mut snapshots = self.service.snapshots.clone();
        let mut watcher = None;
        loop {
            // Before the read: what a process wrote before it ended is then in the file.
            let live = snapshots.borrow_and_update().is_live(&self.id);
            if file.is_none() {
                match self.service.open(&self.id, self.name) {
                    Ok(opened) => file = opened,
                    Err(status) => return self.fail(status).await,
                }
            }
            if let Some(file) = &file {
                if self.request.follow && watcher.is_none() {
                    watcher = Some(Watcher::new(file));
                }
                let start = offset.unwrap_or_else(|| self.start(file));
                match self.send_from(file, start).await {
                    Ok(Some(next)) => offset = Some(next),
                    Ok(None) => return,
                    Err(error) => {
                        let message = format!("cannot read the log of {}: {error}", self.id);
                        return self.fail(Status::internal(message)).await;
                    }
                }
            }
            if !self.request.follow || !live {
                return;
            }
            tokio::select! {
                () = self.sender.closed() => return,
                changed = snapshots.changed() => if changed.is_err() { return },
                () = watch(&mut watcher) => {}
            }
        }
    }

    fn start(&self, file: &File) -> u64 {
        match self.request.tail_bytes {
            0 => self.request.offset,
            tail => file.metadata().map_or(0, |m| m.len()).saturating_sub(tail),
        }
    }

    /// Sends up to the end of the file and returns the offset there; `None` when the reader has gone.
    async fn send_from(&self, file: &File, mut offset: u64) -> io::Result<Option<u64>> {
        loop {
            let file = file.try_clone()?;
            let data = tokio::task::spawn_blocking(move || {
                let mut data = vec![0; CHUNK_BYTES];
                let n = file.read_at(&mut data, offset)?;
                data.truncate(n);
                io::Result::Ok(data)
            });
            let data = data.await.map_err(io::Error::other)??;
            if data.is_empty() {
                return Ok(Some(offset));
            }
            offset += data.len() as u64;
            if self.sender.send(Ok(v1::LogChunk { data, next_offset: offset })).await.is_err() {
                return Ok(None);
            }
        }
    }

    async fn fail(&mut self, status: Status) {
        let _ = self.sender.send(Err(status)).await;
    }
}

/// Never, while there is no file yet: the process's next change says when there is.
async fn watch(watcher: &mut Option<Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// Tells when a file has grown.
struct Watcher(Option<AsyncFd<OwnedFd>>);

impl Watcher {
    fn new(file: &File) -> Self {
        let watch = || -> io::Result<_> {
            let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            // By descriptor: the very file that is read, whatever its path leads to by now.
            inotify::add_watch(&fd, format!("/proc/self/fd/{}", file.as_raw_fd()), WatchFlags::MODIFY)?;
            // SAFETY: an `OwnedFd` names one open descriptor for as long as it lives.
            Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
        };
        Self(watch().ok())
    }

    async fn changed(&mut self) {
        let Some(fd) = &mut self.0 else { return tokio::time::sleep(POLL_INTERVAL).await };
        let Ok(mut ready) = fd.readable_mut().await else { return tokio::time::sleep(POLL_INTERVAL).await };
        // One event stands for all: the reader goes to the end of the file anyway.
        let mut buffer = [0u8; 4096];
        while rustix::io::read(ready.get_inner(), &mut buffer).is_ok_and(|n| n > 0) {}
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::{Assignment, Event, Launch, Processes};
    use firesteel_common::{Epoch, ProcessEnd, Resources, Secret};
    use std::io::Write;
    use tokio_stream::StreamExt;

    const LIMIT: Duration = Duration::from_secs(10);

    fn executor() -> ProcessId {
        ProcessId::from_name("app-1".parse().unwrap(), "executor-1").unwrap()
    }
    fn running() -> Processes {
        let mut processes = Processes::default();
        let launch = Launch {
            id: executor(),
            resources: Resources::new(1, 512),
            token: Secret::new("t"),
            spec: None,
            conf: Default::default(),
            grant_index: 1,
            incarnation: 0,
            ends_with_lease: false,
        };
        let assignment = Assignment {
            epoch: Epoch(1),
            processes: vec![launch],
            heartbeat: Duration::from_secs(1),
            heard: 0,
            lease: Duration::ZERO,
            shuffle_tenants: Default::default(),
        };
        processes.assign(assignment, false, 0).unwrap();
        processes
    }
    fn snapshot(processes: &Processes) -> Arc<Snapshot> {
        Arc::new(Snapshot { processes: processes.known().cloned().collect(), ..Snapshot::default() })
    }
    fn request(follow: bool) -> v1::ReadLogRequest {
        v1::ReadLogRequest {
            process: Some((&executor()).into()),
            stream: v1::LogStream::Stdout.into(),
            follow,
            ..Default::default()
        }
    }
    async fn read(service: &LogService, request: v1::ReadLogRequest) -> Result<Vec<u8>, Status> {
        let mut stream = service.read_log(Request::new(request)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            all.extend(chunk.data);
            assert!(chunk.next_offset >= all.len() as u64);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn offsets_tails_and_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let (_sender, snapshots) = watch::channel(Arc::default());
        let service = LogService { root: dir.path().into(), snapshots };
        assert_eq!(read(&service, request(false)).await.unwrap_err().code(), tonic::Code::NotFound);
        let logs = dir.path().join("app-1/executor-1");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::write(logs.join("stdout"), "0123456789").unwrap();
        let with = |offset, tail_bytes| v1::ReadLogRequest { offset, tail_bytes, ..request(false) };
        assert_eq!(read(&service, with(0, 0)).await.unwrap(), b"0123456789");
        assert_eq!(read(&service, with(7, 0)).await.unwrap(), b"789");
        assert_eq!(read(&service, with(70, 0)).await.unwrap(), b"");
        assert_eq!(read(&service, with(7, 2)).await.unwrap(), b"89");
        assert_eq!(read(&service, with(0, 100)).await.unwrap(), b"0123456789");
        // The process has ended: following ends, too.
        assert_eq!(read(&service, request(true)).await.unwrap(), b"0123456789");
        let bad = v1::ReadLogRequest { stream: 0, ..request(false) };
        assert_eq!(read(&service, bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        let process = Some(v1::ProcessId { application_id: "app-1".into(), name: "../executor-1".into() });
        let bad = v1::ReadLogRequest { process, ..request(false) };
        assert_eq!(read(&service, bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    #[tokio::test]
    async fn links_and_pipes_are_not_logs() {
        let dir = tempfile::tempdir().unwrap();
        let (_sender, snapshots) = watch::channel(Arc::default());
        let service = LogService { root: dir.path().into(), snapshots };
        let logs = dir.path().join("app-1/executor-1");
        std::fs::create_dir_all(&logs).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", logs.join("stdout")).unwrap();
        assert_eq!(read(&service, request(false)).await.unwrap_err().code(), tonic::Code::Internal);
        std::fs::remove_file(logs.join("stdout")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, logs.join("stdout"), Mode::RWXU).unwrap();
        assert_eq!(read(&service, request(false)).await.unwrap_err().code(), tonic::Code::Internal);
    }

    #[tokio::test]
    async fn a_follower_gets_what_is_written_at_once_and_ends_with_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = running();
        let (sender, snapshots) = watch::channel(snapshot(&processes));
        let service = LogService { root: dir.path().into(), snapshots };
        let response = service.read_log(Request::new(request(true))).await.unwrap();
        let mut stream = response.into_inner();
        // The file appears with the start of the process.
        let logs = dir.path().join("app-1/executor-1");
        std::fs::create_dir_all(&logs).unwrap();
        let mut file = File::options().append(true).create(true).open(logs.join("stdout")).unwrap();
        processes.observe(&executor(), Event::Started { pid: 1 }, 1);
        sender.send_replace(snapshot(&processes));
        for line in ["one\n", "two\n"] {
            file.write_all(line.as_bytes()).unwrap();
            let chunk = tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(chunk.data, line.as_bytes());
        }
        file.write_all(b"last").unwrap();
        processes.observe(&executor(), Event::Ended { end: ProcessEnd::Exited { code: 0 } }, 1);
        sender.send_replace(snapshot(&processes));
        let mut rest = Vec::new();
        while let Some(chunk) = tokio::time::timeout(LIMIT, stream.next()).await.unwrap() {
            rest.extend(chunk.unwrap().data);
        }
        assert_eq!(rest, b"last");
    }
}
