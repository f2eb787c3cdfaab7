// Charts by uPlot: lines over steps with a band over the seeds, and dots where a metric has one point only.
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const faded = (hex, part) =>
  part === 1
    ? hex
    : hex +
      Math.round(part * 255)
        .toString(16)
        .padStart(2, "0");
const finite = value => typeof value === "number" && Number.isFinite(value);
const DASHES = [[], [8, 3], [2, 3], [9, 3, 2, 3], [14, 4]];
const FONT = "11px system-ui, sans-serif";
const HEIGHT = 230;

/** Dots are far enough from the lines' widths to be told apart: the mean is large, seeds are small. */
const dots = (size, ink, fill) => ({show: true, size, width: 1.5, stroke: ink, fill});
const axis = more => ({
  stroke: colour("--soft"),
  font: FONT,
  grid: {stroke: colour("--line"), width: 1},
  ticks: {stroke: colour("--line"), width: 1, size: 4},
  gap: 4,
  ...more,
});
const labels = (chart, ticks) => ticks.map(tick => (tick === null ? "" : number(tick)));
/** As wide as the longest label; uPlot asks until the answer stays the same. */
function room() {
  let width = 50;
  return (chart, texts, index, cycle) => {
    if (cycle <= 1) width = 14 + Math.max(20, ...(texts ?? []).map(text => 6.3 * text.length));
    return width;
  };
}
/** On a logarithmic scale: powers of ten, at most six; within one decade 1, 2, 5. */
function decades(chart, index, low, high) {
  const from = Math.ceil(Math.log10(low) - 1e-9),
    to = Math.floor(Math.log10(high) + 1e-9),
    every = Math.max(1, Math.ceil((to - from) / 5)),
    found = [];
  for (let k = from; k <= to; k += every) found.push(10 ** k);
  if (found.length > 1) return found;
  return [from - 1, from]
    .flatMap(k => [1, 2, 3, 5, 7].map(d => d * 10 ** k))
    .filter(tick => tick >= low && tick <= high);
}
const valueAxis = isLog => ({values: labels, filter: (chart, ticks) => ticks, ...(isLog ? {splits: decades} : {})});
function valueRange(isLog) {
  return (chart, low, high) => {
    if (!finite(low) || !finite(high)) return isLog ? [1, 10] : [0, 1];
    if (isLog) return low === high ? [low / 2, high * 2] : [low * (low / high) ** 0.05, high * (high / low) ** 0.05];
    const spare = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - spare, high + spare];
  };
}

/**
 * Lines over steps.
 *
 * @param curves each {name, steps, mean, low, high, seeds: {seed: values}, ink, dash, width, alpha}
 * @param given {log, zoom: [first, last] or null, rule: with lines beyond which an arm is broken, onzoom, ontell}
 */
function lineChart(box, curves, given) {
  const steps = [...new Set(curves.flatMap(curve => curve.steps))].sort((a, b) => a - b);
  const at = new Map(steps.map((step, k) => [step, k])),
    drawn = [steps],
    series = [{}],
    bands = [];
  const spread = (curve, values) => {
    const line = new Array(steps.length).fill(null);
    curve.steps.forEach((step, k) => {
      if (finite(values[k]) && !(given.log && values[k] <= 0)) line[at.get(step)] = values[k];
    });
    return line;
  };
  const add = (values, style) =>
    drawn.push(values) && series.push({scale: "y", spanGaps: true, points: {show: false}, ...style}) - 1;
  for (const curve of curves) {
    const ink = faded(curve.ink, curve.alpha),
      point = curve.steps.length === 1;
    if (point)
      for (const values of Object.values(curve.seeds))
        add(spread(curve, values), {paths: () => null, points: dots(5, ink, "transparent")});
    else if (curve.low.some((low, k) => low !== curve.high[k])) {
      const high = add(spread(curve, curve.high), {width: 0}),
        low = add(spread(curve, curve.low), {width: 0});
      bands.push({series: [high, low], fill: faded(curve.ink, (curve.width > 2 ? 0.2 : 0.09) * curve.alpha)});
    }
    add(spread(curve, curve.mean), {
      stroke: ink,
      width: curve.width,
      dash: curve.dash,
      points: point ? dots(10, ink, ink) : {show: false},
    });
  }
  const whole = steps.length > 1 ? [steps[0], steps.at(-1)] : [steps[0] - 1, steps[0] + 1];
  return build(
    box,
    drawn,
    curves,
    given,
    {
      height: HEIGHT,
      series,
      bands,
      scales: {
        x: {time: false, range: () => given.zoom ?? whole},
        y: {distr: given.log ? 3 : 1, range: valueRange(given.log)},
      },
      axes: [axis({values: labels, size: 26}), axis({...valueAxis(given.log), size: room()})],
    },
    {
      values: steps,
      told: step => `step ${step}`,
      find: (curve, step) => nearest(curve.steps, step),
      apart: (curve, k, step) => (curve.steps[k] === step ? "" : ` (step ${curve.steps[k]})`),
    },
  );
}

/** A metric of one point: a row an arm, its seeds as rings and their mean as a dot. */
function dotChart(box, curves, given) {
  const rows = curves.map((_, k) => k),
    drawn = [rows],
    series = [{}];
  const value = v => (finite(v) && !(given.log && v <= 0) ? v : null);
  const add = (values, points) => drawn.push(values) && series.push({scale: "y", paths: () => null, points});
  curves.forEach((curve, k) => {
    const ink = faded(curve.ink, curve.alpha),
      only = v => rows.map(row => (row === k ? value(v) : null));
    for (const values of Object.values(curve.seeds)) add(only(values.at(-1)), dots(6, ink, "transparent"));
    add(only(curve.mean.at(-1)), dots(10, ink, ink));
  });
  const names = curves.map(curve => (curve.name.length > 18 ? `${curve.name.slice(0, 17)}…` : curve.name));
  return build(
    box,
    drawn,
    curves,
    given,
    {
      height: 44 + 22 * Math.max(2, curves.length),
      series,
      scales: {
        x: {time: false, ori: 1, dir: -1, range: () => [-0.6, curves.length - 0.4]},
        y: {ori: 0, dir: 1, distr: given.log ? 3 : 1, range: valueRange(given.log)},
      },
      axes: [
        axis({side: 3, splits: () => rows, values: (chart, ticks) => ticks.map(k => names[k]), size: room()}),
        axis({...valueAxis(given.log), scale: "y", side: 2, size: 26, space: 60}),
      ],
    },
    {
      values: rows,
      told: k => curves[k].name,
      find: (curve, k) => (curve === curves[k] ? curve.steps.length - 1 : -1),
      apart: () => "",
    },
  );
}

/** Where in ascending steps the one nearest to ``step`` stands; -1 outside of them. */
function nearest(steps, step) {
  if (!steps.length || step < steps[0] || step > steps.at(-1)) return -1;
  let low = 0,
    high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle;
    else high = middle;
  }
  return step - steps[low] <= steps[high] - step ? low : high;
}

function build(box, drawn, curves, given, options, x) {
  const tip = make("div", {class: "tip", "aria-hidden": "true"}),
    isLine = options.axes[0].side === undefined;
  tip.hidden = true;
  const limits = chart => {
    for (const side of ["broken_above", "broken_below"]) {
      const limit = given.rule?.[side],
        {min, max} = chart.scales.y;
      if (!(limit > min && limit < max)) continue;
      const pen = chart.ctx,
        {left, top, width, height} = chart.bbox,
        pos = chart.valToPos(limit, "y", true);
      pen.save();
      pen.strokeStyle = pen.fillStyle = colour("--bad");
      pen.lineWidth = devicePixelRatio;
      pen.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
      pen.beginPath();
      if (isLine) {
        pen.moveTo(left, pos);
        pen.lineTo(left + width, pos);
      } else {
        pen.moveTo(pos, top);
        pen.lineTo(pos, top + height);
      }
      pen.stroke();
      pen.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      pen.textAlign = isLine || pos > left + width / 2 ? "right" : "left";
      const [tx, ty] = isLine ? [left + width - 3, pos - 4 * devicePixelRatio] : [pos, top + 10 * devicePixelRatio];
      pen.fillText(words(side), tx, isLine && ty < top + 10 * devicePixelRatio ? pos + 12 * devicePixelRatio : ty);
      pen.restore();
    }
  };
  const tell = chart => {
    const {idx, left, top} = chart.cursor;
    tip.hidden = !(idx >= 0) || left < 0;
    if (tip.hidden) return;
    const read = readings(curves, x, x.values[idx]),
      where = reading => Math.abs(chart.valToPos(reading.mean, "y") - (isLine ? top : left));
    const near = [...read]
      .sort((a, b) => (finite(where(a)) ? where(a) : 1e9) - (finite(where(b)) ? where(b) : 1e9))
      .slice(0, 8);
    const height = each => (finite(each.mean) ? each.mean : Infinity); // as the curves lie, from top to bottom
    const shown = read.filter(each => near.includes(each)).sort((a, b) => height(b) - height(a) || 0);
    tip.replaceChildren(
      make("strong", {}, x.told(x.values[idx])),
      make(
        "table",
        {},
        make(
          "tbody",
          {},
          shown.map(each =>
            make(
              "tr",
              {},
              make("td", {}, swatch(each.curve)),
              make("th", {}, each.curve.name),
              make("td", {}, number(each.mean)),
              make("td", {}, each.low === each.high ? "" : `${number(each.low)} to ${number(each.high)}`),
              make("td", {class: "soft"}, each.said),
            ),
          ),
        ),
      ),
      ...(read.length > shown.length ? [make("span", {class: "soft"}, `and ${read.length - shown.length} more`)] : []),
    );
    const over = chart.over.getBoundingClientRect(),
      outer = box.getBoundingClientRect(),
      wide = tip.offsetWidth;
    const middle = over.left - outer.left + left,
      right = middle + 14 + wide <= outer.width ? middle + 14 : middle - 14 - wide;
    tip.style.left = `${Math.max(Math.min(right, innerWidth - outer.left - wide - 4), 4 - outer.left)}px`;
    tip.style.top = `${Math.min(over.top - outer.top + top + 14, options.height)}px`;
    given.ontell?.(
      `${given.tag}, ${x.told(x.values[idx])}: ` +
        shown.map(each => `${each.curve.name} ${number(each.mean)}`).join(", "),
    );
  };
  const zoomed = chart => {
    const {left, width} = chart.select;
    if (width > 3) given.onzoom?.([chart.posToVal(left, "x"), chart.posToVal(left + width, "x")]);
    if (width) chart.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
  };
  const chart = new uPlot(
    {
      width: Math.max(200, box.clientWidth),
      padding: [10, 18, 0, 0],
      legend: {show: false},
      ...options,
      cursor: {
        x: isLine,
        y: !isLine,
        points: {show: false},
        drag: {x: isLine && Boolean(given.onzoom), y: false, setScale: false},
        bind: {dblclick: () => () => given.onzoom?.(null)},
      },
      hooks: {draw: [limits], setCursor: [tell], setSelect: [zoomed]},
    },
    drawn,
    box,
  );
  box.append(tip);
  return chart;
}
/** What every curve is at ``value`` of the axis that runs. */
function readings(curves, x, value) {
  return curves
    .map(curve => ({curve, k: x.find(curve, value)}))
    .filter(each => each.k >= 0)
    .map(({curve, k}) => ({
      curve,
      mean: curve.mean[k],
      low: curve.low[k],
      high: curve.high[k],
      said:
        Object.values(curve.seeds)
          .map(values => number(values[k]))
          .join(" ") + x.apart(curve, k, value),
    }));
}
function swatch(curve) {
  return make(
    "svg",
    {class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true"},
    make("path", {
      d: "M0 5H26",
      fill: "none",
      stroke: curve.ink,
      "stroke-width": Math.max(2, curve.width),
      "stroke-dasharray": curve.dash.join(" "),
    }),
  );
}
