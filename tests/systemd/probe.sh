#!/bin/bash
# A service's life under a real systemd: install, start, reload, hang, stop, a wrong configuration, uninstall.
# Writes what it saw to /results as name=value; the judging is done in tests/test_systemd.py.
set -uo pipefail
source /results/setup  # ROOT, PYTHON_HOME, PYTHON_NAME, PYTHON_PATH, CACHE
saw() { printf '%s=%s\n' "$1" "$2" >> /results/seen; }
ask() { systemctl show --value --property "$1" adaptd; }
state=/var/lib/adaptd
finish() {
  systemctl status --no-pager --full adaptd > /results/status.log 2>&1
  journalctl --no-pager --output=short-monotonic > /results/journal.log
  touch /results/done
}
trap finish EXIT

# until CONDITION..., a minute at most
wait_until() {
  for _ in $(seq 600); do
    if "$@"; then return 0; fi
    sleep 0.1
  done
  saw timeout "$*"
  exit 1
}
answered() { [ -e $state/predictions.jsonl ] && [ "$(wc -l < $state/predictions.jsonl)" -ge "$1" ]; }
restarted() { [ "$(ask NRestarts)" -ge "$1" ] && [ "$(ask ActiveState)" = active ]; }
logged() { journalctl --no-pager --unit=adaptd --output=cat | grep --quiet "$1"; }

# The program: this checkout, on the interpreter that runs the tests, where the service can see it.
mkdir -p /opt/python /usr/local/lib/adaptd/bin
mount --bind "$PYTHON_HOME" /opt/python
cat > /usr/local/lib/adaptd/bin/adaptd <<PROGRAM
#!/bin/sh
export PYTHONPATH="$PYTHON_PATH" LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/$PYTHON_NAME -m adaptd "\$@"
PROGRAM
chmod 755 /usr/local/lib/adaptd/bin/adaptd
if [ -d "$CACHE" ]; then
  mkdir -p /var/cache/private/adaptd
  chmod 700 /var/cache/private
  cp -rp "$CACHE" /var/cache/private/adaptd/
fi
SKIP_PROGRAM=1 sh "$ROOT/deploy/systemd/install.sh" install
cp /results/config.toml /etc/adaptd/config.toml
mkdir -p /etc/systemd/system/adaptd.service.d
printf '[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\nRestartSec=1\n' \
  > /etc/systemd/system/adaptd.service.d/fast.conf
printf 's3cret' > /etc/adaptd/token
chmod 600 /etc/adaptd/token
systemctl daemon-reload

systemctl start adaptd
code=$?
saw start $code
[ $code = 0 ] || exit 1
saw active "$(ask ActiveState)"
saw status_at_ready "$(ask StatusText)"
saw dynamic_user "$(stat -c %U $state/)"
token=/proc/$(ask MainPID)/root/run/credentials/adaptd.service/token
saw token_mode "$(stat -c %a "$token")"
saw token "$(cat "$token")"

cp /results/first.jsonl $state/events.jsonl
wait_until answered 500
first=$(ask MainPID)
saw process_user "$(stat -c %u "/proc/$first")"
sleep 7  # more than twice the watchdog's limit, with nothing to read
saw idle_kept_process "$([ "$(ask MainPID)" = "$first" ] && echo yes)"
saw status_idle "$(ask StatusText)"

systemctl reload adaptd
saw reload "$?"
wait_until logged "$(cat /results/reload_mark)"
saw reload_kept_process "$([ "$(ask MainPID)" = "$first" ] && echo yes)"
sleep 1
saw reload_active "$(ask ActiveState)"

kill -STOP "$first"
wait_until restarted 1
saw watchdog_result "$(journalctl --no-pager --output=cat --unit=adaptd | grep --count 'Watchdog timeout')"
saw new_process "$([ "$(ask MainPID)" != "$first" ] && echo yes)"
cat /results/second.jsonl >> $state/events.jsonl
wait_until answered 1000
cp $state/predictions.jsonl /results/predictions.jsonl

systemctl stop adaptd
saw stop_result "$(ask Result)"
saw stop_status "$(ask ExecMainStatus)"

echo 'nonsense = 1' >> /etc/adaptd/config.toml
sed -i '1i nonsense = 1' /etc/adaptd/config.toml
systemctl start adaptd
saw wrong_start "$?"
sleep 2
saw wrong_status "$(ask ExecMainStatus)"
saw wrong_restarts "$(ask NRestarts)"
saw wrong_state "$(ask ActiveState)"

umount /opt/python
sh "$ROOT/deploy/systemd/install.sh" uninstall > /results/uninstall.log 2>&1
saw uninstall "$?"
saw leftovers "$(find /usr/local /etc /var/lib /var/cache /run/systemd/system -name '*adaptd*' \
  ! -path '/usr/local/sbin/*' ! -path '*/private/adaptd/*' 2>/dev/null | sort | tr '\n' ' ')"
