// The table of arms, and what is known of the chosen one.
const otherwise = arm =>
  arm.expected && arm.expected !== arm.verdict
    ? make("span", {class: "otherwise"}, `expected ${words(arm.expected)}`)
    : null;
const times = ratio => (ratio === null || ratio === undefined ? "–" : ratio.toFixed(2) + " ×");
const kept = contract =>
  !contract ? "–" : !contract.broken ? "kept" : contract.flipped.length ? "broken" : "unexpected";
const bytes = n =>
  n === null || n === undefined
    ? "–"
    : n >= 1 << 20
      ? (n / (1 << 20)).toFixed(1) + " MiB"
      : Math.round(n / 1024) + " KiB";
const told = value => (value === null ? "not recorded" : value ? "equal" : "NOT equal");
function table(caption, heading, rows) {
  return make(
    "div",
    {class: "wide"},
    make(
      "table",
      {},
      make("caption", {}, make("span", {}, caption)),
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          heading.map(text => make("th", {scope: "col"}, text)),
        ),
      ),
      make(
        "tbody",
        {},
        rows.map(([first, ...rest]) =>
          make(
            "tr",
            {},
            make("th", {scope: "row"}, first),
            rest.map(text => make("td", {class: "n"}, text)),
          ),
        ),
      ),
    ),
  );
}
function since(first) {
  if (!first) return "";
  return first.exact ? `step ${first.step}` : `between ${first.after} and ${first.step}`;
}

function armsTable() {
  const metric = Object.keys(data.metrics_declared).find(name => data.arms.some(arm => arm.metrics[name]));
  const heading = ["arm", "verdict", "contract", "what happened", metric ?? "metric", "differs from", "step time"];
  const rows = data.arms.map(arm =>
    make(
      "tr",
      {"data-arm": arm.name},
      make(
        "th",
        {scope: "row"},
        toggle(arm.name, () => change({arm: arm.name}), {class: "name"}),
        make("span", {class: "flips-it"}),
      ),
      make("td", {class: `verdict ${arm.verdict}`}, words(arm.verdict), otherwise(arm)),
      make("td", {"data-label": heading[2]}, kept(arm.contract)),
      make("td", {}, arm.sentence),
      make(
        "td",
        {class: "n", "data-label": heading[4]},
        Object.values(arm.metrics[metric]?.values ?? {})
          .map(v => number(v))
          .join(" "),
      ),
      make("td", {class: "n", "data-label": heading[5]}, since(arm.first_difference)),
      make("td", {class: "n", "data-label": heading[6]}, times(arm.cost.step_time_ratio)),
    ),
  );
  byId("arms").append(
    make(
      "table",
      {"aria-labelledby": "arms-title"},
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          heading.map(text => make("th", {scope: "col"}, text)),
        ),
      ),
      make("tbody", {}, rows),
    ),
  );
  byId("arms").addEventListener("keydown", event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key],
      buttons = [...byId("arms").querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (step && next) {
      event.preventDefault();
      next.focus();
    }
  });
}
function showArms() {
  const flips = switchOf.get(view.cut)?.flips ?? {};
  byId("arms").classList.toggle("lit", Object.keys(flips).length > 0);
  for (const row of byId("arms").querySelectorAll("tr[data-arm]")) {
    const {arm} = row.dataset;
    row.classList.toggle("chosen", arm === view.arm);
    row.classList.toggle("lit", arm in flips);
    const button = row.querySelector("button");
    press(button, arm === view.arm);
    button.replaceChildren(swatch(styleOf(arm)), arm);
    row.querySelector(".flips-it").textContent = arm in flips ? `${view.cut}: ${flips[arm]}` : "";
  }
}

function metricsTable(arm) {
  const seeds = values =>
    Object.values(values ?? {})
      .map(v => number(v))
      .join(" ");
  const rows = Object.entries(arm.metrics)
    .filter(([name]) => data.metrics_declared[name])
    .map(([name, m]) => {
      const d = m.difference;
      if (arm === reference) return [name, seeds(m.values)];
      const range = d ? `${number(d.low, true)} to ${number(d.high, true)}` : "–";
      return [
        name,
        seeds(m.values),
        seeds(reference.metrics[name]?.values),
        d ? number(d.mean, true) : "–",
        range,
        d ? "± " + number(d.margin) : "–",
        d ? words(d.conclusion) : "–",
      ];
    });
  if (!rows.length) return null;
  if (arm === reference) return table("Declared metrics by seed.", ["metric", arm.name], rows);
  return table(
    "Declared metrics by seed, and the paired difference. Different: the 95% interval lies outside the margin. " +
      "Same: the 90% interval lies inside.",
    ["metric", arm.name, data.reference, "difference", "95% interval", "margin", "conclusion"],
    rows,
  );
}
function costTable(arm) {
  const alone = arm === reference,
    rows = [
      ["step time", v => number(v * 1e3) + " ms", "step_time"],
      ["saved for backward, first batch", bytes, "saved_bytes"],
      ["graph nodes, first batch", number, "graph_nodes"],
      ["peak memory", bytes, "peak_memory"],
    ]
      .filter(([, , key]) => arm.cost[key] !== null && arm.cost[key] !== undefined)
      .map(([name, show, key]) => [
        name,
        show(arm.cost[key]),
        ...(alone
          ? []
          : [reference.cost[key] === null ? "–" : show(reference.cost[key]), times(arm.cost[key + "_ratio"])]),
      ]);
  return rows.length
    ? table(
        "Step times: " + arm.cost.step_time_is + ".",
        ["", arm.name, ...(alone ? [] : [data.reference, "ratio"])],
        rows,
      )
    : null;
}
function weights(arm) {
  if (arm === reference) return null;
  const items = [],
    first = arm.first_difference,
    pair = arm.paired;
  if (first)
    items.push(
      `The weights differ ${first.exact ? "from" : ""} ${since(first)} on (seed ${first.seed}), ` +
        `first in ${first.tensor}; ${first.tensors} of ${first.of} tensors at that step.`,
    );
  else if (pair) items.push("No fingerprint differs.");
  if (pair)
    items.push(
      `Until then: initial weights ${told(pair.weights)}, data order ${told(pair.data)}, ` +
        `random streams ${told(pair.random)}.`,
    );
  const angles = Object.entries(arm.gradient_cosine).map(([group, c]) => `${group} ${number(c)}`);
  if (angles.length) items.push(`Cosine with the reference's gradient at the first step: ${angles.join(", ")}.`);
  const far = arm.distance.filter(([, v]) => v > 0);
  if (far.length > 1)
    items.push(
      `Distance of the weights from the reference's, over their norm: ${number(far[0][1])} at step ${far[0][0]}, ` +
        `${number(far.at(-1)[1])} at step ${far.at(-1)[0]}.`,
    );
  return make(
    "div",
    {},
    make("h3", {}, "Weights and gradients"),
    make(
      "ul",
      {},
      items.map(item => make("li", {}, item)),
    ),
    far.length > 1
      ? make(
          "div",
          {class: "charts"},
          make(
            "figure",
            {id: "distance"},
            make("figcaption", {}, "distance of the weights"),
            make("div", {class: "plot", role: "img", "aria-label": items.at(-1)}),
          ),
        )
      : null,
  );
}
/** The distance of an arm's weights from the reference's: drawn once its place is on the page. */
let distance = null;
function drawDistance(arm) {
  distance?.destroy();
  distance = null;
  const box = document.querySelector("#distance .plot");
  if (!box) return;
  const far = arm.distance.filter(([, v]) => v > 0),
    [steps, values] = [far.map(p => p[0]), far.map(p => p[1])];
  const curve = {
    name: arm.name,
    steps,
    mean: values,
    low: values,
    high: values,
    seeds: {},
    ...styleOf(arm.name),
    alpha: 1,
  };
  distance = lineChart(box, [curve], {
    tag: "distance",
    log: Math.max(...values) > 30 * Math.min(...values),
    zoom: null,
  });
}
function samples(arm) {
  const shown = [reference, ...(arm === reference ? [] : [arm])].filter(each => data.samples[each.name]);
  if (!shown.length) return null;
  const missing = file =>
    make(
      "p",
      {class: "missing soft"},
      `${file} is not beside this page: the folder was left where the page was written.`,
    );
  return make(
    "div",
    {},
    make("h3", {}, "Samples"),
    make(
      "div",
      {class: "samples"},
      shown.map(each => {
        const file = data.samples[each.name],
          url = file.split("/").map(encodeURIComponent).join("/");
        const image = make("img", {loading: "lazy", src: url, alt: `a grid of samples of ${each.name}`});
        image.addEventListener("error", () => image.replaceWith(missing(file)));
        return make("figure", {}, image, make("figcaption", {}, each.name));
      }),
    ),
  );
}
function brokenContract(arm) {
  if (!arm.contract?.broken) return null;
  const {broken, flipped} = arm.contract;
  const by = flipped.length ? ` by stop.${flipped.join(", stop.")}` : ", though no boundary is flipped";
  return make("p", {}, `Contract broken${by}: ${broken}.`);
}
function showDetail(arm) {
  const stops = Object.entries(arm.stop)
    .map(([name, choice]) => `stop.${name}=${choice}`)
    .join(" ");
  byId("detail").replaceChildren(
    ...[
      make(
        "h2",
        {id: "arm-title", tabindex: "-1"},
        `${arm.name}: `,
        make("span", {class: `verdict ${arm.verdict}`}, words(arm.verdict), otherwise(arm)),
      ),
      make("p", {}, arm.sentence),
      make("p", {class: "soft"}, make("code", {}, stops)),
      brokenContract(arm),
      arm.because.length
        ? make(
            "ul",
            {},
            arm.because.map(reason => make("li", {}, reason)),
          )
        : null,
      make("h3", {}, "Metrics"),
      metricsTable(arm),
      weights(arm),
      make("h3", {}, "Cost"),
      costTable(arm),
      samples(arm),
      make("h3", {}, "Runs"),
      make(
        "ul",
        {},
        arm.runs.map(run =>
          make("li", {}, `seed ${run.seed}: ${run.status} after ${run.steps} steps, `, make("code", {}, run.path)),
        ),
      ),
    ].filter(Boolean),
  );
  drawDistance(arm);
}
