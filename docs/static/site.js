// A button on each block of code that copies it; shown where the pointer or the focus is.
for (const block of document.querySelectorAll("div.highlight")) {
  const button = Object.assign(document.createElement("button"), { className: "copy", type: "button", textContent: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.querySelector("pre").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.append(button);
}

// The questions of "Which one do I want?" are nested <details>; here each answer becomes a button. The address keeps the way
// (#decision-0-2), so that the browser's own "back" goes a step back and a link leads to an answer.
for (const tree of document.querySelectorAll(".decision")) {
  const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);
  const answers = node => [...node.children].filter(child => child.tagName === "DETAILS");
  const label = details => details.querySelector(":scope > summary").textContent;
  const shown = make("div", { className: "decision-shown" });
  const way = () => (location.hash.match(/^#decision((?:-\d+)*)$/)?.[1] ?? "").split("-").slice(1).map(Number);
  const go = steps => { location.hash = ["decision", ...steps].join("-"); };
  const button = (text, steps) => {
    const made = make("button", { type: "button", textContent: text });
    made.addEventListener("click", () => go(steps));
    return made;
  };
  const show = focus => {
    let [node, steps] = [tree, []];
    const trail = make("p", { className: "decision-trail" });
    for (const step of way()) {
      if (!answers(node)[step]) break;
      if (!steps.length) trail.append(button(tree.dataset.again, []));
      node = answers(node)[step];
      steps = [...steps, step];
      trail.append(" › ", button(label(node), steps));
    }
    const text = [...node.children].filter(child => !["DETAILS", "SUMMARY"].includes(child.tagName));
    const body = make("div", { tabIndex: -1 });
    body.setAttribute("role", "group");
    body.setAttribute("aria-label", text[0].textContent);
    body.append(...text.map(child => child.cloneNode(true)));
    const choices = make("div", { className: "decision-answers" });
    choices.append(...answers(node).map((child, at) => button(label(child), [...steps, at])));
    trail.lastElementChild?.setAttribute("aria-current", "step");
    shown.replaceChildren(...(steps.length ? [trail] : []), body, choices);
    if (focus) body.focus();
  };
  tree.hidden = true;
  tree.after(shown);
  show(false);
  window.addEventListener("hashchange", () => { if (/^#decision|^$/.test(location.hash)) show(true); });
}
