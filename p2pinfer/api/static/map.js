// Peers by layers: who runs which part of the model, and the answer that passes through now.

const COLOURS = 8;
const COLOURED_MAX = 1000; // in a page that is left open while peers come and go
const STEP_MS = 110;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const byId = (id) => document.getElementById(id);

export const shortName = (peer) => `…${peer.slice(-6)}`;
export const layersText = (first, end) =>
  end - first === 1 ? `layer ${first}` : `layers ${first}–${end - 1}`;

const colours = new Map(); // a peer keeps its colour for as long as the page is open
let next = 0;

export function colourOf(peer) {
  if (!colours.has(peer)) {
    colours.set(peer, next++ % COLOURS);
    if (colours.size > COLOURED_MAX) colours.delete(colours.keys().next().value);
  }
  return colours.get(peer);
}

const STATES = {
  serving: "serving",
  joining: "joining",
  draining: "leaving",
  failed: "broke off",
  gone: "gone",
};

let layers = 1;
const rows = new Map(); // key → {item, bars, name, note}
let lastTokens = new Map();

function bar(first, end) {
  const made = document.createElement("i");
  made.className = "span";
  made.style.setProperty("--from", first / layers);
  made.style.setProperty("--part", (end - first) / layers);
  return made;
}

function row(key) {
  if (rows.has(key)) return rows.get(key);
  const item = document.createElement("li");
  const [name, note, track] = ["span", "span", "div"].map((tag) => document.createElement(tag));
  name.className = "peer-name";
  note.className = "peer-note";
  track.className = "track";
  track.setAttribute("aria-hidden", "true");
  const range = document.createElement("span");
  range.className = "peer-range";
  item.append(name, range, track, note);
  const made = { item, name, range, note, track };
  rows.set(key, made);
  return made;
}

function fill(made, ranges, { name, range, note }, state, colour) {
  const shape = JSON.stringify([ranges, layers]);
  if (made.shape !== shape) {
    made.shape = shape;
    made.track.replaceChildren(...ranges.map(([first, end]) => bar(first, end)));
  }
  made.name.textContent = name;
  made.range.textContent = range;
  made.note.textContent = note;
  made.item.dataset.state = state;
  if (colour !== undefined) made.item.dataset.colour = colour;
}

function noteOf(peer) {
  const words = [];
  words.push(STATES[peer.state] ?? peer.state);
  if (peer.row_us) words.push(`${(peer.row_us / 1000).toFixed(2)} ms a layer`);
  if (peer.sessions_max && peer.state === "serving")
    words.push(`${peer.sessions_free} of ${peer.sessions_max} places free`);
  return words.join(" · ");
}

function ruler() {
  const step = layers <= 12 ? 2 : layers <= 40 ? 5 : layers <= 80 ? 10 : 20;
  const marks = [];
  for (let at = 0; at < layers; at += step) {
    const mark = document.createElement("span");
    mark.textContent = at;
    mark.style.setProperty("--from", at / layers);
    marks.push(mark);
  }
  byId("ruler").replaceChildren(...marks);
}

/** Show the swarm as it is now. */
export function showState(state) {
  if (layers !== state.model.layers || !byId("ruler").children.length) {
    layers = state.model.layers;
    ruler();
  }
  const own = row("own");
  const { first, end } = state.kept;
  const ends = [[0, first], [end, layers]].filter(([from, to]) => from < to);
  const text = { name: "this gateway", range: "both ends", note: "turns words into numbers and back" };
  fill(own, ends, text, "own");
  const shown = [own.item];
  for (const peer of state.peers) {
    const made = row(peer.peer);
    const range = peer.end > peer.first ? [[peer.first, peer.end]] : [];
    const said = {
      name: shortName(peer.peer),
      range: range.length ? layersText(peer.first, peer.end) : "",
      note: noteOf(peer),
    };
    fill(made, range, said, peer.state, colourOf(peer.peer));
    made.item.title = peer.peer;
    shown.push(made.item);
  }
  const here = new Set(["own", ...state.peers.map((peer) => peer.peer)]);
  for (const key of [...rows.keys()]) if (!here.has(key)) rows.delete(key);
  const list = byId("peers");
  if (shown.length !== list.children.length || shown.some((item, at) => list.children[at] !== item))
    list.replaceChildren(...shown);
  const good = state.peers.filter((peer) => peer.state === "serving").length;
  byId("swarm-text").textContent =
    `${good} ${good === 1 ? "peer serves" : "peers serve"} ${state.model.name}, ` +
    `${state.model.layers} layers${state.complete ? "" : `; ${state.missing}`}`;
  facts(state.sessions);
}

function facts({ running, waiting, idle, max }) {
  const shown = [
    ["Answers now", `${running} of ${max}`],
    ["In the queue", waiting],
    ["Kept for a next turn", idle],
  ];
  byId("facts").replaceChildren(
    ...shown.map(([name, value]) => {
      const pair = document.createElement("div");
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      dt.textContent = name;
      dd.textContent = value;
      pair.append(dt, dd);
      return pair;
    }),
  );
}

function flash(made, delay) {
  if (calm.matches) return;
  for (const span of made.track.children)
    span.animate(
      [{ filter: "none" }, { filter: "brightness(1.45) saturate(1.3)", offset: 0.3 }, { filter: "none" }],
      { duration: 520, delay, easing: "ease-out" },
    );
}

/** Light up the routes of the answers that are on their way; a token passes from stage to stage. */
export function showAnswers(answers) {
  const busy = new Set();
  const tokens = new Map();
  for (const answer of answers) {
    tokens.set(answer.id, answer.tokens);
    const route = ["own", ...answer.route];
    for (const key of route) busy.add(key);
    if (answer.tokens > (lastTokens.get(answer.id) ?? 0))
      route.forEach((key, at) => rows.has(key) && flash(rows.get(key), at * STEP_MS));
  }
  lastTokens = tokens;
  for (const [key, { item }] of rows) item.classList.toggle("busy", busy.has(key));
}
