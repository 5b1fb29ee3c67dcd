// Words around the charts, and what a person does with them.

const make = (name, text, parent) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};

// ---- words ----

function describe() {
  element("model").textContent = run.model;
  element("verdict").textContent = run.verdict;
  element("verdict").className = run.verdict;
  const causes = Object.entries(run.causes).map(([cause, count]) => `${cause} ${count}`).join(", ");
  const started = run.wall === null ? "" : new Date(run.wall * 1000).toISOString().slice(0, 19) + "Z, ";
  element("summary").textContent = `${started}${format(run.end)}, ${run.num_requests} requests (${causes}), ` +
    `${run.num_steps} steps` + (run.num_pages ? `, ${run.num_pages} pages of ${run.page_size} tokens` : "");
  const left = Object.entries(run.left_out).map(([name, count]) => `${count} older ${name} are not shown`);
  if (run.left_out.requests) left.push("the slowest of every kind and those with violations are shown, however old");
  element("notes").textContent = [...run.missing, ...left].join("; ");
  for (const [name, colour] of Object.entries({ ...STATE_COLOUR, ...END_COLOUR })) {
    const index = run.states.indexOf(name);
    if (!run.requests.some((each) => each.state === name || each.intervals.some((one) => one[0] === index))) continue;
    const entry = make("span", undefined, element("legend"));
    make("i", undefined, entry).style.background = colour;
    entry.append(name.replace("_", " "));
  }
  for (const name of Object.keys(MEASURES)) make("option", name, element("sort"));
  describeLatencies();
  describeViolations();
  element("details").textContent = "Click a request or a step.";
}

function describeLatencies() {
  const table = element("latencies").querySelector("table"), head = make("tr", undefined, table);
  for (const name of ["", "requests", "p50", "p90", "p99", "max"]) make("th", name, head);
  for (const [name, count, ...times] of run.latencies) {
    const row = make("tr", undefined, table);
    make("th", name, row);
    for (const text of [count, ...times.map(format)]) make("td", String(text), row);
  }
  element("latencies").hidden = !run.latencies.length;
}

function describeViolations() {
  element("violations").hidden = !run.violations.length;
  element("violations").querySelector("summary").textContent = `Violations: ${run.violations.length}`;
  for (const each of run.violations) {
    const item = make("li", undefined, element("violations").querySelector("ol"));
    link(`${each.property}: ${each.text} (record ${each.record})`, item, () => chooseViolation(each));
  }
}

function link(text, parent, act) {
  const button = make("button", text, parent);
  button.className = "link";
  button.addEventListener("click", act);
  return button;
}

// ---- details ----

// Rows [name, text or function that fills the cell].
function facts(rows) {
  const table = make("table");
  for (const [name, value] of rows) {
    const row = make("tr", undefined, table);
    make("th", name, row);
    const cell = make("td", undefined, row);
    if (typeof value === "function") value(cell); else cell.textContent = String(value);
  }
  element("details").replaceChildren(table);
}

const LISTED = 12;
const requestLinks = (requests, text = (each) => `${each.request} ${each.rid}`) => (cell) => {
  for (const each of requests.slice(0, LISTED)) link(text(each), make("div", undefined, cell), () => goTo(each));
  if (requests.length > LISTED) make("div", `and ${requests.length - LISTED} more`, cell);
};

function waitFacts(each) {
  return waits(each).flatMap((wait) => [
    [wait.state, `${format(wait.start)} for ${format(wait.end - wait.start)}`],
    ["meanwhile", `up to ${wait.running}${run.num_slots ? ` of ${run.num_slots} slots` : ""} running with ` +
      `${wait.owned}${run.num_pages ? ` of ${run.num_pages}` : ""} pages; ${wait.ahead} waited before it`],
    ["behind", requestLinks(wait.workers.map(([other]) => other), (other) =>
      `${other.request} ${other.rid.slice(0, 12)}: ran ${format(atWork(other, wait.start, wait.end))}`)],
  ]);
}

function chooseRequest(each) {
  view.chosen = each;
  const settings = Object.entries(each.settings).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ");
  facts([
    ["request", `${each.request} ${each.rid}`],
    ["end", each.ended === null ? "open" : `${each.state}: ${each.cause}, after ${format(total(each))}`],
    ["first token", `after ${format(firstToken(each))}`],
    ["between tokens", `${format(each.mean)} on average, ${format(each.mean === null ? null : each.gap)} at most`],
    ["tokens", `${each.prompt} prompt (${each.cached} cached), ${each.output} output`],
    ["settings", [settings || "defaults", each.priority ? `priority ${each.priority}` : "", each.namespace].filter(Boolean).join("; ")],
    ["retractions", each.retractions],
    ...each.intervals.filter(([state]) => !waitingStates.has(state))
      .map(([state, start, end]) => [run.states[state], `${format(start)} for ${format(end - start)}`]),
    ...waitFacts(each),
    ["steps", (cell) => stepLinks(each, cell)],
    ...run.violations.filter((one) => one.request === each.request).map((one) => [one.property, one.text]),
  ]);
  draw();
}

function stepLinks(each, cell) {
  cell.append(`${numSteps(each)}: `);
  for (const [first, last] of each.steps.slice(0, LISTED)) {
    link(first === last ? `${first} ` : `${first}–${last} `, cell, () => { if (stepAt.has(first)) chooseStep(run.steps[stepAt.get(first)]); });
  }
  if (each.steps.length > LISTED) cell.append("…");
}

function chooseStep([step, planned, ended, kind, segments, tokens, decoding, outputs, reason]) {
  facts([
    ["step", `${step}, ${["committed", "rolled back", "never answered"][kind]}${reason ? `: ${reason}` : ""}`],
    ["time", `${format(planned)} for ${ended === null ? "-" : format(ended - planned)}`],
    ["segments", `${segments}, of them decoding ${decoding}`],
    ["tokens", `${tokens} computed, ${outputs} given out`],
    ["requests", requestLinks(requestsOf(step))],
  ]);
}

function goTo(each) {
  if (!view.shown.includes(each)) {
    element("find").value = "";
    view.shown = listed("", element("sort").value);
  }
  const index = view.shown.indexOf(each), scroll = element("scroll"), row = index * ROW - scroll.scrollTop;
  if (row < 0 || row > scroll.clientHeight - ROW) scroll.scrollTop = Math.max(0, (index - 5) * ROW);
  chooseRequest(each);
}

function chooseViolation(each) {
  if (byNumber.has(each.request)) goTo(byNumber.get(each.request)); else facts([[each.property, each.text]]);
  make("pre", each.slice.join("\n"), element("details"));
}

// ---- hands ----

function show(from, to) {
  const width = Math.min(Math.max(to - from, 0.01), END);
  view.from = Math.max(0, Math.min(from, END - width));
  view.to = view.from + width;
  draw();
}

// `at`: the share of the view, from its left, that stays where it is.
function zoom(factor, at) {
  const width = Math.min((view.to - view.from) * factor, END), centre = view.from + at * (view.to - view.from);
  show(centre - at * width, centre - at * width + width);
}
const move = (share) => show(view.from + share * (view.to - view.from), view.to + share * (view.to - view.from));

function listen(canvas, click) {
  let held = null;
  canvas.addEventListener("wheel", (event) => {
    if (canvas.id === "requests" && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(event.deltaY / 400), Math.max(0, (event.offsetX - GUTTER) / (canvas.clientWidth - GUTTER)));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { held = [event.offsetX, view.from, view.to]; });
  canvas.addEventListener("pointermove", (event) => {
    if (!held || !event.buttons) return;
    const moved = ((held[0] - event.offsetX) / (canvas.clientWidth - GUTTER)) * (held[2] - held[1]);
    show(held[1] + moved, held[2] + moved);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (held && Math.abs(event.offsetX - held[0]) < 3) click(timeAt(event.offsetX, canvas.clientWidth), event.offsetY);
    held = null;
  });
}

// A line at the pointer over all charts, with the time and what was the case then.
function follow(event) {
  const box = element("charts").getBoundingClientRect(), x = event.clientX - box.left, width = element("scroll").clientWidth;
  const cursor = element("cursor");
  cursor.hidden = x < GUTTER || x > width;
  if (cursor.hidden) return;
  const ms = timeAt(x, width), load = rowAt(run.loads, ms), pages = rowAt(run.pages, ms), span = (view.to - view.from) / 100;
  const lines = [format(ms)];
  if (load) lines.push(`${load[2]} running, ${load[1]} waiting, ${Math.round(tokensPerSecond(ms - span, ms + span))} tokens/s`);
  if (pages) lines.push(run.page_classes.map((name, index) => `${pages[index + 1]} ${name}`).join(", "));
  cursor.style.left = `${x}px`;
  cursor.className = x > width / 2 ? "left" : "";
  cursor.querySelector("span").textContent = lines.join("\n");
}

function list() {
  view.shown = listed(element("find").value, element("sort").value);
  view.measure = MEASURES[element("sort").value][1];
  element("scroll").scrollTop = 0;
  draw();
}

const KEYS = { w: () => zoom(0.7, 0.5), s: () => zoom(1 / 0.7, 0.5), a: () => move(-0.2), d: () => move(0.2) };
function press(event) {
  if (["INPUT", "SELECT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (by !== undefined) {
    const next = view.shown[Math.max(0, view.shown.indexOf(view.chosen) + by)];
    if (next) goTo(next);
  } else if (KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
}

for (const name of ["axis", "load", "memory"]) listen(element(name), () => {});
listen(element("steps"), (ms, y) => {
  const lane = y < 22 ? 0 : 1;
  const found = run.steps.find((one) => one[0] % 2 === lane && one[1] <= ms && (one[2] === null || one[2] >= ms));
  if (found) chooseStep(found);
});
listen(element("requests"), (ms, y) => {
  const found = view.shown[Math.floor(element("scroll").scrollTop / ROW) + Math.floor(y / ROW)];
  if (found) chooseRequest(found);
});
element("charts").addEventListener("pointermove", follow);
element("charts").addEventListener("pointerleave", () => { element("cursor").hidden = true; });
element("scroll").addEventListener("scroll", drawRequests);
element("whole").addEventListener("click", () => show(0, END));
element("find").addEventListener("input", list);
element("sort").addEventListener("change", list);
window.addEventListener("keydown", press);
window.addEventListener("resize", draw);
describe();
draw();
