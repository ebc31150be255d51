#!/bin/sh
# `install.sh install` puts adaptd and its units on this machine, `install.sh uninstall` takes them off again.
# PREFIX: where the program goes. DESTDIR: a root to stage a package in. PYTHON: what it runs on. PIP_OPTIONS:
# for pip. SKIP_PROGRAM=1: units and configuration only.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
PYTHON=${PYTHON:-python3}
program=$PREFIX/lib/adaptd
units=$DESTDIR$PREFIX/lib/systemd/system
settings=$DESTDIR/etc/adaptd

is_running_system() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

install_program() {
  home=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')
  case $home in
    /root | /root/* | /home/* | /run/user/*)
      echo "PYTHON must not lie in a home directory, which the service cannot see; got $home." >&2
      echo "Use the system's: make install PYTHON=/usr/bin/python3" >&2
      exit 2 ;;
  esac
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "PYTHON must be 3.11 or newer; got $("$PYTHON" --version)." >&2
    exit 2
  }
  wheels=$(mktemp -d)
  trap 'rm -rf "$wheels"' EXIT
  # Built from a copy: setuptools leaves its build directory beside the sources.
  cp -r "$root/adaptd" "$root/pyproject.toml" "$root/README.md" "$wheels/"
  "$PYTHON" -m venv --clear "$DESTDIR$program"
  # shellcheck disable=SC2086  (several options)
  "$DESTDIR$program/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_OPTIONS:-} \
    --require-hashes -r "$root/deploy/requirements.lock"
  # shellcheck disable=SC2086
  "$DESTDIR$program/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_OPTIONS:-} \
    --no-deps "$wheels"
  # A staged program knows the place where it will be.
  if [ -n "$DESTDIR" ]; then sed -i "1s|$DESTDIR||" "$DESTDIR$program"/bin/adaptd; fi
  mkdir -p "$DESTDIR$PREFIX/bin"
  ln -sfn "$program/bin/adaptd" "$DESTDIR$PREFIX/bin/adaptd"
}

install_units() {
  mkdir -p "$units" "$settings"
  for unit in adaptd.service adaptd@.service; do
    sed "s|/usr/local/lib/adaptd|$program|" "$root/deploy/systemd/$unit" > "$units/$unit"
    chmod 644 "$units/$unit"
  done
  if [ -e "$settings/config.toml" ]; then
    echo "kept $settings/config.toml"
  else
    install -m 644 "$root/deploy/systemd/config.toml" "$settings/config.toml"
  fi
  if is_running_system; then systemctl daemon-reload; fi
  echo "installed; next: edit $settings/config.toml, then systemctl enable --now adaptd"
}

uninstall() {
  if is_running_system; then
    for unit in $(systemctl list-units --all --plain --no-legend 'adaptd.service' 'adaptd@*.service' |
      cut -d' ' -f1); do
      systemctl disable --now --quiet "$unit" || true
    done
  fi
  rm -rf "$DESTDIR$program" "$DESTDIR"/var/cache/adaptd "$DESTDIR"/var/cache/adaptd-* \
    "$DESTDIR"/var/cache/private/adaptd "$DESTDIR"/var/cache/private/adaptd-*
  rm -f "$DESTDIR$PREFIX/bin/adaptd" "$units/adaptd.service" "$units/adaptd@.service"
  # What somebody wrote is not ours to delete.
  if cmp -s "$root/deploy/systemd/config.toml" "$settings/config.toml"; then rm "$settings/config.toml"; fi
  rmdir "$settings" "$units" 2>/dev/null || true
  if is_running_system; then systemctl daemon-reload; fi
  for left in "$settings" "$DESTDIR"/etc/systemd/system/adaptd*.service.d \
    "$DESTDIR"/var/lib/private/adaptd "$DESTDIR"/var/lib/private/adaptd-*; do
    if [ -e "$left" ]; then echo "left: $left"; fi
  done
}

case ${1:-} in
  install)
    if [ -z "${SKIP_PROGRAM:-}" ]; then install_program; fi
    install_units ;;
  uninstall) uninstall ;;
  *) echo "usage: $0 install|uninstall" >&2; exit 2 ;;
esac
