"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text; // what users wrote is text, never markup
    return made;
  }

  // ---- charts -------------------------------------------------------------------------------------------------------

  const hidden = new Set(); // "group series"
  const config = { displayModeBar: false, responsive: true };

  /** Put the theme's colours in place of the style's variables. */
  function themed(value, style) {
    if (typeof value === "string") {
      return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => themed(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
    }
    return value;
  }

  const WITHOUT_AXES = new Set([
    "pie", "sunburst", "treemap", "icicle", "funnelarea", "table", "indicator", "parcoords", "parcats", "sankey",
  ]);

  /** The axes that a figure has, named in its layout or not. */
  function axesOf(figure) {
    const named = Object.keys(figure.layout).filter((key) => /^[xy]axis\d*$/.test(key));
    return figure.data.every((trace) => WITHOUT_AXES.has(trace.type)) ? named : new Set(["xaxis", "yaxis", ...named]);
  }

  function layoutOf(figure, style) {
    const colour = (name) => style.getPropertyValue(name).trim();
    const layout = themed(figure.layout, style);
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--ink") };
    for (const name of axesOf(figure)) {
      const soft = { ...font, color: colour("--soft") };
      layout[name] = {
        automargin: true, zerolinecolor: colour("--rule"), gridcolor: colour("--grid"), linecolor: colour("--rule"), tickcolor: colour("--rule"), fixedrange: true,
        ...layout[name],
      };
      if (layout[name].type !== "category") layout[name].tickfont = { ...soft, size: 12 };
      if (layout[name].title) layout[name].title.font = soft;
    }
    return {
      ...layout, font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: {
        align: "left", namelength: -1, bgcolor: colour("--raised"), bordercolor: colour("--guide"),
        font: { ...font, size: 12 },
      },
    };
  }

  function draw(id) {
    const plot = byId(id);
    const { figure, toggles } = data.charts[id];
    const style = getComputedStyle(root);
    const group = id.split("-").slice(0, 2).join("-");
    const traces = themed(figure.data, style).map((trace) => ({
      ...trace,
      visible: !(toggles && trace.meta?.series && hidden.has(`${group} ${trace.meta.series}`)),
    }));
    const layout = layoutOf(figure, style);
    if (root.classList.contains("printing")) layout.width = plot.clientWidth; // by itself it would keep the screen's
    return Plotly.react(plot, traces, layout, config).then(() => label(plot));
  }

  // ---- labels beside the marks: where there is room, nearest first --------------------------------------------------

  const canvas = document.createElement("canvas").getContext("2d");
  const overlap = (a, b) => a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;

  function box(x, y, width, height) {
    return { x0: x - width / 2, x1: x + width / 2, y0: y - height / 2, y1: y + height / 2 };
  }

  /** Every mark that is drawn, in pixels, with its interval; the last of a line has its label. */
  function marks(plot) {
    const { xaxis, yaxis } = plot._fullLayout;
    const found = [];
    plot._fullData.forEach((trace, index) => {
      if (trace.visible !== true || !plot.data[index].meta?.series) return;
      const meta = plot.data[index].meta;
      trace.x.forEach((x, point) => {
        const at = { x: xaxis.d2p(x), y: yaxis.d2p(trace.y[point]) };
        const bars = trace.error_y?.array
          ? { x0: at.x - 1, x1: at.x + 1, y0: yaxis.d2p(trace.y[point] + trace.error_y.array[point]),
              y1: yaxis.d2p(trace.y[point] - trace.error_y.arrayminus[point]) }
          : null;
        const last = point === trace.x.length - 1;
        found.push({ ...at, trace, bars, label: meta.direct && last ? meta.label : null, value: [x, trace.y[point]] });
      });
    });
    return found;
  }

  /** Every line that is drawn, as small boxes along it: labels cross it only where there is no better place. */
  function strokes(plot) {
    const { xaxis, yaxis } = plot._fullLayout;
    const found = [];
    for (const trace of plot._fullData) {
      if (trace.visible !== true || !trace.mode?.includes("lines")) continue;
      const at = Array.from(trace.x, (x, index) => [xaxis.d2p(x), yaxis.d2p(trace.y[index])]);
      const shape = trace.line.shape;
      const path = at.flatMap(([x, y], index) => {
        if (!index || shape === "linear") return [[x, y]];
        return [shape === "hv" ? [x, at[index - 1][1]] : [at[index - 1][0], y], [x, y]];
      });
      for (let index = 1; index < path.length; index += 1) {
        const [[x0, y0], [x1, y1]] = [path[index - 1], path[index]];
        const pieces = Math.ceil(Math.hypot(x1 - x0, y1 - y0) / 6);
        for (let piece = 0; piece <= pieces; piece += 1) {
          found.push(box(x0 + ((x1 - x0) * piece) / pieces, y0 + ((y1 - y0) * piece) / pieces, 3, 3));
        }
      }
    }
    return found;
  }

  /** Whether the way from a mark to its label's place leads over another mark, unless that stands where it starts. */
  function leads(mark, place, dot) {
    return [0.3, 0.4, 0.5, 0.6, 0.7, 0.8].some((part) => {
      const [x, y] = [mark.x + (place.x - mark.x) * part, mark.y + (place.y - mark.y) * part];
      return overlap(box(x, y, 2, 2), dot) && !overlap(box(mark.x, mark.y, 2, 2), dot);
    });
  }

  function candidates(mark, width, height) {
    const found = [];
    for (const reach of [8, 20, 34, 50, 70]) {
      for (const [dx, dy] of [[1, 0], [-1, 0], [1, -0.7], [1, 0.7], [-1, -0.7], [-1, 0.7], [0, -1], [0, 1]]) {
        const x = mark.x + dx * (reach + width / 2);
        const y = mark.y + dy * (reach + height / 2);
        found.push({ x, y, reach, box: box(x, y, width, height) });
      }
    }
    return found;
  }

  function label(plot) {
    if (data.charts[plot.id].foreign) return undefined;
    const all = marks(plot);
    if (!all.some((mark) => mark.label !== null)) return undefined;
    const { _size: size, font, xaxis } = plot._fullLayout;
    canvas.font = `${font.size - 1}px ${font.family}`;
    const dots = all.map((mark) => box(mark.x, mark.y, 11, 11));
    const lines = strokes(plot);
    const placed = [];
    const annotations = [];
    for (const mark of all.filter((one) => one.label !== null)) {
      const width = canvas.measureText(mark.label).width + 4;
      let best = null;
      for (const one of candidates(mark, width, 14)) {
        const inside = one.box.x0 >= 0 && one.box.x1 <= size.w + 8 && one.box.y0 >= -4 && one.box.y1 <= size.h;
        if (!inside || [...placed, ...dots].some((other) => overlap(one.box, other))) continue;
        const crossed = all.filter((other) => other.bars && overlap(one.box, other.bars)).length;
        const through = dots.filter((dot, index) => all[index] !== mark && leads(mark, one, dot)).length;
        const cost = one.reach + 40 * through + 14 * crossed + 2 * lines.filter((line) => overlap(one.box, line)).length;
        if (!best || cost < best.cost) best = { ...one, cost };
      }
      if (!best) continue; // the legend and the box beside the mark name it
      placed.push(best.box);
      annotations.push({
        x: xaxis.type === "log" ? Math.log10(mark.value[0]) : mark.value[0], y: mark.value[1],
        ax: best.x - mark.x, ay: best.y - mark.y, text: mark.trace.name, showarrow: true,
        arrowhead: 0, arrowwidth: 0.8, arrowcolor: best.reach < 20 ? "rgba(0,0,0,0)" : xaxis.title.font.color, standoff: 5,
        font: { size: font.size - 1, color: font.color }, borderpad: 0,
        bgcolor: `${getComputedStyle(root).getPropertyValue("--ground").trim()}b0`,
      });
    }
    return Plotly.relayout(plot, { annotations });
  }

  /** One chart after the other, with a breath between, so that the page can be used meanwhile. */
  async function drawAll() {
    for (const id of Object.keys(data.charts)) {
      await draw(id);
      await new Promise((next) => setTimeout(next));
    }
    root.dataset.drawn = Object.keys(data.charts).length;
  }

  function drawNow() {
    for (const id of Object.keys(data.charts)) draw(id);
  }

  let resized = null;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => Object.keys(data.charts).forEach((id) => label(byId(id))), 250);
  });

  for (const chip of document.querySelectorAll(".chip[data-series]")) {
    chip.addEventListener("click", () => {
      const { group, series } = chip.dataset;
      const key = `${group} ${series}`;
      const shown = hidden.delete(key);
      if (!shown) hidden.add(key);
      for (const other of document.querySelectorAll(".chip[data-series]")) {
        if (other.dataset.group === group && other.dataset.series === series) other.setAttribute("aria-pressed", shown);
      }
      for (const [id, chart] of Object.entries(data.charts)) if (chart.toggles && id.startsWith(`${group}-`)) draw(id);
    });
  }

  // ---- theme --------------------------------------------------------------------------------------------------------

  const toggle = byId("theme");

  function setTheme(theme) {
    root.dataset.theme = theme;
    toggle.textContent = theme === "dark" ? "light theme" : "dark theme";
  }

  setTheme(root.dataset.theme);
  toggle.addEventListener("click", () => {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("ftbench-theme", root.dataset.theme); } catch { /* then it holds for this page alone */ }
    drawNow();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    setTheme(event.matches ? "dark" : "light");
    drawNow();
  });
  let onScreen = null;
  addEventListener("beforeprint", () => {
    onScreen = root.dataset.theme;
    root.classList.add("printing");
    setTheme("light");
    drawNow();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    setTheme(onScreen);
    drawNow();
    for (const id of Object.keys(data.charts)) Plotly.Plots.resize(byId(id));
  });

  // ---- tables -------------------------------------------------------------------------------------------------------

  function sortBy(table, column, heading) {
    const numbers = heading.classList.contains("number");
    const best = heading.dataset.better === "more" ? "descending" : "ascending";
    const was = heading.getAttribute("aria-sort");
    const now = was ? (was === "ascending" ? "descending" : "ascending") : best;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", now);
    const value = (row) => row.cells[column].dataset.sort;
    const sign = now === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // nothing stands last
      return sign * (numbers ? Number(a) - Number(b) : a.localeCompare(b));
    });
    table.tBodies[0].append(...rows);
  }

  for (const table of document.querySelectorAll("table.sheet")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => sortBy(table, column, heading));
      if (heading.classList.contains("wide")) for (const row of table.tBodies[0].rows) row.cells[column].classList.add("wide");
    });
  }
  for (const box of document.querySelectorAll(".widen")) {
    box.addEventListener("change", () => byId(box.dataset.table).classList.toggle("all", box.checked));
  }

  // ---- replies ------------------------------------------------------------------------------------------------------

  const PAGE = innerWidth < 600 ? 4 : 12; // prompts shown at once

  function browse(sets) {
    const state = { set: 0, seed: sets[0].seeds[0], words: "", shown: PAGE, off: new Set() };
    const search = byId("replies-search");
    const choose = byId("replies-set");
    const seeds = byId("replies-seed");

    /** The replies of a card by column, under the chosen seed, or under the only one that the row has. */
    function answers(card) {
      const found = new Map();
      for (const reply of card.replies) {
        if (reply[1] === state.seed || !found.has(reply[0])) found.set(reply[0], reply);
      }
      return [...found.values()].filter(([column]) => !state.off.has(sets[state.set].columns[column].label));
    }

    function matches(card) {
      const texts = [card.prompt, card.base ?? "", ...answers(card).map((reply) => reply[2])];
      return !state.words || texts.some((text) => text.toLowerCase().includes(state.words));
    }

    function marked(tag, text) {
      const made = element(tag);
      const plain = text.toLowerCase();
      let from = 0;
      // Where lower case has another length than the text, places in it are not places in the text.
      for (let at; state.words && plain.length === text.length && (at = plain.indexOf(state.words, from)) >= 0;) {
        made.append(text.slice(from, at), element("mark", "", text.slice(at, at + state.words.length)));
        from = at + state.words.length;
      }
      made.append(text.slice(from));
      return made;
    }

    function named(column) {
      const made = element("span", "named");
      const glyph = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      glyph.setAttribute("class", "glyph");
      glyph.setAttribute("aria-hidden", "true");
      glyph.style.color = column.colour;
      const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
      use.setAttribute("href", `#symbol-${column.symbol}`);
      glyph.append(use);
      made.append(glyph, column.label);
      return made;
    }

    function answer(head, text, verdict) {
      const made = element("div", "answer");
      const top = element("header");
      top.append(head);
      if (verdict) top.append(verdict);
      made.append(top, text.trim() ? marked("p", text) : element("p", "caption", "(empty)"));
      return made;
    }

    function cardOf(card) {
      const made = element("article", "card");
      const title = marked("h3", card.prompt);
      if (card.kind) title.append(element("small", "", card.kind));
      const grid = element("div", "answers");
      if (card.base !== null) grid.append(answer(element("span", "", "untouched model"), card.base));
      for (const [column, , text, onTopic, score] of answers(card)) {
        const verdict = element("span", `status ${onTopic ? "ok" : "bad"}`, onTopic ? "adheres" : "strays");
        verdict.title = `the judge's score is ${score.toFixed(2)}`;
        grid.append(answer(named(sets[state.set].columns[column]), text, verdict));
      }
      made.append(title, grid);
      return made;
    }

    function show() {
      const all = sets[state.set].cards;
      const found = all.filter(matches);
      byId("replies-cards").replaceChildren(...found.slice(0, state.shown).map(cardOf));
      const many = Math.min(state.shown, found.length);
      byId("replies-count").textContent = state.words
        ? `${many} of ${found.length} prompts found, of ${all.length}.`
        : `${many} of ${all.length} prompts.`;
      byId("replies-more").hidden = found.length <= state.shown;
    }

    function choices() {
      const set = sets[state.set];
      if (!set.seeds.includes(state.seed)) state.seed = set.seeds[0];
      byId("replies-seed-label").hidden = set.seeds.length < 2;
      seeds.replaceChildren(...set.seeds.map((seed) => new Option(seed, seed, false, seed === state.seed)));
      const all = element("button", "chip", state.off.size ? "show all" : "hide all");
      all.type = "button";
      all.addEventListener("click", () => {
        state.off = new Set(state.off.size ? [] : set.columns.map((column) => column.label));
        choices();
        show();
        byId("replies-columns").querySelector("button").focus();
      });
      byId("replies-columns").replaceChildren(all, ...set.columns.map((column) => {
        const chip = element("button", "chip");
        chip.type = "button";
        chip.setAttribute("aria-pressed", !state.off.has(column.label));
        chip.append(named(column));
        chip.addEventListener("click", () => {
          if (!state.off.delete(column.label)) state.off.add(column.label);
          chip.setAttribute("aria-pressed", !state.off.has(column.label));
          all.textContent = state.off.size ? "show all" : "hide all";
          show();
        });
        return chip;
      }));
    }

    let typed = null;
    search.addEventListener("input", () => {
      clearTimeout(typed);
      typed = setTimeout(() => {
        Object.assign(state, { words: search.value.trim().toLowerCase(), shown: PAGE });
        show();
      }, 120);
    });
    choose?.addEventListener("change", () => {
      Object.assign(state, { set: Number(choose.value), shown: PAGE });
      choices();
      show();
    });
    seeds.addEventListener("change", () => {
      state.seed = Number(seeds.value);
      show();
    });
    byId("replies-more").addEventListener("click", () => {
      state.shown += PAGE;
      show();
    });
    choices();
    show();
  }

  if (data.replies) browse(data.replies);
  drawAll();
})();
