// The curves: which arms and seeds are drawn, scales, zoom, and the numbers as CSV.
const charts = new Map(); // by tag: what is drawn there
const order = new Map(data.arms.map((arm, k) => [arm.name, k]));
const seedNames = data.seeds.map(String);
const MANY = 10;

/** Arms that are drawn unasked: all; of many, the reference, the first with other weights, and what is chosen. */
function usual(arm, cut) {
  const names = data.arms.map(each => each.name);
  if (names.length <= MANY) return new Set(names);
  const others = data.arms.filter(each => each !== reference && each.verdict !== "identical").map(each => each.name);
  const flips = Object.keys(switchOf.get(cut)?.flips ?? {});
  return new Set([data.reference, ...others.slice(0, MANY - 1), arm, ...flips]);
}
const lit = () => (view.cut === null ? null : new Set(Object.keys(switchOf.get(view.cut).flips)));
/** How an arm is drawn: the reference in ink; every other by a colour and dashes of its own. */
function styleOf(name) {
  const k = order.get(name) - 1,
    flips = lit(),
    strong = name === data.reference || name === view.arm;
  const alpha = flips === null || flips.has(name) || name === data.reference ? 1 : 0.18;
  const width = name === view.arm && name !== data.reference ? 3 : strong || flips?.has(name) ? 2.2 : 1.4;
  return k < 0
    ? {ink: colour("--ink"), dash: [], width, alpha}
    : {ink: colour(`--c${(k % 7) + 1}`), dash: DASHES[(k + 1) % DASHES.length], width, alpha};
}
/** Mean, lowest and highest over the seeds that are switched on, at the steps that all of these have. */
function curveOf(tag, name) {
  const found = data.curves[tag][name];
  if (!found) return null;
  const grid = data.grids[found.grid],
    all = Object.entries(found.seeds).filter(([seed]) => view.seeds.has(seed));
  const kept = all.length ? [...grid.keys()].filter(k => all.every(([, values]) => values[k] !== null)) : [];
  if (!kept.length) return null;
  const seeds = Object.fromEntries(all.map(([seed, values]) => [seed, kept.map(k => values[k])]));
  const at = f =>
    kept.map((_, k) => {
      const row = Object.values(seeds).map(values => values[k]);
      return row.every(finite) ? f(row) : row.find(v => !finite(v));
    });
  return {
    name,
    steps: kept.map(k => grid[k]),
    seeds,
    mean: at(row => row.reduce((sum, v) => sum + v, 0) / row.length),
    low: at(row => Math.min(...row)),
    high: at(row => Math.max(...row)),
  };
}
function curvesOf(tag) {
  // what is to lie on top comes last
  const weight = name => (name === view.arm ? 4 : 0) + (name === data.reference ? 2 : 0) + (lit()?.has(name) ? 1 : 0);
  const names = data.arms.map(arm => arm.name).filter(name => view.shown.has(name));
  return names
    .map(name => curveOf(tag, name))
    .filter(Boolean)
    .map(curve => ({...curve, ...styleOf(curve.name)}))
    .sort((a, b) => weight(a.name) - weight(b.name));
}
const isDots = curves => curves.every(curve => curve.steps.length === 1);
function isLog(tag, curves) {
  if (tag in view.scales) return view.scales[tag] === "log";
  const values = curves.flatMap(curve => [...curve.low, ...curve.high]).filter(finite);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity),
    high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return low > 0 && high > 30 * low;
}

function curvesSection() {
  byId("shown").append(
    make("span", {}, "arms"),
    ...data.arms.map(arm =>
      toggle(arm.name, () => change({shown: flipped(view.shown, arm.name)}), {"data-shown": arm.name}),
    ),
    ...(data.arms.length > 3
      ? [
          make(
            "button",
            {type: "button", id: "all-arms", onclick: () => change({shown: new Set(order.keys())})},
            "all",
          ),
          make(
            "button",
            {type: "button", id: "no-arms", onclick: () => change({shown: new Set([data.reference])})},
            "reference alone",
          ),
        ]
      : []),
  );
  const end = which => make("input", {type: "number", id: `zoom-${which}`, "aria-label": `zoom: ${which} step`});
  byId("tools").append(
    ...(seedNames.length > 1
      ? [
          make("span", {}, "seeds"),
          ...seedNames.map(seed =>
            toggle(seed, () => change({seeds: flipped(view.seeds, seed)}), {
              "data-seed": seed,
              "aria-label": `seed ${seed}`,
            }),
          ),
        ]
      : []),
    make("span", {}, "steps"),
    end("first"),
    "to",
    end("last"),
    make("button", {type: "button", id: "reset", onclick: () => change({zoom: null})}, "whole length"),
    make("button", {type: "button", id: "csv", onclick: download}, "numbers as CSV"),
  );
  for (const input of byId("tools").querySelectorAll("input"))
    input.addEventListener("change", () => {
      const [first, last] = ["first", "last"]
        .map(which => byId(`zoom-${which}`))
        .map((field, k) => (field.value === "" ? wholeLength()[k] : Number(field.value)));
      change({zoom: last > first ? [first, last] : null});
    });
  for (const tag of Object.keys(data.curves)) byId("curves").append(frame(tag));
  const width = new ResizeObserver(() => {
    for (const {chart, box} of charts.values())
      if (box.clientWidth) chart.setSize({width: Math.max(200, box.clientWidth), height: chart.height});
  });
  width.observe(byId("curves"));
}
const flipped = (set, name) => {
  const other = new Set(set);
  if (!other.delete(name)) other.add(name);
  return other;
};
function wholeLength() {
  const grids = data.grids.filter(grid => grid.length);
  return [Math.min(...grids.map(grid => grid[0])), Math.max(...grids.map(grid => grid.at(-1)))];
}
function frame(tag) {
  const box = make("div", {class: "plot", tabindex: "0", role: "group", "aria-roledescription": "chart"});
  box.addEventListener("keydown", event => byKeys(event, tag));
  box.addEventListener("blur", () => charts.get(tag)?.chart.setCursor({left: -10, top: -10}));
  return make(
    "figure",
    {"data-tag": tag},
    make(
      "figcaption",
      {},
      tag,
      toggle(
        "log",
        () => {
          change({scales: {...view.scales, [tag]: isLog(tag, curvesOf(tag)) ? "linear" : "log"}});
        },
        {"aria-label": `${tag} on a logarithmic scale`},
      ),
    ),
    box,
  );
}

function showCurves() {
  for (const button of byId("shown").querySelectorAll("[data-shown]")) {
    press(button, view.shown.has(button.dataset.shown));
    button.replaceChildren(swatch(styleOf(button.dataset.shown)), button.dataset.shown);
  }
  for (const button of byId("tools").querySelectorAll("[data-seed]"))
    press(button, view.seeds.has(button.dataset.seed));
  byId("reset").disabled = view.zoom === null;
  (view.zoom ?? ["", ""]).forEach((step, k) => {
    byId(`zoom-${["first", "last"][k]}`).value = step === "" ? "" : Math.round(step);
  });
  for (const figure of byId("curves").children) drawFigure(figure, figure.dataset.tag);
  const thinned = Math.max(
    1,
    ...Object.values(data.curves).flatMap(arms => Object.values(arms).map(curve => curve.every)),
  );
  byId("legend").textContent = [
    "Mean over the seeds; bands from the lowest seed to the highest. " +
      `${data.reference}, the reference, is solid in ink.`,
    thinned > 1 ? `Of long curves every ${thinned}th point is here, and in the CSV.` : "",
    data.undrawn.length ? `Not drawn: ${data.undrawn.join(", ")}.` : "",
  ]
    .filter(Boolean)
    .join(" ");
}
function drawFigure(figure, tag) {
  const box = figure.querySelector(".plot"),
    curves = curvesOf(tag),
    log = isLog(tag, curves);
  charts.get(tag)?.chart.destroy();
  charts.delete(tag);
  box.replaceChildren();
  press(figure.querySelector("button"), log);
  const end = name => {
    const curve = curves.find(each => each.name === name);
    return curve ? `${name} ${number(curve.mean.at(-1))}` : "";
  };
  const told = [...new Set([data.reference, view.arm])].map(end).filter(Boolean).join("; ");
  box.setAttribute("aria-label", `${tag}, mean over the seeds at the end: ${told || "no arm is drawn"}`);
  if (!curves.length) return box.append(make("p", {class: "soft"}, "No arm that is drawn has it."));
  const given = {
    tag,
    log,
    zoom: view.zoom,
    rule: data.metrics_declared[tag],
    onzoom: zoom => change({zoom}),
    ontell: text => {
      if (document.activeElement === box) byId("read").textContent = text;
    },
  };
  const byOrder = (a, b) => order.get(a.name) - order.get(b.name);
  const chart = isDots(curves)
    ? dotChart(box, curves.sort(byOrder), {...given, onzoom: null})
    : lineChart(box, curves, given);
  charts.set(tag, {chart, box, curves});
}
function byKeys(event, tag) {
  const drawn = charts.get(tag),
    {key} = event;
  if (!drawn || event.ctrlKey || event.metaKey || event.altKey) return;
  const {chart} = drawn,
    steps = chart.data[0],
    dotted = isDots(drawn.curves),
    by = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[key];
  const [first, last] = [chart.scales.x.min, chart.scales.x.max],
    now = chart.cursor.left >= 0 ? chart.cursor.idx : null;
  if (by || key === "Home" || key === "End") {
    const seen = dotted ? steps : steps.filter(step => step >= first && step <= last);
    const from = now === null ? (by < 0 ? seen.length : -1) : seen.indexOf(steps[now]);
    const to = key === "Home" ? 0 : key === "End" ? seen.length - 1 : Math.min(Math.max(from + by, 0), seen.length - 1);
    const pos = chart.valToPos(seen[to], "x"),
      top = chart.bbox.height / devicePixelRatio / 2;
    chart.setCursor(dotted ? {left: 30, top: pos} : {left: pos, top});
  } else if (!dotted && (key === "+" || key === "=" || key === "-")) {
    const middle = now === null ? (first + last) / 2 : steps[now],
      half = (last - first) / (key === "-" ? 1 : 4),
      [a, b] = wholeLength();
    const zoom = [Math.max(a, middle - half), Math.min(b, middle + half)];
    change({zoom: zoom[0] <= a && zoom[1] >= b ? null : zoom});
  } else if (key === "0") change({zoom: null});
  else return;
  event.preventDefault();
}

/** Every point of the page: of all arms and seeds, also of those that are not drawn. */
function csv() {
  const cell = value => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value)),
    lines = ["metric,arm,seed,step,value"];
  for (const [tag, arms] of Object.entries(data.curves))
    for (const [arm, curve] of Object.entries(arms))
      for (const [seed, values] of Object.entries(curve.seeds))
        values.forEach((value, k) => {
          if (value !== null) lines.push([tag, arm, seed, data.grids[curve.grid][k], value].map(cell).join(","));
        });
  return lines.join("\n") + "\n";
}
function download() {
  const link = make("a", {
    href: URL.createObjectURL(new Blob([csv()], {type: "text/csv"})),
    download: `${data.recipe}.csv`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
