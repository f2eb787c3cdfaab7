// Which loss reaches what: the picture and the matrix of the chosen arm, with what is chosen in them lit.
const byName = new Map(data.arms.map(arm => [arm.name, arm]));
const reference = byName.get(data.reference);
const switchOf = new Map(data.switches.map(each => [each.name, each]));
const losses = [...new Set(data.arms.flatMap(arm => Object.keys(arm.flow.matrix ?? {})))];
const byId = id => document.getElementById(id);
const press = (button, on) => button.setAttribute("aria-pressed", String(on));
const listed = names => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);

function toggle(label, onclick, attributes = {}) {
  return make("button", {type: "button", "aria-pressed": "false", onclick, ...attributes}, label);
}
function flowChoosers() {
  if (losses.length)
    byId("losses").append(
      make("span", {}, "losses"),
      ...losses.map(loss =>
        toggle(
          [make("i", {class: "loss-mark", "data-loss": loss, "aria-hidden": "true"}), loss],
          () => chooseLoss(loss),
          {"data-loss": loss},
        ),
      ),
    );
  if (data.switches.length)
    byId("switches").append(
      make("span", {}, "cuts"),
      ...data.switches.map(each =>
        toggle(
          [
            `‖ ${each.choice === null ? each.name.split("/").at(-1) : each.name}`,
            each.choice === null ? null : make("small", {}, ` ${each.choice}`),
          ],
          () => chooseCut(each.name),
          {"data-cut": each.name, title: each.name},
        ),
      ),
    );
}

function showFlow(arm, isNew) {
  if (isNew) {
    byId("picture").replaceChildren(...picture(arm));
    for (const cut of byId("picture").querySelectorAll(".cut.can")) cut.prepend(target(cut));
    byId("matrix").replaceChildren(flowMatrix(arm));
  }
  for (const button of byId("losses").querySelectorAll("button")) press(button, button.dataset.loss === view.loss);
  for (const button of byId("switches").querySelectorAll("button")) press(button, button.dataset.cut === view.cut);
  lightPicture();
  lightMatrix();
  const said = [view.loss ? lossWords(view.loss, arm) : "", view.cut ? cutWords(switchOf.get(view.cut)) : ""].filter(
    Boolean,
  );
  if (!said.length && losses.length) said.push("Choose a loss or a cut, here or in the picture; Escape lets go of it.");
  if (said.join() !== byId("told").dataset.said) {
    byId("told").dataset.said = said.join();
    byId("told").replaceChildren(...said.map(text => make("p", {}, text)));
  }
  showFlips();
}

function picture(arm) {
  const index = data.picture[arm.name];
  if (index === undefined) {
    const why = arm.flow.matrix
      ? "No picture of this run is here."
      : "No flow was recorded: the run ended before its first batch did.";
    return [make("p", {class: "soft", id: "no-picture"}, why)];
  }
  const svg = document.importNode(
    new DOMParser().parseFromString(data.pictures[index], "image/svg+xml").documentElement,
    true,
  );
  svg.style.setProperty("--natural", `${svg.getAttribute("width")}px`);
  for (const node of svg.querySelectorAll(".edge, .cut, .node")) node.classList.toggle("can", Boolean(meantBy(node)));
  const of = arm === reference ? `${arm.name}, the reference` : arm.name;
  return [
    make("figcaption", {}, `One step of ${of}.`),
    make("div", {class: "wide", tabindex: "0", role: "group", "aria-label": "The picture; arrow keys scroll it"}, svg),
  ];
}
/** A cut is thin: a rectangle around it is what is clicked, and what is marked where it is chosen. */
function target(cut) {
  const {x, y, width, height} = cut.getBBox(),
    spare = 5;
  return make("rect", {
    class: "target",
    x: x - spare,
    y: y - spare,
    width: width + 2 * spare,
    height: height + 2 * spare,
    rx: 6,
  });
}
const nameOfCut = cut => cut.dataset.boundary || cut.dataset.where;
/** What a click on a part of the picture means: a loss or a cut to choose. */
function meantBy(node) {
  if (node.classList.contains("cut")) return switchOf.has(nameOfCut(node)) && (() => chooseCut(nameOfCut(node)));
  const loss = node.dataset.loss ?? node.dataset.node;
  return losses.includes(loss) && (() => chooseLoss(loss));
}
/** The arrows of the chosen loss and what they join are on, the rest is dimmed; the chosen cut is marked. */
function lightPicture() {
  const svg = byId("picture").querySelector("svg"),
    reached = new Set([view.loss]);
  if (!svg) return;
  svg.classList.toggle("lit", view.loss !== null);
  for (const edge of svg.querySelectorAll(".edge")) {
    const on = edge.dataset.loss === view.loss;
    edge.classList.toggle("on", on);
    if (on) reached.add(edge.dataset.from).add(edge.dataset.to);
  }
  for (const node of svg.querySelectorAll(".node, .cut")) node.classList.toggle("on", reached.has(node.dataset.node));
  for (const cut of svg.querySelectorAll(".cut"))
    cut.classList.toggle("chosen", view.cut !== null && nameOfCut(cut) === view.cut);
  for (const mark of byId("losses").querySelectorAll(".loss-mark")) {
    // as in the picture: its colour and its letter
    const node = svg.querySelector(`.node.loss[data-node="${CSS.escape(mark.dataset.loss)}"]`);
    mark.textContent = node?.querySelector("text")?.textContent ?? "";
    mark.style.background = node ? getComputedStyle(node.querySelector("circle")).fill : "none";
  }
}

function lossWords(loss, arm) {
  const row = arm.flow.matrix?.[loss];
  if (!row) return `${loss} is not recorded in ${arm.name}.`;
  const parts = Object.keys(row).filter(part => !part.startsWith("stop.")),
    ways = {};
  for (const part of parts.length ? parts : Object.keys(row)) (ways[row[part].state] ??= []).push(part);
  const cuts = part => (row[part].cuts.length ? ` (${row[part].cuts.join("; ")})` : "");
  const said = [
    ways.open
      ? `reaches ${listed(ways.open.map(part => `${part} (|g| ${number(row[part].norm)})`))}`
      : "reaches nothing",
  ];
  if (ways.blocked) said.push(`is stopped before ${listed(ways.blocked.map(part => part + cuts(part)))}`);
  for (const [state, found] of Object.entries(ways))
    if (!["open", "blocked"].includes(state)) said.push(`${listed(found)}: ${words(state)}`);
  return `In ${arm.name}, ${loss} ${said.join("; ")}.`;
}
function cutWords(each) {
  if (each.choice === null) return `The cut at ${each.name} is no named one: no arm flips it.`;
  const flips = Object.entries(each.flips),
    by = flips.map(([arm, choice]) => (arm === choice ? arm : `${arm} (${choice})`));
  const others = Object.keys(each.otherwise),
    said = [`${each.name} is ${each.choice} in ${data.reference}, the reference`];
  said.push(flips.length ? `${listed(by)} ${flips.length > 1 ? "flip" : "flips"} it` : "no arm flips it");
  if (others.length) said.push(`${listed(others)} ${others.length > 1 ? "do" : "does"} the same in another way`);
  return said.join("; ") + ".";
}
/** For the chosen cut: an arm that flips it alone, to see its arrows; or else the arms that flip it among others. */
function showFlips() {
  const each = switchOf.get(view.cut),
    box = byId("flips"),
    arms = each ? (each.alone.length ? each.alone : Object.keys(each.flips)) : [];
  if (box.dataset.cut !== String(view.cut)) {
    box.dataset.cut = String(view.cut);
    box.replaceChildren(
      ...(arms.length
        ? [
            make("span", {}, "flip it"),
            ...arms.map(arm =>
              toggle(
                [`as in ${arm}`, each.alone.includes(arm) ? null : make("small", {}, " and other choices")],
                () => change({arm: view.arm === arm ? data.reference : arm}),
                {"data-flip": arm},
              ),
            ),
          ]
        : []),
    );
  }
  for (const button of box.querySelectorAll("button")) press(button, button.dataset.flip === view.arm);
}

function flowMatrix(arm) {
  const matrix = arm.flow.matrix;
  if (!matrix) return make("p", {class: "soft"}, arm.runs.length ? "No matrix was recorded." : "");
  const parts = [...new Set(Object.values(matrix).flatMap(Object.keys))];
  const live = make(
    "p",
    {id: "cell", role: "status", "aria-live": "polite"},
    "Choose a cell to read where the gradient was stopped.",
  );
  const tell = (loss, part, cell) => {
    const found = [make("strong", {}, `${loss} → ${part}: ${cell.state}`)];
    if (cell.state === "open")
      found.push(`, |g| ${number(cell.norm)}, ${Math.round(100 * cell.share)}% of all gradient that arrives there`);
    if (cell.was && cell.was !== cell.state) found.push(`; in ${data.reference} it is ${cell.was}`);
    if (cell.cuts.length)
      found.push(make("br"), (cell.state === "blocked" ? "stopped by " : "cuts on the way: ") + cell.cuts.join("; "));
    live.replaceChildren(...found);
  };
  const cellButton = (loss, part) => {
    const cell = matrix[loss][part];
    if (!cell) return make("td");
    const changed = cell.was && cell.was !== cell.state;
    const button = make(
      "button",
      {
        type: "button",
        class: `${cell.state}${changed ? " changed" : ""}`,
        "data-cell": `${loss} ${part}`,
        onclick: () => tell(loss, part, cell),
      },
      cell.state + (cell.state === "open" ? ` ${number(cell.norm)}` : ""),
      changed ? make("span", {class: "was"}, `was ${cell.was}`) : null,
      make("span", {class: "flips-it"}),
    );
    return make("td", {}, button);
  };
  return make(
    "div",
    {},
    make(
      "div",
      {class: "wide"},
      make(
        "table",
        {class: "matrix"},
        make(
          "caption",
          {},
          make(
            "span",
            {},
            `The same as a table, of ${arm.name}, seed ${arm.flow.seed}. ` +
              "Cells that differ from the reference's are framed and say what they were.",
          ),
        ),
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            make("td"),
            parts.map(part => make("th", {scope: "col"}, part)),
          ),
        ),
        make(
          "tbody",
          {},
          Object.keys(matrix).map(loss =>
            make(
              "tr",
              {"data-loss": loss},
              make("th", {scope: "row"}, loss),
              parts.map(part => cellButton(loss, part)),
            ),
          ),
        ),
      ),
    ),
    live,
  );
}
/** The row of the chosen loss; and the cells that an arm which flips the chosen cut has otherwise. */
function lightMatrix() {
  const table = byId("matrix").querySelector(".matrix"),
    flips = Object.keys(switchOf.get(view.cut)?.flips ?? {});
  if (!table) return;
  table.classList.toggle("lit", view.loss !== null);
  for (const row of table.tBodies[0].rows) row.classList.toggle("on", row.dataset.loss === view.loss);
  const changed = new Map();
  for (const name of flips)
    for (const cell of byName.get(name).flow.changed) {
      const key = `${cell.loss} ${cell.part}`;
      changed.set(key, [...(changed.get(key) ?? []), `${cell.is} in ${name}`]);
    }
  for (const button of table.querySelectorAll("[data-cell]")) {
    const said = changed.get(button.dataset.cell);
    button.classList.toggle("lit", Boolean(said));
    button.querySelector(".flips-it").textContent = said
      ? said.slice(0, 2).join(", ") + (said.length > 2 ? ` and ${said.length - 2} more` : "")
      : "";
  }
}
