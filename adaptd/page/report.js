// The report of a back-test: the live page's pictures over rows, from the data in the file itself.
"use strict";

(() => {
  const { Chart, colour, format, grouped, html, isNumber, shown } = Charts;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { result, curves } = data;
  const regression = result.task === "regression";
  const scores = regression ? ["mae", "rmse", "r2"] : ["accuracy", "kappa", "log_loss", "calibration_error", "macro_f1", "auc"];
  const spelled = (name) => name.replaceAll("_", " ");

  function tile(name, value, more) {
    const box = html("div", "", byId("figures"));
    html("dt", "", box, name);
    html("dd", "value", box, value);
    html("dd", "more", box, more);
  }

  function showFigures() {
    const second = scores[1];
    tile(spelled(scores[0]), shown(result[scores[0]], format.score), `the blend, whole stream; ${spelled(second)} ${shown(result[second], format.score)}`);
    tile("rows", grouped.format(result.rows), `${shown(result.rows_per_second, format.count)} a second, ${format.small(result.seconds)} s`);
    tile("champion", result.champion ?? "–", `at the end; ${result.switches} switches`);
    tile("drifts", grouped.format(result.drifts), `${result.warnings} warnings`);
    if (result.holdout) {
      const [name, value] = Object.entries(result.holdout).find(([key]) => key !== "rows");
      tile(`hold-out ${name}`, shown(value, format.score), `${grouped.format(result.holdout.rows)} rows never learned`);
    }
  }

  function showScores() {
    const used = scores.filter((score) => isNumber(result[score]));
    const table = byId("scores");
    const head = html("tr", "", html("thead", "", table));
    for (const name of ["learner", ...used.map(spelled), "weight at the end"]) html("th", "", head, name).scope = "col";
    const body = html("tbody", "", table);
    const add = (name, index, values, weight) => {
      const row = html("tr", index < 0 ? "total" : "", body);
      row.dataset.name = name;
      const cell = html("th", "", row);
      cell.scope = "row";
      html("i", `swatch ${colour(index)}`, cell).setAttribute("aria-hidden", "true");
      cell.append(` ${name}`);
      for (const score of used) html("td", "", row, shown(values[score], format.score));
      html("td", "", row, shown(weight, format.share));
      row.addEventListener("pointerenter", () => Charts.highlight(name));
      row.addEventListener("pointerleave", () => Charts.highlight(null));
    };
    add("blend", -1, result, undefined);
    const sign = regression ? 1 : -1;
    const order = curves.learners.map((name, index) => ({ name, index, values: result.learners[name] ?? {} }));
    order.sort((a, b) => sign * ((a.values[scores[0]] ?? sign * Infinity) - (b.values[scores[0]] ?? sign * Infinity)));
    for (const { name, index, values } of order) add(name, index, values, result.weights[name]);
  }

  function showJournal() {
    const body = byId("decisions").tBodies[0];
    for (const entry of data.journal) {
      const { what, why } = Decisions.describe(entry);
      const row = html("tr", "", body);
      html("th", "", row, format.row(entry.row)).scope = "row";
      html("td", "text", row, what);
      html("td", "text", row, why);
    }
    byId("decided").textContent = data.decisions > data.journal.length
      ? `the last ${data.journal.length} of ${grouped.format(data.decisions)}`
      : `${data.decisions} in all`;
  }

  function showCharts() {
    const { points, learners } = curves;
    const x = points.map((point) => point.row);
    const domain = [0, x.at(-1) ?? 1];
    const pick = (key) => learners.map((name, index) => ({ name, index, values: points.map((p) => p[key][index]) }));
    const marks = Decisions.marks(data.journal, (entry) => entry.row);
    const chart = (id, options) => new Chart(byId(id), { x: "row", ...options });
    chart("score", { scale: "auto", how: format.score, height: 320, ribbon: true, least: 0, most: regression ? undefined : 1 }).update({
      x, domain, marks,
      series: [...pick("score"), { name: "blend", index: -1, values: points.map((point) => point.blend) }],
      ribbon: points.map((point) => learners.indexOf(point.champion)),
    });
    chart("weights", { scale: "stack", how: format.share, height: 260 }).update({ x, domain, marks, series: pick("weight") });
    const rates = pick("learning_rate").filter((line) => line.values.some((value) => value > 0));
    chart("rates", { scale: "log", how: format.small, height: 260 }).update({ x, domain, marks, series: rates });
  }

  byId("file").textContent = data.file;
  document.title = `${data.file} · adaptd`;
  byId("about").textContent = `${result.task}, ${grouped.format(result.rows)} rows, adaptd ${data.version}, seed ${data.seed}`;
  byId("score-about").textContent = `${spelled(curves.score_name)}, fading; ${regression ? "lower is better; " : ""}each row judged before it is learned; below: the champion`;
  showFigures();
  showCharts();
  showScores();
  showJournal();
})();
