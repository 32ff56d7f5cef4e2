#!/usr/bin/env bash
# Makes the base images of the stacks in notes/ and ledger/ as tar files for `docker import`: there is no registry to
# pull them from, so each is a few Debian packages, unpacked. Takes some seconds. Called by tests/it/notes.rs.
#   images.sh FOLDER     writes mariadb.tar, python.tar, nginx.tar and postgres.tar into it
set -euo pipefail
cd "$1"

base="libc6 zlib1g libcrypt1 busybox-static"
mariadb="mariadb-server-core mariadb-client-core mariadb-client libaio1 libbsd0 libcap2 libedit2 libgcc-s1 libgcrypt20 libgpg-error0
  liblz4-1 liblzma5 libmd0 libncurses6 libnuma1 libpcre2-8-0 libssl3 libstdc++6 libsystemd0 libtinfo6 liburing2 libzstd1"
python="python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3-pymysql libexpat1 libffi8 libssl3"
nginx="nginx nginx-common libpcre2-8-0 libssl3"
postgres="postgresql-15 postgresql-client-15 libaudit1 libcap-ng0 libcap2 libcom-err2 libffi8 libgcc-s1 libgcrypt20 libgmp10
  libgnutls30 libgpg-error0 libgssapi-krb5-2 libhogweed6 libicu72 libidn2-0 libk5crypto3 libkeyutils1 libkrb5-3
  libkrb5support0 libldap-2.5-0 liblz4-1 liblzma5 libnettle8 libp11-kit0 libpam0g libpq5 libsasl2-2 libssl3 libstdc++6
  libsystemd0 libtasn1-6 libunistring2 libxml2 libzstd1"

download() { apt-get download -qq $base $mariadb $python $nginx $postgres; }
# The lists of packages may be missing, or name versions that the mirror has no more.
download 2>/dev/null || { apt-get update -qq && download; }

root() { # name, packages
  mkdir "$1"
  local one
  for one in $2 $base; do dpkg -x "$one"_*.deb "$1"; done
  for one in sh cat chown dd ls rm sed su test wget; do ln -s busybox "$1/bin/$one"; done
  rm -rf "$1"/usr/share/{doc,locale,man,lintian} "$1"/usr/lib/x86_64-linux-gnu/gconv
  mkdir -p "$1"/{dev,proc,sys,root,tmp,run,var/log/nginx,var/lib/nginx}
  chmod 1777 "$1/tmp"
  printf 'root:x:0:0::/root:/bin/sh\nmysql:x:27:27::/:/bin/sh\npostgres:x:28:28::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$1/etc/passwd"
  printf 'root:x:0:\nmysql:x:27:\npostgres:x:28:\nnogroup:x:65534:\n' >"$1/etc/group"
}

root mariadb "$mariadb"
(cd mariadb/usr && rm -f bin/{mariadb-{check,upgrade,binlog,slap,admin,import,show,conv,plugin,tzinfo-to-sql,waitpid},mysql*,innochecksum,resolveip,my_print_defaults,perror,resolve_stack_dump,replace,innotop} &&
  cd share/mysql && rm -rf fill_help_tables.sql mysql_sys_schema.sql)
install -m 755 /dev/stdin mariadb/entrypoint <<'SCRIPT'
#!/bin/sh
# Makes the database and its user where there are none yet, and runs the server.
set -e
sql=/usr/share/mysql
options="--user=mysql --datadir=/var/lib/mysql --socket=/tmp/mysql.sock --pid-file=/tmp/mysql.pid
  --innodb-log-file-size=4M --innodb-buffer-pool-size=8M"
if [ ! -d /var/lib/mysql/mysql ]; then
  chown mysql:mysql /var/lib/mysql
  password=$(printf %s "$DB_PASSWORD" | sed "s/[\\\\']/\\\\&/g")
  {
    printf 'create database mysql;\nuse mysql;\n'
    cat $sql/mysql_system_tables.sql $sql/mysql_system_tables_data.sql
    printf 'create database notes;\nflush privileges;\n'
    printf "create user notes@'%%' identified by '%s';\ngrant all on notes.* to notes@'%%';\n" "$password"
  } | mariadbd --bootstrap $options
fi
exec mariadbd $options --skip-name-resolve "$@"
SCRIPT
mkdir -p mariadb/var/lib/mysql

root python "$python"
ln -s python3.11 python/usr/bin/python3
rm -rf python/usr/lib/python3.11/{test,idlelib,lib2to3,pydoc_data}
# Imports what the app needs, so that it is compiled once here, and not at each start of a container.
lib=python/usr/lib
PYTHONHOME=python/usr PYTHONPATH=$lib/python3/dist-packages python/lib64/ld-linux-x86-64.so.2 \
  --library-path "python/lib/x86_64-linux-gnu:$lib/x86_64-linux-gnu" python/usr/bin/python3.11 \
  -c 'import http.server, json, pymysql'

root nginx "$nginx"

root postgres "$postgres"
rm -rf postgres/usr/lib/postgresql/15/lib/{bitcode,pgxs,llvmjit*} postgres/usr/share/postgresql/15/man
install -m 755 /dev/stdin postgres/entrypoint <<'SCRIPT'
#!/bin/sh
# Makes the database where there is none yet, and runs the server. Small, so that a short load meets many checkpoints.
set -e
data=/var/lib/postgresql/data
as() { exec su postgres -c "PATH=/usr/lib/postgresql/15/bin:/bin; $1"; }
if [ ! -e $data/PG_VERSION ]; then
  chown postgres:postgres $data
  (as "initdb --pgdata=$data --username=ledger --auth=trust --locale=C --encoding=UTF8 --data-checksums --wal-segsize=1 --no-sync")
  echo 'host all all all trust' >>$data/pg_hba.conf
fi
as "exec postgres -D $data -k /tmp -c listen_addresses=* -c shared_buffers=2MB -c max_wal_size=8MB -c min_wal_size=2MB"
SCRIPT
mkdir -p postgres/var/lib/postgresql/data

for name in mariadb python nginx postgres; do tar -C "$name" --owner=0 --group=0 --numeric-owner -cf "$name.tar" .; done
rm -rf mariadb python nginx postgres ./*.deb
