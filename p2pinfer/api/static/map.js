// Peers by layers: who runs which part of the model, and the answer that passes through now.

import { number, t, translated } from "./words.js";

const COLOURS = 8;
const COLOURED_MAX = 1000; // in a page that is left open while peers come and go
const PASS_MS = 640; // of the light that goes through all layers; for the eye, not to scale
const SPAN_MS_MIN = 160;
const DENSE_FROM = 9; // peers: beyond, only what is amiss gets a line of its own
const OWN = "own"; // the gateway's key among the peers
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const byId = (id) => document.getElementById(id);

export const shortName = (peer) => (peer.length > 12 && !peer.includes(" ") ? `…${peer.slice(-6)}` : peer);
export const layersText = (first, end) => t("layers {0}:{1}", first, end);
export const rangeOf = (hop) => hop.layers.split(":").map(Number);

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
let kept = { first: 0, end: 1 };
const rows = new Map(); // key → {item, name, range, note, track}
let answers = [];
let lastTokens = new Map();
let focus; // the id of the answer that the reader looks at
let lastRoute; // of the answer above, once it is complete
let passedAt = 0;

function make(tag, name) {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}

function bar(first, end, colour) {
  const made = make("i", "span");
  made.style.setProperty("--from", first / layers);
  made.style.setProperty("--part", (end - first) / layers);
  if (colour !== undefined) made.dataset.colour = colour;
  return made;
}

function row(key) {
  if (rows.has(key)) return rows.get(key);
  const item = document.createElement("li");
  const [name, range, note] = ["name", "range", "note"].map((part) => make("span", `peer-${part}`));
  const track = make("div", "track");
  track.setAttribute("aria-hidden", "true");
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
  const words = [t(STATES[peer.state] ?? peer.state)];
  if (peer.row_us) words.push(t("{0} ms for a token in a layer", number(peer.row_us / 1000, 2)));
  if (peer.round_trip_ms != null && peer.state === "serving")
    words.push(t("{0} ms away", peer.round_trip_ms));
  if (peer.way?.startsWith("through")) words.push(translated(peer.way));
  if (peer.sessions_max && peer.state === "serving" && !peer.sessions_free) words.push(t("no place free"));
  if (peer.queued_rows) words.push(t("{0} tokens wait", peer.queued_rows));
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

const ownRanges = () => [[0, kept.first], [kept.end, layers]].filter(([from, to]) => from < to);

/** Show the swarm as it is now. */
export function showState(state) {
  kept = state.kept;
  if (layers !== state.model.layers || !byId("ruler").children.length) {
    layers = state.model.layers;
    ruler();
  }
  const own = row(OWN);
  const text = { name: t("this gateway"), range: t("both ends"), note: t("turns words into numbers and back") };
  fill(own, ownRanges(), text, "own");
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
  const here = new Set([OWN, ...state.peers.map((peer) => peer.peer)]);
  for (const key of [...rows.keys()]) if (!here.has(key)) rows.delete(key);
  const list = byId("peers");
  list.classList.toggle("dense", state.peers.length >= DENSE_FROM);
  if (shown.length !== list.children.length || shown.some((item, at) => list.children[at] !== item))
    list.replaceChildren(...shown);
  const good = state.peers.filter((peer) => peer.state === "serving").length;
  byId("swarm-text").textContent = state.complete
    ? t(good === 1 ? "{0} peer serves all {1} layers" : "{0} peers serve all {1} layers", good, layers)
    : `${t(good === 1 ? "{0} peer serves" : "{0} peers serve", good)}; ${translated(state.missing)}`;
  byId("swarm-text").dataset.complete = state.complete;
  facts(state.sessions);
  paintRoute();
}

function facts({ running, waiting, idle, max }) {
  const shown = [
    [t("Answers now"), t("{0} of {1}", running, max)],
    [t("In the queue"), waiting],
    [t("Kept for a next turn"), idle],
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

/** Look at the answer of this id while it is made; else at the route of one that is complete. */
export function showRoute(id, route) {
  focus = id;
  lastRoute = route;
  paintRoute();
}

function paintRoute() {
  const running = answers.find((answer) => answer.id === focus) ?? (focus ? undefined : answers[0]);
  const route = running?.route ?? lastRoute;
  byId("route").hidden = !route;
  if (!route) return;
  const own = ownRanges().map(([first, end]) => [first, end, OWN]);
  const hops = [...own, ...route.map((hop) => [...rangeOf(hop), hop.peer])].sort((a, b) => a[0] - b[0]);
  const shape = JSON.stringify([hops, layers]);
  const strip = byId("route-strip");
  if (strip.dataset.shape !== shape) {
    strip.dataset.shape = shape;
    strip.replaceChildren(
      ...hops.map(([first, end, peer]) => bar(first, end, peer === OWN ? OWN : colourOf(peer))),
    );
  }
  const speed = running?.tokens > 1 ? t("{0} tokens/s", number(running.tokens_per_second, 1)) : "";
  byId("route-speed").textContent = speed;
}

function glow(track) {
  for (const span of track.children) {
    const [from, part] = ["--from", "--part"].map((name) => Number(span.style.getPropertyValue(name)));
    span.animate([{ backgroundPosition: "-90px 0" }, { backgroundPosition: "calc(100% + 90px) 0" }], {
      delay: from * PASS_MS,
      duration: Math.max(part * PASS_MS, SPAN_MS_MIN),
      easing: "linear",
    });
  }
}

/** Light up the routes of the answers that are on their way; a token passes from stage to stage. */
export function showAnswers(now) {
  answers = now;
  const busy = new Set();
  const tokens = new Map();
  let moved = false;
  for (const answer of answers) {
    tokens.set(answer.id, answer.tokens);
    for (const key of [OWN, ...answer.route.map((hop) => hop.peer)]) busy.add(key);
    moved ||= answer.tokens > (lastTokens.get(answer.id) ?? 0);
  }
  lastTokens = tokens;
  for (const [key, { item }] of rows) item.classList.toggle("busy", busy.has(key));
  paintRoute();
  if (!moved || calm.matches || document.hidden || performance.now() - passedAt < PASS_MS) return;
  passedAt = performance.now();
  glow(byId("route-strip"));
  for (const key of busy) if (rows.has(key)) glow(rows.get(key).track);
}
