// The live page: asks the daemon once a second, keeps a bounded window, draws.
"use strict";

(() => {
  const { Chart, attributes, colour, fill, format, grouped, html, shown, write } = Charts;
  const SECOND = 1000;
  const RETRY_MAX_SECONDS = 15;
  const POINTS = 600;
  const ENTRIES_MAX = 200;
  const MARKS_MAX = 500;
  const NEWS_SECONDS = 5;
  const byId = (id) => document.getElementById(id);

  const state = {
    seconds: 600,
    paused: false,
    failures: 0,
    names: [],
    points: [],
    scoreName: "",
    entries: [],
    reports: [],
    marked: [],
    seq: 0,
    rows: 0,
    pinned: null,
  };

  const score = new Chart(byId("score"), {
    scale: "auto", how: format.score, height: 300, ribbon: true, least: 0,
  });
  const charts = {
    weights: new Chart(byId("weights"), { scale: "stack", how: format.share, height: 240, ribbon: false }),
    rates: new Chart(byId("rates"), { scale: "log", how: format.small }),
    speed: new Chart(byId("speed"), { how: format.count, zero: true, least: 0, height: 160 }),
    delay: new Chart(byId("delay"), {
      how: format.count, zero: true, least: 0, height: 160, nothing: "No label came after its row.",
    }),
  };

  async function ask(path) {
    // Kept for this tab only, and no longer than it is open.
    const token = sessionStorage.getItem("token");
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(8 * SECOND) });
    byId("ask").hidden = answer.status !== 401;
    if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
    return answer.json();
  }

  // The window of points.

  async function loadWindow() {
    const since = Date.now() / 1000 - state.seconds;
    const history = await ask(`/api/v1/history?since=${since}&points=${POINTS}`);
    state.names = history.learners;
    state.points = history.points;
    state.scoreName = history.score_name || state.scoreName;
  }

  async function extendWindow() {
    const last = state.points.at(-1);
    const history = await ask(`/api/v1/history?since=${last ? last.t : Date.now() / 1000 - 60}&points=${POINTS}`);
    if (history.points.length === 0) return;
    if (history.learners.join("\n") !== state.names.join("\n")) return loadWindow();
    // A window of a day holds a point every few minutes; only its tip moves every second.
    const step = state.seconds / POINTS;
    for (const point of history.points) {
      const { points } = state;
      if (points.length > 1 && point.t - points.at(-2).t < step) points[points.length - 1] = point;
      else points.push(point);
    }
    state.scoreName = history.score_name || state.scoreName;
    const oldest = state.points.at(-1).t - state.seconds;
    while (state.points.length > 2 * POINTS || state.points[0].t < oldest) state.points.shift();
  }

  async function loadJournal() {
    const { entries } = await ask(`/api/v1/journal?last=${ENTRIES_MAX}&since=${state.seq}`);
    if (!entries.length) return [];
    // A daemon that went back to a checkpoint counts from there again.
    state.seq = entries.at(-1).seq;
    const kept = (list, more, most) => [...list, ...more].slice(-most);
    state.reports = kept(state.reports, entries, ENTRIES_MAX);
    state.entries = kept(state.entries, entries.filter((entry) => entry.kind !== "weights_reported"), ENTRIES_MAX);
    mark(entries);
    return entries;
  }

  function mark(entries) {
    const marks = Decisions.marks(entries, (entry) => entry.wall);
    state.marked = [...state.marked, ...marks].slice(-MARKS_MAX);
  }

  async function loadMarks() {
    const parts = await Promise.all(
      ["drift_detected", "warning_raised"].map((kind) => ask(`/api/v1/journal?last=${MARKS_MAX / 2}&kind=${kind}`)),
    );
    state.marked = [];
    mark(parts.flatMap((part) => part.entries).sort((a, b) => a.seq - b.seq));
  }

  // Drawing.

  function draw() {
    const { points, names } = state;
    const x = points.map((point) => point.t);
    const last = x.length ? x.at(-1) : Date.now() / 1000;
    const first = x.length ? x[0] : last;
    // What a young daemon has is drawn over all of the width, once it is a minute.
    const domain = [Math.max(last - state.seconds, Math.min(first, last - 60)), last];
    const pick = (key) => names.map((name, index) => ({ name, index, values: points.map((point) => point[key][index]) }));
    const one = (name, key, index = -2) => ({ name, index, values: points.map((point) => point[key]) });
    const marks = state.marked;
    const scores = pick("score");
    score.options.most = state.scoreName === "accuracy" ? 1 : undefined;
    score.update({
      x, domain, marks, series: [...scores, one("blend", "blend", -1)],
      ribbon: points.map((point) => names.indexOf(point.champion)),
    });
    charts.weights.update({ x, domain, marks, series: pick("weight") });
    const rates = pick("learning_rate").filter((line) => line.values.some((value) => value > 0));
    charts.rates.update({ x, domain, marks, series: rates });
    charts.speed.update({ x, domain, marks: [], series: [one("rows a second", "rows_per_second")] });
    charts.delay.update({ x, domain, marks: [], series: [one("label delay", "label_delay_rows")] });
  }

  function duration(seconds) {
    if (!Charts.isNumber(seconds)) return "–";
    const whole = Math.floor(seconds);
    if (whole < 120) return `${whole} s`;
    if (whole < 7200) return `${Math.floor(whole / 60)} min`;
    return whole < 172_800 ? `${Math.floor(whole / 3600)} h` : `${Math.floor(whole / 86_400)} days`;
  }

  function bytes(value) {
    if (!Charts.isNumber(value) || value < 0) return "–";
    const power = value > 0 ? Math.min(4, Math.floor(Math.log(value) / Math.log(1024))) : 0;
    return `${format.small(value / 1024 ** power)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
  }

  function showStatus(status) {
    const rejects = Object.values(status.rejects ?? {}).reduce((sum, n) => sum + n, 0);
    const reasons = Object.entries(status.rejects ?? {}).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
    const speed = status.rows_per_second;
    const [first, second] = Object.entries(status.scores ?? {});
    const lag = status.source?.lag_bytes;
    const saved = status.checkpoint ?? {};
    const figures = [
      [shown(speed, format.count), `${format.count(status.predictions)} rows, ${format.count(status.labels)} learned`],
      [shown(first?.[1], format.score), first ? `${first[0].replaceAll("_", " ")}${second ? `, ${second[0].replaceAll("_", " ")} ${shown(second[1], format.score)}` : ""}` : "nothing judged yet"],
      [status.champion ?? "–", `${status.speaker && status.speaker !== "blend" ? `${status.speaker} answers` : "the blend answers"}, ${format.count(status.switches)} switches`],
      [format.count(status.drifts), `${format.count(status.warnings)} warnings`],
      [Charts.isNumber(status.label_delay_rows) ? `${format.count(status.label_delay_rows)} rows` : "–", `${format.count(status.label_buffer?.rows ?? 0)} rows wait (${bytes(status.label_buffer?.bytes)})`],
      [format.count(rejects), reasons.length ? `mostly ${reasons[0][0].replaceAll("_", " ")}` : "all records usable"],
      [Charts.isNumber(saved.age_seconds) ? `${duration(saved.age_seconds)} ago` : "none", saved.failures ? `${saved.failures} failed` : saved.saved ? `${format.count(saved.saved)} saved, ${bytes(saved.bytes)}` : "nothing saved yet"],
    ];
    [...byId("figures").children].forEach((tile, i) => {
      write(tile.children[1], figures[i][0]);
      write(tile.children[2], figures[i][1]);
      tile.children[1].title = figures[i][0];
      tile.children[2].title = figures[i][1];
    });
    const waiting = Charts.isNumber(lag) && lag >= 0 ? `, ${bytes(lag)} waiting` : "";
    write(byId("about"), [
      `version ${status.version}`, status.task, `up ${duration(status.uptime_seconds)}`,
      `${status.source?.kind ?? "?"} → ${status.sink?.kind ?? "?"}${waiting}`,
    ].filter(Boolean).join(" · "));
    if (status.stopped_by) setState("warn", `stopping: ${status.stopped_by}`);
    else if (!status.ready) setState("warn", "starting");
    else if (speed > 0) setState("good", state.paused ? "learning; page paused" : "learning");
    else setState("good", state.paused ? "waiting for rows; page paused" : "waiting for rows");
    document.title = `${shown(first?.[1], format.score)} · ${shown(speed, format.count)} rows/s · adaptd`;
    const lower = first && first[0] !== "accuracy" ? "lower is better; " : "";
    write(byId("score-about"), `${first ? `${first[0].replaceAll("_", " ")}, ` : ""}fading; ${lower}each row judged before it is learned; below: the champion`);
  }

  function setState(kind, text) {
    const element = byId("state");
    if (element.className !== `state ${kind}`) element.className = `state ${kind}`;
    write(element, text);
  }

  function learnerRow() {
    const row = document.createElement("tr");
    const head = html("th", "", row);
    head.scope = "row";
    const button = html("button", "name", head);
    attributes(button, { type: "button", "aria-pressed": "false" });
    html("i", "swatch", button).setAttribute("aria-hidden", "true");
    html("span", "", button);
    button.addEventListener("click", () => pin(row.dataset.name));
    row.addEventListener("pointerenter", () => Charts.highlight(row.dataset.name));
    row.addEventListener("pointerleave", () => Charts.highlight(state.pinned));
    html("td", "text", row);
    html("span", "tag", html("td", "text", row));
    const weight = html("td", "", row);
    weight.innerHTML = '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
      + '<rect class="rail" width="100" height="10" rx="2"/><rect height="10" rx="2"/></svg><span></span>';
    for (let i = 0; i < 5; i++) html("td", "", row);
    return row;
  }

  function role(learner) {
    if (learner.set_aside) return [`set aside: ${String(learner.set_aside).replaceAll("_", " ")}`, "bad"];
    if (learner.is_champion) return ["champion", "good"];
    return learner.frozen ? ["frozen", "warn"] : ["", ""];
  }

  function showLearners(learners) {
    const name = Object.keys(learners.find((one) => Object.keys(one.scores ?? {}).length)?.scores ?? {})[0];
    write(byId("score-head"), (name ?? "score").replaceAll("_", " "));
    fill(byId("learners").tBodies[0], learnerRow, learners, (row, learner) => {
      row.dataset.name = learner.name;
      const found = state.names.indexOf(learner.name);
      const [head, kind, roleCell, weight, ...rest] = row.children;
      const hue = colour(found < 0 ? learners.indexOf(learner) : found);
      head.firstChild.children[0].setAttribute("class", `swatch ${hue}`);
      write(head.firstChild.children[1], learner.name);
      head.firstChild.setAttribute("aria-pressed", String(state.pinned === learner.name));
      write(kind, learner.kind);
      const [text, tone] = role(learner);
      roleCell.firstChild.hidden = !text;
      roleCell.firstChild.className = `tag ${tone}`;
      write(roleCell.firstChild, text);
      weight.firstChild.lastChild.setAttribute("class", hue);
      weight.firstChild.lastChild.setAttribute("width", 100 * (learner.weight ?? 0));
      write(weight.lastChild, shown(learner.weight, format.share));
      const scaled = Charts.isNumber(learner.rate_scale) && learner.rate_scale !== 1 && learner.learning_rate > 0;
      const rate = shown(learner.learning_rate, format.small);
      [
        shown(learner.scores?.[name], format.score),
        shown(learner.loss, format.score),
        scaled ? `${rate} (× ${format.small(learner.rate_scale)})` : rate,
        shown(learner.gradient_norm, format.small),
        bytes(learner.state_bytes),
      ].forEach((words, i) => write(rest[i], words));
    });
  }

  function pin(name) {
    state.pinned = state.pinned === name ? null : name;
    for (const row of byId("learners").tBodies[0].rows) {
      row.querySelector("button").setAttribute("aria-pressed", String(row.dataset.name === state.pinned));
    }
    Charts.highlight(state.pinned);
  }

  function entryItem() {
    const item = document.createElement("li");
    html("time", "", item);
    html("span", "what", item);
    html("span", "why", item);
    return item;
  }

  function showJournal() {
    const list = byId("every").checked ? state.reports : state.entries;
    // A day ago and a minute ago are told apart: the date stands where it is not today's.
    const today = new Date().toDateString();
    fill(byId("journal"), entryItem, list.toReversed(), (item, entry) => {
      const { what, why, className } = Decisions.describe(entry);
      const date = new Date(entry.wall * 1000);
      const [time, name, reason] = item.children;
      if (item.className !== className) item.className = className;
      time.dateTime = date.toISOString();
      write(time, date.toDateString() === today ? format.time(entry.wall) : date.toLocaleDateString("en-GB"));
      write(name, what);
      write(reason, `${why ? `${why} · ` : ""}row ${format.row(entry.row)}`);
    });
  }

  // A screen reader hears a few words now and then, not every line of a busy journal.
  const news = [];
  let told = 0;
  function tell(entries) {
    news.push(...entries.filter((entry) => entry.kind !== "weights_reported"));
    if (!news.length || performance.now() - told < NEWS_SECONDS * SECOND) return;
    told = performance.now();
    const { what, why } = Decisions.describe(news.at(-1));
    const before = news.length > 1 ? `${news.length} entries in the journal, the last: ` : "";
    write(byId("news"), `${before}${what}${why ? `, ${why}` : ""}, row ${format.row(news.at(-1).row)}`);
    news.length = 0;
  }

  // The loop.

  let timer = 0;
  let turn = 0;
  let fresh = true;

  async function update() {
    clearTimeout(timer);
    const mine = ++turn;
    try {
      const [status, { learners }] = await Promise.all([ask("/api/v1/status"), ask("/api/v1/learners")]);
      if (status.labels < state.rows) fresh = true;
      state.rows = status.labels;
      if (fresh) {
        Object.assign(state, { entries: [], reports: [], seq: 0 });
        await Promise.all([loadWindow(), loadJournal()]);
        await loadMarks();
        fresh = false;
      } else {
        const [, entries] = await Promise.all([extendWindow(), loadJournal()]);
        tell(entries);
      }
      if (mine !== turn) return;
      state.failures = 0;
      byId("notice").hidden = true;
      showStatus(status);
      showLearners(learners);
      showJournal();
      draw();
      if (state.pinned !== null) Charts.highlight(state.pinned);
    } catch (error) {
      if (mine !== turn) return;
      state.failures += 1;
      setState("bad", byId("ask").hidden ? "no answer" : "token wanted");
      if (state.failures === 2 && byId("ask").hidden) {
        byId("notice").hidden = false;
        write(byId("notice"), `The daemon does not answer (${error.message}) since ${format.time(Date.now() / 1000)}. What is shown is the last that it said; the page goes on asking.`);
      }
      // A daemon that comes back may be another one, with another journal.
      fresh = fresh || state.failures > 1;
    }
    if (mine === turn && !state.paused && !document.hidden) {
      timer = setTimeout(update, Math.min(RETRY_MAX_SECONDS, 2 ** state.failures) * SECOND);
    }
  }

  byId("window").addEventListener("change", (event) => {
    state.seconds = Number(event.target.value);
    fresh = true;
    update();
  });
  byId("pause").addEventListener("click", () => {
    state.paused = !state.paused;
    byId("pause").setAttribute("aria-pressed", String(state.paused));
    write(byId("pause"), state.paused ? "Go on" : "Pause");
    if (state.paused) {
      clearTimeout(timer);
      setState("warn", "page paused");
    } else {
      fresh = true;
      update();
    }
  });
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", byId("token").value.trim());
    byId("token").value = "";
    state.failures = 0;
    update();
  });
  byId("every").addEventListener("change", showJournal);
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden && !state.paused) {
      fresh = true;
      update();
    }
  });
  update();
})();
