"use strict";
// What the page knows of the run, and what it works out of it. Nothing here draws.

const run = JSON.parse(document.getElementById("run").textContent);
const END = Math.max(run.end, 1);
const waitingStates = new Set(run.waiting.map((name) => run.states.indexOf(name)));
const byNumber = new Map(run.requests.map((each) => [each.request, each]));
const stepAt = new Map(run.steps.map((each, index) => [each[0], index]));

const format = (ms) => {
  if (ms === null || ms === undefined) return "-";
  const size = Math.abs(ms);
  return size < 1 ? `${(ms * 1000).toFixed(0)} us` : size < 1000 ? `${ms.toFixed(2)} ms` : `${(ms / 1000).toFixed(3)} s`;
};
const total = (each) => (each.ended === null ? END : each.ended) - each.submitted;
const firstToken = (each) => (each.first === null ? null : each.first - each.submitted);

// Order of the list -> what a request is measured by, and how the list shows it.
const shownTotal = (each) => format(total(each));
const MEASURES = {
  "arrival": [null, shownTotal],
  "slowest": [total, shownTotal],
  "slowest first token": [(each) => firstToken(each) ?? -1, (each) => format(firstToken(each))],
  "longest wait": [(each) => each.waited, (each) => format(each.waited)],
  "largest gap between tokens": [(each) => each.mean === null ? -1 : each.gap, (each) => format(each.mean === null ? null : each.gap)],
  "slowest between tokens": [(each) => each.mean ?? -1, (each) => format(each.mean)],
  "most retractions": [(each) => each.retractions, (each) => String(each.retractions)],
  "most tokens": [(each) => each.prompt + each.output, (each) => `${each.prompt} + ${each.output}`],
};

// The requests to list: those that the words fit, in the order of the name.
function listed(words, order) {
  const sought = words.trim().toLowerCase();
  const found = sought === "" ? run.requests.slice() : run.requests.filter((each) =>
    String(each.request) === sought ||
    [each.rid, each.state, each.cause].some((text) => text.toLowerCase().includes(sought)));
  const measure = MEASURES[order][0];
  return measure ? found.sort((one, other) => measure(other) - measure(one)) : found;
}

// The first index whose time is at least `ms`; times rise.
function firstAt(rows, ms, time) {
  let low = 0, high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (time(rows[middle]) < ms) low = middle + 1; else high = middle;
  }
  return low;
}

// The row that holds at `ms`: the last one that is not later; undefined before the first.
const rowAt = (rows, ms) => rows[firstAt(rows, ms + 1e-9, (row) => row[0]) - 1];

// The largest value of rows within [from, to], the one that holds at the beginning included; 0 where there is none.
const largest = (rows, from, to, value) => rows
  .slice(Math.max(0, firstAt(rows, from, (row) => row[0]) - 1), firstAt(rows, to, (row) => row[0]))
  .reduce((size, row) => Math.max(size, value(row)), 0);

// Output tokens up to each committed step, for the rate between two times.
const commits = run.steps.filter((each) => each[3] === 0).sort((one, other) => one[2] - other[2]);
const sums = new Float64Array(commits.length + 1);
commits.forEach((each, index) => { sums[index + 1] = sums[index] + each[7]; });
function tokensPerSecond(from, to) {
  const count = sums[firstAt(commits, to, (row) => row[2])] - sums[firstAt(commits, from, (row) => row[2])];
  return to > from ? count / ((to - from) / 1000) : 0;
}

// Requests with a segment in the step.
const requestsOf = (step) => run.requests.filter((each) => each.steps.some(([first, last]) => first <= step && step <= last));
const numSteps = (each) => each.steps.reduce((count, [first, last]) => count + last - first + 1, 0);

// Milliseconds that `each` was at work within [from, to].
function atWork(each, from, to) {
  let sum = 0;
  for (const [state, start, end] of each.intervals) {
    if (!waitingStates.has(state)) sum += Math.max(0, Math.min(end, to) - Math.max(start, from));
  }
  return sum;
}

// Whom a request waited for: for each interval of waiting, who was at work longest meanwhile, and who waited before it.
function waits(each) {
  return each.intervals.filter(([state, start, end]) => waitingStates.has(state) && end > start).map(([state, start, end]) => {
    const others = run.requests.filter((other) => other !== each && other.submitted < end && (other.ended ?? END) > start);
    const workers = others.map((other) => [other, atWork(other, start, end)]).filter(([, time]) => time > 0)
      .sort((one, other) => other[1] - one[1]);
    const ahead = others.filter((other) => other.submitted <= each.submitted &&
      other.intervals.some(([state, from, to]) => waitingStates.has(state) && from <= start && to > start)).length;
    return { state: run.states[state], start, end, workers, ahead, running: largest(run.loads, start, end, (row) => row[2]),
      owned: largest(run.pages, start, end, (row) => row[1 + run.page_classes.indexOf("owned")]) };
  });
}
