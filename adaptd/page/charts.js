// Charts for the live page and for the report of a back-test: lines, stacked bands, marks, a ribbon.
// Elements are made once and moved afterwards, so a page that is open for days does not grow.
"use strict";

const Charts = (() => {
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const COLOURS = 10;
  const MARGIN = { top: 16, bottom: 24, left: 52 };
  const LABEL_HEIGHT = 14;
  const TABLE_ROWS = 24;
  const MARKS_MAX = 500;
  const MARK_WIDTH = 5;
  const all = [];
  let serial = 0;

  // Numbers and times in words.

  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const minutes = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
  const format = {
    score: (value) => (Math.abs(value) < 100 ? value.toFixed(3).replace(/^-(0\.0*)$/, "$1") : grouped.format(value)),
    share: (value) => `${(100 * value).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`,
    count: (value) => (Math.abs(value) < 10_000 ? grouped.format(value) : compact.format(value)),
    small: (value) => Number(value.toPrecision(3)).toString(),
    time: (value) => clock.format(value * 1000),
    row: (value) => grouped.format(value),
  };
  const shown = (value, how) => (isNumber(value) ? how(value) : "–");

  // Small help with elements.

  function attributes(element, values) {
    for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
    return element;
  }

  function svg(name, values, parent) {
    const element = attributes(document.createElementNS(NAMESPACE, name), values);
    if (parent) parent.append(element);
    return element;
  }

  function html(name, className, parent, text) {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // As many children as items, made or removed at the end, each set from its item.
  function fill(parent, make, items, set) {
    while (parent.childElementCount > items.length) parent.lastElementChild.remove();
    while (parent.childElementCount < items.length) parent.append(make());
    items.forEach((item, i) => set(parent.children[i], item, i));
  }

  // -1 is the blend, -2 a curve that belongs to no learner.
  const colour = (index) => (index < 0 ? ["plain", "blend"][index + 2] : `s${index % COLOURS}${index >= COLOURS ? " again" : ""}`);

  // Scales.

  function linearTicks(low, high, wanted) {
    const raw = (high - low) / Math.max(1, wanted);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(k * step + 0); // never -0
    return ticks;
  }

  function logTicks(low, high) {
    const ticks = [];
    const factors = Math.log10(high / low) < 2 ? [1, 2, 5] : [1];
    const every = Math.max(1, Math.ceil(Math.log10(high / low) / 5));
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1e-9; power++) {
      if (power % every) continue;
      for (const factor of factors) ticks.push(factor * 10 ** power);
    }
    return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  }

  const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200];

  function timeTicks(low, high, wanted) {
    const raw = (high - low) / Math.max(1, wanted);
    const step = TIME_STEPS.find((value) => value >= raw) ?? 86400;
    // Whole hours of the reader's clock, not of Greenwich.
    const shift = new Date(high * 1000).getTimezoneOffset() * 60;
    const ticks = [];
    for (let t = Math.ceil((low - shift) / step) * step + shift; t <= high; t += step) ticks.push(t);
    return { ticks, words: (t) => (step < 60 ? clock : minutes).format(t * 1000) };
  }

  function quantile(sorted, share) {
    return sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];
  }

  // The range that the curves need; a burst of one learner must not flatten all the others.
  function range(series, options, log) {
    const spread = (values) => {
      const sorted = values.filter((v) => isNumber(v) && (!log || v > 0));
      sorted.sort((a, b) => a - b);
      return sorted.length ? [quantile(sorted, 0.02), quantile(sorted, 0.98)] : null;
    };
    const found = series.map((one) => spread(one.values)).filter(Boolean);
    if (!found.length) return log ? [0.001, 1] : [0, 1];
    let low = Math.min(...found.map(([a]) => a));
    let high = Math.max(...found.map(([, b]) => b));
    if (log) {
      return high / low < 10 ? [low / 2.5, high * 2.5] : [low / 1.3, high * 1.3];
    }
    if (options.zero) low = Math.min(0, low);
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    high += pad;
    if (!options.zero) low -= pad;
    if (isNumber(options.most)) high = Math.min(high, options.most);
    if (isNumber(options.least)) low = Math.max(low, options.least);
    return [low, high > low ? high : low + 1];
  }

  // Whether the curves lie so far apart that only a logarithmic scale shows the lower ones.
  function isWide(series) {
    const last = series.map((one) => one.values.at(-1)).filter(isNumber);
    return last.length > 1 && Math.min(...last) > 0 && Math.max(...last) / Math.min(...last) > 10;
  }

  // Moves labels apart until none covers another, as little as that takes.
  function apart(labels, top, bottom) {
    labels.sort((a, b) => a.y - b.y);
    const height = Math.min(LABEL_HEIGHT, (bottom - top) / Math.max(1, labels.length));
    let least = top + height / 2;
    for (const label of labels) {
      label.at = Math.max(label.y, least);
      least = label.at + height;
    }
    let most = bottom - height / 2;
    for (const label of labels.reverse()) {
      label.at = Math.min(label.at, most);
      most = label.at - height;
    }
    return labels;
  }

  class Chart {
    // figure: an element with a figcaption. options: scale (line, log, stack, or auto: line or log), how (a number in words),
    // x (time or row), zero, least, most, height, ribbon (whether a champion's ribbon is drawn).
    constructor(figure, options) {
      this.figure = figure;
      this.options = { x: "time", scale: "line", how: format.score, height: 240, ...options };
      this.title = figure.querySelector("h2, h3").textContent;
      this.data = { x: [], series: [], marks: [], domain: [0, 1] };
      this.cursor = null;
      this.build();
      all.push(this);
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    build() {
      const id = `chart-${++serial}`;
      this.plot = html("div", "plot", this.figure);
      attributes(this.plot, { role: "group", tabindex: 0, "aria-roledescription": "chart" });
      this.plot.style.setProperty("--height", `${this.options.height}px`);
      this.svg = svg("svg", { "aria-hidden": "true", focusable: "false" }, this.plot);
      const clip = svg("clipPath", { id }, svg("defs", {}, this.svg));
      this.clip = svg("rect", {}, clip);
      this.grid = svg("g", { class: "grid" }, this.svg);
      this.ticks = svg("g", { class: "ticks" }, this.svg);
      this.marks = svg("g", { class: "marks" }, this.svg);
      this.lines = svg("g", { class: "series", "clip-path": `url(#${id})` }, this.svg);
      this.ribbon = svg("g", { class: "ribbon" }, this.svg);
      this.leaders = svg("g", { class: "leaders" }, this.svg);
      this.labels = svg("g", { class: "labels" }, this.svg);
      this.hair = svg("line", { class: "hair", visibility: "hidden" }, this.svg);
      this.dots = svg("g", { class: "dots" }, this.svg);
      this.empty = html("p", "empty", this.plot, this.options.nothing ?? "Nothing to draw yet.");
      this.tip = html("div", "tip", this.plot);
      this.tip.hidden = true;
      this.tip.setAttribute("aria-hidden", "true");
      this.tipHead = html("p", "", this.tip);
      this.tipRows = html("div", "", this.tip);
      this.spoken = html("p", "sr", this.figure);
      this.spoken.setAttribute("aria-live", "polite");
      this.buildTable();
      this.plot.addEventListener("pointermove", (event) => this.point(event));
      this.plot.addEventListener("pointerleave", () => moveCursor(null));
      this.plot.addEventListener("blur", () => moveCursor(null));
      this.plot.addEventListener("keydown", (event) => this.key(event));
    }

    buildTable() {
      this.details = html("details", "values", this.figure);
      const summary = html("summary", "", this.details, "As a table");
      html("span", "sr", summary, `: ${this.title}`);
      this.holder = html("div", "scroll", this.details);
      attributes(this.holder, { tabindex: 0, role: "region", "aria-label": `${this.title}, as a table` });
      // Filled when it is opened, and left alone after: nobody can read a table that moves.
      this.details.addEventListener("toggle", () => this.fillTable());
    }

    fillTable() {
      this.holder.replaceChildren();
      if (!this.details.open) return;
      const { x, series } = this.data;
      const table = html("table", "", this.holder);
      const head = html("tr", "", html("thead", "", table));
      for (const name of [this.options.x === "time" ? "time" : "row", ...series.map((one) => one.name)]) {
        html("th", "", head, name).scope = "col";
      }
      const body = html("tbody", "", table);
      const stride = Math.max(1, Math.ceil(x.length / TABLE_ROWS));
      for (let i = x.length - 1; i >= 0; i -= stride) {
        const row = html("tr", "", body);
        html("th", "", row, format[this.options.x](x[i])).scope = "row";
        for (const one of series) html("td", "", row, shown(one.values[i], this.options.how));
      }
    }

    // data: x (ascending), series ({name, index, values}; index -1: the blend), marks ({x, kind, text}),
    // domain ([first, last] of x), ribbon (for each x the index of the champion or -1).
    update(data) {
      this.data = data;
      const last = data.series.map((one) => `${one.name} ${shown(one.values.at(-1), this.options.how)}`);
      const drifts = (data.marks ?? []).filter((mark) => mark.kind === "drift").length;
      const marks = drifts ? `; ${drifts} drift marks` : "";
      this.plot.setAttribute(
        "aria-label",
        `${this.title}. Now ${last.join(", ") || "nothing"}${marks}. Left and right arrows read values.`,
      );
      this.draw();
    }

    draw() {
      const width = this.plot.clientWidth;
      const height = this.options.height;
      const { x, series } = this.data;
      if (!width) return;
      attributes(this.svg, { width, height, viewBox: `0 0 ${width} ${height}` });
      const labelled = width >= 520 && series.length > 1;
      const ribbon = this.options.ribbon ? 12 : 0;
      const box = {
        left: MARGIN.left,
        right: width - (labelled ? 116 : 12),
        top: MARGIN.top,
        bottom: height - MARGIN.bottom - ribbon,
      };
      this.box = box;
      attributes(this.clip, {
        x: box.left, y: box.top - 2, width: Math.max(0, box.right - box.left), height: box.bottom - box.top + 4,
      });
      this.empty.hidden = x.length > 1 && series.some((one) => one.values.some(isNumber));
      this.scales(box);
      this.drawAxes(box, width);
      this.drawSeries(box);
      this.drawMarks(box);
      this.drawRibbon(box);
      this.drawLabels(labelled ? box : null);
      this.drawCursor();
    }

    scales(box) {
      const { series, domain } = this.data;
      const [first, last] = domain[1] > domain[0] ? domain : [domain[0], domain[0] + 1];
      this.px = (value) => box.left + ((value - first) / (last - first)) * (box.right - box.left);
      const stacked = this.options.scale === "stack";
      this.log = this.options.scale === "log" || (this.options.scale === "auto" && isWide(series));
      const [low, high] = stacked ? [0, 1] : range(series, this.options, this.log);
      this.limits = [low, high];
      const tall = box.bottom - box.top;
      this.py = this.log
        ? (value) => box.bottom - (Math.log(value / low) / Math.log(high / low)) * tall
        : (value) => box.bottom - ((value - low) / (high - low)) * tall;
      // Cumulative from the bottom for bands, the values themselves for lines.
      this.tops = series.map((one) => one.values);
      if (stacked) {
        let below = this.data.x.map(() => 0);
        this.tops = series.map((one) => (below = below.map((sum, i) => sum + (one.values[i] ?? 0))));
      }
    }

    drawAxes(box, width) {
      const [low, high] = this.limits;
      const rows = this.log ? logTicks(low, high) : linearTicks(low, high, (box.bottom - box.top) / 36);
      fill(this.grid, () => svg("line", {}), rows, (line, tick) => {
        const y = Math.round(this.py(tick)) + 0.5;
        attributes(line, { x1: box.left, x2: box.right, y1: y, y2: y });
      });
      const [first, last] = this.data.domain;
      const wanted = width / 110;
      const across = this.options.x === "time"
        ? timeTicks(first, last, wanted)
        : { ticks: linearTicks(first, last, wanted), words: format.count };
      const words = [
        ...rows.map((tick) => ({
          x: box.left - 8, y: this.py(tick) + 4, anchor: "end", text: this.options.how(Number(tick.toPrecision(6))),
        })),
        ...across.ticks.map((tick) => ({
          x: this.px(tick), y: this.options.height - 6, anchor: "middle", text: across.words(tick),
        })),
      ].filter((word) => word.x < box.right + 8);
      fill(this.ticks, () => svg("text", {}), words, (text, word) => {
        attributes(text, { x: word.x.toFixed(1), y: word.y.toFixed(1), "text-anchor": word.anchor });
        write(text, word.text);
      });
    }

    drawSeries() {
      const { x, series } = this.data;
      const stacked = this.options.scale === "stack";
      const step = x.length > 1 ? (x.at(-1) - x[0]) / (x.length - 1) : 0;
      fill(this.lines, () => svg("path", {}), series, (path, one, k) => {
        const lower = stacked && k > 0 ? this.tops[k - 1] : null;
        attributes(path, {
          class: `${stacked ? "band" : "line"} ${colour(one.index)}`,
          "data-name": one.name,
          d: stacked ? this.band(x, this.tops[k], lower, step) : this.line(x, one.values, step),
        });
      });
    }

    // A line is broken where there is no value, and where time passed without any point.
    line(x, values, step) {
      let path = "";
      let drawn = -1;
      for (let i = 0; i < x.length; i++) {
        const value = values[i];
        if (!isNumber(value) || (this.log && value <= 0)) continue;
        const joined = drawn === i - 1 && drawn >= 0 && x[i] - x[i - 1] <= 12 * step;
        path += `${joined ? "L" : "M"}${this.px(x[i]).toFixed(1)} ${this.py(value).toFixed(1)}`;
        drawn = i;
      }
      return path;
    }

    band(x, upper, lower, step) {
      let path = "";
      const close = (from, to) => {
        if (to <= from) return;
        for (let i = from; i <= to; i++) {
          path += `${i === from ? "M" : "L"}${this.px(x[i]).toFixed(1)} ${this.py(upper[i]).toFixed(1)}`;
        }
        for (let i = to; i >= from; i--) {
          path += `L${this.px(x[i]).toFixed(1)} ${this.py(lower ? lower[i] : 0).toFixed(1)}`;
        }
        path += "Z";
      };
      let from = 0;
      for (let i = 1; i < x.length; i++) {
        if (x[i] - x[i - 1] > 12 * step) {
          close(from, i - 1);
          from = i;
        }
      }
      close(from, x.length - 1);
      return path;
    }

    drawMarks(box) {
      const [first, last] = this.data.domain;
      const seen = (this.data.marks ?? []).filter((mark) => mark.x >= first && mark.x <= last);
      this.seen = [];
      for (const mark of seen.slice(-MARKS_MAX)) {
        const px = this.px(mark.x);
        const before = this.seen.at(-1);
        // A warning leads up to its drift, and a day of drifts is a wall: of neighbours one is drawn.
        if (before && px - before.px < MARK_WIDTH) {
          if (mark.kind === "drift" && before.kind !== "drift") this.seen[this.seen.length - 1] = { ...mark, px };
        } else {
          this.seen.push({ ...mark, px });
        }
      }
      fill(this.marks, () => {
        const group = svg("g", {});
        svg("line", {}, group);
        svg("path", {}, group);
        return group;
      }, this.seen, (group, mark) => {
        const at = mark.px.toFixed(1);
        attributes(group, { class: mark.kind });
        attributes(group.children[0], { x1: at, x2: at, y1: box.top - 4, y2: box.bottom });
        attributes(group.children[1], { d: `M${at} ${box.top - 2}l-5 -9h10z` });
      });
    }

    drawRibbon(box) {
      const spans = [];
      const champions = this.options.ribbon ? this.data.ribbon ?? [] : [];
      champions.forEach((index, i) => {
        const to = this.px(this.data.x[Math.min(i + 1, champions.length - 1)]);
        if (spans.length && spans.at(-1).index === index) spans.at(-1).to = to;
        else spans.push({ index, from: this.px(this.data.x[i]), to });
      });
      const drawn = spans.filter((span) => span.index >= 0);
      fill(this.ribbon, () => svg("rect", {}), drawn, (rect, span) =>
        attributes(rect, {
          class: colour(span.index), x: span.from.toFixed(1), y: box.bottom + 5, height: 6,
          width: Math.max(1, span.to - span.from).toFixed(1),
        }));
    }

    drawLabels(box) {
      const labels = [];
      const stacked = this.options.scale === "stack";
      if (box && this.data.x.length > 1) {
        const last = this.data.x.length - 1;
        this.data.series.forEach((one, k) => {
          let value = one.values[last];
          if (!isNumber(value) || (this.log && value <= 0)) return;
          if (stacked) {
            if (value < 0.015) return;
            value = this.tops[k][last] - value / 2;
          }
          const y = Math.min(box.bottom, Math.max(box.top, this.py(value)));
          labels.push({ name: one.name, index: one.index, y });
        });
        apart(labels, box.top - 6, box.bottom + 6);
      }
      const end = box && this.data.x.length ? Math.min(box.right, this.px(this.data.x.at(-1))) : 0;
      fill(this.leaders, () => svg("path", {}), labels, (path, label) =>
        attributes(path, {
          class: colour(label.index), "data-name": label.name,
          d: `M${(end + 2).toFixed(1)} ${label.y.toFixed(1)}L${box.right + 12} ${label.at.toFixed(1)}`,
        }));
      fill(this.labels, () => svg("text", {}), labels, (text, label) => {
        attributes(text, {
          class: colour(label.index), "data-name": label.name, x: box.right + 16, y: (label.at + 4).toFixed(1),
        });
        write(text, label.name.length > 14 ? `${label.name.slice(0, 13)}…` : label.name);
      });
    }

    // The cursor: by pointer or by arrow keys, on all charts at once.

    point(event) {
      const { left } = this.svg.getBoundingClientRect();
      const at = event.clientX - left;
      const { x } = this.data;
      if (!x.length || at < this.box.left - 6 || at > this.box.right + 6) return moveCursor(null);
      let best = 0;
      for (let i = 1; i < x.length; i++) {
        if (Math.abs(this.px(x[i]) - at) < Math.abs(this.px(x[best]) - at)) best = i;
      }
      moveCursor(x[best], this);
    }

    key(event) {
      const { x } = this.data;
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -x.length, End: x.length };
      if (event.key === "Escape") return moveCursor(null);
      if (!(event.key in moves) || !x.length) return;
      event.preventDefault();
      const from = this.cursor === null ? x.length - 1 + (moves[event.key] < 0 ? 1 : 0) : this.nearest(this.cursor);
      const to = Math.min(x.length - 1, Math.max(0, from + moves[event.key]));
      moveCursor(x[to], this);
      const words = this.data.series.map((one) => `${one.name} ${shown(one.values[to], this.options.how)}`);
      write(this.spoken, `${format[this.options.x](x[to])}: ${words.join(", ")}`);
    }

    nearest(value) {
      const { x } = this.data;
      let best = 0;
      for (let i = 1; i < x.length; i++) if (Math.abs(x[i] - value) < Math.abs(x[best] - value)) best = i;
      return best;
    }

    drawCursor() {
      const { x, series } = this.data;
      const [first, last] = this.data.domain;
      const visible = this.cursor !== null && x.length > 0 && this.cursor >= first && this.cursor <= last;
      this.hair.setAttribute("visibility", visible ? "visible" : "hidden");
      this.tip.hidden = !(visible && this.speaks);
      if (!visible) {
        fill(this.dots, () => svg("circle", {}), [], () => {});
        return;
      }
      const i = this.nearest(this.cursor);
      const at = this.px(x[i]);
      attributes(this.hair, { x1: at, x2: at, y1: this.box.top, y2: this.box.bottom });
      const here = series
        .map((one, k) => ({ ...one, value: one.values[i], top: this.tops[k][i] }))
        .filter((one) => isNumber(one.value));
      const inside = here.filter((one) => {
        const y = this.options.scale === "stack" ? -1 : this.py(one.value);
        return y >= this.box.top - 1 && y <= this.box.bottom + 1;
      });
      fill(this.dots, () => svg("circle", { r: 3.5 }), inside, (dot, one) =>
        attributes(dot, { class: colour(one.index), cx: at.toFixed(1), cy: this.py(one.value).toFixed(1) }));
      if (this.speaks) this.drawTip(at, x[i], here);
    }

    drawTip(at, x, here) {
      const near = (this.seen ?? []).filter((mark) => Math.abs(mark.px - at) <= 6);
      const head = [format[this.options.x](x), ...near.slice(0, 2).map((mark) => mark.text)].join(" · ");
      write(this.tipHead, this.options.x === "row" ? `row ${head}` : head);
      if (this.options.scale !== "stack") here.sort((a, b) => b.value - a.value);
      else here.reverse();
      fill(this.tipRows, () => {
        const row = html("p", "");
        html("i", "", row);
        html("span", "", row);
        html("b", "", row);
        return row;
      }, here, (row, one) => {
        row.children[0].className = `swatch ${colour(one.index)}`;
        write(row.children[1], one.name);
        write(row.children[2], this.options.how(one.value));
      });
      const right = at > this.plot.clientWidth / 2;
      this.tip.style.setProperty("left", right ? "auto" : `${at + 14}px`);
      this.tip.style.setProperty("right", right ? `${this.plot.clientWidth - at + 14}px` : "auto");
    }
  }

  function moveCursor(x, speaker) {
    for (const chart of all) {
      chart.cursor = x;
      chart.speaks = chart === speaker;
      if (chart.box) chart.drawCursor();
    }
  }

  // Lifts one learner out of all charts; null: none.
  function highlight(name) {
    document.documentElement.classList.toggle("dimmed", name !== null);
    for (const element of document.querySelectorAll(".hot")) element.classList.remove("hot");
    if (name === null) return;
    for (const element of document.querySelectorAll("[data-name]")) {
      element.classList.toggle("hot", element.dataset.name === name);
    }
  }

  return { Chart, attributes, colour, compact, fill, format, grouped, highlight, html, isNumber, shown, write };
})();
