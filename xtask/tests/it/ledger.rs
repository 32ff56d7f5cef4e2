//! PostgreSQL under load: copied while clients write to it, restored whole, and as of a moment during the backup. The
//! clients are outside of its container, so nothing pauses them.

use crate::notes::{self, LEDGER, Stack, within};
use crate::pilot::Engine::Compose2;
use crate::pilot::{docker, tries};
use std::io::{Error, Read, Result, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many clients write at the same time. Each has a row of its own in both tables.
const CLIENTS: u64 = 2;

/// How long a client waits for an answer: longer than any pause may last.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client of the database, with as little of PostgreSQL's protocol (version 3.0) as that needs.
struct Client(TcpStream);

impl Client {
    fn new(port: u16) -> Result<Self> {
        let mut client = Self(TcpStream::connect(("127.0.0.1", port))?);
        client.0.set_read_timeout(Some(PATIENCE))?;
        client.send(&[], b"\0\x03\0\0user\0ledger\0database\0postgres\0\0")?;
        client.answer().map(|_| client)
    }

    /// Runs SQL as one transaction. Returns the first column of each row.
    fn sql(&mut self, sql: &str) -> Result<Vec<String>> {
        self.send(b"Q", format!("{sql}\0").as_bytes())?;
        self.answer()
    }

    fn send(&mut self, kind: &[u8], body: &[u8]) -> Result<()> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        self.0.write_all(&[kind, &length, body].concat())
    }

    /// Everything until the server is ready for the next query.
    fn answer(&mut self) -> Result<Vec<String>> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let (mut kind, mut length) = ([0], [0; 4]);
            self.0.read_exact(&mut kind)?;
            self.0.read_exact(&mut length)?;
            let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
            self.0.read_exact(&mut body)?;
            match kind {
                // Two bytes for the number of columns, four for the length of the first one.
                [b'D'] => {
                    let length = u32::from_be_bytes([body[2], body[3], body[4], body[5]]) as usize;
                    rows.push(String::from_utf8_lossy(&body[6..][..length]).into_owned());
                }
                [b'E'] => failed = Some(String::from_utf8_lossy(&body).into_owned()),
                [b'Z'] => return failed.map_or(Ok(rows), |text| Err(Error::other(text))),
                _ => {}
            }
        }
    }
}

/// What clients saw while they wrote.
#[derive(Default)]
struct Load {
    moves: AtomicU64,
    over: AtomicBool,
}

impl Load {
    /// Moves amounts between the tables, one transaction after another, until the load is over. Returns how long the
    /// slowest of them took.
    fn write(&self, port: u16, client: u64) -> Duration {
        let mut database = Client::new(port).unwrap();
        let change = |side: &str, sign: char| {
            format!("update {side} set amount = amount {sign} 1, moves = moves + 1 where client = {client};")
        };
        let (out, into) = (change("left_side", '-'), change("right_side", '+'));
        let transfer = format!("begin; {out} {into} insert into moves (client) values ({client}); commit");
        let mut longest = Duration::ZERO;
        while !self.over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            database.sql(&transfer).unwrap();
            longest = longest.max(asked.elapsed());
            self.moves.fetch_add(1, Ordering::Relaxed);
        }
        longest
    }

    /// How many moves the database has confirmed.
    fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }
}

/// How many moves the database has; what must be true of them all.
fn moves(ledger: &Stack) -> u64 {
    let mut database = Client::new(ledger.port).unwrap();
    let wrong = "select client from left_side l full join right_side r using (client) \
        full join (select client, count(*) moves from moves group by client) m using (client) \
        where (l.amount + r.amount, l.moves, m.moves) is distinct from (2000000, r.moves, r.moves)";
    assert_eq!(database.sql(wrong).unwrap(), [""; 0], "the sums of these clients");
    database.sql("select count(*) from moves").unwrap()[0].parse().unwrap()
}

#[test]
fn postgresql_that_is_written_to_is_backed_up_and_comes_back_whole() {
    notes::with(&LEDGER, &[Compose2], "ledger", |ledger| {
        ledger.xtask(&["up"]).expect(0);
        let mut database = Client::new(ledger.port).unwrap();
        let side = "(client bigint primary key, amount bigint, moves bigint)";
        database
            .sql(&format!(
                "create extension amcheck; create table left_side {side}; create table right_side {side}; \
                 create table moves (id bigserial primary key, client bigint); \
                 insert into left_side select client, 1000000, 1 from generate_series(1, {CLIENTS}) client; \
                 insert into right_side select * from left_side; \
                 insert into moves (client) select client from left_side"
            ))
            .unwrap();
        drop(database);
        let stalls: Vec<Duration> = (0..tries(1)).map(|_| backed_up_and_restored(&ledger)).collect();
        println!("{} backups came back whole; the longest stall of a client: {stalls:?}", stalls.len());
    });
}

/// Returns how long a client waited at most.
fn backed_up_and_restored(ledger: &Stack) -> Duration {
    let load = Load::default();
    let first = moves(ledger);
    let (id, backed_up, longest) = std::thread::scope(|scope| {
        let load = &load;
        let clients: Vec<_> =
            (1..=CLIENTS).map(|client| scope.spawn(move || load.write(ledger.port, client))).collect();
        assert!(within(Duration::from_secs(20), || load.moves() > 200), "there is no load");
        let before = load.moves();
        let backup = ledger.json(&["backup", "create"]).expect(0);
        // A client may have a move under way that is not confirmed yet.
        let after = load.moves() + CLIENTS;
        assert!(ledger.is_going());
        let went_on = within(PATIENCE, || load.moves() > after + 100);
        load.over.store(true, Ordering::Relaxed);
        let longest = clients.into_iter().map(|client| client.join().unwrap()).max().unwrap();
        assert!(went_on, "the load did not go on");
        let id =
            backup.events().iter().find_map(|event| event["value"]["backup"].as_str().map(str::to_owned));
        (id.unwrap(), first + before..=first + after, longest)
    });
    leave_a_helper(ledger);
    ledger.json(&["--yes", "backup", "restore", &id, "--only", "data"]).expect(0);
    let restored = moves(ledger);
    assert!(backed_up.contains(&restored), "{restored} moves, and not {backed_up:?}");
    let check =
        ["--heapallindexed", "--parent-check", "--host", "127.0.0.1", "--username", "ledger", "postgres"];
    let database = ledger.containers("db").remove(0);
    docker(&[["exec", &database, "/usr/lib/postgresql/15/bin/pg_amcheck"].as_slice(), &check].concat());
    longest
}

/// What a command leaves behind that was killed while it wrote to the volume: a container that mounts it.
fn leave_a_helper(ledger: &Stack) {
    let project = &ledger.project;
    let (image, name) = (format!("{project}-helper:1"), format!("{project}-helper"));
    docker(&["tag", &format!("{project}-postgres:15"), &image]);
    let project = format!("com.docker.compose.project={project}");
    let volume = format!("{}_ledger_data:/data", ledger.project);
    let labels = ["--label", &project, "--label", "com.docker.compose.oneoff=True"];
    let create = ["create", "--name", &name, "--volume", &volume];
    docker(&[create.as_slice(), &labels, &[&image, "none"]].concat());
}
