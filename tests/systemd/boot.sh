#!/bin/bash
# Boots a real systemd in a system of its own, and there a probe: boot.sh PROBE RESULTS [SECONDS].
#
# PROBE is a script that runs as root under that systemd once it is up; RESULTS a directory that it sees as
# /results. Done when it has written /results/done; 1 when that did not come in time.
#
# Its own: mounts (an overlay of / whose changes live in memory), processes, cgroups, network, IPC, host name.
# A systemd started without these would take every process of the machine into its own cgroups, so inner.sh
# looks first and refuses.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
probe=$(realpath "$1") results=$(realpath "$2") seconds=${3:-90}

hierarchy=$(findmnt --noheadings --output TARGET --types cgroup2 | head -n 1)
group=$hierarchy/adaptd-test-$$
mkdir "$group"
outside=$(readlink /proc/self/ns/cgroup)

cleanup() {
  # timeout leads a process group: itself and unshare, whose death ends the new system at once.
  kill -KILL -- "-$system" 2>/dev/null || true
  wait "$system" 2>/dev/null || true
  # Those below first; a group can be removed once its last process is gone.
  for _ in $(seq 50); do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
  done
}

(
  echo "$BASHPID" > "$group/cgroup.procs"
  exec timeout --signal=KILL "$seconds" \
    unshare --mount --pid --cgroup --net --ipc --uts --fork --kill-child=KILL \
    bash "$here/inner.sh" "$probe" "$results" "$outside"
) > "$results/console.log" 2>&1 < /dev/null &
system=$!
trap cleanup EXIT

while kill -0 "$system" 2>/dev/null; do
  if [ -e "$results/done" ]; then exit 0; fi
  sleep 0.1
done
[ -e "$results/done" ]
