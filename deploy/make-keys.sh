#!/usr/bin/env bash
# Make keys and certificates for a trial: DIR/ca.crt, DIR/server.{crt,key}, and DIR/SITE and
# DIR/SITE.pub for each site. In production use certificates of your own authority, and let each site
# make its own key and send only the .pub file.
#
#     deploy/make-keys.sh DIR HOST SITE...
set -euo pipefail
dir=$1 host=$2
shift 2
umask 077
mkdir -p "$dir"
cd "$dir"
name=DNS
[[ $host =~ ^[0-9.]+$ ]] && name=IP
openssl req -x509 -newkey rsa:3072 -nodes -days 365 -keyout ca.key -out ca.crt \
  -subj "/CN=fedsdr trial" -addext "basicConstraints=critical,CA:TRUE" \
  -addext "keyUsage=critical,keyCertSign,cRLSign" 2>/dev/null
openssl req -newkey rsa:3072 -nodes -keyout server.key -out server.csr -subj "/CN=$host" 2>/dev/null
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 \
  -out server.crt -extfile <(echo "subjectAltName=$name:$host,DNS:localhost,IP:127.0.0.1") 2>/dev/null
rm server.csr ca.srl
for site in "$@"; do
  ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "$site"
done
