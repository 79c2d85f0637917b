#!/usr/bin/env bash
# Installs the Debian packages that the tests use, where that is possible; else says which are missing.
set -u
declare -A needed=(
  [postfix]=postfix [swaks]=swaks [chromium]=chromium [strace]=strace [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [openssl]=openssl
  [losetup]=mount [php]=php-cli [gcc]=gcc [node]=nodejs [curl]=curl
  [sqlite3]=sqlite3 [nginx]=nginx-light [caddy]=caddy [jq]=jq
)
PATH=$PATH:/usr/sbin:/sbin
missing=()
for program in "${!needed[@]}"; do command -v "$program" >/dev/null || missing+=("${needed[$program]}"); done
perl -MNet::SSLeay -e1 2>/dev/null || missing+=(libnet-ssleay-perl)  # swaks needs it for TLS

# Mail servers that as packages exclude Postfix and each other: with the libraries they miss they are unpacked, not installed.
unpacked=$PWD/build/mail-servers
unpack() {
  local archives=$unpacked/archives package
  rm -rf "$unpacked" && mkdir -p "$archives/partial" && chown -R _apt "$archives" || return
  for package in exim4-daemon-light opensmtpd; do
    apt-get install -qq -y --no-install-recommends --download-only -o Dir::Cache::archives="$archives" $package || return
  done
  for package in "$archives"/*.deb; do dpkg -x "$package" "$unpacked" || return; done
  rm -rf "$archives" && touch "$unpacked/.ready"
}

# Of Prometheus its promtool alone, which judges the alert rules: the package brings a service and fonts.
promtool=$PWD/build/promtool
unpack_promtool() (
  rm -rf "$promtool" && mkdir -p "$promtool" && cd "$promtool" && apt-get download -qq prometheus || exit
  dpkg --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool || exit
  rm prometheus_*.deb && touch .ready
)

[ -e "$unpacked/.ready" ] || others="Exim and OpenSMTPD"
command -v promtool >/dev/null || [ -e "$promtool/.ready" ] || judge=promtool

# It makes the browser's tests twice as fast where there is one; elsewhere they take the whole Chromium.
shell=chromium-headless-shell
{ command -v $shell || ! { [ -n "${missing[*]}" ] || apt-cache show $shell; }; } >/dev/null 2>&1 && shell=
[ "$(id -u)" = 0 ] || shell=

[ -z "${missing[*]}${others-}${judge-}$shell" ] && exit 0
if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp --tmpdir visit-relay-apt.XXXXXX)  # under a name that nobody else could have made a link of
  echo "installing: ${missing[*]} $shell ${others:+($others: unpacking)} ${judge:+($judge: unpacking)}"
  policy=/usr/sbin/policy-rc.d  # while it ends with 101, no service is started that a package brings
  [ -e $policy ] || { trap "rm -f $policy" EXIT && printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy; }
  {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" && missing=()
    [ -z "$shell" ] || apt-get install -y -qq --no-install-recommends $shell
    [ -z "${others-}" ] || { unpack && others=; }
    [ -z "${judge-}" ] || { unpack_promtool && judge=; }
  } >"$log" 2>&1
  [ -z "${missing[*]}${others-}${judge-}" ] && rm "$log" && exit 0
  tail -5 "$log" && echo "all of it: $log"
fi
echo "NOT INSTALLED, so what needs them will be skipped and named: ${missing[*]} ${others-} ${judge-}"
exit 0
