# shellcheck shell=bash disable=SC2034
# Sourced by tests/run, tests/rig and tests/deploy: installs what they need on a new machine, and says what.
# MILLSTREAM_NO_INSTALL=1 installs nothing; what is missing then fails where it is used.
export PATH="$PATH:/usr/sbin:/usr/local/sbin:/usr/local/go/bin"

# What is built or downloaded for the tests lies outside the clone, so that a new clone finds it.
tools="${MILLSTREAM_TEST_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream-test-tools}"
export MILLSTREAM_TEST_TOOLS="$tools"
python="$tools/venv/bin/python3"

say() { printf '\n== %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
may_install() { [ "${MILLSTREAM_NO_INSTALL:-}" != 1 ]; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif have sudo; then sudo "$@"; else
    echo "'$*' needs root; install it yourself or run as root" >&2; return 1
  fi
}

install_packages() {
  have apt-get || { echo "no apt-get here; install by hand: $*" >&2; return 1; }
  say "installing with apt-get: $*"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The servers and emulators. The tests start every one of them themselves on a free loopback port; Debian's packages
# also start one of their own, which the tests never use.
install_servers() {
  may_install || return 0
  local packages=()
  have mosquitto || packages+=(mosquitto)
  have redis-server || packages+=(redis-server)
  have java || packages+=(default-jre-headless)
  [ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"
  find_google_emulators
  build_bigquery_emulator
}

# The Pub/Sub and Firestore emulators are parts of the Google Cloud CLI and come in no Debian package.
find_google_emulators() {
  local root emulator missing=()
  root=""
  if have gcloud; then root="$(dirname "$(dirname "$(readlink -f "$(command -v gcloud)")")")"; fi
  for emulator in pubsub-emulator cloud-firestore-emulator; do
    [ -n "$root" ] && [ -d "$root/platform/$emulator" ] || missing+=("$emulator")
  done
  [ ${#missing[@]} = 0 ] && return 0
  echo "missing: the Google Cloud CLI's ${missing[*]}. Install the CLI (https://cloud.google.com/sdk/docs/install)," >&2
  echo "then: gcloud components install ${missing[*]}, or its packages google-cloud-cli-{pubsub,firestore}-emulator" >&2
  return 1
}

build_bigquery_emulator() {
  local program="$tools/bigquery-emulator-0.8.1"
  [ ! -x "$program" ] || return 0
  have go || { echo "missing: Go 1.26 or newer (https://go.dev/dl), which builds the BigQuery emulator once" >&2; return 1; }
  say "building the BigQuery emulator once into $tools (5 minutes, 7 GB of memory)"
  mkdir -p "$tools"
  (cd tests/emulators/bigquery &&
    go build -mod=mod -trimpath -ldflags '-s -w' -o "$program.partial" github.com/goccy/bigquery-emulator/cmd/bigquery-emulator)
  mv "$program.partial" "$program"
}
