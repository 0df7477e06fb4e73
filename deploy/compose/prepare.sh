#!/bin/sh
# Makes what deploy/compose.yaml keeps secret: an authority, certificates, and a password for ClickHouse. Overwrites nothing.
# Needs `tidegate` on the path: cargo build --release --bin tidegate.
set -eu
umask 077
secrets=$(dirname "$0")/secrets
if [ -e "$secrets" ]; then
    echo "$secrets is there already: remove it to begin anew" >&2
    exit 1
fi
tidegate pki init "$secrets"
tidegate pki issue central --dir "$secrets" --server central-1,central-2
tidegate pki issue plant-1 --dir "$secrets"
password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
hash=$(printf %s "$password" | sha256sum | cut -d' ' -f1)
printf '%s\n' "$password" > "$secrets/clickhouse-password"
cat > "$secrets/clickhouse-users.xml" <<XML
<clickhouse>
  <users>
    <tidegate>
      <password_sha256_hex>$hash</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </tidegate>
  </users>
</clickhouse>
XML
# Compose mounts them as they are, and the programs in the containers run as users of their own. Keep this folder to yourself.
chmod 644 "$secrets"/*
chmod 600 "$secrets/ca.key"
chmod 700 "$secrets"
