// What is chosen, kept in the page's address, so that a link shows the same; and the page's start.
const view = {
  arm: data.reference,
  loss: null,
  cut: null,
  shown: usual(data.reference, null),
  seeds: new Set(seedNames),
  scales: {},
  zoom: null,
};
const same = (a, b) => a.size === b.size && [...a].every(each => b.has(each));

/** ``#arm=none&loss=d_loss&cut=fakes&show=none&seed=0&log=score&zoom=10..90``: only what is not as usual. */
function link() {
  const kept = new URLSearchParams();
  if (view.arm !== data.reference) kept.append("arm", view.arm);
  if (view.loss !== null) kept.append("loss", view.loss);
  if (view.cut !== null) kept.append("cut", view.cut);
  if (!same(view.shown, usual(view.arm, view.cut)))
    for (const name of view.shown.size ? view.shown : [""]) kept.append("show", name);
  if (view.seeds.size !== seedNames.length)
    for (const seed of view.seeds.size ? view.seeds : [""]) kept.append("seed", seed);
  for (const [tag, scale] of Object.entries(view.scales)) kept.append(scale, tag);
  if (view.zoom) kept.append("zoom", view.zoom.map(step => Number(step.toPrecision(6))).join(".."));
  return `#${kept}`;
}
/** The view of an address; what it names that is not here is left out. */
function read(hash) {
  const kept = new URLSearchParams(hash.slice(1)),
    among = (value, known) => (known.has(value) ? value : null);
  const tags = new Set(Object.keys(data.curves)),
    zoom = (kept.get("zoom") ?? "").split("..").map(Number);
  const picked = (key, known, otherwise) =>
    kept.has(key) ? new Set(kept.getAll(key).filter(each => known.has(each))) : otherwise;
  const arm = among(kept.get("arm") ?? bare(hash), byName) ?? data.reference;
  const cut = among(kept.get("cut"), switchOf);
  return {
    arm,
    loss: among(kept.get("loss"), new Set(losses)),
    cut,
    shown: picked("show", byName, usual(arm, cut)),
    seeds: picked("seed", new Set(seedNames), new Set(seedNames)),
    scales: Object.fromEntries(
      ["log", "linear"].flatMap(scale =>
        kept
          .getAll(scale)
          .filter(tag => tags.has(tag))
          .map(tag => [tag, scale]),
      ),
    ),
    zoom: zoom.length === 2 && zoom[1] > zoom[0] ? zoom : null,
  };
}
/** ``#none``: an arm alone, as the links of older pages have it. */
function bare(hash) {
  try {
    return decodeURIComponent(hash.slice(1));
  } catch {
    return null;
  }
}

function change(made) {
  const isNew = made.arm !== undefined && made.arm !== view.arm;
  if (isNew && !view.shown.has(made.arm)) made.shown = new Set([...(made.shown ?? view.shown), made.arm]);
  Object.assign(view, made);
  history.replaceState(null, "", link());
  show(isNew);
}
const chooseLoss = loss => change({loss: view.loss === loss ? null : loss});
function chooseCut(name) {
  if (view.cut === name) return change({cut: null});
  change({cut: name, shown: new Set([...view.shown, ...Object.keys(switchOf.get(name).flips)])});
}
function show(isNew) {
  const arm = byName.get(view.arm);
  showFlow(arm, isNew);
  showArms();
  showCurves();
  if (isNew) showDetail(arm);
}
function redraw() {
  lightPicture();
  showArms();
  showCurves();
  drawDistance(byName.get(view.arm));
}

function start() {
  byId("title").textContent = `${data.recipe}: what did the cut change?`;
  const verdicts = data.arms.map(arm => arm.verdict).filter(verdict => verdict !== "reference");
  const counts = [...new Set(verdicts)].map(kind => `${verdicts.filter(v => v === kind).length} ${words(kind)}`);
  byId("about").textContent =
    `${data.arms.length} arms, seeds ${data.seeds.join(", ")}, against ${data.reference}` +
    (counts.length ? `: ${listed(counts)}.` : ".");
  flowChoosers();
  armsTable();
  curvesSection();
  const rest = [...data.notes, ...data.left_out.map(each => `left out: ${each.path}: ${each.reason}`)];
  if (rest.length)
    byId("rest").append(
      make("h2", {}, "Notes"),
      make(
        "ul",
        {},
        rest.map(note => make("li", {}, note)),
      ),
    );
  Object.assign(view, read(location.hash));
  show(true);
  byId("picture").addEventListener("click", event => {
    const part = event.target.closest?.(".cut, .edge[data-loss], .node"),
      act = part && meantBy(part);
    if (act) act();
  });
  addEventListener("keydown", event => {
    if (event.key === "Escape" && (view.loss ?? view.cut) !== null) change({loss: null, cut: null});
  });
  addEventListener("hashchange", () => {
    Object.assign(view, read(location.hash));
    show(true);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const paper = on => () => {
    document.documentElement.classList.toggle("paper", on);
    redraw();
  };
  addEventListener("beforeprint", paper(true));
  addEventListener("afterprint", paper(false));
}
start();
