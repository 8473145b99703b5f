#!/bin/sh
# Makes the certificates of the TLS tests anew: two CAs, a host of each, and a host without a name.
# They protect nothing: their keys are public.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for ca in trusted stranger; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 \
        -subj "/CN=shoal test CA $ca" -addext "basicConstraints=critical,CA:TRUE" \
        -addext "keyUsage=critical,keyCertSign" \
        -keyout "$work/$ca-ca.key" -out "$ca-ca.pem"
done
issue() { # file, subject, ca
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" \
        -keyout "$1.key" -out "$work/$1.csr"
    printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\n' >"$work/extensions"
    openssl x509 -req -in "$work/$1.csr" -CA "$3-ca.pem" -CAkey "$work/$3-ca.key" \
        -CAcreateserial -CAserial "$work/serial" -days 36500 -extfile "$work/extensions" \
        -out "$1.pem"
}
issue alpha "/CN=alpha" trusted
issue beta "/CN=beta" trusted
issue nameless "/O=nobody" trusted
issue mallory "/CN=alpha" stranger
