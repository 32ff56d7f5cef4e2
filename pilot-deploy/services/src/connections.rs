//! Limits on connections and requests. A client that sends only a part of a request, or does not read its
//! answer, is dropped at a deadline. If there are too many connections, the one that was idle longest is
//! closed. The number of requests of the public is limited; the operator (with the token) and the health
//! checks do not count.

use crate::auth::{has_token, slow_down};
use crate::config::Config;
use crate::refusal::Refusal;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_io_timeout::TimeoutStream;

/// Limit for the head of a request, and for the pause between two requests of one connection.
pub const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// A client that reads nothing of its answer for this long is dropped.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes.
const HEAD_BYTES: usize = 32 * 1024;

/// How many requests of the public are served at once, streams included, if the
/// process may open enough files.
const PUBLIC: usize = 1024;

/// Files that a service opens in addition to its connections.
const OTHER_FILES: u64 = 64;

/// The limits of a service.
pub struct Room {
    config: Config,
    /// One permit for each request of the public.
    places: Arc<Semaphore>,
    /// Largest number of connections. It is larger than the number of permits, for requests that need none.
    connections: usize,
}

impl Room {
    /// The limits that the number of open files allows. A stream through the gateway needs two files, and
    /// there are half as many connections again as permits.
    pub fn new(config: &Config) -> Arc<Self> {
        let had = getrlimit(Resource::Nofile);
        let more = Rlimit { current: had.maximum.or(had.current), ..had };
        let files = if setrlimit(Resource::Nofile, more).is_ok() { more.current } else { had.current };
        let fits = files.map_or(PUBLIC as u64, |files| files.saturating_sub(OTHER_FILES) / 3).max(1);
        let public = usize::try_from(fits).unwrap_or(PUBLIC).min(PUBLIC);
        Arc::new(Self {
            config: config.clone(),
            places: Arc::new(Semaphore::new(public)),
            connections: public + public.div_ceil(2),
        })
    }
}

/// The layer around the routes that do the work. A request of the public needs a permit, and keeps it until
/// its answer has ended. Without a free permit it is refused (503 `busy`).
pub async fn public_places(State(room): State<Arc<Room>>, request: Request, next: Next) -> Response {
    if has_token(&room.config, request.headers()) {
        return next.run(request).await;
    }
    if let Ok(place) = room.places.clone().try_acquire_owned() {
        return next.run(request).await.map(|body| Body::new(Held { body, _kept: place }));
    }
    if let Err(refusal) = slow_down(request.headers()).await {
        return refusal.into_response();
    }
    let message = "as many requests as there is room for are being served";
    Refusal::later(StatusCode::SERVICE_UNAVAILABLE, "busy", message, 5).into_response()
}

/// The body of an answer, with the permit that it keeps until it has ended.
struct Held<T> {
    body: Body,
    _kept: T,
}

impl<T: Unpin> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Accepts connections and serves them, without end.
pub async fn serve(listener: TcpListener, app: Router, room: &Room) {
    let all = Arc::new(Connections::new(room.connections));
    loop {
        match listener.accept().await {
            // If every connection is busy, none can be closed to make room, so the new one is dropped.
            Ok((socket, _)) => {
                drop(all.enter().map(|entry| tokio::spawn(answer(socket, app.clone(), entry))))
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                all.end_longest_idle();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Serves one connection until it ends, or until it must make room for another.
async fn answer(socket: TcpStream, app: Router, entry: Entry) {
    // Events are small. Without TCP_NODELAY each would wait up to 40 ms for the
    // acknowledgement of the last one.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "no nodelay");
    }
    let mut socket = TimeoutStream::new(socket);
    socket.set_write_timeout(Some(WRITE_LIMIT));
    let (app, connection) = (TowerToHyperService::new(app), entry.connection.clone());
    let service = service_fn(move |request| {
        let busy = connection.begin();
        let answer = app.call(request);
        async move { answer.await.map(|whole| whole.map(|body| Held { body, _kept: busy })) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(socket)), service);
    tokio::select! {
        ended = served => if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        },
        () = entry.connection.make_room.notified() => {}
    }
}

/// The connections that are open.
struct Connections {
    most: usize,
    open: Mutex<(u64, HashMap<u64, Arc<Connection>>)>,
}

/// One open connection.
struct Connection {
    opened: Instant,
    /// When its last answer ended, in milliseconds after `opened`; `BUSY` during an answer.
    idle_since: AtomicU64,
    make_room: Notify,
}

const BUSY: u64 = u64::MAX;

/// The entry of a connection in the list. It is removed when this is dropped.
struct Entry {
    number: u64,
    all: Arc<Connections>,
    connection: Arc<Connection>,
}

/// Exists while a request is answered.
struct Busy(Arc<Connection>);

impl Connection {
    fn begin(self: &Arc<Self>) -> Busy {
        self.idle_since.store(BUSY, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// How long it has been idle; nothing while it is busy.
    fn idle(&self) -> Option<Duration> {
        let since = self.idle_since.load(Ordering::Relaxed);
        (since != BUSY).then(|| self.opened.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or_default();
        self.0.idle_since.store(now, Ordering::Relaxed);
    }
}

impl Connections {
    fn new(most: usize) -> Self {
        Self { most, open: Mutex::default() }
    }

    /// Adds a connection. If there are too many, the one that was idle longest is closed.
    fn enter(self: &Arc<Self>) -> Option<Entry> {
        let full = self.open.lock().unwrap_or_else(PoisonError::into_inner).1.len() >= self.most;
        if full && !self.end_longest_idle() {
            return None;
        }
        let connection = Arc::new(Connection {
            opened: Instant::now(),
            idle_since: AtomicU64::new(0),
            make_room: Notify::new(),
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 += 1;
        let number = open.0;
        open.1.insert(number, connection.clone());
        Some(Entry { number, all: self.clone(), connection })
    }

    /// Closes the connection that was idle longest. False if all are busy.
    fn end_longest_idle(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = open.1.iter().filter_map(|(number, c)| Some((c.idle()?, *number)));
        let Some((_, number)) = idle.max() else { return false };
        if let Some(connection) = open.1.remove(&number) {
            connection.make_room.notify_one();
        }
        true
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.open.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_makes_room_and_a_busy_one_never() {
        let all = Arc::new(Connections::new(2));
        let first = all.enter().unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let second = all.enter().unwrap();
        let busy = first.connection.begin();
        let third = all.enter().unwrap();
        let open = || all.open.lock().unwrap().1.keys().copied().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(open(), [first.number, third.number].into());
        let _also = third.connection.begin();
        assert!(all.enter().is_none());
        drop(busy);
        let fourth = all.enter().unwrap();
        assert_eq!(open(), [third.number, fourth.number].into());
        drop((second, fourth));
        assert_eq!(open(), [third.number].into());
    }
}
