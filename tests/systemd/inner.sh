#!/bin/bash
# The first process of the new namespaces: builds the root of the system, checks that it is alone, becomes systemd.
set -euo pipefail
probe=$1 results=$2 outside=$3

[ "$$" = 1 ] || { echo "refused: not the first process of its own namespace"; exit 1; }
[ "$(readlink /proc/1/ns/cgroup)" != "$outside" ] || { echo "refused: no cgroup namespace of its own"; exit 1; }

mount --make-rprivate /
base=$(mktemp -d)
mount -t tmpfs tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
root=$base/root
cd "$root"
mkdir -p results old
mount --bind "$results" results
cp "$probe" usr/local/sbin/adaptd-probe
chmod 755 usr/local/sbin/adaptd-probe

mount -t proc proc proc
# Settings of the kernel belong to the machine: systemd would raise some of them.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs tmpfs sys
mkdir -p sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
  touch "dev/$node"
  mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
: > etc/machine-id

# The only processes of this cgroup tree are ours: the two that wait outside, shown as 0, and this one.
mapfile -t processes < sys/fs/cgroup/cgroup.procs
[ "${#processes[@]}" -le 3 ] || { echo "refused: foreign processes in the cgroup: ${processes[*]}"; exit 1; }
[ "$(find sys/fs/cgroup -mindepth 1 -type d | wc -l)" = 0 ] || { echo "refused: a used cgroup"; exit 1; }

cat > etc/systemd/system/probe.service <<'UNIT'
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/adaptd-probe
StandardOutput=file:/results/probe.log
StandardError=inherit
UNIT
cat > etc/systemd/system/probe.target <<'UNIT'
[Unit]
Requires=basic.target
Wants=systemd-journald.service probe.service
After=basic.target
UNIT
rm -f etc/systemd/system/*.wants/* 

pivot_root . old
umount -l /old
cd /
# As a machine's systemd makes it, and one in a container expects to find it: credentials are mounted by a child.
# Nothing of it reaches the outside, with which nothing is shared since the first line.
mount --make-rshared /
export container=adaptd-test
exec env -i PATH="$PATH" container=adaptd-test /lib/systemd/systemd --system --unit=probe.target \
  --log-target=journal --log-level=info --show-status=no
