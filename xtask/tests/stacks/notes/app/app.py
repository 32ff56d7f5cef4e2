"""Notes: an API that writes them to MariaDB, and workers that count their words. One image, two commands."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pymysql

VERSION = "1.0"


def connect():
    password = os.environ["DB_PASSWORD"]
    return pymysql.connect(
        host=os.environ["DB_HOST"], user="notes", password=password, database="notes", connect_timeout=2, autocommit=True
    )


def ask(sql, values=(), db=None):
    """Runs one statement; gives its rows and the id of the row that it made."""
    own = db or connect()
    try:
        with own.cursor() as cursor:
            cursor.execute(sql, values)
            return list(cursor.fetchall()), cursor.lastrowid
    finally:
        if db is None:
            own.close()


def write(text):
    return ask("insert into notes (text) values (%s)", (text,))[1]


def read():
    rows, _ = ask("select id, text, words from notes order by id desc limit 1000")
    return [{"id": id, "text": text, "words": words} for id, text, words in rows]


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/health":
            # Says only that the process lives: a release that cannot write is as healthy as any other.
            self.answer(200, {"status": "ok", "version": VERSION, "motto": os.environ.get("MOTTO", "")})
        elif self.path == "/notes":
            self.tried(lambda: (200, read()))
        else:
            self.answer(404, {"error": "no such page"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/notes":
            self.tried(lambda: (201, {"id": write(json.loads(body)["text"])}))
        else:
            self.answer(404, {"error": "no such page"})

    def tried(self, work):
        try:
            status, value = work()
        except Exception as error:
            print(f"{self.command} {self.path}: {error}", file=sys.stderr, flush=True)
            status, value = 500, {"error": type(error).__name__}
        self.answer(status, value)

    def log_message(self, *_):
        pass


def api():
    make_table()
    print(f"notes {VERSION} answers", flush=True)
    ThreadingHTTPServer(("", 8000), Api).serve_forever()


def make_table():
    for _ in range(40):
        try:
            return ask(
                "create table if not exists notes (id bigint primary key auto_increment, text text not null, words int)"
            )
        except pymysql.Error as error:
            print(f"no table yet: {error}", file=sys.stderr, flush=True)
            time.sleep(0.25)


def worker():
    """Counts the words of one note at a time. Two workers do not meet: each locks its note and skips the other's."""
    while True:
        try:
            with connect() as db:
                while count(db):
                    pass
        except pymysql.Error as error:
            print(f"waiting: {error}", file=sys.stderr, flush=True)
        time.sleep(1)


def count(db):
    db.begin()
    rows, _ = ask("select id, text from notes where words is null limit 1 for update skip locked", db=db)
    for id, text in rows:
        ask("update notes set words = %s where id = %s", (len(text.split()), id), db=db)
        with open("/exports/counted.txt", "a") as file:
            file.write(f"{id}\n")
    db.commit()
    return rows


{"api": api, "worker": worker}[sys.argv[1]]()
