// The journal's entries in words, and as marks on the charts.
"use strict";

const Decisions = (() => {
  const { format, isNumber } = Charts;

  function plain(value) {
    if (isNumber(value)) return Number.isInteger(value) ? format.count(value) : format.small(value);
    if (Array.isArray(value)) return value.map(plain).join(", ");
    if (value && typeof value === "object") {
      return Object.entries(value).map(([key, entry]) => `${key} ${plain(entry)}`).join(", ");
    }
    return String(value ?? "–");
  }

  function weights(payload) {
    const sorted = Object.entries(payload.weights ?? {}).sort((a, b) => b[1] - a[1]);
    return sorted.slice(0, 4).map(([name, weight]) => `${name} ${format.share(weight)}`).join(", ");
  }

  // What happened, why, and the class that colours it.
  const SAY = {
    drift_detected: (p) => [
      "Drift detected",
      `${p.detector} on ${p.signal}${p.change_rows ? `, change about ${format.row(p.change_rows)} rows before` : ""}`,
      "drift",
    ],
    covariate_shift_detected: (p) => [
      "Inputs have moved",
      `${p.features.join(", ")}, at predicted row ${format.row(p.predicted_rows)}`,
      "warning",
    ],
    unlabelled_drift_suspected: (p) => [
      "Drift possible where labels are missing",
      `${p.signals.join(" and ")} rose${p.expected_accuracy === null ? "" : `; expected accuracy ${p.expected_accuracy.toFixed(3)}`}`,
      "warning",
    ],
    warning_raised: (p) => ["Warning of drift", `${p.detector} on ${p.signal}`, "warning"],
    champion_changed: (p) => [
      `Champion is ${p.champion}`,
      p.previous ? `before: ${p.previous}` : "the first",
      "champion",
    ],
    champion_pinned: (p) => [p.champion ? `Pinned: ${p.champion}` : "Pin released", "", "champion"],
    boosts_compared: (p) => [
      "Boosts compared",
      `over ${format.row(p.rows)} rows; the next drift: ${Object.entries(p.chosen).map(([name, arm]) => `${name} ${arm}`).join(", ")}`,
      "",
    ],
    rates_boosted: (p) => [
      `Learning rates × ${plain(p.factor)}`,
      `fading, half-life ${format.row(p.half_life_rows)} rows; ${plain(p.reason)}`,
      "",
    ],
    rates_restored: () => ["Learning rates back to normal", "", ""],
    weights_reported: (p) => ["Weights", weights(p), ""],
    learner_set_aside: (p) => [`${p.learner} set aside`, `${p.reason}${p.detail ? `: ${p.detail}` : ""}`, "drift"],
    learner_reset: (p) => [`${p.learner} reset`, plain(p.reason), "warning"],
    learner_frozen: (p) => [`${p.learner} ${p.frozen ? "frozen" : "learns again"}`, "", ""],
    overload_detected: (p) => ["Overload: the student answers", `resting: ${(p.learners ?? []).map(plain).join(", ")}`, "warning"],
    overload_ended: () => ["Overload over", "the blend answers again", ""],
    learner_joined: (p) => [`${p.learner} joined`, "a category has many codes", ""],
    learner_enabled: (p) => [`${p.learner} is back`, "with what it had learned", ""],
    command_refused: (p) => [`Command refused: ${p.action} ${p.learner}`, plain(p.reason), "warning"],
    lane_reconfigured: (p) => ["New configuration", p.fresh?.length ? `fresh: ${plain(p.fresh)}` : "nothing starts fresh", ""],
    task_decided: (p) => [`Task: ${p.task}`, plain(p.reason), ""],
    layout_grown: (p) => [
      "More columns or classes",
      [...(p.features ?? []), ...(p.classes ?? [])].map(plain).join(", "),
      "",
    ],
  };

  function describe(entry) {
    const payload = entry.payload ?? {};
    if (Object.hasOwn(SAY, entry.kind)) {
      const [what, why, className] = SAY[entry.kind](payload);
      return { what, why, className };
    }
    const what = entry.kind.replaceAll("_", " ");
    const why = Object.entries(payload).map(([key, value]) => `${key} ${plain(value)}`).join(", ");
    return { what: what[0].toUpperCase() + what.slice(1), why, className: "" };
  }

  // Drifts and warnings as marks; `at` gives the place of an entry on the x axis.
  function marks(entries, at) {
    const kinds = { drift_detected: "drift", warning_raised: "warning" };
    return entries
      .filter((entry) => Object.hasOwn(kinds, entry.kind))
      .map((entry) => ({ x: at(entry), kind: kinds[entry.kind], text: describe(entry).what }));
  }

  return { describe, marks };
})();
